"""Which column is what: from a map, or guessed from the columns' names.

In: column names, units where the file states them, and a map where there is one. Out: a plan (a place for each
column) and the channel table made of it. A column that cannot be placed is refused by name. It reads no values.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streams.archives.columns import STAT, TIME, split_column, unescape
from streams.channels import UNITS, Channel, ChannelTable, Phase, Pmu, Quantity
from streams.errors import ArchiveError

MAP_HEADER = ("column", "pmu", "quantity", "phase", "unit", "nominal")

_V, _VA = Quantity.VOLTAGE_MAGNITUDE, Quantity.VOLTAGE_ANGLE
_I, _IA = Quantity.CURRENT_MAGNITUDE, Quantity.CURRENT_ANGLE

_SCALES: dict[str, tuple[str, float]] = {
    "v": ("V", 1),
    "kv": ("V", 1e3),
    "mv": ("V", 1e6),
    "a": ("A", 1),
    "ka": ("A", 1e3),
    "deg": ("deg", 1),
    "degree": ("deg", 1),
    "degrees": ("deg", 1),
    "°": ("deg", 1),
    "rad": ("deg", 57.29577951308232),
    "radian": ("deg", 57.29577951308232),
    "radians": ("deg", 57.29577951308232),
    "hz": ("Hz", 1),
    "mhz": ("Hz", 1e-3),
    "hz/s": ("Hz/s", 1),
    "mhz/s": ("Hz/s", 1e-3),
    "w": ("W", 1),
    "kw": ("W", 1e3),
    "mw": ("W", 1e6),
    "var": ("var", 1),
    "kvar": ("var", 1e3),
    "mvar": ("var", 1e6),
    "pu": ("pu", 1),
    "p.u.": ("pu", 1),
    "p.u": ("pu", 1),
}
"""Units that files use, in lower case: the unit kept, and how many of it one is."""

_TIME_NAMES = re.compile(
    r"^(time|times|timestamp|time[ _-]?stamp|datetime|date[ _-]?time|date|t|utc|epoch|soc|ts)"
    r"([ _-]?(utc|gmt|s|sec|seconds|ms|us|ns|epoch|stamp))?\s*([\[(].*[\])])?$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Placement:
    """One column's place.

    Attributes
    ----------
    column
        Name in the file.
    pmu
        Which PMU it belongs to.
    channel
        The device's name for it; magnitude and angle of one phasor share it.
    quantity
        What it measures; None for a STAT word.
    phase
        Phase or component, where known.
    unit
        Unit in which the values will be kept.
    scale
        What the file's values are multiplied by to come to that unit.
    nominal
        In `unit`, or None.
    """

    column: str
    pmu: str
    channel: str
    quantity: Quantity | None
    phase: Phase = Phase.UNKNOWN
    unit: str = ""
    scale: float = 1.0
    nominal: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Places for the columns of a file.

    Attributes
    ----------
    time
        Name of the time column.
    placements
        All other columns that are read, in the order of the file.
    guessed
        True where the names told, False where a map did.
    ignored
        Columns that the map leaves out.
    """

    time: str
    placements: tuple[Placement, ...]
    guessed: bool
    ignored: tuple[str, ...] = ()

    def table(self, source: str, nominal_hz: int) -> ChannelTable:
        """Make the channel table.

        Parameters
        ----------
        source
            Of all PMUs: the file's name.
        nominal_hz
            Of the PMUs whose frequency has no nominal value.

        Returns
        -------
        ChannelTable
            PMUs in the order of their first column; a PMU of which only a STAT column came is there without channels.
        """
        rows: dict[str, list[Placement]] = defaultdict(list)
        for placement in self.placements:
            rows[placement.pmu].append(placement)
        pmus = []
        for name, own in rows.items():
            signals = [p for p in own if p.quantity is not None]
            stated = [p.nominal for p in signals if p.quantity is Quantity.FREQUENCY and p.nominal]
            hz = 50 if stated and stated[0] < 55 else 60 if stated else nominal_hz
            channels = tuple(
                Channel(
                    p.channel,
                    p.quantity,
                    p.phase,
                    p.unit,
                    float(hz) if p.quantity is Quantity.FREQUENCY and p.nominal is None else p.nominal,
                )
                for p in signals
                if p.quantity is not None
            )
            pmus.append(Pmu(name, 0, name, hz, channels, source))
        return ChannelTable(tuple(pmus))


