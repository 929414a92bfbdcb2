"""One channel's correction at one horizon, in plain float64 loops: every moment kept, every weight solved for anew."""

from __future__ import annotations

import numpy as np

from models.adaptation import EVERY, MOST, OWN_S, USUAL, WIDTH_S


class PlainCorrection:
    """Remembers all that was said and learns from it as it becomes known."""

    def __init__(self, terms: int, horizon: int, rate_hz: float, scale_s: float) -> None:
        self.horizon, self.rate_hz = horizon, rate_hz / EVERY
        self.keep = 1 - 1 / (scale_s * self.rate_hz)
        self.weight = np.eye(terms)[0]
        self.gram, self.moment = np.zeros((terms, terms)), np.zeros(terms)
        self.square = 1.0
        self.said: dict[int, tuple[np.ndarray, float, float]] = {}
        self.second = round(rate_hz)

    def learn(self, slot: int, away: float, spread: float) -> None:
        before = slot - self.horizon
        if before % EVERY == 0 and before in self.said and not np.isnan(away):
            terms, corrected, unit = self.said[before]
            z = away / spread
            count = 1.0 if abs(z) < USUAL else (USUAL / z) ** 2
            self.gram = self.keep * self.gram + count * np.outer(terms, terms)
            self.moment = self.keep * self.moment + count * terms * (corrected + away / unit)
            self.square += (min(z * z, USUAL**2) * self.square - self.square) / (WIDTH_S * self.rate_hz)
        if slot % self.second == 0:
            prior = OWN_S * self.rate_hz
            pull = prior * np.eye(len(self.weight))
            self.weight = np.clip(np.linalg.solve(self.gram + pull, self.moment + pull[0]), -MOST, MOST)

    def say(self, slot: int, terms: np.ndarray, unit: float) -> float:
        corrected = float(terms @ self.weight)
        self.said[slot] = (terms, corrected, unit)
        return corrected
