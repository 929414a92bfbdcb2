"""The quadratic fit: a line of samples in, `a`, `b`, `c`, `d` of every window out.

In: samples `(T, ...)` and which of them are good. Out: one least-squares parabola a window and its residual's standard
deviation. Windows without gaps are one matrix product; windows with gaps take an exact path of their own.
It knows neither time stamps nor channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.errors import ShapeError

Floats = NDArray[np.float32] | NDArray[np.float64]

TILE = 1024
"""Columns worked on at a time: few enough for the L2 cache, enough to make a call worth its while."""

LANES = 64
"""Columns are filled up to a multiple of this, so that no sum ever runs along a lone column in another order."""

LEAST_WINDOW = 9
"""Points of the shortest window. Below 8 frames a second they span more than a second: (points - 1) / rate."""

LEAST_POINTS = 5
"""A parabola and a residual need four points; PNNL's library asks for five."""

BAND = 24
"""Windows that share one matrix product when there is a fit at every frame."""


@dataclass(frozen=True, slots=True)
class Fits:
    """Least-squares parabolas y = a + b x + c x**2, x in seconds from the window's middle.

    Attributes
    ----------
    a
        `(K, ...)` value at the middle of the window, unit of the samples; NaN where too few points are good.
    b
        `(K, ...)` slope at the middle, unit per second.
    c
        `(K, ...)` half the curvature, unit per second squared.
    d
        `(K, ...)` sqrt(SSE / (n - 3)), unit of the samples: how badly the parabola fits.
    count
        `(K, ...)` uint8: n, the good points of the window.
    """

    a: Floats
    b: Floats
    c: Floats
    d: Floats
    count: NDArray[np.uint8]


def window_points(rate_hz: float) -> int:
    """Count the points of the usual window: about a second, odd, at least `LEAST_WINDOW`.

    Parameters
    ----------
    rate_hz
        Reporting rate in frames a second.

    Returns
    -------
    int
        31 at 30/s, 61 at 60/s; 9 below 8/s, where the window is longer than a second.
    """
    return max(LEAST_WINDOW, 2 * int(rate_hz / 2) + 1)