def find_time(columns: Sequence[str]) -> str:
    """Find the time column.

    Parameters
    ----------
    columns
        All names of the file.

    Returns
    -------
    str
        The first column with a name for time.

    Raises
    ------
    ArchiveError
        If none has.
    """
    for name in columns:
        if _TIME_NAMES.match(name.strip()):
            return name
    raise ArchiveError(
        f"no time column among {', '.join(map(repr, columns[:8]))}{' ...' if len(columns) > 8 else ''}; "
        f"call it `{TIME}` (others known: timestamp, datetime, date, utc, epoch, t)"
    )


def read_map(path: str | os.PathLike[str], columns: Sequence[str], units: Mapping[str, str] | None = None) -> Plan:
    """Read a channel map and lay it on a file's columns.

    Parameters
    ----------
    path
        A CSV file with the header `MAP_HEADER`; phase, unit and nominal may be empty.
    columns
        All names of the data file.
    units
        By column, where the data file states them; the map's own come first.

    Returns
    -------
    Plan
        One place for each row of the map.

    Raises
    ------
    ArchiveError
        If the map cannot be read, names a column that is not there or one twice, or has a word that is no quantity,
        phase, unit or number.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = tuple(h.strip().lower() for h in reader.fieldnames or ())
            reader.fieldnames = list(header)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArchiveError(f"{path}: the channel map cannot be read: {error}") from error
    absent = [h for h in MAP_HEADER[:3] if h not in header]
    if absent:
        raise ArchiveError(f"{path}: the map lacks {', '.join(absent)}; its header is {','.join(MAP_HEADER)}")
    time = find_time(columns)
    placements = [_from_map(row, f"{path}, line {i}", columns, units or {}) for i, row in enumerate(rows, 2)]
    for column, count in Counter(p.column for p in placements).items():
        if count > 1:
            raise ArchiveError(f"{path}: the map names the column {column!r} {count} times")
    if not placements:
        raise ArchiveError(f"{path}: the map has no rows")
    named = {p.column for p in placements}
    return Plan(time, _pair(placements), guessed=False, ignored=tuple(c for c in columns if c not in {time, *named}))


def _from_map(row: Mapping[str, str | None], where: str, columns: Sequence[str], units: Mapping[str, str]) -> Placement:
    """Read one row of a map."""
    cells = {key: (row.get(key) or "").strip() for key in MAP_HEADER}
    column = cells["column"]
    if column not in columns:
        raise ArchiveError(f"{where}: the data has no column {column!r}")
    if not cells["pmu"]:
        raise ArchiveError(f"{where}: column {column!r} has no pmu")
    try:
        quantity = Quantity(cells["quantity"].lower())
    except ValueError as error:
        known = ", ".join(Quantity)
        raise ArchiveError(f"{where}: {cells['quantity']!r} is no quantity; known are {known}") from error
    try:
        phase = Phase(cells["phase"].upper())
    except ValueError as error:
        raise ArchiveError(f"{where}: {cells['phase']!r} is no phase; write A, B, C, 1, 2, 0 or nothing") from error
    try:
        nominal = float(cells["nominal"]) if cells["nominal"] else None
    except ValueError as error:
        raise ArchiveError(f"{where}: the nominal {cells['nominal']!r} is no number") from error
    parts = split_column(column)
    guess = _read_name(column, "")
    name = parts[1] if parts else guess.channel if guess and guess.quantity is quantity else column
    placement = Placement(column, cells["pmu"], name, quantity, phase, nominal=nominal)
    return in_unit(placement, cells["unit"] or units.get(column, ""), where)


def in_unit(placement: Placement, unit: str, where: str) -> Placement:
    """Give a place its unit: the stated one brought to the one kept, or that of the quantity.

    Parameters
    ----------
    placement
        Of a column.
    unit
        As the file or a map states it; empty where neither does.
    where
        For the message.

    Returns
    -------
    Placement
        With the unit that is kept, and the scale to it.

    Raises
    ------
    ArchiveError
        If it is no unit of the quantity.
    """
    quantity = placement.quantity
    if quantity is None:
        return placement
    if quantity in (Quantity.ANALOG, Quantity.DIGITAL):
        return replace(placement, unit=unit)
    if not unit:
        return replace(placement, unit=UNITS[quantity])
    kept, scale = _SCALES.get(unit.lower(), ("", 1.0))
    if unit == "mV":
        scale = 1e-3
    if unit == "mW":
        scale = 1e-3
    if kept == "pu" and quantity is Quantity.FREQUENCY:
        hz = placement.nominal or 60.0
        return replace(placement, unit="Hz", scale=hz, nominal=hz)
    if kept != "pu" and kept != UNITS[quantity]:
        raise ArchiveError(f"{where}: {unit!r} is no unit of {quantity}; {UNITS[quantity]} is kept, pu is possible")
    nominal = placement.nominal * scale if placement.nominal is not None else None
    return replace(placement, unit=kept, scale=scale, nominal=nominal)


def guess(columns: Sequence[str], units: Mapping[str, str], default_pmu: str) -> Plan:
    """Guess from the names what the columns are.

    Parameters
    ----------
    columns
        All names of the file.
    units
        By column, where the file has a row of units or says so otherwise.
    default_pmu
        The PMU of columns whose names tell none.

    Returns
    -------
    Plan
        A place for every column but that of time.

    Raises
    ------
    ArchiveError
        If a column cannot be placed; the message names all that cannot.
    """
    time = find_time(columns)
    others = [c for c in columns if c != time]
    numbered = _numbered_buses(others)
    readings = {c: _read_name(c, default_pmu, numbered=numbered) for c in others}
    kinds: dict[str, set[str]] = defaultdict(set)
    for reading in readings.values():
        if reading is not None:
            kinds[reading.pmu].add(reading.kind)
    placements, refused = [], []
    for column, reading in readings.items():
        place = reading.settle(kinds[reading.pmu]) if reading is not None else None
        if place is None:
            refused.append(column)
        else:
            stated = units.get(column) or (reading.unit if reading is not None else "")
            placements.append(in_unit(place, stated, f"column {column!r}"))
    if refused:
        raise ArchiveError(
            f"cannot tell what {'this column is' if len(refused) == 1 else 'these columns are'}: "
            f"{', '.join(map(repr, refused[:20]))}{' ...' if len(refused) > 20 else ''}; "
            f"say it in a map: --channels MAP.csv with the header {','.join(MAP_HEADER)}"
        )
    if not placements:
        raise ArchiveError(f"there is no column beside {time!r}")
    return Plan(time, _pair(placements), guessed=True)


def look_at_values(
    plan: Plan, values: Mapping[str, NDArray[np.float64]], units: Mapping[str, str]
) -> tuple[Plan, int, tuple[str, ...]]:
    """Settle by the first rows what names leave open: per unit, and 50 or 60 Hz.

    Parameters
    ----------
    plan
        Its guessed columns without a stated unit may change theirs.
    values
        By column, the first rows.
    units
        By column, what the file states.

    Returns
    -------
    tuple[Plan, int, tuple[str, ...]]
        The plan, the nominal frequency for PMUs that state none, and what was assumed, in sentences.
    """
    notes = []
    middle = {p.column: _median(values.get(p.column)) for p in plan.placements}
    hz = [m * p.scale for p in plan.placements if p.quantity is Quantity.FREQUENCY and (m := middle[p.column]) > 0]
    nominal_hz = 50 if hz and abs(_median(np.array(hz)) - 50) < 5 else 60
    if not any(abs(f - nominal_hz) < 5 for f in hz):
        notes.append("no frequency tells the nominal one: 60 Hz is assumed")
    placements, per_unit, radians = [], 0, 0
    for p in plan.placements:
        open_unit = plan.guessed and not units.get(p.column) and p.scale == 1 and p.unit != "pu"
        changed = p
        if open_unit and p.quantity is Quantity.VOLTAGE_MAGNITUDE and 0.3 < middle[p.column] < 3:
            changed, per_unit = replace(p, unit="pu", nominal=1.0), per_unit + 1
        elif open_unit and p.quantity is Quantity.FREQUENCY and 0.8 < middle[p.column] < 1.2:
            changed = replace(p, scale=float(nominal_hz), nominal=float(nominal_hz))
        elif open_unit and p.quantity in (_VA, _IA):
            radians += _largest(values.get(p.column)) <= np.pi
        placements.append(changed)
    if per_unit:
        notes.append(f"{per_unit} voltage magnitudes of about 1 are taken as per unit")
    if radians:
        notes.append(
            f"{radians} angles without a unit are taken as degrees though all lie within 3.14; "
            "if they are radians, say so in a map"
        )
    return replace(plan, placements=tuple(placements)), nominal_hz, tuple(notes)


def _median(values: NDArray[np.float64] | None) -> float:
    """Median of what is there; 0 where nothing is."""
    finite = values[np.isfinite(values)] if values is not None else np.zeros(0)
    return float(np.median(finite)) if len(finite) else 0.0


def _largest(values: NDArray[np.float64] | None) -> float:
    """Largest absolute value of what is there; 0 where nothing is."""
    finite = values[np.isfinite(values)] if values is not None else np.zeros(0)
    return float(np.abs(finite).max(initial=0.0))


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a name says by itself. `kind` is its compact form: ``v``, ``va``, ``vam``, ``vaa``, ``f`` ..."""

    column: str
    pmu: str
    channel: str
    kind: str
    quantity: Quantity | None
    phase: Phase
    unit: str

    def settle(self, kinds: set[str]) -> Placement | None:
        """Decide what the PMU's other columns must decide; None where they do not."""
        quantity, phase, channel = self.quantity, self.phase, self.channel
        if self.kind in _EITHER:  # an angle beside VM, phase A beside VB
            letter = self.kind[0]
            voltage = letter != "i"
            if {letter + "m", letter} & kinds:
                quantity, phase, channel = (_VA if voltage else _IA), Phase.UNKNOWN, letter.upper()
            elif {letter + "b", letter + "c", letter + "am", letter + "aa"} & kinds:
                quantity = _V if voltage else _I
            else:
                return None
        elif self.kind == "a" and not {"v", "vm"} & kinds:  # A_101 is the angle of V_101, or nobody knows
            return None
        return Placement(self.column, self.pmu, channel, quantity, phase)


