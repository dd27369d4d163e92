"""CompiledSVI makes the steps of SVI, whatever happens between them, or says why it does not."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam, AdamW, ClippedAdam, PyroOptim
from torch import Tensor

from elbo_cases import GUIDES, Guide, Y, by_hand, replayed, schools
from pyroflows import CompiledSVI, CompiledTrace_ELBO
from pyroflows.compile import Untraceable

Change = Callable[[SVI], object]


def plain() -> Trace_ELBO:
    return Trace_ELBO(max_plate_nesting=1)  # else it draws numbers to find out


def start(kind: type[SVI], make: Callable[[], Callable], optim: PyroOptim, elbo: Trace_ELBO | None = None) -> SVI:
    """SVI on the schools from parameters and noise that are always the same."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    guide = make()
    guide(Y)
    pyro.set_rng_seed(1)
    return kind(schools, guide, optim, elbo or (replayed() if kind is CompiledSVI else plain()))


def steps(kind: type[SVI], make: Callable, optim: PyroOptim, count: int = 6, change: Change | None = None) -> tuple:
    """Losses and final parameters of so many steps, with a change after each third of them."""
    svi, losses = start(kind, make, optim), []
    for index in range(count):
        if change and index and index % (count // 3) == 0:
            change(svi)
        losses.append(svi.step(Y))
    return losses, {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def assert_same_steps(guide: Callable, optim: Callable[[], PyroOptim], change: Change | None = None) -> None:
    ours, theirs = (steps(kind, guide, optim(), change=change) for kind in (CompiledSVI, SVI))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-4)  # Adam divides by small gradients


OPTIMIZERS = {
    "Adam": lambda: Adam({"lr": 0.05}),
    "Adam, options": lambda: Adam({"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    "Adam, a rate each": lambda: Adam(lambda name: {"lr": 0.1 if "loc" in name else 0.01}),
    "AdamW": lambda: AdamW({"lr": 0.05, "weight_decay": 0.3}),
    "ClippedAdam": lambda: ClippedAdam({"lr": 0.05, "lrd": 0.8, "clip_norm": 0.5}),
    "ClippedAdam, centered": lambda: ClippedAdam(
        {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.1, "centered_variance": True}
    ),
    "scheduled": lambda: pyro.optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.5}
    ),
}


@pytest.mark.parametrize("optim", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_make_the_steps_of_svi(optim: Callable) -> None:
    def schedule(svi: SVI) -> None:
        if isinstance(svi.optim, pyro.optim.PyroLRScheduler):
            svi.optim.step()

    assert_same_steps(lambda: by_hand, optim, schedule)


@pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES)
def test_guides_make_the_steps_of_svi(make: Callable) -> None:
    assert_same_steps(lambda: make(schools), OPTIMIZERS["Adam"])


def set_rate(svi: SVI) -> None:
    for optimizer in svi.optim.optim_objs.values():
        optimizer.param_groups[0]["lr"] *= 0.5


def set_betas(svi: SVI) -> None:
    for optimizer in svi.optim.optim_objs.values():
        optimizer.param_groups[0]["betas"] = (0.7, 0.8)


def load_optimizer(svi: SVI) -> None:
    for optimizer in svi.optim.optim_objs.values():
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.param_groups[0]["lr"] = 0.2


def plain_step(svi: SVI) -> None:
    SVI(svi.model, svi.guide, svi.optim, plain()).step(Y)


def set_parameter(svi: SVI) -> None:
    with torch.no_grad():
        pyro.param("theta_loc").unconstrained().fill_(0.3)


def set_data(svi: SVI) -> None:
    leaf = pyro.param("theta_loc").unconstrained()
    leaf.data = torch.full_like(leaf, 0.3)


def replace_parameter(svi: SVI) -> None:
    pyro.get_param_store()["theta_loc"] = torch.full((8,), 0.3)


def fewer_schools(svi: SVI) -> None:
    svi.guide = another_guide if svi.guide is by_hand else by_hand


def another_guide(y: Tensor = Y) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("mu_loc"), pyro.param("new_scale", torch.tensor(0.7))))
    pyro.sample("tau", dist.LogNormal(pyro.param("tau_loc"), 0.5))
    with pyro.plate("school", len(y)):
        pyro.sample("theta", dist.Normal(pyro.param("theta_loc"), 1.0))


