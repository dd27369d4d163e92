"""Functions of tensors that every floor shares: plain torch, no modules and no Pyro."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad


def clip(x: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """``x.clamp(low, high)`` with gradient one where ``x`` is at an end, too: that of ``clamp`` is 0 from torch 2.14.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 0.5, 2.0], requires_grad=True)
        >>> clip(x, 0.0, 1.0).tolist(), torch.autograd.grad(clip(x, 0.0, 1.0).sum(), x)[0].tolist()
        ([0.0, 0.0, 0.5, 1.0], [0.0, 1.0, 1.0, 0.0])
    """
    x = torch.where(x < low, low, x) if low > -math.inf else x
    return torch.where(x > high, high, x) if high < math.inf else x


def soft_clip(x: Tensor, bound: float) -> Tensor:
    """Squashes ``x`` smoothly into ``(-bound, bound)`` with unit slope at zero.

    ``x / (1 + |x| / bound)``. An infinite ``x`` gives NaN rather than ``bound``, so that a parameter that
    has run away is seen and not hidden.

    Example:
        >>> soft_clip(torch.tensor([0.0, 3.0, -1e30]), 3.0).tolist()
        [0.0, 1.5, -3.0]
    """
    return x / torch.add(1, x.abs(), alpha=1 / bound)


def soft_unclip(y: Tensor, bound: float) -> Tensor:
    """The ``x`` that :func:`soft_clip` maps to ``y``, for ``|y| < bound``."""
    return y / (1 - y.abs() / bound)


def fill_triangular(numbers: Tensor, upper: bool = False) -> Tensor:
    """Lower triangular matrices ``(..., n, n)`` of ``n (n + 1) / 2`` numbers ``(..., n (n + 1) / 2)``, row by row.

    Args:
        numbers: the entries on and below the diagonal.
        upper: gives upper triangular matrices, also row by row.

    Raises:
        ValueError: if no triangle has that many entries.

    Example:
        >>> fill_triangular(torch.arange(1.0, 7.0))
        tensor([[1., 0., 0.],
                [2., 3., 0.],
                [4., 5., 6.]])
    """
    count = numbers.shape[-1]
    size = (math.isqrt(8 * count + 1) - 1) // 2
    if size * (size + 1) // 2 != count:
        raise ValueError(f"fill_triangular expected 1, 3, 6, 10, ... n (n + 1) / 2 numbers, got {count}")
    every = torch.ones(size, size, dtype=torch.long, device=numbers.device)
    mask = (every.triu() if upper else every.tril()).flatten()
    places = (mask.cumsum(0) * mask).view(size, size)
    return pad(numbers, (1, 0))[..., places]


def soft_floor(x: Tensor, bound: float) -> Tensor:
    """``x`` where it is positive, squashed smoothly into ``(-bound, 0)`` where it is not; unit slope at zero."""
    return torch.where(x < 0, soft_clip(x, bound), x)


def between(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Points on the arc from vector ``a`` to vector ``b``, of shape ``(steps, D)``; norms go from one to the other.

    A straight line between draws of a normal in many dimensions would pass too near the origin.

    Example:
        >>> between(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), 3)[1]
        tensor([1.4142, 1.4142])
    """
    share = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device).unsqueeze(-1)
    norms = a.norm(), b.norm()
    angle = torch.atan2((a * norms[1] - b * norms[0]).norm(), (a * norms[1] + b * norms[0]).norm()) * 2
    if not 1e-4 < angle < math.pi - 1e-4:  # a line, where there is no arc or more than one
        return torch.lerp(a, b, share)
    direction = (torch.sin((1 - share) * angle) * a / norms[0] + torch.sin(share * angle) * b / norms[1]) / angle.sin()
    return torch.lerp(*norms, share) * direction


def quadrature(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Points from 0 to 1 and weights of Fejer's first rule, exact for polynomials of lower degree than ``count``.

    Example:
        >>> points, weights = quadrature(4, torch.empty(0, dtype=torch.float64))
        >>> (weights * points**3).sum()
        tensor(0.2500, dtype=torch.float64)
    """
    order = torch.arange(count, dtype=like.dtype, device=like.device)
    angle, k = (order + 0.5) * (math.pi / count), order[1 : count // 2 + 1]
    waves = (2 * k * angle.unsqueeze(-1)).cos() / (4 * k * k - 1)
    return (1 + angle.cos()) / 2, (1 - 2 * waves.sum(-1)) / count


def normal_log_prob(x: Tensor) -> Tensor:
    """Log density of the standard normal, number by number."""
    return -(x * x + math.log(2 * math.pi)) / 2


def normal_log_cdf(x: Tensor) -> Tensor:
    """Log probability of the standard normal below ``x``; torch's own has no rule for ``vmap``."""
    low = clip(x, high=0.0)
    below = (torch.special.erfcx(-low / math.sqrt(2)) / 2).log() - low * low / 2
    return torch.where(x < 0, below, torch.log1p(-torch.erfc(clip(x, low=0.0) / math.sqrt(2)) / 2))


def normal_quantile(log_below: Tensor, log_above: Tensor) -> Tensor:
    """The ``x`` with given log probabilities of a standard normal below and above it, however small they are.

    Example:
        >>> x = torch.tensor([-30.0, 1.0])
        >>> normal_quantile(normal_log_cdf(x), normal_log_cdf(-x))
        tensor([-30.,   1.])
    """
    left = log_below < log_above
    log_tail = torch.where(left, log_below, log_above)
    with torch.no_grad():  # an upper bound of |x| where torch's own quantile has no digits
        far = (-2 * (log_tail.detach() + math.log(2))).clamp_min(0).sqrt()
        x = torch.where(log_tail > -10, -torch.special.ndtri(log_tail.exp()), far)
        for _ in range(3):
            x = x + _log_tail_step(x, log_tail)
    x = x.detach()
    for _ in range(2):  # each makes one more derivative right
        off = _log_tail_step(x, log_tail)
        x = x + (off - off.detach())
    return torch.where(left, -x, x)


def _log_tail_step(x: Tensor, log_tail: Tensor) -> Tensor:
    """A step of Newton's to the ``x >= 0`` above which a standard normal has a log probability."""
    log_above = normal_log_cdf(-x)
    return (log_above - log_tail) * (log_above - normal_log_prob(x)).exp()
