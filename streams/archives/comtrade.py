"""COMTRADE records (IEEE C37.111-1991, -1999, -2013) of synchrophasors, read.

In: a `.cfg` with its `.dat`, or a `.cff`; ASCII, BINARY, BINARY32 or FLOAT32. Out: what its channels are, and its rows
as Arrow records like those of any other table, chunk by chunk: values a x + b, missing ones NaN, times UTC. Records
sampled on the wave are refused: nothing is resampled.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comtrade
import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
from numpy.typing import NDArray

from streams.archives import metadata
from streams.archives.clock import MAX_RATE_HZ
from streams.archives.columns import (
    STAT,
    TIME,
    TIME_FLAGS,
    signal_columns,
    source_column,
    sources_of,
    split_column,
    stat_column,
)
from streams.archives.placing import Placement, Plan, guess, in_unit, read_map
from streams.channels import ChannelTable, Phase, Quantity
from streams.errors import ArchiveError

SECTION = "[GridSense Channel_Table]"
"""Private section of the `.inf` that holds the channel table, as `Description=` and JSON."""
DESCRIPTION = "Description="
NO_STAMP = 0xFFFFFFFF
"""A time stamp in a binary row that says that there is none."""

_NAME = b"--- file type:"
_COUNTS = re.compile(r"\s*(\d+)\s*,\s*(\d+)\s*A\s*,\s*(\d+)\s*D\s*", re.IGNORECASE)
_HEADER = re.compile(rb"\s*---\s*file type:\s*([a-z]+)(?:\s+([a-z0-9]+)(?:\s*:\s*(\d+))?)?\s*---\s*", re.IGNORECASE)
_STAMP = re.compile(r"\s*(\d{1,2})/(\d{1,2})/(\d{2,4})\s*,\s*(\d{1,2}):(\d{2}):(\d{1,2})(?:\.(\d+))?")
_ZONE = re.compile(r"([+-]?)(\d{1,2})(?:h(\d{2}))?", re.IGNORECASE)
_WHERE = re.compile(r"(?:In CSV column #(\d+): )?Row #(\d+): (.*)", re.DOTALL)
_FORMS = {"ASCII": None, "BINARY": "<i2", "BINARY32": "<i4", "FLOAT32": "<f4"}
_MISSING = {"ASCII": 99999.0, "BINARY": -(2.0**15), "BINARY32": -(2.0**31), "FLOAT32": float(np.finfo("f4").min)}
_KNOWN = ("1991", "1999", "2001", "2013")
_HEX = "0123456789ABCDEF"
_DAY_NS = 86_400_000_000_000
_BLOCK_BYTES = 1 << 22

_PHASES = dict(zip("AR1BS2CT3P+N-Z0", "AAABBBCCC112200", strict=True))
_WORDS = {"volt": "V", "volts": "V", "amp": "A", "amps": "A", "rads": "rad", "degs": "deg", "none": "", "-": ""}
_UNSCALED = frozenset(
    {Quantity.VOLTAGE_ANGLE, Quantity.CURRENT_ANGLE, Quantity.FREQUENCY, Quantity.ROCOF, Quantity.DIGITAL, None}
)


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
        nominal_hz=round(cfg.frequency) if round(cfg.frequency) in (50, 60) else 0,
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


def _layout(record: Record) -> np.dtype[np.void]:
    """Lay out a binary row."""
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
    size = _layout(record).itemsize
    rows, rest = divmod(record.size_bytes, size)
    if rest or rows != record.samples:
        raise ArchiveError(
            f"{record.values_path}: {record.samples:,} rows of {size} bytes make {record.samples * size:,} bytes; "
            f"it holds {record.size_bytes:,} ({rows:,} rows and {rest} bytes): cut off, or not of this configuration"
        )


def place(record: Record, channels: str | os.PathLike[str] | None) -> Plan:
    """Say what the channels of somebody else's record are.

    Parameters
    ----------
    record
        From `open_record`.
    channels
        A map of them (see `placing.read_map`); None to guess from names, phases and units.

    Returns
    -------
    Plan
        With the ratio of secondary values in the scale of their columns.

    Raises
    ------
    ArchiveError
        If the map cannot be read, or a channel cannot be placed.
    """
    if channels is not None:
        plan = read_map(channels, record.columns, record.units)
    else:
        own = tuple(c for c in record.columns[1:] if c.rpartition(".")[2] == TIME_FLAGS or c == TIME_FLAGS)
        placed = _places(record)
        rest = [c for c in record.columns[1:] if c not in placed and c not in own]
        guessed = guess([TIME, *rest], record.units, record.station or record.path.stem).placements if rest else ()
        placed |= {p.column: _with_phase(p, record) for p in guessed}
        placements = tuple(placed[c] for c in record.columns[1:] if c in placed)
        if not placements:
            raise ArchiveError(f"{record.path}: has no channel")
        plan = Plan(TIME, placements, guessed=True, ignored=own)
    ratios = {a.column: a.ratio for a in record.analogs if a.ratio != 1}
    return replace(
        plan,
        placements=tuple(
            replace(p, scale=p.scale * ratios[p.column]) if p.column in ratios and p.quantity not in _UNSCALED else p
            for p in plan.placements
        ),
    )


def _with_phase(placement: Placement, record: Record) -> Placement:
    """Add the phase that the record states where the name tells none."""
    stated = next((a.phase.upper() for a in record.analogs if a.column == placement.column), "")
    if placement.phase is Phase.UNKNOWN and stated in ("A", "B", "C") and placement.quantity not in _UNSCALED:
        return replace(placement, phase=Phase(stated))
    return placement


def _places(record: Record) -> dict[str, Placement]:
    """Place what annex H of the revision of 2013 names: phasors, frequencies, STAT and digital words, single bits."""
    voltage = {
        (a.name, a.phase[:1].upper()): a.unit.lower() in ("v", "kv")
        for a in record.analogs
        if a.unit.lower() in ("v", "kv", "a", "ka")
    }
    placed: dict[str, Placement] = {}
    for a in record.analogs:
        pmu, _, channel = (part.strip() for part in a.name.partition(":"))
        phase, kind = a.phase[:1].upper(), a.phase.upper()
        alone = pmu.lower() in ("f", "freq", "frequency", "df", "dfdt", "df/dt", "rocof")
        quantity = None
        if split_column(a.name) is not None:
            continue
        if kind == "F" and a.unit.lower() in ("", "hz", "mhz"):
            quantity = Quantity.FREQUENCY
        elif kind == "DF":
            quantity = Quantity.ROCOF
        elif len(kind) == 2 and phase in _PHASES and kind[1] in "MA" and (a.name, phase) in voltage:
            sizes = (Quantity.VOLTAGE_MAGNITUDE, Quantity.CURRENT_MAGNITUDE)
            angles = (Quantity.VOLTAGE_ANGLE, Quantity.CURRENT_ANGLE)
            quantity = (sizes if kind[1] == "M" else angles)[not voltage[a.name, phase]]
        if quantity is None:
            continue
        name = (record.station or record.path.stem) if alone and not channel else pmu
        is_phasor = quantity not in (Quantity.FREQUENCY, Quantity.ROCOF)
        made = Placement(
            a.column, name, channel or str(quantity), quantity, Phase(_PHASES[phase]) if is_phasor else Phase.UNKNOWN
        )
        placed[a.column] = in_unit(made, a.unit, f"channel {a.column!r}")
    names = {p.pmu for p in placed.values()}
    only = names.pop() if len(names) == 1 else record.station or record.path.stem
    for word in record.words:
        pmu, colon, channel = (part.strip() for part in word.column.partition(":"))
        if word.is_stat and not word.column.startswith(":"):
            placed[word.column] = Placement(word.column, word.column.rpartition(":")[0].strip(), STAT, None)
        elif colon:
            placed[word.column] = Placement(word.column, pmu or only, channel, Quantity.DIGITAL)
        else:
            placed[word.column] = Placement(word.column, only, word.column, Quantity.DIGITAL)
    return placed


def own_columns(table: ChannelTable) -> tuple[str, ...]:
    """Name the channels of a record of our own.

    Parameters
    ----------
    table
        All PMUs, of one source or several.

    Returns
    -------
    tuple[str, ...]
        The time flags of each source, then the STAT word and the channels of each PMU.
    """
    sources = sources_of(table)
    flags = [source_column(TIME_FLAGS, s, sources) for s in sources]
    return (*flags, *(c for p in table.pmus for c in (stat_column(p.name), *signal_columns(p))))


def cell(text: str) -> str:
    """Make a text safe between the commas of a configuration; `columns.unescape` undoes it.

    Parameters
    ----------
    text
        Without line ends.

    Returns
    -------
    str
        Without commas and without space around it.
    """
    return text.replace(",", "%2C").strip()


def own_description(record: Record) -> metadata.Description | None:
    """Find the channel table of a record of our own.

    Parameters
    ----------
    record
        From `open_record`.

    Returns
    -------
    metadata.Description | None
        None where there is none, or where the channels are no longer those that it tells. An `ArchiveError` says where
        it cannot be read.
    """
    lines = [line.strip() for line in record.inf.replace("\r", "\n").split("\n")]
    if SECTION not in lines:
        return None
    after = lines[lines.index(SECTION) + 1 :]
    text = next((line for line in after if line.startswith(DESCRIPTION)), "")
    description = metadata.decode(text.removeprefix(DESCRIPTION).encode())
    expected = [cell(c) for c in own_columns(description.table)]
    same = expected == [a.name for a in record.analogs] and not record.words
    return description if same and all(a.ratio == 1 for a in record.analogs) else None


def read_record(record: Record, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Read the rows of a record.

    Parameters
    ----------
    record
        From `open_record`.
    names
        Columns, that of time first.
    rows
        In a chunk, at most.

    Yields
    ------
    pa.RecordBatch
        Time as a stamp in nanoseconds; analogs as float64, or as they are stored where a = 1 and b = 0; status channels
        as uint16.

    Raises
    ------
    ArchiveError
        If a row cannot be read, or if there are fewer or more than the configuration says.
    """
    analogs = {a.column: (i, a) for i, a in enumerate(record.analogs)}
    words = {w.column: w for w in record.words}
    origin = count = 0
    try:
        for number, stamp, analog, status in _rows(record, rows):
            origin = origin if count else int(number[0])
            arrays = [pa.array(_times(record, number, stamp, origin, count)).cast(pa.timestamp("ns", tz="UTC"))]
            for name in names[1:]:
                if name in analogs:
                    i, a = analogs[name]
                    arrays.append(pa.array(_scaled(analog[i], a, record.missing)))
                else:
                    w = words[name]
                    bits = status[:, w.first : w.first + w.bits]
                    arrays.append(pa.array((bits @ (1 << np.arange(w.bits))).astype(np.uint16)))
            yield pa.RecordBatch.from_arrays(arrays, list(names))
            count += len(number)
    except OSError as error:
        raise ArchiveError(f"{record.values_path}: cannot be read: {error}") from error
    if count != record.samples:
        raise ArchiveError(f"{record.values_path}: holds {count:,} rows; its configuration says {record.samples:,}")


