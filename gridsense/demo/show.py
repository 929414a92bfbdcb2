"""Learns what is typical, then watches a grid live: PMUs served over TCP, gateway, log, processor, screen, verdict.

In: a folder with the bundled streams. Out: a screen on a terminal, plain lines elsewhere, and a summary. Everything
runs as it would in a substation, in one process and on a folder that is thrown away. It ends by itself; an interrupt
ends it early, with the summary of what had happened until then.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from gridsense.config import Config, load
from gridsense.demo.sightings import Sightings
from gridsense.demo.summary import Outcome
from gridsense.demo.wire import Recording, Wire, read_recording
from gridsense.errors import InputError, UsageError
from gridsense.events import Event, rfc3339
from gridsense.judging import judge, read_labels
from gridsense.pipeline import Learned, Pipeline, Settings
from gridsense.processor import Step
from gridsense.screen import Screen, event_line
from gridsense.services.together import run_together
from gridsense.simulator.server import Counts as SentCounts
from gridsense.simulator.server import Simulator
from streams.gateway.status import ConnectionStatus, Totals

LEARN_ROUND_S = 2.0
"""Grid time between two looks at the wire while learning, where nobody is watching."""
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
    with _bundled(folder) as place, tempfile.TemporaryDirectory(prefix="gridsense-demo-") as scratch:
        missing = [name for name in (AMBIENT, STREAM, LABELS) if not (place / name).is_file()]
        if missing:
            raise InputError(f"{place}: {', '.join(missing)} is missing; make it with scripts/simulate_grid.py")
        labels = read_labels(place / LABELS)
        learned = None
        try:
            settings = _config(place / STREAM, Path(scratch), 1.0).pipeline_settings()
            learned = _learn(console, read_recording(place / AMBIENT), settings)
            recording = read_recording(place / STREAM)
        except KeyboardInterrupt:
            console.print("stopped before the stream began")
            return None
        if speed is None:
            left_s = begin_s + TOTAL_S - time.monotonic()
            speed = min(max(recording.length_s / max(left_s, 1.0), SLOWEST), FASTEST)
        watch = _Watch(recording, speed)
        whole = watch.run(console, _config(place / STREAM, Path(scratch), speed), learned)
    seen = [label for label in labels if label.onset_ns <= watch.now_ns]
    verdict = judge(watch.events.values(), seen, watch.grid_s / 3600)
    outcome = Outcome(
        verdict=verdict,
        shown_ns=watch.shown_ns,
        frames_sent=watch.sent.sent if watch.sent else 0,
        bytes_sent=watch.sent.sent_bytes if watch.sent else 0,
        frames_received=watch.decoded,
        refused=watch.refused,
        grid_s=watch.grid_s,
        wall_s=time.monotonic() - watch.begin_s,
        busy_s=watch.busy_s,
        speed=speed,
        whole=whole,
        sightings=watch.sightings.of(watch.events.values()),
    )
    console.print(outcome)
    return outcome


def _config(stream: Path, folder: Path, speed: float) -> Config:
    """Make the configuration of a substation that lives in a folder.

    At a multiple of real time a second of the wall clock is more of the grid's: frames are waited for as much longer.
    """
    scale = speed or FASTEST
    told = (
        "name=demo",
        f"simulate.files=[{json.dumps(str(stream))}]",
        f"simulate.speed={speed}",
        "simulate.port=0",
        f"log.url=sqlite:{folder / 'log.db'}",
        f"store.path={folder / 'events.db'}",
        f"align.lateness={max(1.0, scale)}",
        f"align.dead={max(2.0, 2 * scale)}",
        "metrics.processor_port=0",
        "metrics.gateway_port=0",
    )
    return load(None, told, {}).config


@contextmanager
def _bundled(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with as_file(files("gridsense.demo")) as path:
        yield path


def _learn(console: Console, recording: Recording, settings: Settings) -> Learned:
    """Let a pipeline see ordinary operation, as fast as it goes."""
    wire, pipeline = Wire(recording), Pipeline(settings)
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
    """One live run and what has come of it so far: an observer of the processor."""

    def __init__(self, recording: Recording, speed: float) -> None:
        self.recording = recording
        self.speed = speed
        self.events: dict[str, Event] = {}
        self.shown_ns: dict[str, int] = {}
        self.sightings = Sightings()
        self.begin_s = time.monotonic()
        self.busy_s = 0.0
        self.sent: SentCounts | None = None
        self.decoded = self.refused = 0
        self._simulator: Simulator | None = None
        self._show: Callable[[Step], None] = lambda _: None
        self._meter: deque[tuple[float, int, int]] = deque(maxlen=64)

    @property
    def now_ns(self) -> int:
        """Grid time that has been sent."""
        begun = self._simulator.status().time_ns if self._simulator else None
        return min(begun or self.recording.begin_ns, self.recording.end_ns)

    @property
    def grid_s(self) -> float:
        """Grid time streamed."""
        return (self.now_ns - self.recording.begin_ns) / 1e9

    def run(self, console: Console, config: Config, learned: Learned) -> bool:
        """Stream until the end or an interrupt; say whether it was the end."""
        pmus = sum(len(b.table.pmus) for b in self.recording.batches)
        title = f"{pmus} PMUs of {len(self.recording.batches)} concentrators"
        threshold = Pipeline(config.pipeline_settings()).threshold
        self.begin_s = time.monotonic()
        drawn = self._drawn(console, Screen(title, threshold)) if console.is_terminal else self._printed(console, title)
        try:
            with drawn, _quiet():
                run_together(
                    config,
                    threading.Event(),
                    close=True,
                    observers=[self],
                    note=self._noted,
                    playing=self._playing,
                    learned=learned,
                )
        except KeyboardInterrupt:
            return False
        return True

    def stepped(self, step: Step) -> None:
        """Take up a reading, and show it."""
        now_ns = self.now_ns
        for event in (*step.events, *step.lasting):
            self.events[event.id] = event
            self.shown_ns.setdefault(event.id, now_ns)
        for output in step.outputs:
            self.sightings.take(output)
        self.busy_s += step.took_s
        if self._simulator is not None:
            self.sent = self._simulator.counts
            self._meter.append((time.monotonic(), self.sent.sent, self.sent.sent_bytes))
        self._show(step)

    def saved(self, took_s: float, size: int, state_bytes: int) -> None:
        """Nothing to show."""

    def save_failed(self) -> None:
        """Nothing to show."""

    def began(self, how: str) -> None:
        """Nothing to show."""

    def _playing(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def _noted(self, _: Sequence[ConnectionStatus], totals: Totals) -> None:
        self.decoded, self.refused = totals.counts.frames, sum(totals.counts.refused.values())

    @contextmanager
    def _drawn(self, console: Console, screen: Screen) -> Iterator[None]:
        """Draw a screen at each step."""
        with Live(screen, console=console, screen=True, auto_refresh=False) as live:

            def show(step: Step) -> None:
                for output in step.outputs:
                    screen.show(output)
                for event in step.lasting:
                    screen.show_event(event)
                screen.note = self._note()
                live.refresh()

            self._show = show
            yield

    @contextmanager
    def _printed(self, console: Console, title: str) -> Iterator[None]:
        """Print a line for each event as it is raised and as it has ended."""
        pace = f"at {self.speed:.1f} times real time" if self.speed else "as fast as it goes"
        words = f"streaming {title} as C37.118 over TCP, {self.recording.length_s:.0f} s of grid, {pace}"
        console.print(words, soft_wrap=True)
        known: set[str] = set()

        def show(step: Step) -> None:
            for event in step.events:
                word = "ended" if event.end_ns is not None else "raised"
                moment = rfc3339(event.raised_ns if event.id not in known else event.end_ns or event.raised_ns)
                known.add(event.id)
                line = f"{moment[11:-1]}  {word:6}  {event_line(event)}"
                console.print(line, soft_wrap=True, highlight=False, markup=False)

        self._show = show
        yield

    def _note(self) -> str:
        """Stream time, speed, and what came over the wire in the last seconds."""
        if not self._meter:
            return ""
        (then_s, frames, octets), (now_s, more, further) = self._meter[0], self._meter[-1]
        span_s = max(now_s - then_s, 1e-9)
        flow = f"{(more - frames) / span_s:,.0f} frames/s  {(further - octets) / span_s / 1e3:,.0f} kB/s of C37.118"
        faster = self.grid_s / max(now_s - self.begin_s, 1e-9)
        return f"{_clock(self.grid_s)} of {_clock(self.recording.length_s)}  {faster:.1f} x real time  {flow}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave the connections' comings and goings unsaid: they are meant."""
    speaker = logging.getLogger("streams.gateway")
    level = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        speaker.setLevel(level)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
