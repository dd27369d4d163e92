"""Transforms of torch, Pyro and zuko inside ours, and ours inside theirs."""

import copy
import io
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.testing import assert_close

from cases import moved
from pyroflows import AutoFlow, FlowDistribution, flows
from pyroflows.density import FlowDensity
from pyroflows.laws import check_law
from pyroflows.transforms import Affine, Compose, FlowTransform, Foreign, from_zuko
from pyroflows.vae import FlowPrior

BASE = dist.Normal(torch.zeros(3), 1.0).to_event(1)
LAWS = ("registration", "round_trip", "log_det", "shapes", "conditioning", "one_pass", "gradients")
LAWS += ("never_stale", "copies", "dtypes")
KINDS: dict[str, Callable[[], FlowTransform]] = {
    "exp": lambda: Foreign(T.ExpTransform(), 3),
    "affine": lambda: Foreign(T.AffineTransform(torch.tensor(1.0), nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))), 3),
    "cholesky": lambda: Foreign(T.LowerCholeskyAffine(torch.ones(3), torch.eye(3)), 3),
    "coupling": lambda: Foreign(T.affine_coupling(3, hidden_dims=[8]), 3),
    "conditional": lambda: Foreign(T.conditional_affine_coupling(3, 2, hidden_dims=[8]), 3, 2),
    "spline": lambda: Foreign(T.spline(3, order="quadratic"), 3),
    "householder": lambda: Foreign(T.householder(3), 3),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", KINDS)
def test_laws(name: str, law: str) -> None:
    check_law(law, KINDS[name]())


def test_chains_and_inverses_are_taken_apart() -> None:
    chain = ComposeTransformModule([T.affine_coupling(3, hidden_dims=[8]), T.householder(3)])
    flow = Compose([Affine(3), chain.inv, torch.distributions.IndependentTransform(T.ExpTransform(), 1)])
    assert len(list(flow.parameters())) == len(list(chain.parameters())) + 1
    x = torch.randn(5, 3)
    y, ladj = flow.call_and_ladj(x)
    assert_close(y, chain.inv(x).exp())
    assert_close(ladj, -chain.log_abs_det_jacobian(chain.inv(x), x) + chain.inv(x).sum(-1))
    density = FlowDistribution(BASE, T.ComposeTransform([T.AffineTransform(0.5, 2.0), T.ExpTransform()]))
    assert_close(density.log_prob(x.exp()), dist.LogNormal(0.5, 2.0).log_prob(x.exp()).sum(-1))


def test_nothing_is_remembered() -> None:
    inner = T.affine_coupling(3, hidden_dims=[8])
    density, value = FlowDistribution(BASE, Compose([Affine(3), inner])), torch.randn(20, 3)
    before = density.log_prob(value)
    moved(density.transform)
    after = density.log_prob(value)
    assert not torch.equal(before, after)
    assert_close(after, density.log_prob(value.clone()))
    assert inner._cached_x_y == (None, None)
    assert inner._cached_log_scale is None
    after.sum().backward()
    copied = copy.deepcopy(density.transform)
    saved = io.BytesIO()
    torch.save(copied.state_dict(), saved)
    assert len(saved.getvalue()) < 20_000
    for _ in range(2):  # a fixed data set, step after step
        density.log_prob(value).sum().backward()


def test_what_is_elsewhere_is_tried_there() -> None:
    layer = Foreign(T.conditional_affine_coupling(3, 2, hidden_dims=[8]).to("meta", torch.float64), 3, 2)
    x = torch.empty(4, 3, device="meta", dtype=torch.float64)
    assert layer.condition(x[:, :2]).inv(x).device.type == "meta"


