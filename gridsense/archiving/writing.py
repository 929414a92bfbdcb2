"""The log's frames in, batch by batch; files by day and source out, each frame in exactly one of them.

A batch is the offsets [a, b) of the log, for all sources. Its files are written first, each under a name that says
a and b-1; then `position.json` is replaced by one that says b, which alone makes the batch count. What a crash, a full
disk or a second thought leaves behind starts at or after the position, and `recover` removes it. There is no other
undoing: whatever fails, the folder is recovered and the log read again from the position.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import msgspec

from gridsense.archiving import durable
from gridsense.archiving.decoding import Decoded, Stream, decode
from streams.archives import ArchiveWriter
from streams.archives.folder import (
    POSITION,
    file_in,
    in_order,
    partition_of,
    partitions,
    source_name,
    superseded,
    written,
)
from streams.block import FrameBatch
from streams.errors import ArchiveError, LogError
from streams.log import CONFIGURATIONS, FRAMES, Entry, Log, Lost, is_mark

log = logging.getLogger(__name__)

READER = "archive"
"""Name under which the log is told how far the archive has come."""
GAPS = "gaps.jsonl"
"""File that lists what the log had lost."""
UNDECODED = "undecoded"
"""Folder of raw bytes that could not be used."""
GROUP_ROWS = 1 << 14
"""Rows in a row group: what a reader of many sources side by side holds of each."""

_RAW = re.compile(r".+-(?P<first>\d+)-\d+\.c37118")


class Step(StrEnum):
    """What has just been done, for whoever follows along."""

    READ = "read"
    """Entries were read from the log."""
    WRITTEN = "written"
    """A file of the batch stands on the disk; it does not count yet."""
    COMMITTED = "committed"
    """The batch counts."""
    JOINED = "joined"
    """A joined file stands in place of its parts; they do not count any more."""
    REMOVED = "removed"
    """A file that does not count any more, or is too old, is gone."""


Report = Callable[[Step], None]
"""Told after each step."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the log is cut into files.

    Attributes
    ----------
    folder
        Made where there is none.
    file_span_s
        Log time in a file: batches end where the time passes a multiple of it.
    batch_bytes
        Bytes of entries after which a batch ends in any case: they are held in memory, and become up to four times
        as many while one source is decoded.
    """

    folder: Path
    file_span_s: float = 600.0
    batch_bytes: int = 1 << 25


@dataclass(slots=True)
class Totals:
    """What has been done since the program started.

    Attributes
    ----------
    batches
        Batches that count.
    files
        Files of theirs.
    frames
        Data frames in them.
    raw_bytes
        Bytes of the log's entries.
    file_bytes
        Bytes of the files.
    undecoded
        Frames and entries kept raw.
    others
        Header and command frames, which are not kept.
    lost
        Ranges of the log that were lost before they could be read.
    joined
        Small files that were joined into larger ones.
    removed
        Files removed for their age.
    """

    batches: int = 0
    files: int = 0
    frames: int = 0
    raw_bytes: int = 0
    file_bytes: int = 0
    undecoded: int = 0
    others: int = 0
    lost: int = 0
    joined: int = 0
    removed: int = 0


def summed(totals: Iterable[Totals]) -> Totals:
    """Add up what several archivers have done.

    Parameters
    ----------
    totals
        Of each.

    Returns
    -------
    Totals
        Of all.
    """
    counts = [astuple(each) for each in totals]
    return Totals(*map(sum, zip(*counts, strict=True)))


class Checkpoint(msgspec.Struct, frozen=True):
    """The position file.

    Attributes
    ----------
    next
        Offset of the log up to which the folder is whole.
    configurations
        By source, in hexadecimal: the configuration frames in force there.
    """

    next: int = 0
    configurations: dict[str, str] = {}


class Gap(msgspec.Struct, frozen=True):
    """A line of the list of gaps.

    Attributes
    ----------
    first, last
        Offsets between which entries are missing.
    reason
        See `streams.log.Lost`.
    """

    first: int
    last: int
    reason: str


@dataclass(slots=True)
class _Spool:
    """The batch that is being read."""

    entries: list[Entry] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    size: int = 0


class Archiver:
    """Takes the log's frames into a folder. Used by one thread; `recover` comes before all else.

    Parameters
    ----------
    source
        The log.
    settings
        See `Settings`.
    report
        Told after each step.
    """

    def __init__(self, source: Log, settings: Settings, report: Report) -> None:
        self.settings = settings
        self.totals = Totals()
        self._log = source
        self._report = report
        self._checkpoint = Checkpoint()
        self._next = 0
        self._spool = _Spool()

    @property
    def position(self) -> int:
        """Offset up to which the folder is whole."""
        return self._checkpoint.next

    @property
    def waiting(self) -> int:
        """Entries that have been read and are not in the folder yet."""
        return len(self._spool.entries)

    def recover(self) -> None:
        """Bring the folder to its position, whatever was left behind, and go on from there.

        Raises
        ------
        ArchiveError
            If the folder belongs to another log, or has lost its position file.
        """
        folder = self.settings.folder
        durable.make(folder)
        self._checkpoint = _read_checkpoint(folder)
        end = self._log.extent(FRAMES).next
        if self.position > end:
            raise ArchiveError(
                f"{folder}: is whole up to offset {self.position:,} of a log that now ends at {end:,}: it was written "
                "from another log; name that one, or another folder"
            )
        self._remove_leftovers()
        self._next, self._spool = self.position, _Spool()

    def step(self) -> bool:
        """Read a piece of the log, and commit the batches that it completes.

        Returns
        -------
        bool
            Whether there was anything to read. An `ArchiveError` says that the folder cannot be written: `recover`.
        """
        reading = self._log.read(FRAMES, self._next)
        lost = list(reading.lost)
        for entry in reading.entries:
            if self._is_full(entry):
                self._spool.lost += [gap for gap in lost if gap.last < entry.offset]
                lost = [gap for gap in lost if gap.last >= entry.offset]
                self._commit(entry.offset)
            self._spool.entries.append(entry)
            self._spool.size += len(entry.value)
        self._spool.lost += lost
        moved = reading.next > self._next
        self._next = reading.next
        if moved:
            self._report(Step.READ)
        return moved

    def flush(self) -> None:
        """Commit what has been read as it is. An `ArchiveError` says that the folder cannot be written: `recover`."""
        if self._next > self.position:
            self._commit(self._next)

    def _is_full(self, entry: Entry) -> bool:
        """Tell whether an entry begins the next batch."""
        spool, span_ns = self._spool, round(self.settings.file_span_s * 1e9)
        if not spool.entries:
            return False
        if spool.size + len(entry.value) > self.settings.batch_bytes:
            return True
        return entry.time_ns // span_ns > spool.entries[0].time_ns // span_ns

    def _commit(self, end: int) -> None:
        """Write the batch's files, then the position that makes them count."""
        first, spool, done = self.position, self._spool, replace(self.totals)
        in_force = dict(self._checkpoint.configurations)
        by_source: dict[str, list[Entry]] = defaultdict(list)
        for entry in spool.entries:
            if not is_mark(entry.key, entry.value):  # an empty value of somebody is no frame: it counts as undecoded
                by_source[entry.key].append(entry)
        known = self._log.latest(CONFIGURATIONS) if by_source else {}
        for source, entries in sorted(by_source.items()):
            latest = known[source].value if source in known else b""
            decoded = decode(source, entries, bytes.fromhex(in_force.get(source, "")), latest)
            self._write(source, decoded, (first, end - 1), done)
            in_force[source] = decoded.in_force.hex()
            done.raw_bytes += sum(len(e.value) for e in entries)
        if spool.lost:
            self._note(spool.lost)
        durable.write(self.settings.folder / POSITION, msgspec.json.encode(Checkpoint(end, in_force)))
        done.batches += 1
        done.lost += len(spool.lost)
        self._checkpoint, self._spool, self.totals = Checkpoint(end, in_force), _Spool(), done
        self._report(Step.COMMITTED)
        try:
            self._log.commit(FRAMES, READER, end)
        except LogError as error:  # the folder knows its position; the log's copy is for those who watch
            log.warning("the log could not be told the archive's position: %s", error)

    def _write(self, source: str, decoded: Decoded, offsets: tuple[int, int], done: Totals) -> None:
        """Write the files of one source."""
        for (day, stream), batches in sorted(decoded.frames.items(), key=lambda item: (item[0][0], item[0][1].kind)):
            path = file_in(partition_of(self.settings.folder, day, source), *offsets, stream.kind)
            write_file(path, source, stream, iter([in_order(batches)]))
            done.files += 1
            done.frames += sum(len(b.time_ns) for b in batches)
            done.file_bytes += path.stat().st_size
            self._report(Step.WRITTEN)
        if decoded.undecoded:
            path = (
                self.settings.folder / UNDECODED / f"{source_name(source)}-{offsets[0]:012d}-{offsets[1]:012d}.c37118"
            )
            durable.write(path, b"".join(decoded.undecoded))
            done.undecoded += len(decoded.undecoded)
            log.warning(
                "%d frames of %s could not be decoded; they are kept in %s", len(decoded.undecoded), source, path
            )
            self._report(Step.WRITTEN)
        if decoded.others:
            done.others += decoded.others
            log.warning("%d header or command frames of %s are not kept", decoded.others, source)

    def _note(self, lost: Sequence[Lost]) -> None:
        """Add to the list of gaps."""
        path = self.settings.folder / GAPS
        lines = [msgspec.json.encode(Gap(gap.first, gap.last, gap.reason)) for gap in lost]
        durable.write(path, b"".join(line + b"\n" for line in [*_lines(path), *lines]))
        for gap in lost:
            log.warning("offsets %d to %d of the log are %s: their frames are not archived", *_said(gap))
        self._report(Step.WRITTEN)

    def _remove_leftovers(self) -> None:
        """Remove what does not count: unfinished files, files of a batch that was not committed, joined ones' parts."""
        folder, position = self.settings.folder, self.position
        for path in _leftovers(folder, position):
            durable.remove(path)
            self._report(Step.REMOVED)
        lines = _lines(folder / GAPS)
        try:
            kept = [line for line in lines if msgspec.json.decode(line, type=Gap).first < position]
        except msgspec.MsgspecError as error:
            raise ArchiveError(f"{folder / GAPS}: cannot be read: {error}; correct that line or remove it") from error
        if kept != lines:
            durable.write(folder / GAPS, b"".join(line + b"\n" for line in kept))


