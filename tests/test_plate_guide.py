"""AutoPlateFlow as a guide of Pyro: ELBOs, particles, subsampling, Predictive, state, copies."""

import copy
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyroflows import AutoPlateFlow, CompiledSVI, CompiledTrace_ELBO

Y = torch.tensor([0.3, -1.0, 2.0, 0.7, 1.5, -0.2, 3.0, 0.9])


def model(y: Tensor, size: int | None = None) -> None:
    """A mean and rows around it: all normal, so that the guide can be exact."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("group", len(y), subsample_size=size) as index:
        effect = pyro.sample("effect", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(effect, 0.5), obs=y[index])


def chosen(y: Tensor, index: Tensor) -> None:
    """The same where the caller chooses the rows and passes their data."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("group", len(Y), subsample=index):
        effect = pyro.sample("effect", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(effect, 0.5), obs=y)


def evidence() -> float:
    """Of all the data."""
    covariance = 25.0 * torch.ones(8, 8) + (1.0 + 0.25) * torch.eye(8)
    return dist.MultivariateNormal(torch.zeros(8), covariance).log_prob(Y).item()


ELBOS = {
    "one": Trace_ELBO(),
    "particles": Trace_ELBO(num_particles=7, vectorize_particles=True),
    "loop": Trace_ELBO(num_particles=2),
    "graph": TraceGraph_ELBO(),
    "renyi": RenyiELBO(alpha=0.5, num_particles=3, vectorize_particles=True),
    "compiled": CompiledTrace_ELBO(4, compile=False),
}


@pytest.mark.parametrize("elbo", ELBOS.values(), ids=ELBOS)
def test_every_elbo_is_the_evidence_where_all_is_normal(elbo: Trace_ELBO) -> None:
    guide = AutoPlateFlow(model).setup(Y)
    assert elbo.loss(model, guide, Y) == pytest.approx(-evidence(), abs=2e-3)


def test_the_elbo_of_some_rows_is_right_on_average() -> None:
    guide, elbo = AutoPlateFlow(model).setup(Y, 3), Trace_ELBO(num_particles=4, vectorize_particles=True)
    losses = [elbo.loss(model, guide, Y, 3) for _ in range(400)]
    error = torch.tensor(losses).std().item() / 20
    assert sum(losses) / 400 == pytest.approx(-evidence(), abs=4 * error)
    assert elbo.loss(model, guide, Y) == pytest.approx(-evidence(), abs=2e-3)  # and of all, set up on some


def test_rows_chosen_by_the_caller() -> None:
    first = torch.tensor([0, 1, 2, 3])
    guide = AutoPlateFlow(chosen).setup(Y[first], first)
    index = torch.tensor([6, 1, 4])
    trace = pyro.poutine.trace(guide).get_trace(Y[index], index)
    assert trace.nodes["group"]["value"].tolist() == [6, 1, 4]
    assert trace.nodes["effect"]["value"].shape == (3,)
    assert torch.tensor(Trace_ELBO().loss(chosen, guide, Y[index], index)).isfinite()


@pytest.mark.parametrize("size", [None, 4])
def test_svi_mends_a_guide_that_was_moved(size: int | None) -> None:
    guide = AutoPlateFlow(model).setup(Y, size)
    with torch.no_grad():
        guide.transform[-1].params.value += 0.3
        guide.form.row[:, 0] += 0.4
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True)
    before = Trace_ELBO(num_particles=200, vectorize_particles=True).loss(model, guide, Y)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    for _ in range(150):
        svi.step(Y, size)
    after = Trace_ELBO(num_particles=200, vectorize_particles=True).loss(model, guide, Y)
    assert after + evidence() < 0.3 * (before + evidence())


def test_compiled_svi_takes_it() -> None:
    guide = AutoPlateFlow(model).setup(Y)
    with torch.no_grad():
        guide.form.row[:, 0] += 0.5
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), CompiledTrace_ELBO(8, compile=False))
    losses = svi.run(200, Y)
    assert losses[-50:].mean() < losses[:20].mean()
    assert losses[-50:].mean().item() == pytest.approx(-evidence(), abs=0.05)


