"""Recipes: they start at the identity, leave no dimension as it is, and take their options."""

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from torch import Tensor, nn
from torch.testing import assert_close

from cases import SMALL, moved
from pyroflows import flows
from pyroflows.bijectors import Affine, Bend, RQSpline, Shift, Tails
from pyroflows.transforms import Affine as AffineMap
from pyroflows.transforms import Autoregressive, Compose, Coupling, Elementwise, FlowTransform, LowerTriangular, Permute

RECIPES: dict[str, Callable[..., Compose]] = {
    "nice": flows.nice,
    "realnvp": flows.realnvp,
    "maf": flows.maf,
    "iaf": flows.iaf,
    "nsf": flows.nsf,
    "nsf_maf": partial(flows.nsf, structure="autoregressive"),
    "nsf_iaf": partial(flows.nsf, structure="autoregressive", fast="forward"),
    "copula": flows.copula,
    "full_rank": flows.full_rank,
    "planar": partial(flows.planar, layers=6),
    "radial": partial(flows.radial, layers=6),
    "sylvester": flows.sylvester,
    "residual": partial(flows.residual, lipschitz=0.5),
    "bnaf": partial(flows.bnaf, units=3),
    "gaussianization": partial(flows.gaussianization, layers=4, components=3),
    "naf": partial(flows.naf, components=3),
    "sospf": flows.sospf,
    "bpf": partial(flows.bpf, degree=5),
    "unaf": partial(flows.unaf, width=3),
    "flowpp": partial(flows.flowpp, components=3),
}
# The fewest layers that a recipe allows.
SHALLOW = {n: partial(RECIPES[n], layers=2 if n in ("nice", "realnvp", "nsf", "flowpp") else 1) for n in RECIPES}
SHALLOW["full_rank"] = flows.full_rank
# What mixes as maf does, and what takes long in the other direction.
LIKE_MAF = {"naf", "sospf", "bpf", "unaf"}
ONE_WAY = {"bnaf", "gaussianization", "flowpp", "residual", "sylvester"}


def randomised(flow: Compose) -> Compose:
    return moved(flow).double()


def jacobian(flow: Compose, x: Tensor, context: Tensor | None = None) -> Tensor:
    return torch.autograd.functional.jacobian(lambda z: flow(z, context), x)


@pytest.mark.parametrize("input_dim", [1, 2, 5])
@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("name", RECIPES)
def test_starts_at_the_identity(name: str, context_dim: int, input_dim: int) -> None:
    flow = RECIPES[name](input_dim, context_dim, **SMALL)
    x, context = 3 * torch.randn(20, input_dim), torch.randn(20, context_dim) if context_dim else None
    for there in (flow, flow.inv):
        value, ladj = there.call_and_ladj(x, context)
        assert_close(value, x, rtol=1e-5, atol=1e-5)
        assert_close(ladj, torch.zeros(20), rtol=0, atol=1e-5)


@pytest.mark.parametrize("input_dim", [1, 2, 3, 6])
@pytest.mark.parametrize("name", RECIPES)
def test_moves_every_dimension(name: str, input_dim: int) -> None:
    flow, x = randomised(SHALLOW[name](input_dim, **SMALL)), torch.randn(10, input_dim).double()
    assert ((flow(x) - x).abs() > 1e-6).all()


@pytest.mark.parametrize("name", [n for n in RECIPES if n not in LIKE_MAF | {"full_rank"}])
def test_mixes_every_dimension(name: str) -> None:
    for _ in range(1 if name in ONE_WAY else 3):
        flow = randomised(RECIPES[name](6, **SMALL))
        for way in (flow, flow.inv) if name not in ONE_WAY else (flow.inv if flow.fast == "inverse" else flow,):
            largest = torch.stack([jacobian(way, x).abs() for x in torch.randn(5, 6).double()]).amax(dim=0)
            assert (largest > 1e-12).all()


@pytest.mark.parametrize("input_dim", [2, 3, 5])
@pytest.mark.parametrize("name", ["nice", "realnvp", "nsf"])
def test_two_couplings_already_let_every_dimension_hear_another(name: str, input_dim: int) -> None:
    flow = randomised(SHALLOW[name](input_dim, **SMALL))
    others = torch.stack([jacobian(flow, x).fill_diagonal_(0) for x in torch.randn(5, input_dim).double()])
    assert (others.abs().amax(dim=(0, 2)) > 1e-12).all()


