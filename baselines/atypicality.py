"""The PNNL-style scorer: blocks of samples in, -ln p of every stream out, a few times a second.

In: reporting times, samples `(T, S, C)` and which are good. Out: for each layer (the newest fit, and summaries over
sliding periods) a score, its coverage and its status, and on request what each column contributed.
A stream's scores depend on its own samples alone, to the last bit: not on how the stream was cut into blocks, nor on
what else is in them. It names no event and knows no channel's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import numpy as np
from numpy.typing import NDArray

from baselines import calibration
from baselines.calibration import Kind, LayerState, Scores, join_scores
from baselines.compression import Contributions, Reference
from baselines.errors import ReferenceMismatchError, ShapeError, TimeOrderError
from baselines.quadratic import fit, window_points
from baselines.reporting_grid import slots_of
from baselines.signatures import (
    FAST_DESCRIPTORS,
    LOGGED_DESCRIPTORS,
    SUMMARY_DESCRIPTORS,
    Recent,
    blank_recent,
    extended,
    fast_vectors,
    grain_factors,
    period,
    summarise_period,
    summarise_second,
)

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

_THREADS = ThreadPoolExecutor(4, "layer")
"""Kept: to start a thread, where others want the interpreter too, takes longer than what it is for."""


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
    def kinds(self) -> tuple[Kind, ...]:
        """What each layer's vectors are, and how their references are learned."""
        return tuple(
            Kind(
                name=layer.name,
                rate_hz=self.rate_hz,
                every=self.every(layer),
                tick=self.hop,
                overlap=self.overlap(layer),
                needed=self.vectors(layer),
                floor=self.floor,
                logged=tuple(name in LOGGED_DESCRIPTORS for name in self.descriptors(layer)),
                factors=tuple(grain_factors(self.descriptors(layer)).tolist()),
            )
            for layer in self.layers
        )

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
    recent
        Summaries of the last seconds.
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
    recent: Recent
    layers: tuple[LayerState, ...]


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
    points, spans = settings.points - 1, settings.spans
    if references is not None and len(references) != len(settings.layers):
        raise ReferenceMismatchError(
            f"{len(references)} references for {len(settings.layers)} layers: they were learned under other settings"
        )
    layers = tuple(
        calibration.initial(kind, streams, channels * len(kind.logged), None if references is None else references[i])
        for i, kind in enumerate(settings.kinds)
    )
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
        recent=blank_recent(streams, channels, settings.longest),
        layers=layers,
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
    pairs = zip(settings.kinds, state.layers, strict=True)
    return replace(state, layers=tuple(calibration.settle(kind, layer, state.grain) for kind, layer in pairs))


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
    return state, tuple(join_scores(result) for result in results)


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
    return calibration.explain(settings.kinds[layer], state.layers[layer], vector, stream)


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
    closing = np.flatnonzero(slots[ends] % settings.second == 0)
    numbers = (slots[ends][closing] // settings.second).tolist()
    recent = [state.recent]
    for k, number in zip(closing, numbers, strict=True):
        newest = slice(k + 1, k + 1 + settings.spans)
        second = summarise_second(every[:, newest], spread[:, newest], state.turn)
        recent.append(extended(recent[-1], second, number, state.turn))

    def scored(i: int) -> tuple[LayerState, Scores]:
        """Score one layer; layers know nothing of each other."""
        layer = settings.layers[i]
        if layer.period_s:
            at, grains = slots[ends][closing], grain[closing]
            columns = state.layers[i].reference.used.shape[1]
            vectors = np.empty((len(at), len(state.slot), columns), np.float32)
            there = np.empty((len(at), *state.present.shape), np.float32)
            seconds = settings.seconds(layer)
            for n, number in enumerate(numbers):
                chosen = period(recent[n + 1], seconds, number)
                vectors[n], there[n] = summarise_period(
                    chosen, seconds, settings.spans, state.turn, absolute=layer.absolute
                )
        else:
            at, there, grains = slots[ends], share, grain
            vectors = fast_vectors(every, settings.spans, state.turn)
        coverage = np.zeros(there.shape[:2], np.float32)
        for c in range(there.shape[2]):
            coverage += np.where(state.present[:, c], there[:, :, c], 0)
        coverage /= np.maximum(state.present.sum(1), 1).astype(np.float32)
        return calibration.step(
            settings.kinds[i], state.layers[i], slots=at, vectors=vectors, coverage=coverage, grains=grains
        )

    if len(closing) and state.present.size >= SIDE_BY_SIDE:
        results = list(_THREADS.map(scored, range(len(settings.layers))))
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
        recent=recent[-1],
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
