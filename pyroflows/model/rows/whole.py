"""All latents of a model with rows as one vector, those of rows that a run does not see too."""

import torch

from ..latent_space import LatentSpace, Site
from .structure import Structure


def whole_space(structure: Structure, dtype: torch.dtype | None) -> LatentSpace:
    """Globals, then the rows' sites, each with all its rows, at the globals' start and rows of zeros.

    Args:
        structure: the latents.
        dtype: what the model is computed in, None for what its sites are in.
    """
    values, start = structure.outer.constrain(structure.outer.start)[0], structure.outer.size
    zeros = structure.outer.start.new_zeros(structure.rows, structure.width)
    sites = list(structure.outer.sites)
    for site in structure.inner:
        values[site.name] = site.place(zeros)[0]
        shape, kind = values[site.name].shape, dtype or site.dtype
        sites.append(Site(site.name, site.support, shape, site.event_dim, site.plates, start, kind))
        start = sites[-1].stop
    return LatentSpace(sites, values)
