"""A record of Kafka's as an entry of the log, and back.

In: what kafka-python fetched. Out: `streams.log.Entry`; and the headers that a record is written with. The time stands
in a header, since Kafka's own timestamp counts milliseconds and rules retention.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Protocol

from streams.log import Entry

TIME = "t"
"""Header: when it came, UTC nanoseconds, signed, eight bytes, big-endian."""
NOTE = "note"
"""Header: the reason of a dead letter, UTF-8."""

_TIME = struct.Struct(">q")


class Fetched(Protocol):
    """What kafka-python returns of a record, as far as it is used here."""

    @property
    def offset(self) -> int:
        """Its place."""
        ...

    @property
    def timestamp(self) -> int:
        """Kafka's own time of it, UTC milliseconds."""
        ...

    @property
    def key(self) -> bytes | None:
        """Its key."""
        ...

    @property
    def value(self) -> bytes | None:
        """Its value; None removes its key from a compacted topic."""
        ...

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """What stands beside the value."""
        ...


def headers_of(time_ns: int, note: str = "") -> list[tuple[str, bytes]]:
    """Write what stands beside a value.

    Parameters
    ----------
    time_ns
        When it came.
    note
        The reason of a dead letter; else empty.

    Returns
    -------
    list[tuple[str, bytes]]
        Headers.
    """
    headers = [(TIME, _TIME.pack(time_ns))]
    if note:
        headers.append((NOTE, note.encode()))
    return headers


def entry_of(record: Fetched) -> Entry:
    """Read a record. What others wrote without our headers is read as well as it can be.

    Parameters
    ----------
    record
        As fetched.

    Returns
    -------
    Entry
        With Kafka's own time where no header says it; a value that is not there reads as empty.
    """
    time_ns, note = record.timestamp * 1_000_000, ""
    for name, content in record.headers:
        if name == TIME and content is not None and len(content) == _TIME.size:
            (time_ns,) = _TIME.unpack(content)
        elif name == NOTE and content is not None:
            note = content.decode(errors="replace")
    key = b"" if record.key is None else record.key
    return Entry(record.offset, time_ns, key.decode(errors="replace"), record.value or b"", note)
