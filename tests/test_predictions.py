"""Predictions as a file: every reading that the network predicts, once a horizon, and what was expected of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gridsense import predictions
from gridsense.cli import run
from gridsense.detect import detect
from gridsense.errors import InputError
from gridsense.events import Event
from gridsense.pipeline import Output, Pipeline, Settings
from gridsense.predictions import SCHEMA, PredictionTable
from gridsense.sequence import load_model
from gridsense.sources import cut, open_source
from streams.align import AlignSettings
from streams.archives import write_parquet
from tests.reference.small_grid import RATE, START_NS, small_grid

MODEL = load_model()
SETTINGS = Settings(learn_s=25.0, align=AlignSettings(lateness_s=1.0), scorers=("sequence",), model=MODEL)


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []

    def take(self, output: Output) -> None:
        self.outputs.append(output)

    def close(self, lasting: Sequence[Event]) -> None:
        """Nothing to do."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Output], Path]:
    """Twenty seconds in which a PMU is silent for one, with what was expected of them."""
    folder = tmp_path_factory.mktemp("predictions")
    north = small_grid("north", 1, 3, 1, seconds=20, onset_s=15.0)
    gap = (north.time_ns >= START_NS + 10 * 10**9) & (north.time_ns < START_NS + 11 * 10**9)
    values = north.values.copy()
    values[gap, 1] = np.nan
    write_parquet(folder / "north.parquet", [replace(north, values=values)])
    kept, out = Kept(), folder / "out.parquet"
    sinks = [kept, PredictionTable(out, MODEL.spec)]
    detect(SETTINGS, [open_source(folder / "north.parquet")], None, sinks, lambda _: None)
    return kept.outputs, out


def test_a_row_for_each_reading_and_horizon(made: tuple[list[Output], Path]) -> None:
    outputs, path = made
    frame = pq.read_table(path).to_pandas()
    table = outputs[0].signals.table
    channels = sum(len(pmu.channels) for pmu in table.pmus)
    assert len(frame) == 20 * RATE * channels * len(MODEL.spec.horizons)
    keys = ["time", "pmu", "channel", "horizon_s"]
    assert not frame.duplicated(keys).any()
    assert frame["time"].is_monotonic_increasing
    assert set(frame["pmu"]) == {"north0", "north1", "north2"}
    assert dict(zip(frame["channel"], frame["unit"], strict=True)) == {
        "voltage magnitude V1": "pu",
        "voltage angle V1": "deg",
        "frequency": "Hz",
        "rocof": "Hz/s",
    }
    assert np.allclose(sorted(set(frame["horizon_s"])), [h / RATE for h in MODEL.spec.horizons])


def test_each_row_says_what_the_forecast_said_and_what_came(made: tuple[list[Output], Path]) -> None:
    outputs, path = made
    indexed = pq.read_table(path).to_pandas().set_index(["pmu", "channel", "horizon_s"]).sort_index()
    signals = [o.signals for o in outputs]
    forecasts = [o.scored.forecast for o in outputs if o.scored.forecast]
    words = {"frequency": "frequency", "rocof": "rocof"} | {
        f"voltage_{what}": f"voltage {what} V1" for what in ("magnitude", "angle")
    }
    for s, pmu in enumerate(signals[0].table.pmus):
        for c, channel in enumerate(pmu.channels):
            came = np.concatenate([b.values[:, s, c] for b in signals])
            good = np.concatenate([b.good[:, s, c] for b in signals])
            for k, horizon in enumerate(MODEL.spec.horizons):
                rows = indexed.loc[pmu.name, words[channel.quantity], np.float32(horizon / RATE)]
                expected = np.concatenate([f.expected[:, s, c, k] for f in forecasts])
                spread = np.concatenate([f.spread[:, s, c, k] for f in forecasts])
                np.testing.assert_array_equal(rows["observed"], np.where(good, came, np.nan))
                np.testing.assert_array_equal(rows["expected"], expected)
                np.testing.assert_allclose(rows["high"] - rows["expected"], 1.645 * spread, rtol=0.01, atol=1e-5)
                np.testing.assert_allclose(rows["expected"] - rows["low"], 1.645 * spread, rtol=0.01, atol=1e-5)


