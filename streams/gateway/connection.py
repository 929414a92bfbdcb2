"""One peer: connect, ask what it sends, let it send, notice when it stops, try again.

In: settings and an `Intake`. Out: what came, into the intake; the state, for people. It looks into no frame. Deadlines
are looked at in `tick`, so that a read costs nothing but its own work.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from typing import Any

from streams.c37118.frame import Command, CommandFrame, FrameType, Stamp, encode_command
from streams.errors import ConfigurationError, StreamsError
from streams.gateway.clock import SteadyClock
from streams.gateway.intake import Intake
from streams.gateway.settings import ConnectionSettings, GatewaySettings, Transport
from streams.gateway.status import ConnectionStatus, State

READ_BYTES = 1 << 14
"""Most that one read of a TCP connection takes: the others wait for no more than this."""

VAIN_BYTES = 1 << 14
"""What a TCP connection may bring in vain a tick. If it brings more it is not read until ticks have made up for it: its
bytes wait in the network meanwhile, its peer waits with them, and nobody else does."""

DEBT_BYTES = 8 * VAIN_BYTES
"""What ticks must make up for at most: beyond this it is forgiven."""

SHARE_BYTES = 1 << 20
"""What a TCP connection may bring between two ticks while the log is behind."""

_PERIODS = 3  # a slow stream is not silent before so many of its reporting periods
_CLOSE_S = 1.0
_OPEN = frozenset((State.CONFIGURING, State.STREAMING, State.SILENT))
_ASK = {FrameType.CFG2: Command.SEND_CFG2, FrameType.CFG3: Command.SEND_CFG3}
_OTHER = {FrameType.CFG2: FrameType.CFG3, FrameType.CFG3: FrameType.CFG2}

_log = logging.getLogger(__name__)


class Connection:
    """Keeps up the stream of one peer.

    Parameters
    ----------
    settings
        The peer.
    limits
        What holds for all.
    intake
        Takes what comes.
    clock
        Tells arrivals.
    chance
        Spreads the attempts.
    buffer
        Where TCP connections read into; all of them may share one.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        limits: GatewaySettings,
        intake: Intake,
        *,
        clock: SteadyClock,
        chance: random.Random,
        buffer: bytearray,
    ) -> None:
        self.settings = settings
        self._limits = limits
        self._intake = intake
        self._clock = clock
        self._chance = chance
        self._buffer = buffer
        self._state = State.STOPPED
        self._since_ns = 0
        self._error = ""
        self._told: set[str] = set()
        self._attempt = 0
        self._form = FrameType.CFG3  # what to ask for: the form that this peer last answered with
        self._tcp: asyncio.Transport | None = None
        self._udp: asyncio.DatagramTransport | None = None
        self._senders: frozenset[str] = frozenset()
        self._address: Any = None  # that commands go to as datagrams
        self._local_port = 0
        self._over: asyncio.Future[tuple[str, bool]] | None = None
        self._asked_s: float | None = None  # when the configuration was asked for that has not come
        self._configurations = 0  # that had come by then
        self._due_s = 0.0  # when the other form is asked for
        self._next_ask_s = 0.0
        self._sending = False  # it was told to send
        self._alive = 0
        self._alive_s = 0.0
        self._frames = 0
        self._streaming_s = 0.0
        self._again_s = 0.0
        self._paid_bytes = 0  # of what the intake took in vain
        self._came_bytes = 0  # since the last tick

    def status(self) -> ConnectionStatus:
        """Tell how it stands; any thread may ask.

        Returns
        -------
        ConnectionStatus
            Of this moment.
        """
        intake, force = self._intake, self._intake.in_force
        return ConnectionStatus(
            self.settings.name,
            self._state,
            self._since_ns,
            intake.last_frame_ns,
            intake.id_code,
            force.pmus if force else 0,
            force.rate_hz if force else 0.0,
            intake.counts.copy(),
            intake.header,
            self._local_port,
            self._error,
        )

    async def run(self) -> None:
        """Connect, and again whenever the connection ends, until cancelled. It then leaves nothing open."""
        try:
            while True:
                ended, refused = await self._attempt_once()
                if self._asked_s is not None and not refused:  # perhaps it left because of the question
                    self._form = _OTHER[self._form]
                self._close()
                self._tell(ended)
                self._enter(State.REFUSED if refused else State.BACKING_OFF)
                await asyncio.sleep(self._pause_s())
        finally:
            await self._part()
            self._enter(State.STOPPED)

    def tick(self, now_s: float) -> None:
        """Look at the deadlines.

        Parameters
        ----------
        now_s
            Time of the event loop.
        """
        intake, limits = self._intake, self._limits
        intake.settle(self._clock.now_ns())
        paid_bytes = min(intake.vain_bytes, self._paid_bytes + VAIN_BYTES)
        self._paid_bytes, self._came_bytes = max(paid_bytes, intake.vain_bytes - DEBT_BYTES), 0
        if self._tcp is not None and intake.vain_bytes - self._paid_bytes < VAIN_BYTES:
            self._tcp.resume_reading()
        if self._state not in _OPEN:
            return
        if intake.alive != self._alive:
            self._alive, self._alive_s = intake.alive, now_s
        if self._state is State.STREAMING and now_s - self._streaming_s >= limits.good_s:
            self._attempt = 0
        if self._asked_s is not None and now_s >= self._due_s:
            self._not_answered(now_s)
        elif intake.wanted and self._sending and self._asked_s is None and now_s >= self._next_ask_s:
            self._ask(now_s)
        silent_s = now_s - self._alive_s
        if self._state is State.SILENT:
            if self.settings.transport.commanded and now_s >= self._again_s:
                self._begin(now_s)
        elif silent_s >= self._patience_s():
            self._fall_silent(f"no whole frame for {self._patience_s():g} s", now_s)

    def received(self, data: bytes) -> None:
        """Take bytes of the TCP connection.

        Parameters
        ----------
        data
            As they came.
        """
        intake = self._intake
        if self._over is None or self._over.done():
            return  # it was given up while this was on its way
        try:
            intake.received(data, self._clock.now_ns())
        except StreamsError as error:
            self._end(str(error), refused=True)
        self._came_bytes += len(data)
        in_vain = intake.vain_bytes - self._paid_bytes >= VAIN_BYTES
        if self._tcp is not None and (in_vain or (self._came_bytes > SHARE_BYTES and intake.crowded)):
            self._tcp.pause_reading()
        if self._intake.news or self._state is not State.STREAMING:
            self._react()

    def received_datagram(self, data: bytes, sender: str) -> None:
        """Take a datagram.

        Parameters
        ----------
        data
            Its bytes.
        sender
            Address that it came from.
        """
        now_ns = self._clock.now_ns()
        if self._senders and sender not in self._senders:
            self._intake.refuse_sender(data, now_ns)
            return
        try:
            self._intake.received_datagram(data, now_ns)
        except ConfigurationError as error:
            self._end(str(error), refused=True)
        except StreamsError as error:
            self._tell(str(error))  # one datagram; the next may be better
        if self._intake.news or self._state is not State.STREAMING:
            self._react()

    def lost(self, over: asyncio.Future[tuple[str, bool]], error: Exception | None) -> None:
        """Hear that a connection is gone.

        Parameters
        ----------
        over
            Of that connection: it may be an earlier one.
        error
            Why; None where the peer closed it.
        """
        if not over.done():
            why = f"the connection broke: {error}" if error else "the peer closed the connection"
            over.set_result((why, False))

    async def _attempt_once(self) -> tuple[str, bool]:
        """One connection, or none; why it ended, and whether that was our will."""
        try:
            return await self._live()
        except (OSError, TimeoutError) as error:
            return f"no connection: {error or 'no answer'}", False
        except Exception as error:  # noqa: BLE001 - one broken connection must not end the others
            _log.exception("connection %s: a defect of the gateway", self.settings.name)
            return f"a defect of the gateway: {error}", False

    async def _live(self) -> tuple[str, bool]:
        """One connection, from the first to the last byte; why it ended, and whether that was our will."""
        loop = asyncio.get_running_loop()
        self._enter(State.CONNECTING)
        over: asyncio.Future[tuple[str, bool]] = loop.create_future()
        self._over = over
        self._intake.begin()
        async with asyncio.timeout(self._limits.connect_s):
            if self.settings.transport.over_udp:
                await self._open_udp(loop, over)
            if self.settings.transport.over_tcp:
                await self._open_tcp(loop, over)
        self._intake.counts.connects += 1
        self._begin(loop.time())
        return await asyncio.shield(over)

    async def _open_tcp(self, loop: asyncio.AbstractEventLoop, over: asyncio.Future[tuple[str, bool]]) -> None:
        peer = self.settings
        self._tcp, _ = await loop.create_connection(lambda: _Stream(self, over, self._buffer), peer.host, peer.port)
        sock: socket.socket = self._tcp.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    async def _open_udp(self, loop: asyncio.AbstractEventLoop, over: asyncio.Future[tuple[str, bool]]) -> None:
        peer = self.settings
        local = peer.local_host or "127.0.0.1"
        family = socket.AF_UNSPEC
        if peer.host:
            found = await loop.getaddrinfo(peer.host, peer.port or 1, type=socket.SOCK_DGRAM)
            self._senders = frozenset(str(address[0]) for *_, address in found)
            family, *_, address = found[0]
            if not peer.local_host and peer.transport is not Transport.UDP:
                with socket.socket(family, socket.SOCK_DGRAM) as probe:
                    probe.connect(address)  # sends nothing: only the route is looked up
                    local = probe.getsockname()[0]
            self._address = address
        self._udp, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self, over), local_addr=(local, peer.udp_port), family=family
        )
        self._local_port = int(self._udp.get_extra_info("sockname")[1])

    def _begin(self, now_s: float) -> None:
        """Begin the conversation: quiet, what do you send, send it."""
        self._alive, self._alive_s = self._intake.alive, now_s
        self._frames = self._intake.counts.frames
        self._sending = False
        self._enter(State.CONFIGURING)
        if self.settings.transport.commanded:
            self._command(Command.DATA_OFF)
            self._ask(now_s)

    def _ask(self, now_s: float) -> None:
        """Ask for the configuration."""
        if self._asked_s is None:
            self._asked_s, self._configurations = now_s, self._intake.counts.configurations
        self._due_s = now_s + self._limits.answer_s
        self._next_ask_s = now_s + self._limits.change_s
        self._intake.wanted = False
        self._command(_ASK[self._form])

    def _not_answered(self, now_s: float) -> None:
        """Ask for the other form; give up after a while."""
        asked_s = self._asked_s or 0.0
        if now_s - asked_s >= self._limits.configure_s:
            hint = "" if self._intake.id_code else "; many answer to their own ID code only: set it"
            self._fall_silent(f"asked for its configuration, none came in {self._limits.configure_s:g} s{hint}", now_s)
        elif self._intake.stream.awaited == self._form:
            self._due_s = now_s + self._limits.answer_s  # it is on its way
        else:
            self._form = _OTHER[self._form]
            self._ask(now_s)

    def _react(self) -> None:
        """See what the last bytes changed."""
        intake = self._intake
        intake.news = False
        if intake.trouble and self._asked_s is not None:
            if self._form is FrameType.CFG2:
                self._form = FrameType.CFG3
                self._end(intake.trouble, refused=True)
                return
            self._form, intake.trouble = FrameType.CFG2, ""
            self._ask(asyncio.get_running_loop().time())
        elif intake.trouble:
            self._tell(intake.trouble)
            intake.trouble = ""
        if intake.in_force is not None and intake.counts.configurations != self._configurations:
            self._configurations = intake.counts.configurations
            self._answered(intake.in_force.kind)
        if intake.counts.frames != self._frames and self._state is not State.STREAMING:
            self._streaming_s = asyncio.get_running_loop().time()
            self._error = ""
            self._told.clear()
            self._enter(State.STREAMING)

    def _answered(self, kind: FrameType) -> None:
        self._asked_s = None
        self._form = kind if kind in _OTHER else self._form
        if self.settings.transport.commanded and not self._sending:
            self._sending = True
            self._command(Command.DATA_ON)

    def _patience_s(self) -> float:
        """How long nothing may come."""
        force = self._intake.in_force
        if force is None:
            return self._limits.configure_s
        return max(self._limits.stall_s, _PERIODS / force.rate_hz if force.rate_hz else 0.0)

    def _fall_silent(self, why: str, now_s: float) -> None:
        """Close the connection; of datagrams only begin anew, later."""
        if self.settings.transport.over_tcp:
            self._end(why)
            return
        self._tell(why)
        self._intake.end(self._clock.now_ns())
        self._intake.begin()
        self._asked_s = None
        self._sending = False
        self._alive_s = now_s
        self._frames = self._intake.counts.frames
        self._again_s = now_s + self._pause_s()
        self._enter(State.SILENT)

    def _command(self, command: Command) -> None:
        stamp = Stamp(self._clock.now_ns() // 1_000_000_000)
        frame = encode_command(CommandFrame(self._intake.id_code, stamp, command))
        if self._tcp is not None:
            self._tcp.write(frame)
        elif self._udp is not None:
            self._udp.sendto(frame, self._address)

    def _end(self, why: str, *, refused: bool = False) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result((why, refused))

    def _pause_s(self) -> float:
        """Exponential back-off with full jitter."""
        most_s = min(self._limits.backoff_most_s, self._limits.backoff_least_s * 2.0 ** min(self._attempt, 30))
        self._attempt += 1
        return self._chance.uniform(0.0, most_s)

    def _close(self) -> None:
        """Let go of the connection at once."""
        self._asked_s = None
        if self._tcp is not None:
            self._tcp.abort()
        if self._udp is not None:
            self._udp.abort()
        self._tcp = self._udp = self._over = None
        self._local_port = 0
        self._intake.end(self._clock.now_ns())

    async def _part(self) -> None:
        """Tell the peer to stop, and let the command go out."""
        if (self._tcp or self._udp) and self.settings.transport.commanded:
            self._command(Command.DATA_OFF)
        if self._tcp is not None and not self._tcp.is_closing():
            self._tcp.write_eof()
            if self._over is not None:
                await asyncio.wait((self._over,), timeout=_CLOSE_S)  # the peer closes in its turn
        self._close()

    def _tell(self, error: str) -> None:
        """Log what went wrong, once until data come again."""
        self._error = error
        if error not in self._told and len(self._told) < 8:
            self._told.add(error)
            _log.warning("connection %s (%s:%d): %s", self.settings.name, self.settings.host, self.settings.port, error)

    def _enter(self, state: State) -> None:
        if state is not self._state:
            level = logging.INFO if state is State.STREAMING else logging.DEBUG
            _log.log(level, "connection %s: %s", self.settings.name, state)
            self._state = state
            self._since_ns = self._clock.now_ns()


class _Stream(asyncio.BufferedProtocol):
    """A TCP connection's bytes, to its `Connection`."""

    def __init__(self, connection: Connection, over: asyncio.Future[tuple[str, bool]], buffer: bytearray) -> None:
        self._received = connection.received
        self._lost = connection.lost
        self._view = memoryview(buffer)
        self._over = over

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - as asyncio calls it
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._received(bytes(self._view[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(self._over, exc)


class _Datagrams(asyncio.DatagramProtocol):
    """A port's datagrams, to its `Connection`."""

    def __init__(self, connection: Connection, over: asyncio.Future[tuple[str, bool]]) -> None:
        self._received = connection.received_datagram
        self._lost = connection.lost
        self._over = over

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._received(data, str(addr[0]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(self._over, exc)
