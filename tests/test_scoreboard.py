"""The scoreboard of the benchmarks: metrics, results, runs, tables, on made-up numbers."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import posteriors
from scoreboard import metrics, pictures, results, table
from scoreboard.clock import Clock
from scoreboard.metrics import Draws

NORMAL = torch.distributions.Normal(0.0, 1.0)


def made_up(posterior: str, method: str, seed: int, **changes: object) -> dict:
    """A record of a finished run."""
    record = {"posterior": posterior, "method": method, "seed": seed, "status": "done", "D": 2, "dmean": 0.01}
    record |= {"dsd": 0.02, "dmean_weighted": 0.01, "dsd_weighted": 0.01, "floor_dmean": 0.02, "floor_dsd": 0.02}
    record |= {"khat": 0.5, "khat_seen": 0.6, "sd_log_w": 0.1, "efficiency": 0.9, "elbo": -31.35, "cpu": 9.0}
    record |= {"log_evidence": -31.3, "steps": 600, "speed": "traced", "verdict": "k-hat 0.60 < 0.7: good"}
    record |= {"date": "2026-01-01", "torch": "2", "pyro": "1", "threads": 1}
    return record | {"seconds": {"import": 3.0, "flow": 7.0, "total": 10.0}} | changes


def board(*records: dict) -> dict:
    return {(r["posterior"], r["method"], r["seed"]): r for r in records}


def test_errors_are_the_largest_over_the_scalars() -> None:
    found = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([-2.0, 2.0])}
    known = {"b": (1.0, 2.0, 0.0), "a": (2.0, 4.0, 0.0)}  # in another order than the draws
    assert metrics.errors(found, known) == {"dmean": 0.5, "dsd": 0.75, "dmean_at": "b", "dsd_at": "a"}


def test_errors_use_the_weights() -> None:
    found, known = {"a": torch.tensor([0.0, 1.0, 5.0])}, {"a": (0.25, 3**0.5 / 4, 0.0)}
    exact = metrics.errors(found, known, torch.tensor([0.75, 0.25, 0.0]))
    assert exact["dmean"] == pytest.approx(0, abs=1e-12)
    assert exact["dsd"] == pytest.approx(0, abs=1e-12)


def test_errors_of_draws_that_are_not_finite() -> None:
    found = metrics.errors({"a": torch.tensor([0.0, math.nan]), "b": torch.zeros(2)}, dict.fromkeys("ab", (0, 1, 0)))
    assert math.isnan(found["dmean"])
    assert math.isnan(found["dsd"])


def test_expected_max_of_one_is_the_mean_of_a_half_normal() -> None:
    assert metrics.expected_max(torch.tensor([2.0])) == pytest.approx(2 * (2 / math.pi) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("family", [NORMAL, torch.distributions.Laplace(0.0, 0.5**0.5)], ids=["normal", "laplace"])
def test_noise_floor_is_the_error_of_exact_draws(family: torch.distributions.Distribution) -> None:
    names, size, draws = "abcde", 2000, 500
    shape = dict.fromkeys(names, 3.0 if family is NORMAL else 6.0)
    floor = metrics.noise_floor(dict.fromkeys(names, (0.0, 1.0, size**-0.5)), shape, draws)
    found = []
    for _ in range(300):
        known = {
            n: (float(x.mean()), float(x.std()), 0.0) for n, x in zip(names, family.sample((5, size)), strict=True)
        }
        found.append(metrics.errors(dict(zip(names, family.sample((5, draws)), strict=True)), known))
    for name in ("dmean", "dsd"):
        assert floor[f"floor_{name}"] == pytest.approx(sum(f[name] for f in found) / len(found), rel=0.08)


def test_kurtosis() -> None:
    assert metrics.kurtosis({"a": NORMAL.sample((100_000,))})["a"] == pytest.approx(3, abs=0.15)


def test_judge_tells_weights_from_draws() -> None:
    z = torch.randn(20_000, 1) * 1.2

    def target(z: torch.Tensor) -> torch.Tensor:
        return NORMAL.log_prob(z - 0.3).sum(-1) - 7

    q = torch.distributions.Normal(0.0, 1.2)
    draws, known = Draws(z, q.log_prob(z).sum(-1)), {"x": (0.3, 1.0, 1e-9)}
    found = metrics.judge(draws, target, lambda z: {"x": z[:, 0]}, known, {})
    assert found["dmean"] == pytest.approx(0.3, abs=0.03)
    assert found["dsd"] == pytest.approx(0.2, abs=0.03)
    assert max(found["dmean_weighted"], found["dsd_weighted"]) < 0.04
    assert found["log_evidence"] == pytest.approx(-7, abs=0.01)
    assert found["elbo"] < found["log_evidence"]
    assert found["khat"] < 0.7
    assert found["floor_dmean"] == pytest.approx((2 / math.pi / 20_000) ** 0.5, rel=1e-3)


def test_judge_counts_weighted_draws_as_fewer() -> None:
    z, weights = torch.randn(400, 1), torch.tensor([1 / 100.0] * 100 + [0.0] * 300)
    found = metrics.judge(Draws(z, weights=weights), NORMAL.log_prob, lambda z: {"x": z[:, 0]}, {"x": (0, 1, 0)}, {})
    assert found["floor_dmean"] == pytest.approx((2 / math.pi / 100) ** 0.5, rel=1e-3)
    assert "dmean_weighted" in found
    assert "elbo" not in found


def test_clock_leaves_out_what_is_before_a_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([3.0, 10.0, 100.0, 104.0])
    monkeypatch.setattr("time.time", lambda: next(now))
    clock = Clock(1.0)
    clock.lap("import")
    clock.lap("flow")
    branch = clock.branch()
    branch.lap("refine")
    assert clock.record()["seconds"] == {"import": 2.0, "flow": 7.0, "total": 9.0}
    assert branch.record()["seconds"] == {"import": 2.0, "flow": 7.0, "refine": 4.0, "total": 13.0}


def test_results_survive_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    assert results.read(path) == {}
    for dmean in (0.3, 0.1):
        results.append(path, made_up("kilp", "fit", 0, dmean=dmean))
    path.write_text(path.read_text() + '{"posterior": "kilp", "met')
    found = results.read(path)
    assert [record["dmean"] for record in found.values()] == [0.1]


def test_failed_runs_are_missing_and_cut_off_ones_are_not() -> None:
    ends = {"kilp": "done", "earn": "not finished", "nes": "failed: ValueError: no"}
    found = board(*(made_up(name, "NUTS", 0, status=status) for name, status in ends.items()))
    keys = [(name, "NUTS", 0) for name in (*ends, "ark")]
    assert results.missing(keys, found) == [("nes", "NUTS", 0), ("ark", "NUTS", 0)]


def test_wanted_runs() -> None:
    options = posteriors.parsed(["--only", "kilp", "german", "--methods", "zuko", "NUTS", "fit", "fit+neutra"])
    keys = posteriors.wanted(options)
    fits = [key for key in keys if key[1] == "fit"]
    assert fits == [(name, "fit", seed) for name in ("kilp", "german") for seed in (0, 1, 2)]
    assert [key for key in keys if key[1] == "zuko"] == [("german", "zuko", 0)]
    assert len({posteriors.process(key) for key in keys if key[1].startswith("fit")}) == 6
    assert [key[1].startswith("fit") for key in keys] == [True] * 12 + [False] * 3


@pytest.mark.parametrize(("error", "status"), [(True, "not finished"), (False, "failed: the process died")])
def test_processes_that_leave_no_result(
    error: bool, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path, asked = tmp_path / "results.jsonl", []

    def call(command: list[str], **options: object) -> None:
        asked.append(command)
        results.append(path, made_up("kilp", "fit", 0, dmean=0.3))
        if error:
            raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", call)
    options = posteriors.parsed(["--results", str(path)])
    posteriors.run([("kilp", "fit", 0), ("kilp", "fit+neutra", 0)], options)
    assert results.read(path)["kilp", "fit", 0]["dmean"] == 0.3
    assert results.read(path)["kilp", "fit+neutra", 0]["status"] == status
    posteriors.run([("kilp", "AutoIAFNormal", 0)], options)  # gets the seconds of fit
    assert asked[-1][asked[-1].index("--budget") + 1] == "10.0"
    posteriors.run([("kilp", "AutoIAFNormal", 1)], options)
    assert "kilp AutoIAFNormal 1: needs a result of fit" in capsys.readouterr().out
    assert len(asked) == 2


def test_page_counts_in_the_median_seed() -> None:
    good = [made_up("kilp", "fit", seed, dmean=error) for seed, error in enumerate((0.01, 0.02, 0.5))]
    bad = [made_up("eight_c", "fit", s, dsd=e, khat=0.8) for s, e in enumerate((0.08, 0.01, math.nan))]
    text = table.page(board(*good, *bad))
    assert "at most 0.05: 1 of 2 posteriors; at most 0.1: 2 of 2." in text
    assert "Weighted, at most 0.05: 2 of 2" in text
    assert "k-hat below 0.7: 1 of 2, of the draws behind the verdict: 2 of 2." in text
    assert "in nats: eight_c 0.039." in text
    assert "| kilp | 2 | 0.020 (0.500) | 0.020 (0.020) | 0.020 / 0.020 |" in text
    assert "| kilp | 2 | 0.500 | k-hat 0.60 < 0.7: good |" in text
    assert "Beside the peers" not in text


def test_page_compares_with_peers() -> None:
    fits = [made_up(name, "fit", 0) for name in ("kilp", "earn", "nes")]
    failed = made_up("ark", "fit", 0, status="failed: ValueError: no")
    chains = [made_up("kilp", "NUTS", 0, seconds={"total": 40.0}), made_up("earn", "NUTS", 0, seconds={"total": 5.0})]
    chains += [made_up("nes", "NUTS", 0, status="not finished", reached="9 of 2000 draws", seconds={"total": 600.0})]
    guide = made_up("kilp", "AutoIAFNormal", 0, dsd=0.345, particles="4 looped")
    text = table.page(board(*fits, failed, *chains, guide))
    assert (
        "NUTS takes 4.0 times the seconds of a fit in the median of 3 posteriors, from 0.5 to 60.0, and more in 2"
        in text
    )
    assert "in 1 it was cut off" in text
    assert "| kilp | 0.020 | 0.345 | 0.020 |" in text
    assert "| nes | 0.020 |  | 9 of 2000 draws |" in text
    assert "Particles: AutoIAFNormal 4 looped in 1 runs." in text
    assert "Fits without a result: ark, seed 0: failed: ValueError: no." in text


def test_page_of_refinements() -> None:
    refined = made_up("kilp", "fit+importance", 0, dmean=0.4, dmean_weighted=0.03, seconds={"total": 11.0})
    text = table.page(board(made_up("kilp", "fit", 0), refined), "The machine was busy.")
    assert "\n\nThe machine was busy.\n\n" in text
    assert "| kilp | 0.030 | 0.020 | 11.0 |" in text


def test_picture(tmp_path: Path) -> None:
    found = board(*(made_up(p, m, 0, dsd=0.03) for p in ("kilp", "earn") for m in ("fit", "NUTS")))
    pictures.errors_against_seconds(found, tmp_path / "made.png")
    assert 5_000 < (tmp_path / "made.png").stat().st_size < 150_000
