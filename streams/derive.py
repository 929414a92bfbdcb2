"""Derived signals: what is scored, made from what was measured.

In: judged blocks of raw channels. Out: blocks of frequency, ROCOF, per-unit magnitudes, sequence components, relative
angles and powers, each with the worst reason of its inputs, frame for frame (no delay). It judges nothing and scores
nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streams.align import carried
from streams.block import MARK_ONLY, Block, Reason
from streams.channels import Channel, ChannelTable, Phase, Pmu, Quantity
from streams.quality import pair_phasors

_TURN = 1 << 40
"""Angles are whole numbers of this part of a turn: sums are exact, so they do not depend on how a stream is cut."""

_RANK = np.zeros(256, np.uint8)
"""How bad a reason is: marks below masks, and of masks the most fundamental (smallest code) worst."""
_RANK[1:MARK_ONLY] = 255 - np.arange(1, MARK_ONLY)
_RANK[MARK_ONLY:] = 6
_MARKS = (Reason.TIME_QUALITY, Reason.TRIGGER, Reason.DATA_MODIFIED, Reason.EXCURSION, Reason.SUSPECT_SPIKE)
_RANK[list(_MARKS)] = np.arange(1, 6)
_REASON = np.zeros(256, np.uint8)
_REASON[_RANK[1:MARK_ONLY]] = np.arange(1, MARK_ONLY)
_REASON[1:6] = _MARKS
_REASON[6] = Reason.TRIGGER
_MASKED = np.uint8(255 - MARK_ONLY)
"""Ranks from here on mask."""

_OWN_RANK = _RANK.copy()
"""The same for an angle that is used against an angle of its own PMU only: a bad clock cancels out."""
_OWN_RANK[[Reason.OUT_OF_SYNC, Reason.SORTED_BY_ARRIVAL]] = _RANK[Reason.TIME_QUALITY]

_FAR = 9
"""A step this many median deviations (6 sigmas) from the median is not the grid's, but a clock's."""

_CLOSE = _TURN // 360_000
"""A millidegree is never far."""

_VOLTAGE = (Quantity.VOLTAGE_MAGNITUDE, Quantity.VOLTAGE_ANGLE)
_SEQUENCES = (Phase.POSITIVE, Phase.NEGATIVE, Phase.ZERO)

_Put = Callable[[Channel], tuple[int, int]]
"""Adds an output channel to the PMU at hand; says where: PMU and place."""


@dataclass(frozen=True, slots=True)
class DeriveSettings:
    """What is derived, and over what.

    Attributes
    ----------
    rocof_s
        ROCOF is the slope of a least-squares line through this much frequency, up to and including the frame.
    base_s
        Where no nominal is known, a magnitude's base is the median of its first good samples that fill this time; until
        then per-unit values are masked with `COVERAGE`.
    reference
        PMUs by name whose angle is the reference, the first good one at each frame; when none is, or none is named, all
        PMUs together.
    track_s
        With a single PMU to go by, the reference is its own mean frequency over this time.
    pass_through
        Keep analogs and digitals.
    usual_voltage
        Outside of this, per unit, a voltage is marked `EXCURSION`.
    least_magnitude
        Below this, per unit, a phasor has no angle: masked with `COVERAGE`.
    """

    rocof_s: float = 0.5
    base_s: float = 1.0
    reference: tuple[str, ...] = ()
    track_s: float = 2.0
    pass_through: bool = False
    usual_voltage: tuple[float, float] = (0.75, 1.25)
    least_magnitude: float = 0.02


@dataclass(frozen=True, slots=True)
class _Item:
    """One phasor to work with: as sent, or the positive sequence of three.

    Places are within the PMU's channels; -1 where there is none.
    """

    name: str
    voltage: bool
    phase: Phase
    nominal: float | None
    magnitude: tuple[int, ...]
    angle: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """It has an angle."""
        return self.angle[0] >= 0


def _items(pmu: Pmu, *, voltage: bool) -> list[_Item]:
    """Group the phasors of a PMU: threes of phases A, B, C first, then those that stand alone."""
    magnitude, angle = _VOLTAGE if voltage else (Quantity.CURRENT_MAGNITUDE, Quantity.CURRENT_ANGLE)
    channels = pmu.channels
    pairs = [(m, a) for m, a in pair_phasors(channels) if channels[m].quantity is magnitude]
    paired = {a for _, a in pairs}
    pairs += [(-1, c) for c, channel in enumerate(channels) if channel.quantity is angle and c not in paired]
    by_phase = {
        phase: [(m, a) for m, a in pairs if m >= 0 and a >= 0 and channels[m].phase is phase]
        for phase in (Phase.A, Phase.B, Phase.C)
    }
    threes = list(zip(*by_phase.values(), strict=False))
    used = {m for three in threes for m, _ in three}
    items = []
    for three in threes:
        ms, as_ = tuple(m for m, _ in three), tuple(a for _, a in three)
        letters = zip(*(channels[m].name for m in ms), strict=False)
        prefix = "".join(c[0] for c in itertools.takewhile(lambda c: len(set(c)) == 1, letters))
        name = prefix.rstrip(" _-.:") or channels[ms[0]].name
        items.append(_Item(name, voltage, Phase.POSITIVE, channels[ms[0]].nominal, ms, as_))
    for m, a in pairs:
        channel = channels[m if m >= 0 else a]
        # The device's own sequence components say nothing that the three phases do not.
        if m not in used and not (threes and channel.phase in _SEQUENCES):
            items.append(_Item(channel.name, voltage, channel.phase, channel.nominal if m >= 0 else None, (m,), (a,)))
    return items


def _partner(current: _Item, voltages: list[_Item]) -> int | None:
    """First whole voltage of the current's phase; any, where one of the two does not say its phase."""
    if current.phase in {Phase.NEGATIVE, Phase.ZERO}:
        return None
    for i, v in enumerate(voltages):
        if v.whole and v.magnitude[0] >= 0 and v.phase is current.phase:
            return i
    for i, v in enumerate(voltages):
        if v.whole and v.magnitude[0] >= 0 and Phase.UNKNOWN in {v.phase, current.phase}:
            return i
    return None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which input makes which output: places only, made once for a table.

    Flat places are `pmu * width + channel`. `I` phasors ("items") are worked on side by side;
    `owner` arrays name the PMU of each and ascend.

    Attributes
    ----------
    source
        The raw table.
    table
        The derived table.
    item_owner
        `(I,)`.
    single
        `(3, n)`: item, flat magnitude or -1, flat angle or -1, of phasors as sent.
    three
        `(7, n)`: item, three flat magnitudes, three flat angles.
    nominal
        `(I,)` float64: base where known, else NaN.
    base_of
        `(I,)`: the item whose base counts; its own, or the first voltage's for sequence components as sent.
    magnitude
        `(2, n)`: item, flat output.
    near_one
        Flat outputs of voltage magnitudes that ought to be near 1 pu.
    sequence
        `(3, n)`: row in `three`, flat outputs of negative and zero sequence.
    main
        `(M,)`: item whose angle stands for its PMU.
    relative
        `(3, R)`: item, item it is relative to (-1: the reference), flat output.
    power
        `(4, n)`: voltage item, current item, flat outputs of active and reactive power.
    frequency
        `(2, F)`: flat input, flat output.
    nominal_hz
        `(F,)` float64.
    rocof
        `(2, n)`: row in `frequency`, flat output.
    copied
        `(2, n)`: flat input, flat output of what goes through as it is.
    named
        Rows in `main` of the reference PMUs named, best first.
    """

    source: ChannelTable
    table: ChannelTable
    item_owner: NDArray[np.intp]
    single: NDArray[np.intp]
    three: NDArray[np.intp]
    nominal: NDArray[np.float64]
    base_of: NDArray[np.intp]
    magnitude: NDArray[np.intp]
    near_one: NDArray[np.intp]
    sequence: NDArray[np.intp]
    main: NDArray[np.intp]
    relative: NDArray[np.intp]
    power: NDArray[np.intp]
    frequency: NDArray[np.intp]
    nominal_hz: NDArray[np.float64]
    rocof: NDArray[np.intp]
    copied: NDArray[np.intp]
    named: NDArray[np.intp]


class _Draft:
    """Rows of a `Plan` as they are found, PMU after PMU; outputs by PMU and place until the width is known."""

    def __init__(self, settings: DeriveSettings, width: int) -> None:
        self.settings = settings
        self.width = width
        self.pmus: list[Pmu] = []
        self.items: list[tuple[int, _Item]] = []
        self.base_of: list[int] = []
        self.single: list[tuple[int, ...]] = []
        self.three: list[tuple[int, ...]] = []
        self.main: list[int] = []
        # The last places of these rows are outputs: (pmu, place).
        self.magnitude: list[tuple[int, tuple[int, int]]] = []
        self.near_one: list[tuple[tuple[int, int]]] = []
        self.sequence: list[tuple[int, tuple[int, int], tuple[int, int]]] = []
        self.relative: list[tuple[int, int, tuple[int, int]]] = []
        self.power: list[tuple[int, int, tuple[int, int], tuple[int, int]]] = []
        self.frequency: list[tuple[int, tuple[int, int]]] = []
        self.nominal_hz: list[float] = []
        self.rocof: list[tuple[int, tuple[int, int]]] = []
        self.copied: list[tuple[int, tuple[int, int]]] = []

    def add(self, pmu: Pmu) -> None:
        """Plan one PMU."""
        s, out = len(self.pmus), list[Channel]()
        start = s * self.width

        def put(channel: Channel) -> tuple[int, int]:
            out.append(channel)
            return s, len(out) - 1

        self._frequencies(pmu, start, put)
        voltages, currents = _items(pmu, voltage=True), _items(pmu, voltage=False)
        first = len(self.items)
        for item in voltages:
            self._phasor(s, item, first, put)
        main = next((i for i, v in enumerate(voltages) if v.whole), None)
        if main is not None:
            self.main.append(first + main)
            for i, v in enumerate(voltages):
                if not v.whole:
                    continue
                name = v.name if i == main else f"{v.name} to {voltages[main].name}"
                row = put(Channel(name, Quantity.VOLTAGE_ANGLE, v.phase, "deg"))
                self.relative.append((first + i, -1 if i == main else first + main, row))
        own = len(self.items)
        for item in currents:
            place = len(self.items)
            self._phasor(s, item, own, put)
            partner = _partner(item, voltages) if item.whole and item.magnitude[0] >= 0 else None
            if partner is not None:
                p = put(Channel(item.name, Quantity.ACTIVE_POWER, item.phase, "pu"))
                q = put(Channel(item.name, Quantity.REACTIVE_POWER, item.phase, "pu"))
                self.power.append((first + partner, place, p, q))
            elif item.whole and main is not None:
                name = f"{item.name} to {voltages[main].name}"
                row = put(Channel(name, Quantity.CURRENT_ANGLE, item.phase, "deg"))
                self.relative.append((place, first + main, row))
        self._copies(pmu, start, put)
        self.pmus.append(replace(pmu, channels=tuple(out)))

    def _phasor(self, s: int, item: _Item, first: int, put: _Put) -> None:
        place, start = len(self.items), s * self.width
        flat = [start + c if c >= 0 else -1 for c in (*item.magnitude, *item.angle)]
        (self.three if len(flat) == 6 else self.single).append((place, *flat))
        self.items.append((s, item))
        # The device's own negative and zero sequence are small beside the voltage: per unit of that.
        self.base_of.append(first if item.phase in {Phase.NEGATIVE, Phase.ZERO} else place)
        quantity = Quantity.VOLTAGE_MAGNITUDE if item.voltage else Quantity.CURRENT_MAGNITUDE
        if item.magnitude[0] >= 0:
            row = put(Channel(item.name, quantity, item.phase, "pu", 1.0))
            self.magnitude.append((place, row))
            if item.voltage and item.phase not in {Phase.NEGATIVE, Phase.ZERO}:
                self.near_one.append((row,))
        if len(flat) == 6:
            negative = put(Channel(item.name, quantity, Phase.NEGATIVE, "pu"))
            zero = put(Channel(item.name, quantity, Phase.ZERO, "pu"))
            self.sequence.append((len(self.three) - 1, negative, zero))

    def _frequencies(self, pmu: Pmu, start: int, put: _Put) -> None:
        found = [(c, channel) for c, channel in enumerate(pmu.channels) if channel.quantity is Quantity.FREQUENCY]
        for c, channel in found:
            row = len(self.frequency)
            self.frequency.append((start + c, put(replace(channel, unit="Hz", nominal=float(pmu.nominal_hz)))))
            self.nominal_hz.append(float(pmu.nominal_hz))
            self.rocof.append((row, put(Channel(channel.name, Quantity.ROCOF, unit="Hz/s"))))
        if not found:
            self._pass(pmu, start, put, {Quantity.ROCOF})

    def _copies(self, pmu: Pmu, start: int, put: _Put) -> None:
        self._pass(pmu, start, put, {Quantity.ACTIVE_POWER, Quantity.REACTIVE_POWER})
        if self.settings.pass_through:
            self._pass(pmu, start, put, {Quantity.ANALOG, Quantity.DIGITAL})

    def _pass(self, pmu: Pmu, start: int, put: _Put, quantities: set[Quantity]) -> None:
        for c, channel in enumerate(pmu.channels):
            if channel.quantity in quantities:
                self.copied.append((start + c, put(channel)))


def plan(source: ChannelTable, settings: DeriveSettings) -> Plan:
    """Find what can be derived from a table.

    Parameters
    ----------
    source
        The raw table.
    settings
        What is wanted.

    Returns
    -------
    Plan
        Per PMU, in this order: each frequency with its ROCOF; each voltage (three phases become the positive sequence,
        with the magnitudes of negative and zero sequence); the first voltage's angle against the reference, the others'
        against the first; each current likewise with active and reactive power, or its angle against the first voltage
        where no voltage of its phase is there; powers as sent.
    """
    draft = _Draft(settings, source.width)
    for pmu in source.pmus:
        draft.add(pmu)
    table = ChannelTable(tuple(draft.pmus))

    def rows(found: Iterable[tuple[int | tuple[int, int], ...]], height: int) -> NDArray[np.intp]:
        flat = [[x if isinstance(x, int) else x[0] * table.width + x[1] for x in row] for row in found]
        return np.asarray(flat, np.intp).reshape(-1, height).T.copy()

    owner = np.asarray([s for s, _ in draft.items], np.intp)
    names = [source.pmus[owner[i]].name for i in draft.main]
    return Plan(
        source=source,
        table=table,
        item_owner=owner,
        single=rows(draft.single, 3),
        three=rows(draft.three, 7),
        nominal=np.asarray([i.nominal or np.nan for _, i in draft.items], np.float64),
        base_of=np.asarray(draft.base_of, np.intp),
        magnitude=rows(draft.magnitude, 2),
        near_one=rows(draft.near_one, 1)[0],
        sequence=rows(draft.sequence, 3),
        main=np.asarray(draft.main, np.intp),
        relative=rows(draft.relative, 3),
        power=rows(draft.power, 4),
        frequency=rows(draft.frequency, 2),
        nominal_hz=np.asarray(draft.nominal_hz, np.float64),
        rocof=rows(draft.rocof, 2),
        copied=rows(draft.copied, 2),
        named=np.asarray([names.index(n) for n in settings.reference if n in names], np.intp),
    )


@dataclass(frozen=True, slots=True)
class DeriveState:
    """What `derive` remembers.

    Attributes
    ----------
    plan
        Which input makes which output.
    settings
        What is derived.
    rate_hz
        Reporting rate.
    time_ns
        Of the last frame; 0 before the first.
    base
        `(I,)` float64: what 1 pu is; NaN while it is learnt.
    learnt
        `(I,)` int64: samples seen for the base.
    samples
        `(N, I)` float32: those samples.
    phase
        `(M,)` int64: last angle of each PMU, in parts of a turn.
    steady
        `(M,)` bool: that angle was good.
    reference
        Angle of the reference, or None before the first good angle.
    steps
        `(W,)` int64: the reference's last steps, oldest first.
    stepped
        `(W,)` bool: which of them were measured.
    relative
        `(R,)` int64: last good relative angle, wrapped.
    unwrapped
        `(R,)` int64: the same, unwrapped.
    hertz
        `(L, F)` float64: last frequencies less nominal.
    counted
        `(L, F)` bool: which of them were good.
    """

    plan: Plan
    settings: DeriveSettings
    rate_hz: float
    time_ns: int
    base: NDArray[np.float64]
    learnt: NDArray[np.int64]
    samples: NDArray[np.float32]
    phase: NDArray[np.int64]
    steady: NDArray[np.bool_]
    reference: int | None
    steps: NDArray[np.int64]
    stepped: NDArray[np.bool_]
    relative: NDArray[np.int64]
    unwrapped: NDArray[np.int64]
    hertz: NDArray[np.float64]
    counted: NDArray[np.bool_]


def initial(table: ChannelTable, rate_hz: float, settings: DeriveSettings | None = None) -> DeriveState:
    """Begin with nothing seen.

    Parameters
    ----------
    table
        Of the raw blocks to come.
    rate_hz
        Reporting rate.
    settings
        What is derived; the defaults where None.

    Returns
    -------
    DeriveState
        For `derive`; its `plan.table` is the derived table.
    """
    it = settings or DeriveSettings()
    made = plan(table, it)
    items, mains, relatives, lags = len(made.item_owner), len(made.main), made.relative.shape[1], _lags(it, rate_hz)
    window = max(round(it.track_s * rate_hz), 1)
    return DeriveState(
        plan=made,
        settings=it,
        rate_hz=rate_hz,
        time_ns=0,
        base=made.nominal.copy(),
        learnt=np.zeros(items, np.int64),
        samples=np.zeros((max(round(it.base_s * rate_hz), 3), items), np.float32),
        phase=np.zeros(mains, np.int64),
        steady=np.zeros(mains, bool),
        reference=None,
        steps=np.zeros(window, np.int64),
        stepped=np.zeros(window, bool),
        relative=np.zeros(relatives, np.int64),
        unwrapped=np.zeros(relatives, np.int64),
        hertz=np.zeros((lags - 1, made.frequency.shape[1])),
        counted=np.zeros((lags - 1, made.frequency.shape[1]), bool),
    )


def _lags(settings: DeriveSettings, rate_hz: float) -> int:
    return max(round(settings.rocof_s * rate_hz) + 1, 3)


@dataclass(frozen=True, slots=True)
class _Phasors:
    """All items of a block, `(T, I)`: magnitudes as sent, angles in parts of a turn, and ranks of their reasons."""

    magnitude: NDArray[np.float64]
    phase: NDArray[np.int64]
    magnitude_rank: NDArray[np.uint8]
    own_rank: NDArray[np.uint8]
    """Of the angle, used within the PMU."""
    angle_rank: NDArray[np.uint8]
    """Of the angle, used against other PMUs."""
    negative: NDArray[np.float32]
    zero: NDArray[np.float32]
    """`(T, n)` of the items of three."""


@dataclass(frozen=True, slots=True)
class _PerUnit:
    """All items of a block against their bases, `(T, I)`."""

    base: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    rank: NDArray[np.uint8]
    """Of the reason of the magnitude as sent, or of the base that is still learnt."""


@dataclass(frozen=True, slots=True)
class _Sheet:
    """The output under construction, `(T, S * C)`."""

    values: NDArray[np.float32]
    rank: NDArray[np.uint8]

    def put(self, out: NDArray[np.intp], values: NDArray[np.generic], rank: NDArray[np.uint8]) -> None:
        """Write some columns."""
        self.values[:, out], self.rank[:, out] = values, rank


def derive(state: DeriveState, block: Block) -> tuple[DeriveState, Block]:
    """Derive the signals of a block, frame for frame.

    Relative angles are unwrapped: each good sample is the one nearest to the last good one, modulo 360 degrees, so that
    an angle neither jumps at +-180 nor after a gap. The reference turns by the mean step of all PMUs' angles but
    those far from the median step, exactly summed, so a bad clock, or a PMU that comes or goes, moves nobody else's
    angle. A single PMU is compared with its own recent mean frequency.

    Parameters
    ----------
    state
        From `initial`, `derive` or `relayout`.
    block
        Judged, on the raw table.

    Returns
    -------
    tuple[DeriveState, Block]
        The next state; as many frames, on the derived table. After a jump in time ROCOF begins anew; bases, angles and
        the reference go on.
    """
    made, frames = state.plan, len(block.time_ns)
    shape = (frames, len(made.table.pmus), made.table.width)
    size = (frames, shape[1] * shape[2])
    sheet = _Sheet(np.full(size, np.nan, np.float32), np.full(size, _RANK[Reason.ABSENT], np.uint8))
    if frames:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows was garbage, and is said to be below
            state = _fill(state, block, sheet)
    sheet.rank[~np.isfinite(sheet.values) & (sheet.rank < _MASKED)] = _RANK[Reason.NOT_A_NUMBER]
    sheet.values[sheet.rank >= _MASKED] = np.nan
    values, quality = sheet.values.reshape(shape), _REASON[sheet.rank].reshape(shape)
    return state, Block(made.table, state.rate_hz, block.time_ns, values, quality)


def _fill(state: DeriveState, block: Block, sheet: _Sheet) -> DeriveState:
    made = state.plan
    if state.time_ns and block.time_ns[0] - state.time_ns > 1.5e9 / state.rate_hz:
        state = replace(state, steady=np.zeros_like(state.steady), counted=np.zeros_like(state.counted))
    raw = block.values.reshape(len(block.values), -1)
    reasons = block.quality.reshape(raw.shape)
    for flat, out in (made.copied, made.frequency):
        sheet.put(out, raw[:, flat], _RANK[reasons[:, flat]])
    state = _rocof(state, raw, reasons, sheet)
    phasors = _phasors(made, raw, reasons)
    state, unit = _per_unit(state, phasors)
    _magnitudes(state, phasors, unit, sheet)
    _powers(made, phasors, unit, sheet)
    state = _angles(state, phasors, unit, sheet)
    return replace(state, time_ns=int(block.time_ns[-1]))


def _rocof(
    state: DeriveState,
    raw: NDArray[np.float32],
    reasons: NDArray[np.uint8],
    sheet: _Sheet,
) -> DeriveState:
    """Slope of the least-squares line through the last good frequencies: at least three, three quarters of the span."""
    made, frames, lags = state.plan, len(raw), len(state.hertz) + 1
    flat = made.frequency[0]
    own_rank = _RANK[reasons[:, flat]]
    good = own_rank < _MASKED
    hertz = np.where(good, raw[:, flat] - made.nominal_hz, 0.0)
    hertz, good = np.concatenate([state.hertz, hertz]), np.concatenate([state.counted, good])
    # Sums over the lags in a fixed order: bit for bit the same wherever the stream is cut.
    n, x1, x2, y, xy = np.zeros((5, frames, len(flat)))
    for lag in range(lags):
        rows = slice(lags - 1 - lag, lags - 1 - lag + frames)
        g, h, x = good[rows], hertz[rows], -float(lag)
        n += g
        x1 += x * g
        x2 += x * x * g
        y += h
        xy += x * h
    with np.errstate(divide="ignore"):
        slope = (n * xy - x1 * y) / (n * x2 - x1 * x1) * state.rate_hz
    row, out = made.rocof
    enough = (n >= 3) & (4 * n >= 3 * lags)
    worst = np.maximum(own_rank, np.where(enough, np.uint8(0), _RANK[Reason.COVERAGE]))
    sheet.put(out, slope[:, row], worst[:, row])
    return replace(state, hertz=hertz[frames:].copy(), counted=good[frames:].copy())


def _turns(degrees: NDArray[np.float32]) -> NDArray[np.int64]:
    """Degrees to parts of a turn; 0 where there is no number."""
    part = np.rint(np.nan_to_num(degrees.astype(np.float64)) * (_TURN / 360.0))
    out: NDArray[np.int64] = part.astype(np.int64)
    return out


def _wrapped(part: NDArray[np.int64]) -> NDArray[np.int64]:
    """To [-half a turn, half a turn), exactly."""
    return ((part + _TURN // 2) & (_TURN - 1)) - _TURN // 2


def _phasors(made: Plan, raw: NDArray[np.float32], reasons: NDArray[np.uint8]) -> _Phasors:
    frames, items = len(raw), len(made.item_owner)
    magnitude = np.full((frames, items), np.nan)
    phase = np.zeros((frames, items), np.int64)
    size_rank, own_rank, angle_rank = np.full((3, frames, items), _RANK[Reason.ABSENT], np.uint8)
    item, m, a = made.single
    has = m >= 0
    magnitude[:, item[has]] = raw[:, m[has]]
    size_rank[:, item[has]] = _RANK[reasons[:, m[has]]]
    has = a >= 0
    phase[:, item[has]] = _turns(raw[:, a[has]])
    own_rank[:, item[has]] = _OWN_RANK[reasons[:, a[has]]]
    angle_rank[:, item[has]] = _RANK[reasons[:, a[has]]]

    # In float32, whose 1e-7 is far below any PMU's noise, sine and cosine cost a quarter.
    item, ms, as_ = made.three[0], made.three[1:4], made.three[4:7]
    size, turned = raw[:, ms], raw[:, as_] * np.float32(np.pi / 180)
    re, im = size * np.cos(turned), size * np.sin(turned)
    # a = exp(j 120 deg) turns phase B onto A; V1 = (A + a B + a^2 C) / 3, V2 = (A + a^2 B + a C) / 3.
    half, root = np.float32(0.5), np.float32(np.sqrt(0.75))
    sum_re, sum_im = re[:, 0] - half * (re[:, 1] + re[:, 2]), im[:, 0] - half * (im[:, 1] + im[:, 2])
    cross_re, cross_im = root * (im[:, 2] - im[:, 1]), root * (re[:, 1] - re[:, 2])
    one_re, one_im = sum_re + cross_re, sum_im + cross_im
    magnitude[:, item] = _length(one_re, one_im)
    phase[:, item] = _turns(np.arctan2(one_im, one_re) * np.float32(180 / np.pi))
    worst = _RANK[reasons[:, ms]].max(1)
    size_rank[:, item] = np.maximum(worst, _OWN_RANK[reasons[:, as_]].max(1))
    own_rank[:, item] = size_rank[:, item]
    angle_rank[:, item] = np.maximum(worst, _RANK[reasons[:, as_]].max(1))
    negative = _length(sum_re - cross_re, sum_im - cross_im)
    zero = _length(re[:, 0] + re[:, 1] + re[:, 2], im[:, 0] + im[:, 1] + im[:, 2])
    return _Phasors(magnitude, phase, size_rank, own_rank, angle_rank, negative, zero)


def _length(re: NDArray[np.float32], im: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take a third of the length of three phases' sum: a sequence component."""
    return (np.hypot(re, im) / 3).astype(np.float32)


