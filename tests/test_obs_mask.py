"""Data of which some are missing, by ``obs_mask``: the log joint, the posterior and what a user sees of them."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import Tensor
from torch.testing import assert_close

from pyroflows import AutoFlow, Posterior, fit, flows, log_joint
from pyroflows.fitting.options import check_guide
from pyroflows.model.noncentered import noncentered

N = 8
SEEN = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1]).bool()
X = torch.linspace(0.5, 3.0, N)
Y = X + torch.tensor([0.1, -0.5, 0.0, 0.3, 0.9, -0.2, 0.4, 0.0])


def regression(x: Tensor, y: Tensor, seen: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("row", N):
        x = pyro.sample("x", dist.Normal(mu, 0.7), obs=x, obs_mask=seen)
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def by_hand() -> tuple[Tensor, Tensor]:
    """Mean and covariance of mu and the missing x, which are jointly Gaussian."""
    prior, noise, missing = 1 / 0.7**2, 1 / 0.5**2, (~SEEN).nonzero()[:, 0]
    precision = torch.diag(torch.tensor([1 / 25 + N * prior] + [prior + noise] * len(missing)))
    precision[0, 1:] = precision[1:, 0] = -prior
    shift = torch.cat([X[SEEN].sum()[None] * prior, Y[missing] * noise])
    covariance = torch.linalg.inv(precision)
    return covariance @ shift, covariance


@pytest.mark.parametrize("missing", [-77.0, torch.nan, torch.inf])
def test_a10_the_log_joint_is_that_of_the_missing_alone(missing: float) -> None:
    density = log_joint(regression, X.where(SEEN, missing), Y, SEEN)
    z = torch.randn(3, 1 + 3, requires_grad=True)
    assert density.size == 4
    mean, covariance = by_hand()
    found, exact = density(z), dist.MultivariateNormal(mean, covariance).log_prob(z)
    assert_close(found - found[0], exact - exact[0], rtol=1e-4, atol=1e-4)
    slopes = (torch.autograd.grad(value.sum(), z)[0] for value in (found, exact))
    assert_close(*slopes, rtol=1e-4, atol=1e-3)
    values = density.constrain(z)
    assert_close(values["x_unobserved"][:, SEEN], X[SEEN].expand(3, -1))
    assert_close(density.unconstrain(values), z)


@pytest.fixture(scope="module")
def fitted() -> Posterior:
    pyro.set_rng_seed(0)
    return fit(regression, X.where(SEEN, torch.nan), Y, SEEN, flow=flows.full_rank, steps=50, progress=False)


def test_a10_the_posterior_of_missing_entries_is_the_one_by_hand(fitted: Posterior) -> None:
    mean, covariance = by_hand()
    draws = fitted.draws["x"]
    assert_close(draws[:, SEEN], X[SEEN].expand(len(draws), -1))
    found = torch.cat([fitted.draws["mu"][:, None], draws[:, ~SEEN]], dim=1)
    assert_close(found.mean(0), mean, rtol=0.0, atol=0.03)
    assert_close(found.mT.cov(), covariance, rtol=0.1, atol=0.01)
    assert fitted.diagnostics.grade == "good"
    assert fitted.diagnostics.log_weight_sd < 0.05


def test_a10_what_a_user_sees(fitted: Posterior, tmp_path: Path) -> None:
    assert fitted.summary()["x[3]"]["sd"] == pytest.approx(0.0, abs=1e-6)
    assert fitted.summary()["x[3]"]["mean"] == pytest.approx(X[3].item())
    assert fitted.to_arviz().posterior["x"].shape == (1, 4000, N)
    fitted.save(tmp_path / "p.pt")
    given = X.where(SEEN, torch.nan), Y, SEEN
    back = Posterior.load(tmp_path / "p.pt", regression, *given, guide=AutoFlow(regression, flows.full_rank))
    assert_close(back.draws["x"], fitted.draws["x"])
    assert set(Predictive(regression, guide=fitted.guide, num_samples=3)(X, Y, SEEN)) >= {"x", "mu"}


@pytest.mark.slow
def test_a10_training_by_svi_leaves_the_seen_alone() -> None:
    guide = AutoFlow(regression, flows.full_rank, init_scale=0.5)
    svi = SVI(regression, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(16, vectorize_particles=True))
    for _ in range(500):
        svi.step(X, Y, SEEN)
    mean, covariance = by_hand()
    draws = guide.sample(4000, seed=0)
    assert guide.latent_dim == 4
    assert_close(draws["x_unobserved"][:, ~SEEN].mean(0), mean[1:], rtol=0.0, atol=0.15)
    assert_close(draws["mu"].std(), covariance[0, 0].sqrt(), rtol=0.3, atol=0.0)


def scales(seen: Tensor, x: Tensor) -> None:
    """Positive, with a plate outside, and under a mask of the user's."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("column", 2, dim=-1), pyro.plate("row", 4, dim=-2):
        pyro.sample("x", dist.Gamma(2.0, rate), obs=x, obs_mask=seen)


