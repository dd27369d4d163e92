"""Transforms of torch and Pyro, and flows of zuko, as transforms of this library."""

import copy
import warnings
from collections.abc import Sequence

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Size, Tensor, nn
from torch.distributions import ComposeTransform, Distribution, Transform, biject_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import _InverseTransform

from .base import FlowTransform
from .domains import on_events

HELD = "held_"  # what the names of tensors of a transform that is no module start with


class Foreign(FlowTransform):
    """A transform of torch or Pyro, or a flow of zuko, as a part of a flow: registered, saved, moved, conditioned.

    It is evaluated afresh in each call: what such transforms remember of a call is neither used nor kept. Tensors that
    are attributes of a torch transform become parameters, where they are ones, or else buffers. Which direction is
    cheap is as it is there. ``Compose``, ``FlowDistribution`` and all that takes a recipe wrap transforms of torch and
    Pyro by themselves.

    Args:
        transform: a ``torch.distributions.Transform``; a conditional one of Pyro, which makes a transform by
            ``condition``; or a module of zuko's kind, which makes a transform, or a distribution that has one, when
            called with the context. Of zuko's flows it is the inverse, which leads from the base to the data.
        input_dim: size ``D`` of the vectors, or the shape of the events.
        context_dim: size of the context, 0 for none.

    Raises:
        TypeError: if it is none of these.
        ValueError: if it does not take such events and contexts, does not keep shapes, or is a chain or an inverse,
            which ``Compose`` takes apart.

    Example:
        >>> import pyro.distributions.transforms as T
        >>> layer = Foreign(T.conditional_affine_coupling(4, 2), 4, context_dim=2)
        >>> layer.condition(torch.zeros(5, 2)).inv(torch.ones(5, 4)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        transform: Transform | ConditionalTransform | nn.Module,
        input_dim: int | Sequence[int],
        context_dim: int = 0,
    ) -> None:
        super().__init__(input_dim, context_dim)
        if not isinstance(transform, Transform | ConditionalTransform | nn.Module):
            raise TypeError(f"Foreign expected a transform of torch, Pyro or zuko, got {type(transform).__name__}")
        if isinstance(transform, ComposeTransform | _InverseTransform):
            raise ValueError(
                f"Foreign expected a transform that is no chain and no inverse, got {type(transform).__name__}: put it "
                f"into Compose, which takes it apart"
            )
        self.transform, self.is_invertible = transform, True
        if not isinstance(transform, nn.Module):
            for name, value in vars(transform).items():
                if isinstance(value, nn.Parameter):
                    self.register_parameter(HELD + name, value)
                elif isinstance(value, Tensor):
                    self.register_buffer(HELD + name, value)
        with torch.no_grad():
            self._look()

    @property
    def domain(self) -> Constraint:
        """The transform's."""
        return self._ends[0]

    @property
    def codomain(self) -> Constraint:
        """The transform's."""
        return self._ends[1]

    def _look(self) -> None:
        """Reads off domain and codomain, and tries both directions."""
        like = _like(self)
        context = like.new_zeros(self.context_dim) if self.context_dim else None
        modules = list(self.transform.modules()) if isinstance(self.transform, nn.Module) else []
        modes = [module.training for module in modules]
        for module in modules:
            module.training = False  # nothing is to be learnt of this
        try:
            y = self._first(like, context)
            self._try_inverse(y, context)
        except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
            raise ValueError(
                f"Foreign expected a transform that takes events of shape {tuple(self.event_shape)}, with "
                f"context_dim={self.context_dim}, and keeps shapes, got {self._title}: {error}"
            ) from error
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode

    def _first(self, like: Tensor, context: Tensor | None) -> Tensor:
        made = self._made(context)
        self._ends = tuple(on_events(end, self.event_shape) for end in (made.domain, made.codomain))
        onto = biject_to(made.domain)
        x = onto(like.new_zeros(onto.inverse_shape(self.event_shape)))
        y, _ = self._map(x, context, False)
        if y.shape != x.shape:
            raise ValueError(f"it makes {tuple(y.shape)} of {tuple(x.shape)}")
        return y

    def _try_inverse(self, y: Tensor, context: Tensor | None) -> None:
        try:
            self._map(y, context, True)
        except (NotImplementedError, KeyError):
            self.is_invertible, self.fast = False, "forward"
            warnings.warn(
                f"{self._title} has no inverse: it samples, and scores what it has just sampled, but no data; take a "
                f"transform of pyroflows for these",
                stacklevel=4,
            )

    @property
    def _title(self) -> str:
        return type(self.transform).__name__

    def _made(self, context: Tensor | None) -> Transform:
        """The transform for a context, without memory of any call."""
        given = self.transform
        if isinstance(given, Transform):
            made = _afresh(given)
            held = dict(self.named_parameters(recurse=False)) | dict(self.named_buffers(recurse=False))
            for name, tensor in held.items():
                setattr(made, name.removeprefix(HELD), tensor)
            return made
        made = given.condition(context) if isinstance(given, ConditionalTransform) else given(context)
        return made.transform.inv if isinstance(made, Distribution) else made

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if inverse and not self.is_invertible:
            raise ValueError(f"Foreign expected a transform with an inverse to score data, got {self._title}, without")
        if context is not None:
            batch = torch.broadcast_shapes(self._cut(z.shape)[0], context.shape[:-1])
            z, context = z.expand(batch + self.event_shape), context.expand(*batch, -1)
        if not z.numel():  # of which some transforms cannot tell the shape
            return z, z.new_zeros(self._cut(z.shape)[0])
        return evaluate(self._made(context), z, inverse, self.event_shape)

    def extra_repr(self) -> str:
        """Sizes, and the transform where it is no module."""
        return super().extra_repr() + ("" if isinstance(self.transform, nn.Module) else f", {self.transform}")


