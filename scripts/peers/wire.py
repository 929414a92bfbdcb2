"""The wire between our simulator and our gateway, as Wireshark's dissector sees it.

In: a transport. Out: how many frames of each type passed, by our own reading of the capture and by tshark's, and what
tshark finds wrong. What passes is taken down by a relay between the two, which needs no privileges and loses nothing;
TCP is cut small, so that frames end in the middle of segments. It compares no measured value: a test of the codec does.
"""

from __future__ import annotations

import asyncio
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
    """

    transport: Transport
    sent: int
    received: int
    ours: dict[str, int]
    theirs: dict[str, int]
    malformed: int
    bad_checksums: int

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


def watch(transport: Transport, scene: Scene, folder: Path) -> Seen:
    """Let the gateway receive a scene from the simulator, and look at what passed.

    Parameters
    ----------
    transport
        How.
    scene
        What is sent.
    folder
        For the file, the log and the capture.

    Returns
    -------
    Seen
        By both readers.

    Raises
    ------
    PeerError
        If the frames do not come, or tshark fails.
    """
    script = archive(scene, folder)
    tape = Tape([])
    sent, received, ports = asyncio.run(_pass(transport, script, scene.frames, tape, folder / "gateway.log"))
    path = folder / "wire.pcap"
    tape.write(path)
    ours = {kind: n for kind, n in summary(path).frames_by_type.items() if n}
    theirs, malformed, bad = dissect(path, ports)
    return Seen(transport, sent, received, _by_name(ours), theirs, malformed, bad)


def _by_name(ours: dict[str, int]) -> dict[str, int]:
    return dict(sorted(ours.items()))


async def _pass(
    transport: Transport, file: Path, frames: int, tape: Tape, log: Path
) -> tuple[int, int, tuple[int, int]]:
    """Send and receive; data frames sent and received, and the ports of the relays."""
    open_log(log).close()
    loop = asyncio.get_running_loop()
    relay = UdpRelay(tape)
    datagrams, _ = await loop.create_datagram_endpoint(lambda: relay, local_addr=(HOST, 0))
    simulator = Simulator(
        read_script([file]),
        Settings(transport=Served(str(transport)), port=0, udp_port=relay.port, speed=SPEED),
    )
    stream = simulator.script.streams[0]
    peer = ConnectionSettings(SOURCE, HOST, 1, stream.id_code, transport)
    stop, tcp, gateway = asyncio.Event(), None, None
    try:
        if transport is Transport.UDP:
            gateway, received = _gateway(peer, log, stop)
            relay.gateway = await _port_of(gateway)
        await simulator.start()
        port = simulator.addresses[stream.name][1]
        if transport is Transport.UDP_COMMANDED:
            relay.simulator, peer = port, replace(peer, port=relay.port)
        elif transport.over_tcp:
            tcp = TcpRelay(tape, port)
            await tcp.start()
            peer = replace(peer, port=tcp.port)
        if gateway is None:
            gateway, received = _gateway(peer, log, stop)
            if transport is Transport.TCP_UDP:
                relay.gateway = await _port_of(gateway)
        running = asyncio.create_task(simulator.run())
        await _until(lambda: gateway.status()[0].counts.frames >= frames, gateway)
        stop.set()
        await received
        if tcp is not None:
            await tcp.close()
        simulator.stop()
        counts = await running
    finally:
        stop.set()
        datagrams.close()
        await simulator.close()
        await asyncio.sleep(0)
    return counts.sent, gateway.status()[0].counts.frames, (tcp.port if tcp else 0, relay.port)


def _gateway(peer: ConnectionSettings, log: Path, stop: asyncio.Event) -> tuple[Gateway, asyncio.Task[None]]:
    gateway = Gateway(partial(open_log, log), [peer], _QUICK, chance=random.Random(1))  # noqa: S311 - no secret
    return gateway, asyncio.create_task(gateway.run(stop))


async def _port_of(gateway: Gateway) -> int:
    """Wait for the local port of the gateway's datagrams."""
    await _until(lambda: gateway.status()[0].local_port > 0, gateway)
    return gateway.status()[0].local_port


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
