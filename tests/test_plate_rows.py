"""Rows left out, new rows, some rows at a time: what a posterior by plate says of rows, beside exact answers."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyroflows as pf
from pyroflows import PlatePosterior
from pyroflows.model.rows import RowJoint
from pyroflows.model.rows.relations import Related, related
from pyroflows.posterior.plates.loo import Loo
from pyroflows.posterior.plates.structure_plot import plot_structure

ROWS, EACH = 60, 4
GENERATOR = torch.Generator().manual_seed(3)
Y = 1.0 + 0.7 * torch.randn(ROWS, 1, generator=GENERATOR) + torch.randn(ROWS, EACH, generator=GENERATOR)
NEW = torch.tensor([[1.0, 2.0, 0.5, 1.5], [3.0, 2.5, 2.0, 3.5], [-0.5, -1.0, 0.0, 1.0]])


def groups(y: Tensor | None, rows: int = ROWS, size: int | None = None) -> None:
    """Groups with unknown mean and scale, with data or without."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("group", rows, subsample_size=size) as index:
        effect = pyro.sample("effect", dist.Normal(mean, scale))
        pyro.deterministic("double", 2 * effect)
        obs = None if y is None else y[index]
        pyro.sample("y", dist.Normal(effect[..., None], torch.ones(EACH)).to_event(1), obs=obs)


class Grid:
    """The exact posterior of the globals of :func:`groups`, on a grid of the mean and the log of the scale."""

    def __init__(self) -> None:
        grid = torch.meshgrid(torch.linspace(0, 2, 151).double(), torch.linspace(-2, 1, 151).double(), indexing="ij")
        self.mean, log_scale = (part.flatten() for part in grid)
        self.scale = log_scale.exp()
        prior = dist.Normal(0.0, 5.0).log_prob(self.mean) + dist.HalfNormal(2.0).log_prob(self.scale) + log_scale
        self.log = (prior + self.rows(Y).sum(-1)).log_softmax(0)

    def rows(self, y: Tensor) -> Tensor:
        """Log densities ``(grid, rows)`` of the data of rows, with their effects integrated out."""
        y = y.double()
        middle, spread = y.mean(-1), (self.scale[:, None] ** 2 + 1 / EACH).sqrt()
        within = dist.Normal(0.0, 1.0).log_prob(y - middle[:, None]).sum(-1) + 0.5 * np.log(2 * np.pi / EACH)
        return dist.Normal(self.mean[:, None], spread).log_prob(middle) + within


@pytest.fixture(scope="module")
def grid() -> Grid:
    return Grid()


@pytest.fixture(scope="module")
def fitted() -> PlatePosterior:
    torch.manual_seed(0)
    return pf.fit(groups, Y, progress=False)


def test_rows_left_out_are_those_of_a_grid(fitted: PlatePosterior, grid: Grid) -> None:
    rows, found = grid.rows(Y), fitted.loo()
    left_out = -(grid.log[:, None] - rows).logsumexp(0)
    inside = (grid.log[:, None] + rows).logsumexp(0)
    assert torch.allclose(torch.as_tensor(found.pointwise), left_out, atol=0.02)
    assert found.elpd == pytest.approx(left_out.sum().item(), abs=0.1)
    assert found.se == pytest.approx(left_out.std(correction=0).item() * ROWS**0.5, abs=0.05)
    assert found.p_loo == pytest.approx((inside - left_out).sum().item(), abs=0.1)
    assert "60 rows of 'group' left out one by one" in str(found)
    assert found.khat.max() < 0.85


def test_averages_of_rows_that_are_off_cancel_in_their_own_weights(fitted: PlatePosterior, grid: Grid) -> None:
    guide = copy.deepcopy(fitted.guide)
    with torch.no_grad():
        guide.form.row[:, 1] -= 0.06
    spoilt = PlatePosterior(guide, fitted.joint, fitted.history, num_draws=300)
    left_out = -(grid.log[:, None] - grid.rows(Y)).logsumexp(0)
    assert spoilt.diagnostics.each > 1
    assert (torch.as_tensor(spoilt.loo().pointwise) - left_out).abs().mean() < 0.02


