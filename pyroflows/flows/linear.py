"""The affine map alone, and how many dimensions it is for."""

from collections.abc import Sequence

from ..transforms import Compose, LowerTriangular

# Beyond this many latents the affine map of the guide is diagonal: a triangle has D^2 / 2 numbers.
FULL_RANK_LIMIT = 1000


def full_rank(input_dim: int, context_dim: int = 0, *, hidden_dims: Sequence[int] = (64, 64)) -> Compose:
    """A lower triangular affine map alone: over a normal base, the full-rank Gaussian."""
    return Compose([LowerTriangular(input_dim, context_dim, hidden_dims=hidden_dims)])
