"""The models of the benchmarks: Stein's identity, known log joints, references. Needs the data, which are not ours."""

import math
import os
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyroflows import log_joint
from pyroflows.compile import capture

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("PYROFLOWS_DATA", ROOT.parent / "shared" / "data"))
sys.path.insert(0, str(ROOT / "benchmarks"))

import hmc  # noqa: E402
from check_models import LIMIT, density_of, scored, stein  # noqa: E402
from models import POSTERIORS  # noqa: E402
from models.density import decaying_sum, log_chain  # noqa: E402
from models.populations import trajectory  # noqa: E402
from models.posterior import read_npz  # noqa: E402
from volatility import log_likelihoods  # noqa: E402

needs_data = pytest.mark.skipif(
    not (DATA / "posteriordb").is_dir(), reason=f"no data in {DATA}: set PYROFLOWS_DATA to the folder of the posteriors"
)
pytestmark = pytest.mark.usefixtures("_float64")
WITH_DRAWS = [name for name, posterior in POSTERIORS.items() if posterior.ground_truth is None]


def under_reference(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference draws in unconstrained space, and the scores there."""
    density = density_of(POSTERIORS[name], DATA)
    z = density.unconstrain(POSTERIORS[name].reference_draws(DATA))
    return z, scored(density, z)[1]


@needs_data
@pytest.mark.parametrize("name", WITH_DRAWS)
def test_stein_identity(name: str) -> None:
    assert max(stein(*under_reference(name))) < LIMIT


@needs_data
def test_stein_identity_tells_a_forgotten_jacobian() -> None:
    z, scores = under_reference("sblri")
    scores[:, -1] -= 1  # what log |d sigma / d log sigma| adds
    assert max(stein(z, scores)) > LIMIT


@needs_data
@pytest.mark.parametrize("name", POSTERIORS)
def test_quantities_are_those_of_the_reference(name: str) -> None:
    posterior = POSTERIORS[name]
    _, args = posterior.load(DATA)
    density = density_of(posterior, DATA)
    draws, reference = posterior.reference_draws(DATA), posterior.reference(DATA)
    if draws is None:
        draws = density.constrain(density.space.start + torch.zeros(5, density.size))
    found = posterior.quantities(draws, *args)
    assert list(found) == list(reference)
    assert all(value.shape == (len(value),) for value in found.values())
    assert all(0 <= error < sd and (error == 0) == (n in posterior.exact) for n, (_, sd, error) in reference.items())
    if posterior.ground_truth is None:
        assert all(abs(float(found[n].mean()) - m) < 1e-6 * sd for n, (m, sd, _) in reference.items())


@needs_data
@pytest.mark.parametrize("name", POSTERIORS)
def test_can_be_traced(name: str) -> None:
    density = density_of(POSTERIORS[name], DATA)
    z = (density.space.start + 0.1 * torch.randn(3, density.size)).requires_grad_()
    (value, gradients), again = capture(lambda: density(z).sum(), parameters=[z])(), density(z).sum()
    torch.testing.assert_close(value, again.detach())
    torch.testing.assert_close(gradients, list(torch.autograd.grad(again, z)))


@needs_data
def test_log_joint_of_cancer_is_the_published_one() -> None:
    density, published = density_of(POSTERIORS["cancer"], DATA), read_npz(DATA / "logistic/breast_cancer.npz")
    torch.testing.assert_close(density(published["reference"][:200]), published["reference_log_joint"][:200])


@needs_data
def test_evidence_of_a_gaussian_posterior_is_exact() -> None:
    density = density_of(POSTERIORS["brown"], DATA)
    size, origin = density.size, torch.zeros(1, density.size)
    values, scores = scored(density, torch.cat([origin, torch.eye(size)]))
    precision = scores[0] - scores[1:]  # the score is linear
    mean = torch.linalg.solve(precision, scores[0])
    evidence = values[0] + scores[0] @ mean / 2 + size * math.log(2 * math.pi) / 2 - precision.logdet() / 2
    assert abs(float(evidence) - POSTERIORS["brown"].log_evidence) < 1e-3
    for m, (known, _, error) in zip(mean, POSTERIORS["brown"].reference(DATA).values(), strict=True):
        assert abs(float(m) - known) < LIMIT * error


@needs_data
def test_trajectory_is_accurate() -> None:
    draws = {name: value[::100] for name, value in POSTERIORS["lv"].reference_draws(DATA).items()}
    few, many = (
        torch.func.vmap(lambda *given, steps=steps: trajectory(*given, 20, steps))(draws["theta"], draws["z_init"])
        for steps in (4, 64)
    )
    error = (few - many).abs()
    assert error.max() < 5e-4
    assert (error / draws["sigma"].unsqueeze(1)).max() < 0.002


@needs_data
def test_trajectory_solves_its_equations() -> None:
    draws, h = POSTERIORS["lv"].reference_draws(DATA), 1e-3
    (a, b, c, d), start = draws["theta"][0], draws["z_init"][0]
    later = trajectory(draws["theta"][0] * h, start, 2).exp()  # a year of which is a thousandth
    u, v = later[0]
    expected = torch.stack([(a - b * v) * u, (d * u - c) * v])
    torch.testing.assert_close((later[1] - start) / (2 * h), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_decaying_sum(size: int) -> None:
    x, rate, expected = torch.randn(size), torch.tensor(0.8), []
    for value in x:
        expected.append(value + rate * expected[-1] if expected else value)
    torch.testing.assert_close(decaying_sum(x, rate), torch.stack(expected))


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_log_chain(size: int) -> None:
    steps = torch.randn(3, 3, size)
    product = torch.eye(3)
    for matrix in steps.exp().unbind(-1):
        product = product @ matrix
    torch.testing.assert_close(log_chain(steps), product.log())


def test_hmc_finds_the_moments_of_a_gaussian() -> None:
    scale = torch.tensor([0.01, 1.0, 30.0])
    density = log_joint(lambda: pyro.sample("x", dist.Normal(scale, scale).to_event(1)))
    x = hmc.sample(density, torch.zeros(3), warmup=50, keep=50) / scale
    assert (x.mean((0, 1)) - 1).abs().max() < 0.1
    assert (x.flatten(0, 1).std(0) - 1).abs().max() < 0.1


def test_the_filter_over_log_volatilities() -> None:
    y, gap, shock, means = torch.tensor([0.02, -0.05, 0.01]), 0.1, 0.5, torch.tensor([-9.0, -7.0])
    h = [means + shock / (gap * (2 - gap)) ** 0.5 * torch.randn(200_000, 2)]
    for _ in y[1:]:
        h.append(means * gap + (1 - gap) * h[-1] + shock * torch.randn(200_000, 2))
    given = sum(dist.Normal(0.0, (state / 2).exp()).log_prob(seen) for state, seen in zip(h, y, strict=True))
    drawn = given.logsumexp(0) - math.log(len(given))
    found = log_likelihoods(y, gap, shock, means, torch.linspace(-18.0, 2.0, 200))
    assert torch.allclose(found, drawn, atol=0.02)
