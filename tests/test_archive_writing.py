"""The log into a folder: each frame in exactly one file, whatever stops the writer and wherever."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gridsense.archiving import tidying
from gridsense.archiving.service import archive_once, follow
from gridsense.archiving.writing import Archiver, Settings, Step
from gridsense.encoding import stored_encoder
from streams.archives.folder import POSITION, files_of, open_folder, partitions, read_chain, written
from streams.block import FrameBatch
from streams.c37118.configuration import encode_configuration
from streams.c37118.frame import FrameType, wrap
from streams.errors import ArchiveError
from streams.log import CONFIGURATIONS, FRAMES, Entry, Extent, Lost, Reading, Record, Retention
from streams.sqlite_log import SqliteLog, open_log
from tests.reference.logged_grid import DELAY_NS, archived, configured, framed, grid, in_turns, logged
from tests.reference.small_grid import START_NS

ROOT = Path(__file__).parents[1]
DAY_S = 86_400
NOON_S = DAY_S // 2
NEXT_DAY_NS = START_NS + 2 * DAY_S * 10**9
NO_TIDYING = tidying.Settings(compact_after_s=1e12)


def nothing(_: Step) -> None:
    """Follow nothing."""


@contextmanager
def log_of(path: Path, records: Sequence[Record], known: Sequence[Record] = ()) -> Iterator[SqliteLog]:
    log = open_log(path)
    try:
        if records:
            log.append(FRAMES, records)
        if known:
            log.append(CONFIGURATIONS, known)
        yield log
    finally:
        log.close()


def archive(
    log: SqliteLog,
    folder: Path,
    *,
    span_s: float = 2.0,
    batch_bytes: int = 1 << 25,
    tidy: tidying.Settings = NO_TIDYING,
    now_ns: int = START_NS,
    report: Callable[[Step], None] = nothing,
) -> Archiver:
    archiver = Archiver(log, Settings(folder, span_s, batch_bytes), report)
    archive_once([archiver], tidy, now_ns, report)
    return archiver


def two_sources(seconds: int = 8) -> tuple[FrameBatch, FrameBatch, list[Record]]:
    """Two sources that pass midnight halfway."""
    east, west = (
        grid(name, first, pmus, seconds=seconds, after_s=NOON_S - seconds / 2)
        for name, first, pmus in (("east", 1, 2), ("west", 11, 1))
    )
    return east, west, in_turns(logged(east), logged(west, 7))


def test_every_value_comes_back_bit_for_bit_by_day_and_source(tmp_path: Path) -> None:
    east, west, records = two_sources()
    folder = tmp_path / "archive"
    with log_of(tmp_path / "log", records) as log:
        done = archive(log, folder)
        assert log.position(FRAMES, "archive") == done.position == log.extent(FRAMES).next
    assert [str(p.relative_to(folder)) for p in partitions(folder)] == [
        "date=2026-03-01/source=east",
        "date=2026-03-01/source=west",
        "date=2026-03-02/source=east",
        "date=2026-03-02/source=west",
    ]
    assert done.totals.frames == len(east.time_ns) + len(west.time_ns)
    for sent, chain in zip((east, west), open_folder(folder).chains, strict=True):
        configuration, frames = configured(sent)
        source = sent.table.pmus[0].source
        encoder = stored_encoder(chain.description.configurations[source], source)
        assert encode_configuration(encoder.configuration) == encode_configuration(configuration)
        got = list(read_chain(chain, dtype=np.float64))
        assert b"".join(encoder.encode(batch) for batch in got) == frames
        arrival = np.concatenate([batch.arrival_ns for batch in got])
        each = 15 if source == "east" else 7
        ends = np.minimum(np.arange(len(arrival)) // each * each + each, len(arrival)) - 1
        assert (arrival == sent.time_ns[ends] + DELAY_NS).all()


def test_a_file_spans_so_much_time_and_so_many_bytes_of_the_log(tmp_path: Path) -> None:
    _, west, _ = two_sources()
    records = logged(west, 3)
    with log_of(tmp_path / "log", records) as log:
        by_time = archive(log, tmp_path / "time", span_s=2.0)
        by_bytes = archive(log, tmp_path / "bytes", span_s=1e6, batch_bytes=1000)
    assert by_time.totals.batches == 5  # 8 s that do not begin on an even second of arrival
    for partition in partitions(tmp_path / "bytes"):
        for file in files_of(partition, None):
            covered = records[file.first : file.last + 1]
            assert sum(len(r.value) for r in covered) <= 1000
    assert by_bytes.totals.batches > 5
    assert len(archived(tmp_path / "bytes")["west"]) == len(west.time_ns)


def test_late_frames_of_yesterday_are_a_file_in_yesterday(tmp_path: Path) -> None:
    _, west, _ = two_sources()
    records = logged(west)
    late = records.pop(3)
    newest = records[-1].time_ns
    with log_of(tmp_path / "log", [*records, late._replace(time_ns=newest)]) as log:
        archive(log, tmp_path / "archive")
    got = archived(tmp_path / "archive")["west"]
    assert (got == west.time_ns).all()  # in order of event time again


def test_a_changed_configuration_begins_a_new_file(tmp_path: Path) -> None:
    east = grid("east", 1, 2, seconds=4)
    wider = grid("east", 1, 3, seconds=4, after_s=4)
    with log_of(tmp_path / "log", [*logged(east), *logged(wider)]) as log:
        archive(log, tmp_path / "archive", span_s=3600)
    chains = open_folder(tmp_path / "archive").chains
    assert [len(c.description.table.pmus) for c in chains] == [2, 3]
    assert [sum(len(b.time_ns) for b in read_chain(c)) for c in chains] == [120, 120]


def test_a_batch_begins_under_the_configuration_of_the_one_before(tmp_path: Path) -> None:
    east = grid("east", 1, 2, seconds=4)
    records = logged(east)
    with log_of(tmp_path / "log", records[:3]) as log:
        archive(log, tmp_path / "archive")
        log.append(FRAMES, records[3:])
        again = archive(log, tmp_path / "archive")
    assert again.totals.undecoded == 0
    assert (archived(tmp_path / "archive")["east"] == east.time_ns).all()


def test_the_compacted_topic_serves_sources_that_have_shown_no_configuration(tmp_path: Path) -> None:
    east = grid("east", 1, 2, seconds=4)
    head, *rest = logged(east)
    with log_of(tmp_path / "log", rest, [head]) as log:
        done = archive(log, tmp_path / "archive")
    assert done.totals.undecoded == 0
    assert (archived(tmp_path / "archive")["east"] == east.time_ns).all()


def test_a_configuration_once_used_is_not_replaced_by_one_that_came_later(tmp_path: Path) -> None:
    head, *rest = logged(grid("east", 1, 2, seconds=4))
    other, *_ = logged(grid("east", 5, 2, seconds=1))  # as long, of other devices
    with log_of(tmp_path / "log", rest[:3], [head]) as log:
        archive(log, tmp_path / "archive")
        log.append(CONFIGURATIONS, [other])
        log.append(FRAMES, rest[3:])
        archive(log, tmp_path / "archive")
    (chain,) = open_folder(tmp_path / "archive").chains
    assert [p.id_code for p in chain.description.table.pmus] == [1, 2]


def test_arrivals_are_kept_where_the_first_ones_are_the_time_itself(tmp_path: Path) -> None:
    east = grid("east", 1, 2, seconds=1)
    head, first, *rest = logged(east, 1)
    with log_of(tmp_path / "log", [head, first._replace(time_ns=int(east.time_ns[0])), *rest]) as log:
        archive(log, tmp_path / "archive", span_s=3600.0)
    (chain,) = open_folder(tmp_path / "archive").chains
    arrival_ns = np.concatenate([batch.arrival_ns for batch in read_chain(chain)])
    assert (arrival_ns - east.time_ns).tolist() == [0] + 29 * [DELAY_NS]


def test_what_cannot_be_decoded_is_kept_raw(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    east = grid("east", 1, 2, seconds=1)
    _, frames = configured(east)
    one, two, *_ = framed(frames)
    damaged = two[:20] + bytes([two[20] ^ 1]) + two[21:]
    torn = [Record(START_NS, "east", one[:-3]), Record(START_NS, "", b"no frame at all")]
    records = [Record(START_NS, "stranger", one), *torn, *logged(east), Record(START_NS, "east", damaged + one)]
    with log_of(tmp_path / "log", records) as log:
        done = archive(log, tmp_path / "archive")
    kept = {p.name.partition("-")[0]: p.read_bytes() for p in (tmp_path / "archive/undecoded").iterdir()}
    assert kept == {"stranger": one, "east": one[:-3] + damaged, "%": b"no frame at all"}
    assert done.totals.undecoded == 4
    assert done.totals.frames == 31
    assert "could not be decoded" in caplog.text


def test_headers_and_commands_are_said(tmp_path: Path) -> None:
    east = grid("east", 1, 2, seconds=1)
    header = wrap(FrameType.HEADER, 7, configured(east)[0].stamp, b"hello")
    with log_of(tmp_path / "log", [*logged(east), Record(START_NS, "east", header)]) as log:
        done = archive(log, tmp_path / "archive")
    assert (done.totals.others, done.totals.frames, done.totals.undecoded) == (1, 30, 0)


def test_a_repeated_configuration_changes_nothing(tmp_path: Path) -> None:
    east = grid("east", 1, 2, seconds=4)
    configuration, _ = configured(east)
    again = b"".join(encode_configuration(replace(configuration, stamp=replace(configuration.stamp, soc=99))))
    head, *rest = logged(east)
    with log_of(tmp_path / "log", [head, *rest[:4], Record(rest[4].time_ns, "east", again), *rest[4:]]) as log:
        done = archive(log, tmp_path / "archive", span_s=3600)
    assert done.totals.files == 1
    assert done.totals.frames == 120


def test_names_of_sources_are_safe_and_come_back(tmp_path: Path) -> None:
    names = ["../up", "a/b", ".hidden", "Süd 1", "x" * 300, "-1-2-00000000"]
    records = logged(grid("east", 1, 1, seconds=1))
    with log_of(tmp_path / "log", [r._replace(key=name) for r in records for name in names]) as log:
        archive(log, tmp_path / "archive")
    assert {p.name for p in tmp_path.iterdir()} >= {"archive"}
    assert archived(tmp_path / "archive").keys() == set(names)
    inside = {p.parent.parent.parent for p in tmp_path.rglob("*.parquet")}
    assert inside == {tmp_path / "archive"}


class Gaping:
    """A log that has lost some entries, as data."""

    def __init__(self, log: SqliteLog, lost: Lost) -> None:
        self._log, self._lost = log, lost

    def read(self, topic: str, offset: int, limit: int = 1 << 12) -> Reading:
        reading = self._log.read(topic, offset, limit)
        entries = [e for e in reading.entries if not self._lost.first <= e.offset <= self._lost.last]
        hit = offset <= self._lost.first < reading.next
        return Reading(entries, max(reading.next, self._lost.last + 1) if hit else reading.next, (self._lost,) * hit)

    def append(self, topic: str, records: Sequence[Record]) -> int:
        return self._log.append(topic, records)

    def latest(self, topic: str) -> dict[str, Entry]:
        return self._log.latest(topic)

    def extent(self, topic: str) -> Extent:
        return self._log.extent(topic)

    def commit(self, topic: str, reader: str, offset: int) -> None:
        self._log.commit(topic, reader, offset)

    def position(self, topic: str, reader: str) -> int | None:
        return self._log.position(topic, reader)

    def retain(self, topic: str, retention: Retention) -> int:
        return self._log.retain(topic, retention)

    def close(self) -> None:
        self._log.close()


def test_what_the_log_lost_is_listed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    east, _, _ = two_sources()
    records = logged(east)
    with log_of(tmp_path / "log", records) as log:
        for stop in (*range(1, 9), 0):
            count = Stop(stop)
            archiver = Archiver(Gaping(log, Lost(3, 4, "damaged")), Settings(tmp_path / "archive", 2.0), count)
            with count.expected():
                archive_once([archiver], NO_TIDYING, START_NS, count)
    lines = (tmp_path / "archive/gaps.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"first": 3, "last": 4, "reason": "damaged"}]
    assert len(archived(tmp_path / "archive")["east"]) == len(east.time_ns) - 30
    assert "damaged" in caplog.text


def test_retention_of_the_log_before_it_was_read_is_a_gap(tmp_path: Path) -> None:
    records = logged(grid("east", 1, 2, seconds=20), 3)
    with log_of(tmp_path / "log", []) as log:
        for record in records:
            log.append(FRAMES, [record])
        log.retain(FRAMES, Retention(age_s=5.0))
        first = log.extent(FRAMES).first
        assert first
        done = archive(log, tmp_path / "archive")
    assert done.totals.lost == 1
    assert json.loads((tmp_path / "archive/gaps.jsonl").read_text()) == {
        "first": 0,
        "last": first - 1,
        "reason": "expired",
    }


class Stopped(BaseException):
    """The program ends here."""


class Stop:
    """Ends the program at its n-th step."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.taken = 0

    def __call__(self, _: Step) -> None:
        self.taken += 1
        if self.taken == self.left:
            raise Stopped

    @contextmanager
    def expected(self) -> Iterator[None]:
        try:
            yield
        except Stopped:
            assert self.taken == self.left


