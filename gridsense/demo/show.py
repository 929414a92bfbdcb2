"""Learns what is typical, then watches a grid live: archive, C37.118 bytes, pipeline, screen, verdict.

In: a folder with the bundled streams. Out: a screen on a terminal, plain lines elsewhere, and a summary. It ends by
itself; an interrupt ends it early, with the summary of what had happened until then.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gridsense.demo.summary import Outcome
from gridsense.demo.wire import Recording, Wire, read_recording
from gridsense.errors import InputError, UsageError
from gridsense.events import Event, rfc3339
from gridsense.judging import judge, read_labels
from gridsense.pipeline import Learned, Output, Pipeline, Settings
from gridsense.screen import Screen, event_line

ROUND_S = 0.4
"""Grid time between two looks at the wire: two ticks."""
LEARN_ROUND_S = 2.0
"""As long while learning, where nobody is watching."""
REDRAW_S = 0.1
TOTAL_S = 125.0
"""How long the whole takes where no speed is asked for."""
SLOWEST, FASTEST = 2.2, 20.0
"""Where no speed is asked for: six minutes of grid within three, and slow enough to be read."""
AMBIENT, STREAM, LABELS = "ambient.parquet", "demo.parquet", "demo.json"


def run(console: Console, speed: float | None = None, folder: Path | None = None) -> Outcome | None:
    """Run the demo.

    Parameters
    ----------
    console
        Where it is shown.
    speed
        Times real time; 0 for as fast as it goes, None so that the whole takes about two minutes.
    folder
        With the streams and their labels; the bundled one where None.

    Returns
    -------
    Outcome | None
        What it came to; None where it was stopped before anything was streamed.

    Raises
    ------
    InputError
        If the streams or their labels are missing.
    UsageError
        If that is no speed.
    """
    if speed is not None and not 0 <= speed <= 1000:
        raise UsageError(f"--speed {speed:g}: give 0 for as fast as it goes, or times real time up to 1000")
    begin_s = time.monotonic()
    with _bundled(folder) as place:
        missing = [name for name in (AMBIENT, STREAM, LABELS) if not (place / name).is_file()]
        if missing:
            raise InputError(f"{place}: {', '.join(missing)} is missing; make it with scripts/simulate_grid.py")
        labels = read_labels(place / LABELS)
        learned = None
        try:
            learned = _learn(console, read_recording(place / AMBIENT))
            recording = read_recording(place / STREAM)
        except KeyboardInterrupt:
            console.print("stopped before the stream began")
            return None
    if speed is None:
        left_s = begin_s + TOTAL_S - time.monotonic()
        speed = min(max(recording.length_s / max(left_s, 1.0), SLOWEST), FASTEST)
    watch = _Watch(recording, learned, speed)
    whole = watch.run(console)
    seen = [label for label in labels if label.onset_ns <= watch.now_ns]
    verdict = judge(watch.events.values(), seen, watch.grid_s / 3600)
    outcome = Outcome(
        verdict=verdict,
        shown_ns=watch.shown_ns,
        counts=watch.wire.counts,
        frames_sent=watch.wire.frames_sent,
        bytes_sent=watch.wire.bytes,
        grid_s=watch.grid_s,
        wall_s=time.monotonic() - watch.begin_s,
        busy_s=watch.busy_s,
        speed=speed,
        whole=whole,
    )
    console.print(outcome)
    return outcome


@contextmanager
def _bundled(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with as_file(files("gridsense.demo")) as path:
        yield path


def _learn(console: Console, recording: Recording) -> Learned:
    """Let a pipeline see ordinary operation, as fast as it goes."""
    wire, pipeline = Wire(recording), Pipeline(Settings())
    pmus = sum(len(b.table.pmus) for b in recording.batches)
    what = f"learning what is typical of {pmus} PMUs from {recording.length_s:.0f} s of ordinary operation"
    if not console.is_terminal:
        console.print(what, soft_wrap=True)
    bar = BarColumn(bar_width=None)
    columns = (TextColumn("{task.description}"), bar, TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=recording.length_s)
        for until_ns in _rounds(recording, LEARN_ROUND_S):
            pipeline.feed(wire.receive(until_ns))
            progress.update(task, completed=(until_ns - recording.begin_ns) / 1e9)
        pipeline.finish()
    learned = pipeline.learned()
    if learned is None:
        raise InputError("the ambient stream holds no frame; make it anew with scripts/simulate_grid.py")
    return learned


def _rounds(recording: Recording, round_s: float) -> Iterator[int]:
    """Moments up to which the wire is read, the last one past the recording's end."""
    step_ns = round(round_s * 1e9)
    yield from range(recording.begin_ns + step_ns, recording.end_ns + step_ns + 1, step_ns)


