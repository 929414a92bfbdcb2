"""The event store of a running system in, a live screen or lines out: what an operator watches.

In: what processors and gateways say of themselves, and the events, all from the store, written by others. Out: a
screen that fills any terminal, or a line for each event raised or ended. It changes nothing in the store, holds nobody
up, and says loudly when what it shows is old. Everything that a colour says is said by a word or a sign too.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gridsense.errors import StoreError
from gridsense.events import Cause, rfc3339
from gridsense.fleet import is_named, one_gateway, one_processor, those_here
from gridsense.screen import (
    bar,
    boxed,
    feed,
    fit,
    lasted,
    one_line,
    reading,
    seen_by,
    span,
    sparkline,
    spread,
    time_of_day,
    trace_panels,
    words,
)
from gridsense.status import (
    GATEWAY,
    PROCESSOR,
    EventBrief,
    GatewayStatus,
    PmuStatus,
    ProcessorStatus,
    Trace,
    printable,
    read_brief,
    read_gateway,
    read_processor,
)
from gridsense.store import EventStore

POLL_S = 0.2
"""From one look into the store to the next."""
STALE_S = 5.0
"""Who has said nothing for so long has fallen silent."""
LATE_S = 5.0
"""A processor this far behind is late: what it finds is news of the past."""
KEPT = 2000
"""Events remembered at most."""

_NO_STORE = "no event store yet; `gridsense run` makes it"
_NAME = 17
_COLUMN = 46
"""Letters of a PMU's name, and of all that is said of it."""
_SMALL_ROWS, _WIDE = 20, 120
"""A terminal of fewer lines has no charts; one of as many columns has them side by side."""
_ONCE_WORST = 10


class Change(NamedTuple):
    """An event that was raised or that ended.

    Attributes
    ----------
    ended
        Which of the two.
    event
        As it was then.
    """

    ended: bool
    event: EventBrief


class Notice(NamedTuple):
    """Something that the operator must know.

    Attributes
    ----------
    badge
        In a word.
    style
        Of the word.
    text
        In a sentence.
    subject
        Of whom, where it may be said of several.
    """

    badge: str
    style: str
    text: str
    subject: str = ""


