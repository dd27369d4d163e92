"""Memory over depth: what a step keeps for its backward pass, ordinary against reversible compositions.

A step is a forward pass of a realnvp on fixed draws and the gradient of the mean of ``log p(y) + ladj`` for every
parameter. Bytes are those of distinct storages saved by autograd, without parameters and buffers.

The second table is about rounding in float32: how far inverse after forward is from where it started, and how far
both gradients are from the ordinary one in float64 (the largest |difference| / |gradient| over the parameters).
Flows are at random (each parameter moved by noise of that sd), or trained on a curved density.
"""

import argparse
from collections.abc import Callable

import torch
from timing import interleaved, table
from torch import Tensor

from pyroflows.flows import nsf, realnvp
from pyroflows.transforms import Compose, FlowTransform

DEPTHS = (4, 8, 16, 32, 64)
HEADERS = ("layers", "saved MiB", "saved MiB, reversible", "ms", "ms, reversible", "ratio")
ROUNDING = ("flow", "parameters", "layers", "round trip", "gradient error", "gradient error, reversible")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--steps", type=int, default=300, help="training steps, for the second table")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batch", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {args.threads} thread(s), D={args.dim}, batch {args.batch}, float32\n")
    x = torch.randn(args.batch, args.dim)
    print(table(HEADERS, [sizes(depth, x, args.repeats) for depth in DEPTHS]), end="\n\n")
    rows = []
    for make in (realnvp, nsf):
        for layers in (8, 64):
            for spread in (0.05, 0.1):
                flow = moved(make(args.dim, layers=layers), spread)
                rows.append((make.__name__, f"N(0, {spread}^2)", layers, *rounding(flow, x)))
        for layers in (8, 32):
            flow = trained(make(args.dim, layers=layers), args.steps)
            rows.append((make.__name__, "trained", layers, *rounding(flow, x)))
    print(table(ROUNDING, rows))


def sizes(depth: int, x: Tensor, repeats: int) -> tuple:
    """One depth: bytes, and medians of the times."""
    plain = moved(realnvp(x.shape[-1], layers=depth), 0.05)
    again = Compose(plain, reversible=True)
    seconds = interleaved({"plain": lambda: gradient(plain, x), "again": lambda: gradient(again, x)}, repeats)
    saved = [saved_bytes(lambda flow=flow: loss(flow, x), flow) / 2**20 for flow in (plain, again)]
    return depth, *saved, 1e3 * seconds["plain"], 1e3 * seconds["again"], seconds["again"] / seconds["plain"]


def rounding(flow: Compose, x: Tensor) -> tuple[str, ...]:
    """One flow: the error of the round trip, and of both gradients."""
    with torch.no_grad():
        trip = (flow.inv(flow(x).clone()) - x).abs().max()
    found = gradient(flow, x), gradient(Compose(flow, reversible=True), x)
    exact = gradient(flow.double(), x.double())
    errors = [max((g - e).norm() / e.norm() for g, e in zip(grads, exact, strict=True)) for grads in found]
    return tuple(f"{float(value):.1e}" for value in (trip, *errors))


def moved(flow: Compose, spread: float) -> Compose:
    """The flow with noise added to each parameter."""
    for parameter in flow.parameters():
        parameter.data.add_(spread * torch.randn_like(parameter))
    return flow


def trained(flow: Compose, steps: int) -> Compose:
    """The flow after maximum likelihood on normals of which every other one is bent by its neighbour's square."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    for _ in range(steps):
        data = torch.randn(256, flow.input_dim)
        data[:, 1::2] = 0.3 * data[:, 1::2] + data[:, ::2].square() - 1
        optimizer.zero_grad()
        loss(flow.inv, data).backward()
        optimizer.step()
    return flow


def loss(flow: FlowTransform, x: Tensor) -> Tensor:
    """The mean of ``-log p(y) - ladj`` for a standard normal p, but for a constant."""
    y, ladj = flow.call_and_ladj(x)
    return (0.5 * y.square().sum(-1) - ladj).mean()


def gradient(flow: Compose, x: Tensor) -> tuple[Tensor, ...]:
    """The gradient of the loss for every parameter."""
    return torch.autograd.grad(loss(flow, x), list(flow.parameters()))


def saved_bytes(call: Callable[[], Tensor], flow: Compose) -> int:
    """Bytes of the storages that autograd saves in a call, each counted once, parameters and buffers never."""
    held = {tensor.untyped_storage().data_ptr() for tensor in (*flow.parameters(), *flow.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result  # not before: storages that are freed would be counted under an address used twice
    return sum(kept.values())


if __name__ == "__main__":
    main()
