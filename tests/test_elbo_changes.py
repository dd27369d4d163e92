"""CompiledTrace_ELBO gives no wrong number where a model changes, draws or reads what a graph does not know."""

import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, init_to_sample
from torch import Tensor, nn

from elbo_cases import assert_equal_to_plain, replayed
from pyroflows import CompiledTrace_ELBO
from pyroflows.compile import Untraceable

STATE = {"step": 0}


def normal(y: Tensor, scale: object = 1.0) -> None:
    pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), scale).expand(y.shape).to_event(), obs=y)


def annealed(y: Tensor) -> None:
    STATE["step"] += 1
    with poutine.scale(scale=min(1.0, STATE["step"] / 1000)):
        normal(y)


def by_numpy(y: Tensor) -> None:
    normal(y, float(y.numpy().std()))


def by_list(y: Tensor) -> None:
    normal(y, torch.tensor([y.mean(), y.std()])[1])


def by_sum(y: Tensor) -> None:
    total = torch.tensor(0.0)
    for value in y:
        total += value
    normal(y, 1.0 if total.item() > 5 else 3.0)


def by_coin(y: Tensor) -> None:
    normal(torch.zeros_like(y) if random.random() < 0.1 else y)


def by_batch(y: Tensor) -> None:
    normal(y[np.random.choice(len(y), 2)])  # noqa: NPY002


def by_store(y: Tensor, scale: float) -> None:
    pyro.sample("z", dist.Delta(pyro.param("at", torch.tensor(0.5))))


LARGE = np.zeros((200, 100))


def by_array(y: Tensor) -> None:
    normal(y, torch.from_numpy(LARGE)[0, 0] + 1)


def by_new_data(y: Tensor) -> None:
    scale = torch.zeros(3)
    scale.data = torch.ones(3)
    normal(y, 3.0 if y.sum() > 5 else 1.0)


WHY = {
    by_array: "a large array is read, which may change unnoticed at .*: make it a tensor before",
    by_new_data: "a value is read by Python",
    annealed: r"step of a dict \(.*\) changes whenever the function runs",
    by_numpy: r"a value is read by Python \(numpy\) at .*test_elbo_changes.py",
    by_list: r"a value is read by Python \(tensor\)",
    by_sum: "a value is read by Python",
    by_coin: "state of Python's random numbers changes",
    by_batch: "state of NumPy's random numbers changes",
}


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize(("model", "why"), WHY.items(), ids=[model.__name__ for model in WHY])
def test_what_a_graph_cannot_know_is_refused(model: Callable, why: str, num_particles: int) -> None:
    guide, y = AutoDelta(normal), torch.tensor([1.0, 3.0, 2.0])
    with pytest.raises(Untraceable, match=why):
        replayed(num_particles).loss(model, guide, y)
    elbo = CompiledTrace_ELBO(num_particles, compile=False)
    with pytest.warns(UserWarning, match=why):
        elbo.loss(model, guide, y)
    for _ in range(7):  # without another warning
        elbo.loss(model, guide, y)
    assert elbo.traces == 1


def test_a_counter_counts_steps_after_the_first() -> None:
    guide, y, elbo = AutoDelta(normal), torch.ones(3), CompiledTrace_ELBO(compile=False)
    with pytest.warns(UserWarning, match="step of a dict"):
        elbo.loss(annealed, guide, y)
    before = STATE["step"]
    for _ in range(5):
        elbo.loss(annealed, guide, y)
    assert STATE["step"] == before + 5


def test_functions_and_modules_among_the_arguments_are_watched() -> None:
    rate, drop = 1.0, nn.Dropout(0.999)

    def model(y: Tensor, layer: nn.Module, power: Callable) -> None:
        with poutine.scale(scale=power()):
            normal(layer(y))

    guide, elbo = AutoDelta(lambda *args: normal(args[0])), replayed()
    args = torch.linspace(0, 2, 50), drop, lambda: rate
    for change in (lambda: None, drop.eval, lambda: drop.register_forward_hook(lambda *given: 3 * given[-1])):
        change()
        assert_equal_to_plain(model, guide, *args, elbo=elbo)
    rate = 0.25
    assert_equal_to_plain(model, guide, *args, elbo=elbo)
    assert elbo.traces == 4


