"""Pipeline outputs in, a terminal screen out: the grid's score, every PMU at a glance, and the newest events.

It keeps the last minute for drawing and nothing else; it decides nothing and stores nothing. Everything that a colour
says is said by a word or a sign too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.box import ROUNDED
from rich.console import Console, ConsoleOptions, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gridsense.events import Cause, Event, rfc3339
from gridsense.pipeline import Output

STYLE: dict[Cause, str] = {
    Cause.GRID: "bold red",
    Cause.DATA: "yellow",
    Cause.COMMS: "magenta",
    Cause.MODEL: "blue",
    Cause.UNKNOWN: "cyan",
}
EDGE: dict[Cause, str] = {Cause.GRID: "█", Cause.DATA: "░", Cause.COMMS: "┊", Cause.MODEL: "▒", Cause.UNKNOWN: "│"}
"""What stands before an event: the grid's are told from the others without colour."""
TRACE_S = 60.0
"""How far back the score is drawn."""
TOP = 200.0
"""-ln p at the top of a scale; scales are logarithmic, so that ordinary noise and a fault are both seen."""
SENTENCE_LINES = 3
"""Lines of an explanation at most."""
BORDER = "bright_black"
_BARS = " ▁▂▃▄▅▆▇█"
_REFUSED = "x"
_QUIET, _LOUD, _OVER = "·", "▪", "█"


