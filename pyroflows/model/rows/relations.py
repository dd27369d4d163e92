"""Who depends on whom among the sites of a model with rows."""

from dataclasses import dataclass

from pyro import poutine
from pyro.infer.inspect import get_model_relations

from ...seeds import seed_of, seeded
from .row_joint import RowJoint


@dataclass(frozen=True)
class Related:
    """A site among the others.

    Args:
        name: of the site.
        kind: ``"global"``, ``"row"`` for a latent of the rows, or ``"data"``.
        size: how many numbers it has, for the rows' sites those of one row; zero for data.
        parents: names of the sites that its density depends on by themselves.
        plates: names of the plates around it, outermost first.
    """

    name: str
    kind: str
    size: int
    parents: tuple[str, ...]
    plates: tuple[str, ...]


def related(joint: RowJoint) -> tuple[list[Related], dict[str, int]]:
    """The sites in the order of the model, and the number of rows of each plate, by Pyro's tracking of provenance."""
    structure, runs = joint.structure, joint.runs
    values, *_ = structure.values(*joint.start)
    model = poutine.condition(runs.model, data=values)
    with runs.settings(), poutine.block(), seeded(seed_of("relations"), joint.start[0].device):
        found = get_model_relations(model, runs.args, runs.kwargs)
        nodes = poutine.trace(model).get_trace(*runs.args, **runs.kwargs).nodes
    kinds = {site.name: ("global", site.size) for site in structure.outer.sites}
    kinds |= {site.name: ("row", site.size) for site in structure.inner}
    sites, sizes = [], {}
    for name, parents in found["sample_sample"].items():
        if found["sample_dist"][name] in ("Deterministic", "Unit"):
            continue
        frames = nodes[name]["cond_indep_stack"]
        sizes |= {f.name: int(f.size if f.full_size is None else f.full_size) for f in frames}
        plates = tuple(f.name for f in sorted(frames, key=lambda f: f.dim or 0))
        sites.append(Related(name, *kinds.get(name, ("data", 0)), tuple(parents), plates))
    return sites, sizes
