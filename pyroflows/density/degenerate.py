"""Rows of numbers that have no density: constant columns, values that come again and again, dependent columns."""

import numpy as np
from numpy.typing import NDArray

Name = int | str
Names = list[Name]

# A value that so large a share of the rows have is taken for an atom, if these are so many rows, and so many for one of
# the other values (all values of rounded columns come again).
SHARE, FEW, OFTEN = 0.1, 12, 10
# Columns with so few distinct values, each had by so many rows on average, are taken for categories.
LEVELS, COPIES = 20, 12
# What is left of a column's sd after a regression on the others, where these determine it.
LEFT = 1e-6


def check_density(values: NDArray, context: NDArray, names: Names, degenerate: str = "raise") -> None:
    """Raises unless rows ``(N, D)`` can have a density, given contexts ``(N, C)``.

    Rounded numbers pass where they have many values. With ``degenerate="allow"`` only constant columns are refused.

    Raises:
        ValueError: naming the columns at fault and what to do.
    """
    if degenerate not in ("raise", "allow"):
        raise ValueError(f"FlowDensity expected degenerate='raise' or 'allow', got {degenerate!r}")
    _check_constant(values, names)
    if degenerate == "raise":
        _check_atoms(values, names)
        _check_copies(values)
        _check_dependent(values, context, names)


def _check_atoms(values: NDArray, names: Names) -> None:
    """Raises if values come again and again."""
    at = [i for i, column in enumerate(values.T) if _is_atomic(column)]
    if at:
        found = repeated(values[:, at], [names[i] for i in at], 0)
        raise ValueError(
            f"expected columns of continuous numbers, got values that come again and again: {', '.join(found)}. "
            f"Their density is infinite: dequantise whole or rounded numbers by uniform noise as wide as their steps "
            f"(pyroflows.vae.dequantise), take categories as a context, leave out rows at a limit (such as zero); or "
            f"go on with degenerate='allow'"
        )


def _check_constant(values: NDArray, names: Names) -> None:
    """Raises a ValueError if a column has one value only."""
    flat = [name for name, same in zip(names, np.ptp(values, axis=0) == 0, strict=True) if same]
    if flat:
        raise ValueError(
            f"expected columns that vary, got constant ones at {flat}, whose density is infinite: drop them, or "
            f"dequantise whole numbers by adding uniform noise"
        )


def repeated(values: NDArray, names: Names, least: float) -> list[str]:
    """A sentence for each column in which one value is that of more than a share of the rows."""
    found = []
    for name, column in zip(names, values.T, strict=True):
        value, count, _ = _top(column)
        if count >= max(least * len(column), FEW):
            found.append(f"column {name!r} is {value:g} in {count} of {len(column)} rows")
    return found


def _top(column: NDArray) -> tuple[float, int, int]:
    """The most frequent value, how many rows have it, and the number of distinct values."""
    distinct, count = np.unique(column, return_counts=True)
    return distinct[count.argmax()], count.max(), len(distinct)


def _is_atomic(column: NDArray) -> bool:
    _, count, distinct = _top(column)
    rows = len(column)
    if distinct <= LEVELS and rows >= COPIES * distinct:
        return True
    often = (column == column.round()).all() or count * (distinct - 1) >= OFTEN * (rows - count)
    return bool(often) and count >= max(SHARE * rows, FEW)


def _check_copies(values: NDArray) -> None:
    """Raises if whole rows are there several times, though their columns are not rounded."""
    if values.shape[1] == 1:
        return  # then copies and rounding look alike
    distinct = len(np.unique(values, axis=0))
    if len(values) >= COPIES / 2 * distinct and distinct <= 1.05 * max(len(np.unique(c)) for c in values.T):
        raise ValueError(
            f"expected rows that differ, got {distinct} distinct ones among {len(values)}: the density of copies is "
            f"infinite, and rows held out are no test of it; keep one of each, with its number as sample_weight"
        )


def _check_dependent(values: NDArray, context: NDArray, names: Names) -> None:
    """Raises if columns are linear combinations of others or of the contexts, but for rounding."""
    from scipy.linalg import qr, solve_triangular  # comes with scikit-learn

    whole, limit = _standard(values), LEFT + _rounding(values)
    order = np.abs(whole).max(1).argsort(kind="stable")
    # Rows far out would hide what depends on what. So few rows as scikit-learn's own checks have say nothing.
    near = order[: max(len(values) // 2, min(len(values), max(2 * (values.shape[1] + context.shape[1]), 20)))]
    if len(near) < values.shape[1] + context.shape[1] + 2:
        return  # so few rows always lie on a plane
    rows = whole[near] - whole[near].mean(0)
    size = np.linalg.norm(rows, axis=0)
    given = np.hstack([_standard(context), np.ones((len(values), 1))])[near]
    rows = (rows - given @ np.linalg.lstsq(given, rows, rcond=None)[0]) / np.where(size > 0, size, 1)
    known = [name for name, left, least in zip(names, np.linalg.norm(rows, axis=0), limit, strict=True) if left < least]
    if known:
        raise ValueError(
            f"expected columns that the context does not determine, got {known}, linear combinations of its "
            f"columns: their density is infinite; drop them, or go on with degenerate='allow'"
        )
    _, triangle, order = qr(rows, mode="economic", pivoting=True)
    rank = int((np.abs(triangle.diagonal()) >= limit[order]).sum())
    if rank < len(names):
        part = solve_triangular(triangle[:rank, :rank], triangle[:rank, rank])
        group = sorted([order[rank], *order[:rank][np.abs(part) > 1e-3]])
        raise ValueError(
            f"expected columns of which none is a linear combination of others, got {[names[i] for i in group]}, "
            f"which are dependent, as copies, sums or shares that add up to 1 are: their density is infinite. Drop one "
            f"of them (of shares, take the logits or log ratios to one left out); or go on with degenerate='allow'"
        )


def _standard(values: NDArray) -> NDArray:
    """Columns scaled by their quantiles, on which rows far out have no influence."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    spread = high - low
    return (values - middle) / np.where(spread > 0, spread, np.abs(values - middle).max(0, initial=1e-300))


def _rounding(values: NDArray) -> NDArray:
    """The rounding error of each column, in its standardised units."""
    with np.errstate(over="ignore"):
        kind = np.float32 if (values.astype(np.float32) == values).all() else np.float64
    spread = np.subtract(*np.quantile(values, [0.75, 0.25], axis=0))
    return 4 * np.finfo(kind).eps * np.abs(np.median(values, axis=0)) / np.where(spread > 0, spread, np.inf)
