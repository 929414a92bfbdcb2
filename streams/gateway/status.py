"""What a gateway tells of itself: the state of each connection and what was counted.

In: nothing. Out: plain dataclasses for a screen or metrics. Nothing is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """What a connection is doing."""

    CONNECTING = "connecting"
    CONFIGURING = "configuring"
    """Connected; no data yet that a configuration describes."""
    STREAMING = "streaming"
    SILENT = "silent"
    """Datagrams are waited for, none comes."""
    BACKING_OFF = "backing-off"
    """Lost, or never had; it will be tried again."""
    REFUSED = "refused"
    """As backing off, but because of what the peer sent."""
    STOPPED = "stopped"


class Reason(StrEnum):
    """Why something was not used: the `note` of its dead letter."""

    GARBAGE = "garbage"
    """Bytes between frames."""
    CRC = "crc"
    """A frame whose check word does not fit."""
    TRUNCATED = "truncated"
    """The datagram or connection ended in the middle of a frame."""
    ID_CODE = "id_code"
    """An intact frame of another stream than this connection's."""
    SIZE = "size"
    """A data frame that does not fit the configuration, and no new configuration came."""
    NO_CONFIGURATION = "no_configuration"
    """A data frame before any configuration, and none came in time."""
    CONFIGURATION = "configuration"
    """A configuration that contradicts itself."""
    FRAGMENT = "fragment"
    """Part of a CFG-3 whose other parts are missing."""
    OVERSIZE = "oversize"
    """A configuration beyond the limits."""
    SENDER = "sender"
    """A datagram of somebody else."""
    DROPPED_FULL = "dropped_full"
    """Whole frames that came while the log had no room; the letter says how many."""


@dataclass(slots=True)
class Counts:
    """What a connection has seen since the gateway started.

    Attributes
    ----------
    frames
        Data frames given to the log.
    frames_bytes
        Their bytes.
    configurations
        Usable configurations, repeated ones too.
    configuration_changes
        Configurations that differ from the one before.
    commands
        Command frames: a peer has no business sending them.
    refused
        Frames and runs of bytes that were not used, by reason.
    refused_bytes
        Their bytes.
    letters
        Dead letters given to the log: fewer than were refused, where many came at once.
    connects
        Times a connection came about.
    dropped_frames
        Data frames lost because the log had no room.
    dropped_bytes
        Their bytes.
    """

    frames: int = 0
    frames_bytes: int = 0
    configurations: int = 0
    configuration_changes: int = 0
    commands: int = 0
    refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, Reason), 0))
    refused_bytes: int = 0
    letters: int = 0
    connects: int = 0
    dropped_frames: int = 0
    dropped_bytes: int = 0

    def copy(self) -> Counts:
        """Take what is counted at this moment.

        Returns
        -------
        Counts
            Another object.
        """
        return Counts(
            self.frames,
            self.frames_bytes,
            self.configurations,
            self.configuration_changes,
            self.commands,
            self.refused.copy(),
            self.refused_bytes,
            self.letters,
            self.connects,
            self.dropped_frames,
            self.dropped_bytes,
        )

    def add(self, other: Counts) -> None:
        """Add another connection's counts to these.

        Parameters
        ----------
        other
            Left as it is.
        """
        self.frames += other.frames
        self.frames_bytes += other.frames_bytes
        self.configurations += other.configurations
        self.configuration_changes += other.configuration_changes
        self.commands += other.commands
        for reason, count in other.refused.items():
            self.refused[reason] += count
        self.refused_bytes += other.refused_bytes
        self.letters += other.letters
        self.connects += other.connects
        self.dropped_frames += other.dropped_frames
        self.dropped_bytes += other.dropped_bytes


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """One connection at one moment.

    Attributes
    ----------
    name
        As set.
    state
        What it is doing.
    since_ns
        Since when, by the gateway's clock.
    last_frame_ns
        Arrival of the newest data frames given to the log; 0: none yet.
    id_code
        ID code of the stream; 0: not known yet.
    pmus
        PMUs of the configuration in force; 0: none is.
    rate_hz
        Frames a second by that configuration.
    counts
        A copy.
    header
        Text of the newest header frame.
    local_port
        UDP port that data are received at; 0: none.
    error
        What ended the last attempt or connection; empty while data come.
    """

    name: str
    state: State
    since_ns: int
    last_frame_ns: int
    id_code: int
    pmus: int
    rate_hz: float
    counts: Counts
    header: str
    local_port: int
    error: str


@dataclass(frozen=True, slots=True)
class Totals:
    """All connections together.

    Attributes
    ----------
    connections
        How many there are.
    streaming
        How many of them bring data.
    counts
        Their sums.
    clock_steps
        Jumps of the wall clock.
    gathered_bytes
        Waiting to be written.
    written_records
        In the log.
    written_bytes
        Their values.
    failed_writes
        Attempts that the log refused.
    lost_records
        Gathered, but not written when the time to stop was up.
    """

    connections: int
    streaming: int
    counts: Counts
    clock_steps: int
    gathered_bytes: int
    written_records: int
    written_bytes: int
    failed_writes: int
    lost_records: int
