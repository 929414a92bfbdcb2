"""The PNNL-style scorer: blocks of samples in, -ln p of every stream out, a few times a second.

In: reporting times, samples `(T, S, C)` and which are good. Out: for each layer (the newest fit, and summaries over
sliding periods) a score, its coverage and its status, and on request what each column contributed.
A stream's scores depend on its own samples alone, to the last bit: not on how the stream was cut into blocks, nor on
what else is in them. It names no event and knows no channel's name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import IntEnum
from fractions import Fraction
from functools import cached_property
from math import ceil

import numpy as np
from numpy.typing import NDArray

from baselines.compression import (
    Contributions,
    Reference,
    blank_reference,
    distance,
    explain,
    learn,
    standardise,
)
from baselines.errors import ReferenceMismatchError, ShapeError, TimeOrderError
from baselines.quadratic import fit, window_points
from baselines.signatures import (
    FAST_DESCRIPTORS,
    LOGGED_DESCRIPTORS,
    SUMMARY_DESCRIPTORS,
    Partial,
    blank_partial,
    fast_vectors,
    grain_factors,
    summarise_period,
    summarise_second,
)
from baselines.stream_axis import take_streams
from baselines.tail import minus_ln_p

log = logging.getLogger(__name__)

NEVER = np.int64(-1)
"""Slot of a stream that has seen no frame."""

LEAST_VECTORS = 50
"""Vectors of the smallest reference, whatever the learning time says."""

WINDOWS_A_PERIOD = 5
"""A summary is learned from five times a period: oftener adds cost, hardly knowledge."""

ROUNDING = 4e-7
"""Relative change of a float32 that is no more than rounding in what came before."""

CHUNK = 1 << 22
"""Samples of a block that are worked on at a time."""

SIDE_BY_SIDE = 1 << 14
"""Channels of all streams from which the layers are scored side by side, each in a thread of its own."""

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


@dataclass(frozen=True, slots=True)
class Layer:
    """One kind of vector and how its reference is learned.

    Attributes
    ----------
    name
        For people.
    period_s
        What the vector describes: 0 for the newest fit alone, else a summary over so many seconds, slid each second.
    learn_s
        Seconds of sufficiently covered stream from which the reference is learned.
    absolute
        Whether a summary keeps the level of `a`, as PNNL does: needs a reference of days. Else a's statistics are
        relative to the period's first.
    """

    name: str
    period_s: float
    learn_s: float
    absolute: bool = False


FAST = Layer("fast", 0, 60)
TEN_SECONDS = Layer("10s", 10, 300)
MINUTE = Layer("60s", 60, 1800)


@dataclass(frozen=True)
class Settings:
    """What a scorer is told once.

    Attributes
    ----------
    rate_hz
        Reporting rate of the stream.
    layers
        What is scored.
    hop_s
        Seconds from one fit to the next; a whole number of frames is made of it, at least one.
    floor
        Coverage below which a score is refused.
    """

    rate_hz: float
    layers: tuple[Layer, ...] = (FAST, TEN_SECONDS, MINUTE)
    hop_s: float = 0.2
    floor: float = 0.5

    @cached_property
    def points(self) -> int:
        """Frames in a window."""
        return window_points(self.rate_hz)

    @cached_property
    def hop(self) -> int:
        """Frames from one fit to the next."""
        return min(max(1, round(self.hop_s * self.rate_hz)), self.points - 1)

    @cached_property
    def spans(self) -> int:
        """Fits in a second (in one frame's time, where that is longer)."""
        return max(1, round(self.rate_hz / self.hop))

    @cached_property
    def second(self) -> int:
        """Frames in a second, made of whole hops."""
        return self.spans * self.hop

    @cached_property
    def ratio(self) -> Fraction:
        """Frames a second, exactly."""
        return Fraction(self.rate_hz).limit_denominator(1000)

    @cached_property
    def longest(self) -> int:
        """Seconds of the longest summary; 1 where there is none."""
        return max((self.seconds(layer) for layer in self.layers), default=1)

    def seconds(self, layer: Layer) -> int:
        """Count the partial summaries of a layer's period.

        Parameters
        ----------
        layer
            One of the settings' layers.

        Returns
        -------
        int
            At least 2 for a summary, 0 for the newest fit.
        """
        return max(2, round(layer.period_s * self.rate_hz / self.second)) if layer.period_s else 0

    def descriptors(self, layer: Layer) -> tuple[str, ...]:
        """Name the columns of one channel.

        Parameters
        ----------
        layer
            One of the settings' layers.

        Returns
        -------
        tuple[str, ...]
            A vector holds them channel by channel: column i belongs to channel i // len.
        """
        return SUMMARY_DESCRIPTORS if layer.period_s else FAST_DESCRIPTORS

    def every(self, layer: Layer) -> int:
        """Count the frames from one learned vector to the next.

        Parameters
        ----------
        layer
            One of the settings' layers.

        Returns
        -------
        int
            A hop for the newest fit, a fifth of the period for a summary.
        """
        return self.second * max(1, self.seconds(layer) // WINDOWS_A_PERIOD) if layer.period_s else self.hop

    def overlap(self, layer: Layer) -> int:
        """Count the learned vectors that share samples.

        Parameters
        ----------
        layer
            One of the settings' layers.

        Returns
        -------
        int
            How many learned vectors are worth one independent one.
        """
        span = self.seconds(layer) * self.second if layer.period_s else self.points
        return ceil(span / self.every(layer))

    def vectors(self, layer: Layer) -> int:
        """Count the vectors of a reference.

        Parameters
        ----------
        layer
            One of the settings' layers.

        Returns
        -------
        int
            At least `LEAST_VECTORS`.
        """
        return max(LEAST_VECTORS, ceil(layer.learn_s * self.rate_hz / self.every(layer)))


@dataclass(frozen=True, slots=True)
class LayerState:
    """What a layer remembers of `S` streams.

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
class State:
    """All that the scorer remembers: plain arrays, streams first; `take_streams`, `join_streams`, `to_arrays` apply.

    Attributes
    ----------
    slot
        `(S,)` int64: place of the last frame on the reporting grid since the epoch; `NEVER` before the first.
    samples
        `(S, points - 1, C)` float32: the last frames.
    good
        `(S, points - 1, C)` bool.
    present
        `(S, C)` bool: the channels that are scored.
    turn
        `(S, C)` float32: a full turn of the channels that wrap (360 for degrees), 0 for the others.
    fits
        `(S, spans, C, 4)` float32: the last second's a, b, c, d.
    extremes
        `(S, spans, C, 2)` float32: least and greatest sample of each hop.
    grain
        `(S, C)` float32: the smallest change of the samples seen yet, their quantum; infinite before the first.
    partials
        Summaries of the last seconds, a second less than the longest period has.
    layers
        One for each of the settings' layers.
    """

    slot: NDArray[np.int64]
    samples: NDArray[np.float32]
    good: NDArray[np.bool_]
    present: NDArray[np.bool_]
    turn: NDArray[np.float32]
    fits: NDArray[np.float32]
    extremes: NDArray[np.float32]
    grain: NDArray[np.float32]
    partials: tuple[Partial, ...]
    layers: tuple[LayerState, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """What one layer says of `S` streams at `K` times.

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
        `(K, S)` float32: share of the samples (or of the period's fits) that are there, over the stream's channels.
    status
        `(K, S)` uint8: `Status`.
    missing_s
        `(K, S)` float32: seconds of reference still to be learned; 0 where the stream has learned.
    pattern
        `(K, S)` int8: the nearest typical pattern; -1 unless `SCORED`.
    vectors
        `(K, S, D)` float32: the columns as observed, for `explain_score`.
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


def initial(
    settings: Settings,
    present: NDArray[np.bool_],
    turn: NDArray[np.float32] | None = None,
    references: tuple[Reference, ...] | None = None,
) -> State:
    """Make the state of streams that have seen nothing.

    Parameters
    ----------
    settings
        What the scorer is told.
    present
        `(S, C)`: the channels to score; leave out padding and what is no measurement (status words).
    turn
        `(S, C)`: 360 for angles in degrees, 0 for all else; all 0 by default.
    references
        One for each layer, learned before under the same settings for the same channels; learn anew by default.

    Returns
    -------
    State
        To be passed to `step`.

    Raises
    ------
    ReferenceMismatchError
        If a reference is for other streams, channels or layers.
    """
    streams, channels = present.shape
    points, spans, seconds = settings.points - 1, settings.spans, settings.longest - 1
    layers = []
    for i, layer in enumerate(settings.layers):
        columns = channels * len(settings.descriptors(layer))
        reference = blank_reference(streams, columns)
        if references is not None:
            if len(references) != len(settings.layers) or references[i].used.shape != (streams, columns):
                raise ReferenceMismatchError(
                    f"layer {layer.name} scores {streams} streams with {columns} columns; "
                    f"the {len(references)} references have {[r.used.shape for r in references]}"
                )
            reference = references[i]
        gathered = (np.empty((streams, 0, columns), np.float32),) * ceil(settings.vectors(layer) / PAGE)
        layers.append(LayerState(gathered, np.zeros(streams, np.int64), reference))
    turns = np.zeros((streams, channels), np.float32) if turn is None else turn.astype(np.float32)
    return State(
        slot=np.full(streams, NEVER),
        samples=np.zeros((streams, points, channels), np.float32),
        good=np.zeros((streams, points, channels), bool),
        present=present.copy(),
        turn=turns,
        fits=np.full((streams, spans, channels, 4), np.nan, np.float32),
        extremes=np.full((streams, spans, channels, 2), np.nan, np.float32),
        grain=np.full((streams, channels), np.inf, np.float32),
        partials=(blank_partial(streams, channels),) * seconds,
        layers=tuple(layers),
    )


def references_of(state: State) -> tuple[Reference, ...]:
    """Take out what has been learned, to store it or to score other streams' data by it.

    Parameters
    ----------
    state
        After learning.

    Returns
    -------
    tuple[Reference, ...]
        One for each layer; `to_arrays` and `from_arrays` store it, `take_streams` selects.
    """
    return tuple(layer.reference for layer in state.layers)


def settle(settings: Settings, state: State) -> State:
    """Let the streams learn at once that have gathered enough and wait for their turn: no more frames will come.

    Parameters
    ----------
    settings
        As given to `initial`.
    state
        After the last step; it is not changed.

    Returns
    -------
    State
        In which no stream waits.
    """
    layers = []
    for index, layer in enumerate(state.layers):
        everyone = len(layer.taken)
        reference, taken = _learned(
            settings, index, _logged(settings, index, state), layer, state.grain, at_once=everyone
        )
        layers.append(replace(layer, reference=reference, taken=taken))
    return replace(state, layers=tuple(layers))


def step(
    settings: Settings,
    state: State,
    time_ns: NDArray[np.int64],
    values: NDArray[np.float32],
    good: NDArray[np.bool_],
) -> tuple[State, tuple[Scores, ...]]:
    """Score the next block.

    Fits end, and periods close, at fixed places of the reporting grid, wherever the block begins. Slots between the
    last block and this one count as missing.

    Parameters
    ----------
    settings
        As given to `initial`.
    state
        As returned by the last step; it is not changed.
    time_ns
        `(T,)` one slot of the reporting grid after the other.
    values
        `(T, S, C)` in any unit, the same each time.
    good
        `(T, S, C)` True where the sample may be used.

    Returns
    -------
    tuple[State, tuple[Scores, ...]]
        For the next step; and one `Scores` a layer.

    Raises
    ------
    ShapeError
        If the arrays do not fit each other or the state.
    TimeOrderError
        If the block does not begin after the last one, or leaves out a slot.
    """
    if values.shape != good.shape or values.shape != (len(time_ns), *state.present.shape):
        raise ShapeError(
            f"times {time_ns.shape}, samples {values.shape}, marks {good.shape}; "
            f"the state has (S, C) = {state.present.shape}"
        )
    slots = slots_of(settings, time_ns)
    last = int(state.slot.max(initial=NEVER))
    if np.any((state.slot != NEVER) & (state.slot != last)):
        raise TimeOrderError("the streams joined in this state ended at different times; step them to one time first")
    if len(slots) and (np.any(np.diff(slots) != 1) or slots[0] <= last):
        raise TimeOrderError(
            f"the block runs from slot {slots[0]} to {slots[-1]} in {len(slots)} frames after slot {last}; "
            "pass each slot once, in order"
        )
    results: list[list[Scores]] = [[] for _ in settings.layers]
    for some, block, marks in _chunks(settings, last, slots, values, good):
        state, scores = _step(settings, state, some, block, marks)
        for result, score in zip(results, scores, strict=True):
            result.append(score)
    if not len(slots):
        state, scores = _step(settings, state, slots, values, good)
        return state, scores
    return state, tuple(_joined(result) for result in results)


def explain_score(
    settings: Settings, state: State, layer: int, vector: NDArray[np.float32], stream: int
) -> Contributions:
    """Say what each column added to a score.

    Parameters
    ----------
    settings
        As given to `initial`.
    state
        After the step; its reference is what the vector is measured against.
    layer
        Index of the layer.
    vector
        `(D,)` from `Scores.vectors`.
    stream
        Place on the stream axis.

    Returns
    -------
    Contributions
        By column; see `Settings.descriptors`.
    """
    return explain(state.layers[layer].reference, _logged(settings, layer, state), vector, stream)


def slots_of(settings: Settings, time_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find the places of times on the reporting grid.

    Parameters
    ----------
    settings
        For the rate.
    time_ns
        `(...)` UTC.

    Returns
    -------
    NDArray[np.int64]
        Slot k is at round(k / rate).
    """
    over, under = settings.ratio.numerator, settings.ratio.denominator
    seconds, rest = np.divmod(time_ns, 1_000_000_000)
    whole, part = np.divmod(seconds * over, under)
    slots: NDArray[np.int64] = whole + np.rint((part + rest * over / 1e9) / under).astype(np.int64)
    return slots


def times_of(settings: Settings, slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Find the times of places on the reporting grid.

    Parameters
    ----------
    settings
        For the rate.
    slots
        `(...)`.

    Returns
    -------
    NDArray[np.int64]
        UTC, rounded to the nanosecond.
    """
    over, under = settings.ratio.numerator, settings.ratio.denominator
    seconds, part = np.divmod(slots * under, over)
    times: NDArray[np.int64] = seconds * 1_000_000_000 + np.rint(part * 1e9 / over).astype(np.int64)
    return times


def _chunks(
    settings: Settings,
    last: int,
    slots: NDArray[np.int64],
    values: NDArray[np.float32],
    good: NDArray[np.bool_],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]]:
    """Cut a block into parts that fit the cache's neighbourhood, missing slots first."""
    frames = max(settings.second, CHUNK // max(1, values[0].size if len(values) else 1))
    if len(slots) and last != NEVER:
        # After the longest memory there is nothing left to forget.
        memory = settings.longest * settings.second + settings.points
        for lo in range(max(last + 1, int(slots[0]) - memory), int(slots[0]), frames):
            some = np.arange(lo, min(lo + frames, int(slots[0])))
            shape = (len(some), *values.shape[1:])
            yield some, np.zeros(shape, np.float32), np.zeros(shape, bool)
    for start in range(0, len(slots), frames):
        part = slice(start, start + frames)
        yield slots[part], values[part], good[part]


def _step(
    settings: Settings,
    state: State,
    slots: NDArray[np.int64],
    values: NDArray[np.float32],
    good: NDArray[np.bool_],
) -> tuple[State, tuple[Scores, ...]]:
    """Score consecutive slots that follow the state's last."""
    kept = settings.points - 1
    samples = np.concatenate([state.samples.swapaxes(0, 1), values.astype(np.float32, copy=False)])
    marks = np.concatenate([state.good.swapaxes(0, 1), good & np.isfinite(values) & state.present])
    ends = np.flatnonzero(slots % settings.hop == 0)
    fits, extremes, share = _fit_block(settings, state, samples, marks, ends + kept)
    grain = _grains(settings, state, samples, marks, ends + kept)
    every = np.concatenate([state.fits, fits], axis=1)
    spread = np.concatenate([state.extremes, extremes], axis=1)
    partials, closing = state.partials, np.flatnonzero(slots[ends] % settings.second == 0)
    for k in closing:
        newest = slice(k + 1, k + 1 + settings.spans)
        partials = (*partials, summarise_second(every[:, newest], spread[:, newest], state.turn))

    def scored(i: int) -> tuple[LayerState, Scores]:
        """Score one layer; layers know nothing of each other."""
        layer = settings.layers[i]
        if layer.period_s:
            at, grains = slots[ends][closing], grain[closing]
            columns = state.layers[i].reference.used.shape[1]
            vectors = np.empty((len(at), len(state.slot), columns), np.float32)
            there = np.empty((len(at), *state.present.shape), np.float32)
            for n in range(len(at)):
                recent = partials[: len(state.partials) + 1 + n][-settings.seconds(layer) :]
                summary = summarise_period(recent, settings.spans, state.turn, absolute=layer.absolute)
                vectors[n], there[n] = summary
        else:
            at, there, grains = slots[ends], share, grain
            vectors = fast_vectors(every, settings.spans, state.turn)
        coverage = np.zeros(there.shape[:2], np.float32)
        for c in range(there.shape[2]):
            coverage += np.where(state.present[:, c], there[:, :, c], 0)
        coverage /= np.maximum(state.present.sum(1), 1).astype(np.float32)
        return _score_layer(settings, state, i, slots=at, vectors=vectors, coverage=coverage, grains=grains)

    if len(closing) and state.present.size >= SIDE_BY_SIDE:
        with ThreadPoolExecutor(len(settings.layers)) as threads:
            results = list(threads.map(scored, range(len(settings.layers))))
    else:
        results = [scored(i) for i in range(len(settings.layers))]
    layers, scores = (tuple(part) for part in zip(*results, strict=True)) if results else ((), ())
    memory = settings.spans
    new = State(
        slot=np.full_like(state.slot, slots[-1]) if len(slots) else state.slot,
        samples=np.ascontiguousarray(samples[len(samples) - kept :].swapaxes(0, 1)),
        good=np.ascontiguousarray(marks[len(marks) - kept :].swapaxes(0, 1)),
        present=state.present,
        turn=state.turn,
        fits=np.ascontiguousarray(every[:, every.shape[1] - memory :]),
        extremes=np.ascontiguousarray(spread[:, spread.shape[1] - memory :]),
        grain=grain[-1] if len(grain) else state.grain,
        partials=partials[len(closing) :],
        layers=layers,
    )
    return new, scores


def _fit_block(
    settings: Settings,
    state: State,
    samples: NDArray[np.float32],
    marks: NDArray[np.bool_],
    ends: NDArray[np.intp],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Fit at `ends`: `(S, K, C, 4)` fits, `(S, K, C, 2)` extremes of their hops, `(K, S, C)` shares of good samples."""
    shape = (len(ends), *state.present.shape)
    fits, extremes = np.empty((*shape, 4), np.float32), np.empty((*shape, 2), np.float32)
    if not len(ends):
        return fits.transpose(1, 0, 2, 3), extremes.transpose(1, 0, 2, 3), np.empty(shape, np.float32)
    found = fit(
        samples,
        marks,
        rate_hz=settings.rate_hz,
        hop=settings.hop,
        points=settings.points,
        first=int(ends[0]),
        turn=state.turn,
        same_bits=True,
    )
    for i, part in enumerate((found.a, found.b, found.c, found.d)):
        fits[..., i] = part
    for k, end in enumerate(ends):
        hop = slice(end - settings.hop + 1, end + 1)
        recent = np.where(marks[hop], samples[hop], np.float32(np.nan))
        np.fmin.reduce(recent, axis=0, out=extremes[k, ..., 0])
        np.fmax.reduce(recent, axis=0, out=extremes[k, ..., 1])
    share = (found.count / settings.points).astype(np.float32)
    return fits.transpose(1, 0, 2, 3), extremes.transpose(1, 0, 2, 3), share


def _grains(
    settings: Settings,
    state: State,
    samples: NDArray[np.float32],
    marks: NDArray[np.bool_],
    ends: NDArray[np.intp],
) -> NDArray[np.float32]:
    """`(K, S, C)`: the smallest change of the samples up to each end; changes within rounding are none."""
    out = np.empty((len(ends), *state.present.shape), np.float32)
    grain = state.grain
    for k, end in enumerate(ends):
        hop = samples[end - settings.hop : end + 1]
        both = marks[end - settings.hop : end] & marks[end - settings.hop + 1 : end + 1]
        change = np.abs(np.where(both, hop[1:] - hop[:-1], 0))
        real = change > ROUNDING * np.abs(np.where(both, hop[1:], 0))
        grain = np.minimum(grain, np.min(change, axis=0, where=real, initial=np.inf))
        out[k] = grain
    return out


def _score_layer(
    settings: Settings,
    state: State,
    index: int,
    *,
    slots: NDArray[np.int64],
    vectors: NDArray[np.float32],
    coverage: NDArray[np.float32],
    grains: NDArray[np.float32],
) -> tuple[LayerState, Scores]:
    """Learn from, or score, the `(K, S, D)` vectors of one layer; the samples' quanta are `(K, S, C)`."""
    layer, kind = state.layers[index], settings.layers[index]
    shape = vectors.shape[:2]
    far, surprise, global_score = (np.full(shape, np.nan) for _ in range(3))
    status = np.full(shape, Status.LEARNING, np.uint8)
    missing = np.zeros(shape, np.float32)
    pattern = np.full(shape, -1, np.int8)
    every, needed = settings.every(kind), settings.vectors(kind)
    covered = coverage >= settings.floor
    reference, taken, gathered = layer.reference, layer.taken, layer.gathered
    logged = _logged(settings, index, state)
    at_once = max(1, LEARN_NUMBERS // max(1, needed * vectors.shape[2]))
    k = 0
    while k < len(slots):
        # As many times at once as can pass before the next stream has learned: a reference serves from its next time.
        wanting = needed - taken[~reference.learned]
        upto = min(len(slots), k + max(1, int(wanting.min(initial=len(slots)))))
        part = slice(k, upto)
        learned = reference.learned
        if not learned.all():
            turn_to_learn = (slots[part] % every == 0)[:, None] & covered[part] & ~learned & (taken < needed)
            before = taken + np.cumsum(turn_to_learn, axis=0) - turn_to_learn
            t, s = np.nonzero(turn_to_learn)
            gathered = _gathered(gathered, before[t, s], s, vectors[part][t, s])
            taken = taken + turn_to_learn.sum(0)
            still = np.maximum(needed - before, 1) * (every / settings.rate_hz)
            missing[part] = np.where(learned, 0, still)
        if learned.any():
            z, there = standardise(reference, logged, vectors[part])
            far[part], nearest = distance(reference, z, there)
            own = np.maximum(reference.used.sum(1), 1)
            ok = learned & covered[part] & (there.sum(2) >= settings.floor * own)
            far[part][~ok] = np.nan
            surprise[part] = minus_ln_p(reference.tail, far[part])
            frequency = np.take_along_axis(reference.frequencies[None], nearest[:, :, None], axis=2)[:, :, 0]
            global_score[part] = surprise[part] - np.log(np.where(ok, frequency, 1))
            status[part][ok] = Status.SCORED
            status[part][learned & ~ok] = Status.REFUSED
            pattern[part] = np.where(ok, nearest, -1)
        now = LayerState(gathered, taken, reference)
        reference, taken = _learned(settings, index, logged, now, grains[upto - 1], at_once=at_once)
        k = upto
    if reference.learned.all():
        gathered = tuple(page[:, :0] for page in gathered)
    scores = Scores(times_of(settings, slots), surprise, global_score, far, coverage, status, missing, pattern, vectors)
    return LayerState(gathered, taken, reference), scores


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
    settings: Settings,
    index: int,
    logged: NDArray[np.bool_],
    layer: LayerState,
    grain: NDArray[np.float32],
    *,
    at_once: int,
) -> tuple[Reference, NDArray[np.int64]]:
    """Fit the references of streams that have gathered enough, of so many at once."""
    kind = settings.layers[index]
    needed = settings.vectors(kind)
    ready = np.flatnonzero((layer.taken >= needed) & ~layer.reference.learned)[:at_once]
    if not len(ready):
        return layer.reference, layer.taken
    reference, taken = _copied(layer.reference), layer.taken.copy()
    factors = grain_factors(settings.descriptors(kind))
    quanta = np.where(np.isfinite(grain), grain, 0).astype(np.float64)
    for s in ready:
        grains = (quanta[s][:, None] * factors).reshape(-1)
        rows = np.concatenate([page[s] for page in layer.gathered])[:needed]
        if not learn(rows, logged, grains, settings.overlap(kind), into=reference, stream=int(s)):
            log.warning("layer %s: stream %d did not vary while learning; it learns again", kind.name, s)
            taken[s] = 0
    return reference, taken


def _copied(reference: Reference) -> Reference:
    return take_streams(reference, np.arange(len(reference.learned)))


def _logged(settings: Settings, index: int, state: State) -> NDArray[np.bool_]:
    names = settings.descriptors(settings.layers[index])
    return np.tile([name in LOGGED_DESCRIPTORS for name in names], state.present.shape[1])


def _joined(parts: list[Scores]) -> Scores:
    if len(parts) == 1:
        return parts[0]
    return Scores(*(np.concatenate([getattr(part, name) for part in parts]) for name in Scores.__slots__))
