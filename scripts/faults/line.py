"""The live line as real processes in one folder, for checks that treat it badly: simulator, gateways, processor.

In: what to serve, and a few settings. Out: services that can be started, killed and started again, what they said, the
frames of a log held against those that were sent, the changes of an event store. It judges nothing.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from gridsense.store import EventStore
from streams.c37118.frame import FrameType, read_prefix
from streams.log import FRAMES
from streams.sqlite_log import open_log

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "gridsense" / "demo" / "demo.parquet"
PATIENCE_S = 60.0
"""How long is waited for anything that is bound to come."""
GATEWAY, PROCESSOR = "gateway", "processor"
WORKS = {GATEWAY: "receiving from", PROCESSOR: "processing "}
"""What a service says when it has begun to work."""

_PROGRAM = (sys.executable, "-c", "from gridsense.cli import main; main()")
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
"""The program beside this check, wherever another one is installed."""
_LOOK_S = 0.02


class CheckError(Exception):
    """The check could not be made; the message says why."""


class Frame(NamedTuple):
    """A data frame of a log.

    Attributes
    ----------
    arrival_ns
        When it came, by the gateway's clock.
    stamp
        SOC and FRACSEC as sent.
    digest
        Of its bytes.
    """

    arrival_ns: int
    stamp: tuple[int, int]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Frames:
    """What became of the frames, over all connections, between the first and the last of each in the log.

    Attributes
    ----------
    sent
        By the witness.
    logged
        In the log.
    while_down
        Sent while no gateway was there, or received by one that was killed before it had written them.
    in_life
        Missing though the gateway was there.
    doubled
        Twice in the log, or out of their order.
    unknown
        In the log, but not as they were sent.
    unwritten_s
        Before a kill, the longest time since the first frame came that the killed gateway had not written yet.
    """

    sent: int = 0
    logged: int = 0
    while_down: int = 0
    in_life: int = 0
    doubled: int = 0
    unknown: int = 0
    unwritten_s: float = 0.0


class Change(NamedTuple):
    """A change in an event store.

    Attributes
    ----------
    id
        Of the event.
    ended
        Whether it tells of the end.
    text
        CloudEvents JSON.
    """

    id: str
    ended: bool
    text: str


class Service:
    """A command that runs until it is stopped, and may be started again.

    Parameters
    ----------
    folder
        Where it runs; what it says is kept there.
    name
        Of the file that it says it in.
    command
        Of ``gridsense``, with options.
    """

    def __init__(self, folder: Path, name: str, *command: str) -> None:
        self.folder, self.name, self.command = folder, name, command
        self.process: subprocess.Popen[bytes] | None = None
        self._path = folder / f"{name}.log"
        self._said_bytes = 0

    def start(self) -> None:
        """Start it."""
        with self._path.open("ab") as said, (self.folder / f"{self.name}.out").open("ab") as out:
            self._said_bytes = said.seek(0, 2)
            self.process = subprocess.Popen(
                [*_PROGRAM, *self.command], cwd=self.folder, env=_ENVIRONMENT, stdout=out, stderr=said
            )

    def said(self) -> list[str]:
        """Say what it has said since it was started.

        Returns
        -------
        list[str]
            Messages of its log lines, and other lines as they are.
        """
        with self._path.open("rb") as file:
            file.seek(self._said_bytes)
            return [_message(line) for line in file.read().decode(errors="replace").splitlines()]

    def heard(self, words: str) -> str:
        """Look whether it has said something since it was started.

        Parameters
        ----------
        words
            Part of it.

        Returns
        -------
        str
            The first message with these words; empty where there is none.
        """
        return next((line for line in self.said() if words in line), "")

    def hear(self, words: str) -> str:
        """Wait until it says something.

        Parameters
        ----------
        words
            Part of it.

        Returns
        -------
        str
            The message.

        Raises
        ------
        CheckError
            If it ends without having said it, or is silent for too long.
        """
        wait_until(lambda: bool(self.heard(words)) or self.ended, f"{self.name} says {words!r}", self.said)
        if line := self.heard(words):
            return line
        raise CheckError(f"{self.name} ended without saying {words!r}; it said: {' | '.join(self.said()[-5:])}")

    @property
    def ended(self) -> bool:
        """Whether it does not run."""
        return self.process is None or self.process.poll() is not None

    def kill(self) -> None:
        """End it by SIGKILL, and wait for that.

        Raises
        ------
        CheckError
            If it had ended by itself.
        """
        if self.process is not None:
            self.process.kill()
            status = self.process.wait(PATIENCE_S)
            self.process = None
            if status != -signal.SIGKILL:
                raise CheckError(f"{self.name} ended by itself with {status}: {' | '.join(self.said()[-5:])}")

    def stop(self) -> int:
        """End it by SIGTERM.

        Returns
        -------
        int
            Its exit status.
        """
        if self.process is None:
            return 0
        self.process.terminate()
        return self.wait()

    def suspend(self) -> None:
        """Stop it in its tracks (SIGSTOP): its connections stay, and it answers nobody."""
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Wait until it ends by itself.

        Parameters
        ----------
        patience_s
            How long.

        Returns
        -------
        int
            Its exit status.

        Raises
        ------
        CheckError
            If it does not end; it is killed then.
        """
        if self.process is None:
            return 0
        try:
            status = self.process.wait(patience_s)
        except subprocess.TimeoutExpired as error:
            self.process.kill()
            self.process.wait()
            raise CheckError(f"{self.name} does not end; it said: {' | '.join(self.said()[-5:])}") from error
        self.process = None
        return status

    def __enter__(self) -> Self:
        """Use it; it is started by `start`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let nothing run on."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def wait_until(
    happened: Callable[[], bool],
    what: str,
    said: Callable[[], Sequence[str]] = lambda: (),
    patience_s: float = PATIENCE_S,
) -> None:
    """Wait for something that is bound to happen.

    Parameters
    ----------
    happened
        Whether it has.
    what
        For the message.
    said
        What may explain why it has not.
    patience_s
        How long.

    Raises
    ------
    CheckError
        If it does not happen.
    """
    late_s = time.monotonic() + patience_s
    while not happened():
        if time.monotonic() > late_s:
            raise CheckError(f"in vain waited {patience_s:g} s for this: {what}; {' | '.join(said()[-5:])}")
        time.sleep(_LOOK_S)


def simulator(folder: Path, speed: float, *options: str) -> Service:
    """Make a simulator that serves the demo as PMUs of now, again and again.

    Parameters
    ----------
    folder
        Where it runs.
    speed
        Times real time.
    *options
        More of its options.

    Returns
    -------
    Service
        Not started.
    """
    told = ("--port", "0", "--loop", "--shift-to-now", "--print-config", "--speed", f"{speed:g}", *options)
    return Service(folder, "simulator", "simulate-pmu", str(DEMO), *told)


def served(simulated: Service) -> str:
    """Wait until a simulator serves.

    Parameters
    ----------
    simulated
        Started.

    Returns
    -------
    str
        The connections to it, for a configuration file.
    """
    simulated.hear("served by")  # comes after the connections
    wait_until(lambda: "[[" in (simulated.folder / "simulator.out").read_text(), "the connections are printed")
    return (simulated.folder / "simulator.out").read_text()


def write_settings(
    folder: Path,
    connections: str = "",
    *,
    learn_s: float = 10.0,
    log: str = "sqlite:log.db",
    kafka: str = "",
    store: str = "events.db",
    snapshot_s: float = 1.0,
    gateway: str = "",
    metrics: str = "processor_port = 0\ngateway_port = 0",
) -> None:
    """Write the configuration of a line.

    Parameters
    ----------
    folder
        Made if it is not there.
    connections
        Tables of the connections.
    learn_s
        Seconds to learn from.
    log
        Where the log is.
    store
        File of the event store.
    snapshot_s
        Seconds from one snapshot to the next.
    kafka, gateway, metrics
        Keys of these sections.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sections = (
        f'[log]\nurl = "{log}"',
        f"[kafka]\n{kafka}",
        f'[store]\npath = "{store}"\nsnapshot_every = {snapshot_s:g}',
        f"[detection]\nlearn = {learn_s:g}",
        f"[metrics]\n{metrics}",
        f"[gateway]\nbackoff_min = 0.05\nbackoff_max = 0.2\n{gateway}",
        connections,
    )
    (folder / "gridsense.toml").write_text("\n\n".join(sections), encoding="utf-8")


