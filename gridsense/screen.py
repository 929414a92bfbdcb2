"""Pipeline outputs in, a terminal screen out: the grid's score, every PMU at a glance, and the newest events.

It keeps the last minute for drawing and nothing else; it decides nothing and stores nothing. Everything that a colour
says is said by a word or a sign too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.box import ROUNDED
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gridsense.events import Cause, Event, rfc3339
from gridsense.pipeline import Output
from gridsense.status import TRACE_S, EventBrief, Trace, brief, leads, with_output

STYLE: dict[Cause, str] = {
    Cause.GRID: "bold red",
    Cause.DATA: "yellow",
    Cause.COMMS: "magenta",
    Cause.MODEL: "blue",
    Cause.UNKNOWN: "cyan",
}
EDGE: dict[Cause, str] = {Cause.GRID: "█", Cause.DATA: "░", Cause.COMMS: "┊", Cause.MODEL: "▒", Cause.UNKNOWN: "│"}
"""What stands before an event: the grid's are told from the others without colour."""
TOP = 200.0
"""-ln p at the top of a scale; scales are logarithmic, so that ordinary noise and a fault are both seen."""
SENTENCE_LINES = 3
"""Lines of an explanation at most."""
BORDER = "bright_black"
_TRACE_WIDTH, _TRACE_HEIGHT, _TRACE_WORDS = 40, 6, 60
"""Letters and lines that the chart of a scorer needs, and letters that it needs for all its words."""
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
        -ln p above which the grid's score is an event, until there is one.
    """

    def __init__(self, title: str, threshold: float) -> None:
        self.title = title
        self.note = ""
        self._missing_s: dict[str, float] = {}
        self._time_ns = 0
        self._traces = [Trace(threshold=threshold)]
        self._names: tuple[str, ...] = ()
        self._places: dict[str, NDArray[np.intp]] = {}
        self._scores: NDArray[np.float64] = np.empty((1, 0))
        self._refused: NDArray[np.bool_] = np.empty(0, bool)
        self._events: dict[str, EventBrief] = {}

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
        self._traces = with_output(self._traces, output)
        ticks = output.scored.ticks
        if len(ticks.time_ns):
            self._time_ns = int(ticks.time_ns[-1])
            self._scores = np.stack([ticks.tracks[place].score[-1] for place in leads(output)])
            self._refused = ticks.refused[-1]
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
        self._events[event.id] = brief(event)

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
        self._scores, self._refused = np.full((1, len(names)), np.nan), np.zeros(len(names), bool)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw everything, in just the lines there are."""
        width, height = options.max_width, options.height or options.max_height
        rows = max(height - 2, 0)  # below the two lines of the head
        trace = 9 if rows >= 32 else 7 if rows >= 24 else 5
        middle = min(max(len(self._places), 5) + 2, 10, max(rows - trace - 6, 3))
        yield from self._head(width)
        yield trace_panels(self._traces, self._events.values(), width, trace)
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
        yield spread(left, Text(clock, "bold"), width)
        yield one_line(Text("  ".join(filter(None, (f" {self.note}", self._learning()))), "dim"), width)

    def _state(self) -> Text:
        lasting = [e for e in self._events.values() if e.end_ns is None]
        grid = [e for e in lasting if e.cause is Cause.GRID]
        if grid:
            return Text(f" GRID EVENT: {words(grid[-1].kind)} ", "bold white on red")
        if lasting:
            kinds = ", ".join(sorted({words(e.kind) for e in lasting}))
            comms = any(e.cause is Cause.COMMS for e in lasting)
            return Text(
                f" {'COMMS' if comms else 'DATA'}: {kinds} ", "bold white on magenta" if comms else "black on yellow"
            )
        if not self._time_ns:
            return Text(" STARTING ", "black on cyan")
        return Text(" NORMAL ", "black on green")

    def _learning(self) -> str:
        """Say which scorers still want reference, and how much."""
        missing = [f"{name} score, {span(seconds)} more" for name, seconds in self._missing_s.items() if seconds > 0]
        return f"learning: {'; '.join(missing)}" if missing else ""

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
            heard = int((~self._refused[places] & ~np.isnan(self._scores[:, places]).all(axis=0)).sum())
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
        signs = f"{_QUIET} usual {_LOUD} loud {_OVER} atypical {_REFUSED} refused"
        return boxed(lines, Text(f"{len(self._names)} PMUs", "bold"), height, signs)

    def _cell(self, s: int) -> tuple[str, str]:
        """One PMU as one sign and its style, by the scorer that finds it the more atypical."""
        if self._refused[s] or np.isnan(self._scores[:, s]).all():
            return _REFUSED, "magenta"
        share = float(np.nanmax(self._scores[:, s] / self._thresholds()))
        if share > 1:
            return _OVER, "bold red"
        return (_LOUD, "yellow") if share > 0.5 else (_QUIET, "green")

    def _thresholds(self) -> NDArray[np.float64]:
        return np.array([trace.threshold for trace in self._traces[: len(self._scores)]])

    def _worst_panel(self, width: int, height: int) -> Panel:
        rows = max(height - 2, 1)
        thresholds, scores = self._thresholds(), np.nan_to_num(self._scores, nan=-1.0)
        order = np.argsort(-scores.max(axis=0, initial=-1.0), kind="stable")[:rows]
        room = max(width - 4 - 18 - 7 * len(scores), 1)
        lines = []
        for s in order.tolist():
            refused = bool(self._refused[s])
            name = fit(self._names[s], 17)
            text = Text(f"{name:17} ", no_wrap=True)
            if (scores[:, s] < 0).all():
                text.append("no score", "dim")
            else:
                over = scores[:, s] > thresholds
                for score, loud in zip(self._scores[:, s].tolist(), over.tolist(), strict=True):
                    style = "dim" if refused else "bold red" if loud else "green"
                    text.append(f"{reading(score):>6} ", style)
                style = "dim" if refused else "bold red" if over.any() else "green"
                text.append(bar(float(scores[:, s].max()), room), style)
            lines.append(text)
        columns = ", ".join(trace.scorer for trace in self._traces)
        return boxed(lines, Text(f"most atypical now: {columns}", "bold"), height)

    # --- events ----------------------------------------------------------------------------------------------------

    def _feed_panel(self, console: Console, width: int, height: int) -> Panel:
        newest = sorted(self._events.values(), key=lambda e: (-e.onset_ns, e.id))
        grid = sum(e.cause is Cause.GRID for e in newest)
        told = feed(console, newest, max(width - 4, 1), max(height - 2, 1))
        title = f"events, newest first: {grid} of the grid, {len(newest) - grid} of data or comms"
        return boxed(told, Text(title, "bold"), height)


