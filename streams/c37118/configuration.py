"""Configuration frames: what a stream's data frames hold.

In: the bytes of a CFG-1, CFG-2 or CFG-3 frame (CFG-3 also in several frames). Out: frozen definitions, the channel
table made of them, and back to bytes. It decodes no data: `samples` compiles these definitions for that.

References
----------
IEEE Std C37.118.2-2011, clauses 6.4 (CFG-1, CFG-2) and 6.5 (CFG-3).
"""

from __future__ import annotations

import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streams.c37118.frame import EPOCH, MAX_SIZE, MIN_SIZE, PREFIX_SIZE, FrameType, Stamp, read_prefix, wrap
from streams.channels import UNITS, Channel, ChannelTable, Phase, Pmu, Quantity
from streams.errors import ConfigurationError, FrameError

LAST_FRAGMENT = 0xFFFF
"""CONT_IDX of the last of several frames."""

CONFIGURATIONS = (FrameType.CFG1, FrameType.CFG2, FrameType.CFG3)

_NAME_BYTES = 16
_COMPONENTS = (
    Phase.ZERO,
    Phase.POSITIVE,
    Phase.NEGATIVE,
    Phase.UNKNOWN,
    Phase.A,
    Phase.B,
    Phase.C,
    Phase.UNKNOWN,
)
_RESERVED_COMPONENT = 7


@dataclass(frozen=True, slots=True)
class PhasorDefinition:
    """One phasor of a PMU.

    Attributes
    ----------
    name
        Channel name.
    is_current
        A current in A; else a voltage in V.
    scale
        V or A per count. CFG-1 and CFG-2 keep it in steps of 1e-5 and use it for integer phasors only; CFG-3 keeps it
        as float32 and uses it for all.
    phase
        Component as CFG-3 states it; CFG-1 and CFG-2 state none.
    angle_offset_rad
        CFG-3: subtracted from the angle sent.
    modification
        CFG-3: 16 bits that say how the phasor was modified on its way.
    user
        CFG-3: 8 bits of the user's own.
    """

    name: str
    is_current: bool = False
    scale: float = 1.0
    phase: Phase = Phase.UNKNOWN
    angle_offset_rad: float = 0.0
    modification: int = 0
    user: int = 0


@dataclass(frozen=True, slots=True)
class AnalogDefinition:
    """One analog value of a PMU.

    Attributes
    ----------
    name
        Channel name.
    kind
        CFG-1 and CFG-2: 0 a single point on wave, 1 rms, 2 peak, from 65 on the user's own.
    scale
        CFG-3: the value is scale times what is sent plus `offset`. CFG-1 and CFG-2: a signed 24-bit number whose
        meaning is the user's, so that it is kept here and not applied.
    offset
        CFG-3 only.
    """

    name: str
    kind: int = 0
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class DigitalDefinition:
    """One 16-bit digital status word of a PMU.

    Attributes
    ----------
    labels
        16 names, of bit 0 first.
    normal
        Normal state of each bit.
    valid
        Bits in use.
    """

    labels: tuple[str, ...]
    normal: int = 0
    valid: int = 0xFFFF


@dataclass(frozen=True, slots=True)
class Location:
    """What CFG-3 alone tells of a PMU. Unknown places are infinite, as the standard asks.

    Attributes
    ----------
    global_id
        16 bytes, the user's own.
    latitude_deg
        WGS 84, north positive.
    longitude_deg
        WGS 84, east positive.
    elevation_m
        Above mean sea level.
    service_class
        ``M`` or ``P``.
    window_us
        Length of the measurement window.
    group_delay_us
        Group delay of the measurement, already compensated.
    """

    global_id: bytes = bytes(16)
    latitude_deg: float = math.inf
    longitude_deg: float = math.inf
    elevation_m: float = math.inf
    service_class: str = "M"
    window_us: int = 0
    group_delay_us: int = 0


NOWHERE = Location()