def test_rows_that_weights_cannot_leave_out_are_named() -> None:
    found = Loo(np.zeros(8), np.array([0.1, 0.9, -np.inf, 0.7, 0.2, 0.3, 0.4, 0.5]), 2.0, "group")
    assert list(found.worst) == [1, 3, 7, 6, 5]
    assert "k-hat >= 0.7 for 2 of 8 rows of 'group'" in found.verdict
    assert "rows 1 (0.90), 3 (0.70). Fit without each" in found.verdict
    assert Loo(np.zeros(2), np.zeros(2), 2.0, "group").verdict == "all k-hats < 0.7: good."


def test_the_density_of_new_rows_is_that_of_a_grid(fitted: PlatePosterior, grid: Grid) -> None:
    exact = (grid.log[:, None] + grid.rows(NEW)).logsumexp(0)
    assert torch.allclose(fitted.log_predictive(NEW, 3), exact, atol=0.02)
    assert torch.allclose(fitted.log_predictive(NEW[1:2], 1), exact[1:2], atol=0.02)
    assert torch.allclose(fitted.log_predictive(NEW, 3, 2), exact, atol=0.02)  # two rows at a time


def test_new_rows_with_data_are_those_of_a_grid(fitted: PlatePosterior, grid: Grid) -> None:
    found = fitted.predict_rows(NEW, 3, num_samples=4000, seed=1)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "mean": (4000,),
        "scale": (4000,),
        "effect": (4000, 3),
        "double": (4000, 3),
        "y": (4000, 3, EACH),
    }
    weights, precision = (grid.log + grid.rows(NEW).sum(-1)).softmax(0), grid.scale[:, None] ** -2 + EACH
    inner = (grid.scale[:, None] ** -2 * grid.mean[:, None] + EACH * NEW.double().mean(-1)) / precision
    mean = weights @ inner
    sd = (weights @ (inner.square() + 1 / precision) - mean.square()).sqrt()
    assert ((found["effect"].mean(0) - mean) / sd).abs().max() < 0.08
    assert (found["effect"].std(0) / sd - 1).abs().max() < 0.05
    for name, values in (("mean", grid.mean), ("scale", grid.scale)):
        spread = (weights @ values.square() - (weights @ values) ** 2).sqrt()
        assert abs(found[name].mean() - weights @ values) < 0.1 * spread


def test_new_rows_without_data_have_their_prior(fitted: PlatePosterior, grid: Grid) -> None:
    weights = grid.log.exp()
    mean = weights @ grid.mean
    sd = (weights @ (grid.mean.square() + grid.scale.square()) - mean**2).sqrt()
    known = fitted.predict(None, num_samples=3, seed=1)
    assert {name: tuple(value.shape) for name, value in known.items()} == {"double": (3, ROWS), "y": (3, ROWS, EACH)}
    for found in (
        fitted.predict(None, 5, num_samples=4000, seed=1),
        fitted.predict(None, 6, 4, num_samples=4000, seed=1),  # some rows at a time
        fitted.predict_rows(None, 5, num_samples=4000, seed=1),
    ):
        assert ((found["effect"].mean(0) - mean) / sd).abs().max() < 0.07
        assert (found["effect"].std(0) / sd - 1).abs().max() < 0.05
        assert torch.equal(found["double"], 2 * found["effect"])
        assert (found["y"].flatten(1).var(1).mean() - 1 - sd**2).abs() < 0.2


def test_data_of_new_rows_that_move_the_globals_too_far_are_said(fitted: PlatePosterior) -> None:
    with pytest.warns(UserWarning, match="the new rows of 'group' move the globals farther than draws of the fit"):
        fitted.predict_rows(NEW + 20.0, 3, num_samples=3)


