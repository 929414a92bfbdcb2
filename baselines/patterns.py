"""Typical patterns: the few kinds of moments that a reference is made of.

In: the reference's compressed vectors. Out: cluster centres, how often each occurs, and which is nearest to a vector.
The same vectors give the same patterns; there is no chance in it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PATTERNS = 4
"""Typical patterns of a stream, at most."""

WINDOWS_EACH = 20
"""Reference windows that a pattern needs on average; fewer windows make fewer patterns."""

ROUNDS = 50
"""Rounds of k-means; it settles long before."""


def cluster(
    scores: NDArray[np.float64], variances: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Group a reference's vectors by k-means from the farthest-first start.

    Parameters
    ----------
    scores
        `(n, R)` along the principal directions.
    variances
        `(R,)` of each direction; distances are measured in its standard deviations.

    Returns
    -------
    tuple[NDArray[np.float64], NDArray[np.float64]]
        `(P, R)` centres, the most frequent first, and `(P,)` their shares, which sum to 1.

    References
    ----------
    T. F. Gonzalez, "Clustering to minimize the maximum intercluster distance", Theor. Comput. Sci. 38 (1985) 293-306,
    doi:10.1016/0304-3975(85)90224-5: the start.
    """
    points = scores / np.sqrt(variances)
    count = min(PATTERNS, max(1, len(points) // WINDOWS_EACH))
    # Rare moments must not become the start: farthest-first among the inner nine tenths.
    size = (points * points).sum(1)
    inner = points[size <= np.quantile(size, 0.9)]
    chosen = [inner[int(np.argmin((inner * inner).sum(1)))]]
    while len(chosen) < count:
        gaps = np.min([((inner - c) ** 2).sum(1) for c in chosen], axis=0)
        chosen.append(inner[int(np.argmax(gaps))])
    centres = np.array(chosen)
    label = np.zeros(len(points), np.intp)
    for _ in range(ROUNDS):
        label = np.argmin(((points[:, None] - centres) ** 2).sum(2), axis=1)
        moved = np.array(
            [points[label == p].mean(0) if (label == p).any() else centres[p] for p in range(len(centres))]
        )
        if np.array_equal(moved, centres):
            break
        centres = moved
    share = np.bincount(label, minlength=len(centres)) / len(points)
    order = np.argsort(-share, kind="stable")
    order = order[share[order] > 0]
    return centres[order] * np.sqrt(variances), share[order]


def nearest(
    scores: NDArray[np.float64],
    patterns: NDArray[np.float32],
    frequencies: NDArray[np.float64],
    variances: NDArray[np.float64],
) -> NDArray[np.intp]:
    """Find the typical pattern that is nearest to each vector.

    Parameters
    ----------
    scores
        `(K, S, R)` along the principal directions.
    patterns
        `(S, P, R)` their scores.
    frequencies
        `(S, P)`; 0 where there is no such pattern.
    variances
        `(S, R)` of each direction.

    Returns
    -------
    NDArray[np.intp]
        `(K, S)`.
    """
    best = np.full(scores.shape[:2], np.inf)
    out = np.zeros(scores.shape[:2], np.intp)
    for p in range(patterns.shape[1]):
        away = scores - patterns[:, p]
        away *= away
        away /= variances
        gap = np.zeros(best.shape)
        for r in range(away.shape[2]):
            gap += away[:, :, r]
        gap = np.where(frequencies[:, p] > 0, gap, np.inf)
        out = np.where(gap < best, p, out)
        best = np.minimum(gap, best)
    return out
