"""What is typical of a stream: centre, spread and principal directions of its reference vectors.

In: a stream's vectors while it learns. Out: a `Reference`, and with it the distance of any vector and how much each
column adds to it. The directions left out by the compression count with their mean variance, so that nothing is
invisible. References are arrays with the streams first: one stream's never touches another's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from baselines.patterns import PATTERNS, cluster, nearest
from baselines.tail import Tail, fit_tail

VARIANCE = 0.80
"""Share of the variance that the principal directions kept must explain."""

COMPONENTS = 32
"""Principal directions kept at most: beyond it the spectrum of ambient noise is flat, and its mean serves."""

FOLDS = 5
"""Contiguous parts of the reference; each is held out once to learn how large an ordinary distance is."""

OUTLIER = 8.0
"""Robust standard deviations of one column beyond which a reference window is taken for a disturbance."""

OUTLIER_SHARE = 0.15
"""Windows of the reference that may be left out as disturbances; were there more, they would be what is typical."""

GRAIN = 0.5
"""Least standard deviation of a column, in what one quantum of the samples can do to it."""

LOG_GRAIN = 0.3
"""The same for the logarithm of a column no larger than its quantum."""

COLUMN_SHARE = 0.5
"""Share of the reference in which a column must be there to count."""

WORK = 1 << 21
"""Numbers of one intermediate array: what a long block is cut into, for the cache's sake."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What is typical of each of `S` streams, for vectors of `D` columns; `R` principal directions.

    Attributes
    ----------
    learned
        `(S,)` bool: False where the stream is still learning, and all else below means nothing.
    used
        `(S, D)` bool: the columns that count; constant and seldom-seen ones do not.
    offset
        `(S, D)` what is added to a column before its logarithm is taken; 0 in columns taken as they are.
    centre
        `(S, D)` the typical value, after the logarithm where one is taken.
    scale
        `(S, D)` its standard deviation.
    loadings
        `(S, D, R)` float32: principal directions of the standardised columns, zero beyond those kept.
    variances
        `(S, R)` variance along each; that of the rest beyond those kept.
    rest
        `(S,)` mean variance of all directions left out.
    level
        `(S,)` mean distance of held-out reference windows.
    independent
        `(S,)` how many independent windows the reference is worth.
    tail
        The survival of the distance; its arrays `(S,)`.
    patterns
        `(S, P, R)` float32: the typical patterns, as scores along the principal directions.
    frequencies
        `(S, P)` share of the reference's windows in each; 0 where there are fewer patterns.
    """

    learned: NDArray[np.bool_]
    used: NDArray[np.bool_]
    offset: NDArray[np.float64]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    loadings: NDArray[np.float32]
    variances: NDArray[np.float64]
    rest: NDArray[np.float64]
    level: NDArray[np.float64]
    independent: NDArray[np.float64]
    tail: Tail
    patterns: NDArray[np.float32]
    frequencies: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Contributions:
    """Why one vector is as far away as it is.

    Attributes
    ----------
    value
        `(D,)` the columns as observed; NaN where not there.
    expected
        `(D,)` their typical values, same units.
    z
        `(D,)` standard deviations from typical; 0 in columns that do not count.
    share
        `(D,)` what each column adds to the distance; they sum to it. A column may take away.
    """

    value: NDArray[np.float64]
    expected: NDArray[np.float64]
    z: NDArray[np.float64]
    share: NDArray[np.float64]


def blank_reference(streams: int, columns: int) -> Reference:
    """Make the reference of streams that have learned nothing.

    Parameters
    ----------
    streams
        `S`.
    columns
        `D`.

    Returns
    -------
    Reference
        All `learned` False.
    """
    depth = min(columns, COMPONENTS)
    zeros, ones = np.zeros, np.ones
    return Reference(
        learned=zeros(streams, bool),
        used=zeros((streams, columns), bool),
        offset=zeros((streams, columns)),
        centre=zeros((streams, columns)),
        scale=ones((streams, columns)),
        loadings=zeros((streams, columns, depth), np.float32),
        variances=ones((streams, depth)),
        rest=ones(streams),
        level=zeros(streams),
        independent=zeros(streams),
        tail=Tail(*(ones(streams) for _ in range(6))),
        patterns=zeros((streams, PATTERNS, depth), np.float32),
        frequencies=zeros((streams, PATTERNS)),
    )


def learn(
    vectors: NDArray[np.float32],
    logged: NDArray[np.bool_],
    grains: NDArray[np.float64],
    overlap: int,
    *,
    into: Reference,
    stream: int,
) -> bool:
    """Learn one stream's reference, in place of its row of `into`.

    Windows far from all others are left out as disturbances. The tail is fitted to distances of windows held out,
    with those that overlap them, from what they are measured against.

    Parameters
    ----------
    vectors
        `(n, D)` in order of time; NaN where a column is not there.
    logged
        `(D,)` columns of which the logarithm is taken.
    grains
        `(D,)` how far one quantum of the samples can move a column, 0 where they are not quantised: within it nothing
        is atypical, however rarely it was moved while learning.
    overlap
        How many successive vectors share samples: n / overlap are independent.
    into
        The reference to write to; its arrays are changed.
    stream
        Place on its stream axis.

    Returns
    -------
    bool
        False where the vectors hold too little (all columns constant, hardly a row complete): nothing is written.
    """
    x = vectors.astype(np.float64)
    offset = _log_offsets(x, logged, grains)
    x = _with_logs(x, offset, logged)
    used = np.isfinite(x).mean(0) >= COLUMN_SHARE
    with np.errstate(invalid="ignore"):
        spread = np.nanmax(np.where(used, x, 0), axis=0) - np.nanmin(np.where(used, x, 0), axis=0)
    used &= spread > 0
    if used.sum() < 1 or len(x) < 4 * FOLDS:
        return False
    x = x[:, used]
    floor = np.where(logged, LOG_GRAIN * (offset <= grains * GRAIN), grains * GRAIN)[used]
    x = x[_ordinary(x, floor)]
    independent = len(x) / overlap
    distances = []
    for fold in np.array_split(np.arange(len(x)), FOLDS):
        near = (np.arange(len(x)) >= fold[0] - overlap + 1) & (np.arange(len(x)) < fold[-1] + overlap)
        train = x[~near]
        if len(train) < 8:
            return False
        centre, scale = _moments(train, floor)
        space = _principal((train - centre) / scale, len(train) / overlap)
        distances.append(_distance_of((x[fold] - centre) / scale, *space))
    held_out = np.concatenate(distances)
    centre, scale = _moments(x, floor)
    loadings, variances, rest = _principal((x - centre) / scale, independent)
    tail = fit_tail(held_out, independent)
    kept = len(variances)
    into.learned[stream] = True
    into.used[stream] = used
    into.offset[stream] = offset
    into.centre[stream, used] = centre
    into.scale[stream, used] = scale
    into.loadings[stream, used, :kept] = loadings
    into.variances[stream] = rest
    into.variances[stream, :kept] = variances
    into.rest[stream] = rest
    into.level[stream] = held_out.mean()
    into.independent[stream] = independent
    for name in Tail.__slots__:
        getattr(into.tail, name)[stream] = getattr(tail, name)
    z = (x - centre) / scale
    patterns, frequencies = cluster(np.where(np.isfinite(z), z, 0.0) @ loadings, variances)
    into.patterns[stream, : len(patterns), :kept] = patterns
    into.frequencies[stream, : len(patterns)] = frequencies
    return True


def standardise(
    reference: Reference, logged: NDArray[np.bool_], vectors: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Express vectors in standard deviations from typical.

    Parameters
    ----------
    reference
        Of the `S` streams.
    logged
        `(D,)` columns of which the logarithm is taken.
    vectors
        `(K, S, D)`; NaN where a column is not there.

    Returns
    -------
    tuple[NDArray[np.float64], NDArray[np.bool_]]
        `(K, S, D)` z, 0 where a column does not count or is not there; and where it counts and is there.
    """
    x = _with_logs(vectors.astype(np.float64), reference.offset, logged)
    there = np.isfinite(x) & reference.used
    z = np.where(there, (x - reference.centre) / reference.scale, 0.0)
    return z, there


