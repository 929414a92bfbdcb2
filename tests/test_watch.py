"""The watch: what another process writes is seen, whatever the terminal; what is old is called old."""

from __future__ import annotations

import io
import os
import pty
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from fcntl import ioctl
from functools import cache
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from gridsense.cli import EXIT_INPUT, exit_code
from gridsense.commands.watch import watch
from gridsense.errors import InputError, UsageError
from gridsense.events import Cause, Event
from gridsense.pipeline import Pipeline
from gridsense.pipeline import Settings as PipelineSettings
from gridsense.processor import Processor, Settings
from gridsense.status import (
    GATEWAY,
    PROCESSOR,
    GatewayStatus,
    Learning,
    PmuStatus,
    ProcessorBoard,
    ProcessorStatus,
    ScorerStatus,
    Trouble,
    brief,
)
from gridsense.store import EventStore
from gridsense.watch import Change, Follower, View, change_line, notices, show, tell
from streams.align import AlignSettings
from streams.log import FRAMES, Record
from streams.sqlite_log import open_log
from tests.reference.recorded import recorded
from tests.reference.small_grid import START_NS, small_grid

S = 1_000_000_000
NOW_NS = START_NS + 1000 * S
SIZES = [(60, 15), (80, 24), (100, 30), (200, 60), (120, 40), (119, 20), (250, 20), (30, 8)]
PIPELINE = PipelineSettings(source="small", learn_s=25.0, align=AlignSettings(lateness_s=1.0))
PROGRAM = (
    "import sys; from pathlib import Path; from gridsense.commands.watch import watch; watch(store=Path(sys.argv[1]))"
)


