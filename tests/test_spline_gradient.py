"""The written gradient of splines equals autograd's, in both directions, wherever it is used."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyroflows.bijectors import RQSpline
from pyroflows.bijectors.spline import gradient, spline
from pyroflows.compile import capture

SPLINE = RQSpline(6, 3.0)
SHAPES = {
    "one for each": ((40, 5), (40, 5)),
    "one for each column": ((40, 5), (5,)),
    "many for one": ((5,), (7, 5)),
    "a scalar": ((), (3,)),
}
Way = Callable[..., tuple[Tensor, Tensor]]
pytestmark = pytest.mark.usefixtures("_float64")


@pytest.fixture(params=["forward", "inverse"])
def way(request: pytest.FixtureRequest) -> Way:
    return getattr(SPLINE, request.param)


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One for each use."""
    found: list[bool] = []
    real = gradient._Spline.forward
    monkeypatch.setattr(gradient._Spline, "forward", staticmethod(lambda *a: found.append(True) or real(*a)))
    return found


def given(shapes: str = "one for each", scale: float = 1.0) -> list[Tensor]:
    """An input, some of it outside the interval, and parameters; with a scale of 0 all bins are alike."""
    torch.manual_seed(0)
    z, params = SHAPES[shapes]
    raw = [scale * torch.randn(*params, count) for count in (6, 6, 5)]
    return [t.requires_grad_() for t in (2 * torch.randn(z), *raw)]


def loss(value: Tensor, ladj: Tensor) -> Tensor:
    return (value.sin() * torch.arange(1, value.shape[-1] + 1)).sum() + (ladj + ladj.square()).sum()


def by_autograd(monkeypatch: pytest.MonkeyPatch, function: Callable[[], list[Tensor]]) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(spline, "is_plain_backward", lambda *tensors: False)
        return function()


def close(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("shapes", SHAPES)
def test_gradients(way: Way, shapes: str, scale: float, uses: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = given(shapes, scale)

    def slopes() -> list[Tensor]:
        return list(torch.autograd.grad(loss(*way(*tensors)), tensors))

    expected = by_autograd(monkeypatch, slopes)
    assert not uses
    close(slopes(), expected)
    assert uses


@pytest.mark.parametrize("which", [0, 1], ids=["value", "ladj"])
def test_gradients_of_one_output(way: Way, which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = given()

    def slopes() -> list[Tensor]:
        return list(torch.autograd.grad(way(*tensors)[which].sin().sum(), tensors))

    close(slopes(), by_autograd(monkeypatch, slopes))


def test_gradients_of_some_inputs(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = given()
    tensors[0].requires_grad_(False)
    tensors[2].requires_grad_(False)

    def slopes() -> list[Tensor]:
        return list(torch.autograd.grad(loss(*way(*tensors)), tensors[1::2]))

    close(slopes(), by_autograd(monkeypatch, slopes))


@pytest.mark.parametrize("shapes", SHAPES)
def test_second_derivatives(way: Way, shapes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = given(shapes)

    def bends() -> list[Tensor]:
        slopes = torch.autograd.grad(loss(*way(*tensors)), tensors, create_graph=True)
        return list(torch.autograd.grad(sum(slope.sin().sum() for slope in slopes), tensors))

    close(bends(), by_autograd(monkeypatch, bends))


@pytest.mark.parametrize("dims", [(0, 0, 0, 0), (0, None, None, None), (1, 0, 1, None)], ids=str)
def test_under_vmap(way: Way, dims: tuple, uses: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [t if dim is not None else t.detach()[0].requires_grad_() for t, dim in zip(given(), dims, strict=True)]
    tensors = [t.detach().movedim(0, dim or 0).requires_grad_() for t, dim in zip(tensors, dims, strict=True)]

    def slopes() -> list[Tensor]:
        return list(torch.autograd.grad(loss(*torch.vmap(way, dims)(*tensors)), tensors))

    expected = by_autograd(monkeypatch, slopes)
    assert not uses
    close(slopes(), expected)
    assert uses
    close(capture(lambda: loss(*torch.vmap(way, dims)(*tensors)), parameters=tensors)()[1], expected)


def test_traced_gradients_take_few_operations(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = given()

    def graph() -> list[Tensor]:
        traced = capture(lambda: loss(*way(*tensors)), parameters=tensors)
        sizes.append(len(traced.module.graph.nodes))
        return traced()[1]

    sizes: list[int] = []
    close(graph(), by_autograd(monkeypatch, graph))
    assert sizes[0] < 0.9 * sizes[1]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_other_derivatives_are_left_to_autograd(way: Way, uses: list[bool]) -> None:
    z, *raw = (t.detach() for t in given())
    _, slope = torch.func.jvp(lambda z: way(z, *raw)[0], (z,), (torch.ones_like(z),))
    close(slope, way(z, *raw)[1].exp())
    assert not uses
