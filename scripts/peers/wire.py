"""The wire between our simulator and our gateway, as Wireshark's dissector sees it.

In: a transport. Out: how many frames of each type passed, by our own reading of the capture and by tshark's, and what
tshark finds wrong. What passes is taken down by a relay between the two, which needs no privileges and loses nothing;
TCP is cut small, so that frames end in the middle of segments. Where it is allowed the system captures instead. It
compares no measured value: a test of the codec does.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import dpkt

from gridsense.simulator.script import read_script
from gridsense.simulator.server import Settings, Simulator
from gridsense.simulator.server import Transport as Served
from scripts.peers.scene import SOURCE, Scene
from scripts.peers.sessions import PATIENCE_S, PeerError, archive
from streams.captures import summary
from streams.gateway.gateway import Gateway
from streams.gateway.settings import ConnectionSettings, GatewaySettings, Transport
from streams.sqlite_log import open_log

HOST = "127.0.0.1"
SEGMENT_BYTES = 700
"""Of TCP, at most, in the capture."""
SPEED = 20.0
"""Times real time, for datagrams too."""

_QUICK = GatewaySettings(answer_s=5.0, tick_s=0.02, flush_s=0.01)
_TYPES = {0: "data", 1: "header", 2: "cfg1", 3: "cfg2", 4: "command", 5: "cfg3"}
_GOOD = "1"
_SETTLE_S = 0.5  # for the last packets to be handed to dumpcap


@dataclass(frozen=True, slots=True)
class Seen:
    """What passed by one transport.

    Attributes
    ----------
    transport
        Which.
    sent, received
        Data frames as the simulator and the gateway counted them.
    ours
        Frames by type, as we read the capture.
    theirs
        As tshark reads it.
    malformed
        Packets that tshark cannot make sense of, or reports an error in.
    bad_checksums
        Frames whose check word tshark finds wrong.
    live
        Captured by the system, between the two themselves; else by a relay.
    """

    transport: Transport
    sent: int
    received: int
    ours: dict[str, int]
    theirs: dict[str, int]
    malformed: int
    bad_checksums: int
    live: bool = False

    @property
    def differences(self) -> tuple[str, ...]:
        """What does not agree, in words."""
        wrong = []
        if self.ours != self.theirs:
            wrong.append(f"frames by type: tshark counts {self.theirs}, we {self.ours}")
        if not self.sent == self.received == self.theirs.get("data", 0):
            wrong.append(f"data frames: {self.sent} sent, {self.received} received, {self.theirs.get('data', 0)} seen")
        if self.bad_checksums:
            wrong.append(f"{self.bad_checksums} wrong check words")
        return tuple(wrong)


@dataclass(slots=True)
class Tape:
    """Packets that passed."""

    packets: list[tuple[float, str, int, int, bytes]]

    def take(self, kind: str, source: int, target: int, payload: bytes) -> None:
        """Take down what went from port to port."""
        self.packets.append((time.time(), kind, source, target, payload))

    def write(self, path: Path) -> None:
        """Write a capture."""
        address = socket.inet_aton(HOST)
        sequence: Counter[tuple[int, int]] = Counter()
        with path.open("wb") as file:
            writer = dpkt.pcap.Writer(file, linktype=dpkt.pcap.DLT_EN10MB)
            for moment_s, kind, source, target, payload in self.packets:
                step = SEGMENT_BYTES if kind == "tcp" else max(len(payload), 1)
                for at in range(0, len(payload), step):
                    piece = payload[at : at + step]
                    if kind == "tcp":
                        layer = dpkt.tcp.TCP(
                            sport=source,
                            dport=target,
                            seq=1 + sequence[source, target],
                            ack=1 + sequence[target, source],
                            flags=dpkt.tcp.TH_ACK | dpkt.tcp.TH_PUSH,
                            data=piece,
                        )
                        sequence[source, target] += len(piece)
                    else:
                        layer = dpkt.udp.UDP(sport=source, dport=target, ulen=8 + len(piece), data=piece)
                    number = dpkt.ip.IP_PROTO_TCP if kind == "tcp" else dpkt.ip.IP_PROTO_UDP
                    ip = dpkt.ip.IP(src=address, dst=address, p=number, ttl=64, data=layer)
                    ip.len = len(ip)
                    writer.writepkt(bytes(dpkt.ethernet.Ethernet(src=bytes(6), dst=bytes(6), data=ip)), moment_s)


class TcpRelay:
    """Stands between a client and a server by TCP."""

    def __init__(self, tape: Tape, target: int) -> None:
        self.port = 0
        self._tape, self._target = tape, target
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Let everything pass that is on its way, and end."""
        if self._server is not None:
            self._server.close()
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=PATIENCE_S)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = writer.get_extra_info("peername")[1]
        try:
            their_reader, their_writer = await asyncio.open_connection(HOST, self._target)
        except OSError:
            writer.close()
            return
        both = (
            asyncio.create_task(self._pump(reader, their_writer, name, self.port)),
            asyncio.create_task(self._pump(their_reader, writer, self.port, name)),
        )
        for pump in both:
            self._pumps.add(pump)
        await asyncio.wait(both)
        for one in (writer, their_writer):
            one.close()
            with suppress(OSError):
                await one.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: int, target: int) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                self._tape.take("tcp", source, target, data)
                writer.write(data)
                await writer.drain()
            writer.write_eof()


