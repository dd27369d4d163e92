"""What stands between Pyro's distributions and vmap: draws in place, validation, the Dirichlet's own function."""

import copy
from functools import partial
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode


class Batched(TorchFunctionMode):
    """Gives each particle memory of its own where it asks for some to be filled with random numbers in place.

    vmap refuses ``torch.empty(3).normal_()``, the way torch's distributions draw, as memory that does not depend
    on the particle is one for all.

    Args:
        particle: any tensor that vmap runs over.
    """

    def __init__(self, particle: Tensor) -> None:
        super().__init__()
        self._particle = particle

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.new and not kwargs and all(isinstance(size, int | tuple) for size in args[1:]):
            func = Tensor.new_empty
            args = (args[0], args[1] if isinstance(args[1:2] and args[1], tuple) else args[1:])
        if func is Tensor.clamp_:  # has no batching rule, and would be run for each particle
            return args[0].copy_(torch.clamp(*args, **kwargs))
        made = func(*args, **kwargs)
        if func in (torch.empty, torch.empty_like, Tensor.new_empty):
            return self._particle.new_empty(made.shape, dtype=made.dtype, device=made.device)
        return made


class Traceable(Messenger):
    """Runs a model with distributions that do not branch on values, also those that were made before it runs."""

    def _pyro_sample(self, msg: dict) -> None:
        if isinstance(msg["fn"], Distribution):
            msg["fn"] = traceable(msg["fn"])


def traceable(fn: Distribution) -> Distribution:
    """A distribution that can be traced: it does not branch on values even if it was made under validation."""
    parts = {key: traceable(value) for key, value in vars(fn).items() if isinstance(value, Distribution)}
    dirichlet = isinstance(fn, torch.distributions.Dirichlet)
    if not (fn._validate_args or dirichlet) and all(part is vars(fn)[key] for key, part in parts.items()):
        return fn
    twin = copy.copy(fn)
    vars(twin).update(parts, _validate_args=False)
    if dirichlet:
        twin.rsample = partial(_draw_dirichlet, twin)
    return twin


def _draw_dirichlet(fn: Distribution, sample_shape: tuple[int, ...] = ()) -> Tensor:
    """What ``Dirichlet.rsample`` draws, with its gradient; torch's own function is not made for vmap."""
    concentration = fn.concentration.expand(fn._extended_shape(torch.Size(sample_shape)))
    fixed = concentration.detach()
    draw = torch._sample_dirichlet(fixed)
    slope = _DirichletSlope.apply(draw, fixed)
    change = (concentration - fixed) * slope
    return draw + change - draw * change.sum(-1, True)


class _DirichletSlope(torch.autograd.Function):
    """The derivative of a Dirichlet's draw by its concentration, for all particles in one call."""

    @staticmethod
    def forward(draw: Tensor, concentration: Tensor) -> Tensor:
        return torch._dirichlet_grad(draw, concentration, concentration.sum(-1, True).expand_as(concentration))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Tensor) -> tuple[Tensor, int]:
        fronted = (t if d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims, strict=True))
        return _DirichletSlope.apply(*(t.contiguous() for t in torch.broadcast_tensors(*fronted))), 0
