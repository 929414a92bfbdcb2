"""Checks what GridSense promises of hostile peers: bounded memory, others undisturbed, each attack counted.

Good PMUs stream through a gateway into the embedded log three times: alone, beside hostile servers that the gateway is
told to listen to, and with hostile clients at the PMUs' own server. Gateway and PMUs are processes of their own, whose
memory, files and time are read from outside. The exit status is 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ["OPENBLAS_NUM_THREADS"] = "1"

try:
    import numpy as np
    from fastcrc.crc16 import ibm_3740
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from gridsense.simulator.script import made_script
    from gridsense.simulator.server import Settings, Simulator
    from streams.c37118.configuration import (
        ConfigurationFrame,
        PhasorDefinition,
        PmuConfiguration,
        encode_configuration,
    )
    from streams.c37118.frame import (
        EPOCH,
        Command,
        CommandFrame,
        FrameType,
        HeaderFrame,
        Stamp,
        encode_command,
        encode_header,
        wrap,
    )
    from streams.gateway.gateway import Gateway
    from streams.gateway.settings import ConnectionSettings, GatewaySettings, Transport
    from streams.log import DEAD_LETTERS, FRAMES
    from streams.sqlite_log import open_log
except ImportError:
    own = ROOT / ".venv" / "bin" / "python"
    if not own.exists() or Path(sys.prefix) == own.parents[1]:
        raise
    os.execv(own, [str(own), *sys.argv])  # noqa: S606 - any Python may start this; the project's own runs it

RECORDING = ROOT / "gridsense" / "demo" / "ambient.parquet"
HOST = "127.0.0.1"
STRANGER = "127.0.0.2"

RSS_GROWTH_MIB = 64
"""What the gateway may hold more than beside good PMUs alone."""
P99_MS = 100.0
"""Within which 99 of 100 good frames stand in the log's time, whatever the others do."""
FILES_MORE = 64
"""Files that a process may have open beside one a connection."""
LOG_LINES_MIN = 12.0
"""Lines that the gateway's log may have a minute and connection."""

FLOOD_BYTES = 128 << 20
_CHUNK = 1 << 16
_NS = 1_000_000_000


# ---------------------------------------------------------------- attacks on the gateway


