"""Guides: a flow over a model's latents, an amortised one, where they start, what they are for later."""

from .auto_flow import AutoFlow
from .encoder import FlowEncoder
from .guide_prior import GuidePrior
from .init import init_to_origin, init_to_prior
from .plates.plate_flow import AutoPlateFlow

__all__ = [
    "AutoFlow",
    "AutoPlateFlow",
    "FlowEncoder",
    "GuidePrior",
    "init_to_origin",
    "init_to_prior",
]
