"""Diagnostics of weights and chains, from arrays alone.

Runs also where only ArviZ is installed: ``python -m pytest --noconftest tests/test_diagnostics.py`` under ArviZ 1.x.
"""

import math
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from alone import chain_diagnostics, importance_diagnostics, smoothing

Diagnostics, ChainDiagnostics = importance_diagnostics.Diagnostics, chain_diagnostics.ChainDiagnostics
heavy_tails, psis = smoothing.heavy_tails, smoothing.psis


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def log_weights(rng: np.random.Generator, sd: float, draws: int = 4000) -> NDArray:
    """Log weights of a normal target of sd 1 under a proposal of another sd; the log evidence is 2."""
    x = sd * rng.normal(size=draws)
    return 2.0 + np.log(sd) - x**2 / 2 + (x / sd) ** 2 / 2


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


@pytest.mark.parametrize(
    ("log_w", "khat"),
    [
        (-40.0 + np.random.default_rng(0).normal(size=500) * 1e-14, -np.inf),  # equal, but for rounding
        (np.r_[np.zeros(500), -1.0], np.inf),
        (np.r_[np.zeros(500), 1.0], np.inf),
        (np.arange(3.0), np.inf),
        (np.arange(20.0), np.inf),
    ],
)
def test_where_no_tail_can_be_fitted(log_w: NDArray, khat: float) -> None:
    smoothed, found = psis(log_w)
    assert found == khat
    assert smoothed == pytest.approx(log_w - np.logaddexp.reduce(log_w))


@pytest.mark.parametrize("draws", [20, 30, 1000, 4000])
def test_weights_are_those_of_arviz(rng: np.random.Generator, draws: int) -> None:
    arviz = pytest.importorskip("arviz")
    if not hasattr(arviz, "psislw"):
        pytest.skip("ArviZ 1.x smooths by another function")
    for log_w in (3 * rng.normal(size=draws), rng.standard_cauchy(draws), -rng.exponential(size=draws)):
        expected, khat = arviz.psislw(log_w.copy())
        smoothed, found = psis(log_w)
        assert smoothed == pytest.approx(expected, abs=1e-10)
        assert found == pytest.approx(khat, abs=1e-10)


def test_weights_that_are_all_zero() -> None:
    found, _ = Diagnostics.of(np.full(100, -np.inf))
    assert found.khat == np.inf
    assert "do not trust" in found.verdict


