"""Engines without a network, small specifications and streams for the stepping predictor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.spec import SLOTS, Spec

Floats = NDArray[np.float32]

SPEC = Spec(
    rate_hz=10.0,
    horizons=(1, 3, 7),
    paces_s=(0.3, 1.0),
    scale=((0.01, 0.02, 0.03),) * len(SLOTS),
    scale_s=10.0,
    prior_s=1.0,
    bridge_s=0.5,
    warm_s=2.0,
)
"""5 frames are bridged, 20 warm a view up."""
BRIDGE, WARM = 5, 20


@dataclass(frozen=True)
class ConstantEngine:
    """Says the same of everything; its state counts the frames."""

    mean: float = 0.0
    spread: float = 0.0
    name: str = "constant"

    def initial(self, streams: int) -> Floats:
        return np.full((streams, 1, 2, 1), 100, np.float32)

    def step(self, inputs: Floats, state: Floats) -> tuple[Floats, Floats]:
        raw = np.full((len(inputs), SPEC.outputs), self.mean, np.float32)
        raw[:, SPEC.outputs // 2 :] = self.spread
        return raw, state + np.float32(1)

    def to_numpy(self, state: Floats) -> Floats:
        return state

    def from_numpy(self, state: Floats) -> Floats:
        return state


@dataclass(frozen=True)
class MixingEngine:
    """Its predictions hang on every input of its stream and on all that came before, and on no other stream."""

    name: str = "mixing"

    def initial(self, streams: int) -> Floats:
        return np.full((streams, 1, 2, 1), 0.25, np.float32)

    def step(self, inputs: Floats, state: Floats) -> tuple[Floats, Floats]:
        weight = np.cos(np.arange(inputs.shape[1], dtype=np.float32))
        now = (inputs * weight).sum(1) * np.float32(0.2)
        following = np.tanh(np.float32(0.9) * state + now[:, None, None, None])
        raw = np.sin(np.arange(1, 1 + SPEC.outputs, dtype=np.float32) * following[:, 0, 0])
        return raw, following

    def to_numpy(self, state: Floats) -> Floats:
        return state

    def from_numpy(self, state: Floats) -> Floats:
        return state


def ambient(seed: int, frames: int, pmus: int, channels: int) -> Floats:
    """`(T, S, C')` readings around 1 that wander."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(size=(frames, pmus, channels)) * 0.003, axis=0)
    noise: Floats = (1 + walk + rng.normal(size=walk.shape) * 0.01).astype(np.float32)
    return noise
