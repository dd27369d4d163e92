"""Defects of the flow guides of Pyro 1.9.2, each as a test that pyroflows passes."""

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal, init_to_value
from pyro.infer.reparam import NeuTraReparam
from torch import Tensor, nn
from torch.testing import assert_close

from cases import LAYERS, moved
from pyroflows import AutoFlow, flows
from pyroflows import transforms as tr
from pyroflows.bijectors import Affine as AffineBijector

D = 4
X = torch.tensor([0.3, -0.8, 1.2])
RECIPES: dict[str, Callable[[int], tr.FlowTransform]] = {
    "nice": partial(flows.nice, layers=2, hidden_dims=(8,)),
    "realnvp": partial(flows.realnvp, layers=2, hidden_dims=(8,)),
    "maf": partial(flows.maf, layers=2, hidden_dims=(8,)),
    "iaf": partial(flows.iaf, layers=2, hidden_dims=(8,)),
    "nsf": partial(flows.nsf, layers=2, hidden_dims=(8,)),
    "full_rank": flows.full_rank,
}
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
jit = pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")  # what Pyro's Jit ELBOs call


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def trained(guide: AutoFlow, of: Callable, steps: int, *args: object, lr: float = 0.05) -> AutoFlow:
    optimizer = pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.01 ** (1 / steps)})
    svi = SVI(of, guide, optimizer, Trace_ELBO(num_particles=32, vectorize_particles=True))
    for _ in range(steps):
        svi.step(*args)
    return guide


@every_recipe
def test_defect_01_half_of_the_latents_never_transformed(recipe: Callable[[int], tr.FlowTransform]) -> None:
    flow, x = moved(recipe(D)), torch.randn(50, D)
    assert ((flow(x) - x).abs().mean(0) > 1e-3).all()


@pytest.mark.parametrize("recipe", [RECIPES["realnvp"], RECIPES["iaf"]], ids=["realnvp", "iaf"])
def test_defect_01_the_posterior_is_wrong(recipe: Callable[[int], tr.FlowTransform]) -> None:
    def far() -> None:
        pyro.sample("z", dist.Normal(torch.full((D,), 5.0), 0.1).to_event(1))

    start = init_to_value(values={"z": torch.zeros(D)})
    draws = trained(AutoFlow(far, recipe, init_loc_fn=start, init_scale=1.0), far, 600).sample(4000, seed=0)["z"]
    assert_close(draws.mean(0), torch.full((D,), 5.0), atol=0.1, rtol=0.0)
    assert_close(draws.std(0), torch.full((D,), 0.1), atol=0.04, rtol=0.0)


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")  # Pyro's note on a frozen part
def test_defect_01_correlation_of_dimensions_in_one_half_is_not_learnt() -> None:
    covariance = torch.eye(D)
    covariance[0, 1] = covariance[1, 0] = 0.95

    def correlated() -> None:
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(D), covariance))

    # The flow alone: the affine map that AutoFlow puts on top could learn a correlation by itself.
    guide = AutoFlow(correlated, partial(flows.realnvp, hidden_dims=(16,)), init_scale=1.0).setup()
    guide.transform[-1].requires_grad_(False)
    draws = trained(guide, correlated, 300, lr=0.02).sample(4000, seed=0)["z"]
    assert draws.T.corrcoef()[0, 1] > 0.85


@every_recipe
def test_defect_02_no_median_and_no_quantiles(recipe: Callable[[int], tr.FlowTransform]) -> None:
    guide = AutoFlow(model, recipe)
    trained(guide, model, 2, X)
    low, middle, high = guide.quantiles([0.1, 0.5, 0.9])["z"]
    assert ((low < middle) & (middle < high)).all()
    assert_close(guide.median()["z"], middle)


def test_defect_02_a_flow_takes_the_median_of_a_whole_list() -> None:
    def both() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(3.0, 1.0))

    guide = AutoGuideList(both)
    guide.append(AutoFlow(poutine.block(both, hide=["b"])))
    guide.append(AutoNormal(poutine.block(both, hide=["a"])))
    guide()
    assert guide.median().keys() == guide.quantiles([0.1, 0.9]).keys() == {"a", "b"}


@jit
@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"maf"}))  # maf samples in place, beyond the tracer
def test_defect_03_jit_fails(name: str) -> None:
    guide = AutoFlow(model, RECIPES[name])
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), JitTrace_ELBO(ignore_jit_warnings=True))
    assert all(math.isfinite(svi.step(X)) for _ in range(3))
    names = [name for name, _ in guide.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(guide.parameters())) == len(pyro.get_param_store())
    assert not any("prototype" in name for name in (*names, *guide.state_dict()))


@every_recipe
def test_defect_09_a_guide_cannot_be_copied_after_a_step(recipe: Callable[[int], tr.FlowTransform]) -> None:
    guide = trained(AutoFlow(model, recipe), model, 1, X)
    values = guide.sample(5)
    for made in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert_close(made.log_prob(values), guide.log_prob(values))