class Follower:
    """Follows one event store, from another process or thread than those that write it.

    Parameters
    ----------
    path
        The store's file. There need not be one yet.
    since_s
        How far back events are remembered, and told at the beginning.
    now_ns
        The wall clock, UTC nanoseconds.
    broken
        Says why the store may not be up to date, though it can be read; empty where it is.

    Attributes
    ----------
    processors, gateways
        What each said last, by name; those that are there no more are left out.
    processor, gateway
        What they say together; None where they said nothing.
    events
        By id: those that last, and those of the last `since_s`.
    trouble
        Why the store cannot be read now; empty where it can.
    unreadable
        Events that this version does not understand.
    looks
        Rises with all that is new.
    """

    def __init__(
        self,
        path: Path,
        since_s: float,
        now_ns: Callable[[], int] = time.time_ns,
        broken: Callable[[], str] = str,
    ) -> None:
        self.path = path
        self.since_s = since_s
        self.processors: dict[str, ProcessorStatus] = {}
        self.gateways: dict[str, GatewayStatus] = {}
        self.processor: ProcessorStatus | None = None
        self.gateway: GatewayStatus | None = None
        self.events: dict[str, EventBrief] = {}
        self.trouble = ""
        self.unreadable = 0
        self.looks = 0
        self._now_ns = now_ns
        self._broken = broken
        self._store: EventStore | None = None
        self._file: tuple[int, int] | None = None
        self._number: int | None = None
        self._past: set[tuple[str, bool]] = set()
        self._bodies: dict[str, bytes] = {}

    def look(self) -> list[Change]:
        """Look what is new.

        Returns
        -------
        list[Change]
            Events raised or ended since the last look, in order; at the first those of the time before.
        """
        before = self.trouble
        changes: list[Change] = []
        try:
            if self._open():
                changes = self._read()
                self.trouble = self._broken()
        except StoreError as error:
            self.trouble = str(error)
            self.close()
        self.looks += bool(changes) or before != self.trouble
        return changes

    def close(self) -> None:
        """Let go of the store."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def open_events(self) -> list[EventBrief]:
        """Find the events that last.

        Returns
        -------
        list[EventBrief]
            Those of the grid first, then the newest.
        """
        lasting = [e for e in self.events.values() if e.end_ns is None and not self.forgotten(e)]
        return sorted(lasting, key=lambda e: (e.cause is not Cause.GRID, -e.onset_ns, e.id))

    def forgotten(self, event: EventBrief) -> bool:
        """Say whether the processor knows an event no more that has no end: it began anew, and will not end it.

        Parameters
        ----------
        event
            One of `events`.

        Returns
        -------
        bool
            Never, where the processor has said less than everything.
        """
        said = self.processor
        if event.end_ns is not None or said is None or said.lasting_count > len(said.lasting):
            return False
        return event.raised_ns < said.time_ns and all(event.id != e.id for e in said.lasting)

    def _open(self) -> bool:
        """Make sure that the store is open; say whether there is one."""
        try:
            stat = self.path.stat()
        except OSError as error:
            self._forget()
            missing = isinstance(error, FileNotFoundError)
            self.trouble = (
                f"{self.path}: {'no event store yet' if missing else error.strerror}; `gridsense run` makes it"
            )
            return False
        if self._file != (stat.st_dev, stat.st_ino):
            self._forget()
            self._file = stat.st_dev, stat.st_ino
        if not stat.st_size:  # somebody is just making it
            self.trouble = f"{self.path}: {_NO_STORE}"
            return False
        if self._store is None:
            _check(self.path)
            self._store = EventStore(self.path)
        return True

    def _forget(self) -> None:
        """Begin anew: there is another file, or none."""
        self.close()
        self.processor = self.gateway = self._number = self._file = None
        self.processors, self.gateways = {}, {}
        self.events, self._past, self._bodies = {}, set(), {}

    def _read(self) -> list[Change]:
        store = self._store
        if store is None:
            return []
        # In this order: what has ended by the time of the status is among the changes.
        bodies = store.statuses()
        if bodies != self._bodies:
            self._bodies = bodies
            self._hear(bodies)
            self.looks += 1
        changes = self._beginning(store) if self._number is None else self._news(store, self._number)
        for change in changes:
            self.events[change.event.id] = change.event
        for event in self.processor.lasting if self.processor else ():
            known = self.events.get(event.id)
            if known is None or known.end_ns is None:
                self.events[event.id] = event
        self._drop_old()
        return changes

    def _hear(self, bodies: dict[str, bytes]) -> None:
        """Take up what everybody says of himself."""
        processors = {name: read_processor(body) for name, body in bodies.items() if is_named(name, PROCESSOR)}
        gateways = {name: read_gateway(body) for name, body in bodies.items() if is_named(name, GATEWAY)}
        self.processors = those_here({name: said for name, said in processors.items() if said})
        self.gateways = those_here({name: said for name, said in gateways.items() if said})
        self.processor = one_processor(list(self.processors.values()))
        self.gateway = one_gateway(list(self.gateways.values()))

    def _beginning(self, store: EventStore) -> list[Change]:
        """Read what happened before."""
        self._number = store.newest_change()
        changes = []
        lasting = {event.id: event for event in (self.processor.lasting if self.processor else ())}
        past = self._briefs(store.cloudevents(self._since_ns()))
        for event in {**lasting, **{event.id: event for event in past}}.values():
            if event.end_ns != event.onset_ns:
                changes.append(Change(ended=False, event=event))
            if event.end_ns is not None:
                changes.append(Change(ended=True, event=event))
        self._past = {(change.event.id, change.ended) for change in changes}
        return sorted(changes, key=_moment_ns)

    def _news(self, store: EventStore, number: int) -> list[Change]:
        """Read what has happened since; what was stored during the first look was read then."""
        rows = store.changes(number)
        self._number = rows[-1][0] if rows else number
        changes = (Change(event.end_ns is not None, event) for event in self._briefs(text for _, text in rows))
        fresh = [change for change in changes if (change.event.id, change.ended) not in self._past]
        self._past.clear()
        return fresh

    def _briefs(self, texts: Iterable[str]) -> Iterator[EventBrief]:
        for text in texts:
            try:
                yield read_brief(text)
            except StoreError:
                self.unreadable += 1

    def _since_ns(self) -> int:
        """From which event time on events are told: the stream's own time, for it may be a recording."""
        now_ns = self.processor.time_ns if self.processor and self.processor.time_ns else self._now_ns()
        return max(now_ns - round(self.since_s * 1e9), 0)

    def _drop_old(self) -> None:
        since_ns, known = self._since_ns(), self.events
        ended = [e for e in known.values() if e.end_ns is not None or self.forgotten(e)]
        spare = sorted(ended, key=lambda e: e.onset_ns)[: max(len(known) - KEPT, 0)]
        for event in (*spare, *(e for e in ended if (e.end_ns or e.raised_ns) < since_ns)):
            known.pop(event.id, None)


