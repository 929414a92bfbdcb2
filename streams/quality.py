"""Judging: a reason for every sample, and NaN where it must not be used.

In: aligned runs as sent, with STAT and time quality. Out: blocks on the same table, a few frames later. It masks
what a device did wrong and only marks what a grid can do (`docs/quality.md` is the table); it derives and scores
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streams.align import Aligned, carried
from streams.block import MARK_ONLY, Block, Reason
from streams.channels import Channel, ChannelTable, Pmu, Quantity

_ANGLES = (Quantity.VOLTAGE_ANGLE, Quantity.CURRENT_ANGLE)
_MAGNITUDES = (Quantity.VOLTAGE_MAGNITUDE, Quantity.CURRENT_MAGNITUDE)
_ANGLE_OF = {
    Quantity.VOLTAGE_MAGNITUDE: Quantity.VOLTAGE_ANGLE,
    Quantity.CURRENT_MAGNITUDE: Quantity.CURRENT_ANGLE,
}

_FILLER_HZ = 65.536
"""What some devices send for a frequency that they have not."""

_IMPOSSIBLE_ROCOF_HZ_S = 1000.0
_IMPOSSIBLE_VOLTAGE_PU = 10.0

_PIECE = 1 << 20
"""Samples judged at a time."""

_LIVELY = 30
"""Changes of bits after which a channel counts as one that changes."""

_NATURAL = 4
"""A lone channel is stuck when unchanged this many times longer than it ever was by nature."""

_MINUTE_FRAMES = 300  # fewer frames than this have few distinct values by chance
_SLOW = 4
"""A frequency, sent in whole millihertz, rests this much longer than a magnitude or an angle."""

_NATURAL_S = 10.0
"""Unchanged for longer is not nature."""

_LONG_AGO = np.int32(-(1 << 30))
"""Frames; a year at 30 a second, and room to add."""

_KEPT = np.zeros(256, bool)
"""Reasons whose samples keep their value: all that may be used, and angles that only miss their time."""
_KEPT[[Reason.GOOD, Reason.OUT_OF_SYNC, Reason.SORTED_BY_ARRIVAL]] = True
_KEPT[MARK_ONLY:] = True


@dataclass(frozen=True, slots=True)
class QualitySettings:
    """What counts as bad. The defaults suit transmission PMUs at 10 to 120 frames a second.

    Attributes
    ----------
    unsynced
        What a lost synchronisation masks. `angles` (default): angles, at once; the rest is marked `TIME_QUALITY`, since
        a magnitude or a frequency does not need a microsecond. `phasors`: phasors, frequency and ROCOF once it has
        lasted `sync_grace_s`, angles only before.
    sync_grace_s
        See `unsynced`.
    mask_time_quality
        Time quality code (STAT 8-6) from which time counts as lost: 5 is a millisecond, 21.6 degrees at 60 Hz.
    use_sync_bit
        Believe STAT 13. Some devices of the IEEE 1344 age set it always.
    stuck_s
        A phasor whose magnitude and angle both keep their bits this long is stuck.
    stuck_lone_s
        A single magnitude or angle (a frequency after four times as long) that used to change and keeps its bits this
        long, and ten times longer than it ever did by nature, is stuck.
    stuck_values
        A frequency of at most this many distinct values in a minute (300 frames, if longer) is stuck, unless it is
        exactly nominal.
    zero_s
        A voltage of exactly zero for longer is no fault any more.
    ahead
        Frames after it that a spike is judged against, at least 2: the delay of the output in frames.
    back
        Frames before it that a spike is judged against, at least 2.
    spike_sigmas
        Hampel: this many robust standard deviations of the neighbours; and twice the second largest of their
        deviations.
    spike_hz
        Smallest single-frame step of frequency that may be a spike.
    spike_rocof_hz_s
        The same for ROCOF.
    spike_deg
        The same for an angle, after the trend of its neighbours is taken off.
    spike_voltage
        The same for a voltage magnitude (marked only), as a share.
    spike_current
        The same for a current magnitude (marked only), as a share.
    moved_voltage
        A change of the PMU's own voltage magnitude by this share within two frames excuses every spike: a fault.
    moved_current
        A change of a current's magnitude by this share within two frames excuses its angle: near zero it is noise.
    moved_hz
        A frequency that leaves its neighbours in time by this much (and by `spike_sigmas`) keeps another PMU's spike
        company.
    company
        With this many others moving in the same frame a spike is the grid's (or all others, where there are fewer).
    frequency_range_hz
        No device measures a frequency further from nominal.
    usual_voltage
        Below and above, in shares of the nominal, a voltage is marked `EXCURSION`.
    usual_hz
        A frequency further from nominal is marked `EXCURSION`.
    """

    unsynced: Literal["angles", "phasors"] = "angles"
    sync_grace_s: float = 1.0
    mask_time_quality: int = 5
    use_sync_bit: bool = True
    stuck_s: float = 2.0
    stuck_lone_s: float = 5.0
    stuck_values: int = 5
    zero_s: float = 1.0
    ahead: int = 3
    back: int = 8
    spike_sigmas: float = 8.0
    spike_hz: float = 0.05
    spike_rocof_hz_s: float = 3.0
    spike_deg: float = 1.0
    spike_voltage: float = 0.02
    spike_current: float = 0.2
    moved_voltage: float = 0.005
    moved_current: float = 0.05
    moved_hz: float = 0.005
    company: int = 2
    frequency_range_hz: float = 10.0
    usual_voltage: tuple[float, float] = (0.75, 1.25)
    usual_hz: float = 1.0


def pair_phasors(channels: tuple[Channel, ...]) -> list[tuple[int, int]]:
    """Find magnitude and angle of each phasor of a PMU.

    Parameters
    ----------
    channels
        The PMU's channels, in order.

    Returns
    -------
    list[tuple[int, int]]
        Places of magnitude and angle, in the order of the magnitudes; -1 where a magnitude has no angle. An angle
        without a magnitude is in no pair. Two phasors of the same name and phase pair up in their order.
    """
    free: dict[tuple[str, str, str], list[int]] = {}
    for c, channel in enumerate(channels):
        if channel.quantity in _ANGLES:
            free.setdefault((channel.quantity, channel.phase, channel.name), []).append(c)
    pairs = []
    for c, channel in enumerate(channels):
        if channel.quantity in _MAGNITUDES:
            found = free.get((_ANGLE_OF[channel.quantity], channel.phase, channel.name), [])
            pairs.append((c, found.pop(0) if found else -1))
    return pairs


@dataclass(frozen=True, slots=True)
class _Columns:
    """Some channels of the flattened axes `S * C`, in the order of their PMUs."""

    at: NDArray[np.intp]
    pmu: NDArray[np.intp]

    def any_by_pmu(self, flag: NDArray[np.bool_], pmus: int) -> NDArray[np.bool_]:
        """`(T, n)` to `(T, S)`: any of the PMU's columns."""
        out = np.zeros((len(flag), pmus), bool)
        if len(self.at):
            first = np.flatnonzero(np.diff(self.pmu, prepend=-1))
            out[:, self.pmu[first]] = np.logical_or.reduceat(flag, first, axis=1)
        return out


