"""From a flow that is nearly right to draws that are right: reweighting, resampling and Markov chains."""

from collections.abc import Callable
from types import MappingProxyType

from ...guides import AutoFlow
from ...model import LogJoint
from .chains import imh, neutra
from .refined import Refined
from .weights import importance, resample

METHODS: MappingProxyType[str, Callable[..., Refined]] = MappingProxyType(
    {"importance": importance, "resample": resample, "imh": imh, "neutra": neutra}
)


def refine(method: str, guide: AutoFlow, log_joint: LogJoint, **options: object) -> Refined:
    """Corrects the draws of a guide; see :meth:`pyroflows.Posterior.refine`.

    Raises:
        ValueError: if the method is unknown, or the log joint is of a minibatch.
        TypeError: if the method does not take an option.
    """
    if method not in METHODS:
        raise ValueError(f"expected a method among {', '.join(map(repr, METHODS))}, got {method!r}")
    if log_joint.minibatch:
        raise ValueError(
            "expected a log joint of all the data, got one of a minibatch: refine "
            "Posterior(posterior.guide, log_joint(model_of_all_rows, ...), posterior.history)"
        )
    return METHODS[method](guide, log_joint, **options)


__all__ = ["METHODS", "Refined", "imh", "importance", "neutra", "refine", "resample"]