@dataclass(slots=True)
class Session:
    """One connection of the gateway to a hostile server.

    Attributes
    ----------
    reader, writer
        Of the connection.
    id_code
        Of the stream that the gateway expects.
    rng
        Seeded.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    id_code: int
    rng: np.random.Generator

    async def send(self, octets: bytes) -> None:
        """Send as fast as it is taken."""
        self.writer.write(octets)
        await self.writer.drain()

    async def hold(self) -> None:
        """Say nothing until the gateway leaves."""
        while await self.reader.read(_CHUNK):
            pass

    @property
    def configuration(self) -> ConfigurationFrame:
        """A plausible one."""
        phasors = tuple(PhasorDefinition(name) for name in ("VA", "VB", "VC", "V1"))
        return ConfigurationFrame(self.id_code, (PmuConfiguration("HOSTILE", self.id_code, 60, phasors),), 30)

    @property
    def greeting(self) -> bytes:
        """The plausible configuration, as sent."""
        return b"".join(encode_configuration(self.configuration))

    def frame(self, soc: int = 0, stat: int = 0, id_code: int = 0, body: bytes = b"") -> bytes:
        """Make a data frame that fits it."""
        size = self.configuration.data_size - 16
        payload = body or (struct.pack(">H", stat) + bytes(size - 2))
        return wrap(FrameType.DATA, id_code or self.id_code, Stamp(soc or int(time.time())), payload)


async def loris(s: Session) -> None:
    """Send a byte of a valid configuration every second."""
    for octet in s.greeting:
        await s.send(bytes([octet]))
        await asyncio.sleep(1)


async def mute(s: Session) -> None:
    """Accept and say nothing."""
    await s.hold()


async def garbage(s: Session) -> None:
    """Send random bytes at full speed."""
    while True:
        await s.send(s.rng.bytes(_CHUNK))


async def plausible_garbage(s: Session) -> None:
    """Send heads of frames of all types and sizes among random bytes."""
    while True:
        sizes = s.rng.integers(16, 60_000, 1000).tolist()
        kinds = s.rng.integers(0, 6, 1000).tolist()
        await s.send(
            b"".join(
                struct.pack(">BBHH", 0xAA, kind << 4 | 2, size, s.id_code) + s.rng.bytes(30)
                for kind, size in zip(kinds, sizes, strict=True)
            )
        )


async def sync_bytes(s: Session) -> None:
    """Send nothing but sync bytes."""
    while True:
        await s.send(b"\xaa" * _CHUNK)


async def least_frames(s: Session) -> None:
    """Send frames of 16 bytes with a wrong check word, and a good one now and then, so as never to be cut off."""
    await s.send(s.greeting)
    while True:
        await s.send(b"\xaa\x02\x00\x10" * (_CHUNK // 4) + s.frame())


async def endless_frame(s: Session) -> None:
    """Send a frame of 65,535 bytes that never ends."""
    await s.send(struct.pack(">BBHH", 0xAA, 0x32, 0xFFFF, s.id_code))
    while True:
        await s.send(bytes(50))
        await asyncio.sleep(0.1)


async def wrong_crc(s: Session) -> None:
    """Send frames of the right size with a wrong check word, at full speed."""
    frame = s.frame()
    await s.send(s.greeting + frame)
    while True:
        await s.send((frame[:-2] + bytes([frame[-2] ^ 1, frame[-1]])) * 500)


async def accept_and_close(s: Session) -> None:
    """Close every connection at once, and take a thousand a second."""
    del s


async def reset(s: Session) -> None:
    """Reset every connection at once."""
    s.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.writer.transport.abort()


async def foreign_data(s: Session) -> None:
    """Send data of other ID codes among the right ones, at full speed."""
    await s.send(s.greeting)
    while True:
        await s.send(s.frame() + s.frame(id_code=s.id_code + 1) * 500)


async def foreign_configuration(s: Session) -> None:
    """Answer with the configuration of another ID code."""
    other = b"".join(encode_configuration(replace(s.configuration, id_code=s.id_code + 1)))
    while True:
        await s.send(other)
        await asyncio.sleep(0.05)


async def stolen_id_code(s: Session) -> None:
    """Say that it is the first of the good PMUs."""
    await s.send(b"".join(encode_configuration(replace(s.configuration, id_code=1))))
    while True:
        await s.send(s.frame(id_code=1))
        await asyncio.sleep(0.03)


async def claimed_pmus(s: Session) -> None:
    """Send a configuration that claims 65,535 PMUs."""
    while True:
        for kind, index in ((FrameType.CFG2, b""), (FrameType.CFG3, b"\0\0")):
            await s.send(wrap(kind, s.id_code, EPOCH, index + struct.pack(">IH", 1_000_000, 65_535) + bytes(500)))
        await asyncio.sleep(0.05)


async def real_pmus(s: Session) -> None:
    """Send a CFG-3 of 65,535 PMUs, megabytes of it, again and again."""
    (small,) = encode_configuration(replace(s.configuration, kind=FrameType.CFG3))
    octets = struct.pack(">IH", 1_000_000, 65_535) + small[22:-4] * 65_535 + struct.pack(">h", 30)
    cuts = [octets[at : at + 65_000] for at in range(0, len(octets), 65_000)]
    indices = [*range(1, len(cuts)), 0xFFFF]
    parts = [
        wrap(FrameType.CFG3, s.id_code, EPOCH, struct.pack(">H", n) + cut) for n, cut in zip(indices, cuts, strict=True)
    ]
    while True:
        for part in parts:
            await s.send(part)


async def endless_fragments(s: Session) -> None:
    """Send parts of 18 bytes of a CFG-3 that never ends, at full speed."""
    parts = [wrap(FrameType.CFG3, s.id_code, EPOCH, struct.pack(">H", n)) for n in range(1, 0xFFFF)]
    while True:
        for at in range(0, len(parts), 1000):
            await s.send(b"".join(parts[at : at + 1000]))


async def changing_configuration(s: Session) -> None:
    """Send another configuration before every frame, at full speed."""
    (pmu,) = s.configuration.pmus
    for n in count():
        changed = replace(s.configuration, pmus=(replace(pmu, change_count=n & 0xFFFF),))
        await s.send(b"".join(encode_configuration(changed)) + s.frame())


async def data_alone(s: Session) -> None:
    """Send data at full speed and never a configuration."""
    while True:
        await s.send(s.frame() * 500)


async def odd_times(s: Session) -> None:
    """Send time stamps of 1970 and 2106. They fit, so they are passed on."""
    await s.send(s.greeting)
    while True:
        await s.send(s.frame(soc=1) + s.frame(soc=0xFFFFFFFF))
        await asyncio.sleep(0.03)


async def all_ones(s: Session) -> None:
    """Send STAT with all bits set. They fit, so they are passed on."""
    await s.send(s.greeting)
    while True:
        await s.send(s.frame(stat=0xFFFF))
        await asyncio.sleep(0.03)


async def random_content(s: Session) -> None:
    """Send frames of the right size with random content. They fit, so they are passed on."""
    await s.send(s.greeting)
    while True:
        await s.send(s.frame(body=s.rng.bytes(s.configuration.data_size - 16)))
        await asyncio.sleep(0.03)


async def flood(s: Session) -> None:
    """Send 128 MiB of valid data as fast as they are taken. They fit, so they are passed on."""
    await s.send(s.greeting)
    octets = s.frame() * 1000
    for _ in range(FLOOD_BYTES // len(octets)):
        await s.send(octets)
    while True:
        await s.send(s.frame())
        await asyncio.sleep(0.03)


async def commands(s: Session) -> None:
    """Send commands to the gateway, at full speed."""
    octets = encode_command(CommandFrame(s.id_code, EPOCH, Command.DATA_ON)) * 3000
    while True:
        await s.send(octets)


async def headers(s: Session) -> None:
    """Send header frames at full speed, never a configuration."""
    octets = encode_header(HeaderFrame(s.id_code, EPOCH, b"hostile" * 10)) * 500
    while True:
        await s.send(octets)


@dataclass(slots=True)
class Sender:
    """Who sends datagrams to a port of the gateway.

    Attributes
    ----------
    port
        The gateway's.
    made
        Makes what is sent.
    """

    port: int
    made: Session

    async def send(self, octets: Sequence[bytes], host: str = HOST, pause_s: float = 0.005) -> None:
        """Send datagrams for ever, so many at once."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind((host, 0))
            while True:
                for one in octets:
                    with suppress(OSError):
                        sock.sendto(one, (HOST, self.port))
                await asyncio.sleep(pause_s)