@dataclass(frozen=True, slots=True)
class PmuConfiguration:
    """One PMU of a stream.

    Attributes
    ----------
    station
        Station name.
    id_code
        ID code of the data source.
    nominal_hz
        50 or 60.
    phasors
        In the order sent.
    analogs
        In the order sent.
    digitals
        In the order sent.
    polar
        Phasors as magnitude and angle; else real and imaginary part.
    float_phasors
        Phasors as float32; else 16-bit integers.
    float_analogs
        Analogs as float32; else 16-bit integers.
    float_frequency
        Frequency and ROCOF as float32; else 16-bit integers.
    change_count
        Counts the changes of this configuration.
    location
        What CFG-3 adds.
    """

    station: str
    id_code: int
    nominal_hz: int
    phasors: tuple[PhasorDefinition, ...] = ()
    analogs: tuple[AnalogDefinition, ...] = ()
    digitals: tuple[DigitalDefinition, ...] = ()
    polar: bool = True
    float_phasors: bool = True
    float_analogs: bool = True
    float_frequency: bool = True
    change_count: int = 0
    location: Location = NOWHERE

    @property
    def size(self) -> int:
        """Bytes of this PMU in a data frame."""
        return (
            2
            + len(self.phasors) * (8 if self.float_phasors else 4)
            + (8 if self.float_frequency else 4)
            + len(self.analogs) * (4 if self.float_analogs else 2)
            + len(self.digitals) * 2
        )


@dataclass(frozen=True, slots=True)
class ConfigurationFrame:
    """A stream's configuration.

    Attributes
    ----------
    id_code
        ID code of the stream.
    pmus
        In the order of the data frame; at least one.
    data_rate
        Frames a second where positive, seconds a frame where negative, as sent.
    time_base
        Counts of FRACSEC a second, 24 bits.
    kind
        CFG1 (what could be sent), CFG2 or CFG3 (what is sent).
    stamp
        Time stamp as sent.
    version
        Of the sync word: 1 for the 2005 edition, 2 for 2011; 0 for what `streams.ieee1344` translated.
    """

    id_code: int
    pmus: tuple[PmuConfiguration, ...]
    data_rate: int
    time_base: int = 1_000_000
    kind: FrameType = FrameType.CFG2
    stamp: Stamp = EPOCH
    version: int = 2

    @property
    def rate_hz(self) -> float:
        """Frames a second; 0 where the frame states none."""
        return float(self.data_rate) if self.data_rate >= 0 else -1.0 / self.data_rate

    @property
    def data_size(self) -> int:
        """Bytes of a data frame."""
        return MIN_SIZE + sum(p.size for p in self.pmus)


@dataclass(slots=True)
class _Reader:
    """Walk through a configuration's bytes; running over their end is an error that names the field."""

    data: bytes
    at: int = 0

    def take(self, layout: str, field: str) -> tuple[Any, ...]:  # the types are the layout's
        size = struct.calcsize(layout)
        if self.at + size > len(self.data):
            raise ConfigurationError(f"the configuration ends in the middle of {field}: request it again")
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += size
        return values

    def short_name(self, field: str) -> str:
        (raw,) = self.take(f"{_NAME_BYTES}s", field)
        return _text(raw)

    def long_name(self, field: str) -> str:
        (length,) = self.take("B", field)
        (raw,) = self.take(f"{length}s", field)
        return _text(raw)

    def room_for(self, count: int, least: int, field: str) -> None:
        """Refuse a count that cannot be true before looping over it."""
        if self.at + count * least > len(self.data):
            raise ConfigurationError(f"{field} says {count}, more than the frame has room for: request it again")


