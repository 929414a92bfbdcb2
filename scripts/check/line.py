"""Checks what GridSense promises of the live line: the events of a recording served over real sockets are its events.

A recording is served by `gridsense simulate-pmu`, received by `gridsense gateway` into the log, and processed by
`gridsense run`, each a process of its own: once over TCP, and at the same time over UDP with datagrams lost, doubled
and put behind each other. Both are held against `gridsense detect` on the file, on an archive as it is sent. The exit
status is 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

try:
    from prometheus_client.parser import text_string_to_metric_families
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from gridsense import detect as detecting
    from gridsense.config import load
    from gridsense.errors import GridSenseError
    from gridsense.simulator.script import ServedStream, read_script
    from gridsense.sources import open_source, read_rounds
    from gridsense.store import EventStore
    from scripts.check.corpus import BUNDLE, VERDICTS, CheckError, Promise, exit_status
    from streams.align import AlignSettings
    from streams.archives import is_archive
    from streams.c37118.configuration import encode_configuration
    from streams.errors import StreamsError
except ImportError:
    own = ROOT / ".venv" / "bin" / "python"
    if not own.exists() or Path(sys.prefix) == own.parents[1]:
        raise
    os.execv(own, [str(own), *sys.argv])  # noqa: S606 - any Python may start this; the project's own runs it

GRIDSENSE = [sys.executable, "-c", "from gridsense.cli import main; main()"]
CLEAR = 20.0
"""-ln p of an event that does not hang on a reading or two: its threshold is 13 to 15."""
TICK_S = 0.2
"""Onsets of the grid's events stand on ticks of this."""
HALF_MS = 0.5e-3
"""Events are written to a millisecond."""
FAULTS = {"loss": 0.02, "duplicate": 0.02, "reorder": 0.02}
QUICK_SPEED = 20.0
STOP_S = 10.0
"""A service that is told to stop ends within this."""
TAIL_S = 5.0
"""After the last frame the processor goes on for so long: it shall see that all have fallen silent."""
PATIENCE_S = 60.0
_PORTS = range(20_000, 32_000)  # below those that a machine gives out by itself


@dataclass(frozen=True, slots=True)
class Told:
    """An event as the store has it.

    Attributes
    ----------
    text
        CloudEvents JSON.
    onset_s
        Seconds since the epoch, to a millisecond.
    cause, kind, first_pmu
        As in `gridsense.events.Event`.
    lasts
        Its end is not known.
    minus_ln_p
        Its greatest score.
    """

    text: str
    onset_s: float
    cause: str
    kind: str
    first_pmu: str
    lasts: bool
    minus_ln_p: float = math.inf


Events = dict[str, Told]
"""By id."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What the simulator says that it sent.

    Attributes
    ----------
    played
        Frames of the recording.
    sent
        Frames that left, duplicates included.
    lost, duplicated, reordered
        On purpose.
    late_ms
        The longest that a frame left after its time.
    """

    played: int
    sent: int
    lost: int
    duplicated: int
    reordered: int
    late_ms: int


@dataclass(frozen=True, slots=True)
class Counted:
    """What gateway and processor say that they received.

    Attributes
    ----------
    received
        Frames that the gateway gave to the log.
    decoded
        Frames that the processor read.
    dropped
        Frames that it did not use, by reason.
    """

    received: int
    decoded: int
    dropped: dict[str, int]

    @property
    def once(self) -> int:
        """Frames that came, each once."""
        return self.decoded - self.dropped.get("duplicate", 0)


