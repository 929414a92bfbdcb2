"""Training: what is learned from and what is not, splits, going on and refusing, and what becomes a model."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gridsense.cli import run
from gridsense.errors import InputError, UsageError
from gridsense.events import Cause
from gridsense.judging import Label
from gridsense.sources import cut
from gridsense.training import records
from gridsense.training.accuracy import SETTLING, measure
from gridsense.training.quiet import Omission, Signals, Stretch, fit, omitted_labels, quiet_signals
from gridsense.training.records import Splits
from gridsense.training.session import Order, fingerprint, open_work
from models.artifact import open_artifact
from streams.archives import open_archive, read_archive, write_parquet
from streams.channels import Channel, ChannelTable, Pmu, Quantity
from tests.reference.small_grid import RATE, START_NS, small_grid
from tests.reference.small_model import SPEC
from tests.reference.trainer import trainer_environment

ROOT = Path(__file__).parents[1]
S = 1_000_000_000


def signals(seconds: int = 150, rate_hz: float = RATE, seed: int = 0) -> Signals:
    """Three PMUs whose frequency wanders."""
    rng = np.random.default_rng(seed)
    frames = round(seconds * rate_hz)
    channel = Channel("", Quantity.FREQUENCY, unit="Hz")
    table = ChannelTable(tuple(Pmu(name, 1, name, 60, (channel,), "north") for name in "ABC"))
    time_ns = START_NS + np.round(np.arange(frames) * 1e9 / rate_hz).astype(np.int64)
    values = (60 + np.cumsum(rng.normal(0, 1e-3, (frames, 3, 1)), 0)).astype(np.float32)
    stretch = Stretch(table, time_ns, values, np.ones(values.shape, bool), np.ones((frames, 3), bool))
    return Signals(Path("made.parquet"), rate_hz, (stretch,), (), 0.0, ())


def without(file: Signals, *omissions: Omission) -> Signals:
    (stretch,) = file.stretches
    return replace(file, stretches=(replace(stretch, fit=fit(stretch.table, stretch.time_ns, omissions)),))


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Signals:
    """A grid event after 100 s; a label of one PMU's trouble at 40 s."""
    path = tmp_path_factory.mktemp("archive") / "grid.parquet"
    write_parquet(path, [small_grid("north", 1, 4, 1, seconds=160, onset_s=100)])
    label = {"kind": "noisy", "cause": "data", "onset": "2026-03-01T12:00:40Z", "end": "2026-03-01T12:00:45Z"}
    path.with_suffix(".json").write_text(json.dumps([{**label, "element": "north2", "pmus": ["north2"]}]))
    return quiet_signals(path, lambda _: None)


def test_time_of_events_is_kept_out_for_everybody_and_of_a_label_for_its_pmu(disturbed: Signals) -> None:
    (stretch,) = disturbed.stretches
    after_s = (stretch.time_ns - START_NS) / 1e9
    assert {o.reason.partition(":")[0] for o in disturbed.omissions} == {"event", "label in grid.json"}
    (event,) = (o for o in disturbed.omissions if o.reason.startswith("event: grid"))
    assert event.pmus == ()
    assert (event.onset_ns - START_NS) / 1e9 == pytest.approx(100, abs=1)
    left_out = (stretch.time_ns >= event.onset_ns - 5 * S) & (stretch.time_ns <= event.end_ns + 30 * S)
    assert not stretch.fit[left_out].any()
    labelled = (after_s >= 35) & (after_s <= 75)
    assert (stretch.fit[~left_out].all(1) == ~labelled[~left_out]).all()
    others = [s for s, pmu in enumerate(stretch.table.pmus) if pmu.name != "north2"]
    assert stretch.fit[~left_out][:, others].all()
    assert 50 < disturbed.unjudged_s < 70


def test_what_a_link_did_concerns_those_behind_it_and_what_the_grid_did_everybody() -> None:
    labels = [Label("silent", Cause.COMMS, 0, 1, "", ("A",)), Label("fault", Cause.GRID, 2, 3, "", ("A",))]
    assert [o.pmus for o in omitted_labels(labels, None)] == [("A",), ()]


