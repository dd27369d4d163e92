"""Latents inside of subsampled plates: values of all rows, of which a run takes those that it sees."""

from collections.abc import Mapping

import torch
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor


class GivenRows(ConditionMessenger):
    """``poutine.condition`` on values of all rows.

    Args:
        data: values by site.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     with pyro.plate("row", 4, subsample=torch.tensor([3, 1])):
        ...         return pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> GivenRows({"x": torch.arange(4.0)})(model)()
        tensor([3., 1.])
    """

    def __init__(self, data: Mapping[str, Tensor]) -> None:
        super().__init__(dict(data))
        self._rows: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Message) -> None:
        super()._pyro_sample(msg)
        if msg["name"] in self.data and not site_is_subsample(msg):
            msg["value"] = seen(msg, msg["value"], self._rows)

    def _pyro_post_sample(self, msg: Message) -> None:
        if site_is_subsample(msg):
            self._rows[msg["name"]] = msg["value"]


def seen(message: Mapping, value: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
    """What a run sees of a value of all rows.

    Args:
        message: a site of the run.
        value: its value, of all rows of subsampled plates.
        rows: which rows of each plate the run sees.
    """
    for dim, plate, size in _subsampled(message):
        if plate in rows and value.dim() >= -dim and value.shape[dim] == size:
            value = value.index_select(dim, torch.as_tensor(rows[plate], device=value.device))
    return value


def whole_shape(node: Mapping) -> torch.Size:
    """The shape of a site's value with all rows of subsampled plates."""
    shape = [*node["fn"].shape()]
    for dim, _, size in _subsampled(node):
        shape[dim] = size
    return torch.Size(shape)


def _subsampled(node: Mapping) -> list[tuple[int, str, int]]:
    """Of the subsampled plates around a site the dimension of its value, the name, and the number of all rows."""
    frames = [f for f in node["cond_indep_stack"] if f.vectorized and f.full_size not in (None, f.size)]
    return [(f.dim - node["fn"].event_dim, f.name, int(f.full_size)) for f in frames]
