"""The networks that supply the parameters of a flow: plain torch modules."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Activation = Callable[[], nn.Module]


class MLP(nn.Sequential):
    """A fully connected network whose last layer starts at zero, so that the flow starts at the identity.

    Args:
        input_dim: width of the input.
        output_dim: width of the output.
        hidden_dims: widths of the hidden layers; none gives a linear map.
        activation: makes the non-linearity, ``torch.nn.SiLU`` by default: smooth, and linear far out.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
    ) -> None:
        layers: list[nn.Module] = []
        for hidden in hidden_dims:
            layers += [nn.Linear(input_dim, hidden), activation()]
            input_dim = hidden
        super().__init__(*layers, zero_(nn.Linear(input_dim, output_dim)))


class SteadyNet(nn.Module):
    """One hidden layer of tanh whose output is bounded, starts at zero, moves slowly, and has a mean of about zero.

    The mean is that over standard normal inputs: each hidden unit is counted from its own, by the approximation of a
    sigmoid by a probit. What a flow as a whole moves to is then left to the loc of its affine map.

    Args:
        input_dim: width of the input.
        output_dim: width of the output.
        width: of the hidden layer.
        gain: what the output is multiplied by. A step of Adam, whose size does not depend on that of gradients, moves
            the output by about ``gain * width`` times as much as it moves a number that is free.

    References:
        The Evidence Framework Applied to Classification Networks. MacKay, 1992.
        https://doi.org/10.1162/neco.1992.4.5.720
    """

    def __init__(self, input_dim: int, output_dim: int, width: int, gain: float) -> None:
        super().__init__()
        self.hidden, self.gain = nn.Linear(input_dim, width), gain
        self.last = nn.Linear(width, output_dim, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(..., inputs)`` to ``(..., outputs)``."""
        weight, bias = self.hidden.weight, self.hidden.bias
        mean = (bias / (1 + math.pi / 2 * weight.square().sum(-1)).sqrt()).tanh()
        return self.last(self.hidden(x).tanh() - mean) * self.gain


def zero_(layer: nn.Linear) -> nn.Linear:
    """Sets a layer's weight and bias to zero and returns it."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class MaskedMLP(nn.Module):
    """A network whose ``i``-th group of outputs sees only the inputs before ``i``, and all of the context.

    The hidden units of each layer are sorted by degree, the number of inputs that a unit may see. The units
    that see at most ``i`` inputs are then the first :meth:`seen` ``(layer, i)`` rows of the layer's weight,
    and every mask lies below a staircase: a network can be run one input at a time by taking slices.

    The output starts at zero, but for rounding: the units of the last hidden layer start in pairs of equals, which the
    last layer, drawn at random, takes from each other. A last layer at zero gives hidden units no gradient at first,
    and trained worse in ``benchmarks/founding_moons.py``.

    Args:
        input_dim: number of inputs ``D``, in their autoregressive order.
        group: number of outputs for each input; the output has shape ``(..., D, group)``.
        context_dim: width of the context, 0 for none.
        hidden_dims: widths of the hidden layers, at least one.
        activation: makes the elementwise non-linearity, which has no parameters.
        paired: start at zero by pairs; otherwise by a last layer at zero, which neither dropout nor ``residual``
            disturbs.
        sees: which inputs before it each group of outputs sees, ``(D, D)`` booleans below the diagonal; None: all.
        residual: add to each hidden layer the one before it, where they are equally wide.

    Raises:
        ValueError: if there is no hidden layer, or the activation has parameters.

    References:
        MADE: Masked Autoencoder for Distribution Estimation. Germain, Gregor, Murray, Larochelle, 2015.
        https://arxiv.org/abs/1502.03509
        Autoregressive Energy Machines (ResMADE). Nash, Durkan, 2019. https://arxiv.org/abs/1904.05626
        A type of generalization error induced by initialization in deep neural networks. Zhang, Xu, Luo, Ma, 2020.
        https://arxiv.org/abs/1905.07777
    """

    def __init__(
        self,
        input_dim: int,
        group: int,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
        paired: bool = True,
        sees: Tensor | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if not hidden_dims:
            raise ValueError("expected at least one hidden layer, got hidden_dims of length 0")
        self.input_dim, self.group, self.activation = input_dim, group, activation()
        if list(self.activation.parameters()):
            raise ValueError(f"expected an activation without parameters, got {self.activation}")
        every = torch.ones(input_dim, input_dim, dtype=torch.bool).tril(-1)
        patterns = every if sees is None else sees.unique(dim=0)
        sees = every if sees is None else sees
        self.spans = _spans(sees)
        # What each unit may see: one of the patterns that outputs have, sorted by degree.
        patterns = patterns[_degrees(patterns).argsort(stable=True)]
        first = 0 if context_dim or len(patterns) == 1 or patterns[0].any() else 1
        chosen = [torch.linspace(first, len(patterns) - 1, width).round().long() for width in hidden_dims]
        levels = [torch.eye(input_dim, dtype=torch.bool), *(patterns[units] for units in chosen)]
        self.rows = [[int((_degrees(p) <= i).sum()) for i in range(input_dim + 1)] for p in levels]
        self.skips = [residual and a == b for a, b in zip([0, *hidden_dims], hidden_dims, strict=False)]
        self.layers = nn.ModuleList()
        for index, (below, above) in enumerate(itertools.pairwise([*levels, sees.repeat_interleave(group, 0)])):
            self.layers.append(nn.Linear(len(below), len(above)))
            # A unit is heard by those that may see all that it sees. Numbers, as compiled code turns booleans into
            # numbers one by one.
            unseen = (~above).to(torch.get_default_dtype()) @ below.to(torch.get_default_dtype()).T
            self.register_buffer(f"mask{index}", (unseen == 0).to(unseen.dtype), persistent=False)
        self.context = nn.Linear(context_dim, hidden_dims[0], bias=False) if context_dim else None
        if paired and not residual:
            self._pair()
        else:
            zero_(self.layers[-1])

    @torch.no_grad()
    def _pair(self) -> None:
        """Makes every second unit of the last hidden layer the one before it, and takes the two from each other."""
        *_, below, last = self.layers
        *_, mask_below, mask_last = (mask.ne(0) for mask in self.buffers(recurse=False))
        pairs = below.out_features // 2 * 2
        even, odd = slice(0, pairs, 2), slice(1, pairs, 2)
        # What only one of the two sees, or is seen by, starts at zero.
        below.weight[even] *= mask_below[odd]
        below.weight[odd] = below.weight[even] * mask_below[even]
        below.bias[odd] = below.bias[even]
        if len(self.layers) == 2 and self.context is not None:
            self.context.weight[odd] = self.context.weight[even]
        last.weight[:, even] *= mask_last[:, odd]
        last.weight[:, odd] = -last.weight[:, even] * mask_last[:, even]
        last.weight[:, pairs:] = 0.0
        last.bias.zero_()

    def seen(self, layer: int, inputs: int) -> int:
        """How many units of a layer (0 is the input itself) depend on the first ``inputs`` inputs at most."""
        return self.rows[layer][inputs]

    def weights(self) -> list[Tensor]:
        """The masked weight matrices, from the first layer to the last."""
        return [layer.weight * getattr(self, f"mask{i}") for i, layer in enumerate(self.layers)]

    def offsets(self, context: Tensor | None) -> list[Tensor]:
        """What is added after each weight: the bias, and in the first layer the context's part."""
        first, *rest = (layer.bias for layer in self.layers)
        return [first if self.context is None else first + self.context(context), *rest]

    def run(self, x: Tensor, weights: Sequence[Tensor], offsets: Sequence[Tensor]) -> Tensor:
        """Evaluates the network as a pure function of its tensors; returns ``(..., D, group)``."""
        h, before = linear(x, weights[0]) + offsets[0], 0.0
        for weight, offset, skip in zip(weights[1:], offsets[1:], self.skips, strict=True):
            before = self.activation(h) + before if skip else self.activation(h)
            h = linear(before, weight, offset)
        return torch.unflatten(h, -1, (self.input_dim, self.group))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Maps ``(..., D)`` to ``(..., D, group)``."""
        return self.run(x, self.weights(), self.offsets(context))


def _degrees(patterns: Tensor) -> Tensor:
    """How many of the first inputs have to be known for each pattern."""
    return (patterns * torch.arange(1, patterns.shape[1] + 1)).amax(1)


def _spans(sees: Tensor) -> list[slice]:
    """The inputs that can be computed at each step, as none of them sees another."""
    starts = [0]
    for i in range(1, len(sees)):
        if sees[i, starts[-1] : i].any():
            starts.append(i)
    return [slice(a, b) for a, b in itertools.pairwise([*starts, len(sees)])]


class Parameters(nn.Module):
    """A vector that is free, or comes from the context through a network; the one who asks need not know.

    Args:
        initial: the value to start from, of shape ``(size,)``.
        context_dim: width of the context, 0 for a free vector.
        hidden_dims: widths of the hidden layers of the network.
        activation: makes the non-linearity of the network.
        gain: what is learnt is multiplied by it, see :class:`SteadyNet`.
    """

    gain = 1.0  # of parameters pickled before there was one

    def __init__(
        self,
        initial: Tensor,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Activation = nn.SiLU,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.gain = gain
        self.value = nn.Parameter(initial / gain)
        self.net = MLP(context_dim, len(initial), hidden_dims, activation) if context_dim else None

    def forward(self, context: Tensor | None) -> Tensor:
        """Returns ``(size,)``, or ``(..., size)`` for a context of shape ``(..., context_dim)``."""
        value = self.value if self.net is None else self.value + self.net(context)
        return value if self.gain == 1 else value * self.gain


def join(z: Tensor, context: Tensor | None) -> Tensor:
    """Concatenates along the last dimension what a network reads, batches broadcast; no context adds nothing."""
    if context is None:
        return z
    batch = torch.broadcast_shapes(z.shape[:-1], context.shape[:-1])
    return torch.cat([z.expand(*batch, -1), context.expand(*batch, -1)], dim=-1)