def test_rows_ask_for_nothing_in_time_that_is_left_out() -> None:
    file = without(signals(), Omission("a fault", START_NS + 50 * S, START_NS + 51 * S, ("B",)))
    (rows,) = records.pieces(SPEC, file.stretches[0])
    weights = rows[:, :, -21:].reshape(len(rows), 3, 7, 3)
    # Row t asks for the reading t - 1 + horizon, from t - 1: both must be quiet.
    times = np.arange(len(rows))[:, None] - 1 + np.array([0, *SPEC.horizons])
    out = (times >= 45 * RATE) & (times <= 81 * RATE)
    out = (out[:, 1:] | out[:, :1]) & (times[:, 1:] < len(rows))
    asked = weights[1:, :, 0] > 0
    inside = (times[1:, 1:] < len(rows)) & (times[1:, :1] >= 1)
    np.testing.assert_array_equal(asked[:, 1][inside], ~out[1:][inside])
    assert asked[:, 0][inside].all()
    assert not weights[:, :, 1:].any()


def test_splits_stand_in_order_with_an_embargo_between() -> None:
    bounds = Splits().bounds(START_NS, START_NS + 240 * S - 1)
    seconds = {name: [(t - START_NS) / 1e9 for t in pair] for name, pair in bounds.items()}
    assert seconds["train"] == pytest.approx([0, 140])
    assert seconds["eval"] == pytest.approx([160, 190])
    assert seconds["test"] == pytest.approx([210, 240])
    short = Splits().bounds(START_NS, START_NS + 30 * S)
    assert all(begin >= end for begin, end in (short["train"], short["eval"]))


def test_scales_know_the_training_split_alone() -> None:
    file = signals()
    (stretch,) = file.stretches
    end = round((stretch.time_ns[-1] - START_NS) / 1e9 * RATE)
    late, early = stretch.values.copy(), stretch.values.copy()
    late[80 * RATE : end] *= 1.5
    early[40 * RATE : 80 * RATE : 2] += 1
    spec = records.make_spec([file], Splits())
    assert records.make_spec([replace(file, stretches=(replace(stretch, values=late),))], Splits()) == spec
    assert records.make_spec([replace(file, stretches=(replace(stretch, values=early),))], Splits()) != spec
    events = without(file, Omission("", START_NS + 45 * S, START_NS + 46 * S))
    assert records.make_spec([events], Splits()) != spec
    assert spec.horizons == (1, 15, 60)
    assert spec.scale[0][0] == pytest.approx(1e-3, rel=0.05)
    assert spec.scale[1] == (1.0, 1.0, 1.0)


def test_files_are_written_split_by_split(tmp_path: Path) -> None:
    files = [signals(), signals(seed=1)]
    spec = records.make_spec(files, Splits())
    written = records.write_rows(tmp_path, files, spec, Splits())
    for split, share in (("train", 0.7), ("eval", 0.15), ("test", 0.15)):
        rows = [np.load(path) for path in sorted((tmp_path / split).iterdir())]
        assert [r.shape[1:] for r in rows] == [(3, 91)] * 2
        frames = sum(map(len, rows))
        assert frames == written[split].frames == pytest.approx(2 * 110 * RATE * share, abs=4)
        assert written[split].examples == 6 * (frames // 2 // records.WINDOW)


def test_rates_that_differ_or_are_too_low_and_too_little_time_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"25 frames a second, made\.parquet 30: one network serves one rate"):
        records.make_spec([signals(), signals(rate_hz=25)], Splits())
    with pytest.raises(InputError, match="has 1 frames a second: to predict"):
        records.make_spec([signals(rate_hz=1)], Splits())
    short = signals(60)
    spec = records.make_spec([short], Splits())
    with pytest.raises(InputError, match=r"nothing quiet is left for the eval split .* give at least 83 s"):
        records.write_rows(tmp_path, [short], spec, Splits())
    with pytest.raises(InputError, match="no quiet, good reading is left in the training split"):
        records.make_spec([without(signals(), Omission("", START_NS, START_NS + 150 * S))], Splits())


def test_known_disturbances_have_a_word_a_frame(tmp_path: Path) -> None:
    labels = (
        Label("fault", Cause.GRID, START_NS + 10 * S, START_NS + 10 * S, ""),
        Label("stuck", Cause.DATA, START_NS + 20 * S, START_NS + 40 * S, "", ("A",)),
    )
    records.write_known(tmp_path, replace(signals(60), labels=labels), SPEC)
    names = json.loads((tmp_path / "000.json").read_text())
    assert len(names) == len(np.load(tmp_path / "000.npy")) == 60 * RATE
    assert {name: names.count(name) for name in names} == {
        "quiet": 35 * RATE, "fault": 5 * RATE, "stuck": 20 * RATE,
    }  # fmt: skip
    assert (names[10 * RATE - 1], names[10 * RATE], names[25 * RATE]) == ("quiet", "fault", "stuck")
    with pytest.raises(InputError, match="no labels stand beside it"):
        records.write_known(tmp_path, signals(60), SPEC)


