"""A sealed artifact with weights drawn by a seed: it predicts nothing well, and runs in NumPy."""

from __future__ import annotations

import json
from pathlib import Path

from models import artifact
from models.engines import ArrayEngine
from models.spec import SLOTS, Spec
from tests.reference.small_network import frames, small_weights

SPEC = Spec(30.0, (1, 15, 60), (0.5, 3.0), ((0.001, 0.002, 0.003),) * len(SLOTS))


def figures(error: float) -> dict[str, list[list[float | None]]]:
    shape = len(SPEC.slots), len(SPEC.horizons)
    told = {"relative_error": error, "coverage": 0.95, "likelihood": 0.1, "readings": 9.0}
    return {name: [[value] * shape[1] for _ in range(shape[0])] for name, value in told.items()}


def small_model(path: Path, *, seed: int = 0, spec: Spec = SPEC, error: float = 0.75, off_by: float = 0.0) -> Path:
    """`off_by` is what the recorded outputs of the trained graph differ from NumPy's."""
    weights = small_weights(seed, inputs=spec.inputs, hidden=8, layers=2, outputs=spec.outputs, scale=0.2)
    (path / artifact.SAVED_MODEL).mkdir(parents=True)
    (path / artifact.SAVED_MODEL / "saved_model.pb").write_bytes(b"a graph")
    (path / artifact.SPEC).write_text(spec.to_json())
    trained = {"hyperparameters": {"hidden_size": 8}, "steps": 20, "seed": seed, "versions": {"tensorflow": "2.12.1"}}
    file = {"name": "quiet.parquet", "pmus": 7, "splits": {"train": ["a", "b"]}, "left_out": [{}, {}]}
    (path / artifact.TRAINING).write_text(json.dumps({"files": [file], "trained": trained}))
    (path / artifact.METRICS).write_text(json.dumps({"eval": figures(error), "test": figures(error + 0.125)}))
    artifact.write_weights(path, weights)
    inputs = frames(seed, 40, 2, spec.inputs)
    engine = ArrayEngine(weights)
    state, raw = engine.initial(2), frames(seed, 40, 2, spec.outputs)
    for t, frame in enumerate(inputs):
        raw[t], state = engine.step(frame, state)
    artifact.write_self_test(path, inputs, raw + off_by)
    artifact.seal(path, name=path.name, architecture="lstm", created_by="a test")
    return path