def _moment_ns(change: Change) -> int:
    """When it was raised, or when it ended."""
    event = change.event
    return event.end_ns if change.ended and event.end_ns is not None else event.raised_ns


def _check(path: Path) -> None:
    """Refuse a file that is no event store, without writing to it."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute(
                "SELECT count(*) FROM sqlite_schema WHERE name IN ('event', 'change')"
            ).fetchone()
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be read as an event store: {error}") from error
    if found != (2,):
        raise StoreError(f"{path}: is no event store; name the one that `gridsense run` writes")


# --- what is said ----------------------------------------------------------------------------------------------------


def notices(follower: Follower, now_ns: int) -> list[Notice]:
    """Say what the operator must know, the gravest first.

    Parameters
    ----------
    follower
        Having looked.
    now_ns
        The wall clock.

    Returns
    -------
    list[Notice]
        At least one.
    """
    found = [*_trouble_notices(follower, now_ns), *_event_notices(follower), *_progress_notices(follower)]
    if not found:
        found.append(Notice("QUIET", "black on green", "nothing out of the ordinary"))
    return found


def _trouble_notices(follower: Follower, now_ns: int) -> Iterator[Notice]:
    """Tell why what is shown may not be the present."""
    if follower.trouble:
        yield Notice("WAITING", "black on cyan", follower.trouble)
    said = follower.processor
    if said is None and not follower.trouble:
        yield Notice("WAITING", "black on cyan", "no processor has said anything to this store; start `gridsense run`")
    everybody: dict[str, ProcessorStatus | GatewayStatus] = {**follower.processors, **follower.gateways}
    for told, status in everybody.items():
        name = printable(told).replace("#", " ")
        silent_s = max(now_ns - status.written_ns, 0) / 1e9
        if status.stopped:
            yield Notice("STOPPED", "bold white on red", f"the {name} was stopped {span(silent_s)} ago", name)
        elif is_old(status, now_ns):
            yield Notice("STALE", "bold white on red", f"the {name} has said nothing for {span(silent_s)}", name)
    if said and not said.stopped and said.behind_s > LATE_S:
        entries = "" if said.behind_entries is None else f", {said.behind_entries:,} entries of the log"
        yield Notice("LATE", "bold white on red", f"the processor is {span(said.behind_s)} behind{entries}")


def _event_notices(follower: Follower) -> Iterator[Notice]:
    """Tell what lasts."""
    lasting = follower.open_events()
    for event in lasting:
        if event.cause is Cause.GRID:
            text = f"{words(event.kind)}, first at {event.first_pmu}, seen by {seen_by(event)}"
            yield Notice("GRID EVENT", "bold white on red", text)
    others = [event for event in lasting if event.cause is not Cause.GRID]
    for cause in dict.fromkeys(event.cause for event in others):
        these = [event for event in others if event.cause is cause]
        what = ", ".join(dict.fromkeys(words(event.kind) for event in these))
        what += f" at {these[0].first_pmu}" if len(these) == 1 and these[0].first_pmu else ""
        style = "bold white on magenta" if cause is Cause.COMMS else "black on yellow"
        yield Notice(cause.upper(), style, f"{_count(len(these), 'event')} open: {what}")


def _progress_notices(follower: Follower) -> Iterator[Notice]:
    """Tell what still is to come, and what else is wrong."""
    said = follower.processor
    if said is None:
        return
    if not said.ticks and not said.stopped:
        yield Notice("STARTING", "black on cyan", "nothing has been scored yet")
    for learning in said.learning[:1]:
        if learning.scorer == said.scorer and learning.missing_s:
            yield Notice("LEARNING", "black on cyan", f"what is typical, {span(learning.missing_s)} left")
    if said.unsaved:
        yield Notice("UNSAVED", "black on yellow", "the processor's last snapshot could not be written")
    if follower.unreadable:
        yield Notice(
            "UNREAD", "black on yellow", f"{_count(follower.unreadable, 'event')} of another version in the store"
        )


def is_old(said: ProcessorStatus | GatewayStatus, now_ns: int) -> bool:
    """Say whether a status is of the past.

    Parameters
    ----------
    said
        By processor or gateway.
    now_ns
        The wall clock.

    Returns
    -------
    bool
        Who said it was stopped, or has fallen silent.
    """
    return said.stopped or now_ns - said.written_ns > STALE_S * 1e9


def grid_facts(said: ProcessorStatus) -> list[str]:
    """Say how the grid is, and how the processor gets on, the most important first.

    Parameters
    ----------
    said
        By the processor.

    Returns
    -------
    list[str]
        A few words each.
    """
    scores = ["no score"]
    if said.score is not None:
        scores = [f"score {_against(said.score, said.threshold)}"]
    if said.second is not None and said.second.score is not None:
        scores.append(f"{said.second.scorer} {_against(said.second.score, said.second.threshold)}")
    facts = [
        "no frequency" if said.frequency_hz is None else f"{said.frequency_hz:.3f} Hz",
        *scores,
        f"{said.frames_per_s:,.0f} PMU frames/s",
        f"{said.behind_s:.1f} s behind" if said.behind_s < 100 else f"{span(said.behind_s)} behind",
    ]
    if said.latency_p50_s is not None and said.latency_p99_s is not None:
        facts.append(f"scored after {said.latency_p50_s:.2f} s, p99 {said.latency_p99_s:.2f} s")
    later = [f"{it.scorer} score {span(it.missing_s)} more" for it in said.learning if it.missing_s]
    if later:
        facts.append(f"learning: {', '.join(later)}")
    if said.dead_letters:
        facts.append(f"{said.dead_letters:,} dead letters")
    if said.lost_entries:
        facts.append(f"{said.lost_entries:,} entries lost")
    return facts


def gateway_line(said: GatewayStatus | None, now_ns: int) -> Text:
    """Say how the connections are, in one line.

    Parameters
    ----------
    said
        By the gateway; None where it said nothing.
    now_ns
        The wall clock.

    Returns
    -------
    Text
        Counts, what comes, and who is in trouble and why.
    """
    if said is None:
        return Text("gateway: has said nothing to this store", "dim")
    old = is_old(said, now_ns)
    text = Text("gateway: THEN " if old else "gateway: ")
    counts = sorted(said.states.items(), key=lambda it: (it[0] != "streaming", it[0]))
    states = ", ".join(f"{count:,} {state.replace('-', ' ')}" for state, count in counts) or "no connections"
    well = not said.troubled and not old
    text.append(states, "green" if well else "bold yellow")
    text.append(f"  {said.frames_per_s:,.0f} frames/s {said.bytes_per_s / 1e6:,.2f} MB/s")
    if said.dropped_frames:
        text.append(f"  {said.dropped_frames:,} FRAMES DROPPED", "bold red")
    if said.refused:
        text.append(f"  {said.refused:,} refused", "yellow")
    names = [f"{it.name} ({it.reason or words(it.state.replace('-', '_'))})" for it in said.troubled]
    if names:
        text.append(f"  {', '.join(names)}", "yellow")
    return text


def change_line(change: Change) -> str:
    """Write an event that was raised or that ended as one line.

    Parameters
    ----------
    change
        Which.

    Returns
    -------
    str
        When, what, cause, kind, onset, how long, how many saw it, and why. No line end.
    """
    event, word = change.event, "ended" if change.ended else "raised"
    how_long = lasted(event) if change.ended else "lasting"
    return (
        f"{rfc3339(_moment_ns(change))}  {word:6}  {event.cause:7}  {words(event.kind):21}  "
        f"{time_of_day(event.onset_ns)}  {how_long:>9}  {seen_by(event):>7}  {event.sentence}"
    )


def _against(score: float, threshold: float) -> str:
    return f"{score:.1f} {'OVER' if score > threshold else 'under'} {threshold:.1f}"


def _is_over(trace: Trace) -> bool:
    return bool(trace.ticks) and trace.ticks[-1][1] > trace.threshold


def _standing(trace: Trace) -> str:
    """Say how a scorer's newest word on the grid stands against its threshold."""
    if not trace.ticks or math.isnan(trace.ticks[-1][1]):
        return "no score"
    return f"{'OVER' if _is_over(trace) else 'under'} {trace.threshold:.1f}"


