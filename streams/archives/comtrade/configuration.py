"""A COMTRADE record's configuration: where its rows are, how they are stored, and when the first was measured.

In: a `.cfg` with its `.dat` beside, or a `.cff`. Out: a `Record`. A fault is told by file and line. It reads no rows;
records sampled on the wave are refused, for nothing is resampled.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comtrade
import numpy as np

from streams.archives.clock import MAX_RATE_HZ
from streams.archives.columns import STAT, TIME
from streams.errors import ArchiveError

_NAME = b"--- file type:"
_COUNTS = re.compile(r"\s*(\d+)\s*,\s*(\d+)\s*A\s*,\s*(\d+)\s*D\s*", re.IGNORECASE)
_HEADER = re.compile(rb"\s*---\s*file type:\s*([a-z]+)(?:\s+([a-z0-9]+)(?:\s*:\s*(\d+))?)?\s*---\s*", re.IGNORECASE)
_STAMP = re.compile(r"\s*(\d{1,2})/(\d{1,2})/(\d{2,4})\s*,\s*(\d{1,2}):(\d{2}):(\d{1,2})(?:\.(\d+))?")
_ZONE = re.compile(r"([+-]?)(\d{1,2})(?:h(\d{2}))?", re.IGNORECASE)
_FORMS = {"ASCII": None, "BINARY": "<i2", "BINARY32": "<i4", "FLOAT32": "<f4"}
_MISSING = {"ASCII": 99999.0, "BINARY": -(2.0**15), "BINARY32": -(2.0**31), "FLOAT32": float(np.finfo("f4").min)}
_KNOWN = ("1991", "1999", "2001", "2013")
_HEX = "0123456789ABCDEF"
_WORDS = {"volt": "V", "volts": "V", "amp": "A", "amps": "A", "rads": "rad", "degs": "deg", "none": "", "-": ""}


@dataclass(frozen=True, slots=True)
class Analog:
    """One analog channel.

    Attributes
    ----------
    column
        Name of its column: the identifier, with the phase behind it where two share one.
    name
        Its identifier (ch_id).
    phase
        Its phase field: a phase, or what it is of a phasor (Pm, Pa, F, df).
    unit
        Of its values.
    a
        What a stored number is multiplied by.
    b
        What is added then.
    ratio
        Of primary to secondary where the values are secondary ones, else 1.
    """

    column: str
    name: str
    phase: str
    unit: str
    a: float
    b: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Word:
    """One status channel, or the sixteen that make up a word.

    Attributes
    ----------
    column
        Name of its column.
    first
        Place of its lowest bit among the status channels.
    bits
        1 or 16.
    is_stat
        True for the sixteen of a STAT word.
    """

    column: str
    first: int
    bits: int
    is_stat: bool


@dataclass(frozen=True, slots=True)
class Record:
    """A record whose configuration is read and whose rows are counted.

    Attributes
    ----------
    path
        The file that was named: `.cfg` or `.cff`.
    station
        As the record calls it.
    values_path
        Where the rows are: the `.dat`, or the `.cff` again.
    offset_bytes
        Where in it they begin.
    size_bytes
        How long they are.
    form
        ASCII, BINARY, BINARY32 or FLOAT32.
    missing
        The stored number that stands for a missing value.
    analogs
        Analog channels, in the order of the rows.
    words
        Status channels, in the order of the rows.
    statuses
        Number of status channels.
    samples
        Number of rows.
    rate_hz
        Stated reporting rate; 0 where the rows have stamps instead.
    start_ns
        Time of the first row, nanoseconds since the epoch, UTC.
    resolution_ns
        Of the start as it is written.
    tick_ns
        Unit of the stamps.
    nominal_hz
        50 or 60; 0 where the record states neither.
    inf
        Text of its `.inf`; empty where there is none.
    notes
        What was assumed, in sentences.
    """

    path: Path
    station: str
    values_path: Path
    offset_bytes: int
    size_bytes: int
    form: str
    missing: float
    analogs: tuple[Analog, ...]
    words: tuple[Word, ...]
    statuses: int
    samples: int
    rate_hz: float
    start_ns: int
    resolution_ns: int
    tick_ns: float
    nominal_hz: int
    inf: str
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, that of time first."""
        return (TIME, *(a.column for a in self.analogs), *(w.column for w in self.words))

    @property
    def units(self) -> dict[str, str]:
        """Unit by column, where one is stated."""
        return {a.column: a.unit for a in self.analogs if a.unit}

    @property
    def first_line(self) -> int:
        """Number of the first row, for messages."""
        return 1


