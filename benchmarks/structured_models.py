"""Models with a plate of latents, data drawn for them, and the exact answer where there is one."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import constraints

LOG_2PI = math.log(2 * math.pi)
# Of each group of the binomial model.
TRIALS = 10
# Means and standard deviations of a site, both of the site's shape.
Moments = dict[str, tuple[NDArray, NDArray]]


@dataclass(frozen=True)
class Case:
    """A model and its data.

    Args:
        label: how the table calls it.
        family: the model's name in ``structured_nuts.py``.
        model: the Pyro model, which takes the data by name.
        data: draws the data from a fixed seed.
        rows: the sites in the followed plate; all others count as globals.
        exact: means, sds and the log evidence from the data.
        options: further arguments of the model.
        nuts: whether NUTS runs.
        drawn: whether moments of rows are taken from draws, as they are not known given the globals.
    """

    label: str
    family: str
    model: Callable
    data: Callable[[], dict[str, Tensor]]
    rows: tuple[str, ...]
    exact: Callable[[dict[str, Tensor]], tuple[Moments, float]] | None = None
    options: dict[str, int] = field(default_factory=dict)
    nuts: bool = True
    drawn: bool = False


def hierarchical_normal(y: Tensor, subsample_size: int | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    s = pyro.sample("s", dist.HalfNormal(2.0))
    with pyro.plate("group", len(y), subsample_size=subsample_size) as rows:
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta[..., None], s).to_event(1), obs=y[rows])


def hierarchical_normal_data(groups: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    theta = 1 + 0.7 * torch.randn(groups, generator=generator)
    return {"y": theta[:, None] + torch.randn(groups, 5, generator=generator)}


def binomial_normal(y: Tensor, subsample_size: int | None = None) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("group", len(y), subsample_size=subsample_size) as rows:
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Binomial(TRIALS, logits=theta), obs=y[rows])


def binomial_normal_data(groups: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    theta = -0.5 + 0.8 * torch.randn(groups, generator=generator)
    tries = torch.rand(groups, TRIALS, generator=generator)
    return {"y": (tries < theta.sigmoid()[:, None]).sum(-1).float()}


def radon(county: Tensor, floor: Tensor, y: Tensor) -> None:
    mu_a = pyro.sample("mu_a", dist.Normal(0.0, 5.0))
    mu_b = pyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sa, sb, s = (pyro.sample(name, dist.HalfNormal(1.0)) for name in ("sa", "sb", "s"))
    with pyro.plate("county_plate", 85):
        a = pyro.sample("a", dist.Normal(mu_a, sa))
        b = pyro.sample("b", dist.Normal(mu_b, sb))
    with pyro.plate("house", len(y)):
        pyro.sample("y", dist.Normal(a[county] + b[county] * floor, s), obs=y)


def radon_data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 40, (85,), generator=generator)
    county = torch.arange(85).repeat_interleave(sizes)
    floor = (torch.rand(len(county), generator=generator) < 0.3).float()
    a = 1.4 + 0.4 * torch.randn(85, generator=generator)
    b = -0.7 + 0.3 * torch.randn(85, generator=generator)
    y = a[county] + b[county] * floor + 0.75 * torch.randn(len(county), generator=generator)
    return {"county": county, "floor": floor, "y": y}


def varying_slopes(x: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    tau = pyro.sample("tau", dist.HalfNormal(torch.ones(3)).to_event(1))
    lower = pyro.sample("L", dist.LKJCholesky(3, 2.0))
    with pyro.plate("group", len(y)):
        z = pyro.sample("z", dist.MultivariateNormal(mu, scale_tril=tau[:, None] * lower))
        pyro.sample("y", dist.Bernoulli(logits=(x * z[:, None]).sum(-1)).to_event(1), obs=y)


def varying_slopes_data(groups: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(groups, 20, 3, generator=generator)
    x[..., 0] = 1
    tau = torch.tensor([1.0, 0.6, 0.3])
    correlation = torch.tensor([[1, 0.4, -0.2], [0.4, 1, 0.1], [-0.2, 0.1, 1]])
    lower = torch.linalg.cholesky(tau[:, None] * correlation * tau)
    z = torch.tensor([-0.5, 1.0, 0.3]) + torch.randn(groups, 3, generator=generator) @ lower.T
    chance = torch.sigmoid((x * z[:, None]).sum(-1))
    return {"x": x, "y": (torch.rand(groups, 20, generator=generator) < chance).float()}


def gamma_poisson(y: Tensor) -> None:
    shape = pyro.sample("shape", dist.HalfNormal(5.0))
    rate = pyro.sample("rate", dist.HalfNormal(5.0))
    with pyro.plate("group", len(y)):
        lam = pyro.sample("lam", dist.Gamma(shape, rate))
        pyro.sample("y", dist.Poisson(lam[..., None]).to_event(1), obs=y)


def gamma_poisson_data(groups: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lam = (0.5 + 0.6 * torch.randn(groups, generator=generator)).exp()
    return {"y": torch.poisson(lam[:, None].expand(groups, 4), generator=generator)}


def item_response(y: Tensor) -> None:
    """Two parameters for each item, with learnt scales: a hierarchy beside the one of the persons."""
    sb = pyro.sample("sb", dist.HalfNormal(1.0))
    sa = pyro.sample("sa", dist.HalfNormal(1.0))
    with pyro.plate("item", y.shape[1]):
        b = pyro.sample("b", dist.Normal(0.0, sb))
        log_a = pyro.sample("log_a", dist.Normal(0.0, sa))
    with pyro.plate("person", len(y)):
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        logits = log_a.exp()[..., None, :] * (t[..., None] - b[..., None, :])
        pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)


def item_response_data(persons: int, items: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(items, generator=generator)
    log_a = 0.4 * torch.randn(items, generator=generator)
    t = torch.randn(persons, generator=generator)
    chance = torch.sigmoid(log_a.exp() * (t[:, None] - b))
    return {"y": (torch.rand(persons, items, generator=generator) < chance).float()}


def volatility(y: Tensor) -> None:
    """Stochastic volatility with the log variance as latents, whose prior is a factor."""
    phi = pyro.sample("phi", dist.Beta(20.0, 1.5))
    m = pyro.sample("m", dist.Normal(0.0, 3.0))
    s = pyro.sample("s", dist.HalfNormal(0.5))
    h = pyro.sample("h", dist.ImproperUniform(constraints.real_vector, (), y.shape))
    keep, off = 2 * phi - 1, h - m[..., None]
    start = (1 - keep.square()).sqrt()
    shock = torch.cat([start[..., None] * off[..., :1], off[..., 1:] - keep[..., None] * off[..., :-1]], -1)
    pyro.factor("h prior", dist.Normal(0.0, s[..., None]).log_prob(shock).sum(-1) + start.log())
    pyro.sample("y", dist.Normal(0.0, (h / 2).exp()).to_event(1), obs=y)


def volatility_data(steps: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    keep, shock, off = 0.95, 0.25, torch.zeros(steps)
    off[0] = shock / math.sqrt(1 - keep**2) * torch.randn((), generator=generator)
    for t in range(1, steps):
        off[t] = keep * off[t - 1] + shock * torch.randn((), generator=generator)
    return {"y": ((off - 1) / 2).exp() * torch.randn(steps, generator=generator)}


def exact_normal(data: dict[str, Tensor], draws: int = 200_000) -> tuple[Moments, float]:
    """Moments and log evidence of the hierarchical normal.

    With groups of one size the marginal density of the globals, rows integrated out, needs three sums over the data.
    It is sampled by importance from a t around its mode. Given globals a row is normal, its mean linear in the row's
    mean of the data: its moments follow from those of the coefficients, for all rows at once.
    """
    y = data["y"].double()
    means, size = y.mean(1), y.shape[1]
    sums = len(y), size, means.mean(), (means - means.mean()).square().sum(), (y - means[:, None]).square().sum()
    g, log_w = _weighed(lambda g: _marginal(g, *sums), _laplace(lambda g: _marginal(g, *sums)), draws)
    w = torch.softmax(log_w, 0)
    values = {"mu": g[:, 0], "tau": g[:, 1].exp(), "s": g[:, 2].exp()}
    found = {name: _moments(w, value) for name, value in values.items()}
    precision = (-2 * g[:, 1]).exp() + size * (-2 * g[:, 2]).exp()
    share = size * (-2 * g[:, 2]).exp() / precision
    found["theta"] = _rows(w, (1 - share) * g[:, 0], share, 1 / precision, means)
    return found, float(log_w.logsumexp(0)) - math.log(draws)


def _marginal(g: Tensor, rows: int, size: int, middle: Tensor, between: Tensor, within: Tensor) -> Tensor:
    """Log density of data and globals ``(S, 3)``: mu, log tau, log s."""
    mu, log_tau, log_s = g.unbind(-1)
    half = math.log(2) - 0.5 * LOG_2PI - math.log(2)  # half-normals of scale 2
    prior = -0.5 * (mu / 5).square() - math.log(5) - 0.5 * LOG_2PI
    for log_scale in (log_tau, log_s):
        prior = prior + half - 0.5 * (log_scale.exp() / 2).square() + log_scale
    variance = (2 * log_tau).exp() + (2 * log_s).exp() / size
    of_means = -0.5 * (between + rows * (middle - mu).square()) / variance - 0.5 * rows * (variance.log() + LOG_2PI)
    inside = -0.5 * within * (-2 * log_s).exp() - rows * ((size - 1) * (log_s + 0.5 * LOG_2PI) + 0.5 * math.log(size))
    return prior + of_means + inside


def _laplace(density: Callable[[Tensor], Tensor], size: int = 3) -> tuple[Tensor, Tensor]:
    """The mode and a Cholesky factor of the covariance there."""
    g = torch.zeros(1, size, dtype=torch.float64)
    for _ in range(200):
        gradient, hessian = _derivatives(density, g)
        curvature, axes = torch.linalg.eigh(-hessian)
        step = axes @ ((axes.T @ gradient) / curvature.abs())
        g = g + step * min(1.0, 1.0 / float(step.norm()))
        if step.norm() < 1e-9:
            break
    return g[0], torch.linalg.cholesky(torch.linalg.inv(-_derivatives(density, g)[1]))


def _derivatives(density: Callable[[Tensor], Tensor], g: Tensor) -> tuple[Tensor, Tensor]:
    def single(x: Tensor) -> Tensor:
        return density(x[None])[0]

    return torch.func.grad(single)(g[0]), torch.func.hessian(single)(g[0])


def _weighed(
    density: Callable[[Tensor], Tensor], laplace: tuple[Tensor, Tensor], draws: int, freedom: float = 7.0
) -> tuple[Tensor, Tensor]:
    """Draws from a t and their log weights."""
    (middle, root), generator = laplace, torch.Generator().manual_seed(1)
    noise = torch.randn(draws, len(middle), generator=generator, dtype=torch.float64)
    squares = torch.randn(draws, int(freedom), generator=generator, dtype=torch.float64).square().sum(-1)
    t = noise / (squares / freedom).sqrt()[:, None]
    count = len(middle)
    log_q = math.lgamma((freedom + count) / 2) - math.lgamma(freedom / 2) - count / 2 * math.log(freedom * math.pi)
    log_q = log_q - root.diagonal().log().sum() - (freedom + count) / 2 * torch.log1p(t.square().sum(-1) / freedom)
    g = middle + t @ root.T
    return g, density(g) - log_q


def _moments(w: Tensor, value: Tensor) -> tuple[NDArray, NDArray]:
    mean = (w * value).sum()
    return mean.numpy(), (w * (value - mean).square()).sum().sqrt().numpy()


def _rows(w: Tensor, base: Tensor, share: Tensor, variance: Tensor, means: Tensor) -> tuple[NDArray, NDArray]:
    """Moments of rows whose conditional mean is ``base + share * means``, mixed over weighted globals."""
    b, c = (w * base).sum(), (w * share).sum()
    spread = [(w * one * other).sum() for one, other in ((base - b, base - b), (base - b, share - c))]
    spread.append((w * (share - c).square()).sum())
    total = (w * variance).sum() + spread[0] + 2 * spread[1] * means + spread[2] * means.square()
    return (b + c * means).numpy(), total.sqrt().numpy()


def exact_binomial(data: dict[str, Tensor], draws: int = 4000) -> tuple[Moments, float]:
    """The same of binomial rows: what a row says hangs on its count alone, and is integrated on a fine grid."""
    y = data["y"].double()
    noise, counts = torch.linspace(-9, 9, 601).double(), torch.arange(TRIALS + 1).double()
    number = torch.bincount(y.long(), minlength=TRIALS + 1).double()

    def effects(g: Tensor) -> Tensor:
        return g[:, :1] + g[:, 1:].exp() * noise

    def by_count(g: Tensor) -> Tensor:
        """Log densities of counts and effects, ``(S, grid, counts)``."""
        chances = dist.Binomial(TRIALS, logits=effects(g)[..., None], validate_args=False).log_prob(counts)
        return chances - 0.5 * noise.square()[:, None] - 0.5 * LOG_2PI + math.log(18 / 600)

    def density(g: Tensor) -> Tensor:
        mu, log_tau = g.unbind(-1)
        prior = -0.5 * (mu / 2).square() - math.log(2) - LOG_2PI + math.log(2) - 0.5 * log_tau.exp().square() + log_tau
        return prior + by_count(g).logsumexp(1) @ number

    g, log_w = _weighed(lambda g: torch.cat([density(part) for part in g.split(500)]), _laplace(density, 2), draws)
    w = torch.softmax(log_w, 0)
    found = {"mu": _moments(w, g[:, 0]), "tau": _moments(w, g[:, 1].exp())}
    first, second = torch.zeros(2, TRIALS + 1).double()
    for part, share in zip(g.split(500), w.split(500), strict=True):
        inside, effect = by_count(part).softmax(1), effects(part)[..., None]
        first += share @ (inside * effect).sum(1)
        second += share @ (inside * effect.square()).sum(1)
    row = y.long()
    found["theta"] = first[row].numpy(), (second - first.square()).sqrt()[row].numpy()
    return found, float(log_w.logsumexp(0)) - math.log(draws)


def _normal(label: str, groups: int, **rest: object) -> Case:
    return Case(
        label,
        "normal",
        hierarchical_normal,
        lambda: hierarchical_normal_data(groups),
        ("theta",),
        exact_normal,
        **rest,
    )


CASES = {
    "normal100": _normal("hierarchical normal, J = 100", 100),
    "normal500": _normal("hierarchical normal, J = 500", 500),
    "normal2000": _normal("hierarchical normal, J = 2,000", 2000),
    "normal100000": _normal("hierarchical normal, J = 100,000", 100_000, nuts=False),
    "normal20000": _normal(
        "hierarchical normal, J = 20,000, 500 at a time", 20_000, nuts=False, options={"subsample_size": 500}
    ),
    "normal1000000": _normal("hierarchical normal, J = 1,000,000", 1_000_000, nuts=False),
    "normal1000000by500": _normal(
        "hierarchical normal, J = 1,000,000, 500 at a time", 1_000_000, nuts=False, options={"subsample_size": 500}
    ),
    "normal100000by500": _normal(
        "hierarchical normal, J = 100,000, 500 at a time", 100_000, nuts=False, options={"subsample_size": 500}
    ),
    **{
        f"binomial{groups}": Case(
            f"binomial, normal effects, J = {groups:,}",
            "binomial",
            binomial_normal,
            partial(binomial_normal_data, groups),
            ("theta",),
            exact_binomial,
            nuts=False,
        )
        for groups in (500, 5000, 50_000)
    },
    "radon": Case("radon, intercept and slope, 85 counties", "radon", radon, radon_data, ("a", "b")),
    "slopes30": Case("varying slopes, LKJ, J = 30", "slopes", varying_slopes, lambda: varying_slopes_data(30), ("z",)),
    "slopes500": Case(
        "varying slopes, LKJ, J = 500", "slopes", varying_slopes, lambda: varying_slopes_data(500), ("z",)
    ),
    "irt100": Case("2PL item response, 100 x 20", "irt", item_response, lambda: item_response_data(100, 20), ("t",)),
    "irt1000": Case(
        "2PL item response, 1,000 x 30", "irt", item_response, lambda: item_response_data(1000, 30), ("t",)
    ),
    **{
        f"volatility{steps}": Case(
            f"stochastic volatility, T = {steps}",
            "volatility",
            volatility,
            partial(volatility_data, steps),
            ("h",),
            drawn=True,
        )
        for steps in (100, 500)
    },
    "poisson200": Case(
        "gamma-Poisson, J = 200", "poisson", gamma_poisson, lambda: gamma_poisson_data(200), ("lam",), drawn=True
    ),
}


def chosen(names: str | None) -> Iterable[str]:
    """Names of cases, all unless some are given, separated by commas.

    Raises:
        ValueError: if there is no such case.
    """
    found = names.split(",") if names else list(CASES)
    wrong = [name for name in found if name not in CASES]
    if wrong:
        raise ValueError(f"expected some of {list(CASES)}, got {wrong[0]!r}")
    return found


def as_arrays(data: dict[str, Tensor]) -> dict[str, NDArray]:
    """The data for NumPy."""
    return {name: np.asarray(value) for name, value in data.items()}
