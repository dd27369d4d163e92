"""A flow from a recipe of anybody's, checked."""

from collections.abc import Callable

from ..transforms import FlowTransform
from ..transforms.compose import as_flow


def build(flow: Callable[..., FlowTransform], input_dim: int, context_dim: int = 0) -> FlowTransform:
    """The transform that a recipe makes; one without a context need not take a ``context_dim``.

    What makes transforms of torch or Pyro, such as ``pyro.distributions.transforms.affine_coupling``, is a recipe too.
    """
    if not callable(flow):
        raise TypeError(f"expected a flow that is a recipe, such as pyroflows.flows.nsf, got {flow!r}")
    made = as_flow(flow(input_dim, context_dim) if context_dim else flow(input_dim), (input_dim,), context_dim)
    if not isinstance(made, FlowTransform):
        got = type(made).__name__
        raise TypeError(f"expected a flow that makes a FlowTransform of input_dim, got {got} from {flow}")
    if (tuple(made.event_shape), made.context_dim) != ((input_dim,), context_dim):
        raise ValueError(
            f"expected a flow with input_dim={input_dim} and context_dim={context_dim}, got "
            f"input_dim={', '.join(map(str, made.event_shape))} and context_dim={made.context_dim} from {flow}"
        )
    return made