def read_own(record: Record, table: ChannelTable, rows: int) -> Iterator[pa.RecordBatch]:
    """Read the rows of a record of our own, with the columns of a Parquet archive.

    Parameters
    ----------
    record
        From `open_record`.
    table
        From `own_description`.
    rows
        In a chunk, at most.

    Yields
    ------
    pa.RecordBatch
        Time flags are null where a source sent nothing.
    """
    names = own_columns(table)
    flags = len(sources_of(table))
    for batch in read_record(record, record.columns, rows):
        columns = list(batch.columns)
        for i, name in enumerate(names, 1):
            if i <= flags or name.rpartition(".")[2] == STAT:
                cells = columns[i].to_numpy(zero_copy_only=False)
                words = np.nan_to_num(cells).astype(np.uint8 if i <= flags else np.uint16)
                columns[i] = pa.array(words, mask=np.isnan(cells))
        yield pa.RecordBatch.from_arrays(columns, [TIME, *names])


def _scaled(stored: NDArray[Any], analog: Analog, missing: float) -> NDArray[Any]:
    if stored.dtype != np.float32 or (analog.a, analog.b) != (1, 0):
        values = stored * np.float64(analog.a) + analog.b
    else:
        values = stored.copy()
    values[stored == missing] = np.nan
    return values