# --- parts of a screen -----------------------------------------------------------------------------------------------


def boxed(lines: Sequence[Text], title: Text, height: int | None = None, subtitle: str = "") -> Panel:
    """Draw lines in a box.

    Parameters
    ----------
    lines
        What stands in it.
    title
        Above.
    height
        Lines of the box, with its frame; None for as many as it takes.
    subtitle
        Below.

    Returns
    -------
    Panel
        As wide as there is room.
    """
    return Panel(
        Text("\n").join(lines if height is None else lines[: max(height - 2, 0)]),
        title=title,
        title_align="left",
        subtitle=subtitle or None,
        subtitle_align="right",
        border_style=BORDER,
        height=height,
        box=ROUNDED,
    )


def trace_panels(traces: Sequence[Trace], events: Iterable[EventBrief], width: int, height: int) -> RenderableType:
    """Draw what each scorer said of the grid over the last minute: side by side, or one above the other.

    Parameters
    ----------
    traces
        One for each scorer.
    events
        Marked by the letters of their causes.
    width
        Of all boxes together.
    height
        Likewise.

    Returns
    -------
    RenderableType
        Of just that size. Where there is no room only the first scorer is drawn.
    """
    events = list(events)
    beside = width >= _TRACE_WIDTH * len(traces)
    shown = traces if beside or height >= _TRACE_HEIGHT * len(traces) else traces[:1]
    widths = _shares(width, len(shown)) if beside else [width] * len(shown)
    heights = [height] * len(shown) if beside else _shares(height, len(shown))
    panels = [_trace_panel(trace, events, w, h) for trace, w, h in zip(shown, widths, heights, strict=True)]
    sides = Table.grid()
    for w in widths if beside else widths[:1]:
        sides.add_column(width=w)
    for row in [panels] if beside else [[panel] for panel in panels]:
        sides.add_row(*row)
    return sides


