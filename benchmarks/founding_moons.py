"""The founding document's flow of two moons in this library and in zuko: test log likelihoods, in nats.

Three masked autoregressive layers (128, 128, ReLU), each after a reversal, as TFP's Chain of ``[MAF, Permute] * 3``
applies them; 50 epochs of batches of 32, the same for both, by Adam at 1e-2 with a falling rate and averaged iterates,
as FlowDensity trains, or without (``--plain``). The truth is the mean log density of test rows under the moons
themselves: half circles with normal noise.

    python benchmarks/founding_moons.py [--rows 1000] [--epochs 50] [--seeds 3] [--only pyroflows,zuko] [--plain]
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
import torch
import zuko
from sklearn.datasets import make_moons
from timing import table
from torch import Tensor, nn

from pyroflows import FlowDistribution
from pyroflows.bijectors import Affine
from pyroflows.training import Batches, Epochs
from pyroflows.transforms import Autoregressive, Compose, Permute

NOISE, HIDDEN = 0.05, (128, 128)


def ours(paired: bool = True) -> nn.Module:
    """The document's flow; a Compose applies its first part first."""
    parts: list = []
    for _ in range(3):
        parts.append(Permute(2, "reversed"))
        options = {"hidden_dims": HIDDEN, "activation": nn.ReLU, "fast": "inverse", "paired": paired}
        parts.append(Autoregressive(2, Affine(), **options))
    return Compose(parts)


def mirrored() -> nn.Module:
    """The mirror image, which ends with a reversal."""
    return Compose(list(reversed(list(ours()))))


LIBRARIES: dict[str, Callable[[], nn.Module]] = {
    "pyroflows": ours,
    "last layers at zero": lambda: ours(paired=False),
    "mirrored": mirrored,
    "zuko": lambda: zuko.flows.MAF(2, transforms=3, hidden_features=HIDDEN),
}


def log_prob(flow: nn.Module, rows: Tensor) -> Tensor:
    """Log densities, whichever the library."""
    return (FlowDistribution(transform=flow) if isinstance(flow, Compose) else flow()).log_prob(rows)


def moons(rows: int, seed: int) -> Tensor:
    """Rows of the two moons."""
    return torch.tensor(make_moons(rows, noise=NOISE, random_state=seed)[0], dtype=torch.float32)


def truth(rows: Tensor, points: int = 2000) -> float:
    """The mean log density of the rows: the noise around points spread evenly over both arcs."""
    angle = torch.linspace(0, np.pi, points)
    upper = torch.stack([angle.cos(), angle.sin()], -1)
    arcs = torch.cat([upper, torch.tensor([1.0, 0.5]) - upper])
    around = torch.distributions.Normal(arcs, NOISE).log_prob(rows.unsqueeze(-2)).sum(-1)
    return (around.logsumexp(-1) - np.log(2 * points)).mean().item()


def train(flow: nn.Module, rows: Tensor, epochs: int, plain: bool) -> None:
    """Adam on the likelihood of minibatches; unless plain, with a falling rate and averaged iterates."""
    trainer, batches = Epochs(flow, lr=1e-2, average=0.99), Batches([rows], 32)

    def loss(batch: Tensor) -> Tensor:
        return -log_prob(flow, batch).mean()

    if not plain:
        trainer.run(loss, batches, epochs, progress=False)
        return
    adam = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for (batch,) in (part for _ in range(epochs) for part in batches):
        adam.zero_grad()
        loss(batch).backward()
        adam.step()


def scores(options: argparse.Namespace, seed: int) -> Iterator[float]:
    """The test log likelihood that each library reaches, and the truth."""
    rows, fresh = moons(options.rows, seed), moons(5000, 1000 + seed)
    for name in options.only:
        torch.manual_seed(seed)
        flow = LIBRARIES[name]()
        torch.manual_seed(seed)
        train(flow, rows, options.epochs, options.plain)
        with torch.no_grad():
            yield log_prob(flow, fresh).mean().item()
    yield truth(fresh)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", type=lambda names: names.split(","), default=list(LIBRARIES), help="some of the flows"
    )
    parser.add_argument("--plain", action="store_true", help="Adam at a constant rate, without averages")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for seed in range(options.seeds):
        lines.append([str(seed), *(f"{value:.2f}" for value in scores(options, seed))])
        print(*lines[-1], flush=True)
    print(table(["seed", *options.only, "truth"], lines))


if __name__ == "__main__":
    main()
