"""The objectives as losses of SVI and of ``fit``: posteriors, a model that learns, the loss, bad arguments."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal

from pyroflows import AutoFlow, FlowELBO, Posterior, fit, flows, log_joint
from pyroflows.infer import IWAE, Annealed, ChiSquared, ForwardKL, Objective, Renyi, ReverseKL

Y = torch.tensor([1.0, 2.5, 3.0, 0.2])
PRECISION = 0.25 + len(Y)
MEAN, SD = Y.sum().item() / PRECISION, PRECISION**-0.5
EVIDENCE = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 4.0).log_prob(Y).item()
slow = partial(pytest.param, marks=pytest.mark.slow)
pytestmark = pytest.mark.usefixtures("no_search")


def model(noise: float | None = 1.0) -> None:
    if noise is None:
        noise = pyro.param("noise", torch.tensor(2.5), constraint=dist.constraints.positive)
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(mu, noise), obs=Y)


def objectives() -> dict[str, Objective]:
    return {
        "reverse KL, plain": ReverseKL(path=False),
        "reverse KL, path": ReverseKL(path=True),
        "IWAE": IWAE(2),
        "Renyi": Renyi(0.5),
        "forward KL": ForwardKL(),
        "forward KL on samples": ForwardKL(MEAN + SD * torch.randn(4000, 1)),
        "chi squared": ChiSquared(),
        "annealed": Annealed(steps=100, first=0.2),
    }


def plain(objective: Objective) -> Posterior:
    """A fit that has only the objective to lead it."""
    return fit(
        model,
        flow=flows.full_rank,
        objective=objective,
        start=None,
        full_rank=None,
        steps=600,
        lr=0.03,
        progress=False,
    )


# The two that are slow differ from others by a line, whose gradients test_objectives.py compares with exact ones.
@pytest.mark.parametrize("name", [slow(n) if n in ("reverse KL, plain", "Renyi") else n for n in objectives()])
def test_every_objective_is_a_loss_of_svi(name: str) -> None:
    objective = objectives()[name]
    guide = AutoFlow(model, flows.full_rank, init_scale=0.5)
    optimizer = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.995})
    svi = SVI(model, guide, optimizer, FlowELBO(objective, num_particles=64))
    for _ in range(400):
        svi.step()
        optimizer.step()
    close = 0.06 if "samples" in name else 0.04
    assert guide.mean()["mu"].item() == pytest.approx(MEAN, abs=close)
    assert guide.sd()["mu"].item() == pytest.approx(SD, rel=2 * close)
    assert -svi.evaluate_loss() == pytest.approx(EVIDENCE, abs=0.05)


@pytest.mark.parametrize("name", ["IWAE", "annealed", *(slow(n) for n in ("forward KL", "forward KL on samples"))])
def test_an_objective_is_one_of_fit(name: str) -> None:
    posterior = plain(objectives()[name])
    assert posterior.guide.mean()["mu"].item() == pytest.approx(MEAN, abs=0.06)
    assert posterior.guide.sd()["mu"].item() == pytest.approx(SD, rel=0.12)
    assert sum(posterior.history.elbo[-50:]) / 50 == pytest.approx(EVIDENCE, abs=0.05)


@pytest.mark.parametrize("objective", [ReverseKL(), *map(slow, (IWAE(16), ChiSquared())), ForwardKL()])
def test_a_model_learns_too(objective: Objective) -> None:
    noise = torch.linspace(0.5, 4.0, 2000).reshape(-1, 1, 1)
    evidence = dist.MultivariateNormal(torch.zeros(4), noise**2 * torch.eye(4) + 4.0).log_prob(Y)
    guide = AutoFlow(model, flows.full_rank, init_scale=0.5)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}), FlowELBO(objective, num_particles=64))
    for _ in range(300):
        svi.step(None)
    assert pyro.param("noise").item() == pytest.approx(noise[evidence.argmax()].item(), rel=0.05)


def test_annealing_is_over_before_a_fit_slows_down() -> None:
    objective = Annealed(steps=200, first=0.2)
    history = fit(model, flow=flows.full_rank, objective=objective, full_rank=None, steps=600, progress=False).history
    assert objective.done
    assert len(history.elbo) >= 500  # 200, and the decay after the first look
    message = r"fit expected a new Annealed of at most steps / 2 = 300 steps, got Annealed\(steps=200"
    with pytest.raises(ValueError, match=message):
        fit(model, objective=objective, steps=600, progress=False)
    with pytest.raises(ValueError, match=r"fit expected a new Annealed of at most steps / 2 = 100 steps"):
        fit(model, objective=Annealed(steps=200), steps=200, progress=False)


def test_a_loss_is_the_negative_elbo_whatever_the_objective() -> None:
    guide = AutoFlow(model, flows.full_rank).setup()
    for objective in (ReverseKL(), IWAE(64)):
        loss = FlowELBO(objective, num_particles=64)
        pyro.set_rng_seed(1)
        differentiable = loss.differentiable_loss(model, guide)
        pyro.set_rng_seed(1)
        assert loss.loss(model, guide) == pytest.approx(differentiable.item(), rel=1e-5)
        assert math.isfinite(loss.loss_and_grads(model, guide))
    assert all(p.grad is not None for p in guide.parameters())


def test_samples_of_sites_become_vectors() -> None:
    values = {"mu": MEAN + SD * torch.randn(50)}
    posterior = plain(ForwardKL(log_joint(model).unconstrain(values)))
    assert posterior.guide.mean()["mu"].item() == pytest.approx(values["mu"].mean().item(), abs=0.05)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="FlowELBO expected an AutoFlow as guide, got AutoNormal"):
        FlowELBO().loss(model, AutoNormal(model))
    with pytest.raises(ValueError, match="expected a positive number of particles, got num_particles=0"):
        FlowELBO(num_particles=0)