_UNIT = re.compile(r"\s*[\[(]\s*([^\])]*?)\s*[\])]\s*$")
_SEPARATORS = re.compile(r"[\s_.:;|/\\\-]+")
_MAGNITUDE = frozenset({"mag", "magnitude", "m", "abs", "rms", "amplitude", "amp"})
_ANGLE = frozenset({"ang", "angle", "phi", "theta", "arg"})
_VOLTAGE = frozenset({"v", "u", "volt", "voltage", "volts"})
_CURRENT = frozenset({"i", "current", "curr", "amps"})
_PHASE_WORDS = {
    "a": Phase.A,
    "b": Phase.B,
    "c": Phase.C,
    "an": Phase.A,
    "bn": Phase.B,
    "cn": Phase.C,
    "pos": Phase.POSITIVE,
    "positive": Phase.POSITIVE,
    "posseq": Phase.POSITIVE,
    "p": Phase.POSITIVE,
    "neg": Phase.NEGATIVE,
    "negative": Phase.NEGATIVE,
    "zero": Phase.ZERO,
}
_COMPACT_PHASES = _PHASE_WORDS | {"1": Phase.POSITIVE, "2": Phase.NEGATIVE, "0": Phase.ZERO, "n": Phase.NEGATIVE}
_NOISE = frozenset({"seq", "sequence", "phase", "phasor", "ph", "value", "power", "pm", "l"})
_WHOLE: dict[str, Quantity | None] = {
    "f": Quantity.FREQUENCY,
    "fr": Quantity.FREQUENCY,
    "freq": Quantity.FREQUENCY,
    "frequency": Quantity.FREQUENCY,
    "fq": Quantity.FREQUENCY,
    "r": Quantity.ROCOF,
    "rocof": Quantity.ROCOF,
    "dfdt": Quantity.ROCOF,
    "df": Quantity.ROCOF,
    "p": Quantity.ACTIVE_POWER,
    "mw": Quantity.ACTIVE_POWER,
    "active": Quantity.ACTIVE_POWER,
    "q": Quantity.REACTIVE_POWER,
    "mvar": Quantity.REACTIVE_POWER,
    "var": Quantity.REACTIVE_POWER,
    "reactive": Quantity.REACTIVE_POWER,
    "analog": Quantity.ANALOG,
    "digital": Quantity.DIGITAL,
    "dig": Quantity.DIGITAL,
    "stat": None,
    "status": None,
    "flags": None,
    "vphm": _V,
    "vpha": _VA,
    "iphm": _I,
    "ipha": _IA,
    "theta": _VA,
    "th": _VA,
    "a": _VA,
    "ang": _VA,
    "angle": _VA,
}
_LABELS = {
    Quantity.FREQUENCY: "frequency",
    Quantity.ROCOF: "rocof",
    Quantity.ACTIVE_POWER: "P",
    Quantity.REACTIVE_POWER: "Q",
    _V: "V",
    _VA: "V",
    _I: "I",
    _IA: "I",
}
_COMPACT = re.compile(
    r"^([vui])(a|b|c|an|bn|cn|pos|neg|zero|p|n|[0-2])?([ly]?pm|ln|ll)?(m|mag|a|ang|angle|magnitude)?$"
)
_NUMBERED = re.compile(r"^([vuiafrpq])(\d+)$")
_COUNTED = re.compile(r"^(analog|digital|dig)(\d*)$")


