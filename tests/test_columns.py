"""Columns of data: scales that wild rows do not decide on, units without rounding, rows that have no density."""

from functools import partial

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy import stats

from pyroflows import FlowDensity, flows
from pyroflows.density.columns import Columns, OverBackground

SPLINES = partial(flows.nsf, layers=2, hidden_dims=(32,))
Quick = partial(FlowDensity, SPLINES, epochs=3, random_state=0)
NORMAL = np.random.default_rng(0).normal(size=(400, 2))
CONTEXT = np.random.default_rng(1).normal(size=(400, 2))


def wild(rows: NDArray, size: float) -> NDArray:
    return np.concatenate([[np.full(rows.shape[1], size)], rows[1:]])


def columns(values: NDArray) -> Columns:
    return Columns(values, np.ones(len(values)), list(range(values.shape[1])), torch.float64, "cpu")


HEAVY = {
    "wild": wild(NORMAL, 1e9),
    "wild_below": wild(NORMAL, -1e200),
    "cauchy": stats.cauchy.rvs(size=(3000, 2), random_state=0),
    "lognormal": stats.lognorm(2.5).rvs((3000, 2), 0),
    "lognormal_10": stats.lognorm(10).rvs((3000, 2), 0),
    "mixed": np.stack([NORMAL[:, 0], stats.pareto(0.5).rvs(400, 0)], 1),
}


@pytest.mark.parametrize("name", HEAVY)
def test_d1_columns_that_bend_are_lawful(name: str) -> None:
    made, z = columns(HEAVY[name]), 4 * torch.randn(500, 2, dtype=torch.float64)
    x, ladj = made.call_and_ladj(z)
    back, ladj_back = made.inv.call_and_ladj(x.clone())
    assert_allclose(back, z, atol=1e-5)
    assert_allclose(ladj_back, -ladj, atol=1e-4)
    fixed = z.requires_grad_()
    slopes = torch.autograd.grad(made(fixed).sum(), fixed)[0]
    assert_allclose(slopes.log().sum(-1), ladj, atol=1e-8)
    assert made.notes


@pytest.mark.parametrize("name", HEAVY)
def test_d1_rows_far_out_are_drawn_near(name: str) -> None:
    assert columns(HEAVY[name]).inv(torch.tensor(HEAVY[name])).abs().max() < 8


def test_d1_a_wild_row_leaves_the_others_alone() -> None:
    z = columns(NORMAL).inv(torch.tensor(NORMAL))
    assert_allclose(columns(wild(NORMAL, 1e6)).inv(torch.tensor(NORMAL))[1:], z[1:], atol=0.05)
    assert not columns(NORMAL).notes


def test_d1_only_rows_far_out_may_be_of_the_background() -> None:
    made, density = columns(wild(NORMAL, 1e6)), dist.Normal(torch.zeros(2).double(), 0.01).to_event(1)
    z = made.inv(torch.tensor(wild(NORMAL, 1e6)))
    apart = OverBackground(density, made.near).log_prob(z) - density.log_prob(z)
    assert (apart[1:].abs() < 1e-9).all()
    assert apart[0] > 1e4


@pytest.mark.parametrize("size", [1e3, 1e9])
def test_d1_a_wild_row_costs_little(size: float) -> None:
    rows, fresh = (np.random.default_rng(seed).normal(size=(1000, 2)) for seed in (0, 1))
    Fit = partial(FlowDensity, flows.full_rank, epochs=5, lr=0.02, random_state=0)
    clean, spoilt = Fit().fit(rows), Fit().fit(wild(rows, size))
    assert spoilt.score(fresh) > clean.score(fresh) - 0.05
    assert np.quantile(np.abs(spoilt.sample(2000, random_state=0)), 0.99) < 4
    assert "column 0 is scaled by its quantiles: its sd is" in spoilt.log_.notes[0]


def test_d1_a_wild_row_of_the_context_costs_little() -> None:
    context = np.random.default_rng(0).normal(size=(2, 1000, 1))
    rows = context + 0.3 * np.random.default_rng(1).normal(size=(2, 1000, 1))
    Fit = partial(FlowDensity, partial(flows.full_rank, hidden_dims=()), epochs=8, lr=0.03, random_state=0)
    clean, spoilt = (Fit().fit(rows[0], context=c) for c in (context[0], wild(context[0], 1e6)))
    assert spoilt.score(rows[1], context=context[1]) > clean.score(rows[1], context=context[1]) - 0.05
    assert "of the context" in spoilt.log_.notes[0]


