"""Linear and logistic regressions, and an autoregression, which is one too."""

from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from .density import LOG_SQRT_2PI, flat
from .posterior import read_json, read_npz

# A design and its responses with n rows, as a triangle R, a vector c and a sum of squares r with
# |y - X beta|^2 = |c - R beta|^2 + r: the likelihood then costs the same for any n.
Rows = tuple[Tensor, Tensor, Tensor, int]


def condensed(columns: list[Tensor], y: Tensor) -> Rows:
    q, r = torch.linalg.qr(torch.stack(columns, dim=-1))
    c = q.mT @ y
    return r, c, (y - q @ c).square().sum(), len(y)


def observe(rows: Rows, beta: Tensor, sigma: Tensor) -> None:
    """The likelihood of ``y ~ N(X beta, sigma)``."""
    r, c, rest, n = rows
    squares = (c - r @ beta).square().sum() + rest
    pyro.factor("y", -0.5 * squares / sigma.square() - n * (sigma.log() + LOG_SQRT_2PI))


def normals(name: str, size: int, scale: float) -> Tensor:
    return pyro.sample(name, dist.Normal(0.0, scale).expand([size]).to_event(1))


def with_intercept(intercept: Tensor, slopes: Tensor) -> Tensor:
    return torch.cat([intercept.unsqueeze(-1), slopes])


def ark(rows: Rows) -> None:
    alpha, beta = pyro.sample("alpha", dist.Normal(0.0, 10.0)), normals("beta", 5, 10.0)
    observe(rows, with_intercept(alpha, beta), pyro.sample("sigma", dist.HalfCauchy(2.5)))


def read_ark(folder: Path) -> tuple[Rows]:
    y, lags = read_json(folder)["y"], 5
    return (condensed([torch.ones(len(y) - lags).double(), *(y[lags - k : -k] for k in range(1, 6))], y[lags:]),)


def diamonds(rows: Rows) -> None:
    b, intercept = normals("b", 24, 1.0), pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = pyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    observe(rows, with_intercept(intercept, b), sigma)


def read_diamonds(folder: Path) -> tuple[Rows]:
    data = read_json(folder)
    x = data["X"][:, 1:]
    return (condensed([torch.ones(len(x)).double(), *(x - x.mean(0)).unbind(-1)], data["Y"]),)


def flat_regression(rows: Rows) -> None:
    beta = flat("beta", rows[0].shape[-1])
    observe(rows, beta, flat("sigma", support=constraints.positive))


def read_earnings(folder: Path) -> tuple[Rows]:
    data = read_json(folder)
    height, male = data["height"], data["male"]
    return (condensed([torch.ones_like(male), height, male, height * male], data["earn"].log()),)


def read_nes(folder: Path) -> tuple[Rows]:
    data = read_json(folder)
    ages = [(data["age_discrete"] == age).double() for age in (2, 3, 4)]
    before, after = (data[n] for n in ("real_ideo", "race_adj")), (data[n] for n in ("educ1", "gender", "income"))
    return (condensed([torch.ones_like(ages[0]), *before, *ages, *after], data["partyid7"]),)


def kilpisjarvi(rows: Rows, priors: Tensor) -> None:
    (mean_a, sd_a), (mean_b, sd_b) = priors
    alpha, beta = pyro.sample("alpha", dist.Normal(mean_a, sd_a)), pyro.sample("beta", dist.Normal(mean_b, sd_b))
    observe(rows, torch.stack([alpha, beta]), flat("sigma", support=constraints.positive))


def read_kilpisjarvi(folder: Path) -> tuple[Rows, Tensor]:
    data = read_json(folder)
    priors = torch.stack([data[name] for name in ("pmualpha", "psalpha", "pmubeta", "psbeta")]).reshape(2, 2)
    return condensed([torch.ones_like(data["x"]), data["x"]], data["y"]), priors


def blr(rows: Rows) -> None:
    beta = normals("beta", rows[0].shape[-1], 10.0)
    observe(rows, beta, pyro.sample("sigma", dist.HalfNormal(10.0)))


def read_blr(folder: Path) -> tuple[Rows]:
    data = read_json(folder)
    return (condensed([*data["X"].unbind(-1)], data["y"]),)


def logistic(signed: Tensor, scale: float) -> None:
    """Logistic regression; ``signed`` is the design, its rows negated where the label is 0."""
    w = normals("w", signed.shape[-1], scale)
    pyro.factor("y", logsigmoid(signed @ w).sum())


def read_german_gym(folder: Path) -> tuple[Tensor, float]:
    data = read_npz(folder / "data.npz")["german_numeric"]
    x, label = data[:, :-1], data[:, -1:] - 1
    z = (x - x.mean(0)) / x.std(0, correction=0)
    return (2 * label - 1) * torch.cat([z, torch.ones_like(label)], dim=-1), 1.0


def read_german(folder: Path) -> tuple[Tensor, float]:
    data = read_npz(folder.with_suffix(".npz"))["data"]
    return scaled(data[:, :-1], data[:, -1:] - 1)


def read_cancer(folder: Path) -> tuple[Tensor, float]:
    data = read_npz(folder.with_suffix(".npz"))["data"]
    return scaled(data[:, 2:], data[:, 1:2])


def scaled(x: Tensor, label: Tensor) -> tuple[Tensor, float]:
    """Features in units of their spread behind a column of ones; here label 1 has probability sigmoid(-X w)."""
    return (1 - 2 * label) * torch.cat([torch.ones_like(label), x / x.std(0, correction=0)], dim=-1), 10.0
