"""Signatures: what a stretch of fits says of a stream, as one vector a moment.

In: fits every hop, with the lowest and highest sample of the hop. Out: the vector of the newest fit, and summaries
(least, greatest, mean, standard deviation of a, b, c, d) over a sliding period, put together from partial summaries of
a second. It judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from baselines.quadratic import unwrap

FAST_DESCRIPTORS = ("step", "slope", "curvature", "misfit")
"""Columns of the newest fit: a against the a of a second before, b, c, d."""

STATISTICS = ("min", "max", "mean", "sd")
"""Least and greatest are kept as distances from the mean: never negative, and free of its wander."""

COEFFICIENTS = ("a", "b", "c", "d")
SUMMARY_DESCRIPTORS = tuple(f"{c}_{s}" for c in COEFFICIENTS for s in STATISTICS)
"""Columns of a summary: of each coefficient, least, greatest, mean and standard deviation."""

LOGGED_DESCRIPTORS = frozenset({"misfit", "d_mean", *(f"{c}_{s}" for c in COEFFICIENTS for s in ("min", "max", "sd"))})
"""Columns that cannot be negative: their logarithms are nearer to normal than they are."""

GRAINS = {"step": 1.0, "slope": 1.5, "curvature": 3.75, "misfit": 0.5, "a": 1.0, "b": 1.5, "c": 3.75, "d": 0.5}
"""What one quantum of the samples can do to a column when it comes or goes within the window of a second."""

LEAST_SHARE = 1 / 7
"""Share of a period's fits that a column needs to count."""

TOGETHER = 1 << 13
"""Channels of all streams that are summarised at a time, so that what grows over the period stays in the cache."""


TEN = 10
"""Seconds that are joined once and for all, where a period holds them whole."""