def regular_times(start_ns: int, resolution_ns: int, rate_hz: float, number: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tell when the rows of a steady rate were measured.

    A start that is a reporting time of a whole rate, to the digits in which it is written, is taken for that one: after
    .033333 come .066667 and .1, as counted from midnight, not what a rounded start adds up to.

    Parameters
    ----------
    start_ns
        Of row 0, UTC.
    resolution_ns
        Of the start as written; above a microsecond the start is taken as it stands.
    rate_hz
        Rows a second.
    number
        `(T,)` of each row, counted from 0.

    Returns
    -------
    NDArray[np.int64]
        `(T,)` nanoseconds, UTC.
    """
    day = start_ns // _DAY_NS * _DAY_NS
    slot = round((start_ns - day) * rate_hz / 1e9)
    whole = rate_hz == round(rate_hz) or abs(1 / rate_hz - round(1 / rate_hz)) < 1e-9
    near = abs(slot * 1e9 / rate_hz - (start_ns - day)) < max(resolution_ns, 1.0)
    origin_ns, first = (day, slot) if whole and near and resolution_ns <= 1000 else (start_ns, 0)
    times: NDArray[np.int64] = origin_ns + np.rint((number + first) * 1e9 / rate_hz).astype(np.int64)
    return times


def _times(
    record: Record, number: NDArray[np.int64], stamp: NDArray[np.float64], origin: int, count: int
) -> NDArray[np.int64]:
    if record.rate_hz:
        return regular_times(record.start_ns, record.resolution_ns, record.rate_hz, number - origin)
    absent = np.flatnonzero(~(stamp < NO_STAMP) if record.form != "ASCII" else np.isnan(stamp))
    if len(absent):
        raise ArchiveError(f"{record.values_path}: row {count + int(absent[0]) + 1} has no time, and no rate is stated")
    times: NDArray[np.int64] = record.start_ns + np.rint(stamp * record.tick_ns).astype(np.int64)
    return times


_Rows = tuple[NDArray[np.int64], NDArray[np.float64], Any, NDArray[np.int64]]


def _rows(record: Record, rows: int) -> Iterator[_Rows]:
    """Read sample numbers, stamps, analogs by channel and status bits by row."""
    if record.form == "ASCII":
        yield from _ascii_rows(record, rows)
        return
    layout = _layout(record)
    stored = np.memmap(record.values_path, layout, "r", record.offset_bytes, (record.samples,))
    for start in range(0, record.samples, rows):
        piece = np.asarray(stored[start : start + rows])
        bits = np.unpackbits(np.ascontiguousarray(piece["status"]).view(np.uint8), axis=1, bitorder="little")
        yield (
            piece["number"].astype(np.int64),
            piece["stamp"].astype(np.float64),
            np.ascontiguousarray(piece["analog"].T),
            bits.astype(np.int64),
        )


def _ascii_rows(record: Record, rows: int) -> Iterator[_Rows]:
    names = ["sample number", "time stamp", *record.columns[1 : 1 + len(record.analogs)]]
    names += [f"status {i}" for i in range(1, record.statuses + 1)]
    keys = [str(i) for i in range(len(names))]
    analogs = len(record.analogs)
    try:
        with pa.memory_map(str(record.values_path)) as file:
            octets = file.read_buffer().slice(record.offset_bytes, record.size_bytes)
            end = len(octets)
            while end and octets.slice(end - 1).to_pybytes() in (b"\x1a", b"\r", b"\n", b" "):
                octets = octets.slice(0, end := end - 1)
            with pc.open_csv(
                pa.BufferReader(octets),
                read_options=pc.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, column_names=keys),
                parse_options=pc.ParseOptions(quote_char=False),
                convert_options=pc.ConvertOptions(column_types=dict.fromkeys(keys, pa.float64()), null_values=[""]),
            ) as reader:
                for batch in reader:
                    for start in range(0, batch.num_rows, rows):
                        piece = batch.slice(start, rows)
                        cells = np.stack([c.to_numpy(zero_copy_only=False) for c in piece.columns])
                        if not np.isfinite(cells[0]).all() or not np.isin(cells[2 + analogs :], (0, 1)).all():
                            raise ArchiveError(f"{record.values_path}: a sample number or status channel is no number")
                        status = cells[2 + analogs :].T.astype(np.int64)
                        yield cells[0].astype(np.int64), cells[1], cells[2 : 2 + analogs], status
    except pa.ArrowInvalid as error:
        raise ArchiveError(f"{record.values_path}{_plainly(str(error), names)}") from error


def _plainly(message: str, names: Sequence[str]) -> str:
    """Say in our words what Arrow says of a row."""
    found = _WHERE.search(message)
    if found is None:
        return ": there are no rows in it" if "Empty CSV" in message else f": cannot be read as ASCII rows: {message}"
    column, row, rest = found.groups()
    if column is None:
        return f", line {row}: {rest.splitlines()[0][:120]}; every row has {len(names)} cells"
    value = re.search(r"invalid value '(.*)'", rest, re.DOTALL)
    return f", line {row}, {names[int(column)]!r}: {value[1][:40]!r} is no number" if value else f", line {row}: {rest}"
