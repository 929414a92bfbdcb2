"""A script in, C37.118 over TCP and UDP out: one port a stream, each frame to every receiver when it is due.

One timer serves all streams; a receiver costs one write an instant. Who is too slow is dropped and never waited for,
save at speed 0, which goes as fast as receivers take it. Faults are made on purpose, seeded and counted.

References
----------
IEEE Std C37.118.2-2011, clauses 6.2 to 6.7 (frames and commands), annex F (TCP and UDP).
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import cast

import numpy as np

from gridsense.errors import UsageError
from gridsense.simulator.commands import Answers, CommandFinder
from gridsense.simulator.playback import Playback, Round
from gridsense.simulator.script import Script, ServedStream
from streams.c37118.frame import Command, FrameType, decode_command
from streams.errors import FrameError

log = logging.getLogger(__name__)

DATAGRAM_BYTES = 65_507
"""Payload of an IPv4 datagram, at most."""
MAX_PEERS = 16
"""Receivers of one stream by commanded UDP, at most: their addresses are believed."""

MAX_CONNECTIONS = 64
"""TCP connections to one stream, at most."""
READ_BYTES = 1 << 9
"""Most that one read of a connection takes: the others wait for no more than these commands."""

_NS = 1_000_000_000
_LEAST_PAUSE_S = 0.002  # between two instants: frames due in between leave together
_LEAD_S = 0.05  # between the decision to start and the first frame
_HIGH_WATER_BYTES = 1 << 18
_FAREWELL_S = 2.0  # for a receiver to close its side after everything was sent
_MOMENT_S = 0.3
_LATE_S = 1.0
_COMPLAIN_S = 1.0
_ACCEPTED = 64  # connections to a stream at once
_SPARE_FILES = 64
_BURST = 8  # datagrams of a stream at once


class Transport(StrEnum):
    """How streams are served; the words of a gateway's connections."""

    TCP = "tcp"
    """Commands and data over TCP: data from data-on to data-off."""
    TCP_SPONTANEOUS = "tcp-spontaneous"
    """Configuration and data over TCP to whoever connects, without a command."""
    UDP = "udp"
    """Configuration and data by UDP to one address, without a command."""
    UDP_COMMANDED = "udp-commanded"
    """Commands by UDP; the data go back to where they came from."""
    TCP_UDP = "tcp-udp"
    """Commands over TCP, data by UDP to the same host at `udp_port`."""


class Start(StrEnum):
    """When the recording begins to run."""

    ALL = "all"
    """When every stream has a receiver that asked for its data: nothing is missed."""
    FIRST = "first"
    """With the first receiver of any stream."""
    NOW = "now"
    """At once."""


