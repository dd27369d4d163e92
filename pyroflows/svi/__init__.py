"""Pyro's SVI with steps that are one graph."""

from .compiled_elbo import CompiledTrace_ELBO
from .compiled_svi import CompiledSVI
from .flow_elbo import FlowELBO

__all__ = [
    "CompiledSVI",
    "CompiledTrace_ELBO",
    "FlowELBO",
]