def decode_configuration(frames: bytes | Sequence[bytes]) -> ConfigurationFrame:
    """Read a configuration.

    Parameters
    ----------
    frames
        One frame, or all frames of a continued CFG-3 in their order.

    Returns
    -------
    ConfigurationFrame
        What it says.

    Raises
    ------
    ConfigurationError
        When it contradicts itself or continuation frames are missing.
    FrameError
        When a frame is damaged or of another kind.
    """
    parts = [bytes(frames)] if isinstance(frames, bytes | bytearray | memoryview) else [bytes(f) for f in frames]
    if not parts:
        raise ConfigurationError("no frame was given")
    prefixes = [read_prefix(p) for p in parts]
    first = prefixes[0]
    for prefix in prefixes:
        if prefix.frame_type not in CONFIGURATIONS:
            raise FrameError(f"a {prefix.frame_type.name} frame came where a configuration was asked for")
    payload = parts[0][PREFIX_SIZE:-2]
    if first.frame_type is FrameType.CFG3:
        indices = [int.from_bytes(p[PREFIX_SIZE : PREFIX_SIZE + 2], "big") for p in parts]
        if indices not in ([0], [*range(1, len(parts)), LAST_FRAGMENT]):
            raise ConfigurationError(f"CONT_IDX runs {indices[:9]}: frames of this CFG-3 are missing; request it again")
        payload = b"".join(p[PREFIX_SIZE + 2 : -2] for p in parts)
    elif len(parts) > 1:
        raise ConfigurationError(f"only a CFG-3 may continue over several frames, not a {first.frame_type.name}")
    reader = _Reader(payload)
    time_base, count = reader.take(">IH", "TIME_BASE and NUM_PMU")
    read_pmu = _read_pmu_long if first.frame_type is FrameType.CFG3 else _read_pmu_short
    reader.room_for(count, 30, "NUM_PMU")
    pmus = tuple(read_pmu(reader) for _ in range(count))
    (rate,) = reader.take(">h", "DATA_RATE")
    if reader.at != len(payload):
        raise ConfigurationError(f"{len(payload) - reader.at} bytes are left after DATA_RATE: request it again")
    configuration = ConfigurationFrame(
        first.id_code, pmus, rate, time_base & 0xFFFFFF, first.frame_type, first.stamp, first.version
    )
    _check(configuration)
    return configuration


def encode_configuration(configuration: ConfigurationFrame) -> list[bytes]:
    """Write a configuration.

    Parameters
    ----------
    configuration
        What to say.

    Returns
    -------
    list[bytes]
        One frame, or several of a CFG-3 that needs more room.

    Raises
    ------
    ConfigurationError
        When it cannot be said: a name too long, a number outside its field, too large for CFG-1 or CFG-2.
    """
    _check(configuration)
    long = configuration.kind is FrameType.CFG3
    write_pmu = _write_pmu_long if long else _write_pmu_short
    try:
        payload = b"".join(
            (
                struct.pack(">IH", configuration.time_base, len(configuration.pmus)),
                *(write_pmu(p) for p in configuration.pmus),
                struct.pack(">h", configuration.data_rate),
            )
        )
    except (struct.error, OverflowError) as error:
        raise ConfigurationError(f"a number does not fit its field: {error}") from error
    if not long:
        if MIN_SIZE + len(payload) > MAX_SIZE:
            raise ConfigurationError(
                f"{len(configuration.pmus)} PMUs need {len(payload)} bytes, too many for a CFG-2 frame: use CFG-3"
            )
        pieces = [payload]
    else:
        room = MAX_SIZE - MIN_SIZE - 2
        cuts = [payload[i : i + room] for i in range(0, len(payload), room)]
        indices = [0] if len(cuts) == 1 else [*range(1, len(cuts)), LAST_FRAGMENT]
        pieces = [struct.pack(">H", i) + c for i, c in zip(indices, cuts, strict=True)]
    kind, code, stamp = configuration.kind, configuration.id_code, configuration.stamp
    try:
        return [wrap(kind, code, stamp, piece, configuration.version) for piece in pieces]
    except FrameError as error:
        raise ConfigurationError(str(error)) from error


def channel_table(configuration: ConfigurationFrame, source: str = "") -> ChannelTable:
    """Name the axes of the stream's blocks.

    Parameters
    ----------
    configuration
        The stream's configuration.
    source
        The connection or file that carries it.

    Returns
    -------
    ChannelTable
        Per PMU: magnitude and angle of each phasor, frequency, ROCOF, analogs, digital words.
    """
    names = _unique([p.station or f"PMU {p.id_code}" for p in configuration.pmus], configuration)
    return ChannelTable(
        tuple(
            Pmu(name, p.id_code, p.station, p.nominal_hz, _channels(p), source)
            for name, p in zip(names, configuration.pmus, strict=True)
        )
    )


