"""Networks of any size with weights drawn by a seed, and frames for them."""

import numpy as np
from numpy.typing import NDArray

from models.network import Weights


def small_weights(
    seed: int = 0, *, inputs: int = 5, hidden: int = 4, layers: int = 2, outputs: int = 6, scale: float = 0.5
) -> Weights:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> NDArray[np.float32]:
        return (rng.normal(size=shape) * scale).astype(np.float32)

    return Weights(
        bottom_kernel=draw(inputs, hidden),
        bottom_bias=draw(hidden),
        cells=tuple((draw(2 * hidden, 4 * hidden), draw(4 * hidden)) for _ in range(layers)),
        top_kernel=draw(hidden, outputs),
        top_bias=draw(outputs),
    )


def frames(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