def _per_unit(state: DeriveState, phasors: _Phasors) -> tuple[DeriveState, _PerUnit]:
    """Divide by the bases; learn those that are not yet known, each from its first good samples."""
    wanted = len(state.samples)
    base: NDArray[np.float64] = np.broadcast_to(state.base, phasors.magnitude.shape)
    at = np.flatnonzero(np.isnan(state.base))
    good = (phasors.magnitude_rank[:, at] < _MASKED) & (phasors.magnitude[:, at] > 0)
    if good.any():
        seen = state.learnt[at] + np.cumsum(good, axis=0)
        row, column = np.nonzero(good & (seen <= wanted))
        samples, learnt, bases = state.samples.copy(), state.learnt.copy(), state.base.copy()
        samples[seen[row, column] - 1, at[column]] = phasors.magnitude[row, at[column]]
        learnt[at] = np.minimum(seen[-1], wanted)
        done = at[seen[-1] >= wanted]
        bases[done] = np.median(samples[:, done], axis=0)
        base = base.copy()
        base[:, at] = np.where(seen >= wanted, bases[at], np.nan)
        state = replace(state, base=bases, learnt=learnt, samples=samples)
    base = base[:, state.plan.base_of]
    learning = np.where(np.isnan(base), _RANK[Reason.COVERAGE], np.uint8(0))
    return state, _PerUnit(base, phasors.magnitude / base, np.maximum(phasors.magnitude_rank, learning))


