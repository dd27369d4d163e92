"""CompiledSVI honours what SVI honours: gradients in grad, hooks, the optimizer's state, or it steps as SVI does."""

import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam, ClippedAdam
from torch import nn

from pyroflows import CompiledSVI, CompiledTrace_ELBO

Y = torch.tensor([3.0, 5.0])
Change = Callable[[SVI, nn.Module], object]


def pair(net: nn.Module) -> tuple[Callable, Callable]:
    """A model, and a guide without noise; the net has a part that is seen at each step and not always used."""

    def model(part: str = "both") -> None:
        pyro.module("net", net)
        at = pyro.sample("at", dist.Normal(0.0, 10.0))
        shift = net.one.weight.sum() if part == "one" else (net.one.weight * net.two.weight).sum()
        pyro.sample("y", dist.Normal(at + shift, 1.0).expand([2]).to_event(1), obs=Y)

    def guide(part: str = "both") -> None:
        pyro.sample("at", dist.Delta(pyro.param("start", torch.tensor(0.5))))

    return model, guide


def steps(kind: type[SVI], change: Change, make: Callable = Adam, parts: tuple[str, ...] = ("both",) * 8) -> tuple:
    """Losses and parameters of eight steps, with a change after three, and what was said."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    net = nn.ModuleDict({"one": nn.Linear(1, 1), "two": nn.Linear(1, 1)})
    loss = Trace_ELBO() if kind is SVI else CompiledTrace_ELBO(compile=False, audit=0)
    svi = kind(*pair(net), make({"lr": 0.05}), loss)
    losses = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for index, part in enumerate(parts):
            if index == 3:
                change(svi, net)
            losses.append(svi.step(part))
    values = {name: leaf.detach().clone() for name, leaf in pyro.get_param_store().named_parameters()}
    return losses, values, [str(each.message) for each in said]


def owners(svi: SVI) -> list[torch.optim.Optimizer]:
    return list(svi.optim.optim_objs.values())


def load(svi: SVI, net: nn.Module) -> None:
    for leaf in net.parameters():
        leaf.grad = torch.full_like(leaf, 20.0)


def add(svi: SVI, net: nn.Module) -> None:
    for leaf in net.parameters():
        if leaf.grad is not None:
            leaf.grad.add_(20.0)


def no_grad(svi: SVI, net: nn.Module) -> None:
    for leaf in net.parameters():
        leaf.grad = None


def hook(svi: SVI, net: nn.Module) -> None:
    net.one.weight.register_hook(lambda g: -g)


def post_hook(svi: SVI, net: nn.Module) -> None:
    net.one.weight.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", -p.grad))


def negate(optimizer: torch.optim.Optimizer, *given: Any) -> None:
    for p in optimizer.param_groups[0]["params"]:
        p.grad = None if p.grad is None else -p.grad


def clip(svi: SVI, net: nn.Module) -> None:
    for leaf in svi.optim.grad_clip:
        svi.optim.grad_clip[leaf] = lambda p: None if p.grad is None else p.grad.zero_()


def replace_state(svi: SVI, net: nn.Module) -> None:
    for owner in owners(svi):
        owner.state = defaultdict(dict)


def replace_moments(svi: SVI, net: nn.Module) -> None:
    for owner in owners(svi):
        for state in owner.state.values():
            state["exp_avg"] = -3 * state["exp_avg"]


def replace_groups(svi: SVI, net: nn.Module) -> None:
    for owner in owners(svi):
        owner.param_groups = [{**group, "lr": 0.5} for group in owner.param_groups]


def other_optim(svi: SVI, net: nn.Module) -> None:
    svi.optim = Adam({"lr": 0.5})


def freeze(svi: SVI, net: nn.Module) -> None:
    pyro.param("start").unconstrained().requires_grad_(False)


def other_loss(svi: SVI, net: nn.Module) -> None:
    svi.loss_and_grads = lambda *given: 3 * Trace_ELBO().loss_and_grads(*given)


QUIET = {
    "no gradients": no_grad,
    "state cleared": lambda svi, net: [owner.state.clear() for owner in owners(svi)],
    "state replaced": replace_state,
    "moments replaced": replace_moments,
    "groups replaced": replace_groups,
    "objects cleared": lambda svi, net: svi.optim.optim_objs.clear(),
    "optim replaced": other_optim,
    "loss_and_grads replaced": other_loss,
}
SAID = {
    "gradients": (load, "since gradients lie in grad already"),
    "gradients in place": (add, "since gradients lie in grad already"),
    "hook": (hook, "has hooks, which a graph does not call"),
    "post-accumulate hook": (post_hook, "has hooks, which a graph does not call"),
    "pre-hook of a step": (
        lambda svi, net: [owner.register_step_pre_hook(negate) for owner in owners(svi)],
        "an optimizer has hooks",
    ),
    "post-hook of a step": (
        lambda svi, net: [owner.register_step_post_hook(negate) for owner in owners(svi)],
        "an optimizer has hooks",
    ),
    "clip": (clip, "clip_args clip each parameter by itself"),
    "frozen": (freeze, "needs no gradient has one of zeros, and moves by its momentum"),
}


def assert_alike(ours: tuple, theirs: tuple) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [Adam, ClippedAdam])
@pytest.mark.parametrize("change", QUIET.values(), ids=QUIET)
def test_what_is_honoured(change: Change, make: Callable) -> None:
    ours, theirs, idle = (
        steps(kind, changed, make) for kind, changed in ((CompiledSVI, change), (SVI, change), (SVI, lambda *given: 0))
    )
    assert_alike(ours, theirs)
    assert not ours[2]
    assert change is no_grad or ours[0] != pytest.approx(idle[0], rel=1e-3)


@pytest.mark.parametrize("make", [Adam, ClippedAdam])
@pytest.mark.parametrize(("change", "why"), SAID.values(), ids=SAID)
def test_what_makes_a_step_plain(change: Change, why: str, make: Callable) -> None:
    ours, theirs = (steps(kind, change, make) for kind in (CompiledSVI, SVI))
    assert_alike(ours, theirs)
    assert [why in text for text in ours[2]] == [True]


@pytest.mark.parametrize("change", [lambda *given: 0, no_grad], ids=["", "no gradients"])
@pytest.mark.parametrize("first", ["both", "one"])
def test_momentum_moves_what_has_had_a_gradient(first: str, change: Change) -> None:
    parts = (first, "one", "both", "one", "one", "both", "one", "one")
    ours, theirs = (steps(kind, change, parts=parts) for kind in (CompiledSVI, SVI))
    assert_alike(ours, theirs)
    assert not ours[2]


def test_gradients_are_zeros_after_a_step() -> None:
    net = nn.ModuleDict({"one": nn.Linear(1, 1), "two": nn.Linear(1, 1)})
    CompiledSVI(*pair(net), Adam({"lr": 0.05}), CompiledTrace_ELBO(compile=False)).step()
    assert net.one.weight.grad == 0
    assert net.one.bias.grad is None


def test_hooks_of_modules_are_called() -> None:
    losses = []
    for kind, elbo in ((SVI, Trace_ELBO()), (CompiledSVI, CompiledTrace_ELBO(compile=False, audit=0, strict=True))):
        pyro.clear_param_store()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))

        def model(net: nn.Module = net) -> None:
            pyro.module("net", net)
            pyro.sample("y", dist.Normal(net(Y[:1]), 1.0).to_event(1), obs=Y[1:])

        svi = kind(model, lambda: None, Adam({"lr": 0.05}), elbo)
        svi.step()
        net[1].register_full_backward_hook(lambda module, given, wanted: (3 * given[0],))
        svi.step()
        net[1].register_full_backward_pre_hook(lambda module, wanted: (-wanted[0],))
        losses.append([svi.step() for _ in range(4)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_enumerated_site_is_an_error() -> None:
    def model() -> None:
        kind = pyro.sample("kind", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(kind.float(), 1.0), obs=Y[0])

    svi = SVI(model, lambda: None, Adam({"lr": 0.05}), CompiledTrace_ELBO(compile=False))
    found = "expected no enumerated sites, got 'kind', which would be drawn at random: use"
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=found):
        svi.step()


def test_a_generator_of_its_own_is_named() -> None:
    generator = torch.Generator().manual_seed(1)

    def model() -> None:
        noise = torch.randn((), generator=generator)
        pyro.sample("y", dist.Normal(pyro.param("at", torch.tensor(0.5)) + noise, 1.0), obs=Y[0])

    svi = SVI(model, lambda: None, Adam({"lr": 0.05}), CompiledTrace_ELBO(compile=False))
    with pytest.warns(
        UserWarning, match=r"a generator of its own is drawn from at .*honours.py:\d+: leave out generator="
    ):
        svi.step()


def test_another_number_of_particles_counts() -> None:
    def guide() -> None:
        pyro.sample("at", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))

    def model() -> None:
        pyro.sample("at", dist.Normal(0.0, 1.0))

    elbo = CompiledTrace_ELBO(compile=False)
    losses = []
    for elbo.num_particles in (1, 400):
        losses.append(torch.tensor([elbo.loss(model, guide) for _ in range(9)]))
    assert losses[1].std() < 0.3 * losses[0].std()
