"""What every test starts from: one thread, no display, a fixed seed, an empty parameter store, validation."""

import importlib
import os
from collections.abc import Iterator

os.environ["MPLBACKEND"] = "Agg"  # in the environment, so that examples run as subprocesses get it too

import pyro
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_pyro() -> None:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    pyro.enable_validation(True)  # torch.compile turns that of distributions off for good


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True, scope="module")
def _short_affine_stage() -> Iterator[None]:
    """Blocks of 60 steps in place of 300 in the affine stage of fits, which takes most of the time of short ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("pyroflows.infer.starts.polish"), "BLOCK", 60)
        yield


@pytest.fixture
def whole_affine_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The affine stage as users have it."""
    monkeypatch.setattr(importlib.import_module("pyroflows.infer.starts.polish"), "BLOCK", 300)


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search for missed modes, where something else of a fit is tested: that takes most of one of few steps."""
    monkeypatch.setattr(importlib.import_module("pyroflows.fitting.problem"), "note_missed", lambda *_: [])