class Screen:
    """What the terminal shows while a grid is watched. It fills whatever terminal it is given; 100 x 30 is comfortable.

    Parameters
    ----------
    title
        What is watched.
    threshold
        -ln p above which the grid's score is an event.
    """

    def __init__(self, title: str, threshold: float) -> None:
        self.title = title
        self.threshold = threshold
        self.note = ""
        self._missing_s: dict[str, float] = {}
        self._time_ns = 0
        self._ticks = 0
        self._tick_s = 0.2
        self._trace: deque[tuple[int, float]] = deque(maxlen=4096)
        self._names: tuple[str, ...] = ()
        self._places: dict[str, NDArray[np.intp]] = {}
        self._scores: NDArray[np.float64] = np.empty(0)
        self._refused: NDArray[np.bool_] = np.empty(0, bool)
        self._events: dict[str, Event] = {}

    def show(self, output: Output) -> None:
        """Take up what came of one step.

        Parameters
        ----------
        output
            Of the pipeline.
        """
        for event in output.events:
            self.show_event(event)
        self._name(output)
        ticks, fast = output.scored.ticks, output.scored.ticks.tracks[0]
        # What stands out from how restless the grid has been lately is what the detector compares.
        out = np.where(np.isfinite(output.grid.score[:, 0]), output.grid.score[:, 0] - output.grid.background, np.nan)
        rows = zip(ticks.time_ns.tolist(), fast.score, ticks.refused, np.maximum(out, 0).tolist(), strict=True)
        for time_ns, score, refused, standing in rows:
            if self._time_ns:
                self._tick_s = max((time_ns - self._time_ns) / 1e9, 1e-3)
            self._time_ns, self._scores, self._refused = time_ns, score, refused
            self._ticks += 1
            self._trace.append((time_ns, standing))
        for track, layer in zip(ticks.tracks, output.scored.layers, strict=True):
            if layer.missing_s.size:
                self._missing_s[track.name] = float(layer.missing_s[-1].max())

    def show_event(self, event: Event) -> None:
        """Take up an event, new or in a later stage.

        Parameters
        ----------
        event
            As raised, grown or ended.
        """
        self._events[event.id] = event

    def _name(self, output: Output) -> None:
        """Note which PMU stands where, if that has changed."""
        pmus = output.signals.table.pmus
        names = tuple(p.name for p in pmus)
        if names == self._names:
            return
        sources: dict[str, list[int]] = {}
        for s, pmu in enumerate(pmus):
            sources.setdefault(pmu.source or "PMUs", []).append(s)
        self._names = names
        self._places = {source: np.array(places) for source, places in sources.items()}
        self._scores, self._refused = np.full(len(names), np.nan), np.zeros(len(names), bool)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw everything, in just the lines there are."""
        width, height = options.max_width, options.height or options.max_height
        rows = max(height - 2, 0)  # below the two lines of the head
        trace = 9 if rows >= 32 else 7 if rows >= 24 else 5
        middle = min(max(len(self._places), 5) + 2, 10, max(rows - trace - 6, 3))
        yield from self._head(width)
        yield self._trace_panel(width, trace)
        sides = Table.grid(expand=True)
        sides.add_column(ratio=1)
        sides.add_column(ratio=1)
        half = width // 2
        sides.add_row(self._sources_panel(width - half, middle), self._worst_panel(half, middle))
        yield sides
        yield self._feed_panel(console, width, max(rows - trace - middle, 3))

    # --- head ------------------------------------------------------------------------------------------------------

    def _head(self, width: int) -> Iterator[Text]:
        clock = f"{rfc3339(self._time_ns)[:-3].replace('T', ' ')} UTC" if self._time_ns else "waiting for frames"
        name, state = Text(" GridSense ", "bold reverse"), self._state()
        full = Text.assemble(name, f" {self.title}  ", state)
        # the title gives way first, then the clock
        left = full if full.cell_len + len(clock) + 2 <= width else Text.assemble(name, " ", state)
        yield _spread(left, Text(clock, "bold"), width)
        yield _line(Text("  ".join(filter(None, (f" {self.note}", self._learning()))), "dim"), width)

    def _state(self) -> Text:
        lasting = [e for e in self._events.values() if e.end_ns is None]
        grid = [e for e in lasting if e.cause is Cause.GRID]
        if grid:
            return Text(f" GRID EVENT: {_words(grid[-1].kind)} ", "bold white on red")
        if lasting:
            kinds = ", ".join(sorted({_words(e.kind) for e in lasting}))
            comms = any(e.cause is Cause.COMMS for e in lasting)
            return Text(
                f" {'COMMS' if comms else 'DATA'}: {kinds} ", "bold white on magenta" if comms else "black on yellow"
            )
        if not self._time_ns:
            return Text(" STARTING ", "black on cyan")
        return Text(" NORMAL ", "black on green")

    def _learning(self) -> str:
        """Say which scorers still want reference, and how much."""
        missing = [f"{name} score, {_span(seconds)} more" for name, seconds in self._missing_s.items() if seconds > 0]
        return f"learning: {'; '.join(missing)}" if missing else ""

    # --- score -----------------------------------------------------------------------------------------------------

    def _trace_panel(self, width: int, height: int) -> Panel:
        rows, columns = max(height - 3, 1), max(width - 4 - 5, 1)
        ticks = max(math.ceil(TRACE_S / self._tick_s / columns), 1)
        values, begins = self._bins(columns, ticks)
        lines = [self._trace_row(values, rows, row) for row in range(rows)]
        lines.append(Text.assemble("     ", self._marks(begins, columns)))
        now = self._trace[-1][1] if self._trace else math.nan
        reading = "no score" if not math.isfinite(now) else f"{now:.1f}"
        title = f"grid atypicality  -ln p = {reading}, event above {self.threshold:.1f}"
        seconds = columns * ticks * self._tick_s
        return Panel(
            Text("\n").join(lines),
            title=Text(title, "bold" if not now > self.threshold else "bold red"),
            title_align="left",
            subtitle=f"last {seconds:.0f} s; onset of G grid, D data, C comms, U unknown",
            subtitle_align="right",
            border_style=BORDER,
            height=height,
            box=ROUNDED,
        )

    def _bins(self, columns: int, ticks: int) -> tuple[list[float], list[int]]:
        """Greatest score and first time of each column; a column keeps its ticks, so that no bar flickers."""
        newest = self._ticks - 1
        first = (newest // ticks - columns + 1) * ticks
        values, begins = [math.nan] * columns, [0] * columns
        offset = self._ticks - len(self._trace)
        for i in range(max(first - offset, 0), len(self._trace)):
            time_ns, value = self._trace[i]
            column = (offset + i - first) // ticks
            begins[column] = begins[column] or time_ns
            value = value if math.isfinite(value) else math.nan
            values[column] = value if math.isnan(values[column]) else max(values[column], value)
        return values, begins

    def _trace_row(self, values: Sequence[float], rows: int, row: int) -> Text:
        """Draw one line of the chart, `row` counted from the top."""
        below = rows - 1 - row
        limit = _level(self.threshold) * rows
        here = int(min(limit, rows - 1e-9)) == below
        label = f"{self.threshold:4.0f}" if here else f"{_value((below + 1) / rows):4.0f}" if row == 0 else "    "
        text = Text.assemble((f"{label}{'┼' if here else '│'}", "red" if here else "dim"))
        for value in values:
            if math.isnan(value):
                text.append("╌" if here else " ", "red dim")
                continue
            eighths = round(min(max(_level(value) * rows - below, 0.0), 1.0) * 8)
            if not eighths and not below:
                eighths = 1
            if eighths:
                text.append(_BARS[eighths], "bold red" if value > self.threshold else "green")
            else:
                text.append("╌" if here else " ", "red dim")
        return text

    def _marks(self, begins: Sequence[int], columns: int) -> Text:
        """Letters under the chart where events began; the grid's win where two share a column."""
        known = [(i, time_ns) for i, time_ns in enumerate(begins) if time_ns]
        marks: dict[int, Cause] = {}
        if known:
            times = [time_ns for _, time_ns in known]
            for event in sorted(self._events.values(), key=lambda e: e.cause is Cause.GRID):
                place = int(np.searchsorted(times, event.onset_ns, side="right")) - 1
                if place >= 0:
                    marks[known[place][0]] = event.cause
        text = Text()
        for i in range(columns):
            cause = marks.get(i)
            text.append(cause.value[0].upper() if cause else " ", STYLE[cause] if cause else "")
        return text

    # --- PMUs ------------------------------------------------------------------------------------------------------

    def _sources_panel(self, width: int, height: int) -> Panel:
        rows = max(height - 2, 1)
        known = list(self._places)
        shown = known if len(known) <= rows else known[: rows - 1]
        label = min(max((len(name) for name in shown), default=0), 12)
        room = max(width - 4 - label - 1 - 8, 1)
        lines = []
        for source in shown:
            places = self._places[source]
            heard = int((~self._refused[places] & ~np.isnan(self._scores[places])).sum())
            text = Text(f"{source[:label]:{label}} ", "bold" if heard else "bold magenta")
            for s in places[:room].tolist():
                text.append(*self._cell(s))
            text.append("…" if len(places) > room else "")
            text.pad_right(label + 1 + room - text.cell_len)
            count = f"{heard}/{len(places)}" if heard else "SILENT"
            text.append(f" {count:>7}", "dim" if heard == len(places) else "yellow" if heard else "bold magenta")
            lines.append(text)
        if len(known) > len(shown):
            lines.append(Text(f"and {len(known) - len(shown)} more sources", "dim"))
        return Panel(
            Text("\n").join(lines),
            title=Text(f"{len(self._names)} PMUs", "bold"),
            title_align="left",
            subtitle=f"{_QUIET} usual {_LOUD} loud {_OVER} atypical {_REFUSED} refused",
            subtitle_align="right",
            border_style=BORDER,
            height=height,
            box=ROUNDED,
        )

    def _cell(self, s: int) -> tuple[str, str]:
        """One PMU as one sign and its style."""
        if self._refused[s] or math.isnan(self._scores[s]):
            return _REFUSED, "magenta"
        if self._scores[s] > self.threshold:
            return _OVER, "bold red"
        return (_LOUD, "yellow") if self._scores[s] > self.threshold / 2 else (_QUIET, "green")

    def _worst_panel(self, width: int, height: int) -> Panel:
        rows = max(height - 2, 1)
        order = np.argsort(-np.nan_to_num(self._scores, nan=-1.0), kind="stable")[:rows]
        room = max(width - 4 - 18 - 7, 1)
        lines = []
        for s in order.tolist():
            score, refused = float(self._scores[s]), bool(self._refused[s])
            name = _fit(self._names[s], 17)
            text = Text(f"{name:17} ", no_wrap=True)
            if math.isnan(score):
                text.append("no score", "dim")
            else:
                style = "dim" if refused else "bold red" if score > self.threshold else "green"
                text.append(f"{score:6.1f} ", style)
                text.append("━" * min(max(round(_level(score) * room), 1), room), style)
            lines.append(text)
        return Panel(
            Text("\n").join(lines),
            title=Text("most atypical now, -ln p", "bold"),
            title_align="left",
            border_style=BORDER,
            height=height,
            box=ROUNDED,
        )

    # --- events ----------------------------------------------------------------------------------------------------

    def _feed_panel(self, console: Console, width: int, height: int) -> Panel:
        rows, inner = max(height - 2, 1), max(width - 4, 1)
        newest = sorted(self._events.values(), key=lambda e: (-e.onset_ns, e.id))
        lines: list[Text] = []
        for event in newest:
            told = [_line(_event_head(event), inner), *_event_sentence(console, event, inner)]
            if lines and len(lines) + len(told) > rows:
                break
            lines += told
        if not newest:
            lines = [Text("nothing out of the ordinary so far", "dim")]
        grid = sum(e.cause is Cause.GRID for e in newest)
        return Panel(
            Text("\n").join(lines[:rows]),
            title=Text(f"events, newest first: {grid} of the grid, {len(newest) - grid} of data or comms", "bold"),
            title_align="left",
            border_style=BORDER,
            height=height,
            box=ROUNDED,
        )


