"""The log port: records in, the same records out, in one order, for any number of readers that come when they like.

In: what a connection received, as it came. Out: entries by offset, from any offset that is still kept. The log is the
only clock of what reads it: time passes for a reader when an entry says so, which makes every reading of the same
entries give the same result. Adapters: `streams.sqlite_log`; Kafka passes the same contract tests. It decodes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

FRAMES = "pmu.frames"
"""Whole C37.118 frames as they came: data, and each configuration before the first data that it describes."""
CONFIGURATIONS = "pmu.config"
"""Compacted: the newest configuration of each key, for readers that begin after it was sent."""
DEAD_LETTERS = "pmu.deadletter"
"""What could not be used, with the reason in `note`."""
SCORES = "pmu.scores"
"""What the scorers say of each PMU at each tick."""
PREDICTIONS = "pmu.predictions"
"""What the network expects of each channel."""
REGIONAL = "pmu.regional"
"""What each region says of itself, for who joins regions: its events of the grid, and how far it has come."""
EVENTS = "pmu.events"
"""CloudEvents, by id: each as it was raised, and again as it was when it had ended."""
STATE = "pmu.state"
"""Compacted: pieces of snapshots."""
JOIN_STATE = "pmu.join.state"
"""Compacted: the same, of who joins regions."""
STATUS = "pmu.status"
"""Compacted: what each service says of itself."""

LEASE = "pmu.lease"
"""One partition, without records: which gateway of a pair writes, and how far it has come, are offsets of it."""

READ_BYTES = 1 << 22
"""Bytes of values that one read returns, as a rule."""


def region_of(key: str) -> str:
    """Name the region of a connection: what is scored together.

    Parameters
    ----------
    key
        Of a record: ``region/name``, or ``name`` alone.

    Returns
    -------
    str
        Empty where it has none.
    """
    region, slash, _ = key.partition("/")
    return region if slash else ""


def is_mark(key: str, value: bytes) -> bool:
    """Tell a record that only says what time it is.

    Parameters
    ----------
    key
        Of a record.
    value
        Its value.

    Returns
    -------
    bool
        True where the value is empty, and the key names nobody: it is empty, or a region with a slash alone.
    """
    return not value and (not key or key.endswith("/"))


class Record(NamedTuple):
    """What is written.

    Attributes
    ----------
    time_ns
        When it came, UTC nanoseconds by the writer's clock.
    key
        Who it is of: the name of a connection, behind that of its region and a slash where it has one. With an empty
        value and no name it only says what time it is, for that region.
    value
        Bytes, untouched: whole frames, one or several after another.
    note
        The reason of a dead letter; else empty.
    """

    time_ns: int
    key: str
    value: bytes
    note: str = ""


class Entry(NamedTuple):
    """What is read: a record and its place.

    Attributes
    ----------
    offset
        Above that of every entry before it. Numbers may be left out.
    time_ns
        As written.
    key
        As written.
    value
        As written.
    note
        As written.
    """

    offset: int
    time_ns: int
    key: str
    value: bytes
    note: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """Entries that were written and cannot be read any more.

    Attributes
    ----------
    first, last
        Offsets between which they stood, both included.
    reason
        ``expired`` (retention took them before they were read) or ``damaged``.
    """

    first: int
    last: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What one read returned.

    Attributes
    ----------
    entries
        In order.
    next
        Offset to go on from; the one that was asked for where nothing is there yet.
    lost
        What is missing between the offset that was asked for and `next`.
    """

    entries: list[Entry]
    next: int
    lost: tuple[Lost, ...] = ()


@dataclass(frozen=True, slots=True)
class Extent:
    """What a topic holds.

    Attributes
    ----------
    first
        Offset of the oldest entry kept; equal to `next` where there is none.
    next
        Offset that the next entry will have.
    records
        Entries kept.
    size
        Bytes of their values.
    oldest_ns, newest_ns
        Their times; 0 where there is none.
    """

    first: int
    next: int
    records: int
    size: int
    oldest_ns: int
    newest_ns: int


@dataclass(frozen=True, slots=True)
class Retention:
    """How much is kept of a topic that is not compacted.

    Attributes
    ----------
    age_s
        Entries older than this, against the newest, may go; 0: whatever their age.
    size
        Bytes of values above which the oldest go; 0: however many.
    """

    age_s: float = 0.0
    size: int = 0


class Log(Protocol):
    """Topics of records, each in one order. Safe to share between processes; one object belongs to one thread.

    Every method raises `streams.errors.LogError` where the log cannot be read or written; `LogFullError`, one of them,
    where there is no room: nothing of the call was written then, and it may be tried again.
    """

    def append(self, topic: str, records: Sequence[Record]) -> int:
        """Write records, all or none; they are safe against a crash of the process on return.

        Parameters
        ----------
        topic
            Made if there is none.
        records
            In order. In a compacted topic a record replaces what its key had.

        Returns
        -------
        int
            Offset after the last.
        """
        ...

    def read(self, topic: str, offset: int, limit: int = READ_BYTES) -> Reading:
        """Read what stands at an offset and after it, without waiting.

        Parameters
        ----------
        topic
            Any; one that nobody wrote to is empty.
        offset
            Where to begin; 0 is the beginning.
        limit
            Bytes of values to stop after; at least one entry is returned where there is one.

        Returns
        -------
        Reading
            Entries, perhaps none.
        """
        ...

    def latest(self, topic: str) -> dict[str, Entry]:
        """Read the newest entry of each key of a compacted topic.

        Parameters
        ----------
        topic
            A compacted one: `CONFIGURATIONS`.

        Returns
        -------
        dict[str, Entry]
            By key.
        """
        ...

    def extent(self, topic: str) -> Extent:
        """Say what a topic holds.

        Parameters
        ----------
        topic
            Any.

        Returns
        -------
        Extent
            Of this moment.
        """
        ...

    def commit(self, topic: str, reader: str, offset: int) -> None:
        """Remember how far a reader has come. Retention looks at it not, monitoring does.

        Parameters
        ----------
        topic
            What it reads.
        reader
            Its name.
        offset
            Where it will go on.
        """
        ...

    def position(self, topic: str, reader: str) -> int | None:
        """Say how far a reader has come.

        Parameters
        ----------
        topic
            What it reads.
        reader
            Its name.

        Returns
        -------
        int | None
            What it last committed; None where it never did.
        """
        ...

    def retain(self, topic: str, retention: Retention) -> int:
        """Remove the oldest entries beyond a retention. Offsets are never given out again.

        Parameters
        ----------
        topic
            Any that is not compacted.
        retention
            How much to keep.

        Returns
        -------
        int
            How many entries went.
        """
        ...

    def close(self) -> None:
        """Let go of the log. What was appended is kept."""
        ...
