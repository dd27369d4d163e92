"""Runs of the model at draws: deterministic sites, predictions, likelihoods, and what ArviZ makes of them."""

import warnings
from pathlib import Path

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from torch import Tensor

from alone import groups_of
from pyroflows import AutoFlow, Posterior, flows
from pyroflows.model import LogJoint
from pyroflows.training import History

Y = torch.tensor([28.0, 8.0, -3.0, 7.0])
SD = torch.tensor([15.0, 10.0, 16.0, 11.0])


def schools(y: Tensor | None = Y) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("column", 2, dim=-2), pyro.plate("school", 4, dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + 2 * z)
        pyro.deterministic("pair", torch.stack([theta, z, z], -1), event_dim=1)
    with pyro.plate("row", 4):
        pyro.sample("y", dist.Normal(theta[0], SD), obs=y)
        pyro.sample("count", dist.Multinomial(5, torch.ones(3)), obs=torch.tensor([[5.0, 0.0, 0.0]] * 4))
    pyro.deterministic("constant", torch.tensor([1.0, 2.0]))
    pyro.factor("nothing", torch.tensor(0.0))


def of(model: object, *args: object, num_draws: int = 50) -> Posterior:
    guide = AutoFlow(model, flows.full_rank, init_scale=0.5).setup(*args)
    return Posterior(guide, LogJoint(model, args, {}, guide.space), History(), num_draws=num_draws)


def test_deterministic_sites_are_drawn() -> None:
    posterior = of(schools)
    for draws, count in ((posterior.draws, 50), (posterior.sample(7, deterministic=True), 7)):
        assert list(draws) == ["mu", "z", "theta", "pair", "constant"]
        assert torch.allclose(draws["theta"], draws["mu"][:, None, None] + 2 * draws["z"])
        assert draws["pair"].shape == (count, 2, 4, 3)
        assert draws["constant"].tolist() == [[1.0, 2.0]] * count
    assert list(posterior.sample(7)) == ["mu", "z"]
    assert posterior.summary()["theta[1,2]"]["mean"] == pytest.approx(posterior.draws["theta"][:, 1, 2].mean().item())
    assert posterior.log_prob(posterior.draws).shape == (50,)


def test_arviz_gets_deterministic_sites_by_their_plates() -> None:
    data = of(schools).to_arviz(coords={"school": list("ABCD")}, dims={"constant": ["which"]})
    dims = {name: data.posterior[name].dims[2:] for name in data.posterior}
    assert dims == {
        "mu": (),
        "z": ("column", "school"),
        "theta": ("column", "school"),
        "pair": ("column", "school", "pair_dim_2"),
        "constant": ("which",),
    }
    assert data.posterior["theta"].sel(school="C").dims == ("chain", "draw", "column")


def test_a_reparameterised_site_comes_back() -> None:
    def centred() -> None:
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        with pyro.plate("school", 4):
            theta = pyro.sample("theta", dist.Normal(1.0, tau))
            pyro.sample("y", dist.Normal(theta, SD), obs=Y)

    posterior = of(poutine.reparam(centred, {"theta": LocScaleReparam(0.0)}))
    expected = 1.0 + posterior.draws["tau"][:, None] * posterior.draws["theta_decentered"]
    assert torch.allclose(posterior.draws["theta"], expected)
    data = posterior.to_arviz(predictive=True, log_likelihood=True)
    assert data.posterior["theta"].dims == ("chain", "draw", "school")
    assert set(data.observed_data) == set(data.posterior_predictive) == set(data.log_likelihood) == {"y"}


def test_arviz_gets_predictions(tmp_path: Path) -> None:
    data = of(schools, num_draws=400).to_arviz(predictive=True, prior=300, log_likelihood=True)
    groups = {"posterior", "posterior_predictive", "prior", "prior_predictive", "log_likelihood"}
    assert groups_of(data) == groups | {"observed_data", "sample_stats"}
    assert data.posterior_predictive["y"].dims == data.prior_predictive["y"].dims == ("chain", "draw", "row")
    assert data.posterior_predictive["y"].shape == (1, 400, 4)
    assert data.posterior_predictive["count"].dims == ("chain", "draw", "row", "count_dim_1")
    assert (data.posterior_predictive["count"].sum("count_dim_1") == 5).all()
    new = data.posterior_predictive["y"].values - data.posterior["theta"].values[:, :, 0]
    assert new.std((0, 1)) == pytest.approx(SD.numpy(), rel=0.15)
    assert set(data.prior) == {"mu", "z", "theta", "pair", "constant"}
    assert data.prior["mu"].shape == (1, 300)
    assert data.prior["mu"].values.std() == pytest.approx(5.0, rel=0.15)
    theta = data.prior["mu"].values[..., None, None] + 2 * data.prior["z"].values
    assert data.prior["theta"].values == pytest.approx(theta, abs=1e-5)
    data.to_netcdf(str(tmp_path / "all.nc"))
    assert groups_of(arviz.from_netcdf(str(tmp_path / "all.nc"))) == groups_of(data)


def test_the_log_likelihood_is_that_of_each_datum() -> None:
    posterior = of(schools, num_draws=1500)  # more than one chunk of vmap
    data = posterior.to_arviz(log_likelihood=True)
    assert data.log_likelihood["y"].dims == data.log_likelihood["count"].dims == ("chain", "draw", "row")
    expected = dist.Normal(posterior.draws["theta"][:, 0], SD).log_prob(Y)
    assert data.log_likelihood["y"].values[0] == pytest.approx(expected.numpy(), abs=1e-4)
    assert data.log_likelihood["count"].values == pytest.approx(-5 * np.log(3), abs=1e-4)
    assert arviz.loo(data, var_name="y").n_data_points == 4
    if arviz.__version__ < "1":
        assert arviz.waic(data, var_name="y").n_data_points == 4


def test_a_model_that_cannot_be_vmapped_runs_one_by_one() -> None:
    def branching() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.deterministic("sign", torch.tensor(1.0 if x.item() > 0 else -1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))

    posterior = of(branching)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        data = posterior.to_arviz(log_likelihood=True)
    assert (data.posterior["sign"].values == np.sign(data.posterior["x"].values)).all()
    expected = dist.Normal(posterior.draws["x"], 1.0).log_prob(torch.tensor(0.5))
    assert data.log_likelihood["y"].values[0] == pytest.approx(expected.numpy(), abs=1e-5)


def part(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y), subsample_size=2):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[:2])


def blind() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))


def improper() -> None:
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))


@pytest.mark.parametrize(
    ("model", "args", "options", "message"),
    [
        (part, (Y,), {"predictive": True}, "expected a model that observes all its data, .* got one of a minibatch"),
        (part, (Y,), {"log_likelihood": True}, "expected a model that observes all its data"),
        (blind, (), {"predictive": True}, "expected a model that observes .* got one without observed sites"),
        (blind, (), {"prior": -1}, "to_arviz expected prior to be a whole number from 0 on, got -1"),
        (improper, (), {"prior": 3}, "expected sites that can be sampled, got one that cannot"),
        (blind, (), {"dims": {"z": ["one"]}}, r"expected dims by site, one of \[.*'x'\], got 'z'"),
        (blind, (), {"dims": {"x": ["one"]}}, r"expected 0 names of dimensions for 'x', got \['one'\]"),
    ],
)
def test_bad_input(model: object, args: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of(model, *args).to_arviz(**options)