def _scores(said: ProcessorStatus, pmu: PmuStatus) -> list[tuple[float | None, bool]]:
    """Take what each scorer says of a PMU, and whether that is over its threshold."""
    both = [(pmu.score, said.threshold), *([(pmu.second, said.second.threshold)] if said.second else [])]
    return [(score, score is not None and score > threshold) for score, threshold in both]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


# --- the screen ------------------------------------------------------------------------------------------------------


class View:
    """Draws what a follower has seen. It fills whatever terminal it is given; 100 x 30 is comfortable.

    Parameters
    ----------
    follower
        Looks by itself.
    now_ns
        The wall clock, UTC nanoseconds.
    """

    def __init__(self, follower: Follower, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.follower = follower
        self._now_ns = now_ns

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw everything, in just the lines there are."""
        width, height = options.max_width, options.height or options.max_height
        head = list(self._head(width))
        yield from head
        rows = max(height - len(head), 3)
        if height < _SMALL_ROWS:
            yield self._spark_line(width)
            yield self._worst_line(width)
            yield self._feed_panel(console, width, max(rows - 2, 3))
        elif width >= _WIDE:
            middle = min(max(rows // 3, 7), 20)
            sides = Table.grid(expand=True)
            right = max(width // 3, _COLUMN + 4)
            sides.add_column(width=width - right)
            sides.add_column(width=right)
            sides.add_row(self._trace_panels(width - right, middle), self._worst_panel(right, middle))
            yield sides
            yield self._feed_panel(console, width, rows - middle)
        else:
            trace, worst = (6, 5) if rows < 24 else (8, 7)
            yield self._trace_panels(width, trace)
            yield self._worst_panel(width, worst)
            yield self._feed_panel(console, width, max(rows - trace - worst, 3))

    def present(self, console: Console) -> Iterator[Text]:
        """Write the present state as lines, without boxes.

        Parameters
        ----------
        console
            Where they will stand.

        Yields
        ------
        Text
            As many as it takes.
        """
        width = console.width
        yield from self._head(width)
        yield self._spark_line(width)
        said = self.follower.processor
        for pmu in (said.pmus if said else ())[:_ONCE_WORST]:
            yield one_line(Text.assemble("  ", self._pmu(pmu, width - 2)), width)
        yield one_line(Text(f" {self._feed_title()}", "bold"), width)
        yield from self._feed(console, width, len(self.follower.events) * 5 + 1)

    def _head(self, width: int) -> Iterator[Text]:
        said, now_ns = self.follower.processor, self._now_ns()
        told = notices(self.follower, now_ns)
        clock = (
            "no event time" if not said or not said.time_ns else f"{rfc3339(said.time_ns)[:-3].replace('T', ' ')} UTC"
        )
        badge = Text(f" {told[0].badge} ", told[0].style)
        name = Text(" GridSense ", "bold reverse")
        full = Text.assemble(name, f" {said.source} " if said else " ", badge)
        short = Text.assemble(name, " ", badge)
        yield spread(full if full.cell_len + len(clock) + 2 <= width else short, Text(clock, "bold"), width)
        rest = [f"{notice.badge}: {notice.text}" for notice in told[1:]]
        loud = "bold red" if "red" in told[0].style else "bold"
        yield one_line(
            Text.assemble((f" {told[0].text}", loud), ("".join(f"  {text}" for text in rest), "bold")), width
        )
        facts = grid_facts(said) if said else []
        then = "THEN " if said and is_old(said, now_ns) else ""
        while facts and len(f" {then}{'   '.join(facts)}") > width:
            facts.pop()
        yield one_line(Text(f" {then}{'   '.join(facts)}"), width)
        yield one_line(Text.assemble(" ", gateway_line(self.follower.gateway, now_ns)), width)

    # --- score ---

    def _told_traces(self) -> list[Trace]:
        said = self.follower.processor or ProcessorStatus()
        names = [said.scorer, *([said.second.scorer] if said.second else [])]
        traces = [Trace(name) for name in names]
        for trace in traces:
            trace.told(said)
        return traces

    def _spark_line(self, width: int) -> Text:
        """Draw the first scorer's last minute, and say how the others' score stands."""
        trace, *others = self._told_traces()
        told = [(f" {_standing(trace)} ", _is_over(trace))]
        told += [(f" {it.scorer} {_standing(it)} ", _is_over(it)) for it in others]
        room = width - 12 - sum(len(standing) for standing, _ in told)
        text = Text.assemble(" last min ", sparkline(trace, max(room, 1)))
        for standing, over in told:
            text.append(standing, "bold red" if over else "")
        return one_line(text, width)

    def _trace_panels(self, width: int, height: int) -> RenderableType:
        return trace_panels(self._told_traces(), self.follower.events.values(), width, height)

    # --- PMUs ---

    def _worst_line(self, width: int) -> Text:
        said = self.follower.processor
        text = Text(f" {self._pmus_title()}:")
        for pmu in said.pmus if said else ():
            if text.cell_len > width:
                break
            text.append("  ").append_text(self._pmu(pmu, 0))
        return one_line(text, width)

    def _worst_panel(self, width: int, height: int) -> Panel:
        said = self.follower.processor
        rows, inner = max(height - 2, 1), max(width - 4, 1)
        columns = max(inner // _COLUMN, 1)
        room = inner // columns
        lines = [Text(no_wrap=True) for _ in range(rows)]
        for place, pmu in enumerate((said.pmus if said else ())[: rows * columns]):
            line = lines[place % rows]
            line.pad_right(max(place // rows * room - line.cell_len, 0))
            line.append_text(one_line(self._pmu(pmu, room - 1), room - 1))
        signs = "! atypical, x refused, worst first"
        said = self.follower.processor
        if said and said.second and inner >= 2 * _NAME + len(signs):
            signs = f"{said.scorer}, {said.second.scorer}; {signs}"
        return boxed(lines, Text(self._pmus_title(), "bold"), height, signs)

    def _pmus_title(self) -> str:
        said = self.follower.processor
        if said is None:
            return "PMUs"
        loud = sum(any(over for _, over in _scores(said, pmu)) for pmu in said.pmus)
        out = sum(bool(pmu.refused) for pmu in said.pmus)
        learning = sum(pmu.score is None and pmu.second is None and not pmu.refused for pmu in said.pmus)
        counts = ((loud, "atypical"), (out, "refused"), (learning, "without score"))
        rest = [f"{count:,} {word}" for count, word in counts if count]
        return f"{_count(len(said.pmus), 'PMU')}, {', '.join(rest) or 'all usual'}"

    def _pmu(self, pmu: PmuStatus, width: int) -> Text:
        """One PMU in so many letters, with a bar; 0 for as few as it takes."""
        scores = _scores(self.follower.processor or ProcessorStatus(), pmu)
        name = f"{fit(pmu.name, _NAME):{_NAME}}" if width else fit(pmu.name, _NAME)
        if pmu.refused:
            age = f" {span(pmu.age_s)}" if pmu.age_s else ""
            return Text.assemble((f"x {name} {words(pmu.refused).upper()}{age}", "magenta"))
        known = [score for score, _ in scores if score is not None]
        if not known:
            return Text(f"  {name} no score", "dim")
        over = any(over for _, over in scores)
        style = "bold red" if over else "green"
        texts = [reading(float("nan") if score is None else score) for score, _ in scores]
        if not width:
            return Text(f"{'! ' if over else ''}{name} {' '.join(texts)}", style)
        return Text.assemble(
            f"{'!' if over else ' '} {name} ",
            *((f"{text:>6} ", "bold red" if loud else "green") for text, (_, loud) in zip(texts, scores, strict=True)),
            (bar(max(known), max(min(width, 2 * _COLUMN) - _NAME - 4 - 7 * len(scores), 1)), style),
        )

    # --- events ---

    def _feed_panel(self, console: Console, width: int, height: int) -> Panel:
        told = self._feed(console, max(width - 4, 1), max(height - 2, 1))
        return boxed(told, Text(self._feed_title(), "bold"), height)

    def _feed_title(self) -> str:
        lasting, known = len(self.follower.open_events()), self.follower.events.values()
        grid = sum(event.cause is Cause.GRID for event in known)
        said = self.follower.processor
        lasting += max(said.lasting_count - len(said.lasting), 0) if said else 0
        return f"events: {lasting:,} open, {len(known):,} in {span(self.follower.since_s)}, {grid:,} of the grid"

    def _feed(self, console: Console, width: int, rows: int) -> list[Text]:
        lasting = self.follower.open_events()
        if not self.follower.events:
            return [Text(f"no event in {span(self.follower.since_s)}", "dim")]
        open_ids = {event.id for event in lasting}
        rest = [event for event in self.follower.events.values() if event.id not in open_ids]
        rest.sort(key=lambda e: (-e.onset_ns, e.id))
        return feed(console, [*lasting, *rest], width, rows, when=self._when, how_long=self._how_long)

    def _now_of_events_ns(self) -> int:
        said = self.follower.processor
        return said.time_ns if said and said.time_ns else self._now_ns()

    def _when(self, time_ns: int) -> str:
        """Write a time, with its day unless that is today."""
        day, today = rfc3339(time_ns)[5:10], rfc3339(self._now_of_events_ns())[5:10]
        return time_of_day(time_ns) if day == today else f"{day} {time_of_day(time_ns)[:8]}"

    def _how_long(self, event: EventBrief) -> str:
        if self.follower.forgotten(event):
            return "end unseen"
        if event.end_ns is not None:
            return lasted(event)
        return f"OPEN {span(max(self._now_of_events_ns() - event.onset_ns, 0) / 1e9)}"


# --- the two ways to watch -------------------------------------------------------------------------------------------


def show(console: Console, view: View, wait: Callable[[float], bool], now_ns: Callable[[], int] = time.time_ns) -> None:
    """Show the screen until it is time to stop.

    Parameters
    ----------
    console
        A terminal.
    view
        What to show; its follower is let go of at the end.
    wait
        Waits so many seconds, and says whether it is time to stop.
    now_ns
        The wall clock: the screen is drawn anew each second though nothing is new.
    """
    follower = view.follower
    drawn: tuple[object, ...] = ()
    with closing(follower), Live(view, console=console, screen=True, auto_refresh=False) as live:
        while True:
            follower.look()
            state = (follower.looks, now_ns() // 1_000_000_000, console.size)
            if state != drawn:
                live.refresh()
                drawn = state
            if wait(POLL_S):
                return


def tell(
    follower: Follower,
    write: Callable[[str], None],
    complain: Callable[[str], None],
    wait: Callable[[float], bool],
    now_ns: Callable[[], int] = time.time_ns,
) -> None:
    """Write a line for each event raised or ended until it is time to stop.

    Parameters
    ----------
    follower
        Let go of at the end.
    write
        Takes lines of events, without their ends.
    complain
        Takes what hides the present: no store, nobody who speaks, a processor that is late; each once.
    wait
        Waits so many seconds, and says whether it is time to stop.
    now_ns
        The wall clock.
    """
    known: dict[tuple[str, str], Notice] = {}
    with closing(follower):
        while True:
            for change in follower.look():
                write(change_line(change))
            troubles = {(it.badge, it.subject): it for it in _trouble_notices(follower, now_ns())}
            for key, it in troubles.items():
                if key not in known:
                    complain(f"{it.badge}: {it.text}")
            if known and not troubles:
                complain("all is well again")
            known = troubles
            if wait(POLL_S):
                return
