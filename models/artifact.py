"""A trained model as a directory: what it was made for, its weights, its graph, its test, sealed by a manifest.

In: a version directory. Out: an `Artifact` whose every file is the one that was sealed, or an `ArtifactError` that
names the file and the reason. It runs no network.

    manifest.json           format, name, architecture, and sha256 and size of every other file
    spec.json               see `models.spec`
    weights.safetensors     bottom/kernel, bottom/bias, cell_0/kernel, …, top/bias; of a transformer its raw variables
    saved_model/            TensorFlow's, for `models.saved_model`
    self_test.safetensors   inputs (T, N, F) and raw (T, N, O), which the graph that was trained made of them
    training.json           fingerprint of what it was trained on, seeds, hyperparameters, versions
    metrics.json            how good it was
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from models.engines import Engine
from models.errors import ArtifactError, ShapeError
from models.network import Weights
from models.spec import Spec, read_spec

Floats = NDArray[np.float32]
Architecture = Literal["lstm", "transformer"]

FORMAT = 1
"""Of the manifest; another number is another version's."""

MANIFEST = "manifest.json"
SPEC, WEIGHTS, SELF_TEST = "spec.json", "weights.safetensors", "self_test.safetensors"
TRAINING, METRICS = "training.json", "metrics.json"
SAVED_MODEL = "saved_model"
REQUIRED = (SPEC, WEIGHTS, SELF_TEST, TRAINING, METRICS, f"{SAVED_MODEL}/saved_model.pb")
_UNFINISHED = MANIFEST + ".part"

MANIFEST_LIMIT_BYTES = 1 << 20
"""A manifest is some kilobytes; nobody's gigabyte is read to find that out."""

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class File:
    """One line of the manifest.

    Attributes
    ----------
    path
        Within the directory, with slashes.
    sha256
        In hexadecimal.
    size_bytes
        Its length.
    """

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """A trained model on disk. Its parts are read when asked for, and held against the manifest each time.

    Attributes
    ----------
    path
        The directory.
    name
        What the model is called.
    architecture
        Which network it is; only an LSTM runs without TensorFlow.
    created_by
        Which program sealed it.
    files
        Everything in it but the manifest, in the order of their paths.
    """

    path: Path
    name: str
    architecture: Architecture
    created_by: str
    files: tuple[File, ...]

    def spec(self) -> Spec:
        """Read what the network was made for.

        Returns
        -------
        Spec
            Checked.
        """
        return read_spec(_text(self, SPEC))

    def training(self) -> dict[str, Any]:
        """Read how it was trained.

        Returns
        -------
        dict[str, Any]
            What stands in `training.json`.
        """
        return _object(_text(self, TRAINING), self.path / TRAINING)

    def metrics(self) -> dict[str, Any]:
        """Read how good it was.

        Returns
        -------
        dict[str, Any]
            What stands in `metrics.json`.
        """
        return _object(_text(self, METRICS), self.path / METRICS)

    @property
    def saved_model(self) -> Path:
        """Folder of the SavedModel, for `models.saved_model`."""
        return self.path / SAVED_MODEL


def open_artifact(path: Path, *, check: bool = True) -> Artifact:
    """Open a model.

    Parameters
    ----------
    path
        Its version directory.
    check
        Whether to hold every file against the manifest, and their contents against each other; else that is done for
        each part when it is read, and for the SavedModel not at all.

    Returns
    -------
    Artifact
        Whose files are all there, and no others.

    Raises
    ------
    ArtifactError
        If it is refused.
    """
    artifact = _manifest(path)
    there, named = set(_walk(path)) - {MANIFEST}, {file.path for file in artifact.files}
    if there != named:
        missing, unknown = sorted(named - there), sorted(there - named)
        said = [f"{path / name} is missing" for name in missing]
        said += [f"{path / name} is not in the manifest" for name in unknown]
        raise ArtifactError("; ".join(said) + ": take the directory as it was sealed")
    if check:
        for file in artifact.files:
            _require_same(path, file, _digest(path / file.path))
        _require_consistency(artifact)
    return artifact


