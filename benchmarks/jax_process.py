"""A process of NumPyro and flowjax in an environment of their own, made when first asked for."""

import json
import os
import subprocess
import sys
import venv
from functools import partial
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).parent
HOME, REQUIREMENTS = HERE / ".venv-jax", HERE / "requirements-jax.txt"


class JaxProcess:
    """Runs ``jax_steps.py`` until it is left; between calls it waits, so that calls can take turns with ours.

    Args:
        threads: with 1, XLA runs in one thread. Pin the calling process to bind this one as well.
        device: ``"cpu"`` or ``"cuda"``, for which a JAX that finds a GPU has to be in the environment.
    """

    def __init__(self, threads: int = 1, device: str = "cpu") -> None:
        flags = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()} intra_op_parallelism_threads={threads}"
        limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        places = {"JAX_PLATFORMS": device, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the GPU is for both
        environment = {**os.environ, **limits, **places, "XLA_FLAGS": flags}
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [python(), HERE / "jax_steps.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, name: str, count: int) -> float:
        """Milliseconds of one step, after so many of what ``jax_steps.py`` knows by this name."""
        print(name, count, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"jax_steps.py ended at {name!r}: see its message above")
        return json.loads(answer)["ms"]

    def steps(self, name: str) -> partial:
        """The same as a function of the count alone."""
        return partial(self.run, name)

    def __enter__(self) -> "JaxProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.stdin.close()
        self._process.wait()


def python() -> Path:
    """The interpreter of the environment, which is made first where it is missing or out of date."""
    found, stamp = HOME / "bin" / "python", HOME / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        print(f"installing {REQUIREMENTS.name} into {HOME}", file=sys.stderr)
        venv.create(HOME, with_pip=True, clear=True)
        subprocess.run([found, "-m", "pip", "install", "-q", "-r", REQUIREMENTS], check=True)
        stamp.write_text(REQUIREMENTS.read_text())
    return found


def versions() -> dict[str, str]:
    """What the requirements pin."""
    return dict(line.split("==") for line in REQUIREMENTS.read_text().split())
