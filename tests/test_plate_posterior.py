"""Fits by plate and their posterior: exact answers, verdicts on guides that are spoilt, draws, tables, files."""

from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyroflows as pf
from pyroflows import AutoPlateFlow, PlatePosterior, Posterior

ROWS = 60
GENERATOR = torch.Generator().manual_seed(8)
TRUTH = 1.0 + 0.7 * torch.randn(ROWS, generator=GENERATOR)
Y = TRUTH[:, None] + torch.randn(ROWS, 5, generator=GENERATOR)
COUNTS = torch.poisson(TRUTH.exp()[:, None].expand(ROWS, 3), generator=GENERATOR)


def normal(y: Tensor, size: int | None = None) -> None:
    """Groups with unknown mean and scale."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("group", len(y), subsample_size=size) as index:
        effect = pyro.sample("effect", dist.Normal(mean, scale))
        pyro.sample("y", dist.Normal(effect[..., None], y.new_ones(5)).to_event(1), obs=y[index])


def counts(y: Tensor) -> None:
    """Groups with Gamma rates: no normal in sight."""
    shape = pyro.sample("shape", dist.LogNormal(0.0, 1.0))
    with pyro.plate("group", len(y)):
        rate = pyro.sample("rate", dist.Gamma(shape, 0.5))
        pyro.deterministic("log_rate", rate.log())
        pyro.sample("y", dist.Poisson(rate[..., None]).to_event(1), obs=y)


def exact() -> dict[str, Tensor]:
    """Evidence, globals and effects of :func:`normal`, on a grid of the mean and the log of the scale."""
    mean, log_scale = torch.meshgrid(
        torch.linspace(0.3, 1.7, 141).double(), torch.linspace(-1.4, 0.6, 141).double(), indexing="ij"
    )
    means, within = Y.double().mean(-1), ((Y - Y.mean(-1, keepdim=True)) ** 2).double().sum()
    variance = (2 * log_scale).exp()[..., None] + 0.2
    level = dist.Normal(mean[..., None], variance.sqrt()).log_prob(means).sum(-1) - 0.5 * within
    level = level + ROWS * (-2 * torch.tensor(2 * torch.pi).log() - 0.5 * torch.tensor(5.0).log())
    level = level + dist.Normal(0.0, 5.0).log_prob(mean) + dist.HalfNormal(2.0).log_prob(log_scale.exp()) + log_scale
    weights = level.flatten().softmax(0)
    precision = (-2 * log_scale).exp() + 5
    inner = (((-2 * log_scale).exp() * mean)[..., None] + 5 * means) / precision[..., None]
    first = weights @ inner.flatten(0, 1)
    second = weights @ (inner.square() + 1 / precision[..., None]).flatten(0, 1)
    scale = log_scale.exp().flatten()
    found = {"mean": mean.flatten(), "scale": scale}
    moments = {k: (weights @ v, (weights @ v.square() - (weights @ v) ** 2).sqrt()) for k, v in found.items()}
    area = (mean[1, 0] - mean[0, 0]) * (log_scale[0, 1] - log_scale[0, 0])
    moments["effect"] = first, (second - first.square()).sqrt()
    return moments | {"evidence": level.flatten().logsumexp(0) + area.log()}


@pytest.fixture(scope="module")
def fitted() -> PlatePosterior:
    torch.manual_seed(0)
    return pf.fit(normal, Y, progress=False)


def test_fit_follows_the_plate_and_is_right(fitted: PlatePosterior) -> None:
    truth = exact()
    assert isinstance(fitted, PlatePosterior)
    assert fitted.diagnostics.grade == "good"
    assert fitted.diagnostics.log_evidence == pytest.approx(truth["evidence"].item(), abs=0.01)
    assert truth["evidence"].item() - 0.03 < fitted.diagnostics.elbo < truth["evidence"].item() + 0.01
    draws = fitted.sample(20_000, sites=["mean", "scale"], seed=2)
    for name in ("mean", "scale"):
        mean, sd = truth[name]
        assert abs(draws[name].mean() - mean) < 0.06 * sd
        assert abs(draws[name].std() / sd - 1) < 0.06
    mean, sd = truth["effect"]
    for weighted in (False, True):
        found = fitted.moments(weighted=weighted)["effect"]
        assert ((found[0] - mean) / sd).abs().max() < (0.4 if weighted else 0.1)  # by draws, or in closed form
        assert (found[1] / sd - 1).abs().max() < (0.4 if weighted else 0.1)


def test_some_rows_at_a_time_give_the_same(fitted: PlatePosterior) -> None:
    torch.manual_seed(0)
    some = pf.fit(normal, Y, 16, progress=False)
    assert some.structure.is_subsampled
    assert some.diagnostics.elbo == pytest.approx(fitted.diagnostics.elbo, abs=0.02)
    for part, whole in zip(some.moments()["effect"], fitted.moments()["effect"], strict=True):
        assert torch.allclose(part, whole, atol=0.03)


def test_rows_that_are_not_normal_are_trained() -> None:
    torch.manual_seed(0)
    found = pf.fit(counts, COUNTS, progress=False)
    assert found.diagnostics.grade in ("good", "usable with weights")
    assert len(found.history.elbo) >= 100
    shape = found.guide.outer_posterior().sample((2000,)).exp()
    mean, sd = found.moments(weighted=False)["rate"]
    expected = ((shape.mean() + COUNTS.sum(-1)) / 3.5).double()  # of a Gamma, given its shape
    assert torch.allclose(mean, expected, rtol=0.03)
    assert torch.allclose(sd, expected.sqrt() / 3.5**0.5, rtol=0.06)
    assert set(found.predict(num_samples=5)) == {"log_rate", "y"}


SPOILT = {
    "globals moved": (lambda guide: guide.transform[-1].params.value[0].add_(0.5), "usable with weights"),
    "one row": (lambda guide: guide.form.row[7, 0].add_(2.5), "rows 7 ("),
    "all rows": (lambda guide: guide.form.row[:, 0].add_(0.8), "the rows are off"),
    "all rows too wide": (lambda guide: guide.form.row[:, 1].sub_(0.5), "log weights of a row of 'group' spread by"),
}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] if name != "globals moved" else [])
        for name, case in SPOILT.items()
    ],
)
def test_what_is_spoilt_is_named_and_mended(spoil: Callable, says: str) -> None:
    torch.manual_seed(0)
    guide = pf.fit(normal, Y, progress=False).guide
    with torch.no_grad():
        spoil(guide)
    spoilt = PlatePosterior(guide, guide.joint, pf.infer.History())
    assert says in spoilt.diagnostics.verdict
    assert spoilt.diagnostics.grade != "good"
    again = pf.fit(normal, Y, guide=guide, progress=False)
    assert again.diagnostics.grade in ("good", "usable with weights")
    mean, sd = exact()["effect"]
    assert ((again.moments()["effect"][0] - mean) / sd).abs().max() < 0.3


def test_refined_draws(fitted: PlatePosterior) -> None:
    with torch.no_grad():
        fitted.guide.transform[-1].params.value[0] += 0.7
    try:
        moved = PlatePosterior(fitted.guide, fitted.joint, fitted.history)
        mean, sd = exact()["mean"]
        assert abs(moved.sample(4000, sites=["mean"], seed=1)["mean"].mean() - mean) > 0.5 * sd
        for method in ("resample", "importance"):
            found = moved.refine(method, num_draws=1500).summary()["mean"]
            assert abs(found["mean"] - mean) < 0.15 * sd
        assert abs(moved.summary()["mean"]["mean"] - mean) < 0.15 * sd  # weighted, as the verdict says
    finally:
        with torch.no_grad():
            fitted.guide.transform[-1].params.value[0] -= 0.7


def test_draws_of_some_sites_and_rows(fitted: PlatePosterior) -> None:
    found = fitted.sample(7, rows=[3, 50])
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "mean": (7,),
        "scale": (7,),
        "effect": (7, 2),
    }
    assert list(fitted.sample(7, sites=["effect"])) == ["effect"]
    rows = fitted.sample(4000, rows=[3, 50], seed=1)["effect"].mean(0)
    assert torch.allclose(rows, fitted.moments()["effect"][0][[3, 50]], atol=0.03)
    assert fitted.log_prob(fitted.sample(5)).shape == (5,)


def test_summary_by_rows(fitted: PlatePosterior) -> None:
    assert len(fitted.summary().rows) == 2 + ROWS
    some = fitted.summary(rows=[7])
    assert list(some.rows) == ["mean", "scale", "effect[7]"]
    torch.manual_seed(0)
    many = pf.fit(normal, torch.cat([Y, Y]), progress=False).summary()
    assert list(many.rows)[-1] == "effect of 120 rows"
    assert len(many.rows) == 2 + 5 + 1


def test_arviz_predictions_and_pictures(fitted: PlatePosterior) -> None:
    assert fitted.to_arviz().posterior["effect"].dims == ("chain", "draw", "group")
    assert fitted.predict(num_samples=3)["y"].shape == (3, ROWS, 5)
    assert len(fitted.plot_rows().axes) == 1
    assert "effect[3]" in fitted.report()
    with pytest.raises(ValueError, match="a fit with steps, got one without"):
        fitted.plot_loss()


def test_the_guide_of_a_fit_runs_with_the_model_in_its_own_precision(fitted: PlatePosterior) -> None:
    found = fitted.guide(Y)
    assert found["effect"].dtype == torch.float32
    loss = Trace_ELBO(num_particles=200, vectorize_particles=True).loss(normal, fitted.guide, Y)
    assert loss == pytest.approx(-fitted.diagnostics.elbo, abs=0.1)


def test_a_file_and_back(fitted: PlatePosterior, tmp_path: Path) -> None:
    fitted.save(tmp_path / "fit.pt")
    again = PlatePosterior.load(tmp_path / "fit.pt", normal, Y)
    assert torch.equal(again.sample(3, seed=1)["effect"], fitted.sample(3, seed=1)["effect"])
    assert again.diagnostics == fitted.diagnostics
    with pytest.raises(ValueError, match="expected the model and data of the saved posterior"):
        PlatePosterior.load(tmp_path / "fit.pt", normal, Y.flip(0))
    with pytest.raises(ValueError, match="expected a model with the saved latents"):
        PlatePosterior.load(tmp_path / "fit.pt", normal, Y[:50])


def test_few_latents_and_other_options_are_for_one_flow() -> None:
    assert isinstance(pf.fit(normal, Y[:30], steps=20, progress=False), Posterior)
    assert isinstance(pf.fit(normal, Y[:30], plates=True, progress=False), PlatePosterior)


@pytest.mark.slow
def test_a_callback_stops_and_a_checkpoint_goes_on(tmp_path: Path) -> None:
    seen = []

    def stop(step: int, elbo: float, rate: float) -> bool:
        seen.append(step)
        return step == 130

    torch.manual_seed(0)
    whole = pf.fit(counts, COUNTS, steps=300, compile=False, progress=False)
    torch.manual_seed(0)
    pf.fit(counts, COUNTS, steps=300, compile=False, progress=False, callback=stop, checkpoint=tmp_path / "fit.pt")
    again = pf.fit(counts, COUNTS, steps=300, compile=False, progress=False, checkpoint=tmp_path / "fit.pt")
    assert seen == list(range(1, 131))
    for name, value in whole.guide.state_dict().items():
        assert torch.equal(value, again.guide.state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"plates": 3}, TypeError, "plates to be None, True, False or the name of a plate, got 3"),
        ({"plates": "grup"}, ValueError, "the name of a plate with latents inside, got 'grup'"),
        ({"plates": True, "modes": 2}, ValueError, "plates=True without a flow, guide, base"),
    ],
)
def test_options_that_do_not_fit(options: dict, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        pf.fit(normal, Y, progress=False, **options)


def two_humps(y: Tensor) -> None:
    """Rows of which nobody knows the sign, few enough for one flow."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
    with pyro.plate("group", len(y)):
        size = pyro.sample("size", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(size**2, 0.1), obs=y)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fit:UserWarning")
