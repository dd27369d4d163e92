"""Checkpoints of fit, densities and VAEs: the same numbers however training ended, and files that are refused."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from pyroflows import AutoFlow, FlowDensity, fit, flows
from pyroflows.infer import Annealed, Renyi
from pyroflows.training import Checkpoint, described

SMALL = partial(flows.realnvp, layers=2, hidden_dims=(4,))
ROWS = np.random.default_rng(0).normal(size=(40, 2))
pytestmark = pytest.mark.usefixtures("no_search")


def normal(y: torch.Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def other(y: torch.Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.1).to_event(1))
    pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


def fewer(y: torch.Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(x, 1.0).expand([2]).to_event(1), obs=y)


def learnt(y: torch.Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
    x = pyro.sample("x", dist.Normal(torch.zeros(2), scale).to_event(1))
    pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)


quick = partial(fit, flow=SMALL, steps=4, num_particles=4, start=None, full_rank=None, progress=False)


@pytest.mark.slow
def test_training_that_is_killed_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {kind: rest for kind, *rest in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == {"traced", "second", "density", "vae"}
    for kind, (whole, resumed, again, first, nothing) in found.items():
        assert whole == resumed == again, kind
        assert first, kind  # the last process did train,
        assert first != [1], kind  # but not from the start
        assert nothing == [], kind


def stopped_at(step: int, error: type[BaseException] | None = None) -> Callable:
    def callback(told: int, *_: float) -> bool:
        if error and told == step:
            raise error
        return told == step

    return callback


@pytest.mark.filterwarnings("ignore:fit. ")
@pytest.mark.parametrize(
    ("error", "objective"),
    [(None, None), pytest.param(ValueError, None, marks=pytest.mark.slow), (KeyboardInterrupt, Annealed)],
    ids=["stop", "error", "^C"],
)
def test_a_fit_goes_on_in_the_same_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException] | None,
    objective: type[Annealed] | None,
) -> None:
    monkeypatch.setattr(importlib.import_module("pyroflows.infer.starts.polish"), "BLOCK", 10)  # three fits are made

    def run(path: Path | None, callback: Callable | None = None) -> tuple:
        aim = objective and objective(steps=50, first=0.5)
        posterior = quick(learnt, torch.ones(2), steps=150, checkpoint=path, callback=callback, objective=aim)
        return posterior.history, dict(posterior.guide.transform.state_dict()), pyro.param("scale").detach().clone()

    pyro.set_rng_seed(1)
    whole = run(None)
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    try:
        run(tmp_path / "c.pt", stopped_at(130, error))
    except ValueError:
        assert error is ValueError
    told: list[int] = []  # the model's own parameter is not what it was now, nor is the generator
    resumed = run(tmp_path / "c.pt", lambda step, *_: told.append(step))
    assert told == [*range(101 if error is KeyboardInterrupt else 131, 151)]
    assert resumed[0] == whole[0]
    assert_close(resumed[1:], whole[1:], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fit. ")
def test_a_compiled_fit_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    def run(path: Path | None, callback: Callable | None = None) -> tuple:
        posterior = quick(normal, torch.ones(2), steps=150, checkpoint=path, callback=callback, compile=True)
        assert "compiled" in posterior.history.speed
        return posterior.history.elbo, dict(posterior.guide.transform.state_dict())

    pyro.set_rng_seed(1)
    whole = run(None)
    pyro.set_rng_seed(1)
    run(tmp_path / "c.pt", stopped_at(130))
    told: list[int] = []
    assert_close(run(tmp_path / "c.pt", lambda step, *_: told.append(step)), whole, rtol=0, atol=0)
    assert told == [*range(131, 151)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fit. ")
def test_a_guide_that_was_given_starts_from_where_it_stood_at_first(tmp_path: Path) -> None:
    guides = [AutoFlow(normal, SMALL).setup(torch.ones(2)) for _ in range(2)]
    guides[1].load_state_dict(guides[0].state_dict())
    for guide, path, ends in ((guides[0], None, [None]), (guides[1], tmp_path / "c.pt", [1, 103, None])):
        pyro.set_rng_seed(1)
        for end in ends:
            quick(normal, torch.ones(2), guide=guide, steps=120, checkpoint=path, callback=end and stopped_at(end))
    assert_close(guides[1].state_dict(), guides[0].state_dict(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:fit. ")
@pytest.mark.parametrize(
    ("model", "y", "options", "message"),
    [
        (normal, 1.0, {"lr": 0.1}, r"lr 0\.1, got .*c\.pt, with 0\.003: make the call that was made"),
        (normal, 0.0, {}, r"the log joint at point 0 -\d+\.\d+, got .*, with -\d+\.\d+"),
        (other, 1.0, {}, "the log joint at point 0 .*, got .*, with "),
        (fewer, 1.0, {}, r"the latent 'x' of shape \[\], got .*, with \[2\]"),
        (normal, 1.0, {"flow": flows.full_rank}, "flow 'full_rank', got .*, with 'realnvp"),
        (normal, 1.0, {"objective": Renyi()}, r"objective 'Renyi\(alpha=0\.5.*, got .*, with none"),
        (normal, 1.0, {"guide": AutoFlow(normal, SMALL)}, r"given tensors \[\[2\], .*, got .*, with \[\]"),
    ],
    ids=["lr", "data", "model", "latents", "flow", "objective", "guide"],
)
def test_a_checkpoint_of_another_fit(tmp_path: Path, model: Callable, y: float, options: dict, message: str) -> None:
    path = tmp_path / "c.pt"
    quick(normal, torch.ones(2), checkpoint=path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=f"fit expected a checkpoint of the same call, with {message}"):
        quick(model, torch.full((2,), y), checkpoint=path, **options)
    assert path.read_bytes() == content


def test_a_file_that_is_no_checkpoint_of_a_fit(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"expected a checkpoint of fit, got .*, which has no checksum"):
        quick(normal, torch.ones(2), checkpoint=path)
    with pytest.raises(ValueError, match="fit expected a checkpoint in a folder that is there, got"):
        quick(normal, torch.ones(2), checkpoint=tmp_path / "none" / "c.pt")


@pytest.mark.filterwarnings("ignore:fit. ")
def test_stages_that_came_out_differently(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    quick(normal, torch.ones(2), checkpoint=path)
    saved = Checkpoint("fit", path)
    saved._content["states"][0][0]["form"][0] = True
    saved._write()
    with pytest.raises(ValueError, match=r"flow to end as .*, with \[True, .*, got \[False, .*the same version"):
        quick(normal, torch.ones(2), checkpoint=path)


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
    saved = Checkpoint("fit", tmp_path / "c.pt")
    numbers = saved._content["begin"][0].clone()
    saved._content["begin"].extend(torch.zeros(16, dtype=torch.uint8) for _ in range(torch.cuda.device_count(), 9))
    saved.check({})
    torch.rand(3)
    Checkpoint("fit", tmp_path / "c.pt")
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
