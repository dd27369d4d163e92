"""A Pyro model as a density: its sites, its latents as one vector, its log joint, its runs at draws."""

from .all_rows import AllRows
from .latent_space import LatentSpace
from .log_joint import LogJoint
from .plates import Choice, Plates
from .sites import Model

__all__ = [
    "AllRows",
    "Choice",
    "LatentSpace",
    "LogJoint",
    "Model",
    "Plates",
]
