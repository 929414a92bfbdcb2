"""Files of one kind to files of another, every value as it was sent.

In: a capture or an archive. Out: Parquet archives, COMTRADE records, or a C37.118 byte stream with its configuration
frames in front. It judges, masks and resamples nothing.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gridsense.encoding import Encoder, made_encoder, stored_encoder
from gridsense.errors import InputError, UsageError
from streams.archives import (
    Archive,
    ArchiveWriter,
    Plan,
    is_archive,
    join_parquet,
    open_archive,
    read_archive,
    write_record,
)
from streams.archives.joining import midnight, slots
from streams.block import FrameBatch
from streams.c37118.configuration import (
    ConfigurationFrame,
    channel_table,
    encode_configuration,
)
from streams.c37118.frame import EPOCH
from streams.captures import CaptureReader
from streams.channels import ChannelTable
from streams.errors import ConfigurationError, FrameError

log = logging.getLogger(__name__)

Progress = Callable[[int], None]
"""Called with the number of frames done since the last call."""

_ROWS = 4096
_C37118_2011 = 2


@dataclass(frozen=True, slots=True)
class Output:
    """A file that was written.

    Attributes
    ----------
    path
        Where.
    rows
        Reporting times of an archive, frames of a byte stream.
    pmus
        PMUs in it.
    """

    path: Path
    rows: int
    pmus: int


def capture_to_parquet(source: Path, out: Path, progress: Progress) -> list[Output]:
    """Write a capture as Parquet.

    Several streams stand side by side in one file when they share a rate, have PMUs of different names and run forward
    in time; else each gets a file of its own, ``OUT-<source>.parquet``.

    Parameters
    ----------
    source
        The capture.
    out
        The archive to write.
    progress
        Told of the frames done.

    Returns
    -------
    list[Output]
        The files written.

    Raises
    ------
    InputError
        If the capture holds no data frame that can be decoded.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".gridsense-") as folder:
        streams = _spool(source, Path(folder), progress)
        if not streams:
            raise InputError(f"{source}: no data frame in it could be decoded; `gridsense inspect {source}` says why")
        if _side_by_side(streams):
            configurations = {s.source: s.configuration for s in streams if s.configuration}
            rows = join_parquet([s.path for s in streams], out, configurations)
            return [Output(out, rows, sum(len(s.table.pmus) for s in streams))]
        names = _file_names(out, [s.source for s in streams])
        return [
            Output(
                path,
                join_parquet([s.path], path, {s.source: s.configuration} if s.configuration else {}),
                len(s.table.pmus),
            )
            for path, s in zip(names, streams, strict=True)
        ]


@dataclass(slots=True)
class _Stream:
    """Frames under one configuration on their way into a file of their own."""

    path: Path
    source: str
    table: ChannelTable
    rate_hz: float
    configuration: bytes
    writer: ArchiveWriter
    last_slot: int | None = None
    rising: bool = True

    def write(self, batch: FrameBatch, origin_ns: int) -> None:
        self.writer.write(batch)
        if self.rate_hz > 0:
            slot = slots(batch.time_ns, self.rate_hz, origin_ns)
            before = slot[0] - 1 if self.last_slot is None else self.last_slot
            self.rising &= bool((np.diff(slot, prepend=before) > 0).all())
            self.last_slot = int(slot[-1])


def _spool(source: Path, folder: Path, progress: Progress) -> list[_Stream]:
    """Write each stream to a file of its own as its frames come."""
    streams: dict[tuple[ChannelTable, ConfigurationFrame | None], _Stream] = {}
    by_table: dict[int, tuple[ChannelTable, _Stream]] = {}  # holds the table, so that its id stays its own
    seen: list[tuple[str, ConfigurationFrame]] = []
    origin_ns: int | None = None
    with ExitStack() as stack:
        for name, item in CaptureReader(source, np.float64):
            if isinstance(item, ConfigurationFrame):
                seen.append((name, replace(item, stamp=EPOCH)))
            if not isinstance(item, FrameBatch) or not len(item.time_ns):
                continue
            origin_ns = midnight(int(item.time_ns.min())) if origin_ns is None else origin_ns
            if id(item.table) not in by_table:
                configuration = _configuration_of(item.table, name, seen)
                key = (item.table, configuration)
                if key not in streams:
                    path = folder / f"{len(streams)}.parquet"
                    text = b"".join(encode_configuration(_modern(configuration))) if configuration else b""
                    writer = stack.enter_context(ArchiveWriter(path, item))
                    streams[key] = _Stream(path, name, item.table, item.rate_hz, text, writer)
                by_table[id(item.table)] = item.table, streams[key]
            by_table[id(item.table)][1].write(item, origin_ns)
            progress(len(item.time_ns))
    for (table, configuration), stream in streams.items():
        late = None if configuration else _configuration_of(table, stream.source, seen)
        if late is not None:
            stream.configuration = b"".join(encode_configuration(_modern(late)))
    return list(streams.values())


