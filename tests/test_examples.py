"""Every example runs, quickly with --smoke, and writes what it says."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
WRITES = {
    "anomaly": ["anomaly.png"],
    "conditional_density": ["conditional_density.png"],
    "density_moons": ["density_moons.png", "density_moons_layers.png"],
    "eight_schools": ["eight_schools.png", "eight_schools.nc"],
    "likelihood_free": ["likelihood_free.png"],
    "million_groups": ["million_groups.png"],
    "plain_pyro": [],
    "radon": ["radon.png", "radon_structure.png"],
    "vae_flow_prior": ["vae_flow_prior.png"],
}


def test_every_example_is_run() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == set(WRITES)


@pytest.mark.filterwarnings("default")  # few steps give warnings that an example shows
@pytest.mark.parametrize("name", WRITES)
def test_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script, but in this process: imports would take most of the time."""
    script = str(EXAMPLES / f"{name}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, "--smoke"])
    runpy.run_path(script, run_name="__main__")
    plt.close("all")
    for file in WRITES[name]:
        assert (tmp_path / file).stat().st_size > 1000


@pytest.mark.slow
def test_an_example_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "plain_pyro.py"), "--smoke"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