class UdpRelay(asyncio.DatagramProtocol):
    """Stands between the simulator and a gateway by datagrams: what one sends goes to the other."""

    transport: asyncio.DatagramTransport

    def __init__(self, tape: Tape) -> None:
        self.port = 0
        self.simulator = 0
        self.gateway = 0
        self._tape = tape

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what datagrams are sent with."""
        self.transport = transport  # type: ignore[assignment]  # asyncio types it by its base
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Send on."""
        if addr[1] == self.gateway or (self.simulator and addr[1] != self.simulator):
            self.gateway = addr[1]
            self._tape.take("udp", self.gateway, self.port, data)
            self.transport.sendto(data, (HOST, self.simulator))
        else:
            self._tape.take("udp", self.port, self.gateway, data)
            self.transport.sendto(data, (HOST, self.gateway))


def watch(transport: Transport, scene: Scene, folder: Path, *, live: bool = False) -> Seen:
    """Let the gateway receive a scene from the simulator, and look at what passed.

    Parameters
    ----------
    transport
        How.
    scene
        What is sent.
    folder
        For the file, the log and the capture.
    live
        Let the system capture what passes; else a relay takes it down.

    Returns
    -------
    Seen
        By both readers.

    Raises
    ------
    PeerError
        If the frames do not come, or tshark fails.
    """
    script, path, log = archive(scene, folder), folder / "wire.pcap", folder / "gateway.log"
    open_log(log).close()
    passing = _pass_captured if live else _pass_relayed
    sent, received, ports = asyncio.run(passing(transport, script, scene.frames, path, log))
    ours = {kind: n for kind, n in sorted(summary(path).frames_by_type.items()) if n}
    theirs, malformed, bad = dissect(path, ports)
    return Seen(transport, sent, received, ours, theirs, malformed, bad, live)


async def _pass_relayed(
    transport: Transport, file: Path, frames: int, path: Path, log: Path
) -> tuple[int, int, tuple[int, int]]:
    """Send and receive by relays; data frames sent and received, and the ports of the relays."""
    tape = Tape([])
    relay = UdpRelay(tape)
    datagrams, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: relay, local_addr=(HOST, 0))
    simulator = _simulator(transport, file, relay.port)
    peer = ConnectionSettings(SOURCE, HOST, 1, simulator.script.streams[0].id_code, transport)
    await simulator.start()
    port = next(iter(simulator.addresses.values()))[1]
    tcp = TcpRelay(tape, port)
    if transport.over_tcp:
        await tcp.start()
        peer = replace(peer, port=tcp.port)
    elif transport.commanded:
        relay.simulator, peer = port, replace(peer, port=relay.port)
    try:
        counts = await _exchange(simulator, peer, frames, log, relay=relay, tcp=tcp)
    finally:
        datagrams.close()
        await simulator.close()
    tape.write(path)
    return *counts, (tcp.port, relay.port)


