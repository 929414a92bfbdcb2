"""How well a network predicts: its error beside that of persistence, its intervals beside the truth.

In: an engine and rows as `models.series` makes them. Out: figures per slot and horizon. It judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.engines import Engine
from models.predictor import NARROWEST, WIDEST
from models.spec import Spec

SETTLING = 30
"""Frames at the beginning of rows that count for nothing, as in training: who has seen nothing cannot know."""
INTERVAL = 1.959964
"""Spreads to either side of the mean: a Gaussian's 95 %."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Figures `(C, K)`; NaN where nothing was asked.

    Attributes
    ----------
    readings
        How many predictions were held against a reading.
    relative_error
        Root mean square error over that of persistence, which says that all stays as it is.
    coverage
        Share of readings within the predicted 95 % interval.
    likelihood
        Mean of -ln of the predicted density, in the network's units: what training makes small.
    """

    readings: NDArray[np.int64]
    relative_error: NDArray[np.float64]
    coverage: NDArray[np.float64]
    likelihood: NDArray[np.float64]

    def to_json(self) -> dict[str, list[list[float | int | None]]]:
        """Write it down.

        Returns
        -------
        dict[str, list[list[float | int | None]]]
            By name, a row a slot and a column a horizon; None where nothing was asked.
        """
        parts = {
            "relative_error": self.relative_error,
            "coverage": self.coverage,
            "likelihood": self.likelihood,
        }
        told: dict[str, list[list[float | int | None]]] = {"readings": self.readings.tolist()}
        for name, figures in parts.items():
            told[name] = [[round(x, 6) if np.isfinite(x) else None for x in row] for row in figures.tolist()]
        return told


def measure(spec: Spec, engine: Engine, pieces: Iterable[NDArray[np.float32]]) -> Accuracy:
    """Run a network over rows and hold its predictions against the answers.

    Parameters
    ----------
    spec
        What the network was made for.
    engine
        That runs it.
    pieces
        Rows `(T, N, F + 2CK)`, each a stretch of its own.

    Returns
    -------
    Accuracy
        Over all of them.
    """
    shape = len(spec.slots), len(spec.horizons)
    count, wrong, still, inside, surprise = np.zeros((5, *shape))
    for rows in pieces:
        inputs = np.ascontiguousarray(rows[:, :, : spec.inputs])
        wanted, weight = np.split(rows[:, :, spec.inputs :].reshape(*rows.shape[:2], 2, *shape), 2, axis=2)
        state = engine.initial(rows.shape[1])
        # Row t is answered by what the network says after row t - 1.
        for t in range(len(rows) - 1):
            raw, state = engine.step(inputs[t], state)
            if t + 1 < SETTLING:
                continue
            mean, spread = np.split(raw.reshape(-1, 2, *shape).astype(np.float64), 2, axis=1)
            asked, reading = weight[t + 1, :, 0], wanted[t + 1, :, 0]
            spread = np.clip(spread[:, 0], NARROWEST, WIDEST)
            away = reading - mean[:, 0]
            count += asked.sum(0)
            wrong += (asked * away**2).sum(0)
            still += (asked * reading.astype(np.float64) ** 2).sum(0)
            inside += (asked * (np.abs(away) <= INTERVAL * np.exp(spread))).sum(0)
            surprise += (asked * (0.5 * (away * np.exp(-spread)) ** 2 + spread + 0.5 * np.log(2 * np.pi))).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Accuracy(count.astype(np.int64), np.sqrt(wrong / still), inside / count, surprise / count)
