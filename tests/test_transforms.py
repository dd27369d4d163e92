"""Transforms beyond their laws: formulas, options, what is saved, what is shown."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from cases import moved
from pyroflows.bijectors import Affine, LeakyReLU, RQSpline, Shift
from pyroflows.flows import realnvp
from pyroflows.transforms import Affine as AffineMap
from pyroflows.transforms import (
    Autoregressive,
    Compose,
    Conditioned,
    Coupling,
    Elementwise,
    Inverse,
    LowerTriangular,
    Permute,
)
from pyroflows.transforms.autoregressive_inverse import invert


def test_permute_reorders_and_back() -> None:
    permute, x = Permute(3, [2, 0, 1]), torch.tensor([1.0, 2.0, 3.0])
    assert permute(x).tolist() == [3.0, 1.0, 2.0]
    assert permute.inv(torch.tensor([3.0, 1.0, 2.0])).tolist() == x.tolist()
    assert Permute(3, torch.tensor([2, 0, 1]))(x).tolist() == [3.0, 1.0, 2.0]
    assert Permute(3, "reversed")(x).tolist() == [3.0, 2.0, 1.0]
    assert Permute(3, "natural")(x).tolist() == x.tolist()


def test_a_random_order_follows_the_seed() -> None:
    def order(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return Permute(20).order

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1), order(2))


@pytest.mark.parametrize("name", ["permute", "coupling", "autoregressive", "affine", "lower_triangular"])
def test_everything_random_or_given_at_the_start_is_saved(name: str) -> None:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        made = {
            "permute": lambda: Permute(9),
            "coupling": lambda: Coupling(9, Affine(), mask=torch.randperm(9) < 4),
            "autoregressive": lambda: Autoregressive(9, Affine(), order="random"),
            "affine": lambda: AffineMap(9, loc=torch.randn(9), scale=torch.rand(9)),
            "lower_triangular": lambda: LowerTriangular(9, rank=2, loc=torch.randn(9), scale=torch.rand(9)),
        }[name]()
        return moved(made)

    first, second, x = make(1), make(2), torch.randn(5, 9)
    assert not torch.allclose(first(x), second(x))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer), strict=True)
    assert torch.equal(first(x), second(x))
    assert_close(second.inv(first(x).clone()), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masks", [("halves", "alternating"), ([True, False, False, True], "halves")])
def test_a_loaded_mask_is_used(masks: tuple) -> None:
    x = torch.randn(5, 4)
    for one, other in (masks, masks[::-1], (masks[0], [False, False, True, True])):
        first, second = (moved(Coupling(4, Affine(), mask=mask)) for mask in (one, other))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(x), second(x))
        assert torch.equal(first.kept, second.kept)


def test_affine_starts_at_its_initial_values() -> None:
    x, loc, scale = torch.randn(4, 2), torch.tensor([100.0, -3.0]), torch.tensor([1e-3, 50.0])
    for made in (AffineMap(2, loc=loc, scale=scale), LowerTriangular(2, loc=loc, scale=scale)):
        y, ladj = made.call_and_ladj(x)
        assert_close(y, loc + scale * x)
        assert_close(ladj, scale.log().sum().expand(4))
    assert_close(AffineMap(2, loc=7.0, scale=2.0)(x), 7.0 + 2.0 * x)


def test_affine_scale_stays_finite_whatever_the_parameter() -> None:
    made = AffineMap(2)
    made.params.value.data.copy_(torch.tensor([0.0, 0.0, -1e30, 1e30]))
    y, ladj = made.call_and_ladj(torch.ones(2))
    assert (y > 0).all()
    assert y.isfinite().all()
    assert ladj.isfinite()


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_lower_triangular_reaches_a_full_covariance(rank: int) -> None:
    made = moved(LowerTriangular(4, rank=rank)).double()
    jacobian = torch.autograd.functional.jacobian(made, torch.zeros(4, dtype=torch.float64))
    covariance = jacobian @ jacobian.T
    assert (covariance != 0).all()
    assert (torch.linalg.eigvalsh(covariance) > 0).all()
    above = jacobian.triu(1)
    assert (above == 0).all() == (rank == 0)


def test_whitening_keeps_the_map_and_starts_the_parameters_again() -> None:
    made, x = moved(LowerTriangular(4, loc=5.0, scale=0.1)).double(), torch.randn(6, 4).double()
    for _ in range(2):
        y, ladj = made.call_and_ladj(x)
        assert made.whiten_() is made
        assert (made.params.value == 0).all()
        assert_close(made.call_and_ladj(x), (y, ladj))
        assert_close(made.inv(y), x)
        moved(made)
        assert not torch.allclose(made(x), y)


def test_lower_triangular_starts_beside_the_saddle_of_its_factor() -> None:
    made = LowerTriangular(3, rank=2)
    made(torch.randn(5, 3)).square().sum().backward()
    *_, factor = made.params.value.grad.split(made.sizes)
    assert (factor != 0).all()


def test_coupling_keeps_what_its_mask_says() -> None:
    x = torch.randn(6, 5)
    for mask, kept in (
        ("halves", [0, 1]),
        ("alternating", [0, 2, 4]),
        ([False, True, True, False, True], [1, 2, 4]),
    ):
        layer = moved(Coupling(5, RQSpline(), mask=mask))
        unchanged = (layer(x) == x).all(dim=0)
        assert layer.kept.tolist() == kept
        assert unchanged.nonzero().flatten().tolist() == kept


def test_coupling_takes_any_network() -> None:
    seen = {}

    class Own(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            seen.update(inputs=inputs, outputs=outputs)
            self.only = nn.Parameter(torch.zeros(outputs))

        def forward(self, z: Tensor) -> Tensor:
            return self.only * z.sum(-1, keepdim=True)

    layer = Coupling(5, Affine(), context_dim=3, net=Own)
    assert seen == {"inputs": 2 + 3, "outputs": 3 * 2}
    assert [name for name, _ in layer.named_parameters()] == ["net.only"]
    x = torch.randn(4, 5)
    assert_close(layer(x, torch.ones(3)), x)


def test_elementwise_does_not_mix() -> None:
    layer = moved(Elementwise(4, RQSpline())).double()
    jacobian = torch.autograd.functional.jacobian(layer, torch.randn(4, dtype=torch.float64))
    assert torch.equal(jacobian, jacobian.diag().diag())


def test_elementwise_shares_one_set_of_parameters() -> None:
    shared, own = Elementwise(3, LeakyReLU(), shared=True), Elementwise(3, LeakyReLU())
    assert [sum(p.numel() for p in layer.parameters()) for layer in (shared, own)] == [1, 3]
    y = moved(shared)(-torch.ones(3))
    assert y.unique().numel() == 1
    assert moved(own)(-torch.ones(3)).unique().numel() == 3


@pytest.mark.parametrize("fast", ["forward", "inverse"])
def test_autoregressive_is_fast_in_the_direction_asked(fast: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = []
    target = "pyroflows.transforms.autoregressive.invert"
    monkeypatch.setattr(target, lambda *args: walks.append(args) or invert(*args))
    layer = Autoregressive(3, Shift(), fast=fast)
    quick, slow = (layer, layer.inv) if fast == "forward" else (layer.inv, layer)
    quick(torch.randn(2, 3))
    assert len(walks) == 0
    slow(torch.randn(2, 3))
    assert len(walks) == 1


def test_a_chain_is_as_fast_as_its_slowest_part() -> None:
    sample, score = Autoregressive(2, Shift(), fast="forward"), Autoregressive(2, Shift(), fast="inverse")
    assert [t.fast for t in (Permute(2), sample, score, sample.inv, score.inv)] == [
        *("both", "forward", "inverse", "inverse", "forward")
    ]
    assert Compose([Permute(2), AffineMap(2)]).fast == "both"
    assert Compose([Permute(2), sample]).fast == "forward"
    assert Compose([score, sample.inv]).fast == "inverse"
    assert Compose([score, sample]).fast == Compose([Compose([score, sample]), Permute(2)]).fast == "neither"
    assert Autoregressive(2, Shift(), 1).condition(torch.ones(1)).fast == "forward"


def test_the_first_dimension_in_order_depends_on_nothing() -> None:
    layer = moved(Autoregressive(4, Affine(), order=[2, 0, 3, 1])).double()
    jacobian = torch.autograd.functional.jacobian(layer, torch.randn(4, dtype=torch.float64))
    assert [int((row != 0).sum()) for row in jacobian] == [2, 4, 1, 3]


def test_compose_is_one_list() -> None:
    first, second, x = moved(AffineMap(2)), moved(AffineMap(2)), torch.randn(4, 2)
    flow = Compose([first, second])
    assert len(flow) == 2
    assert flow[0] is first
    assert list(flow) == [first, second]
    assert_close(flow(x), second(first(x)))
    assert_close(flow.inv(x), first.inv(second.inv(x)))
    flow.transforms[0] = Permute(2, "reversed")
    assert_close(flow(x), second(x.flip(-1)))
    flow.transforms.append(Permute(2, "reversed"))
    assert_close(flow(x), second(x.flip(-1)).flip(-1))


def test_compose_gives_the_context_to_the_parts_that_take_it() -> None:
    part = moved(Elementwise(2, Affine(), context_dim=3))
    flow, x, context = Compose([Permute(2, "reversed"), part]), torch.randn(4, 2), torch.randn(4, 3)
    assert flow.context_dim == 3
    assert_close(flow(x, context), part(x.flip(-1), context))


def test_inverse_of_the_inverse_is_the_transform() -> None:
    layer = Coupling(3, Affine())
    assert isinstance(layer.inv, Inverse)
    assert layer.inv.inv is layer
    view = Coupling(3, Affine(), 2).inv.condition(torch.zeros(2))
    assert isinstance(view.inv, Conditioned)
    assert view.context_dim == 0


def test_condition_is_a_view_over_the_same_parameters() -> None:
    flow = realnvp(2, context_dim=3, layers=2, hidden_dims=(8,))
    view = flow.condition(torch.ones(5, 3))
    assert view.batch_shape == (5,)
    assert view.forward_shape(torch.Size([4, 1, 2])) == (4, 5, 2)
    assert {id(p) for p in view.parameters()} == {id(p) for p in flow.parameters()}
    before = view(torch.zeros(2))
    moved(flow)
    assert not torch.allclose(before, view(torch.zeros(2)))
    plain = realnvp(2, layers=2, hidden_dims=(8,))
    assert plain.condition(None) is plain


def test_a_context_carries_gradients() -> None:
    flow, context = (
        moved(realnvp(2, context_dim=3, layers=2, hidden_dims=(8,))),
        torch.ones(3, requires_grad=True),
    )
    flow.condition(context)(torch.randn(4, 2)).sum().backward()
    assert (context.grad != 0).all()


def test_the_memory_needs_no_switch() -> None:
    flow = realnvp(2, layers=2, hidden_dims=(8,))
    assert flow.with_cache(0) is flow.with_cache(1) is flow


def test_repr_says_what_it_is() -> None:
    layer = Coupling(3, RQSpline(bins=5), context_dim=2, mask="alternating", hidden_dims=(7,))
    assert repr(layer).startswith(
        "Coupling(\n  input_dim=3, context_dim=2, RQSpline(bins=5, bound=4.0, min_bin=0.15, tails='identity'), kept="
    )
    assert "Autoregressive(\n  input_dim=2, Shift(), fast='inverse'" in repr(Autoregressive(2, Shift(), fast="inverse"))
    assert "Elementwise(\n  input_dim=2, LeakyReLU(bound=6.9" in repr(Elementwise(2, LeakyReLU(), shared=True))
    assert "shared=True" in repr(Elementwise(2, LeakyReLU(), shared=True))
    assert repr(Permute(3)) == "Permute(input_dim=3)"


def test_transforms_hash_by_identity_and_survive_a_deepcopy_of_a_list() -> None:
    layer = moved(AffineMap(2))
    assert len({layer, layer.inv.inv, copy.deepcopy(layer)}) == 2
    tied = copy.deepcopy(Compose([layer, Permute(2), layer]))
    assert tied[0] is tied[2]
