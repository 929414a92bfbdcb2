"""The obvious LSTM: one number at a time, in float64, from the equations. Slow; the oracle of `models.network`."""

import math

import numpy as np
from numpy.typing import NDArray

from models.network import Weights

Doubles = NDArray[np.float64]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def linear(x: list[float], kernel: NDArray[np.floating], bias: NDArray[np.floating]) -> list[float]:
    return [
        sum(value * float(kernel[row, column]) for row, value in enumerate(x)) + float(bias[column])
        for column in range(len(bias))
    ]


def step_embedded(weights: Weights, embedding: list[float], state: Doubles) -> tuple[list[float], Doubles]:
    """One stream: what the cells are fed `(H,)`, state `(L, 2, H)`."""
    out, following = embedding, state.copy()
    for layer, (kernel, bias) in enumerate(weights.cells):
        memory, last = state[layer, 0].tolist(), state[layer, 1].tolist()
        gates = linear(out + last, kernel, bias)
        hidden, out = len(last), []
        for unit in range(hidden):
            i, j, f, o = (gates[gate * hidden + unit] for gate in range(4))
            c = sigmoid(f + 1.0) * memory[unit] + sigmoid(i) * math.tanh(j)
            out.append(sigmoid(o) * math.tanh(c))
            following[layer, :, unit] = c, out[-1]
    return linear(out, weights.top_kernel, weights.top_bias), following


def step_each(weights: Weights, inputs: NDArray[np.floating], state: NDArray[np.floating]) -> tuple[Doubles, Doubles]:
    """`(N, F)` and `(N, L, 2, H)` to `(N, O)` and `(N, L, 2, H)`."""
    raw, following = [], []
    for frame, stream in zip(inputs, state, strict=True):
        embedding = linear(frame.tolist(), weights.bottom_kernel, weights.bottom_bias)
        predicted, after = step_embedded(weights, embedding, stream.astype(np.float64))
        raw.append(predicted)
        following.append(after)
    return np.array(raw), np.array(following)


def first_state_of(weights: Weights) -> Doubles:
    """`(L, 2, H)`: a zero embedding fed to a zero state."""
    return step_embedded(weights, [0.0] * weights.state_shape[2], np.zeros(weights.state_shape))[1]
