"""Recipes: whole flows by name, each a Compose that mixes every dimension; the identity at first, but for ``net=``."""

from .autoregressive import iaf, maf
from .bent import planar, radial, residual, sylvester
from .circular import ncsf
from .coupling import nice, realnvp, steady, with_tails
from .linear import full_rank
from .monotone import bnaf, bpf, flowpp, gaussianization, naf, sospf, unaf
from .spline import nsf
from .tables import copula, copula_with_dropout

__all__ = [
    "bnaf",
    "bpf",
    "copula",
    "copula_with_dropout",
    "flowpp",
    "full_rank",
    "gaussianization",
    "iaf",
    "maf",
    "naf",
    "ncsf",
    "nice",
    "nsf",
    "planar",
    "radial",
    "realnvp",
    "residual",
    "sospf",
    "steady",
    "sylvester",
    "unaf",
    "with_tails",
]