@pytest.mark.parametrize("inside", ["scale", "both"])
def test_defect_24_subsampled_latents_go_on_silently(inside: str) -> None:
    def subsampled(x: Tensor, size: int) -> None:
        if inside == "both":
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=size) as rows:
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc if inside == "both" else 0.0, scale), obs=x[rows])

    guide = AutoFlow(subsampled, init_loc_fn=init_to_value(values={}))
    with pytest.raises(ValueError, match="expected all rows of plate 'data', got 10 of 100 chosen rows"):
        SVI(subsampled, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO()).step(torch.randn(100), 10)
    assert AutoFlow(subsampled).setup(torch.randn(100), 100).latent_dim == 100 + (inside == "both")


def test_defect_24_another_number_of_rows_at_the_next_step() -> None:
    used: list[Tensor] = []

    def subsampled(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            used.append(rows)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])

    guide = AutoFlow(subsampled)
    svi = SVI(subsampled, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for size in (5, 100, 30, 5):
        used.clear()
        losses = [svi.step(torch.randn(size)) for _ in range(20)]
        assert all(map(math.isfinite, losses))
        rows = torch.stack(used[-20:])
        assert all(len(row.unique()) == 5 for row in rows)
        assert size - 1 - size // 4 < rows.max() < size  # of all the rows there are now, not of those at the start


def test_defect_25_an_explicit_subsample_is_overridden() -> None:
    chosen = torch.tensor([1, 2, 3])

    def local() -> None:
        with pyro.plate("data", 100, subsample=chosen):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="expected all rows of plate 'data', got 3 of 100 chosen rows"):
        AutoFlow(local).setup()
    used = []

    def observed(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 100, subsample=chosen) as rows:
            used.append(rows.tolist())
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[rows])

    trained(AutoFlow(observed), observed, 3, torch.randn(100))
    assert len(used) > 5
    assert all(rows == [1, 2, 3] for rows in used)


def test_defect_26_parameters_are_lazy() -> None:
    guide = AutoFlow(model).setup(X)
    torch.optim.Adam(guide.parameters())
    moved(guide.transform)
    fresh = AutoFlow(model).setup(X)
    fresh.load_state_dict(guide.state_dict())
    values = guide.sample(5)
    assert_close(fresh.log_prob(values), guide.log_prob(values))


def test_defect_26_options_of_a_flow_make_the_guide_unpicklable() -> None:
    fresh = pickle.loads(pickle.dumps(AutoFlow(model, partial(flows.nsf, layers=2, activation=nn.Tanh))))
    assert fresh.prototype_trace is None
    guide = AutoFlow(model, lambda d: flows.realnvp(d, layers=2, hidden_dims=(5,))).setup(X)
    assert pickle.loads(pickle.dumps(guide)).sample(3)["z"].shape == (3, D)


def plated(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("inner", 3, dim=-1):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("outer", 2, dim=-2):
            pyro.sample("w", dist.Dirichlet(torch.ones(3)))
            pyro.sample("x", dist.Normal(loc, scale), obs=x)


@pytest.mark.parametrize("draws", [1, 2, 3, 6])
def test_defect_28_neutra_fails_for_plates(draws: int) -> None:
    guide = AutoFlow(plated, RECIPES["iaf"]).setup(X)
    moved(guide.transform, by=0.1)
    neutra = NeuTraReparam(guide)
    mcmc = MCMC(NUTS(neutra.reparam(plated)), num_samples=draws, warmup_steps=2, disable_progbar=True)
    mcmc.run(X)
    latent = mcmc.get_samples()["loc_shared_latent"]
    values = neutra.transform_sample(latent)
    exact = guide.space.constrain(guide.transform(latent))[0]
    assert values["loc"].numel() == draws
    assert values["scale"].reshape(draws, 3).shape == exact["scale"].shape
    assert values["w"].shape == exact["w"].shape == (draws, 2, 3, 3)
    for name, value in values.items():
        assert_close(value.reshape(exact[name].shape), exact[name])


@pytest.mark.parametrize("recipe", [flows.full_rank, flows.realnvp, flows.iaf])
def test_defect_30_scales_are_clipped(recipe: Callable[[int], tr.FlowTransform]) -> None:
    def sharp() -> None:
        pyro.sample("mu", dist.Normal(100.0, 0.001))

    guide = trained(AutoFlow(sharp, recipe), sharp, 500)
    draws = guide.sample(4000, seed=0)["mu"].double()
    assert abs(draws.mean().item() - 100.0) < 0.002
    assert 0.0005 < draws.std().item() < 0.003


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_defect_30_a_layer_reaches_any_scale(scale: float) -> None:
    guide = AutoFlow(model, init_scale=scale).setup(X)
    assert_close(guide.sd()["z"], torch.full((D,), scale), rtol=0.1, atol=0.0)
    coupling = tr.Coupling(2, AffineBijector())
    with torch.no_grad():
        for parameter in coupling.parameters():
            parameter.add_(20.0 * torch.randn_like(parameter))
    assert coupling.call_and_ladj(torch.randn(5, 2))[1].isfinite().all()


def test_the_layers_of_the_registry_make_guides() -> None:
    for name, make in LAYERS.items():
        pyro.clear_param_store()
        guide = AutoFlow(model, lambda d, make=make: make())
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        assert all(math.isfinite(svi.step(X)) for _ in range(2)), name
        assert len(pyro.get_param_store()) == len(list(guide.parameters())), name