def test_what_is_not_known_is_null(made: tuple[list[Output], Path]) -> None:
    _, path = made
    table = pq.read_table(path)
    assert table.schema == SCHEMA
    for name in ("observed", "expected", "low", "high"):
        assert not np.isnan(table[name].drop_null().to_numpy()).any(), "null, not NaN"
    frame = table.to_pandas()
    since_s = (table["time"].cast(pa.int64()).to_numpy() - START_NS) / 1e9
    silent = (frame["pmu"] == "north1") & (since_s >= 10) & (since_s < 11)
    assert silent.sum() == RATE * 4 * len(MODEL.spec.horizons)
    assert frame["observed"][silent].isna().all()
    assert frame["expected"][since_s == 0].isna().all(), "nothing was predicted before the first frame"
    whole = frame[["observed", "expected", "low", "high"]].notna().all(axis=1)
    assert 0.8 < whole.mean() < 1


def test_rows_are_written_as_they_come(
    made: tuple[list[Output], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, path = made
    monkeypatch.setattr(predictions, "ROWS", 1000)
    table = PredictionTable(tmp_path / "small.parquet", MODEL.spec)
    for output in outputs:
        table.take(output)
        assert table._rows < 1000, "no more is held than that"
    table.close([])
    file = pq.ParquetFile(tmp_path / "small.parquet")
    assert file.num_row_groups > 10
    assert file.read().equals(pq.read_table(path))
    column = file.metadata.row_group(0).column(1)
    assert column.compression == "ZSTD"
    assert column.has_dictionary_page


def test_pmus_that_join_in_mid_stream_join_the_file(tmp_path: Path) -> None:
    north, south = small_grid("north", 1, 2, 1, seconds=8), small_grid("south", 5, 2, 2, seconds=8)
    pipeline, out = Pipeline(SETTINGS), tmp_path / "out.parquet"
    early = north.time_ns < START_NS + 4 * 10**9
    table = PredictionTable(out, MODEL.spec)
    for outputs in (
        pipeline.feed([("north", cut(north, early))]),
        pipeline.feed([("north", cut(north, ~early)), ("south", cut(south, ~early))]),
        pipeline.finish(),
    ):
        for output in outputs:
            table.take(output)
    table.close([])
    rows = pq.read_table(out)
    time_s, pmus = rows["time"].cast(pa.int64()).to_numpy() / 1e9, np.array(rows["pmu"].to_pylist())
    first = {str(pmu): time_s[pmus == pmu].min() - START_NS / 1e9 for pmu in np.unique(pmus)}
    assert set(first) == {"north0", "north1", "south0", "south1"}
    assert (first["north0"], first["north1"]) == (0, 0)
    assert first["south0"] == first["south1"] == pytest.approx(4, abs=2)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "north.parquet", tmp_path / "out.parquet"
    write_parquet(path, [small_grid("north", 1, 2, 1, seconds=6)])
    assert run(["detect", str(path), "--predictions", str(out)]) == 0
    assert pq.read_metadata(out).num_rows == 6 * RATE * 2 * 4 * len(MODEL.spec.horizons)
    assert run(["detect", str(path), "--predictions", str(tmp_path / "no" / "out.parquet")]) == 3
    assert "name a file that can be written" in capsys.readouterr().err


def test_without_a_forecast_there_is_nothing_to_write(tmp_path: Path) -> None:
    pipeline = Pipeline(replace(SETTINGS, scorers=("quadratic",)))
    (output, *_) = [*pipeline.feed([("north", small_grid("north", 1, 2, 1, seconds=4))]), *pipeline.finish()]
    with pytest.raises(InputError, match="for 30 frames a second"):
        PredictionTable(tmp_path / "out.parquet", MODEL.spec).take(output)