def is_record(path: Path, head: bytes) -> bool:
    """Tell whether a file is a COMTRADE record, by what it holds and by its ending.

    Parameters
    ----------
    path
        The file.
    head
        Its first kilobytes.

    Returns
    -------
    bool
        True for a configuration and for a combined file; for values only where their configuration stands beside.
    """
    if path.suffix.lower() in (".cfg", ".cff") or head.lstrip(b"\xef\xbb\xbf\r\n ").lower().startswith(_NAME):
        return True
    if path.suffix.lower() == ".dat" and _beside(path, ".cfg") is not None:
        return True
    lines = head.decode("latin-1").splitlines()[:2]
    return len(lines) == 2 and "," in lines[0] and _COUNTS.fullmatch(lines[1]) is not None


def open_record(path: str | os.PathLike[str]) -> Record:
    """Read a record's configuration and measure its rows.

    Parameters
    ----------
    path
        A `.cfg` with its `.dat` (and `.inf`, if any) beside, or a `.cff`.

    Returns
    -------
    Record
        Ready to be placed and read.

    Raises
    ------
    ArchiveError
        If a file is missing, cannot be read, contradicts itself or another, or holds samples of the wave.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".dat" and (named := _beside(path, ".cfg")) is not None:
            raise ArchiveError(f"{path}: holds the values of a COMTRADE record only; name its configuration {named}")
        parts = _sections(path) if _is_combined(path) else _siblings(path)
    except OSError as error:
        raise ArchiveError(f"{error.filename or path}: cannot be read: {error.strerror}") from error
    return _record(path, parts)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The files of a record, or the sections of a combined one."""

    cfg: bytes
    inf: bytes
    values_path: Path
    offset_bytes: int
    size_bytes: int
    form: str
    line: int


