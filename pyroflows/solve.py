"""Equations that have no closed form: roots of increasing functions, and fixed points of contractions."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp

from .autograd import is_traced

HALVINGS = 200  # more than bisection needs between any two numbers of double precision
TRACED = 40  # what a traced graph unrolls; most functions take about ten


def increasing_root(function: Callable[..., tuple[Tensor, Tensor]], y: Tensor, *params: Any) -> Tensor:
    """The ``x`` with ``f(x) = y`` for an increasing ``f``, number by number.

    A bracket grows from zero, then Newton's method closes in, with bisection where it would be slow or leave the
    bracket. Gradients are those of the implicit function theorem, ``dx = (dy - df) / f'``, for ``y`` and for whatever
    the function depends on; they may be differentiated again, once. Works under ``vmap``, ``torch.compile``
    and tracers, where a fixed number of iterations is unrolled and a root that is not there is NaN.

    Args:
        function: maps ``x`` and the parameters to the value and the log of the slope, as
            :meth:`Bijector.forward <pyroflows.bijectors.Bijector.forward>` does. It broadcasts.
        y: any shape that broadcasts with the value's.
        params: passed on to the function; tensors are cut from their graph while the root is looked for.

    Returns:
        ``x`` of the broadcast shape; NaN where ``y`` is not finite, or the function is NaN.

    Raises:
        TypeError: if ``y`` is not a floating-point tensor.
        ValueError: if no finite ``x`` is mapped to a finite ``y``; under a tracer such an ``x`` is NaN.

    Example:
        >>> def cubic(x, scale):
        ...     return x + scale * x**3, (1 + 3 * scale * x**2).log()
        >>> increasing_root(cubic, torch.tensor([2.0, 10.0]), torch.tensor(1.0))
        tensor([1., 2.])
    """
    _check_floating("increasing_root", y)
    fixed, target = [p.detach() if isinstance(p, Tensor) else p for p in params], y.detach()
    with torch.no_grad():
        x = _root(lambda x: function(x, *fixed), target)
    x = x.detach()  # once more: some tracers do not heed no_grad
    for _ in range(2):  # each step of Newton's leaves the value, and makes one more derivative right
        value, log_slope = function(x, *params)
        off = value - y
        x = x - (off - off.detach()) * log_slope.neg().clamp_max(math.log(torch.finfo(y.dtype).max) - 1).exp()
    return x


def _root(function: Callable[[Tensor], tuple[Tensor, Tensor]], y: Tensor) -> Tensor:
    """The root, without gradients."""
    if y.is_meta:  # which has a shape, and nothing to look for
        return function(y)[0]
    return _close_in(function, y, *_bracket(function, y))


def _bracket(function: Callable[[Tensor], tuple[Tensor, Tensor]], y: Tensor) -> tuple[Tensor, Tensor]:
    """Two points with the root between them, on one side of zero; both NaN where there is none."""
    first = function(torch.zeros_like(y))[0]
    y, first = torch.broadcast_tensors(y, first)
    right, near = y >= first, torch.zeros_like(y)
    sign = right.to(y) * 2 - 1
    far, crossed, value = near, first == y, first
    eager = not is_traced(y, first)
    for size in _sizes(y.dtype):
        if eager and crossed.all():
            break
        near, far = torch.where(crossed, near, far), torch.where(crossed, far, sign * size)
        value = function(far)[0]
        crossed = crossed | torch.where(right, value >= y, value <= y)
    if eager and (lost := ~crossed & y.isfinite() & ~value.isnan()).any():
        raise ValueError(
            f"increasing_root expected a function that takes every y for some x, got none in {int(lost.sum())} of "
            f"{lost.numel()} places, as for y={y[lost][0].item():.6g}, with f(0)={first[lost][0].item():.6g} and "
            f"f({far[lost][0].item():.3g})={value[lost][0].item():.6g}: is it bounded, or does it decrease?"
        )
    found = crossed & y.isfinite()
    return near.where(found, torch.nan), far.where(found, torch.nan)


def _sizes(dtype: torch.dtype) -> list[float]:
    """1, 2, 8, 128, ...: exponents double, so that eight reach the largest number of single precision."""
    largest = math.log2(torch.finfo(dtype).max)
    return [2.0 ** (2**k - 1) for k in range(11) if 2**k - 1 < largest]


def _close_in(function: Callable[[Tensor], tuple[Tensor, Tensor]], y: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Newton's method within a bracket; bisection in place of a step that leaves it or does not halve the last one."""
    low, high, eps = torch.minimum(near, far), torch.maximum(near, far), torch.finfo(y.dtype).eps
    x, last = far, torch.full_like(low, torch.inf)  # from the far end, which is the root itself now and then
    done, eager = ~(low < high), not is_traced(y, low)
    for _ in range(HALVINGS if eager else TRACED):
        if eager and done.all():
            break
        value, log_slope = function(x)
        off = value - y
        low, high = torch.where(off <= 0, x, low), torch.where(off >= 0, x, high)
        step, slack = off * log_slope.neg().exp(), 4 * eps * x.abs()  # an end is inside
        inside = (x - step >= low - slack) & (x - step <= high + slack) & ((step != 0) | (off == 0))
        close = (inside & (step.abs() <= slack)) | (high - low <= eps * high.abs())
        newton = inside & (close | (2 * step.abs() <= last))
        to = torch.where(newton, torch.minimum(torch.maximum(x - step, low), high), _middle(low, high))
        x, last = torch.where(done, x, to), step.abs().where(newton, torch.inf)
        done = done | close
    return x


