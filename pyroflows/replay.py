"""A model run at many draws of its latents: derived values, likelihoods of the data, predictions."""

from collections.abc import Callable, Iterable

import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.distributions import Delta, MaskedDistribution
from pyro.infer import Predictive
from torch import Tensor

from .infer import LogJoint
from .infer.log_joint import in_precision
from .latents import Model

# Rows that vmap runs at once: with many observations one likelihood a row and datum would fill the memory.
ROWS = 1000

Plates = tuple[str | None, ...]


class Replay:
    """Runs a model at draws of its latents, many at once by vmap, or one by one where the model cannot be vmapped.

    Args:
        log_joint: the model, its arguments and its latents.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyroflows.infer import log_joint
        >>> def model():
        ...     log_scale = pyro.sample("log_scale", dist.Normal(0.0, 1.0))
        ...     pyro.deterministic("scale", log_scale.exp())
        >>> Replay(log_joint(model)).derived(torch.zeros(3, 1))
        {'scale': tensor([1., 1., 1.])}
    """

    def __init__(self, log_joint: LogJoint) -> None:
        self.log_joint = log_joint
        with torch.no_grad(), pyro.validation_enabled(False):
            nodes = self._trace(log_joint.space.start).nodes
        #: Plates of each derived site, by name.
        self.plates: dict[str, Plates] = {
            name: _plates_of_derived(node) for name, node in nodes.items() if is_derived(node)
        }
        self._shapes = {name: node["value"].shape for name, node in nodes.items() if node["type"] == "sample"}

    def derived(self, z: Tensor) -> dict[str, Tensor]:
        """Values of the derived sites at vectors ``(S, D)``, of shape ``(S, *site.shape)``."""
        if not self.plates:
            return {}
        found = self._map(lambda trace: {name: trace.nodes[name]["value"] for name in self.plates}, z)
        return in_precision(found, z.dtype)

    def log_likelihood(self, z: Tensor, sites: list[str]) -> dict[str, NDArray]:
        """Log density of each datum of observed sites at vectors ``(S, D)``, of shape ``(S, *batch_shape)``."""

        def read(trace: poutine.Trace) -> dict[str, Tensor]:
            trace.compute_log_prob(lambda name, _: name in sites)
            return {name: trace.nodes[name]["log_prob"] for name in sites}

        return {name: value.cpu().numpy() for name, value in self._map(read, z).items()}

    def predictive(self, draws: dict[str, Tensor] | int, sites: list[str]) -> dict[str, NDArray]:
        """New values of sites, observed ones included, by Pyro's ``Predictive``.

        Args:
            draws: values ``(S, *site.shape)`` of the latents, or how many draws of the prior.
            sites: the sites to return, of shape ``(S, *site.shape)``.

        Raises:
            ValueError: if the prior of a site cannot be sampled.
        """
        draws = in_precision(draws, self.log_joint.dtype)
        source = {"num_samples": draws} if isinstance(draws, int) else {"posterior_samples": draws}
        count = draws if isinstance(draws, int) else len(next(iter(draws.values())))
        model = unobserved(self.log_joint.model, [name for name in sites if name not in self.plates])
        simulate = Predictive(model, return_sites=sites, **source)
        with pyro.validation_enabled(False), poutine.block():
            try:
                found = simulate(*self.log_joint.args, **self.log_joint.kwargs)
            except NotImplementedError as error:
                raise ValueError(
                    f"expected sites that can be sampled, got one that cannot ({error}): ask for no predictions"
                ) from error
        return {name: found[name].reshape(count, *self._shapes[name]).cpu().numpy() for name in sites}

    def _map(self, read: Callable[[poutine.Trace], dict[str, Tensor]], z: Tensor) -> dict[str, Tensor]:
        def one(row: Tensor) -> dict[str, Tensor]:
            return read(self._trace(row))

        with torch.no_grad(), pyro.validation_enabled(False):
            try:
                return torch.func.vmap(one, randomness="same", chunk_size=ROWS)(z)
            except RuntimeError:  # the log joint has warned of such a model
                found = [one(row) for row in z]
                return {name: torch.stack([values[name] for values in found]) for name in found[0]}

    def _trace(self, row: Tensor) -> poutine.Trace:
        return self.log_joint.trace(self.log_joint.constrain(row))


def unobserved(model: Model, sites: Iterable[str]) -> Model:
    """The model with some observed sites sampled instead."""
    # Pyro's own uncondition draws deterministic sites again too, in another shape inside plates.
    return poutine.condition(model, data=dict.fromkeys(sites))


def is_derived(node: dict) -> bool:
    """Whether a site of a trace holds a value computed from others: ``pyro.deterministic``, reparameterised sites."""
    if node["type"] != "sample" or not node["is_observed"]:
        return False
    fn = node["fn"]
    return isinstance(fn, MaskedDistribution) and isinstance(fn.base_dist, Delta)


def _plates_of_derived(node: dict) -> Plates:
    """Plates over the leading dimensions of a deterministic site, whose event, unless given, is all of its value."""
    frames = {frame.dim: frame for frame in node["cond_indep_stack"] if frame.vectorized}
    shape, depth = node["value"].shape, -min(frames, default=0)
    outer = shape[:depth]
    if len(outer) < depth or any(outer[dim] not in (1, frame.size) for dim, frame in frames.items()):
        return ()
    return tuple(frames[dim].name if dim in frames else None for dim in range(-depth, 0))
