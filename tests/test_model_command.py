"""`gridsense model`: what a model is, whether engines run it alike, which is better; what is refused, and how."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gridsense.cli import run
from gridsense.verification import CHUNK, Drive, drift
from models.artifact import WEIGHTS, identity, open_artifact
from models.engines import ArrayEngine
from streams.archives import write_parquet
from tests.reference.small_grid import small_grid
from tests.reference.small_model import SPEC, small_model
from tests.reference.small_network import small_weights

ENGINES = [name for name in ("tensorflow", "jax") if importlib.util.find_spec(name)]
numpy_alone = pytest.mark.skipif(bool(ENGINES), reason="the model of these tests has no real SavedModel")


def test_inspect_says_what_a_model_is_and_how_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_model(tmp_path / "small")
    assert run(["model", "inspect", str(path)]) == 0
    said = capsys.readouterr().out
    for words in (identity(open_artifact(path)), "quiet.parquet", "hidden size", "2.12.1", "reactive power", "Hz/s"):
        assert words in said
    assert "0.750" in said
    assert "0.875" in said
    assert run(["model", "inspect", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["architecture"], told["spec"]["horizons"], told["training"]["trained"]["steps"]) == (
        "lstm",
        [1, 15, 60],
        20,
    )


@numpy_alone
def test_verify_keeps_promises_and_names_what_it_did_not_try(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["model", "verify", str(small_model(tmp_path / "small"))]) == 0
    printed = capsys.readouterr()
    assert "numpy: self test" in printed.out
    assert "BROKEN" not in printed.out
    for name in ("tensorflow", "jax"):
        assert f"{name} is not installed, and was not tried: pip install 'gridsense-pmu[{name}]'" in printed.err


@numpy_alone
def test_verify_tells_a_broken_promise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_model(tmp_path / "small", off_by=1e-3)
    assert run(["model", "verify", str(path)]) == 3
    printed = capsys.readouterr()
    assert "BROKEN" in printed.out
    assert "numpy: self test deviates by 0.001" in printed.err
    assert str(path) in printed.err


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_a_tampered_model_is_refused_by_name(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_model(tmp_path / "small")
    content = bytearray((path / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (path / WEIGHTS).write_bytes(content)
    assert run(["model", verb, str(path)]) == 3
    printed = capsys.readouterr()
    assert not printed.out
    assert f"{path / WEIGHTS} has sha256" in printed.err
    assert "changed after sealing" in printed.err


def test_no_model_and_wrong_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "inspect", str(tmp_path)]) == 3
    assert "manifest.json is missing" in capsys.readouterr().err
    assert run(["model", "verify", str(small_model(tmp_path / "small")), "--streams", "0"]) == 2
    assert "--streams 0" in capsys.readouterr().err


def test_compare_holds_two_models_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = small_model(tmp_path / "one"), small_model(tmp_path / "other", seed=1, error=0.5)
    archive = tmp_path / "quiet.parquet"
    write_parquet(archive, [small_grid("north", 1, 3, 1, seconds=40, onset_s=1e9)])
    assert run(["model", "compare", str(one), str(other), str(archive)]) == 0
    said = capsys.readouterr().out
    assert "0.750" in said
    assert "0.500" in said
    assert "quiet.parquet: error relative to persistence" in said
    # The archive has no currents: nothing is asked of them, and no line stands for them.
    lines = said[said.index("quiet.parquet: error") : said.index("quiet.parquet: coverage")].splitlines()
    (line,) = (line for line in lines if line.startswith(" frequency"))
    figures = [float(word) for word in line.split()[1:]]
    assert len(figures) == 6
    assert figures[0] != figures[1]
    assert not any("current" in line for line in lines)


def test_models_of_other_horizons_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = small_model(tmp_path / "one")
    other = small_model(tmp_path / "other", spec=replace(SPEC, horizons=(1, 30, 60)))
    assert run(["model", "compare", str(one), str(other)]) == 2
    assert "cannot be compared" in capsys.readouterr().err


def test_drift_sees_a_weight_that_differs_and_no_other() -> None:
    weights = small_weights(inputs=SPEC.inputs, hidden=8, outputs=SPEC.outputs, scale=0.2)
    other = replace(weights, top_bias=weights.top_bias + np.float32(1e-3))
    engines = ArrayEngine(weights, threads=2), ArrayEngine(other)
    done: list[int] = []
    worst = drift(SPEC, ArrayEngine(weights), engines, frames=CHUNK + 200, streams=3, seed=1, report=done.append)
    assert done == [CHUNK, CHUNK + 200]
    assert (worst[0] == 0).all()
    np.testing.assert_allclose(worst[1], 1e-3, rtol=1e-2)


def test_made_up_inputs_are_like_those_of_readings() -> None:
    made = Drive(SPEC, 30, 7).frames(3000)
    np.testing.assert_array_equal(made, Drive(SPEC, 30, 7).frames(3000))
    own, medians, lost = np.split(made, [21, 42], axis=2)
    assert np.abs(made).max() == SPEC.clip
    assert (np.abs(own) < SPEC.clip).mean() > 0.9
    assert 0.01 < lost.mean() < 0.1
    assert set(np.unique(lost)) == {0, 1}
    assert not own.reshape(*own.shape[:2], 7, 3)[lost.astype(bool)].any()
    np.testing.assert_array_equal(medians[:, 0], medians[:, 19])
    assert (medians[:, 0] != medians[:, 20]).any()