def holds_any(folder: Path) -> bool:
    """Tell whether a batch was committed."""
    return (folder / POSITION).exists() and json.loads((folder / POSITION).read_bytes())["next"] > 0


TIDY = tidying.Settings(compact_after_s=0.0, least_files=2)


def test_stopped_after_every_single_step_each_frame_is_there_once(tmp_path: Path) -> None:
    """Whatever the step, a reader sees each frame up to the position once, before and after the next start."""
    east, west, records = two_sources(4)
    strange = Record(records[9].time_ns, "stranger", framed(configured(east)[1])[0])
    records = [*records[:9], strange, *records[9:]]
    with log_of(tmp_path / "log", records) as log:
        run = Stop(0)
        whole = archive(log, tmp_path / "whole", tidy=TIDY, now_ns=NEXT_DAY_NS, report=run)
        assert whole.totals.joined
        for at in range(1, run.taken + 1):
            folder = tmp_path / f"stopped{at}"
            stop = Stop(at)
            with stop.expected():
                archive(log, folder, tidy=TIDY, now_ns=NEXT_DAY_NS, report=stop)
            for times in archived(folder).values() if holds_any(folder) else ():
                assert len(np.unique(times)) == len(times), at
            archive(log, folder, tidy=TIDY, now_ns=NEXT_DAY_NS)
            got = archived(folder)
            assert (got["east"] == east.time_ns).all(), at
            assert (got["west"] == west.time_ns).all(), at
            assert [p.read_bytes() for p in (folder / "undecoded").iterdir()] == [strange.value]
            assert not list(folder.rglob("*.part"))
            for partition in partitions(folder):
                assert written(partition) == files_of(partition, whole.position), at