def event_line(event: Event) -> str:
    """Write an event as one line of a log.

    Parameters
    ----------
    event
        In any stage.

    Returns
    -------
    str
        Onset, cause, kind, how long, how many saw it, and why.
    """
    seen = f"{len(event.pmus)} PMU{'s' * (len(event.pmus) != 1)}"
    onset = rfc3339(event.onset_ns)[11:-1]
    return (
        f"{onset}  {event.cause.upper():7}  {_words(event.kind):21}  {_lasted(event):>9}  {seen:>7}  {event.sentence}"
    )


def _event_head(event: Event) -> Text:
    style, quiet = STYLE[event.cause], "" if event.cause is Cause.GRID else "dim"
    seen = f"{len(event.pmus)} PMUs, first {event.first_pmu}" if len(event.pmus) > 1 else event.first_pmu
    return Text.assemble(
        (f"{EDGE[event.cause]} {event.cause.upper():7} ", style),
        (f"{_words(event.kind):20.20} ", style if event.cause is Cause.GRID else ""),
        (f"{rfc3339(event.onset_ns)[11:-1]} ", ""),
        (f"{_lasted(event):>9}  ", "bold" if event.end_ns is None else quiet),
        (seen, quiet),
    )


def _event_sentence(console: Console, event: Event, width: int) -> list[Text]:
    """Write the explanation: all of it for the grid's events, a line for the others."""
    edge, grid = (f"{EDGE[event.cause]} ", STYLE[event.cause]), event.cause is Cause.GRID
    if not grid:
        return [_line(Text.assemble(edge, (event.sentence, "dim")), width)]
    wrapped = Text(event.sentence).wrap(console, max(width - 2, 1))
    return [Text.assemble(edge, line) for line in wrapped[:SENTENCE_LINES]]


def _lasted(event: Event) -> str:
    return "lasting" if event.end_ns is None else f"{(event.end_ns - event.onset_ns) / 1e9:.1f} s"


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _level(value: float) -> float:
    """Where a score stands on a scale from 0 to 1."""
    return min(math.log1p(max(value, 0.0)) / math.log1p(TOP), 1.0)


def _value(level: float) -> float:
    """Which score stands there."""
    return math.expm1(level * math.log1p(TOP))


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _line(text: Text, width: int) -> Text:
    """One line, never more: what is too long ends in an ellipsis."""
    text.no_wrap = True
    text.truncate(width, overflow="ellipsis")
    return text


def _spread(left: Text, right: Text, width: int) -> Text:
    """One line with something at either end; the right end gives way."""
    gap = width - left.cell_len - right.cell_len - 1
    if gap < 1:
        return _line(left, width)
    return Text.assemble(left, " " * gap, right, " ", no_wrap=True)