def seal(path: Path, *, name: str, architecture: Architecture, created_by: str) -> Artifact:
    """Write the manifest over what lies in a directory, in one piece; an earlier one is replaced.

    Parameters
    ----------
    path
        With every other file in it.
    name
        What the model is called.
    architecture
        Which network it is.
    created_by
        Which program seals it.

    Returns
    -------
    Artifact
        As `open_artifact` would give it.

    Raises
    ------
    ArtifactError
        If something is missing, unknown or inconsistent, or cannot be written; the old manifest then stands.
    """
    there = sorted(set(_walk(path)) - {MANIFEST, _UNFINISHED})
    files = tuple(File(each, *_digest(path / each)) for each in there)
    artifact = Artifact(path, name, architecture, created_by, files)
    _require_names(path, artifact)
    _require_consistency(artifact)
    manifest = {
        "format": FORMAT,
        "name": name,
        "architecture": architecture,
        "created_by": created_by,
        "files": {file.path: {"sha256": file.sha256, "size": file.size_bytes} for file in files},
    }
    try:
        (path / _UNFINISHED).unlink(missing_ok=True)
        with (path / _UNFINISHED).open("x", encoding="utf-8") as out:
            out.write(json.dumps(manifest, indent=1) + "\n")
            out.flush()
            os.fsync(out.fileno())
        (path / _UNFINISHED).replace(path / MANIFEST)
    except OSError as error:
        raise ArtifactError(f"{path / MANIFEST} cannot be written: {error}") from error
    return artifact


def identity(artifact: Artifact) -> str:
    """Name a model by its contents: what stands in snapshots and beside predictions.

    Parameters
    ----------
    artifact
        From `open_artifact`.

    Returns
    -------
    str
        sha256 of the manifest's list of files, in hexadecimal: the same wherever the directory lies.
    """
    lines = "".join(f"{file.sha256}  {file.size_bytes}  {file.path}\n" for file in artifact.files)
    return hashlib.sha256(lines.encode()).hexdigest()


def write_weights(path: Path, weights: Weights) -> None:
    """Write an LSTM's weights into a directory that will be sealed.

    Parameters
    ----------
    path
        The version directory.
    weights
        As trained.
    """
    tensors = {
        "bottom/kernel": weights.bottom_kernel,
        "bottom/bias": weights.bottom_bias,
        "top/kernel": weights.top_kernel,
        "top/bias": weights.top_bias,
    }
    for layer, (kernel, bias) in enumerate(weights.cells):
        tensors |= {f"cell_{layer}/kernel": kernel, f"cell_{layer}/bias": bias}
    _write_tensors(path / WEIGHTS, tensors)


def write_self_test(path: Path, inputs: Floats, raw: Floats) -> None:
    """Write what the trained graph made of some inputs into a directory that will be sealed.

    Parameters
    ----------
    path
        The version directory.
    inputs
        `(T, N, F)`, from the streams' first frame on.
    raw
        `(T, N, O)`: row `t` is predicted after the inputs of row `t`. Tensor2Tensor, which shifts by one, gives it at
        position `t + 1`.
    """
    _write_tensors(path / SELF_TEST, {"inputs": inputs, "raw": raw})


def weights_of(artifact: Artifact) -> Weights:
    """Read the weights for the array engine.

    Parameters
    ----------
    artifact
        Of an LSTM.

    Returns
    -------
    Weights
        Whose shapes fit together, float32 and finite.

    Raises
    ------
    ArtifactError
        If it is no LSTM, or the weights are not as they were sealed or contradict each other.
    """
    if artifact.architecture != "lstm":
        raise ArtifactError(
            f"{artifact.path} holds a {artifact.architecture}: only the TensorFlow engine runs it, "
            "so name that engine or take an LSTM"
        )
    where, tensors = artifact.path / WEIGHTS, _tensors(artifact, WEIGHTS)
    layers = len({name.split("/")[0] for name in tensors if name.startswith("cell_")})
    places = ("bottom", *(f"cell_{layer}" for layer in range(layers)), "top")
    wanted = {f"{place}/{part}" for place in places for part in ("kernel", "bias")}
    if not layers or set(tensors) != wanted:
        raise ArtifactError(
            f"{where} holds {sorted(tensors)}; of an LSTM with {layers} cells it must be {sorted(wanted)}"
        )
    hidden, outputs = tensors["bottom/bias"].size, tensors["top/bias"].size
    inputs = tensors["bottom/kernel"].size // max(hidden, 1)
    shapes: dict[str, tuple[int, ...]] = {"bottom/kernel": (inputs, hidden), "bottom/bias": (hidden,)}
    shapes |= {"top/kernel": (hidden, outputs), "top/bias": (outputs,)}
    for layer in range(layers):
        shapes |= {f"cell_{layer}/kernel": (2 * hidden, 4 * hidden), f"cell_{layer}/bias": (4 * hidden,)}
    for name, shape in shapes.items():
        _require_tensor(where, name, tensors[name], shape)
    return Weights(
        bottom_kernel=tensors["bottom/kernel"],
        bottom_bias=tensors["bottom/bias"],
        cells=tuple((tensors[f"cell_{n}/kernel"], tensors[f"cell_{n}/bias"]) for n in range(layers)),
        top_kernel=tensors["top/kernel"],
        top_bias=tensors["top/bias"],
    )


