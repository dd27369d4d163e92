"""The scalars of draws by label."""

from collections.abc import Mapping

from numpy.typing import NDArray
from torch import Tensor

from ..model import LatentSpace
from . import summary


def scalars(values: Mapping[str, Tensor]) -> dict[str, NDArray]:
    """Draws ``(S,)`` of every scalar by label, from draws ``(S, *site.shape)`` by site."""
    return dict(summary.labelled(as_numpy(values)))


def open_scalars(space: LatentSpace, values: Mapping[str, Tensor]) -> dict[str, NDArray]:
    """The scalars that nothing is known to bound, whose tails may be heavy: draws ``(S,)`` by label.

    Left out are those that the support of their site bounds, what else, as a ``pyro.deterministic`` share or
    correlation, never leaves [-1, 1], and what never moves, as entries of which ``obs_mask`` says that they are seen.
    """
    bounded = space.bounded()
    within = {name: (value.abs() <= 1).all(0) for name, value in values.items() if name not in bounded}
    closed = scalars({name: found[None] for name, found in {**bounded, **within}.items()})
    moving = ((label, draws) for label, draws in scalars(values).items() if draws.min() < draws.max())
    return {label: draws for label, draws in moving if not closed[label][0]}


def as_numpy(values: Mapping[str, Tensor]) -> dict[str, NDArray]:
    """Tensors by name as arrays."""
    return {name: value.detach().cpu().numpy() for name, value in values.items()}
