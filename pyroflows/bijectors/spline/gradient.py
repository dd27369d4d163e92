"""The gradient of rational quadratic splines written out: a fifth faster than the one that autograd makes."""

from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...autograd import gradient_by_autograd, is_transformed
from .curve import FACTOR, Curve


class Found(NamedTuple):
    """What a spline found on its way to a value.

    Args:
        tail: where the input is outside the interval.
        index: the bin, shape ``(..., 1)``.
        shares: of the bins in the widths and the heights, shape ``(..., 2, bins)``.
        sizes: widths and heights of the bin and its neighbours, shape ``(..., 2, 3)``.
        factors: raw slopes at the ends of the bin, shape ``(..., 2)``.
        d0: slope at the start of the bin, relative to its secant.
        d1: slope at its end.
        t: fraction of the bin before the point.
        u: fraction after it.
        curve: what :class:`~.curve.Curve` is there.
    """

    tail: Tensor
    index: Tensor
    shares: Tensor
    sizes: Tensor
    factors: Tensor
    d0: Tensor
    d1: Tensor
    t: Tensor
    u: Tensor
    curve: Curve


class Spline(Protocol):
    """What is asked of a spline: how many bins, over which length, and its values with what leads to them."""

    bins: int
    spread: float

    def find(self, inverse: bool, *given: Tensor) -> tuple[Tensor, ...]:
        """The value, the ladj, and the fields of :class:`Found`."""


def written(spline: Spline, inverse: bool, *given: Tensor) -> tuple[Tensor, Tensor]:
    """The value and the ladj of a spline at ``z, widths, heights, slopes``, with this gradient."""
    value, ladj, *_ = _Spline.apply(spline, inverse, *given)
    return value, ladj


class _Spline(torch.autograd.Function):
    """A spline in either direction: the value, the ladj, and what the gradient needs besides.

    Twice differentiable: a gradient that is itself differentiated is autograd's own.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(spline: Spline, inverse: bool, *given: Tensor) -> tuple[Tensor, ...]:
        return spline.find(inverse, *given)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.spline, ctx.inverse, *given = inputs
        ctx.mark_non_differentiable(*output[2:])
        # Those of all that is not differentiable as well, which only the vmap of older versions of torch asks for.
        ctx.set_materialize_grads(is_transformed())
        ctx.save_for_backward(*given, *output[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_ladj: Tensor | None, *unused: None) -> tuple:
        given, found, curve = ctx.saved_tensors[:4], ctx.saved_tensors[4:13], ctx.saved_tensors[13:]
        if torch.is_grad_enabled():
            again = partial(ctx.spline.find, ctx.inverse)
            return None, None, *gradient_by_autograd(again, given, (grad, grad_ladj))
        grads = (torch.zeros_like(found[-1]) if g is None else g for g in (grad, grad_ladj))
        return None, None, *_gradient(Found(*found, Curve(*curve)), ctx.spline, ctx.inverse, given, *grads)


def _gradient(
    found: Found, spline: Spline, inverse: bool, given: tuple[Tensor, ...], grad: Tensor, grad_ladj: Tensor
) -> list[Tensor]:
    """Gradients for the input, widths, heights and slopes.

    Those of the inverse are those of the forward map at the point found, by the implicit function theorem.
    """
    tail, index, shares, sizes, factors, d0, d1, t, u, (value, slope, top, bottom, bend, tu) = found
    (wl, w, wr), (hl, h, hr) = (size.unbind(-1) for size in sizes.unbind(-2))
    zero = torch.zeros_like(grad)
    by_y, by_ladj = torch.where(tail, zero, grad), torch.where(tail, zero, grad_ladj)
    # Of the forward map: how the ladj bends along the bin, and its slope.
    along = 2 * ((d1 * t - d0 * u + u - t) / top - bend * (u - t) / bottom)
    rise = h * slope
    if inverse:
        by_y, by_ladj = (by_ladj * along - by_y * w) / rise, -by_ladj
    by_t = by_y * rise + by_ladj * along
    by_x = by_t / w
    grad_z = torch.where(tail, grad, -by_y if inverse else by_x)
    # By the logs of the end slopes, where they follow the sizes of bins, and those of the neighbours.
    place = index.squeeze(-1)
    first, last = place == 0, place == spline.bins - 1
    by_value, by_bottom = by_y * h * tu / bottom, 2 * tu / bottom
    start = d0 * (by_value * (1 - value) + by_ladj * (u * u / top - by_bottom))
    end = d1 * (by_ladj * (t * t / top - by_bottom) - by_value * value)
    before, secant, after = (sizes[..., 1, :] / sizes[..., 0, :]).unbind(-1)
    left, right = torch.where(before <= secant, start, zero), torch.where(after <= secant, end, zero)
    own = torch.where(first, start, left) + torch.where(last, end, right)
    left, right = torch.where(first, zero, left), torch.where(last, zero, right)
    left_end, right_end = torch.where(first, zero, start), torch.where(last, zero, end)
    squash = torch.add(1, factors.abs(), alpha=1 / FACTOR)
    left_end, right_end = (torch.stack([left_end, right_end], dim=-1) / (squash * squash)).unbind(-1)
    by_w, by_h = (own - by_ladj - by_t * t) / w, by_y * value + (by_ladj - own) / h
    # For each of widths, heights and slopes: what those before the bin get, the one next to it, its own, the next.
    columns = [-by_x, -left / wl - by_x, by_w, -right / wr, zero, by_y, left / hl + by_y, by_h, right / hr, zero]
    columns += [zero, left_end, right_end, zero, zero]
    table = torch.stack(columns, dim=-1)
    table = table.view(*table.shape[:-1], 3, 5)
    offset = (torch.arange(2, spline.bins + 2, device=index.device) - index).clamp(0, 4)
    by_raw = table.gather(-1, offset.unsqueeze(-2).expand(*table.shape[:-1], -1))
    by_sizes, by_slopes = _fit(by_raw[..., :2, :], shares), by_raw[..., 2, :-1]
    pull = spline.spread * by_sizes * shares
    by_shares = pull - shares * pull.sum(-1, keepdim=True)
    return [_fit(g, t) for g, t in zip((grad_z, *by_shares.unbind(-2), by_slopes), given, strict=True)]


def _fit(grad: Tensor, like: Tensor) -> Tensor:
    """Sums a gradient over what was broadcast."""
    return grad if grad.shape == like.shape else grad.sum_to_size(like.shape)
