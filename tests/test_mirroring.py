"""A store beside the topics: what they say it says, however often and from wherever it is read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridsense import mirroring
from gridsense.errors import StoreError
from gridsense.events import Cause, Event, cloudevent
from gridsense.fleet import GONE_S, name_of, one_gateway, one_processor, those_here
from gridsense.mirroring import Mirror, StatusTopic, first_since
from gridsense.status import (
    GATEWAY,
    PROCESSOR,
    GatewayBoard,
    GatewayStatus,
    Learning,
    PmuStatus,
    ProcessorStatus,
    ScorerStatus,
    Trouble,
    brief,
    read_brief,
    read_gateway,
)
from gridsense.store import EventStore
from gridsense.watch import Follower, notices
from streams.errors import LogError, UnreachableError
from streams.gateway.status import Counts, Totals
from streams.log import CONFIGURATIONS, EVENTS, STATUS, Log, Reading, Record, Retention
from streams.sqlite_log import SqliteLog, open_log
from tests.reference.small_grid import START_NS

S = 1_000_000_000
NOW_NS = START_NS + 1000 * S


def event(name: str, second: float = 900, **changes: object) -> Event:
    onset = START_NS + round(second * S)
    plain = Event(
        id=name,
        source="small",
        onset_ns=onset,
        raised_ns=onset + S // 5,
        end_ns=onset + 2 * S,
        cause=Cause.GRID,
        kind="line_trip",
        first_pmu="Bus 7",
        pmus=("Bus 7", "Bus 8"),
        minus_ln_p=30.0,
        scorer="fast",
        contributions=(),
        sentence="a step of voltages",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # a test names the fields it changes


def topics_at(folder: Path) -> SqliteLog:
    return open_log(folder / "log", (CONFIGURATIONS, STATUS))


def record(of: Event, time_ns: int = NOW_NS) -> Record:
    return Record(time_ns, of.id, cloudevent(of))


@pytest.fixture
def topics(tmp_path: Path) -> Iterator[SqliteLog]:
    with closing(topics_at(tmp_path)) as log:
        yield log


@pytest.fixture
def mirror_of(tmp_path: Path) -> Iterator[Callable[..., Mirror]]:
    made: list[Mirror] = []

    def make(source: str = "one", since_s: float | None = None) -> Mirror:
        one = Mirror(lambda: topics_at(tmp_path), tmp_path / "store", source, since_s, lambda: NOW_NS)
        made.append(one)
        return one

    yield make
    for mirror in made:
        mirror.close()


def stored(tmp_path: Path) -> tuple[list[str], dict[str, bytes]]:
    """What a store says: its changes in their order, and its statuses."""
    with EventStore(tmp_path / "store") as store:
        statuses = {name: body for name, body in store.statuses().items() if name != "mirror"}
        return [text for _, text in store.changes()], statuses


def test_events_and_statuses_come_over_as_they_are(
    tmp_path: Path, topics: SqliteLog, mirror_of: Callable[..., Mirror]
) -> None:
    raised = event("a", end_ns=None)
    topics.append(EVENTS, [record(raised), record(event("b"))])
    topics.append(STATUS, [Record(NOW_NS, "processor#1", b"old"), Record(NOW_NS, "gateway#1", b"gate")])
    mirror = mirror_of()
    assert mirror.step()
    assert not mirror.step()
    texts = [cloudevent(raised).decode(), cloudevent(event("b")).decode()]
    assert stored(tmp_path) == (texts, {"processor#1": b"old", "gateway#1": b"gate"})
    topics.append(EVENTS, [record(event("a")), record(event("a"))])
    topics.append(STATUS, [Record(NOW_NS, "processor#1", b"new"), Record(NOW_NS, "processor#2", b"other")])
    assert mirror.step()
    assert stored(tmp_path) == (
        [*texts, cloudevent(event("a")).decode()],
        {"processor#1": b"new", "gateway#1": b"gate", "processor#2": b"other"},
    )


def test_a_store_says_the_same_by_way_of_a_topic(
    tmp_path: Path, topics: SqliteLog, mirror_of: Callable[..., Mirror]
) -> None:
    """Rows of an event, and of the same event as it was written, agree to the millisecond of the text."""
    events = [
        event("a", end_ns=None),
        event("b", 7.25),
        event("a"),
        event("c", cause=Cause.DATA, minus_ln_p=float("inf")),
    ]
    with EventStore(tmp_path / "direct") as direct:
        direct.put(events)
        rows = direct._connection.execute("SELECT * FROM event ORDER BY id").fetchall()
        changes = direct.changes()
    topics.append(EVENTS, [record(it) for it in events])
    mirror_of().step()
    with EventStore(tmp_path / "store") as store:
        assert store._connection.execute("SELECT * FROM event ORDER BY id").fetchall() == rows
        assert store.changes() == changes


def test_it_goes_on_where_the_store_is_and_says_nothing_twice(
    tmp_path: Path, topics: SqliteLog, mirror_of: Callable[..., Mirror]
) -> None:
    events = [event(f"e{n}", n) for n in range(20)]
    for n, it in enumerate(events):
        topics.append(EVENTS, [record(it)])
        if n % 3 == 0:
            mirror = mirror_of()
            mirror.step()
            mirror.close()
    mirror_of().step()
    assert [read_brief(text).id for text in stored(tmp_path)[0]] == [it.id for it in events]
    # one that says it comes from elsewhere reads all of it, and the store knows it
    mirror_of("another").step()
    assert len(stored(tmp_path)[0]) == 20


def test_a_store_that_is_ahead_of_the_log_begins_anew(
    tmp_path: Path, topics: SqliteLog, mirror_of: Callable[..., Mirror]
) -> None:
    with EventStore(tmp_path / "store") as store:
        store.put_status("mirror", b'{"source": "one", "next": 1000}')
    topics.append(EVENTS, [record(event("a"))])
    mirror_of().step()
    assert len(stored(tmp_path)[0]) == 1


def test_what_is_no_event_is_counted_and_passed_over(
    tmp_path: Path, topics: SqliteLog, mirror_of: Callable[..., Mirror], caplog: pytest.LogCaptureFixture
) -> None:
    good = cloudevent(event("good"))
    bad = [b"garbage", b"{}", b"\xff" * 100, good.replace(b"2026", b"0001"), good[:-1], good.replace(b'"grid"', b'"?"')]
    topics.append(EVENTS, [*(Record(NOW_NS, "x", it) for it in bad), Record(NOW_NS, "x", b""), record(event("good"))])
    mirror = mirror_of()
    mirror.step()
    assert [read_brief(text).id for text in stored(tmp_path)[0]] == ["good"]
    assert mirror.unreadable == len(bad)
    assert "no events" in caplog.text


def test_since_leaves_out_what_was_written_before(
    tmp_path: Path, topics: SqliteLog, mirror_of: Callable[..., Mirror]
) -> None:
    for n in range(100):
        topics.append(EVENTS, [record(event(f"e{n}"), NOW_NS - (100 - n) * 60 * S)])
    mirror_of(since_s=600.0).step()
    assert [read_brief(text).id for text in stored(tmp_path)[0]] == [f"e{n}" for n in range(90, 100)]


@given(gaps=st.lists(st.integers(0, 3), max_size=40), gone=st.integers(0, 40), at=st.integers(-1, 130))
def test_a_moment_is_found_in_a_topic(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int], gone: int, at: int
) -> None:
    times = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    with closing(open_log(tmp_path_factory.mktemp("log") / "log")) as log:
        for time_ns in times:
            log.append(EVENTS, [Record(time_ns, "x", b"12345678")])
        log.retain(EVENTS, Retention(size=8 * max(len(times) - gone, 1)))
        extent = log.extent(EVENTS)
        found = first_since(log, EVENTS, at)
        left = log.read(EVENTS, extent.first).entries
    assert [e.offset for e in left if e.offset >= found] == [e.offset for e in left if e.time_ns >= at]


class Broken:
    """A log that cannot be read at times, as data."""

    def __init__(self, log: Log, broken: threading.Event) -> None:
        self._log, self._broken = log, broken

    def read(self, topic: str, offset: int, limit: int = 1 << 20) -> Reading:
        if self._broken.is_set():
            raise UnreachableError("127.0.0.1:1: no answer")
        return self._log.read(topic, offset, limit)

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)


def test_a_log_that_is_away_is_said_and_waited_for(tmp_path: Path, topics: SqliteLog) -> None:
    broken, stop = threading.Event(), threading.Event()
    opened: Callable[[], Log] = lambda: Broken(topics_at(tmp_path), broken)  # type: ignore[return-value]  # noqa: E731 a port
    mirror = Mirror(opened, tmp_path / "store", "one", now_ns=lambda: NOW_NS)
    follower = Follower(tmp_path / "store", 3600.0, lambda: NOW_NS, lambda: mirror.trouble)
    topics.append(
        STATUS, [Record(NOW_NS, "processor#1", msgspec.json.encode(ProcessorStatus(written_ns=NOW_NS, ticks=5)))]
    )
    said: list[list[str]] = []
    waits: list[float] = []

    class Stop(threading.Event):
        """Ends after some rounds; between two, the follower looks."""

        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            follower.look()
            said.append([notice.badge for notice in notices(follower, NOW_NS)])
            if len(waits) == 2:
                broken.set()
            if len(waits) == 4:
                broken.clear()
                topics.append(EVENTS, [record(event("late"))])
            return self.is_set() or (len(waits) == 6 and self.set() is None)

    mirror.run(stop := Stop())
    follower.close()
    assert stop.is_set()
    assert waits == [mirroring.POLL_S, mirroring.POLL_S, mirroring.RETRY_S, mirroring.RETRY_S, 0.0, mirroring.POLL_S]
    assert said == [["QUIET"], ["QUIET"], ["WAITING"], ["WAITING"], ["QUIET"], ["QUIET"]]
    assert "late" in follower.events


# --- several that speak ----------------------------------------------------------------------------------------------


def processor(source: str, **changes: object) -> ProcessorStatus:
    plain = ProcessorStatus(
        written_ns=NOW_NS,
        source=source,
        time_ns=NOW_NS - S,
        clock_ns=NOW_NS - S,
        threshold=12.5,
        score=3.0,
        trace=(1.0, 3.0),
        ticks=10,
        frames_per_s=60.0,
        pmus=(PmuStatus(f"{source}1", source, 20.0), PmuStatus(f"{source}2", source, 2.0)),
    )
    return msgspec.structs.replace(plain, **changes)


def test_several_processors_are_one_screen() -> None:
    lasting = event("open", end_ns=None)
    north = processor(
        "north",
        behind_s=0.2,
        behind_entries=3,
        frequency_hz=60.0,
        second=ScorerStatus("sequence", 14.0, 3.0, (3.0,)),
        learning=(Learning("10s", 5.0, 2),),
        latency_p99_s=0.1,
        lasting=(brief(lasting),),
        lasting_count=1,
    )
    south = processor(
        "south",
        behind_s=7.0,
        behind_entries=40,
        frequency_hz=59.9,
        score=None,
        trace=(9.0, None, None),
        pmus=(PmuStatus("south1", "south", None, "silent", 3.0), PmuStatus("south2", "south", 5.0)),
        second=ScorerStatus("sequence", 14.0, 9.0, (1.0, 2.0)),
        learning=(Learning("10s", 50.0, 1), Learning("fast", 9.0, 2)),
        latency_p99_s=0.4,
        dead_letters=2,
        unsaved=True,
        stopped=True,
    )
    both = one_processor([north, south])
    assert both is not None
    assert both == one_processor([south, north]) or both.source == "north, south"
    assert [pmu.name for pmu in both.pmus] == ["north1", "south1", "south2", "north2"]
    assert (both.source, both.score, both.trace) == ("north, south", 3.0, (9.0, 1.0, 3.0))
    assert both.second == ScorerStatus("sequence", 14.0, 9.0, (1.0, 3.0))
    assert (both.behind_s, both.behind_entries, both.frames_per_s) == (7.0, 43, 120.0)
    assert (both.dead_letters, both.unsaved, both.stopped, both.latency_p99_s) == (2, True, False, 0.4)
    assert both.learning == (Learning("10s", 50.0, 3), Learning("fast", 9.0, 2))
    assert ([it.id for it in both.lasting], both.lasting_count) == (["open"], 1)
    assert both.frequency_hz == pytest.approx(59.95)
    assert one_processor([north]) is north
    assert one_processor([]) is None


def test_several_gateways_are_one_line() -> None:
    one = GatewayStatus(written_ns=1, states={"streaming": 2}, pmus=3, frames_per_s=90.0, troubled=(Trouble("a", "x"),))
    two = GatewayStatus(written_ns=2, states={"streaming": 1, "silent": 1}, pmus=1, troubled=(Trouble("b", "y"),))
    both = one_gateway([one, two])
    assert both is not None
    assert (both.states, both.pmus, both.frames_per_s) == ({"streaming": 3, "silent": 1}, 4, 90.0)
    assert [it.name for it in both.troubled] == ["a", "b"]


def test_who_was_replaced_is_forgotten_but_not_when_all_are_silent() -> None:
    old = processor("north", written_ns=NOW_NS - round((GONE_S + 1) * S))
    assert those_here({"old": old}) == {"old": old}
    assert those_here({"old": old, "new": processor("north")}).keys() == {"new"}


def test_each_that_falls_silent_is_named(tmp_path: Path, topics: SqliteLog, mirror_of: Callable[..., Mirror]) -> None:
    for instance, silent_s in (("a", 0), ("b", 20), ("c", GONE_S + 1)):
        with closing(StatusTopic(topics_at(tmp_path), instance, lambda: NOW_NS)) as topic:
            body = msgspec.json.encode(processor(instance, written_ns=NOW_NS - round(silent_s * S)))
            topic.put_status(PROCESSOR, body)
    assert topics.extent(STATUS).records == 3
    mirror_of().step()
    with closing(Follower(tmp_path / "store", 3600.0, lambda: NOW_NS)) as follower:
        follower.look()
        troubles = [(it.badge, it.text) for it in notices(follower, NOW_NS) if it.badge == "STALE"]
        assert follower.processor is not None
        assert len(follower.processor.pmus) == 4
    assert troubles == [("STALE", "the processor b has said nothing for 20 s")]


def test_a_board_speaks_to_a_topic(tmp_path: Path, topics: SqliteLog) -> None:
    board = GatewayBoard(lambda: StatusTopic(topics_at(tmp_path), "b"), now_ns=lambda: NOW_NS)
    board.told([], Totals(0, 0, Counts(), 0, 0, 0, 0, 0, 0))
    board.close()
    said = topics.latest(STATUS)
    assert said.keys() == {name_of(GATEWAY, "b")}
    status = read_gateway(said["gateway#b"].value)
    assert status is not None
    assert status.stopped


def test_a_topic_that_cannot_be_written_stops_no_board(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> StatusTopic:
        raise LogError("no broker")

    board = GatewayBoard(refuse, now_ns=lambda: NOW_NS)
    board.told([], Totals(0, 0, Counts(), 0, 0, 0, 0, 0, 0))
    board.close()
    assert caplog.text.count("no broker") == 1


def test_a_store_that_cannot_be_written_is_an_error(tmp_path: Path, topics: SqliteLog) -> None:
    topics.append(EVENTS, [record(event("a"))])
    (tmp_path / "file").touch()
    mirror = Mirror(lambda: topics_at(tmp_path), tmp_path / "file" / "store", "one")
    with closing(mirror), pytest.raises(StoreError):
        mirror.step()
