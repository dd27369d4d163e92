"""FlowDensity: the habits of scikit-learn, densities that are right, contexts, weights, outliers, errors."""

import math
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pyro
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from pyro.infer import SVI, Trace_ELBO
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, make_moons
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyroflows import FlowDensity, flows

SMALL = partial(flows.nsf, layers=2, hidden_dims=(32,))
Quick = partial(FlowDensity, SMALL, epochs=3, random_state=0)
MOONS = make_moons(1500, noise=0.05, random_state=0)[0] * [10.0, 0.1] + [100.0, 0.0]
BAD = MOONS[:50].copy()
BAD[3, 1] = np.nan


@pytest.fixture(scope="module")
def moons() -> FlowDensity:
    return FlowDensity(SMALL, epochs=30, lr=1e-2, random_state=0).fit(MOONS)


@parametrize_with_checks([FlowDensity(epochs=2, dtype="float64")])
def test_habits_of_scikit_learn(estimator: FlowDensity, check: partial) -> None:
    check(estimator)


def test_integrates_to_one_in_the_units_of_the_data(moons: FlowDensity) -> None:
    x, y = np.linspace(50, 150, 200), np.linspace(-0.3, 0.4, 200)
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    mass = np.exp(moons.score_samples(grid)).sum() * (x[1] - x[0]) * (y[1] - y[0])
    assert_allclose(mass, 1.0, atol=0.02)


def test_learns_what_a_normal_cannot(moons: FlowDensity) -> None:
    fresh = make_moons(1000, noise=0.05, random_state=1)[0] * [10.0, 0.1] + [100.0, 0.0]
    normal = FlowDensity(flows.full_rank, epochs=20, lr=2e-2, random_state=0).fit(MOONS)
    assert moons.score(fresh) > normal.score(fresh) + 0.8


def test_finds_the_entropy_of_a_correlated_normal() -> None:
    covariance = np.array([[2.0, 1.2], [1.2, 1.0]])
    x = np.random.default_rng(0).multivariate_normal([3.0, -1.0], covariance, 4000)
    entropy = 0.5 * math.log(np.linalg.det(2 * math.pi * math.e * covariance))
    density = FlowDensity(flows.full_rank, lr=0.02, epochs=40, random_state=0).fit(x[:2000])
    assert_allclose(-density.score(x[2000:]), entropy, atol=0.05)
    assert_allclose(density.entropy_, entropy, atol=0.2)
    assert_allclose(np.cov(density.sample(20000, random_state=0).T), covariance, rtol=0.1)


def test_the_best_state_is_kept(moons: FlowDensity) -> None:
    log = moons.log_
    assert len(log.validation) == len(log.train) <= 30
    assert log.best_epoch == 1 + int(np.argmin(log.validation))
    assert_allclose(moons.entropy_ - np.log(MOONS.std(0)).sum(), min(log.validation), atol=1e-5)


def test_stops_early() -> None:
    x = np.random.default_rng(0).normal(size=(100, 2))
    density = FlowDensity(epochs=500, patience=3, random_state=0).fit(x)
    assert len(density.log_.train) == density.log_.best_epoch + 3 < 500
    assert density.log_.stopped == "no gain on the held-out rows for 3 epochs"


def test_a_seed_repeats_a_fit_and_leaves_the_generator() -> None:
    state = torch.get_rng_state()
    first, second = Quick().fit(ROWS), Quick().fit(ROWS)
    assert torch.equal(state, torch.get_rng_state())
    assert_allclose(first.score_samples(MOONS), second.score_samples(MOONS), rtol=0)
    other = Quick(random_state=1).fit(MOONS)
    assert abs(other.score(MOONS) - first.score(MOONS)) > 1e-6
    torch.manual_seed(5)
    third = Quick(random_state=None).fit(MOONS)
    torch.manual_seed(5)
    assert_allclose(Quick(random_state=None).fit(MOONS).score(MOONS), third.score(MOONS), rtol=0)


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_a_fit_has_gradients_of_its_own(without_gradients: type) -> None:
    with without_gradients():
        within = Quick().fit(MOONS[:300])
    assert_allclose(within.score(MOONS), Quick().fit(MOONS[:300]).score(MOONS))


