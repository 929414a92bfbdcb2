"""What runs a network: inputs and state in, raw predictions and state out, one frame of all streams a call.

`Engine` is the port; here is the engine for the array libraries, NumPy and (where it is installed) JAX. TensorFlow's
is in `models.saved_model`. An engine keeps no stream's state: that travels with the call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.errors import EngineError, ShapeError
from models.network import Folded, Weights, first_state, fold, step

Floats = NDArray[np.float32]
State = Any
"""An engine's own array, one row a stream: `Engine.to_numpy` shows it."""

TILE = 256
"""Streams that NumPy steps at a time: few enough for the L2 cache, enough to make a call worth its while."""


class Engine(Protocol):
    """Runs one network."""

    @property
    def name(self) -> str:
        """What runs it: numpy, jax, tensorflow."""

    def initial(self, streams: int) -> State:
        """Begin streams.

        Parameters
        ----------
        streams
            How many, `N`.

        Returns
        -------
        State
            Before their first frame.
        """

    def step(self, inputs: Floats, state: State) -> tuple[Floats, State]:
        """Take one frame of every stream in.

        Parameters
        ----------
        inputs
            `(N, F)`.
        state
            Of these `N` streams. It stays as it is, and may be stepped again.

        Returns
        -------
        tuple[Floats, State]
            Raw predictions `(N, O)`, not to be written to, and the next state. A `ShapeError` says that inputs and
            state do not fit the network, or each other.
        """

    def to_numpy(self, state: State) -> Floats:
        """Bring a state to the host.

        Parameters
        ----------
        state
            The engine's own.

        Returns
        -------
        Floats
            One row a stream: `(N, L, 2, H)` for an LSTM. Not to be written to: it may be the state itself.
        """

    def from_numpy(self, state: Floats) -> State:
        """Take a state up.

        Parameters
        ----------
        state
            From `to_numpy` of any engine of this network. It may be kept: write to a copy.

        Returns
        -------
        State
            The engine's own.
        """


class ArrayEngine:
    """Runs an LSTM in NumPy, or compiled by JAX with the state on its device.

    An `EngineError` says that JAX is asked for and not there.

    Parameters
    ----------
    weights
        As trained.
    namespace
        The array library.
    threads
        How many threads NumPy shares its tiles out to; the bits are the same for any number. JAX has its own.
    """

    def __init__(self, weights: Weights, namespace: Literal["numpy", "jax"] = "numpy", *, threads: int = 1) -> None:
        self.name: str = namespace
        self._inputs, self._state_shape = weights.inputs, weights.state_shape
        self._first = first_state(weights)
        self._take_up, self._run = _jax(fold(weights)) if namespace == "jax" else _numpy(fold(weights), threads)

    def initial(self, streams: int) -> State:
        """See `Engine.initial`.

        Parameters
        ----------
        streams
            How many, `N`.

        Returns
        -------
        State
            `(N, L, 2, H)`.
        """
        return self._take_up(np.tile(self._first, (streams, 1, 1, 1)))

    def step(self, inputs: Floats, state: State) -> tuple[Floats, State]:
        """See `Engine.step`.

        Parameters
        ----------
        inputs
            `(N, F)`.
        state
            `(N, L, 2, H)`.

        Returns
        -------
        tuple[Floats, State]
            Raw predictions `(N, O)`, and the next state.
        """
        require_fit(inputs, self._inputs, state.shape, self._state_shape)
        raw, state = self._run(self._take_up(inputs), state)
        return np.asarray(raw), state

    def to_numpy(self, state: State) -> Floats:
        """See `Engine.to_numpy`.

        Parameters
        ----------
        state
            The engine's own.

        Returns
        -------
        Floats
            `(N, L, 2, H)`.
        """
        return np.asarray(state)

    def from_numpy(self, state: Floats) -> State:
        """See `Engine.from_numpy`.

        Parameters
        ----------
        state
            `(N, L, 2, H)`.

        Returns
        -------
        State
            The engine's own.
        """
        return self._take_up(state)


