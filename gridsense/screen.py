"""Pipeline outputs in, a terminal screen out: streams, the grid's score, the worst PMUs and the newest events.

It keeps the last minute or so for drawing and nothing else; it decides nothing and stores nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gridsense.events import Cause, Event, rfc3339

BARS = " ▁▂▃▄▅▆▇█"
STYLE: dict[Cause, str] = {
    Cause.GRID: "bold red",
    Cause.DATA: "yellow",
    Cause.COMMS: "magenta",
    Cause.MODEL: "blue",
    Cause.UNKNOWN: "cyan",
}
FULL_SCALE = 60.0
"""-ln p at which a bar is full; the threshold stands at a quarter to a third of it."""


class Screen:
    """What the terminal shows while a grid is watched.

    Parameters
    ----------
    title
        What is watched.
    threshold
        -ln p above which the grid's score is an event.
    worst, newest
        How many PMUs and events to show.
    """

    def __init__(self, title: str, threshold: float, worst: int = 6, newest: int = 7) -> None:
        self.title = title
        self.threshold = threshold
        self.worst = worst
        self.newest = newest
        self.time_ns = 0
        self.note = ""
        self.streams: tuple[int, int] = (0, 0)
        self.trace: deque[float] = deque(maxlen=240)
        self.scores: Sequence[tuple[str, float]] = ()
        self.events: dict[str, Event] = {}

    def show_scores(self, time_ns: int, grid: float, names: Sequence[str], scores: Sequence[float]) -> None:
        """Take up one tick.

        Parameters
        ----------
        time_ns
            Event time.
        grid
            The grid's -ln p, NaN while it is learning.
        names, scores
            Every PMU and its -ln p, NaN where refused.
        """
        self.time_ns = time_ns
        self.trace.append(grid)
        array = np.asarray(scores)
        heard = ~np.isnan(array)
        self.streams = (int(heard.sum()), len(array))
        order = np.argsort(-np.nan_to_num(array, nan=-1.0), kind="stable")[: self.worst]
        self.scores = [(names[s], float(array[s])) for s in order.tolist()]

    def show_event(self, event: Event) -> None:
        """Take up an event, new or in a later stage.

        Parameters
        ----------
        event
            As raised or ended.
        """
        self.events[event.id] = event

    def __rich__(self) -> RenderableType:
        """Draw everything."""
        return Group(self._head(), self._trace(), self._pmus(), self._feed())

    def _head(self) -> RenderableType:
        heard, known = self.streams
        grid = sum(e.cause is Cause.GRID for e in self.events.values())
        open_ = [e for e in self.events.values() if e.end_ns is None]
        state = Text(" NORMAL ", "black on green")
        if any(e.cause is Cause.GRID for e in open_):
            state = Text(" GRID EVENT ", "bold white on red")
        elif open_:
            state = Text(" DATA TROUBLE ", "black on yellow")
        clock = rfc3339(self.time_ns)[:-1].replace("T", " ") if self.time_ns else "waiting for frames"
        words = f"  {clock}  {heard} of {known} PMUs scored  {grid} grid, {len(self.events) - grid} other events"
        return Text.assemble((f"{self.title}  ", "bold"), state, words, (f"  {self.note}", "dim"))

    def _trace(self) -> RenderableType:
        text = Text()
        for value in self.trace:
            if np.isnan(value):
                text.append("·", "dim")
                continue
            level = int(np.clip(value / FULL_SCALE * 8, 0, 8))
            text.append(BARS[level] if level else "▁", "bold red" if value > self.threshold else "green")
        text.truncate(text.cell_len, overflow="crop")
        now = next((v for v in reversed(self.trace) if not np.isnan(v)), float("nan"))
        title = f"grid atypicality, -ln p = {now:.1f} (event above {self.threshold:.1f})"
        return Panel(_Tail(text), title=title, title_align="left", height=3)

    def _pmus(self) -> RenderableType:
        table = Table(expand=True, box=None, padding=(0, 1))
        table.add_column("most atypical PMU", ratio=2, no_wrap=True)
        table.add_column("-ln p", justify="right", width=8)
        table.add_column("", ratio=5, no_wrap=True)
        for name, score in self.scores:
            refused = np.isnan(score)
            width = 0 if refused else int(np.clip(score / FULL_SCALE * 40, 0, 40))
            style = "red" if not refused and score > self.threshold else "green"
            table.add_row(name, "refused" if refused else f"{score:.1f}", Text("━" * width, style))
        return Panel(table, height=self.worst + 3)

    def _feed(self) -> RenderableType:
        table = Table(expand=True, box=None, padding=(0, 1))
        for column, width in (("onset", 12), ("cause", 7), ("kind", 16), ("lasted", 7)):
            table.add_column(column, width=width, no_wrap=True)
        table.add_column("what", ratio=1)
        for event in sorted(self.events.values(), key=lambda e: -e.onset_ns)[: self.newest]:
            lasted = "now" if event.end_ns is None else f"{(event.end_ns - event.onset_ns) / 1e9:.1f} s"
            onset = rfc3339(event.onset_ns)[11:-1]
            table.add_row(onset, Text(event.cause, STYLE[event.cause]), event.kind, lasted, event.sentence)
        return Panel(table, title="events, newest first", title_align="left")


class _Tail:
    """A line of text of which the newest (right) end is shown."""

    def __init__(self, text: Text) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Cut from the left to the width at hand."""
        yield self.text[-options.max_width :] if len(self.text) > options.max_width else self.text
