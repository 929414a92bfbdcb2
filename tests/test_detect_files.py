"""`gridsense detect` on files: events as CloudEvents, scores, pictures, a store, and clear refusals."""

from __future__ import annotations

import json
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gridsense.cli import run
from gridsense.detect import seconds
from gridsense.encoding import made_encoder
from gridsense.errors import UsageError
from streams.archives import write_parquet
from streams.c37118.configuration import encode_configuration
from tests.reference.small_grid import small_grid

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "real"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two sources of one grid, one file each."""
    folder = tmp_path_factory.mktemp("grid")
    north, south = folder / "north.parquet", folder / "south.parquet"
    write_parquet(north, [small_grid("north", 1, 4, 1)])
    write_parquet(south, [small_grid("south", 5, 3, 2)])
    return north, south


def test_two_files_side_by_side_give_one_grid_event(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "scores.parquet"
    pictures, store = tmp_path / "pictures", tmp_path / "events.sqlite"
    options = ["--learn", "25s", "--scores", str(out), "--plot", str(pictures), "--store", str(store)]
    assert run(["detect", *map(str, files), *options]) == 0
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    event = json.loads(line)
    assert event["specversion"] == "1.0"
    data = event["data"]
    assert set(data) >= {
        "onset", "end", "cause", "kind", "first_pmu", "pmus", "minus_ln_p", "scorer", "contributions", "sentence",
    }  # fmt: skip
    assert (data["cause"], data["kind"], len(data["pmus"])) == ("grid", "fault", 7)
    assert data["onset"].startswith("2026-03-01T12:01:0") or data["onset"].startswith("2026-03-01T12:00:59")
    assert {"pmu", "channel", "descriptor", "value"} == set(data["contributions"][0])
    assert "times real time" in printed.err
    scores = pq.read_table(out)
    assert {"time", "grid.fast", "north0.fast", "south2.60s"} <= set(scores.column_names)
    assert {"grid.sequence", "north0.sequence", "south2.sequence_1s"} <= set(scores.column_names)
    learned = scores["grid.sequence"].to_numpy()[-50:]
    assert np.isfinite(learned).all(), "the grid's score is there also while another scorer's event lasts"
    assert np.nanmax(scores["grid.sequence"].to_numpy()) > 14
    grid = scores["grid.fast"].to_numpy()
    assert np.nanmax(grid) == pytest.approx(data["minus_ln_p"], rel=1e-3)
    (picture,) = pictures.iterdir()
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with sqlite3.connect(store) as db:
        rows = db.execute("SELECT cause, kind FROM event").fetchall()
    db.close()
    assert rows == [("grid", "fault")]


def test_two_concentrators_in_one_byte_stream_stand_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    octets = b""
    for code, batch in enumerate((small_grid("north", 1, 4, 1), small_grid("south", 5, 3, 2)), 101):
        encoder = made_encoder(batch.table, batch.rate_hz, code)
        octets += b"".join(encode_configuration(encoder.configuration)) + encoder.encode(batch)
    stream = tmp_path / "stream.c37118"
    stream.write_bytes(octets)
    assert run(["detect", str(stream), "--learn", "25s"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    data = json.loads(line)["data"]
    assert (data["cause"], data["kind"], len(data["pmus"])) == ("grid", "fault", 7)


def test_a_reference_of_quiet_time_replaces_learning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet, event = tmp_path / "quiet.parquet", tmp_path / "event.parquet"
    write_parquet(quiet, [small_grid("north", 1, 4, 1, onset_s=1e9)])
    write_parquet(event, [small_grid("north", 1, 4, 3, seconds=20, onset_s=8.0)])
    assert run(["detect", str(event), "--reference", str(quiet)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["data"]["cause"] == "grid"


def test_a_reference_of_other_pmus_is_refused_and_of_some_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet, other, both = tmp_path / "quiet.parquet", tmp_path / "other.parquet", tmp_path / "both.parquet"
    write_parquet(quiet, [small_grid("north", 1, 4, 1, onset_s=1e9)])
    write_parquet(other, [small_grid("south", 9, 3, 3, seconds=20, onset_s=8.0)])
    write_parquet(both, [small_grid("north", 1, 6, 3, seconds=20, onset_s=8.0)])
    assert run(["detect", str(other), "--reference", str(quiet)]) == 3
    assert "it knows nothing of south0, south1, south2" in capsys.readouterr().err
    assert run(["detect", str(both), "--reference", str(quiet)]) == 0
    printed = capsys.readouterr()
    assert "knows nothing of 2 PMUs (north4, north5)" in printed.err
    (line,) = printed.out.splitlines()
    assert set(json.loads(line)["data"]["pmus"]) == {"north0", "north1", "north2", "north3"}


def test_too_little_reference_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = tmp_path / "short.parquet"
    write_parquet(short, [small_grid("north", 1, 4, 1, seconds=20, onset_s=8.0)])
    assert run(["detect", str(short)]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "scorer fast: learning" in printed.err
    assert run(["detect", str(short), "--reference", str(short)]) == 3
    assert "reference is too short" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["nowhere.pcap"], 3, "nowhere.pcap"),
        ([], 2, "gridsense --help"),
        (["nowhere.pcap", "--false-alarms-per-day", "0"], 2, "must be above 0"),
        (["nowhere.pcap", "--learn", "soon"], 2, "write 40s"),
        (["nowhere.pcap", "--scorers", "quadratic,lstm"], 2, "'lstm' is no scorer; there are quadratic, sequence"),
        (["nowhere.pcap", "--scorers", "quadratic", "--predictions", "p.parquet"], 2, "add sequence"),
        (["nowhere.pcap", "--scorers", "quadratic", "--model", "m"], 2, "add sequence"),
        (["nowhere.pcap", "--model", "nowhere"], 3, "nowhere is no model"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["detect", *options]) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("scorers", "columns"),
    [
        ("sequence", {"sequence", "sequence_1s"}),
        ("quadratic", {"fast", "10s", "60s"}),
        ("sequence, quadratic", {"fast", "10s", "60s", "sequence", "sequence_1s"}),
    ],
)
def test_each_scorer_finds_the_disturbance_alone(
    files: tuple[Path, Path], scorers: str, columns: set[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "scores.parquet"
    options = ["--learn", "25s", "--scorers", scorers, "--scores", str(out)]
    assert run(["detect", *map(str, files), *options]) == 0
    data = [json.loads(line)["data"] for line in capsys.readouterr().out.splitlines()]
    assert [len(d["pmus"]) for d in data if d["cause"] == "grid"] == [7]
    names = {name.removeprefix("grid.") for name in pq.read_schema(out).names if name.startswith("grid.")}
    assert names == columns


def test_at_another_rate_the_quadratic_fit_scores_alone_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, path = small_grid("north", 1, 4, 1, seconds=50, onset_s=40.0), tmp_path / "slow.parquet"
    time_ns = batch.time_ns[0] + np.round(np.arange(len(batch.time_ns)) * 1e9 / 25).astype(np.int64)
    write_parquet(path, [replace(batch, rate_hz=25.0, time_ns=time_ns, arrival_ns=time_ns)])
    told = "the sequence model is for 30 frames a second, and this stream has 25"
    assert run(["detect", str(path), "--learn", "25s"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count(f"{told}: the quadratic fit scores alone") == 1
    assert [json.loads(line)["data"]["cause"] for line in printed.out.splitlines()] == ["grid"]
    assert run(["detect", str(path), "--scorers", "sequence"]) == 3
    assert f"{told}; train one for this rate" in capsys.readouterr().err
    assert run(["detect", str(path), "--predictions", str(tmp_path / "p.parquet")]) == 3
    assert f"{told}; leave them out" in capsys.readouterr().err


def test_durations() -> None:
    assert [seconds(t) for t in ("40s", "2min", "1h", "90")] == [40, 120, 3600, 90]
    with pytest.raises(UsageError, match="no duration"):
        seconds("-3s")


def test_a_picture_without_matplotlib_is_refused_with_the_remedy(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(["detect", *map(str, files), "--learn", "25s", "--plot", str(tmp_path / "p")]) == 2
    assert 'pip install "gridsense-pmu[plot]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["shelby/Sample1344.PmuCapture", *(f"c37118_pcaps/C37.118_{n}.pcap" for n in (
        "1PMU_TCP", "1PMU_UDP", "2PMUsInSync_TCP", "4in1PMU_TCP"))]
)  # fmt: skip
def test_real_captures_have_no_grid_event(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not there: real captures are not part of the project")
    assert run(["detect", str(path), "--learn", "10s"]) == 0
    causes = [json.loads(line)["data"]["cause"] for line in capsys.readouterr().out.splitlines()]
    assert "grid" not in causes
