"""A recording in, what its concentrators would put on the wire, and what a receiver makes of those bytes, out.

Each source becomes one C37.118 stream: its CFG-2 frame, then data frames in floating point, cut into segments as TCP
would. A parser of its own receives each stream. It keeps no time: whoever asks says up to which moment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gridsense.encoding import made_encoder
from gridsense.errors import InputError
from streams.archives import read_parquet, take
from streams.block import FrameBatch
from streams.c37118.configuration import encode_configuration
from streams.c37118.stream import Counts, StreamParser

SEGMENT = 1460
"""Payload bytes of a TCP segment on Ethernet: frames end where they end, not where segments do."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Everything that the sources of one grid sent.

    Attributes
    ----------
    batches
        One a source, frames in order of arrival.
    begin_ns, end_ns
        First and last arrival.
    """

    batches: tuple[FrameBatch, ...]
    begin_ns: int
    end_ns: int

    @property
    def length_s(self) -> float:
        """How long it lasts."""
        return (self.end_ns - self.begin_ns) / 1e9


def read_recording(path: Path) -> Recording:
    """Read a recording as a whole.

    Parameters
    ----------
    path
        A Parquet archive.

    Returns
    -------
    Recording
        All its frames.

    Raises
    ------
    InputError
        If there are none.
    """
    parts: dict[str, list[FrameBatch]] = {}
    for batch in read_parquet(path, rows=1 << 20):
        if len(batch.time_ns):
            parts.setdefault(batch.table.pmus[0].source, []).append(batch)
    batches = tuple(_joined(batches) for batches in parts.values())
    if not batches:
        raise InputError(f"{path}: holds no frame; make the bundled streams anew with scripts/simulate_grid.py")
    arrivals = np.concatenate([b.arrival_ns for b in batches])
    return Recording(batches, int(arrivals.min()), int(arrivals.max()))


def _joined(batches: list[FrameBatch]) -> FrameBatch:
    """Put the batches of one source behind each other."""
    if len(batches) == 1:
        return batches[0]
    return replace(
        batches[0],
        time_ns=np.concatenate([b.time_ns for b in batches]),
        time_flags=np.concatenate([b.time_flags for b in batches]),
        stat=np.concatenate([b.stat for b in batches]),
        values=np.concatenate([b.values for b in batches]),
        arrival_ns=np.concatenate([b.arrival_ns for b in batches]),
    )


class Sender:
    """One concentrator.

    Parameters
    ----------
    batch
        All that it will send.
    id_code
        Its ID code.
    """

    def __init__(self, batch: FrameBatch, id_code: int) -> None:
        self._batch = batch
        self._encoder = made_encoder(batch.table, batch.rate_hz, id_code)
        self._due_ns: NDArray[np.int64] = np.maximum.accumulate(batch.arrival_ns)
        self._sent = 0
        self.frames = 0

    def send(self, until_ns: int) -> bytes:
        """Send what is due.

        Parameters
        ----------
        until_ns
            A moment.

        Returns
        -------
        bytes
            The configuration first, then every frame that was due before that moment and has not been sent.
        """
        head = b"" if self.frames else b"".join(encode_configuration(self._encoder.configuration))
        stop = int(np.searchsorted(self._due_ns, until_ns))
        data = self._encoder.encode(take(self._batch, slice(self._sent, stop)))
        self.frames += stop - self._sent + bool(head)
        self._sent = stop
        return head + data


class Wire:
    """Concentrators and the receiver at the other end of their connections.

    Parameters
    ----------
    recording
        What the concentrators send.
    """

    def __init__(self, recording: Recording) -> None:
        self._links = [
            (batch.table.pmus[0].source, Sender(batch, place), StreamParser(batch.table.pmus[0].source))
            for place, batch in enumerate(recording.batches, 1)
        ]
        self.bytes = 0

    def receive(self, until_ns: int, arrival_ns: int | None = None) -> list[tuple[str, FrameBatch]]:
        """Let everything up to a moment be sent, and take it in.

        Parameters
        ----------
        until_ns
            The moment.
        arrival_ns
            What the receiver's clock says; None where nobody looks, and frames count as coming when they were stamped.

        Returns
        -------
        list[tuple[str, FrameBatch]]
            Source and frames, for the pipeline.
        """
        out: list[tuple[str, FrameBatch]] = []
        for source, sender, parser in self._links:
            data = sender.send(until_ns)
            self.bytes += len(data)
            for at in range(0, len(data), SEGMENT):
                items = parser.feed(data[at : at + SEGMENT], arrival_ns)
                out += [(source, item) for item in items if isinstance(item, FrameBatch)]
        return out

    @property
    def frames_sent(self) -> int:
        """Configuration and data frames written so far."""
        return sum(sender.frames for _, sender, _ in self._links)

    @property
    def counts(self) -> Counts:
        """What the receivers have found so far."""
        total = Counts()
        for _, _, parser in self._links:
            total.add(parser.counts)
        return total