@dataclass(frozen=True, slots=True)
class Partial:
    """The summary of one second or several, ready to be joined with others; a's are relative to `base`.

    Seconds without a fit have a `base` of NaN, infinite extremes, and zeros.

    Attributes
    ----------
    base
        `(S, C)` float32: the first a; NaN where there is no fit.
    count
        `(S, C)` uint16: fits.
    least
        `(S, C, 4)` float32 of a, b, c, d; a's is that of the samples themselves.
    most
        `(S, C, 4)` float32, likewise.
    mean
        `(S, C, 4)` float32.
    scatter
        `(S, C, 4)` float32: sum of squared deviations from the mean.
    """

    base: NDArray[np.float32]
    count: NDArray[np.uint8]
    least: NDArray[np.float32]
    most: NDArray[np.float32]
    mean: NDArray[np.float32]
    scatter: NDArray[np.float32]

    def of(self, part: slice) -> Partial:
        """Take some streams.

        Parameters
        ----------
        part
            Which.

        Returns
        -------
        Partial
            Views of theirs.
        """
        return Partial(*(getattr(self, field.name)[part] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Recent:
    """Summaries of the last seconds, from which any period that ends now is joined.

    Tens of seconds begin where the number of a second since the epoch ends with 0: all streams' at the same moments,
    however the stream is cut.

    Attributes
    ----------
    seconds
        Of each of the last seconds, as many as the longest period has.
    tens
        Of the last whole tens, as many as the longest period may hold.
    begun
        Of the seconds of the ten that has begun; where there are no tens, of none.
    """

    seconds: tuple[Partial, ...]
    tens: tuple[Partial, ...]
    begun: Partial


def grain_factors(descriptors: tuple[str, ...]) -> NDArray[np.float64]:
    """Say how far one quantum of the samples can move each column.

    Parameters
    ----------
    descriptors
        Names of a channel's columns.

    Returns
    -------
    NDArray[np.float64]
        One factor a column, per quantum.
    """
    return np.array([GRAINS[name.partition("_")[0]] for name in descriptors])


def wrapped(difference: NDArray[np.float32], turn: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring differences of angles within half a turn; leave other quantities as they are, bit for bit.

    Parameters
    ----------
    difference
        `(..., C)` unit of the channel.
    turn
        Broadcasts with it: 360 for degrees, 0 for what does not wrap.

    Returns
    -------
    NDArray[np.float32]
        `(..., C)`, changed in place.
    """
    if turn.any():
        unwrap(difference, turn)
    return difference


def fast_vectors(fits: NDArray[np.float32], lag: int, turn: NDArray[np.float32]) -> NDArray[np.float32]:
    """Describe the newest fit, for successive fits.

    Parameters
    ----------
    fits
        `(S, lag + K, C, 4)` a, b, c, d; NaN where there is no fit.
    lag
        Fits in a second: how far back the step is measured.
    turn
        `(S, C)`: see `wrapped`.

    Returns
    -------
    NDArray[np.float32]
        `(K, S, C * 4)`: channel by channel, `FAST_DESCRIPTORS` of each.
    """
    out = np.array(fits[:, lag:])
    out[..., 0] = wrapped(out[..., 0] - fits[:, : fits.shape[1] - lag, :, 0], turn[:, None])
    return np.ascontiguousarray(out.swapaxes(0, 1)).reshape(out.shape[1], len(out), 4 * out.shape[2])


def blank_partial(streams: int, channels: int) -> Partial:
    """Make the summary of a second without a fit.

    Parameters
    ----------
    streams
        `S`.
    channels
        `C`.

    Returns
    -------
    Partial
        Of that size.
    """
    shape = (streams, channels)
    return Partial(
        base=np.full(shape, np.nan, np.float32),
        count=np.zeros(shape, np.uint16),
        least=np.full((*shape, 4), np.inf, np.float32),
        most=np.full((*shape, 4), -np.inf, np.float32),
        mean=np.zeros((*shape, 4), np.float32),
        scatter=np.zeros((*shape, 4), np.float32),
    )


def blank_recent(streams: int, channels: int, longest: int) -> Recent:
    """Make the summaries of streams that have seen nothing.

    Parameters
    ----------
    streams
        `S`.
    channels
        `C`.
    longest
        Seconds of the longest period.

    Returns
    -------
    Recent
        Of that size.
    """
    blank = blank_partial(streams, channels)
    return Recent((blank,) * longest, (blank,) * (longest // TEN), blank)


def extended(recent: Recent, newest: Partial, number: int, turn: NDArray[np.float32]) -> Recent:
    """Go on by a second.

    Parameters
    ----------
    recent
        Up to the second before.
    newest
        Of the second.
    number
        Which it is, since the epoch.
    turn
        `(S, C)`: see `wrapped`.

    Returns
    -------
    Recent
        Up to this second; the oldest is gone.
    """
    seconds = (*recent.seconds, newest)[1:]
    if not recent.tens:
        return Recent(seconds, (), recent.begun)
    begun = blank_partial(*turn.shape)
    for part in _parts(*turn.shape):
        _join([recent.begun, newest], begun, part, turn)
    if number % TEN < TEN - 1:
        return Recent(seconds, recent.tens, begun)
    return Recent(seconds, (*recent.tens, begun)[1:], blank_partial(*turn.shape))


def period(recent: Recent, seconds: int, number: int) -> list[Partial]:
    """Choose the summaries that make up a period.

    Parameters
    ----------
    recent
        Up to the period's last second.
    seconds
        How many the period has.
    number
        The number of its last since the epoch.

    Returns
    -------
    list[Partial]
        In the order of time.
    """
    begun = (number + 1) % TEN
    if begun > seconds or not recent.tens:
        return list(recent.seconds[-seconds:])
    tens, head = divmod(seconds - begun, TEN)
    first = len(recent.seconds) - seconds
    whole = recent.tens[len(recent.tens) - tens :]
    return [*recent.seconds[first : first + head], *whole, *([recent.begun] if begun else [])]


def summarise_second(fits: NDArray[np.float32], extremes: NDArray[np.float32], turn: NDArray[np.float32]) -> Partial:
    """Summarise the fits of one second.

    Parameters
    ----------
    fits
        `(S, J, C, 4)` a, b, c, d; NaN where there is no fit.
    extremes
        `(S, J, C, 2)` least and greatest sample of each hop; NaN where there is none.
    turn
        `(S, C)`: see `wrapped`.

    Returns
    -------
    Partial
        Of that second.
    """
    streams, spans, channels, _ = fits.shape
    there = np.isfinite(fits[..., 3])
    count = there.sum(1, dtype=np.uint16)
    base = np.full((streams, channels), np.nan, np.float32)
    for j in range(spans - 1, -1, -1):
        base = np.where(there[:, j], fits[:, j, :, 0], base)
    relative = np.array(fits)
    relative[..., 0] = wrapped(fits[..., 0] - base[:, None], turn[:, None])
    samples = wrapped(extremes - base[:, None, :, None], turn[:, None, :, None])
    least = np.full((streams, channels, 4), np.inf, np.float32)
    most = np.full((streams, channels, 4), -np.inf, np.float32)
    total = np.zeros((streams, channels, 4), np.float32)
    for j in range(spans):
        np.fmin(least, relative[:, j], out=least)
        np.fmax(most, relative[:, j], out=most)
        np.fmin(least[..., 0], samples[:, j, :, 0], out=least[..., 0])
        np.fmax(most[..., 0], samples[:, j, :, 1], out=most[..., 0])
        total += np.where(there[:, j, :, None], relative[:, j], 0)
    mean = total / np.maximum(count, 1)[..., None].astype(np.float32)
    scatter = np.zeros_like(total)
    for j in range(spans):
        away = np.where(there[:, j, :, None], relative[:, j] - mean, 0)
        scatter += away * away
    return Partial(base, count, least, most, mean, scatter)


def summarise_period(
    partials: Sequence[Partial], seconds: int, spans: int, turn: NDArray[np.float32], *, absolute: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Join the summaries that make up a period.

    Parameters
    ----------
    partials
        See `period`, in order.
    seconds
        How many it has.
    spans
        Fits in a second without gaps.
    turn
        `(S, C)`: see `wrapped`.
    absolute
        Keep the level of a, as PNNL does; else its mean is relative to the period's first a, so that a slow wander over
        hours is not atypical.

    Returns
    -------
    tuple[NDArray[np.float32], NDArray[np.float32]]
        `(S, C * 16)`: channel by channel, `SUMMARY_DESCRIPTORS` of each, NaN where too few fits are there; and
        `(S, C)` the share of the fits that are there.
    """
    streams, channels = turn.shape
    out = np.empty((streams, channels * len(SUMMARY_DESCRIPTORS)), np.float32)
    share = np.empty((streams, channels), np.float32)
    whole = blank_partial(streams, channels)
    for part in _parts(streams, channels):
        _join(partials, whole, part, turn)
        out[part], share[part] = _described(whole.of(part), seconds * spans, absolute=absolute)
    return out, share


def _parts(streams: int, channels: int) -> Iterator[slice]:
    some = max(1, TOGETHER // max(1, channels))
    return (slice(lo, lo + some) for lo in range(0, streams, some))


def _join(partials: Sequence[Partial], into: Partial, part: slice, turn: NDArray[np.float32]) -> None:
    """Join summaries of some streams, in the order of time, into one that is blank.

    Chan's update, one summary after the other: the order of the sums is the order of time, whatever the block. What is
    without a fit has infinite extremes and zeros, and so changes nothing.
    """
    into, turn = into.of(part), turn[part]
    count = np.zeros((*turn.shape, 1), np.float32)
    work = np.empty((*turn.shape, 4), np.float32)
    for one in partials:
        some = one.of(part)
        n = some.count[..., None].astype(np.float32)
        np.copyto(into.base, some.base, where=count[..., 0] == 0)
        shift = np.where(n[..., 0] > 0, wrapped(some.base - into.base, turn), np.float32(0))
        np.fmin(into.least[..., 0], some.least[..., 0] + shift, out=into.least[..., 0])
        np.fmax(into.most[..., 0], some.most[..., 0] + shift, out=into.most[..., 0])
        np.fmin(into.least[..., 1:], some.least[..., 1:], out=into.least[..., 1:])
        np.fmax(into.most[..., 1:], some.most[..., 1:], out=into.most[..., 1:])
        both = count + n
        weight = n / np.maximum(both, 1)
        away = some.mean - into.mean
        away[..., 0] += shift
        np.add(into.mean, np.multiply(away, weight, out=work), out=into.mean)
        away *= away
        away *= count * weight
        away += some.scatter
        np.add(into.scatter, away, out=into.scatter)
        count = both
    np.copyto(into.count, count[..., 0], casting="unsafe")


def _described(whole: Partial, most: int, *, absolute: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Describe a period that may have so many fits at most."""
    count = whole.count.astype(np.float32)
    # A lone fit's rounding must not turn a distance negative.
    with np.errstate(invalid="ignore"):
        below, above = np.maximum(whole.mean - whole.least, 0), np.maximum(whole.most - whole.mean, 0)
    spread = np.sqrt(whole.scatter / np.maximum(count - 1, 1)[..., None])
    out = np.stack([below, above, whole.mean, spread], axis=-1)
    if absolute:
        out[..., 0, 2] += whole.base
    share = count / most
    out[(share < LEAST_SHARE) | (count < 2)] = np.nan
    return out.reshape(len(out), -1).astype(np.float32), share.astype(np.float32)
