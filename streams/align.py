"""Event-time alignment: frames of many sources, as they arrive, onto one reporting grid.

In: decoded frames of several sources, in any order within the lateness, and (live) the wall clock as an argument. Out:
runs of consecutive grid times with every PMU side by side, NaN where nothing came. It neither judges a value nor reads
a clock, and what is too late, doubled or wildly ahead is counted, never written.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from streams.block import FrameBatch
from streams.channels import ChannelTable
from streams.errors import AlignmentError

_log = logging.getLogger(__name__)

_Scalar = TypeVar("_Scalar", bound=np.generic)
_SECOND = 1_000_000_000
_NEVER = -(1 << 62)
"""A slot before every slot."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The reporting grid: slot `k` stands at `k * denominator / numerator` seconds since the epoch, to a nanosecond.

    Attributes
    ----------
    numerator
        Frames in `denominator` seconds.
    denominator
        1 for whole rates; 5 for a frame every five seconds.
    """

    numerator: int
    denominator: int

    def slot(self, time_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the nearest slot of each time, exactly (no floating point).

        Parameters
        ----------
        time_ns
            Any shape, nanoseconds since the epoch.

        Returns
        -------
        NDArray[np.int64]
            Same shape; a time half-way between two slots goes to the later.
        """
        second, rest = np.divmod(np.asarray(time_ns, np.int64), _SECOND)
        whole, part = np.divmod(second * self.numerator, self.denominator)
        scale = self.denominator * _SECOND
        out: NDArray[np.int64] = whole + (part * _SECOND + rest * self.numerator + scale // 2) // scale
        return out

    def time(self, slot: NDArray[np.int64]) -> NDArray[np.int64]:
        """Time of each slot.

        Parameters
        ----------
        slot
            Any shape.

        Returns
        -------
        NDArray[np.int64]
            Same shape, nanoseconds since the epoch.
        """
        second, part = np.divmod(np.asarray(slot, np.int64) * self.denominator, self.numerator)
        out: NDArray[np.int64] = second * _SECOND + (part * _SECOND + self.numerator // 2) // self.numerator
        return out

    def slots(self, duration_ns: int) -> int:
        """Count the whole slots in a duration.

        Parameters
        ----------
        duration_ns
            Nanoseconds.

        Returns
        -------
        int
            Rounded down.
        """
        return duration_ns * self.numerator // (self.denominator * _SECOND)


def grid_of(rate_hz: float) -> Grid:
    """Name the grid of a reporting rate.

    Parameters
    ----------
    rate_hz
        Frames a second, above or below one.

    Returns
    -------
    Grid
        The rate as a ratio of small whole numbers.

    Raises
    ------
    AlignmentError
        The rate is not a positive number below 1000.
    """
    if not 0.0 < rate_hz <= 1000.0:  # also refuses NaN
        raise AlignmentError(
            f"reporting rate {rate_hz} Hz: must be above 0 and at most 1000; check the configuration frame"
        )
    ratio = Fraction(rate_hz).limit_denominator(1000)
    if not ratio:
        raise AlignmentError(f"reporting rate {rate_hz} Hz: slower than one frame in 1000 s cannot be aligned")
    return Grid(ratio.numerator, ratio.denominator)


@dataclass(frozen=True, slots=True)
class AlignSettings:
    """How long to wait for whom.

    Attributes
    ----------
    lateness_s
        A frame may come this much (event time) after the newest one seen; later frames are counted and dropped.
    grace_s
        When frames stop, slots close by the wall clock this long after the lateness.
    ahead_s
        A frame further than this ahead of everybody is a bad clock until a majority of the live sources agrees with it.
        The lateness and two reporting intervals are always granted.
    dead_s
        A source that sent nothing timely for this long (arrival clock) is not waited for. The lateness and three
        reporting intervals are always granted.
    gap_s
        A gap in everybody's time up to this is filled with empty slots; a longer one ends the run.
    """

    lateness_s: float = 1.0
    grace_s: float = 0.5
    ahead_s: float = 5.0
    dead_s: float = 2.0
    gap_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the frames, by source.

    Attributes
    ----------
    accepted
        `(N,)` int64: written onto the grid.
    late
        `(N,)` int64: their slot was closed, or they came from a source that had been given up.
    duplicate
        `(N,)` int64: their slot was already filled by the same source; the first was kept.
    ahead
        `(N,)` int64: wildly ahead of the other sources.
    """

    accepted: NDArray[np.int64]
    late: NDArray[np.int64]
    duplicate: NDArray[np.int64]
    ahead: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Aligned:
    """A run of consecutive grid times, every source side by side, unjudged.

    Attributes
    ----------
    table
        All sources' PMUs.
    rate_hz
        Reporting rate.
    time_ns
        `(T,)` int64 on the grid, no slot left out.
    values
        `(T, S, C)` float32 as sent; NaN where nothing came.
    stat
        `(T, S)` uint16; 0 where nothing came.
    received
        `(T, S)` bool: a frame came.
    time_flags
        `(T, S)` uint8: top byte of FRACSEC of the frame that carried the PMU.
    """

    table: ChannelTable
    rate_hz: float
    time_ns: NDArray[np.int64]
    values: NDArray[np.float32]
    stat: NDArray[np.uint16]
    received: NDArray[np.bool_]
    time_flags: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Layout:
    """Who stands where on the stream axis.

    Attributes
    ----------
    table
        All sources' PMUs side by side, names made unique.
    sources
        `N` names.
    tables
        `N` tables, each as its source has it.
    start
        `(N + 1,)` int: source `n` stands at `start[n]:start[n + 1]`.
    """

    table: ChannelTable
    sources: tuple[str, ...]
    tables: tuple[ChannelTable, ...]
    start: NDArray[np.intp]

    @property
    def source_of(self) -> NDArray[np.intp]:
        """`(S,)`: the source of each PMU."""
        return np.repeat(np.arange(len(self.sources)), np.diff(self.start))


@dataclass(frozen=True, slots=True)
class AlignState:
    """Everything that `step` remembers; arrays and whole numbers, never changed in place.

    Attributes
    ----------
    layout
        Who stands where.
    rate_hz
        Reporting rate of every source.
    settings
        How long to wait.
    held
        Frames that came before the first consensus on the time, with their source.
    newest
        Newest slot believed; `_NEVER` before the first consensus.
    base
        First slot that is still open.
    started
        A slot of this run was given out, so empty slots count from here.
    forced
        Slots before this were closed by the wall clock.
    clock
        Nanoseconds by arrivals, its steps bounded, so that one wild arrival ages nobody.
    last_arrival
        Arrival of the last frame, or `_NEVER`.
    mark_slot
        Newest slot when it was set by a frame.
    mark_arrival
        Arrival of that frame.
    heard
        `(N,)` int64: `clock` at the last timely frame.
    claim
        `(N,)` int64: the last slot each source spoke of, believed or not.
    live_from
        `(N,)` int64: slots before this do not wait for the source.
    values
        `(P, S, C)` float32: open slots from `base`.
    stat
        `(P, S)` uint16.
    received
        `(P, S)` bool.
    time_flags
        `(P, S)` uint8.
    counts
        What became of the frames so far.
    """

    layout: Layout
    rate_hz: float
    settings: AlignSettings
    held: tuple[tuple[int, FrameBatch], ...]
    newest: int
    base: int
    started: bool
    forced: int
    clock: int
    last_arrival: int
    mark_slot: int
    mark_arrival: int
    heard: NDArray[np.int64]
    claim: NDArray[np.int64]
    live_from: NDArray[np.int64]
    values: NDArray[np.float32]
    stat: NDArray[np.uint16]
    received: NDArray[np.bool_]
    time_flags: NDArray[np.uint8]
    counts: Counts


def lay_out(tables: Mapping[str, ChannelTable]) -> Layout:
    """Put the sources' PMUs side by side.

    Parameters
    ----------
    tables
        By source name, in the order wanted.

    Returns
    -------
    Layout
        Two PMUs of one name are told apart by their source's name.

    Raises
    ------
    AlignmentError
        There is no source, or one has no PMU.
    """
    for source, table in tables.items():
        if not table.pmus:
            raise AlignmentError(f"source {source!r} has no PMU; leave it out until its configuration is known")
    if not tables:
        raise AlignmentError("nothing to align: no source was given")
    names = [p.name for t in tables.values() for p in t.pmus]
    doubled = {n for n in names if names.count(n) > 1} if len(set(names)) < len(names) else set()
    pmus = tuple(
        replace(p, name=f"{source}/{p.name}") if p.name in doubled else p
        for source, t in tables.items()
        for p in t.pmus
    )
    sizes = [len(t.pmus) for t in tables.values()]
    return Layout(ChannelTable(pmus), tuple(tables), tuple(tables.values()), np.cumsum([0, *sizes]))


def initial(tables: Mapping[str, ChannelTable], rate_hz: float, settings: AlignSettings | None = None) -> AlignState:
    """Begin with nothing seen.

    Parameters
    ----------
    tables
        The sources (connections, files) and what each carries.
    rate_hz
        Reporting rate of all of them.
    settings
        How long to wait; the defaults where None.

    Returns
    -------
    AlignState
        For `step`.
    """
    grid_of(rate_hz)
    layout = lay_out(tables)
    n, s, c = len(layout.sources), len(layout.table.pmus), layout.table.width
    zero = np.zeros(n, np.int64)
    return AlignState(
        layout=layout,
        rate_hz=rate_hz,
        settings=settings or AlignSettings(),
        held=(),
        newest=_NEVER,
        base=_NEVER,
        started=False,
        forced=_NEVER,
        clock=0,
        last_arrival=_NEVER,
        mark_slot=_NEVER,
        mark_arrival=0,
        heard=zero,
        claim=np.full(n, _NEVER, np.int64),
        live_from=np.full(n, _NEVER, np.int64),
        values=np.zeros((0, s, c), np.float32),
        stat=np.zeros((0, s), np.uint16),
        received=np.zeros((0, s), bool),
        time_flags=np.zeros((0, s), np.uint8),
        counts=Counts(zero, zero, zero, zero),
    )


@dataclass(frozen=True, slots=True)
class _Waits:
    """`AlignSettings` in the units in which they are used."""

    grid: Grid
    late: int
    ahead: int
    gap: int
    hold_ns: int
    force_ns: int
    dead_ns: int


def _waits(state: AlignState) -> _Waits:
    grid = grid_of(state.rate_hz)
    it = state.settings

    def slots(seconds: float) -> int:
        return -(-round(seconds * _SECOND) * grid.numerator // (grid.denominator * _SECOND))

    period = grid.denominator * _SECOND // grid.numerator
    return _Waits(
        grid=grid,
        late=slots(it.lateness_s),
        ahead=max(slots(it.ahead_s), slots(it.lateness_s) + 2),
        gap=slots(it.gap_s),
        hold_ns=round(it.lateness_s * _SECOND),
        force_ns=round((it.lateness_s + it.grace_s) * _SECOND),
        # A source in step that is delayed by the lateness from one frame to the next has not died.
        dead_ns=max(round(it.dead_s * _SECOND), round(it.lateness_s * _SECOND) + 3 * period),
    )


@dataclass(frozen=True, slots=True)
class _Frames:
    """Frames of all batches of a step in order of arrival: `(n,)` each."""

    batches: tuple[FrameBatch, ...]
    source: NDArray[np.intp]
    slot: NDArray[np.int64]
    arrival: NDArray[np.int64]
    clock: NDArray[np.int64]
    batch: NDArray[np.intp]
    row: NDArray[np.intp]


def _merge(state: AlignState, held: tuple[tuple[int, FrameBatch], ...], wait: _Waits) -> _Frames:
    batches = tuple(b for _, b in held)
    sizes = [len(b.time_ns) for b in batches]
    time_ns = np.concatenate([np.zeros(0, np.int64), *(b.time_ns for b in batches)])
    # The order within a batch is the order of arrival, whatever its arrival stamps say.
    arrival = np.concatenate([np.zeros(0, np.int64), *(np.maximum.accumulate(b.arrival_ns) for b in batches)])
    source = np.repeat(np.asarray([n for n, _ in held], np.intp), sizes)
    batch = np.repeat(np.arange(len(batches)), sizes)
    row = np.concatenate([np.zeros(0, np.intp), *(np.arange(k) for k in sizes)])
    if np.any(arrival[1:] < arrival[:-1]):
        order = np.argsort(arrival, kind="stable")
        time_ns, arrival, source, batch, row = (x[order] for x in (time_ns, arrival, source, batch, row))
    # The first frame of all starts the clock.
    first = state.last_arrival if state.last_arrival != _NEVER else int(arrival[0]) if len(arrival) else 0
    step = np.clip(np.diff(arrival, prepend=np.int64(first)), 0, wait.dead_ns // 2)
    return _Frames(batches, source, wait.grid.slot(time_ns), arrival, state.clock + np.cumsum(step), batch, row)


def _anchor(frames: _Frames, sources: int, wait: _Waits, *, now: bool) -> int | None:
    """First slot to believe in, or None while too few sources have spoken.

    Majority of sources, or the lateness has passed, or `now`. The time that most sources share wins; then the one
    closest to its own arrival; then the earliest.
    """
    if not len(frames.slot):
        return None
    _, first = np.unique(frames.source, return_index=True)
    first = np.sort(first)
    enough = int(first[sources // 2]) if len(first) > sources // 2 else len(frames.slot)
    waited = np.flatnonzero(frames.clock - frames.clock[0] > wait.hold_ns)
    enough = min([enough, *waited[:1].tolist()])
    if enough == len(frames.slot):
        if not now:
            return None
        enough -= 1
    slot, source, arrival = (x[enough::-1] for x in (frames.slot, frames.source, frames.arrival))
    _, last = np.unique(source, return_index=True)
    claim = np.sort(slot[last])
    near = np.searchsorted(claim, slot[last] + wait.ahead, "right") - np.searchsorted(claim, slot[last] - wait.ahead)
    astray = np.abs(wait.grid.slot(arrival[last]) - slot[last])
    chosen = int(slot[last][np.lexsort((slot[last], astray, -near))[0]])
    return int(slot[np.abs(slot - chosen) <= wait.ahead].min())


def _admit(state: AlignState, frames: _Frames, wait: _Waits) -> tuple[NDArray[np.bool_], list[int]]:
    """Refuse what is wildly ahead; name the frames at which everybody's time jumps.

    Nearly every step ends at the first test. Otherwise frame by frame, since each decision rests on those before it.
    """
    admitted = np.ones(len(frames.slot), bool)
    before = np.maximum.accumulate(np.concatenate([[state.newest], frames.slot]))[:-1]
    if not np.any(frames.slot > before + wait.ahead):
        return admitted, []
    newest, heard, claim, jumps = state.newest, state.heard.copy(), state.claim.copy(), []
    for i, (n, slot, clock) in enumerate(
        zip(frames.source.tolist(), frames.slot.tolist(), frames.clock.tolist(), strict=True)
    ):
        claim[n] = slot
        if slot > newest + wait.ahead:
            live = clock - heard <= wait.dead_ns
            live[n] = True
            agree = live & (np.abs(claim - slot) <= wait.ahead)
            if 2 * np.count_nonzero(agree) <= np.count_nonzero(live):
                admitted[i] = False
                continue
            jumps.append(i)
        newest = max(newest, slot)
        if slot >= max(newest - wait.late, state.forced):
            heard[n] = clock
    return admitted, jumps


@dataclass(slots=True)
class _Work:
    """The state under construction within one step; never leaves it."""

    layout: Layout
    rate_hz: float
    wait: _Waits
    newest: int
    base: int
    started: bool
    forced: int
    heard: NDArray[np.int64]
    live_from: NDArray[np.int64]
    values: NDArray[np.float32]
    stat: NDArray[np.uint16]
    received: NDArray[np.bool_]
    time_flags: NDArray[np.uint8]
    accepted: NDArray[np.int64]
    late: NDArray[np.int64]
    duplicate: NDArray[np.int64]

    def grow(self, slots: int) -> None:
        """Make room for `slots` open slots."""
        more = slots - len(self.values)
        if more <= 0:
            return
        s, c = len(self.layout.table.pmus), self.layout.table.width
        self.values = np.concatenate([self.values, np.full((more, s, c), np.nan, np.float32)])
        self.stat = np.concatenate([self.stat, np.zeros((more, s), np.uint16)])
        self.received = np.concatenate([self.received, np.zeros((more, s), bool)])
        self.time_flags = np.concatenate([self.time_flags, np.zeros((more, s), np.uint8)])

    def delivered(self) -> NDArray[np.bool_]:
        """`(P, N)`: the source has filled the slot."""
        out: NDArray[np.bool_] = np.logical_or.reduceat(self.received, self.layout.start[:-1], axis=1)
        return out

    def sort_out(self, frames: _Frames, pick: NDArray[np.intp]) -> NDArray[np.intp]:
        """Count late and double frames, note who was heard, and return those to write."""
        source, slot, clock = frames.source[pick], frames.slot[pick], frames.clock[pick]
        running = np.maximum.accumulate(np.concatenate([[self.newest], slot]))
        before = running[:-1]
        self.newest = int(running[-1])
        late = slot < np.maximum(before - self.wait.late, self.forced)

        # A source comes back from the dead at its first timely frame after a silence; slots up to the newest at that
        # moment may have closed without it, depending on where the stream was cut, so it is taken up again only after
        # them.
        timely = np.flatnonzero(~late)
        timely = timely[np.argsort(source[timely], kind="stable")]
        who = source[timely]
        head = np.diff(who, prepend=-1) != 0
        since = np.where(head, self.heard[who], np.concatenate([[0], clock[timely][:-1]]))
        back = timely[clock[timely] - since > self.wait.dead_ns]
        tail = np.flatnonzero(np.diff(who, append=len(self.heard)))
        self.heard[who[tail]] = clock[timely][tail]
        floor = self.live_from[source]
        for i in np.sort(back).tolist():  # rare: once for each silence
            floor[i:][source[i:] == source[i]] = before[i] + 1
            self.live_from[source[i]] = before[i] + 1
        late |= slot < floor

        known = ~late & (slot < self.base)  # closed because it was complete
        offset = slot - self.base
        kept = ~late & ~known & (offset < len(self.values))
        if kept.any():
            known[kept] = self.delivered()[offset[kept], source[kept]]
        fresh = np.flatnonzero(~late & ~known)
        _, first = np.unique(offset[fresh] * len(self.heard) + source[fresh], return_index=True)
        write = np.zeros(len(slot), bool)
        write[fresh[first]] = True
        size = len(self.heard)
        self.late = self.late + np.bincount(source[late], minlength=size)
        self.accepted = self.accepted + np.bincount(source[write], minlength=size)
        self.duplicate = self.duplicate + np.bincount(source[~late & ~write], minlength=size)
        return pick[write]

    def write(self, frames: _Frames, pick: NDArray[np.intp]) -> None:
        """Scatter frames onto the open slots, a batch at a time."""
        if not len(pick):
            return
        self.grow(int(frames.slot[pick].max()) - self.base + 1)
        pick = pick[np.argsort(frames.batch[pick], kind="stable")]
        batch = frames.batch[pick]
        edges = np.flatnonzero(np.diff(batch, prepend=-1, append=-1)).tolist()
        for lo, hi in itertools.pairwise(edges):
            one = pick[lo:hi]
            b = frames.batches[batch[lo]]
            n = int(frames.source[one[0]])
            columns = slice(int(self.layout.start[n]), int(self.layout.start[n + 1]))
            to, row = _as_slice(frames.slot[one] - self.base), _as_slice(frames.row[one])
            self.values[to, columns, : b.values.shape[2]] = b.values[row]
            self.stat[to, columns] = b.stat[row]
            self.received[to, columns] = True
            self.time_flags[to, columns] = b.time_flags[row][:, None]

    def closable(self, clock: int) -> int:
        """Count the open slots from the front that wait for nothing."""
        count = max(self.newest - self.wait.late, self.forced) - self.base
        if count < len(self.values):
            start = max(count, 0)
            slot = np.arange(self.base + start, self.base + len(self.values))
            waits = (clock - self.heard <= self.wait.dead_ns) & (slot[:, None] >= self.live_from)
            open_ = np.any(waits & ~self.delivered()[start:], axis=1)
            count = start + int(np.argmax(np.append(open_, True)))
        return max(count, 0)

    def force(self, slot: int) -> list[Aligned]:
        """Take the wall clock's word for the newest slot; where nobody looked at it for long, a new run begins."""
        self.forced = max(self.forced, slot)
        out: list[Aligned] = []
        if self.forced - self.newest > self.wait.gap:
            _log.warning("the wall clock is %d slots further: a new run begins", self.forced - self.newest)
            out = self.take(max(self.newest + 1 - self.base, 0))
            self.base, self.started = self.forced, False
        self.newest = max(self.newest, self.forced)
        return out

    def take(self, count: int) -> list[Aligned]:
        """Close the first `count` open slots and hand them out."""
        if not count:
            return []
        self.grow(count)
        first = 0
        if not self.started:  # a run begins with the first slot in which anything came
            filled = self.received[:count].any(axis=1)
            first = int(np.argmax(filled)) if filled.any() else count
        out = []
        if first < count:
            self.started = True
            part = slice(first, count)
            time_ns = self.wait.grid.time(np.arange(self.base + first, self.base + count))
            fields = (self.values[part], self.stat[part], self.received[part], self.time_flags[part])
            out.append(Aligned(self.layout.table, self.rate_hz, time_ns, *fields))
        self.base += count
        # Copies: the state must not keep a whole batch alive for its last second.
        self.values, self.stat = self.values[count:].copy(), self.stat[count:].copy()
        self.received, self.time_flags = self.received[count:].copy(), self.time_flags[count:].copy()
        return out


def _as_slice(index: NDArray[np.int64] | NDArray[np.intp]) -> slice | NDArray[np.int64] | NDArray[np.intp]:
    """Turn consecutive indices to a slice, which copies nothing on the way."""
    return slice(int(index[0]), int(index[-1]) + 1) if np.all(np.diff(index) == 1) else index


def step(
    state: AlignState, batches: Sequence[tuple[str, FrameBatch]], now_ns: int | None = None
) -> tuple[AlignState, tuple[Aligned, ...]]:
    """Take frames in, give closed slots out.

    A slot closes, in order, as soon as every live source has delivered it; or when a frame newer by more than the
    lateness has been seen; or when the wall clock says that such a frame ought to have been seen, `grace_s` ago. A
    frame is late if, when it came, the newest believed slot was more than the lateness after its own. Frames are taken
    in the order of their arrival stamps, so the result does not depend on how the stream was cut, nor on which order
    within the lateness they came in.

    A frame more than `ahead_s` ahead of the newest believed one is believed only if more than half of the live sources
    (itself included) speak of about that time, so one bad clock never closes everybody's slots, while a lone source may
    jump as it likes. The first consensus waits for more than half of the sources, or the lateness. A clock that went
    back only makes late frames.

    Parameters
    ----------
    state
        From `initial`, `step` or `relayout`.
    batches
        Source name and frames, any number for each source.
    now_ns
        The clock that made the frames' `arrival_ns`, or None where time is only in the frames (archives).

    Returns
    -------
    tuple[AlignState, tuple[Aligned, ...]]
        The next state, and nearly always none or one run of slots. Each run follows the one before without a gap,
        unless everybody's time, or the clock between two calls, jumped by more than `gap_s`.

    Raises
    ------
    AlignmentError
        A batch is of an unknown source, of another rate, or of another configuration than the layout says.
    """
    layout, held = state.layout, list(state.held)
    place = {name: n for n, name in enumerate(layout.sources)}
    for name, batch in batches:
        if name not in place:
            known = ", ".join(layout.sources[:5])
            raise AlignmentError(f"source {name!r} is not in the layout ({known}, ...); call relayout first")
        if batch.rate_hz != state.rate_hz and grid_of(batch.rate_hz) != grid_of(state.rate_hz):
            raise AlignmentError(
                f"source {name!r} reports at {batch.rate_hz:g} Hz, the others at {state.rate_hz:g} Hz: one pipeline "
                f"runs at one rate; run this source by itself or set its device to {state.rate_hz:g} Hz"
            )
        n = place[name]
        if batch.table is not layout.tables[n] and batch.table != layout.tables[n]:
            raise AlignmentError(f"source {name!r} has changed its configuration; call relayout with its new table")
        if len(batch.time_ns):
            held.append((n, batch))
    return _advance(state, tuple(held), now_ns, end=False)


def rounds(batches: Iterable[tuple[str, FrameBatch]], sources: Sequence[str]) -> Iterator[list[tuple[str, FrameBatch]]]:
    """Put together what belongs to one stretch of time, for readers that give the sources one after another.

    An archive is read a stretch at a time, each source's share in turn. Fed one by one, the first source's share would
    make the others' late; a round at a time, `step` sees them in order of arrival.

    Parameters
    ----------
    batches
        Source name and frames; in each stretch in the order of `sources`, those that sent nothing left out.
    sources
        All of them, in the order in which the reader gives them.

    Yields
    ------
    list[tuple[str, FrameBatch]]
        One stretch, for `step`.
    """
    place = {name: n for n, name in enumerate(sources)}
    together: list[tuple[str, FrameBatch]] = []
    for name, batch in batches:
        if together and place[name] <= place[together[-1][0]]:
            yield together
            together = []
        together.append((name, batch))
    if together:
        yield together


def close(state: AlignState) -> tuple[AlignState, tuple[Aligned, ...]]:
    """Give out everything still open: the frames have ended.

    Parameters
    ----------
    state
        From `step`.

    Returns
    -------
    tuple[AlignState, tuple[Aligned, ...]]
        As from `step`.
    """
    return _advance(state, state.held, None, end=True)


def _advance(
    state: AlignState, held: tuple[tuple[int, FrameBatch], ...], now_ns: int | None, *, end: bool
) -> tuple[AlignState, tuple[Aligned, ...]]:
    wait = _waits(state)
    frames = _merge(state, held, wait)
    if state.newest == _NEVER:
        waited = now_ns is not None and len(frames.arrival) > 0 and now_ns - int(frames.arrival[0]) > wait.force_ns
        anchor = _anchor(frames, len(state.layout.sources), wait, now=end or waited)
        if anchor is None:
            return replace(state, held=held), ()
        state = replace(
            state, newest=anchor, base=anchor - wait.late, mark_slot=anchor, mark_arrival=int(frames.arrival[0])
        )

    admitted, jumps = _admit(state, frames, wait)
    work = _Work(
        state.layout, state.rate_hz, wait, state.newest, state.base, state.started, state.forced,
        state.heard.copy(), state.live_from.copy(), state.values, state.stat, state.received, state.time_flags,
        state.counts.accepted, state.counts.late, state.counts.duplicate,
    )  # fmt: skip
    if len(held):
        # Written to in place from here on, unless growing makes new arrays anyway.
        work.values, work.stat = work.values.copy(), work.stat.copy()
        work.received, work.time_flags = work.received.copy(), work.time_flags.copy()
    runs: list[Aligned] = []
    edges = [0, *jumps, len(frames.slot)]
    for lo, hi in itertools.pairwise(edges):
        pick = lo + np.flatnonzero(admitted[lo:hi])
        if len(pick) and lo in jumps and frames.slot[lo] - work.newest > wait.gap:
            _log.warning("everybody's time jumps by %d slots: a new run begins", frames.slot[lo] - work.newest)
            runs += work.take(work.newest + 1 - work.base)
            work.base, work.started = int(frames.slot[lo]) - wait.late, False
            work.newest = work.base - 1  # the frame itself sets it
        work.write(frames, work.sort_out(frames, pick))

    mark_slot, mark_arrival = state.mark_slot, state.mark_arrival
    clock = int(frames.clock[-1]) if len(frames.clock) else state.clock
    if work.newest > state.newest or mark_slot == _NEVER:
        at = np.flatnonzero(admitted & (frames.slot == work.newest))
        if len(at):
            mark_slot, mark_arrival = work.newest, int(frames.arrival[at[0]])
    if now_ns is not None:
        passed = now_ns - mark_arrival - wait.force_ns
        if passed > 0:
            runs += work.force(mark_slot + wait.grid.slots(passed))
    runs += work.take(max(work.newest + 1 - work.base, 0) if end else work.closable(clock))

    claim = state.claim.copy()
    claim[frames.source] = frames.slot  # the last one wins: they stand in order of arrival
    ahead = np.bincount(frames.source[~admitted], minlength=len(claim))
    new = AlignState(
        layout=state.layout,
        rate_hz=state.rate_hz,
        settings=state.settings,
        held=(),
        newest=work.newest,
        base=work.base,
        started=work.started,
        forced=work.forced,
        clock=clock,
        last_arrival=int(frames.arrival[-1]) if len(frames.arrival) else state.last_arrival,
        mark_slot=mark_slot,
        mark_arrival=mark_arrival,
        heard=work.heard,
        claim=claim,
        live_from=work.live_from,
        values=work.values,
        stat=work.stat,
        received=work.received,
        time_flags=work.time_flags,
        counts=Counts(work.accepted, work.late, work.duplicate, state.counts.ahead + ahead),
    )
    return new, tuple(runs)


def carried(old: ChannelTable, new: ChannelTable) -> NDArray[np.intp]:
    """Find each PMU of a new table in an old one.

    Parameters
    ----------
    old
        The table so far.
    new
        The table from now on.

    Returns
    -------
    NDArray[np.intp]
        `(S_new,)`: the place in `old` of the PMU of the same name and the same channels, or -1.
    """
    place = old.index
    found = (place.get(p.name, -1) for p in new.pmus)
    return np.asarray(
        [s if s >= 0 and old.pmus[s].channels == p.channels else -1 for s, p in zip(found, new.pmus, strict=True)],
        np.intp,
    )


def relayout(state: AlignState, tables: Mapping[str, ChannelTable]) -> AlignState:
    """Go on with another set of sources, or with a source that changed its configuration.

    Open slots, counters and liveness of whoever stays are kept. What a changed source had sent for open slots stays
    where the PMU's channels are the same, and is missing otherwise.

    Parameters
    ----------
    state
        From `step`.
    tables
        All sources from now on.

    Returns
    -------
    AlignState
        For `step`; its runs have the new table.
    """
    layout = lay_out(tables)
    old = [state.layout.sources.index(n) if n in state.layout.sources else -1 for n in layout.sources]
    kept = tuple(
        (layout.sources.index(state.layout.sources[n]), b) for n, b in state.held if state.layout.sources[n] in tables
    )
    still = tuple((n, b) for n, b in kept if b.table == layout.tables[n])
    place = carried(state.layout.table, layout.table)
    at = np.flatnonzero(place >= 0)
    p, s, c = len(state.values), len(layout.table.pmus), layout.table.width
    values = np.full((p, s, c), np.nan, np.float32)
    width = min(c, state.layout.table.width)
    values[:, at, :width] = state.values[:, place[at], :width]

    def pmus(array: NDArray[_Scalar]) -> NDArray[_Scalar]:
        out = np.zeros((p, s), array.dtype)
        out[:, at] = array[:, place[at]]
        return out

    def sources(array: NDArray[np.int64], new: int) -> NDArray[np.int64]:
        return np.asarray([array[n] if n >= 0 else new for n in old], np.int64)

    # A new source is live from the newest slot on: what is open already does not wait for it.
    return replace(
        state,
        layout=layout,
        held=still,
        heard=sources(state.heard, state.clock),
        claim=sources(state.claim, _NEVER),
        live_from=sources(state.live_from, state.newest + 1 if state.newest != _NEVER else _NEVER),
        values=values,
        stat=pmus(state.stat),
        received=pmus(state.received),
        time_flags=pmus(state.time_flags),
        counts=Counts(
            sources(state.counts.accepted, 0),
            sources(state.counts.late, 0),
            sources(state.counts.duplicate, 0),
            sources(state.counts.ahead, 0),
        ),
    )
