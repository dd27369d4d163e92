"""Posterior: draws, weights, diagnostics, summary, ArviZ and pictures, of guides whose quality is known."""

from collections.abc import Iterator
from pathlib import Path

import arviz
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pyro.infer.autoguide import init_to_value
from torch import Tensor
from torch.testing import assert_close

from alone import groups_of
from pyroflows import AutoFlow, Posterior, flows
from pyroflows.model import LogJoint
from pyroflows.posterior import Diagnostics, plots
from pyroflows.posterior.refine import judge
from pyroflows.posterior.scalars import open_scalars
from pyroflows.training import History

Y = torch.tensor([[1.0, -0.5], [0.3, 2.0], [0.0, 0.7]])


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def schools(y: Tensor, size: int = 3) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("columns", 2, dim=-1):
        tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", 3, dim=-2, subsample_size=size) as rows:
            mean = mu + tau
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])
    with pyro.plate("groups", 4):
        pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    pyro.sample("count", dist.Poisson(tau.sum()), obs=torch.tensor(3.0))


def of(model: object, *args: object, num_draws: int = 500, scale: float = 0.1, **start: Tensor) -> Posterior:
    """The posterior of a guide that was not trained: a normal around ``start``."""
    options = {"init_loc_fn": init_to_value(values=start)} if start else {}
    guide = AutoFlow(model, flows.full_rank, init_scale=scale, **options).setup(*args)
    history = History(elbo=[-40.0, -35.0, float("nan"), *np.linspace(-34.0, -31.0, 60)], bad_steps=1)
    return Posterior(guide, LogJoint(model, args, {}, guide.space), history, num_draws=num_draws)


def normal() -> None:
    """A normal latent of sd 1, under a log evidence of -2."""
    pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("evidence", torch.tensor(-2.0))


def about(scale: float, num_draws: int = 4000) -> Posterior:
    return of(normal, num_draws=num_draws, scale=scale, x=torch.zeros(2))


def test_samples_and_densities_are_those_of_the_guide() -> None:
    posterior = of(schools, Y)
    draws = posterior.sample(7, seed=3)
    assert {name: tuple(v.shape) for name, v in draws.items()} == {"mu": (7,), "tau": (7, 2), "w": (7, 4, 3)}
    assert_close(draws, posterior.guide.sample(7, seed=3))
    assert posterior.sample()["mu"].shape == (1000,)
    assert_close(posterior.log_prob(draws), posterior.guide.log_prob(draws))


def test_the_draws_are_fixed_and_have_weights() -> None:
    posterior = of(schools, Y)
    state = torch.get_rng_state()
    assert posterior.draws["w"].shape == (500, 4, 3)
    assert posterior.draws is posterior.draws
    again = Posterior(posterior.guide, posterior.log_joint, posterior.history, num_draws=500)
    assert_close(again.draws, posterior.draws)
    assert posterior.log_weights.shape == posterior.weights.shape == (500,)
    assert posterior.log_weights.dtype == posterior.weights.dtype == np.float64
    assert posterior.weights.sum() == pytest.approx(1.0)
    z = posterior.log_joint.unconstrain(posterior.draws)
    log_q = posterior.guide.get_posterior().log_prob(z)
    expected = (posterior.log_joint(z) - log_q).detach().numpy()
    assert posterior.log_weights == pytest.approx(expected, abs=1e-3)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_seed_gives_other_draws() -> None:
    one = of(schools, Y)
    other = Posterior(one.guide, one.log_joint, one.history, num_draws=300, seed=1)
    assert other.draws["mu"].shape == (300,)
    assert not torch.equal(other.draws["mu"], one.draws["mu"][:300])


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_a20_the_judge_draws_other_numbers_than_data(seed: int) -> None:
    """A design of standard normal numbers by a user's seed has none in common with the draws of a normal guide."""
    posterior = about(1.0, num_draws=300)
    torch.manual_seed(seed)
    design = {round(x, 4) for x in torch.randn(300, 2).flatten().tolist()}
    drawn = {round(x, 4) for x in posterior.draws["x"].flatten().tolist()}
    assert len(design & drawn) < 0.1 * len(drawn)  # some by chance


def students() -> None:
    pyro.sample("x", dist.StudentT(5.0, torch.zeros(5), 1.0).to_event(1))