def fit(
    values: Floats,
    good: NDArray[np.bool_] | None = None,
    *,
    rate_hz: float,
    hop: int,
    points: int | None = None,
    least: int | None = None,
    first: int | None = None,
    turn: NDArray[np.float32] | None = None,
    same_bits: bool = False,
) -> Fits:
    """Fit a parabola to a window of samples, once every `hop` frames.

    Residuals are computed, not derived from a difference of energies: a pure parabola has a residual of rounding size
    whatever its slope.

    Parameters
    ----------
    values
        `(T, ...)` float32 or float64, any unit; what stands where `good` is False is ignored.
    good
        `(T, ...)` True where the sample counts; None where all do.
    rate_hz
        Frames a second: the unit of x.
    hop
        Frames from one window to the next.
    points
        Frames in a window, odd, at most 255; `window_points` by default.
    least
        Good points below which there is no fit; half the window by default, never below `LEAST_POINTS`.
    first
        Index of the last frame of the first window; `points - 1` by default.
    turn
        `(...)` the full turn of columns that wrap (360 for degrees): their samples are taken within half a turn of the
        window's middle; 0 for the other columns, whose bits it leaves alone. None where no column wraps.
    same_bits
        Give a column the same bits whatever stands beside it, at a fifth of the speed. A matrix product does not: some
        BLAS kernels round a column differently at different places of the matrix.

    Returns
    -------
    Fits
        In the precision of `values`, `K` windows that lie wholly within the array.

    Raises
    ------
    ShapeError
        If the shapes differ or a setting is out of its range.
    """
    points = window_points(rate_hz) if points is None else points
    least = max(LEAST_POINTS, points // 2) if least is None else least
    first = points - 1 if first is None else first
    fault = _fault(values, good, rate_hz=rate_hz, hop=hop, points=points, least=least, first=first)
    if fault:
        raise ShapeError(fault)
    starts = range(first - points + 1, len(values) - points + 1, hop)
    plan = _plan(values, good, rate_hz=rate_hz, points=points, least=least, starts=starts, turn=turn)
    out = plan.empty()
    slab = np.zeros((points, _filled(plan.samples.shape[1])), plan.dtype)
    parabola = _sequential(plan, slab) if same_bits else _product(plan, slab)
    with np.errstate(invalid="ignore", over="ignore"):
        for k, start in enumerate(starts):
            window = plan.samples[start : start + points]
            for lo, hi in _tiles(window.shape[1]):
                middle = window[points // 2, lo:hi]
                centred = slab[:, : hi - lo]
                np.subtract(window[:, lo:hi], middle, out=centred)
                if plan.turn is not None:
                    unwrap(centred, plan.turn[lo:hi])
                out[:, k, lo:hi] = parabola()[:, : hi - lo]
                out[0, k, lo:hi] += middle
    return _finish(plan, out)


def fit_every_frame(
    values: Floats,
    good: NDArray[np.bool_] | None = None,
    *,
    rate_hz: float,
    points: int | None = None,
    least: int | None = None,
) -> Fits:
    """Fit a parabola to the window that ends at every frame.

    Samples in float32 are fitted in float64 by the energy that the parabola leaves, `BAND` windows in one banded matrix
    product: the residual is exact to about 1e-8 of the range within two windows. That is float32's limit and would not
    be float64's, so samples in float64 take the way of `fit`.

    Parameters
    ----------
    values
        `(T, ...)` float32 or float64, any unit; what stands where `good` is False is ignored.
    good
        `(T, ...)` True where the sample counts; None where all do.
    rate_hz
        Frames a second: the unit of x.
    points
        Frames in a window, odd, at most 255; `window_points` by default.
    least
        Good points below which there is no fit; half the window by default, never below `LEAST_POINTS`.

    Returns
    -------
    Fits
        In the precision of `values`; `K` is T - points + 1.

    Raises
    ------
    ShapeError
        If the shapes differ or a setting is out of its range.
    """
    if values.dtype != np.float32:
        return fit(values, good, rate_hz=rate_hz, hop=1, points=points, least=least)
    points = window_points(rate_hz) if points is None else points
    least = max(LEAST_POINTS, points // 2) if least is None else least
    fault = _fault(values, good, rate_hz=rate_hz, hop=1, points=points, least=least, first=points - 1)
    if fault:
        raise ShapeError(fault)
    starts = range(len(values) - points + 1)
    plan = _plan(values, good, rate_hz=rate_hz, points=points, least=least, starts=starts)
    out = plan.empty()
    for lo, hi in _tiles(plan.samples.shape[1]):
        for k in range(0, plan.windows, BAND):
            _fit_band(plan, out, k, slice(lo, hi))
    return _finish(plan, out)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The checked arguments of a fit, samples with one column axis."""

    samples: Floats
    good: NDArray[np.bool_] | None
    shape: tuple[int, ...]
    rate_hz: float
    points: int
    least: int
    starts: range
    turn: Floats | None

    @property
    def windows(self) -> int:
        return len(self.starts)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.samples.dtype

    def empty(self) -> Floats:
        out: Floats = np.empty((4, self.windows, self.samples.shape[1]), self.dtype)
        return out


def _fault(
    values: Floats, good: NDArray[np.bool_] | None, *, rate_hz: float, hop: int, points: int, least: int, first: int
) -> str | None:
    """Say what is wrong with the arguments of a fit."""
    if values.dtype not in {np.dtype(np.float32), np.dtype(np.float64)}:
        return f"samples are {values.dtype}; convert them to float32 or float64"
    if good is not None and good.shape != values.shape:
        return f"samples have shape {values.shape} and their marks {good.shape}; they must be the same"
    if points % 2 == 0 or not LEAST_POINTS <= points <= 255:
        return f"a window of {points} points; it must be odd, from {LEAST_POINTS} to 255"
    if not LEAST_POINTS <= least <= points:
        return f"at least {least} good points in a window of {points}; choose {LEAST_POINTS} to {points}"
    if hop < 1 or first < points - 1 or rate_hz <= 0:
        return f"hop {hop}, first {first}, rate {rate_hz}/s: hop from 1, first from {points - 1}, rate above 0"
    return None


def _plan(
    values: Floats,
    good: NDArray[np.bool_] | None,
    *,
    rate_hz: float,
    points: int,
    least: int,
    starts: range,
    turn: NDArray[np.float32] | None = None,
) -> _Plan:
    samples = _columns(values)
    marks = None if good is None else np.ascontiguousarray(good).reshape(samples.shape)
    turns: Floats | None = None
    if turn is not None and turn.any():
        spread: Any = np.broadcast_to(turn, values.shape[1:])
        turns = spread.astype(values.dtype).reshape(-1)
    return _Plan(samples, marks, values.shape[1:], rate_hz, points, least, starts, turns)


def _columns(values: Floats) -> Floats:
    whole: Any = np.ascontiguousarray(values)
    out: Floats = whole.reshape(len(values), -1)
    return out


def unwrap(differences: Floats, turn: Floats) -> None:
    """Bring differences of angles within half a turn, in place; leave other columns as they are, bit for bit.

    Parameters
    ----------
    differences
        `(..., N)`.
    turn
        `(N,)` a full turn in the unit of the differences, 0 for what does not wrap.
    """
    whole = np.rint(differences * np.divide(1, turn, out=np.zeros_like(turn), where=turn > 0))
    whole *= turn
    differences -= whole


def _product(plan: _Plan, slab: Floats) -> Callable[[], Floats]:
    """Make the fit of a centred tile `(points, n)` to `(4, n)`: a matrix product, and the energy of the rest."""
    matrix = _full_matrix(plan.points, plan.rate_hz).astype(plan.dtype)
    ones = np.full((1, plan.points - 3), 1 / (plan.points - 3)).astype(plan.dtype)
    product = np.empty_like(slab)

    def parabola() -> Floats:
        np.matmul(matrix, slab, out=product)
        rest = product[3:]
        np.multiply(rest, rest, out=rest)
        np.sqrt(ones @ rest, out=product[3:4])
        return product[:4]

    return parabola


def _sequential(plan: _Plan, slab: Floats) -> Callable[[], Floats]:
    """Make the same fit element by element: each column sees the same operations in the same order."""
    _, _, to_abc, basis = _band_matrices(plan.points, plan.rate_hz)
    directions = [q[:, None].astype(plan.dtype) for q in basis.T]
    factors = to_abc.astype(plan.dtype)
    spread = plan.dtype.type(1 / (plan.points - 3))
    work, result = np.empty_like(slab), np.empty_like(slab[:4])

    def parabola() -> Floats:
        along = []
        for q in directions:
            np.multiply(slab, q, out=work)
            along.append(np.add.reduce(work, axis=0))
            np.multiply(q, along[-1], out=work)
            np.subtract(slab, work, out=slab)
        # Even and odd polynomials do not mix: b needs the second projection alone, a and c the first and the third.
        np.multiply(along[0], factors[0, 0], out=result[0])
        result[0] += along[2] * factors[0, 2]
        np.multiply(along[1], factors[1, 1], out=result[1])
        np.multiply(along[2], factors[2, 2], out=result[2])
        np.multiply(slab, slab, out=work)
        np.add.reduce(work, axis=0, out=result[3])
        result[3] *= spread
        np.sqrt(result[3], out=result[3])
        return result

    return parabola


def _filled(columns: int) -> int:
    return min(TILE, -(-columns // LANES) * LANES)


def _tiles(columns: int) -> Iterator[tuple[int, int]]:
    for lo in range(0, columns, TILE):
        yield lo, min(lo + TILE, columns)


def _abscissae(points: int, rate_hz: float) -> NDArray[np.float64]:
    x: NDArray[np.float64] = (np.arange(points) - points // 2) / rate_hz
    return x


@lru_cache(maxsize=16)
def _full_matrix(points: int, rate_hz: float) -> NDArray[np.float64]:
    """`(points, points)`: three rows that give a, b, c, and an orthonormal basis of what no parabola can follow."""
    steps = np.arange(points) - points // 2
    q, r = np.linalg.qr(np.vander(steps / points, 3, increasing=True), mode="complete")
    rows = np.array(q.T)
    units = (rate_hz / points) ** np.arange(3)
    rows[:3] = np.linalg.solve(r[:3], rows[:3]) * units[:, None]
    return rows


@lru_cache(maxsize=16)
def _band_matrices(points: int, rate_hz: float) -> tuple[NDArray[np.float64], ...]:
    """Of `BAND` successive windows: `(3 BAND, W)` orthonormal projections and `(BAND, W)` sums; `(3, 3)` to a, b, c."""
    steps = np.arange(points) - points // 2
    q = np.linalg.qr(np.vander(steps / points, 3, increasing=True))[0]
    width = BAND + points - 1
    projections = np.zeros((3, BAND, width))
    sums = np.zeros((BAND, width))
    for k in range(BAND):
        projections[:, k, k : k + points] = q.T
        sums[k, k : k + points] = 1
    return projections.reshape(3 * BAND, width), sums, _full_matrix(points, rate_hz)[:3] @ q, q


def _fit_band(plan: _Plan, out: Floats, k: int, columns: slice) -> None:
    """Fit the windows `k` to `k + BAND` of some columns, in place."""
    projections, sums, to_abc, _ = _band_matrices(plan.points, plan.rate_hz)
    count = min(BAND, plan.windows - k)
    frames = plan.samples[k : k + count + plan.points - 1, columns]
    middle = frames[len(frames) // 2]
    slab = np.zeros((sums.shape[1], frames.shape[1]))
    with np.errstate(invalid="ignore", over="ignore"):
        np.subtract(frames, middle, out=slab[: len(frames)], dtype=np.float64)
        g = (projections @ slab).reshape(3, BAND, -1)[:, :count]
        np.multiply(slab, slab, out=slab)
        energy = (sums @ slab)[:count]
        # Even and odd polynomials do not mix: b needs the second projection alone, a and c the first and the third.
        view = out[:, k : k + count, columns]
        np.multiply(g[2], to_abc[2, 2], out=view[2], casting="same_kind")
        np.multiply(g[1], to_abc[1, 1], out=view[1], casting="same_kind")
        level = g[0] * to_abc[0, 0]
        level += g[2] * to_abc[0, 2]
        level += middle
        view[0] = level
        np.multiply(g, g, out=g)
        energy -= g[0]
        energy -= g[1]
        energy -= g[2]
        energy *= 1 / (plan.points - 3)
        np.maximum(energy, 0, out=energy)
        np.sqrt(energy, out=view[3], casting="same_kind")


def _finish(plan: _Plan, out: Floats) -> Fits:
    """Count good points, fit the windows with gaps anew, and give the result its axes back."""
    columns = plan.samples.shape[1]
    count = np.full((plan.windows, columns), plan.points, np.uint8)
    if plan.good is not None and not plan.good.all():
        marks = plan.good.view(np.uint8)
        for k, start in enumerate(plan.starts):
            np.add.reduce(marks[start : start + plan.points], axis=0, dtype=np.uint8, out=count[k])
        _fit_gaps(plan, out, count)
    shape = (plan.windows, *plan.shape)
    a, b, c, d = (part.reshape(shape) for part in out)
    return Fits(a, b, c, d, count.reshape(shape))


def _fit_gaps(plan: _Plan, out: Floats, count: NDArray[np.uint8]) -> None:
    """Fit every window that has a gap, in place: exact, and only those.

    References
    ----------
    G. E. Forsythe, "Generation and use of orthogonal polynomials for data-fitting with a digital computer",
    J. SIAM 5 (1957) 74-88, doi:10.1137/0105007: polynomials orthogonal on the points that are there.
    """
    if plan.good is None:
        return
    columns = plan.samples.shape[1]
    out[:, count < plan.least] = np.nan
    window, column = np.nonzero((count < plan.points) & (count >= plan.least))
    samples, marks = plan.samples.reshape(-1), plan.good.reshape(-1)
    x = _abscissae(plan.points, plan.rate_hz)[:, None]
    steps = np.arange(plan.points)[:, None] * columns
    for lo, hi in _tiles(len(window)):
        # The tile is filled up with its first window: see LANES.
        corner = np.full(_filled(hi - lo), (plan.starts.start + window[lo] * plan.starts.step) * columns + column[lo])
        corner[: hi - lo] = (plan.starts.start + window[lo:hi] * plan.starts.step) * columns + column[lo:hi]
        at = steps + corner
        turn = None if plan.turn is None else plan.turn[corner % columns]
        parabola = _fit_weighted(x, samples.take(at), marks.take(at), turn)
        out[:, window[lo:hi], column[lo:hi]] = parabola[:, : hi - lo]


def _fit_weighted(
    x: NDArray[np.float64], samples: Floats, marks: NDArray[np.bool_], turn: Floats | None
) -> NDArray[np.float64]:
    """Fit columns `(points, n)` where `marks` says so: `(4, n)` a, b, c, d. Masked samples may be NaN."""
    m = marks.astype(np.float64)
    n = m.sum(0)
    y = np.where(marks, samples, 0).astype(np.float64)
    middle = y[marks.argmax(0), np.arange(y.shape[1])]
    y -= middle
    if turn is not None:
        unwrap(y, turn.astype(np.float64))
    y *= m
    mean_x = (m * x).sum(0) / n
    p1 = (x - mean_x) * m
    s1 = (p1 * p1).sum(0)
    alpha = (p1 * p1 * x).sum(0) / s1
    p2 = (x - alpha) * p1 - m * (s1 / n)
    s2 = (p2 * p2).sum(0)
    g0 = y.sum(0) / n
    y -= g0 * m
    g1 = (y * p1).sum(0) / s1
    y -= g1 * p1
    g2 = (y * p2).sum(0) / s2
    y -= g2 * p2
    d = np.sqrt((y * y).sum(0) / (n - 3))
    # p2 = (x - alpha)(x - mean) - s1/n, written out in powers of x.
    b = g1 - g2 * (alpha + mean_x)
    a = middle + g0 - g1 * mean_x + g2 * (alpha * mean_x - s1 / n)
    return np.stack([a, b, g2, d])
