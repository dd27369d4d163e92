"""Kills training at any moment and makes the same call again; a script, as children are forked from a clean process.

Prints, for each kind of training, digests of what came out without a checkpoint, and at last with one, the first step
or epoch that was told when it went on after the last kill, and what was told when it was done already.
"""

import hashlib
import json
import math
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyroflows as pf
from pyroflows import flows
from pyroflows.fitting import train
from pyroflows.infer.starts import polish
from pyroflows.training import speed

FLOW = partial(flows.realnvp, layers=2, hidden_dims=(4,))
Run = Callable[[Path | None, Callable], list]


def regression(x: Tensor, y: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("row", len(x), subsample_size=5) as rows:
        pyro.sample("y", dist.Normal(x[rows] @ slope, scale), obs=y[rows])


def two_modes(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 3.0))
    pyro.sample("y", dist.Normal(x.abs(), 0.3), obs=y)


def fitted(model: Callable, *args: Tensor, path: Path | None, callback: Callable, **options: object) -> list:
    options = {"flow": FLOW, "steps": 120, "num_particles": 8, "progress": False} | options
    posterior = pf.fit(model, *args, checkpoint=path, callback=callback, **options)
    history = posterior.history
    return [history.elbo, history.stopped, history.missed, *posterior.guide.transform.state_dict().values()]


def traced(path: Path | None, callback: Callable) -> list:
    """A fit by minibatches, with a parameter of the model's own, whose steps are traced."""
    speed.TRACE_FROM = 0.0
    x = torch.linspace(-1, 1, 40).view(20, 2).sin()
    return [*fitted(regression, x, x.sum(1), path=path, callback=callback), pyro.param("scale")]


def second(path: Path | None, callback: Callable) -> list:
    """A fit that is followed by one from the modes that it missed."""
    return fitted(two_modes, torch.tensor(3.0), path=path, callback=callback)


def density(path: Path | None, callback: Callable) -> list:
    """A density, that draws its seed from torch's generator."""
    x = np.random.default_rng(0).normal(size=(60, 2))
    found = pf.FlowDensity(FLOW, epochs=30, batch_size=16, patience=40, noise=0.1)
    found.fit(x, checkpoint=path, callback=callback)
    return [found.log_.train, found.log_.validation, found.entropy_, found.score_samples(x)]


def vae(path: Path | None, callback: Callable) -> list:
    """A VAE on a loader that shuffles."""
    x = (torch.rand(60, 6) < 0.5).float()
    model = pf.VAE(pf.FlowEncoder(nn.Linear(6, 4), 4, 2, FLOW), nn.Linear(2, 6), pf.FlowPrior(2, FLOW))
    loader = torch.utils.data.DataLoader(x[:40], 20, shuffle=True)
    log = model.fit(loader, 30, validation=[x[40:]], checkpoint=path, callback=callback, progress=False)
    return [log.train, log.validation, *model.state_dict().values()]


RUNS: dict[str, Run] = {run.__name__: run for run in (traced, second, density, vae)}
# In which fit of a call, and from which step or epoch on, it kills itself.
LATE = {"traced": (0, 110), "second": (1, 50), "density": (0, 25), "vae": (0, 25)}


def child(run: Run, path: Path | None, out: Path, kill_at: tuple = (math.inf, 0)) -> int:
    """Forks a process that trains, and kills itself at a step; its number."""
    if pid := os.fork():
        return pid
    told: list[int] = []

    def callback(step: int, *_: float) -> None:
        told.append(step)
        if (sum(later < earlier for earlier, later in pairwise(told)), step) >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.manual_seed(1)
    values = [*run(path, callback), torch.rand(3)]
    digest = hashlib.sha256(repr([v.tolist() if isinstance(v, Tensor | np.ndarray) else v for v in values]).encode())
    out.write_text(json.dumps([digest.hexdigest(), told[:1]]))
    os._exit(0)


def finish(pid: int, out: Path) -> list:
    """What a child found: a digest, and the first step that was told."""
    os.waitpid(pid, 0)
    return json.loads(out.read_text())


def trial(name: str, folder: Path) -> list:
    """Digests without and with a checkpoint, and what was told first after the last kill, and after the end."""
    run, path, out, chance = RUNS[name], folder / f"{name}.pt", folder / f"{name}.json", random.Random(name)
    begin = time.perf_counter()
    whole, _ = finish(child(run, None, out), out)
    length = time.perf_counter() - begin
    for _ in range(3):
        pid = child(run, path, out)
        time.sleep(chance.uniform(0.0, length / 3))  # so that training does not end
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.waitpid(child(run, path, out, kill_at=LATE[name]), 0)
    (resumed, first), (again, nothing) = (finish(child(run, path, out), out) for _ in range(2))
    return [whole, resumed, again, first, nothing]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    train.LOOK, polish.BLOCK = 20, 60
    for kind in sys.argv[2:] or RUNS:
        print(json.dumps([kind, *trial(kind, Path(sys.argv[1]))]), flush=True)
