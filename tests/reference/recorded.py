"""Streams as a gateway would have written them to a log: configuration first, then whole frames, by arrival."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gridsense.encoding import made_encoder
from gridsense.sources import cut
from streams.block import FrameBatch
from streams.c37118.configuration import encode_configuration
from streams.log import Record


def recorded(streams: Sequence[FrameBatch], frames: int = 3) -> list[Record]:
    """Write each source as records of so many frames, under the name of its PMUs' source, in order of arrival."""
    records: list[Record] = []
    for place, batch in enumerate(streams, 1):
        encoder = made_encoder(batch.table, batch.rate_hz, place)
        key = batch.table.pmus[0].source
        first_ns = int(batch.arrival_ns[0])
        records.append(Record(first_ns - 1, key, b"".join(encode_configuration(encoder.configuration))))
        for at in range(0, len(batch.time_ns), frames):
            rows = np.zeros(len(batch.time_ns), bool)
            rows[at : at + frames] = True
            part = cut(batch, rows)
            records.append(Record(int(part.arrival_ns[-1]), key, encoder.encode(part)))
    return sorted(records, key=lambda r: r.time_ns)