def test_copies(moons: FlowDensity) -> None:
    assert_allclose(pickle.loads(pickle.dumps(moons)).score(MOONS), moons.score(MOONS))
    fresh = clone(moons).set_params(epochs=7)
    assert (fresh.get_params()["epochs"], moons.epochs, hasattr(fresh, "prior_")) == (7, 30, False)


def test_pipeline_and_search() -> None:
    pipeline = make_pipeline(StandardScaler(), Quick())
    assert np.isfinite(cross_val_score(pipeline, MOONS[:600], cv=2)).all()
    search = GridSearchCV(Quick(epochs=10), {"lr": [1e-6, 1e-2]}, cv=2).fit(MOONS[:600])
    assert search.best_params_ == {"lr": 1e-2}
    assert search.score(MOONS) == search.best_estimator_.score(MOONS)


def curve(rows: int, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Covariates, responses whose mean and sd depend on them, and the log density of each response."""
    rng = np.random.default_rng(seed)
    x, noise = rng.uniform(-2, 2, (rows, 1)), rng.normal(size=(rows, 1))
    scale = 0.1 + 0.2 * np.abs(x)
    log_density = -0.5 * noise**2 - np.log(scale) - 0.5 * math.log(2 * math.pi)
    return x, np.sin(2 * x) + scale * noise, log_density[:, 0]


@pytest.fixture(scope="module")
def conditional() -> FlowDensity:
    x, y, _ = curve(2000, 0)
    return FlowDensity(flows.nsf, epochs=30, random_state=0).fit(y, context=x)


def test_conditional_density(conditional: FlowDensity) -> None:
    x, y, truth = curve(2000, 1)
    assert truth.mean() - 0.05 < conditional.score(y, context=x) < truth.mean() + 0.03
    drawn = conditional.sample(4000, [[1.0], [-1.5]], random_state=0)
    assert drawn.shape == (4000, 2, 1)
    assert_allclose(drawn.mean(0)[:, 0], np.sin([2.0, -3.0]), atol=0.08)
    assert_allclose(drawn.std(0)[:, 0], [0.3, 0.4], rtol=0.2)
    assert conditional.sample(5, [1.0]).shape == (5, 1)


def test_calibration(conditional: FlowDensity) -> None:
    x, y, _ = curve(2000, 1)
    shares = conditional.calibration(y, x)
    deciles = np.histogram(shares, bins=5, range=(0, 1))[0] / 2000
    assert_allclose(deciles, 0.2, atol=0.04)
    off = conditional.calibration(y + 0.4, x)
    assert (off > 0.8).mean() > 0.35
    (axis,) = conditional.plot_calibration(y, x).axes
    held = axis.lines[1].get_ydata()
    assert (held[0], held[-1]) == (pytest.approx(0, abs=0.02), 1.0)


def test_context_through_a_search(conditional: FlowDensity) -> None:
    x, y, _ = curve(300, 2)
    with sklearn.config_context(enable_metadata_routing=True):
        density = Quick(epochs=15, lr=1e-2).set_fit_request(context=True).set_score_request(context=True)
        search = GridSearchCV(density, {"lr": [1e-6, 1e-2]}, cv=2).fit(y, context=x)
    assert search.best_params_ == {"lr": 1e-2}


def test_weights() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-2, 1, (500, 1)), rng.normal(2, 1, (500, 1))])
    weight = np.repeat([3.0, 1.0], 500)
    density = FlowDensity(flows.full_rank, epochs=40, lr=0.02, random_state=0).fit(x, sample_weight=weight)
    assert_allclose(density.sample(20000, random_state=0).mean(), -1.0, atol=0.15)
    some = np.arange(1000) % 2.0
    left_out, removed = Quick().fit(x, sample_weight=some), Quick().fit(x[some > 0])
    assert_allclose(left_out.score_samples(x), removed.score_samples(x), rtol=1e-6)
    assert density.score(x, sample_weight=weight) == pytest.approx(np.average(density.score_samples(x), weights=weight))


def test_noise_and_mixture_and_all_rows() -> None:
    density = FlowDensity(SMALL, components=3, noise=0.5, validation_fraction=0, epochs=5, random_state=0).fit(MOONS)
    assert density.prior_.components == 3
    assert density.log_.validation == []
    assert density.log_.stopped == "all epochs were used"
    sharp = FlowDensity(SMALL, components=3, validation_fraction=0, epochs=5, random_state=0).fit(MOONS)
    assert sharp.score(MOONS) > density.score(MOONS)


def test_base_space(moons: FlowDensity) -> None:
    z = moons.to_base(MOONS[:200])
    assert_allclose(moons.from_base(z), MOONS[:200], atol=1e-3)
    assert_allclose(z.std(0), 1.0, atol=0.25)
    path = moons.interpolate(MOONS[0], MOONS[1], steps=7)
    assert_allclose(path[[0, -1]], MOONS[:2], atol=1e-3)
    assert path.shape == (7, 2)
    for temperature in (0.3, 1.0):
        drawn = moons.sample(2000, temperature=temperature, random_state=0)
        assert_allclose(moons.to_base(drawn).std(0), temperature, rtol=0.1)


def test_trajectory_plot(moons: FlowDensity) -> None:
    axes = moons.plot_trajectory(100).axes
    titles = [axis.get_title() for axis in axes if axis.get_title()]
    assert titles == ["base", *(f"after layer {index} of 5" for index in range(1, 6))]
    assert axes[0].collections[0].get_offsets().shape == (100, 2)


def test_outliers() -> None:
    x, benign = load_breast_cancer(return_X_y=True)
    healthy = x[benign == 1]
    density = FlowDensity(epochs=50, random_state=0).fit(healthy[:250])
    test, sick = np.concatenate([healthy[250:], x[benign == 0]]), np.repeat([0, 1], [len(healthy) - 250, 212])
    for kind in ("likelihood", "typicality"):
        assert roc_auc_score(sick, density.outlier_score(test, kind=kind)) > 0.9
    assert_allclose(density.outlier_score(test), -density.score_samples(test))


def test_as_a_distribution_for_pyro(moons: FlowDensity, conditional: FlowDensity) -> None:
    rows, (x, y, _) = torch.tensor(MOONS[:20], dtype=torch.float32), curve(20, 3)
    assert_allclose(moons.distribution().log_prob(rows), moons.score_samples(rows), rtol=1e-4, atol=1e-4)
    context = torch.tensor(x, dtype=torch.float32, requires_grad=True)

    def model() -> None:
        pyro.sample("y", conditional.distribution(context).to_event(1), obs=torch.tensor(y, dtype=torch.float32))

    trace = pyro.poutine.trace(model).get_trace()
    assert_allclose(trace.log_prob_sum().item(), conditional.score_samples(y, context=x).sum(), rtol=1e-4)
    assert set(trace.nodes) == {"_INPUT", "y", "_RETURN"}  # nothing to learn
    trace.log_prob_sum().backward()
    assert (context.grad != 0).all()


def test_a_fit_that_fails_leaves_the_earlier_one() -> None:
    density = Quick(epochs=1).fit(ROWS)
    before = density.score_samples(ROWS)
    for rows, context in ((BAD, None), (ROWS * [1.0, 0.0], None), (ROWS, MOONS[:60]), (ROWS[:, :1], BAD)):
        with pytest.raises(ValueError, match=r"NaN|constant|60"):
            density.fit(rows, context=context)
        assert_allclose(density.score_samples(ROWS), before, rtol=0)


def test_double_precision() -> None:
    density = Quick(dtype="float64").fit(MOONS)
    assert {p.dtype for p in density.prior_.parameters()} == {torch.float64}
    assert_allclose(density.from_base(density.to_base(MOONS)), MOONS, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    density = Quick(device="cuda").fit(MOONS)
    assert next(density.prior_.parameters()).is_cuda
    assert np.isfinite(density.score_samples(density.sample(5))).all()


def test_without_scikit_learn() -> None:
    code = "import sys; sys.modules['sklearn'] = None; import pyroflows; print('fine'); pyroflows.FlowDensity"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine"
    assert "FlowDensity needs scikit-learn 1.6 or newer: pip install 'pyroflows[sklearn]'" in done.stderr


ROWS = MOONS[:50]
FITTED = Quick(epochs=1).fit(ROWS)
WRONG = {
    "nan": (lambda: Quick().fit(BAD), "contains NaN"),
    "infinite": (lambda: Quick().fit(BAD / 0), "contains"),
    "nan_to_score": (lambda: FITTED.score_samples(BAD), "contains NaN"),
    "nan_in_context": (lambda: Quick().fit(ROWS, context=BAD), "Input context contains NaN"),
    "context_rows": (lambda: Quick().fit(ROWS, context=MOONS[:60]), "expected 50 rows of context, .* got 60"),
    "context_columns": (lambda: FITTED.score_samples(ROWS, ROWS), r"a context of 0 columns, as in fit, got \(50, 2\)"),
    "context_to_sample": (lambda: FITTED.sample(3, [1.0]), r"expected a context of 0 columns, as in fit, got \(1,\)"),
    "columns": (lambda: FITTED.score_samples(ROWS[:, :1]), "X has 1 features, but FlowDensity is expecting 2"),
    "constant": (lambda: Quick().fit(ROWS * [1.0, 0.0]), r"columns that vary, got constant ones at \[1\]"),
    "weights": (lambda: Quick().fit(ROWS, sample_weight=np.eye(50)[0]), "2 rows of positive weight .* n_samples = 1"),
    "no_weight": (lambda: Quick().fit(ROWS, sample_weight=np.zeros(50)), "at least one non-zero number"),
    "epochs": (lambda: Quick(epochs=0).fit(ROWS), "expected epochs to be a whole number from 1 on, got 0"),
    "batch_size": (lambda: Quick(batch_size=0).fit(ROWS), "expected batch_size to be a whole number from 1 on, got 0"),
    "half_an_epoch": (lambda: Quick(epochs=2.5).fit(ROWS), "expected epochs to be a whole number .* got 2.5"),
    "draws": (lambda: FITTED.sample(-1), "expected n_samples to be a whole number from 0 on, got -1"),
    "lr": (lambda: Quick(lr=-1.0).fit(ROWS), "expected a learning rate lr > 0, got -1.0"),
    "no_lr": (lambda: Quick(lr=0.0).fit(ROWS), "expected a learning rate lr > 0, got 0.0"),
    "fraction": (lambda: Quick(validation_fraction=1.0).fit(ROWS), "0 <= validation_fraction < 1, got 1.0"),
    "dtype": (lambda: Quick(dtype="int").fit(ROWS), "dtype='float32' or 'float64', got 'int'"),
    "kind": (lambda: FITTED.outlier_score(ROWS, kind="far"), "kind='likelihood' or 'typicality', got 'far'"),
    "distribution": (lambda: FITTED.distribution(torch.ones(3, 1)), r"0 columns, as in fit, got \(3, 1\)"),
    "temperature": (lambda: FITTED.sample(temperature=0), "expected a temperature above 0, got 0"),
}


@pytest.mark.filterwarnings("ignore:divide by zero|invalid value:RuntimeWarning")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_fit_maximises_the_elbo_of_a_pyro_model_with_an_empty_guide() -> None:
    density = FlowDensity(SMALL, epochs=2, random_state=0).fit(MOONS[:100])
    batch = torch.randn(8, 2), torch.zeros(8, 0), torch.rand(8) + 0.5
    svi = SVI(density.model, lambda *batch: None, pyro.optim.Adam({"lr": 0.0}), Trace_ELBO())
    assert svi.evaluate_loss(*batch) / 8 == pytest.approx(density._loss(*batch).item(), rel=1e-5)
    exact = -(batch[2] * density.prior_.forward().log_prob(batch[0])).mean()
    torch.testing.assert_close(density._loss(*batch), exact)


def test_counts_may_be_numbers_of_numpy() -> None:
    density = Quick(epochs=np.int64(2), batch_size=np.int32(32)).fit(ROWS)
    assert density.sample(np.int64(3)).shape == (3, 2)