@pytest.mark.parametrize("law", [stats.cauchy(), stats.lognorm(2.5)], ids=["cauchy", "lognormal"])
def test_d1_heavy_tails(law: stats.rv_continuous) -> None:
    rows, fresh = (law.rvs((3000, 1), np.random.default_rng(seed)) for seed in (0, 1))
    density = FlowDensity(flows.full_rank, epochs=3, random_state=0).fit(rows)
    assert density.score(fresh) > law.logpdf(fresh).mean() - 0.15


@pytest.mark.parametrize(
    ("loc", "scale"), [(0, 5e200), (0, 1e-200), (1e12, 1.0), (-1e12, 1.0), (1e9, 1e12), (3e-9, 2e-12)]
)
def test_d2_columns_of_any_size(loc: float, scale: float) -> None:
    density, usual = (Quick().fit(rows) for rows in (loc + scale * NORMAL, NORMAL))
    assert density.score(loc + scale * NORMAL) == pytest.approx(usual.score(NORMAL) - 2 * np.log(scale), abs=0.01)
    drawn = (density.sample(100, random_state=0) - loc) / scale
    assert_allclose(drawn, usual.sample(100, random_state=0), atol=0.01)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_d3_the_distribution_agrees_in_the_units_of_the_data(dtype: str) -> None:
    rows = NORMAL + np.array([4.5e6, 1e9])
    density = Quick(dtype=dtype).fit(rows)
    made = density.distribution()
    assert_allclose(made.log_prob(torch.tensor(rows)), density.score_samples(rows), atol=1e-6)
    drawn = made.sample((2000,))
    assert len(drawn[:, 0].unique()) == len(drawn[:, 1].unique()) == 2000
    torch.manual_seed(0)
    assert_allclose(made.sample((5,)), density.sample(5, random_state=0))


def test_d3_contexts_with_an_offset() -> None:
    density = Quick().fit(NORMAL, context=CONTEXT + 4.5e6)
    usual = Quick().fit(NORMAL, context=CONTEXT)
    score = density.score_samples(NORMAL, context=CONTEXT + 4.5e6)
    assert_allclose(score, usual.score_samples(NORMAL, context=CONTEXT), atol=1e-3)
    made = density.distribution(torch.tensor(CONTEXT + 4.5e6, requires_grad=True))
    assert_allclose(made.log_prob(torch.tensor(NORMAL)).detach(), score, atol=1e-6)


def shares(rows: int, columns: int) -> NDArray:
    return np.random.default_rng(0).dirichlet(np.ones(columns), rows)


def spread(*more: NDArray) -> NDArray:
    return np.concatenate([NORMAL, *(np.asarray(m, dtype=float).reshape(400, -1) for m in more)], axis=1)


RNG = np.random.default_rng(2)
WITHOUT_DENSITY = {
    "bits": (spread(RNG.integers(2, size=400)), r"column 2 is \d in \d+ of 400 rows.*dequantise"),
    "rare_bits": (spread(RNG.random(400) < 0.05), "column 2 is 0 in"),
    "one_hot": (spread(np.eye(3)[RNG.integers(3, size=400)]), "column 2 is 0 in .*, column 3 is 0 in .*, column 4"),
    "zero_inflated": (spread(np.maximum(NORMAL[:, 0], -0.5)), "column 2 is -0.5 in .* of 400 rows.*at a limit"),
    "counts": (spread(RNG.poisson(30, 400) * (RNG.random(400) < 0.7)), "column 2 is 0 in"),
    "months": (spread(RNG.integers(12, size=400)), "column 2 is"),
    "copies": (np.repeat(NORMAL[:40], 10, axis=0), "rows that differ, got 40 distinct ones among 400.*sample_weight"),
    "twice": (spread(NORMAL[:, 1]), r"none is a linear combination .* got \[1, 2\].*Drop one"),
    "scaled": (spread(5 - 1e6 * NORMAL[:, 0]), r"got \[0, 2\]"),
    "sum": (spread(CONTEXT, NORMAL @ [2.0, -1.0]), r"got \[0, 1, 4\]"),
    "shares": (shares(400, 4), r"got \[0, 1, 2, 3\].*logits"),
    "shares_float32": (shares(400, 4).astype(np.float32), r"got \[0, 1, 2, 3\]"),
    "percent": (100 * shares(400, 3), r"got \[0, 1, 2\]"),
    "twice_with_a_wild_row": (wild(spread(NORMAL[:, 1]), 1e9), r"got \[1, 2\]"),
}