def _shares(whole: int, parts: int) -> list[int]:
    return [whole // parts + (i < whole % parts) for i in range(parts)]


def _trace_panel(trace: Trace, events: Iterable[EventBrief], width: int, height: int) -> Panel:
    """Draw one scorer's word on the grid over the last minute against its threshold, and where events began."""
    rows, columns, threshold = max(height - 3, 1), max(width - 4 - 5, 1), trace.threshold
    ticks = max(math.ceil(TRACE_S / trace.tick_s / columns), 1)
    values, begins = _bins(trace, columns, ticks)
    lines = [_trace_row(values, threshold, rows, row) for row in range(rows)]
    lines.append(Text.assemble("     ", _marks(events, begins, columns)))
    now = trace.ticks[-1][1] if trace.ticks else math.nan
    wide = width >= _TRACE_WORDS
    title = f"grid, {trace.scorer}: {'-ln p = ' if wide else ''}{reading(now)}, "
    title += f"{'event above' if wide else 'limit'} {threshold:.1f}"
    seconds = columns * ticks * trace.tick_s
    marks = "onset of G grid, D data, C comms, U unknown" if wide else "G grid, D data, C comms"
    return boxed(
        lines,
        Text(title, "bold" if not now > threshold else "bold red"),
        height,
        f"last {seconds:.0f} s; {marks}",
    )


def reading(score: float) -> str:
    """Write a score.

    Parameters
    ----------
    score
        -ln p; NaN where there is none.

    Returns
    -------
    str
        To a tenth; a dash for none.
    """
    return f"{score:.1f}" if math.isfinite(score) else "-"


def sparkline(trace: Trace, columns: int) -> Text:
    """Draw what a scorer said of the grid in one line: only what is above the threshold fills it.

    Parameters
    ----------
    trace
        Of the last minute.
    columns
        At most so many letters.

    Returns
    -------
    Text
        So many letters, or fewer where the whole minute takes fewer.
    """
    wanted, threshold = math.ceil(TRACE_S / trace.tick_s), trace.threshold
    ticks = max(math.ceil(wanted / max(columns, 1)), 1)
    values, _ = _bins(trace, math.ceil(wanted / ticks), ticks)
    text = Text()
    for value in values:
        if math.isnan(value):
            text.append("·", "dim")
        elif value > threshold:
            text.append(_BARS[8], "bold red")
        else:
            text.append(_BARS[1 + round(_level(value) / max(_level(threshold), 1e-9) * 5)], "green")
    return text


def _bins(trace: Trace, columns: int, ticks: int) -> tuple[list[float], list[int]]:
    """Greatest score and first time of each column; a column keeps its ticks, so that no bar flickers."""
    newest = trace.count - 1
    first = (newest // ticks - columns + 1) * ticks
    values, begins = [math.nan] * columns, [0] * columns
    offset = trace.count - len(trace.ticks)
    for i, (time_ns, value) in enumerate(trace.ticks, offset - first):
        if i < 0:
            continue
        column = i // ticks
        begins[column] = begins[column] or time_ns
        values[column] = value if math.isnan(values[column]) else max(values[column], value)
    return values, begins


def _trace_row(values: Sequence[float], threshold: float, rows: int, row: int) -> Text:
    """Draw one line of the chart, `row` counted from the top."""
    below = rows - 1 - row
    limit = _level(threshold) * rows
    here = int(min(limit, rows - 1e-9)) == below
    label = f"{threshold:4.0f}" if here else f"{_value((below + 1) / rows):4.0f}" if row == 0 else "    "
    text = Text.assemble((f"{label}{'┼' if here else '│'}", "red" if here else "dim"))
    for value in values:
        if math.isnan(value):
            text.append("╌" if here else " ", "red dim")
            continue
        eighths = round(min(max(_level(value) * rows - below, 0.0), 1.0) * 8)
        if not eighths and not below:
            eighths = 1
        if eighths:
            text.append(_BARS[eighths], "bold red" if value > threshold else "green")
        else:
            text.append("╌" if here else " ", "red dim")
    return text


def _marks(events: Iterable[EventBrief], begins: Sequence[int], columns: int) -> Text:
    """Letters under the chart where events began; the grid's win where two share a column."""
    known = [(i, time_ns) for i, time_ns in enumerate(begins) if time_ns]
    marks: dict[int, Cause] = {}
    if known:
        times = [time_ns for _, time_ns in known]
        for event in sorted(events, key=lambda e: e.cause is Cause.GRID):
            place = int(np.searchsorted(times, event.onset_ns, side="right")) - 1
            if place >= 0:
                marks[known[place][0]] = event.cause
    text = Text()
    for i in range(columns):
        cause = marks.get(i)
        text.append(cause.value[0].upper() if cause else " ", STYLE[cause] if cause else "")
    return text


def feed(
    console: Console,
    events: Sequence[EventBrief],
    width: int,
    rows: int,
    *,
    when: Callable[[int], str] | None = None,
    how_long: Callable[[EventBrief], str] | None = None,
) -> list[Text]:
    """Write events with their explanations, as many as there is room for.

    Parameters
    ----------
    console
        Where they will stand.
    events
        In the order in which they are wanted.
    width
        Of the room.
    rows
        Of the room.
    when
        Writes the time of an onset; None for the time of day.
    how_long
        Says how long an event lasted; None for `lasted`.

    Returns
    -------
    list[Text]
        Lines of at most that width.
    """
    if not events:
        return [Text("nothing out of the ordinary so far", "dim")]
    lines: list[Text] = []
    for event in events:
        head = _event_head(event, (when or time_of_day)(event.onset_ns), (how_long or lasted)(event))
        told = [one_line(head, width), *_event_sentence(console, event, width)]
        if lines and len(lines) + len(told) > rows:
            break
        lines += told
    return lines[:rows]


def time_of_day(time_ns: int) -> str:
    """Write a time without its date.

    Parameters
    ----------
    time_ns
        UTC nanoseconds.

    Returns
    -------
    str
        ``12:00:20.033``.
    """
    return rfc3339(time_ns)[11:-1]


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
    it = brief(event)
    when, kind, seen = time_of_day(it.onset_ns), words(it.kind), seen_by(it)
    return f"{when}  {it.cause.upper():7}  {kind:21}  {lasted(it):>9}  {seen:>7}  {it.sentence}"


def seen_by(event: EventBrief) -> str:
    """Say how many saw an event.

    Parameters
    ----------
    event
        In any stage.

    Returns
    -------
    str
        ``7 PMUs``.
    """
    return f"{event.pmus:,} PMU{'s' * (event.pmus != 1)}"


def _event_head(event: EventBrief, when: str, how_long: str) -> Text:
    style, quiet = STYLE[event.cause], "" if event.cause is Cause.GRID else "dim"
    seen = f"{seen_by(event)}, first {event.first_pmu}" if event.pmus > 1 else event.first_pmu
    return Text.assemble(
        (f"{EDGE[event.cause]} {event.cause.upper():7} ", style),
        (f"{words(event.kind):20.20} ", style if event.cause is Cause.GRID else ""),
        (f"{when} ", ""),
        (f"{how_long:>9}  ", "bold" if event.end_ns is None else quiet),
        (seen, quiet),
    )


def _event_sentence(console: Console, event: EventBrief, width: int) -> list[Text]:
    """Write the explanation: all of it for the grid's events, a line for the others."""
    edge, grid = (f"{EDGE[event.cause]} ", STYLE[event.cause]), event.cause is Cause.GRID
    if not grid:
        return [one_line(Text.assemble(edge, (event.sentence, "dim")), width)]
    wrapped = Text(event.sentence).wrap(console, max(width - 2, 1))
    return [Text.assemble(edge, line) for line in wrapped[:SENTENCE_LINES]]


def lasted(event: EventBrief) -> str:
    """Say how long an event lasted.

    Parameters
    ----------
    event
        In any stage.

    Returns
    -------
    str
        ``lasting``, or seconds.
    """
    return "lasting" if event.end_ns is None else f"{(event.end_ns - event.onset_ns) / 1e9:.1f} s"


def words(kind: str) -> str:
    """Write the name of a kind as one reads it.

    Parameters
    ----------
    kind
        Of an event.

    Returns
    -------
    str
        ``line trip``.
    """
    return kind.replace("_", " ")


def span(seconds: float) -> str:
    """Write a duration.

    Parameters
    ----------
    seconds
        Any.

    Returns
    -------
    str
        In whole seconds below two minutes, then in minutes, hours, days.
    """
    for unit, unit_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def bar(score: float, columns: int) -> str:
    """Draw a score as a bar.

    Parameters
    ----------
    score
        -ln p.
    columns
        Of the longest bar.

    Returns
    -------
    str
        At least one letter.
    """
    return "━" * min(max(round(_level(score) * columns), 1), columns)


def _level(value: float) -> float:
    """Where a score stands on a scale from 0 to 1."""
    return min(math.log1p(max(value, 0.0)) / math.log1p(TOP), 1.0)


def _value(level: float) -> float:
    """Which score stands there."""
    return math.expm1(level * math.log1p(TOP))


def fit(text: str, width: int) -> str:
    """Shorten a text that is too long.

    Parameters
    ----------
    text
        Any.
    width
        Letters at most.

    Returns
    -------
    str
        Ends in an ellipsis where something is missing.
    """
    return text if len(text) <= width else text[: width - 1] + "…"


def one_line(text: Text, width: int) -> Text:
    """Keep a text to one line: what is too long ends in an ellipsis.

    Parameters
    ----------
    text
        Is changed.
    width
        Letters at most.

    Returns
    -------
    Text
        The same.
    """
    text.no_wrap = True
    text.truncate(width, overflow="ellipsis")
    return text


def spread(left: Text, right: Text, width: int) -> Text:
    """Put something at either end of a line; the right end gives way.

    Parameters
    ----------
    left
        One end.
    right
        The other.
    width
        Of the line.

    Returns
    -------
    Text
        One line.
    """
    gap = width - left.cell_len - right.cell_len - 1
    if gap < 1:
        return one_line(left, width)
    return Text.assemble(left, " " * gap, right, " ", no_wrap=True)