CHANGES = (
    set_rate, set_betas, load_optimizer, plain_step, set_parameter, set_data, replace_parameter, fewer_schools,
)  # fmt: skip


@pytest.mark.parametrize(
    ("optim", "change"),
    [("Adam", change) for change in CHANGES]
    + [("ClippedAdam", change) for change in (set_rate, set_betas, load_optimizer, replace_parameter)],
)
def test_what_changes_between_steps(optim: str, change: Change) -> None:
    assert_same_steps(lambda: by_hand, OPTIMIZERS[optim], change)


def test_cleared_store() -> None:
    svi = start(CompiledSVI, lambda: by_hand, Adam({"lr": 0.1}))
    svi.run(2, Y)
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    by_hand()
    pyro.set_rng_seed(1)
    losses = [svi.step(Y) for _ in range(3)]
    assert losses == pytest.approx(steps(SVI, lambda: by_hand, Adam({"lr": 0.1}), 3)[0])


def test_loaded_guide_goes_on_from_what_was_loaded() -> None:
    guide, svi = Guide(), None
    svi = CompiledSVI(schools, guide, Adam({"lr": 0.1}), replayed(num_particles=8))
    svi.step(Y)
    saved = copy.deepcopy(guide.state_dict())
    svi.run(20, Y)
    moved = guide.loc.detach().clone()
    guide.load_state_dict(saved)
    svi.step(Y)
    assert (guide.loc - saved["loc"]).abs().max() < 0.2
    assert (guide.loc - moved).abs().max() > 0.2


def test_parameters_are_seen_between_steps() -> None:
    guide = AutoNormal(schools)
    svi = CompiledSVI(schools, guide, Adam({"lr": 0.1}), replayed(num_particles=4))
    svi.step(Y)
    before = guide.median()["mu"].clone(), pyro.param("AutoNormal.scales.mu").clone()
    svi.step(Y)
    assert guide.median()["mu"] != before[0]
    assert guide.scales.mu != before[1]
    assert pyro.param("AutoNormal.scales.mu") == guide.scales.mu > 0
    twin = copy.deepcopy(guide)
    svi.step(Y)
    assert twin.locs.mu != guide.locs.mu
    assert pickle.loads(pickle.dumps(guide)).locs.mu == guide.locs.mu


def test_other_shapes_share_parameters_and_moments() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    results = []
    for kind, elbo in ((CompiledSVI, replayed()), (SVI, plain())):
        pyro.clear_param_store()
        guide = AutoNormal(model)
        guide(Y)
        pyro.set_rng_seed(2)
        svi = kind(model, guide, Adam({"lr": 0.1}), elbo)
        results.append([svi.step(y) for _ in range(3) for y in (Y, Y[:3], Y + 1)])
        if kind is CompiledSVI:
            assert elbo.traces == 2
            assert len(svi._kept) == 2
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_a_parameter_may_appear_late() -> None:
    def guide(wide: bool) -> None:
        scale = pyro.param("scale", torch.tensor(0.5)) if wide else 0.5
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))

    def model(wide: bool) -> None:
        pyro.sample("mu", dist.Normal(3.0, 1.0))

    found = []
    for kind, elbo in ((CompiledSVI, replayed()), (SVI, plain())):
        pyro.clear_param_store()
        pyro.set_rng_seed(2)
        svi = kind(model, guide, Adam({"lr": 0.1}), elbo)
        losses = [svi.step(wide) for wide in (False, False, True, True, False, True)]
        found.append([*losses, pyro.param("loc").item(), pyro.param("scale").item()])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("optim", ["Adam", "ClippedAdam", "scheduled"])
def test_run_makes_the_steps_and_returns_their_losses(optim: str) -> None:
    losses, values = steps(CompiledSVI, lambda: by_hand, OPTIMIZERS[optim](), 9)
    svi = start(CompiledSVI, lambda: by_hand, OPTIMIZERS[optim]())
    assert svi.run(9, Y).tolist() == losses
    assert all(torch.equal(values[name], value) for name, value in pyro.get_param_store().items())
    assert svi.run(0, Y).shape == (0,)


