"""``TracedDensity``: values and slopes of any number of rows are those of the density that was traced."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyroflows.compile import TracedDensity, Untraceable

WEIGHTS = torch.tensor([1.0, 2.0, -0.5])


def bumpy(z: Tensor) -> Tensor:
    return (WEIGHTS * z).sin().sum(-1) - z.square().sum(-1)


TRACED = TracedDensity(bumpy, torch.zeros(3), rows=4)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (4,), (9,), (2, 5)])
def test_any_number_of_rows(batch: tuple[int, ...]) -> None:
    z = torch.randn(*batch, 3, requires_grad=True)
    expected = bumpy(z)
    (slope,) = torch.autograd.grad(expected.sum(), z)
    value, score = TRACED.value_and_score(z)
    assert_close(value, expected.detach())
    assert_close(score, slope)
    assert not value.requires_grad


def test_gradients_flow_through() -> None:
    u = torch.randn(6, 3, requires_grad=True)
    weights = torch.rand(6)
    found, expected = (torch.autograd.grad((weights * f(u.exp())).sum(), u)[0] for f in (TRACED, bumpy))
    assert_close(found, expected)


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"TracedDensity expected vectors of size 3, got shape \(5, 1\)"):
        TRACED(torch.zeros(5, 1))


def test_a_branch_is_refused() -> None:
    with pytest.raises(Untraceable, match="a value is read by Python"):
        TracedDensity(lambda z: z.sum(-1) if z.sum() > 0 else -z.sum(-1), torch.zeros(3))
