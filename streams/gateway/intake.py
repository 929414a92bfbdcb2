"""What one connection received becomes records: frames in order, configurations in their place, dead letters.

In: bytes as they came, with their arrival. Out: records to a writer, counts, and the wish for a configuration. It knows
no sockets and no deadlines (`connection`). Data that fit no configuration yet are held until one comes, so that a
configuration that changes in mid-stream costs no frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

from streams.c37118.configuration import LAST_FRAGMENT, ConfigurationFrame, decode_configuration
from streams.c37118.frame import PREFIX_SIZE, FrameType
from streams.errors import ConfigurationError, FrameError, LogFullError
from streams.gateway.framing import Framer
from streams.gateway.settings import GatewaySettings
from streams.gateway.status import Counts, Reason
from streams.gateway.writer import Writer
from streams.log import DEAD_LETTERS, FRAMES, Record

LETTER_BYTES = 1024
"""Of what could not be used, so much is kept."""

MAX_CHANGES = 30
"""Changes of a configuration within a minute beyond which a peer is not listened to: each is decoded, and logged."""

MAX_FRAGMENTS = 1024
"""Frames of one CFG-3, at most."""

_FREE_CHANGES = 3  # a minute: that many cost a peer nothing

_SECOND_NS = 1_000_000_000
_MINUTE_NS = 60 * _SECOND_NS
_PIECE_BYTES = 64  # so many bytes of garbage cost as much work as one more piece
_HELD_BYTES = 256  # what a frame that is held costs beside its bytes, about
_CHANGES = 1 << 2  # STAT bit 10, in the upper byte
_HEADER_CHARACTERS = 1024


@dataclass(frozen=True, slots=True)
class InForce:
    """What the gateway must know of a configuration.

    Attributes
    ----------
    id_code
        ID code of the stream.
    kind
        CFG1, CFG2 or CFG3.
    size
        Bytes of a data frame.
    pmus
        How many there are.
    rate_hz
        Frames a second; 0 where it states none.
    stats
        Where in a data frame the upper byte of each PMU's STAT stands.
    identity
        Its bytes without time stamps and check words: equal where it only repeats.
    """

    id_code: int
    kind: FrameType
    size: int
    pmus: int
    rate_hz: float
    stats: tuple[int, ...]
    identity: bytes


class Claims:
    """Which connection carries the stream of an ID code: one alone, unless the settings share them.

    Parameters
    ----------
    shared
        Let any number of connections carry streams of one ID code.
    reserved
        ID code and name of each connection whose settings name its stream: no other may take that.
    """

    def __init__(self, *, shared: bool, reserved: Iterable[tuple[int, str]] = ()) -> None:
        self._shared = shared
        self._reserved: dict[int, list[str]] = {}
        for id_code, name in reserved:
            self._reserved.setdefault(id_code, []).append(name)
        self._owners: dict[int, str] = {}

    def take(self, id_code: int, name: str) -> str:
        """Claim an ID code.

        Parameters
        ----------
        id_code
            Of a stream.
        name
            Who wants it.

        Returns
        -------
        str
            Who has it now.
        """
        if self._shared:
            return name
        entitled = self._reserved.get(id_code, [name])
        return self._owners.setdefault(id_code, name) if name in entitled else entitled[0]

    def release(self, name: str) -> None:
        """Give up what a connection has claimed.

        Parameters
        ----------
        name
            Of the connection.
        """
        self._owners = {id_code: owner for id_code, owner in self._owners.items() if owner != name}


class Intake:
    """Takes in what one connection receives.

    Parameters
    ----------
    name
        Of the connection.
    id_code
        Of its stream; 0: of the first configuration.
    commanded
        The peer answers when it is asked for a configuration.
    settings
        Limits.
    writer
        Takes the records.
    claims
        Shared by all connections.
    """

    def __init__(
        self, name: str, id_code: int, *, commanded: bool, settings: GatewaySettings, writer: Writer, claims: Claims
    ) -> None:
        self._name = name
        self._set_id_code = id_code
        self._only_id_code = id_code  # frames of any other are refused; 0: nothing of a stream has come yet
        self._commanded = commanded
        self._settings = settings
        self._writer = writer
        self._claims = claims
        self._written = b""  # identity of the configuration that the log has
        self._fragments: list[bytes] = []
        self._fragments_bytes = 0
        self._minute = 0
        self._changes = 0
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._announced = False
        self._sample_ns = 0
        self._letter_second = 0
        self._letters = 0
        self._dropped_since_ns = 0
        self._dropped = (0, 0)
        self.counts = Counts()
        self.stream = Framer(settings.max_garbage_bytes)
        """For the TCP connection."""
        self.datagrams = Framer(settings.max_garbage_bytes)
        self.in_force: InForce | None = None
        self.id_code = id_code
        """Of the stream, as set or as the last configuration said; 0: not known."""
        self.alive = 0
        """Rises with every whole frame of the stream."""
        self.news = False
        """Set when a configuration came or is wanted; the owner takes it back."""
        self.wanted = False
        """A configuration should be asked for."""
        self.trouble = ""
        """Why the newest configuration was refused; empty where it was not."""
        self.vain_bytes = 0
        """Rises with what cost work and brought nothing: bytes, and some for each piece of them."""
        self.last_frame_ns = 0
        self.offered_ns = 0
        """Arrival of the newest frames or configuration given to the log."""
        self.header = ""

    @property
    def key(self) -> str:
        """Of its records in the log."""
        return self._name

    @property
    def crowded(self) -> bool:
        """The log is behind: who sends fast should be read more slowly."""
        return self._writer.behind

    def recall(self, value: bytes) -> None:
        """Learn which configuration the log has of this connection.

        Parameters
        ----------
        value
            Its frames.
        """
        ends = [0]
        while ends[-1] < len(value):
            ends.append(ends[-1] + max(PREFIX_SIZE, int.from_bytes(value[ends[-1] + 2 : ends[-1] + 4], "big")))
        frames = [value[a:b] for a, b in pairwise(ends)]
        try:
            known = _in_force(decode_configuration(frames), _identity(frames))
        except FrameError:
            return  # not one of ours: it is written anew when it comes
        self._written = known.identity
        if self._set_id_code in (0, known.id_code):
            self.in_force, self.id_code = known, known.id_code

    def begin(self) -> None:
        """Begin anew, as with a new connection. A peer that can be asked is asked what it sends."""
        self.stream.restart()
        self._fragments.clear()
        self._fragments_bytes = 0
        self.wanted, self.trouble, self._announced = False, "", False
        self._only_id_code = self._set_id_code
        known = self.in_force
        if known and (self._commanded or self._claims.take(known.id_code, self._name) != self._name):
            self.in_force = None
        self._expect()

    def end(self, now_ns: int) -> None:
        """Account for what is held, as at the end of a connection.

        Parameters
        ----------
        now_ns
            The time.
        """
        for piece in self.stream.feed(b"", final=True):
            self._refuse(piece.reason or Reason.TRUNCATED, piece.value, now_ns)
        reason = Reason.SIZE if self.in_force else Reason.NO_CONFIGURATION
        for frame in (*self._held, *self._fragments):
            self._refuse(reason if frame[1] >> 4 == FrameType.DATA else Reason.FRAGMENT, frame, now_ns)
        self._held.clear()
        self._held_bytes = 0
        self._fragments.clear()
        self._fragments_bytes = 0
        self._claims.release(self._name)
        self.settle(now_ns)

    def received(self, data: bytes, now_ns: int) -> None:
        """Take bytes of the TCP connection.

        A `FrameError` where the peer is not to be listened to any longer: it sends no frames, or a stream that another
        connection has. A `LogFullError` where not even a configuration finds room.

        Parameters
        ----------
        data
            As they came.
        now_ns
            When they came.
        """
        whole = self.stream.match(data)
        if whole:
            self._log(whole, now_ns)
        else:
            self._sort(self.stream, data, now_ns, final=False)

    def received_datagram(self, data: bytes, now_ns: int) -> None:
        """Take a datagram: whole frames, as a rule one. Errors are those of `received`.

        Parameters
        ----------
        data
            Its bytes.
        now_ns
            When it came.
        """
        whole = self.datagrams.match(data)
        if whole:
            self._log(whole, now_ns)
        else:
            self._sort(self.datagrams, data, now_ns, final=True)

    def refuse_sender(self, data: bytes, now_ns: int) -> None:
        """Account for a datagram of somebody else.

        Parameters
        ----------
        data
            Its bytes.
        now_ns
            When it came.
        """
        self._refuse(Reason.SENDER, data, now_ns)

    def settle(self, now_ns: int) -> None:
        """Say in the log what was dropped, as soon as it has room again.

        Parameters
        ----------
        now_ns
            The time.
        """
        frames, size = self._dropped
        if not frames:
            return
        text = f"{frames} frames, {size} bytes, from {self._dropped_since_ns} to {now_ns} ns"
        if self._writer.offer(DEAD_LETTERS, Record(now_ns, self._name, text.encode(), Reason.DROPPED_FULL)):
            self.counts.letters += 1
            self._dropped = (0, 0)

    def _log(self, frames: bytes, now_ns: int) -> None:
        """Hand whole data frames of the configuration in force to the writer."""
        force, counts = self.in_force, self.counts
        if force is None:
            return
        size = len(frames)
        count = size // force.size
        self.alive += count
        if self._dropped[0]:
            self.settle(now_ns)
        if self._writer.offer(FRAMES, Record(now_ns, self._name, frames)):
            counts.frames += count
            counts.frames_bytes += size
            self.last_frame_ns = self.offered_ns = now_ns
        else:
            counts.refused[Reason.DROPPED_FULL] += count
            counts.dropped_frames += count
            counts.dropped_bytes += size
            self._dropped_since_ns = self._dropped_since_ns if self._dropped[0] else now_ns
            self._dropped = (self._dropped[0] + count, self._dropped[1] + size)
        if now_ns - self._sample_ns >= _SECOND_NS or now_ns < self._sample_ns:
            self._sample_ns = now_ns
            self._look(frames[-force.size :], force)

    def _look(self, frame: bytes, force: InForce) -> None:
        """See whether a PMU announces a change: then, and again when it is over, ask what is sent."""
        announced = any(frame[at] & _CHANGES for at in force.stats)
        if announced or self._announced:
            self.wanted = self.news = True
        self._announced = announced

    def _sort(self, framer: Framer, data: bytes, now_ns: int, *, final: bool) -> None:
        """Take frame by frame: the way for everything but plain data."""
        good: list[bytes] = []
        try:
            for value, reason in framer.feed(data, final=final):
                kind = value[1] >> 4 if reason is None else -1
                if reason is not None:
                    self._refuse(reason, value, now_ns)
                elif kind == FrameType.COMMAND:
                    self.counts.commands += 1
                    self.vain_bytes += len(value) + _PIECE_BYTES
                elif self._only_id_code and int.from_bytes(value[4:6], "big") != self._only_id_code:
                    self._refuse(Reason.ID_CODE, value, now_ns)
                elif kind == FrameType.HEADER:
                    self.vain_bytes += len(value) + _PIECE_BYTES
                    self.header = value[PREFIX_SIZE:-2].decode("latin-1")[:_HEADER_CHARACTERS]
                elif kind == FrameType.DATA:
                    if self._fits(value):
                        good.append(value)
                    else:
                        self._hold(value, now_ns)
                elif parts := self._collect(value, now_ns):
                    self._log_all(good, now_ns)
                    self._configure(parts, now_ns)
        finally:
            self._log_all(good, now_ns)

    def _fits(self, frame: bytes) -> bool:
        """Whether the configuration in force describes a data frame."""
        force = self.in_force
        if force is None or len(frame) != force.size or int.from_bytes(frame[4:6], "big") != force.id_code:
            return False
        self._only_id_code = force.id_code
        return True

    def _log_all(self, frames: list[bytes], now_ns: int) -> None:
        if frames:
            self._log(b"".join(frames), now_ns)
            frames.clear()

    def _hold(self, frame: bytes, now_ns: int) -> None:
        """Keep a data frame until the configuration comes that describes it."""
        self.alive += 1
        self._held.append(frame)
        self._held_bytes += len(frame) + _HELD_BYTES
        self.wanted = self.news = True
        while self._held_bytes > self._settings.held_bytes:
            oldest = self._held.popleft()
            self._held_bytes -= len(oldest) + _HELD_BYTES
            self._refuse(Reason.SIZE if self.in_force else Reason.NO_CONFIGURATION, oldest, now_ns)

    def _collect(self, frame: bytes, now_ns: int) -> list[bytes]:
        """All frames of a configuration, or nothing while a continued CFG-3 has not ended."""
        self.alive += 1
        index = 0
        if frame[1] >> 4 == FrameType.CFG3:
            index = int.from_bytes(frame[PREFIX_SIZE : PREFIX_SIZE + 2], "big")
        if index == 0:
            return [frame]
        if index == 1:
            self._drop_fragments(Reason.FRAGMENT, now_ns)
        due = len(self._fragments) + 1
        self._fragments.append(frame)
        self._fragments_bytes += len(frame)
        if index != due and not (index == LAST_FRAGMENT and due > 1):
            self._drop_fragments(Reason.FRAGMENT, now_ns)
        elif self._fragments_bytes > self._settings.max_configuration_bytes or due > MAX_FRAGMENTS:
            self._drop_fragments(Reason.OVERSIZE, now_ns)
            most = f"{self._settings.max_configuration_bytes} bytes or {MAX_FRAGMENTS} frames"
            self.trouble = f"its configuration exceeds {most}"
            self.news = True
        elif index == LAST_FRAGMENT:
            parts, self._fragments, self._fragments_bytes = self._fragments, [], 0
            return parts
        return []

    def _drop_fragments(self, reason: Reason, now_ns: int) -> None:
        for frame in self._fragments:
            self._refuse(reason, frame, now_ns)
        self._fragments.clear()
        self._fragments_bytes = 0

    def _configure(self, frames: list[bytes], now_ns: int) -> None:
        """Put a configuration into force, and log it unless the log has it."""
        kind = frames[0][1] >> 4
        if kind == FrameType.CFG1 and self.in_force is not None and self.in_force.kind is not FrameType.CFG1:
            return  # what could be sent; what is sent is known
        identity = _identity(frames)
        known = self.in_force
        self.news = True
        if known is None or known.identity != identity:
            try:
                known = self._decode(frames, identity)
            except FrameError as error:
                oversize = isinstance(error, _OversizeError)
                self._refuse(Reason.OVERSIZE if oversize else Reason.CONFIGURATION, b"".join(frames), now_ns)
                self.trouble = f"its configuration is refused: {error}"
                return
            owner = self._claims.take(known.id_code, self._name)
            if owner != self._name:
                self._refuse(Reason.ID_CODE, b"".join(frames), now_ns)
                raise ConfigurationError(
                    f"ID code {known.id_code} is that of {owner!r}: give the stream its own, or allow shared ID codes"
                )
            self._moderate(frames, now_ns)
        if identity != self._written:
            if not self._writer.offer_configuration(Record(now_ns, self._name, b"".join(frames))):
                raise LogFullError("the log has no room, not even for a configuration: see what fills its disk")
            self.offered_ns = now_ns
            self.counts.configuration_changes += bool(self._written)
            self._written = identity
        self.counts.configurations += 1
        self.trouble, self.wanted = "", False
        self._only_id_code = self.id_code = known.id_code
        if known is not self.in_force:
            self.in_force = known
            self._expect()
        self._release(known, now_ns)

    def _moderate(self, frames: list[bytes], now_ns: int) -> None:
        """Refuse a configuration that changes all the time."""
        minute = now_ns // _MINUTE_NS
        if minute != self._minute:
            self._minute, self._changes = minute, 0
        self._changes += 1
        if self._changes > _FREE_CHANGES:
            self.vain_bytes += sum(map(len, frames))
        if self._changes > MAX_CHANGES:
            self._refuse(Reason.CONFIGURATION, b"".join(frames), now_ns)
            raise ConfigurationError(f"its configuration changed more than {MAX_CHANGES} times within a minute")

    def _decode(self, frames: list[bytes], identity: bytes) -> InForce:
        """Read a configuration, after a look at whether it is worth it."""
        at = PREFIX_SIZE + (2 if frames[0][1] >> 4 == FrameType.CFG3 else 0) + 4
        pmus = int.from_bytes(frames[0][at : at + 2], "big")
        if pmus > self._settings.max_pmus:
            raise _OversizeError(f"NUM_PMU says {pmus}, more than the {self._settings.max_pmus} that are allowed")
        return _in_force(decode_configuration(frames), identity)

    def _expect(self) -> None:
        """Tell the framers what data frames are like."""
        for framer in (self.stream, self.datagrams):
            if self.in_force is None:
                framer.expect(0, 0)
            else:
                framer.expect(self.in_force.id_code, self.in_force.size)

    def _release(self, force: InForce, now_ns: int) -> None:
        """Log what was held for this configuration. It stands in the log at the time of its configuration."""
        good: list[bytes] = []
        for frame in self._held:
            if int.from_bytes(frame[4:6], "big") != force.id_code:
                self._refuse(Reason.ID_CODE, frame, now_ns)
            elif len(frame) != force.size:
                self._refuse(Reason.SIZE, frame, now_ns)
            else:
                good.append(frame)
        self._held.clear()
        self._held_bytes = 0
        self._log_all(good, now_ns)

    def _refuse(self, reason: Reason, value: bytes, now_ns: int) -> None:
        """Count what is not used, and keep some of it."""
        self.counts.refused[reason] += 1
        self.counts.refused_bytes += len(value)
        self.vain_bytes += len(value) + _PIECE_BYTES
        second = now_ns // _SECOND_NS
        if second != self._letter_second:
            self._letter_second, self._letters = second, 0
        if self._letters < self._settings.letters_hz:
            self._letters += 1
            letter = Record(now_ns, self._name, value[:LETTER_BYTES], reason)
            self.counts.letters += self._writer.offer(DEAD_LETTERS, letter)


class _OversizeError(ConfigurationError):
    """A configuration beyond the limits."""


def _identity(frames: list[bytes]) -> bytes:
    return b"".join(frame[:6] + frame[PREFIX_SIZE:-2] for frame in frames)


def _in_force(configuration: ConfigurationFrame, identity: bytes) -> InForce:
    stats = tuple(accumulate((p.size for p in configuration.pmus[:-1]), initial=PREFIX_SIZE))
    return InForce(
        configuration.id_code,
        configuration.kind,
        configuration.data_size,
        len(configuration.pmus),
        configuration.rate_hz,
        stats,
        identity,
    )