def service(folder: Path, name: str) -> Service:
    """Make a gateway or a processor of the line in a folder.

    Parameters
    ----------
    folder
        With a configuration.
    name
        `GATEWAY` or `PROCESSOR`.

    Returns
    -------
    Service
        Not started.
    """
    return Service(folder, name, "gateway" if name == GATEWAY else "run")


def process_to_the_end(folder: Path, *, close: bool = True, patience_s: float = PATIENCE_S) -> Service:
    """Let a processor read to the end of the log.

    Parameters
    ----------
    folder
        With a configuration and a log.
    close
        Whether it closes every window there.
    patience_s
        How long it may take.

    Returns
    -------
    Service
        Ended; it knows what was said.

    Raises
    ------
    CheckError
        If it failed.
    """
    last = Service(folder, PROCESSOR, "run", "--once", *(("--close",) if close else ()))
    last.start()
    status = last.wait(patience_s)
    if status:
        raise CheckError(f"the last run of the processor ended with {status}: {' | '.join(last.said()[-5:])}")
    return last


def changes(store: Path) -> list[Change]:
    """Read what was raised and what ended, in the order in which it was stored.

    Parameters
    ----------
    store
        The event store's file.

    Returns
    -------
    list[Change]
        Of all events.
    """
    with closing(sqlite3.connect(store)) as db:
        rows = db.execute("SELECT id, ended, cloudevent FROM change ORDER BY number").fetchall()
    return [Change(one, bool(ended), text) for one, ended, text in rows]


