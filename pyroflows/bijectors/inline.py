"""A bijector of functions that a user has written."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.func import jvp

from ..solve import increasing_root
from .base import Bijector

Function = Callable[..., Tensor]


class Inline(Bijector):
    """``y = forward(x)``, a map by functions of one's own; of what is left out, the rest is found.

    Without ``log_det`` the slope is found by automatic differentiation, at the cost of a second ``forward``. Without
    ``inverse`` the root is searched for, in about ten calls of ``forward`` and with exact gradients. The functions act
    on each number by itself; to be pickled they must stand in a module, and be no lambdas.

    Args:
        forward: maps ``x`` and the parameters, if any, to ``y``; it increases, or ``sign`` is -1.
        inverse: maps ``y`` and the parameters back to ``x``.
        log_det: maps ``x`` and the parameters to ``log |dy/dx|``.
        param_shapes: shapes of the parameters that a structure is to supply for each number, none by default.
        domain: where ``x`` lies, a constraint of numbers.
        codomain: what the domain is mapped onto.
        sign: 1 or -1.

    Raises:
        ValueError: if ``sign`` is neither.

    Example:
        >>> cubic = Inline(lambda x: x + x**3)
        >>> cubic.inverse(torch.tensor(10.0))
        (tensor(2.), tensor(-2.5649))
    """

    def __init__(
        self,
        forward: Function,
        inverse: Function | None = None,
        log_det: Function | None = None,
        *,
        param_shapes: Sequence[tuple[int, ...]] = (),
        domain: Constraint = constraints.real,
        codomain: Constraint = constraints.real,
        sign: int = 1,
    ) -> None:
        if sign not in (1, -1):
            raise ValueError(f"Inline expected a sign of 1 or -1, got {sign!r}")
        self._functions, self._param_shapes = (forward, inverse, log_det), tuple(param_shapes)
        self._ends, self.sign, self.fast = (domain, codomain), sign, "both" if inverse else "forward"

    @property
    def param_shapes(self) -> tuple[tuple[int, ...], ...]:
        """As given."""
        return self._param_shapes

    @property
    def domain(self) -> Constraint:
        """As given."""
        return self._ends[0]

    @property
    def codomain(self) -> Constraint:
        """As given."""
        return self._ends[1]

    def forward(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(y, ladj)``."""
        function, _, log_det = self._functions
        if log_det is not None:
            return function(x, *params), log_det(x, *params)
        y, slope = jvp(lambda x: function(x, *params), (x.clone(),), (torch.ones_like(x),))
        return y, slope.abs().log()

    def inverse(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``(x, ladj)``."""
        _, back, _ = self._functions
        x = root_in(self.domain, self.forward, y, *params, sign=self.sign) if back is None else back(y, *params)
        return x, -self.forward(x, *params)[1]

    def __repr__(self) -> str:
        names = [getattr(function, "__name__", repr(function)) for function in self._functions if function]
        return f"Inline({', '.join(names)})"


def root_in(domain: Constraint, function: Callable, y: Tensor, *params: Tensor, sign: int = 1) -> Tensor:
    """The ``x`` of a domain with ``f(x) = y``, for a function that returns a value and the log of its slope."""
    onto = biject_to(domain)

    def on_line(u: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        x = onto(u)
        value, log_slope = function(x, *params)
        return sign * value, log_slope + onto.log_abs_det_jacobian(u, x)

    return onto(increasing_root(on_line, sign * y, *params))
