"""The ELBO of a Pyro model and guide as a function of tensors that can be traced."""

import math
from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer.enum import get_importance_trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import Distribution

from ..compile import Untraceable
from ..compile.changes import Watch
from ..compile.signature import functions_in, replace_tensors, tensors_in
from ..distributions import FlowDistribution
from ..model.vmap_rules import Batched, traceable
from ..seeds import generators, rewind


class Particles:
    """The negative ELBO over particles that are batched by vmap, for the arguments of one signature.

    Made by a plain run of guide and model under the user's validation, which initialises lazy parameters and shows
    which sites there are. It leaves the modules' buffers as they were, and the random generator as well unless
    parameters were drawn, so that the first step's noise is not what they were made of.

    Args:
        model: a Pyro model.
        guide: its guide.
        args: their arguments.
        kwargs: their keyword arguments.
        num_particles: how many draws.

    Raises:
        Untraceable: if a latent of the guide is not reparameterised.
        ValueError: if a site is enumerated.
    """

    def __init__(self, model: Callable, guide: Callable, args: tuple, kwargs: dict, num_particles: int) -> None:
        self._pair, self._arguments, self._num_particles = (model, guide), (args, kwargs), num_particles
        roots = (model, guide, *functions_in((args, kwargs)))
        modules, start = Watch(*roots).modules, generators()
        known = _parameters(modules)
        traces = self._run_plainly(modules)
        modules = Watch(*roots).modules
        if _parameters(modules) == known:
            rewind(start)
        else:
            end = generators()
            rewind(start)
            traces = self._run_plainly(modules)
            drawn = not all(map(torch.equal, end, generators()))
            rewind(end if drawn else start)
        _check(*traces)

    def _run_plainly(self, modules: list[nn.Module]) -> tuple[poutine.Trace, poutine.Trace]:
        buffers = [b for module in modules for b in module._buffers.values() if b is not None]
        values, shared = [b.clone() for b in buffers], _Shared()
        with torch.no_grad(), poutine.block(), shared:
            with poutine.trace(param_only=True) as found:
                traces = get_importance_trace("flat", math.inf, *self._pair, *self._arguments)
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)
        self.params, self._plates = list(found.trace.nodes.values()), shared.plates
        return traces

    def forget_tensors(self) -> None:
        """Lets go of the arguments' tensors, which each call brings anew."""
        tensors = [torch.empty_like(t, device="meta") for t in tensors_in(self._arguments)]
        self._arguments = replace_tensors(self._arguments, iter(tensors))

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The loss, a scalar, with the arguments' tensors replaced by ``inputs``."""
        draws = {name: plate.sample() for name, plate in self._plates.items()}
        args, kwargs = replace_tensors(self._arguments, iter(inputs))
        if self._num_particles == 1:
            return -self._elbo(draws, args, kwargs)

        def one(particle: Tensor) -> Tensor:
            with Batched(particle):
                return self._elbo(draws, args, kwargs)

        return -torch.func.vmap(one, randomness="different")(torch.zeros(self._num_particles)).mean()

    def _elbo(self, draws: dict[str, Tensor], args: tuple, kwargs: dict) -> Tensor:
        """One particle's ``log p - log q``."""
        with pyro.validation_enabled(False), poutine.block(), _Shared(draws):  # validation branches on values
            model, guide = get_importance_trace("flat", math.inf, *self._pair, args, kwargs)
        _check(model, guide)
        log_p = sum(node["log_prob_sum"] for node in model.nodes.values() if node["type"] == "sample")
        log_q = sum(_entropy(node) for node in guide.nodes.values() if node["type"] == "sample")
        return torch.as_tensor(log_p - log_q)


class _Shared(Messenger):
    """Gives plates their indices, the same for all particles, and scores a flow's draw while drawing it.

    Args:
        draws: indices by plate; None in a plain run, which only notes the plates.
    """

    def __init__(self, draws: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self._draws = draws
        self.plates: dict[str, _Subsample] = {}

    def _pyro_sample(self, msg: dict) -> None:
        if self._draws is not None and isinstance(msg["fn"], Distribution):
            msg["fn"] = traceable(msg["fn"])
        fn = msg["fn"]
        if msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        if isinstance(fn, _Subsample) and fn.subsample_size is not None and fn.subsample_size < fn.size:
            self.plates[msg["name"]] = fn
            if msg["name"] in (self._draws or ()):
                msg["value"], msg["done"] = self._draws[msg["name"]], True
        if isinstance(fn, FlowDistribution) and fn.has_rsample and not msg["args"] and not msg["kwargs"]:
            # Pyro scores later, by the inverse of the flow.
            msg["value"], parts = fn.rsample_and_score_parts()
            parts = parts.scale_and_mask(msg["scale"], msg["mask"])
            msg["score_parts"], msg["log_prob"], msg["done"] = parts, parts.log_prob, True
            msg["log_prob_sum"] = parts.log_prob.sum()


def _parameters(modules: list[nn.Module]) -> set[tuple[int, type]]:
    """The parameters of modules and in Pyro's store; a lazy one changes its type."""
    held = [p for module in modules for p in module._parameters.values()]
    return {(id(p), type(p)) for p in (*held, *pyro.get_param_store()._params.values())}


def _entropy(node: dict) -> Tensor:
    """The log density of a guide's site, with the gradient that Pyro takes of it."""
    entropy = node["score_parts"].entropy_term
    return node["log_prob_sum"].detach() if is_identically_zero(entropy) else entropy.sum()


def _check(model: poutine.Trace, guide: poutine.Trace) -> None:
    for name, node in (*guide.nodes.items(), *model.nodes.items()):
        if node["type"] == "sample" and node["infer"].get("enumerate") and not node["is_observed"]:
            raise ValueError(
                f"CompiledTrace_ELBO expected no enumerated sites, got '{name}', which would be drawn at random: use "
                f"Pyro's TraceEnum_ELBO, or leave out infer={{'enumerate': ...}}"
            )
    for name, node in guide.nodes.items():
        if node["type"] == "sample" and not is_identically_zero(node["score_parts"].score_function):
            raise Untraceable(
                f"site '{name}' of the guide is not reparameterised ({type(node['fn']).__name__}): use a continuous "
                f"distribution with rsample, or Pyro's TraceGraph_ELBO"
            )