def events(store: Path) -> list[str]:
    """Read the newest version of every event.

    Parameters
    ----------
    store
        The event store's file.

    Returns
    -------
    list[str]
        CloudEvents JSON, by onset.
    """
    with EventStore(store) as opened:
        return opened.cloudevents()


def frames(log: Path) -> dict[str, list[Frame]]:
    """Read the data frames of every connection.

    Parameters
    ----------
    log
        The log's file, which nobody writes.

    Returns
    -------
    dict[str, list[Frame]]
        By connection, in the order of the log. A `FrameError` says that one of them is not intact.

    Raises
    ------
    CheckError
        If part of the log cannot be read.
    """
    out: dict[str, list[Frame]] = {}
    with closing(open_log(log)) as opened:
        at = 0
        while True:
            reading = opened.read(FRAMES, at)
            if reading.lost:
                raise CheckError(f"{log}: {reading.lost}")
            if not reading.entries:
                return out
            at = reading.next
            for entry in reading.entries:
                for whole in _whole(entry.value):
                    prefix = read_prefix(whole)
                    if prefix.frame_type is FrameType.DATA:
                        stamp = prefix.stamp.soc, prefix.stamp.fraction
                        digest = hashlib.blake2b(whole, digest_size=8).digest()
                        out.setdefault(entry.key, []).append(Frame(entry.time_ns, stamp, digest))


def compare_frames(sent: Sequence[Frame], logged: Sequence[Frame], lives_ns: Sequence[int]) -> Frames:
    """Hold the frames of one connection in the log against those that were sent.

    Parameters
    ----------
    sent
        By the witness, each once.
    logged
        In the log.
    lives_ns
        Moments between two lives of the gateway that wrote them, rising.

    Returns
    -------
    Frames
        What became of them.
    """
    places = {(frame.stamp, frame.digest): n for n, frame in enumerate(sent)}
    known = [(places[f.stamp, f.digest], f.arrival_ns) for f in logged if (f.stamp, f.digest) in places]
    unknown = len(logged) - len(known)
    if not known:
        return Frames(unknown=unknown, logged=unknown)
    while_down = in_life = doubled = 0
    unwritten_s = 0.0
    newest, newest_ns = known[0]
    for place, arrival_ns in known[1:]:
        if place <= newest:
            doubled += 1
            continue
        missing = place - newest - 1
        life = bisect_right(lives_ns, newest_ns)
        if missing and life < len(lives_ns) and lives_ns[life] <= arrival_ns:
            while_down += missing
            unwritten_s = max(unwritten_s, (lives_ns[life] - sent[newest + 1].arrival_ns) / 1e9)
        else:
            in_life += missing
        newest, newest_ns = place, arrival_ns
    return Frames(newest - known[0][0] + 1, len(logged), while_down, in_life, doubled, unknown, unwritten_s)


def compare_logs(
    sent: Mapping[str, Sequence[Frame]], logged: Mapping[str, Sequence[Frame]], lives_ns: Sequence[int]
) -> Frames:
    """Hold a whole log against the witness's.

    Parameters
    ----------
    sent
        By the witness, by connection.
    logged
        In the log, by connection.
    lives_ns
        Moments between two lives of the gateway, rising.

    Returns
    -------
    Frames
        The sum over all connections.
    """
    each = [compare_frames(sent.get(key, ()), logged[key], lives_ns) for key in logged]
    return Frames(
        sent=sum(one.sent for one in each),
        logged=sum(one.logged for one in each),
        while_down=sum(one.while_down for one in each),
        in_life=sum(one.in_life for one in each),
        doubled=sum(one.doubled for one in each),
        unknown=sum(one.unknown for one in each),
        unwritten_s=max((one.unwritten_s for one in each), default=0.0),
    )


def _whole(value: bytes) -> Iterator[bytes]:
    """Cut a record into its frames."""
    at = 0
    while at < len(value):
        size = max(int.from_bytes(value[at + 2 : at + 4], "big"), 1)
        yield value[at : at + size]
        at += size


def _message(line: str) -> str:
    """Take the message out of a log line, with what was said beside."""
    try:
        said = msgspec.json.decode(line, type=dict[str, object])
    except msgspec.MsgspecError:
        return line
    return str(said.pop("event", line))


def free_port() -> int:
    """Find a port that nobody listens on.

    Returns
    -------
    int
        On loopback.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def page(port: int, name: str) -> str:
    """Fetch a page of a service.

    Parameters
    ----------
    port
        Of its metrics and signs of life.
    name
        ``metrics`` or ``readyz``.

    Returns
    -------
    str
        What it says; of ``readyz`` why it is not ready, empty where it is. An `OSError` says that it is not there.
    """
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=PATIENCE_S) as answer:
            text: str = answer.read().decode()
            return "" if name == "readyz" else text
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


def metric(port: int, name: str) -> float:
    """Sum a series of a service over its labels.

    Parameters
    ----------
    port
        Of its metrics.
    name
        Part of the series' name.

    Returns
    -------
    float
        0 where there is none.
    """
    lines = [line.split() for line in page(port, "metrics").splitlines() if not line.startswith("#")]
    return sum(float(parts[-1]) for parts in lines if name in parts[0])
