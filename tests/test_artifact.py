"""Artifacts: sealed and read back, and every way of tampering refused with the file's name."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from models import artifact as artifacts
from models.artifact import (
    Artifact,
    identity,
    open_artifact,
    seal,
    self_test,
    weights_of,
    write_self_test,
    write_weights,
)
from models.engines import ArrayEngine
from models.errors import ArtifactError, ShapeError
from models.network import Weights
from models.spec import Spec
from tests.reference.lstm import first_state_of, step_each
from tests.reference.small_network import frames, small_weights

SPEC = Spec(rate_hz=30.0, horizons=(1, 15), paces_s=(0.5,), scale=((0.1, 0.2),) * 2, slots=("frequency", "rocof"))
VARIABLES = "saved_model/variables/variables.index"
FILES = (*artifacts.REQUIRED, VARIABLES)


def fitting(seed: int = 0, **other: Any) -> Weights:
    return small_weights(seed, **{"inputs": SPEC.inputs, "outputs": SPEC.outputs, "hidden": 3, "scale": 0.3} | other)


def fill(path: Path, weights: Weights) -> None:
    """A model's directory but for the manifest; what the graph computed comes from the equations."""
    (path / "saved_model" / "variables").mkdir(parents=True)
    (path / "saved_model" / "assets").mkdir()
    (path / "saved_model" / "saved_model.pb").write_bytes(b"graph")
    (path / VARIABLES).write_bytes(b"variables")
    (path / "spec.json").write_text(SPEC.to_json())
    (path / "training.json").write_text('{"fingerprint": "of the data", "steps": 12}')
    (path / "metrics.json").write_text('{"loss": 0.5}')
    write_weights(path, weights)
    inputs, raw, state = frames(1, 6, 2, weights.inputs), [], np.stack([first_state_of(weights)] * 2)
    for frame in inputs:
        predicted, state = step_each(weights, frame, state)
        raw.append(predicted)
    write_self_test(path, inputs, np.array(raw, np.float32))


def sealed(path: Path, architecture: artifacts.Architecture = "lstm") -> Artifact:
    return seal(path, name="tiny", architecture=architecture, created_by="a test")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "v1"
    fill(path, fitting())
    sealed(path)
    return path


def change(path: Path, **entries: Any) -> None:
    """Write other entries into the manifest."""
    said = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(said | entries))


def refused(path: Path, *words: str, check: bool = True) -> None:
    with pytest.raises(ArtifactError) as caught:
        open_artifact(path, check=check)
    for word in words:
        assert word in str(caught.value)


def test_what_is_sealed_is_read_back(model: Path) -> None:
    artifact = open_artifact(model)
    assert (artifact.name, artifact.architecture, artifact.created_by) == ("tiny", "lstm", "a test")
    assert artifact.spec() == SPEC
    assert artifact.training() == {"fingerprint": "of the data", "steps": 12}
    assert artifact.metrics() == {"loss": 0.5}
    assert artifact.saved_model == model / "saved_model"
    assert [file.path for file in artifact.files] == sorted(FILES)
    found, written = weights_of(artifact), fitting()
    for one, other in zip(
        [found.bottom_kernel, found.bottom_bias, found.top_kernel, found.top_bias, *sum(found.cells, ())],
        [written.bottom_kernel, written.bottom_bias, written.top_kernel, written.top_bias, *sum(written.cells, ())],
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.float32


def test_opening_gives_what_sealing_gave(model: Path) -> None:
    assert open_artifact(model) == sealed(model) == open_artifact(model, check=False)


@given(
    seed=st.integers(0, 10**6),
    hidden=st.integers(1, 6),
    layers=st.integers(1, 12),
    scale=st.sampled_from([0.0, 1.0, 1e30]),
)
@settings(max_examples=20, deadline=None)
def test_weights_of_any_size_go_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, *, seed: int, hidden: int, layers: int, scale: float
) -> None:
    path = tmp_path_factory.mktemp("model") / "v"
    fill(path, fitting())
    weights = fitting(seed, hidden=hidden, layers=layers, scale=scale)
    write_weights(path, weights)
    found = weights_of(sealed(path))
    assert found.state_shape == (layers, 2, hidden)
    for (kernel, bias), (kernel_found, bias_found) in zip(weights.cells, found.cells, strict=True):
        np.testing.assert_array_equal(kernel, kernel_found)
        np.testing.assert_array_equal(bias, bias_found)