def test_predictive_and_medians() -> None:
    guide = AutoPlateFlow(model).setup(Y)
    for parallel in (False, True):
        found = Predictive(model, guide=guide, num_samples=400, parallel=parallel)(Y)
        assert found["effect"].shape[-2:] == (400, 8)
    precision = 1 + 4.0
    mean = (Y.sum() / 1.25) / (8 / 1.25 + 1 / 25.0)
    effects = (mean + 4.0 * Y) / precision
    assert torch.allclose(guide.median()["effect"], effects, atol=0.1)
    assert guide.quantiles([0.1, 0.9])["effect"].shape == (2, 8)


def two_sites(y: Tensor) -> None:
    """Two sites in each row, one depending on the other, in nested plates."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("school", 4, dim=-2):
        level = pyro.sample("level", dist.Normal(0.0, scale))
        with pyro.plate("class", 3, dim=-1):
            effect = pyro.sample("effect", dist.Normal(level, 0.5))
            pyro.sample("y", dist.Normal(effect, 0.5), obs=y)


def test_nested_plates_and_particles() -> None:
    y = torch.randn(4, 3)
    guide = AutoPlateFlow(two_sites).setup(y)
    trace = pyro.poutine.trace(guide).get_trace(y)
    assert trace.nodes["level"]["value"].shape == (4, 1)
    assert trace.nodes["effect"]["value"].shape == (4, 3)
    one = [Trace_ELBO().loss(two_sites, guide, y) for _ in range(100)]
    many = Trace_ELBO(num_particles=500, vectorize_particles=True).loss(two_sites, guide, y)
    assert many == pytest.approx(sum(one) / 100, abs=0.3)


def test_state_copies_and_clones_give_the_same_draws() -> None:
    guide = AutoPlateFlow(model).setup(Y)
    with torch.no_grad():
        guide.form.row += 0.1
    other = AutoPlateFlow(model).setup(Y)
    other.load_state_dict(guide.state_dict())
    for twin in (other, copy.deepcopy(guide)):
        assert torch.equal(twin.sample(3, seed=1)["effect"], guide.sample(3, seed=1)["effect"])


def test_parameters_of_an_older_guide_are_not_trained_in_its_place() -> None:
    for turn in range(2):
        guide = AutoPlateFlow(model).setup(Y)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        if turn:
            with pytest.raises(RuntimeError, match="got those of another guide: call pyro"):
                svi.step(Y)
        else:
            svi.step(Y)


@pytest.mark.usefixtures("_float64")
def test_double_precision() -> None:
    guide = AutoPlateFlow(model).setup(Y.double())
    assert all(value.dtype == torch.float64 for value in guide(Y.double()).values())
    assert Trace_ELBO().loss(model, guide, Y.double()) == pytest.approx(-evidence(), abs=1e-4)


def test_the_kl_of_a_mean_field_elbo_is_no_closed_form() -> None:
    guide = AutoPlateFlow(model).setup(Y)
    loss = sum(TraceMeanField_ELBO(num_particles=50).loss(model, guide, Y) for _ in range(3)) / 3
    assert loss == pytest.approx(-evidence(), abs=0.3)


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: AutoPlateFlow(model).structure, RuntimeError, "a guide that is set up, got a new one"),
        (lambda: AutoPlateFlow(model, flow=3), TypeError, "flow to be a function of the number of globals"),
        (lambda: AutoPlateFlow(model).setup(Y)(Y[:5]), ValueError, "the 8 rows that the guide was set up for, got 5"),
        (lambda: AutoPlateFlow(model).setup(Y).sample(10**7), ValueError, "at most 50,000,000 numbers, got 10000000"),
    ],
)
def test_messages(call: Callable, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        call()
