"""How improbable a distance is: a gamma body with a generalised-Pareto tail, as -ln p.

In: held-out distances of a reference. Out: the tail's parameters, and from them -ln p of any distance, straight in the
logarithm, so that nothing underflows. The Pareto tail is fitted to the gamma's own -ln p, so that a light tail is
carried on as light as it is and only its misfit is extrapolated. It does not know what the distance measures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammainc, gammaincc, gammaln

from baselines.errors import ShapeError

TRIM = 0.01
"""Share of the distances left out at each end when the gamma's moments are taken."""

TAIL_SHARE = 0.15
"""Share of the distances above the joint."""

PRIOR_SHAPE = 0.05
"""Shape of the Pareto tail where the reference says nothing: mildly heavier than the gamma's own."""

PRIOR_DOUBT = 3.0
"""What is added to that for a small reference, over its independent windows: its centre and spread are uncertain."""

PRIOR_WEIGHT = 30.0
"""Independent excesses that the prior shape counts for."""

LEAST_SHAPE = 0.01
"""A tail never ends: a negative shape would call some distance impossible."""

FRACTION_TERMS = 120
"""Terms of the continued fraction; needed where the survival is below `SMALLEST` only, where far fewer would do."""

SMALLEST = 1e-200
"""Survival below which the continued fraction takes over from `gammaincc`, well before it underflows."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The survival of a distance, for each of many streams.

    Attributes
    ----------
    shape
        `(...)` the gamma's shape.
    scale
        `(...)` the gamma's scale, unit of the distance.
    joint
        `(...)` where the Pareto tail begins, in the gamma's -ln p.
    body
        `(...)` factor on the gamma's -ln p below the joint, so that the survival there is `TAIL_SHARE`.
    tail_shape
        `(...)` shape of the Pareto tail, above zero.
    tail_scale
        `(...)` scale of the Pareto tail, in the gamma's -ln p.
    """

    shape: NDArray[np.float64]
    scale: NDArray[np.float64]
    joint: NDArray[np.float64]
    body: NDArray[np.float64]
    tail_shape: NDArray[np.float64]
    tail_scale: NDArray[np.float64]


def gamma_minus_ln_survival(shape: ArrayLike, x: ArrayLike) -> NDArray[np.float64]:
    """Take -ln of the gamma's survival, however small that is.

    Parameters
    ----------
    shape
        Broadcasts with `x`; above zero.
    x
        Distance over scale; at least zero.

    Returns
    -------
    NDArray[np.float64]
        -ln Q(shape, x), finite for every finite x.

    References
    ----------
    DLMF 8.9.2, https://dlmf.nist.gov/8.9.E2: the continued fraction of the upper incomplete gamma function.
    """
    k, t = np.broadcast_arrays(np.asarray(shape, np.float64), np.asarray(x, np.float64))
    upper = gammaincc(k, t)
    far = upper < SMALLEST
    with np.errstate(divide="ignore", invalid="ignore"):
        out: NDArray[np.float64] = np.where(t < k, -np.log1p(-gammainc(k, t)), -np.log(np.where(far, 1.0, upper)))
    if far.any():
        kf, tf = k[far], t[far]
        fraction = tf + (2 * FRACTION_TERMS + 1) - kf
        for i in range(FRACTION_TERMS, 0, -1):
            fraction = tf + (2 * i - 1) - kf - i * (i - kf) / fraction
        out[far] = tf - kf * np.log(tf) + gammaln(kf) + np.log(fraction)
    return out


def fit_tail(distances: NDArray[np.float64], independent: float) -> Tail:
    """Fit body and tail to one reference's held-out distances.

    Parameters
    ----------
    distances
        `(n,)`, above zero.
    independent
        How many of the n may be counted as independent: what overlapping windows are worth.

    Returns
    -------
    Tail
        With scalar arrays `()`.

    Raises
    ------
    ShapeError
        If there are fewer than ten distances, or all are the same.

    References
    ----------
    J. R. M. Hosking and J. R. Wallis, "Parameter and quantile estimation for the generalized Pareto distribution",
    Technometrics 29 (1987) 339-349, doi:10.1080/00401706.1987.10488243: probability-weighted moments.
    """
    ordered = np.sort(distances)
    cut = int(np.ceil(TRIM * len(ordered)))
    kept = ordered[cut : len(ordered) - cut]
    if len(ordered) < 10 or not kept[-1] > kept[0]:
        raise ShapeError(f"{len(ordered)} distances, spread too little to fit a tail; learn for longer")
    mean, variance = kept.mean(), kept.var(ddof=1)
    shape, scale = mean**2 / variance, variance / mean
    surprise = gamma_minus_ln_survival(shape, ordered / scale)
    joint = float(np.quantile(surprise, 1 - TAIL_SHARE))
    excess = surprise[surprise > joint] - joint
    first = excess.mean()
    # The mean weighted by the survival of each excess in its own ranks: (n - i) / (n - 1), ascending.
    weights = np.arange(len(excess) - 1, -1, -1) / max(len(excess) - 1, 1)
    second = (weights * excess).mean()
    # A Pareto of any positive shape has first > 2 second.
    estimate = 2 - first / max(first - 2 * second, 1e-9)
    count = independent * TAIL_SHARE
    prior = PRIOR_SHAPE + PRIOR_DOUBT / independent
    tail_shape = (count * np.clip(estimate, 0, 0.9) + PRIOR_WEIGHT * prior) / (count + PRIOR_WEIGHT)
    tail_shape = min(max(tail_shape, LEAST_SHAPE), 0.5)
    numbers = (shape, scale, joint, -np.log(TAIL_SHARE) / joint, tail_shape, first * (1 - tail_shape))
    return Tail(*(np.asarray(number, np.float64) for number in numbers))


def minus_ln_p(tail: Tail, distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take -ln of the probability that an ordinary distance is larger.

    Parameters
    ----------
    tail
        Arrays that broadcast with the last axes of `distance`.
    distance
        `(..., S)`, at least zero.

    Returns
    -------
    NDArray[np.float64]
        `(..., S)`: grows with the distance, without end, continuous at the joint.
    """
    surprise = gamma_minus_ln_survival(tail.shape, distance / tail.scale)
    above = np.maximum(surprise - tail.joint, 0)
    far = np.log1p(tail.tail_shape * above / tail.tail_scale) / tail.tail_shape
    out: NDArray[np.float64] = tail.body * np.minimum(surprise, tail.joint) + far
    return out
