"""The laws of transforms, each a short function of a transform and a context."""

import contextlib
import copy
import pickle
from collections.abc import Callable, Iterator

import torch
from pyro.distributions import TransformedDistribution
from pyro.distributions.torch_transform import ComposeTransformModule
from torch import Tensor, nn
from torch.func import jacrev, vmap

from ..distributions import FlowDistribution, standard_normal
from ..numeric import seed_of, seeded, slope
from ..transforms import Autoregressive, Compose, FlowTransform, Permute
from .expectations import expect, expect_change, expect_close, law_broken, normal

ROWS = 4  # how many inputs, and contexts, a law sees


def check_transform(transform: FlowTransform, context: Tensor | None = None) -> None:
    """Checks the laws of a transform: exactness, shapes, gradients, one pass, copies, devices.

    Each law sees a copy in double precision with random parameters, once in each direction: the transform
    itself is left as it is.

    Args:
        transform: what to check.
        context: shape ``(..., context_dim)``; drawn at random if None and needed.

    Raises:
        AssertionError: naming the first law of ``LAWS`` that does not hold, what was expected and what came.

    Example:
        >>> from pyroflows.bijectors import RQSpline
        >>> from pyroflows.transforms import Coupling
        >>> check_transform(Coupling(3, RQSpline(), context_dim=2, hidden_dims=(8,)))
    """
    for name in LAWS:
        check_law(name, transform, context)


def check_law(name: str, transform: FlowTransform, context: Tensor | None = None) -> None:
    """Checks one law of ``LAWS`` in both directions, see :func:`check_transform`."""
    for way in ("forward", "inverse"):
        with law_broken(name, transform, way):
            subject = _moved(copy.deepcopy(transform).to("cpu", torch.float64))
            LAWS[name](subject if way == "forward" else subject.inv, _rows(transform, context))


def _rows(transform: FlowTransform, context: Tensor | None) -> Tensor | None:
    """The context as ``ROWS`` rows in double precision."""
    if context is None:
        return normal(ROWS, transform.context_dim) if transform.context_dim else None
    rows = context.detach().to("cpu", torch.float64).reshape(-1, context.shape[-1])
    return rows[torch.arange(ROWS) % len(rows)]


def _moved(module: nn.Module) -> nn.Module:
    """Moves every parameter at random, in place."""
    for parameter in module.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return module


def _jacobian(transform: FlowTransform, z: Tensor, context: Tensor | None) -> Tensor:
    """The Jacobian of each row by plain autograd, ``(ROWS, D, D)``."""

    def at(index: int) -> Tensor:
        view = transform.condition(None if context is None else context[index])
        return torch.autograd.functional.jacobian(lambda row: view.call_and_ladj(row)[0], z[index])

    return torch.stack([at(index) for index in range(ROWS)])


def registration(transform: FlowTransform, context: Tensor | None) -> None:
    """Every tensor is a parameter or a buffer, and no view or composition loses a parameter."""
    for name, module in transform.named_modules():
        loose = [f"{name}.{key}" for key, value in vars(module).items() if isinstance(value, Tensor)]
        expect("tensors that are neither parameters nor buffers", loose, [])
    views = {
        ".inv": transform.inv,
        ".condition": transform.condition(context),
        "Compose": Compose([Permute(transform.input_dim), transform]),
        "Pyro's compose": ComposeTransformModule([transform, transform.inv]),
    }
    own = {id(p) for p in transform.parameters()}
    for name, view in views.items():
        expect(f"parameters lost by {name}", len(own - {id(p) for p in view.parameters()}), 0)


def round_trip(transform: FlowTransform, context: Tensor | None) -> None:
    """There and back is where one started, and the two ladj cancel."""
    x = normal(ROWS, transform.input_dim)
    y, ladj = transform.call_and_ladj(x, context)
    back, ladj_back = transform.inv.call_and_ladj(y.clone(), context)
    expect_close("there and back", back, x)
    expect_close("ladj on the way back", ladj_back, -ladj)


def log_det(transform: FlowTransform, context: Tensor | None) -> None:
    """The ladj is the log determinant of the Jacobian of the direction taken."""
    x = normal(ROWS, transform.input_dim)
    _, ladj = transform.call_and_ladj(x, context)
    expect_close("ladj", ladj, _jacobian(transform, x, context).slogdet().logabsdet)


def carried_score(transform: FlowTransform, context: Tensor | None) -> None:
    """The slope of the log density at a draw is the one that autograd finds, the draw that of an ordinary pass."""
    density = FlowDistribution(transform=transform.condition(context))
    with seeded(seed_of("a draw and its score"), torch.device("cpu")):
        plain = density.rsample((ROWS,))
    with seeded(seed_of("a draw and its score"), torch.device("cpu")):
        value, log_prob, score = density.rsample_and_score((ROWS,))
    expect_close("the draw", value, plain)
    fixed = value.detach().requires_grad_()
    expected = density.log_prob(fixed)
    expect_close("its log density", log_prob, expected.detach())
    expect_close("its score", score, torch.autograd.grad(expected.sum(), fixed)[0])
    weight = torch.randn_like(value)
    for parameter in transform.parameters():
        if value.requires_grad:
            found = (slope([draw], parameter, [weight]) for draw in (value, plain))
            expect_close("gradients through the draw", *found)