def test_both_environments_know_one_shape() -> None:
    shape = runpy.run_path(str(ROOT / "models" / "t2t" / "shape.py"))
    assert (shape["WINDOW"], shape["SETTLING"]) == (records.WINDOW, SETTLING)
    assert (shape["INPUTS"], 2 * shape["ANSWERS"]) == (SPEC.inputs, SPEC.outputs)


class Oracle:
    """Predicts all rows exactly, or persistence, with a spread of `exp(width)`."""

    name = "oracle"

    def __init__(self, answers: NDArray[np.float32], width: float) -> None:
        self._answers, self._width = answers, width

    def initial(self, streams: int) -> int:
        assert streams == self._answers.shape[1]
        return 1

    def step(self, inputs: NDArray[np.float32], state: int) -> tuple[NDArray[np.float32], int]:
        assert inputs.shape[1] == SPEC.inputs
        answer = self._answers[state]
        return np.concatenate([answer, np.full_like(answer, self._width)], 1), state + 1

    def to_numpy(self, state: int) -> NDArray[np.float32]:
        return np.full(1, state, np.float32)

    def from_numpy(self, state: NDArray[np.float32]) -> int:
        return int(state[0])


def test_accuracy_is_beside_persistence() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 5, SPEC.inputs + SPEC.outputs)).astype(np.float32)
    rows[:, :, -21:] = rng.random((400, 5, 21)) < 0.5
    rows[:, :, -3:] = 0  # the last slot is never asked for
    answers = rows[:, :, SPEC.inputs : -21]
    exact = measure(SPEC, Oracle(answers, -1.0), [rows])
    assert (exact.relative_error[:6] == 0).all()
    assert np.isnan(exact.relative_error[6]).all()
    assert exact.to_json()["relative_error"][6] == [None] * 3
    assert exact.readings.sum() == rows[SETTLING:, :, -21:].sum()
    still = measure(SPEC, Oracle(np.zeros_like(answers), 0.0), [rows, rows])
    assert still.readings.sum() == 2 * exact.readings.sum()
    np.testing.assert_allclose(still.relative_error[:6], 1)
    np.testing.assert_allclose(still.coverage[:6], 0.95, atol=0.02)
    np.testing.assert_allclose(still.likelihood[:6], 0.5 + 0.5 * np.log(2 * np.pi), atol=0.1)


def test_a_folder_belongs_to_one_order(tmp_path: Path) -> None:
    archive, work = tmp_path / "a.parquet", tmp_path / "work"
    archive.write_bytes(b"frames")
    first = fingerprint(Order((archive,)))
    assert not open_work(work, first, fresh=False)
    (work / "checkpoint").write_text("")
    assert open_work(work, first, fresh=False)
    archive.with_suffix(".json").write_text("[]")
    labelled = fingerprint(Order((archive,)))
    for other, differs in ((labelled, "archives"), (fingerprint(Order((archive,), seed=2)), "archives, seed")):
        with pytest.raises(UsageError, match=rf"\(what differs: {differs}\): --fresh"):
            open_work(work, other, fresh=False)
    assert (work / "checkpoint").exists()
    assert not open_work(work, labelled, fresh=True)
    assert not (work / "checkpoint").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match="no folder of a training"):
        open_work(foreign, first, fresh=True)
    assert (foreign / "thesis.txt").exists()
    with pytest.raises(InputError, match=r"missing\.parquet"):
        fingerprint(Order((tmp_path / "missing.parquet",)))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quiet") / "quiet.parquet"
    write_parquet(path, [small_grid("north", 1, 4, 1, seconds=130, onset_s=1e9)])
    return path


def words(quiet: Path, tmp_path: Path, *more: str) -> list[str]:
    folders = ["--to", tmp_path / "model", "--work", tmp_path / "work", "--environment", tmp_path / "env"]
    return ["train", str(quiet), *map(str, folders), *more]


