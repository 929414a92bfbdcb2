"""What a vector is worth: vectors of any kind in, -ln p of every stream out, by what each stream showed while learning.

In: vectors `(K, S, D)` at places of the reporting grid and how well each is covered. Out: `Scores`, and on request what
each column contributed. Each stream gathers vectors, learns its reference from them once it has enough, and is scored
by it from then on; how the vectors were cut into steps changes no bit. It knows neither what the columns are nor
what made them, and forgets no reference.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from enum import IntEnum
from math import ceil

import numpy as np
from numpy.typing import NDArray

from baselines import compression
from baselines.compression import Contributions, Reference, blank_reference, distance, learn, standardise
from baselines.errors import ReferenceMismatchError, ShapeError, TimeOrderError
from baselines.reporting_grid import times_of
from baselines.stream_axis import take_streams
from baselines.tail import minus_ln_p

log = logging.getLogger(__name__)

PAGE = 10
"""Vectors of a page of the learning buffer: a step copies the pages that it writes to, and no others."""

LEARN_NUMBERS = 1 << 18
"""Numbers that streams learn from at one tick, as many streams as that makes: the others wait for the next tick, so
that a grid of thousands does not hold up its own scores for minutes."""


class Status(IntEnum):
    """What a score is worth."""

    LEARNING = 0
    """The stream has too little reference, whatever its coverage; `missing_s` says how much."""
    SCORED = 1
    """The score stands."""
    REFUSED = 2
    """Too few samples are there for a score."""


@dataclass(frozen=True)
class Kind:
    """One kind of vector, and how its reference is learned.

    Attributes
    ----------
    name
        For people.
    rate_hz
        Slots a second: the reporting rate.
    every
        Slots from one learned vector to the next: those at slots divisible by it are learned from.
    tick
        Slots from one tick to the next: references are made at slots divisible by it.
    overlap
        How many learned vectors are worth one independent one.
    needed
        Learned vectors of a reference.
    floor
        Coverage, and share of the columns, below which a vector is neither learned from nor scored; without any it
        never is.
    logged
        `(n,)` for the n columns of a channel, whether the logarithm of each is taken. A vector holds its columns
        channel by channel: column i belongs to channel i // n.
    factors
        `(n,)` how far one quantum of a channel's samples can move each of its columns; empty where quanta are unknown.
    """

    name: str
    rate_hz: float
    every: int
    tick: int
    overlap: int
    needed: int
    floor: float
    logged: tuple[bool, ...]
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerState:
    """What is remembered of `S` streams: plain arrays, streams first; `take_streams`, `join_streams` apply.

    Attributes
    ----------
    gathered
        Pages of `(S, PAGE, D)` float32, the vectors gathered so far one page after the other; `(S, 0, D)` while nothing
        is on a page, and once all streams have learned.
    taken
        `(S,)` int64: how many of them.
    reference
        What is typical.
    """

    gathered: tuple[NDArray[np.float32], ...]
    taken: NDArray[np.int64]
    reference: Reference


@dataclass(frozen=True, slots=True)
class Scores:
    """What one kind of vector says of `S` streams at `K` times.

    Attributes
    ----------
    time_ns
        `(K,)` int64: end of what was scored, UTC.
    minus_ln_p
        `(K, S)`: -ln of the probability that an ordinary moment is as far from typical; NaN unless `SCORED`.
    atypicality
        `(K, S)`: PNNL's global score, -ln p - ln(share of the reference in the nearest typical pattern).
    distance
        `(K, S)`: squared distance from typical; NaN unless `SCORED`.
    coverage
        `(K, S)` float32: share of what the vector was made from that is there.
    status
        `(K, S)` uint8: `Status`.
    missing_s
        `(K, S)` float32: seconds of reference still to be learned; 0 where the stream has learned.
    pattern
        `(K, S)` int8: the nearest typical pattern; -1 unless `SCORED`.
    vectors
        `(K, S, D)` float32: the columns as observed, for `explain`.
    """

    time_ns: NDArray[np.int64]
    minus_ln_p: NDArray[np.float64]
    atypicality: NDArray[np.float64]
    distance: NDArray[np.float64]
    coverage: NDArray[np.float32]
    status: NDArray[np.uint8]
    missing_s: NDArray[np.float32]
    pattern: NDArray[np.int8]
    vectors: NDArray[np.float32]


def initial(kind: Kind, streams: int, columns: int, reference: Reference | None = None) -> LayerState:
    """Make the state of streams that have seen nothing.

    Parameters
    ----------
    kind
        Of the vectors.
    streams
        `S`.
    columns
        `D`: a multiple of the kind's columns of a channel.
    reference
        Learned before of the same kind of vectors; learn anew by default.

    Returns
    -------
    LayerState
        For the first `step`.

    Raises
    ------
    ShapeError
        If the columns are not those of whole channels.
    ReferenceMismatchError
        If the reference is for other streams or columns.
    """
    if columns % len(kind.logged):
        raise ShapeError(f"layer {kind.name} has {len(kind.logged)} columns a channel; {columns} are no whole channels")
    if reference is None:
        reference = blank_reference(streams, columns)
    if reference.used.shape != (streams, columns):
        raise ReferenceMismatchError(
            f"layer {kind.name} scores {streams} streams with {columns} columns; the reference has "
            f"{reference.used.shape}: it was learned for others, learn anew"
        )
    gathered = (np.empty((streams, 0, columns), np.float32),) * ceil(kind.needed / PAGE)
    return LayerState(gathered, np.zeros(streams, np.int64), reference)


def step(
    kind: Kind,
    state: LayerState,
    *,
    slots: NDArray[np.int64],
    vectors: NDArray[np.float32],
    coverage: NDArray[np.float32],
    grains: NDArray[np.float32] | None = None,
) -> tuple[LayerState, Scores]:
    """Learn from the next vectors, or score them.

    Parameters
    ----------
    kind
        As given to `initial`.
    state
        As returned by the last step; it is not changed.
    slots
        `(K,)` places on the reporting grid, ascending, after those of the last step; not necessarily each one. A stream
        that has gathered enough has its reference from the first tick on, beginning with the slot after it.
    vectors
        `(K, S, D)` finite, or NaN where a column is not there. They are kept in the scores, not copied.
    coverage
        `(K, S)` share of what each vector was made from that is there; 0 where there is no vector.
    grains
        `(K, S, C)` the smallest change of each channel's samples seen up to each slot; infinite where there was none
        yet. None where quanta are unknown.

    Returns
    -------
    tuple[LayerState, Scores]
        For the next step; and what is to be said of these slots.

    Raises
    ------
    ShapeError
        If the arrays do not fit each other, the kind or the state.
    TimeOrderError
        If the slots do not ascend.
    """
    wrong = _misfit(kind, state, len(slots), vectors=vectors, coverage=coverage, grains=grains)
    if wrong:
        raise ShapeError(f"layer {kind.name}: {wrong}")
    if np.any(np.diff(slots) <= 0):
        raise TimeOrderError(f"layer {kind.name}: the slots from {slots[0]} to {slots[-1]} do not ascend")
    shape = vectors.shape[:2]
    far, surprise, global_score = (np.full(shape, np.nan) for _ in range(3))
    status = np.full(shape, Status.LEARNING, np.uint8)
    missing = np.zeros(shape, np.float32)
    pattern = np.full(shape, -1, np.int8)
    covered = (coverage >= kind.floor) & (coverage > 0)
    reference, taken, gathered = state.reference, state.taken, state.gathered
    logged = _logged(kind, reference)
    at_once = max(1, LEARN_NUMBERS // max(1, kind.needed * vectors.shape[2]))
    due, ticks = slots % kind.every == 0, slots % kind.tick == 0
    k = 0
    while k < len(slots):
        # As many slots at once as can pass before the next stream learns: a reference serves from its next slot.
        upto = k + _until_learned(kind, reference, taken, due[k:], ticks[k:])
        part = slice(k, upto)
        learned = reference.learned
        if not learned.all():
            worth = due[part, None] & covered[part] & ~learned
            before = taken + np.cumsum(worth, axis=0) - worth
            turn_to_learn = worth & (before < kind.needed)
            t, s = np.nonzero(turn_to_learn)
            gathered = _gathered(gathered, before[t, s], s, vectors[part][t, s])
            taken = taken + turn_to_learn.sum(0)
            still = np.maximum(kind.needed - before, 1) * (kind.every / kind.rate_hz)
            missing[part] = np.where(learned, 0, still)
        if learned.any():
            z, there = standardise(reference, logged, vectors[part])
            far[part], nearest = distance(reference, z, there)
            own = np.maximum(reference.used.sum(1), 1)
            ok = learned & covered[part] & (there.sum(2) >= np.maximum(kind.floor * own, 1))
            far[part][~ok] = np.nan
            surprise[part] = minus_ln_p(reference.tail, far[part])
            frequency = np.take_along_axis(reference.frequencies[None], nearest[:, :, None], axis=2)[:, :, 0]
            global_score[part] = surprise[part] - np.log(np.where(ok, frequency, 1))
            status[part][ok] = Status.SCORED
            status[part][learned & ~ok] = Status.REFUSED
            pattern[part] = np.where(ok, nearest, -1)
        if ticks[upto - 1]:
            grain = None if grains is None else grains[upto - 1]
            now = LayerState(gathered, taken, reference)
            reference, taken = _learned(kind, now, grain, at_once=at_once)
        k = upto
    if reference.learned.all() and any(page.size for page in gathered):
        gathered = tuple(np.empty_like(page[:, :0]) for page in gathered)
    scores = Scores(times_of(kind, slots), surprise, global_score, far, coverage, status, missing, pattern, vectors)
    return LayerState(gathered, taken, reference), scores


def settle(kind: Kind, state: LayerState, grain: NDArray[np.float32] | None = None) -> LayerState:
    """Let the streams learn at once that have gathered enough and wait for their turn: no more vectors will come.

    Parameters
    ----------
    kind
        As given to `initial`.
    state
        After the last step; it is not changed.
    grain
        `(S, C)` the newest of the steps' grains.

    Returns
    -------
    LayerState
        In which no stream waits.
    """
    reference, taken = _learned(kind, state, grain, at_once=len(state.taken))
    return replace(state, reference=reference, taken=taken)


def explain(kind: Kind, state: LayerState, vector: NDArray[np.float32], stream: int) -> Contributions:
    """Say what each column added to a score.

    Parameters
    ----------
    kind
        As given to `initial`.
    state
        After the step; its reference is what the vector is measured against.
    vector
        `(D,)` from `Scores.vectors`.
    stream
        Place on the stream axis; it must have learned.

    Returns
    -------
    Contributions
        By column.
    """
    return compression.explain(state.reference, _logged(kind, state.reference), vector, stream)


def join_scores(parts: list[Scores]) -> Scores:
    """Put the scores of successive steps one after the other.

    Parameters
    ----------
    parts
        At least one, of one kind and the same streams.

    Returns
    -------
    Scores
        As one step over all the vectors would have given them.
    """
    if len(parts) == 1:
        return parts[0]
    return Scores(*(np.concatenate([getattr(part, name) for part in parts]) for name in Scores.__slots__))


def _misfit(
    kind: Kind,
    state: LayerState,
    count: int,
    *,
    vectors: NDArray[np.float32],
    coverage: NDArray[np.float32],
    grains: NDArray[np.float32] | None,
) -> str:
    """Say which arrays do not fit; nothing where all do."""
    streams, columns = state.reference.used.shape
    if vectors.shape != (count, streams, columns) or coverage.shape != (count, streams):
        return (
            f"{count} slots, vectors {vectors.shape}, coverage {coverage.shape}; "
            f"the state has (S, D) = {(streams, columns)}"
        )
    wanted = (count, streams, columns // len(kind.logged))
    if grains is not None and (grains.shape != wanted or len(kind.factors) != len(kind.logged)):
        return (
            f"grains {grains.shape} and {len(kind.factors)} factors where {wanted} and {len(kind.logged)} were due; "
            "name a factor for each column of a channel, or pass no grains"
        )
    return ""


def _until_learned(
    kind: Kind,
    reference: Reference,
    taken: NDArray[np.int64],
    due: NDArray[np.bool_],
    ticks: NDArray[np.bool_],
) -> int:
    """Count the slots up to the first tick at which a stream can have gathered enough; all where there is none."""
    wanting = kind.needed - taken[~reference.learned]
    if not len(wanting):
        return len(due)
    soonest = max(0, int(wanting.min()))
    enough = int(np.searchsorted(np.cumsum(due), soonest)) if soonest else 0
    tick = np.flatnonzero(ticks[enough:])
    return enough + int(tick[0]) + 1 if len(tick) else len(due)


def _gathered(
    pages: tuple[NDArray[np.float32], ...],
    at: NDArray[np.int64],
    streams: NDArray[np.intp],
    vectors: NDArray[np.float32],
) -> tuple[NDArray[np.float32], ...]:
    """Write the vectors of some streams, each to its place in the buffer; only the pages written to are copied."""
    out = list(pages)
    page = at // PAGE
    for p in np.unique(page).tolist():
        count, _, columns = pages[p].shape
        begun = pages[p].shape[1] > 0
        out[p] = pages[p].copy() if begun else np.full((count, PAGE, columns), np.nan, np.float32)
        here = page == p
        out[p][streams[here], at[here] % PAGE] = vectors[here]
    return tuple(out)


def _learned(
    kind: Kind, state: LayerState, grain: NDArray[np.float32] | None, *, at_once: int
) -> tuple[Reference, NDArray[np.int64]]:
    """Fit the references of streams that have gathered enough, of so many at once."""
    ready = np.flatnonzero((state.taken >= kind.needed) & ~state.reference.learned)[:at_once]
    if not len(ready):
        return state.reference, state.taken
    reference = take_streams(state.reference, np.arange(len(state.taken)))  # a copy, to be written to
    taken = state.taken.copy()
    logged, grains = _logged(kind, reference), np.zeros(reference.used.shape)
    if grain is not None:
        quanta = np.where(np.isfinite(grain), grain, 0).astype(np.float64)
        grains = (quanta[:, :, None] * np.array(kind.factors)).reshape(grains.shape)
    for s in ready:
        rows = np.concatenate([page[s] for page in state.gathered])[: kind.needed]
        if not learn(rows, logged, grains[s], kind.overlap, into=reference, stream=int(s)):
            log.warning("layer %s: stream %d did not vary while learning; it learns again", kind.name, s)
            taken[s] = 0
    return reference, taken


def _logged(kind: Kind, reference: Reference) -> NDArray[np.bool_]:
    """`(D,)` the columns of which the logarithm is taken."""
    return np.tile(kind.logged, reference.used.shape[1] // len(kind.logged))