def test_weights_are_stored_under_their_names_and_nothing_else(model: Path) -> None:
    content = (model / "weights.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert set(header) == {
        f"{place}/{part}" for place in ("bottom", "cell_0", "cell_1", "top") for part in ("kernel", "bias")
    }


def test_the_self_test_measures_the_engine(model: Path) -> None:
    artifact = open_artifact(model)
    assert self_test(artifact, ArrayEngine(weights_of(artifact))) < 1e-6
    other = replace(fitting(), top_bias=fitting().top_bias + np.float32(0.25))
    assert self_test(artifact, ArrayEngine(other)) == pytest.approx(0.25, abs=1e-5)
    nowhere = replace(fitting(), top_bias=fitting().top_bias * np.float32(np.nan))
    assert self_test(artifact, ArrayEngine(nowhere)) == np.inf
    with pytest.raises(ShapeError, match="expects"):
        self_test(artifact, ArrayEngine(fitting(outputs=SPEC.outputs + 1)))


def test_the_identity_is_that_of_the_contents(model: Path, tmp_path: Path) -> None:
    artifact = open_artifact(model)
    moved = shutil.copytree(model, tmp_path / "elsewhere")
    assert identity(open_artifact(moved)) == identity(artifact)
    (model / "metrics.json").write_text('{"loss": 0.4}')
    assert identity(sealed(model)) != identity(artifact)
    assert len(identity(artifact)) == 64


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_bit_is_refused(model: Path, name: str, where: str) -> None:
    content = bytearray((model / name).read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[where]] ^= 1
    (model / name).write_bytes(content)
    refused(model, str(model / name), "sha256", "changed after sealing")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_grew_or_is_cut_is_refused(model: Path, name: str) -> None:
    content = (model / name).read_bytes()
    (model / name).write_bytes(content + b" ")
    refused(model, str(model / name), f"{len(content) + 1} bytes, not {len(content)}")
    (model / name).write_bytes(content[:-1])
    refused(model, str(model / name), "changed after sealing")


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(model: Path, name: str, *, check: bool) -> None:
    (model / name).unlink()
    refused(model, f"{model / name} is missing", check=check)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", ["extra.bin", "saved_model/extra.pb", "saved_model/assets/deep/x", ".hidden"])
def test_an_unknown_file_is_refused(model: Path, name: str, *, check: bool) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"")
    refused(model, f"{model / name} is not in the manifest", check=check)


@pytest.mark.parametrize("name", FILES)
def test_a_renamed_file_is_refused(model: Path, name: str) -> None:
    (model / name).rename(model / f"{name}.old")
    refused(model, f"{model / name} is missing", f"{name}.old is not in the manifest")


def test_empty_folders_do_not_matter(model: Path) -> None:
    (model / "saved_model" / "assets").rmdir()
    (model / "empty").mkdir()
    assert open_artifact(model).name == "tiny"


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", [*FILES, "manifest.json", "saved_model", "saved_model/variables"])
def test_a_symbolic_link_is_refused_even_to_the_same_content(
    model: Path, tmp_path: Path, name: str, *, check: bool
) -> None:
    (model / name).rename(tmp_path / "outside")
    (model / name).symlink_to(tmp_path / "outside")
    refused(model, str(model / name), check=check)
    with pytest.raises(ArtifactError, match="symbolic link"):
        sealed(model)


def test_a_pipe_is_refused_and_not_waited_for(model: Path) -> None:
    (model / "metrics.json").unlink()
    os.mkfifo(model / "metrics.json")
    refused(model, "metrics.json is no file")


@pytest.mark.parametrize(
    "name",
    ["../outside.json", "/etc/passwd", "saved_model/../../outside", "saved_model//x", "./spec.json", "saved_model/.",
     "saved_model\\x", "saved_model/\0", "", "saved_model/\ud800", "saved_model/a b"],
)  # fmt: skip
def test_a_manifest_that_leads_outside_is_refused(model: Path, name: str) -> None:
    files = json.loads((model / "manifest.json").read_text())["files"]
    change(model, files=files | {name: {"sha256": "0" * 64, "size": 1}})
    refused(model, "may lead out of the directory", check=False)