@dataclass(frozen=True, slots=True)
class Run:
    """One way from the recording to the events.

    Attributes
    ----------
    events
        In the store at the end.
    sent, counted
        Frames at both ends.
    stop_s
        Seconds until both services had ended that were told to.
    """

    events: Events
    sent: Sent
    counted: Counted
    stop_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured.

    Attributes
    ----------
    events
        Of `gridsense detect` on what is sent.
    differing, missing, unexpected
        Of these over TCP: told in other words; not told; and told before the end though `detect` does not know them.
    added_after_end
        Events over TCP whose onset is after the last frame: all have fallen silent.
    added_causes
        Their causes.
    begun_equal
        The events of the recording as it is begin the same: onset, cause and kind.
    udp_grid_equal
        Over UDP the same events of the grid, as far as they stand clear of the threshold, the onset within a tick.
    udp_other
        Events over UDP before the end that are not of the grid, beyond those of `detect`, and those of it that are
        missing. Not promised: lost frames are such events.
    """

    events: int
    differing: int
    missing: int
    unexpected: int
    added_after_end: int
    added_causes: dict[str, int]
    begun_equal: bool
    udp_grid_equal: bool
    udp_other: int


def compare(file: Events, expected: Events, tcp: Events, udp: Events, end_s: float) -> Figures:
    """Hold the events of both runs against those of the file.

    Parameters
    ----------
    file
        Of `gridsense detect` on the recording as it is.
    expected
        Of `gridsense detect` on what is sent of it.
    tcp, udp
        Of the live runs.
    end_s
        Time stamp of the last frame.

    Returns
    -------
    Figures
        What is the same, and what not. An event that lasts at the end of the file ends live, when all have fallen
        silent: it is the same if it began the same.
    """
    before = {key: event for key, event in tcp.items() if event.onset_s < end_s + HALF_MS}
    after = [event for key, event in tcp.items() if key not in before]
    same = [
        begun(event) == begun(before[key]) if event.lasts else event.text == before[key].text
        for key, event in expected.items()
        if key in before
    ]
    others = Counter(event.kind for event in udp.values() if event.cause != "grid" and event.onset_s < end_s + HALF_MS)
    others.subtract(event.kind for event in expected.values() if event.cause != "grid")
    return Figures(
        events=len(expected),
        differing=same.count(False),
        missing=len(expected.keys() - before.keys()),
        unexpected=len(before.keys() - expected.keys()),
        added_after_end=len(after),
        added_causes=dict(Counter(event.cause for event in after)),
        begun_equal=sorted(begun(e)[:3] for e in file.values()) == sorted(begun(e)[:3] for e in expected.values()),
        udp_grid_equal=same_grid(expected, udp),
        udp_other=sum(map(abs, others.values())),
    )


def begun(event: Told) -> tuple[float, str, str, str]:
    """Take what is known of an event when it begins."""
    return event.onset_s, event.cause, event.kind, event.first_pmu


def same_grid(expected: Events, found: Events) -> bool:
    """Say whether two stores tell the same events of the grid, where one of them knows a few readings less.

    Parameters
    ----------
    expected, found
        Any.

    Returns
    -------
    bool
        Each event of one that stands `CLEAR` has its like in the other, the onset within a tick. What it is called, and
        which PMU was the first of those that saw it at once, may hang on a reading that was lost.
    """
    one, other = ([e for e in events.values() if e.cause == "grid"] for events in (expected, found))
    return all(
        any(abs(a.onset_s - b.onset_s) <= TICK_S + 1e-3 for b in theirs)
        for mine, theirs in ((one, other), (other, one))
        for a in mine
        if a.minus_ln_p > CLEAR
    )


def promises(f: Figures, tcp: Run, udp: Run, returns: int) -> list[Promise]:
    """Hold the figures against what was promised.

    Parameters
    ----------
    f
        Of the events.
    tcp, udp
        Of the frames.
    returns
        See `Recording`.

    Returns
    -------
    list[Promise]
        In the order of the issue.
    """
    wrong = f.differing + f.missing + f.unexpected
    out = [
        Promise(
            "over TCP the events of `detect`, id for id and word for word",
            f"{f.events} events: {f.differing} differ, {f.missing} missing, {f.unexpected} more",
            kept=wrong == 0 if f.events else None,
        ),
        Promise(
            "the events of the file as it is begin the same: onset, cause, kind",
            "equal" if f.begun_equal else "others",
            kept=f.begun_equal,
        ),
        Promise(
            "what is added after the end tells of the silence",
            ", ".join(f"{n} {cause}" for cause, n in f.added_causes.items()) or "nothing",
            kept=set(f.added_causes) <= {"comms"} if f.added_after_end else None,
        ),
        Promise(
            "over UDP the same clear events of the grid", "equal" if f.udp_grid_equal else "others", f.udp_grid_equal
        ),
    ]
    for name, run in (("TCP", tcp), ("UDP", udp)):
        sent, counted = run.sent, run.counted
        missing, doubled = sent.played - counted.once, counted.dropped.get("duplicate", 0)
        others = {reason: n for reason, n in counted.dropped.items() if n and reason != "duplicate"}
        out += [
            Promise(
                f"{name}: every frame that was sent is received and processed",
                f"{sent.sent:,} sent, {counted.received:,} received, {counted.decoded:,} processed",
                kept=sent.sent == counted.received == counted.decoded,
            ),
            Promise(
                f"{name}: lost and doubled frames are counted exactly",
                f"lost {sent.lost:,} of {sent.played:,}, counted {missing:,}; "
                f"doubled {sent.duplicated:,}, counted {doubled:,}",
                kept=(sent.lost, sent.duplicated) == (missing, doubled),
            ),
            Promise(
                f"{name}: none is refused, but one when a source comes back",
                ", ".join(f"{n} {reason}" for reason, n in others.items()) or "none",
                kept=sum(others.values()) == others.get("late", 0) <= returns,
            ),
            Promise(f"{name}: services stop within {STOP_S:g} s", f"{run.stop_s:.1f} s", run.stop_s <= STOP_S),
        ]
    return out


@dataclass(frozen=True, slots=True)
class Course:
    """What both runs have in common.

    Attributes
    ----------
    files
        What is served.
    speed
        Times real time.
    seed
        Of the faults over UDP.
    stopped
        Set when the check ends before its time.
    """

    files: Sequence[Path]
    speed: float
    seed: int
    stopped: threading.Event

    @property
    def dead_s(self) -> float:
        """After so much silence a source is given up."""
        return 4 * self.speed if self.speed > 1 else AlignSettings().dead_s

    def settings(self) -> str:
        """Write the part of the configuration that the events depend on: defaults, at the true rate.

        At a greater speed a hiccup of the machine is a longer time of the recording: more lateness is granted.
        """
        name = "+".join(path.stem for path in self.files)  # as `detect` calls what is watched
        lines = [f"name = {json.dumps(name, ensure_ascii=False)}", ""]
        if self.speed > 1:
            lines += ["[align]", f"lateness = {2 * self.speed:g}", f"dead = {self.dead_s:g}", ""]
        return "\n".join(lines)


class Line:
    """Simulator, gateway and processor in a folder of their own, with a configuration file.

    Parameters
    ----------
    folder
        Made; the log, the store and what the processes say stand in it.
    transport
        ``tcp``, or ``udp`` with faults.
    course
        See `Course`.
    """

    def __init__(self, folder: Path, transport: str, course: Course) -> None:
        self.folder, self.transport, self.course = folder, transport, course
        self.streams = read_script(course.files).streams
        self.port = free_ports(len(self.streams), transport)
        self.ports = {"gateway": free_ports(1, "tcp"), "processor": free_ports(1, "tcp")}

    def run(self) -> Run:
        """Serve the recording, receive it, process it, stop, and process the rest.

        Returns
        -------
        Run
            What came of it.

        Raises
        ------
        CheckError
            If a process ends that should not, or nothing comes.
        """
        self.folder.mkdir(parents=True)
        (self.folder / "gridsense.toml").write_text(self._configuration())
        with ExitStack() as stack:
            services = [stack.enter_context(self._started(command)) for command in ("gateway", "run")]
            if not self._comes(self._listening, services):
                raise CheckError(f"the services are not ready after {PATIENCE_S:g} s; see {self.folder}")
            simulator = stack.enter_context(self._started("simulate-pmu", *self._serving()))
            self._comes(lambda: simulator.poll() is not None, services, within_s=math.inf)
            sent = self._sent()
            self._comes(lambda: self._counted().decoded >= sent.sent, services)  # what has not come by then is lost
            self._comes(lambda: False, services, within_s=TAIL_S)
            counted = self._counted()
            began_s = time.monotonic()
            for service in services:
                service.send_signal(signal.SIGTERM)
            for service in services:
                self._ended(service)
            stop_s = time.monotonic() - began_s
        with self._started("run", "--once", "--close") as last:
            self._ended(last)
        return Run(stored(self.folder / "gridsense.db"), sent, counted, stop_s)

    def _configuration(self) -> str:
        lines = [self.course.settings(), "[metrics]", *(f"{name}_port = {port}" for name, port in self.ports.items())]
        lines += ["", "[gateway]", "backoff_min = 0.2", "backoff_max = 1", ""]
        for place, stream in enumerate(self.streams):
            lines += self._connection(stream, self.port + place)
        return "\n".join(lines)

    def _connection(self, stream: ServedStream, port: int) -> list[str]:
        return [
            "[[gateway.connections]]",
            f"name = {json.dumps(stream.name, ensure_ascii=False)}",
            f"id_code = {stream.id_code}",
            f'transport = "{self.transport}"',
            f"{'udp_port' if self.transport == 'udp' else 'port'} = {port}",
            "",
        ]

    def _serving(self) -> list[str]:
        course = self.course
        options = [*map(str, course.files), "--transport", self.transport, "--speed", f"{course.speed:g}"]
        if self.transport != "udp":
            return [*options, "--port", str(self.port)]
        faults = [word for name, share in FAULTS.items() for word in (f"--{name}", f"{share}")]
        return [*options, "--udp-port", str(self.port), "--seed", str(course.seed), *faults]

    @contextmanager
    def _started(self, command: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a command; what it says goes to a file of its name. It is killed where it is left running."""
        with (self.folder / f"{command}.txt").open("ab") as said:
            process = subprocess.Popen([*GRIDSENSE, command, *options], cwd=self.folder, stdout=said, stderr=said)
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end of a process, which must be a good one."""
        if process.wait(10 * PATIENCE_S):
            raise CheckError(f"{process.args!r} ended with {process.returncode}; see {self.folder}")

    def _comes(
        self,
        condition: Callable[[], bool],
        services: Sequence[subprocess.Popen[bytes]],
        within_s: float = PATIENCE_S,
    ) -> bool:
        """Wait for something while the services run, and say whether it came."""
        deadline_s = time.monotonic() + within_s
        while not condition():
            for service in services:
                if service.poll() is not None:
                    raise CheckError(f"{service.args!r} ended with {service.returncode}; see {self.folder}")
            if time.monotonic() > deadline_s:
                return False
            if self.course.stopped.wait(0.1):
                raise CheckError(f"stopped; see {self.folder}")
        return True

    def _series(self, service: str) -> Counter[tuple[str, str]]:
        """Read a service's metrics: by name and the label that tells samples apart, summed over the sources."""
        out: Counter[tuple[str, str]] = Counter()
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.ports[service]}/metrics") as page:
            for family in text_string_to_metric_families(page.read().decode()):
                for sample in family.samples:
                    if math.isfinite(sample.value):
                        label = sample.labels.get("reason", sample.labels.get("state", ""))
                        out[sample.name, label] += int(sample.value)
        return out

    def _listening(self) -> bool:
        """Say whether every connection can take data: by UDP it listens, by TCP it tries until somebody is there."""
        gateway, processor = self._series("gateway"), self._series("processor")
        states = ["configuring", "silent"] if self.transport == "udp" else ["connecting", "backing-off"]
        waiting = sum(gateway["gridsense_gateway_connections", state] for state in states)
        return bool(processor) and waiting == len(self.streams)

    def _counted(self) -> Counted:
        gateway, processor = self._series("gateway"), self._series("processor")
        dropped = {
            reason: n for (name, reason), n in processor.items() if name == "gridsense_frames_dropped_total" and n
        }
        received, decoded = "gridsense_gateway_frames_total", "gridsense_frames_decoded_total"
        return Counted(gateway[received, ""], processor[decoded, ""], dropped)

    def _sent(self) -> Sent:
        """Read the simulator's summary."""
        said = (self.folder / "simulate-pmu.txt").read_text()

        def number(words: str) -> int:
            found = re.search(words.replace("N", r"([\d,]+)"), said)
            return int(found[1].replace(",", "")) if found else 0

        sent = Sent(
            played=number("N frames played"),
            sent=number("N frames .N bytes. sent"),
            lost=number("N lost"),
            duplicated=number("N duplicated"),
            reordered=number("N reordered"),
            late_ms=number("at most N ms late"),
        )
        if not sent.sent:
            raise CheckError(f"the simulator sent nothing; see {self.folder / 'simulate-pmu.txt'}")
        return sent