def test_a_reader_sees_each_committed_frame_once_at_every_step(tmp_path: Path) -> None:
    """While a batch is written, committed, joined and cleaned away, whoever lists the folder counts the same."""
    east, _, _ = two_sources(6)
    records = logged(east)
    folder = tmp_path / "archive"
    steps: list[Step] = []

    def look(step: Step) -> None:
        steps.append(step)
        position = json.loads((folder / POSITION).read_bytes())["next"]
        seen = archived(folder)["east"] if position else east.time_ns[:0]
        assert (seen == east.time_ns[: 15 * max(0, position - 1)]).all(), step

    with log_of(tmp_path / "log", records) as log:
        archive(log, folder, tidy=TIDY, now_ns=NEXT_DAY_NS, report=look)
    assert set(steps) == set(Step)


def test_what_a_stopped_batch_left_does_not_disturb_others_cut_elsewhere(tmp_path: Path) -> None:
    east, west, records = two_sources(4)
    with log_of(tmp_path / "log", records) as log:
        with pytest.raises(Stopped):
            archive(log, tmp_path / "archive", span_s=3600.0, batch_bytes=3000, report=Stop(2))
        left = [f for p in partitions(tmp_path / "archive") for f in written(p)]
        assert len(left) == 2
        assert len({records[f.last + at].time_ns // 10**9 for f in left for at in (0, 1)}) == 1  # in mid-second
        archive(log, tmp_path / "archive", span_s=1.0)
    got = archived(tmp_path / "archive")
    assert (got["east"] == east.time_ns).all()
    assert (got["west"] == west.time_ns).all()


def test_stopped_again_and_again_it_goes_on(tmp_path: Path) -> None:
    """Runs that each get some steps further, or nowhere, never lose what was committed."""
    east, west, records = two_sources(6)
    before = 0
    with log_of(tmp_path / "log", records) as log:
        for steps in (1, 6, 2, 7, 3, 8, 4, 9, 1000):
            stop = Stop(steps)
            with stop.expected():
                archive(log, tmp_path / "archive", span_s=1.0, report=stop)
            position = json.loads((tmp_path / "archive" / POSITION).read_bytes())["next"]
            assert position >= before
            before = position
    assert before == len(records)
    got = archived(tmp_path / "archive")
    assert (got["east"] == east.time_ns).all()
    assert (got["west"] == west.time_ns).all()


CHILD = """
import sys
from pathlib import Path
from gridsense.archiving import tidying
from gridsense.archiving.service import archive_once
from gridsense.archiving.writing import Archiver, Settings
from streams.sqlite_log import open_log

def report(step):
    sys.stdout.write("x")
    sys.stdout.flush()

archiver = Archiver(open_log(Path(sys.argv[1])), Settings(Path(sys.argv[2]), 1.0), report)
archive_once([archiver], tidying.Settings(0.0, least_files=2), int(sys.argv[3]), report)
"""


def test_killed_ten_times_each_frame_is_there_once(tmp_path: Path) -> None:
    east, west, records = two_sources(10)
    log_of_frames, folder = tmp_path / "log", tmp_path / "archive"
    with log_of(log_of_frames, records):
        pass
    now_ns = int(east.time_ns[-1]) + DAY_S * 10**9
    for steps in (1, 3, 5, 7, 6, 9, 8, 12, 15, 20):
        command = [sys.executable, "-c", textwrap.dedent(CHILD), str(log_of_frames), str(folder), str(now_ns)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.read(steps)  # it has gone on meanwhile: killed in the middle of whatever it does
            child.send_signal(signal.SIGKILL)
        assert child.returncode in (-signal.SIGKILL, 0)
        for times in archived(folder).values() if holds_any(folder) else ():
            assert len(np.unique(times)) == len(times)
    with log_of(log_of_frames, []) as log:
        archive(log, folder, span_s=1.0, tidy=TIDY, now_ns=now_ns)
    got = archived(folder)
    assert (got["east"] == east.time_ns).all()
    assert (got["west"] == west.time_ns).all()


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """Let no file grow beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    east, _, records = two_sources()
    folder = tmp_path / "archive"
    with log_of(tmp_path / "log", records) as log:
        archiver = Archiver(log, Settings(folder, 2.0), nothing)
        archiver.recover()
        with no_room(3000), pytest.raises(ArchiveError, match="cannot be written"):
            archiver.step()
        assert archiver.position == 0
        assert archiver.totals.frames == 0
        assert not list(folder.rglob("*.parquet"))
        archive(log, folder)
    assert (archived(folder)["east"] == east.time_ns).all()


def test_a_service_tries_a_full_disk_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    east, _, records = two_sources()
    waits: list[float] = []
    with log_of(tmp_path / "log", records) as log, ExitStack() as stack:

        def stopped(wait_s: float) -> bool:
            waits.append(wait_s)
            if len(waits) == 2:
                stack.close()
            return wait_s == 1

        stack.enter_context(no_room(3000))
        archiver = Archiver(log, Settings(tmp_path / "archive", 2.0), nothing)
        follow([archiver], NO_TIDYING, stopped, lambda: START_NS, nothing)
    assert waits == [10.0, 10.0, 0.0, 1.0]
    assert "trying again" in caplog.text
    assert (archived(tmp_path / "archive")["east"] == east.time_ns).all()


def test_a_service_takes_what_comes_and_ends_a_batch_when_nothing_more_does(tmp_path: Path) -> None:
    east = grid("east", 1, 2, seconds=8)
    records = logged(east)
    now_ns = [START_NS]
    seen: list[int] = []
    with log_of(tmp_path / "log", []) as log:
        archiver = Archiver(log, Settings(tmp_path / "archive", 3600.0), nothing)

        def stopped(wait_s: float) -> bool:
            if wait_s:
                seen.append(archiver.position)
                now_ns[0] += 1000 * 10**9
                if records:
                    log.append(FRAMES, [records.pop(0) for _ in range(min(6, len(records)))])
            return len(seen) == 9

        follow([archiver], NO_TIDYING, stopped, lambda: now_ns[0], nothing)
    assert seen[0] == seen[3] == 0
    assert seen[8] == 17  # all of it, an hour after the last came, before it was told to stop
    assert (archived(tmp_path / "archive")["east"] == east.time_ns).all()


def test_a_second_archiver_is_refused(tmp_path: Path) -> None:
    _, _, records = two_sources()
    with log_of(tmp_path / "log", records) as log:

        def second(step: Step) -> None:
            if step is Step.COMMITTED:
                archive(log, tmp_path / "archive")

        with pytest.raises(ArchiveError, match="another process"):
            archive(log, tmp_path / "archive", report=second)


def test_another_log_is_refused(tmp_path: Path) -> None:
    _, _, records = two_sources()
    with log_of(tmp_path / "log", records) as log:
        archive(log, tmp_path / "archive")
    with log_of(tmp_path / "other", records[:3]) as log, pytest.raises(ArchiveError, match="another log"):
        archive(log, tmp_path / "archive")


def test_a_folder_without_its_position_is_refused(tmp_path: Path) -> None:
    _, _, records = two_sources()
    with log_of(tmp_path / "log", records) as log:
        archive(log, tmp_path / "archive")
        (tmp_path / "archive" / POSITION).unlink()
        with pytest.raises(ArchiveError, match="restore"):
            archive(log, tmp_path / "archive")
        (tmp_path / "archive" / POSITION).write_text("{")
        with pytest.raises(ArchiveError, match="restore"):
            archive(log, tmp_path / "archive")


def test_small_files_of_a_past_day_are_joined_and_old_ones_go(tmp_path: Path) -> None:
    east, west, records = two_sources()
    folder = tmp_path / "archive"
    midnight_ns = START_NS + NOON_S * 10**9
    hour_ns = 3600 * 10**9
    with log_of(tmp_path / "log", records) as log:
        join = tidying.Settings(compact_after_s=3600.0, least_files=2)
        early = archive(log, folder, tidy=join, now_ns=midnight_ns + hour_ns)
        assert early.totals.joined == 0
        done = archive(log, folder, tidy=join, now_ns=midnight_ns + hour_ns + 1)
        assert done.totals.joined > 2
        first, second = (folder / day / "source=east" for day in ("date=2026-03-01", "date=2026-03-02"))
        assert len(written(first)) == 1
        assert len(written(second)) > 1
        assert (archived(folder)["east"] == east.time_ns).all()

        keep = tidying.Settings(retention_days=2.0)
        for path in folder.rglob("*.parquet"):
            os.utime(path, ns=(midnight_ns, midnight_ns))
        late = written(folder / "date=2026-03-01/source=west")[0].path
        os.utime(late, ns=(midnight_ns + hour_ns, midnight_ns + hour_ns))
        removed = archive(log, folder, tidy=keep, now_ns=midnight_ns + 2 * DAY_S * 10**9 + 1)
    assert removed.totals.removed == 1
    assert not first.exists()
    assert late.exists()
    got = archived(folder)
    assert (got["east"] == east.time_ns[east.time_ns >= midnight_ns]).all()
    assert (got["west"] == west.time_ns).all()


def test_joining_keeps_duplicates_and_order(tmp_path: Path) -> None:
    west = grid("west", 11, 1, seconds=8)
    records = logged(west, 3)
    rng = np.random.default_rng(5)
    order = rng.permutation(len(records) - 1) + 1
    shuffled = [records[i]._replace(time_ns=START_NS + n * 10**8) for n, i in enumerate([*order, *order[:7]])]
    with log_of(tmp_path / "log", [records[0], *shuffled]) as log:
        done = archive(log, tmp_path / "archive", span_s=1.0, tidy=TIDY, now_ns=START_NS + 2 * DAY_S * 10**9)
    assert done.totals.joined > 5
    got = archived(tmp_path / "archive")["west"]
    assert (np.diff(got) >= 0).all()
    expected = np.concatenate([west.time_ns, *(west.time_ns[3 * (i - 1) : 3 * i] for i in order[:7])])
    assert (got == np.sort(expected)).all()
