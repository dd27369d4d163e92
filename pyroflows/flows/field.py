"""The flow of a few hyperparameters and a latent field that follows them."""

from collections.abc import Sequence

import torch

from ..bijectors import Affine, Bend
from ..transforms import Compose, Coupling, Elementwise, Part
from .coupling import with_tails

# Width of the network through which the few move the others, and its largest log scale.
WIDTH, BOUND = 32, 2.0


def following(input_dim: int, few: Sequence[int]) -> Compose:
    """A flow of a few dimensions alone, an affine coupling by which all others follow them, and bends of each.

    Its cost is linear in the others, which the couplings of :func:`with_tails` mix all with all.

    Args:
        input_dim: size ``D`` of the vectors.
        few: places of the few.

    Example:
        >>> following(100, [0, 1])(torch.ones(100)).shape
        torch.Size([100])
    """
    kept = torch.zeros(input_dim, dtype=torch.bool)
    kept[list(few)] = True
    return Compose(
        [
            Part(input_dim, with_tails(len(few)), few),
            Coupling(input_dim, Affine(BOUND), mask=kept, hidden_dims=(WIDTH,)),
            *(Elementwise(input_dim, Bend(center)) for center in (-1.0, 1.0)),
        ]
    )