@pytest.mark.parametrize("seed", [1, 4, 6])
def test_a17_weights_that_seem_usable_are_looked_at_again(seed: int) -> None:
    """k-hats of 0.61, 0.68 and 0.55 on 4,000 draws; the weights of a normal have no variance here."""
    one = of(students, scale=1.0, x=torch.zeros(5))
    posterior = Posterior(one.guide, one.log_joint, one.history, seed=seed)
    assert Diagnostics.of(posterior.log_weights)[0].grade == "usable with weights"
    assert posterior.diagnostics.grade == "do not trust"
    assert posterior.khat > 0.7
    assert posterior.diagnostics.draws == 4000
    torch.manual_seed(seed)
    assert posterior.refine("importance", num_draws=4000).diagnostics.grade == "do not trust"


def test_a17_a_good_fit_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "propose", None)
    assert about(1.05).diagnostics.grade == "good"


def test_a5_tails_of_bounded_numbers_are_not_looked_at() -> None:
    def model() -> None:
        pyro.sample("corr", dist.LKJCholesky(3, 1.0))
        pyro.sample("share", dist.Dirichlet(torch.ones(3)))
        pyro.sample("p", dist.Beta(torch.ones(2), 1.0).to_event(1))
        pyro.sample("wide", dist.Uniform(-1e6, 1e9))
        pyro.sample("rate", dist.Gamma(1.0, 1.0))
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("q", x.sigmoid())
        pyro.deterministic("ratio", x[0] / x[1])

    posterior = of(model, num_draws=50)
    open_ended = open_scalars(posterior.log_joint.space, posterior.draws)
    assert list(open_ended) == ["rate", "x[0]", "x[1]", "ratio"]


def test_the_exact_posterior_is_recognised() -> None:
    posterior = about(1.0)
    assert posterior.log_weights == pytest.approx(-2.0, abs=1e-5)
    assert posterior.diagnostics.elbo == pytest.approx(-2.0, abs=1e-5)
    assert posterior.diagnostics.log_evidence == pytest.approx(-2.0, abs=1e-5)
    assert posterior.weights == pytest.approx(1 / 4000, rel=1e-3)
    assert posterior.diagnostics.log_weight_sd < 1e-5


def test_a_wide_guide_is_usable_with_weights() -> None:
    posterior = about(1.5)
    assert posterior.khat < 0.3
    assert "usable with weights: average by them" in posterior.diagnostics.verdict
    assert posterior.diagnostics.log_evidence == pytest.approx(-2.0, abs=0.05)
    raw, weighted = posterior.summary(), posterior.summary(weighted=True)
    for label in ("x[0]", "x[1]"):
        assert raw[label]["sd"] == pytest.approx(1.5, rel=0.05)
        assert weighted[label]["sd"] == pytest.approx(1.0, rel=0.05)
        assert raw[label]["95%"] == pytest.approx(1.5 * 1.645, rel=0.07)
        assert weighted[label]["95%"] == pytest.approx(1.645, rel=0.07)
        assert weighted[label]["mean"] == pytest.approx(0.0, abs=0.07)


def test_a_narrow_guide_is_not_trusted() -> None:
    posterior = about(0.15)
    assert posterior.khat == posterior.diagnostics.khat > 0.7
    assert "do not trust: the guide misses a part" in posterior.diagnostics.verdict
    assert posterior.diagnostics.elbo < posterior.diagnostics.log_evidence


def test_a_close_guide_is_good() -> None:
    assert "good, use the draws as they are" in about(1.05).diagnostics.verdict
    assert "usable with weights" in about(1.1).diagnostics.verdict  # every sd is a tenth too large


def test_the_summary_is_a_table_and_a_sentence() -> None:
    posterior = of(schools, Y, num_draws=2000)
    summary = posterior.summary(mass=0.5)
    assert list(summary.rows)[:4] == ["mu", "tau[0]", "tau[1]", "w[0,0]"]
    assert len(summary.rows) == 1 + 2 + 12
    assert list(summary["mu"]) == ["mean", "sd", "25%", "75%"]
    assert summary["tau[1]"]["mean"] == pytest.approx(posterior.draws["tau"][:, 1].mean().item(), rel=1e-4)
    text = str(summary)
    assert posterior.diagnostics.verdict in text
    assert "ELBO" in text
    assert text.splitlines()[2].startswith("tau[0]")
    assert repr(posterior).startswith("Posterior of ['mu', 'tau', 'w'] after 63 steps.\nk-hat ")


