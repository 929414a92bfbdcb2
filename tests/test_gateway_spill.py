"""What the distant log does not take waits on disk: each record once and in order, whoever fails and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.c37118.frame import FrameType, Stamp, wrap
from streams.errors import DeniedError, FencedError, LogError, LogFullError, UnreachableError
from streams.gateway.spill import Spill, SpillSettings, SpillStatus, open_spill
from streams.gateway.standby import Lacking
from streams.log import CONFIGURATIONS, DEAD_LETTERS, FRAMES, Entry, Record

PATIENCE_S = 30.0


def data(n: int, key: str = "a", time_ns: int = 0) -> Record:
    return Record(time_ns or time.time_ns(), key, wrap(FrameType.DATA, 7, Stamp(1000 + n), bytes(20)))


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


@dataclass
class Distant:
    """A log of two writers at most, of which the newest that settled may write; it fails as a test says."""

    topics: dict[str, list[Record]] = field(default_factory=dict)
    newest: tuple[int, int] = (0, 0)
    owner: object = None
    holder: object = None
    """Who has the lease; None: whoever asks."""
    down: bool = False
    denied: bool = False
    fails: list[bool] = field(default_factory=list)
    """For each of the next writes: whether its records are in the log though it fails."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: int = 0

    def frames(self, key: str = "a") -> list[bytes]:
        with self.lock:
            return [
                record.value[n : n + 36]
                for record in self.topics.get(FRAMES, [])
                if record.key == key
                for n in range(0, len(record.value), 36)
            ]


class Writing:
    """A `Target` on it."""

    def __init__(self, log: Distant, name: object = "one") -> None:
        self.log = log
        self.name = name
        self._answer()

    def held(self) -> bool:
        self._answer()
        return self.log.holder in (None, self.name)

    def place(self) -> tuple[int, int]:
        self._answer()
        return self.log.newest

    def settle(self) -> tuple[int, int]:
        self._answer()
        self.log.owner = self
        return self.log.newest

    def write(self, records: Sequence[tuple[str, Record]], number: int) -> None:
        self._answer()
        with self.log.lock:
            if self.log.owner is not self:
                raise FencedError("another one writes")
            fails = self.log.fails.pop(0) if self.log.fails else None
            if fails is not False:
                for topic, record in records:
                    self.log.topics.setdefault(topic, []).append(record)
                self.log.newest = (number, max(record.time_ns for _, record in records))
            if fails is not None:
                raise UnreachableError("no answer: the test says so")

    def tail(self, keys: Collection[str], since_ns: int) -> Iterator[Entry]:
        for n, record in enumerate(self.log.topics.get(FRAMES, [])):
            if record.key in keys and record.time_ns >= since_ns:
                yield Entry(n, *record)

    def latest(self, topic: str) -> dict[str, Entry]:
        return {record.key: Entry(0, *record) for record in self.log.topics.get(topic, [])}

    def close(self) -> None:
        self.log.closed += 1

    def _answer(self) -> None:
        if self.log.denied:
            raise DeniedError("wrong password: the test says so")
        if self.log.down:
            raise UnreachableError("nobody there: the test says so")


@contextmanager
def spilling(
    log: Distant, path: Path, size: int = 1 << 20, name: str = "one", margin_s: float = 0.2
) -> Iterator[tuple[Spill, SpillStatus]]:
    status = SpillStatus()
    limits = SpillSettings(path, size, keep_s=5.0, margin_s=margin_s)
    with closing(open_spill(lambda: Writing(log, name), limits, status)) as spill:
        yield spill, status


def direct(spill: Spill, status: SpillStatus) -> None:
    spill.latest(CONFIGURATIONS)
    until(lambda: status.direct)


def test_what_the_log_takes_is_written_at_once(tmp_path: Path) -> None:
    log = Distant()
    records = [data(n) for n in range(5)]
    with spilling(log, tmp_path / "spill.db") as (spill, status):
        direct(spill, status)
        for record in records:
            spill.append(FRAMES, [record])
            assert log.topics[FRAMES][-1] == record
    assert (status.failures, status.spilled_records) == (0, 0)
    assert log.closed == 1


def test_an_outage_costs_nothing_and_changes_no_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    log = Distant()
    letter = Record(1, "a", b"junk", "crc")
    records = [data(n) for n in range(30)]
    with spilling(log, tmp_path / "spill.db") as (spill, status):
        direct(spill, status)
        spill.append(FRAMES, records[:10])
        log.down = True
        for record in records[10:20]:
            spill.append(FRAMES, [record])
        spill.append(DEAD_LETTERS, [letter])
        assert status.waiting_records == 11
        assert not status.direct
        log.down = False
        for record in records[20:]:
            spill.append(FRAMES, [record])
        until(lambda: status.direct)
    assert log.topics == {FRAMES: records, DEAD_LETTERS: [letter]}
    assert status.waiting_records == status.waiting_bytes == 0
    assert status.recovery_s > 0
    assert any("answers again" in line for line in caplog.messages)


