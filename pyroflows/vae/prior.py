"""A flow as a prior: a module that is called for a distribution."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from pyro.distributions import Distribution, Independent, MixtureOfDiagNormals, Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..distributions import FlowDistribution, FlowMixture, standard_normal
from ..flows import realnvp
from ..flows.build import build
from ..maths import between
from ..nets import Parameters
from ..transforms import FlowTransform


class NormalPrior(PyroModule):
    """The standard normal as a module: what a :class:`FlowPrior` takes the place of.

    Args:
        input_dim: size ``D`` of the vectors.
        name: what the names of its tensors start with.
    """

    context_dim = 0

    def __init__(self, input_dim: int, name: str = "") -> None:
        super().__init__(name)
        self.register_buffer("loc", torch.zeros(input_dim), persistent=False)

    def forward(self, context: Tensor | None = None, temperature: float = 1.0) -> Distribution:
        """The normal with mean 0 and sd ``temperature``; it takes no context."""
        if context is not None:
            raise ValueError("NormalPrior expected no context, got one: use a FlowPrior with context_dim > 0")
        return _normal(self.loc, temperature)

    def path(self, a: Tensor, b: Tensor, steps: int, context: Tensor | None = None) -> Tensor:
        """Points on the arc from vector ``a`` to vector ``b``, both included: ``(steps, D)``."""
        return between(a, b, steps)


# A decoder follows, which can do for each dimension what bends would.
couplings = partial(realnvp, bends=0)


class FlowPrior(PyroModule):
    """Called, it gives a flow distribution: ``pyro.sample("z", prior())`` where a ``Normal`` stood.

    Its parameters are trained with everything else by SVI: make it an attribute of a :class:`PyroModule`, or give
    it a name in a model that is a function. It starts at the standard normal, or at a mixture of normals.

    Args:
        input_dim: size ``D`` of the vectors.
        flow: a recipe of :mod:`pyroflows.flows`, or any callable that makes a transform from ``input_dim``, and
            from ``context_dim`` where there is one; ``functools.partial`` sets its options.
        context_dim: size of the context, 0 for none; for classes, let it be one-hot vectors.
        components: size of a learnable mixture of diagonal normals under the flow; 1 is the standard normal.
        base: makes the base from ``input_dim`` and ``context_dim``: a module that is called with context and
            temperature, as :class:`~pyroflows.distributions.StudentTBase`; None for the standard normal.
        name: what the names of the parameters start with.

    Raises:
        TypeError: if ``flow`` does not make a FlowTransform.
        ValueError: if ``components`` is below 1, or above it beside a ``base``, or when called with a temperature that
            is not positive.

    Example:
        >>> import pyro
        >>> prior = FlowPrior(3, context_dim=2, name="prior")
        >>> with pyro.plate("rows", 5):
        ...     z = pyro.sample("z", prior(torch.eye(2)[[0, 1, 0, 1, 0]]))
        >>> z.shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        input_dim: int,
        flow: Callable[..., FlowTransform] = couplings,
        context_dim: int = 0,
        *,
        components: int = 1,
        base: Callable[[int, int], nn.Module] | None = None,
        name: str = "",
    ) -> None:
        super().__init__(name)
        self.transform = build(flow, input_dim, context_dim)
        if components < 1:
            raise ValueError(f"FlowPrior expected components >= 1, got {components}")
        if components > 1 and base is not None:
            raise ValueError(
                f"FlowPrior expected a base or components, got {base} and {components}: a base has its own"
            )
        self.context_dim, self.components = context_dim, components
        self.base = None if base is None else base(input_dim, context_dim)
        if components > 1:
            self.loc = nn.Parameter(torch.randn(components, input_dim))
            self.log_scale = nn.Parameter(torch.zeros(components, input_dim))
            self.logits = nn.Parameter(torch.zeros(components))

    def forward(self, context: Tensor | None = None, temperature: float = 1.0) -> FlowDistribution:
        """The distribution, of batch shape ``()`` or that of the context ``(..., context_dim)``.

        A ``temperature`` below 1 shrinks the scale of the base, which gives samples that are more typical and
        less diverse.
        """
        flow = self._flow(context)
        return FlowDistribution(self._base(context, temperature), flow)

    def path(self, a: Tensor, b: Tensor, steps: int, context: Tensor | None = None) -> Tensor:
        """Points on the way from vector ``a`` to vector ``b`` along an arc of the base, both included."""
        transform = self._flow(context)
        return transform(between(*transform.inv(torch.stack([a, b])), steps))

    def _flow(self, context: Tensor | None) -> FlowTransform:
        self.transform._check_context(context)
        return self.transform.condition(context)

    def _base(self, context: Tensor | None, temperature: float) -> Distribution:
        normal = _normal(standard_normal(self.transform).mean, temperature)
        if self.base is not None:
            return self.base(context, temperature)
        if self.components == 1:
            return normal
        return MixtureOfDiagNormals(self.loc, temperature * self.log_scale.exp(), self.logits)


class MixturePrior(PyroModule):
    """Called, it gives a mixture of flows, each over a normal of its own; a context gates it, if there is one.

    Args:
        input_dim: size ``D`` of the vectors.
        flows: a recipe for each part, as :class:`FlowPrior` takes one.
        context_dim: size of the context, 0 for none.
        name: what the names of the parameters start with.

    Raises:
        TypeError: if a recipe does not make a FlowTransform.
        ValueError: if there is no recipe, or one makes a transform of another size.

    Example:
        >>> from pyroflows.flows import maf, nsf
        >>> prior = MixturePrior(3, [maf, nsf], context_dim=2)
        >>> prior(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self, input_dim: int, flows: Sequence[Callable[..., FlowTransform]], context_dim: int = 0, *, name: str = ""
    ) -> None:
        super().__init__(name)
        if not flows:
            raise ValueError("MixturePrior expected one recipe or more, got none")
        self.context_dim = context_dim
        self.transforms = nn.ModuleList(build(flow, input_dim, context_dim) for flow in flows)
        self.loc = nn.Parameter(torch.randn(len(flows), input_dim))
        self.log_scale = nn.Parameter(torch.zeros(len(flows), input_dim))
        self.logits = Parameters(torch.zeros(len(flows)), context_dim)

    def forward(self, context: Tensor | None = None, temperature: float = 1.0) -> FlowMixture:
        """The mixture; a ``temperature`` below 1 shrinks the scales of the bases."""
        for transform in self.transforms:
            transform._check_context(context)
        bases = zip(self.loc, temperature * self.log_scale.exp(), self.transforms, strict=True)
        parts = [
            FlowDistribution(Independent(Normal(loc, scale, validate_args=False), 1), transform.condition(context))
            for loc, scale, transform in bases
        ]
        return FlowMixture(self.logits(context), parts)


def _normal(loc: Tensor, temperature: float) -> Distribution:
    if not temperature > 0:
        raise ValueError(f"expected a temperature above 0, got {temperature}")
    return Independent(Normal(loc, torch.full_like(loc, temperature), validate_args=False), 1, validate_args=False)
