"""The calibration benchmark: its models can be simulated, and blocks of results are put together and resumed."""

import json
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import calibration


@pytest.mark.parametrize("name", calibration.MODELS)
def test_the_models_make_data_and_observe_them(name: str) -> None:
    model = calibration.MODELS[name]
    y = pyro.poutine.trace(model).get_trace().nodes["y"]["value"]
    trace = pyro.poutine.trace(model).get_trace(y)
    trace.compute_log_prob()
    assert trace.nodes["y"]["is_observed"]
    assert trace.log_prob_sum().isfinite()


def test_blocks_are_put_together_and_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    done = []

    def block(name: str, model: object, seed: int) -> dict:
        done.append(seed)
        ranks = np.random.default_rng(seed).integers(0, 100, size=20).tolist()
        return {
            "model": name,
            "seed": seed,
            "seconds": 1.0,
            "ranks": {"x": ranks},
            "failed": [],
            "untrusted": 1,
            "draws": 99,
        }

    monkeypatch.setattr(calibration, "block", block)
    results = tmp_path / "results.jsonl"
    for count in ("40", "60"):
        options = ["--models", "normal", "--simulations", count, "--results", str(results)]
        monkeypatch.setattr(sys, "argv", ["calibration.py", *options, "--pictures", str(tmp_path)])
        calibration.main()
    assert done == [0, 1, 2]
    assert len([json.loads(line) for line in results.read_text().splitlines()]) == 3
    assert "60 simulations, 99 draws each, 0 failed fits, 3 posteriors not to be trusted" in capsys.readouterr().out
    assert (tmp_path / "calibration_normal.png").stat().st_size > 1000
