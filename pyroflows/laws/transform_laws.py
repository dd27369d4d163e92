"""The laws of transforms as maps, each a short function of a transform and a context."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from ..autograd import slope
from ..distributions import FlowDistribution
from ..seeds import seed_of, seeded
from ..transforms import Autoregressive, FlowTransform
from .expectations import expect, expect_change, expect_close, law_broken
from .module_laws import copies, devices, dtypes, functorch, gradients, never_stale, one_pass, registration
from .subjects import ROWS, context_rows, inputs, jacobian_of, moved_at_random, over_reals


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
            subject = moved_at_random(copy.deepcopy(transform).to("cpu", torch.float64))
            LAWS[name](subject if way == "forward" else subject.inv, context_rows(transform, context))


def round_trip(transform: FlowTransform, context: Tensor | None) -> None:
    """There and back is where one started, and the two ladj cancel."""
    x = inputs(transform, ROWS)
    y, ladj = transform.call_and_ladj(x, context)
    back, ladj_back = transform.inv.call_and_ladj(y.clone(), context)
    expect_close("there and back", back, x)
    expect_close("ladj on the way back", ladj_back, -ladj)


def log_det(transform: FlowTransform, context: Tensor | None) -> None:
    """The ladj is the log determinant of the Jacobian of the direction taken."""
    x = inputs(transform, ROWS)
    _, ladj = transform.call_and_ladj(x, context)
    expect_close("ladj", ladj, jacobian_of(transform, x, context).slogdet().logabsdet)


def carried_score(transform: FlowTransform, context: Tensor | None) -> None:
    """The slope of the log density at a draw is the one that autograd finds, the draw that of an ordinary pass."""
    view = over_reals(transform).condition(context)
    loc = torch.zeros(view.event_shape, dtype=torch.float64)  # the standard normal, for a map without parameters too
    density = FlowDistribution(Independent(Normal(loc, 1.0), loc.dim()), view)
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
            jacobian = jacobian_of(part, inputs(part, ROWS), context if part.context_dim else None)
            above = jacobian[:, part.order][:, :, part.order].triu(1)
            expect_close("above the diagonal", above, torch.zeros_like(above))


def shapes(transform: FlowTransform, context: Tensor | None) -> None:
    """Batches broadcast, and each row is mapped on its own."""
    x = inputs(transform, 3, ROWS)
    y, ladj = transform.call_and_ladj(x, context)
    expect("shapes", (y.shape, ladj.shape), (x.shape, x.shape[:2]))
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
    x = inputs(transform, ROWS)
    y = transform(x, context)
    expect_close("conditioned", transform.condition(context)(x), y)
    expect_change("another context", y, transform(x, context + 1))
    whole = over_reals(transform)
    density = FlowDistribution(transform=whole).condition(context)
    expect("shape of a sample", density.sample((3,)).shape, (3, ROWS, *transform.event_shape))
    noise = whole.inv(density.sample().clone(), context)
    expect("distinct rows of noise", len(noise.unique(dim=0)), ROWS)


LAWS: dict[str, Callable[[FlowTransform, Tensor | None], None]] = {
    law.__name__: law
    for law in (
        *(registration, round_trip, log_det, carried_score, triangular, shapes, conditioning, one_pass, gradients),
        *(never_stale, copies, dtypes, devices, functorch),
    )
}