def _is_combined(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(256).lstrip(b"\xef\xbb\xbf\r\n ").lower().startswith(_NAME)


def _beside(path: Path, ending: str) -> Path | None:
    """Find a file of the same name and another ending."""
    found = (path.with_suffix(e) for e in (ending, ending.upper(), ending.capitalize()))
    return next((p for p in found if p.is_file()), None)


def _siblings(path: Path) -> _Parts:
    values = _beside(path, ".dat")
    if values is None:
        raise ArchiveError(f"{path}: its values are missing; {path.with_suffix('.dat').name} must stand beside it")
    inf = _beside(path, ".inf")
    return _Parts(path.read_bytes(), inf.read_bytes() if inf else b"", values, 0, values.stat().st_size, "", 0)


def _sections(path: Path) -> _Parts:
    """Part a combined file; the values are its last section."""
    texts: dict[str, list[bytes]] = {"CFG": [], "INF": [], "HDR": []}
    current: list[bytes] | None = None
    number = cfg_line = 0
    with path.open("rb") as file:
        while line := file.readline():
            number += 1
            found = _HEADER.fullmatch(line.lstrip(b"\xef\xbb\xbf")) if _NAME in line.lower() else None
            if found is None:
                if current is not None:
                    current.append(line)
                continue
            kind = found[1].decode().upper()
            if kind == "DAT":
                offset = file.tell()
                left = path.stat().st_size - offset
                size = int(found[3]) if found[3] else left
                if size > left:
                    raise ArchiveError(f"{path}, line {number}: says {size:,} bytes of values; {left:,} are there")
                form = (found[2] or b"").decode().upper()
                return _Parts(b"".join(texts["CFG"]), b"".join(texts["INF"]), path, offset, size, form, cfg_line)
            if kind not in texts:
                raise ArchiveError(f"{path}, line {number}: {kind!r} is no section; known are CFG, INF, HDR, DAT")
            cfg_line = number if kind == "CFG" else cfg_line
            current = texts[kind]
    raise ArchiveError(f"{path}: has no section of values ('--- file type: DAT FLOAT32: 1234 ---')")


def _text(octets: bytes) -> tuple[str, bool]:
    """Decode a text file; True where it had to be taken as Latin-1."""
    try:
        return octets.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        return octets.decode("latin-1"), True


class _Lines:
    """Lines of a configuration, counted as they are read, so that a message can name one."""

    def __init__(self, text: str, before: int) -> None:
        self.lines = text.replace("\x1a", "").replace("\r\n", "\n").replace("\r", "\n").split("\n")
        while self.lines and not self.lines[-1].strip():
            del self.lines[-1]
        self.before = before
        self.read = 0

    def readline(self) -> str:
        """Next line, ended by a line feed; empty after the last."""
        self.read += 1
        return self.lines[self.read - 1] + "\n" if self.read <= len(self.lines) else ""

    def where(self, path: Path, index: int) -> str:
        """Name a line by its index from 0."""
        return f"{path}, line {self.before + index + 1}"


def _record(path: Path, parts: _Parts) -> Record:
    text, foreign_text = _text(parts.cfg)
    lines = _Lines(text, parts.line)
    cfg = _configuration(path, lines)
    notes = ["the configuration is not UTF-8 and is read as Latin-1"] if foreign_text else []
    if cfg.rev_year not in _KNOWN:
        notes.append(f"the revision {cfg.rev_year!r} is unknown and is read as that of 1999")
    form = cfg.ft.strip().upper()
    if form not in _FORMS:
        raise ArchiveError(f"{path}: the values are {cfg.ft!r}; known are {', '.join(_FORMS)}")
    if parts.form not in ("", form):
        raise ArchiveError(f"{path}: the values are {parts.form} by their heading and {form} by the configuration")
    rate_hz, samples = _rate(path, cfg)
    start_ns, resolution_ns, said = _start(path, lines, cfg)
    tick_ns = cfg.timemult * (1 if cfg.time_base < 1e-7 else 1000)
    if not rate_hz and not (math.isfinite(tick_ns) and tick_ns > 0):
        raise ArchiveError(f"{path}: the time stamps are multiplied by {cfg.timemult:g}; a number above 0 is needed")
    words, more = _words(cfg)
    skewed = sum(c.skew != 0 for c in cfg.analog_channels)
    if skewed:
        more.append(f"{skewed} channels state a skew in time, which is not applied")
    quality = str(cfg._tmq_code).strip()  # noqa: SLF001 - comtrade has no other way to it
    if quality not in ("", "0"):
        more.append(f"the recorder's clock states time quality {quality}, where 0 is locked and F failed")
    record = Record(
        path=path,
        station=cfg.station_name,
        values_path=parts.values_path,
        offset_bytes=parts.offset_bytes,
        size_bytes=parts.size_bytes,
        form=form,
        missing=_missing(form, cfg.rev_year),
        analogs=_analogs(path, lines, cfg),
        words=words,
        statuses=cfg.status_count,
        samples=samples,
        rate_hz=rate_hz,
        start_ns=start_ns,
        resolution_ns=resolution_ns,
        tick_ns=tick_ns,
        nominal_hz=next((hz for hz in (50, 60) if abs(cfg.frequency - hz) < 0.5), 0),
        inf=_text(parts.inf)[0],
        notes=(*notes, *said, *more),
    )
    for column, count in Counter(record.columns[1:]).items():
        if count > 1:
            raise ArchiveError(f"{path}: {count} channels are called {column!r}; names must be unique")
    _check_size(record)
    return record


def _configuration(path: Path, lines: _Lines) -> Any:
    """Have the configuration read, after a look at its shape; a message names the line."""
    found = _COUNTS.fullmatch(lines.lines[1]) if len(lines.lines) > 1 else None
    if found is None:
        raise ArchiveError(
            f"{lines.where(path, 1)}: a COMTRADE configuration counts its channels here: total,##A,##D "
            f"(9,6A,3D); this is none"
        )
    total, analogs, statuses = map(int, found.groups())
    if analogs + statuses != total:
        raise ArchiveError(
            f"{lines.where(path, 1)}: {analogs} analog and {statuses} status channels are not {total} in all"
        )
    if len(lines.lines) < 2 + total + 6:
        raise ArchiveError(f"{path}: ends after line {len(lines.lines)}; {total} channels and the sampling follow")
    old = lines.lines[0].count(",") < 2 or lines.lines[0].rsplit(",", 1)[1].strip() == "1991"
    shapes = ("analog", (10, 13) if old else (13,)), ("status", (3, 5) if old else (5,))
    for index in range(2, 2 + total):
        kind, sizes = shapes[index >= 2 + analogs]
        fields = lines.lines[index].count(",") + 1
        if fields not in sizes:
            raise ArchiveError(
                f"{lines.where(path, index)}: {lines.lines[index].strip()[:60]!r} has {fields} fields; "
                f"a line of {kind} channel {index - 1} has {sizes[-1]} (a name holds no comma)"
            )
    cfg = comtrade.Cfg(ignore_warnings=True)
    try:
        cfg.read(lines)
    except (ValueError, TypeError, IndexError, OverflowError, comtrade.ComtradeError) as error:
        at = lines.read - 1
        line = lines.lines[at].strip()[:60] if at < len(lines.lines) else ""
        raise ArchiveError(f"{lines.where(path, at)}: {line!r} cannot be read there: {error}") from error
    return cfg


def _rate(path: Path, cfg: Any) -> tuple[float, int]:
    """Find the one rate of the record (0 where rows have stamps) and its number of rows."""
    rates = {float(rate) for rate, _ in cfg.sample_rates}
    if any(rate > MAX_RATE_HZ for rate in rates):
        raise ArchiveError(refusal(path, max(rates)))
    if len(rates) != 1 or not all(math.isfinite(r) and r >= 0 for r in rates):
        raise ArchiveError(f"{path}: is sampled at {', '.join(f'{r:g}' for r in sorted(rates))} Hz; one rate is needed")
    samples = int(cfg.sample_rates[-1][1])
    if samples <= 0:
        raise ArchiveError(f"{path}: holds no sample by its configuration")
    return rates.pop(), samples


def refusal(path: Path, rate_hz: float) -> str:
    """Say why samples of the wave are not read.

    Parameters
    ----------
    path
        The record.
    rate_hz
        How often it was sampled.

    Returns
    -------
    str
        For an `ArchiveError`.
    """
    return (
        f"{path}: sampled at {rate_hz:,.6g} Hz: this is point-on-wave, not synchrophasors; at most "
        f"{MAX_RATE_HZ:g} a second are read, and nothing is resampled"
    )


def _start(path: Path, lines: _Lines, cfg: Any) -> tuple[int, int, list[str]]:
    """Find the time of the first row and how finely it is written; say what was assumed of its zone."""
    index = 2 + cfg.analog_count + cfg.status_count + 2 + cfg.nrates
    line = lines.lines[index]
    found = _STAMP.match(line)
    if found is None:
        raise ArchiveError(f"{lines.where(path, index)}: {line.strip()!r} is no start time, dd/mm/yyyy,hh:mm:ss.ssssss")
    day, month, year, hour, minute, second = (int(part) for part in found.groups()[:6])
    if cfg.rev_year == "1991":
        day, month = month, day
    year += 0 if year > 99 else 1900 if year > 69 else 2000
    try:
        days = dt.date(year, month, day).toordinal() - dt.date(1970, 1, 1).toordinal()
    except ValueError as error:
        raise ArchiveError(f"{lines.where(path, index)}: {line.strip()!r} is no start time: {error}") from error
    if not 1700 < year < 2262:
        raise ArchiveError(f"{lines.where(path, index)}: the year {year} cannot be counted in nanoseconds")
    digits = (found[7] or "")[:9]
    seconds = ((days * 24 + hour) * 60 + minute) * 60 + second
    start_ns = seconds * 1_000_000_000 + int(digits.ljust(9, "0"))
    resolution_ns = 10 ** (9 - len(digits))
    code = str(cfg._time_code).strip() if cfg.rev_year == "2013" else ""  # noqa: SLF001 - comtrade has no other way to it
    zone = _ZONE.fullmatch(code)
    if zone is None:
        return start_ns, resolution_ns, ["the record states no time zone; its times are taken as UTC"]
    offset_s = (int(zone[2]) * 60 + int(zone[3] or 0)) * 60 * (-1 if zone[1] == "-" else 1)
    return start_ns - offset_s * 1_000_000_000, resolution_ns, []


def _missing(form: str, revision: str) -> float:
    """Find the number that stands for a missing value; 1991 left ASCII cells empty."""
    if revision == "1991":
        return {"ASCII": math.nan, "BINARY": -1.0}.get(form, _MISSING[form])
    return _MISSING[form]


def _analogs(path: Path, lines: _Lines, cfg: Any) -> tuple[Analog, ...]:
    shared = Counter(c.name for c in cfg.analog_channels)
    out = []
    for index, c in enumerate(cfg.analog_channels, 2):
        secondary = c.pors.strip().upper() == "S"
        numbers = (c.a, c.b, c.primary / c.secondary if secondary and c.secondary else 1.0)
        if not all(map(math.isfinite, numbers)) or not c.a or (secondary and not (c.primary and c.secondary)):
            raise ArchiveError(
                f"{lines.where(path, index)}: channel {c.name!r} has the factors a={c.a:g}, b={c.b:g} and the ratio "
                f"{c.primary:g}/{c.secondary:g}; finite ones other than 0 are needed"
            )
        column = f"{c.name} {c.ph}".strip() if shared[c.name] > 1 else c.name
        unit = _WORDS.get(c.uu.lower(), c.uu)
        out.append(Analog(column, c.name, c.ph, unit, c.a, c.b, numbers[2]))
    return tuple(out)


def _words(cfg: Any) -> tuple[tuple[Word, ...], list[str]]:
    """Gather the status channels; sixteen whose phases count S0 to SF, or B0 to BF, are a word (2013, annex H)."""
    channels = cfg.status_channels
    phases = [c.ph.strip().upper() for c in channels]
    words: list[Word] = []
    notes = []
    at = 0
    while at < len(channels):
        name = channels[at].name
        if phases[at : at + 16] == [f"S{h}" for h in _HEX]:
            words.append(Word(f"{name.rpartition(':')[0] or name}:{STAT.upper()}", at, 16, is_stat=True))
            at += 16
        elif phases[at : at + 16] == [f"B{h}" for h in _HEX]:
            words.append(Word(name, at, 16, is_stat=False))
            at += 16
        elif phases[at : at + 16] == [f"T{i}" for i in range(1, 17)]:
            notes.append("the time quality bits T1 to T16 are not read")
            at += 16
        else:
            words.append(Word(name, at, 1, is_stat=False))
            at += 1
    taken = {c.name for c in cfg.analog_channels}
    for place, word in enumerate(words):
        if word.column in taken:
            words[place] = replace(word, column=f"{word.column} D{word.first + 1}")
    return tuple(words), notes


def layout(record: Record) -> np.dtype[np.void]:
    """Lay out a binary row.

    Parameters
    ----------
    record
        Of any form but ASCII.

    Returns
    -------
    np.dtype[np.void]
        Its number, its stamp, the stored analogs and the words of status bits.
    """
    return np.dtype(
        [
            ("number", "<u4"),
            ("stamp", "<u4"),
            ("analog", _FORMS[record.form], (len(record.analogs),)),
            ("status", "<u2", (-(-record.statuses // 16),)),
        ]
    )


def _check_size(record: Record) -> None:
    if record.form == "ASCII":
        return
    size = layout(record).itemsize
    rows, rest = divmod(record.size_bytes, size)
    if rest or rows != record.samples:
        raise ArchiveError(
            f"{record.values_path}: {record.samples:,} rows of {size} bytes make {record.samples * size:,} bytes; "
            f"it holds {record.size_bytes:,} ({rows:,} rows and {rest} bytes): cut off, or not of this configuration"
        )