async def strangers(s: Sender) -> None:
    """Send a flood of valid datagrams from an address that is not the peer's."""
    await s.send([s.made.greeting, *[s.made.frame()] * 40], STRANGER)


async def truncated_datagrams(s: Sender) -> None:
    """Send datagrams that end in the middle of a frame."""
    await s.send([s.made.greeting[:-9], s.made.frame()[:-9]])


async def garbage_datagrams(s: Sender) -> None:
    """Send random bytes in datagrams of 8 KB."""
    await s.send([s.made.rng.bytes(8192) for _ in range(4)])


@dataclass(frozen=True, slots=True)
class Attack:
    """One way of being hostile.

    Attributes
    ----------
    act
        What is done, on one connection or to one port.
    traces
        Counters of the gateway: one of them must have risen.
    by_udp
        `act` takes a `Sender`.
    anonymous
        The gateway's settings name no ID code.
    """

    act: Callable[[Any], Awaitable[None]]
    traces: tuple[str, ...]
    by_udp: bool = False
    anonymous: bool = False

    @property
    def name(self) -> str:
        """For people, and of its connection."""
        return self.act.__name__.replace("_", " ")


ATTACKS = (
    Attack(loris, ("truncated",)),
    Attack(mute, ("connects",)),
    Attack(garbage, ("garbage", "crc")),
    Attack(plausible_garbage, ("garbage", "crc")),
    Attack(sync_bytes, ("garbage",)),
    Attack(least_frames, ("crc", "garbage")),
    Attack(endless_frame, ("truncated",)),
    Attack(wrong_crc, ("crc",)),
    Attack(accept_and_close, ("connects",)),
    Attack(reset, ("connects",)),
    Attack(foreign_data, ("id_code",)),
    Attack(foreign_configuration, ("id_code",)),
    Attack(stolen_id_code, ("id_code",), anonymous=True),
    Attack(claimed_pmus, ("oversize",)),
    Attack(real_pmus, ("oversize", "fragment")),
    Attack(endless_fragments, ("oversize",)),
    Attack(changing_configuration, ("configuration",)),
    Attack(data_alone, ("no_configuration",)),
    Attack(odd_times, ("frames",)),
    Attack(all_ones, ("frames",)),
    Attack(random_content, ("frames",)),
    Attack(flood, ("frames",)),
    Attack(commands, ("commands",)),
    Attack(headers, ("connects",)),
    Attack(strangers, ("sender",), by_udp=True),
    Attack(truncated_datagrams, ("truncated",), by_udp=True),
    Attack(garbage_datagrams, ("garbage", "crc"), by_udp=True),
)


