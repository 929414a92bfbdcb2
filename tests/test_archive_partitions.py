"""A log of several partitions into a folder: none disturbs another, and the folder reads as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from gridsense import detection
from gridsense.archiving import service, tidying
from gridsense.archiving.service import archive_once, follow
from gridsense.archiving.writing import Archiver, Settings, Step
from gridsense.detect import detect
from gridsense.inspect import inspect
from gridsense.pipeline import Settings as PipelineSettings
from gridsense.sources import Source, open_source
from streams.archives.folder import POSITION, open_folder, partitions, share_of
from streams.c37118.configuration import encode_configuration
from streams.errors import UnreachableError
from streams.log import FRAMES, Log, Reading, Record, region_of
from streams.sqlite_log import SqliteLog, open_log
from tests.reference.logged_grid import archived, configured, framed, grid, in_turns, logged
from tests.reference.small_grid import START_NS, small_grid

ROOT = Path(__file__).parents[1]
DAY_NS = 86_400 * 10**9
LATER_NS = START_NS + 3 * DAY_NS
TIDY = tidying.Settings(compact_after_s=0.0, least_files=2)
NO_TIDYING = tidying.Settings(compact_after_s=1e12)
NAMES = ("north/east", "north/west", "south/east", "east")


def nothing(_: Step) -> None:
    """Follow nothing."""


def of_region(key: str, partitions_: int) -> int:
    return ("", "north", "south").index(region_of(key)) % partitions_


@contextmanager
def logs_of(folder: Path, records: list[Record], count: int) -> Iterator[list[SqliteLog]]:
    """Partitions: a log each, every key in the one of its region."""
    logs = [open_log(folder / f"log{n}") for n in range(count)]
    try:
        for n, log in enumerate(logs):
            mine = [r for r in records if of_region(r.key, count) == n]
            if mine:
                log.append(FRAMES, mine)
        yield logs
    finally:
        for log in logs:
            log.close()


def archivers_of(logs: list[SqliteLog], folder: Path, span_s: float = 1.0) -> list[Archiver]:
    return [Archiver(log, Settings(share_of(folder, n), span_s), nothing) for n, log in enumerate(logs)]


def four_sources(seconds: int = 6) -> tuple[dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]], list[Record]]:
    """By key, the times of its frames; and the records. Two keys differ by their region alone."""
    grids = {name: grid(name, 10 * n + 1, 2, seconds=seconds) for n, name in enumerate(NAMES)}
    return {name: it.time_ns for name, it in grids.items()}, in_turns(*map(logged, grids.values()))


def test_each_partition_keeps_its_own_position_and_no_two_clash(tmp_path: Path) -> None:
    times, records = four_sources()
    folder = tmp_path / "archive"
    with logs_of(tmp_path, records, 3) as logs:
        shares = {n: [key for key in NAMES if of_region(key, 3) == n] for n in range(3)}
        archive_once(archivers_of(logs, folder), TIDY, LATER_NS, nothing)
        for n, log in enumerate(logs):
            position = json.loads((share_of(folder, n) / POSITION).read_bytes())["next"]
            assert position == log.extent(FRAMES).next
            assert log.position(FRAMES, "archive") == position > 0
            found = {p.name.removeprefix("source=").replace("%2F", "/") for p in partitions(share_of(folder, n))}
            assert found == set(shares[n])
    got = archived(folder)
    assert got.keys() == set(NAMES)
    for name, expected in times.items():
        assert (got[name] == expected).all()
    whole = open_folder(folder)
    assert whole.positions.keys() == {f"partition={n}" for n in range(3)}
    notes = inspect(folder).notes
    assert sum("of partition" in note for note in notes) == 3


def test_a_folder_of_one_log_goes_on_with_partitions_beside_it(tmp_path: Path) -> None:
    """Who moves from the embedded log to Kafka keeps his archive."""
    before, after = grid("east", 1, 2, seconds=2), grid("north/east", 1, 2, seconds=2, after_s=2)
    folder = tmp_path / "archive"
    with logs_of(tmp_path, logged(before), 1) as (log,):
        archive_once([Archiver(log, Settings(folder), nothing)], NO_TIDYING, START_NS, nothing)
    (tmp_path / "log0").unlink()
    with logs_of(tmp_path, logged(after), 1) as logs:
        archive_once(archivers_of(logs, folder), NO_TIDYING, START_NS, nothing)
    got = archived(folder)
    assert (got["east"] == before.time_ns).all()
    assert (got["north/east"] == after.time_ns).all()


def test_poison_is_kept_raw_and_stops_nobody(tmp_path: Path) -> None:
    times, records = four_sources(2)
    frame = framed(configured(grid("north/east", 1, 2, seconds=1))[1])[0]
    damaged = frame[:-1] + bytes([frame[-1] ^ 1])
    huge = bytes(range(256)) * 40_000
    at_ns = records[len(records) // 2].time_ns
    poison = [
        Record(at_ns, "north/east", b""),
        Record(at_ns, "north/nobody", b"garbage"),
        Record(at_ns, "north/east", damaged),
        Record(at_ns, "north/huge", huge),
    ]
    marks = [Record(at_ns, "north/", b""), Record(at_ns, "", b"")]
    with logs_of(tmp_path, [*records, *poison, *marks], 2) as logs:
        archivers = archivers_of(logs, tmp_path / "archive", 3600.0)
        archive_once(archivers, NO_TIDYING, START_NS, nothing)
    kept = [
        (path.name.rsplit("-", 2)[0], path.read_bytes())
        for n in range(2)
        for path in sorted((share_of(tmp_path / "archive", n) / "undecoded").glob("*"))
    ]
    assert kept == [("north%2Feast", damaged), ("north%2Fhuge", huge), ("north%2Fnobody", b"garbage")]
    assert sum(it.totals.undecoded for it in archivers) == len(poison)
    got = archived(tmp_path / "archive")
    assert all((got[name] == expected).all() for name, expected in times.items())


def test_the_events_of_partitions_are_those_of_the_recording(tmp_path: Path) -> None:
    grids = [small_grid("north/east", 1, 2, 1), small_grid("west", 11, 3, 2)]
    paths = []
    for n, made in enumerate(grids):
        configuration, frames = configured(made)
        paths.append(tmp_path / f"{n}.c37118")
        paths[-1].write_bytes(b"".join(encode_configuration(configuration)) + frames)
    folder = tmp_path / "archive"
    with logs_of(tmp_path, in_turns(*map(logged, grids)), 2) as logs:
        assert all(log.extent(FRAMES).next for log in logs)
        archive_once(archivers_of(logs, folder, 10.0), NO_TIDYING, START_NS, nothing)
    expected = events_of([open_source(path) for path in paths])
    assert expected
    assert events_of([open_source(folder)]) == expected
    days = [open_source(share_of(folder, n) / "date=2026-03-01") for n in range(2)]
    assert events_of(days) == expected


def events_of(sources: list[Source]) -> list[tuple[str, str]]:
    settings = PipelineSettings(source="grid", learn_s=40, detection=detection.Settings())
    result = detect(settings, sources, None, [], lambda _: None)
    return [(event.id, event.sentence) for event in result.events]


class Away:
    """A log whose server is away for some reads, as data."""

    def __init__(self, log: SqliteLog, away: set[int]) -> None:
        self._log, self._away, self._reads = log, away, 0

    def read(self, topic: str, offset: int, limit: int = 1 << 12) -> Reading:
        self._reads += 1
        if self._reads in self._away:
            raise UnreachableError("127.0.0.1:1: no answer")
        return self._log.read(topic, offset, limit)

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)


def test_a_log_that_is_away_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times, records = four_sources()
    waits: list[float] = []

    def stopped(wait_s: float) -> bool:
        waits.append(wait_s)
        return wait_s == service.POLL_S

    with logs_of(tmp_path, records, 2) as logs:
        away: list[Log] = [Away(log, {2, 3, 5 + n}) for n, log in enumerate(logs)]  # type: ignore[list-item]  # a port
        settings = [Settings(share_of(tmp_path / "archive", n), 1.0) for n in range(2)]
        archivers = [Archiver(log, cut, nothing) for log, cut in zip(away, settings, strict=True)]
        follow(archivers, NO_TIDYING, stopped, lambda: START_NS, nothing)
    assert waits.count(service.RETRY_S) == 4
    assert "no answer" in caplog.text
    got = archived(tmp_path / "archive")
    assert all((got[name] == expected).all() for name, expected in times.items())


CHILD = """
import sys
from pathlib import Path
from gridsense.archiving import tidying
from gridsense.archiving.service import archive_once
from gridsense.archiving.writing import Archiver, Settings
from streams.archives.folder import share_of
from streams.sqlite_log import open_log

def report(step):
    sys.stdout.write("x")
    sys.stdout.flush()

folder = Path(sys.argv[1])
archivers = [
    Archiver(open_log(folder / f"log{n}"), Settings(share_of(folder / "archive", n), 1.0), report) for n in range(2)
]
archive_once(archivers, tidying.Settings(0.0, least_files=2), int(sys.argv[2]), report)
"""


def test_killed_again_and_again_each_frame_of_each_partition_is_there_once(tmp_path: Path) -> None:
    times, records = four_sources()
    with logs_of(tmp_path, records, 2):
        pass
    for steps in (1, 3, 6, 9, 12, 16):
        command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path), str(LATER_NS)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=os.environ) as child:
            assert child.stdout is not None
            child.stdout.read(steps)
            child.send_signal(signal.SIGKILL)
        assert child.returncode in (-signal.SIGKILL, 0)
    with logs_of(tmp_path, [], 2) as logs:
        archive_once(archivers_of(logs, tmp_path / "archive"), TIDY, LATER_NS, nothing)
    got = archived(tmp_path / "archive")
    assert all((got[name] == expected).all() for name, expected in times.items())