def _configuration_of(
    table: ChannelTable, source: str, seen: list[tuple[str, ConfigurationFrame]]
) -> ConfigurationFrame | None:
    """Find the configuration behind a table: the newest that says the same, of its own source before another's."""
    for own in (True, False):
        for name, configuration in reversed(seen):
            if (name == source) is own and channel_table(configuration, table.pmus[0].source) == table:
                return configuration
    return None


def _modern(configuration: ConfigurationFrame) -> ConfigurationFrame:
    """Let what was IEEE 1344 be written as C37.118."""
    return replace(configuration, version=configuration.version or _C37118_2011)


def _side_by_side(streams: list[_Stream]) -> bool:
    """Tell whether the streams can share a file."""
    if len(streams) == 1:
        return True
    names = [p.name for s in streams for p in s.table.pmus]
    return (
        len({s.rate_hz for s in streams}) == 1
        and streams[0].rate_hz > 0
        and len({p.source for s in streams for p in s.table.pmus}) == len(streams)
        and len(set(names)) == len(names)
        and all(s.rising for s in streams)
    )


def _file_names(out: Path, sources: list[str]) -> list[Path]:
    """Name a file for each source; a source whose configuration changed gets several."""
    names: list[Path] = []
    for source in sources:
        plain = re.sub(r"[^A-Za-z0-9_.]+", "_", source).strip("_.") or "source"
        path, again = out.with_name(f"{out.stem}-{plain}{out.suffix}"), 1
        while path in names:
            again += 1
            path = out.with_name(f"{out.stem}-{plain}-{again}{out.suffix}")
        names.append(path)
    return names


def archive_to_parquet(archive: Archive, out: Path, progress: Progress) -> list[Output]:
    """Write an archive of another kind, or of somebody else's, as one of ours.

    Parameters
    ----------
    archive
        CSV, COMTRADE, or Parquet without our metadata (ours are copied).
    out
        The archive to write.
    progress
        Told of the frames done.

    Returns
    -------
    list[Output]
        The file written.

    Raises
    ------
    InputError
        If it holds no row.
    """
    pmus = len(archive.description.table.pmus)
    if archive.form == "parquet" and archive.foreign is None:
        return [Output(out, join_parquet([archive.path], out), pmus)]
    writers: dict[str, ArchiveWriter] = {}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".gridsense-") as folder:
        with ExitStack() as stack:
            for batch in read_archive(archive, dtype=np.float64 if archive.foreign else np.float32):
                source = batch.table.pmus[0].source
                if source not in writers:
                    path = Path(folder) / f"{len(writers)}.parquet"
                    writers[source] = stack.enter_context(ArchiveWriter(path, batch))
                writers[source].write(batch)
                progress(len(batch.time_ns))
        if not writers:
            raise InputError(f"{archive.path}: there are no rows in it")
        rows = join_parquet([w.path for w in writers.values()], out, archive.description.configurations)
    return [Output(out, rows, pmus)]


def archive_to_record(archive: Archive, out: Path, progress: Progress) -> list[Output]:
    """Write an archive as COMTRADE.

    Parameters
    ----------
    archive
        Any archive.
    out
        The record to write: `.cfg`, or `.cff`.
    progress
        Told of the frames done.

    Returns
    -------
    list[Output]
        The file written.
    """
    first = True

    def read() -> Iterator[FrameBatch]:
        nonlocal first
        counting, first = not first, False
        for batch in read_archive(archive, rows=_ROWS):
            yield batch
            if counting:
                progress(len(batch.time_ns))

    written = write_record(out, archive.description, read)
    if written.rounded_ns > 1:
        log.warning("%s: times are rounded by up to %s ns: a row tells its own in 32 bits", out, written.rounded_ns)
    if written.arrivals:
        log.warning("%s: arrival times are left out: COMTRADE has no place for them", out)
    return [Output(out, written.rows, len(archive.description.table.pmus))]