def _channels(pmu: PmuConfiguration) -> tuple[Channel, ...]:
    out: list[Channel] = []
    numbered = any(_THIRD.search(p.name) for p in pmu.phasors)
    for phasor in pmu.phasors:
        guess = _guess_phase(phasor.name, numbered=numbered)
        # component 0 is the zero sequence, and what a sender that never set the field leaves there
        stated = phasor.phase not in (Phase.UNKNOWN, Phase.ZERO)
        phase = phasor.phase if stated or guess is Phase.UNKNOWN else guess
        kinds = (
            (Quantity.CURRENT_MAGNITUDE, Quantity.CURRENT_ANGLE)
            if phasor.is_current
            else (Quantity.VOLTAGE_MAGNITUDE, Quantity.VOLTAGE_ANGLE)
        )
        out += [Channel(phasor.name, q, phase, UNITS[q]) for q in kinds]
    out += [
        Channel("frequency", Quantity.FREQUENCY, unit=UNITS[Quantity.FREQUENCY], nominal=float(pmu.nominal_hz)),
        Channel("rocof", Quantity.ROCOF, unit=UNITS[Quantity.ROCOF], nominal=0.0),
    ]
    out += [Channel(a.name, Quantity.ANALOG) for a in pmu.analogs]
    out += [Channel(f"digital {i}", Quantity.DIGITAL) for i in range(1, len(pmu.digitals) + 1)]
    return tuple(out)


def _unique(names: list[str], configuration: ConfigurationFrame) -> list[str]:
    """Append the ID code, and where that too is shared the place, until every name is unique."""
    shared = Counter(names)
    names = [f"{n} {p.id_code}" if shared[n] > 1 else n for n, p in zip(names, configuration.pmus, strict=True)]
    taken: set[str] = set()
    for i, name in enumerate(names):
        place, unique = 1, name
        while unique in taken or (place > 1 and unique in names):
            place += 1
            unique = f"{name} #{place}"
        names[i] = unique
        taken.add(unique)
    return names


_THIRD = re.compile(r"(?:^|[^A-Z0-9])[VIU]_?3(?:[^0-9]|$)", re.IGNORECASE)
_PHASES: tuple[tuple[re.Pattern[str], Callable[[str], Phase]], ...] = (
    (re.compile(r"(?:^|[^A-Z0-9])[VIU]_?([ABC])(?:N|[A-Z]PM)?(?:[^A-Z0-9]|$)"), Phase),
    (re.compile(r"(?:^|[^A-Z])PH(?:ASE)?[ _.-]?([ABC])(?:[^A-Z0-9]|$)"), Phase),
    (
        re.compile(r"(?:^|[^A-Z])[VIU]?_?(POS|NEG|ZERO)(?:ITIVE|ATIVE)?(?:[ _.-]?SEQ(?:UENCE)?)?(?:[^A-Z]|$)"),
        {"POS": Phase.POSITIVE, "NEG": Phase.NEGATIVE, "ZERO": Phase.ZERO}.__getitem__,
    ),
)
_SEQUENCE = re.compile(r"(?:^|[^A-Z0-9])[VIU]_?([012])(?:[A-Z]PM)?(?:[^A-Z0-9]|$)")


def _guess_phase(name: str, *, numbered: bool) -> Phase:
    """Take what the name plainly says (VA, I_B, V1LPM, VPOS, Phase C); V1 beside V3 is a number, not a sequence."""
    upper = name.upper()
    for pattern, phase in _PHASES:
        if found := pattern.search(upper):
            return phase(found[1])
    if not numbered and (found := _SEQUENCE.search(upper)):
        return Phase(found[1])
    return Phase.UNKNOWN


def _check(configuration: ConfigurationFrame) -> None:
    """Refuse what no data frame could follow."""
    if not configuration.pmus:
        raise ConfigurationError("NUM_PMU is 0: a stream holds at least one PMU")
    if not 0 < configuration.time_base < 1 << 24:
        raise ConfigurationError(f"TIME_BASE is {configuration.time_base}: it must be 1 to 16,777,215")
    if configuration.data_size > MAX_SIZE:
        raise ConfigurationError(
            f"a data frame of {configuration.data_size} bytes exceeds {MAX_SIZE}: spread the PMUs over several streams"
        )