def self_test(artifact: Artifact, engine: Engine) -> float:
    """Run the frames that the artifact brings along, and compare.

    Parameters
    ----------
    artifact
        Whose test it is.
    engine
        That runs its network.

    Returns
    -------
    float
        Largest absolute deviation from the trained graph's raw predictions, over all frames and streams; infinite
        where the engine gave what is no number.

    Raises
    ------
    ShapeError
        If the engine runs another network.
    """
    inputs, raw = _self_test(artifact)
    state, worst = engine.initial(inputs.shape[1]), 0.0
    for frame, expected in zip(inputs, raw, strict=True):
        found, state = engine.step(frame, state)
        if found.shape != expected.shape:
            raise ShapeError(f"the {engine.name} engine gives {found.shape}, {artifact.path} expects {expected.shape}")
        deviation = float(np.abs(found - expected).max())
        worst = max(worst, deviation if math.isfinite(deviation) else math.inf)
    return worst


def _manifest(path: Path) -> Artifact:
    """Read and check the manifest, but none of the files it names."""
    where = path / MANIFEST
    try:
        if where.is_symlink() or not where.is_file():
            raise ArtifactError(f"{where} is missing or no file: {path} is no model, or was never sealed")
        if where.stat().st_size > MANIFEST_LIMIT_BYTES:
            raise ArtifactError(f"{where} is larger than {MANIFEST_LIMIT_BYTES} bytes: it is none of ours")
        said = _object(where.read_text(encoding="utf-8"), where)
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{where} cannot be read: {error}") from error
    if said.get("format") != FORMAT:
        raise ArtifactError(f"{where} is of format {said.get('format')!r}, not {FORMAT}: use the version that wrote it")
    if set(said) != {"format", "name", "architecture", "created_by", "files"}:
        raise ArtifactError(f"{where} must say format, name, architecture, created_by and files, and nothing else")
    name, architecture, created_by, listed = (said[key] for key in ("name", "architecture", "created_by", "files"))
    if not (isinstance(name, str) and name and isinstance(created_by, str) and isinstance(listed, dict)):
        raise ArtifactError(f"{where}: name and created_by must be text, files an object")
    if architecture not in get_args(Architecture):
        raise ArtifactError(f"{where}: the architecture is {architecture!r}, not one of {get_args(Architecture)}")
    files = tuple(_file(where, each, listed[each]) for each in sorted(listed))
    artifact = Artifact(path, name, architecture, created_by, files)
    _require_names(path, artifact)
    return artifact


def _file(where: Path, name: str, said: object) -> File:
    """One entry of the manifest."""
    if isinstance(said, dict) and set(said) == {"sha256", "size"}:
        sha256, size = said["sha256"], said["size"]
        if isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256) and type(size) is int and size >= 0:
            return File(name, sha256, size)
    raise ArtifactError(f"{where}: of {name!r} it must say sha256 (64 hexadecimal digits) and size (bytes)")


def _require_names(path: Path, artifact: Artifact) -> None:
    """Refuse names outside the directory, those that no model has, and a list that lacks one."""
    named = [file.path for file in artifact.files]
    for name in named:
        folder, *rest = parts = name.split("/")
        if not re.fullmatch(r"[\w./-]+", name, re.ASCII) or {"", ".", ".."}.intersection(parts):
            raise ArtifactError(f"{path}: {name!r} may lead out of the directory: do not use this model")
        if name not in REQUIRED and (folder != SAVED_MODEL or not rest):
            raise ArtifactError(f"{path / name} is no part of a model: take it out")
    for name in REQUIRED:
        if name not in named:
            raise ArtifactError(f"{path / name} is missing: a model without it is not whole")