def from_zuko(flow: nn.Module, context_dim: int = 0, input_dim: int | None = None) -> Foreign:
    """A flow or a lazy transform of zuko as a transform of this library.

    Of a flow, which zuko counts from the data to the base, it is the inverse, from the base to the data, over
    ``flow.base()``, most often a standard normal; other transforms keep their direction.

    Args:
        flow: as made by ``zuko.flows`` or ``zuko.lazy``.
        context_dim: size of the context, 0 for none.
        input_dim: size of the vectors; read off a flow, asked for of other transforms.

    Raises:
        ValueError: if the size is not known, or it does not take such vectors.

    Example:
        ``AutoFlow(model, lambda size: from_zuko(zuko.flows.NSF(size)))``
    """
    if input_dim is None:
        made = flow(_like(flow).new_zeros(context_dim) if context_dim else None)
        if not isinstance(made, Distribution):
            raise ValueError(f"from_zuko expected input_dim for {type(flow).__name__}, which is no flow, got none")
        (input_dim,) = made.event_shape
    return Foreign(flow, input_dim, context_dim)


def _like(module: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device of a module."""
    return next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), torch.empty(0))


def evaluate(transform: Transform, z: Tensor, inverse: bool, event_shape: Size) -> tuple[Tensor, Tensor]:
    """The value, and the ladj of whole events, of a transform of torch's kind in either direction."""
    value = transform.inv(z) if inverse else transform(z)
    ladj = transform.log_abs_det_jacobian(*((value, z) if inverse else (z, value)))
    summed = len(event_shape) - transform.domain.event_dim
    ladj = ladj.flatten(-summed).sum(-1) if summed else ladj
    ladj = ladj.expand(value.shape[: value.dim() - len(event_shape)])
    return value, -ladj if inverse else ladj


def _afresh(transform: Transform) -> Transform:
    """A copy over the same tensors that remembers nothing, nor do the transforms inside."""
    if isinstance(transform, _InverseTransform):
        return _afresh(transform.inv).inv
    made = copy.copy(transform)
    own = vars(made)
    for name, value in list(own.items()):
        if name == "_inv":  # a cycle
            own[name] = None
        elif "cache" in name and name != "_cache_size":
            own[name] = (None, None) if isinstance(value, tuple) else None
        elif isinstance(value, Transform):
            own[name] = _afresh(value)
        elif name == "_modules":
            own[name] = {key: _afresh(part) if isinstance(part, Transform) else part for key, part in value.items()}
    return made
