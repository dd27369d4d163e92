"""Models of a few hyperparameters and a latent field that depends on itself."""

import math
import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyroflows as pf
from pyroflows import Posterior
from pyroflows.fitting.by_field import hyperparameters
from pyroflows.fitting.problem import Problem
from pyroflows.infer.nested.field import nested_field
from pyroflows.transforms import NestedGaussian, Part, Permute

STEPS = 70


def walk_data() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    steps, noise = torch.randn(2, STEPS, generator=generator)
    return 0.4 * steps.cumsum(0) + 0.7 * noise


Y = walk_data()


def walk(y: Tensor) -> None:
    """A random walk with noise, as people write it; normal given its scale."""
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    with pyro.plate("time", len(y)):
        step = pyro.sample("step", dist.Normal(0.0, 1.0))
    level = pyro.deterministic("level", scale[..., None] * step.cumsum(-1))
    pyro.sample("y", dist.Normal(level, 0.7).to_event(1), obs=y)


def markov(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    x = 0.0
    for t in pyro.markov(range(20)):
        x = pyro.sample(f"x_{t}", dist.Normal(x, scale))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.7), obs=y[t])


def exact() -> tuple[float, float, float]:
    """The log evidence, and mean and sd of the log scale, on a grid."""
    grid = torch.linspace(-4.0, 2.0, 801).double()
    lower = torch.ones(STEPS, STEPS).double().tril()
    covariance = (2 * grid).exp()[:, None, None] * (lower @ lower.mT) + 0.49 * torch.eye(STEPS)
    level = dist.MultivariateNormal(torch.zeros(STEPS).double(), covariance).log_prob(Y.double())
    level = level + dist.Normal(-1.0, 0.5).log_prob(grid)
    p = level.softmax(0)
    mean = p @ grid
    return float(level.logsumexp(0) + (grid[1] - grid[0]).log()), float(mean), float((p @ (grid - mean) ** 2).sqrt())


def test_where_the_hyperparameters_are() -> None:
    assert hyperparameters(pf.log_joint(walk, Y)) == [0]
    assert hyperparameters(pf.log_joint(markov, Y)) == [0]

    def plain(y: Tensor) -> None:
        pyro.sample("weights", dist.Normal(torch.zeros(5), 1.0).to_event(1))

    assert hyperparameters(pf.log_joint(plain, Y)) == []


def field(z: Tensor) -> Tensor:
    """A Gaussian field of three whose spread and mean move with one number."""
    g, rest = z[:, 0], z[:, 1:]
    at = (rest - torch.stack([g, 2 * g, -g], -1)) * (-g[:, None]).exp()
    return dist.Normal(0.3, 0.2).log_prob(g) - at.square().sum(-1) / 2 - 3 * g


def test_the_start_of_a_gaussian_field_is_exact_in_its_middle() -> None:
    start = torch.zeros(4).double()
    made, value = nested_field(field, torch.tensor([0]), start, torch.ones_like(start))
    assert value == pytest.approx(dist.Normal(0.3, 0.2).log_prob(torch.tensor(0.3)).item(), abs=1e-5)
    assert made.loc.item() == pytest.approx(0.3, abs=1e-4)
    assert made.root.item() == pytest.approx(0.2, rel=1e-2)
    for w in (-1.0, 0.0, 1.0):
        g = 0.3 + 0.2 * w
        u = torch.tensor([[w, 0.0, 0.0, 0.0], [w, 1.0, -1.0, 0.5]]).double()
        wanted = torch.tensor([[g, g, 2 * g, -g]]).double() + math.exp(g) * torch.cat([0 * u[:, :1], u[:, 1:]], -1)
        assert torch.allclose(made(u), wanted, atol=2e-2)


def test_places_that_are_not_there_are_refused() -> None:
    for few in ([], [0, 0], [3], [0, 1, 2]):
        with pytest.raises(ValueError, match="expected some but not all of the places 0 to 2, each once, got"):
            NestedGaussian(3, few)
    with pytest.raises(ValueError, match=r"of 2 dimensions without context, got one of the event shape \(3,\)"):
        Part(4, Permute(3), [0, 1])


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    pyro.set_rng_seed(0)
    return pf.fit(walk, Y, progress=False)


def test_a_walk_is_fitted_by_itself(posterior: Posterior) -> None:
    evidence, mean, sd = exact()
    assert isinstance(posterior.guide.fixed, NestedGaussian)
    assert posterior.diagnostics.grade != "do not trust"
    assert posterior.diagnostics.log_evidence == pytest.approx(evidence, abs=0.05)
    assert posterior.diagnostics.elbo > evidence - 0.15
    scale = posterior.sample(8000, seed=1)["scale"].log()
    assert scale.mean() == pytest.approx(mean, abs=0.1 * sd)
    assert scale.std() == pytest.approx(sd, rel=0.1)


def test_a_fit_that_is_stopped_is_not_made_anew() -> None:
    steps = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fit: ")  # after so few steps it may not be trusted
        made = pf.fit(walk, Y, progress=False, callback=lambda step, *rest: steps.append(step) or step == 3)
    assert steps == [1, 2, 3]
    assert isinstance(made.guide.fixed, NestedGaussian)


def test_it_is_saved_with_its_coordinates(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path / "walk.pt")
    again = Posterior.load(tmp_path / "walk.pt", walk, Y)
    torch.testing.assert_close(again.sample(3, seed=0), posterior.sample(3, seed=0), rtol=1e-4, atol=1e-4)


def test_another_way_is_taken_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["pyroflows.fitting.fit"]
    monkeypatch.setattr(module, "fitted_field", lambda *args: pytest.fail("a field was looked for"))
    monkeypatch.setattr(module.Problem, "solve", lambda *args: 1 / 0)  # where one flow over all begins
    for options in ({"noncentered": False}, {"flow": pf.flows.full_rank}, {"plates": False}):
        with pytest.raises(ZeroDivisionError):
            pf.fit(walk, Y, progress=False, **options)


def test_without_hyperparameters_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(80), 1.0).to_event(1))

    def solve(problem: Problem, *args: object) -> None:
        assert problem.guide.fixed is None
        raise ZeroDivisionError

    monkeypatch.setattr(Problem, "solve", solve)
    with pytest.raises(ZeroDivisionError):
        pf.fit(model, progress=False)
