"""What the VAE refuses in all its methods, and what it takes as it comes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn
from torch.testing import assert_close

from pyroflows import VAE, FlowEncoder, FlowPrior, NormalPrior, files

X = torch.arange(24.0).view(3, 8) % 2
NAN = torch.where(torch.arange(24).view(3, 8) == 5, torch.nan, X)
quiet = {"progress": False}


def build(prior: nn.Module | None = None) -> VAE:
    return VAE(FlowEncoder(nn.Linear(8, 4), 4, 2), nn.Linear(2, 8), prior or NormalPrior(2))


def classes() -> VAE:
    return build(FlowPrior(2, context_dim=2))


def step(x: Tensor, context: Tensor | None = None) -> float:
    vae = build() if context is None else classes()
    return SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(x, context)


def iterator() -> Iterator[Tensor]:
    yield X


RANGE = "support of its likelihood, Boolean.*from 0 to 9"
ROWS = "expected 3 rows of context, one for each of the data, got 4"
NUMBERS = "VAE expected numbers, got NaN in 1 of"
WRONG = {
    "reconstruct_range": (lambda: build().reconstruct(9 * X), RANGE),
    "interpolate_range": (lambda: build().interpolate(X[0], 9 * X[1]), RANGE),
    "interpolate_nan": (lambda: build().interpolate(X[0], NAN[0]), NUMBERS),
    "interpolate_steps": (lambda: build().interpolate(X[0], X[1], 0), "steps to be a whole number from 1 on, got 0"),
    "elbo_nan": (lambda: build().elbo(NAN), NUMBERS),
    "elbo_context": (lambda: classes().elbo(X, torch.ones(4, 2)), ROWS),
    "svi_nan": (lambda: step(NAN), NUMBERS),
    "svi_context": (lambda: step(X, torch.ones(4, 2)), ROWS),
    "no_rows": (lambda: build().log_likelihood(X[:0]), "at least one row of data, got none"),
    "no_rows_fit": (lambda: build().fit([X[:0]], 1, **quiet), "at least one row of data, got none"),
    "generate": (lambda: build().generate(-1), "n to be a whole number from 0 on, got -1"),
    "generate_context": (lambda: classes().generate(3, context=torch.ones(4, 2)), r"of 3 rows, .* got \(4, 2\)"),
    "epochs": (lambda: build().fit([X], 0, **quiet), "epochs to be a whole number from 1 on, got 0"),
    "patience": (lambda: build().fit([X], 1, patience=0, **quiet), "patience to be a whole number from 1 on, got 0"),
    "iterator": (lambda: build().fit(iterator(), 2, **quiet), "an iterator, which cannot be run through again"),
    "validation": (lambda: build().fit([X], 1, validation=[], **quiet), "one batch for validation, got none"),
    "numpy": (lambda: build().fit([np.ones((3, 8))], 1, **quiet), "expected tensors as data and context, got ndarray"),
    "dict": (lambda: build().fit([{"x": X}], 1, **quiet), "expected tensors as data and context, got dict"),
    "latents": (
        lambda: build(NormalPrior(1)).elbo(X),
        r"of one latent_dim, got a prior of \(1,\) and latents \(3, 2\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("hello"), "expected a checkpoint .*, which has no checksum at its end"),
        (lambda path: torch.save({"weights": X}, path), "expected a checkpoint .*, which has no checksum at its end"),
        (
            lambda path: files.write({"weights": X}, path),
            "expected a checkpoint of .* with the entries",
        ),
        (lambda path: files.write(Path, path), "expected a checkpoint .*, which cannot be read: "),
        (lambda path: files.write(torch.nn.Linear(1, 1), path), "expected a checkpoint .*, which cannot be read: "),
    ],
    ids=["text", "torch", "weights", "code", "module"],
)
def test_a_file_that_is_no_checkpoint(write: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "vae.pt"
    write(path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        build().fit([X], 1, checkpoint=path, **quiet)
    assert path.read_bytes() == content


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    vae = build()
    before = vae.decoder.weight.clone()
    with pytest.raises(ValueError, match="a checkpoint in a folder that is there, got"):
        vae.fit([X], 1, checkpoint=tmp_path / "none" / "vae.pt", **quiet)
    assert_close(vae.decoder.weight, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.double, torch.uint8])
def test_takes_any_dtype(dtype: torch.dtype) -> None:
    vae, x = build(), X.to(dtype)
    assert vae.elbo(x).shape == vae.log_likelihood(x, 5).shape == (3,)
    assert vae.reconstruct(x).shape == vae.interpolate(x[0], x[1], 3).shape == (3, 8)
