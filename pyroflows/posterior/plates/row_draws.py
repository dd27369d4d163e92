"""Draws of rows, of all or of some, as the guide has them or picked by their weights."""

import torch
from torch import Tensor

from ...guides import AutoPlateFlow
from ...guides.plates.row_form import RowForm
from ...model.rows import RowJoint
from .row_weights import AT_ONCE, scored


@torch.no_grad()
def drawn(guide: AutoPlateFlow, joint: RowJoint, g: Tensor, rows: Tensor, each: int) -> Tensor:
    """Draws of rows, so many for each of the globals one after the other, ``(S each, rows, d)``.

    Args:
        guide: draws them.
        joint: the model.
        g: globals, ``(S, Dg)``.
        rows: which rows.
        each: how many for each of the globals.
    """
    found = g.new_empty(len(g), each, len(rows), joint.structure.width)
    size = max(1, AT_ONCE // joint.numbers)
    for some in joint.passes:
        here, there = slice(None), rows
        if some.index is not None:
            place = rows.new_full((joint.structure.rows,), -1)
            place[some.index] = torch.arange(len(some.index), device=rows.device)
            here = (place[rows] >= 0).nonzero()[:, 0]
            there = place[rows][here]
        for first in range(0, len(g) if len(there) else 0, size):
            part = slice(first, first + size)
            form = guide.form.at(guide.given(joint, g[part], some.index)).of(there).many()
            noise = torch.randn(len(g[part]), each, *form.mean.shape[2:]).to(form.mean)
            found[part, :, here] = form.draw(noise)
    return found.flatten(0, 1)


@torch.no_grad()
def picked(guide: AutoPlateFlow, joint: RowJoint, g: Tensor, each: int, form: RowForm | None = None) -> Tensor:
    """Of each row one of so many draws by its weight, at globals ``(S, Dg)``; ``(S, R, d)``.

    Other rows than the guide's have another form.
    """
    parts = []
    for part in g.split(max(1, AT_ONCE // (each * joint.numbers))):
        found = part.new_empty(len(part), joint.structure.rows, joint.structure.width)
        for some, z, log_w, _ in scored(guide, joint, part, each, form):
            noise = -torch.empty_like(log_w).exponential_().log()  # the largest of log weights and such noise is a pick
            best = (log_w + noise).argmax(1)[:, None, :, None].expand(-1, 1, -1, z.shape[-1])
            found[:, slice(None) if some.index is None else some.index] = z.gather(1, best)[:, 0]
        parts.append(found)
    return torch.cat(parts)
