"""The precision that a log joint and a guide's networks run in."""

from collections.abc import Callable

import torch

from ..guides import AutoFlow
from ..model import LatentSpace, LogJoint


def wide_log_joint(model: Callable, args: tuple, kwargs: dict, space: LatentSpace, precision: str) -> LogJoint:
    """The log joint, in double precision where that is wanted and the model can be run so."""
    own = LogJoint(model, args, kwargs, space)
    if precision == "single" or space.start.dtype == torch.float64:
        return own
    try:
        double = LogJoint(model, args, kwargs, space, dtype=torch.float64)
        z = double.space.start.detach()[None].requires_grad_()
        with torch.enable_grad():
            value = double.batch(z)
            torch.autograd.grad(value.sum(), z)  # which may fail where the value does not
    except (RuntimeError, TypeError, ValueError):  # the model holds tensors in single precision that do not mix
        return own
    return double if value.dtype == torch.float64 and value.isfinite().all() else own


def choose_precision(guide: AutoFlow, precision: str) -> None:
    """Networks in single precision, unless double is wanted or a base of the user's own is in double."""
    if precision == "mixed" and guide.base is None:
        for part in (guide.core[0], guide.core[-1].params):
            part.float()
    elif precision == "double":
        guide.transform.double()
        for base in guide.components:
            guide.base = base.to(torch.zeros((), dtype=torch.float64))
