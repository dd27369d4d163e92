"""Floor 0: the numerical helpers and the plain networks."""

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.testing import assert_close

from pyroflows.autograd import is_symbolic, is_traced
from pyroflows.maths import soft_clip, soft_unclip
from pyroflows.nets import MLP, Parameters, join
from pyroflows.seeds import seed_of, seeded

PACKAGE = Path(__file__).parents[1] / "pyroflows"


@pytest.mark.parametrize("bound", [0.5, 3.0, 20.0])
def test_soft_clip_is_increasing_bounded_and_undone(bound: float) -> None:
    x = torch.linspace(-50, 50, 1001, dtype=torch.float64)
    y = soft_clip(x, bound)
    assert (y.diff() > 0).all()
    assert (y.abs() < bound).all()
    assert_close(soft_unclip(y, bound), x)
    assert soft_clip(torch.tensor(1e30), bound) <= bound
    assert_close(grad(soft_clip)(torch.tensor(0.0), bound), torch.tensor(1.0))


def test_soft_clip_does_not_hide_infinity() -> None:
    assert soft_clip(torch.tensor([torch.inf, -torch.inf, torch.nan]), 3.0).isnan().all()


def test_tensors_of_transforms_and_tracers_are_told_from_ordinary_ones() -> None:
    x, told = torch.ones(3), []

    def look(z: Tensor) -> Tensor:
        told.append(is_traced(z))
        return z.sum()

    for run in (vmap(look), grad(look)):
        run(x)
    torch.compile(look, backend="eager")(x)
    assert told == [True, True, True]
    assert is_traced(torch.ones(3, device="meta"))
    with torch.inference_mode():  # such tensors are ordinary, but count no changes
        assert not is_traced(torch.ones(3))
        assert is_symbolic(torch.ones(3))
    assert not is_traced(x, nn.Parameter(x))
    assert not is_symbolic(x)


@pytest.mark.parametrize("seed", [None, 5])
def test_a_seeded_block_repeats_and_leaves_the_generator_alone(seed: int | None) -> None:
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded(seed, torch.device("cpu")):
            draws.append(torch.randn(3))
    assert torch.equal(*draws) == (seed is not None)
    assert torch.equal(torch.get_rng_state(), before) == (seed is not None)


def test_mlp_starts_at_zero_and_learns() -> None:
    net, x = MLP(3, 2, (5, 4), nn.ELU), torch.randn(6, 3)
    assert [type(layer) for layer in net] == [nn.Linear, nn.ELU, nn.Linear, nn.ELU, nn.Linear]
    assert [layer.out_features for layer in list(net)[::2]] == [5, 4, 2]
    assert torch.equal(net(x), torch.zeros(6, 2))
    net(x).sum().backward()
    assert (net[-1].weight.grad != 0).any()
    assert [type(layer) for layer in MLP(3, 2, ())] == [nn.Linear]


def test_parameters_are_free_or_come_from_the_context() -> None:
    initial = torch.tensor([1.0, -2.0])
    free, read = Parameters(initial), Parameters(initial, 3, (5,))
    assert torch.equal(free(None), initial)
    assert torch.equal(read(torch.randn(4, 3)), initial.expand(4, 2))
    free.value.data.zero_()
    assert initial.tolist() == [1.0, -2.0]
    nn.init.normal_(read.net[-1].weight)
    assert len(read(torch.randn(4, 3)).unique(dim=0)) == 4


def test_join_broadcasts_batches() -> None:
    z, context = torch.randn(5, 1, 2), torch.randn(4, 3)
    both = join(z, context)
    assert both.shape == (5, 4, 5)
    assert torch.equal(both[2, 3], torch.cat([z[2, 0], context[3]]))
    assert join(z, None) is z


def test_a20_seeds_have_names_that_no_data_come_from() -> None:
    seeds = [seed_of(name) for name in ("a", "b", "draws of a posterior")]
    assert seeds == [seed_of(name) for name in ("a", "b", "draws of a posterior")]
    assert len(set(seeds)) == 3
    assert all(2**32 < seed < 2**63 and seed % 2**32 > 100_000 for seed in seeds)  # torch's CPU reads 32 bits


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a20_no_seed_is_a_number_that_users_take(file: Path) -> None:
    """Neither what is seeded inside nor the default of an argument."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            seeds = [k.value for k in node.keywords if k.arg in ("seed", "random_state")]
            seeds += node.args[:1] if name in ("seeded", "manual_seed", "set_rng_seed", "default_rng") else []
        elif isinstance(node, ast.FunctionDef):
            usual = zip(node.args.args[::-1], node.args.defaults[::-1], strict=False)
            named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            seeds = [value for arg, value in [*usual, *named] if "seed" in arg.arg or arg.arg == "random_state"]
        else:
            continue
        assert not [s for s in seeds if isinstance(s, ast.Constant) and isinstance(s.value, int)]