def write_file(path: Path, source: str, stream: Stream, batches: Iterator[FrameBatch]) -> int:
    """Write one file and have it on the disk.

    Parameters
    ----------
    path
        Appears when all is written.
    source
        Whose frames these are.
    stream
        Whose configuration goes into the metadata.
    batches
        In order of event time; at least one.

    Returns
    -------
    int
        Frames written. An `ArchiveError` says that the file cannot be.
    """
    first = next(batches)
    # arrival times are always known here, also where a first one happens to be the time itself
    told = replace(first, arrival_ns=first.time_ns + 1)
    durable.make(path.parent)
    with ArchiveWriter(
        path, told, {source: stream.configuration} if stream.configuration else {}, GROUP_ROWS
    ) as writer:
        writer.write(first)
        for batch in batches:
            writer.write(batch)
    durable.sync(path)
    durable.sync(path.parent)
    return writer.rows


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder against a second archiver.

    Parameters
    ----------
    folder
        Made where there is none.

    Yields
    ------
    None
        While it is held.

    Raises
    ------
    ArchiveError
        If another process holds it.
    """
    durable.make(folder)
    path = folder / ".lock"
    try:
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ArchiveError(f"{folder}: another process is archiving into it; stop that first") from error
        yield
    finally:
        os.close(opened)


def _read_checkpoint(folder: Path) -> Checkpoint:
    """Read the position; a new folder gets one before it gets anything else."""
    try:
        return msgspec.json.decode((folder / POSITION).read_bytes(), type=Checkpoint)
    except FileNotFoundError as error:
        if any(written(p) for p in partitions(folder)):
            raise ArchiveError(
                f"{folder}: holds archives but no {POSITION}, so nobody knows how far it is whole; restore that file, "
                "or name an empty folder"
            ) from error
        durable.write(folder / POSITION, msgspec.json.encode(Checkpoint()))
        return Checkpoint()
    except (OSError, msgspec.MsgspecError) as error:
        raise ArchiveError(f"{folder / POSITION}: cannot be read: {error}; restore it from a copy") from error


def _leftovers(folder: Path, position: int) -> Iterator[Path]:
    """Find the files that do not count."""
    for partition in partitions(folder):
        yield from partition.glob("*" + durable.PART)
        files = written(partition)
        yield from (f.path for f in files if f.first >= position)
        yield from (f.path for f in superseded([f for f in files if f.first < position]))
    yield from folder.glob("*" + durable.PART)
    for path in sorted((folder / UNDECODED).glob("*")):
        found = _RAW.fullmatch(path.name)
        if path.name.endswith(durable.PART) or (found and int(found["first"]) >= position):
            yield path


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror or error}") from error


def _said(gap: Lost) -> tuple[int, int, str]:
    return gap.first, gap.last, gap.reason
