"""The sites of a model's runs: latents, data, values fixed from outside, derived values, factors; and their plates."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from pyro import poutine
from pyro.distributions import Delta, ExpandedDistribution, Independent, MaskedDistribution, Unit
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.messenger import Messenger, block_messengers
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, biject_to

from .given_rows import GivenRows

Plates = tuple[str | None, ...]
Values = Mapping[str, Tensor]
FREE: Values = MappingProxyType({})
Model = Callable[..., object]


def is_derived(node: dict) -> bool:
    """Whether a site of a trace holds a value computed from others: ``pyro.deterministic``, reparameterised sites."""
    if node["type"] != "sample" or not node["is_observed"]:
        return False
    fn = node["fn"]
    return isinstance(fn, MaskedDistribution) and isinstance(fn.base_dist, Delta)


def is_factor(node: dict) -> bool:
    """Whether a site of a trace is a ``pyro.factor``."""
    return node["type"] == "sample" and isinstance(innermost(node["fn"]), Unit)


def rows_of(node: dict) -> frozenset[object]:
    """What tells the plates of a site apart, with the turn in those that are gone through by ``for``."""
    return frozenset((frame.name, None if frame.vectorized else frame.counter) for frame in node["cond_indep_stack"])


def is_given(node: dict) -> bool:
    """Whether a site has a value from outside: not a derived one, nor that of a factor, which is empty."""
    if node["type"] != "sample" or not node["is_observed"] or is_derived(node):
        return False
    return isinstance(node["value"], Tensor) and node["value"].numel() > 0


def is_fixed(message: dict, around: Messenger) -> bool:
    """Whether a handler between the model and the handler ``around`` conditions the site of a message."""
    handlers: list[Messenger] = []
    with block_messengers(handlers.append):  # which blocks none: it is asked about each, and told nothing
        inner = handlers[handlers.index(around) + 1 :]
    return message["is_observed"] and any(
        isinstance(handler, ConditionMessenger) and message["name"] in handler.data for handler in inner
    )


def plates_of_derived(node: dict) -> Plates:
    """Plates over the leading dimensions of a deterministic site, whose event, unless given, is all of its value."""
    frames = {frame.dim: frame for frame in node["cond_indep_stack"] if frame.vectorized}
    shape, depth = node["value"].shape, -min(frames, default=0)
    outer = shape[:depth]
    if len(outer) < depth or any(outer[dim] not in (1, frame.size) for dim, frame in frames.items()):
        return ()
    return tuple(frames[dim].name if dim in frames else None for dim in range(-depth, 0))


class _Noting(Messenger):
    """Notes which sites handlers between the model and this one condition."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed: set[str] = set()

    def _pyro_sample(self, message: dict) -> None:
        if is_fixed(message, self):
            self.fixed.add(message["name"])


def data_sites(model: Model, args: tuple, kwargs: dict, points: Sequence[Values] = (FREE, FREE)) -> list[str]:
    """Names of the sites that hold data.

    These are the sites that the model observes itself, by ``obs=``. What a handler around it conditions is fixed, and
    no datum. Only where the model observes nothing itself, data came in that way: they are the conditioned sites whose
    density depends on the latents.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        points: values of the latents by name at two points; by default two draws of the prior.
    """
    noting = _Noting()
    first, second = (trace_of(GivenRows(point)(noting(model)), args, kwargs) for point in points)
    found = [name for name, node in first.nodes.items() if is_given(node) and name not in points[0]]
    own = [name for name in found if name not in noting.fixed]
    if own:
        return own
    for trace in (first, second):
        trace.compute_log_prob(lambda name, _: name in found)
    return [name for name in found if first.nodes[name]["log_prob_sum"] != second.nodes[name]["log_prob_sum"]]


def latent_nodes(trace: poutine.Trace) -> Iterator[tuple[str, dict]]:
    """The sample statements of a trace that are neither observed nor a plate's choice of rows."""
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not node["is_observed"] and not site_is_subsample(node):
            yield name, node


def trace_of(model: Model, args: tuple, kwargs: dict) -> poutine.Trace:
    """A run of a model, unseen by the handlers around it; data that ``obs_mask`` says are missing may be NaN."""
    return poutine.block(poutine.trace(Missing()(model)).get_trace)(*args, **kwargs)


class Missing(Messenger):
    """Puts numbers in the place of data of which ``obs_mask`` says that they are missing.

    They count for nothing, but where they are NaN or outside the support, as they may well be, so are gradients.
    """

    def _pyro_sample(self, msg: dict) -> None:
        fn, mask = msg["fn"], msg["mask"]
        known = msg["name"].endswith("_observed") and msg["is_observed"] and isinstance(mask, Tensor)
        if (
            known
            and isinstance(msg["value"], Tensor)
            and msg["value"].is_floating_point()
            and not fn.support.is_discrete
        ):
            transform = biject_to(fn.support)
            within = transform(msg["value"].new_zeros(transform.inverse_shape(fn.shape())))
            msg["value"] = torch.where(mask.reshape(mask.shape + (1,) * fn.event_dim), msg["value"], within)


def is_minibatch(node: dict) -> bool:
    """Whether a site of a trace stands in a plate of which only some rows were chosen."""
    return any(frame.full_size not in (None, frame.size) for frame in node.get("cond_indep_stack") or ())


def data_nodes(trace: poutine.Trace, latents: Container[str], minibatch: bool) -> dict[str, dict]:
    """The sites of a trace that hold data, all of them where runs see minibatches, without those of some names."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if name not in latents
        and node.get("is_observed")
        and not node["infer"].get("_deterministic")
        and isinstance(node["value"], Tensor)
        and node["value"].numel() > 0
        and not (minibatch and is_minibatch(node))
    }


def innermost(fn: Distribution) -> Distribution:
    """The distribution under masks, expansions and event dimensions."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def plates_of(node: dict) -> tuple[str | None, ...]:
    """Names of the plates over each batch dimension of a value, from the left."""
    names = {frame.dim: frame.name for frame in node["cond_indep_stack"] if frame.vectorized}
    batch_dim = node["value"].dim() - node["fn"].event_dim
    return tuple(names.get(dim) for dim in range(-batch_dim, 0))
