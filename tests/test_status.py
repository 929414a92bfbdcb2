"""What processor and gateway say of themselves: as it is, in little time and room, whatever becomes of the store."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np
import pytest

from gridsense.events import Cause, Event, cloudevent
from gridsense.pipeline import Output, Pipeline
from gridsense.pipeline import Settings as PipelineSettings
from gridsense.processor import Processor, Settings, Step
from gridsense.sequence import load_model
from gridsense.sources import cut
from gridsense.status import (
    GATEWAY,
    LASTING,
    PROCESSOR,
    TROUBLED,
    GatewayBoard,
    GatewayStatus,
    ProcessorBoard,
    ProcessorStatus,
    brief,
    read_brief,
    read_gateway,
    read_processor,
)
from gridsense.store import EventStore
from streams.align import AlignSettings
from streams.channels import ChannelTable
from streams.errors import UnreachableError
from streams.gateway.status import ConnectionStatus, Counts, State, Totals
from streams.log import FRAMES, Record
from streams.sqlite_log import open_log
from tests.reference.recorded import recorded
from tests.reference.small_grid import START_NS, small_grid

S = 1_000_000_000
PIPELINE = PipelineSettings(source="small", learn_s=25.0, align=AlignSettings(lateness_s=1.0))
SETTINGS = Settings(PIPELINE, snapshot_s=1e9, idle_s=0.0)


class Clock:
    """Stands until it is set."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def seconds(self) -> float:
        return self.now_ns / 1e9


def event(second: int, cause: Cause = Cause.GRID, sentence: str = "it moved") -> Event:
    onset = START_NS + second * S
    return Event(
        id=f"{cause}{second}",
        source="small",
        onset_ns=onset,
        raised_ns=onset + S // 5,
        end_ns=None,
        cause=cause,
        kind="line_trip",
        first_pmu="north1",
        pmus=("north1", "north2"),
        minus_ln_p=30.0,
        scorer="fast",
        contributions=(),
        sentence=sentence,
    )


