"""Gradient steps on a full-rank Gaussian: exact where the target is one, in place in a flow, refused without end."""

import sys
from functools import partial

import pyro
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyroflows import FlowDistribution
from pyroflows.infer import Gaussian, ascend, log_weights, polish
from pyroflows.transforms import Affine, Compose, LowerTriangular

TARGET = Gaussian(torch.tensor([3.0, -1.0]), torch.tensor([[2.0, 0.0], [1.5, 0.1]]))
polish_module = sys.modules["pyroflows.infer.starts.polish"]


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polish_module, "BLOCK", 150)
    pyro.set_rng_seed(0)


def test_a_gaussian_is_found() -> None:
    levels = []
    found = polish(TARGET.log_prob, Gaussian(torch.zeros(2), torch.eye(2)), progress=levels.append)
    assert_close(found.loc, TARGET.loc, rtol=0.01, atol=0.01)
    assert_close(found.scale_tril, TARGET.scale_tril, rtol=0.02, atol=0.02)
    assert levels[-1] == pytest.approx(0.0, abs=0.01)


def test_only_the_affine_map_moves() -> None:
    first, affine = Affine(2, scale=0.5), LowerTriangular(2)
    before = [p.clone() for p in first.parameters()]
    flow = FlowDistribution(transform=Compose([first, affine]))
    bad = ascend(affine, partial(log_weights, flow, TARGET.log_prob, 32, path=True))
    assert bad == 0
    assert_close(list(first.parameters()), before)
    assert (flow.sample((4000,)).mean(0) - TARGET.loc).abs().max() < 0.15


def test_an_improper_posterior_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polish_module, "BLOCKS", 3)
    monkeypatch.setattr(polish_module, "RUNAWAY", 3.0)

    def flat(z: Tensor) -> Tensor:
        return -z[:, 0].square()

    message = r"expected a proper posterior, got one .* of the unconstrained dimensions \[1\] has grown"
    with pytest.raises(ValueError, match=message):
        polish(flat, Gaussian(torch.zeros(2), torch.eye(2)))
