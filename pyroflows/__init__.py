"""Normalizing flows for Pyro: guides, priors and densities that are right by default."""

from typing import TYPE_CHECKING, Any

from . import bijectors, flows, infer, transforms
from .calibrate import Calibration, calibrate
from .check import check_bijector, check_transform
from .distributions import FlowDistribution
from .encoders import FlowEncoder
from .fit import fit
from .guide_prior import GuidePrior
from .guides import AutoFlow
from .infer import CompiledSVI, CompiledTrace_ELBO, log_joint
from .posterior import Posterior
from .priors import FlowPrior, NormalPrior
from .refine import Refined
from .vae import VAE

if TYPE_CHECKING:
    from .density import FlowDensity as FlowDensity  # not in __all__, as it needs scikit-learn

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "AutoFlow",
    "Calibration",
    "CompiledSVI",
    "CompiledTrace_ELBO",
    "FlowDistribution",
    "FlowEncoder",
    "FlowPrior",
    "GuidePrior",
    "NormalPrior",
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


def __getattr__(name: str) -> Any:
    """Imports ``FlowDensity`` when it is first asked for: it alone needs scikit-learn."""
    if name == "FlowDensity":
        from .density import FlowDensity

        return FlowDensity
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