def _magnitudes(state: DeriveState, phasors: _Phasors, unit: _PerUnit, sheet: _Sheet) -> None:
    made, (low, high) = state.plan, state.settings.usual_voltage
    item, out = made.magnitude
    sheet.put(out, unit.magnitude[:, item], unit.rank[:, item])
    volts = sheet.values[:, made.near_one]
    unusual = (volts < low) | (volts > high)
    if unusual.any():
        row, column = np.nonzero(unusual)
        place = row, made.near_one[column]
        sheet.rank[place] = np.maximum(sheet.rank[place], _RANK[Reason.EXCURSION])
    three, negative, zero = made.sequence
    item = made.three[0][three]
    sheet.put(negative, phasors.negative[:, three] / unit.base[:, item], unit.rank[:, item])
    sheet.put(zero, phasors.zero[:, three] / unit.base[:, item], unit.rank[:, item])


def _powers(made: Plan, phasors: _Phasors, unit: _PerUnit, sheet: _Sheet) -> None:
    """P + jQ = V I*, per unit of 3 V I of the bases (of V I where it is one phase)."""
    v, i, active, reactive = made.power
    apparent = unit.magnitude[:, v] * unit.magnitude[:, i]
    between = (phasors.phase[:, v] - phasors.phase[:, i]) * (2 * np.pi / _TURN)
    worst = np.maximum(unit.rank[:, v], unit.rank[:, i])
    worst = np.maximum(worst, np.maximum(phasors.own_rank[:, v], phasors.own_rank[:, i]))
    sheet.put(active, apparent * np.cos(between), worst)
    sheet.put(reactive, apparent * np.sin(between), worst)


