"""Diagnostics, tables and ArviZ objects from arrays alone.

Nothing here imports torch, and the modules are loaded by their paths: so these tests also run where only ArviZ is
installed, as with ``python -m pytest --noconftest tests/test_report.py`` under ArviZ 1.x.
"""

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import arviz
import numpy as np
import pytest
from numpy.typing import NDArray

PACKAGE = Path(__file__).parents[1] / "pyroflows"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_alone", PACKAGE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


diagnostics, report = load("diagnostics"), load("report")
Diagnostics = diagnostics.Diagnostics


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def log_weights(rng: np.random.Generator, sd: float, draws: int = 4000) -> NDArray:
    """Log weights of a normal target of sd 1 under a proposal of another sd; the log evidence is 2."""
    x = sd * rng.normal(size=draws)
    return 2.0 + np.log(sd) - x**2 / 2 + (x / sd) ** 2 / 2


def test_torch_is_not_needed() -> None:
    code = f"""
import sys
sys.modules["torch"] = sys.modules["pyro"] = sys.modules["matplotlib"] = None
sys.path.insert(0, {str(PACKAGE)!r})
import diagnostics, report
print("arviz" in sys.modules, report.summarize({{"x": diagnostics.np.zeros(3)}}, None, 0.9, "fine").notes)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.split() == ["False", "fine"]


@pytest.mark.parametrize("sd", [1.1, 1.5, 0.9])
def test_what_is_computed_from_good_weights(rng: np.random.Generator, sd: float) -> None:
    log_w = log_weights(rng, sd)
    found, weights = Diagnostics.of(log_w)
    assert weights.shape == (4000,)
    assert weights.sum() == pytest.approx(1.0)
    assert (weights > 0).all()
    assert found.draws == 4000
    assert found.log_weight_sd == pytest.approx(np.std(log_w))
    assert found.elbo == pytest.approx(np.mean(log_w))
    assert found.elbo_error == pytest.approx(np.std(log_w) / 4000**0.5)
    assert found.elbo < found.log_evidence
    assert found.log_evidence == pytest.approx(2.0, abs=0.03)
    kl = np.log(1 / sd) + sd**2 / 2 - 0.5
    assert found.elbo == pytest.approx(2.0 - kl, abs=4 * found.elbo_error)
    assert found.efficiency == pytest.approx(1 / np.sum(weights**2) / 4000)


@pytest.mark.parametrize("shape", [0.2, 0.6, 1.2])
def test_khat_is_the_shape_of_the_tail(rng: np.random.Generator, shape: float) -> None:
    found, _ = Diagnostics.of(shape * rng.exponential(size=20_000))
    assert found.khat == pytest.approx(shape, abs=0.12)


def test_khat_is_small_for_a_wide_proposal_and_large_for_a_narrow_one(rng: np.random.Generator) -> None:
    wide, narrow = (Diagnostics.of(log_weights(rng, sd))[0] for sd in (1.5, 0.35))
    assert wide.khat < 0.2
    assert narrow.khat > 0.6
    assert narrow.efficiency < wide.efficiency < 1.0


def test_weights_are_smoothed(rng: np.random.Generator) -> None:
    log_w = log_weights(rng, 0.7)
    raw = np.exp(log_w - np.logaddexp.reduce(log_w))
    smoothed = Diagnostics.of(log_w)[1]
    assert smoothed.max() < raw.max()
    assert (np.argsort(smoothed) == np.argsort(raw)).all()
    bulk = np.argsort(raw)[:3000]
    ratio = smoothed[bulk] / raw[bulk]
    assert ratio == pytest.approx(ratio[0])


def test_a_constant_changes_the_evidence_alone(rng: np.random.Generator) -> None:
    log_w = log_weights(rng, 1.3)
    (one, weights), (other, same) = Diagnostics.of(log_w), Diagnostics.of(log_w + 700.0)
    assert weights == pytest.approx(same)
    assert one.khat == pytest.approx(other.khat)
    assert other.log_evidence - one.log_evidence == pytest.approx(700.0)


def test_the_exact_posterior_has_equal_weights() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, weights = Diagnostics.of(np.full(4000, -3.0))
    assert weights == pytest.approx(np.full(4000, 1 / 4000))
    assert found.khat == -np.inf
    assert found.verdict == "sd(log w) 0.0e+00: good, the weights are equal up to rounding."
    assert (found.elbo, found.log_evidence) == pytest.approx((-3.0, -3.0))
    assert found.efficiency == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [-np.inf, np.nan, np.inf])
def test_weights_that_are_not_finite(rng: np.random.Generator, bad: float) -> None:
    log_w = log_weights(rng, 1.3)
    log_w[:10] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, weights = Diagnostics.of(log_w)
    assert (weights[:10] == 0).all()
    assert weights.sum() == pytest.approx(1.0)
    assert not np.isfinite(found.elbo)
    assert (found.khat < 0.7) == (bad == -np.inf)
    assert ("do not trust" in found.verdict) == (bad != -np.inf)


def test_weights_that_are_all_zero() -> None:
    found, _ = Diagnostics.of(np.full(100, -np.inf))
    assert found.khat == np.inf
    assert "do not trust" in found.verdict


@pytest.mark.parametrize(
    ("khat", "sd", "verdict"),
    [
        (0.2, 0.1, "k-hat 0.20 < 0.7: good, the draws can be used as they are."),
        (0.65, 0.1, "k-hat 0.65 < 0.7: good, the draws can be used as they are."),
        (0.2, 0.8, "k-hat 0.20 < 0.7: usable with weights: average by them"),
        (0.65, 0.8, "k-hat 0.65 < 0.7: usable with weights: average by them"),
        (0.9, 0.12, "k-hat 0.90 >= 0.7, but the log weights spread by only 0.12 nats: good in the bulk"),
        (0.7, 0.8, "k-hat 0.70 >= 0.7: do not trust: the guide misses a part. Try posterior.refine"),
        (np.nan, np.nan, "do not trust: the guide misses a part"),
    ],
)
def test_the_verdict(khat: float, sd: float, verdict: str) -> None:
    numbers = {"elbo": -31.4, "elbo_error": 0.01, "log_evidence": -31.3, "log_evidence_error": 0.02}
    found = Diagnostics(khat, sd, efficiency=0.5, draws=4000, **numbers)
    assert verdict in found.verdict
    assert len(found.verdict.splitlines()) == 1
    first, second = str(found).splitlines()
    assert first == found.verdict
    assert "ELBO -31.400 +- 0.010, log evidence (IS) -31.300 +- 0.020, sd(log w)" in second
    assert "ESS 50% of 4000 draws" in second


def test_a_table_has_a_row_for_every_scalar(rng: np.random.Generator) -> None:
    draws = {"mu": rng.normal(size=4000), "theta": rng.normal(2.0, 3.0, size=(4000, 2, 2))}
    summary = report.summarize(draws, None, 0.9, "notes here")
    assert list(summary.rows) == ["mu", "theta[0,0]", "theta[0,1]", "theta[1,0]", "theta[1,1]"]
    row = summary["theta[1,0]"]
    assert list(row) == ["mean", "sd", "5%", "95%"]
    values = draws["theta"][:, 1, 0]
    assert row["mean"] == pytest.approx(values.mean())
    assert row["sd"] == pytest.approx(values.std())
    assert row["5%"] == pytest.approx(np.quantile(values, 0.05), abs=0.05)
    assert row["95%"] == pytest.approx(np.quantile(values, 0.95), abs=0.05)
    header, *lines = str(summary).splitlines()
    assert header.split() == ["mean", "sd", "5%", "95%"]
    assert [line.split()[0] for line in lines[:5]] == list(summary.rows)
    assert len({len(line) for line in [header, *lines[:5]]}) == 1
    assert lines[5:] == ["", "notes here"]
    assert repr(summary) == str(summary)


@pytest.mark.parametrize(("mass", "columns"), [(0.5, ["25%", "75%"]), (0.95, ["2.5%", "97.5%"])])
def test_the_interval_holds_the_mass(rng: np.random.Generator, mass: float, columns: list[str]) -> None:
    values = rng.normal(size=4000)
    row = report.summarize({"x": values}, None, mass, "")["x"]
    assert list(row)[2:] == columns
    low, high = (row[c] for c in columns)
    assert np.mean((values > low) & (values < high)) == pytest.approx(mass, abs=2e-3)


def test_weights_move_every_column(rng: np.random.Generator) -> None:
    values = 2.0 * rng.normal(size=20_000)
    log_w = -(values**2) / 2 + values**2 / 8
    weights = np.exp(log_w - np.logaddexp.reduce(log_w))
    row = report.summarize({"x": values}, weights, 0.9, "")["x"]
    expected = {"mean": 0.0, "sd": 1.0, "5%": -1.645, "95%": 1.645}
    assert row == pytest.approx(expected, abs=0.05)


def test_quantiles_of_few_draws_are_draws() -> None:
    row = report.describe(np.array([3.0, 1.0, 2.0]), None, (0.0, 0.5, 1.0))
    assert row == {"mean": 2.0, "sd": pytest.approx((2 / 3) ** 0.5), "0%": 1.0, "50%": 2.0, "100%": 3.0}
    heavy = report.describe(np.array([3.0, 1.0, 2.0]), np.array([0.9, 0.05, 0.05]), (0.5,))
    assert heavy["50%"] == 3.0


def groups(rng: np.random.Generator) -> dict:
    return {
        "posterior": {"mu": rng.normal(size=(1, 50)), "theta": rng.normal(size=(1, 50, 3, 2))},
        "sample_stats": {"log_weight": rng.normal(size=(1, 50))},
        "observed_data": {"y": np.arange(3.0), "count": np.array(4)},
    }


NAMES = {"theta": ["school", "theta_dim_1"], "y": ["school"]}


def test_arviz_gets_groups_dims_and_coords(rng: np.random.Generator) -> None:
    given = groups(rng)
    data = report.inference_data(given, NAMES, {"school": ["A", "B", "C"]})
    assert type(data).__name__ == ("InferenceData" if arviz.__version__ < "1" else "DataTree")
    assert data["posterior"]["mu"].dims == ("chain", "draw")
    theta = data["posterior"]["theta"]
    assert theta.dims == ("chain", "draw", "school", "theta_dim_1")
    assert (theta.values == given["posterior"]["theta"]).all()
    assert theta.coords["school"].values.tolist() == ["A", "B", "C"]
    assert data["sample_stats"]["log_weight"].dims == ("chain", "draw")
    assert data["observed_data"]["y"].dims == ("school",)
    assert data["observed_data"]["y"].sel(school="B") == 1.0
    assert data["observed_data"]["count"].values.ravel().tolist() == [4]


def test_arviz_gets_no_empty_group(rng: np.random.Generator) -> None:
    data = report.inference_data(groups(rng) | {"observed_data": {}}, {"theta": NAMES["theta"]}, None)
    assert "posterior" in data.children if hasattr(data, "children") else "posterior" in data.groups()
    assert not hasattr(data, "observed_data")


def test_arviz_saves_and_summarizes(rng: np.random.Generator, tmp_path: Path) -> None:
    data = report.inference_data(groups(rng), NAMES, {"school": ["A", "B", "C"]})
    data.to_netcdf(str(tmp_path / "fit.nc"))
    back = arviz.from_netcdf(str(tmp_path / "fit.nc"))
    assert (back["posterior"]["theta"].values == data["posterior"]["theta"].values).all()
    assert back["posterior"]["theta"].coords["school"].values.tolist() == ["A", "B", "C"]
    table = arviz.summary(back, var_names=["theta"], kind="stats")
    assert "theta[B, 1]" in table.index