def archive_to_bytes(archive: Archive, out: Path, progress: Progress) -> list[Output]:
    """Write an archive as C37.118: configuration frames, then data frames in order of time.

    A stream whose configuration frame the archive holds comes back under it; for another a CFG-2 is made (phasors
    polar, everything float32), or a CFG-3 where names or size ask for it.

    Parameters
    ----------
    archive
        Any archive.
    out
        The byte stream to write.
    progress
        Told of the frames done.

    Returns
    -------
    list[Output]
        The file written.

    Raises
    ------
    InputError
        If the channels or values cannot be said in C37.118, or if two sources share an ID code.
    UsageError
        If the file cannot be written.
    """
    description = archive.description
    encoders: dict[str, Encoder] = {}
    try:
        for place, source in enumerate(dict.fromkeys(p.source for p in description.table.pmus)):
            table = ChannelTable(tuple(p for p in description.table.pmus if p.source == source))
            stored = description.configurations.get(source)
            encoders[source] = (
                stored_encoder(stored, source) if stored else made_encoder(table, description.rate_hz, place + 1)
            )
    except (ConfigurationError, FrameError) as error:
        raise InputError(f"{archive.path}: cannot be said in C37.118: {error}") from error
    codes = [e.configuration.id_code for e in encoders.values()]
    if len(set(codes)) < len(codes):
        raise InputError(
            f"{archive.path}: several sources have the ID code {max(codes, key=codes.count)}; convert them apart"
        )
    part = out.with_name(out.name + ".part")
    frames = 0
    try:
        with part.open("wb") as file:
            for encoder in encoders.values():
                for frame in encode_configuration(encoder.configuration):
                    file.write(frame)
            for batches in _turns(archive):
                pieces = [(b.time_ns, encoders[b.table.pmus[0].source].encode(b)) for b in batches]
                file.write(_in_order(pieces))
                count = sum(len(t) for t, _ in pieces)
                frames += count
                progress(count)
        part.replace(out)
    except FrameError as error:
        raise InputError(f"{archive.path}: cannot be said in C37.118: {error}") from error
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return [Output(out, frames, len(description.table.pmus))]


def _turns(archive: Archive) -> Iterator[list[FrameBatch]]:
    """Gather the batches of one chunk of rows: one a source, until a source comes again."""
    turn: dict[str, FrameBatch] = {}
    for batch in read_archive(archive, rows=_ROWS, dtype=np.float64):
        source = batch.table.pmus[0].source
        if source in turn:
            yield list(turn.values())
            turn = {}
        turn[source] = batch
    if turn:
        yield list(turn.values())


def _in_order(pieces: list[tuple[NDArray[np.int64], bytes]]) -> bytes:
    """Put the frames of several sources in order of time."""
    if len(pieces) == 1:
        return pieces[0][1]
    time_ns = np.concatenate([t for t, _ in pieces])
    frames: list[bytes] = []
    for stamps, octets in pieces:
        size = len(octets) // len(stamps)
        frames += [octets[i : i + size] for i in range(0, len(octets), size)]
    return b"".join(frames[i] for i in np.argsort(time_ns, kind="stable"))


_WRITERS: dict[str, Callable[[Archive, Path, Progress], list[Output]]] = {
    ".parquet": archive_to_parquet,
    ".pq": archive_to_parquet,
    ".cfg": archive_to_record,
    ".cff": archive_to_record,
    ".c37118": archive_to_bytes,
    ".bin": archive_to_bytes,
    ".raw": archive_to_bytes,
}


def convert(source: Path, out: Path, channels: Path | None, progress: Progress) -> tuple[Plan | None, list[Output]]:
    """Convert a file to what the other's name asks for.

    Parameters
    ----------
    source
        A capture or an archive, told apart by what they hold.
    out
        ``.parquet`` for an archive, ``.cfg`` or ``.cff`` for a COMTRADE record, ``.c37118``, ``.bin`` or ``.raw`` for a
        byte stream.
    channels
        Map of the columns of somebody else's table, or None.
    progress
        Told of the frames done.

    Returns
    -------
    tuple[Plan | None, list[Output]]
        What the columns of somebody else's table were taken for, and the files written.

    Raises
    ------
    UsageError
        If the names do not go together.
    """
    write = _WRITERS.get(out.suffix.lower())
    if write is None:
        raise UsageError(
            f"{out}: write .parquet for an archive, .cfg or .cff for a COMTRADE record, or .c37118, .bin or .raw for a "
            "C37.118 byte stream"
        )
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent}: there is no such folder to write to")
    replaced = (out, out.with_suffix(".dat"), out.with_suffix(".inf")) if write is archive_to_record else (out,)
    if source.exists() and any(p.exists() and p.samefile(source) for p in replaced):
        raise UsageError(f"{out}: is the input itself; name another file")
    if is_archive(source):
        archive = open_archive(source, channels)
        for note in archive.notes:
            log.warning("%s: %s", source, note)
        return archive.plan, write(archive, out, progress)
    if channels is not None:
        raise UsageError(f"{source}: is a capture; --channels is for tables")
    if write is not archive_to_parquet:
        raise UsageError(f"{source}: is a capture; convert it to .parquet, and that to {out.suffix}")
    return None, capture_to_parquet(source, out, progress)