def step(clock_ns: int = START_NS, outputs: Sequence[Output] = (), **changes: object) -> Step:
    plain = Step(
        region="",
        place=7,
        outputs=outputs,
        events=(),
        lasting=(),
        dead=(),
        lost=(),
        latency_s=(),
        took_s=0.01,
        clock_ns=clock_ns,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # a test names the fields it changes


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def written(board: ProcessorBoard | GatewayBoard) -> bool:
    """Whether the last word is out."""
    writing = board._writer._writing
    return writing is not None and writing.done()


def stored(path: Path, name: str) -> bytes | None:
    with EventStore(path) as store:
        return store.status(name)


def said(path: Path) -> ProcessorStatus:
    status = read_processor(stored(path, PROCESSOR))
    assert status is not None
    return status


def processed(
    folder: Path, records: list[Record], clock: Clock, settings: PipelineSettings = PIPELINE
) -> ProcessorStatus:
    """Let a processor read all that is there, and take what it says at the end."""
    log = open_log(folder / "log.db")
    log.append(FRAMES, records)
    threshold = Pipeline(settings).threshold
    board = ProcessorBoard(
        folder / "events.db",
        threshold,
        "small",
        behind=lambda place: log.extent(FRAMES).next - place,
        now_ns=clock,
        monotonic_s=clock.seconds,
    )
    processor = Processor(replace(SETTINGS, pipeline=settings), log, folder / "events.db", [board], clock)
    processor.open()
    while processor.step():
        pass
    status = board.status()
    processor.close()
    board.close()
    log.close()
    return status


def test_a_processor_says_how_it_is(tmp_path: Path) -> None:
    records = recorded([small_grid("north", 1, 4, 1), small_grid("south", 5, 3, 2)])
    clock = Clock(records[-1].time_ns + 3 * S)
    status = processed(tmp_path, records, clock)
    assert (status.source, status.began, status.stopped) == ("small", "fresh", False)
    assert status.behind_s == pytest.approx(3.0)
    assert status.behind_entries == 0
    assert 0 <= records[-1].time_ns - status.time_ns < 2 * S
    assert status.frequency_hz is not None
    assert 59.6 < status.frequency_hz < 59.8  # it has been falling since the disturbance
    (lasting,) = status.lasting
    assert (lasting.cause, lasting.pmus, lasting.end_ns, status.lasting_count) == (Cause.GRID, 7, None, 1)
    assert len(status.pmus) == 7
    assert {pmu.source for pmu in status.pmus} == {"north", "south"}
    scores = [pmu.score for pmu in status.pmus if pmu.score is not None]
    assert len(scores) == 7
    assert scores == sorted(scores, reverse=True)
    assert all(pmu.age_s == 0 and not pmu.refused for pmu in status.pmus)
    assert status.ticks == len(status.trace)
    assert status.ticks == 375
    assert status.score == status.trace[-1]
    known = [value for value in status.trace if value is not None]
    assert max(known) > status.threshold > known[0]
    assert [it.scorer for it in status.learning] == ["10s", "60s"]
    assert all(it.pmus == 7 and it.missing_s > 0 for it in status.learning)
    assert status.latency_p50_s is not None
    assert said(tmp_path / "events.db") == msgspec.structs.replace(status, stopped=True)


def test_both_scorers_are_told(tmp_path: Path) -> None:
    records = recorded([small_grid("north", 1, 4, 1), small_grid("south", 5, 3, 2)])
    settings = replace(PIPELINE, scorers=("quadratic", "sequence"), model=load_model())
    status = processed(tmp_path, records, Clock(records[-1].time_ns), settings)
    assert (status.scorer, status.threshold) == ("fast", pytest.approx(Pipeline(settings).threshold, abs=0.1))
    second = status.second
    assert second is not None
    assert second.scorer == "sequence"
    assert second.threshold == pytest.approx(status.threshold + np.log(5), abs=0.1), "its window is a fifth as long"
    assert len(second.trace) == len(status.trace) == status.ticks
    assert second.score == second.trace[-1]
    for trace, threshold in ((status.trace, status.threshold), (second.trace, second.threshold)):
        assert max(value for value in trace if value is not None) > threshold
    assert all(pmu.second is not None for pmu in status.pmus)
    worst = [max(pmu.score or 0, pmu.second or 0) for pmu in status.pmus]
    loud = [(pmu.score or 0) > status.threshold or (pmu.second or 0) > second.threshold for pmu in status.pmus]
    assert loud == sorted(loud, reverse=True)
    assert worst[sum(loud) :] == sorted(worst[sum(loud) :], reverse=True)


def test_a_pmu_that_falls_silent_is_told_first_with_its_age(tmp_path: Path) -> None:
    north, south = small_grid("north", 1, 4, 1, seconds=50), small_grid("south", 5, 3, 2, seconds=50)
    records = [r for r in recorded([north, south]) if r.key == "north" or r.time_ns < START_NS + 40 * S]
    status = processed(tmp_path, records, Clock(records[-1].time_ns))
    silent = [pmu for pmu in status.pmus if pmu.refused]
    assert silent == list(status.pmus[:3])
    assert {(pmu.source, pmu.refused, pmu.score) for pmu in silent} == {("south", "silent", None)}
    assert all(pmu.age_s is not None and 7 < pmu.age_s < 11 for pmu in silent)
    assert all(pmu.age_s == 0 for pmu in status.pmus[3:])
    assert status.lasting[0].kind == "source_silent"


def test_when_a_source_joins_the_others_keep_their_ages(tmp_path: Path) -> None:
    north, south = small_grid("north", 1, 2, 1, seconds=8), small_grid("south", 5, 2, 2, seconds=8)
    early = north.time_ns < START_NS + 4 * S
    board = ProcessorBoard(tmp_path / "events.db", 12.5, every_s=1e9)
    pipeline = Pipeline(PIPELINE)
    board.stepped(step(outputs=pipeline.feed([("north", cut(north, early))])))
    first = board.status()
    assert {pmu.name for pmu in first.pmus} == {"north0", "north1"}
    board.stepped(step(outputs=[*pipeline.feed([("south", cut(south, ~early))]), *pipeline.finish()]))
    second = board.status()
    board.close()
    ages_s = {pmu.name: pmu.age_s for pmu in second.pmus}
    assert ages_s == {"north0": 4.0, "north1": 4.0, "south0": 0.0, "south1": 0.0}
    assert second.ticks > first.ticks


def test_three_thousand_pmus_take_little_room(tmp_path: Path) -> None:
    one = small_grid("north", 1, 1, 1, seconds=2)
    pmu, count = one.table.pmus[0], 3000
    table = ChannelTable(
        tuple(replace(pmu, name=f"SUBSTATION {i:05}", source=f"CONCENTRATOR {i // 30:03}") for i in range(count))
    )
    many = replace(
        one, table=table, stat=np.repeat(one.stat, count, 1), values=np.repeat(np.float32(one.values), count, 1)
    )
    board = ProcessorBoard(tmp_path / "events.db", 12.5, every_s=1e9)
    lasting = [event(i, sentence="x" * 10_000) for i in range(3)]
    pipeline = Pipeline(PIPELINE)
    board.stepped(step(outputs=(*pipeline.feed([("north", many)]), *pipeline.finish()), lasting=lasting))
    status = board.status()
    board.close()
    assert len(status.pmus) == count
    assert len(msgspec.json.encode(status)) < 200_000


def test_of_a_flood_of_events_those_of_the_grid_are_named_and_all_counted(tmp_path: Path) -> None:
    board = ProcessorBoard(tmp_path / "events.db", 12.5, every_s=1e9)
    lasting = [event(0), *(event(i, Cause.DATA) for i in range(1, 300)), event(300)]
    board.stepped(step(lasting=lasting))
    status = board.status()
    board.close()
    assert status.lasting_count == 301
    assert [it.id for it in status.lasting[:3]] == ["grid300", "grid0", "data299"]
    assert len(status.lasting) == LASTING


def test_latency_is_that_of_the_last_minute(tmp_path: Path) -> None:
    clock = Clock(START_NS)
    board = ProcessorBoard(tmp_path / "events.db", 12.5, every_s=1e9, now_ns=clock, monotonic_s=clock.seconds)
    board.stepped(step(latency_s=[9.0] * 50))
    assert board.status().latency_p50_s == 9
    clock.now_ns += 61 * S
    board.stepped(step(latency_s=[0.2] * 98 + [0.8] * 2))
    status = board.status()
    board.close()
    assert status.latency_p50_s == pytest.approx(0.2)
    assert status.latency_p99_s == pytest.approx(0.8, abs=0.01)


def test_it_speaks_once_a_second(tmp_path: Path) -> None:
    clock, path = Clock(START_NS), tmp_path / "events.db"
    board = ProcessorBoard(path, 12.5, now_ns=clock, monotonic_s=clock.seconds)
    board.stepped(step())
    until(lambda: written(board))
    first = stored(path, PROCESSOR)
    clock.now_ns += S // 2
    board.stepped(step())
    until(lambda: written(board))
    assert stored(path, PROCESSOR) == first
    clock.now_ns += S // 2
    board.stepped(step())
    until(lambda: stored(path, PROCESSOR) != first)
    assert said(path).written_ns == START_NS + S
    board.close()
    assert said(path).stopped


def test_a_store_that_cannot_be_written_is_told_once_and_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, path = Clock(START_NS), tmp_path / "nowhere" / "events.db"
    board = ProcessorBoard(path, 12.5, now_ns=clock, monotonic_s=clock.seconds)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            board.stepped(step())
            until(lambda: written(board))
            clock.now_ns += 2 * S
    assert len(caplog.records) == 1
    assert "nowhere" in caplog.text
    path.parent.mkdir()
    board.stepped(step())
    board.close()
    assert said(path).written_ns == clock.now_ns


def test_at_the_end_a_place_in_trouble_is_not_waited_for_again() -> None:
    """Each attempt to reach a broker that is away takes seconds."""
    opened = list[int]()

    def away() -> NoReturn:
        opened.append(1)
        raise UnreachableError("no answer")

    board = GatewayBoard(away)
    board.told([], totals([]))
    until(lambda: written(board))
    board.close()
    assert len(opened) == 1


def test_a_store_that_others_hold_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    EventStore(path).close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    board = ProcessorBoard(path, 12.5, every_s=0.0)
    told = threading.Event()

    def tell() -> None:
        for _ in range(100):
            board.stepped(step())
        told.set()

    thread = threading.Thread(target=tell)
    thread.start()
    assert told.wait(60)
    assert not board._writer.due()  # the first word still waits
    thread.join()
    holder.execute("ROLLBACK")
    holder.close()
    board.close()
    assert said(path).stopped


def connection(name: str, state: State, error: str = "", frames: int = 0) -> ConnectionStatus:
    return ConnectionStatus(name, state, START_NS, 0, 1, 2, 30.0, Counts(frames=frames), "", 0, error)


def totals(connections: list[ConnectionStatus]) -> Totals:
    counts = Counts()
    for one in connections:
        counts.add(one.counts)
    counts.frames_bytes = counts.frames * 100
    return Totals(len(connections), 0, counts, 0, 5, 0, 0, 0, 0)


def test_a_gateway_says_who_streams_and_who_is_in_trouble(tmp_path: Path) -> None:
    clock, path = Clock(START_NS), tmp_path / "events.db"
    board = GatewayBoard(path, now_ns=clock, monotonic_s=clock.seconds)

    def told(frames: int) -> GatewayStatus:
        connections = [
            *(connection(f"good {i}", State.STREAMING, frames=frames) for i in range(498)),
            connection("north", State.BACKING_OFF, "connection refused " * 50),
            connection("south", State.REFUSED, "its configuration contradicts itself"),
        ]
        board.told(connections, totals(connections))
        until(lambda: written(board))
        status = read_gateway(stored(path, GATEWAY))
        assert status is not None
        return status

    first = told(1000)
    assert first.states == {"streaming": 498, "backing-off": 1, "refused": 1}
    assert [it.name for it in first.troubled] == ["south", "north"]
    assert first.troubled[0].reason == "its configuration contradicts itself"
    assert len(first.troubled[1].reason) < 200
    assert (first.pmus, first.waiting_bytes, first.stopped) == (1000, 5, False)
    clock.now_ns += 2 * S
    second = told(1060)
    assert second.frames_per_s == pytest.approx(498 * 30)
    assert second.bytes_per_s == pytest.approx(498 * 3000)
    clock.now_ns += S
    board.close()
    last = read_gateway(stored(path, GATEWAY))
    assert last == msgspec.structs.replace(second, written_ns=clock.now_ns, stopped=True)


def test_of_many_in_trouble_some_are_named(tmp_path: Path) -> None:
    board = GatewayBoard(tmp_path / "events.db")
    connections = [connection(f"{i}", State.BACKING_OFF, "unreachable " * 100) for i in range(3000)]
    board.told(connections, totals(connections))
    board.close()
    body = stored(tmp_path / "events.db", GATEWAY)
    status = read_gateway(body)
    assert status is not None
    assert status.states == {"backing-off": 3000}
    assert len(status.troubled) == TROUBLED
    assert len(body or b"") < 50_000


def test_other_versions_are_understood_or_passed_over() -> None:
    row = ["a", "b", 1.5, "", 0.1, 2.5, "more"]
    newer = {"form": 1, "written_ns": 5, "something": [1, {"new": True}], "pmus": [row]}
    status = read_processor(json.dumps(newer).encode())
    assert status is not None
    assert status.pmus[0].second == 2.5
    older = {"form": 1, "written_ns": 5, "threshold": 12.5, "trace": [1.0], "pmus": [row[:5]]}
    before = read_processor(json.dumps(older).encode())
    assert before is not None
    assert (before.scorer, before.second, before.pmus[0].second) == ("fast", None, None)
    assert (status.written_ns, status.pmus[0].name, status.pmus[0].age_s) == (5, "a", 0.1)
    assert read_processor(b'{"form": 2}') is None
    assert read_processor(b"\x93 no JSON") is None
    assert read_processor(b'{"written_ns": "yesterday"}') is None
    assert read_processor(None) is None
    assert read_gateway(b"{}") == GatewayStatus()


def test_what_a_device_calls_itself_does_nothing_to_a_terminal(tmp_path: Path) -> None:
    name = "Bus\x1b[2J\n7"
    bad = replace(event(5), first_pmu=name, sentence=f"{name}: it moved")
    for one in (brief(bad), read_brief(cloudevent(bad).decode())):
        assert (one.first_pmu, one.sentence) == ("Bus\ufffd[2J\ufffd7", "Bus\ufffd[2J\ufffd7: it moved")
    grid = small_grid("north", 1, 1, 1, seconds=2)
    table = ChannelTable((replace(grid.table.pmus[0], name=name),))
    board, pipeline = ProcessorBoard(tmp_path / "events.db", 12.5, every_s=1e9), Pipeline(PIPELINE)
    board.stepped(step(outputs=[*pipeline.feed([("north", replace(grid, table=table))]), *pipeline.finish()]))
    (pmu,) = board.status().pmus
    board.close()
    assert pmu.name == "Bus\ufffd[2J\ufffd7"


def test_a_brief_is_what_the_store_gives_back() -> None:
    plain = event(5)
    assert read_brief(cloudevent(plain).decode()) == brief(plain)
    ended = replace(plain, end_ns=plain.onset_ns + 3 * S)
    assert read_brief(cloudevent(ended).decode()).end_ns == ended.end_ns
