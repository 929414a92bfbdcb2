"""Data frames: a configuration compiles to a NumPy dtype, and a batch of frames decodes through one view of its bytes.

In: the bytes of intact data frames of one configuration, one after another. Out: a `FrameBatch`, and back to bytes.
It checks no CRC and looks for no frames: that is `stream`'s. The number of NumPy calls depends on how many distinct
PMU layouts there are, not on how many PMUs, channels or frames.

References
----------
IEEE Std C37.118.2-2011, clause 6.3 (data frame), tables 5 and 6.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastcrc.crc16 import ibm_3740
from numpy.typing import ArrayLike, DTypeLike, NDArray

from streams.block import FrameBatch
from streams.c37118.configuration import ConfigurationFrame, PmuConfiguration, channel_table
from streams.c37118.frame import SYNC, FrameType
from streams.channels import ChannelTable
from streams.errors import FrameError

FILLER = -0x8000
"""Integer that stands for absent data."""

CONFIGURATION_CHANGES = 1 << 10
"""STAT bit 10: the configuration will change within a minute."""

_BLOCK_BYTES = 1 << 18  # of frames decoded at a time, so that the scratch arrays stay in a core's L2 cache
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Group:
    """PMUs of a stream that share one layout.

    Attributes
    ----------
    record
        dtype of one PMU's bytes.
    places
        Where these PMUs stand on the stream axis.
    words
        `(n, w)`: which 16-bit words of a frame they are; None where they lie side by side in field `name`.
    name
        Field of the frame's dtype.
    polar
        Phasors as magnitude and angle.
    float_phasors
        Phasors as float32.
    phasors
        Number of phasors.
    analogs
        Number of analogs.
    digitals
        Number of digital words.
    scale
        `(n, P)` V or A per count.
    angle_count_rad
        What one count of an angle stands for.
    angle_offset_deg
        `(n, P)` to be subtracted; None where there is none.
    analog_scale
        `(n, A)`; None where nothing is to be scaled.
    analog_offset
        `(n, A)`.
    nominal_hz
        `(n, 1)`; None where frequency is sent as such.
    float_analogs
        Analogs as float32.
    """

    record: np.dtype[np.void]
    places: slice | NDArray[np.intp]
    words: NDArray[np.intp] | None
    name: str
    polar: bool
    float_phasors: bool
    phasors: int
    analogs: int
    digitals: int
    scale: NDArray[np.float64]
    angle_count_rad: float
    angle_offset_deg: NDArray[np.float64] | None
    analog_scale: NDArray[np.float64] | None
    analog_offset: NDArray[np.float64] | None
    nominal_hz: NDArray[np.float64] | None
    float_analogs: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """A compiled configuration.

    Attributes
    ----------
    configuration
        What it was compiled from.
    table
        Names of the axes.
    frame
        dtype of one data frame.
    groups
        One for each distinct layout of PMUs.
    """

    configuration: ConfigurationFrame
    table: ChannelTable
    frame: np.dtype[np.void]
    groups: tuple[Group, ...]

    @property
    def size(self) -> int:
        """Bytes of a data frame."""
        return self.frame.itemsize


def compile_layout(configuration: ConfigurationFrame, source: str = "") -> Layout:
    """Compile a configuration to the dtype of its data frames.

    Parameters
    ----------
    configuration
        The stream's configuration.
    source
        The connection or file that carries it.

    Returns
    -------
    Layout
        For `decode` and `encode`.
    """
    prefix = [("sync", ">u1"), ("kind", ">u1"), ("size", ">u2"), ("id_code", ">u2"), ("soc", ">u4"), ("fracsec", ">u4")]
    return lay_out(configuration, channel_table(configuration, source), prefix)


def lay_out(configuration: ConfigurationFrame, table: ChannelTable, prefix: list[tuple[str, str]]) -> Layout:
    """Lay PMUs out behind a prefix.

    Parameters
    ----------
    configuration
        PMUs and their formats.
    table
        Names of the axes.
    prefix
        Fields before the first PMU, as of a NumPy dtype without gaps.

    Returns
    -------
    Layout
        For `decode_values` and `encode_values`.
    """
    kinds: dict[tuple[object, ...], list[int]] = {}
    for place, pmu in enumerate(configuration.pmus):
        kinds.setdefault(_shape(pmu), []).append(place)
    sizes = np.array([p.size for p in configuration.pmus])
    start = np.dtype(prefix).itemsize
    starts = start + np.concatenate(([0], np.cumsum(sizes)[:-1]))
    total = start + int(sizes.sum()) + 2
    fields: dict[str, tuple[Any, int]] = {}
    at = 0
    for name, form in prefix:
        fields[name] = (np.dtype(form), at)
        at += fields[name][0].itemsize
    fields["words"] = (np.dtype((">u2", (total // 2,))), 0)
    groups = []
    for number, places in enumerate(kinds.values()):
        group = _group(configuration, places, starts, f"pmus{number}")
        groups.append(group)
        if group.words is None:
            fields[group.name] = (np.dtype((group.record, (len(places),))), int(starts[places[0]]))
    fields["chk"] = (np.dtype(">u2"), total - 2)
    frame = np.dtype(
        {
            "names": list(fields),
            "formats": [f for f, _ in fields.values()],
            "offsets": [o for _, o in fields.values()],
            "itemsize": total,
        }
    )
    return Layout(configuration, table, frame, tuple(groups))


def decode(
    layout: Layout, frames: Any, arrival_ns: ArrayLike | None = None, dtype: DTypeLike = np.float32
) -> FrameBatch:
    """Decode data frames; a `FrameError` where the bytes are not a whole number of them.

    Parameters
    ----------
    layout
        Of the stream's configuration.
    frames
        Whole, intact data frames of this layout: bytes-like, one after another, or `(T,)` of dtype `layout.frame`.
    arrival_ns
        `(T,)` or one for all: when each frame came; None where nobody knows.
    dtype
        float32 for the pipeline, float64 for exact archives.

    Returns
    -------
    FrameBatch
        `(T, S, C)`, as sent. Angles are what was sent, in degrees: a device that sends ±3.1416 rad reads ±180.0004.
    """
    raw = view(layout, frames)
    base = layout.configuration.time_base
    fracsec = raw["fracsec"].astype(np.int64)
    time_ns = raw["soc"].astype(np.int64) * _SECOND + ((fracsec & 0xFFFFFF) * _SECOND + base // 2) // base
    stat, values = decode_values(layout, raw, dtype)
    return FrameBatch(
        layout.table,
        layout.configuration.rate_hz,
        time_ns,
        (fracsec >> 24).astype(np.uint8),
        stat,
        values,
        arrivals(time_ns, arrival_ns),
    )


def view(layout: Layout, frames: Any) -> NDArray[np.void]:
    """View bytes as frames, without a copy.

    Parameters
    ----------
    layout
        Of the frames.
    frames
        Bytes-like, or already such a view.

    Returns
    -------
    NDArray[np.void]
        `(T,)` of dtype `layout.frame`.

    Raises
    ------
    FrameError
        When the bytes are not a whole number of frames.
    """
    if isinstance(frames, np.ndarray) and frames.dtype == layout.frame:
        return frames
    raw = np.frombuffer(frames, np.uint8)
    if raw.size % layout.size:
        raise FrameError(f"{raw.size} bytes are not a whole number of data frames of {layout.size} bytes")
    return raw.view(layout.frame)


def arrivals(time_ns: NDArray[np.int64], arrival_ns: ArrayLike | None) -> NDArray[np.int64]:
    """Spread arrival times over frames.

    Parameters
    ----------
    time_ns
        `(T,)` time stamps: they stand in where nobody knows.
    arrival_ns
        `(T,)`, one for all, or None.

    Returns
    -------
    NDArray[np.int64]
        `(T,)`.
    """
    if arrival_ns is None:
        return time_ns
    out = np.empty(time_ns.shape, np.int64)
    out[:] = arrival_ns
    return out


def decode_values(
    layout: Layout, raw: NDArray[np.void], dtype: DTypeLike
) -> tuple[NDArray[np.uint16], NDArray[np.float32] | NDArray[np.float64]]:
    """Decode STAT and values of all PMUs.

    Parameters
    ----------
    layout
        Of the frames.
    raw
        `(T,)` of dtype `layout.frame`.
    dtype
        float32 or float64.

    Returns
    -------
    tuple[NDArray[np.uint16], NDArray[np.float32] | NDArray[np.float64]]
        `(T, S)` and `(T, S, C)`, NaN where nothing was sent.
    """
    count, pmus, width = len(raw), len(layout.table.pmus), layout.table.width
    stat = np.empty((count, pmus), np.uint16)
    values = np.empty((count, pmus, width), dtype)
    step = _step(layout, count)
    with np.errstate(all="ignore"):  # any bits may come; what they mean is quality's to judge
        for group in layout.groups:
            own = 2 * group.phasors + 2 + group.analogs + group.digitals
            if own < width:
                values[:, group.places, own:] = np.nan
            for at in range(0, count, step):  # over blocks of frames that fit the cache, not over frames
                part = slice(at, at + step)
                records = _records(group, raw[part])
                stat[part, group.places] = records["stat"]
                if isinstance(group.places, slice):
                    _decode_group(group, records, values[part, group.places])
                else:
                    out = np.empty((*records.shape, own), dtype)
                    _decode_group(group, records, out)
                    values[part, group.places, :own] = out
    return stat, values


def encode(layout: Layout, batch: FrameBatch) -> bytes:
    """Write data frames.

    The bits of a float64 batch come back as they were decoded, save what NaN cannot carry (the other half of an absent
    integer phasor, a signalling NaN), what a scale of zero has lost, and of a rectangular float phasor the sign of a
    zero and a real part below 1e-8 of the imaginary one.

    Parameters
    ----------
    layout
        Of the stream's configuration.
    batch
        `(T, S, C)` in the order of `layout.table`.

    Returns
    -------
    bytes
        The frames, one after another, each with its CRC.

    Raises
    ------
    FrameError
        When the batch has other axes than the layout, or a value does not fit its integer field.
    """
    count = len(batch.time_ns)
    raw = np.zeros(count, layout.frame)
    raw["sync"] = SYNC
    raw["kind"] = FrameType.DATA << 4 | layout.configuration.version
    raw["size"] = layout.size
    raw["id_code"] = layout.configuration.id_code
    soc, rest = np.divmod(batch.time_ns, _SECOND)
    base = layout.configuration.time_base
    fraction = (rest * base + _SECOND // 2) // _SECOND
    soc += fraction // base  # rounding may end at the next second
    if count and (soc.min() < 0 or soc.max() >= 1 << 32):
        raise FrameError("a time stamp lies before 1970 or after 2106, outside SOC")
    raw["soc"] = soc
    raw["fracsec"] = fraction % base | batch.time_flags.astype(np.int64) << 24
    encode_values(layout, batch, raw)
    return seal(raw)


def encode_values(layout: Layout, batch: FrameBatch, raw: NDArray[np.void]) -> None:
    """Write STAT and values of all PMUs into frames.

    Parameters
    ----------
    layout
        Of the frames.
    batch
        `(T, S, C)`.
    raw
        `(T,)` of dtype `layout.frame`, written to.

    Raises
    ------
    FrameError
        When the batch has other axes than the layout, or a value does not fit its integer field.
    """
    expected = (len(raw), len(layout.table.pmus), layout.table.width)
    if batch.values.shape != expected:
        raise FrameError(f"values of shape {batch.values.shape} do not fit a configuration that wants {expected}")
    step = _step(layout, len(raw))
    for group in layout.groups:
        for at in range(0, len(raw), step):
            part = slice(at, at + step)
            if group.words is None:
                records = raw[group.name][part]
            else:
                records = np.zeros((len(raw[part]), len(group.words)), group.record)
            records["stat"] = batch.stat[part, group.places]
            _encode_group(group, batch.values[part, group.places].astype(np.float64, copy=False), records)
            if group.words is not None:
                flat = records.view(">u2").reshape(len(records), *group.words.shape)
                raw["words"][part][:, group.words] = flat


def seal(raw: NDArray[np.void]) -> bytes:
    """Put the CRC at the end of each frame.

    Parameters
    ----------
    raw
        `(T,)` frames, written to.

    Returns
    -------
    bytes
        The frames, one after another.
    """
    size = raw.dtype.itemsize
    octets = raw.view(np.uint8).data
    raw["chk"] = [ibm_3740(octets[at : at + size - 2]) for at in range(0, len(raw) * size, size)]
    return raw.tobytes()


def _step(layout: Layout, count: int) -> int:
    """Frames to handle at a time: equal blocks, none of them a small rest."""
    blocks = max(1, round(count * layout.size / _BLOCK_BYTES))
    return max(1, -(-count // blocks))


def _shape(pmu: PmuConfiguration) -> tuple[object, ...]:
    form = (pmu.polar, pmu.float_phasors, pmu.float_analogs, pmu.float_frequency)
    return (*form, len(pmu.phasors), len(pmu.analogs), len(pmu.digitals))


def _group(configuration: ConfigurationFrame, places: list[int], starts: NDArray[np.intp], name: str) -> Group:
    pmus = [configuration.pmus[p] for p in places]
    first = pmus[0]
    phasors, analogs, digitals = len(first.phasors), len(first.analogs), len(first.digitals)
    record = np.dtype(
        [
            ("stat", ">u2"),
            ("phasors", ">f4" if first.float_phasors else ">i2", (phasors, 2)),
            ("frequency", ">f4" if first.float_frequency else ">i2", (2,)),
            ("analogs", ">f4" if first.float_analogs else ">i2", (analogs,)),
            ("digitals", ">u2", (digitals,)),
        ]
    )
    adjacent = places == list(range(places[0], places[0] + len(places)))
    words = None if adjacent else (starts[places] // 2)[:, None] + np.arange(record.itemsize // 2)
    long = configuration.kind is FrameType.CFG3
    scale = np.array([[d.scale for d in p.phasors] for p in pmus]).reshape(len(pmus), phasors)
    offset = np.rad2deg([[d.angle_offset_rad for d in p.phasors] for p in pmus]).reshape(scale.shape)
    analog_scale = np.array([[d.scale for d in p.analogs] for p in pmus]).reshape(len(pmus), analogs)
    analog_offset = np.array([[d.offset for d in p.analogs] for p in pmus]).reshape(analog_scale.shape)
    linear = long and bool((analog_scale != 1).any() or (analog_offset != 0).any())
    return Group(
        record,
        slice(places[0], places[-1] + 1) if adjacent else np.array(places, np.intp),
        words,
        name,
        polar=first.polar,
        float_phasors=first.float_phasors,
        phasors=phasors,
        analogs=analogs,
        digitals=digitals,
        # CFG-1 and CFG-2 scale integers only
        scale=scale if long or not first.float_phasors else np.ones_like(scale),
        angle_count_rad=1e-4 if first.polar and not first.float_phasors else 1.0,
        angle_offset_deg=offset if long and offset.any() else None,
        analog_scale=analog_scale if linear else None,
        analog_offset=analog_offset if linear else None,
        nominal_hz=None if first.float_frequency else np.array([[float(p.nominal_hz)] for p in pmus]),
        float_analogs=first.float_analogs,
    )


def _records(group: Group, raw: NDArray[np.void]) -> NDArray[np.void]:
    """`(T, n)` records of a group: a view where they lie side by side, else gathered."""
    if group.words is None:
        records: NDArray[np.void] = raw[group.name]
        return records
    return np.take(raw["words"], group.words, axis=1).view(group.record)[..., 0]


def _decode_group(group: Group, records: NDArray[np.void], out: NDArray[Any]) -> None:
    """Write the values of a group's records to `out`, `(T, n, >= own)`."""
    at = 2 * group.phasors
    if group.phasors:
        _decode_phasors(group, records["phasors"], out[..., :at])
    _decode_frequency(group, records["frequency"], out[..., at : at + 2])
    at += 2
    if group.analogs:
        analogs = records["analogs"]
        values = out[..., at : at + group.analogs]
        values[...] = analogs
        if group.analog_scale is not None and group.analog_offset is not None:
            values *= group.analog_scale
            values += group.analog_offset
        if not group.float_analogs:
            np.copyto(values, np.nan, where=analogs == FILLER)
        at += group.analogs
    if group.digitals:
        out[..., at : at + group.digitals] = records["digitals"]