def test_a_manifest_that_names_what_no_model_has_is_refused(model: Path) -> None:
    files = json.loads((model / "manifest.json").read_text())["files"]
    for name in ("manifest.json", "run.py", "spec.json/x", "saved_model"):
        change(model, files=files | {name: {"sha256": "0" * 64, "size": 1}})
        refused(model, f"{model / name} is no part of a model")


@pytest.mark.parametrize("name", artifacts.REQUIRED)
def test_a_manifest_that_leaves_a_part_out_is_refused(model: Path, name: str) -> None:
    files = json.loads((model / "manifest.json").read_text())["files"]
    del files[name]
    (model / name).unlink()
    change(model, files=files)
    refused(model, f"{model / name} is missing")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"format": 2}, "is of format 2, not 1"),
        ({"format": None}, "is of format None, not 1"),
        ({"surplus": 1}, "nothing else"),
        ({"name": ""}, "must be text"),
        ({"name": 7}, "must be text"),
        ({"created_by": None}, "must be text"),
        ({"files": []}, "files an object"),
        ({"architecture": "gru"}, "'gru'"),
        ({"architecture": ["lstm"]}, "['lstm']"),
        ({"files": {"spec.json": "0"}}, "'spec.json'"),
        ({"files": {"spec.json": {"sha256": "0" * 64}}}, "'spec.json'"),
        ({"files": {"spec.json": {"sha256": "0" * 63, "size": 1}}}, "'spec.json'"),
        ({"files": {"spec.json": {"sha256": "0" * 64, "size": -1}}}, "'spec.json'"),
        ({"files": {"spec.json": {"sha256": "0" * 64, "size": True}}}, "'spec.json'"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(model: Path, entries: dict[str, Any], words: str) -> None:
    change(model, **entries)
    refused(model, str(model / "manifest.json"), words)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1, "format": 1}', b"1" * 10_000]
)
def test_a_manifest_that_is_no_json_object_is_refused(model: Path, content: bytes) -> None:
    (model / "manifest.json").write_bytes(content)
    refused(model, str(model / "manifest.json"))


def test_a_huge_manifest_is_not_read(model: Path) -> None:
    with (model / "manifest.json").open("ab") as file:
        file.truncate(artifacts.MANIFEST_LIMIT_BYTES + 1)
    refused(model, "larger than")


@given(place=st.integers(0, 10**6), byte=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_changed_manifest_is_refused_or_says_the_same_of_the_files(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "manifests"
    if not path.exists():
        fill(path, fitting())
    files = sealed(path).files
    content = bytearray((path / "manifest.json").read_bytes())
    content[place % len(content)] = byte
    (path / "manifest.json").write_bytes(content)
    with contextlib.suppress(ArtifactError):
        assert open_artifact(path).files == files


def test_what_is_no_directory_or_was_never_sealed_is_refused(model: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "manifest.json is missing")
    (model / "manifest.json").unlink()
    refused(model, "never sealed")
    with pytest.raises(ArtifactError, match="no directory"):
        sealed(tmp_path / "nowhere")


def test_a_part_that_changed_after_opening_is_refused_when_it_is_read(model: Path) -> None:
    artifact = open_artifact(model)
    reads: dict[str, Callable[[], object]] = {
        "spec.json": artifact.spec,
        "training.json": artifact.training,
        "metrics.json": artifact.metrics,
        "weights.safetensors": lambda: weights_of(artifact),
        "self_test.safetensors": lambda: self_test(artifact, ArrayEngine(fitting())),
    }
    for name, read in reads.items():
        content = (model / name).read_bytes()
        (model / name).write_bytes(content[:-1] + b"?")
        with pytest.raises(ArtifactError, match=f"{name} has sha256"):
            read()
        (model / name).unlink()
        with pytest.raises(ArtifactError, match=f"{name} cannot be read"):
            read()
        (model / name).write_bytes(content)
    open_artifact(model)


def rewritten(path: Path, **tensors: np.ndarray | None) -> None:
    """Put other tensors into the weights; None takes one away."""
    whole = safetensors.numpy.load_file(path / "weights.safetensors") | tensors
    safetensors.numpy.save_file({k: v for k, v in whole.items() if v is not None}, path / "weights.safetensors")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"bottom/kernel": np.zeros((SPEC.inputs + 1, 3), np.float32)}, "speaks of 10 and 8"),
        ({"top/kernel": np.zeros((3, 9), np.float32), "top/bias": np.zeros(9, np.float32)}, "gives 9 outputs"),
        ({"top/bias": np.zeros(7, np.float32)}, "top/kernel is float32 (3, 8), it must be float32 (3, 7)"),
        ({"cell_1/kernel": np.zeros((6, 11), np.float32)}, "cell_1/kernel"),
        ({"cell_0/bias": np.zeros(12, np.float64)}, "cell_0/bias is float64"),
        ({"cell_0/bias": np.full(12, np.nan, np.float32)}, "no finite number"),
        ({"bottom/bias": np.zeros((3, 1), np.float32)}, "bottom/bias"),
        ({"bottom/bias": np.zeros(0, np.float32)}, "bottom/kernel"),
        ({"cell_0/kernel": None}, "with 2 cells it must be"),
        ({"cell_0/kernel": None, "cell_0/bias": None}, "with 1 cells it must be"),
        ({"surplus": np.zeros(1, np.float32)}, "surplus"),
        ({"cell_7/kernel": np.zeros((6, 12), np.float32)}, "cell_7/kernel"),
    ],
)
def test_weights_that_contradict_themselves_or_the_spec_are_not_sealed(
    model: Path, tensors: dict[str, np.ndarray | None], words: str
) -> None:
    before = (model / "manifest.json").read_bytes()
    rewritten(model, **tensors)
    with pytest.raises(ArtifactError) as caught:
        sealed(model)
    assert str(model / "weights.safetensors") in str(caught.value)
    assert words in str(caught.value)
    assert (model / "manifest.json").read_bytes() == before