def test_what_comes_during_each_write_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    """Streams that never pause, and a log whose every write takes as long as it takes for more to come."""
    log = Distant(down=True)
    spills: list[Spill] = []
    coming: list[threading.Thread] = []
    records = [data(n) for n in range(200)]
    rest = iter(records[10:])

    class Slow(Writing):
        def write(self, written: Sequence[tuple[str, Record]], number: int) -> None:
            if not (coming and coming[-1].is_alive()) and (record := next(rest, None)) is not None:
                coming.append(threading.Thread(target=spills[0].append, args=(FRAMES, [record])))
                coming[-1].start()
                coming[-1].join(0.05)  # longer where nothing can come now: then it comes afterwards
            super().write(written, number)

    status = SpillStatus()
    with closing(open_spill(lambda: Slow(log), SpillSettings(tmp_path / "spill.db", 1 << 20), status)) as spill:
        spills.append(spill)
        for record in records[:10]:
            spill.append(FRAMES, [record])
        log.down = False
        until(lambda: status.direct)
        assert status.waiting_records == status.waiting_bytes == 0
        while coming[-1].is_alive():
            coming[-1].join(PATIENCE_S)
        came = len(log.topics[FRAMES])
        assert log.topics[FRAMES] == records[:came]
        assert came < len(records)


@pytest.mark.parametrize("written", [True, False])
def test_a_write_of_which_nobody_knows_is_neither_lost_nor_doubled(tmp_path: Path, *, written: bool) -> None:
    log = Distant()
    equal = data(1, time_ns=5)
    records = [data(0), equal, equal, data(2), data(3)]
    with spilling(log, tmp_path / "spill.db") as (spill, status):
        direct(spill, status)
        spill.append(FRAMES, records[:1])
        log.fails = [written, written, not written]
        spill.append(FRAMES, records[1:4])
        spill.append(FRAMES, records[4:])
        until(lambda: status.direct)
    assert log.topics[FRAMES] == records


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.integers(1, 4),
            st.sampled_from(["down", "up", "restart", "settle"]),
            st.lists(st.booleans(), min_size=1, max_size=2),
        ),
        max_size=20,
    )
)
def test_whatever_fails_each_record_is_there_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int | str | list[bool]]
) -> None:
    log, path, sent = Distant(), tmp_path_factory.mktemp("spill") / "spill.db", list[Record]()
    rest = iter([*steps, "up"])
    going = True
    while going:
        going = False
        with spilling(log, path, margin_s=0.0) as (spill, status):
            for step in rest:
                if isinstance(step, int):
                    new = [data(len(sent) + n, time_ns=1 + len(sent) + n) for n in range(step)]
                    spill.append(FRAMES, new)
                    sent += new
                elif isinstance(step, list):
                    log.fails = step
                elif step == "settle":
                    until(lambda: status.direct or log.down)
                elif step == "restart":
                    going = True
                    break
                else:
                    log.down = step == "down"
            if not going:
                log.fails = []
                until(lambda: status.direct)
    assert log.topics.get(FRAMES, []) == sent


def test_it_starts_without_the_log_and_knows_the_configurations_of_old(tmp_path: Path) -> None:
    log, configuration = Distant(), Record(5, "a", wrap(FrameType.CFG3, 7, Stamp(1), bytes(20)))
    with spilling(log, tmp_path / "spill.db") as (spill, status):
        direct(spill, status)
        spill.append(FRAMES, [configuration])
        spill.append(CONFIGURATIONS, [configuration])
    log.down = True
    with spilling(log, tmp_path / "spill.db") as (spill, status):
        assert spill.latest(CONFIGURATIONS)["a"].value == configuration.value
        spill.append(FRAMES, [data(1, time_ns=1)])
    assert status.waiting_records == 1
    log.down = False
    with spilling(log, tmp_path / "spill.db") as (spill, status):
        spill.append(FRAMES, [data(2, time_ns=2)])
        until(lambda: status.direct)
    assert log.topics[FRAMES] == [configuration, data(1, time_ns=1), data(2, time_ns=2)]
    assert log.topics[CONFIGURATIONS] == [configuration]


def test_who_is_refused_at_the_start_is_told(tmp_path: Path) -> None:
    with spilling(Distant(denied=True), tmp_path / "spill.db") as (spill, _), pytest.raises(DeniedError):
        spill.latest(CONFIGURATIONS)


def test_beyond_its_bound_it_is_full_and_goes_on_later(tmp_path: Path) -> None:
    log = Distant(down=True)
    records = [data(n) for n in range(20)]
    with spilling(log, tmp_path / "spill.db", size=10 * (36 + 128)) as (spill, status):
        spill.append(FRAMES, records[:10])
        with pytest.raises(LogFullError, match="spill_size"):
            spill.append(FRAMES, records[10:])
        log.down = False
        until(lambda: status.direct)
        spill.append(FRAMES, records[10:])
    assert log.topics[FRAMES] == records