def event(name: str, cause: Cause = Cause.GRID, second: float = 990, **changes: object) -> Event:
    onset = START_NS + round(second * S)
    plain = Event(
        id=name,
        source="small",
        onset_ns=onset,
        raised_ns=onset + S // 5,
        end_ns=onset + 2 * S,
        cause=cause,
        kind="line_trip",
        first_pmu="Bus 7",
        pmus=("Bus 7", "Bus 8"),
        minus_ln_p=30.0,
        scorer="fast",
        contributions=(),
        sentence="a step of [bold]voltages[/bold] and flows; " * 4,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # a test names the fields it changes


LASTING = event("fault", second=995, end_ns=None, kind="fault")
PROCESSOR_SAYS = ProcessorStatus(
    written_ns=NOW_NS - S,
    source="small",
    began="fresh",
    time_ns=NOW_NS - S,
    clock_ns=NOW_NS - S,
    behind_s=0.1,
    frames_per_s=1620,
    threshold=12.5,
    frequency_hz=59.9876,
    score=3.1,
    trace=(*(1.0,) * 200, *(50.0,) * 20, *(3.1,) * 80),
    ticks=300,
    latency_p50_s=0.2,
    latency_p99_s=0.4,
    pmus=(
        PmuStatus("Bus 1", "north", 55.5, "", 0.0),
        PmuStatus("Bus 9", "south", None, "silent", 12.0),
        *(PmuStatus(f"Bus {i}", "north", 1.0, "", 0.0) for i in range(10, 60)),
    ),
)
BOTH_SAY = msgspec.structs.replace(
    PROCESSOR_SAYS,
    second=ScorerStatus("sequence", 14.1, 20.2, PROCESSOR_SAYS.trace[100:] + (20.2,) * 100),
    pmus=(
        PmuStatus("Bus 1", "north", 5.5, "", 0.0, 33.3),
        PmuStatus("Bus 2", "north", None, "", 0.0, 4.4),
        *PROCESSOR_SAYS.pmus[1:],
    ),
)
GATEWAY_SAYS = GatewayStatus(
    written_ns=NOW_NS - S,
    states={"backing-off": 2, "streaming": 498},
    troubled=(Trouble("Bus 99", "backing-off", "connection refused"), Trouble("Bus 98", "backing-off", "")),
    frames_per_s=14940,
    bytes_per_s=5.1e6,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def store(path: Path) -> Iterator[EventStore]:
    with EventStore(path) as opened:
        yield opened


@pytest.fixture
def follower(path: Path) -> Iterator[Follower]:
    one = Follower(path, 3600.0, lambda: NOW_NS)
    yield one
    one.close()


def says(store: EventStore, processor: ProcessorStatus = PROCESSOR_SAYS, gateway: GatewayStatus = GATEWAY_SAYS) -> None:
    store.put_status(PROCESSOR, msgspec.json.encode(processor))
    store.put_status(GATEWAY, msgspec.json.encode(gateway))


def lasting(*events: Event, **changes: object) -> ProcessorStatus:
    """What a processor says while these are open."""
    status = msgspec.structs.replace(PROCESSOR_SAYS, **changes)
    return msgspec.structs.replace(status, lasting=tuple(map(brief, events)), lasting_count=len(events))


def drawn(follower: Follower, width: int, height: int, now_ns: int = NOW_NS) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    console.print(View(follower, lambda: now_ns), end="")
    return out.getvalue().rstrip("\n").split("\n")


def badges(follower: Follower, now_ns: int = NOW_NS) -> list[str]:
    return [notice.badge for notice in notices(follower, now_ns)]


def told(changes: list[Change]) -> list[tuple[str, bool]]:
    return [(change.event.id, change.ended) for change in changes]


def looks(count: int, between: Callable[[int], None] = lambda _: None) -> Callable[[float], bool]:
    """A wait that lets so many looks happen."""
    waits = iter(range(1, count + 1))

    def wait(_seconds: float) -> bool:
        look = next(waits)
        between(look)
        return look == count

    return wait


# --- the screen ------------------------------------------------------------------------------------------------------


@cache
def records() -> tuple[Record, ...]:
    return tuple(recorded([small_grid("north", 1, 4, 1), small_grid("south", 5, 3, 2)]))


@pytest.mark.parametrize("sized", [(60, 15), (80, 24), (100, 30), (200, 60)])
def test_a_processor_at_work_is_seen_from_beside(tmp_path: Path, path: Path, sized: tuple[int, int]) -> None:
    """As in real life: it reads its log and writes, we read the store over another connection."""
    log = open_log(tmp_path / "log.db")
    now_ns = records()[-1].time_ns
    board = ProcessorBoard(path, Pipeline(PIPELINE).threshold, "small", 0.0, now_ns=lambda: now_ns)
    processor = Processor(Settings(PIPELINE, snapshot_s=1e9, idle_s=0.0), log, path, [board], lambda: now_ns)
    processor.open()
    follower = Follower(path, 3600.0, lambda: now_ns)
    seen: list[tuple[str, bool]] = []
    log.append(FRAMES, records())
    while processor.step():
        seen += told(follower.look())
    for _ in range(2):  # the word that is on its way, and one more of everything
        writing = board._writer._writing
        assert writing is not None
        writing.result(60)
        processor.step()
    board._writer._thread.submit(lambda: None).result(60)
    seen += told(follower.look())
    lines = drawn(follower, *sized, now_ns=now_ns)
    assert "GRID EVENT" in lines[0]
    assert "small" in lines[0]
    assert "2026-03-01 12:01:14" in lines[0]
    assert "fault, first at north3, seen by 7 PMUs" in lines[1]
    assert "59.69" in lines[2]
    assert " Hz   score " in lines[2]
    assert "OVER" in lines[2]
    assert [ended for _, ended in seen] == [False]
    text = "\n".join(lines)
    assert "OPEN" in text
    assert "7 PMUs, 7 atypical" in text
    assert "!" in text
    processor.finish()
    processor.close()
    board.close()
    log.close()
    follower.look()
    follower.close()
    assert "STOPPED" in drawn(follower, *sized, now_ns=now_ns)[0]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_fits_the_terminal(store: EventStore, follower: Follower, width: int, height: int) -> None:
    for moment in range(3):
        follower.look()
        lines = drawn(follower, width, height)
        assert max(map(len, lines)) <= width
        if height >= 15:
            assert len(lines) == height
        store.put([event(f"{moment} {i}", list(Cause)[i % 5], second=900 + i) for i in range(20 * moment)])
        says(store, lasting(LASTING) if moment else PROCESSOR_SAYS)


@pytest.mark.parametrize(("width", "height"), [(60, 15), (80, 24), (100, 30), (200, 60)])
def test_what_matters_is_said_in_words(store: EventStore, follower: Follower, width: int, height: int) -> None:
    says(store)
    store.put([event("over")])
    follower.look()
    lines = drawn(follower, width, height)
    text = "\n".join(lines)
    assert " QUIET " in lines[0]
    assert "59.988 Hz   score 3.1 under 12.5" in lines[2]
    assert "498 streaming, 2 backing off" in lines[3]
    assert "52 PMUs, 1 atypical, 1 refused" in text
    assert "! Bus 1 " in text
    assert "x Bus 9" in text
    assert width < 80 or "SILENT 12 s" in text
    assert "GRID    line trip" in text
    assert "[bold]voltages[/bold]" in text, "a sentence is text, not markup"
    if width >= 100:
        assert "Bus 99 (connection refused), Bus 98 (backing off)"[: width - 70] in lines[3]
    # the jump 20 s ago is the only thing above the threshold
    score = next(line for line in lines if "last min" in line) if height < 20 else ""
    assert height >= 20 or 1 <= score.count("█") <= 5
    says(store, lasting(LASTING))
    store.put([LASTING])
    follower.look()
    lines = drawn(follower, width, height)
    assert " GRID EVENT " in lines[0]
    assert "fault, first at Bus 7, seen by 2 PMUs" in lines[1]
    order = [line.split()[3] for line in lines if "GRID    " in line]
    assert order[0] == "fault", "what is open stands first"
    assert "OPEN 4 s" in "\n".join(lines)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_both_scorers_stand_side_by_side(store: EventStore, follower: Follower, width: int, height: int) -> None:
    says(store, BOTH_SAY)
    follower.look()
    lines = drawn(follower, width, height)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    if width >= 100:
        assert "score 3.1 under 12.5   sequence 20.2 OVER 14.1" in text
    if height >= 20 and width >= 80:
        assert "grid, fast: " in text
        assert "grid, sequence: " in text
        assert "1 atypical" in text, "the second scorer's word is enough"
        (bus,) = [line for line in lines if "! Bus 1 " in line]
        assert "   5.5   33.3 " in bus
        if height >= 24:
            assert [line for line in lines if " Bus 2 " in line and "     -    4.4 " in line]


def test_an_old_state_is_called_old(store: EventStore, follower: Follower) -> None:
    says(store)
    follower.look()
    assert badges(follower) == ["QUIET"]
    assert badges(follower, NOW_NS + 3 * S) == ["QUIET"]
    later = NOW_NS + 11 * S
    assert badges(follower, later) == ["STALE", "STALE"]
    lines = drawn(follower, 80, 24, later)
    assert " STALE " in lines[0]
    assert "the processor has said nothing for 12 s" in lines[1]
    assert lines[2].startswith(" THEN 59.988 Hz")
    assert lines[3].startswith(" gateway: THEN 498 streaming")
    says(store, gateway=msgspec.structs.replace(GATEWAY_SAYS, written_ns=later))
    follower.look()
    assert badges(follower, later) == ["STALE"]
    says(store, msgspec.structs.replace(PROCESSOR_SAYS, written_ns=later), GATEWAY_SAYS)
    follower.look()
    (notice,) = notices(follower, later)
    assert (notice.badge, notice.text) == ("STALE", "the gateway has said nothing for 12 s")


def test_who_was_stopped_is_told_from_who_fell_silent(store: EventStore, follower: Follower) -> None:
    says(store, msgspec.structs.replace(PROCESSOR_SAYS, stopped=True))
    follower.look()
    assert notices(follower, NOW_NS + 3600 * S)[0].text == "the processor was stopped 60 min ago"
    assert badges(follower) == ["STOPPED"]


def test_a_grid_event_is_seen_beside_a_stale_state(store: EventStore, follower: Follower) -> None:
    says(store, lasting(LASTING))
    follower.look()
    assert badges(follower, NOW_NS + 60 * S) == ["STALE", "STALE", "GRID EVENT"]
    assert "GRID EVENT: fault" in drawn(follower, 200, 60, NOW_NS + 60 * S)[1]


def test_learning_lateness_and_trouble_with_data_are_said(store: EventStore, follower: Follower) -> None:
    learning = (Learning("fast", 23.0, 54), Learning("10s", 200.0, 54))
    says(store, lasting(learning=learning, score=None))
    follower.look()
    (notice,) = notices(follower, NOW_NS)
    assert (notice.badge, notice.text) == ("LEARNING", "what is typical, 23 s left")
    assert "no score" in drawn(follower, 80, 24)[2]
    # one PMU that joined later is no reason to call all of it learning
    says(store, lasting(learning=(Learning("fast", 0.0, 1),)))
    follower.look()
    assert badges(follower) == ["QUIET"]
    says(store, lasting(behind_s=90.0, behind_entries=12_345))
    follower.look()
    (notice,) = notices(follower, NOW_NS)
    assert (notice.badge, notice.text) == ("LATE", "the processor is 90 s behind, 12,345 entries of the log")
    stuck = event("stuck", Cause.DATA, end_ns=None, kind="stuck")
    silent = [event(f"silent {i}", Cause.COMMS, end_ns=None, kind="source_silent") for i in range(2)]
    says(store, lasting(stuck, *silent, unsaved=True))
    follower.look()
    assert [f"{it.badge}: {it.text}" for it in notices(follower, NOW_NS)] == [
        "COMMS: 2 events open: source silent",
        "DATA: 1 event open: stuck at Bus 7",
        "UNSAVED: the processor's last snapshot could not be written",
    ]


# --- following -------------------------------------------------------------------------------------------------------


def test_events_are_followed_in_their_order_and_each_stage_once(store: EventStore, follower: Follower) -> None:
    says(store)
    first, second = event("first", end_ns=None), event("second", Cause.DATA, end_ns=None)
    store.put([first])
    assert told(follower.look()) == [("first", False)]
    assert follower.look() == []
    store.put([first, second])  # as after a restart: it says again what it said
    assert told(follower.look()) == [("second", False)]
    store.put([replace(first, end_ns=first.onset_ns + S)])
    store.put([replace(second, end_ns=second.onset_ns + S), event("gap", end_ns=event("gap").onset_ns)])
    assert told(follower.look()) == [("first", True), ("second", True), ("gap", True)]
    assert follower.look() == []


def test_what_happened_before_is_told_by_time_and_the_old_is_left_out(path: Path, store: EventStore) -> None:
    says(store, lasting(event("weeks ago", Cause.COMMS, second=-1e6, end_ns=None)))
    store.put([event("weeks ago", Cause.COMMS, second=-1e6, end_ns=None), event("old", second=-4000)])
    store.put([event("late", second=990), event("early", second=989, end_ns=START_NS + 995 * S)])
    follower = Follower(path, 3600.0, lambda: NOW_NS)
    assert told(follower.look()) == [
        ("weeks ago", False),
        ("early", False),
        ("late", False),
        ("late", True),
        ("early", True),
    ]
    assert [e.id for e in follower.open_events()] == ["weeks ago"]
    follower.close()


def test_the_hour_is_that_of_the_stream(path: Path, store: EventStore) -> None:
    """A recording that is played has its own time."""
    store.put([event("in the recording")])
    says(store)
    for now_ns in (0, 10**19):
        follower = Follower(path, 3600.0, lambda now_ns=now_ns: now_ns)  # type: ignore[misc]  # mypy cannot infer it
        assert told(follower.look()) == [("in the recording", False), ("in the recording", True)]
        follower.close()


def test_an_event_that_grows_is_seen_to_grow(store: EventStore, follower: Follower) -> None:
    store.put([LASTING])
    says(store, lasting(LASTING))
    follower.look()
    says(store, lasting(replace(LASTING, pmus=tuple("abcdefg"))))
    assert follower.look() == []
    assert follower.events["fault"].pmus == 7
    ended = replace(LASTING, end_ns=LASTING.onset_ns + 3 * S, pmus=tuple("abcdefgh"))
    store.put([ended])
    assert told(follower.look()) == [("fault", True)]
    assert (follower.events["fault"].pmus, follower.open_events()) == (8, [])


def test_an_event_that_the_processor_forgot_is_not_called_open(store: EventStore, follower: Follower) -> None:
    store.put([LASTING])
    says(store, lasting(LASTING))
    follower.look()
    assert [e.id for e in follower.open_events()] == ["fault"]
    says(store)  # began anew under other settings: it will never end it
    follower.look()
    assert follower.open_events() == []
    assert "end unseen" in "\n".join(drawn(follower, 100, 30))
    assert badges(follower) == ["QUIET"]


def test_events_of_long_ago_are_dropped(store: EventStore, follower: Follower) -> None:
    says(store)
    store.put([event("early")])
    follower.look()
    assert list(follower.events) == ["early"]
    says(store, lasting(time_ns=NOW_NS + 4000 * S))
    follower.look()
    assert follower.events == {}


def test_a_store_is_waited_for_and_may_be_replaced(path: Path) -> None:
    follower = Follower(path, 3600.0, lambda: NOW_NS)
    assert follower.look() == []
    assert badges(follower) == ["WAITING"]
    assert "no event store yet" in drawn(follower, 200, 60)[1]
    path.touch()
    assert follower.look() == []
    assert badges(follower) == ["WAITING"]
    path.unlink()
    for name in ("first", "second"):
        with EventStore(path) as store:
            says(store)
            store.put([event(name)])
        assert told(follower.look()) == [(name, False), (name, True)]
        assert list(follower.events) == [name]
        assert badges(follower) == ["QUIET"]
        path.rename(path.with_suffix(f".{name}"))
        follower.look()
        assert badges(follower)[0] == "WAITING"
    follower.close()


@pytest.mark.parametrize("what", ["no database at all " * 100, ""])
def test_a_file_that_is_no_event_store_is_left_as_it_is(path: Path, what: str) -> None:
    if what:
        path.write_text(what)
    else:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE mine (x)")
        other.close()
    before = path.read_bytes()
    follower = Follower(path, 3600.0, lambda: NOW_NS)
    assert follower.look() == []
    assert "event store" in follower.trouble
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="event store"):
        watch(store=path, once=True)


def test_an_event_of_another_version_hides_no_other(store: EventStore, follower: Follower) -> None:
    says(store)
    follower.look()
    store.put([event("strange"), event("known")])
    store._connection.execute("UPDATE change SET cloudevent = '{\"id\": 5}' WHERE id = 'strange'")
    assert told(follower.look()) == [("known", True)]
    assert badges(follower) == ["UNREAD"]


# --- lines and the command -------------------------------------------------------------------------------------------


def test_lines_are_told_as_they_come_and_troubles_once(path: Path) -> None:
    lines: list[str] = []
    complaints: list[str] = []
    clock = [NOW_NS]

    def between(look: int) -> None:
        if look == 2:
            with EventStore(path) as store:
                says(store)
                store.put([replace(LASTING, sentence="a [red]sentence[/red]")])
        elif look == 3:
            clock[0] += 20 * S
        elif look == 6:
            with EventStore(path) as store:
                store.put([replace(LASTING, end_ns=LASTING.onset_ns + S)])
                new = msgspec.structs.replace(PROCESSOR_SAYS, written_ns=clock[0])
                says(store, new, msgspec.structs.replace(GATEWAY_SAYS, written_ns=clock[0]))

    tell(Follower(path, 3600.0), lines.append, complaints.append, looks(8, between), lambda: clock[0])
    assert [line.split()[1:4] for line in lines] == [["raised", "grid", "fault"], ["ended", "grid", "fault"]]
    assert lines[0].startswith("2026-03-01T12:16:35.200Z  raised  grid ")
    assert lines[0].endswith("lasting   2 PMUs  a [red]sentence[/red]")
    assert lines[1].startswith("2026-03-01T12:16:36.000Z")
    assert complaints == [
        f"WAITING: {path}: no event store yet; `gridsense run` makes it",
        "all is well again",
        "STALE: the processor has said nothing for 21 s",
        "STALE: the gateway has said nothing for 21 s",
        "all is well again",
    ]


def test_a_line_says_when_what_and_why() -> None:
    one = event("x", Cause.COMMS, second=5, pmus=("a",), sentence="NYISO: silent", kind="source_silent")
    assert " ".join(change_line(Change(ended=True, event=brief(one))).split()) == (
        "2026-03-01T12:00:07.000Z ended comms source silent 12:00:05.000 2.0 s 1 PMU NYISO: silent"
    )


def test_once_prints_the_present_and_stops(path: Path, store: EventStore, capsys: pytest.CaptureFixture[str]) -> None:
    says(store, lasting(LASTING))
    store.put([LASTING, *(event(f"e{i}", second=900 + i) for i in range(40))])
    watch(store=path, once=True)
    lines = capsys.readouterr().out.splitlines()
    assert "STALE" in lines[0]  # by the real clock
    assert "GRID EVENT: fault" in lines[1]
    assert sum("line trip" in line for line in lines) == 40
    assert max(map(len, lines)) <= 120


def test_once_needs_a_store(path: Path) -> None:
    with pytest.raises(InputError, match="no event store yet") as caught:
        watch(store=path, once=True)
    assert exit_code(caught.value) == EXIT_INPUT


def test_the_configuration_says_where_the_store_is(
    tmp_path: Path, path: Path, store: EventStore, capsys: pytest.CaptureFixture[str]
) -> None:
    says(store)
    config = tmp_path / "north.toml"
    config.write_text('[store]\npath = "events.db"\n')
    watch(str(config), once=True)
    assert "59.988 Hz" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no such file"):
        watch(str(tmp_path / "south.toml"), once=True)
    with pytest.raises(UsageError, match="duration"):
        watch(store=path, since="for ever")


def test_show_draws_what_is_new_and_each_second(store: EventStore, path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, height=24, force_terminal=True, color_system=None)
    clock = [NOW_NS]
    sizes: list[int] = []

    def between(look: int) -> None:
        sizes.append(len(out.getvalue()))
        if look == 3:
            store.put([event("new")])
        elif look == 5:
            clock[0] += S

    says(store)
    show(console, View(Follower(path, 3600.0), lambda: clock[0]), looks(7, between), lambda: clock[0])
    drawn_at = [i + 1 for i in range(1, 7) if sizes[i] > sizes[i - 1]]
    assert drawn_at == [4, 6]
    assert "line trip" in out.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_a_pipe_lines_come_at_once_and_a_signal_ends_it(path: Path, number: signal.Signals) -> None:
    with EventStore(path) as store:
        says(store)
        store.put([event("before")])
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert [process.stdout.readline().split()[1] for _ in range(2)] == ["raised", "ended"]
            for name in ("one", "two"):
                store.put([event(name, end_ns=None)])
                assert process.stdout.readline().split()[1:3] == ["raised", "grid"]
            process.send_signal(number)
            _, wrong = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in wrong


def test_on_a_terminal_it_fills_it_and_ctrl_c_gives_it_back(path: Path) -> None:
    leader, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    environment = {k: v for k, v in environment.items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}}
    with EventStore(path) as store:
        says(store)
        store.put([event("seen")])
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)], stdout=terminal, stderr=terminal, stdin=terminal, env=environment
    ) as process:
        os.close(terminal)
        text, deadline = b"", time.monotonic() + 60
        while b"line trip" not in text and time.monotonic() < deadline:
            text += os.read(leader, 65536)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # the other end is closed
            while more := os.read(leader, 65536):
                text += more
        assert process.wait(60) == 0
    os.close(leader)
    assert b"GridSense" in text
    assert text.index(b"\x1b[?1049h") < text.index(b"\x1b[?1049l"), "the screen as it was comes back"
    assert b"Traceback" not in text
