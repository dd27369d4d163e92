"""refine: weighted and resampled draws and chains recover a posterior that the guide misses by a known amount."""

import functools
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from pyroflows import AutoFlow, Posterior, Refined, compile, flows
from pyroflows.compile import Graph
from pyroflows.model import LogJoint
from pyroflows.posterior.refine import METHODS, potential
from pyroflows.posterior.refine.chains import walk
from pyroflows.posterior.refine.potential import Potential
from pyroflows.posterior.refine.refined import BATCH, propose
from pyroflows.posterior.refine.weights import systematic
from pyroflows.training import History

FEW = {
    "importance": {"num_draws": 2000},
    "resample": {"num_draws": 2000},
    "imh": {"num_draws": 1000, "chains": 3},
    "neutra": {"num_draws": 400, "chains": 2, "warmup": 50},
}
CHAINS = ("imh", "neutra")


def model(y: Tensor) -> None:
    """A normal and a positive latent that the data leave at their priors, but for the evidence."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0])).to_event(1))
    pyro.deterministic("double", 2 * x)
    with pyro.plate("group", 2):
        pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def of(model: Callable, *args: object, width: Tensor | float, **start: Tensor) -> Posterior:
    guide = AutoFlow(model, flows.full_rank, init_scale=width, init_loc_fn=init_to_value(values=start)).setup(*args)
    return Posterior(guide, LogJoint(model, args, {}, guide.space), History(), num_draws=500)


def off(factor: float = 1.4) -> Posterior:
    """A guide of the model whose sds are too large by a factor, and whose first mean is half an sd off."""
    start = {"x": torch.tensor([0.5, 0.0]), "scale": torch.ones(2)}
    return of(model, torch.tensor(0.3), width=factor * torch.tensor([1.0, 2.0, 0.5, 0.5]), **start)


@functools.cache
def refined(method: str) -> Refined:
    return off().refine(method, **FEW[method])


@pytest.mark.parametrize("method", METHODS)
def test_the_posterior_is_recovered(method: str) -> None:
    found = refined(method)
    raw, summary = off().summary(), found.summary()
    assert raw["x[0]"]["mean"] > 0.35
    assert raw["x[1]"]["sd"] > 2.5
    assert isinstance(found, Refined)
    for label, sd in (("x[0]", 1.0), ("x[1]", 2.0), ("double[1]", 4.0)):
        assert summary[label]["mean"] == pytest.approx(0.0, abs=0.16 * sd)
        assert summary[label]["sd"] == pytest.approx(sd, rel=0.1)
        assert summary[label]["95%"] == pytest.approx(1.645 * sd, rel=0.16)
    assert summary["scale[1]"]["mean"] == pytest.approx(np.exp(0.125), rel=0.1)
    assert found.diagnostics.grade == "good"
    assert found.diagnostics.verdict in str(summary)
    assert ("r-hat" in summary["x[0]"]) == (method in CHAINS)
    assert repr(found).startswith(f"Refined by {method!r}: ")


@pytest.mark.parametrize("method", METHODS)
def test_refined_draws_are_read_like_a_posterior(method: str) -> None:
    found = refined(method)
    chains = FEW[method].get("chains", 1)
    count = chains * FEW[method]["num_draws"]
    assert {name: tuple(v.shape) for name, v in found.draws.items()} == {
        "x": (count, 2),
        "scale": (count, 2),
        "double": (count, 2),
    }
    assert found.weights.shape == (count,)
    assert found.weights.sum() == pytest.approx(1.0)
    sample = found.sample(4000, seed=0)
    assert sample["x"].shape == (4000, 2)
    assert sample["x"][:, 1].std() == pytest.approx(2.0, rel=0.1)
    assert torch.equal(sample["x"], found.sample(4000, seed=0)["x"])
    data = found.to_arviz(predictive=False, prior=5, log_likelihood=True)
    assert dict(data.posterior.sizes)["chain"] == chains
    assert data.posterior["scale"].dims == ("chain", "draw", "group")
    assert data.posterior["x"].values.reshape(-1, 2) == pytest.approx(found.draws["x"].numpy())
    assert data.log_likelihood["y"].shape == (chains, count // chains)
    assert len(found.plot_pairs(["x"]).axes) == 4


def test_the_statistics_of_each_method() -> None:
    stats = {method: refined(method).to_arviz().sample_stats for method in METHODS}
    assert set(stats["importance"]) == {"log_weight", "psis_weight", "khat"}
    assert set(stats["resample"]) == {"proposal"}
    assert set(stats["imh"]) == {"accepted", "log_weight"}
    assert set(stats["neutra"]) == {"diverging", "acceptance_rate", "step_size", "lp"}
    assert not stats["neutra"]["diverging"].values.any()
    assert 0.6 < stats["neutra"]["acceptance_rate"].mean() <= 1.0
    assert (stats["neutra"]["step_size"] > 0.1).all()


def test_importance_takes_more_draws_than_one_batch() -> None:
    found = off().refine("importance", num_draws=BATCH + 10)
    assert found.draws["x"].shape == (BATCH + 10, 2)
    z, log_w = propose(off().guide, off().log_joint, BATCH + 10)
    assert z.shape == (BATCH + 10, 4)
    assert log_w.shape == (BATCH + 10,)
    error = found.diagnostics.log_evidence_error
    assert error < 0.02
    exact = -0.5 * np.log(2 * np.pi) - 0.3**2 / 2
    assert found.diagnostics.log_evidence == pytest.approx(exact, abs=4 * error)


def test_systematic_resampling_takes_each_draw_as_often_as_it_weighs() -> None:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(50, 0.5))
    for offset in (0.0, 0.3, 0.999999):
        counts = np.bincount(systematic(weights, 1000, offset), minlength=50)
        assert counts.sum() == 1000
        assert (np.abs(counts - 1000 * weights) < 1 + 1e-9).all()
    assert systematic(np.array([0.0, 1.0, 0.0]), 3, 0.0).tolist() == [1, 1, 1]


def test_a_walk_moves_by_the_ratio_of_the_weights() -> None:
    log_w = np.array([[0.0, -np.inf], [np.log(0.5), -np.inf], [np.log(0.1), np.log(2.0)], [np.log(3.0), 0.0]])
    path, accepted = walk(log_w, np.log(np.array([[0.9] * 2, [0.4, 0.9], [0.3, 0.9], [0.9, 0.6]])))
    assert path.T.tolist() == [[0, 1, 1, 3], [0, 0, 2, 2]]
    assert accepted[1:].T.tolist() == [[True, False, True], [False, True, False]]


def test_a_chain_that_does_not_move_is_not_trusted() -> None:
    found = off(0.02).refine("imh", num_draws=50, chains=4)
    assert found.diagnostics.grade == "do not trust"
    assert "do not trust: the chains have not mixed" in found.diagnostics.verdict


def test_the_seed_reproduces_the_draws() -> None:
    posterior, made = off(), []
    for _ in range(2):
        pyro.set_rng_seed(5)
        made.append(posterior.refine("neutra", num_draws=10, chains=2, warmup=5).draws["x"])
    assert torch.equal(*made)
    assert not torch.equal(made[0][:10], made[0][10:])


@pytest.mark.parametrize("speed", ["traced", "plain"])
def test_the_potential_is_minus_the_density_in_base_space(speed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise compile.Untraceable("no")

    if speed == "plain":
        monkeypatch.setattr(potential, "TracedDensity", refuse)
    posterior = off()
    found = Potential(posterior.guide, posterior.log_joint)
    assert found.speed == speed
    x = torch.randn(4, requires_grad=True)
    z, ladj = posterior.guide.transform.call_and_ladj(x)
    expected = -(posterior.log_joint(z) + ladj)
    energy = found({"x": x})
    assert energy.item() == pytest.approx(expected.item(), abs=1e-5)
    assert torch.autograd.grad(2 * energy, x)[0].numpy() == pytest.approx(
        2 * torch.autograd.grad(expected, x)[0].numpy(), abs=1e-5
    )


@pytest.mark.slow
def test_a_compiled_potential_is_the_same() -> None:
    posterior = off()
    plain, compiled = (Potential(posterior.guide, posterior.log_joint, compile=flag) for flag in (False, True))
    assert compiled.speed == "compiled"
    x = torch.randn(4)
    assert compiled({"x": x}).item() == pytest.approx(plain({"x": x}).item(), abs=1e-5)


def test_potentials_are_compiled_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(Graph, "compile", lambda graph, inputs: compiled.append(graph))
    posterior = off()
    assert Potential(posterior.guide, posterior.log_joint, calls=10).speed == "traced"
    assert not compiled
    assert Potential(posterior.guide, posterior.log_joint, calls=10**9).speed == "compiled"
    assert len(compiled) == 1

    def fail(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(Graph, "compile", fail)
    assert Potential(posterior.guide, posterior.log_joint, compile=True).speed == "traced"


def test_networks_in_single_and_the_log_joint_in_double_precision() -> None:
    guide = AutoFlow(model, functools.partial(flows.realnvp, layers=2, hidden_dims=(4,))).setup(torch.tensor(0.3))
    density = LogJoint(model, (torch.tensor(0.3),), {}, guide.space, dtype=torch.float64)
    found = Posterior(guide, density, History()).refine("neutra", num_draws=8, chains=2, warmup=4)
    assert found.draws["x"].dtype == found.draws["double"].dtype == torch.float32
    assert found.stats["lp"].dtype == np.float64


def part(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 5, subsample_size=2):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("method", METHODS)
def test_a_minibatch_is_refused(method: str) -> None:
    posterior = of(part, torch.arange(2.0), width=1.0, mean=torch.tensor(0.0))
    with pytest.raises(ValueError, match="expected a log joint of all the data, got one of a minibatch: refine Post"):
        posterior.refine(method)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("nuts", {}, "expected a method among 'importance', 'resample', 'imh', 'neutra', got 'nuts'"),
        ("importance", {"num_draws": 99}, "expected num_draws to be a whole number from 100 on, got 99"),
        ("importance", {"num_draws": 1e4}, "expected num_draws to be a whole number from 100 on, got 10000.0"),
        ("resample", {"num_draws": 0}, "expected num_draws to be a whole number from 1 on, got 0"),
        ("resample", {"pool": 10}, "expected pool to be a whole number from 100 on, got 10"),
        ("imh", {"chains": 0}, "expected chains to be a whole number from 1 on, got 0"),
        ("imh", {"warmup": -1}, "expected warmup to be a whole number from 0 on, got -1"),
        ("neutra", {"num_draws": 3}, "expected num_draws to be a whole number from 8 on, got 3"),
        ("neutra", {"target_accept": 1.0}, "expected target_accept between 0 and 1, got 1.0"),
    ],
)
def test_bad_input(method: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        off().refine(method, **options)


def test_an_option_of_another_method() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'chains'"):
        off().refine("importance", chains=4)


def test_draws_without_weights() -> None:
    def nowhere() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("never", torch.where(x.abs() < 1e-12, 0.0, -torch.inf))

    posterior = of(nowhere, width=1.0, x=torch.tensor(0.0))
    for method in ("importance", "resample"):
        with pytest.raises(ValueError, match=r"expected draws with weights, got none in \d+ that has one"):
            posterior.refine(method, num_draws=200)