def _decode_frequency(group: Group, sent: NDArray[Any], out: NDArray[Any]) -> None:
    """Write frequency and ROCOF, `(T, n, 2)`: each apart, since NumPy is slow over pairs and fast over PMUs."""
    for column, steps in enumerate((1000, 100)):
        target = out[..., column]
        if group.nominal_hz is None:
            target[...] = sent[..., column]
            continue
        counts = sent[..., column].astype(np.int16)
        # a quotient, not a product with a rounded 1e-3, so that steps of a mHz read as they are meant
        values = np.divide(counts, steps, dtype=out.dtype)
        if column == 0:
            values += group.nominal_hz[:, 0].astype(out.dtype)
        if (absent := counts == FILLER).any():
            values[absent] = np.nan
        target[...] = values


def _decode_phasors(group: Group, phasors: NDArray[Any], out: NDArray[Any]) -> None:
    """Write magnitudes and angles, alternating, to `out`, `(T, n, 2P)`.

    All arithmetic runs over contiguous scratch: strided by nine phasors, it would be several times slower.
    """
    polar = _scratch("polar", phasors.shape, out.dtype)
    absent = None
    if group.float_phasors:
        np.copyto(polar, phasors)
    else:
        counts = _scratch("counts", phasors.shape, np.dtype(np.int16))
        np.copyto(counts, phasors)
        if (fillers := counts == FILLER).any():
            # of polar counts the angle alone says "absent": every magnitude is permissible
            absent = fillers[..., 1] if group.polar else fillers.any(-1)
        np.copyto(polar, counts)
        if group.polar:
            np.copyto(polar.reshape(-1, 2)[:, 0], counts.view(np.uint16).reshape(-1, 2)[:, 0])
    if not group.polar:
        _to_polar(polar.reshape(-1, 2))
    flat = polar.reshape(len(polar), -1)
    factors = np.empty((*group.scale.shape, 2))
    factors[..., 0] = group.scale
    factors[..., 1] = np.rad2deg(group.angle_count_rad)
    flat *= factors.astype(out.dtype).ravel()
    if group.angle_offset_deg is not None:
        angle = polar[..., 1]
        angle -= group.angle_offset_deg.astype(out.dtype)
        # only what we turned is brought back; what was sent stays as sent
        np.subtract(angle, 360.0, out=angle, where=angle > 180.0)
        np.add(angle, 360.0, out=angle, where=angle < -180.0)
    if absent is not None:
        polar[absent] = np.nan
    out[...] = polar.reshape(out.shape)


