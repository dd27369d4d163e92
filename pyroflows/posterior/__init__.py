"""What a fit gives: draws, how good they are, tables, plots and files."""

from .chain_diagnostics import ChainDiagnostics
from .draws import Draws
from .importance_diagnostics import Diagnostics
from .plates.plate_diagnostics import PlateDiagnostics
from .plates.plate_posterior import PlatePosterior
from .posterior import Posterior
from .refine import Refined

__all__ = [
    "ChainDiagnostics",
    "Diagnostics",
    "Draws",
    "PlateDiagnostics",
    "PlatePosterior",
    "Posterior",
    "Refined",
]