def as_sent(recording: Path, folder: Path) -> list[Path]:
    """Write down, a capture a stream, what an archive is when it is sent.

    An archive holds more than C37.118 can say: nominal voltages and currents, and angles in degrees that are rounded
    when they become radians. The scores of what is sent are others by a few per cent, wherever it is processed.

    Parameters
    ----------
    recording
        A capture, or an archive.
    folder
        For the captures.

    Returns
    -------
    list[Path]
        The recording itself where it is a capture.
    """
    if not is_archive(recording):
        return [recording]
    script = read_script([recording])
    paths = [folder / f"{stream.name}.c37118" for stream in script.streams]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for file, stream in zip(files, script.streams, strict=True):
            file.writelines(encode_configuration(stream.configuration))
        for pieces in script.rounds():
            for piece in pieces:
                files[piece.stream].write(piece.octets.tobytes())
    return paths


def free_ports(count: int, transport: str) -> int:
    """Find neighbouring ports that nobody uses.

    Parameters
    ----------
    count
        How many.
    transport
        ``tcp`` or ``udp``.

    Returns
    -------
    int
        The first. Somebody else may take them before they are used.

    Raises
    ------
    CheckError
        If there are none.
    """
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    first = int.from_bytes(os.urandom(2)) % len(_PORTS)
    for at in range(len(_PORTS)):
        port = _PORTS[(first + at * count) % len(_PORTS)]
        with ExitStack() as stack, suppress(OSError):
            for place in range(count):
                stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("127.0.0.1", port + place))
            return port
    raise CheckError(f"{count} neighbouring {transport} ports are not free on this machine")