@asynccontextmanager
async def attacking(attacks: Sequence[Attack]) -> AsyncIterator[list[ConnectionSettings]]:
    """Begin attacks on a gateway that is told of them.

    Parameters
    ----------
    attacks
        Which.

    Yields
    ------
    list[ConnectionSettings]
        What to tell the gateway.
    """
    peers: list[ConnectionSettings] = []
    tasks: set[asyncio.Task[None]] = set()
    servers: list[asyncio.Server] = []

    async def accept(attack: Attack, id_code: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a server's handler is a task
        tasks.add(task)
        with suppress(ConnectionError, asyncio.CancelledError):
            await attack.act(Session(reader, writer, id_code, np.random.default_rng(id_code)))
        writer.transport.abort()
        tasks.discard(task)

    for n, attack in enumerate(attacks):
        id_code = 1000 + 10 * n
        if attack.by_udp:
            port = _free_port()
            made = Session(None, None, id_code, np.random.default_rng(id_code))  # type: ignore[arg-type]  # unconnected
            tasks.add(asyncio.create_task(attack.act(Sender(port, made))))  # type: ignore[arg-type]  # a coroutine
            peers.append(ConnectionSettings(attack.name, HOST, 0, id_code, Transport.UDP, port))
            continue

        def answer(r: asyncio.StreamReader, w: asyncio.StreamWriter, a: Attack = attack, i: int = id_code) -> Any:
            return accept(a, i, r, w)

        server = await asyncio.start_server(answer, HOST, 0)
        servers.append(server)
        told = 0 if attack.anonymous else id_code
        peers.append(ConnectionSettings(attack.name, HOST, server.sockets[0].getsockname()[1], told))
    try:
        yield peers
    finally:
        for server in servers:
            server.close()
        await _end(tasks)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks until none is left: a server may have begun another meanwhile."""
    while left := [t for t in tasks if not t.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=1)
    await asyncio.sleep(0)


def uncounted(attacks: Sequence[Attack], status: dict[str, dict[str, Any]]) -> list[str]:
    """Find the attacks that left no trace where one is expected.

    Parameters
    ----------
    attacks
        Which.
    status
        Of the gateway's connections, by name, as `told` says it.

    Returns
    -------
    list[str]
        Their names.
    """
    return [a.name for a in attacks if not any(trace_of(status[a.name], trace) for trace in a.traces)]


def trace_of(status: dict[str, Any], trace: str) -> int:
    """Read a counter; of connections, those after the first.

    Parameters
    ----------
    status
        Of one connection, as `told` says it.
    trace
        Name of a reason or of a counter.

    Returns
    -------
    int
        Its count.
    """
    counts = status["counts"]
    if trace == "connects":
        return max(0, counts["connects"] - 1)
    return int(counts["refused"].get(trace, 0) or counts.get(trace, 0))


def told(gateway: Gateway) -> dict[str, dict[str, Any]]:
    """Put a gateway's state into plain values.

    Parameters
    ----------
    gateway
        Which.

    Returns
    -------
    dict[str, dict[str, Any]]
        By connection.
    """
    return {s.name: {"state": str(s.state), "error": s.error, "counts": asdict(s.counts)} for s in gateway.status()}


# ---------------------------------------------------------------- attacks on simulate-pmu


@dataclass(slots=True)
class Client:
    """A hostile client of one stream.

    Attributes
    ----------
    address
        Where the stream is served.
    id_code
        Of the stream.
    rng
        Seeded.
    """

    address: tuple[str, int]
    id_code: int
    rng: np.random.Generator

    def command(self, command: int) -> bytes:
        """Make a command."""
        return encode_command(CommandFrame(self.id_code, EPOCH, command))

    async def over_and_over(self, octets: bytes, times: int) -> None:
        """Connect and send without ever reading, again when it is cut off."""
        loop = asyncio.get_running_loop()
        while True:
            with suppress(OSError), socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, self.address)
                for _ in range(times):
                    await loop.sock_sendall(sock, octets)
                while True:
                    await asyncio.sleep(0.5)
                    await loop.sock_sendall(sock, octets[:1])
            await asyncio.sleep(0.01)


async def client_garbage(c: Client) -> None:
    """Send random bytes for ever."""
    await c.over_and_over(c.rng.bytes(_CHUNK), 1 << 20)


async def client_sync_bytes(c: Client) -> None:
    """Send heads of commands of 64 KB for ever."""
    await c.over_and_over(b"\xaa\x41\xff\xff" * (_CHUNK // 4), 1 << 20)


async def client_that_never_reads(c: Client) -> None:
    """Ask for data and read none."""
    await c.over_and_over(c.command(Command.DATA_ON), 1)


async def client_of_many_questions(c: Client) -> None:
    """Send commands by the thousand in one piece, the answers unread."""
    await c.over_and_over(c.command(Command.SEND_CFG2) * 1000, 1 << 20)


async def client_of_half_a_command(c: Client) -> None:
    """Send a command that never ends."""
    await c.over_and_over(c.command(Command.DATA_ON)[:-1], 1)


async def client_of_another(c: Client) -> None:
    """Send commands to another ID code for ever."""
    octets = encode_command(CommandFrame(c.id_code + 1, EPOCH, Command.DATA_OFF)) * 1000
    await c.over_and_over(octets, 1 << 20)


async def client_storm(c: Client) -> None:
    """Make a thousand connections a second, closed at once."""
    loop = asyncio.get_running_loop()
    while True:
        for _ in range(20):
            with suppress(OSError), socket.socket() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, c.address)
        await asyncio.sleep(0.02)


async def client_hoard(c: Client) -> None:
    """Make two hundred connections, and keep them."""
    await asyncio.gather(*(c.over_and_over(b"\0", 1) for _ in range(200)))


CLIENTS: dict[Callable[[Client], Awaitable[None]], str] = {
    client_garbage: "garbage_bytes",
    client_sync_bytes: "garbage_bytes",
    client_that_never_reads: "connections",
    client_of_many_questions: "dropped",
    client_of_half_a_command: "connections",
    client_of_another: "ignored",
    client_storm: "connections",
    client_hoard: "refused",
}
"""What each does, and the counter of the simulator that shows it."""


@asynccontextmanager
async def calling(addresses: Sequence[tuple[str, int]]) -> AsyncIterator[None]:
    """Begin attacks on a simulator.

    Parameters
    ----------
    addresses
        Of its streams, of the ID codes 1, 2...

    Yields
    ------
    None
        While they go on.
    """
    tasks = set()
    for n, act in enumerate(CLIENTS):
        place = n % len(addresses)
        client = Client(addresses[place], place + 1, np.random.default_rng(n))
        tasks.add(asyncio.create_task(act(client)))  # type: ignore[arg-type]  # a coroutine
    try:
        yield
    finally:
        await _end(tasks)


# ---------------------------------------------------------------- the processes


async def _until_told() -> None:
    """Wait for SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


def _print(value: object) -> None:
    print(json.dumps(value), flush=True)


async def gateway_process() -> None:
    """Run a gateway as the first line of stdin says; say on stdout every half second how it stands."""
    order = json.loads(await asyncio.to_thread(sys.stdin.readline))
    peers = [ConnectionSettings(**{**p, "transport": Transport(p["transport"])}) for p in order["connections"]]
    path = Path(order["log"])
    gateway = Gateway(lambda: open_log(path), peers, GatewaySettings(**order["settings"]))
    stop = asyncio.Event()
    running = asyncio.create_task(gateway.run(stop))

    async def report() -> None:
        while True:
            _print(told(gateway))
            await asyncio.sleep(0.5)

    reporting = asyncio.create_task(report())
    await _until_told()
    _print(told(gateway))
    reporting.cancel()
    stop.set()
    await running


async def pmus_process(streams: str) -> None:
    """Serve PMUs; say on stdout where, and at the end what was done."""
    simulator = Simulator(made_script([RECORDING], int(streams), 1), Settings(port=0, shift_to_now=True, loop=True))
    await simulator.start()
    _print([simulator.addresses[s.name] for s in simulator.script.streams])
    running = asyncio.create_task(simulator.run())
    await _until_told()
    simulator.stop()
    counts = await running
    await simulator.close()
    _print({**asdict(counts), "ignored": counts.ignored.total(), "commands": counts.commands.total()})


async def attackers_process(kind: str) -> None:
    """Attack. It gives way to what it attacks, as if it had a machine of its own; say on stdout when it has begun."""
    os.nice(10)
    if kind == "servers":
        async with attacking(ATTACKS) as peers:
            _print([asdict(p) for p in peers])
            await _until_told()
    else:
        addresses = json.loads(await asyncio.to_thread(sys.stdin.readline))
        async with calling([tuple(a) for a in addresses]):
            _print(None)
            await _until_told()


ROLES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "gateway": gateway_process,
    "pmus": pmus_process,
    "attackers": attackers_process,
}


