"""What a receiver asks, and what it is answered.

In: bytes as a connection delivers them. Out: whole command frames, and the configuration and header frames to answer
with, stamped now. It sends nothing.

References
----------
IEEE Std C37.118.2-2011, clauses 6.4 to 6.7.
"""

from __future__ import annotations

import re
from dataclasses import replace

from gridsense.simulator.script import ServedStream
from streams.c37118.configuration import ConfigurationFrame, encode_configuration
from streams.c37118.frame import (
    MIN_SIZE,
    PREFIX_SIZE,
    FrameType,
    HeaderFrame,
    Stamp,
    crc_fits,
    encode_header,
    read_prefix,
    wrap,
)
from streams.errors import ConfigurationError

GARBAGE_BYTES = 1 << 16
"""Bytes without a command among them after which a connection is hopeless."""

_START = re.compile(rb"\xaa(?:\Z|[\x40-\x4f](?:\Z|[\x01-\xff]|\x00(?:\Z|[\x10-\xff])))")
"""Where a command may start: sync byte, type, a size of 16 at least; or what is there of them."""

_C37118_2011 = 2
_PLAIN_SCALE = 1.0


class CommandFinder:
    """Finds whole, intact command frames among whatever a receiver sends. It holds at most one frame's bytes."""

    def __init__(self) -> None:
        self.garbage = 0
        """Bytes that belonged to no command."""
        self.since_command = 0
        """Of these, those that came after the last command."""
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes in.

        Parameters
        ----------
        data
            The next bytes of the connection.

        Returns
        -------
        list[bytes]
            The command frames that they completed.
        """
        data = self._rest + data
        found: list[bytes] = []
        at = 0
        while start := _START.search(data, at):
            self._skip(start.start() - at)
            at = start.start()
            size = int.from_bytes(data[at + 2 : at + 4], "big")
            if len(data) < at + max(size, MIN_SIZE):
                break
            if crc_fits(data[at : at + size]):
                found.append(data[at : at + size])
                self.since_command = 0
                at += size
            else:
                self._skip(1)
                at += 1
        else:
            self._skip(len(data) - at)
            at = len(data)
        self._rest = data[at:]
        return found

    @property
    def hopeless(self) -> bool:
        """Whether too much came that was no command."""
        return self.since_command + len(self._rest) > GARBAGE_BYTES + PREFIX_SIZE

    def _skip(self, count: int) -> None:
        self.garbage += count
        self.since_command += count


def now(time_ns: int, time_base: int) -> Stamp:
    """Say what time it is, as a frame does.

    Parameters
    ----------
    time_ns
        UTC nanoseconds.
    time_base
        Counts of FRACSEC a second.

    Returns
    -------
    Stamp
        The count that has begun, time quality unknown to nobody: 0.
    """
    soc, rest = divmod(time_ns, 1_000_000_000)
    return Stamp(soc & 0xFFFFFFFF, rest * time_base // 1_000_000_000)


class Answers:
    """What one stream says of itself; encoded once, stamped each time.

    Parameters
    ----------
    stream
        Which.
    """

    def __init__(self, stream: ServedStream) -> None:
        self._stream = stream
        self._said: dict[FrameType, list[bytes]] = {}

    def configuration(self, time_ns: int, kind: FrameType | None = None) -> list[bytes]:
        """Write the configuration.

        A CFG-1 or CFG-2 that cannot say what the stream holds (long names, scales of CFG-3) is answered with the CFG-3:
        rather another frame than none or a wrong one. A stream of the 2005 edition knows no CFG-3.

        Parameters
        ----------
        time_ns
            Now.
        kind
            What was asked for; None for the stream's own.

        Returns
        -------
        list[bytes]
            Its frames; none where the stream has no such configuration.
        """
        configuration = self._stream.configuration
        own = FrameType.CFG2 if configuration.kind is FrameType.CFG1 else configuration.kind
        kind = kind or own
        if kind not in self._said:
            self._said[kind] = _said(configuration, kind)
        stamp = now(time_ns, configuration.time_base)
        return [_stamped(frame, stamp) for frame in self._said[kind]]

    def header(self, time_ns: int) -> bytes:
        """Write the header frame.

        Parameters
        ----------
        time_ns
            Now.

        Returns
        -------
        bytes
            Text for people: what serves, and what.
        """
        configuration = self._stream.configuration
        count = len(configuration.pmus)
        text = f"GridSense simulate-pmu: {self._stream.name}, {count} PMU{'s' * (count > 1)}, recorded"
        stamp = now(time_ns, configuration.time_base)
        octets = text.encode("ascii", errors="replace")
        return encode_header(HeaderFrame(configuration.id_code, stamp, octets, configuration.version))


def _said(configuration: ConfigurationFrame, kind: FrameType) -> list[bytes]:
    """Say a configuration as another kind, so that its data mean the same."""
    if kind is FrameType.CFG3:
        if configuration.version < _C37118_2011:
            return []
        if configuration.kind is not FrameType.CFG3:
            configuration = _with_scales(configuration)
        return encode_configuration(replace(configuration, kind=kind))
    try:
        if configuration.kind is FrameType.CFG3 and _needs_cfg3(configuration):
            return encode_configuration(configuration)
        return encode_configuration(replace(configuration, kind=kind))
    except ConfigurationError:
        return encode_configuration(replace(configuration, kind=FrameType.CFG3))


def _with_scales(configuration: ConfigurationFrame) -> ConfigurationFrame:
    """Write down as CFG-3 how CFG-2's data are read: its scales are for integer phasors alone."""
    pmus = tuple(
        replace(
            pmu,
            phasors=tuple(replace(p, scale=_PLAIN_SCALE if pmu.float_phasors else p.scale) for p in pmu.phasors),
            analogs=tuple(replace(a, scale=_PLAIN_SCALE, offset=0.0) for a in pmu.analogs),
        )
        for pmu in configuration.pmus
    )
    return replace(configuration, pmus=pmus)


def _needs_cfg3(configuration: ConfigurationFrame) -> bool:
    """Whether a receiver of its CFG-2 would read other values."""
    return any(
        any(p.angle_offset_rad or (pmu.float_phasors and p.scale != _PLAIN_SCALE) for p in pmu.phasors)
        or any(a.offset or a.scale != _PLAIN_SCALE for a in pmu.analogs)
        for pmu in configuration.pmus
    )


def _stamped(frame: bytes, stamp: Stamp) -> bytes:
    """Give a frame another time."""
    prefix = read_prefix(frame)
    return wrap(prefix.frame_type, prefix.id_code, stamp, frame[PREFIX_SIZE:-2], prefix.version)