def test_what_is_not_to_be_trusted_by_plate_is_fitted_by_one_flow() -> None:
    y = torch.full((50,), 1.0)
    by_plate = pf.fit(two_humps, y, plates=True, steps=20, progress=False).diagnostics
    assert by_plate.grade == "do not trust"
    assert "50 of 50 rows of 'group' have another mode with up to 50% of their mass" in by_plate.verdict
    assert isinstance(pf.fit(two_humps, y, steps=20, progress=False), Posterior)


def test_a_guide_by_plate_excludes_one_flow() -> None:
    with pytest.raises(ValueError, match="plates=False without a guide by plate"):
        pf.fit(normal, Y, guide=AutoPlateFlow(normal), plates=False)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda posterior: posterior.sample(3, rows=[100]), "rows of plate 'group', from 0 to 59, got"),
        (lambda posterior: posterior.sample(3, sites=["efect"]), "some of the sites .*, got 'efect'"),
        (lambda posterior: posterior.sample(10**7), "at most 50,000,000 numbers, got 10000000 draws of 60 rows"),
        (lambda posterior: posterior.refine("imh"), '"importance" or "resample" for a posterior by plate'),
        (lambda posterior: posterior.plot_rows("mean"), "one of the plate's sites"),
        (lambda posterior: posterior.summary(mass=2.0), "a mass between 0 and 1"),
        (lambda posterior: posterior.sample(3, rows=[1], deterministic=True), "deterministic=True without sites and"),
    ],
)
def test_messages(fitted: PlatePosterior, call: Callable, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(fitted)