def stored(path: Path) -> Events:
    """Read an event store.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Events
        The newest version of each.
    """
    out: Events = {}
    with EventStore(path) as store:
        for text in store.cloudevents():
            event = json.loads(text)
            told = event["data"]
            onset_s = datetime.fromisoformat(told["onset"]).timestamp()
            lasts = told["end"] is None
            out[event["id"]] = Told(
                text, onset_s, told["cause"], told["kind"], told["first_pmu"], lasts, told["minus_ln_p"]
            )
    return out


def detected(files: Sequence[Path], folder: Path) -> Events:
    """Let `gridsense detect` find the events of files.

    Parameters
    ----------
    files
        Side by side.
    folder
        A new one, for the store.

    Returns
    -------
    Events
        What it found.

    Raises
    ------
    CheckError
        If it fails.
    """
    folder.mkdir(parents=True)
    command = [*GRIDSENSE, "detect", *map(str, files), "--store", str(folder / "gridsense.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckError(done.stderr.strip())
    return stored(folder / "gridsense.db")


def detected_as(course: Course, folder: Path) -> Events:
    """Find the events of files as `gridsense detect` does, with settings that it has no options for.

    Parameters
    ----------
    course
        Names the files and the settings.
    folder
        A new one, for the store.

    Returns
    -------
    Events
        What was found.
    """
    folder.mkdir(parents=True)
    configuration = folder / "gridsense.toml"
    configuration.write_text(course.settings())
    settings = load(configuration).config.pipeline_settings()
    with EventStore(folder / "gridsense.db") as store:
        detecting.detect(
            settings, [open_source(path) for path in course.files], None, [detecting.Memory(store)], lambda _: None
        )
    return stored(folder / "gridsense.db")


@dataclass(frozen=True, slots=True)
class Recording:
    """What must be known of a recording.

    Attributes
    ----------
    end_s
        Time stamp of the last frame, seconds since the epoch.
    returns
        How often a source comes back that was given up: its first frame may be refused as late then, when that of
        another source of the same moment was there before it.
    """

    end_s: float
    returns: int


def looked_through(files: Sequence[Path], dead_s: float) -> Recording:
    """Read the time stamps of files.

    Parameters
    ----------
    files
        Side by side.
    dead_s
        After so much silence a source is given up.

    Returns
    -------
    Recording
        What must be known of it.
    """
    newest: dict[str, int] = {}
    returns = 0
    for together in read_rounds([open_source(path) for path in files]):
        for name, batch in together:
            times = [newest.get(name, int(batch.time_ns[0])), *batch.time_ns.tolist()]
            returns += sum(b - a > dead_s * 1e9 for a, b in itertools.pairwise(times))
            newest[name] = times[-1]
    return Recording(max(newest.values()) / 1e9, returns)


def run_both(folder: Path, course: Course) -> tuple[Run, Run]:
    """Let the recording run over TCP and over UDP at the same time.

    Parameters
    ----------
    folder
        For both.
    course
        What they have in common.

    Returns
    -------
    tuple[Run, Run]
        Over TCP, over UDP.

    Raises
    ------
    Exception
        Of the first of them that could not be made.
    """
    runs: dict[str, Run] = {}
    troubles: list[Exception] = []

    def go(transport: str) -> None:
        try:
            runs[transport] = Line(folder / transport, transport, course).run()
        except Exception as error:  # noqa: BLE001 (raised again in the thread that waits)
            troubles.append(error)
            course.stopped.set()

    threads = [threading.Thread(target=go, args=(transport,)) for transport in ("tcp", "udp")]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        course.stopped.set()
    if troubles:
        raise troubles[0]
    return runs["tcp"], runs["udp"]


def show(expected: Events, tcp: Run, udp: Run, end_s: float, found: Sequence[Promise]) -> None:
    """Print the events with what became of each, then the promises, for people."""
    console = Console(soft_wrap=not sys.stdout.isatty())
    table = Table("onset", "cause", "kind", "first PMU", "TCP", "UDP", title="events", box=SIMPLE_HEAD, pad_edge=False)
    every = {**udp.events, **tcp.events, **expected}
    for key, event in sorted(every.items(), key=lambda item: (item[1].onset_s, item[0])):
        onset = datetime.fromtimestamp(event.onset_s).astimezone(None)
        words = [_word(key, expected, events, end_s) for events in (tcp.events, udp.events)]
        table.add_row(f"{onset:%H:%M:%S.%f}"[:-3], event.cause, event.kind, event.first_pmu, *words)
    console.print(table)
    late_ms = max(tcp.sent.late_ms, udp.sent.late_ms)
    console.print(f"frames left at most {late_ms} ms late; {udp.sent.reordered:,} datagrams put behind their successor")
    verdicts = Table("promise", "measured", "", box=SIMPLE_HEAD, pad_edge=False)
    for p in found:
        word, style = VERDICTS[p.kept]
        verdicts.add_row(p.words, p.measured, f"[{style}]{word}[/]")
    console.print(verdicts)


def _word(key: str, expected: Events, events: Events, end_s: float) -> str:
    if key not in events:
        return "-"
    if key not in expected:
        return "after the end" if events[key].onset_s >= end_s + HALF_MS else "more"
    return "equal" if events[key].text == expected[key].text else "other words"


def as_json(f: Figures, tcp: Run, udp: Run, found: Sequence[Promise]) -> str:
    """Write the figures as one line of JSON."""
    return json.dumps(
        {
            "events": f.events,
            "differing": f.differing,
            "missing": f.missing,
            "unexpected": f.unexpected,
            "added_after_end": f.added_after_end,
            "added_causes": f.added_causes,
            "begun_equal": f.begun_equal,
            "udp_grid_equal": f.udp_grid_equal,
            "udp_other": f.udp_other,
            "frames": tcp.sent.played,
            "frames_processed": tcp.counted.once,
            "lost_sent": udp.sent.lost,
            "lost_counted": udp.sent.played - udp.counted.once,
            "duplicates_sent": udp.sent.duplicated,
            "duplicates_counted": udp.counted.dropped.get("duplicate", 0),
            "reordered_sent": udp.sent.reordered,
            "late_ms": max(tcp.sent.late_ms, udp.sent.late_ms),
            "stop_s": round(max(tcp.stop_s, udp.stop_s), 2),
            "broken": [p.words for p in found if p.kept is False],
        }
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="line.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "file", nargs="?", type=Path, default=BUNDLE / "demo.parquet", help="the recording (default: the bundled one)"
    )
    parser.add_argument("--speed", type=float, default=1.0, help="times real time (default: 1, the true rate)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults over UDP (default: 1)")
    parser.add_argument("--quick", action="store_true", help=f"at speed {QUICK_SPEED:g}: within a minute")
    parser.add_argument("--keep", type=Path, help="a new folder that keeps logs, stores and what was said")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object with the figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Check, and say what came of it."""
    args = parse(arguments)
    speed = QUICK_SPEED if args.quick else args.speed
    aside = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        with ExitStack() as stack:
            folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gridsense-line-")))
            folder.mkdir(parents=True, exist_ok=True)
            folder = folder.absolute()
            course = Course(as_sent(args.file.absolute(), folder), speed, args.seed, threading.Event())
            archive = detected([args.file.absolute()], folder / "archive")
            expected = detected_as(course, folder / "file") if speed > 1 else detected(course.files, folder / "file")
            aside.print(f"detect: {len(expected)} events; now live over TCP and UDP at speed {speed:g}")
            recording = looked_through(course.files, course.dead_s)
            tcp, udp = run_both(folder, course)
    except (CheckError, GridSenseError, StreamsError, OSError, subprocess.TimeoutExpired) as error:
        print(f"line: {error}", file=sys.stderr)
        return 2
    figures = compare(archive, expected, tcp.events, udp.events, recording.end_s)
    found = promises(figures, tcp, udp, recording.returns)
    show(expected, tcp, udp, recording.end_s, found)
    if args.json:
        print(as_json(figures, tcp, udp, found))
    return exit_status(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