def test_the_command_makes_a_model_goes_on_and_refuses(
    quiet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer_environment(tmp_path / "env")
    command = words(quiet, tmp_path, "--hparams", "hidden_size=8", "--hparams", "num_hidden_layers=1")
    assert run(command) == 0
    printed = capsys.readouterr()
    model = open_artifact(tmp_path / "model")
    assert str(tmp_path / "model") in printed.out
    for said in ("130 s of 4 PMUs", "100% is quiet", "held out 1.1250", "verification", "tensorboard", "--model"):
        assert said in printed.err
    training = model.training()
    assert training["made_from"]["hparams"] == ["hidden_size=8", "num_hidden_layers=1"]
    assert training["made_from"]["archives"][0]["name"] == "quiet.parquet"
    assert training["trained"]["versions"] == {"tensor2tensor": "1.15.7"}
    assert list(training["files"][0]["splits"]) == ["train", "eval", "test"]
    metrics = model.metrics()
    assert metrics["numpy_deviation"] < 1e-6  # the stand-in is NumPy too, and sums in another order now and then
    assert metrics["test"]["relative_error"][0][0] > 0
    assert metrics["test"]["relative_error"][4] == [None] * 3
    calls = [json.loads(line) for line in (tmp_path / "env" / "bin" / "calls").read_text().splitlines()]
    assert [verb for verb, _ in calls] == ["generate", "train", "export"]
    assert calls[1][1]["--hparams"] == "hidden_size=8,num_hidden_layers=1"
    assert (calls[1][1]["--model"], calls[1][1]["--hparams-set"]) == ("lstm_seq2seq", "lstm_pmu")
    assert "no JSON, for the log" in (tmp_path / "work" / "log.txt").read_text()

    assert run(command) == 2
    assert "--force replaces it" in capsys.readouterr().err
    rows = [path.stat().st_mtime_ns for path in sorted((tmp_path / "work" / "tmp").rglob("*.npy"))]
    assert run([*command, "--force"]) == 0
    assert "going on with what is there" in capsys.readouterr().err
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "work" / "tmp").rglob("*.npy"))] == rows
    assert open_artifact(tmp_path / "model").files == model.files
    assert run([*command, "--force", "--seed", "2"]) == 2
    assert "what differs: seed" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["env", "model", "work"]


def test_a_training_that_fails_says_its_last_words_and_leaves_no_model(
    quiet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = trainer_environment(tmp_path / "env")
    (environment / "bin" / "fail").touch()
    assert run(words(quiet, tmp_path)) == 3
    said = capsys.readouterr().err
    assert "train in the training environment failed (exit 7)" in said
    assert "OutOfMemory: no room for the batch" in said
    assert str(tmp_path / "work" / "log.txt") in said
    (environment / "bin" / "fail").unlink()
    (environment / "bin" / "wrong").touch()
    assert run(words(quiet, tmp_path)) == 3
    assert "NumPy deviates by 0.001 from what the trained graph gave" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["env", "work"]


def test_a_place_that_is_no_models_and_wrong_options_are_refused_at_once(
    quiet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("")
    assert run(words(quiet, tmp_path, "--force")) == 2
    assert "is there, and is no model" in capsys.readouterr().err
    (tmp_path / "model" / "thesis.txt").unlink()
    for wrong in (["--steps", "-1"], ["--hparams", "hidden_size"], ["--model", "gpt"]):
        assert run(words(quiet, tmp_path, *wrong)) == 2
        assert wrong[0] in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("training_python")
def test_tensor2tensor_trains_on_the_bundled_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = [b for b in read_archive(open_archive(ROOT / "gridsense" / "demo" / "ambient.parquet")) if len(b.time_ns)]
    some = [b for b in batches if b.table == batches[0].table]
    end_ns = int(some[0].time_ns[0]) + 100 * S
    short = tmp_path / "short.parquet"
    write_parquet(short, [cut(b, b.time_ns < end_ns) for b in some if b.time_ns[0] < end_ns])
    command = ["train", str(short), "--to", str(tmp_path / "model"), "--work", str(tmp_path / "work")]
    assert run([*command, "--hparams-set", "lstm_pmu_tiny", "--steps", "20"]) == 0
    model = open_artifact(tmp_path / "model")
    trained = model.training()["trained"]
    assert (trained["steps"], trained["versions"]["tensor2tensor"]) == (20, "1.15.7")
    error = np.array(model.metrics()["eval"]["relative_error"], float)
    assert error.shape == (7, 3)
    assert ((error > 0.5) & (error < 1.3)).all()
    capsys.readouterr()
    assert run(["model", "verify", str(tmp_path / "model"), "--frames", "50", "--streams", "3"]) == 0
    assert "numpy: self test" in capsys.readouterr().out