def _numbered_buses(columns: Sequence[str]) -> bool:
    """Tell whether V1, V2, V3 ... count buses (no V4 is a component) rather than symmetrical components."""
    found = [_NUMBERED.match(c.strip().lower()) for c in columns]
    return any(m is not None and int(m[2]) > 2 for m in found)


def _read_name(column: str, default_pmu: str, *, numbered: bool = False) -> _Reading | None:
    """Read a name word by word; the words that say nothing about the quantity are the PMU."""
    own = split_column(column)
    if own is not None:
        pmu, channel, quantity = own
        return _Reading(column, pmu, channel, str(quantity), quantity, Phase.UNKNOWN, "")
    if column.count(".") == 1 and column.endswith("." + STAT):
        return _Reading(column, unescape(column.removesuffix("." + STAT)), STAT, STAT, None, Phase.UNKNOWN, "")
    unit = ""
    text = column.strip()
    if found := _UNIT.search(text):
        unit, text = found[1], text[: found.start()]
    words = [w for w in _SEPARATORS.split(_ROCOF.sub("dfdt", text)) if w]
    if len(words) > 1 and words[-1].lower() in _SCALES and words[-1].lower() not in _WHOLE | _LETTERS:
        unit = unit or words[-1]
        del words[-1]
    name = _Name(numbered)
    for word in words:
        name.take(word)
    return name.reading(column, default_pmu, unit)