@pytest.mark.parametrize("make", [AutoDelta, AutoNormal])
def test_restarts_differ(make: Callable) -> None:
    def starts(elbo: Trace_ELBO) -> list[float]:
        pyro.set_rng_seed(0)
        found = []
        for _ in range(3):
            pyro.clear_param_store()
            guide = make(normal, init_loc_fn=init_to_sample)
            SVI(normal, guide, pyro.optim.Adam({"lr": 1e-3}), elbo).step(torch.ones(2))
            found.append(guide.median()["z"].item())
        return found

    ours = starts(replayed())
    assert len(set(ours)) == 3
    if make is AutoDelta:
        assert ours == pytest.approx(starts(Trace_ELBO()))


@pytest.mark.slow
def test_the_first_step_does_not_reuse_the_noise_of_the_start() -> None:
    def guide(y: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", lambda: torch.randn(())), 1.0))

    def model(y: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    losses = []
    for seed in range(300):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        losses.append(replayed().loss(model, guide, torch.ones(1)))
    assert np.mean(losses) == pytest.approx(0.5, abs=0.2)  # with the same noise: 1.5


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_failing_factorisation_raises(compile: bool) -> None:
    def model(covariance: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("y", -torch.linalg.cholesky(covariance).diagonal().sum() * (1 + z * z))

    guide, elbo = AutoDelta(model), CompiledTrace_ELBO(compile=compile, strict=True)
    assert_equal_to_plain(model, guide, torch.eye(2), elbo=elbo)
    with pytest.raises(torch.linalg.LinAlgError):
        elbo.loss(model, guide, torch.tensor([[1.0, 2.0], [2.0, 1.0]]))


def test_other_strides_are_traced_anew() -> None:
    def model(x: Tensor) -> None:
        normal((2 * x).flatten())

    whole, elbo, guide = torch.randn(2, 10), replayed(), AutoDelta(model)
    assert_equal_to_plain(model, guide, whole[:, :3].contiguous(), elbo=elbo)
    assert_equal_to_plain(model, guide, whole[:, 3:6], elbo=elbo)


@pytest.mark.parametrize("first", [False, True])
def test_inference_mode(first: bool) -> None:
    guide, y, elbo = AutoDelta(normal), torch.ones(3), replayed()
    guide(y)
    if not first:
        elbo.loss(normal, guide, y)
    with torch.inference_mode():
        loss = elbo.loss(normal, guide, y)
    assert loss == pytest.approx(Trace_ELBO().loss(normal, guide, y))
    assert_equal_to_plain(normal, guide, y, elbo=elbo)


def test_autocast_is_part_of_the_key() -> None:
    net, x = nn.Linear(64, 1), torch.randn(5, 64)

    def model(x: Tensor) -> None:
        normal(net(x).float().squeeze(-1))

    guide, elbo = AutoDelta(model), replayed()
    assert_equal_to_plain(model, guide, x, elbo=elbo)
    whole = elbo.loss(model, guide, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal_to_plain(model, guide, x, elbo=elbo)
        assert elbo.loss(model, guide, x) != whole
    assert elbo.loss(model, guide, x) == whole


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_networks_are_traced(kind: type[nn.Module]) -> None:
    net, x = kind(2, 3, batch_first=True), torch.randn(4, 6, 2)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        normal(net(x)[0])

    assert_equal_to_plain(model, AutoDelta(model), x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("script", [torch.jit.script, partial(torch.jit.trace, example_inputs=torch.ones(3))])
def test_networks_of_torchscript(script: Callable) -> None:
    net = script(nn.Linear(3, 3))
    assert_equal_to_plain(lambda y: normal(net(y)), AutoDelta(normal), torch.ones(3))


@pytest.mark.parametrize(
    ("make", "num_particles"),
    [
        (AutoNormal, 4),
        (AutoMultivariateNormal, 1),
        pytest.param(AutoNormal, 1, marks=pytest.mark.slow),
        pytest.param(AutoMultivariateNormal, 4, marks=pytest.mark.slow),
    ],
)
def test_correlations_are_traced(make: Callable, num_particles: int) -> None:
    def model(y: Tensor) -> None:
        factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=factor), obs=y)

    guide, y = make(model), torch.randn(6, 3)
    assert_equal_to_plain(model, guide, y)
    elbo = replayed(num_particles)
    ours = np.mean([elbo.loss(model, guide, y) for _ in range(300)])
    plain = Trace_ELBO(4000, vectorize_particles=True, max_plate_nesting=1).loss(model, guide, y)
    assert ours == pytest.approx(plain, rel=0.02)


def test_a_refusal_is_looked_at_again_when_its_cause_may_be_gone() -> None:
    norm, x = nn.BatchNorm1d(2), torch.randn(5, 2)

    def model(x: Tensor) -> None:
        normal(norm(x))

    guide, elbo = AutoDelta(model), CompiledTrace_ELBO(compile=False)
    with pytest.warns(UserWarning, match=r"call .eval\(\)"):
        elbo.loss(model, guide, x)
    norm.eval()
    assert_equal_to_plain(model, guide, x, elbo=elbo)
    assert elbo.traces == 2


@pytest.mark.parametrize("kind", [float, int])
def test_a_number_that_changes_at_every_step_falls_back(kind: type) -> None:
    elbo, guide, y = CompiledTrace_ELBO(compile=False, cache_size=1), AutoDelta(normal), torch.ones(3)
    for scale in range(1, 7):
        assert_equal_to_plain(normal, guide, y, kind(scale), elbo=elbo)
    with pytest.warns(UserWarning, match="the signature changes again and again, and 5 graphs were used less"):
        assert_equal_to_plain(normal, guide, y, kind(7), elbo=elbo)
    assert_equal_to_plain(normal, guide, y, kind(8), elbo=elbo)
    assert elbo.traces == 6
    elbo.retrace()
    for scale in range(1, 9):
        assert_equal_to_plain(normal, guide, y, torch.tensor(float(scale)), elbo=elbo)
    assert elbo.traces == 7


def test_a_model_made_anew_at_each_call_is_told() -> None:
    elbo, guide, y = CompiledTrace_ELBO(compile=False, cache_size=1), AutoDelta(normal), torch.ones(3)
    for _ in range(6):
        elbo.loss(lambda y: normal(y), guide, y)
    with pytest.warns(UserWarning, match="less than 20 times: make functions once, pass what changes as tensors of"):
        elbo.loss(lambda y: normal(y), guide, y)


def test_settings_in_a_dict_that_a_model_fills() -> None:
    held = {"scale": 1.0}

    def model(y: Tensor) -> None:
        normal(y, held["scale"])
        held[f"call {len(held)}"] = len(y)

    guide, elbo, y = AutoDelta(normal), replayed(), torch.ones(3)
    for held["scale"] in (1.0, 3.0):
        assert_equal_to_plain(model, guide, y, elbo=elbo)


def test_other_parameters_are_no_other_number() -> None:
    elbo, y = replayed(), torch.ones(3)
    for _ in range(5):
        pyro.clear_param_store()
        elbo.loss(normal, by_store, y, 0.5)
    assert elbo.traces == 5


def test_modes_may_change_once_in_a_while() -> None:
    drop, elbo, y = nn.Dropout(0.5), replayed(), torch.ones(3)

    def model(y: Tensor) -> None:
        normal(drop(y))

    guide = AutoDelta(model)
    for _ in range(8):
        for _ in range(20):
            elbo.loss(model, guide, y)
        drop.train(not drop.training)
    assert_equal_to_plain(model, guide, y, elbo=elbo)


def test_results_that_a_model_keeps_do_not_matter() -> None:
    seen = []

    def model(y: Tensor) -> None:
        normal(y)
        seen.append(len(y))

    guide, elbo, y = AutoDelta(model), replayed(), torch.ones(3)
    for _ in range(10):
        assert_equal_to_plain(model, guide, y, elbo=elbo)
    assert elbo.traces == 1


def test_a_gradient_within_the_model() -> None:
    def model(x: Tensor) -> None:
        place = x.clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(place.pow(3).sum(), place)
        normal(slope)

    assert_equal_to_plain(model, AutoDelta(lambda x: normal(x)), torch.ones(3))


COUNTS = [0.0]


def counted(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0 + COUNTS[0]), obs=y)


def asserting(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    assert x < 100
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def count_and_step(svi: SVI) -> None:
    for _ in range(12):
        svi.step(torch.tensor(1.0))
        COUNTS[0] += 1


def test_f5_what_changes_is_named() -> None:
    svi = SVI(counted, AutoNormal(counted), pyro.optim.Adam({"lr": 0.01}), CompiledTrace_ELBO(compile=False))
    with pytest.warns(UserWarning, match=r"0 of a list \(COUNTS of the globals\) changes again and again"):
        count_and_step(svi)


def test_f5_an_assert_on_values_is_named_with_its_line() -> None:
    elbo = CompiledTrace_ELBO(2, compile=False)
    svi = SVI(asserting, AutoNormal(asserting), pyro.optim.Adam({"lr": 0.01}), elbo)
    with pytest.warns(UserWarning, match=r"\(a branch or assert\) at .*test_elbo_changes.py:\d+: replace"):
        svi.step(torch.tensor(1.0))
