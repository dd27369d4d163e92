"""A real posterior: a Pyro model, its data, and what others found about it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Draws = dict[str, Tensor]
# Batches of draws whose means give a standard error; the reference draws are all but independent.
BATCHES = 100


def unchanged(values: Draws, *args: object) -> Draws:
    """For a model whose sites are the parameters of the reference."""
    return values


@dataclass(frozen=True)
class Posterior:
    """A Pyro model with data and a reference to compare a fit with.

    Models and data are in double precision: run them under ``torch.set_default_dtype(torch.float64)``. Flat priors
    cannot be sampled; ``pyroflows.fit`` knows where to start, Pyro needs to be told:
    ``NUTS(model, max_plate_nesting=0, init_strategy=pyroflows.guides.init_to_prior)``.

    Args:
        folder: where the data are, below the data directory.
        model: the model.
        read: the model's arguments from the files in that folder.
        to_reference: maps sites and the model's arguments to the parameters of the reference.
        to_sites: the way back.
        ground_truth: where only moments are known, the name in the file by site.
        exact: mean, standard deviation and kurtosis of scalars whose published moments are wrong.
        log_evidence: in nats, if known.

    Example:
        >>> posterior = POSTERIORS["eight_c"]
        >>> model, args = posterior.load("../shared/data")
        >>> fitted = pyroflows.fit(model, *args)
        >>> found = posterior.quantities(fitted.sample(4000), *args)
    """

    folder: str
    model: Callable[..., None]
    read: Callable[[Path], tuple]
    to_reference: Callable[..., Draws] = unchanged
    to_sites: Callable[..., Draws] = unchanged
    ground_truth: Mapping[str, str] | None = None
    exact: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    log_evidence: float | None = None

    def load(self, data: str | Path) -> tuple[Callable[..., None], tuple]:
        """The model and its arguments, from the data directory."""
        return self.model, self.read(Path(data) / self.folder)

    def quantities(self, draws: Draws, *args: object) -> Draws:
        """The scalars of the reference, each of shape ``(draws,)``, from draws of the sites and the model's arguments.

        Scalars are labelled like ``tau``, ``theta[1]`` and ``state[1,1]``.
        """
        return scalars(self.to_reference(draws, *args))

    def reference(self, data: str | Path) -> dict[str, tuple[float, float, float]]:
        """Mean, standard deviation and standard error of the mean for each scalar; exact ones have no error."""
        return self.published(data) | {name: (mean, sd, 0.0) for name, (mean, sd, _) in self.exact.items()}

    def published(self, data: str | Path) -> dict[str, tuple[float, float, float]]:
        """The same from the files alone."""
        if self.ground_truth is not None:
            return self._moments(read_npz(Path(data) / self.folder / "ground_truth.npz"))
        found = scalars(self._draws(data))
        return {name: (float(x.mean()), float(x.std()), float(standard_error(x))) for name, x in found.items()}

    def reference_draws(self, data: str | Path) -> Draws | None:
        """The reference draws as values of the model's sites, or None where only moments are known."""
        if self.ground_truth is not None:
            return None
        return self.to_sites(self._draws(data), *self.load(data)[1])

    def known_means(self, data: str | Path) -> Draws:
        """The means in ``ground_truth`` as values of the sites."""
        truth = read_npz(Path(data) / self.folder / "ground_truth.npz")
        return {site: truth[f"{name}_MEAN"] for site, name in (self.ground_truth or {}).items()}

    def _draws(self, data: str | Path) -> Draws:
        folder = Path(data) / self.folder
        if folder.is_dir():
            return stacked(read_npz(folder / "reference.npz"))
        return {"w": read_npz(folder.with_suffix(".npz"))["reference"]}

    def _moments(self, truth: Draws) -> dict[str, tuple[float, float, float]]:
        kinds = "_MEAN", "_STANDARD_DEVIATION", "_MEAN_STANDARD_ERROR"
        columns = [
            scalars({site: truth[name + kind][None] for site, name in self.ground_truth.items()}) for kind in kinds
        ]
        return {name: tuple(float(column[name]) for column in columns) for name in columns[0]}


def scalars(values: Draws) -> Draws:
    """Every scalar by its label, counted from 1, from values of shape ``(draws, *shape)``."""
    found = {}
    for name, value in values.items():
        for index in product(*map(range, value.shape[1:])):
            label = f"{name}[{','.join(str(i + 1) for i in index)}]" if index else name
            found[label] = value[(slice(None), *index)]
    return found


def stacked(draws: Draws) -> Draws:
    """Vectors from scalars named like ``theta[1]``, their chains laid end to end."""
    groups: dict[str, list[Tensor]] = {}
    for label, value in draws.items():
        groups.setdefault(label.split("[")[0], []).append(value.flatten())
    single = {label for label in draws if "[" not in label}
    return {name: parts[0] if name in single else torch.stack(parts, dim=-1) for name, parts in groups.items()}


def standard_error(values: Tensor, batches: int = BATCHES) -> Tensor:
    """Standard error of the mean over the first dimension, from the means of consecutive batches."""
    size = len(values) // batches
    means = values[: size * batches].reshape(batches, size, *values.shape[1:]).mean(1)
    return means.std(0) / batches**0.5


def read_npz(path: Path) -> Draws:
    """The arrays of a file in double precision."""
    with np.load(path) as file:
        return {name: torch.as_tensor(file[name]).double() for name in file.files}


def read_json(folder: Path) -> Draws:
    """The numbers and arrays of a data set in double precision."""
    return {
        name: torch.tensor(value).double() for name, value in json.loads((folder / "data.json").read_text()).items()
    }