def _text(raw: bytes) -> str:
    """Decode a name: UTF-8, or Latin-1 where it is not; trailing blanks and NULs are padding."""
    raw = raw.rstrip(b" \0")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _short(name: str) -> bytes:
    """16 bytes for a name."""
    raw = name.encode()
    if len(raw) > _NAME_BYTES:
        raw = name.encode("latin-1", errors="ignore") if _is_latin(name) else raw
    if len(raw) > _NAME_BYTES:
        raise ConfigurationError(f"the name {name!r} exceeds {_NAME_BYTES} bytes: shorten it or use CFG-3")
    return raw.ljust(_NAME_BYTES)


def _is_latin(name: str) -> bool:
    return all(ord(c) < 256 for c in name)


def _long(name: str) -> bytes:
    """Length and UTF-8."""
    raw = name.encode()
    if len(raw) > 255:
        raise ConfigurationError(f"the name {name[:40]!r}... exceeds 255 bytes: shorten it")
    return bytes([len(raw)]) + raw


def _format(pmu: PmuConfiguration) -> int:
    return pmu.polar | pmu.float_phasors << 1 | pmu.float_analogs << 2 | pmu.float_frequency << 3


def _nominal(word: int) -> int:
    return 50 if word & 1 else 60


def _read_pmu_short(reader: _Reader) -> PmuConfiguration:
    station = reader.short_name("STN")
    id_code, form, phasors, analogs, digitals = reader.take(">5H", "IDCODE, FORMAT and the counts")
    reader.room_for(phasors + analogs, 20, "PHNMR or ANNMR")
    reader.room_for(digitals, 260, "DGNMR")
    names = [reader.short_name("CHNAM") for _ in range(phasors + analogs)]
    labels = [tuple(reader.short_name("CHNAM") for _ in range(16)) for _ in range(digitals)]
    phasor_units = reader.take(f">{phasors}I", "PHUNIT")
    analog_units = reader.take(f">{analogs}I", "ANUNIT")
    masks = reader.take(f">{2 * digitals}H", "DIGUNIT")
    nominal, change_count = reader.take(">HH", "FNOM and CFGCNT")
    return PmuConfiguration(
        station,
        id_code,
        _nominal(nominal),
        tuple(
            PhasorDefinition(n, u >> 24 != 0, (u & 0xFFFFFF) / 1e5)
            for n, u in zip(names[:phasors], phasor_units, strict=True)
        ),
        tuple(
            AnalogDefinition(n, u >> 24, float((u & 0xFFFFFF) - ((u & 0x800000) << 1)))
            for n, u in zip(names[phasors:], analog_units, strict=True)
        ),
        tuple(DigitalDefinition(n, masks[2 * i], masks[2 * i + 1]) for i, n in enumerate(labels)),
        polar=bool(form & 1),
        float_phasors=bool(form & 2),
        float_analogs=bool(form & 4),
        float_frequency=bool(form & 8),
        change_count=change_count,
    )


def _write_pmu_short(pmu: PmuConfiguration) -> bytes:
    counts = (len(pmu.phasors), len(pmu.analogs), len(pmu.digitals))
    parts = [_short(pmu.station), struct.pack(">5H", pmu.id_code, _format(pmu), *counts)]
    parts += [_short(p.name) for p in pmu.phasors]
    parts += [_short(a.name) for a in pmu.analogs]
    parts += [_short(label) for d in pmu.digitals for label in _sixteen(d)]
    for phasor in pmu.phasors:
        factor = round(phasor.scale * 1e5)
        if not 0 <= factor < 1 << 24:
            raise ConfigurationError(
                f"phasor {phasor.name!r}: a scale of {phasor.scale} does not fit PHUNIT (0 to 167.77): use CFG-3"
            )
        parts.append(struct.pack(">I", phasor.is_current << 24 | factor))
    for analog in pmu.analogs:
        factor = round(analog.scale)
        if not -(1 << 23) <= factor < 1 << 23:
            raise ConfigurationError(
                f"analog {analog.name!r}: a scale of {analog.scale} does not fit ANUNIT: use CFG-3"
            )
        parts.append(struct.pack(">I", analog.kind << 24 | factor & 0xFFFFFF))
    parts += [struct.pack(">HH", d.normal, d.valid) for d in pmu.digitals]
    parts.append(struct.pack(">HH", _nominal_word(pmu), pmu.change_count))
    return b"".join(parts)


