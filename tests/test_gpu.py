"""What is promised on a GPU; skipped where there is none."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor
from torch.distributions import constraints

from cases import CASES, moved
from elbo_cases import SD, Y, grads
from pyroflows import AutoFlow, CompiledSVI, CompiledTrace_ELBO, Posterior, calibrate, fit, flows
from pyroflows.compile import TracedDensity, TracedLoss, capture
from pyroflows.infer import IWAE, Annealed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

WAYS = [
    pytest.param({"compile": compile, "mode": mode}, marks=[pytest.mark.slow] if compile else [])
    for compile in (False, True)
    for mode in (None, "reduce-overhead")
]
# The posterior of the mean of these, known exactly.
DATA = torch.tensor([1.0, 2.0, 4.0, 5.0])


def model(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(loc.sum(-1), 1.0), obs=y)


def narrow(y: Tensor) -> None:
    """Guide by hand of which little is random."""
    loc = pyro.param("loc_loc", lambda: y.new_zeros(2))
    pyro.sample("loc", dist.Normal(loc, 1e-6).to_event(1))


@pytest.fixture
def _default_device() -> Iterator[None]:
    torch.set_default_device("cuda")
    yield
    torch.set_default_device("cpu")


@pytest.mark.parametrize("name", CASES)
def test_transforms_do_the_same_as_on_a_cpu(name: str) -> None:
    flow = moved(CASES[name]().eval(), by=0.1)
    x = torch.rand(5, flow.input_dim)
    context = torch.randn(5, flow.context_dim) if flow.context_dim else None
    results = []
    for device in ("cpu", "cuda"):
        here, given = flow.to(device), None if context is None else context.to(device)
        y, ladj = here.call_and_ladj(x.to(device), given)
        back = here.inv.call_and_ladj(y.clone(), given)[0]
        slopes = (
            torch.autograd.grad(y.sum() + ladj.sum(), list(here.parameters()), allow_unused=True)
            if list(here.parameters())
            else []
        )
        results.append([t.detach().cpu() for t in (y, ladj, back, *(s for s in slopes if s is not None))])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", WAYS)
def test_loss_and_gradients_are_those_of_trace_elbo(how: dict) -> None:
    y = DATA.cuda()
    guide = AutoDelta(model)
    expected = grads(Trace_ELBO(), model, guide, y)
    got = grads(CompiledTrace_ELBO(strict=True, **how), model, guide, y)
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    for name, slope in expected[1].items():
        torch.testing.assert_close(got[1][name], slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [SVI, CompiledSVI])
@pytest.mark.parametrize("how", WAYS)
def test_svi_finds_the_posterior_from_new_batches(kind: type[SVI], how: dict) -> None:
    guide = AutoNormal(model)
    y = DATA.cuda()
    elbo = CompiledTrace_ELBO(16, strict=True, **how)
    svi = kind(model, guide, pyro.optim.Adam({"lr": 0.03}), elbo)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = [svi.step(y[torch.randperm(4)]) for _ in range(600)]  # at another place every time
    assert len(set(losses)) > 590  # random numbers are drawn anew
    total = sum(guide.median(y)["loc"]).item()
    assert total == pytest.approx(2 * 12 / 9, abs=0.1)
    assert elbo.traces == 1


@pytest.mark.parametrize("how", WAYS)
def test_a_seed_gives_the_same_run_again(how: dict) -> None:
    runs = []
    for _ in range(2):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        svi = CompiledSVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.03}), CompiledTrace_ELBO(4, **how))
        runs.append(svi.run(20, DATA.cuda()))
    torch.testing.assert_close(*runs)


@pytest.mark.parametrize("how", WAYS)
def test_data_that_the_model_holds_may_change_and_move(how: dict) -> None:
    held = {"y": DATA.cuda()}
    weight = torch.ones(4, device="cuda", requires_grad=True)
    graph = capture(lambda x: (weight * x * held["y"]).sum(), [DATA.cuda()], parameters=[weight])
    graph.mode = how["mode"]
    if how["compile"]:
        graph.compile([DATA.cuda()])
    for scale in (1.0, 2.0, 3.0):
        held["y"].fill_(scale)
        weight.data = torch.full((4,), scale + 1, device="cuda")
        x = torch.full((4,), scale, device="cuda")
        loss, (slope,) = graph(x)
        assert loss.item() == pytest.approx(4 * (scale + 1) * scale * scale)
        assert slope.tolist() == pytest.approx([scale * scale] * 4)
        assert x.tolist() == [scale] * 4  # what was passed stays


def test_numbers_of_the_cpu_are_not_frozen_in_a_cuda_graph() -> None:
    shift = torch.tensor(1.0)
    graph = capture(lambda x: (x + shift).sum(), [DATA.cuda()])
    graph.mode = "reduce-overhead"
    first = graph(DATA.cuda())[0].item()
    shift.fill_(2.0)
    assert graph(DATA.cuda())[0].item() == first + 4


def test_vectors_of_the_cpu_are_not_frozen_in_a_cuda_graph() -> None:
    shift = torch.ones(4)
    graph = capture(lambda x: (x + shift.to(x.device)).sum(), [DATA.cuda()])
    graph.mode = "reduce-overhead"
    with pytest.warns(UserWarning, match="not on the same GPU"):
        first = graph(DATA.cuda())[0].item()
    shift.fill_(2.0)
    assert graph(DATA.cuda())[0].item() == first + 4


def test_what_a_cuda_graph_cannot_hold_runs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = capture(lambda x: (x * x).sum(), [DATA.cuda()])
    graph.mode = "reduce-overhead"

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("not permitted")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    with pytest.warns(UserWarning, match="recording it failed: not permitted"):
        assert graph(DATA.cuda())[0].item() == (DATA * DATA).sum().item()
    assert graph(2 * DATA.cuda())[0].item() == 4 * (DATA * DATA).sum().item()


def test_gradients_of_batches_add_up() -> None:
    weight = torch.ones(4, device="cuda", requires_grad=True)
    loss = TracedLoss(lambda x: (weight * weight * x).sum(), [weight])
    batches = [scale * DATA.cuda() for scale in (1.0, 2.0, 3.0)]
    values = [loss(x) for x in batches]
    sum(values).backward()
    loss(batches[0]).backward()
    assert [value.item() for value in values] == [12.0, 24.0, 36.0]
    assert weight.grad.tolist() == (14 * DATA).tolist()


def test_a_traced_density_takes_any_number_of_rows() -> None:
    density = TracedDensity(lambda z: -z.square().sum(-1), torch.zeros(3, device="cuda"), rows=4)
    for rows in (1, 4, 11):
        z = torch.randn(rows, 3, device="cuda")
        value, score = density.value_and_score(z)
        torch.testing.assert_close(value, -z.square().sum(-1))
        torch.testing.assert_close(score, -2 * z)


@pytest.mark.parametrize("recipe", [flows.realnvp, flows.nsf, flows.iaf])
def test_a_flow_guide_replays_with_cuda_graphs(recipe: Callable) -> None:
    y = DATA.cuda()
    guide = AutoFlow(model, partial(recipe, hidden_dims=[16])).cuda()
    elbo = CompiledTrace_ELBO(16, compile=False, strict=True, mode="reduce-overhead")
    svi = CompiledSVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    losses = svi.run(500, y)
    assert losses.is_cuda
    exact = -dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 2.0).log_prob(DATA).item()
    assert losses[-50:].mean().item() == pytest.approx(exact, abs=0.15)


@pytest.mark.parametrize("compile", [False, None, pytest.param(True, marks=pytest.mark.slow)])
def test_fit_runs_on_the_device_of_the_data(compile: bool | None) -> None:
    posterior = fit(model, DATA.cuda(), steps=800, compile=compile, progress=False)
    draws = posterior.sample(2000)["loc"]
    assert draws.is_cuda
    assert draws.sum(-1).mean().item() == pytest.approx(2 * 12 / 9, abs=0.1)
    assert draws.sum(-1).std().item() == pytest.approx((2 / 9) ** 0.5, abs=0.05)


@pytest.mark.usefixtures("_default_device")
@pytest.mark.parametrize("how", WAYS)
def test_a_default_device_is_enough(how: dict) -> None:
    svi = CompiledSVI(
        model, AutoNormal(model), pyro.optim.Adam({"lr": 0.03}), CompiledTrace_ELBO(16, strict=True, **how)
    )
    losses = svi.run(300, torch.tensor(DATA.tolist()))
    assert losses.is_cuda
    assert losses[-100:].mean() < losses[:10].mean()


def schools(y: Tensor, sd: Tensor) -> None:
    zero = y.new_zeros(())
    mu = pyro.sample("mu", dist.Normal(zero, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(zero + 5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sd), obs=y)


OPTIONS = {
    "default": {},
    "noncentered": {"noncentered": True},
    "double": {"precision": "double", "flow": partial(flows.nsf, layers=2, hidden_dims=(8,))},
    "annealed": {"objective": Annealed(steps=100)},
    "iwae": {"objective": IWAE()},
    "no_start": {"start": None, "full_rank": None},
}


@pytest.mark.filterwarnings("ignore:fit. k-hat")  # after so few steps
@pytest.mark.parametrize("name", OPTIONS)
def test_fit_of_eight_schools_and_what_follows(name: str, tmp_path: Path) -> None:
    data = Y.cuda(), SD.cuda()
    posterior = fit(schools, *data, steps=400, progress=False, **OPTIONS[name])
    assert posterior.draws["mu"].mean().item() == pytest.approx(4.4, abs=1.5)
    assert posterior.sample(10)["theta"].is_cuda
    assert posterior.log_prob(posterior.sample(10)).is_cuda
    assert np.isfinite(posterior.log_weights).all()
    assert "mu" in str(posterior.summary())
    groups = posterior.to_arviz(predictive=True, log_likelihood=True, prior=20)
    assert groups["posterior_predictive"]["y"].shape[-1] == 8
    posterior.save(tmp_path / "fit.pt")
    guide = AutoFlow(schools, OPTIONS[name].get("flow", flows.with_tails))
    again = Posterior.load(tmp_path / "fit.pt", schools, *data, guide=guide)
    torch.testing.assert_close(again.draws["mu"], posterior.draws["mu"])


@pytest.mark.parametrize("method", ["importance", "resample", "imh", "neutra"])
def test_refining_stays_on_the_gpu(method: str) -> None:
    posterior = fit(model, DATA.cuda(), steps=300, progress=False)
    options = {"num_draws": 50, "warmup": 20, "chains": 1, "progress": False} if method == "neutra" else {}
    refined = posterior.refine(method, **options)
    assert refined.draws["loc"].sum(-1).mean().item() == pytest.approx(2 * 12 / 9, abs=0.3)


def test_two_modes_are_found() -> None:
    def two(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(y.new_zeros(2), 3.0).to_event(1))
        pyro.sample("y", dist.Normal(x[..., 0] ** 2, 0.5), obs=y)

    posterior = fit(two, torch.tensor(4.0).cuda(), modes=2, steps=500, progress=False)
    assert posterior.draws["x"][:, 0].gt(0).double().mean().item() == pytest.approx(0.5, abs=0.1)


def test_a_flat_prior_starts_where_its_numbers_are() -> None:
    def flat(y: Tensor) -> None:
        bounds = constraints.interval(y.new_tensor(-9.0), y.new_tensor(9.0))
        loc = pyro.sample("loc", dist.ImproperUniform(bounds, (), ()))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    posterior = fit(flat, DATA.cuda(), steps=300, progress=False)
    assert posterior.draws["loc"].mean().item() == pytest.approx(3.0, abs=0.2)


@pytest.mark.usefixtures("_default_device")
def test_fit_and_its_chains_on_a_default_device() -> None:
    posterior = fit(schools, Y.cuda(), SD.cuda(), steps=300, progress=False)
    assert posterior.draws["theta"].is_cuda
    assert posterior.refine("imh").draws["theta"].is_cuda


@pytest.mark.slow
@pytest.mark.usefixtures("_default_device")
def test_calibrate_on_a_default_device() -> None:
    quick = partial(fit, steps=20, start=None, full_rank=None, compile=False)
    result = calibrate(model, DATA.cuda(), fit=quick, num_simulations=20, draws=9, progress=False)
    assert result.num_simulations == 20