def _angles(state: DeriveState, phasors: _Phasors, unit: _PerUnit, sheet: _Sheet) -> DeriveState:
    made, frames = state.plan, len(sheet.values)
    item, other, out = made.relative
    if not len(item):
        return state
    small = np.where(unit.magnitude < state.settings.least_magnitude, _RANK[Reason.COVERAGE], np.uint8(0))
    own = np.maximum(phasors.own_rank, small)
    # Alone, a PMU is compared with itself only, and a bad clock does not matter.
    across = np.maximum(phasors.angle_rank, small) if len(made.main) > 1 else own
    state, reference = _reference(state, phasors.phase[:, made.main], across[:, made.main] < _MASKED)

    to_other = other >= 0
    base = np.where(to_other, phasors.phase[:, other], reference[:, None])
    relative = phasors.phase[:, item] - base
    worst = np.where(to_other, np.maximum(own[:, item], own[:, other]), across[:, item])
    good = worst < _MASKED
    # Each good sample's step from the last good one before it, wherever that was.
    at = np.arange(1, frames + 1)[:, None]
    last = np.maximum.accumulate(np.where(good, at, 0), axis=0)
    before = np.concatenate([np.zeros((1, len(item)), np.intp), last[:-1]])
    known = np.concatenate([state.relative[None], relative])
    step = np.where(good, _wrapped(relative - np.take_along_axis(known, before, 0)), 0)
    unwrapped = state.unwrapped + np.cumsum(step, axis=0)
    sheet.put(out, unwrapped * (360.0 / _TURN), worst)
    kept = np.take_along_axis(known, last[-1:], 0)[0]
    return replace(state, relative=_wrapped(kept), unwrapped=unwrapped[-1].copy())