class _Watch:
    """One live run and what has come of it so far."""

    def __init__(self, recording: Recording, learned: Learned, speed: float) -> None:
        self.recording = recording
        self.speed = speed
        self.wire = Wire(recording)
        self.pipeline = Pipeline(Settings(source="demo"), learned)
        self.events: dict[str, Event] = {}
        self.shown_ns: dict[str, int] = {}
        self.begin_s = time.monotonic()
        self.busy_s = 0.0
        self.now_ns = recording.begin_ns
        self._meter: deque[tuple[float, int, int]] = deque(maxlen=64)

    @property
    def grid_s(self) -> float:
        """Grid time streamed."""
        return (min(self.now_ns, self.recording.end_ns) - self.recording.begin_ns) / 1e9

    def run(self, console: Console) -> bool:
        """Stream until the end or an interrupt; say whether it was the end."""
        pmus = sum(len(b.table.pmus) for b in self.recording.batches)
        title = f"{pmus} PMUs of {len(self.recording.batches)} concentrators"
        self.begin_s = time.monotonic()
        try:
            if console.is_terminal:
                self._draw(console, Screen(title, self.pipeline.threshold))
            else:
                self._print(console, title)
        except KeyboardInterrupt:
            return False
        return True

    def _draw(self, console: Console, screen: Screen) -> None:
        drawn_s = 0.0
        with Live(screen, console=console, screen=True, auto_refresh=False) as live:
            for outputs in self._outputs():
                for output in outputs:
                    screen.show(output)
                now_s = time.monotonic()
                if now_s - drawn_s < REDRAW_S:
                    continue
                for event in self.pipeline.open_events():
                    screen.show_event(event)
                screen.note = self._note()
                live.refresh()
                drawn_s = now_s

    def _print(self, console: Console, title: str) -> None:
        pace = f"at {self.speed:.1f} times real time" if self.speed else "as fast as it goes"
        console.print(f"streaming {title} as C37.118, {self.recording.length_s:.0f} s of grid, {pace}", soft_wrap=True)
        known: set[str] = set()
        for outputs in self._outputs():
            for event in (e for output in outputs for e in output.events):
                word = "ended" if event.end_ns is not None else "raised"
                moment = rfc3339(event.raised_ns if event.id not in known else event.end_ns or event.raised_ns)
                known.add(event.id)
                line = f"{moment[11:-1]}  {word:6}  {event_line(event)}"
                console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _outputs(self) -> Iterator[list[Output]]:
        """Round after round, each when it is due; at last what the pipeline still held."""
        for until_ns in _rounds(self.recording, ROUND_S):
            started_s = time.monotonic()
            outputs = self.pipeline.feed(self.wire.receive(until_ns, until_ns), until_ns)
            self.now_ns = until_ns
            yield self._taken(outputs, started_s)
            if self.speed:
                due_s = self.begin_s + (until_ns - self.recording.begin_ns) / 1e9 / self.speed
                time.sleep(max(due_s - time.monotonic(), 0.0))
        started_s = time.monotonic()
        yield self._taken(self.pipeline.finish(), started_s)

    def _taken(self, outputs: list[Output], started_s: float) -> list[Output]:
        """Note what came; an event may still grow before it ends."""
        for event in (e for output in outputs for e in output.events):
            self.events[event.id] = event
        self.events |= {e.id: e for e in self.pipeline.open_events()}
        for name in self.events.keys() - self.shown_ns.keys():
            self.shown_ns[name] = self.now_ns
        now_s = time.monotonic()
        self.busy_s += now_s - started_s
        self._meter.append((now_s, self.wire.frames_sent, self.wire.bytes))
        return outputs

    def _note(self) -> str:
        """Stream time, speed, and what came over the wire in the last seconds."""
        (then_s, frames, octets), (now_s, more, further) = self._meter[0], self._meter[-1]
        span_s = max(now_s - then_s, 1e-9)
        flow = f"{(more - frames) / span_s:,.0f} frames/s  {(further - octets) / span_s / 1e3:,.0f} kB/s of C37.118"
        faster = self.grid_s / max(now_s - self.begin_s, 1e-9)
        return f"{_clock(self.grid_s)} of {_clock(self.recording.length_s)}  {faster:.1f} x real time  {flow}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
