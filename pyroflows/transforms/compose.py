"""A chain of transforms as one transform."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .base import FlowTransform


class Compose(FlowTransform):
    """Applies transforms in order: a whole flow that is conditioned, inverted and registered as one object.

    Parts with a ``context_dim`` all get the same context, parts without get none. Both directions cost the
    sum of the parts'.

    Args:
        transforms: the parts, from the base to the data.

    Raises:
        ValueError: if there is no part, or sizes differ between parts.
        TypeError: if a part is not a :class:`FlowTransform`.

    Example:
        >>> from pyroflows.bijectors import RQSpline
        >>> from pyroflows.transforms import Elementwise, Permute
        >>> flow = Compose([Permute(4, "reversed"), Elementwise(4, RQSpline())])
        >>> flow(torch.zeros(2, 4)).shape
        torch.Size([2, 4])
    """

    def __init__(self, transforms: Iterable[FlowTransform]) -> None:
        transforms = list(transforms)
        _check_parts(transforms)
        super().__init__(transforms[0].input_dim, max(t.context_dim for t in transforms))
        self.transforms = nn.ModuleList(transforms)
        self.batch_shape = torch.broadcast_shapes(*(t.batch_shape for t in transforms))
        slow = {t.fast for t in transforms} - {"both"}
        self.fast = "neither" if len(slow) > 1 else slow.pop() if slow else "both"

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        total: Tensor | float = 0.0
        for part in reversed(self.transforms) if inverse else self.transforms:
            z, ladj = part._map(z, context if part.context_dim else None, inverse)
            total = total + ladj
        return z, total

    def __len__(self) -> int:
        return len(self.transforms)

    def __iter__(self) -> Iterator[FlowTransform]:
        return iter(self.transforms)

    def __getitem__(self, index: int) -> FlowTransform:
        return self.transforms[index]


def _check_parts(transforms: list) -> None:
    if not transforms:
        raise ValueError("Compose expected at least one transform, got none")
    for part in transforms:
        if not isinstance(part, FlowTransform):
            raise TypeError(f"Compose expected parts that are FlowTransforms, got {type(part).__name__}")
    sizes = [t.input_dim for t in transforms]
    if len(set(sizes)) > 1:
        raise ValueError(f"Compose expected parts of one input_dim, got {sizes}")
    contexts = [t.context_dim for t in transforms]
    if len(set(contexts) - {0}) > 1:
        raise ValueError(f"Compose expected parts of one context_dim (or 0), got {contexts}")