def triangular(transform: FlowTransform, context: Tensor | None) -> None:
    """The Jacobian of each autoregressive part is triangular in its order."""
    for part in transform.modules():
        if isinstance(part, Autoregressive):
            jacobian = _jacobian(part, normal(ROWS, part.input_dim), context if part.context_dim else None)
            above = jacobian[:, part.order][:, :, part.order].triu(1)
            expect_close("above the diagonal", above, torch.zeros_like(above))


def shapes(transform: FlowTransform, context: Tensor | None) -> None:
    """Batches broadcast, and each row is mapped on its own."""
    x = normal(3, ROWS, transform.input_dim)
    y, ladj = transform.call_and_ladj(x, context)
    expect("shapes", (y.shape, ladj.shape), (x.shape, x.shape[:-1]))
    single, single_ladj = transform.call_and_ladj(x[1, 2], None if context is None else context[2])
    expect_close("one row", single, y[1, 2])
    expect_close("ladj of one row", single_ladj, ladj[1, 2])
    column, _ = transform.call_and_ladj(x[:, :1], context)
    expect_close("broadcasting", column[:, 0], y[:, 0])
    expect("forward_shape", transform.condition(context).forward_shape(x[:, :1].shape), column.shape)
    expect("shape of no rows", transform.call_and_ladj(x[:0], context)[0].shape, x[:0].shape)


def conditioning(transform: FlowTransform, context: Tensor | None) -> None:
    """``condition`` is the call with a context, which has an effect; each row draws noise of its own."""
    if context is None:
        return
    x = normal(ROWS, transform.input_dim)
    y = transform(x, context)
    expect_close("conditioned", transform.condition(context)(x), y)
    expect_change("another context", y, transform(x, context + 1))
    density = FlowDistribution(transform=transform).condition(context)
    expect("shape of a sample", density.sample((3,)).shape, (3, ROWS, transform.input_dim))
    noise = transform.inv(density.sample().clone(), context)
    expect("distinct rows of noise", len(noise.unique(dim=0)), ROWS)


def one_pass(transform: FlowTransform, context: Tensor | None) -> None:
    """Scoring what was just sampled runs no transform again, and is right."""
    view = transform.condition(context)
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
    leaves["input"] = normal(ROWS, transform.input_dim).requires_grad_()
    if context is not None:
        leaves["context"] = context.requires_grad_()
    along = [torch.randn_like(leaf) for leaf in leaves.values()]
    weights = normal(ROWS, transform.input_dim), normal(ROWS)

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
    moves = {"a write to .data": _moved, "load_state_dict": _load, "a fused optimizer step": _optimize}
    for how, move in moves.items() if list(transform.parameters()) else ():
        view, x = transform.condition(context), normal(ROWS, transform.input_dim)
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
    transform.load_state_dict(_moved(copy.deepcopy(transform)).state_dict())


def _optimize(transform: FlowTransform) -> None:
    torch.optim.Adam(transform.parameters(), lr=0.1, fused=True).step()


def copies(transform: FlowTransform, context: Tensor | None) -> None:
    """Copies, pickles and loaded states give the same values, also right after a call, and hold no batch."""
    x = normal(ROWS, transform.input_dim)
    y, _ = transform.call_and_ladj(x, context)
    loaded, pickled = _moved(copy.deepcopy(transform)), pickle.dumps(transform)
    loaded.load_state_dict(transform.state_dict())
    made = {"deepcopy": copy.deepcopy(transform), "pickle": pickle.loads(pickled), "load_state_dict": loaded}
    large = transform.call_and_ladj(x.repeat(100, 1), None if context is None else context.repeat(100, 1))
    expect("size of a pickle after a large batch", len(pickle.dumps(transform)), len(pickled))
    del large
    _moved(transform)
    for name, module in made.items():
        expect_close(name, module.call_and_ladj(x, context)[0], y)


def dtypes(transform: FlowTransform, context: Tensor | None) -> None:
    """``.to`` a dtype, and the outputs have it."""
    for dtype in (torch.float32, torch.float64):
        transform.to(dtype)
        x = normal(ROWS, transform.input_dim).to(dtype)
        y, ladj = transform.call_and_ladj(x, None if context is None else context.to(dtype))
        expect("dtypes", (y.dtype, ladj.dtype), (dtype, dtype))


def devices(transform: FlowTransform, context: Tensor | None) -> None:
    """``.to`` a device, and everything is there; the meta device stands for all."""
    x = torch.empty(ROWS, transform.input_dim, dtype=torch.float64, device="meta")
    y, ladj = transform.to("meta").call_and_ladj(x, None if context is None else context.to("meta"))
    expect("devices", (y.device.type, ladj.device.type), ("meta", "meta"))
    expect("shapes", (y.shape, ladj.shape), (x.shape, x.shape[:-1]))


def functorch(transform: FlowTransform, context: Tensor | None) -> None:
    """``vmap`` and ``jacrev`` go through."""
    x = normal(ROWS, transform.input_dim)
    jacobian = jacrev(lambda row, given: transform.call_and_ladj(row, given)[0])
    got = vmap(jacobian, (0, None if context is None else 0))(x, context)
    expect_close("vmap(jacrev)", got, _jacobian(transform, x, context))


LAWS: dict[str, Callable[[FlowTransform, Tensor | None], None]] = {
    law.__name__: law
    for law in (
        *(registration, round_trip, log_det, carried_score, triangular, shapes, conditioning, one_pass, gradients),
        *(never_stale, copies, dtypes, devices, functorch),
    )
}