@dataclass(slots=True)
class Watch:
    """What a process uses, read from outside.

    Attributes
    ----------
    pid
        Which.
    rss_mib
        Memory, a sample each.
    files
        Open files, a sample each.
    """

    pid: int
    rss_mib: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def look(self) -> None:
        """Take a sample."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        (kib,) = (int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        self.rss_mib.append(kib / 1024)
        self.files.append(len(list(Path(f"/proc/{self.pid}/fd").iterdir())))

    def cpu_s(self) -> float:
        """Processor time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def slope_mib_min(self, period_s: float) -> float:
        """Growth over the second half."""
        late = self.rss_mib[len(self.rss_mib) // 2 :]
        if len(late) < 4:
            return 0.0
        return float(np.polyfit(np.arange(len(late)) * period_s / 60, late, 1)[0])


class Reader:
    """Reads the log while it is written, in a thread: good frames and their delays, letters of the hostile.

    Parameters
    ----------
    path
        Of the log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.frames: Counter[str] = Counter()
        self.delays_ms: list[float] = []
        self.letters: Counter[tuple[str, int]] = Counter()
        """Of each connection and second."""
        self.disordered = 0
        self._last: dict[str, int] = {}

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self) -> None:
        """Read to the end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        log = open_log(self._path)
        frames_at = letters_at = 0
        while True:
            last = self._stop.wait(0.2)
            while (reading := log.read(FRAMES, frames_at)).next > frames_at:
                frames_at = reading.next
                for entry in reading.entries:
                    if entry.key.startswith("good "):
                        self._take(entry.key, entry.time_ns, entry.value)
            while (reading := log.read(DEAD_LETTERS, letters_at)).next > letters_at:
                letters_at = reading.next
                self.letters.update((e.key, e.time_ns // _NS) for e in reading.entries)
            if last:
                break
        log.close()

    def _take(self, key: str, arrival_ns: int, value: bytes) -> None:
        at = 0
        while at < len(value):
            kind, size, _, soc, fraction = struct.unpack_from(">xBHHII", value, at)
            if kind >> 4 == FrameType.DATA and not ibm_3740(value[at : at + size]):
                stamp_ns = soc * _NS + (fraction & 0xFFFFFF) * 1000
                self.frames[key] += 1
                self.disordered += stamp_ns <= self._last.get(key, 0)
                self._last[key] = stamp_ns
                self.delays_ms.append((arrival_ns - stamp_ns) / 1e6)
            at += size


@dataclass(slots=True)
class Result:
    """What one run showed.

    Attributes
    ----------
    sent, logged, disordered
        Good frames; the last are those not later than the one before.
    delays_ms
        Of the good frames, arrival less time stamp.
    gateway, pmus
        What the processes used.
    gateway_cpu_s
        Processor time.
    seconds
        How long it ran.
    status
        Of the gateway's connections, at the end.
    served
        Counts of the simulator.
    letters_hz
        The most dead letters of one connection in a second.
    log_lines
        Of the gateway.
    """

    sent: int
    logged: int
    disordered: int
    delays_ms: list[float]
    gateway: Watch
    pmus: Watch
    gateway_cpu_s: float
    seconds: float
    status: dict[str, dict[str, Any]]
    served: dict[str, Any]
    letters_hz: int
    log_lines: int

    @property
    def p99_ms(self) -> float:
        """Of the delays."""
        return float(np.percentile(self.delays_ms, 99)) if self.delays_ms else float("inf")


SAMPLE_S = 0.5
PATIENCE_S = 20.0
WIDTH = 132


async def run(streams: int, seconds: float, settings: dict[str, Any], attackers: str) -> Result:
    """Let good PMUs stream through a gateway, beside attacks.

    Parameters
    ----------
    streams
        Good PMUs.
    seconds
        How long.
    settings
        Of the gateway.
    attackers
        ``servers`` that the gateway is told of, ``clients`` of the PMUs' server; empty: none.

    Returns
    -------
    Result
        What was seen.
    """
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        path, errors = Path(folder) / "log", Path(folder) / "stderr"
        reader = Reader(path)
        async with AsyncExitStack() as stack:
            pmus = await stack.enter_async_context(_process("pmus", str(streams)))
            addresses = json.loads(await _line(pmus))
            peers = [asdict(ConnectionSettings(f"good {n}", *a, n)) for n, a in enumerate(addresses, 1)]
            if attackers == "servers":
                peers += json.loads(await _line(await stack.enter_async_context(_process("attackers", attackers))))
            stderr = stack.enter_context(errors.open("wb"))
            gateway = await stack.enter_async_context(_process("gateway", stderr=stderr))
            await _say(gateway, {"log": str(path), "settings": settings, "connections": peers})
            status: list[dict[str, dict[str, Any]]] = [json.loads(await _line(gateway))]
            listening = asyncio.create_task(_listen(gateway, status))
            if attackers == "clients":
                clients = await stack.enter_async_context(_process("attackers", attackers))
                await _say(clients, addresses)
                await _line(clients)
            reader.start()
            stack.callback(reader.finish)
            watches = Watch(gateway.pid), Watch(pmus.pid)
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                await asyncio.sleep(SAMPLE_S)
                for watch in watches:
                    watch.look()
            cpu_s, took_s = watches[0].cpu_s(), time.monotonic() - began
            pmus.terminate()
            served = json.loads(await _line(pmus))
            await _settled(status)
            gateway.terminate()
            await listening
        logged = sum(reader.frames.values())
        lines = len(errors.read_text().splitlines())
        most = max(reader.letters.values(), default=0)
        return Result(
            served["played"],
            logged,
            reader.disordered,
            reader.delays_ms,
            *watches,
            cpu_s,
            took_s,
            status[-1],
            served,
            most,
            lines,
        )


async def _settled(status: list[dict[str, dict[str, Any]]]) -> None:
    """Wait until no good frame comes any more."""

    def good() -> int:
        return sum(s["counts"]["frames"] for name, s in status[-1].items() if name.startswith("good "))

    before = -1
    while good() != before:
        before = good()
        await asyncio.sleep(1.5)


@asynccontextmanager
async def _process(role: str, *arguments: str, stderr: Any = None) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run one of the processes of this check; it is ended at the end."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--role", role, *arguments, stdin=pipe, stdout=pipe, stderr=stderr, limit=1 << 24
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), PATIENCE_S)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _say(process: asyncio.subprocess.Process, value: object) -> None:
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    process.stdin.write(json.dumps(value).encode() + b"\n")
    await process.stdin.drain()


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError("a process that is checked has ended before its time")
    return line


async def _listen(process: asyncio.subprocess.Process, status: list[dict[str, dict[str, Any]]]) -> None:
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    async for line in process.stdout:
        status[:] = [json.loads(line)]


# ---------------------------------------------------------------- what came of it


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise and what came of it."""

    words: str
    measured: str
    kept: bool


def promises(quiet: Result, hostile: Result, visited: Result, missing: Sequence[str], letters_hz: int) -> list[Promise]:
    """Hold what was seen against the bounds.

    Parameters
    ----------
    quiet, hostile, visited
        Alone, beside hostile servers, with hostile clients.
    missing
        Attacks without a trace.
    letters_hz
        Dead letters allowed a second and connection.

    Returns
    -------
    list[Promise]
        Kept or not.
    """
    runs = {"alone": quiet, "servers": hostile, "clients": visited}
    lost = {name: r.sent - r.logged for name, r in runs.items()}
    growth_mib = max(hostile.gateway.rss_mib) - max(quiet.gateway.rss_mib)
    pmus_mib = max(visited.pmus.rss_mib) - max(quiet.pmus.rss_mib)
    files = max(hostile.gateway.files) - len(hostile.status)
    lines = hostile.log_lines / len(hostile.status) / (hostile.seconds / 60)
    p99 = max(hostile.p99_ms, visited.p99_ms)
    return [
        Promise(
            "no good frame is lost",
            ", ".join(f"{name} {n} of {runs[name].sent:,}" for name, n in lost.items()),
            not any(lost.values()) and all(r.sent for r in runs.values()),
        ),
        Promise("good frames stay in order", f"{hostile.disordered} are not", hostile.disordered == 0),
        Promise(f"99 of 100 good frames within {P99_MS:g} ms", f"{p99:.1f} ms", p99 <= P99_MS),
        Promise(
            f"gateway: at most {RSS_GROWTH_MIB} MiB more memory", f"{growth_mib:.1f} MiB", growth_mib <= RSS_GROWTH_MIB
        ),
        Promise(f"PMUs: at most {RSS_GROWTH_MIB} MiB more memory", f"{pmus_mib:.1f} MiB", pmus_mib <= RSS_GROWTH_MIB),
        Promise(
            f"gateway: at most {FILES_MORE} files beside one a connection",
            f"{files} more than {len(hostile.status)} connections",
            files <= FILES_MORE,
        ),
        Promise("every attack is counted where one expects it", ", ".join(missing) or "all are", not missing),
        Promise(
            f"at most {letters_hz} dead letters a second and connection",
            f"{hostile.letters_hz}",
            hostile.letters_hz <= letters_hz,
        ),
        Promise(f"at most {LOG_LINES_MIN:g} log lines a minute and connection", f"{lines:.1f}", lines <= LOG_LINES_MIN),
    ]


def show(
    console: Console,
    attacks: Sequence[Attack],
    runs: dict[str, Result],
    found: Sequence[Promise],
    missing: Sequence[str],
) -> None:
    """Print the tables for people."""
    hostile, visited = runs["servers"], runs["clients"]
    table = Table("attack", "expected", "counted", "connects", "frames", "refused", "MB", "letters", box=SIMPLE_HEAD)
    for column in table.columns[3:]:
        column.justify = "right"
    for attack in attacks:
        counts = hostile.status[attack.name]["counts"]
        refused = {k: v for k, v in counts["refused"].items() if v}
        seen = ", ".join(f"{t} {n:,}" for t in attack.traces if (n := trace_of(hostile.status[attack.name], t)))
        table.add_row(
            attack.name,
            " or ".join(attack.traces),
            seen or "[bold red]nothing[/]",
            f"{counts['connects']:,}",
            f"{counts['frames']:,}",
            f"{sum(refused.values()):,}",
            f"{(counts['refused_bytes'] + counts['frames_bytes']) / 1e6:,.1f}",
            f"{counts['letters']:,}",
        )
    console.print(table)
    clients = Table("client of simulate-pmu", "counted as", "of all clients", box=SIMPLE_HEAD)
    for act, trace in CLIENTS.items():
        name = act.__name__.replace("_", " ")
        clients.add_row(name, trace, "[bold red]nothing[/]" if name in missing else f"{visited.served[trace]:,}")
    console.print(clients)
    usage = Table("run", "s", "good frames", "lost", "p50", "p99 ms", "max", box=SIMPLE_HEAD)
    for name in ("gateway MiB start", "max", "MiB/min", "files", "CPU", "PMUs MiB", "late s"):
        usage.add_column(name, justify="right")
    for name, r in runs.items():
        p50, p99, most = np.percentile(r.delays_ms or [np.inf], [50, 99, 100])
        usage.add_row(
            name,
            f"{r.seconds:.0f}",
            f"{r.sent:,}",
            f"{r.sent - r.logged}",
            f"{p50:.1f}",
            f"{p99:.1f}",
            f"{most:.0f}",
            f"{r.gateway.rss_mib[0]:.0f}",
            f"{max(r.gateway.rss_mib):.0f}",
            f"{r.gateway.slope_mib_min(SAMPLE_S):+.1f}",
            f"{max(r.gateway.files)}",
            f"{r.gateway_cpu_s / r.seconds:.0%}",
            f"{max(r.pmus.rss_mib):.0f}",
            f"{r.served['late_s']:.2f}",
        )
    console.print(usage)
    verdicts = Table("promise", "measured", "", box=SIMPLE_HEAD)
    for p in found:
        verdicts.add_row(p.words, p.measured, "[green]kept[/]" if p.kept else "[bold red]broken[/]")
    console.print(verdicts)


def as_json(
    attacks: Sequence[Attack], runs: dict[str, Result], found: Sequence[Promise], missing: Sequence[str]
) -> str:
    """Write the figures as one line."""
    quiet, hostile, visited = runs["alone"], runs["servers"], runs["clients"]
    return json.dumps(
        {
            "attacks": len(attacks) + len(CLIENTS),
            "good_frames": sum(r.sent for r in runs.values()),
            "good_frames_lost": sum(r.sent - r.logged for r in runs.values()),
            "rss_start_mib": round(hostile.gateway.rss_mib[0], 1),
            "rss_max_mib": round(max(hostile.gateway.rss_mib), 1),
            "rss_growth_mib": round(max(hostile.gateway.rss_mib) - max(quiet.gateway.rss_mib), 1),
            "rss_slope_mib_min": round(hostile.gateway.slope_mib_min(SAMPLE_S), 2),
            "pmus_rss_growth_mib": round(max(visited.pmus.rss_mib) - max(quiet.pmus.rss_mib), 1),
            "p99_ms": {name: round(r.p99_ms, 2) for name, r in runs.items()},
            "p99_ratio": round(hostile.p99_ms / quiet.p99_ms, 2),
            "p99_ratio_clients": round(visited.p99_ms / quiet.p99_ms, 2),
            "files": max(hostile.gateway.files),
            "cpu_share": round(hostile.gateway_cpu_s / hostile.seconds, 3),
            "reconnects_hz": {
                a.name: round(hostile.status[a.name]["counts"]["connects"] / hostile.seconds, 3)
                for a in attacks
                if a.act in (accept_and_close, reset)
            },
            "letters_hz": hostile.letters_hz,
            "log_lines": hostile.log_lines,
            "uncounted": len(missing),
            "broken": [p.words for p in found if not p.kept],
        }
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="hostile.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pmus", type=int, default=20, help="good PMUs, of 30 frames a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of hostile servers (default: %(default)g)")
    parser.add_argument("--quick", action="store_true", help="within a minute, with shorter deadlines of the gateway")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object with the figures")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Check, and say what came of it."""
    args = parse(arguments)
    if args.role:
        logging.basicConfig(level=logging.INFO if args.role[0] == "gateway" else logging.ERROR)
        asyncio.run(ROLES[args.role[0]](*args.role[1:]))
        return 0
    aside = Console(stderr=True, highlight=False)
    settings = {"configure_s": 3.0, "stall_s": 3.0, "answer_s": 1.0, "backoff_most_s": 5.0} if args.quick else {}
    seconds = 14.0 if args.quick else args.seconds
    runs: dict[str, Result] = {}
    for name, share in (("alone", 0.4), ("servers", 1.0), ("clients", 0.4)):
        aside.print(f"{args.pmus} good PMUs, {name}: {share * seconds:.0f} s")
        runs[name] = asyncio.run(run(args.pmus, share * seconds, settings, "" if name == "alone" else name))
    missing = uncounted(ATTACKS, runs["servers"].status)
    missing += [a.__name__.replace("_", " ") for a, trace in CLIENTS.items() if not runs["clients"].served[trace]]
    found = promises(*runs.values(), missing, GatewaySettings().letters_hz)
    show(Console(width=None if sys.stdout.isatty() else WIDTH), ATTACKS, runs, found, missing)
    if args.json:
        print(as_json(ATTACKS, runs, found, missing))
    return int(not all(p.kept for p in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
