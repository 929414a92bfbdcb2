"""The worker's other end: makes `.venv-andes` when it is not there, starts the worker in it and talks to it.

In: requests. Out: the grid, and simulations. ANDES is GPL-3 and stays on the far side of a pipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from scripts.simulation.grid import Grid
from scripts.simulation.measurement import Simulated

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".venv-andes"
REQUIREMENTS = ROOT / "scripts" / "requirements-andes.txt"
PROGRAM = Path(__file__).with_name("andes_worker.py")


class SimulationError(Exception):
    """The worker could not do what was asked; the message says why."""


def ensure_environment() -> Path:
    """Make the worker's environment when it is missing or older than its requirements.

    Returns
    -------
    Path
        Its Python.

    Raises
    ------
    SimulationError
        If it cannot be made.
    """
    python = VENV / "bin" / "python"
    stamp = VENV / "requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"making {VENV.name}: downloading ANDES 2.0.0 (GPL-3) and what it needs, about 150 MB", file=sys.stderr)
    venv.create(VENV, with_pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", REQUIREMENTS]
    if subprocess.run(install, check=False).returncode:
        raise SimulationError(f"pip could not install {REQUIREMENTS.name} into {VENV}; is there a network?")
    stamp.write_text(wanted)
    return python


class BrokenOffError(SimulationError):
    """The integrator gave up in the middle: the grid collapsed.

    Attributes
    ----------
    reached_s
        How far it came, seconds of the stream.
    """

    def __init__(self, message: str, reached_s: float) -> None:
        super().__init__(message)
        self.reached_s = reached_s


class Worker:
    """One ANDES process for one case; a context manager.

    Parameters
    ----------
    case
        Name of the case.
    progress
        Told the share done, 0 to 1, of the running simulation.
    """

    def __init__(self, case: str, progress: Callable[[float], None]) -> None:
        self.case = case
        self.progress = progress
        self.cpu_s = 0.0

    def __enter__(self) -> Self:
        """Start the process."""
        self.process = subprocess.Popen(
            [ensure_environment(), PROGRAM, self.case],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Two threads that fight over matrices of 140 buses are slower than one.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None  # noqa: S101, PT018 - for the checker
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            answer: dict[str, Any] = json.loads(line)
            if "progress" in answer:
                self.progress(answer["progress"])
            elif answer["ok"]:
                return answer
            elif "reached_s" in answer:
                raise BrokenOffError(answer["error"], answer["reached_s"])
            else:
                raise SimulationError(answer["error"])
        raise SimulationError("the ANDES process ended without an answer; its own words stand above")

    def grid(self) -> Grid:
        """Ask for the solved grid."""
        return Grid(self._ask({"op": "describe"}) | {"case": self.case})

    def simulate(
        self,
        duration_s: float,
        step_s: float,
        seed: int,
        actions: list[dict[str, Any]],
        opened: dict[int, float],
        *,
        changed: dict[str, float] | None = None,
    ) -> Simulated:
        """Run one simulation.

        Parameters
        ----------
        duration_s
            Of the stream, without its margins.
        step_s
            Of the integrator.
        seed
            Of the load noise.
        actions
            What happens.
        opened
            By branch: when it is tripped.
        changed
            Factors that make the grid another: `inertia` of all machines, `pace` at which loads vary.

        Returns
        -------
        Simulated
            All buses.

        Raises
        ------
        BrokenOffError
            If the grid collapses.
        """
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder) / "run.npz")
            done = self._ask(
                {"op": "simulate", "duration_s": duration_s, "step_s": step_s, "seed": seed, "actions": actions,
                 "out": out, **(changed or {})}
            )  # fmt: skip
            self.cpu_s += done["cpu_s"]
            with np.load(out) as arrays:
                return Simulated(arrays["t"], arrays["v"], arrays["a"], duration_s, opened)
