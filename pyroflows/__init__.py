"""Normalizing flows for Pyro: guides, priors and densities that are right by default."""

from typing import TYPE_CHECKING, Any

from . import bijectors, flows, infer, transforms
from .distributions import FlowDistribution
from .fitting.calibrate import calibrate
from .fitting.calibration import Calibration
from .fitting.fit import fit
from .guides import AutoFlow, AutoPlateFlow, FlowEncoder, GuidePrior
from .laws import check_bijector, check_transform
from .model.log_joint import log_joint
from .posterior import PlatePosterior, Posterior, Refined
from .svi import CompiledSVI, CompiledTrace_ELBO, FlowELBO
from .vae import VAE, FlowPrior, NormalPrior

if TYPE_CHECKING:
    from .density import FlowDensity as FlowDensity  # not in __all__, as it needs scikit-learn

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "AutoFlow",
    "AutoPlateFlow",
    "Calibration",
    "CompiledSVI",
    "CompiledTrace_ELBO",
    "FlowDistribution",
    "FlowELBO",
    "FlowEncoder",
    "FlowPrior",
    "GuidePrior",
    "NormalPrior",
    "PlatePosterior",
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
