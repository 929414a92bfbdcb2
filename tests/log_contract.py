"""What every adapter of the log port must do: one suite, run by a class of tests for each adapter.

An adapter's tests subclass `LogContract`, or `TidyLogContract` where the log itself removes what is old or replaced,
and say by the fixture `new` how a new log is made: each call of it returns a function that opens that log, as often as
one likes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from streams.errors import LogError
from streams.log import CONFIGURATIONS, DEAD_LETTERS, FRAMES, Entry, Extent, Log, Lost, Record, Retention

Open = Callable[[], Log]
TOPICS = (FRAMES, DEAD_LETTERS, CONFIGURATIONS)

records = st.builds(
    Record,
    time_ns=st.integers(0, 10**10),
    key=st.sampled_from(["", "north", "süd"]),
    value=st.binary(max_size=20),
    note=st.sampled_from(["", "no configuration"]),
)


def record(value: bytes, time_s: float = 0.0, key: str = "north") -> Record:
    return Record(round(time_s * 1e9), key, value)


def follow(log: Log, topic: str, offset: int = 0, limit: int = 1 << 22) -> tuple[list[Entry], list[Lost]]:
    """Read to the end, as a reader does."""
    entries, lost = list[Entry](), list[Lost]()
    while (reading := log.read(topic, offset, limit)).next > offset:
        entries += reading.entries
        lost += reading.lost
        offset = reading.next
    assert not reading.entries
    assert not reading.lost
    return entries, lost


def plain(entries: list[Entry]) -> list[Record]:
    return [Record(*entry[1:]) for entry in entries]


@dataclass
class Model:
    """A topic as a list."""

    entries: list[Entry] = field(default_factory=list)
    end: int = 0


class LogMachine(RuleBasedStateMachine):
    """Anything that callers may do, in any order, against lists."""

    def __init__(self, new: Callable[[], Open]) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.open = new()
        self.topics = {topic: Model() for topic in TOPICS}
        self.positions: dict[tuple[str, str], int] = {}

    @initialize()
    def start(self) -> None:
        self.logs = [self.stack.enter_context(closing(self.open())) for _ in range(2)]

    @rule()
    def reopen(self) -> None:
        self.stack.close()
        self.start()

    @rule(who=st.integers(0, 1), topic=st.sampled_from(TOPICS), new=st.lists(records, max_size=6))
    def append(self, who: int, topic: str, new: list[Record]) -> None:
        model = self.topics[topic]
        end = self.logs[who].append(topic, new)
        assert end >= model.end + len(new)
        appended, lost = follow(self.logs[1 - who], topic, model.end)
        if topic == CONFIGURATIONS:
            newest = {entry.key: entry for entry in appended}
            assert set(plain(appended)) <= set(new)
            appended = [entry for entry in appended if newest[entry.key] is entry]
            assert plain(appended) == [r for n, r in enumerate(new) if r.key not in {s.key for s in new[n + 1 :]}]
            model.entries = [entry for entry in model.entries if entry.key not in newest]
        else:
            assert plain(appended) == new
        assert not lost
        model.entries += appended
        model.end = end

    @rule(topic=st.sampled_from((FRAMES, DEAD_LETTERS)), where=st.floats(0, 1), limit=st.integers(0, 60))
    def read(self, topic: str, where: float, limit: int) -> None:
        self.reads(topic, where, limit)

    def reads(self, topic: str, where: float, limit: int) -> None:
        model, offset = self.topics[topic], round(where * self.topics[topic].end)
        there = [entry for entry in model.entries if entry.offset >= offset]
        reading = self.logs[0].read(topic, offset, limit)
        taken = len(reading.entries)
        assert reading.entries == there[:taken]
        assert bool(taken) == bool(there)
        assert sum(len(entry.value) for entry in reading.entries[:-1]) < max(limit, 1)
        rest = there[taken].offset if taken < len(there) else model.end
        assert offset <= reading.next <= rest
        assert not taken or reading.next > reading.entries[-1].offset
        first = self.logs[1].extent(topic).first
        expired = topic != CONFIGURATIONS and offset < first
        assert reading.lost == ((Lost(offset, first - 1, "expired"),) if expired else ())
        assert follow(self.logs[1], topic, offset, limit)[0] == there

    @rule(topic=st.sampled_from(TOPICS), reader=st.sampled_from("ab"), offset=st.integers(0, 2**40))
    def commit(self, topic: str, reader: str, offset: int) -> None:
        self.logs[0].commit(topic, reader, offset)
        self.positions[topic, reader] = offset

    @invariant()
    def agrees(self) -> None:
        for topic, model in self.topics.items():
            extent = self.logs[1].extent(topic)
            assert extent.next == model.end
            assert extent.records >= len(model.entries)
            if topic != CONFIGURATIONS:
                self.agrees_on_edges(extent, model)
            for reader in "ab":
                assert self.logs[1].position(topic, reader) == self.positions.get((topic, reader))
        assert self.logs[1].latest(CONFIGURATIONS) == {e.key: e for e in self.topics[CONFIGURATIONS].entries}

    def agrees_on_edges(self, extent: Extent, model: Model) -> None:
        assert extent.first == (model.entries[0].offset if model.entries else model.end)
        assert extent.oldest_ns == (model.entries[0].time_ns if model.entries else 0)
        assert extent.newest_ns == (model.entries[-1].time_ns if model.entries else 0)

    def teardown(self) -> None:
        self.stack.close()


class TidyLogMachine(LogMachine):
    """Where the log itself removes what is old or replaced, and counts."""

    @rule(where=st.floats(0, 1), limit=st.integers(0, 60))
    def read_compacted(self, where: float, limit: int) -> None:
        self.reads(CONFIGURATIONS, where, limit)

    @rule(
        topic=st.sampled_from((FRAMES, DEAD_LETTERS)),
        age_s=st.sampled_from([0.0, 0.5, 3.0, 20.0]),
        size=st.integers(0, 200),
    )
    def retain(self, topic: str, age_s: float, size: int) -> None:
        model = self.topics[topic]
        removed = self.logs[0].retain(topic, Retention(age_s, size))
        gone, model.entries = model.entries[:removed], model.entries[removed:]
        assert removed == len(gone)
        if not size:
            assert all(age_s and entry.time_ns < model_newest(gone, model) - age_s * 1e9 for entry in gone)
        else:
            assert sum(len(entry.value) for entry in model.entries) <= size
        assert follow(self.logs[1], topic)[0] == model.entries

    @invariant()
    def counts(self) -> None:
        for topic, model in self.topics.items():
            extent = self.logs[1].extent(topic)
            assert extent.records == len(model.entries)
            assert extent.size == sum(len(entry.value) for entry in model.entries)
            self.agrees_on_edges(extent, model)


def model_newest(gone: list[Entry], model: Model) -> int:
    return (gone + model.entries)[-1].time_ns


class LogContract:
    """Subclass it, and give `new`."""

    machine: type[LogMachine] = LogMachine
    examples = 30
    phases: tuple[Phase, ...] = tuple(Phase)

    @pytest.fixture
    def new(self) -> Callable[[], Open]:
        raise NotImplementedError

    def empty(self, log: Log, topic: str) -> None:
        """Remove all entries, as retention would."""
        raise NotImplementedError

    @pytest.fixture
    def open_log(self, new: Callable[[], Open]) -> Open:
        return new()

    def test_it_is_a_list_that_forgets_its_beginning(self, new: Callable[[], Open]) -> None:
        run_state_machine_as_test(
            lambda: self.machine(new),
            settings=settings(
                max_examples=self.examples,
                phases=self.phases,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )

    def test_a_topic_that_nobody_wrote_to_is_empty(self, open_log: Open) -> None:
        with closing(open_log()) as log:
            assert log.read("nothing", 0).entries == []
            assert log.read("nothing", 0).next == 0
            assert log.extent("nothing").records == 0
            assert log.position("nothing", "me") is None
            assert log.latest(CONFIGURATIONS) == {}
            assert log.retain("nothing", Retention(size=1)) == 0

    def test_any_bytes_come_back_untouched(self, open_log: Open) -> None:
        values = [b"", bytes(range(256)), b"\xaa" * 300_000]
        new = [Record(2**62 + n, "ключ", value, "wofür") for n, value in enumerate(values)]
        with closing(open_log()) as log:
            log.append(FRAMES, new)
        with closing(open_log()) as log:
            assert plain(follow(log, FRAMES)[0]) == new

    def test_one_call_may_hold_very_many_records(self, open_log: Open) -> None:
        new = [record(b"%d" % n, n) for n in range(10_000)]
        with closing(open_log()) as log:
            log.append(FRAMES, new)
            entries, lost = follow(log, FRAMES, limit=10_000)
            assert plain(entries) == new
            assert not lost
            assert plain(follow(log, FRAMES, entries[7_777].offset)[0]) == new[7_777:]

    def test_an_offset_is_never_given_out_again(self, open_log: Open) -> None:
        with closing(open_log()) as log:
            end = log.append(FRAMES, [record(b"old")] * 5)
            self.empty(log, FRAMES)
            assert log.extent(FRAMES).first == log.extent(FRAMES).next == end
        with closing(open_log()) as log:
            log.append(FRAMES, [record(b"new")])
            reading = log.read(FRAMES, 0)
            assert [entry.offset for entry in reading.entries] == [end]
            assert reading.lost == (Lost(0, end - 1, "expired"),)
            assert log.read(FRAMES, end).lost == ()

    def test_a_compacted_topic_keeps_the_newest_of_each_key(self, open_log: Open) -> None:
        with closing(open_log()) as log:
            for n in range(5):
                log.append(CONFIGURATIONS, [record(b"%d" % n, n, key) for key in ("north", "south")])
            log.append(CONFIGURATIONS, [record(b"last", 9, "north")])
            with closing(open_log()) as other:
                entries, lost = follow(other, CONFIGURATIONS)
                assert [(entry.key, entry.value) for entry in entries][-2:] == [("south", b"4"), ("north", b"last")]
                assert not lost
                assert other.latest(CONFIGURATIONS) == {entry.key: entry for entry in entries[-2:]}
                log.append(CONFIGURATIONS, [record(b"newer", 10, "south")])
                assert {key: e.value for key, e in other.latest(CONFIGURATIONS).items()} == {
                    "north": b"last",
                    "south": b"newer",
                }
            with pytest.raises(LogError, match="compacted"):
                log.retain(CONFIGURATIONS, Retention(size=1))

    def test_an_offset_beyond_the_end_is_refused(self, open_log: Open) -> None:
        with closing(open_log()) as log:
            end = log.append(FRAMES, [record(b"a")])
            assert log.read(FRAMES, end).next == end
            with pytest.raises(LogError, match="begin anew"):
                log.read(FRAMES, end + 1)

    def test_many_writers_and_a_reader_at_once(self, open_log: Open) -> None:
        calls, writers, failed = 40, 3, list[BaseException]()

        def write(who: int) -> None:
            try:
                with closing(open_log()) as log:
                    for call in range(calls):
                        log.append(FRAMES, [Record(call, f"{who}", b"%d" % n) for n in range(3)])
                        log.commit(FRAMES, f"{who}", call)
            except BaseException as error:  # noqa: BLE001 - shown below
                failed.append(error)

        threads = [threading.Thread(target=write, args=(who,)) for who in range(writers)]
        with closing(open_log()) as log:
            for thread in threads:
                thread.start()
            entries, offset = list[Entry](), 0
            while not failed and (len(entries) < calls * writers * 3):
                reading = log.read(FRAMES, offset)
                assert not reading.lost
                entries += reading.entries
                offset = reading.next
            for thread in threads:
                thread.join()
            assert not failed
            assert [log.position(FRAMES, f"{who}") for who in range(writers)] == [calls - 1] * writers
        self.interleaves(entries)
        for who in range(writers):
            own = [entry for entry in entries if entry.key == f"{who}"]
            assert [entry.time_ns for entry in own][::3] == list(range(calls))
            assert [entry.value for entry in own] == [b"0", b"1", b"2"] * calls

    def interleaves(self, entries: list[Entry]) -> None:
        """Check how the calls of several writers may stand among each other: here anyhow."""


class TidyLogContract(LogContract):
    """The same where the log itself removes what is old or replaced, and what one call wrote stands together."""

    machine = TidyLogMachine

    def empty(self, log: Log, topic: str) -> None:
        kept = log.extent(topic).records
        assert log.retain(topic, Retention(size=1)) == kept

    def interleaves(self, entries: list[Entry]) -> None:
        assert [entry.value for entry in entries[:3]] * (len(entries) // 3) == [entry.value for entry in entries]

    def test_a_compacted_topic_keeps_nothing_else(self, open_log: Open) -> None:
        with closing(open_log()) as log:
            log.append(CONFIGURATIONS, [record(b"%d" % n, n) for n in range(5)])
            log.append(CONFIGURATIONS, [record(b"last", 9)])
            assert [entry.value for entry in follow(log, CONFIGURATIONS)[0]] == [b"last"]

    def test_retention_by_size_keeps_no_more(self, open_log: Open) -> None:
        with closing(open_log()) as log:
            for n in range(10):
                log.append(FRAMES, [record(b"%d" % n * 10)])
            assert log.retain(FRAMES, Retention(size=35)) == 7
            assert [entry.value[:1] for entry in follow(log, FRAMES)[0]] == [b"7", b"8", b"9"]
            assert log.retain(FRAMES, Retention(size=35)) == 0

    def test_retention_by_age_counts_from_the_newest(self, open_log: Open) -> None:
        with closing(open_log()) as log:
            for n in range(10):
                log.append(FRAMES, [record(b"%d" % n, n)])
            assert log.retain(FRAMES, Retention(age_s=3.5)) == 6
            assert [entry.value for entry in follow(log, FRAMES)[0]] == [b"6", b"7", b"8", b"9"]
            assert log.extent(FRAMES).oldest_ns == 6 * 10**9
