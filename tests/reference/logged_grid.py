"""What a gateway would have written: sources made up for tests, as records of the log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from gridsense.encoding import made_encoder
from streams.archives.folder import open_folder, read_chain
from streams.block import FrameBatch
from streams.c37118.configuration import ConfigurationFrame, encode_configuration
from streams.log import Record
from tests.reference.small_grid import small_grid

DELAY_NS = 70_000_000


def configured(batch: FrameBatch, id_code: int = 7) -> tuple[ConfigurationFrame, bytes]:
    """Say a source in C37.118: its configuration, and its frames one after another."""
    encoder = made_encoder(batch.table, batch.rate_hz, id_code)
    return encoder.configuration, encoder.encode(batch)


def framed(frames: bytes) -> list[bytes]:
    """Cut frames of one size apart."""
    size = int.from_bytes(frames[2:4], "big")
    return [frames[i : i + size] for i in range(0, len(frames), size)]


def logged(batch: FrameBatch, each: int = 15, *, configuration: bool = True) -> list[Record]:
    """Write a source as records: its configuration, then some frames a record, stamped when the last has come."""
    source = batch.table.pmus[0].source
    made, octets = configured(batch)
    frames = framed(octets)
    records = [
        Record(int(batch.time_ns[min(i + each, len(frames)) - 1]) + DELAY_NS, source, b"".join(frames[i : i + each]))
        for i in range(0, len(frames), each)
    ]
    head = [Record(int(batch.time_ns[0]), source, b"".join(encode_configuration(made)))] if configuration else []
    return head + records


def in_turns(*sources: list[Record]) -> list[Record]:
    """Put records of several sources in order of their time, as one gateway would."""
    return sorted((r for records in sources for r in records), key=lambda r: r.time_ns)


def grid(source: str, first: int, pmus: int, *, seconds: int, after_s: float = 0.0) -> FrameBatch:
    """Make a quiet source that begins later, its stamps in microseconds as on the wire."""
    made = small_grid(source, first, pmus, first, seconds=seconds)
    time_ns = np.round(made.time_ns / 1000).astype(np.int64) * 1000 + round(after_s * 1e9)
    return replace(made, time_ns=time_ns, arrival_ns=time_ns)


def archived(folder: Path) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Read what a folder holds: by source, the times of its frames."""
    times: dict[str, list[np.ndarray[tuple[int], np.dtype[np.int64]]]] = {}
    for chain in open_folder(folder).chains:
        source = chain.description.table.pmus[0].source
        times.setdefault(source, []).extend(batch.time_ns for batch in read_chain(chain))
    return {source: np.concatenate(found) for source, found in times.items()}