def _middle(values: NDArray[np.int64], usable: NDArray[np.bool_], count: NDArray[np.intp]) -> NDArray[np.int64]:
    """Median of the usable values of each row."""
    ordered = np.sort(np.where(usable, values, _TURN), axis=1)  # unusable ones last
    pick = np.stack([np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[1] - 1)], axis=1)
    out: NDArray[np.int64] = np.take_along_axis(ordered, pick, 1).sum(1) // 2
    return out


def _reference(
    state: DeriveState, phase: NDArray[np.int64], good: NDArray[np.bool_]
) -> tuple[DeriveState, NDArray[np.int64]]:
    """Angle of the reference at each frame, `(T,)`, in parts of a turn.

    Its step is that of the first good named PMU, else the mean of all PMUs' steps that are near their median (medians
    of noise add up to a drift, means do not), else (one PMU or none) the mean of its own last steps. Integrating steps,
    rather than following somebody's angle, makes every fail-over continuous.
    """
    frames, window = len(phase), len(state.steps)
    earlier = np.concatenate([state.phase[None], phase[:-1]])
    usable = good & np.concatenate([state.steady[None], good[:-1]])
    step = _wrapped(phase - earlier)
    count = usable.sum(1)
    off = np.abs(step - _middle(step, usable, count)[:, None])
    near = usable & (off <= np.maximum(_FAR * _middle(off, usable, count), _CLOSE)[:, None])
    common = np.where(near, step, 0).sum(1) // np.maximum(near.sum(1), 1)
    sure, measured = count >= 2, count >= 1
    named = state.plan.named
    if len(named):
        first = named[np.argmax(usable[:, named], axis=1)]
        found = usable[np.arange(frames), first]
        common = np.where(found, step[np.arange(frames), first], common)
        sure = sure | found
    steps, stepped = np.concatenate([state.steps, common]), np.concatenate([state.stepped, measured])
    total, number = np.cumsum(steps), np.cumsum(stepped)
    mean = (total[window:] - total[:frames]) // np.maximum(number[window:] - number[:frames], 1)
    turned = np.cumsum(np.where(sure, common, mean))
    start = state.reference
    if start is None:
        some = good.any(1)
        if some.any():  # begin at the first good angle, so that relative angles begin small
            t = int(np.argmax(some))
            start = int(phase[t, np.argmax(good[t])] - turned[t])
    angle = (start or 0) + turned
    return (
        replace(
            state,
            phase=phase[-1].copy(),
            steady=good[-1].copy(),
            reference=None if start is None else int(angle[-1]) & (_TURN - 1),
            steps=steps[frames:].copy(),
            stepped=stepped[frames:].copy(),
        ),
        angle,
    )