def distance(
    reference: Reference, z: NDArray[np.float64], there: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Measure how far vectors are from typical.

    Where columns are missing, the distance is that of the columns there, in their own distribution, and the missing
    ones add what a typical column adds.

    Parameters
    ----------
    reference
        Of the `S` streams.
    z
        `(K, S, D)`, 0 where not `there`.
    there
        `(K, S, D)`.

    Returns
    -------
    tuple[NDArray[np.float64], NDArray[np.intp]]
        `(K, S)` the distance; where no column is there it is the typical one. And the nearest typical pattern.
    """
    count, streams, columns = z.shape
    out = np.empty((count, streams))
    pattern = np.empty((count, streams), np.intp)
    step = max(1, WORK // max(1, streams * max(columns, reference.loadings.shape[2])))
    gain = 1 / reference.rest[:, None] - 1 / reference.variances
    for lo in range(0, count, step):
        part = z[lo : lo + step]
        # One column after the other, element by element: the same bits whatever the number of streams or times.
        # einsum does it so where it does not ask BLAS.
        scores = np.einsum("ksd,sdr->ksr", part, reference.loadings, optimize=False)
        square = np.zeros(part.shape[:2])
        for d in range(columns):
            column = part[:, :, d]
            square += column * column
        pattern[lo : lo + step] = nearest(scores, reference.patterns, reference.frequencies, reference.variances)
        scores *= scores
        scores *= gain
        far = square / reference.rest
        for r in range(scores.shape[2]):
            far -= scores[:, :, r]
        out[lo : lo + step] = far
    missing = (there != reference.used).any(-1) & reference.learned
    if missing.any():
        out[missing] = _distance_with_gaps(reference, z, there, missing)
    return np.maximum(out, 0), pattern


def explain(reference: Reference, logged: NDArray[np.bool_], vector: NDArray[np.float32], stream: int) -> Contributions:
    """Say what each column of one vector adds to its distance.

    Parameters
    ----------
    reference
        Of the `S` streams; the stream must have learned.
    logged
        `(D,)` columns of which the logarithm is taken.
    vector
        `(D,)`; NaN where a column is not there.
    stream
        Place on the stream axis.

    Returns
    -------
    Contributions
        Its shares sum to the distance of the columns there.
    """
    x = _with_logs(vector.astype(np.float64), reference.offset[stream], logged)
    there = np.isfinite(x) & reference.used[stream]
    z = np.where(there, (x - reference.centre[stream]) / reference.scale[stream], 0.0)
    weights = _inverse_times(
        reference.loadings[stream][None],
        reference.variances[stream][None],
        reference.rest[stream][None],
        z[None],
        there[None],
    )[0]
    centre = reference.centre[stream]
    expected = np.where(logged, np.exp(np.minimum(centre, 700)) - reference.offset[stream], centre)
    return Contributions(vector.astype(np.float64), expected, z, z * weights)


def _with_logs(x: NDArray[np.float64], offset: NDArray[np.float64], logged: NDArray[np.bool_]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        out: NDArray[np.float64] = np.where(logged, np.log(np.where(logged, x + offset, 1.0)), x)
    return out


def _log_offsets(x: NDArray[np.float64], logged: NDArray[np.bool_], grains: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take a tenth of what is typical, or half a quantum: it bounds the logarithm where a column is sometimes zero."""
    offset = np.zeros(x.shape[1])
    for d in np.flatnonzero(logged):
        column = x[np.isfinite(x[:, d]), d]
        if len(column):
            offset[d] = max(0.1 * (float(np.median(column)) or float(column.mean())), GRAIN * grains[d])
    return offset


def _ordinary(x: NDArray[np.float64], floor: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark the rows that are no disturbance; where they are too many, the worst of them alone are left out."""
    middle = np.nanmedian(x, axis=0)
    away = np.abs(x - middle)
    spread = 1.4826 * np.nanmedian(away, axis=0)
    # A column that hardly ever changes has no median spread; its changes are what its standard deviation is made of.
    spread = np.maximum(np.where(spread > 0, spread, np.nanstd(x, axis=0)), floor)
    worst = np.nanmax(np.where(np.isfinite(away), away, 0) / spread, axis=1)
    odd = worst > OUTLIER
    if odd.mean() > OUTLIER_SHARE:
        odd = worst > np.quantile(worst, 1 - OUTLIER_SHARE / 3)
    ordinary: NDArray[np.bool_] = ~odd
    return ordinary


def _moments(x: NDArray[np.float64], floor: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    centre = np.nanmean(x, axis=0)
    scale = np.nanstd(x, axis=0, ddof=1)
    # A column constant in this part of the reference is not constant in all of it: its deviations must stay finite.
    scale = np.maximum(np.maximum(scale, floor), 0.1 * np.nanmax(np.abs(x - centre), axis=0))
    return centre, np.where(scale > 0, scale, 1.0)


def _principal(z: NDArray[np.float64], independent: float) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Principal directions `(D, k)` and variances `(k,)` of standardised rows, and the mean variance of the rest.

    References
    ----------
    Y. Chen, A. Wiesel, Y. C. Eldar, A. O. Hero, "Shrinkage algorithms for MMSE covariance estimation", IEEE Trans.
    Signal Process. 58 (2010) 5016-5029, doi:10.1109/TSP.2010.2053029: the weight of the shrinkage (OAS).
    """
    z = np.where(np.isfinite(z), z, 0.0)
    n, columns = z.shape
    wide = columns > n
    gram = z @ z.T / (n - 1) if wide else z.T @ z / (n - 1)
    size = len(gram)
    depth = min(COMPONENTS, columns, size)
    top, vectors = eigh(gram, subset_by_index=[size - depth, size - 1], check_finite=False, driver="evr")
    top, vectors = np.maximum(top[::-1], 0), vectors[:, ::-1]
    total, squares = float(np.trace(gram)), float((gram * gram).sum())
    lean = (1 - 2 / columns) * squares + total**2
    rich = (independent + 1 - 2 / columns) * (squares - total**2 / columns)
    shrink = min(1.0, lean / rich) if rich > 0 else 1.0
    variances = (1 - shrink) * top + shrink * total / columns
    kept = int(np.searchsorted(np.cumsum(variances), VARIANCE * total)) + 1
    kept = min(kept, depth, max(columns - 1, 1), int((top > 1e-9 * total).sum()))
    variances, directions = variances[:kept], vectors[:, :kept]
    if wide:
        directions = z.T @ directions / np.sqrt(top[:kept] * (n - 1))
    rest = (total - float(variances.sum())) / (columns - kept) if columns > kept else float(variances[-1])
    rest = max(rest, 1e-6)
    return directions, np.maximum(variances, rest), rest


def _distance_of(
    z: NDArray[np.float64], loadings: NDArray[np.float64], variances: NDArray[np.float64], rest: float
) -> NDArray[np.float64]:
    z = np.where(np.isfinite(z), z, 0.0)
    scores = z @ loadings
    out: NDArray[np.float64] = (z * z).sum(1) / rest - (scores**2 * (1 / rest - 1 / variances)).sum(1)
    return out


def _inverse_times(
    loadings: NDArray[np.float32],
    variances: NDArray[np.float64],
    rest: NDArray[np.float64],
    z: NDArray[np.float64],
    there: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Inverse covariance of the columns there, times z: `(n, D)`, by Woodbury in the `R` principal directions."""
    excess = variances - rest[:, None]
    kept = excess > 0  # a direction with no more variance than the rest is one of the rest
    part = loadings * (there[:, :, None] & kept[:, None])
    inner = np.matmul(part.transpose(0, 2, 1), part).astype(np.float64)
    ridge = np.where(kept, rest[:, None] / np.where(kept, excess, 1.0), 1.0)
    at = np.arange(inner.shape[1])
    inner[:, at, at] += ridge
    scores = (part * z[:, :, None]).sum(1)
    back = np.linalg.solve(inner, scores[:, :, None])[:, :, 0]
    out: NDArray[np.float64] = (z - (part * back[:, None]).sum(2)) / rest[:, None]
    return out


def _distance_with_gaps(
    reference: Reference, z: NDArray[np.float64], there: NDArray[np.bool_], missing: NDArray[np.bool_]
) -> NDArray[np.float64]:
    time, stream = np.nonzero(missing)
    out = np.empty(len(time))
    step = max(1, WORK // max(1, reference.loadings.shape[1] * reference.loadings.shape[2]))
    for lo in range(0, len(time), step):
        t, s = time[lo : lo + step], stream[lo : lo + step]
        rows = z[t, s]
        weights = _inverse_times(reference.loadings[s], reference.variances[s], reference.rest[s], rows, there[t, s])
        share = 1 - there[t, s].sum(1) / np.maximum(reference.used[s].sum(1), 1)
        out[lo : lo + step] = (rows * weights).sum(1) + share * reference.level[s]
    return out
