"""All latents of a model with rows as one vector, those of rows that a run does not see too."""

from ..latent_space import LatentSpace, Site
from .row_joint import RowJoint


def check_followed(joint: RowJoint) -> None:
    """Raises a ValueError if a model sees some rows only, and not those that are chosen."""
    structure = joint.structure
    if structure.is_subsampled and not joint.follows:
        raise ValueError(
            f"expected a model that indexes its data by the rows that plate {structure.plate!r} yields, y[rows], got "
            f"one that is passed those of {structure.seen} rows of {structure.rows}: pass it all data"
        )


def whole_space(joint: RowJoint) -> LatentSpace:
    """Globals, then the rows' sites, each with all its rows, at the globals' start and rows of zeros.

    Raises:
        ValueError: if the model sees some rows only, and not those that are chosen.
    """
    check_followed(joint)
    structure = joint.structure
    values, start = structure.outer.constrain(structure.outer.start)[0], structure.outer.size
    zeros = structure.outer.start.new_zeros(structure.rows, structure.width)
    sites = list(structure.outer.sites)
    for site in structure.inner:
        values[site.name] = site.place(zeros)[0]
        shape, kind = values[site.name].shape, joint.dtype or site.dtype
        sites.append(Site(site.name, site.support, shape, site.event_dim, site.plates, start, kind))
        start = sites[-1].stop
    return LatentSpace(sites, values)
