"""Bijectors that are the distribution function of a mixture, read on the scale of one component."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..arguments import check_counts
from ..maths import normal_log_cdf, normal_log_prob, normal_quantile, soft_clip
from .base import check_bound
from .monotone import Monotone


@dataclass(frozen=True)
class MixtureCDF(Monotone):
    """``y = Q(sum_i w_i P((x - m_i) / s_i))`` for a distribution function ``P`` and its inverse ``Q``.

    With logistic components this is the coupling function of Flow++, and one layer of a deep sigmoidal flow; with
    normal ones a layer of Gaussianization. Forward costs logs of tails, which do not saturate, and the inverse is a
    root, 10 to 40 times as much. It goes on as a straight line outside ``[-bound, bound]``. Zero is the identity, where
    components are evenly spaced: to the curve is added what that start falls short of the identity, an increasing
    function, times a weight that is learnt.

    Args:
        components: their number, at least 2.
        kernel: ``"logistic"`` or ``"normal"``.
        bound: half width of the interval that is bent.
        largest: largest absolute log scale of a component.
        floor: the smallest slope.

    Raises:
        ValueError: if an argument is outside its range.

    References:
        Neural Autoregressive Flows. Huang, Krueger, Lacoste, Courville, 2018. https://arxiv.org/abs/1804.00779
        Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design.
        Ho, Chen, Srinivas, Duan, Abbeel, 2019. https://arxiv.org/abs/1902.00275
        Gaussianization Flows. Meng, Song, Song, Ermon, 2020. https://arxiv.org/abs/2003.01941
    """

    components: int = 8
    kernel: str = "logistic"
    bound: float = 8.0
    largest: float = 3.0
    floor: float = 1e-2

    def __post_init__(self) -> None:
        """Checks the constants."""
        check_counts("MixtureCDF", {"components": 2}, components=self.components)
        if self.kernel not in ("logistic", "normal"):
            raise ValueError(f"MixtureCDF expected kernel='logistic' or 'normal', got {self.kernel!r}")
        check_bound(self, self.bound)
        check_bound(self, self.floor, below=1)

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Logits, places and log scales of the components, and the log weight of what the start falls short of."""
        return *3 * ((self.components,),), ()

    def _curve(self, x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        even = torch.linspace(-1.5, 1.5, self.components, dtype=x.dtype, device=x.device)
        moved = soft_clip(logits, 10.0), even + soft_clip(loc, self.bound), soft_clip(log_scale, self.largest)
        value, slope = self._quantile(x, *moved)
        # That of the start is at most one: a mixture of shifted components is no steeper on the scale of one of them.
        first, first_slope = self._quantile(x, torch.zeros_like(even), even, torch.zeros_like(even))
        share, rest = 1 - self.floor, soft_clip(rest, 4.0).exp()
        return rest * (x - share * first) + share * value, rest * (1 - share * first_slope) + share * slope

    def _quantile(self, x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the slope on the scale of one component."""
        t, log_weights = (x.unsqueeze(-1) - loc) * (-log_scale).exp(), logits.log_softmax(-1)
        if self.kernel == "logistic":
            below, above = logsigmoid(t), logsigmoid(-t)
            each = below + above
        else:
            below, above = normal_log_cdf(t), normal_log_cdf(-t)
            each = normal_log_prob(t)
        below, above, log_density = ((log_weights + part).logsumexp(-1) for part in (below, above, each - log_scale))
        if self.kernel == "logistic":
            return below - above, (log_density - below - above).exp()
        value = normal_quantile(below, above)
        return value, (log_density - normal_log_prob(value)).exp()