def test_the_optimizer_can_be_saved_and_loaded() -> None:
    guide, optim = Guide(), Adam({"lr": 0.05})
    CompiledSVI(schools, guide, optim, replayed()).run(4, Y)
    file = io.BytesIO()
    torch.save((guide.state_dict(), optim.get_state()), file)
    ends = []
    for kind, elbo in ((CompiledSVI, replayed()), (SVI, plain())):
        pyro.clear_param_store()
        file.seek(0)
        values, state = torch.load(file, weights_only=False)
        again, restored = Guide(), Adam({"lr": 0.05})
        again.load_state_dict(values)
        restored.set_state(state)
        pyro.set_rng_seed(4)
        svi = kind(schools, again, restored, elbo)
        svi.step(Y)
        ends.append(again.loc.detach().clone())
        assert {float(o.state_dict()["state"][0]["step"]) for o in restored.optim_objs.values()} == {5.0}
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def test_a_frozen_parameter_stays() -> None:
    def guide(y: Tensor) -> None:
        for name in ("mu", "tau"):
            pyro.sample(name, dist.LogNormal(pyro.param(f"{name}_loc", torch.tensor(0.1)).detach(), 0.5))
        with pyro.plate("school", len(y)):
            pyro.sample("theta", dist.Normal(pyro.param("theta_loc", torch.zeros(8)), 1.0))

    svi = CompiledSVI(schools, guide, Adam({"lr": 0.1, "weight_decay": 0.5}), replayed())
    svi.run(3, Y)
    assert pyro.param("mu_loc") == 0.1
    assert pyro.param("theta_loc").abs().min() > 0.01


REFUSED = {
    "another kind": (pyro.optim.SGD, {"lr": 0.1}, {}, "SGD is not one of the optimizers Adam, AdamW, ClippedAdam"),
    "amsgrad": (Adam, {"lr": 0.1, "amsgrad": True}, {}, "amsgrad and maximize are not known"),
    "clip_args": (Adam, {"lr": 0.1}, {"clip_norm": 1.0}, "use ClippedAdam"),
    "options": (Adam, lambda name: {"lr": 0.1, "eps": 1e-3 if "mu" in name else 1e-8}, {}, "other than lr differ"),
    "rate": (Adam, {"lr": torch.tensor(0.1)}, {}, "the learning rate is a tensor"),
}


@pytest.mark.parametrize(("make", "options", "clip", "why"), REFUSED.values(), ids=REFUSED)
def test_other_optimizers_step_as_in_svi(make: Callable, options: object, clip: dict, why: str) -> None:
    optim = partial(make, options, clip) if clip else partial(make, options)
    theirs = steps(SVI, lambda: by_hand, optim())[0]
    svi = start(CompiledSVI, lambda: by_hand, optim(), CompiledTrace_ELBO(compile=False))
    svi.elbo.max_plate_nesting = 1
    with pytest.warns(UserWarning, match=f"steps as SVI does, since .*{why}") as caught:
        losses = [*[svi.step(Y) for _ in range(3)], *svi.run(3, Y)]
    assert len(caught) == 1
    assert losses == pytest.approx(theirs, rel=1e-5)
    with pytest.raises(Untraceable, match=why):
        start(CompiledSVI, lambda: by_hand, optim()).step(Y)


@pytest.mark.slow
def test_compiled_steps_are_those_of_svi() -> None:
    def guide(y: Tensor = Y) -> None:
        for name in ("mu", "tau"):
            pyro.sample(name, dist.Delta(pyro.param(f"{name}_loc", torch.tensor(1.0))))
        with pyro.plate("school", 8):
            pyro.sample("theta", dist.Delta(pyro.param("theta_loc", torch.zeros(8))))

    losses = []
    for kind, elbo in ((CompiledSVI, CompiledTrace_ELBO(strict=True)), (SVI, plain())):
        pyro.clear_param_store()
        svi = kind(schools, guide, ClippedAdam({"lr": 0.05, "lrd": 0.99}), elbo)
        losses.append([svi.step(Y) for _ in range(12)])  # later tau would be negative
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
