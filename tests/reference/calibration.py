"""One stream's vectors, one after the other: gathered, learned from, scored. Slow and obvious."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baselines.calibration import Kind, Status
from baselines.compression import blank_reference, distance, learn, standardise
from baselines.tail import minus_ln_p


def calibrated(
    kind: Kind,
    slots: NDArray[np.int64],
    vectors: NDArray[np.float32],
    coverage: NDArray[np.float32],
    grains: NDArray[np.float64],
) -> tuple[list[int], list[float], list[float]]:
    """Status, distance and -ln p of `(K, D)` vectors; `grains` `(K, D)` is what a quantum can do to each column."""
    columns = vectors.shape[1]
    logged = np.array([kind.logged[d % len(kind.logged)] for d in range(columns)])
    reference = blank_reference(1, columns)
    rows: list[NDArray[np.float32]] = []
    status, far, surprise = [], [], []
    for slot, vector, share, grain in zip(slots, vectors, coverage, grains, strict=True):
        enough = share > 0 and share >= kind.floor
        said, away, rarity = Status.LEARNING, np.nan, np.nan
        if reference.learned[0]:
            z, there = standardise(reference, logged, vector[None, None])
            said = Status.REFUSED
            if enough and there.any() and there.sum() >= kind.floor * reference.used.sum():
                said = Status.SCORED
                found, _ = distance(reference, z, there)
                away, rarity = float(found[0, 0]), float(minus_ln_p(reference.tail, found)[0, 0])
        else:
            if enough and slot % kind.every == 0 and len(rows) < kind.needed:
                rows.append(vector)
            if (
                slot % kind.tick == 0
                and len(rows) == kind.needed
                and not learn(np.array(rows), logged, grain, kind.overlap, into=reference, stream=0)
            ):
                rows = []
        status.append(int(said))
        far.append(away)
        surprise.append(rarity)
    return status, far, surprise