def relayout(state: DeriveState, table: ChannelTable) -> DeriveState:
    """Go on with another raw table.

    Parameters
    ----------
    state
        From `derive`.
    table
        Of the blocks to come.

    Returns
    -------
    DeriveState
        The PMUs that stay (same name, same channels) keep base, angle and ROCOF's past; newcomers begin; the reference
        goes on for all.
    """
    new = initial(table, state.rate_hz, state.settings)
    old, made = state.plan, new.plan
    place = carried(old.source, table)
    width, old_width = max(table.width, 1), max(old.source.width, 1)
    items = _moved(old.item_owner, made.item_owner, place)
    mains = _moved(old.item_owner[old.main], made.item_owner[made.main], place)
    angles = _moved(old.item_owner[old.relative[0]], made.item_owner[made.relative[0]], place)
    hertz = _moved(old.frequency[0] // old_width, made.frequency[0] // width, place)
    for field, (to, fro) in (
        ("base", items), ("learnt", items), ("samples", items), ("phase", mains), ("steady", mains),
        ("relative", angles), ("unwrapped", angles), ("hertz", hertz), ("counted", hertz),
    ):  # fmt: skip
        getattr(new, field)[..., to] = getattr(state, field)[..., fro]
    return replace(new, time_ns=state.time_ns, reference=state.reference, steps=state.steps, stepped=state.stepped)


def _moved(
    before: NDArray[np.intp], after: NDArray[np.intp], place: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows in a new and in an old list of the same thing, where owners ascend and each PMU's own order is kept."""
    to = np.flatnonzero(place[after] >= 0)
    nth = to - np.searchsorted(after, after[to])
    return to, np.searchsorted(before, place[after[to]]) + nth
