"""Flows of rational quadratic splines."""

from collections.abc import Sequence

from torch import nn

from ..bijectors import RQSpline
from ..nets import Activation
from ..transforms import Affine, Compose
from .stacks import autoregressives, couplings, scalar


def nsf(
    input_dim: int,
    context_dim: int = 0,
    *,
    structure: str = "coupling",
    fast: str = "inverse",
    layers: int = 6,
    hidden_dims: Sequence[int] = (64, 64),
    activation: Activation = nn.SiLU,
    bins: int = 8,
    bound: float = 4.0,
) -> Compose:
    """Rational quadratic spline layers and a learnable loc and scale: the most flexible layers here.

    Splines bend ``[-bound, bound]``: scale data to about unit variance first.

    Args:
        input_dim: size ``D`` of the vectors; 1 falls back to elementwise splines.
        context_dim: size of the context, 0 for none.
        structure: ``"coupling"`` (fast both ways) or ``"autoregressive"``.
        fast: for the autoregressive structure, the cheap direction: ``"forward"`` or ``"inverse"``.
        layers: number of spline layers, at least 2 for couplings.
        hidden_dims: widths of the networks' hidden layers.
        activation: makes the networks' non-linearity.
        bins: bins of each spline.
        bound: half width of the interval that is bent.

    Raises:
        ValueError: if ``structure``, ``fast`` or ``layers`` is out of range.

    References:
        Neural Spline Flows. Durkan, Bekasov, Murray, Papamakarios, 2019. https://arxiv.org/abs/1906.04032
    """
    spline, options = RQSpline(bins, bound), {"hidden_dims": hidden_dims, "activation": activation}
    if structure not in ("coupling", "autoregressive"):
        raise ValueError(f"nsf expected structure='coupling' or 'autoregressive', got {structure!r}")
    if input_dim == 1:
        return scalar(context_dim, spline, **options)
    if structure == "coupling":
        parts = couplings(input_dim, context_dim, spline, layers, **options)
    else:
        parts = autoregressives(input_dim, context_dim, spline, fast, layers, **options)
    return Compose([*parts, Affine(input_dim, context_dim, **options)])