def vectors(seen: Tensor, x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("row", 4):
        pyro.sample("x", dist.MultivariateNormal(mu, torch.tensor([[1.0, 0.5], [0.5, 2.0]])), obs=x, obs_mask=seen)


def shares(seen: Tensor, x: Tensor) -> None:
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    with pyro.plate("row", 4):
        pyro.sample("x", dist.Dirichlet(torch.stack([a, a + 1.0, 1.0 + 0 * a])), obs=x, obs_mask=seen)


ROWS = torch.tensor([True, False, True, False])
OTHERS = {
    "scales": (scales, SEEN.view(4, 2), X.view(4, 2), 1 + 3),
    "vectors": (vectors, ROWS, X.view(4, 2), 2 + 2 * 2),
    "shares": (shares, ROWS, torch.tensor([0.2, 0.3, 0.5]).expand(4, 3), 1 + 2 * 2),
    "none missing": (vectors, torch.ones(4).bool(), X.view(4, 2), 2),
    "all missing": (vectors, torch.zeros(4).bool(), X.view(4, 2), 2 + 4 * 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", OTHERS)
def test_a10_other_shapes_and_supports(case: str, dtype: torch.dtype) -> None:
    model, seen, x, size = OTHERS[case]
    density = log_joint(model, seen, x.to(dtype))
    assert density.size == size
    z = 0.3 * torch.randn(3, size)
    values = density.constrain(z)
    traces = [poutine.trace(poutine.condition(model, {k: v[i] for k, v in values.items()})) for i in range(3)]
    expected = torch.stack([trace.get_trace(seen, x.to(dtype)).log_prob_sum() for trace in traces])
    # Of the change of variables only what is in the vector counts: its slopes say so.
    whole = z.clone().requires_grad_()
    jacobian = torch.func.jacrev(lambda u: torch.cat([v.flatten() for v in density.constrain(u).values()]))
    kept = jacobian(z[0].double())
    moved = kept[kept.abs().sum(1) > 0]
    if case in ("scales", "vectors", "none missing", "all missing"):
        assert_close(density(z)[0], expected[0] + moved.det().abs().log(), check_dtype=False, rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(density(whole).sum(), whole)[0].isfinite().all()
    assert_close(density.unconstrain(values), z.to(density.space.start), rtol=1e-3, atol=1e-4, check_dtype=False)


def test_a10_a_learnt_scale_is_non_centred() -> None:
    def model(x: Tensor, seen: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("row", N):
            pyro.sample("x", dist.Normal(2.0, scale), obs=x, obs_mask=seen)

    u = torch.randn(3, 4)
    assert_close(noncentered(log_joint(model, X, SEEN))(u), torch.cat([u[:, :1], 2 + u[:, :1].exp() * u[:, 1:]], 1))


def test_a10_the_elbo_counts_no_seen_entries() -> None:
    model, seen, x, _ = OTHERS["scales"]
    guide = AutoFlow(model).setup(seen, x)
    trace = poutine.trace(guide).get_trace(seen, x)
    trace.compute_log_prob()
    found = trace.nodes["x_unobserved"]["log_prob"]
    assert (found[seen] == 0).all()
    assert (found[~seen] != 0).all()


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: check_guide(AutoFlow(regression).setup(X, Y, SEEN), regression, (X, Y, ~SEEN), {}),
            ValueError,
            "entries that obs_mask says are seen",
        ),
        (
            lambda: log_joint(lambda: pyro.sample("x", dist.Normal(0.0, 1.0), obs=X[0], obs_mask=torch.tensor(True))),
            RuntimeError,
            "expected a model with latent sites, got none but those that obs_mask says are observed",
        ),
    ],
)
def test_a10_refusals(call: Callable, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_a10_a_deep_copy_keeps_what_is_held() -> None:
    guide = AutoFlow(partial(regression)).setup(X, Y, SEEN)
    assert copy.deepcopy(guide).space.held.keys() == {"x_unobserved"}