async def _pass_captured(
    transport: Transport, file: Path, frames: int, path: Path, log: Path
) -> tuple[int, int, tuple[int, int]]:
    """Send and receive while the system captures; data frames sent and received, and the ports."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind((HOST, 0))
        udp_port = free.getsockname()[1]
    simulator = _simulator(transport, file, udp_port)
    await simulator.start()
    port = next(iter(simulator.addresses.values()))[1]
    peer = ConnectionSettings(SOURCE, HOST, port, simulator.script.streams[0].id_code, transport)
    if transport in (Transport.UDP, Transport.TCP_UDP):
        peer = replace(peer, udp_port=udp_port)
    ports = port if transport.over_tcp else 0, port if transport is Transport.UDP_COMMANDED else udp_port
    wanted = " or ".join(f"port {p}" for p in {*ports} - {0})
    capture = await asyncio.create_subprocess_exec(
        "dumpcap", "-q", "-P", "-i", "lo", "-f", wanted, "-w", path, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while b"File:" not in await capture.stderr.readline():  # it captures once it says where to
                if capture.returncode is not None:
                    raise PeerError("dumpcap cannot capture on the loopback")
        counts = await _exchange(simulator, peer, frames, log)
        await asyncio.sleep(_SETTLE_S)
    finally:
        capture.terminate()
        await capture.communicate()
        await simulator.close()
    return *counts, ports


def _simulator(transport: Transport, file: Path, udp_port: int) -> Simulator:
    settings = Settings(transport=Served(str(transport)), port=0, udp_port=udp_port, speed=SPEED)
    return Simulator(read_script([file]), settings)


async def _exchange(
    simulator: Simulator,
    peer: ConnectionSettings,
    frames: int,
    log: Path,
    *,
    relay: UdpRelay | None = None,
    tcp: TcpRelay | None = None,
) -> tuple[int, int]:
    """Run both sides until all has come; data frames sent and received."""
    stop = asyncio.Event()
    gateway = Gateway(partial(open_log, log), [peer], _QUICK, chance=random.Random(1))  # noqa: S311 - no secret
    receiving = asyncio.create_task(gateway.run(stop))
    sending = None
    try:
        if peer.transport in (Transport.UDP, Transport.TCP_UDP):
            await _until(lambda: gateway.status()[0].local_port > 0, gateway)
            if relay is not None:
                relay.gateway = gateway.status()[0].local_port
        sending = asyncio.create_task(simulator.run())
        await _until(lambda: gateway.status()[0].counts.frames >= frames, gateway)
    finally:
        stop.set()
        await receiving
        if tcp is not None:
            await tcp.close()
        simulator.stop()
        counts = await sending if sending else simulator.counts
    return counts.sent, gateway.status()[0].counts.frames


async def _until(done: Callable[[], bool], gateway: Gateway) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not done():  # noqa: ASYNC110 - another side's count
                await asyncio.sleep(0.005)
    except TimeoutError:
        status = gateway.status()[0]
        raise PeerError(
            f"{status.counts.frames} frames came within {PATIENCE_S:g} s; {status.state}: {status.error}"
        ) from None


def loopback_is_open() -> bool:
    """Tell whether this user may capture on the loopback.

    Returns
    -------
    bool
        By trying.
    """
    if shutil.which("dumpcap") is None:
        return False
    command = ["dumpcap", "-q", "-i", "lo", "-f", "port 4712", "-a", "duration:1", "-w", os.devnull]
    return subprocess.run(command, check=False, capture_output=True, timeout=PATIENCE_S).returncode == 0


def tshark_is_there() -> bool:
    """Tell whether tshark is installed.

    Returns
    -------
    bool
        As it says.
    """
    return shutil.which("tshark") is not None


def dissect(path: Path, ports: Sequence[int]) -> tuple[dict[str, int], int, int]:
    """Let tshark read a capture.

    Parameters
    ----------
    path
        The capture.
    ports
        Of C37.118 over TCP, and over UDP; 0 for none.

    Returns
    -------
    tuple[dict[str, int], int, int]
        Frames by type, malformed packets, wrong check words.
    """
    kinds = [f"{k}.port=={p},synphasor" for k, p in zip(("tcp", "udp"), ports, strict=True) if p]
    told = [word for kind in kinds for word in ("-d", kind)]
    rows = _tshark(path, *told, "-T", "fields", "-e", "synphasor.frtype", "-e", "synphasor.checksum.status")
    types: Counter[str] = Counter()
    bad = 0
    for row in rows:
        found, status = row.split("\t")
        types.update(_TYPES[int(t, 16)] for t in found.split(",") if t)
        bad += sum(s != _GOOD for s in status.split(",") if s)
    strange = _tshark(path, *told, "-Y", "_ws.malformed || (synphasor && _ws.expert.severity >= Warning)")
    return dict(sorted(types.items())), len(strange), bad


def _tshark(path: Path, *arguments: str) -> list[str]:
    done = subprocess.run(
        ["tshark", "-n", "-r", path, *arguments], check=False, capture_output=True, text=True, timeout=PATIENCE_S
    )
    if done.returncode:
        raise PeerError(f"tshark ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.splitlines()
