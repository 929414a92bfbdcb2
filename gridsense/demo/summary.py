"""What a demo's run came to, in; a table for people, out: what happened, what was said of it, and how late."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from gridsense.demo.sightings import Sighting
from gridsense.events import Cause
from gridsense.judging import Finding, Verdict, rows
from gridsense.screen import STYLE


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes
    ----------
    verdict
        Events against the labels of what was streamed.
    shown_ns
        By event: grid time at which it first came out of the pipeline, with all that it had waited for.
    frames_sent, bytes_sent
        Data that the concentrators wrote.
    frames_received, refused
        Data frames that the gateway gave to the log, and what it could not use.
    grid_s, wall_s, busy_s
        Grid time streamed, time it took, and how much of that the pipeline worked (the rest was pacing and drawing).
    speed
        At which it was paced; 0 for as fast as it goes.
    whole
        The stream was watched to its end.
    sightings
        By event: which scorer saw it first, and which most plainly.
    """

    verdict: Verdict
    shown_ns: Mapping[str, int]
    frames_sent: int
    bytes_sent: int
    frames_received: int
    refused: int
    grid_s: float
    wall_s: float
    busy_s: float
    speed: float
    whole: bool
    sightings: Mapping[str, Sighting]

    @property
    def grid(self) -> tuple[Finding, ...]:
        """How disturbances of the grid were answered."""
        return tuple(f for f in self.verdict.findings if f.label.cause is Cause.GRID)

    @property
    def measurement(self) -> tuple[Finding, ...]:
        """How trouble of data and communication was answered."""
        return tuple(f for f in self.verdict.findings if f.label.cause is not Cause.GRID)

    @property
    def called_grid(self) -> int:
        """Kinds of trouble of data or communication that were called a disturbance of the grid."""
        return sum(row.called_grid for row in rows([self.verdict]))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table and what it comes to."""
        if not self.verdict.findings:
            yield Text("nothing had happened yet")
            return
        yield self._table()
        yield from self._lines()

    def _table(self) -> Table:
        table = Table(
            title="what happened, and what GridSense said",
            title_style="bold",
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        table.add_column("cause")
        table.add_column("what happened", no_wrap=True)
        for name in ("times", "found", "raised\nafter", "shown\nafter"):
            table.add_column(name, justify="right", no_wrap=True)
        for name in ("seen first\nby", "stronger\nby"):
            table.add_column(name, overflow="fold")
        table.add_column("called", overflow="fold")
        before: bool | None = None
        for row in rows([self.verdict]):
            findings = [f for f in self.verdict.findings if f.label.kind == row.kind]
            cause = findings[0].label.cause
            grid = cause is Cause.GRID
            if before is not None and grid != before:
                table.add_section()
            before = grid
            missed = row.found < row.happened
            style = "bold green" if not missed else "bold red" if grid else "yellow"
            table.add_row(
                Text(cause.value, STYLE[cause]),
                row.kind.replace("_", " "),
                str(row.happened),
                Text(f"{row.found} MISSED" if missed and grid else str(row.found), style),
                "" if math.isnan(row.delay_p90_s) else f"{round(row.delay_p90_s, 1) + 0.0:.1f} s",
                self._screen_delay(findings),
                _scorers(sighting.first for sighting in self._sightings(findings)),
                _scorers(sighting.most for sighting in self._sightings(findings)),
                _called(findings) + (f", {row.called_grid} CALLED GRID" if row.called_grid else ""),
            )
        return table

    def _screen_delay(self, findings: Sequence[Finding]) -> str:
        waits = [(self.shown_ns[f.event.id] - f.label.onset_ns) / 1e9 for f in findings if f.event is not None]
        return f"{np.percentile(waits, 90):.1f} s" if waits else ""

    def _sightings(self, findings: Sequence[Finding]) -> list[Sighting]:
        """Say how the answering events were seen, those by a scorer."""
        ids = [f.event.id for f in findings if f.event is not None]
        return [self.sightings[name] for name in ids if name in self.sightings]

    def _lines(self) -> Iterable[Text]:
        grid, other, verdict = self.grid, self.measurement, self.verdict
        delays = [f.delay_s for f in grid if f.events]
        delay = f", median delay {round(float(np.median(delays)), 1) + 0.0:.1f} s" if delays else ""
        found = sum(bool(f.events) for f in grid)
        yield _sum("grid disturbances", f"{found} of {len(grid)} found{delay}", good=found == len(grid))
        false = len(verdict.false_grid)
        yield _sum("false grid events", f"{false} in {self.grid_s:.0f} s", good=not false)
        found = sum(bool(f.events) for f in other)
        words = f"{found} of {len(other)} noticed, {self.called_grid} called a grid event"
        yield _sum("data and comms faults", words, good=not self.called_grid)
        yield _sum("further remarks", f"{len(verdict.others)} on single PMUs, for which the labels name no fault")
        words = (
            f"{self.frames_received:,} of {self.frames_sent:,} frames, {self.bytes_sent / 1e6:.1f} MB over TCP,"
            f" {self.refused} refused"
        )
        yield _sum("C37.118 received", words, good=self.frames_received == self.frames_sent)
        pace = f"paced at {self.speed:.1f} times real time" if self.speed else "as fast as it goes"
        words = (
            f"{self.grid_s:.0f} s of grid in {self.wall_s:.0f} s, {pace};"
            f" working time {self.busy_s:.0f} s ({self.grid_s / max(self.busy_s, 1e-9):.0f} times real time)"
        )
        yield _sum("speed", words)
        if not self.whole:
            yield Text("stopped before the end: what had not happened yet is left out", "yellow")


def _called(findings: Sequence[Finding]) -> str:
    """Say what the answering events were called, the most frequent first; the cause only where it is another."""
    names = Counter(
        ("" if e.cause is f.label.cause else f"{e.cause}: ") + e.kind.replace("_", " ")
        for f in findings
        for e in f.events
    )
    return ", ".join(f"{name} x{n}" if n > 1 else name for name, n in names.most_common()) or "no event"


def _scorers(names: Iterable[str]) -> str:
    """Name the scorers, the most frequent first."""
    return ", ".join(f"{name} {n}" if n > 1 else name for name, n in Counter(filter(None, names)).most_common())


def _sum(what: str, words: str, *, good: bool | None = None) -> Text:
    """One line under the table."""
    style = "" if good is None else "bold green" if good else "bold red"
    return Text.assemble((f"  {what:22}", "bold"), (words, style))
