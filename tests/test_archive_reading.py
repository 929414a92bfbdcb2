"""A folder of archives as one source: what it holds, its frames in order, and the events that its recording has."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridsense import detection
from gridsense.archiving import tidying
from gridsense.archiving.service import archive_once
from gridsense.archiving.writing import Archiver, Settings
from gridsense.commands.archive import archive
from gridsense.detect import detect
from gridsense.errors import UsageError
from gridsense.inspect import inspect
from gridsense.pipeline import Settings as PipelineSettings
from gridsense.sources import Source, open_source
from streams.archives import write_parquet
from streams.archives.folder import (
    POSITION,
    FolderFile,
    files_of,
    open_folder,
    partitions,
    read_in_order,
    superseded,
    written,
)
from streams.archives.parquet import take
from streams.block import FrameBatch
from streams.c37118.configuration import encode_configuration
from streams.errors import ArchiveError
from streams.log import FRAMES, Record
from streams.sqlite_log import open_log
from tests.reference.logged_grid import archived, configured, grid, in_turns, logged
from tests.reference.small_grid import START_NS, small_grid

ROOT = Path(__file__).parents[1]
DAY_NS = 86_400 * 10**9


def logged_to(path: Path, records: list[Record]) -> Path:
    log = open_log(path)
    log.append(FRAMES, records)
    log.close()
    return path


def folder_of(folder: Path, records: list[Record], *, span_s: float = 10.0, join: bool = False) -> Path:
    log = open_log(logged_to(folder.with_suffix(".log"), records))
    tidy = tidying.Settings(0.0 if join else 1e12, least_files=2)
    archive_once([Archiver(log, Settings(folder, span_s), lambda _: None)], tidy, START_NS + 2 * DAY_NS, lambda _: None)
    log.close()
    return folder


def events_of(sources: list[Source]) -> list[tuple[str, str]]:
    settings = PipelineSettings(source="grid", learn_s=40, detection=detection.Settings())
    result = detect(settings, sources, None, [], lambda _: None)
    return [(event.id, event.sentence) for event in result.events]


@pytest.fixture(scope="module")
def event(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[str, str]], list[Record]]:
    """Events of a recording as captured, and the recording as records of the log."""
    folder = tmp_path_factory.mktemp("event")
    grids = [small_grid("east", 1, 2, 1), small_grid("west", 11, 3, 2)]
    paths = []
    for made in grids:
        configuration, frames = configured(made)
        paths.append(folder / f"{made.table.pmus[0].source}.c37118")
        paths[-1].write_bytes(b"".join(encode_configuration(configuration)) + frames)
    return events_of([open_source(p) for p in paths]), in_turns(*map(logged, grids))


@pytest.mark.parametrize("join", [False, True])
def test_the_events_of_a_folder_are_those_of_the_recording(
    tmp_path: Path, event: tuple[list[tuple[str, str]], list[Record]], *, join: bool
) -> None:
    expected, records = event
    assert expected
    folder = folder_of(tmp_path / "archive", records, join=join)
    files = sum(len(written(p)) for p in partitions(folder))
    assert files == 2 if join else files > 10
    assert events_of([open_source(folder)]) == expected
    assert events_of([open_source(folder / "date=2026-03-01")]) == expected


def test_late_and_shuffled_entries_give_the_same_events(
    tmp_path: Path, event: tuple[list[tuple[str, str]], list[Record]]
) -> None:
    expected, records = event
    late = [r for n, r in enumerate(records) if n < 2 or n % 40]
    late += [r._replace(time_ns=records[-1].time_ns) for n, r in enumerate(records) if n >= 2 and not n % 40]
    assert events_of([open_source(folder_of(tmp_path / "archive", late))]) == expected


def test_inspect_says_what_a_folder_holds(tmp_path: Path) -> None:
    sources = [
        grid("east", 1, 2, seconds=4, after_s=43_198.0),
        grid("west", 11, 1, seconds=4, after_s=43_198.0),
    ]
    folder = folder_of(tmp_path / "archive", in_turns(*map(logged, sources)), span_s=1.0)
    report = inspect(folder)
    assert (report.format, report.frames_decoded, report.rate_hz) == ("folder", 240, 30.0)
    assert (report.first_time, report.last_time) == ("2026-03-01T23:59:58.000000Z", "2026-03-02T00:00:01.966667Z")
    assert [p.station for p in report.pmus] == ["east0", "east1", "west0"]
    assert report.notes[0] == "2 days, 2026-03-01 to 2026-03-02"
    day = inspect(folder / "date=2026-03-02")
    assert day.frames_decoded == 120
    assert inspect(folder / "date=2026-03-02/source=west").frames_decoded == 60
    with pytest.raises(UsageError, match="tables"):
        inspect(folder, tmp_path / "map.csv")
    with pytest.raises(UsageError, match="tables"):
        open_source(folder, tmp_path / "map.csv")


def test_a_folder_without_archives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no archive"):
        open_folder(tmp_path)


def test_what_is_not_committed_does_not_count(tmp_path: Path) -> None:
    east = grid("east", 1, 2, seconds=4)
    folder = folder_of(tmp_path / "archive", logged(east), span_s=1.0)
    (folder / POSITION).write_text('{"next": 5}')
    seen = archived(folder)["east"]
    assert 0 < len(seen) < len(east.time_ns)
    (folder / POSITION).unlink()
    assert len(archived(folder)["east"]) == len(east.time_ns)


def test_a_file_that_goes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "archive", logged(grid("east", 1, 2, seconds=4)), span_s=1.0)
    paths = [f.path for f in files_of(partitions(folder)[0], None)]
    paths[1].unlink()
    with pytest.raises(ArchiveError, match="read it again"):
        list(read_in_order(paths))


NAMES = st.builds(
    lambda first, size, kind: (first, first + size, kind), *[st.integers(0, 20)] * 2, st.sampled_from("ab")
)


@given(st.lists(NAMES, unique=True))
def test_a_file_within_another_of_its_kind_does_not_count(names: list[tuple[int, int, str]]) -> None:
    files = [FolderFile(Path(f"{n}"), *n) for n in names]
    files.sort(key=lambda f: (f.first, -f.last, f.kind))
    slow = [
        f
        for f in files
        if any(g is not f and g.kind == f.kind and g.first <= f.first and f.last <= g.last for g in files)
    ]
    assert superseded(files) == slow


@given(
    parts=st.lists(st.lists(st.integers(0, 89), min_size=1, max_size=30), min_size=1, max_size=5),
    rows=st.integers(1, 40),
)
@settings(max_examples=30, deadline=None)
def test_files_that_overlap_are_read_in_order_none_left_out_none_twice(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], rows: int
) -> None:
    folder = tmp_path_factory.mktemp("overlap")
    whole = grid("east", 1, 1, seconds=3)
    paths = []
    for n, places in enumerate(parts):
        paths.append(folder / f"{n}.parquet")
        write_parquet(paths[-1], take(whole, np.sort(places)))
    got: list[FrameBatch] = list(read_in_order(paths, rows=rows))
    times = np.concatenate([batch.time_ns for batch in got])
    values = np.concatenate([batch.values for batch in got])
    expected = np.sort(np.concatenate([np.asarray(places) for places in parts]))
    assert (times == whole.time_ns[expected]).all()
    assert (values == whole.values[expected]).all()


def told(log: Path) -> Path:
    """Write a configuration beside a log."""
    path = log.with_name("gridsense.toml")
    path.write_text(f'[log]\nurl = "sqlite:{log.name}"\n[archive]\nfile_span = "10min"\n[metrics]\narchive_port = 0\n')
    return path


def test_the_command_archives_once_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    east = grid("east", 1, 2, seconds=4)
    log = logged_to(tmp_path / "log", logged(east))
    archive(config=told(log), once=True)
    said = capsys.readouterr().out
    assert said.startswith("120 frames in 1 files, ")
    assert "whole up to offset 9 of the log" in said
    archive(config=told(log), once=True)
    assert capsys.readouterr().out.startswith("0 frames in 0 files, 0 bytes\n")
    assert (archived(tmp_path / "archive")["east"] == east.time_ns).all()


def test_the_command_refuses_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such log"):
        archive(config=told(tmp_path / "none"))
    with pytest.raises(UsageError, match="retention"):
        archive(config=told(tmp_path / "none"), overrides=("archive.retention=-1",))


CHILD = """
import sys
from pathlib import Path
from gridsense.commands.archive import archive

archive(config=Path(sys.argv[1]), overrides=("archive.file_span=1s",))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_service_stops_whole_when_it_is_told_to(tmp_path: Path, number: signal.Signals) -> None:
    east = grid("east", 1, 2, seconds=4)
    log, folder = logged_to(tmp_path / "log", logged(east)), tmp_path / "archive"
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(told(log))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 60
        while not (folder.exists() and partitions(folder)):  # until a file is being written: it is in service
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(number)
        said, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert said.startswith("120 frames in ")
    assert (archived(folder)["east"] == east.time_ns).all()