@pytest.mark.parametrize(
    ("khat", "sd", "verdict"),
    [
        (0.2, 0.1, "k-hat 0.20 < 0.7: good, use the draws as they are."),
        (0.65, 0.1, "k-hat 0.65 < 0.7: good, use the draws as they are."),
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
    assert "ELBO -31.400 +- 0.010, log evidence (IS) -31.300 +- " in second
    assert " 0.020, sd(log w)" in second
    assert "ESS 50% of 4000 draws" in second


@pytest.mark.parametrize(
    ("khat", "sd", "efficiency", "weighted", "grade"),
    [
        (0.2, 0.1, 0.99, False, "good"),
        (0.9, 0.1, 0.99, False, "good"),
        (0.9, 0.1, 0.99, True, "good"),
        (0.5, 0.8, 0.5, False, "usable with weights"),
        (0.5, 0.8, 0.5, True, "good"),
        (0.5, 4.0, 0.01, False, "do not trust"),
        (0.5, 4.0, 0.01, True, "do not trust"),
        (0.8, 0.8, 0.5, True, "do not trust"),
        (np.nan, np.nan, np.nan, False, "do not trust"),
        (np.inf, 5e-3, 1.0, False, "good"),
        (0.3, 0.25, 0.93, False, "usable with weights"),
        (np.inf, 5e-3, 0.001, False, "do not trust"),
    ],
)
def test_the_grade_is_in_the_verdict(khat: float, sd: float, efficiency: float, weighted: bool, grade: str) -> None:
    found = Diagnostics(khat, sd, efficiency, -1.0, 0.1, -0.9, 0.1, 4000, weighted=weighted)
    assert found.grade == grade
    assert grade in found.verdict
    assert ("only 40 effective draws" in found.verdict) == (efficiency == 0.01)


def test_a_scalar_with_a_heavy_tail_is_named(rng: np.random.Generator) -> None:
    draws = {"light": rng.normal(size=4000), "none": np.ones(4000), "heavy": rng.standard_t(1.2, size=4000)}
    found, _ = Diagnostics.of(0.1 * rng.normal(size=4000), scalars=draws)
    assert list(found.heavy) == ["heavy"]
    assert found.heavy["heavy"] > 0.7
    assert found.grade == "good"
    assert " The sd of heavy cannot be relied on (k-hat of the second moment" in found.verdict
    assert len(found.verdict.splitlines()) == 1


def test_tails_are_those_of_the_weighted_draws(rng: np.random.Generator) -> None:
    """A normal proposal of a Student t: the draws alone show no tail, their weights do."""
    x = 1.5 * rng.normal(size=20_000)
    log_w = -1.5 * np.log1p(x**2 / 2) + x**2 / 4.5
    assert heavy_tails(np.zeros(20_000), {"x": x}) == {}
    assert heavy_tails(log_w, {"x": x})["x"] > 0.7


def test_the_heaviest_of_many_scalars_are_named(rng: np.random.Generator) -> None:
    draws = {f"x[{i}]": rng.normal(size=4000) for i in range(40)} | {
        f"t[{i}]": rng.standard_cauchy(4000) for i in range(5)
    }
    found, _ = Diagnostics.of(np.zeros(4000), scalars=draws)
    assert sorted(found.heavy) == [f"t[{i}]" for i in range(5)]
    assert "and 2 more cannot be relied on" in found.verdict


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_scalar_that_is_not_finite_is_named(rng: np.random.Generator, bad: float) -> None:
    draws = rng.normal(size=4000)
    draws[7] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(Diagnostics.of(np.zeros(4000), scalars={"x": draws})[0].heavy) == ["x"]


def test_a_minibatch_is_never_trusted() -> None:
    found, _ = Diagnostics.of(np.zeros(200), minibatch=True)
    assert found.grade == "do not trust"
    assert found.verdict.startswith("do not trust: judged on one random minibatch")


def test_the_error_of_the_evidence_is_its_spread() -> None:
    runs = [Diagnostics.of(log_weights(np.random.default_rng(seed), 1.4))[0] for seed in range(200)]
    spread = np.std([run.log_evidence for run in runs])
    assert np.mean([run.log_evidence_error for run in runs]) == pytest.approx(spread, rel=0.2)


def student(rng: np.random.Generator, freedom: float, dims: int) -> NDArray:
    """Log weights of independent Student t of a normal proposal, whose log evidence is 0."""
    x = rng.normal(size=(4000, dims))
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom / 2) / 2
    return (scale - (freedom + 1) / 2 * np.log1p(x**2 / freedom) + x**2 / 2).sum(1)


def funnel(rng: np.random.Generator) -> NDArray:
    """Log weights of a funnel in three dimensions of a normal proposal."""
    v, x = 0.7 * rng.normal(size=4000), rng.normal(size=(4000, 2))
    return (x**2 * (1 - np.exp(-v))[:, None] - v[:, None]).sum(1) / 2


TAILS = {
    "narrow": lambda rng: log_weights(rng, 0.65) - 2.0,
    "light": lambda rng: log_weights(rng, 1.2) - 2.0,
    "one student": lambda rng: student(rng, 5.0, 1),
    "student": lambda rng: student(rng, 10.0, 10),
    "funnel": funnel,
    "moved": lambda rng: 1.8 * rng.normal(size=4000) - 1.8**2 / 2,
}


@pytest.mark.parametrize("name", TAILS)
def test_a5_the_error_of_the_evidence_counts_the_tail_of_the_weights(name: str) -> None:
    """By the spread of the weights alone 40 of 100 of the narrow ones were off by more than twice the error."""
    runs = [Diagnostics.of(TAILS[name](np.random.default_rng(seed)))[0] for seed in range(200)]
    runs = [run for run in runs if run.grade != "do not trust"]
    off, errors = np.transpose([(abs(run.log_evidence), run.log_evidence_error) for run in runs])
    assert len(runs) > 100
    assert np.mean(off > 2 * errors) <= 0.06  # 5 %, of 200
    # Nor is it so large that it says nothing.
    assert np.median(errors) < 6 * np.median(off)


@pytest.mark.parametrize("sd", [1e-2, 0.1])
def test_a5_the_error_of_good_draws_is_that_of_a_mean(rng: np.random.Generator, sd: float) -> None:
    found, _ = Diagnostics.of(sd * rng.normal(size=4000))
    assert found.log_evidence_error == pytest.approx(sd / 4000**0.5, rel=0.15)


@pytest.mark.parametrize(
    ("khat", "sd", "missed", "said"),
    [
        (0.5, 0.8, {}, "+- 0.020,"),
        (0.9, 0.8, {}, "+- at least 0.020,"),
        (0.9, 0.1, {}, "+- at least 0.020,"),
        (np.nan, np.nan, {}, "+- at least 0.020,"),
        (0.5, 0.8, {"[3.0]": 0.4}, "+- at least 0.020,"),
        (np.inf, 1e-3, {}, "+- 0.020,"),
    ],
)
def test_a5_an_error_that_is_a_lower_bound_is_said_to_be_one(
    khat: float, sd: float, missed: dict[str, float], said: str
) -> None:
    found = Diagnostics(khat, sd, 0.5, -31.4, 0.01, -31.3, 0.02, 4000, missed=missed)
    assert f"log evidence (IS) -31.300 {said}" in str(found)


def test_a5_an_evidence_is_known_to_its_digits_at_best() -> None:
    found, _ = Diagnostics.of(np.full(4000, -500.0))
    assert 1e-5 < found.log_evidence_error < 1e-4


def test_a17_the_worse_of_two_looks_counts() -> None:
    numbers = {"elbo": -31.0, "elbo_error": 0.1, "log_evidence": -30.0, "log_evidence_error": 0.2}
    first = Diagnostics(0.5, 0.8, 0.5, -1.0, 0.1, -0.9, 0.1, 4000, heavy={"a": 0.8, "b": 0.9})
    for khat, sd, efficiency, grade in (
        (0.6, 0.8, 0.5, "usable with weights"),
        (0.1, 0.1, 0.9, "usable with weights"),
        (0.9, 0.8, 0.5, "do not trust"),
        (0.9, 0.1, 0.5, "do not trust"),
        (0.6, 0.8, 0.01, "do not trust"),
        (np.nan, np.nan, np.nan, "do not trust"),
    ):
        both = first.after(Diagnostics(khat, sd, efficiency, draws=20_000, heavy={"b": 0.75, "c": 1.0}, **numbers))
        assert both.grade == grade
        assert both.log_evidence == -30.0
        assert both.draws == 4000
        assert dict(both.heavy) == {"b": 0.75}


def chains(rng: np.random.Generator, offset: float = 0.0, correlation: float = 0.0) -> NDArray:
    """Four chains of 1000 draws of a standard normal, the first moved."""
    draws = rng.normal(size=(4, 1000))
    for step in range(1, 1000):
        draws[:, step] = correlation * draws[:, step - 1] + (1 - correlation**2) ** 0.5 * draws[:, step]
    draws[0] += offset
    return draws


def test_chains_that_mix_are_good(rng: np.random.Generator) -> None:
    found = ChainDiagnostics.of({"x": chains(rng), "slow": chains(rng, correlation=0.8)}, acceptance=0.8)
    assert found.grade == "good"
    assert 1.0 <= found.rhat < 1.01
    assert found.columns["x"]["ess"] == pytest.approx(4000, rel=0.2)
    assert found.ess == found.columns["slow"]["ess"] == pytest.approx(4000 / 9, rel=0.35)
    assert (found.chains, found.draws) == (4, 4000)
    assert "good, the chains agree" in found.verdict
    assert "acceptance 80%, 4 chains, 4000 draws" in str(found)


@pytest.mark.parametrize(
    ("offset", "correlation", "divergences", "reason"),
    [
        (0.5, 0.0, 0, "the chains have not mixed. Take more draws"),
        (0.0, 0.99, 0, "the chains have not mixed. Take more draws"),
        (0.0, 0.0, 100, "trajectories diverged. Raise target_accept"),
    ],
)
def test_chains_not_to_trust(
    rng: np.random.Generator, offset: float, correlation: float, divergences: int, reason: str
) -> None:
    found = ChainDiagnostics.of({"x": chains(rng, offset, correlation)}, 0.8, divergences)
    assert found.grade == "do not trust"
    assert f"do not trust: {reason}" in found.verdict


def test_chains_that_never_moved_have_no_rhat(rng: np.random.Generator) -> None:
    found = ChainDiagnostics.of({"x": np.ones((4, 100))}, 0.0)
    assert np.isnan(found.rhat)
    assert found.grade == "do not trust"
    constant = ChainDiagnostics.of({"x": chains(rng), "constant": np.ones((4, 1000))}, 0.5)
    assert constant.grade == "good"
    assert np.isnan(constant.columns["constant"]["r-hat"])


@pytest.mark.parametrize("values", [np.arange(2.0)[:, None] + np.zeros((2, 50)), np.repeat([[0.0, 1.0]], 25, axis=1)])
def test_chains_that_stand_still_in_different_places_disagree(values: np.ndarray) -> None:
    assert chain_diagnostics.mixing(values)["r-hat"] == np.inf
    assert ChainDiagnostics.of({"x": values}, 0.0).grade == "do not trust"


@pytest.mark.parametrize("values", [np.full((2, 50), np.inf), np.zeros((2, 0)), np.full((2, 50), True)])
def test_what_is_not_finite_or_never_moved_has_no_rhat(values: np.ndarray) -> None:
    assert np.isnan([*chain_diagnostics.mixing(values).values()]).all()


def test_a_single_chain_is_compared_with_itself(rng: np.random.Generator, caplog: pytest.LogCaptureFixture) -> None:
    draws = rng.normal(size=(1, 1001))
    assert ChainDiagnostics.of({"x": draws}, 0.8).grade == "good"
    assert ChainDiagnostics.of({"x": draws + np.linspace(0, 3, 1001)}, 0.8).rhat > 1.2
    assert not caplog.records