def test_full_rank_correlates_every_pair() -> None:
    flow = randomised(flows.full_rank(5))
    moved = jacobian(flow, torch.zeros(5).double())
    assert ((moved @ moved.T).abs() > 1e-12).all()


@pytest.mark.parametrize("input_dim", [1, 4])
@pytest.mark.parametrize("name", RECIPES)
def test_every_dimension_hears_the_context(name: str, input_dim: int) -> None:
    flow = randomised(RECIPES[name](input_dim, 2, **SMALL))
    x, context = torch.randn(input_dim).double(), torch.randn(2).double()
    heard = torch.autograd.functional.jacobian(lambda c: flow(x, c), context)
    assert (heard.abs() > 1e-12).all()


@pytest.mark.parametrize("name", RECIPES)
def test_a_seed_fixes_a_flow(name: str) -> None:
    def build(seed: int) -> dict[str, Tensor]:
        pyro.set_rng_seed(seed)
        return RECIPES[name](7, **SMALL).state_dict()

    assert_close(build(3), build(3), rtol=0, atol=0)
    if name not in ("full_rank", "gaussianization"):
        assert any(not torch.equal(a, b) for a, b in zip(build(3).values(), build(4).values(), strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_exist_before_the_first_call(name: str) -> None:
    flow = RECIPES[name](3, 2, **SMALL)
    before = {n: p.shape for n, p in flow.named_parameters()}
    flow(torch.randn(4, 3), torch.randn(2))
    assert before == {n: p.shape for n, p in flow.named_parameters()}
    assert len(before) > 0


def layers_of(flow: Compose) -> list[FlowTransform]:
    return [part for part in flow if not isinstance(part, Permute)]


def kinds(flow: Compose) -> list[type]:
    return [type(part) for part in layers_of(flow)]


def test_layers() -> None:
    assert kinds(flows.nice(3, layers=4)) == [Coupling] * 4 + [AffineMap]
    assert kinds(flows.realnvp(3, layers=5)) == [Coupling] * 5 + [Elementwise] * 2
    assert kinds(flows.realnvp(3, layers=2, bends=0)) == [Coupling] * 2
    assert kinds(flows.maf(3, layers=2)) == kinds(flows.iaf(3, layers=2)) == [Autoregressive] * 2
    assert kinds(flows.nsf(3, layers=2)) == [Coupling, Coupling, AffineMap]
    assert kinds(flows.nsf(3, structure="autoregressive", layers=1)) == [Autoregressive, AffineMap]
    assert kinds(flows.copula(3, layers=1)) == [Autoregressive, LowerTriangular, Elementwise]
    assert kinds(flows.full_rank(3)) == [LowerTriangular]


def test_one_dimension() -> None:
    assert kinds(flows.nice(1)) == [AffineMap]
    for name in ("realnvp", "maf", "iaf", "nsf", "nsf_maf", "copula"):
        flow = RECIPES[name](1, 2, **SMALL)
        assert kinds(flow) == [Elementwise, AffineMap] + [Elementwise] * (2 if name == "realnvp" else 0)
        assert flow.context_dim == 2
    assert flows.nsf(1, bins=5, bound=2.0)[0].bijector == RQSpline(bins=5, bound=2.0)


def test_bijectors() -> None:
    plain = flows.realnvp(3, bound=1.5, bends=0)
    assert {part.bijector for part in layers_of(plain)} == {Affine(bound=1.5)}
    assert [part.bijector for part in layers_of(flows.with_tails(3))[-3:]] == [Bend(-1.0), Bend(1.0), Tails()]
    assert [part.bijector for part in layers_of(flows.realnvp(3, bends=1))[-2:]] == [Affine(3.0), Bend()]
    assert {part.bijector for part in flows.maf(3, bound=1.5)} == {Affine(bound=1.5)}
    assert {part.bijector for part in flows.iaf(3, bound=1.5)} == {Affine(bound=1.5)}
    assert {part.bijector for part in layers_of(flows.nice(3))[:-1]} == {Shift()}
    for structure in ("coupling", "autoregressive"):
        flow = flows.nsf(3, structure=structure, bins=5, bound=2.0)
        assert {part.bijector for part in layers_of(flow)[:-1]} == {RQSpline(bins=5, bound=2.0)}


def test_the_cheap_direction() -> None:
    assert {part.fast for part in flows.maf(3)} == {"inverse"}
    assert {part.fast for part in flows.iaf(3)} == {"forward"}
    for fast in ("forward", "inverse"):
        flow = flows.nsf(3, structure="autoregressive", fast=fast)
        assert {part.fast for part in list(flow)[:-1]} == {fast}


def test_couplings_keep_random_halves_in_complementary_pairs() -> None:
    order, kept = torch.arange(7), []
    for part in flows.realnvp(7, layers=6, bends=0):
        if isinstance(part, Permute):
            order = order[part.order]
        else:
            kept.append(set(order[part.kept].tolist()))
            assert kept[-1] | set(order[part.moved].tolist()) == set(range(7))
    assert order.tolist() == list(range(7))
    for first, second in zip(kept[::2], kept[1::2], strict=True):
        assert not first & second
        assert {len(first), len(second)} == {3, 4}
    assert len(set(map(frozenset, kept))) > 2


@pytest.mark.parametrize("context_dim", [0, 2])
def test_trajectory(context_dim: int) -> None:
    flow, x = moved(flows.copula(3, context_dim, layers=2, **SMALL), by=0.1), torch.randn(5, 3)
    context = torch.randn(5, context_dim) if context_dim else None
    path = flow.trajectory(x, context)
    assert len(path) == len(flow) + 1
    assert path[0] is x
    assert_close(path[-1], flow(x, context))
    assert_close(path[1], flow[0](x, context))


def test_dropout_leaves_the_start_at_the_identity() -> None:
    flow, x = flows.copula(3, dropout=0.5).train(), torch.randn(5, 3)
    assert_close(flow.inv(x), x)


def test_dropout_only_in_training() -> None:
    flow, x = moved(flows.copula(3, dropout=0.5), by=0.1), torch.randn(5, 3)
    assert not torch.equal(flow.inv(x), flow.inv(x))
    flow.eval()
    assert_close(flow.inv(x), flow.inv(x), rtol=0, atol=0)
    assert_close(flow(flow.inv(x).clone()), x, rtol=1e-4, atol=1e-4)


def test_orders_reverse_from_layer_to_layer() -> None:
    first, second, third = (part.order.tolist() for part in flows.iaf(7, layers=3))
    assert first == second[::-1] == third


# One has no network, the other needs an activation of bounded slope.
@pytest.mark.parametrize("name", [n for n in RECIPES if n not in ("full_rank", "residual")])
@pytest.mark.parametrize("input_dim", [1, 3])
def test_activation_and_widths_reach_every_network(name: str, input_dim: int) -> None:
    flow = RECIPES[name](input_dim, 2, hidden_dims=(11,), activation=nn.ELU)
    activations = {type(m) for m in flow.modules() if type(m).__module__ == "torch.nn.modules.activation"}
    assert activations == {nn.ELU}
    widths = {m.out_features for m in flow.modules() if isinstance(m, nn.Linear)}
    assert 11 in widths
    assert 64 not in widths


@pytest.mark.parametrize("recipe", [flows.nice, flows.realnvp])
def test_own_network(recipe: Callable[..., Compose]) -> None:
    flow = recipe(4, 2, net=lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False))
    assert all(type(part.net) is nn.Linear for part in flow if isinstance(part, Coupling))


@pytest.mark.parametrize(("name", "lr"), [("realnvp", 0.01), ("iaf", 0.01), ("nsf", 0.01), ("full_rank", 0.05)])
def test_is_a_callable_for_the_guide_of_pyro(name: str, lr: float) -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(torch.tensor([1.0, -1.0]), 0.5).to_event(1))

    guide = AutoNormalizingFlow(model, RECIPES[name])
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), Trace_ELBO(num_particles=8, vectorize_particles=True))
    losses = [svi.step() for _ in range(60)]
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])