@dataclass(frozen=True)
class Plan:
    """Where each kind of channel stands; made once for a table.

    Attributes
    ----------
    table
        The channel table.
    """

    table: ChannelTable

    def _columns(self, *quantities: Quantity) -> _Columns:
        at = np.flatnonzero(self.table.where(*quantities))
        return _Columns(at, at // max(self.table.width, 1))

    @cached_property
    def frequency(self) -> _Columns:
        """Frequencies."""
        return self._columns(Quantity.FREQUENCY)

    @cached_property
    def rocof(self) -> _Columns:
        """ROCOFs."""
        return self._columns(Quantity.ROCOF)

    @cached_property
    def voltage(self) -> _Columns:
        """Voltage magnitudes."""
        return self._columns(Quantity.VOLTAGE_MAGNITUDE)

    @cached_property
    def current(self) -> _Columns:
        """Current magnitudes."""
        return self._columns(Quantity.CURRENT_MAGNITUDE)

    @cached_property
    def angle(self) -> _Columns:
        """Angles of both."""
        return self._columns(*_ANGLES)

    @cached_property
    def measured(self) -> NDArray[np.bool_]:
        """`(S, C)`: phasors, frequency and ROCOF; not analogs and digitals."""
        return self.table.where(*_MAGNITUDES, *_ANGLES, Quantity.FREQUENCY, Quantity.ROCOF)

    @cached_property
    def is_angle(self) -> NDArray[np.bool_]:
        """`(S, C)`."""
        return self.table.where(*_ANGLES)

    @cached_property
    def watched(self) -> _Columns:
        """Whatever may get stuck: magnitudes, angles, frequencies."""
        return self._columns(*_MAGNITUDES, *_ANGLES, Quantity.FREQUENCY)

    @cached_property
    def place_watched(self) -> NDArray[np.intp]:
        """`(S * C,)`: place in `watched`, or -1."""
        out = np.full(len(self.table.pmus) * self.table.width, -1, np.intp)
        out[self.watched.at] = np.arange(len(self.watched.at))
        return out

    @cached_property
    def pairs(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """`(P,)` each: flat places of magnitude and angle of every whole phasor, and its PMU."""
        width = self.table.width
        found = [
            (s * width + m, s * width + a, s)
            for s, pmu in enumerate(self.table.pmus)
            for m, a in pair_phasors(pmu.channels)
            if a >= 0
        ]
        out = np.asarray(found, np.intp).reshape(-1, 3)
        return out[:, 0], out[:, 1], out[:, 2]

    @cached_property
    def magnitude_of(self) -> NDArray[np.intp]:
        """`(S * C,)`: flat place of the magnitude that belongs to an angle, or -1."""
        out = np.full(len(self.table.pmus) * self.table.width, -1, np.intp)
        magnitude, angle, _ = self.pairs
        out[angle] = magnitude
        return out

    @cached_property
    def nominal_hz(self) -> NDArray[np.float32]:
        """`(S,)`."""
        return np.asarray([p.nominal_hz for p in self.table.pmus], np.float32)

    @cached_property
    def nominal_v(self) -> NDArray[np.float32]:
        """Of each voltage magnitude; NaN where unknown."""
        flat = [c for p in self.table.pmus for c in _padded(p, self.table.width)]
        known = (flat[i] for i in self.voltage.at)
        return np.asarray([np.nan if c is None or not c.nominal else c.nominal for c in known], np.float32)


def _padded(pmu: Pmu, width: int) -> list[Channel | None]:
    return [*pmu.channels, *([None] * (width - len(pmu.channels)))]


@dataclass(frozen=True, slots=True)
class QualityState:
    """What `judge` remembers.

    Attributes
    ----------
    plan
        Where each kind of channel stands.
    settings
        What counts as bad.
    rate_hz
        Reporting rate.
    pending
        The last frames judged (`back + 1`, as context) and those that wait for their neighbours.
    frames
        Frames judged so far.
    last
        `(W,)` float32: last value of every watched channel.
    run
        `(W,)` int32: frames since its bits last changed.
    longest
        `(W,)` int32: the longest such time so far that was not a fault.
    changes
        `(W,)` int32: how often its bits changed.
    changed_at
        `(stuck_values, F)` int64: frames at which each frequency last changed, newest first.
    zero_run
        `(V,)` int32: frames for which each voltage has been exactly zero.
    unsynced_run
        `(S,)` int32: frames for which each PMU has been out of sync.
    """

    plan: Plan
    settings: QualitySettings
    rate_hz: float
    pending: Aligned
    frames: int
    last: NDArray[np.float32]
    run: NDArray[np.int32]
    longest: NDArray[np.int32]
    changes: NDArray[np.int32]
    changed_at: NDArray[np.int64]
    zero_run: NDArray[np.int32]
    unsynced_run: NDArray[np.int32]


def _nothing(table: ChannelTable, rate_hz: float, time_ns: NDArray[np.int64]) -> Aligned:
    """Frames in which nothing came."""
    t, s, c = len(time_ns), len(table.pmus), table.width
    return Aligned(
        table,
        rate_hz,
        time_ns,
        np.full((t, s, c), np.nan, np.float32),
        np.zeros((t, s), np.uint16),
        np.zeros((t, s), bool),
        np.zeros((t, s), np.uint8),
    )


def _joined(first: Aligned, second: Aligned) -> Aligned:
    return replace(
        second,
        time_ns=np.concatenate([first.time_ns, second.time_ns]),
        values=np.concatenate([first.values, second.values]),
        stat=np.concatenate([first.stat, second.stat]),
        received=np.concatenate([first.received, second.received]),
        time_flags=np.concatenate([first.time_flags, second.time_flags]),
    )


def _rows(frames: Aligned, rows: slice) -> Aligned:
    return replace(
        frames,
        time_ns=frames.time_ns[rows],
        values=frames.values[rows],
        stat=frames.stat[rows],
        received=frames.received[rows],
        time_flags=frames.time_flags[rows],
    )


def _finite(frames: Aligned) -> Aligned:
    """Turn infinities into NaN, which comparisons bear."""
    endless = np.isinf(frames.values)
    return replace(frames, values=np.where(endless, np.float32(np.nan), frames.values)) if endless.any() else frames


def initial(table: ChannelTable, rate_hz: float, settings: QualitySettings | None = None) -> QualityState:
    """Begin with nothing seen.

    Parameters
    ----------
    table
        Of the aligned runs to come.
    rate_hz
        Reporting rate.
    settings
        What counts as bad; the defaults where None.

    Returns
    -------
    QualityState
        For `judge`.
    """
    plan, settings = Plan(table), settings or QualitySettings()
    watched, frequencies = len(plan.watched.at), len(plan.frequency.at)
    return QualityState(
        plan=plan,
        settings=settings,
        rate_hz=rate_hz,
        pending=_nothing(table, rate_hz, np.zeros(settings.back + 1, np.int64)),
        frames=0,
        last=np.full(watched, np.nan, np.float32),
        run=np.zeros(watched, np.int32),
        longest=np.zeros(watched, np.int32),
        changes=np.zeros(watched, np.int32),
        changed_at=np.zeros((settings.stuck_values, frequencies), np.int64),
        zero_run=np.zeros(len(plan.voltage.at), np.int32),
        unsynced_run=np.zeros(len(table.pmus), np.int32),
    )


def judge(state: QualityState, aligned: Aligned) -> tuple[QualityState, Block]:
    """Judge the frames whose neighbours have come.

    The output runs `ahead` frames behind the input and does not depend on how the stream is cut. Where the run
    does not follow the one before, the block ends the old run, and the new one waits for the next call.

    Parameters
    ----------
    state
        From `initial`, `judge` or `relayout`.
    aligned
        Consecutive frames.

    Returns
    -------
    tuple[QualityState, Block]
        The next state, and the frames judged (perhaps none).
    """
    before = state.pending.time_ns[-1]  # 0: nothing but the empty context, which any time may follow
    if before and len(aligned.time_ns) and aligned.time_ns[0] - before > 1.5e9 / state.rate_hz:
        after, block = flush(state)
        return replace(after, pending=_joined(after.pending, _finite(aligned))), block  # not judged yet: it all waits
    # A long run goes piece by piece, each small enough for the processor's cache.
    rows = max(_PIECE // max(aligned.values[:1].size, 1), 32)
    blocks = []
    for lo in range(0, max(len(aligned.time_ns), 1), rows):
        frames = _joined(state.pending, _finite(_rows(aligned, slice(lo, lo + rows))))
        count = len(frames.time_ns) - (state.settings.back + 1) - state.settings.ahead
        state, block = _judged(state, frames, max(count, 0))
        blocks.append(block)
    if len(blocks) == 1:
        return state, blocks[0]
    return state, replace(
        blocks[0],
        time_ns=np.concatenate([b.time_ns for b in blocks]),
        values=np.concatenate([b.values for b in blocks]),
        quality=np.concatenate([b.quality for b in blocks]),
    )


def flush(state: QualityState) -> tuple[QualityState, Block]:
    """Judge what waits for neighbours that will not come.

    Parameters
    ----------
    state
        From `judge`.

    Returns
    -------
    tuple[QualityState, Block]
        A state that begins a new run (remembering what is stuck), and the last frames of the old.
    """
    context, table = state.settings.back + 1, state.plan.table
    waiting = len(state.pending.time_ns) - context
    after = _nothing(table, state.rate_hz, np.zeros(state.settings.ahead, np.int64))
    state, block = _judged(state, _joined(state.pending, after), waiting)
    return replace(state, pending=_nothing(table, state.rate_hz, np.zeros(context, np.int64))), block


def relayout(state: QualityState, table: ChannelTable) -> tuple[QualityState, Block]:
    """Go on with another channel table: what waits is judged under the old one.

    Parameters
    ----------
    state
        From `judge`.
    table
        Of the runs to come.

    Returns
    -------
    tuple[QualityState, Block]
        A state that remembers the PMUs that stay (same name, same channels), and the last frames of the old table.
        Spikes in the first and last frames beside the change are judged against one side only.
    """
    old, block = flush(state)
    new = initial(table, state.rate_hz, state.settings)
    place = carried(old.plan.table, table)
    width, old_width = table.width, old.plan.table.width

    def moved(before: _Columns, after: _Columns) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Places in the new and in the old list of columns."""
        at = np.flatnonzero(place[after.pmu] >= 0)
        there = place[after.pmu[at]] * old_width + after.at[at] - after.pmu[at] * width
        return at, np.searchsorted(before.at, there)

    for field, kind in (
        ("last", "watched"), ("run", "watched"), ("longest", "watched"), ("changes", "watched"),
        ("changed_at", "frequency"), ("zero_run", "voltage"),
    ):  # fmt: skip
        to, fro = moved(getattr(old.plan, kind), getattr(new.plan, kind))
        getattr(new, field)[..., to] = getattr(old, field)[..., fro]
    here = np.flatnonzero(place >= 0)
    new.unsynced_run[here] = old.unsynced_run[place[here]]
    joined = np.ones(len(new.plan.frequency.at), bool)
    joined[moved(old.plan.frequency, new.plan.frequency)[0]] = False
    new.changed_at[:, joined] = old.frames  # a newcomer has a minute to show that it moves
    return replace(new, frames=old.frames), block


def reason_counts(block: Block) -> NDArray[np.int64]:
    """Count the samples of each reason.

    Parameters
    ----------
    block
        Of any length; of one second for a display.

    Returns
    -------
    NDArray[np.int64]
        `(S, R)`: column `i` counts the reason `list(Reason)[i]`; padding is in the column of `ABSENT`.
    """
    codes = np.asarray(list(Reason))
    rank = np.zeros(256, np.intp)
    rank[codes] = np.arange(len(codes))
    pmus = len(block.table.pmus)
    flat = rank[block.quality] + (np.arange(pmus) * len(codes))[:, None]
    return np.bincount(flat.ravel(), minlength=pmus * len(codes)).reshape(pmus, len(codes))


# --- one call's work
# ----------------------------------------------------------------------------------------------------


def _judged(state: QualityState, frames: Aligned, count: int) -> tuple[QualityState, Block]:
    """Judge `count` frames after the context; what follows them is there to look at only."""
    context, plan = state.settings.back + 1, state.plan
    table = plan.table
    rows = slice(context, context + count)
    time_ns = frames.time_ns[rows].copy()
    if not count:
        empty = np.zeros((0, len(table.pmus), table.width))
        block = Block(table, state.rate_hz, time_ns, empty.astype(np.float32), empty.astype(np.uint8))
        return replace(state, pending=frames), block
    shape = (count, len(table.pmus), table.width)
    values = frames.values[rows]
    flat = frames.values.reshape(len(frames.values), -1)

    marks, masks_all, masks_angle, unsynced = _status(state, frames.stat[rows], frames.time_flags[rows])
    quality = np.zeros(shape, np.uint8)
    if marks.any():
        np.copyto(quality, marks[:, :, None])
    sheet = quality.reshape(count, -1)
    # From the weakest reason to the strongest: whatever is written later stands.
    with np.errstate(over="ignore", invalid="ignore"):  # float32 garbage may be as large as float32 goes
        _mark_unusual(sheet, flat[rows], plan, state.settings)
        _mark_impossible(sheet, flat[rows], plan, state.settings)
        _mark_spikes(sheet, flat, plan, state.settings)
    memory = _mark_stuck(sheet, flat[context - 1 : context + count], state)
    memory = replace(memory, zero_run=_mark_zeros(sheet, flat, state), unsynced_run=unsynced)
    if masks_angle.any():
        np.copyto(quality, masks_angle[:, :, None], where=(masks_angle > 0)[:, :, None] & plan.is_angle)
    if masks_all.any():
        only = (masks_all == Reason.OUT_OF_SYNC)[:, :, None] & ~plan.measured
        np.copyto(quality, masks_all[:, :, None], where=(masks_all > 0)[:, :, None] & ~only)
    finite = np.isfinite(values)
    if not finite.all():
        quality[~finite] = Reason.NOT_A_NUMBER
        quality[~frames.received[rows]] = Reason.MISSING
        quality[:, ~table.present] = Reason.ABSENT
    kept = _KEPT[quality]
    good = values.copy() if kept.all() else np.where(kept, values, np.float32(np.nan))
    block = Block(table, state.rate_hz, time_ns, good, quality)
    # Copied: the state must not keep a whole run alive for its last frames.
    pending = _joined(_rows(frames, slice(count, None)), _rows(frames, slice(0, 0)))
    return replace(memory, pending=pending, frames=state.frames + count), block


def _status(
    state: QualityState, stat: NDArray[np.uint16], time_flags: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int32]]:
    """Read STAT and time quality, `(T, S)`: marks, masks of everything, masks of angles; and how long out of sync.

    The PMU's own word on its time (STAT 8-6) counts; the frame's (FRACSEC) only where the PMU says nothing, since a
    concentrator with a bad clock does not spoil its PMUs' time.
    """
    it = state.settings
    own, frame = (stat >> 6) & 7, time_flags & 15
    # FRACSEC codes 6 and 7 are worse than 10 us and 100 us: 4 and 5 of STAT; 8 is 10 ms.
    from_frame = np.clip(frame.astype(np.int16) - 2, 0, 7).astype(np.uint16)
    time_quality = np.where(own > 0, own, np.where(frame >= 6, from_frame, 0))
    unlocked = (stat >> 4) & 3
    lost = (unlocked == 3) | (time_quality >= it.mask_time_quality)
    if it.use_sync_bit:
        lost |= (stat & 0x2000) > 0
    by_arrival = (stat & 0x1000) > 0
    marks = np.zeros(stat.shape, np.uint8)
    marks[(time_quality >= 4) | (unlocked > 0) | lost | by_arrival] = Reason.TIME_QUALITY
    marks[(stat & 0x0800) > 0] = Reason.TRIGGER
    marks[(stat & 0x0200) > 0] = Reason.DATA_MODIFIED
    error = stat >> 14
    masks = np.zeros(stat.shape, np.uint8)
    angles = np.zeros(stat.shape, np.uint8)
    angles[by_arrival] = Reason.SORTED_BY_ARRIVAL
    angles[lost] = Reason.OUT_OF_SYNC
    run = _run(lost, state.unsynced_run)
    if it.unsynced == "phasors":
        masks[run > round(it.sync_grace_s * state.rate_hz)] = Reason.OUT_OF_SYNC
    masks[error == 2] = Reason.TEST_MODE
    masks[(error == 1) | (error == 3)] = Reason.PMU_ERROR
    return marks, masks, angles, run[-1]


def _run(on: NDArray[np.bool_], before: NDArray[np.int32]) -> NDArray[np.int32]:
    """Count for how many frames each column has been on, `(T, n)`, going on from `before`."""
    at = np.arange(len(on), dtype=np.int32)[:, None]
    off = np.where(on, _LONG_AGO, at)  # the last frame at which it was off
    off[0] = np.where(on[0], -1 - before, 0)
    out: NDArray[np.int32] = at - np.maximum.accumulate(off, axis=0)
    return np.minimum(out, -_LONG_AGO, out=out)


def _mark_unusual(sheet: NDArray[np.uint8], flat: NDArray[np.float32], plan: Plan, it: QualitySettings) -> None:
    low, high = it.usual_voltage
    volts, nominal = flat[:, plan.voltage.at], plan.nominal_v
    _put(sheet, (volts < low * nominal) | (volts > high * nominal), plan.voltage.at, Reason.EXCURSION)
    off = np.abs(flat[:, plan.frequency.at] - plan.nominal_hz[plan.frequency.pmu])
    _put(sheet, off > it.usual_hz, plan.frequency.at, Reason.EXCURSION)


def _mark_impossible(sheet: NDArray[np.uint8], flat: NDArray[np.float32], plan: Plan, it: QualitySettings) -> None:
    hertz = flat[:, plan.frequency.at]
    wrong = np.abs(hertz - plan.nominal_hz[plan.frequency.pmu]) > it.frequency_range_hz
    _put(sheet, wrong | (hertz == np.float32(_FILLER_HZ)), plan.frequency.at, Reason.OUT_OF_RANGE)
    _put(sheet, np.abs(flat[:, plan.rocof.at]) > _IMPOSSIBLE_ROCOF_HZ_S, plan.rocof.at, Reason.OUT_OF_RANGE)
    volts = flat[:, plan.voltage.at]
    wrong = (volts < 0) | (volts > _IMPOSSIBLE_VOLTAGE_PU * plan.nominal_v)
    _put(sheet, wrong, plan.voltage.at, Reason.OUT_OF_RANGE)
    _put(sheet, flat[:, plan.current.at] < 0, plan.current.at, Reason.OUT_OF_RANGE)


def _put(sheet: NDArray[np.uint8], flag: NDArray[np.bool_], at: NDArray[np.intp], reason: Reason) -> None:
    """Write a reason where flagged: rare, so by place."""
    if flag.any():
        row, column = np.nonzero(flag)
        sheet[row, at[column]] = reason


# --- spikes
# -------------------------------------------------------------------------------------------------------------


def _wrap(degrees: NDArray[np.float32]) -> NDArray[np.float32]:
    """To [-180, 180]."""
    out: NDArray[np.float32] = degrees - np.float32(360) * np.rint(degrees / np.float32(360))
    return out


def _median(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Median over the last axis of what is finite; NaN where nothing is."""
    ordered = np.sort(values, axis=-1)  # NaN last
    n = np.isfinite(values).sum(-1, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(n - 1, 0) // 2, -1)
    high = np.take_along_axis(ordered, np.minimum(n // 2, values.shape[-1] - 1), -1)
    middle = ((low + high) / np.float32(2))[..., 0]
    return np.where(n[..., 0] > 0, middle, np.float32(np.nan)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Deviation:
    """How far samples stand from the line through their neighbours in time; `(n,)` each."""

    size: NDArray[np.float32]
    limit: NDArray[np.float32]
    """What the neighbours' own deviations allow."""
    beside: NDArray[np.float32]
    """The larger deviation of the two samples next to it."""
    expected: NDArray[np.float32]


def _deviation(window: NDArray[np.float32], at: int, sigmas: float, *, angle: bool) -> _Deviation:
    """Hampel against the neighbours: `window` is `(n, neighbours + 1)`, the sample in column `at`.

    The neighbours' trend (the median of their steps) is taken off first, so that neither a ramp nor a turning angle is
    a spike. A few neighbours know their own noise badly, so the second largest of their deviations has a say too.
    """
    steps = np.delete(np.diff(window, axis=1), [at - 1, at], axis=1)
    if angle:
        steps = _wrap(steps)
    slope = np.nan_to_num(_median(steps))[:, None]
    offset = np.arange(window.shape[1], dtype=np.float32) - np.float32(at)
    level = window - slope * offset
    others = np.delete(level, at, axis=1)
    # Wrapped differences need a base among the neighbours: the nearest that came.
    order = np.argsort(np.abs(np.delete(offset, at)), kind="stable")
    pick = order[np.argmax(np.isfinite(others[:, order]), axis=1)]
    base = np.take_along_axis(others, pick[:, None], 1)
    rest, own = others - base, level[:, at] - base[:, 0]
    if angle:
        rest, own = _wrap(rest), _wrap(own)
    centre = _median(rest)
    size = own - centre
    if angle:
        size = _wrap(size)
    apart = np.abs(rest - centre[:, None])
    sigma = np.float32(1.4826) * _median(apart)
    second = np.partition(np.nan_to_num(apart), -2, axis=1)[:, -2]
    came = np.isfinite(others)
    enough = (came.sum(1) >= 4) & came[:, :at].any(1) & came[:, at:].any(1)
    return _Deviation(
        np.where(enough, np.abs(size), np.float32(0)),
        np.fmax(np.float32(sigmas) * sigma, 2 * second),
        np.fmax(np.nan_to_num(apart[:, at - 1]), np.nan_to_num(apart[:, at])),
        base[:, 0] + centre,
    )


@dataclass(frozen=True, slots=True)
class _Scene:
    """What single-frame outliers are looked for in.

    `flat` has `back + 1` rows of context before the sheet and `ahead` after. Row `r` here is `flat[r + back]`: the rows
    of the sheet and one before, since a spike of the frequency also spoils the next ROCOF.
    """

    flat: NDArray[np.float32]
    rows: int
    plan: Plan
    settings: QualitySettings

    def around(self, row: NDArray[np.intp], column: NDArray[np.intp]) -> NDArray[np.float32]:
        """`(n, back + 1 + ahead)`: samples and their neighbours in time."""
        width = np.arange(self.settings.back + 1 + self.settings.ahead)
        out: NDArray[np.float32] = self.flat[row[:, None] + width, column[:, None]]
        return out

    def spikes(
        self, columns: _Columns, floor: float, *, angle: bool = False, share: bool = False
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
        """Rows, columns (places in `columns`) and expected values of single frames away from their neighbours.

        Candidates, away from the frames before and after by more than the floor, are few; only they meet the Hampel
        filter.
        """
        back = self.settings.back
        near = self.flat[back - 1 : back + self.rows + 1, columns.at]
        gap = np.abs(np.diff(near, axis=0))
        size = np.abs(near)
        bound = np.float32(floor) * np.fmax(size[1:], size[:-1]) if share else np.float32(floor)
        # A missing neighbour proves nothing, so it counts as far away; a missing sample is no spike.
        far = ~(gap <= bound)
        row, k = np.nonzero(far[:-1] & far[1:] & np.isfinite(near[1:-1]))
        found = _deviation(self.around(row, columns.at[k]), back, self.settings.spike_sigmas, angle=angle)
        limit = np.maximum(np.float32(floor) * (np.abs(found.expected) if share else 1), found.limit)
        alone = (found.size > limit) & (found.beside <= limit)
        return row[alone], k[alone], found.expected[alone]

    def moved(self, row: NDArray[np.intp], column: NDArray[np.intp], share: float) -> NDArray[np.bool_]:
        """Whether each magnitude changed by this share within two frames."""
        back = self.settings.back
        near = self.flat[row[:, None] + np.arange(back - 2, back + 3), column[:, None]]
        size = np.abs(near)
        far = np.abs(np.diff(near, axis=1)) > np.float32(share) * np.fmax(size[:, 1:], size[:, :-1])
        out: NDArray[np.bool_] = far.any(axis=1)
        return out

    def excused(self, row: NDArray[np.intp], pmu: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether any voltage of the PMU moved within two frames."""
        columns, out = self.plan.voltage, np.zeros(len(row), bool)
        first, last = np.searchsorted(columns.pmu, pmu), np.searchsorted(columns.pmu, pmu, "right")
        which, nth = _spread(last - first)
        hit = self.moved(row[which], columns.at[first[which] + nth], self.settings.moved_voltage)
        out[which[hit]] = True
        return out

    def company(self, row: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether enough frequencies leave their neighbours in time in the same frame, by however little."""
        at = self.plan.frequency.at
        frame, back = np.unique(row, return_inverse=True)
        window = self.around(np.repeat(frame, len(at)), np.tile(at, len(frame)))
        found = _deviation(window, self.settings.back, self.settings.spike_sigmas, angle=False)
        moved = found.size > np.maximum(np.float32(self.settings.moved_hz), found.limit)
        others = moved.reshape(len(frame), -1).sum(1)[back] - 1
        out: NDArray[np.bool_] = others >= np.clip(len(at) - 1, 1, self.settings.company)
        return out


def _spread(count: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For groups of these sizes: the group of each member, and its place within the group."""
    group = np.repeat(np.arange(len(count)), count)
    return group, np.arange(len(group)) - np.repeat(np.cumsum(count) - count, count)


def _mark_spikes(sheet: NDArray[np.uint8], flat: NDArray[np.float32], plan: Plan, it: QualitySettings) -> None:
    scene = _Scene(flat, len(sheet) + 1, plan, it)
    # Marks first, since masks are stronger.
    for columns, floor in ((plan.voltage, it.spike_voltage), (plan.current, it.spike_current)):
        row, k, _ = scene.spikes(columns, floor, share=True)
        _write(sheet, row, columns.at[k], Reason.SUSPECT_SPIKE)
    _mask_frequency_spikes(sheet, scene)
    _mask_other_spikes(sheet, scene, plan.rocof, it.spike_rocof_hz_s, angle=False)
    _mask_other_spikes(sheet, scene, plan.angle, it.spike_deg, angle=True)


def _write(sheet: NDArray[np.uint8], row: NDArray[np.intp], at: NDArray[np.intp], reason: Reason) -> None:
    """Write into the rows of a scene that are the sheet's own."""
    own = row > 0
    sheet[row[own] - 1, at[own]] = reason


def _mask_frequency_spikes(sheet: NDArray[np.uint8], scene: _Scene) -> None:
    plan = scene.plan
    columns, rocof = plan.frequency, plan.rocof
    row, k, _ = scene.spikes(columns, scene.settings.spike_hz)
    if not len(row):
        return
    alone = ~scene.company(row) & ~scene.excused(row, columns.pmu[k])
    alone &= (
        scene.flat[row + scene.settings.back, columns.at[k]] != 0
    )  # a drop-out, which says nothing of its neighbours
    row, k = row[alone], k[alone]
    _write(sheet, row, columns.at[k], Reason.SPIKE)
    hit = np.zeros((scene.rows, len(plan.table.pmus)), bool)
    hit[row, columns.pmu[k]] = True
    _put(sheet, (hit[1:] | hit[:-1])[:, rocof.pmu], rocof.at, Reason.SPIKE)


def _mask_other_spikes(
    sheet: NDArray[np.uint8], scene: _Scene, columns: _Columns, floor: float, *, angle: bool
) -> None:
    row, k, expected = scene.spikes(columns, floor, angle=angle)
    if not len(row):
        return
    pmu = columns.pmu[k]
    seen = np.zeros((scene.rows, len(scene.plan.table.pmus)), bool)
    seen[row, pmu] = True
    needed = np.clip(len(np.unique(columns.pmu)) - 1, 1, scene.settings.company)
    excused = scene.excused(row, pmu)
    if angle:
        partner = scene.plan.magnitude_of[columns.at[k]]
        paired = np.flatnonzero(partner >= 0)
        excused[paired] |= scene.moved(row[paired], partner[paired], scene.settings.moved_current)
    single = ~excused & (seen.sum(1)[row] - 1 < needed)
    _write(sheet, row[single], columns.at[k[single]], Reason.SPIKE)
    if angle:  # the device took the mean of +180 and -180, whatever the others did
        here = scene.flat[row + scene.settings.back, columns.at[k]]
        wrapped = ~excused & (np.abs(_wrap(expected)) > 150) & (np.abs(here) < 75)
        _write(sheet, row[wrapped], columns.at[k[wrapped]], Reason.ANGLE_WRAP)


# --- zero and stuck
# -----------------------------------------------------------------------------------------------------


def _mark_zeros(sheet: NDArray[np.uint8], flat: NDArray[np.float32], state: QualityState) -> NDArray[np.int32]:
    """Exact zeros that no grid makes; how long each voltage has been zero.

    A fault may take a voltage to zero, and an open line has no current: neither alone is masked. A frequency of zero is
    always the device's, and with it whatever phasor is zero in the same frame; so is a voltage of exactly zero for a
    single frame between two like ones, or for longer than `zero_s`.
    """
    plan, it, rows = state.plan, state.settings, len(sheet)
    context, pmus = it.back + 1, len(plan.table.pmus)
    here = flat[context : context + rows]
    columns = plan.voltage
    volts = flat[context - 1 : context + rows + 1, columns.at]
    zero = volts[1:-1] == 0
    dead = plan.frequency.any_by_pmu(here[:, plan.frequency.at] == 0, pmus)
    if not (zero.any() or dead.any()):
        return np.zeros_like(state.zero_run)
    run = _run(zero, state.zero_run)
    lasting: NDArray[np.int32] = run[-1].copy()
    before, after = volts[:-2], volts[2:]
    blink = zero & (before > 0) & (np.abs(after - before) <= np.float32(it.moved_voltage) * before)
    bad = zero & (blink | (run > round(it.zero_s * state.rate_hz)) | dead[:, columns.pmu])
    _put(sheet, bad, columns.at, Reason.ZERO)
    _put(sheet, here[:, plan.frequency.at] == 0, plan.frequency.at, Reason.ZERO)
    magnitude, angle, pmu = plan.pairs
    lost = (here[:, magnitude] == 0) & dead[:, pmu]
    _put(sheet, lost, magnitude, Reason.ZERO)
    # An angle follows its magnitude.
    _put(sheet, sheet[:, magnitude] == Reason.ZERO, angle, Reason.ZERO)
    return lasting


def _mark_stuck(sheet: NDArray[np.uint8], flat: NDArray[np.float32], state: QualityState) -> QualityState:
    """Find bits that do not change; return the state with what was learnt of them. `flat` has one row of context."""
    plan, it, rate, rows = state.plan, state.settings, state.rate_hz, len(sheet)
    watched, frequency = plan.watched, plan.place_watched[plan.frequency.at]
    held = flat[:, watched.at]
    came = ~np.isnan(held[:-1])
    held[0] = state.last  # which remembers further back than the context
    known = ~np.isnan(held)
    if not known.all():  # a gap changes nothing: compare with the last that came
        held = np.take_along_axis(held, np.maximum.accumulate(np.where(known, np.arange(rows + 1)[:, None], 0), 0), 0)
    same = held[1:] == held[:-1]
    run = _run(same, state.run)
    pair_limit = max(round(it.stuck_s * rate), 5)
    suspects = np.flatnonzero(run.max(0) >= pair_limit)

    # Neither a gap nor a fault is nature.
    ended = ~same & came
    earlier = np.concatenate([state.run[None], run[:-1]])
    natural = np.where(ended & (earlier <= round(_NATURAL_S * rate)), earlier, 0)
    moved = ~same & ~np.isnan(held[:-1])
    longest = np.maximum(np.maximum.accumulate(natural[:, suspects], axis=0), state.longest[suspects])
    changes = state.changes[suspects] + np.cumsum(moved[:, suspects], axis=0)
    changed_at = _last_changes(~same[:, frequency], state)
    memory = replace(
        state,
        last=held[-1].copy(),
        run=run[-1].copy(),
        longest=np.maximum(natural.max(0), state.longest),
        changes=np.minimum(state.changes + moved.sum(0, dtype=np.int32), -_LONG_AGO),
        changed_at=changed_at[:, -1],
    )

    if len(suspects):
        lone_limit = np.full(len(watched.at), max(round(it.stuck_lone_s * rate), 5))
        lone_limit[frequency] *= _SLOW
        own = run[:, suspects]
        lone = (own >= np.maximum(lone_limit[suspects], _NATURAL * longest)) & (changes >= _LIVELY)
        _put(sheet, lone & (held[1:, suspects] != 0), watched.at[suspects], Reason.STUCK)
        _mark_stuck_devices(sheet, held[1:], run >= pair_limit, plan)
    minute = max(round(60 * rate), _MINUTE_FRAMES)
    now = state.frames + np.arange(rows)[:, None]
    few = (now - changed_at[-1] >= minute) & (held[1:, frequency] != plan.nominal_hz[plan.frequency.pmu])
    _put(sheet, few, plan.frequency.at, Reason.STUCK)
    stuck = sheet[:, plan.frequency.at] == Reason.STUCK
    if stuck.any():
        by_pmu = plan.frequency.any_by_pmu(stuck, len(plan.table.pmus))
        _put(sheet, by_pmu[:, plan.rocof.pmu], plan.rocof.at, Reason.STUCK)
    return memory


def _mark_stuck_devices(
    sheet: NDArray[np.uint8], held: NDArray[np.float32], frozen: NDArray[np.bool_], plan: Plan
) -> None:
    """Mark phasors of which both numbers stand still, and the frequency with them where all do."""
    place, frequency = plan.place_watched, plan.place_watched[plan.frequency.at]
    hertz = held[:, frequency]
    off_nominal = (hertz != plan.nominal_hz[plan.frequency.pmu]) & ~np.isnan(hertz)
    turning = plan.frequency.any_by_pmu(off_nominal, len(plan.table.pmus))
    magnitude, angle, pmu = plan.pairs
    size = held[:, place[magnitude]]
    both = frozen[:, place[magnitude]] & frozen[:, place[angle]]
    # At exactly nominal frequency a phasor may stand still (a test set); not while another one moves.
    live = np.any(~both & ~np.isnan(size), axis=1, keepdims=True)
    still = both & (turning[:, pmu] | live) & (size != 0)
    _put(sheet, still, magnitude, Reason.STUCK)
    _put(sheet, still, angle, Reason.STUCK)
    some = _any_of(still, pmu, len(plan.table.pmus))
    moving = _any_of(~still & (size != 0), pmu, len(plan.table.pmus))
    whole = (some & ~moving)[:, plan.frequency.pmu] & frozen[:, frequency]
    _put(sheet, whole, plan.frequency.at, Reason.STUCK)


def _any_of(flag: NDArray[np.bool_], pmu: NDArray[np.intp], pmus: int) -> NDArray[np.bool_]:
    return _Columns(pmu, pmu).any_by_pmu(flag, pmus)


def _last_changes(changed: NDArray[np.bool_], state: QualityState) -> NDArray[np.int64]:
    """`(K, T, F)`: for each frame the times of the last `K` changes of each frequency, newest first."""
    rows = len(changed)
    at = np.arange(rows)[:, None]
    newest = np.maximum.accumulate(np.where(changed, at, -1), axis=0)  # row of the last change, or -1
    out = np.empty((len(state.changed_at), *changed.shape), np.int64)
    out[0] = np.where(newest >= 0, state.frames + newest, state.changed_at[0])
    for k in range(1, len(out)):
        # The change before: what was the one before, at the row before the newest change.
        shifted = np.concatenate([state.changed_at[k - 1][None], out[k - 1]])
        found = np.take_along_axis(shifted, np.maximum(newest, 0), 0)
        out[k] = np.where(newest >= 0, found, state.changed_at[k])
    return out
