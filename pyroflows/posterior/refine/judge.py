"""A second look at weights that spread, before they are called usable."""

from collections.abc import Callable, Mapping

from torch import Tensor

from ...guides import AutoFlow
from ...model import LogJoint
from ...seeds import seed_of, seeded
from ..importance_diagnostics import Diagnostics
from ..scalars import open_scalars
from .refined import propose

# Draws of the second look. The k-hat of 4000 can be 0.2 too small, and with it the error of what they weigh.
MANY = 20_000


def look_again(
    found: Diagnostics, guide: AutoFlow, log_joint: LogJoint, values: Callable[[Tensor], Mapping[str, Tensor]]
) -> Diagnostics:
    """What weights are worth after a look at more draws of the guide; as it was where that does not matter.

    It does where draws are good or usable by their weights only, and there were fewer of them. A model that runs one by
    one is looked at with as many as before, since more would take longer than the fit.

    Args:
        found: what the weights themselves say.
        guide: proposes the draws.
        log_joint: the model's log joint density.
        values: maps vectors ``(S, D)`` to the values of the sites whose tails are looked at.
    """
    if found.close or found.grade == "do not trust" or found.draws >= MANY:
        return found
    with seeded(seed_of("the second look at a posterior"), guide.device):
        z, log_w = propose(guide, log_joint, found.draws if log_joint.one_by_one else MANY)
    scalars = open_scalars(log_joint.space, values(z)) if found.heavy else {}
    scalars = {label: scalars[label] for label in found.heavy if label in scalars}
    return found.after(Diagnostics.of(log_w, weighted=found.weighted, scalars=scalars)[0])
