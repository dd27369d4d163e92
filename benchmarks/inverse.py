"""Inverting one affine autoregressive layer, the slow direction: milliseconds, ratios, round-trip errors.

Every library builds a layer of the same widths, ReLU, float32, with weights drawn by torch's own rule for
linear layers. Ours includes the log-determinant, which comes with it, and nflows' does too. The naive loop is
what the others do, D passes of the whole network, on our network and with the masks applied once before the
loop. A second table times a gradient through the inverse.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform
from pyro.distributions.transforms import affine_autoregressive
from timing import interleaved, table
from torch import Tensor, nn
from zuko.flows import MaskedAutoregressiveTransform

from pyroflows.bijectors import Affine
from pyroflows.transforms import Autoregressive

OURS, NAIVE, PARALLEL = "pyroflows", "naive loop", "(one parallel pass)"
CASES = ((16, [128, 128], 512), (64, [128, 128], 512), (256, [512, 512], 64), (784, [1024, 1024], 64))
Layer = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--budget", type=float, default=8.0, help="seconds after which a call sits out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {args.threads} thread(s), medians of {args.repeats} or fewer rounds\n")
    headers = ("D, hidden, batch", "library", "ms", "ratio to ours")
    rows = [row for case in CASES for row in inverses(*case, args.repeats, args.budget)]
    print(table((*headers, "worst round trip"), rows), end="\n\n")
    print("Gradient of sum(x) + sum(ladj) for every weight and for y:\n")
    print(table((*headers, "largest relative difference"), gradients(*CASES[0], args.repeats, args.budget)))


def inverses(dim: int, hidden: list[int], batch: int, repeats: int, budget: float) -> list[tuple]:
    """One row for each library: time and error of inverting what its own layer made of normal draws."""
    ours = our_layer(dim, hidden)
    layers: dict[str, Layer] = {
        OURS: (ours, ours.inv),
        NAIVE: (ours, lambda y: naive_inverse(ours, y)[0]),
        "Pyro": pyro_layer(dim, hidden),
        "zuko": zuko_layer(dim, hidden),
        "nflows": nflows_layer(dim, hidden),
    }
    x, found = torch.randn(batch, dim), {}

    def inverting(name: str) -> Callable[[], None]:
        forward, inverse = layers[name]
        y = forward(x)

        def call() -> None:
            found[name] = inverse(y.clone())  # a new tensor: no cache knows its inverse

        return call

    with torch.no_grad():
        calls = {name: inverting(name) for name in layers}
        seconds = interleaved({**calls, PARALLEL: lambda: ours(x.clone())}, repeats, budget)
    errors = {name: float((value - x).abs().max()) for name, value in found.items()}
    return [row(dim, hidden, batch, name, seconds, errors.get(name, "")) for name in seconds]


def gradients(dim: int, hidden: list[int], batch: int, repeats: int, budget: float) -> list[tuple]:
    """Two rows: our implicit gradient of the inverse, and autograd through the naive loop."""
    ours, found = our_layer(dim, hidden), {}
    y = torch.randn(batch, dim, requires_grad=True)

    def differentiating(name: str, inverse: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[], None]:
        def call() -> None:
            x, ladj = inverse(y)
            grads = torch.autograd.grad(x.sum() + ladj.sum(), [y, *ours.parameters()])
            found[name] = torch.cat([grad.flatten() for grad in grads])

        return call

    seconds = interleaved(
        {
            OURS: differentiating(OURS, ours.inv.call_and_ladj),
            NAIVE: differentiating(NAIVE, lambda value: naive_inverse(ours, value)),
        },
        repeats,
        budget,
    )
    difference = float((found[OURS] - found[NAIVE]).abs().max() / found[NAIVE].abs().max())
    return [row(dim, hidden, batch, name, seconds, difference) for name in seconds]


def row(dim: int, hidden: list[int], batch: int, name: str, seconds: dict[str, float], error: float | str) -> tuple:
    """One line of a table."""
    return f"{dim}, {hidden}, {batch}", name, 1e3 * seconds[name], seconds[name] / seconds[OURS], error


def our_layer(dim: int, hidden: Sequence[int]) -> Autoregressive:
    """Our layer, whose last weights are drawn as the others draw theirs: zeros would make it the identity."""
    layer = Autoregressive(dim, Affine(), hidden_dims=hidden, activation=nn.ReLU)
    layer.net.layers[-1].reset_parameters()
    return layer


def naive_inverse(layer: Autoregressive, y: Tensor) -> tuple[Tensor, Tensor]:
    """Inverts by D passes of the network, each of which gets one more dimension right."""
    net, bijector = layer.net, layer.bijector
    weights, offsets, x = net.weights(), net.offsets(None), torch.zeros_like(y)
    for _ in range(layer.input_dim):
        x, ladj = bijector.inverse(y, *bijector.unpack(net.run(x, weights, offsets)))
    return x, ladj.sum(-1)


def pyro_layer(dim: int, hidden: list[int]) -> Layer:
    """Pyro's layer."""
    layer = affine_autoregressive(dim, hidden_dims=hidden)
    return layer, layer.inv


def zuko_layer(dim: int, hidden: list[int]) -> Layer:
    """Zuko's layer."""
    layer = MaskedAutoregressiveTransform(dim, hidden_features=hidden)()
    return layer, layer.inv


def nflows_layer(dim: int, hidden: list[int]) -> Layer:
    """The layer of nflows, plain rather than residual; its first hidden layer is not counted as a block."""
    blocks = len(hidden) - 1
    layer = MaskedAffineAutoregressiveTransform(dim, hidden[0], num_blocks=blocks, use_residual_blocks=False)
    return lambda x: layer.forward(x)[0], lambda y: layer.inverse(y)[0]


if __name__ == "__main__":
    main()