_BY_TCP = (Transport.TCP, Transport.TCP_SPONTANEOUS)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a script is served.

    Attributes
    ----------
    transport
        See `Transport`.
    host
        Address to serve on.
    port
        Of the first stream; the others follow. 0: any free ones.
    udp_host
        `Transport.UDP`: who receives.
    udp_port
        `Transport.UDP` and `Transport.TCP_UDP`: where the first stream's data are received; the others follow.
    start
        What the recording waits for.
    speed
        Times real time; 0: as fast as receivers take it (TCP only).
    loop
        Begin again at the end.
    shift_to_now
        Move all time stamps by whole seconds, so that the first frame leaves at the time it says.
    configuration_every_s
        `Transport.UDP`: the configuration is sent again after so long; 0: only at the start.
    jitter_s
        Each stream's frames leave later by a time of its own between 0 and this.
    loss, duplicate, reorder
        Shares of UDP data frames that are not sent, sent twice, sent behind their successor.
    drop_after_s
        A TCP connection is closed so long after its data began; None: never.
    stall_after_s
        A receiver gets nothing more so long after its data began, the connection stays open; None: never.
    seed
        Of jitter and faults.
    backlog_bytes
        Bytes that may wait for a receiver before it is dropped.
    backlog_s
        How long any may wait.
    """

    transport: Transport = Transport.TCP
    host: str = "127.0.0.1"
    port: int = 4712
    udp_host: str = "127.0.0.1"
    udp_port: int = 0
    start: Start = Start.ALL
    speed: float = 1.0
    loop: bool = False
    shift_to_now: bool = False
    configuration_every_s: float = 60.0
    jitter_s: float = 0.0
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    drop_after_s: float | None = None
    stall_after_s: float | None = None
    seed: int = 0
    backlog_bytes: int = 1 << 23
    backlog_s: float = 10.0


@dataclass(slots=True)
class Counts:
    """What has been done so far.

    Attributes
    ----------
    played
        Data frames of the streams that have left, whoever received them.
    sent
        Data frames sent, to all receivers, duplicates included.
    sent_bytes
        Bytes of these.
    receivers
        Receivers that data were begun for.
    connections
        TCP connections.
    refused
        TCP connections beyond those that a stream may have; closed at once.
    lost, duplicated, reordered
        UDP data frames by the faults that were asked for.
    overflowed
        UDP frames that the machine had no room to send.
    dropped
        Receivers that were dropped as too slow, or as sending no commands.
    closed
        Connections closed because `drop_after_s` asks for it.
    commands
        Commands obeyed, by name.
    ignored
        Commands not obeyed, by reason: ``id code``, ``extended``, ``unknown``, ``peers``.
    garbage_bytes
        Bytes received that were no command.
    late_s
        The longest that a frame left after its time.
    turns
        Times that the recording began again.
    """

    played: int = 0
    sent: int = 0
    sent_bytes: int = 0
    receivers: int = 0
    connections: int = 0
    refused: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    overflowed: int = 0
    dropped: int = 0
    closed: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    garbage_bytes: int = 0
    late_s: float = 0.0
    turns: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """How far it is.

    Attributes
    ----------
    receiving
        Receivers of data now.
    waiting
        Streams that nobody has asked for, while the recording has not begun; else 0.
    position_s
        Seconds of the recording that have been played.
    time_ns
        Time stamp of what leaves now; None before the first frame.
    """

    receiving: int
    waiting: int
    position_s: float
    time_ns: int | None


class Simulator:
    """Serves a script.

    Parameters
    ----------
    script
        What is sent.
    settings
        How.
    wall_ns
        The clock of command answers and of `Settings.shift_to_now`, UTC nanoseconds.
    """

    def __init__(self, script: Script, settings: Settings, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self.script, self.settings, self.counts = script, settings, Counts()
        self.addresses: dict[str, tuple[str, int]] = {}
        """By stream: where it is served; for `Transport.UDP` where it is sent to."""
        self.buffer = memoryview(bytearray(READ_BYTES))
        """Where TCP connections read into."""
        self._wall_ns = wall_ns
        self._ports = [_Port(stream, place, self) for place, stream in enumerate(script.streams)]
        self._servers: list[asyncio.Server] = []
        self._datagrams: list[_Datagrams] = []
        self._connections: set[_Connection] = set()
        self._alarm: asyncio.Future[None] | None = None
        self._announcing: asyncio.TimerHandle | None = None
        self._stopping = False
        self._began = False
        self._complained_s = -_COMPLAIN_S
        self._start_s = 0.0
        self._first_ns = 0
        self._due_ns: int | None = None

    async def start(self) -> None:
        """Listen: receivers may connect when this returns.

        Raises
        ------
        UsageError
            If the settings contradict each other, or an address cannot be served on.
        """
        _check(self.settings, self.script.streams)
        _make_room_for((MAX_CONNECTIONS + 1) * len(self._ports) + _SPARE_FILES)
        settings = self.settings
        if settings.transport in (Transport.UDP, Transport.TCP_UDP):
            await self._open_datagrams(None, 0)
        for place, port in enumerate(self._ports):
            number = settings.port + place if settings.port else 0
            try:
                if settings.transport is Transport.UDP:
                    address = settings.udp_host, settings.udp_port + place
                    self._open_peer(port, address)
                elif settings.transport is Transport.UDP_COMMANDED:
                    address = await self._open_datagrams(port, number)
                else:
                    server = await asyncio.get_running_loop().create_server(
                        partial(_Connection, port, self), settings.host, number, backlog=_ACCEPTED
                    )
                    self._servers.append(server)
                    address = server.sockets[0].getsockname()[:2]
            except (OSError, OverflowError) as error:
                await self.close()
                where = f"{settings.host}:{number}"
                raise UsageError(
                    f"{where}: {port.stream.name} cannot be served there: {error}; choose another --port"
                ) from error
            self.addresses[port.stream.name] = address

    async def run(self) -> Counts:
        """Play to the end of the script, or until `stop`; then see everybody off.

        Returns
        -------
        Counts
            What was done.
        """
        loop = asyncio.get_running_loop()
        rng = np.random.default_rng([self.settings.seed, 0])
        delays = rng.uniform(0, self.settings.jitter_s * _NS, len(self._ports)).astype(np.int64).tolist()
        playback = Playback(self.script, loop=self.settings.loop, delays_ns=delays)
        first_ns = await loop.run_in_executor(None, playback.begin)
        while not self._stopping and not self._may_begin():
            await self._pause(None)
        self._begin(playback, first_ns)
        reading = loop.run_in_executor(None, playback.read)
        try:
            while (ready := await reading) is not None and not self._stopping:
                self.counts.turns = playback.turns
                reading = loop.run_in_executor(None, playback.read)
                await self._play(ready)
        finally:
            await asyncio.gather(reading, return_exceptions=True)
            await self._see_off()
        return self.counts

    def stop(self) -> None:
        """End soon: `run` sees everybody off and returns."""
        self._stopping = True
        self.wake()

    async def close(self) -> None:
        """Close everything now."""
        for server in self._servers:
            server.close()
        for connection in [*self._connections]:
            connection.transport.abort()
        for datagrams in self._datagrams:
            datagrams.transport.close()
        for server in self._servers:
            await server.wait_closed()
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # so that what was closed is told so

    def status(self) -> Status:
        """Say how far it is.

        Returns
        -------
        Status
            Of this moment.
        """
        waiting = 0 if self._began else sum(not port.receivers for port in self._ports)
        due_ns = self._due_ns
        position = 0.0 if due_ns is None else (due_ns - self._first_ns) / _NS
        return Status(sum(len(port.receivers) for port in self._ports), waiting, position, due_ns)

    def wake(self) -> None:
        """Let the recording look again whether it may go on."""
        if self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)

    def complain(self, text: str) -> None:
        """Log a warning, unless one was logged in this second: all are counted.

        Parameters
        ----------
        text
            What is wrong.
        """
        now_s = asyncio.get_running_loop().time()
        if now_s - self._complained_s >= _COMPLAIN_S:
            self._complained_s = now_s
            log.warning(text)

    def now_ns(self) -> int:
        """Say what time it is.

        Returns
        -------
        int
            UTC nanoseconds.
        """
        return self._wall_ns()

    def joined(self, connection: _Connection) -> None:
        """Take note of a connection.

        Parameters
        ----------
        connection
            Just made.
        """
        self.counts.connections += 1
        self._connections.add(connection)

    def left(self, connection: _Connection) -> None:
        """Forget a connection.

        Parameters
        ----------
        connection
            Just lost.
        """
        self._connections.discard(connection)
        self.wake()

    def peer(self, port: _Port, host: str) -> _Peer:
        """Make the receiver of a stream's datagrams at a TCP receiver's host.

        Parameters
        ----------
        port
            Of the stream.
        host
            Of the receiver.

        Returns
        -------
        _Peer
            Not receiving yet.
        """
        return _Peer(port, self, self._datagrams[0], (host, self.settings.udp_port + port.place))

    async def _open_datagrams(self, port: _Port | None, number: int) -> tuple[str, int]:
        transport, datagrams = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(port, self), local_addr=(self.settings.host, number)
        )
        self._datagrams.append(datagrams)
        host, bound = transport.get_extra_info("sockname")[:2]
        return str(host), int(bound)

    def _open_peer(self, port: _Port, address: tuple[str, int]) -> None:
        port.receivers.add(_Peer(port, self, self._datagrams[0], address))
        self.counts.receivers += 1

    def _may_begin(self) -> bool:
        if self.settings.start is Start.NOW:
            return True
        return (any if self.settings.start is Start.FIRST else all)(port.receivers for port in self._ports)

    def _begin(self, playback: Playback, first_ns: int) -> None:
        """Set the clock of the recording going."""
        loop = asyncio.get_running_loop()
        self._start_s = loop.time() + _LEAD_S
        if self.settings.shift_to_now:
            start_ns = self._wall_ns() + round(_LEAD_S * _NS)
            first_ns += playback.shift(-((first_ns - start_ns) // _NS)) * _NS
            if first_ns >= start_ns:
                self._start_s += (first_ns - start_ns) / _NS
        self._first_ns = first_ns
        self._began = True
        if self.settings.transport is Transport.UDP:
            self._announce()
            for port in self._ports:
                for receiver in port.receivers:
                    receiver.begin()

    def _announce(self) -> None:
        """Send the configuration of every stream to whoever never asks."""
        for port in self._ports:
            for receiver in port.receivers:
                receiver.answer(port.answers.configuration(self.now_ns()))
        if self.settings.configuration_every_s:
            loop = asyncio.get_running_loop()
            self._announcing = loop.call_later(self.settings.configuration_every_s, self._announce)

    async def _play(self, ready: Round) -> None:
        """Send a round, each frame when it is due."""
        loop = asyncio.get_running_loop()
        speed, count = self.settings.speed, len(ready.frames)
        if not speed:
            self._send(ready, 0, count)
            await self._drained()
            return
        # who is behind by UDP catches up in portions that a receiver has room for
        most = count if self.settings.transport in _BY_TCP else _BURST * len(self._ports)
        at = 0
        woken = 0.0
        while at < count:
            due_s = self._start_s + (ready.due_ns[at] - self._first_ns) / (_NS * speed)
            await self._pause(max(due_s, woken + _LEAST_PAUSE_S))
            if self._stopping:
                return
            woken = loop.time()
            self._say_late(woken - due_s)
            end = bisect_right(ready.due_ns, self._first_ns + (woken - self._start_s) * _NS * speed, at)
            end = min(max(end, at + 1), at + most)
            self._send(ready, at, end)
            at = end

    def _send(self, ready: Round, first: int, last: int) -> None:
        together: dict[int, list[bytes]] = {}
        for place, frame in zip(ready.streams[first:last], ready.frames[first:last], strict=True):
            together.setdefault(place, []).append(frame)
        for place, frames in together.items():
            for receiver in tuple(self._ports[place].receivers):
                receiver.send(frames)
        self.counts.played += last - first
        self._due_ns = ready.due_ns[last - 1]

    def _say_late(self, late_s: float) -> None:
        if late_s >= _LATE_S > self.counts.late_s:
            log.warning(
                "frames leave %.1f s late: this machine cannot keep up; serve less, or at a lower --speed", late_s
            )
        self.counts.late_s = max(self.counts.late_s, late_s)

    async def _drained(self) -> None:
        """Wait until every receiver has taken what it was sent, or is dropped for taking too long."""
        await asyncio.sleep(0)
        while not self._stopping:
            behind = [c for c in self._connections if c.behind]
            if not behind:
                return
            await self._pause(asyncio.get_running_loop().time() + self.settings.backlog_s / 10)
            for connection in behind:
                connection.judge()

    async def _pause(self, until_s: float | None) -> None:
        """Sleep until a time of the loop's clock; shorter when woken, for ever without a time."""
        loop = asyncio.get_running_loop()
        self._alarm = loop.create_future()
        timer = loop.call_at(until_s, self.wake) if until_s is not None else None
        try:
            # a connection that comes or goes wakes as well; what is due is due by the clock alone
            while not self._stopping:
                await self._alarm
                if until_s is None or loop.time() >= until_s - 1e-4 or not self.settings.speed:
                    return
                self._alarm = loop.create_future()
        finally:
            self._alarm = None
            if timer is not None:
                timer.cancel()

    async def _see_off(self) -> None:
        """Send what is held, then end the connections so that every byte arrives."""
        if self._announcing is not None:
            self._announcing.cancel()
        for server in self._servers:
            server.close()
        for port in self._ports:
            for receiver in port.receivers:
                receiver.flush()
        if self.settings.transport is Transport.TCP_UDP:
            await asyncio.sleep(_MOMENT_S)  # the last datagrams shall not come after the end of the connection
        for connection in tuple(self._connections):
            connection.finish()
        await self._farewell()
        for connection in tuple(self._connections):
            connection.transport.close()
        for datagrams in self._datagrams:
            datagrams.transport.close()

    async def _farewell(self) -> None:
        """Wait until receivers have taken what was written and closed their side; not for ever."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _FAREWELL_S
        patience_s = loop.time() + self.settings.backlog_s
        while self._connections and loop.time() < deadline_s:
            if any(c.behind for c in self._connections) and loop.time() < patience_s:
                deadline_s = loop.time() + _FAREWELL_S
            await asyncio.sleep(0.01)


class _Port:
    """One stream, and who receives it."""

    def __init__(self, stream: ServedStream, place: int, simulator: Simulator) -> None:
        self.stream, self.place = stream, place
        self.answers = Answers(stream)
        self.receivers: set[_Receiver] = set()
        self.connections = 0
        self._simulator = simulator

    def obey(self, frame: bytes, receiver: _Receiver, asking: _Receiver) -> None:
        """Do what a command says: data go to the receiver, answers to who asked."""
        counts, now_ns = self._simulator.counts, self._simulator.now_ns
        try:
            command = decode_command(frame)
        except FrameError:
            counts.ignored["unknown"] += 1
            return
        if command.id_code != self.stream.id_code:
            counts.ignored["id code"] += 1
            return
        kind = _KINDS.get(command.command)
        if kind is not None and (frames := self.answers.configuration(now_ns(), kind)):
            asking.answer(frames)
        elif command.command == Command.SEND_HEADER:
            asking.answer([self.answers.header(now_ns())])
        elif command.command == Command.DATA_ON:
            if not self.begin(receiver):
                counts.ignored["peers"] += 1
                return
        elif command.command == Command.DATA_OFF:
            receiver.end()
        else:
            counts.ignored["extended" if command.command == Command.EXTENDED else "unknown"] += 1
            return
        counts.commands[Command(command.command).name.lower()] += 1

    def begin(self, receiver: _Receiver) -> bool:
        """Let a receiver have data from now on; False where there are too many."""
        if receiver in self.receivers:
            return True
        if isinstance(receiver, _Peer) and len(self.receivers) >= MAX_PEERS:
            return False
        self.receivers.add(receiver)
        self._simulator.counts.receivers += 1
        receiver.begin()
        self._simulator.wake()
        return True


_KINDS = {
    int(c): k
    for c, k in (
        (Command.SEND_CFG1, FrameType.CFG1),
        (Command.SEND_CFG2, FrameType.CFG2),
        (Command.SEND_CFG3, FrameType.CFG3),
    )
}
"""What is answered, by the number of the command."""


class _Receiver:
    """Somebody who may get the data of a stream."""

    def __init__(self, port: _Port, simulator: Simulator) -> None:
        self.port, self.simulator = port, simulator
        self.stalled = False
        self._stall: asyncio.TimerHandle | None = None

    def send(self, frames: list[bytes]) -> None:
        """Send data frames."""
        raise NotImplementedError

    def answer(self, frames: list[bytes]) -> None:
        """Send other frames."""
        raise NotImplementedError

    def flush(self) -> None:
        """Send what is held back."""

    def begin(self) -> None:
        """Start the time until nothing more is sent, if that is asked for."""
        after_s = self.simulator.settings.stall_after_s
        if after_s is not None and self._stall is None:
            self._stall = asyncio.get_running_loop().call_later(after_s, self._stop_sending)

    def end(self) -> None:
        """End the data; what is held back goes out first."""
        if self in self.port.receivers:
            self.flush()
            self.port.receivers.discard(self)

    def forget(self) -> None:
        """Nobody is there any more."""
        self.port.receivers.discard(self)
        if self._stall is not None:
            self._stall.cancel()

    def _stop_sending(self) -> None:
        self.stalled = True


class _Connection(_Receiver, asyncio.BufferedProtocol):
    """A receiver by TCP; its data may go by UDP."""

    transport: asyncio.Transport

    def __init__(self, port: _Port, simulator: Simulator) -> None:
        super().__init__(port, simulator)
        self.behind = False
        self._behind_since_s = 0.0
        self._finder = CommandFinder()
        self._peer: _Peer | None = None
        self._drop: asyncio.TimerHandle | None = None
        self._name = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet with what is due without a command."""
        self.transport = cast("asyncio.Transport", transport)
        self.port.connections += 1
        if self.port.connections > MAX_CONNECTIONS:
            self.simulator.counts.refused += 1
            self.transport.abort()
            return
        self.transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        host, number = transport.get_extra_info("peername")[:2]
        self._name = f"{self.port.stream.name}: receiver {host}:{number}"
        self.simulator.joined(self)
        kind = self.simulator.settings.transport
        if kind is Transport.TCP_UDP:
            self._peer = self.simulator.peer(self.port, host)
        elif kind is Transport.TCP_SPONTANEOUS:
            self.answer(self.port.answers.configuration(self.simulator.now_ns()))
            self.port.begin(self)
            self.arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the receiver."""
        del exc  # why it went makes no difference
        self.port.connections -= 1
        if self._drop is not None:
            self._drop.cancel()
        if self._peer is not None:
            self._peer.forget()
        self.forget()
        self.behind = False
        self.simulator.left(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where to read into."""
        del sizehint  # enough for many commands
        return self.simulator.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Obey the commands in what came."""
        data = bytes(self.simulator.buffer[:nbytes])
        garbage = self._finder.garbage
        for frame in self._finder.feed(data):
            self.port.obey(frame, self._peer or self, self)
        self.arm()
        self.simulator.counts.garbage_bytes += self._finder.garbage - garbage
        if self._finder.hopeless:
            self._cut("it sends no commands")

    def arm(self) -> None:
        """Start the time until the connection is closed, if that is asked for and its data have begun."""
        after_s = self.simulator.settings.drop_after_s
        if after_s is not None and self._drop is None and (self._peer or self) in self.port.receivers:
            self._drop = asyncio.get_running_loop().call_later(after_s, self._close)

    def send(self, frames: list[bytes]) -> None:
        """Send data frames, or give the receiver up."""
        if self.stalled or self.transport.is_closing():
            return
        if self.behind:
            self.judge()
            if self.transport.is_closing():
                return
        octets = frames[0] if len(frames) == 1 else b"".join(frames)
        self.transport.write(octets)
        counts = self.simulator.counts
        counts.sent += len(frames)
        counts.sent_bytes += len(octets)

    def answer(self, frames: list[bytes]) -> None:
        """Send other frames, or give up the receiver that asks for more than it reads."""
        if self.behind:
            self.judge()
        if not self.stalled and not self.transport.is_closing():
            self.transport.write(b"".join(frames))

    def judge(self) -> None:
        """Drop the receiver if it is too far behind."""
        settings = self.simulator.settings
        waited_s = asyncio.get_running_loop().time() - self._behind_since_s
        waiting = self.transport.get_write_buffer_size()
        if self.behind and (waited_s > settings.backlog_s or waiting > settings.backlog_bytes):
            self._cut(f"it is too slow, {waiting:,} bytes wait for {waited_s:.1f} s")

    def pause_writing(self) -> None:
        """Take note that the receiver is behind."""
        self.behind = True
        self._behind_since_s = asyncio.get_running_loop().time()

    def resume_writing(self) -> None:
        """Take note that it has caught up."""
        self.behind = False
        self.simulator.wake()

    def finish(self) -> None:
        """End after what is written; the receiver may still speak, so that nothing on its way to it is lost."""
        self.stalled = True
        self.transport.write_eof()

    def _cut(self, reason: str) -> None:
        self.simulator.complain(f"{self._name} is dropped: {reason}")
        self.simulator.counts.dropped += 1
        self.transport.abort()

    def _close(self) -> None:
        self.simulator.counts.closed += 1
        self.transport.close()


class _Peer(_Receiver):
    """A receiver of datagrams."""

    def __init__(self, port: _Port, simulator: Simulator, datagrams: _Datagrams, address: tuple[str, int]) -> None:
        super().__init__(port, simulator)
        self.datagrams, self.address = datagrams, address
        settings = simulator.settings
        self._shares = settings.loss, settings.duplicate, settings.reorder
        self._rng = np.random.default_rng([settings.seed, 1, port.place])
        self._held: bytes | None = None

    def send(self, frames: list[bytes]) -> None:
        """Send data frames, each a datagram, with the faults that were asked for."""
        if self.stalled:
            return
        if not any(self._shares):
            for frame in frames:
                self._put(frame)
            return
        counts = self.simulator.counts
        chances = (self._rng.random((len(frames), 3)) < self._shares).tolist()
        for frame, (lost, twice, behind) in zip(frames, chances, strict=True):
            if lost:
                counts.lost += 1
            elif behind and self._held is None:
                self._held = frame
            else:
                self._put(frame)
                if twice:
                    self._put(frame)
                    counts.duplicated += 1
                if self._held is not None:
                    counts.reordered += 1
                    self.flush()

    def answer(self, frames: list[bytes]) -> None:
        """Send other frames, whole."""
        if not self.stalled:
            for frame in frames:
                self.datagrams.transport.sendto(frame, self.address)

    def flush(self) -> None:
        """Send the frame that was held back behind its successor."""
        if self._held is not None:
            self._put(self._held)
            self._held = None

    def _put(self, frame: bytes) -> None:
        counts = self.simulator.counts
        if self.datagrams.full:
            counts.overflowed += 1
            return
        self.datagrams.transport.sendto(frame, self.address)
        counts.sent += 1
        counts.sent_bytes += len(frame)


class _Datagrams(asyncio.DatagramProtocol):
    """A UDP port: commands come in, where there is a stream that obeys."""

    transport: asyncio.DatagramTransport

    def __init__(self, port: _Port | None, simulator: Simulator) -> None:
        self.full = False
        self._port, self._simulator = port, simulator
        self._peers: dict[tuple[str, int], _Peer] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what datagrams are sent with."""
        self.transport = cast("asyncio.DatagramTransport", transport)

    def pause_writing(self) -> None:
        """Take note that the machine has no room."""
        self.full = True

    def resume_writing(self) -> None:
        """Take note that there is room again."""
        self.full = False

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Obey the commands in a datagram."""
        finder = CommandFinder()
        if self._port is not None:
            for frame in finder.feed(data):
                peer = self._peers.get(addr) or _Peer(self._port, self._simulator, self, addr)
                self._port.obey(frame, peer, peer)
                self._peers = {p.address: p for p in self._port.receivers if isinstance(p, _Peer)}
        else:
            finder.feed(data)
        self._simulator.counts.garbage_bytes += finder.garbage

    def error_received(self, exc: Exception) -> None:
        """Go on: who does not receive datagrams does not hinder who does."""
        log.debug("a datagram could not be sent: %s", exc)
        self._simulator.counts.overflowed += 1


def _check(settings: Settings, streams: Sequence[ServedStream]) -> None:
    """Refuse what cannot be served."""
    transport = settings.transport
    udp = transport not in _BY_TCP
    faults = settings.loss, settings.duplicate, settings.reorder
    last = max(settings.port, settings.udp_port) + len(streams) - 1
    largest = max((stream.configuration.data_size for stream in streams), default=0)
    wrong = {
        "there is no stream to serve": not streams,
        f"--speed {settings.speed:g}: 1 is real time, 0 as fast as it goes": not settings.speed >= 0,
        "--speed 0 needs TCP: nobody can tell by UDP how fast a receiver takes frames": udp and not settings.speed,
        "--loss, --duplicate and --reorder are shares between 0% and 100%": not all(0 <= f <= 1 for f in faults),
        "--loss, --duplicate and --reorder need UDP: TCP does none of them; see --transport": any(faults) and not udp,
        "--drop-after needs TCP: UDP has no connection to close; see --stall-after": (
            settings.drop_after_s is not None and transport in (Transport.UDP, Transport.UDP_COMMANDED)
        ),
        f"--transport {transport} needs --udp-port: where the data are received": (
            transport in (Transport.UDP, Transport.TCP_UDP) and not settings.udp_port
        ),
        f"{len(streams)} streams end at port {last}: choose a lower --port or --udp-port": last > 0xFFFF,
        f"a data frame of {largest:,} bytes is no datagram: use TCP, or fewer PMUs in a stream": (
            udp and largest > DATAGRAM_BYTES
        ),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise UsageError(message)


def _make_room_for(files: int) -> None:
    """Let the process have more files open where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