def _middle(low: Tensor, high: Tensor) -> Tensor:
    """Between two numbers of one sign; by their geometric mean where they are far apart."""
    small, large = torch.minimum(low.abs(), high.abs()), torch.maximum(low.abs(), high.abs())
    mean = torch.maximum(small, large / 4096).sqrt() * large.sqrt()
    return torch.where(large > 4 * small, torch.where(high > 0, mean, -mean), low + (high - low) / 2)


def fixed_point(
    function: Callable[..., Tensor], start: Tensor, *params: Any, event_dim: int = 1, steps: int = 100
) -> Tensor:
    """The ``x`` with ``f(x) = x`` for a contraction ``f``, by iteration.

    Gradients are those of the implicit function theorem, ``dx = (I - J)^-1 df``, for whatever the function depends
    on; the start has none. They may be differentiated again, once. The system is solved by iteration, too, and nothing
    is kept of the way to ``x``. Under ``vmap``, ``torch.compile`` and tracers as many iterations are unrolled
    for ``x`` and for its gradients, and a row that has not converged is NaN.

    Args:
        function: maps ``x`` and the parameters to the shape of ``x``, each row on its own.
        start: where to start, ``(..., *event)``.
        params: passed on to the function; tensors are cut from their graph while the point is looked for.
        event_dim: how many of the last dimensions are one row.
        steps: the iterations under a tracer; without one ten times as many are allowed.

    Raises:
        TypeError: if ``start`` is not a floating-point tensor.
        ValueError: if a row does not converge; under a tracer it is NaN.

    Example:
        >>> matrix = torch.tensor([[0.0, 0.5], [0.5, 0.0]])
        >>> fixed_point(lambda x, shift: shift + x @ matrix, torch.zeros(2), torch.tensor([3.0, 0.0]))
        tensor([4.0000, 2.0000])
    """
    _check_floating("fixed_point", start)
    fixed = [p.detach() if isinstance(p, Tensor) else p for p in params]
    traced = is_traced(start, *(p for p in params if isinstance(p, Tensor)))
    with torch.no_grad():
        x = _iterate(lambda x: function(x, *fixed), start.detach(), event_dim, 1 if start.is_meta else steps, traced)
    x = x.detach()
    if traced:
        for _ in range(1 if start.is_meta else steps):  # derivatives converge as values do
            x = function(x, *params)
    elif torch.is_grad_enabled():
        at = x
        for _ in range(2):  # each makes one more derivative right
            off = function(x, *params) - x
            lasting = (lambda x: function(x, *fixed), at, event_dim, steps)
            x = x + _Resolvent.apply(off - off.detach(), lasting, False)
    return x


class _Resolvent(torch.autograd.Function):
    """``(I - J)^-1 v``, or that of ``J`` transposed, for the Jacobian of a contraction at a point that stands still."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, contraction: tuple, transposed: bool) -> Tensor:
        ctx.contraction, ctx.transposed = contraction, transposed
        function, at, *how = contraction
        if transposed:
            _, pull = vjp(function, at)
            return _iterate(lambda u: v + pull(u)[0], v, *how)
        return _iterate(lambda u: v + jvp(function, (at,), (u,))[1], v, *how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return _Resolvent.apply(grad, ctx.contraction, not ctx.transposed), None, None


def _iterate(
    function: Callable[[Tensor], Tensor], x: Tensor, event_dim: int, steps: int, traced: bool = False
) -> Tensor:
    """Applies a contraction until rows change by no more than rounding; NaN stays NaN."""
    dims, eps = tuple(range(-event_dim, 0)), torch.finfo(x.dtype).eps
    before, x = x, function(x)
    known = x.isfinite().all(dims, keepdim=True) if dims else x.isfinite()
    size, change = _largest(before, dims), _largest(x - before, dims)
    for _ in range(steps if traced else 10 * steps):
        if not traced and not _lost(known, change, 4 * eps * size).any():
            return x
        before, x = x, function(x)
        size, change = torch.maximum(size, _largest(x, dims)), _largest(x - before, dims)
    if traced:
        return x.where(change <= eps**0.5 * size, torch.nan)
    lost = _lost(known, change, 4 * eps * size)
    raise ValueError(
        f"fixed_point expected a contraction, got changes of {change[lost][0].item():.3g} after {10 * steps} "
        f"iterations in {int(lost.sum())} of {lost.numel()} rows: bound its slope well below 1, or allow more steps"
    )


def _lost(known: Tensor, change: Tensor, bound: Tensor) -> Tensor:
    """Which rows still change, of those that are known to have begun with finite numbers."""
    return known & ~((change <= bound) & bound.isfinite())


def _largest(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.abs().amax(dims, keepdim=True) if dims else x.abs()


def _check_floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} expected a floating-point tensor, got {got}: convert it first")
