"""Tensor2Tensor's side in its own environment: kills change no bit, and what is exported steps as the graph does.

The constants that both environments must agree on are compared without it.
"""

from __future__ import annotations

import json
import runpy
import subprocess
from pathlib import Path

import numpy as np
import pytest

from models.engines import ArrayEngine
from models.network import Weights
from models.predictor import NARROWEST, WIDEST
from models.spec import SLOTS, Spec
from scripts.check import resume
from scripts.check.resume import broken, check, environment, run

ROOT = Path(__file__).parents[1]
SHAPE = runpy.run_path(str(ROOT / "models" / "t2t" / "shape.py"))
KILLED_AFTER_A_CHECKPOINT = 1
"""A seed with which the first kill comes right when the second checkpoint is due."""


def test_both_environments_speak_of_the_same_row() -> None:
    spec = Spec(30.0, (1, 15, 60), (0.5, 3.0), scale=((1.0, 1.0, 1.0),) * len(SLOTS))
    assert SHAPE["SLOTS"] == SLOTS
    assert (SHAPE["CHANNELS"], SHAPE["HORIZONS"]) == (len(spec.slots), len(spec.horizons))
    assert (SHAPE["INPUTS"], 2 * SHAPE["ANSWERS"]) == (spec.inputs, spec.outputs)
    assert SHAPE["ROW"] == spec.inputs + spec.outputs
    assert SHAPE["SETTLING"] < SHAPE["WINDOW"]
    assert (SHAPE["NARROWEST"], SHAPE["WIDEST"]) == (NARROWEST, WIDEST)


def test_the_check_makes_rows_of_that_shape(tmp_path: Path) -> None:
    resume.write_rows(tmp_path)
    for split in ("train", "eval", "test"):
        rows = np.load(tmp_path / split / "waves.npy")
        assert rows.shape[2] == SHAPE["ROW"]
        assert len(rows) % SHAPE["WINDOW"] == 0


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("t2t")


@pytest.fixture(scope="module")
def killed(training_python: Path, work: Path) -> resume.Found:
    """Trains twice in the folder, in `straight` and in `killed`."""
    return check(training_python, work, kills=1, steps=15, seed=KILLED_AFTER_A_CHECKPOINT, quiet=print)


@pytest.mark.slow
def test_a_killed_and_resumed_training_ends_with_the_same_bits(killed: resume.Found) -> None:
    assert broken(killed) == []
    assert killed.resumed == 1
    assert killed.steps == (15, 15)
    assert killed.variables > 20  # weights, moments, step, what early stopping remembers


@pytest.mark.slow
def test_what_is_exported_steps_as_the_graph_does(training_python: Path, work: Path, killed: resume.Found) -> None:
    assert killed.steps[0] == 15
    to = work / "exported"
    places = ["--data-dir", str(work / "records"), "--out-dir", str(work / "straight"), "--to", str(to)]
    events = run(training_python, "export", "--hparams-set", "lstm_pmu_tiny", *places)
    assert [event["event"] for event in events] == ["graph", "checked", "exported"]
    assert events[1]["deviation"] <= 1e-5
    with np.load(to / "weights.npz") as w:
        cells = ((w["cell_0/kernel"], w["cell_0/bias"]),)
        weights = Weights(w["bottom/kernel"], w["bottom/bias"], cells, w["top/kernel"], w["top/bias"])
        assert len(w.files) == 6
    with np.load(to / "self_test.npz") as test:
        inputs, raw = test["inputs"], test["raw"]
    assert inputs.shape == (1000, 2, SHAPE["INPUTS"])
    assert raw.shape == (1000, 2, 2 * SHAPE["ANSWERS"])

    def deviation(late: int) -> float:
        """Ours against the graph's `late` rows on."""
        engine, worst = ArrayEngine(weights), 0.0
        state = engine.initial(2)
        for frame, wanted in zip(inputs, raw[late:], strict=False):
            found, state = engine.step(frame, state)
            worst = max(worst, float(np.abs(found - wanted).max()))
        return worst

    assert deviation(0) <= 1e-5
    assert deviation(1) > 1e-3  # it is the row that was seen last that counts
    trained = json.loads((to / "trained.json").read_text())
    assert trained["steps"] == 15
    assert trained["versions"]["tensor2tensor"] == "1.15.7"
    graph = to / "saved_model" / "saved_model.pb"
    assert graph.stat().st_size < 4 * weights_bytes(weights)


def weights_bytes(weights: Weights) -> int:
    cells = [part for cell in weights.cells for part in cell]
    return sum(
        part.nbytes
        for part in (weights.bottom_kernel, weights.bottom_bias, *cells, weights.top_kernel, weights.top_bias)
    )


@pytest.mark.slow
def test_another_runs_folder_is_refused_with_the_reason(
    training_python: Path, work: Path, killed: resume.Found
) -> None:
    assert killed.steps[0] == 15
    places = ["--data-dir", str(work / "records"), "--out-dir", str(work / "straight")]
    command = [str(training_python), "-W", "ignore", "-m", "t2t", "train", "--hparams-set", "lstm_pmu_tiny"]
    before = (work / "straight" / "ended.json").read_text()
    done = subprocess.run(
        [*command, "--seed", "7", "--steps", "15", "--evaluate-every", "5", *places],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["event"] == "error"
    assert "seed 1 instead of 7" in last["message"]
    assert (work / "straight" / "ended.json").read_text() == before