def test_a_defect_ends_it_aloud(tmp_path: Path) -> None:
    class Odd(Writing):
        def settle(self) -> tuple[int, int]:
            raise ZeroDivisionError("odd")

    status = SpillStatus()
    with closing(open_spill(lambda: Odd(Distant()), SpillSettings(tmp_path / "spill.db"), status)) as spill:
        with pytest.raises(LogError, match="odd"):
            spill.latest(CONFIGURATIONS)
        with pytest.raises(LogError, match="odd"):
            spill.append(FRAMES, [data(1)])


def test_the_standby_writes_nothing_and_takes_over_without_gap_or_double(tmp_path: Path) -> None:
    """Both receive all; the second in other pieces, and a little later."""
    log = Distant(holder="one")
    configuration = Record(time.time_ns(), "a", wrap(FrameType.CFG3, 7, Stamp(1), bytes(20)))
    log.topics[CONFIGURATIONS] = [configuration]
    sent = [data(n).value for n in range(40)]
    with (
        spilling(log, tmp_path / "one.db") as (one, first),
        spilling(log, tmp_path / "two.db", name="two") as (two, second),
    ):
        direct(one, first)
        until(lambda: second.standby)
        for n, value in enumerate(sent[:20]):
            one.append(FRAMES, [Record(time.time_ns(), "a", value)])
            if n % 2:
                two.append(FRAMES, [Record(time.time_ns(), "a", sent[n - 1] + value)])
        assert log.frames() == sent[:20]
        log.holder = "two"
        for n, value in enumerate(sent[20:], 20):
            one.append(FRAMES, [Record(time.time_ns(), "a", value)])
            if n % 2:
                two.append(FRAMES, [Record(time.time_ns(), "a", sent[n - 1] + value)])
        until(lambda: second.direct)
        until(lambda: first.standby)
        assert log.frames() == sent
        assert not first.direct


def test_who_wakes_after_another_took_over_writes_nothing_and_comes_back_in_time(tmp_path: Path) -> None:
    log = Distant(holder="one")
    log.topics[CONFIGURATIONS] = [Record(1, "a", b"")]
    sent = [data(n) for n in range(9)]
    with spilling(log, tmp_path / "one.db") as (one, first):
        direct(one, first)
        one.append(FRAMES, sent[:2])
        with spilling(log, tmp_path / "two.db", name="two") as (two, second):
            until(lambda: second.standby)
            two.append(FRAMES, sent[:2])
            with log.lock:
                log.holder, stale = "two", log.owner
            two.append(FRAMES, sent[2:5])
            until(lambda: second.direct)
            assert log.owner is not stale
            one.append(FRAMES, sent[2:6])
            two.append(FRAMES, sent[5:6])
            until(lambda: first.standby)
            assert log.frames() == [record.value for record in sent[:6]]
        log.holder = "one"
        one.append(FRAMES, sent[6:])
        until(lambda: first.direct)
        assert log.frames() == [record.value for record in sent]


def test_a_standby_keeps_no_more_than_is_in_doubt(tmp_path: Path) -> None:
    log = Distant(holder="one")
    now_ns = time.time_ns()
    with spilling(log, tmp_path / "two.db", size=100 * 164, name="two") as (two, status):
        until(lambda: status.standby)
        log.newest = (1, now_ns - 2_000_000_000)
        for n in range(600):
            two.append(FRAMES, [data(n, time_ns=now_ns - (600 - n) * 100_000_000)])
        until(lambda: 20 <= status.waiting_records <= 75)
        assert status.waiting_bytes <= 100 * 164


def test_lacking_are_frames_that_the_log_has_not_wherever_records_are_cut() -> None:
    frames = [data(n).value for n in range(4)]
    tail = [Entry(0, 90, "a", frames[0] + frames[2])]
    lacking = Lacking(tail, covered_ns=100, margin_ns=10)
    assert lacking.of(FRAMES, Record(80, "a", b"".join(frames))) == Record(80, "a", frames[1] + frames[3])
    assert lacking.of(FRAMES, Record(80, "a", frames[2])) is None
    assert lacking.of(FRAMES, Record(80, "b", frames[2])) is not None
    configuration = wrap(FrameType.CFG2, 7, Stamp(1), bytes(20))
    kept = [
        bool(lacking.of(topic, record))
        for topic, record in (
            (FRAMES, Record(95, "a", configuration)),
            (FRAMES, Record(89, "a", configuration)),
            (CONFIGURATIONS, Record(95, "a", configuration)),
            (FRAMES, Record(100, "north/", b"")),
            (FRAMES, Record(101, "north/", b"")),
            (DEAD_LETTERS, Record(100, "a", b"junk", "crc")),
            (DEAD_LETTERS, Record(101, "a", b"junk", "crc")),
        )
    ]
    assert kept == [True, False, True, False, True, False, True]