def test_a_permutation_of_pyros_is_saved_and_a_batch_norm_is_not_moved_by_being_wrapped() -> None:
    first, second = (Compose([Affine(4), T.Permute(torch.randperm(4))]) for _ in range(2))
    second.load_state_dict(first.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(first(x), second(x))
    norm = T.BatchNorm(3)
    Foreign(norm, 3)
    assert (norm.training, norm.moving_mean.tolist()) == (True, [0.0] * 3)


LACKING = {
    "planar": partial(T.planar, 3),
    "radial": partial(T.radial, 3),
    "neural": lambda: T.neural_autoregressive(3, hidden_dims=[8]),
    "conditional": lambda: T.conditional_planar(3, 2),
}


@pytest.mark.parametrize("name", LACKING)
def test_what_has_no_inverse_says_so_and_samples(name: str) -> None:
    context = 2 if name == "conditional" else 0
    with pytest.warns(
        UserWarning, match=r"has no inverse: it samples, and scores what it has just sampled, but no data"
    ):
        layer = Foreign(LACKING[name](), 3, context)
    density = FlowDistribution(BASE, moved(layer, 0.1).condition(torch.zeros(4, 2) if context else None))
    y, log_prob = density.rsample_and_log_prob((6,))
    assert y.shape == ((6, 4, 3) if context else (6, 3))
    drawn = density.rsample((6,))
    assert density.log_prob(drawn).isfinite().all()
    with pytest.raises(
        ValueError, match=r"Foreign expected a transform with an inverse to score data, got .*, without"
    ):
        density.log_prob(y.clone())
    log_prob.sum().backward()


def model(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def trained(flow: Callable[[int], object]) -> Tensor:
    """The mean of a guide's draws, of data around 1 and 3."""
    x = torch.randn(50, 2) + torch.tensor([1.0, 3.0])
    guide = AutoFlow(model, flow)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO(num_particles=8, vectorize_particles=True))
    for _ in range(100):
        svi.step(x)
    copy.deepcopy(guide)
    return guide.get_posterior().sample((500,)).mean(0) - x.mean(0)


def test_a_recipe_of_pyros_in_guides_priors_and_densities() -> None:
    assert trained(partial(T.affine_coupling, hidden_dims=[8])).abs().max() < 0.2
    prior = FlowPrior(3, partial(T.conditional_affine_coupling, hidden_dims=[8]), context_dim=2)
    assert prior(torch.zeros(4, 2)).sample().shape == (4, 3)
    rows = np.random.default_rng(0).normal(5.0, 0.1, size=(200, 2))
    density = FlowDensity(partial(T.affine_autoregressive, hidden_dims=[8]), epochs=3, random_state=0).fit(rows)
    assert density.score(rows) > 1.0
    assert density.sample(5).shape == (5, 2)


def test_ours_inside_torchs_own() -> None:
    flow = moved(flows.realnvp(3, layers=2, hidden_dims=(8,)))
    density = dist.TransformedDistribution(BASE, [flow, T.ExpTransform()])
    y = density.sample((5,))
    assert_close(density.log_prob(y), FlowDistribution(BASE, Compose([flow, T.ExpTransform()])).log_prob(y.clone()))


zuko = pytest.mark.skipif("not __import__('importlib').util.find_spec('zuko')", reason="needs zuko")


@zuko
def test_flows_of_zuko() -> None:
    import zuko

    for kind in (zuko.flows.NSF, zuko.flows.MAF, zuko.flows.NICE):
        theirs = kind(3, 2, transforms=2, hidden_features=(8,))
        ours, context, y = from_zuko(theirs, context_dim=2), torch.randn(5, 2), torch.randn(5, 3)
        assert_close(FlowDistribution(BASE, ours).condition(context).log_prob(y), theirs(context).log_prob(y))
        assert FlowDistribution(BASE, ours).condition(context).sample((4,)).shape == (4, 5, 3)
        for law in ("registration", "round_trip", "log_det", "shapes", "conditioning", "copies", "never_stale"):
            check_law(law, ours)
    lazy = from_zuko(theirs.transform, context_dim=2, input_dim=3)
    assert_close(lazy(y, context), theirs.transform(context)(y))
    with pytest.raises(ValueError, match="from_zuko expected input_dim for LazyComposedTransform, which is no flow"):
        from_zuko(theirs.transform, context_dim=2)


@zuko
def test_flows_of_zuko_are_trained_in_a_guide_and_ours_in_zuko() -> None:
    import zuko

    assert trained(lambda size: from_zuko(zuko.flows.NSF(size, transforms=2, hidden_features=(8,)))).abs().max() < 0.2
    flow, y = moved(flows.nsf(3, layers=2, hidden_dims=(8,))), torch.randn(5, 3)
    density = zuko.distributions.NormalizingFlow(flow.inv, zuko.distributions.DiagNormal(torch.zeros(3), torch.ones(3)))
    assert_close(density.log_prob(y), FlowDistribution(BASE, flow).log_prob(y.clone()))
    x, log_prob = density.rsample_and_log_prob((4,))
    assert_close(log_prob, FlowDistribution(BASE, flow).log_prob(x.clone()), rtol=1e-4, atol=1e-4)
    lazy = zuko.flows.Flow(zuko.lazy.UnconditionalTransform(lambda: flow.inv), zuko.flows.NSF(3).base)
    assert_close(lazy().log_prob(y), density.log_prob(y.clone()))


MESSAGES: dict[str, tuple[Callable, type, str]] = {
    "kind": (lambda: Foreign(3, 2), TypeError, "Foreign expected a transform of torch, Pyro or zuko, got int"),
    "chain": (
        lambda: Foreign(T.ExpTransform().inv, 2),
        ValueError,
        "no chain and no inverse, got .*Inverse.*: put it into Compose",  # which zuko calls otherwise
    ),
    "size": (lambda: Foreign(T.affine_coupling(3), 4), ValueError, r"takes events of shape \(4,\), with context_dim=0"),
    "shape": (lambda: Foreign(T.StickBreakingTransform(), 3), ValueError, r"it makes \(4,\) of \(3,\)"),
    "context": (lambda: Foreign(T.conditional_planar(3, 2), 3), ValueError, r"with context_dim=0, and keeps shapes"),
    "alone": (lambda: Compose([T.ExpTransform()]), ValueError, "a FlowTransform among its parts, which knows the size"),
    "conditional": (
        lambda: Compose([Affine(3), T.conditional_affine_coupling(3, 2)]),
        TypeError,
        r"got ConditionalAffineCoupling: wrap it by transforms.Foreign\(part, input_dim, context_dim\)",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str) -> None:
    wrong, kind, message = MESSAGES[name]
    with pytest.raises(kind, match=message):
        wrong()
