"""Normalizing flows for Pyro: guides, priors and densities that are right by default."""

from . import bijectors, flows, infer, transforms
from .check import check_bijector, check_transform
from .distributions import FlowDistribution
from .fit import fit
from .guides import AutoFlow
from .infer import CompiledTrace_ELBO, log_joint
from .posterior import Posterior
from .priors import FlowPrior

__version__ = "0.1.0"

__all__ = [
    "AutoFlow",
    "CompiledTrace_ELBO",
    "FlowDistribution",
    "FlowPrior",
    "Posterior",
    "bijectors",
    "check_bijector",
    "check_transform",
    "fit",
    "flows",
    "infer",
    "log_joint",
    "transforms",
]