def reseal_by_hand(path: Path) -> None:
    """As somebody would who wants damage to pass: a manifest that fits the files."""
    names = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and p.name != "manifest.json"]
    files = {name: dict(zip(("sha256", "size"), artifacts._digest(path / name), strict=True)) for name in names}
    change(path, files=files)


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 64, b"\0" * 64, (9).to_bytes(8, "little") + b"{}"])
@pytest.mark.parametrize("name", ["weights.safetensors", "self_test.safetensors"])
def test_damaged_safetensors_are_refused_even_when_the_manifest_fits(model: Path, name: str, content: bytes) -> None:
    (model / name).write_bytes(content)
    reseal_by_hand(model)
    refused(model, f"{model / name} cannot be read as safetensors")


@pytest.mark.parametrize("name", ["spec.json", "training.json", "metrics.json"])
def test_json_that_is_none_is_refused_even_when_the_manifest_fits(model: Path, name: str) -> None:
    for content in (b"{", b"\xff", b"[1]"):
        (model / name).write_bytes(content)
        reseal_by_hand(model)
        refused(model, name)


def test_a_self_test_that_does_not_fit_the_spec_is_refused(model: Path) -> None:
    right = np.zeros((2, 3, SPEC.inputs), np.float32), np.zeros((2, 3, SPEC.outputs), np.float32)
    write_self_test(model, *right)
    sealed(model)
    for inputs, raw in (
        (right[0][..., :-1], right[1]),
        (right[0], right[1][..., :-1]),
        (right[0], right[1][:1]),
        (right[0][:0], right[1][:0]),
        (right[0][0], right[1][0]),
        (right[0] * np.float32(np.nan), right[1]),
    ):
        write_self_test(model, inputs, raw)
        with pytest.raises(ArtifactError, match=r"self_test\.safetensors"):
            sealed(model)


def test_a_transformer_is_for_tensorflow_alone(model: Path) -> None:
    safetensors.numpy.save_file({"body/q": np.zeros((2, 2), np.float32)}, model / "weights.safetensors")
    artifact = sealed(model, "transformer")
    assert open_artifact(model) == artifact
    with pytest.raises(ArtifactError, match="only the TensorFlow engine runs it"):
        weights_of(artifact)


def test_sealing_leaves_nothing_else_behind_and_what_a_kill_left_is_taken_away(model: Path) -> None:
    (model / "manifest.json.part").write_text("half a mani")
    refused(model, "manifest.json.part is not in the manifest")
    sealed(model)
    assert not (model / "manifest.json.part").exists()
    open_artifact(model)


def test_what_cannot_be_sealed_is_said(model: Path) -> None:
    (model / "surplus").write_text("")
    with pytest.raises(ArtifactError, match="surplus is no part of a model"):
        sealed(model)
    (model / "surplus").unlink()
    (model / "metrics.json").unlink()
    with pytest.raises(ArtifactError, match=r"metrics\.json is missing"):
        sealed(model)
