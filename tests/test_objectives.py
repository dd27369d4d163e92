"""Objectives: gradients against exact ones by quadrature, their noise, the model's part, annealing, bad arguments."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyroflows import FlowDistribution, flows
from pyroflows.compile import capture
from pyroflows.infer import IWAE, Annealed, ChiSquared, ForwardKL, Objective, Renyi, ReverseKL
from pyroflows.infer.objectives import Density
from pyroflows.transforms import LowerTriangular

pytestmark = pytest.mark.usefixtures("_float64")
LOG_Z = 1.7


def target(z: Tensor) -> Tensor:
    """A normal density of mean 0.3 and scale 1.1 in each dimension, not normalised."""
    return LOG_Z + torch.distributions.Normal(0.3, 1.1).log_prob(z).sum(-1)


def guide(dim: int) -> FlowDistribution:
    """A Gaussian that is off, with correlations."""
    root = torch.tensor([[0.9, 0.0], [0.3, 1.2]])[:dim, :dim]
    affine = LowerTriangular(dim)
    affine.frame_(torch.tensor([0.1, -0.2])[:dim], root)
    return FlowDistribution(transform=affine)


def nodes(dim: int, count: int = 60) -> tuple[Tensor, Tensor]:
    """Points ``(N, dim)`` and weights ``(N,)`` of Gauss-Hermite quadrature over the standard normal."""
    side = torch.arange(1.0, count).sqrt()
    x, w = torch.linalg.eigh(side.diag(1) + side.diag(-1))
    w = w[0].square()
    points = torch.cartesian_prod(*[x] * dim).reshape(-1, dim)
    return points, torch.cartesian_prod(*[w] * dim).reshape(-1, dim).prod(-1)


def weights_at(q: FlowDistribution, x: Tensor) -> Tensor:
    """Log weights at the images of base points, with the whole gradient."""
    z, ladj = q.transform.call_and_ladj(x)
    return target(z) - q.base.log_prob(x) + ladj


def bound(power: float) -> Callable[[FlowDistribution], Tensor]:
    """``log(E[w ** power]) / power`` by quadrature."""

    def exact(q: FlowDistribution) -> Tensor:
        x, w = nodes(q.event_shape[0])
        return (w.log() + power * weights_at(q, x)).logsumexp(0) / power

    return exact


def pair(power: float) -> Callable[[FlowDistribution], Tensor]:
    """The expected bound of two particles in one dimension, by quadrature over both."""

    def exact(q: FlowDistribution) -> Tensor:
        x, w = nodes(2)
        values = weights_at(q, x.reshape(-1, 1)).view(-1, 2)
        return w @ ((power * values).logsumexp(-1) - math.log(2)) / power

    return exact


def elbo(q: FlowDistribution) -> Tensor:
    x, w = nodes(q.event_shape[0])
    return w @ weights_at(q, x)


def cover(q: FlowDistribution) -> Tensor:
    """``E_p[log q]`` for the target, whose draws are exact."""
    x, w = nodes(q.event_shape[0])
    return w @ q.log_prob(0.3 + 1.1 * x)


def gradient(value: Tensor, q: FlowDistribution) -> Tensor:
    return torch.autograd.grad(value, q.transform.params.value)[0]


def estimates(objective: Objective, q: FlowDistribution, size: int, repeats: int, density: Density = target) -> Tensor:
    """Gradients of many steps, ``(repeats, parameters)``."""
    return torch.stack([gradient(objective(q, density, size).mean(), q) for _ in range(repeats)])


def assert_mean(found: Tensor, expected: Tensor) -> None:
    """No mean is off by more than 4.5 standard errors; where nothing varies, by nothing."""
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected).abs() < 4.5 * error + 1e-9).all(), (found.mean(0), expected, error)


UNBIASED = {
    "reverse KL, plain": (ReverseKL(path=False), elbo, 1),
    "reverse KL, path": (ReverseKL(path=True), elbo, 1),
    "reverse KL, plain, two dimensions": (ReverseKL(path=False), elbo, 2),
    "reverse KL, path, two dimensions": (ReverseKL(), elbo, 2),
    "IWAE of two": (IWAE(2), pair(1.0), 1),
    "Renyi 0.5 of two": (Renyi(0.5, 2), pair(0.5), 1),
    "Renyi 1.5 of two": (Renyi(1.5, 2), pair(-0.5), 1),
    "Renyi 1": (Renyi(1.0), elbo, 2),
}


@pytest.mark.parametrize(("objective", "exact", "dim"), UNBIASED.values(), ids=UNBIASED)
def test_gradient_is_unbiased(objective: Objective, exact: Callable, dim: int) -> None:
    q = guide(dim)
    assert_mean(estimates(objective, q, 2000, 200), gradient(exact(q), q))


CONSISTENT = {
    "forward KL": (ForwardKL(), cover, 2),
    "chi squared": (ChiSquared(), lambda q: -bound(2.0)(q), 1),
    "power 1.5": (ChiSquared(1.5), lambda q: -bound(1.5)(q), 2),
    "Renyi 0.5": (Renyi(0.5), bound(0.5), 2),
    "Renyi 0.2": (Renyi(0.2), bound(0.8), 1),
}


@pytest.mark.parametrize(("objective", "exact", "dim"), CONSISTENT.values(), ids=CONSISTENT)
def test_gradient_with_many_particles(objective: Objective, exact: Callable, dim: int) -> None:
    q = guide(dim)
    assert_mean(estimates(objective, q, 100_000, 20), gradient(exact(q), q))


@pytest.mark.slow
def test_bias_of_the_forward_kl_falls_with_the_particles() -> None:
    q = guide(1)
    exact = gradient(cover(q), q)
    few, many = (
        (estimates(ForwardKL(), q, size, repeats).mean(0) - exact).norm() for size, repeats in ((2, 10_000), (32, 3000))
    )
    assert many < few / 5


def test_forward_kl_on_given_samples() -> None:
    q = guide(2)
    samples = 0.3 + 1.1 * torch.randn(1000, 2)
    found = estimates(ForwardKL(samples), q, 500, 200)
    assert_mean(found, gradient(q.log_prob(samples).mean(), q))
    values = ForwardKL(samples)(q, target, 100_000).detach()
    assert abs(values.mean() - elbo(q)) < 4.5 * values.std() / 100_000**0.5


def test_annealed_gradient_and_values() -> None:
    q, objective = guide(2), Annealed(steps=2, first=0.25)
    objective.advance()
    x, w = nodes(2)
    z, ladj = q.transform.call_and_ladj(x)
    exact = w @ (0.5 * target(z) - q.base.log_prob(x) + ladj)
    assert_mean(estimates(objective, q, 2000, 200), gradient(exact, q))
    torch.manual_seed(1)
    annealed = objective(q, target, 5).detach()
    torch.manual_seed(1)
    torch.testing.assert_close(annealed, ReverseKL()(q, target, 5).detach())


def test_annealing_ends_at_one() -> None:
    objective = Annealed(steps=30, first=0.01)
    for _ in range(29):
        objective.advance()
    assert not objective.done
    for _ in range(5):
        objective.advance()
    assert objective.done
    assert objective.beta == pytest.approx(1.0, abs=1e-6)


def test_annealing_moves_in_a_traced_graph() -> None:
    q, objective = guide(2), Annealed(steps=1, first=0.1)
    graph = capture(lambda: objective(q, target, 3).mean(), parameters=[q.transform.params.value])
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found += graph()[1]
        objective.advance()
    torch.manual_seed(3)
    torch.testing.assert_close(found[1], gradient(ReverseKL()(q, target, 3).mean(), q))
    assert not torch.allclose(found[0], found[1], rtol=0.1)


EVERY = {
    "reverse KL": ReverseKL(),
    "IWAE": IWAE(4),
    "Renyi": Renyi(0.5),
    "forward KL": ForwardKL(),
    "chi squared": ChiSquared(),
}


@pytest.mark.parametrize("objective", EVERY.values(), ids=EVERY)
def test_gradient_and_noise_vanish_at_the_target(objective: Objective) -> None:
    q = guide(2)
    density = FlowDistribution(transform=guide(2).transform).log_prob
    assert objective(q, density, 8).detach().abs().max() < 1e-12
    assert estimates(objective, q, 8, 3, density).abs().max() < 1e-12


@pytest.mark.parametrize("objective", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("flow", [flows.realnvp, flows.iaf])
def test_values_are_log_weights_and_every_parameter_learns(objective: Objective, flow: Callable) -> None:
    q = FlowDistribution(transform=flow(3, layers=2, hidden_dims=(8,)))
    for p in q.transform.parameters():
        torch.nn.init.normal_(p, std=0.3)
    torch.manual_seed(5)
    found = objective(q, target, 8)
    torch.manual_seed(5)
    z, log_q = q.rsample_and_log_prob((8,))
    torch.testing.assert_close(found, target(z) - log_q)
    found.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in q.transform.parameters())


@pytest.mark.parametrize(("objective", "power"), [(IWAE(4), 1.0), (Renyi(0.5, 4), 0.5), (ForwardKL(), 1.0)])
def test_a_models_parameter_climbs_the_bound(objective: Objective, power: float) -> None:
    q, shift = guide(1), torch.tensor(0.4, requires_grad=True)
    torch.manual_seed(2)
    (found,) = torch.autograd.grad(objective(q, lambda z: target(z - shift), 4).mean(), shift)
    torch.manual_seed(2)
    z, log_q = q.rsample_and_log_prob((4,))
    z, log_q = z.detach(), log_q.detach()
    exact = (power * (target(z - shift) - log_q)).logsumexp(0) / power
    torch.testing.assert_close(found, torch.autograd.grad(exact, shift)[0])


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"Renyi expected alpha >= 0, got -1: use ChiSquared"):
        Renyi(-1)
    with pytest.raises(ValueError, match="ChiSquared expected a power above 1, got 1"):
        ChiSquared(1)
    with pytest.raises(ValueError, match="expected num_particles to be a multiple of 3, the size of a bound: 8"):
        IWAE(3)(guide(1), target, 8)
    for steps, first in ((0, 0.5), (10, 0.0), (10, 1.0)):
        with pytest.raises(ValueError, match="Annealed expected steps >= 1 and 0 < first < 1, got"):
            Annealed(steps, first)
