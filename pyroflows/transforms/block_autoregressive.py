"""Block neural autoregressive: one monotone network for all dimensions, whose weights are triangular in blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..arguments import check_counts
from ..maths import soft_clip
from ..nets import Activation, Parameters
from ..solve import increasing_root
from .base import FlowTransform


class BlockAutoregressive(FlowTransform):
    """A network of ``units`` per dimension and layer whose ``i``-th output increases in ``x_i`` and hears those before.

    Weights from a dimension's units to its own are positive and sum to one; those from the dimensions before are free.
    A unit maps ``u`` to ``(1 - g) u + g tanh(s (u - d)) / s`` with ``|g| < 0.9``: a leaky tanh with slopes from 0.1 to
    1.9, so that the map takes every value. It starts at the identity, where each ``g`` is zero. The Jacobian is
    triangular, and its diagonal a product of small matrices, carried along.

    Forward is one pass. The inverse finds dimension after dimension by a root, each of 10 to 40 passes.

    Args:
        input_dim: size ``D`` of the vectors.
        context_dim: size of the context, 0 for none; it moves ``g``, ``s``, ``d`` and a shift of the output.
        units: hidden units of each dimension in each layer.
        depth: hidden layers, at least 1.
        hidden_dims: widths of the hidden layers of the context's network.
        activation: makes the non-linearity of the context's network.

    Raises:
        ValueError: if ``units`` or ``depth`` is below 1.

    References:
        Block Neural Autoregressive Flow. De Cao, Titov, Aziz, 2019. https://arxiv.org/abs/1904.04676
    """

    fast = "forward"

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        *,
        units: int = 8,
        depth: int = 2,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
    ) -> None:
        super().__init__(input_dim, context_dim)
        check_counts("BlockAutoregressive", {}, units=units, depth=depth)
        self.widths = [1, *[units] * depth, 1]
        pairs = list(zip(self.widths[1:], self.widths[:-1], strict=True))
        self.before = nn.ParameterList(torch.zeros(input_dim, out, input_dim, given) for out, given in pairs)
        self.own = nn.ParameterList(torch.randn(input_dim, out, given) for out, given in pairs[1:])
        gates, places = torch.zeros(depth, 2, input_dim, units), torch.randn(depth, 1, input_dim, units)
        initial = torch.cat([gates, places], 1).flatten()
        self.units = Parameters(torch.cat([initial, torch.zeros(input_dim)]), context_dim, hidden_dims, activation)

    def _map(self, z: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        flat, shift = self.units(context).split([3 * sum(self.widths[1:-1]) * self.input_dim, self.input_dim], dim=-1)
        units = torch.unflatten(flat, -1, (len(self.widths) - 2, 3, self.input_dim, -1))
        value = self._solve(z - shift, units) if inverse else z
        out, log_slopes = self._outputs(value, units)
        ladj = log_slopes.sum(-1)
        return (value, -ladj) if inverse else (out + shift, ladj)

    def _solve(self, y: Tensor, units: Tensor) -> Tensor:
        """Finds each dimension given those before it."""

        def last(x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
            batch = torch.broadcast_shapes(x.shape, before.shape[:-1])
            row = torch.cat([before.expand(*batch, -1), x.expand(batch).unsqueeze(-1)], dim=-1)
            return tuple(out[..., -1] for out in self._outputs(row, units))

        found = y[..., :0]
        for i in range(self.input_dim):
            x = increasing_root(last, y[..., i], found)
            found = torch.cat([found.expand(*x.shape, -1), x.unsqueeze(-1)], dim=-1)
        return found

    def _outputs(self, x: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of the first dimensions, as many as there are inputs, and the logs of their own slopes."""
        size, last = x.shape[-1], len(self.before) - 1
        earlier = torch.ones(size, size, dtype=x.dtype, device=x.device).tril(-1)[:, None, :, None]
        value, slope = x.unsqueeze(-1), torch.ones_like(x).unsqueeze(-1)
        for k, before in enumerate(self.before):
            before = (before[:size, :, :size] * earlier).flatten(2).flatten(0, 1)
            heard = torch.unflatten(linear(value.flatten(-2), before), -1, (size, -1))
            own = self.own[k - 1][:size].softmax(-1) if k else torch.ones_like(before[:size, :1, None])
            value, slope = ((own * part.unsqueeze(-2)).sum(-1) for part in (value, slope))
            value = value + heard
            if k < last:
                gate, sharp, place = units[..., k, :, :size, :].unbind(-3)
                gate, sharp = soft_clip(gate, 0.9), soft_clip(sharp, 2.0).exp()
                bent = torch.tanh(sharp * (value - place))
                value, slope = value + gate * (bent / sharp - value), slope * (1 - gate * bent * bent)
        return value.squeeze(-1), slope.squeeze(-1).log()

    def extra_repr(self) -> str:
        """Sizes and widths."""
        return f"{super().extra_repr()}, widths={self.widths}"