_ROCOF = re.compile(r"df/dt", re.IGNORECASE)
_LETTERS = dict.fromkeys("vuia")


@dataclass(slots=True)
class _Name:
    """A name, as far as it has been read. The first rule that takes a word keeps it."""

    numbered: bool
    letter: str = ""
    role: str = ""
    compact: str = ""
    phase: Phase = Phase.UNKNOWN
    whole: str = ""
    label: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)

    def take(self, word: str) -> None:
        """Read one more word; what says nothing of the quantity is the PMU's."""
        low = word.lower()
        taken = (
            self._numbered(low)
            or self._counted(word, low)
            or self._detail(low)
            or self._phasor(low)
            or self._quantity(low)
            or (low in _NOISE and bool(self.letter or self.whole))
        )
        if not taken:
            self.rest.append(word)

    def _numbered(self, low: str) -> bool:
        """F101 is the frequency of PMU 101, V101 its voltage; V1 is a component unless there is a V3."""
        found = _NUMBERED.match(low)
        if not found or self.letter or self.whole:
            return False
        if low[0] in "vui" and len(found[2]) == 1 and not self.numbered:
            return False
        self.letter, self.whole = (low[0], "") if low[0] in "vui" else ("", low[0])
        self.rest.append(found[2])
        return True

    def _counted(self, word: str, low: str) -> bool:
        """Analogs and digitals have numbers, in the word or after it."""
        found = _COUNTED.match(low)
        if found and not self.whole:
            self.whole = found[1]
        elif not (low.isdigit() and _COUNTED.match(self.whole)):
            return False
        self.label.append(word)
        return True

    def _detail(self, low: str) -> bool:
        """Phase, and magnitude or angle, after the word for voltage or current."""
        if low in _MAGNITUDE | _ANGLE and (self.letter or low not in ("m", "amp")):
            self.role = "m" if low in _MAGNITUDE else "a"
            return True
        if self.letter and low in _PHASE_WORDS and self.phase is Phase.UNKNOWN:
            self.phase = _PHASE_WORDS[low]
            return True
        return False

    def _phasor(self, low: str) -> bool:
        """Voltage or current, in a word or in a letter with phase and role behind it."""
        if self.letter or self.whole:
            return False
        if low in _VOLTAGE | _CURRENT:
            self.letter = "i" if low in _CURRENT else "v"
            return True
        found = _COMPACT.match(low)
        if not found:
            return False
        self.letter, self.compact = found[1], low
        self.phase = _COMPACT_PHASES[found[2]] if found[2] else Phase.UNKNOWN
        if found[4]:
            self.role = found[4][0]
        return True

    def _quantity(self, low: str) -> bool:
        """Take a word that says it all."""
        if low not in _WHOLE or self.whole or self.letter:
            return False
        self.whole = low
        return True

    def reading(self, column: str, default_pmu: str, unit: str) -> _Reading | None:
        """Say what it comes to; None where no word told the quantity."""
        pmu = " ".join(self.rest) or default_pmu
        if self.letter:
            voltage = self.letter != "i"
            undecided = self.compact in _EITHER and not self.role
            quantity = (_VA if voltage else _IA) if self.role == "a" else (_V if voltage else _I)
            kind = self.compact if undecided else self.letter + str(self.phase).lower() + self.role
            return _Reading(column, pmu, ("V" if voltage else "I") + str(self.phase), kind, quantity, self.phase, unit)
        whole = self.whole or ("angle" if self.role == "a" else "")
        if not whole:
            return None
        quantity_or_stat = _WHOLE[whole]
        if quantity_or_stat is None:
            return _Reading(column, pmu, STAT, STAT, None, Phase.UNKNOWN, "")
        label = " ".join(self.label) or _LABELS.get(quantity_or_stat, whole)
        kind = "a" if whole == "a" else str(quantity_or_stat)
        return _Reading(column, pmu, label, kind, quantity_or_stat, Phase.UNKNOWN, unit)


_EITHER = ("va", "ia", "ua")
"""Phase A, or an angle: the PMU's other columns tell."""


def _pair(placements: Sequence[Placement]) -> tuple[Placement, ...]:
    """Let the magnitude and the angle of one phasor share a name, where there is one of each."""
    kinds = {_V: "V", _VA: "V", _I: "I", _IA: "I"}
    groups: dict[tuple[str, str, Phase], list[Placement]] = defaultdict(list)
    for p in placements:
        if p.quantity in kinds:
            groups[p.pmu, kinds[p.quantity], p.phase].append(p)
    renamed: dict[str, str] = {}
    for group in groups.values():
        if len(group) == 2 and {p.quantity for p in group} in ({_V, _VA}, {_I, _IA}):
            magnitude = next(p for p in group if p.quantity in (_V, _I))
            renamed |= {p.column: magnitude.channel for p in group}
    return tuple(replace(p, channel=renamed.get(p.column, p.channel)) for p in placements)