def _walk(path: Path) -> Iterator[str]:
    """Files in a directory, as the manifest names them. Empty folders do not matter (git keeps none)."""
    if not path.is_dir():
        raise ArtifactError(f"{path} is no directory: name a model's version directory")
    for entry in path.rglob("*"):
        if entry.is_symlink():
            raise ArtifactError(f"{entry} is a symbolic link: a model holds its files itself")
        if entry.is_dir():
            continue
        if not entry.is_file():
            raise ArtifactError(f"{entry} is no file")
        yield entry.relative_to(path).as_posix()


def _digest(path: Path) -> tuple[str, int]:
    """Return sha256 and size of a file, a chunk at a time."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest(), size


def _require_same(path: Path, file: File, found: tuple[str, int]) -> None:
    """Refuse a file that is not the one that was sealed."""
    sha256, size = found
    if size != file.size_bytes:
        raise ArtifactError(f"{path / file.path} has {size} bytes, not {file.size_bytes}: it was changed after sealing")
    if sha256 != file.sha256:
        raise ArtifactError(f"{path / file.path} has sha256 {sha256}, not {file.sha256}: it was changed after sealing")


def _read(artifact: Artifact, name: str) -> bytes:
    """Read a file that is the one that was sealed."""
    (file,) = (file for file in artifact.files if file.path == name)
    try:
        content = (artifact.path / name).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{artifact.path / name} cannot be read: {error}") from error
    _require_same(artifact.path, file, (hashlib.sha256(content).hexdigest(), len(content)))
    return content


def _text(artifact: Artifact, name: str) -> str:
    try:
        return _read(artifact, name).decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{artifact.path / name} is no text: {error}") from error


def _object(text: str, where: Path) -> dict[str, Any]:
    """Read one JSON object in which no key stands twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ArtifactError(f"{where} has a key twice")
        return dict(pairs)

    try:
        read = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is no JSON: {error}") from error
    if not isinstance(read, dict):
        raise ArtifactError(f"{where} is no JSON object")
    return read


def _write_tensors(path: Path, tensors: dict[str, Floats]) -> None:
    plain = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    try:
        path.write_bytes(safetensors.numpy.save(plain))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error}") from error


def _tensors(artifact: Artifact, name: str) -> dict[str, Floats]:
    content = _read(artifact, name)
    try:
        return safetensors.numpy.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{artifact.path / name} cannot be read as safetensors: {error}") from error


def _require_tensor(where: Path, name: str, tensor: Floats, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape or tensor.dtype != np.float32:
        raise ArtifactError(f"{where}: {name} is {tensor.dtype} {tensor.shape}, it must be float32 {shape}")
    if 0 in shape or not np.isfinite(tensor).all():
        raise ArtifactError(f"{where}: {name} is empty, or holds what is no finite number")


def _self_test(artifact: Artifact) -> tuple[Floats, Floats]:
    """Read inputs `(T, N, F)` and raw predictions `(T, N, O)`."""
    where, tensors = artifact.path / SELF_TEST, _tensors(artifact, SELF_TEST)
    if set(tensors) != {"inputs", "raw"}:
        raise ArtifactError(f"{where} holds {sorted(tensors)}; it must be inputs, raw")
    spec, inputs, raw = artifact.spec(), tensors["inputs"], tensors["raw"]
    for name, tensor, width in (("inputs", inputs, spec.inputs), ("raw", raw, spec.outputs)):
        _require_tensor(where, name, tensor, (*inputs.shape[:2], width))
    return inputs, raw


def _require_consistency(artifact: Artifact) -> None:
    """Refuse parts that contradict each other."""
    spec = artifact.spec()
    artifact.training()
    artifact.metrics()
    _self_test(artifact)
    if artifact.architecture != "lstm":
        _tensors(artifact, WEIGHTS)
        return
    weights = weights_of(artifact)
    if (weights.inputs, weights.outputs) != (spec.inputs, spec.outputs):
        raise ArtifactError(
            f"{artifact.path / WEIGHTS} takes {weights.inputs} inputs and gives {weights.outputs} outputs; "
            f"{SPEC} speaks of {spec.inputs} and {spec.outputs}"
        )