def changed(y: Tensor, rows: int = ROWS, width: int = 2) -> None:
    """Globals and rows whose shapes an argument changes."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(width), 5.0).to_event(1))
    with pyro.plate("group", rows):
        effect = pyro.sample("effect", dist.Normal(mean, 1.0).to_event(1))
        pyro.sample("y", dist.Normal(effect[..., :1], 1.0).to_event(1), obs=y)


def test_new_rows_with_other_latents_are_refused() -> None:
    torch.manual_seed(0)
    y = torch.randn(9, 1)
    found = pf.fit(changed, y, 9, plates=True, progress=False)
    assert found.predict_rows(y[:4], 4, num_samples=3)["effect"].shape == (3, 4, 2)
    with pytest.raises(
        ValueError,
        match=r"rows of plate 'group' .* the latent 'mean' is of shape \(3,\), and in the fit of shape \(2,\)",
    ):
        found.predict_rows(y[:4], 4, 3)
    with pytest.raises(
        ValueError, match=r"the latent 'mean' has the shape \(2,\) of the fit, got ones .* it has \(3,\)"
    ):
        found.predict(y[:4], 4, 3)


def test_a_file_of_globals_with_a_flow(fitted: PlatePosterior, tmp_path: Path) -> None:
    guide = copy.deepcopy(fitted.guide).bend(pf.flows.with_tails)
    with torch.no_grad():
        for parameter in guide.transform.parameters():
            parameter += 0.01
    bent = PlatePosterior(guide, fitted.joint, fitted.history)
    bent.save(tmp_path / "fit.pt")
    again = PlatePosterior.load(tmp_path / "fit.pt", groups, Y)
    assert len(again.guide.transform) == 2
    assert torch.equal(again.sample(3, seed=1)["effect"], bent.sample(3, seed=1)["effect"])


def passed(y: Tensor, index: Tensor) -> None:
    """Groups of which the caller chooses some, and passes their data."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("group", ROWS, subsample=index):
        effect = pyro.sample("effect", dist.Normal(mean, scale))
        pyro.sample("y", dist.Normal(effect[..., None], torch.ones(EACH)).to_event(1), obs=y)


def test_data_of_some_rows_that_the_caller_passes_are_not_those_of_others() -> None:
    index = torch.arange(20)
    guide = pf.AutoPlateFlow(passed)
    guide.setup_on(guide.read((Y[index], index), {}, torch.float64))
    posterior = PlatePosterior(guide, guide.joint, pf.infer.History())
    says = r"the rows that plate 'group' yields, y\[rows\], got one that is passed those of 20 rows of 60: pass it all"
    for call in (posterior.to_arviz, lambda: posterior.predict_rows(Y[index], index)):
        with pytest.raises(ValueError, match=says):
            call()


@pytest.fixture(scope="module")
def some() -> PlatePosterior:
    torch.manual_seed(0)
    return pf.fit(groups, Y, ROWS, 16, progress=False)


def test_some_rows_at_a_time_are_as_good_as_all(some: PlatePosterior, fitted: PlatePosterior) -> None:
    assert some.structure.is_subsampled
    draws = some.sample(5, seed=1)
    assert torch.allclose(some.log_prob(draws), fitted.log_prob(draws), atol=0.1)
    vectors = some.log_joint.unconstrain(draws)
    assert torch.allclose(some.log_joint(vectors), fitted.log_joint(fitted.log_joint.unconstrain(draws)))
    assert np.abs(some.loo().pointwise - fitted.loo().pointwise).max() < 0.02
    mean = fitted.moments()["effect"][0]
    found = some.predict(num_samples=1000, seed=1)
    assert found["y"].shape == (1000, ROWS, EACH)
    assert (found["y"].mean((0, 2)) - mean).abs().max() < 0.15
    for method in ("resample", "importance"):
        refined = some.refine(method, num_draws=500)
        assert refined.draws["effect"].shape == (500, ROWS)
        assert (torch.as_tensor(refined.weights) @ refined.draws["effect"] - mean).abs().max() < 0.15