def _read_pmu_long(reader: _Reader) -> PmuConfiguration:
    station = reader.long_name("STN")
    id_code, global_id, form, phasors, analogs, digitals = reader.take(
        ">H16s4H", "IDCODE, G_PMU_ID, FORMAT and the counts"
    )
    reader.room_for(phasors, 13, "PHNMR")
    reader.room_for(analogs, 9, "ANNMR")
    reader.room_for(digitals, 20, "DGNMR")
    names = [reader.long_name("CHNAM") for _ in range(phasors + analogs)]
    labels = [tuple(reader.long_name("CHNAM") for _ in range(16)) for _ in range(digitals)]
    phasor_scales = [reader.take(">HBBff", "PHSCALE") for _ in range(phasors)]
    analog_scales = [reader.take(">ff", "ANSCALE") for _ in range(analogs)]
    masks = reader.take(f">{2 * digitals}H", "DIGUNIT")
    latitude, longitude, elevation = reader.take(">fff", "PMU_LAT, PMU_LON and PMU_ELEV")
    service, window, delay, nominal, change_count = reader.take(">sIIHH", "SVC_CLASS to CFGCNT")
    return PmuConfiguration(
        station,
        id_code,
        _nominal(nominal),
        tuple(
            PhasorDefinition(n, bool(kind & 8), scale, _COMPONENTS[kind & 7], offset, modification, user)
            for n, (modification, kind, user, scale, offset) in zip(names[:phasors], phasor_scales, strict=True)
        ),
        tuple(
            AnalogDefinition(n, 0, scale, offset)
            for n, (scale, offset) in zip(names[phasors:], analog_scales, strict=True)
        ),
        tuple(DigitalDefinition(n, masks[2 * i], masks[2 * i + 1]) for i, n in enumerate(labels)),
        polar=bool(form & 1),
        float_phasors=bool(form & 2),
        float_analogs=bool(form & 4),
        float_frequency=bool(form & 8),
        change_count=change_count,
        location=Location(global_id, latitude, longitude, elevation, service.decode("latin-1"), window, delay),
    )


def _write_pmu_long(pmu: PmuConfiguration) -> bytes:
    where = pmu.location
    counts = (len(pmu.phasors), len(pmu.analogs), len(pmu.digitals))
    parts = [_long(pmu.station), struct.pack(">H16s4H", pmu.id_code, where.global_id, _format(pmu), *counts)]
    parts += [_long(p.name) for p in pmu.phasors]
    parts += [_long(a.name) for a in pmu.analogs]
    parts += [_long(label) for d in pmu.digitals for label in _sixteen(d)]
    for p in pmu.phasors:
        component = _RESERVED_COMPONENT if p.phase is Phase.UNKNOWN else _COMPONENTS.index(p.phase)
        kind = p.is_current << 3 | component
        parts.append(struct.pack(">HBBff", p.modification, kind, p.user, p.scale, p.angle_offset_rad))
    parts += [struct.pack(">ff", a.scale, a.offset) for a in pmu.analogs]
    parts += [struct.pack(">HH", d.normal, d.valid) for d in pmu.digitals]
    parts.append(struct.pack(">fff", where.latitude_deg, where.longitude_deg, where.elevation_m))
    service = where.service_class.encode("latin-1", errors="replace")[:1]
    parts.append(struct.pack(">sII", service, where.window_us, where.group_delay_us))
    parts.append(struct.pack(">HH", _nominal_word(pmu), pmu.change_count))
    return b"".join(parts)


def _sixteen(digital: DigitalDefinition) -> tuple[str, ...]:
    if len(digital.labels) != 16:
        raise ConfigurationError(f"a digital word has 16 labels, not {len(digital.labels)}: {digital.labels[:3]}...")
    return digital.labels


def _nominal_word(pmu: PmuConfiguration) -> int:
    if pmu.nominal_hz not in (50, 60):
        raise ConfigurationError(f"PMU {pmu.station!r}: nominal_hz is {pmu.nominal_hz}, FNOM can say 50 or 60")
    return int(pmu.nominal_hz == 50)
