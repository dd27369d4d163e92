"""The log likelihood of each row of the data, from observed sites and from factors that score rows."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Rows = frozenset[object]
# So many names make one name at most: a site for each row would make a long one.
NAMES = 5


def by_row(
    terms: Mapping[str, NDArray], rows: Mapping[str, Rows], data: Sequence[str], factors: Sequence[str]
) -> dict[str, NDArray]:
    """Log likelihoods in which each row has all its terms, for leave-one-out cross-validation.

    Without factors there is an array for each observed site. A factor in the plates of one observed site scores the
    same rows, and is added to it. With any other factor all terms become one array, named by all that is in it: terms
    in the same plates are added, those in other plates are further rows.

    Args:
        terms: log densities ``(S, *batch_shape)`` of ``S`` draws, by site.
        rows: what tells the plates of each site apart.
        data: the observed sites.
        factors: the factors that score rows.

    Example:
        >>> terms = {"t": np.array([[1.0, 2.0]]), "seen": np.array([[0.5, 0.0]]), "late": np.array([[4.0, 5.0, 6.0]])}
        >>> rows = {"t": frozenset("a"), "seen": frozenset("a"), "late": frozenset("b")}
        >>> by_row(terms, rows, ["t"], ["seen"])
        {'t': array([[1.5, 2. ]])}
        >>> by_row(terms, rows, ["t"], ["late"])
        {'t + late': array([[1., 2., 4., 5., 6.]])}
    """
    groups: dict[Rows, list[str]] = {}
    for name in [*data, *factors]:
        groups.setdefault(rows[name], []).append(name)
    if all(sum(name in data for name in groups[rows[factor]]) == 1 for factor in factors):
        added = {name: [factor for factor in factors if rows[factor] == rows[name]] for name in data}
        return {name: sum((terms[factor] for factor in added[name]), terms[name]) for name in data}
    totals = [sum(terms[name] for name in names) for names in groups.values()]
    flat = totals if len(totals) == 1 else [total.reshape(len(total), -1) for total in totals]
    return {_joined([*data, *factors]): np.concatenate(flat, axis=1) if len(flat) > 1 else flat[0]}


def _joined(names: Sequence[str]) -> str:
    """One name for several, of which the first few are said."""
    shown = [*names] if len(names) <= NAMES else [*names[: NAMES - 1], f"{len(names) - NAMES + 1} more"]
    return " + ".join(shown)


def scores_rows(factor: str, rows: Mapping[str, Rows], data: Sequence[str], latents: Sequence[str]) -> bool:
    """Whether a factor stands in plates of rows: those of data, or plates of its own without latents in them."""
    own = rows[factor]
    shared = {rows[name] for name in data}
    return own in shared or (bool(own) and own not in {rows[name] for name in latents})


def warn_of_factors(terms: Mapping[str, NDArray]) -> None:
    """Warns of factors that no row has, by their log densities ``(S, ...)``, unless they are the same at all draws."""
    named = [repr(name) for name, values in terms.items() if np.ptp(values.reshape(len(values), -1), axis=0).any()]
    if named:
        warnings.warn(
            f"expected factors in a plate of the rows that they score, got {', '.join(named)} in none: left out of "
            f"log_likelihood, so that arviz.loo does not see what they say of data. Compute them for each row inside "
            f"pyro.plate, or ignore this for a factor of the prior",
            stacklevel=4,
        )