def test_arviz_of_some_rows_at_a_time(some: PlatePosterior) -> None:
    few = PlatePosterior(some.guide, some.joint, some.history, num_draws=50)
    found = few.to_arviz(predictive=True, log_likelihood=True, prior=10)
    assert found.posterior["effect"].dims == ("chain", "draw", "group")
    assert found.posterior_predictive["y"].shape == (1, 50, ROWS, EACH)
    assert found.prior["effect"].shape == (1, 10, ROWS)
    assert np.array_equal(found.observed_data["y"].values, Y.numpy())
    z = torch.as_tensor(found.posterior["effect"].values)[0, :, :, None]
    likelihood = dist.Normal(z, 1.0).log_prob(Y).sum(-1)
    assert np.allclose(found.log_likelihood["y"].values[0], likelihood.numpy(), atol=1e-4)


@pytest.mark.parametrize("which", ["some", "fitted"])
def test_arviz_of_chosen_rows(which: str, request: pytest.FixtureRequest) -> None:
    posterior = request.getfixturevalue(which)
    found = posterior.to_arviz(rows=[7, 3])
    assert found.posterior["effect"].dims == ("chain", "draw", "group")
    assert found.posterior["effect"]["group"].values.tolist() == [7, 3]
    assert np.array_equal(found.observed_data["y"].values, Y.numpy()[[7, 3]])
    labels = [f"g{row}" for row in range(ROWS)]
    assert posterior.to_arviz(rows=[7], coords={"group": labels}).posterior["group"].values.tolist() == ["g7"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda posterior: posterior.to_arviz(rows=[3], predictive=True), "rows without predictive, which is of all"),
        (lambda posterior: posterior.to_arviz(rows=[100]), "rows of plate 'group', from 0 to 59, got"),
        (lambda posterior: posterior.predict(num_samples=10**7), "got 10000000 draws of 60 and 360: ask for num_samp"),
        (lambda posterior: posterior.predict_rows(NEW, 3, num_samples=10**8), "100000000 draws of 3 and 0: ask for n"),
        (lambda posterior: posterior.sample(10**6), "name rows=.*, at most 50, ask for fewer draws"),
        (lambda posterior: posterior.refine("resample", num_draws=10**6), "ask for num_draws=806451, or take moments"),
    ],
)
def test_messages(fitted: PlatePosterior, call: Callable, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(fitted)


def beside(y: Tensor) -> None:
    """Data in a plate of their own, one datum of no row, and a global that skips the rows."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("group", 3):
        effect = pyro.sample("effect", dist.Normal(mean, 1.0).to_event(1))
        pyro.deterministic("double", 2 * effect)
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(effect[torch.tensor([0, 0, 1, 2]), 1], noise), obs=y)
    pyro.sample("other", dist.Normal(mean[0], 1.0), obs=torch.tensor(0.0))


def test_relations_of_sites() -> None:
    sites, sizes = related(RowJoint(beside, (torch.randn(4),), {}))
    assert sites == [
        Related("mean", "global", 2, (), ()),
        Related("noise", "global", 1, (), ()),
        Related("effect", "row", 2, ("mean",), ("group",)),
        Related("y", "data", 0, ("noise", "effect"), ("row",)),
        Related("other", "data", 0, ("mean",), ()),
    ]
    assert sizes == {"group": 3, "row": 4}
    figure = plot_structure(sites, sizes, "group")
    labels = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert {*labels} == {"mean (2)", "noise", "effect (2)", "y", "other", "group: 3", "row: 4", ""}
    assert labels["mean (2)"][1] == labels["noise"][1] > labels["effect (2)"][1] > labels["y"][1] == labels["other"][1]


def test_a_picture_of_the_structure(some: PlatePosterior) -> None:
    texts = [text.get_text() for text in some.plot_structure().axes[0].texts]
    assert [text for text in texts if text] == ["group: 60", "mean", "scale", "effect", "y"]


def test_a_fit_to_data_of_some_rows_is_refused() -> None:
    def some_rows(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("group", 12, subsample_size=4):
            effect = pyro.sample("effect", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(effect, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"by the rows that plate 'group' yields, y\[rows\], got one that is"):
        pf.fit(some_rows, torch.arange(4.0), progress=False)
