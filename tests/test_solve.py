"""Roots and fixed points: values at wild scales, derivatives of both orders, every transform of torch, and errors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from cases import TRACER_WARNING
from pyroflows import solve
from pyroflows.bijectors import RQSpline, Tails
from pyroflows.solve import fixed_point, increasing_root

SLOW_BACKENDS = "aot_eager", "inductor"
WILD = 10.0 ** torch.arange(-6, 7, dtype=torch.float64)
WILD = torch.cat([-WILD.flip(0), torch.zeros(1), WILD])
Y = torch.tensor([-3.0, 0.2, 1.5, 40.0], dtype=torch.float64)
SCALE = torch.tensor([[0.5], [2.0]], dtype=torch.float64)


def cubic(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return x + scale * x**3, (1 + 3 * scale * x**2).log()


def cliff(x: Tensor) -> tuple[Tensor, Tensor]:
    up = torch.sigmoid(1e4 * (x - 0.3))
    return x + 1e3 * up, (1 + 1e7 * up * (1 - up)).log()


def terrace(x: Tensor) -> tuple[Tensor, Tensor]:
    """Flat between 0 and 1."""
    return x.clamp_max(0) + (x - 1).clamp_min(0), ((x < 0) | (x > 1)).to(x).log()


FUNCTIONS = {
    "line": lambda x: (3 * x, torch.full_like(x, 3.0).log()),
    "tiny slope": lambda x: (1e-12 * x, torch.full_like(x, 1e-12).log()),
    "steep": lambda x: (1e12 * x, torch.full_like(x, 1e12).log()),
    "cubic": lambda x: cubic(x, torch.ones_like(x)),
    "no slope at zero": lambda x: (x**3, (3 * x * x).log()),
    "no tangent at zero": lambda x: (x.sign() * x.abs().pow(1 / 3), x.abs().pow(-2 / 3).div(3).log()),
    "exponential": lambda x: (x.sinh(), x.cosh().log()),
    "waves": lambda x: (x + 0.99 * x.sin(), torch.log1p(0.99 * x.cos())),
    "cliff": cliff,
    "terrace": terrace,
}


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_roots_at_wild_scales(name: str, dtype: torch.dtype, traced: bool) -> None:
    function, y = FUNCTIONS[name], WILD.to(dtype)
    x = vmap(lambda v: increasing_root(function, v))(y) if traced else increasing_root(function, y)
    near = [x - 1e-5 * x.abs().clamp_min(1e-30), x + 1e-5 * x.abs().clamp_min(1e-30)]
    below, above = (function(point)[0] for point in near)
    assert (below <= y).all()
    assert (y <= above).all()
    assert x.dtype == dtype
    if dtype == torch.float64 and name != "cliff":
        assert_close(function(x)[0], y, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("size", [1e-30, 1e30, 1e300])
def test_roots_far_out(size: float) -> None:
    y = torch.tensor([-size, size], dtype=torch.float64)
    assert_close(increasing_root(FUNCTIONS["line"], y), y / 3, rtol=1e-14, atol=0.0)


def test_an_eager_root_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(x: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return cubic(x, torch.ones_like(x))

    increasing_root(counted, Y)
    assert len(calls) < 20


def test_what_is_not_finite_is_nan() -> None:
    y = torch.tensor([float("nan"), float("inf"), 10.0])
    scale = torch.tensor([1.0, 1.0, 1.0])
    assert increasing_root(cubic, y, scale).isnan().tolist() == [True, True, False]
    assert increasing_root(cubic, torch.ones(3), scale / torch.tensor([1.0, float("nan"), 1.0]))[1].isnan()


def test_parameters_broadcast() -> None:
    x = increasing_root(cubic, Y, SCALE)
    assert x.shape == (2, 4)
    assert_close(cubic(x, SCALE)[0], Y.expand(2, 4))


def test_derivatives_of_roots() -> None:
    given = [t.clone().requires_grad_() for t in (Y, SCALE)]
    assert gradcheck(lambda y, scale: increasing_root(cubic, y, scale), given)
    assert gradgradcheck(lambda y, scale: increasing_root(cubic, y, scale), given)


def test_gradients_reach_what_a_function_closes_over() -> None:
    scale = SCALE.clone().requires_grad_()
    (found,) = torch.autograd.grad(increasing_root(lambda x: cubic(x, scale), Y).sum(), scale)
    (expected,) = torch.autograd.grad(increasing_root(cubic, Y, scale).sum(), scale)
    assert_close(found, expected)
    x = increasing_root(cubic, Y, SCALE)
    assert_close(found, (-(x**3) / (1 + 3 * SCALE * x**2)).sum(-1, keepdim=True))


def test_a_root_without_slope_has_a_value_and_leaves_others_their_gradients() -> None:
    y = torch.tensor([0.0, 8.0], dtype=torch.float64, requires_grad=True)
    x = increasing_root(FUNCTIONS["no slope at zero"], y)
    assert_close(x.detach(), torch.tensor([0.0, 2.0], dtype=torch.float64))
    (slope,) = torch.autograd.grad(x.sum(), y)
    assert not slope[0].isfinite()
    assert_close(slope[1].item(), 1 / 12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_roots_under_torch_func() -> None:
    def root(y: Tensor, scale: Tensor) -> Tensor:
        return increasing_root(cubic, y, scale)

    scale = SCALE[0, 0]
    expected = increasing_root(cubic, Y, SCALE)
    assert_close(vmap(root, (None, 0))(Y, SCALE[:, 0]), expected)
    slope = 1 / (1 + 3 * scale * root(Y, scale) ** 2)
    for jacobian in (jacrev, jacfwd):
        assert_close(vmap(jacobian(root), (0, None))(Y, scale), slope)
    for second in (hessian(root), jacrev(jacrev(root)), jacfwd(jacfwd(root))):
        assert_close(vmap(second, (0, None))(Y, scale), -6 * scale * root(Y, scale) * slope**3)


def both(call: Callable[..., Tensor], given: list[Tensor]) -> tuple[Tensor, ...]:
    """The value, and gradients for all that is given."""
    leaves = [t.detach().clone().requires_grad_() for t in given]
    value = call(*leaves)
    return value.detach(), *torch.autograd.grad(value.sin().sum(), leaves)


def test_traced_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "TRACED", 12)

    def call(y: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return both(lambda *z: increasing_root(cubic, *z), [y, scale])

    graph = make_fx(call)(Y, SCALE)
    assert_close(graph(Y + 1, SCALE + 1), call(Y + 1, SCALE + 1))


def compiled_like_eager(call: Callable[..., Tensor], given: list[Tensor], backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(call, backend=backend, fullgraph=True)
    assert_close(both(compiled, given), both(call, given), rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings(TRACER_WARNING)
@pytest.mark.parametrize("backend", ["eager", *(pytest.param(b, marks=pytest.mark.slow) for b in SLOW_BACKENDS)])
def test_compiled_roots(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "TRACED", 12)  # a compiler takes seconds for them
    compiled_like_eager(lambda y, scale: increasing_root(cubic, y, scale), [Y, SCALE], backend)


@pytest.mark.parametrize("bijector", [RQSpline(), Tails()], ids=lambda b: type(b).__name__)
def test_a_bijector_is_inverted(bijector: object) -> None:
    params = bijector.unpack(torch.randn(4, bijector.param_count, dtype=torch.float64))
    x = increasing_root(bijector.forward, Y, *params)
    assert_close(x, bijector.inverse(Y, *params)[0])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x.tanh(), torch.log1p(-(x.tanh() ** 2))), r"got none in 3 of 4 places, as for y=-3, with f\(0\)=0"),
        (lambda x: (-x, torch.zeros_like(x)), r"is it bounded, or does it decrease\?"),
    ],
    ids=["bounded", "decreasing"],
)
def test_no_root(function: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        increasing_root(function, Y)
    lost = vmap(lambda y: increasing_root(function, y))(Y)
    assert lost.isnan().sum() >= 3


@pytest.mark.parametrize(("name", "call"), [("increasing_root", increasing_root), ("fixed_point", fixed_point)])
def test_whole_numbers_are_refused(name: str, call: Callable) -> None:
    with pytest.raises(TypeError, match=rf"{name} expected a floating-point tensor, got torch.int64: convert"):
        call(None, torch.ones(2, dtype=torch.int64))


SHIFT = torch.tensor([[1.0, -2.0, 0.5], [1e4, 0.0, -3.0]], dtype=torch.float64)
WEIGHT = 0.2 * torch.tensor([[1.0, -1.0, 0.5], [0.3, 0.2, 1.0], [-1.0, 0.5, 0.5]], dtype=torch.float64)


def contraction(x: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    return shift - (x @ weight).tanh() - 0.1 * x


def residual(shift: Tensor, weight: Tensor) -> Tensor:
    return fixed_point(contraction, torch.zeros_like(shift), shift, weight, steps=40)


def test_fixed_points() -> None:
    x = residual(SHIFT, WEIGHT)
    assert_close(contraction(x, SHIFT, WEIGHT), x, rtol=1e-14, atol=1e-11)
    assert_close(residual(SHIFT.float(), WEIGHT.float()), x.float())
    for row, alone in zip(x, SHIFT, strict=True):
        assert_close(residual(alone, WEIGHT), row)


def test_fixed_points_of_scalars_and_images() -> None:
    x = fixed_point(lambda x: torch.cos(x), torch.zeros(2, dtype=torch.float64), event_dim=0)
    assert_close(x, torch.full_like(x, 0.7390851332151607), rtol=1e-14, atol=0.0)
    image = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    kernel = torch.full((1, 1, 3, 3), 0.08, dtype=torch.float64)
    x = fixed_point(lambda x: image - torch.conv2d(x, kernel, padding=1), torch.zeros_like(image), event_dim=3)
    assert_close(x + torch.conv2d(x, kernel, padding=1), image)


def test_derivatives_of_fixed_points() -> None:
    given = [t.clone().requires_grad_() for t in (SHIFT[:1], WEIGHT)]
    assert gradcheck(residual, given)
    assert gradgradcheck(residual, given)


def test_a_fixed_point_keeps_nothing_of_the_way() -> None:
    """Whether one starts at the solution or far off, the graph is the same."""

    def nodes(start: Tensor) -> int:
        x = fixed_point(lambda x: contraction(x, SHIFT, weight), start)
        stack, seen = [x.grad_fn], set()
        while stack:
            node = stack.pop()
            if node is not None and node not in seen:
                seen.add(node)
                stack += [parent for parent, _ in node.next_functions]
        return len(seen)

    weight = WEIGHT.clone().requires_grad_()
    assert nodes(residual(SHIFT, WEIGHT)) == nodes(1e6 * SHIFT) < 50


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_fixed_points_under_torch_func() -> None:
    assert_close(vmap(residual, (0, None))(SHIFT, WEIGHT), residual(SHIFT, WEIGHT))
    expected = torch.autograd.functional.jacobian(lambda shift: residual(shift, WEIGHT), SHIFT[0])
    for jacobian in (jacrev, jacfwd):
        assert_close(jacobian(residual)(SHIFT[0], WEIGHT), expected)
    expected = torch.autograd.functional.hessian(lambda shift: residual(shift, WEIGHT).sum(), SHIFT[0])
    assert_close(hessian(lambda shift: residual(shift, WEIGHT).sum())(SHIFT[0]), expected)


def test_traced_fixed_points() -> None:
    def call(shift: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return both(residual, [shift, weight])

    graph = make_fx(call)(SHIFT, WEIGHT)
    assert_close(graph(SHIFT + 1, WEIGHT / 2), call(SHIFT + 1, WEIGHT / 2))


@pytest.mark.filterwarnings(TRACER_WARNING)
@pytest.mark.parametrize("backend", ["eager", *(pytest.param(b, marks=pytest.mark.slow) for b in SLOW_BACKENDS)])
def test_compiled_fixed_points(backend: str) -> None:
    compiled_like_eager(residual, [SHIFT, WEIGHT], backend)


def test_no_fixed_point() -> None:
    start = torch.ones(2, 3)
    with pytest.raises(ValueError, match="expected a contraction, got changes of nan after 1000 iterations in 1 of 2"):
        fixed_point(lambda x: x * torch.tensor([[2.0], [0.5]]), start)
    with pytest.raises(ValueError, match="bound its slope well below 1, or allow more steps"):
        fixed_point(lambda x: 1 - x, torch.zeros(3))
    assert vmap(lambda x: fixed_point(lambda x: 1 - x, x))(torch.zeros(2, 3)).isnan().all()
    assert fixed_point(lambda x: x / 2, torch.tensor([[1.0], [float("nan")]])).isnan().flatten().tolist() == [
        False,
        True,
    ]
