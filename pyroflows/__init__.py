"""Normalizing flows for Pyro: guides, priors and densities that are right by default."""

from . import bijectors, flows, infer, transforms
from .calibrate import Calibration, calibrate
from .check import check_bijector, check_transform
from .distributions import FlowDistribution
from .fit import fit
from .guides import AutoFlow
from .infer import CompiledSVI, CompiledTrace_ELBO, log_joint
from .posterior import Posterior
from .refine import Refined

__version__ = "0.1.0"

__all__ = [
    "AutoFlow",
    "Calibration",
    "CompiledSVI",
    "CompiledTrace_ELBO",
    "FlowDistribution",
    "Posterior",
    "Refined",
    "bijectors",
    "calibrate",
    "check_bijector",
    "check_transform",
    "fit",
    "flows",
    "infer",
    "log_joint",
    "transforms",
]