def test_arviz_gets_everything_by_its_name(tmp_path: Path) -> None:
    posterior = of(schools, Y)
    data = posterior.to_arviz(coords={"columns": ["left", "right"]}, dims={"w": ["groups", "part"]})
    assert groups_of(data) == {"posterior", "sample_stats", "observed_data"}
    dims = {name: data.posterior[name].dims[2:] for name in data.posterior}
    assert dims == {"mu": (), "tau": ("columns",), "w": ("groups", "part")}
    assert data.posterior.sizes == {"chain": 1, "draw": 500, "columns": 2, "groups": 4, "part": 3}
    assert data.posterior["tau"].sel(columns="right").values == pytest.approx(posterior.draws["tau"][None, :, 1])
    assert set(data.sample_stats) == {"log_weight", "psis_weight", "khat"}
    assert data.sample_stats["log_weight"].values[0] == pytest.approx(posterior.log_weights)
    assert data.sample_stats["psis_weight"].values.sum() == pytest.approx(1.0)
    assert (data.sample_stats["khat"] == posterior.khat).all()
    assert data.observed_data["y"].dims == ("rows", "columns")
    assert (data.observed_data["y"].values == Y.numpy()).all()
    assert data.observed_data["count"].values.ravel().tolist() == [3.0]
    data.to_netcdf(str(tmp_path / "posterior.nc"))
    back = arviz.from_netcdf(str(tmp_path / "posterior.nc"))
    assert back.posterior["w"].dims == ("chain", "draw", "groups", "part")
    assert back.posterior.equals(data.posterior)
    assert back.sample_stats.equals(data.sample_stats)


def test_arviz_names_dimensions_without_a_plate() -> None:
    data = of(schools, Y).to_arviz()
    assert data.posterior["w"].dims[2:] == ("groups", "w_dim_1")
    table = arviz.summary(data, kind="stats")
    assert {"mu", "tau[1]", "w[3, 2]"} <= set(table.index)


def test_arviz_has_all_rows_of_a_minibatch() -> None:
    part = of(schools, Y, 2)
    same = Posterior(part.guide, LogJoint(schools, (Y,), {}, part.guide.space), part.history, num_draws=500)
    data, whole = (posterior.to_arviz(log_likelihood=True) for posterior in (part, same))
    assert data.observed_data.equals(whole.observed_data)
    for name, expected in whole.log_likelihood.items():
        assert data.log_likelihood[name].values == pytest.approx(expected.values, abs=1e-5)
    assert "observed_data" not in groups_of(about(1.0, 100).to_arviz())


def test_plot_loss_shows_the_elbo_of_every_step() -> None:
    figure = of(schools, Y).plot_loss()
    assert isinstance(figure, Figure)
    (ax,) = figure.axes
    noisy, smooth = (line.get_ydata() for line in ax.lines)
    assert len(noisy) == 63
    assert np.isnan(noisy).sum() == 1  # the dropped step
    assert np.nanmax(smooth) <= -31.0
    assert np.isfinite(ax.get_ylim()).all()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "nats")


@pytest.mark.parametrize("evidence", [-31.0, 0.0])
def test_plot_elbo_shows_a_known_evidence(evidence: float) -> None:
    ax = Figure().subplots()
    figure = plots.plot_elbo(np.linspace(-40.0, -32.0, 1000), evidence, ax)
    assert figure is ax.figure
    assert ax.lines[-1].get_ydata() == [evidence, evidence]
    assert ax.get_ylim()[1] > evidence


def test_plot_elbo_survives_a_run_of_dropped_steps() -> None:
    elbo = np.linspace(-40.0, -32.0, 500)
    elbo[100:150] = np.nan
    (ax,) = plots.plot_elbo(elbo).axes
    smooth = ax.lines[1].get_ydata()
    assert len(smooth) == 50
    assert np.isnan(smooth).sum() == 5
    assert smooth[0] == pytest.approx(elbo[:10].mean())


def test_plot_pairs_shows_scalars_against_each_other() -> None:
    posterior = of(schools, Y)
    figure = posterior.plot_pairs(["tau", "mu"])
    assert isinstance(figure, Figure)
    axes = np.array(figure.axes).reshape(3, 3)
    assert [ax.get_xlabel() for ax in axes[-1]] == ["tau[0]", "tau[1]", "mu"]
    assert [ax.get_ylabel() for ax in axes[1:, 0]] == ["tau[1]", "mu"]
    assert [[ax.axison for ax in row] for row in axes] == np.tri(3, dtype=bool).tolist()
    assert all(axes[i, i].patches for i in range(3))
    x, y = axes[2, 0].lines[0].get_data()
    assert x == pytest.approx(posterior.draws["tau"][:, 0].numpy())
    assert y == pytest.approx(posterior.draws["mu"].numpy())


def test_plot_pairs_stops_at_a_number_of_scalars() -> None:
    posterior = of(schools, Y)
    assert len(posterior.plot_pairs().axes) == 36
    assert len(posterior.plot_pairs(max_scalars=2).axes) == 4
    assert len(posterior.plot_pairs(["mu"]).axes) == 1
    with pytest.raises(KeyError, match="nu"):
        posterior.plot_pairs(["nu"])
