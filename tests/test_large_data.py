"""Fits of subsampled plates: right and judged on all the data, and read, saved and corrected like others."""

from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from pyroflows import AutoFlow, Posterior, fit, flows
from pyroflows.model import LogJoint
from pyroflows.training import History

ROWS, BATCH = 2000, 100
Y = torch.randn(ROWS, generator=torch.Generator().manual_seed(5)) + 3.0
quick = partial(fit, flow=flows.full_rank, steps=100, num_particles=16, progress=False)


def normal(y: Tensor, size: int | None = BATCH) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("row", len(y), subsample_size=size) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


def check(posterior: Posterior, within: float = 0.1) -> None:
    """Compares the mean with the exact posterior; the fit has to know that it is right."""
    variance = 1 / (1 / 4 + ROWS)
    draws = posterior.draws["mu"].double()
    assert abs(draws.mean() - variance * Y.sum()) < within * variance**0.5
    assert abs(draws.std() / variance**0.5 - 1) < within
    assert posterior.diagnostics.grade == "good"
    whole = dist.Normal(0.0, 2.0).log_prob(draws[0]) + dist.Normal(draws[0], 1.0).log_prob(Y.double()).sum()
    exact = whole - dist.Normal(variance * Y.sum(), variance**0.5).log_prob(draws[0])
    assert posterior.diagnostics.log_evidence == pytest.approx(float(exact), abs=0.02)


def test_a_fit_by_batches_is_that_of_all_rows() -> None:
    pyro.set_rng_seed(0)
    posterior = quick(normal, Y)
    check(posterior)
    # A batch as it is has noise of four standard deviations, a step next to none.
    assert max(posterior.history.log_weight_sd) < 0.05


@pytest.mark.slow
def test_modes_are_looked_for_among_all_rows() -> None:
    def model(y: Tensor) -> None:
        root = pyro.sample("root", dist.Normal(0.0, 3.0))
        with pyro.plate("row", len(y), subsample_size=BATCH) as rows:
            pyro.sample("y", dist.Normal(root**2, 4.0), obs=y[rows])

    pyro.set_rng_seed(0)
    with pytest.warns(UserWarning, match="do not trust: there is mass around 1 where the draws have next to none"):
        posterior = quick(model, Y[: 4 * BATCH])
    (place,) = posterior.diagnostics.missed
    assert abs(float(place.strip("[]")) + posterior.draws["root"].mean()) < 0.2
    assert posterior.diagnostics.missed[place] == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_a_guide_goes_on_by_batches() -> None:
    pyro.set_rng_seed(0)
    check(quick(normal, Y, guide=AutoFlow(normal, flows.full_rank, init_scale=1.0)))


@pytest.mark.slow
def test_parameters_of_the_model_are_learnt_on_batches_and_judged_on_all_rows() -> None:
    def model(y: Tensor, size: int | None = BATCH) -> None:
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("row", len(y), subsample_size=size) as rows:
            pyro.sample("y", dist.Normal(mu, scale), obs=y[rows])

    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    posterior = quick(model, Y)
    whole = LogJoint(model, (Y, None), {}, posterior.guide.space, dtype=torch.float64)
    z = posterior.vectors[0].double()
    torch.testing.assert_close(posterior.log_joint(z), whole(z))
    assert not posterior.diagnostics.minibatch


FEW = Y[:60]


def untrained(size: int | None) -> Posterior:
    """A normal guide around the posterior of few rows, wider than it."""
    guide = AutoFlow(normal, flows.full_rank, init_scale=0.2, init_loc_fn=lambda site: FEW.mean()).setup(FEW, size)
    density = LogJoint(normal, (FEW, size), {}, guide.space, dtype=torch.float64)
    return Posterior(guide, density, History(), num_draws=500)


def test_a_posterior_of_batches_is_read_like_one_of_all_rows(tmp_path: Path) -> None:
    part, whole = untrained(25), untrained(None)
    assert part.log_weights == pytest.approx(whole.log_weights, abs=1e-8)
    assert part.weights == pytest.approx(whole.weights)
    assert str(part.diagnostics) == str(whole.diagnostics)
    assert part.summary(weighted=True)["mu"] == pytest.approx(whole.summary(weighted=True)["mu"])
    for method in ("importance", "resample", "imh"):
        found, expected = (p.refine(method, num_draws=200) for p in (part, whole))
        assert abs(found.draws["mu"].mean() - expected.draws["mu"].mean()) < 0.1
    chains = part.refine("neutra", num_draws=20, warmup=10, chains=1)
    assert chains.stats["lp"] == pytest.approx(whole.log_joint(chains.vectors).numpy())
    part.save(tmp_path / "posterior.pt")
    back = Posterior.load(tmp_path / "posterior.pt", normal, FEW, 25, guide=AutoFlow(normal, flows.full_rank))
    assert back.log_weights == pytest.approx(part.log_weights)
    with pytest.raises(ValueError, match="expected the model and data of the saved posterior"):
        Posterior.load(tmp_path / "posterior.pt", normal, FEW + 0.1, 25, guide=AutoFlow(normal, flows.full_rank))


def test_deterministic_sites_of_rows_are_left_out() -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        pyro.deterministic("twice", 2 * mu)
        with pyro.plate("row", len(y), subsample_size=3) as rows:
            mean = pyro.deterministic("mean", mu + 0 * y[rows])
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])

    guide = AutoFlow(model, flows.full_rank).setup(Y[:7])
    posterior = Posterior(guide, LogJoint(model, (Y[:7],), {}, guide.space), History(), num_draws=200)
    assert list(posterior.draws) == ["mu", "twice"]


@pytest.mark.slow
def test_a_logistic_regression_of_100_000_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(100_000, 15, generator=generator)
    y = (torch.rand(len(x), generator=generator) < torch.sigmoid(x @ torch.linspace(-1.0, 1.0, 15))).float()

    def model() -> None:
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(15), 2.0).to_event(1))
        with pyro.plate("row", len(x), subsample_size=500) as rows:
            pyro.sample("y", dist.Bernoulli(logits=x[rows] @ slopes), obs=y[rows])

    z, wide = torch.zeros(15).double(), x.double()
    for _ in range(12):
        p = torch.sigmoid(wide @ z)
        hessian = (wide * (p * (1 - p))[:, None]).T @ wide + torch.eye(15) / 4
        z = z + torch.linalg.solve(hessian, wide.T @ (y - p) - z / 4)
    sd = torch.linalg.inv(hessian).diagonal().sqrt()
    pyro.set_rng_seed(0)
    posterior = fit(model, progress=False)
    draws = posterior.draws["slopes"].double()
    assert ((draws.mean(0) - z) / sd).abs().max() < 0.1
    assert (draws.std(0) / sd - 1).abs().max() < 0.1
    assert posterior.diagnostics.grade == "good"
