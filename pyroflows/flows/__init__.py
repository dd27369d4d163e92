"""Recipes: whole flows by name, each a Compose that mixes every dimension; the identity at first, but for ``net=``."""

from .autoregressive import iaf, maf
from .circular import ncsf
from .coupling import nice, realnvp, steady, with_tails
from .linear import full_rank
from .spline import nsf
from .tables import copula, copula_with_dropout

__all__ = [
    "copula",
    "copula_with_dropout",
    "full_rank",
    "iaf",
    "maf",
    "ncsf",
    "nice",
    "nsf",
    "realnvp",
    "steady",
    "with_tails",
]
