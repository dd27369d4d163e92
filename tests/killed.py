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
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import pyroflows as pf
from pyroflows import flows

FLOW = partial(flows.realnvp, layers=2, hidden_dims=(4,))
Run = Callable[[Path | None, Callable], list]


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


RUNS: dict[str, Run] = {run.__name__: run for run in (density, vae)}
# From which epoch on it kills itself.
LATE = 25


def child(run: Run, path: Path | None, out: Path, kill_at: float = math.inf) -> int:
    """Forks a process that trains, and kills itself at an epoch; its number."""
    if pid := os.fork():
        return pid
    told: list[int] = []

    def callback(step: int, *_: float) -> None:
        told.append(step)
        if step >= kill_at:
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
    os.waitpid(child(run, path, out, kill_at=LATE), 0)
    (resumed, first), (again, nothing) = (finish(child(run, path, out), out) for _ in range(2))
    return [whole, resumed, again, first, nothing]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for kind in sys.argv[2:] or RUNS:
        print(json.dumps([kind, *trial(kind, Path(sys.argv[1]))]), flush=True)