@pytest.mark.parametrize("name", WITHOUT_DENSITY)
def test_d5_rows_without_a_density_are_refused(name: str) -> None:
    rows, message = WITHOUT_DENSITY[name]
    with pytest.raises(ValueError, match=message):
        Quick().fit(rows)


def test_d5_columns_are_named_as_in_a_frame() -> None:
    frame = pd.DataFrame({"age": NORMAL[:, 0], "smokes": RNG.integers(2, size=400)})
    with pytest.raises(ValueError, match="column 'smokes' is"):
        Quick().fit(frame)


def test_d5_columns_that_the_context_determines_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the context does not determine, got \[0\]"):
        Quick().fit(np.stack([CONTEXT @ [1.0, 2.0], NORMAL[:, 0]], 1), context=CONTEXT)


WITH_DENSITY = {
    "rounded": NORMAL.round(1),
    "two_copies": np.repeat(NORMAL, 2, axis=0),
    "bootstrap": NORMAL[RNG.integers(400, size=400)],
    "years": spread(RNG.integers(18, 90, size=400)),
    "near": spread(NORMAL[:, 0] + 1e-3 * CONTEXT[:, 0]),
    "one_wild_row": wild(spread(CONTEXT), 1e9),
    "far_off": spread(CONTEXT + 1e12),
    "few": spread(CONTEXT, RNG.normal(size=(400, 16)))[:20],
}


@pytest.mark.parametrize("name", WITH_DENSITY)
def test_d5_rows_with_a_density_are_not_refused(name: str) -> None:
    assert np.isfinite(Quick(epochs=1).fit(WITH_DENSITY[name]).score(WITH_DENSITY[name]))


def test_d5_contexts_need_no_density() -> None:
    one_hot = np.eye(3)[RNG.integers(3, size=400)]
    assert Quick(epochs=1).fit(NORMAL, context=one_hot).log_.notes == []


def test_d5_rows_without_a_density_can_be_fitted() -> None:
    rows = spread(NORMAL[:, 0] > 0)
    density = Quick(degenerate="allow", epochs=1).fit(rows)
    assert np.isfinite(density.score(rows))
    assert "column 2 is" in density.log_.notes[0]
    with pytest.raises(ValueError, match="degenerate='raise' or 'allow', got 'maybe'"):
        Quick(degenerate="maybe").fit(rows)


@pytest.mark.parametrize("flow", [flows.copula, flows.nsf, flows.maf, flows.realnvp, flows.full_rank])
def test_d8_scores_far_out_are_minus_infinity(flow: type) -> None:
    far = np.array([[1.0, -1.0]]) * np.array([[10.0**k] for k in range(1, 308, 6)])
    for rows in (NORMAL, wild(NORMAL, 1e6)):
        density = FlowDensity(flow, epochs=2, random_state=0).fit(rows)
        for points in (far, -far, far * [1, 0], far * [0, 1]):
            score = density.outlier_score(points)
            assert (score > np.quantile(density.outlier_score(NORMAL), 0.99)).all()
            assert not np.isnan(density.outlier_score(points, kind="typicality")).any()
            assert (density.calibration(points[-3:], draws=20) == 1).all()


def test_d8_contexts_far_out_give_numbers() -> None:
    density = Quick().fit(NORMAL, context=CONTEXT)
    for size in (1e6, 1e39, 1e300):
        assert np.isfinite(density.sample(3, np.full(2, size))).all()
        assert np.isfinite(density.score_samples(NORMAL, np.full((400, 2), size))).all()


def test_d1_a_wild_row_held_out_does_not_end_training_early() -> None:
    x = np.random.default_rng(0).normal(size=(2, 1000, 2))
    rows, fresh = (np.stack([p[:, 0], p[:, 0] ** 2 + 0.1 * p[:, 1]], 1) for p in x)
    Fit = partial(FlowDensity, SPLINES, epochs=12, lr=1e-2, validation_fraction=0.5, random_state=0)
    spoilt = rows.copy()
    spoilt[:4] *= 1e4
    assert Fit().fit(spoilt).score(fresh) > Fit().fit(rows).score(fresh) - 0.1
