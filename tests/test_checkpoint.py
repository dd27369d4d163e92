"""Checkpoints of densities and VAEs: the same numbers however training ended, and files that are refused."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyroflows import FlowDensity, flows
from pyroflows.infer import Annealed
from pyroflows.training import Checkpoint, described

SMALL = partial(flows.realnvp, layers=2, hidden_dims=(4,))
ROWS = np.random.default_rng(0).normal(size=(40, 2))


def test_training_that_is_killed_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {kind: rest for kind, *rest in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == {"density", "vae"}
    for kind, (whole, resumed, again, first, nothing) in found.items():
        assert whole == resumed == again, kind
        assert first, kind  # the last process did train,
        assert first != [1], kind  # but not from the start
        assert nothing == [], kind


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [
        ({"lr": 0.1}, ROWS, r"lr 0\.1, got .*, with 0\.004"),
        ({"batch_size": 7}, ROWS, "batch_size 7, got .*, with 128"),
        ({}, ROWS + 1e-9, r"the data '\(40, 2\).* of digest .*', got .*, with '\(40, 2\).* of digest"),
    ],
    ids=["lr", "batches", "rows"],
)
def test_a_checkpoint_of_another_density(tmp_path: Path, options: dict, rows: np.ndarray, message: str) -> None:
    path = tmp_path / "c.pt"
    FlowDensity(SMALL, epochs=2, random_state=0).fit(ROWS, checkpoint=path)
    with pytest.raises(ValueError, match=rf"FlowDensity\.fit expected a checkpoint of the same call, with {message}"):
        FlowDensity(SMALL, epochs=2, random_state=0, **options).fit(rows, checkpoint=path)


def test_generators_of_gpus_that_are_not_here_are_left_out(tmp_path: Path) -> None:
    saved = Checkpoint("VAE", tmp_path / "c.pt")
    numbers = saved._content["begin"][0].clone()
    saved._content["begin"].extend(torch.zeros(16, dtype=torch.uint8) for _ in range(torch.cuda.device_count(), 9))
    saved.check({})
    torch.rand(3)
    Checkpoint("VAE", tmp_path / "c.pt")
    assert torch.equal(torch.get_rng_state(), numbers)


def test_what_is_described_is_the_same_in_every_process() -> None:
    values = [
        None,
        True,
        3,
        0.5,
        "a",
        torch.ones(2),
        [torch.sin, 1],
        Annealed(steps=3),
        lambda x: x,
        dist.Normal(0.0, 1.0),
    ]
    found = list(map(described, values))
    assert found[:7] == [None, True, 3, 0.5, "a", [1.0, 1.0], ["sin", 1]]
    assert found[7] == "Annealed(steps=3, first=0.05, objective=ReverseKL(path=None))"
    assert "0x" not in str(found)
    assert found[9] == "Normal"
