"""What a guide keeps: parameters before training, state dicts, copies and pickles at every stage of its life."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList
from torch import Tensor
from torch.testing import assert_close

from cases import moved
from pyroflows import AutoFlow, flows

RECIPES = {name: partial(getattr(flows, name), hidden_dims=(8,)) for name in ("realnvp", "iaf", "nsf", "full_rank")}
Y = torch.tensor([1.0, -0.5, 2.0])


def schools(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    spread = pyro.param("spread", torch.tensor(2.0), constraint=dist.constraints.positive)
    with pyro.plate("schools", 3):
        theta = pyro.sample("theta", dist.Normal(mu, spread))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def svi(guide: AutoFlow) -> SVI:
    return SVI(schools, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())


def same(one: AutoFlow, other: AutoFlow) -> bool:
    values = one.sample(5, seed=0)
    return torch.allclose(one.log_prob(values), other.log_prob(values), atol=1e-4)


def test_setup_makes_the_parameters() -> None:
    guide = AutoFlow(schools)
    assert list(guide.parameters()) == []
    assert guide.setup(Y) is guide
    names = {name for name, _ in guide.named_parameters(remove_duplicate=False)}
    assert len(names) == len(list(guide.parameters())) > 10
    assert all(p.requires_grad and p.is_leaf for p in guide.parameters())
    first = list(guide.parameters())
    guide.setup(Y)
    guide(Y)
    assert all(p is q for p, q in zip(first, guide.parameters(), strict=True))


def test_a_torch_optimizer_takes_them() -> None:
    guide = AutoFlow(schools, init_scale=1.0).setup(Y)
    optimizer = torch.optim.Adam(guide.parameters(), lr=1e-2)
    loss = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1).differentiable_loss
    found = []
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(schools, guide, Y)
        value.backward()
        optimizer.step()
        found.append(value.item())
    assert sum(found[-5:]) < sum(found[:5]) - 1.0


@pytest.mark.parametrize("seed", [0, 1], ids=["same seed", "another seed"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_state_dict_makes_a_fresh_guide_the_same(recipe: Callable, seed: int) -> None:
    guide = AutoFlow(schools, recipe).setup(Y)
    moved(guide.transform, by=0.3)
    pyro.set_rng_seed(seed)
    fresh = AutoFlow(schools, recipe).setup(Y)
    assert not same(fresh, guide)
    assert fresh.load_state_dict(guide.state_dict()).missing_keys == []
    assert same(fresh, guide)
    assert_close(fresh.median(), guide.median())


def test_a_fresh_guide_trains_on_from_a_saved_state() -> None:
    guide = AutoFlow(schools)
    svi(guide).step(Y)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    pyro.clear_param_store()
    fresh = AutoFlow(schools).setup(Y)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert same(fresh, guide)
    trainer = svi(fresh)
    trainer.step(Y)
    trainer.step(Y)
    assert not same(fresh, guide)


def through_pickle(guide: AutoFlow) -> AutoFlow:
    return pickle.loads(pickle.dumps(guide))


def through_a_file(guide: AutoFlow) -> AutoFlow:
    file = io.BytesIO()
    torch.save(guide, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": through_pickle, "torch.save": through_a_file}


@pytest.mark.parametrize("steps", [0, 1, 2], ids=["set up", "after a step", "after two"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copy_is_equal_and_independent(make: Callable, recipe: Callable, steps: int) -> None:
    guide = AutoFlow(schools, recipe).setup(Y)
    trainer = svi(guide)
    for _ in range(steps):
        trainer.step(Y)
    made = make(guide)
    assert same(made, guide)
    assert_close(made.median(), guide.median())
    trainer.step(Y)  # the original goes on
    assert guide.model is not None
    assert not same(made, guide)
    pyro.clear_param_store()
    assert set(made(Y)) == {"mu", "theta"}


def test_a_new_guide_does_not_train_an_old_one() -> None:
    svi(AutoFlow(schools)).step(Y)
    fresh = AutoFlow(schools)
    with pytest.raises(RuntimeError, match=r"expected parameters of this guide .*: call pyro.clear_param_store"):
        svi(fresh).step(Y)
    assert fresh.median().keys() == {"mu", "theta"}  # what does not go through the store works
    pyro.clear_param_store()
    svi(fresh).step(Y)


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copy_goes_on_training(make: Callable) -> None:
    guide = AutoFlow(schools)
    svi(guide).step(Y)
    made = make(guide)
    before = [p.detach().clone() for p in guide.parameters()]
    pyro.clear_param_store()
    svi(made).step(Y)
    assert not same(made, guide)
    assert all(map(torch.equal, before, guide.parameters()))


def test_a_deep_copy_keeps_the_model() -> None:
    fresh = AutoFlow(schools)
    made = copy.deepcopy(fresh)
    assert made.model is fresh.model
    assert made.setup(Y).latent_dim == 4
    assert fresh.prototype_trace is None
    assert copy.deepcopy(made).model is fresh.model


def test_a_pickle_needs_no_model() -> None:
    guide = AutoFlow(lambda: schools(Y)).setup()
    made = through_pickle(guide)
    assert same(made, guide)
    assert guide.model is not None
    with pytest.raises(RuntimeError, match="expected a guide with a model, got an unpickled one"):
        through_pickle(AutoFlow(schools)).setup(Y)


def test_a_pickle_holds_no_graph_and_no_memory() -> None:
    guide = AutoFlow(schools, RECIPES["iaf"]).setup(Y)
    size = len(pickle.dumps(guide))
    svi(guide).step(Y)
    guide.log_prob(guide.sample(10_000))
    assert len(pickle.dumps(guide)) < size + 2000


def test_copying_a_guide_leaves_the_list_that_it_is_in_alone() -> None:
    guide = AutoGuideList(schools)
    guide.append(AutoFlow(pyro.poutine.block(schools, expose=["mu"])))
    guide.append(AutoFlow(pyro.poutine.block(schools, expose=["theta"])))
    trainer = svi(guide)
    trainer.step(Y)
    for part in guide:
        copy.deepcopy(part)
        pickle.dumps(part)
        assert part.master() is guide
    trainer.step(Y)
