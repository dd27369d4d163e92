"""Standardised columns of arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Scale:
    """Standardises columns and undoes it.

    Args:
        loc: means of the columns.
        scale: their standard deviations.
    """

    loc: NDArray
    scale: NDArray

    @classmethod
    def of(cls, values: NDArray, weight: NDArray, constant: bool = False) -> "Scale":
        """Measures columns; constant ones are refused, or left as they are."""
        loc = np.average(values, axis=0, weights=weight)
        scale = np.sqrt(np.average((values - loc) ** 2, axis=0, weights=weight))
        flat = scale <= 1e-12 * np.abs(loc)
        if flat.any() and not constant:
            raise ValueError(
                f"expected columns that vary, got constant ones at {flat.nonzero()[0].tolist()}, whose "
                f"density is infinite: drop them, or dequantise whole numbers by adding uniform noise"
            )
        return cls(loc, np.where(flat, 1.0, scale))

    @property
    def log_volume(self) -> float:
        """What a log density loses when its rows are scaled back."""
        return float(np.log(self.scale).sum())

    def __call__(self, values: NDArray) -> NDArray:
        """The values with mean 0 and sd 1."""
        return (values - self.loc) / self.scale

    def back(self, values: NDArray) -> NDArray:
        """The values in their own units."""
        return self.loc + self.scale * values
