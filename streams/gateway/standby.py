"""What a gateway received and another one, which wrote until now, did not write: said when it takes over.

In: the tail of the log, and records that wait to be written. Out: those of them, or parts of them, that the log lacks.
Arrival times of two gateways differ, so frames are known by their bytes alone. It reads and writes no log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from streams.c37118.frame import PREFIX_SIZE, FrameType
from streams.log import FRAMES, Entry, Record


class Lacking:
    """Takes out of records what the log has.

    Parameters
    ----------
    tail
        Of `FRAMES`: all entries of the connections concerned since before the oldest record that is asked about.
    covered_ns
        Arrival of the newest record that the other gateway wrote: it wrote in order.
    margin_ns
        By how much the clocks and the networks of the two may differ.
    """

    def __init__(self, tail: Iterable[Entry], covered_ns: int, margin_ns: int) -> None:
        self._covered_ns = covered_ns
        self._margin_ns = margin_ns
        self._there = {hash((entry.key, frame)) for entry in tail for frame in _frames(entry.value)}

    def of(self, topic: str, record: Record) -> Record | None:
        """Say what of a record the log lacks.

        Parameters
        ----------
        topic
            Where it is to stand.
        record
            What waits to be written.

        Returns
        -------
        Record | None
            The record, or one with some of its frames; None where nothing is lacking. A configuration about which there
            is doubt is written again, which changes nothing.
        """
        frames = list(_frames(record.value))
        if topic == FRAMES and frames and frames[0][1] >> 4 == FrameType.DATA:
            lacking = [frame for frame in frames if hash((record.key, frame)) not in self._there]
            return record._replace(value=b"".join(lacking)) if lacking else None
        configuration = bool(record.value) and not record.note
        return record if record.time_ns > self._covered_ns - configuration * self._margin_ns else None


def _frames(value: bytes) -> Iterator[bytes]:
    """Cut a value into its frames; what is none is one piece."""
    at = 0
    while at < len(value):
        size = max(PREFIX_SIZE, int.from_bytes(value[at + 2 : at + 4], "big"))
        yield value[at : at + size]
        at += size
