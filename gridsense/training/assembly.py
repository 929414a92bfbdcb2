"""From what the training environment exported to a sealed artifact that has passed its own test.

In: the folder that `models/t2t` wrote, the spec, and rows to be judged by. Out: a version directory, made beside its
place and moved there in one piece, or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from gridsense.errors import TrainingError, UsageError
from gridsense.training.accuracy import measure
from gridsense.training.session import Architecture
from models import artifact
from models.engines import ArrayEngine
from models.errors import ArtifactError
from models.spec import Spec

PROMISE = 1e-5
"""Largest deviation of one engine from another, over all frames of the self test."""
JUDGED = ("eval", "test")


def require_place(to: Path, *, force: bool) -> None:
    """Refuse a target before hours are spent on what would stand there.

    Parameters
    ----------
    to
        Where the artifact is to be.
    force
        Whether an artifact there may be replaced.

    Raises
    ------
    UsageError
        If something is there.
    """
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return
    if not (to / artifact.MANIFEST).is_file():
        raise UsageError(f"--to {to} is there, and is no model: name another directory")
    if not force:
        raise UsageError(f"--to {to} holds a model already: --force replaces it, or name another directory")


def assemble(
    exported: Path,
    rows: Path,
    spec: Spec,
    training: dict[str, Any],
    to: Path,
    *,
    architecture: Architecture,
    force: bool,
) -> artifact.Artifact:
    """Make the artifact, seal it, test it, and put it into its place.

    Parameters
    ----------
    exported
        Holds `saved_model/`, `weights.npz`, `self_test.npz` and `trained.json`.
    rows
        Holds `eval` and `test`.
    spec
        What the network was made for.
    training
        What it was made from.
    to
        Where it goes.
    architecture
        Which network.
    force
        Whether an artifact there may be replaced.

    Returns
    -------
    artifact.Artifact
        Sealed, in its place.

    Raises
    ------
    TrainingError
        If what was exported is not whole, or NumPy does not give what the trained graph gave.
    """
    require_place(to, force=force)
    part = to.with_name(f".{to.name}.{os.getpid()}.part")
    try:
        (part / artifact.SAVED_MODEL).parent.mkdir(parents=True)
        shutil.copytree(exported / "saved_model", part / artifact.SAVED_MODEL)
        with np.load(exported / "weights.npz") as weights, np.load(exported / "self_test.npz") as test:
            safetensors.numpy.save_file(_plain(weights), part / artifact.WEIGHTS)
            safetensors.numpy.save_file(_plain(test), part / artifact.SELF_TEST)
        trained = json.loads((exported / "trained.json").read_text(encoding="utf-8"))
        (part / artifact.SPEC).write_text(spec.to_json(), encoding="utf-8")
        (part / artifact.TRAINING).write_text(
            json.dumps(training | {"trained": trained}, indent=1) + "\n", encoding="utf-8"
        )
        (part / artifact.METRICS).write_text("{}\n", encoding="utf-8")
        made = _seal(part, to.name, architecture)
        (part / artifact.METRICS).write_text(json.dumps(_metrics(made, spec, rows), indent=1) + "\n", encoding="utf-8")
        _seal(part, to.name, architecture)
        _move(part, to)
    except (OSError, ValueError, KeyError, ArtifactError) as error:
        raise TrainingError(f"{exported} cannot be made a model: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return artifact.open_artifact(to)


def pieces(folder: Path) -> Iterator[NDArray[np.float32]]:
    """Read the rows of a split, one file at a time.

    Parameters
    ----------
    folder
        Of `NNN.npy`.

    Yields
    ------
    NDArray[np.float32]
        `(T, N, F + 2CK)`.
    """
    for path in sorted(folder.glob("*.npy")):
        yield np.load(path)


def _seal(part: Path, name: str, architecture: Architecture) -> artifact.Artifact:
    maker = f"gridsense-pmu {version('gridsense-pmu')}"
    return artifact.seal(part, name=name, architecture=architecture, created_by=maker)


def _metrics(made: artifact.Artifact, spec: Spec, rows: Path) -> dict[str, Any]:
    """How good the network is, and how well NumPy runs it."""
    if made.architecture != "lstm":
        return {
            "note": f"only TensorFlow runs a {made.architecture}: gridsense model compare measures it on an archive"
        }
    engine = ArrayEngine(artifact.weights_of(made))
    deviation = artifact.self_test(made, engine)
    if deviation > PROMISE:
        raise TrainingError(
            f"NumPy deviates by {deviation:.2g} from what the trained graph gave, more than {PROMISE:g}: report this"
        )
    told: dict[str, Any] = {"slots": spec.slots, "horizons_frames": spec.horizons, "numpy_deviation": deviation}
    return told | {split: measure(spec, engine, pieces(rows / split)).to_json() for split in JUDGED}


def _plain(tensors: Any) -> dict[str, NDArray[np.float32]]:
    return {name: np.ascontiguousarray(tensors[name], np.float32) for name in tensors.files}


def _move(part: Path, to: Path) -> None:
    """Put a directory into its place; what was there is gone only once the new one stands."""
    old = to.with_name(f".{to.name}.{os.getpid()}.old")
    if to.exists():
        to.replace(old)
    try:
        part.replace(to)
    except OSError:
        if old.exists():
            old.replace(to)
        raise
    shutil.rmtree(old, ignore_errors=True)
