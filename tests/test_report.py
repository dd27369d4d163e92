"""Tables and ArviZ objects from arrays alone.

Runs also where only ArviZ is installed: ``python -m pytest --noconftest tests/test_report.py`` under ArviZ 1.x.
"""

import subprocess
import sys
from pathlib import Path

import arviz
import numpy as np
import pytest

from alone import arviz_objects, groups_of, html_page, tables


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_torch_is_not_needed() -> None:
    code = f"""
import sys
sys.modules["torch"] = sys.modules["pyro"] = sys.modules["matplotlib"] = None
sys.path.insert(0, {str(Path(__file__).parent)!r})
from alone import importance_diagnostics, tables
print("arviz" in sys.modules, tables.summarize({{"x": importance_diagnostics.np.zeros(3)}}, None, 0.9, "fine").notes)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.split() == ["False", "fine"]


def test_a_summary_takes_further_columns(rng: np.random.Generator) -> None:
    summary = tables.summarize(
        {"x": rng.normal(size=(50, 2))}, None, 0.9, "", {"x[1]": {"ess": 40.0}, "x[0]": {"ess": 9.0}}
    )
    assert summary["x[1]"]["ess"] == 40.0
    assert str(summary).splitlines()[0].split()[-1] == "ess"


def test_a_table_has_a_row_for_every_scalar(rng: np.random.Generator) -> None:
    draws = {"mu": rng.normal(size=4000), "theta": rng.normal(2.0, 3.0, size=(4000, 2, 2))}
    summary = tables.summarize(draws, None, 0.9, "notes here")
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
    row = tables.summarize({"x": values}, None, mass, "")["x"]
    assert list(row)[2:] == columns
    low, high = (row[c] for c in columns)
    assert np.mean((values > low) & (values < high)) == pytest.approx(mass, abs=2e-3)


def test_weights_move_every_column(rng: np.random.Generator) -> None:
    values = 2.0 * rng.normal(size=20_000)
    log_w = -(values**2) / 2 + values**2 / 8
    weights = np.exp(log_w - np.logaddexp.reduce(log_w))
    row = tables.summarize({"x": values}, weights, 0.9, "")["x"]
    expected = {"mean": 0.0, "sd": 1.0, "5%": -1.645, "95%": 1.645}
    assert row == pytest.approx(expected, abs=0.05)


def test_quantiles_of_few_draws_are_draws() -> None:
    row = tables.describe(np.array([3.0, 1.0, 2.0]), None, (0.0, 0.5, 1.0))
    assert row == {"mean": 2.0, "sd": pytest.approx((2 / 3) ** 0.5), "0%": 1.0, "50%": 2.0, "100%": 3.0}
    heavy = tables.describe(np.array([3.0, 1.0, 2.0]), np.array([0.9, 0.05, 0.05]), (0.5,))
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
    data = arviz_objects.inference_data(given, NAMES, {"school": ["A", "B", "C"]})
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
    data = arviz_objects.inference_data(groups(rng) | {"observed_data": {}}, {"theta": NAMES["theta"]}, None)
    assert "posterior" in groups_of(data)
    assert not hasattr(data, "observed_data")


def test_arviz_leaves_one_out(rng: np.random.Generator, tmp_path: Path) -> None:
    mean = 1.0 + rng.normal(size=(4, 500)) / 40**0.5
    y = rng.normal(1.0, 0.7, size=(20, 2))
    scores = -((y - mean[..., None, None]) ** 2 / 2 + np.log(2 * np.pi) / 2).sum(-1)
    given = {"posterior": {"mean": mean}, "log_likelihood": {"y": scores}, "observed_data": {"y": y}}
    data = arviz_objects.inference_data(given, {"y": ["row", "side"]}, {"row": list("abcdefghijklmnopqrst")})
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "row")
    assert data["observed_data"]["y"].dims == ("row", "side")
    found = arviz.loo(data)
    assert found.n_data_points == 20
    assert 0.2 < (found.p_loo if arviz.__version__ < "1" else found.p) < 4
    if arviz.__version__ < "1":
        assert arviz.waic(data).n_data_points == 20
    data.to_netcdf(str(tmp_path / "scores.nc"))
    back = arviz.from_netcdf(str(tmp_path / "scores.nc"))
    assert back["log_likelihood"]["y"].sel(row="b").shape == (4, 500)


def test_predictions_share_the_names_of_the_data(rng: np.random.Generator) -> None:
    new = {"y": rng.normal(size=(1, 50, 3))}
    extra = {"posterior_predictive": new, "prior_predictive": new, "prior": {"theta": rng.normal(size=(1, 50, 3, 2))}}
    data = arviz_objects.inference_data(groups(rng) | extra, NAMES, {"school": ["A", "B", "C"]})
    for group in ("posterior_predictive", "prior_predictive"):
        assert data[group]["y"].dims == ("chain", "draw", "school")
    assert data["prior"]["theta"].dims == ("chain", "draw", "school", "theta_dim_1")


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"nu": ["school"]}, r"expected dims by site, one of \['count', 'log_weight', 'mu', 'theta', 'y'\], got 'nu'"),
        ({"theta": ["school"]}, r"expected 2 names of dimensions for 'theta', got \['school'\]"),
    ],
)
def test_dims_that_do_not_fit(rng: np.random.Generator, dims: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arviz_objects.inference_data(groups(rng), dims, None)


def test_a_page_holds_its_pictures() -> None:
    page = html_page.page("a < b", "1 < 2 & 3", [])
    assert "<title>a &lt; b</title>" in page
    assert "<pre>1 &lt; 2 &amp; 3</pre>" in page


def test_arviz_saves_and_summarizes(rng: np.random.Generator, tmp_path: Path) -> None:
    data = arviz_objects.inference_data(groups(rng), NAMES, {"school": ["A", "B", "C"]})
    data.to_netcdf(str(tmp_path / "fit.nc"))
    back = arviz.from_netcdf(str(tmp_path / "fit.nc"))
    assert (back["posterior"]["theta"].values == data["posterior"]["theta"].values).all()
    assert back["posterior"]["theta"].coords["school"].values.tolist() == ["A", "B", "C"]
    table = arviz.summary(back, var_names=["theta"], kind="stats")
    assert "theta[B, 1]" in table.index
