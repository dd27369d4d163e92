"""Runs of a model that draw its data anew at draws of its latents, for whatever arguments."""

import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution

from .given_rows import seen
from .sites import Model, Plates, is_derived, is_fixed, is_given, plates_of, plates_of_derived, trace_of

# Rows that vmap runs at once: with many observations one value a row and datum would fill the memory.
ROWS = 1000
# What vmap warns of, in torch's own sampling.
VMAP_SAYS = ("There is a performance drop because we have not yet implemented", "An output with one or more elements")


class Simulating(Messenger):
    """Runs a model with latents at given values and its data drawn anew; what a handler around it fixed stays.

    Of a plate with ``subsample_size`` the rows come in turn.

    Args:
        values: the latents' values by name, those inside of subsampled plates of all rows.
        data: conditioned sites that hold data all the same, see :func:`~pyroflows.model.sites.data_sites`.
        first: the first row of subsampled plates.

    Attributes:
        sizes: numbers of rows of subsampled plates, in all and in one run, by name.
    """

    def __init__(self, values: Mapping[str, Tensor], data: Collection[str], first: int = 0) -> None:
        super().__init__()
        self.values, self.data, self.first = values, data, first
        self.sizes: dict[str, tuple[int, int]] = {}
        self._missing: set[str] = set()
        self._rows: dict[str, Tensor] = {}

    def _pyro_sample(self, message: dict) -> None:
        name = message["name"]
        if site_is_subsample(message):
            self._choose_rows(message)
        elif name in self.values and name not in self._missing:
            value = seen(message, self.values[name], self._rows)
            _check_shape(message, value)
            message["value"], message["is_observed"] = value, True
        else:
            if is_given(message) and (name in self.data or not is_fixed(message, self)):
                _free(message)
                if name.endswith("_observed"):  # by obs_mask=, of which what was missing is no more known of new data
                    self._missing.add(f"{name.removesuffix('_observed')}_unobserved")
            _draw(message)

    def _choose_rows(self, message: dict) -> None:
        size, chosen = message["fn"].size, message["fn"].subsample_size
        if message["value"] is None and chosen not in (None, size):
            self.sizes[message["name"]] = size, chosen
            message["value"] = (self.first + torch.arange(chosen, device=message["fn"].device)) % size
        if message["value"] is not None:
            self._rows[message["name"]] = message["value"]


def _check_shape(message: dict, value: Tensor) -> None:
    shape = message["fn"].shape()
    if shape != value.shape:
        raise ValueError(
            f"predict expected arguments for which the latent {message['name']!r} has the shape {tuple(value.shape)} "
            f"of the fit, got ones for which it has {tuple(shape)}: there are draws for the rows and groups of the fit "
            f"only"
        )


def _free(message: dict) -> None:
    """Makes an observed site one that is sampled, in the shape of its datum where that has more rows."""
    fn, value = message["fn"], message["value"]
    with suppress(RuntimeError):  # a datum that stands for another shape, or a distribution that has one only
        batch = torch.broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - fn.event_dim])
        message["fn"] = fn if batch == fn.batch_shape else fn.expand(batch)
    message["value"], message["is_observed"], message["done"] = None, False, False


def _draw(message: dict) -> None:
    """Draws a site without gradients: Pyro would call ``rsample``, which for most distributions vmap refuses."""
    if message["value"] is None and not message["args"] and isinstance(message["fn"], Distribution):
        message["value"] = message["fn"].sample()


class Simulation:
    """Draws of a model's data, and of all that is neither given nor fixed.

    Runs are vectorised by vmap, or done one by one where a distribution cannot be drawn so. Where a plate has
    ``subsample_size``, all its rows are gone through.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        data: see :class:`Simulating`.
    """

    def __init__(self, model: Model, args: tuple, kwargs: dict, data: Collection[str] = ()) -> None:
        self.model, self.args, self.kwargs, self.data = model, args, kwargs, data
        self._sizes: dict[str, tuple[int, int]] = {}
        self._plates: dict[str, Plates] = {}

    def __call__(self, values: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        """Values of observed and derived sites, and of latents that are not given, ``(count, *site.shape)`` by name.

        Args:
            values: latents by name, of shape ``(count, *site.shape)``; others are drawn from the prior.
            count: how many draws.

        Raises:
            ValueError: if a latent has another shape than its values, or several plates are subsampled.
        """
        parts = [self._rows(values, count, 0)]
        for plate, (size, step) in self._sizes.items():
            parts += [self._rows(values, count, first) for first in range(step, size, step)]
            return {name: self._joined(name, plate, [part[name] for part in parts]) for name in parts[0]}
        return parts[0]

    def _rows(self, values: Mapping[str, Tensor], count: int, first: int) -> dict[str, Tensor]:
        """Draws with the rows of a subsampled plate from the first one on."""

        def one(_: Tensor, row: dict[str, Tensor]) -> dict[str, Tensor]:
            return self._run(row, first)

        places = torch.arange(count)
        with torch.no_grad(), pyro.validation_enabled(False), warnings.catch_warnings():
            for message in VMAP_SAYS:
                warnings.filterwarnings("ignore", message)
            try:
                return torch.func.vmap(one, randomness="different", chunk_size=ROWS)(places, dict(values))
            except RuntimeError:  # many distributions cannot be drawn by vmap
                found = [one(place, {name: v[place] for name, v in values.items()}) for place in places]
                return {name: torch.stack([draw[name] for draw in found]) for name in found[0]}

    def _run(self, values: dict[str, Tensor], first: int) -> dict[str, Tensor]:
        handler = Simulating(values, self.data, first)
        nodes = trace_of(handler(self.model), self.args, self.kwargs).nodes
        self._sizes = handler.sizes
        if len(self._sizes) > 1:
            raise ValueError(
                f"predict expected at most one plate with subsample_size, got {', '.join(self._sizes)}: fit a model "
                f"without it, or predict by one"
            )
        drawn = {name: node for name, node in nodes.items() if _is_drawn(node)}
        self._plates = {k: plates_of_derived(n) if is_derived(n) else plates_of(n) for k, n in drawn.items()}
        return {name: node["value"] for name, node in drawn.items()}

    def _joined(self, name: str, plate: str, parts: list[Tensor]) -> Tensor:
        size, step = self._sizes[plate]
        dim = 1 + self._plates[name].index(plate) if plate in self._plates[name] else 0
        if dim == 0 or parts[0].shape[dim] != step:
            return parts[0]
        return torch.cat(parts, dim).narrow(dim, 0, size)


def _is_drawn(node: dict) -> bool:
    return node["type"] == "sample" and not site_is_subsample(node) and (is_derived(node) or not node["is_observed"])
