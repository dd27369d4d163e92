"""The laws of transforms as modules: parameters, gradients, copies, dtypes, devices, function transforms."""

import contextlib
import copy
import pickle
from collections.abc import Iterator

import torch
from pyro.distributions import TransformedDistribution
from pyro.distributions.torch_transform import ComposeTransformModule
from torch import Tensor
from torch.func import jacrev, vmap

from ..distributions import FlowDistribution, standard_normal
from ..transforms import Compose, FlowTransform
from .expectations import expect, expect_change, expect_close, normal
from .subjects import ROWS, inputs, jacobian_of, moved_at_random, over_reals


def registration(transform: FlowTransform, context: Tensor | None) -> None:
    """Every tensor is a parameter or a buffer, and no view or composition loses a parameter."""
    for name, module in transform.named_modules():
        loose = [f"{name}.{key}" for key, value in vars(module).items() if isinstance(value, Tensor)]
        expect("tensors that are neither parameters nor buffers", loose, [])
    views = {
        ".inv": transform.inv,
        ".condition": transform.condition(context),
        "Compose": Compose([transform, transform.inv]),
        "Pyro's compose": ComposeTransformModule([transform, transform.inv]),
    }
    own = {id(p) for p in transform.parameters()}
    for name, view in views.items():
        expect(f"parameters lost by {name}", len(own - {id(p) for p in view.parameters()}), 0)


def one_pass(transform: FlowTransform, context: Tensor | None) -> None:
    """Scoring what was just sampled runs no transform again, and is right."""
    view = over_reals(transform).condition(context)
    base = standard_normal(view).expand(view.batch_shape)
    for density in (FlowDistribution(base, view), TransformedDistribution(base, [view])):
        name, value = type(density).__name__, density.rsample((3,))
        with _counted(view) as calls:
            log_prob = density.log_prob(value)
        expect(f"passes to score a sample of {name}", calls, [])
        expect_close(f"log_prob of a sample of {name}", log_prob, density.log_prob(value.clone()))


@contextlib.contextmanager
def _counted(transform: FlowTransform) -> Iterator[list[str]]:
    """Lists the calls of ``_map`` of a transform and its parts."""
    calls: list[str] = []
    parts = [part for part in transform.modules() if isinstance(part, FlowTransform)]
    for part in parts:
        part._map = lambda *args, part=part: calls.append(type(part).__name__) or type(part)._map(part, *args)
    yield calls
    for part in parts:
        del part._map


def gradients(transform: FlowTransform, context: Tensor | None) -> None:
    """Gradients reach every parameter, the input and the context, and agree with finite differences."""
    leaves = {name: p for name, p in transform.named_parameters() if p.requires_grad}
    leaves["input"] = inputs(transform, ROWS).requires_grad_()
    if context is not None:
        leaves["context"] = context.requires_grad_()
    along = [torch.randn_like(leaf) for leaf in leaves.values()]
    weights = normal(ROWS, *transform.event_shape), normal(ROWS)

    def loss(step: float) -> Tensor:
        with torch.no_grad():
            torch._foreach_add_(list(leaves.values()), along, alpha=step)
        outs = transform.call_and_ladj(leaves["input"], context)
        return sum((out * weight).sum() for out, weight in zip(outs, weights, strict=True))

    grads = torch.autograd.grad(loss(0.0), list(leaves.values()), allow_unused=True)
    missed = [name for name, grad in zip(leaves, grads, strict=True) if grad is None]
    expect("leaves that no gradient reaches", missed, [])
    slope = sum((grad * a).sum() for grad, a in zip(grads, along, strict=True))
    expect_close("gradient", slope, (loss(1e-6) - loss(-2e-6)) / 2e-6)


def never_stale(transform: FlowTransform, context: Tensor | None) -> None:
    """Once a parameter has moved, however it moved, nothing computed before is recalled."""
    moves = {"a write to .data": moved_at_random, "load_state_dict": _load, "a fused optimizer step": _optimize}
    for how, move in moves.items() if list(transform.parameters()) else ():
        view, x = transform.condition(context), inputs(transform, ROWS)
        y = view(x)
        (y.sum() + view.log_abs_det_jacobian(x, y).sum()).backward()
        y = view(x)
        move(transform)
        fresh, x2, y2 = copy.deepcopy(transform).condition(context), x.clone(), y.detach().clone()
        expect_close(f"inverse after {how}", view.inv(y), fresh.inv(y2))
        ladj = view.log_abs_det_jacobian(x, y)
        expect_close(f"ladj after {how}", ladj, fresh.log_abs_det_jacobian(x2, y2))
        expect_change(f"forward after {how}", y, view(x))


def _load(transform: FlowTransform) -> None:
    transform.load_state_dict(moved_at_random(copy.deepcopy(transform)).state_dict())


def _optimize(transform: FlowTransform) -> None:
    torch.optim.Adam(transform.parameters(), lr=0.1, fused=True).step()


def copies(transform: FlowTransform, context: Tensor | None) -> None:
    """Copies, pickles and loaded states give the same values, also right after a call, and hold no batch."""
    x = inputs(transform, ROWS)
    y, _ = transform.call_and_ladj(x, context)
    loaded, pickled = moved_at_random(copy.deepcopy(transform)), pickle.dumps(transform)
    loaded.load_state_dict(transform.state_dict())
    made = {"deepcopy": copy.deepcopy(transform), "pickle": pickle.loads(pickled), "load_state_dict": loaded}
    many = x.expand(100, *x.shape).flatten(0, 1)
    large = transform.call_and_ladj(many, None if context is None else context.repeat(100, 1))
    expect("size of a pickle after a large batch", len(pickle.dumps(transform)), len(pickled))
    del large
    moved_at_random(transform)
    for name, module in made.items():
        expect_close(name, module.call_and_ladj(x, context)[0], y)


def dtypes(transform: FlowTransform, context: Tensor | None) -> None:
    """``.to`` a dtype, and the outputs have it."""
    for dtype in (torch.float32, torch.float64):
        transform.to(dtype)
        x = inputs(transform, ROWS).to(dtype)
        y, ladj = transform.call_and_ladj(x, None if context is None else context.to(dtype))
        expect("dtypes", (y.dtype, ladj.dtype), (dtype, dtype))


def devices(transform: FlowTransform, context: Tensor | None) -> None:
    """``.to`` a device, and everything is there; the meta device stands for all."""
    x = torch.empty(ROWS, *transform.event_shape, dtype=torch.float64, device="meta")
    y, ladj = transform.to("meta").call_and_ladj(x, None if context is None else context.to("meta"))
    expect("devices", (y.device.type, ladj.device.type), ("meta", "meta"))
    expect("shapes", (y.shape, ladj.shape), (x.shape, x.shape[:1]))


def functorch(transform: FlowTransform, context: Tensor | None) -> None:
    """``vmap`` and ``jacrev`` go through."""
    x = inputs(transform, ROWS)
    jacobian = jacrev(lambda row, given: transform.call_and_ladj(row, given)[0])
    got = vmap(jacobian, (0, None if context is None else 0))(x, context)
    expected = jacobian_of(transform, x, context)
    expect_close("vmap(jacrev)", got.view_as(expected), expected)