def require_fit(inputs: Floats, width: int, state: tuple[int, ...], stream: tuple[int, ...]) -> None:
    """Refuse what a network cannot step.

    Parameters
    ----------
    inputs
        Meant to be `(N, F)` float32.
    width
        `F` of the network.
    state
        Shape of the state.
    stream
        Shape of one stream's state in this network.

    Raises
    ------
    ShapeError
        If they do not fit.
    """
    if inputs.ndim != 2 or inputs.shape[1] != width or inputs.dtype != np.float32:
        raise ShapeError(f"inputs are {inputs.dtype} {inputs.shape}; the network takes float32 (streams, {width})")
    if tuple(state) != (len(inputs), *stream):
        raise ShapeError(f"the state is {tuple(state)}; for these inputs it must be {(len(inputs), *stream)}")


TakeUp = Callable[[Floats], State]
Run = Callable[[State, State], tuple[State, State]]


class _Tile:
    """`models.network.step` in memory that is kept: NumPy may spend more time on fresh memory than on arithmetic."""

    def __init__(self, weights: Folded) -> None:
        self._weights, self._hidden = weights, weights.top.shape[0] - 1
        # What each product is fed; its last column stays one, for the bias.
        self._fed = [np.ones((TILE, kernel.shape[-2]), np.float32) for kernel in (*weights.cells, weights.top)]
        self._gates = np.empty((4, TILE, self._hidden), np.float32)
        self._cell = np.empty((TILE, self._hidden), np.float32)

    def step(self, inputs: Floats, state: Floats, raw: Floats, following: Floats) -> None:
        """Take one frame of at most `TILE` streams in, into `raw` and `following`."""
        streams = len(inputs)
        fed, gates, cell = [each[:streams] for each in self._fed], self._gates[:, :streams], self._cell[:streams]
        take, candidate, keep, show = gates
        fed[0][:, : inputs.shape[1]] = inputs
        for layer, kernel in enumerate(self._weights.cells):
            fed[layer][:, -1 - self._hidden : -1] = state[:, layer, 1]
            np.matmul(fed[layer], kernel, out=gates)
            np.tanh(gates, out=gates)
            cell[...] = state[:, layer, 0]
            keep += 1
            cell *= keep
            take += 1
            take *= candidate
            cell += take
            cell *= 0.5
            following[:, layer, 0] = cell
            np.tanh(cell, out=cell)
            show += 1
            show *= cell
            show *= 0.5
            following[:, layer, 1] = show
            fed[layer + 1][:, : self._hidden] = show
        np.matmul(fed[-1], self._weights.top, out=raw)


def _numpy(weights: Folded, threads: int) -> tuple[TakeUp, Run]:
    """Tiles of streams, one after the other or side by side: their bounds do not depend on the threads."""
    pool = ThreadPoolExecutor(threads, "network") if threads > 1 else None
    own = threading.local()

    def run(inputs: Floats, state: Floats) -> tuple[Floats, Floats]:
        raw, following = np.empty((len(inputs), weights.top.shape[1]), np.float32), np.empty_like(state)

        def step_tile(first: int) -> None:
            if not hasattr(own, "tile"):
                own.tile = _Tile(weights)
            rows = slice(first, first + TILE)
            own.tile.step(inputs[rows], state[rows], raw[rows], following[rows])

        firsts = range(0, len(inputs), TILE)
        for _ in pool.map(step_tile, firsts) if pool and len(firsts) > 1 else map(step_tile, firsts):
            pass
        return raw, following

    return np.asarray, run


def _jax(weights: Folded) -> tuple[TakeUp, Run]:
    """Compile once for each number of streams."""
    try:
        import jax  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        raise EngineError("JAX is not installed: pip install 'gridsense-pmu[jax]', or use the numpy engine") from error
    xp = jax.numpy
    on_device = Folded(tuple(xp.asarray(kernel) for kernel in weights.cells), xp.asarray(weights.top))

    def run(inputs: State, state: State) -> tuple[State, State]:
        # Else a GPU or TPU multiplies with fewer digits than float32 has.
        with jax.default_matmul_precision("highest"):
            return step(on_device, inputs, state)

    compiled: Run = jax.jit(run)
    return xp.asarray, compiled