def _to_polar(pairs: NDArray[Any]) -> None:
    """Turn `(N, 2)` real and imaginary parts into magnitude and angle, in place."""
    real, imaginary, angle = (_scratch(name, (len(pairs),), pairs.dtype) for name in ("real", "imaginary", "angle"))
    np.copyto(real, pairs[:, 0])
    np.copyto(imaginary, pairs[:, 1])
    np.arctan2(imaginary, real, out=angle)
    # several times faster than hypot, and as exact where the squares stay finite and normal
    real *= real
    imaginary *= imaginary
    real += imaginary
    np.sqrt(real, out=real)
    if np.isinf(real).any():
        np.hypot(pairs[:, 0], pairs[:, 1], out=real)
    pairs[:, 0] = real
    pairs[:, 1] = angle


_kept = threading.local()


def _scratch(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Uninitialised array over memory that the thread keeps: fresh memory's page faults cost more than the arithmetic.

    It holds only until the same name is asked for again. Blocks bound its size to a few MB.
    """
    size = math.prod(shape) * dtype.itemsize
    buffer: NDArray[np.uint8] | None = getattr(_kept, name, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.uint8)
        setattr(_kept, name, buffer)
    return buffer[:size].view(dtype).reshape(shape)


def _encode_group(group: Group, values: NDArray[np.float64], records: NDArray[np.void]) -> None:
    """Write values to a group's records, `(T, n)`."""
    at = 2 * group.phasors
    if group.phasors:
        magnitude, angle = values[..., 0:at:2], values[..., 1:at:2]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            magnitude = magnitude / group.scale
            if group.angle_offset_deg is not None:
                angle = angle + group.angle_offset_deg
                angle = np.where(angle > 180.0, angle - 360.0, np.where(angle < -180.0, angle + 360.0, angle))
            if group.polar:
                _encode_polar(group, magnitude, angle, records["phasors"])
            else:
                _encode_rectangular(group, magnitude, angle, records["phasors"])
    frequency = values[..., at : at + 2]
    if group.nominal_hz is None:
        with np.errstate(over="ignore"):
            records["frequency"] = frequency
    else:
        steps = np.stack((frequency[..., 0] - group.nominal_hz[:, 0], frequency[..., 1]), -1) * (1000.0, 100.0)
        records["frequency"] = _integers(steps, -0x7FFF, 0x7FFF, "frequency or ROCOF")
    at += 2
    analogs = values[..., at : at + group.analogs]
    if group.analog_scale is not None and group.analog_offset is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            analogs = (analogs - group.analog_offset) / group.analog_scale
    if group.float_analogs:
        with np.errstate(over="ignore"):
            records["analogs"] = analogs
    else:
        records["analogs"] = _integers(analogs, -0x7FFF, 0x7FFF, "an analog")
    at += group.analogs
    digitals = np.nan_to_num(values[..., at : at + group.digitals], nan=0.0)
    records["digitals"] = _integers(digitals, 0, 0xFFFF, "a digital word")


def _encode_polar(group: Group, magnitude: NDArray[np.float64], angle: NDArray[np.float64], out: NDArray[Any]) -> None:
    if group.float_phasors:
        out[..., 0] = magnitude
        out[..., 1] = np.deg2rad(angle)
        return
    absent = np.isnan(angle) | np.isnan(magnitude)
    counts = _integers(np.where(absent, 0x8000, magnitude), 0, 0xFFFF, "a phasor's magnitude")
    out[..., 0] = counts.astype(np.uint16).view(np.int16)
    out[..., 1] = _integers(np.where(absent, np.nan, angle * np.deg2rad(1e4)), -0x7FFF, 0x7FFF, "a phasor's angle")


def _encode_rectangular(
    group: Group, magnitude: NDArray[np.float64], angle: NDArray[np.float64], out: NDArray[Any]
) -> None:
    # sine and cosine of what is left of a quarter turn: exact on the axes, where sin(pi) is not
    quarter = np.rint(angle / 90.0)
    rest = np.deg2rad(angle - 90.0 * quarter)
    sine, cosine = magnitude * np.sin(rest), magnitude * np.cos(rest)
    turn = np.where(np.isfinite(quarter), quarter, 0.0).astype(np.int64) % 4
    real = np.choose(turn, (cosine, -sine, -cosine, sine))
    imaginary = np.choose(turn, (sine, cosine, -sine, -cosine))
    if group.float_phasors:
        out[..., 0] = real
        out[..., 1] = imaginary
        return
    absent = np.isnan(real) | np.isnan(imaginary)
    out[..., 0] = _integers(np.where(absent, np.nan, real), -0x7FFF, 0x7FFF, "a phasor's real part")
    out[..., 1] = _integers(np.where(absent, np.nan, imaginary), -0x7FFF, 0x7FFF, "a phasor's imaginary part")


def _integers(counts: NDArray[np.float64], low: int, high: int, what: str) -> NDArray[np.int32]:
    """Round to integers, the filler for NaN; refuse what does not fit."""
    rounded = np.rint(counts)
    outside = (rounded < low) | (rounded > high)
    if outside.any():
        raise FrameError(
            f"{what} of {rounded[outside][0]:g} counts does not fit a 16-bit field ({low} to {high}):"
            " give the configuration a larger scale or floating point"
        )
    out: NDArray[np.int32] = np.where(np.isnan(rounded), float(FILLER), rounded).astype(np.int32)
    return out
