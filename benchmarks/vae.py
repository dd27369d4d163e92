"""What a flow prior costs and gains in a VAE: times of training steps, and test likelihoods on static binary MNIST.

Steps have batches of 128 binary images of 784 pixels, 40 latents, MLPs of 300-300, and 8 affine couplings as the prior:
``VAE.fit``'s own, SVI with Pyro's Trace_ELBO, SVI with CompiledTrace_ELBO, and CompiledSVI. The likelihoods are by
1,000 importance samples on every tenth test image (the file has them sorted by digit), in nats, lower is better; they
need the images and take hours for three seeds.

    python benchmarks/vae.py [--data ../shared/data] [--epochs 40] [--seeds 0 1 2] [--device cpu]
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from timing import interleaved, table
from torch import Tensor, nn

import pyroflows as pf
from pyroflows.compile import TracedLoss
from pyroflows.training import Batches, Epochs

LATENTS, WIDTH, BATCH = 40, 300, 128
KINDS = {
    "normal prior": (None, False),
    "flow prior": (None, True),
    "IAF posterior": (partial(pf.flows.iaf, layers=2, hidden_dims=(WIDTH,), bound=3.0), False),
    "flow prior, IAF posterior": (partial(pf.flows.iaf, layers=2, hidden_dims=(WIDTH,), bound=3.0), True),
}
WAYS = {
    "Trace_ELBO": (SVI, Trace_ELBO),
    "CompiledTrace_ELBO": (SVI, pf.CompiledTrace_ELBO),
    "CompiledSVI": (pf.CompiledSVI, pf.CompiledTrace_ELBO),
}


def build(kind: str) -> pf.VAE:
    """The same networks with one prior and posterior or another."""
    posterior, flow = KINDS[kind]
    net = nn.Sequential(nn.Linear(784, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU())
    layers = [nn.Linear(LATENTS, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 784)]
    prior = pf.FlowPrior(LATENTS, partial(pf.flows.realnvp, layers=8, bends=0)) if flow else pf.NormalPrior(LATENTS)
    return pf.VAE(pf.FlowEncoder(net, WIDTH, LATENTS, posterior), nn.Sequential(*layers), prior)


def steps(device: str) -> dict[str, Callable[[], object]]:
    """One training step for each prior and each way to run it."""
    x = (torch.rand(BATCH, 784, device=device) < 0.2).float()
    calls: dict[str, Callable[[], object]] = {}
    for kind in ("normal prior", "flow prior"):
        own = build(kind).to(device)
        trainer = Epochs(own, lr=1e-3)
        calls[f"{kind}, fit"] = partial(own_step, trainer, TracedLoss(own._loss, trainer.parameters), x)
        for name, (make, elbo) in WAYS.items():
            vae = build(kind).to(device)
            pyro.clear_param_store()  # each SVI keeps its parameters, which are those of its own module
            svi = make(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), elbo())
            calls[f"{kind}, {name}"] = partial(svi.step, x)
            svi.step(x)
    return calls


def own_step(trainer: Epochs, loss: TracedLoss, x: Tensor) -> None:
    """What ``fit`` does with a batch."""
    with pyro.validation_enabled(False):
        trainer.step(loss(x, None), rate=1.0)


def likelihood(kind: str, data: dict[str, Tensor], epochs: int, lr: float, seed: int) -> float:
    """Trains, and returns the negative log likelihood of test images."""
    pyro.set_rng_seed(seed)
    vae, start = build(kind).to(data["train"].device), time.perf_counter()
    log = vae.fit(Batches([data["train"]], BATCH), epochs, lr=lr, validation=data["valid"].split(1000), progress=False)
    nats = -torch.cat([vae.log_likelihood(x, 1000) for x in data["test"][::10].split(100)]).mean().item()
    seconds = time.perf_counter() - start
    print(f"{kind}, seed {seed}: {nats:.2f} nats in {seconds:.0f} s, best at epoch {log.best_epoch}", flush=True)
    return nats


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder with images/mnist_static_binarized.npz")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds = interleaved(steps(options.device), repeats=25)
    print(table(["step", "ms"], [(name, f"{1000 * value:.2f}") for name, value in seconds.items()]), flush=True)
    if options.data is None:
        return
    packed = np.load(options.data / "images" / "mnist_static_binarized.npz")
    bits = {part: np.unpackbits(packed[f"{part}_bits"], axis=1) for part in ("train", "valid", "test")}
    data = {part: torch.tensor(rows, dtype=torch.float32, device=options.device) for part, rows in bits.items()}
    found = {kind: [] for kind in options.kinds}
    for seed, kind in product(options.seeds, options.kinds):
        found[kind].append(likelihood(kind, data, options.epochs, options.lr, seed))
    spread = {kind: f"{stdev(nats):.2f}" if len(nats) > 1 else "" for kind, nats in found.items()}
    print(table(["VAE", "NLL", "sd"], [(kind, f"{mean(nats):.2f}", spread[kind]) for kind, nats in found.items()]))


if __name__ == "__main__":
    main()
