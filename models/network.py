"""One step of the network: inputs and state in, raw predictions and the next state out.

Tensor2Tensor's `lstm_seq2seq` without inputs: a linear layer, a stack of LSTM cells, a linear layer. Written in the
Python array API standard, so that NumPy runs it here and JAX compiles it elsewhere. It knows neither features nor
horizons, and keeps nothing between calls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

Floats = NDArray[np.float32]

INPUT, CANDIDATE, FORGET, OUTPUT = range(4)
"""TensorFlow's order of a cell's gates: i, j, f, o."""

FORGET_BIAS = 1.0
"""TensorFlow's cell adds it to the forget gate; it is no part of the stored bias."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The network as it was trained, float32.

    Attributes
    ----------
    bottom_kernel, bottom_bias
        `(F, H)` and `(H,)`: from inputs to the first cell.
    cells
        `L` times a kernel `(2H, 4H)`, its rows the cell's inputs and then its last outputs, and a bias `(4H,)`.
    top_kernel, top_bias
        `(H, O)` and `(O,)`: from the last cell to the raw predictions.
    """

    bottom_kernel: Floats
    bottom_bias: Floats
    cells: tuple[tuple[Floats, Floats], ...]
    top_kernel: Floats
    top_bias: Floats

    @property
    def inputs(self) -> int:
        """`F`."""
        return int(self.bottom_kernel.shape[0])

    @property
    def outputs(self) -> int:
        """`O`."""
        return int(self.top_bias.shape[0])

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """`(L, 2, H)`: what one stream remembers, of each cell its memory c and its output h."""
        return len(self.cells), 2, int(self.bottom_bias.shape[0])


@dataclass(frozen=True, slots=True)
class Folded:
    """The same network in fewer operations: what `step` computes with, in any array library.

    The linear bottom is multiplied into the first cell. A sigmoid is a tanh, s(x) = (1 + tanh(x / 2)) / 2, so the
    halves and the forget bias stand in the kernels, and one tanh does all four gates.

    Attributes
    ----------
    cells
        `L` kernels `(4, X + H + 1, H)`, one matrix a gate; `X` is `F` for the first cell, then `H`. The last row is
        the bias.
    top
        `(H + 1, O)`, the last row its bias.
    """

    cells: tuple[Any, ...]
    top: Any


def fold(weights: Weights) -> Folded:
    """Prepare weights for `step`, once.

    Parameters
    ----------
    weights
        As trained.

    Returns
    -------
    Folded
        NumPy arrays in float32, computed in float64.
    """
    hidden = weights.state_shape[-1]
    halves = np.full((4, 1, 1), 0.5)
    halves[CANDIDATE] = 1.0
    cells = []
    for layer, (kernel, bias) in enumerate(weights.cells):
        rows = np.concatenate([kernel, bias[None]]).astype(np.float64)
        rows[-1, FORGET * hidden : (FORGET + 1) * hidden] += FORGET_BIAS
        if layer == 0:
            above = rows[:hidden]
            rows[-1] += weights.bottom_bias.astype(np.float64) @ above
            rows = np.concatenate([weights.bottom_kernel.astype(np.float64) @ above, rows[hidden:]])
        gates = np.stack(np.split(rows, 4, axis=1)) * halves
        cells.append(gates.astype(np.float32))
    return Folded(tuple(cells), np.concatenate([weights.top_kernel, weights.top_bias[None]]).astype(np.float32))


def step(weights: Folded, inputs: Any, state: Any) -> tuple[Any, Any]:
    """Take one frame of every stream in.

    Parameters
    ----------
    weights
        From `fold`, in the library of the inputs.
    inputs
        `(N, F)` float32.
    state
        `(N, L, 2, H)` float32: of each cell c, then h. It is not changed.

    Returns
    -------
    tuple[Any, Any]
        Raw predictions `(N, O)`, and the next state. The same `N` gives the same bits; another `N` may round
        otherwise, as matrix products do.

    References
    ----------
    Hochreiter and Schmidhuber, Long Short-Term Memory, 1997, doi:10.1162/neco.1997.9.8.1735; with the forget gate of
    Gers et al., 2000, doi:10.1162/089976600300015015.
    """
    xp = array_namespace(inputs, state)
    ones = xp.ones_like(inputs[:, :1])
    out, cells = inputs, []
    for layer, kernel in enumerate(weights.cells):
        # One product a gate, not one for all: so each gate's values lie together, which halves what follows.
        gates = xp.tanh(xp.concat([out, state[:, layer, 1, :], ones], axis=1) @ kernel)
        take, candidate, keep, show = xp.unstack(gates)
        cell = ((keep + 1) * state[:, layer, 0, :] + (take + 1) * candidate) * 0.5
        out = (show + 1) * xp.tanh(cell) * 0.5
        cells += [cell, out]
    raw = xp.concat([out, ones], axis=1) @ weights.top
    return raw, xp.reshape(xp.stack(cells, axis=1), state.shape)


def first_state(weights: Weights) -> Floats:
    """Find the state in which a stream begins.

    Tensor2Tensor shifts its sequences by one: its first tick feeds a zero embedding, which is not what a zero frame
    becomes (that has the bottom's bias).

    Parameters
    ----------
    weights
        As trained.

    Returns
    -------
    Floats
        `(L, 2, H)`: after that tick.
    """
    no_bottom = replace(
        weights, bottom_kernel=np.zeros_like(weights.bottom_kernel), bottom_bias=np.zeros_like(weights.bottom_bias)
    )
    nothing, empty = np.zeros((1, weights.inputs), np.float32), np.zeros((1, *weights.state_shape), np.float32)
    _, state = step(fold(no_bottom), nothing, empty)
    first: Floats = state[0]
    return first
