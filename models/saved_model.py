"""A TensorFlow SavedModel as an engine: the only module that imports TensorFlow, and only when one is loaded.

In: a folder with the signatures `init(batch)` and `serving_default(inputs, state)`, each giving `pred` and `state`. It
needs no Tensor2Tensor, and does not care what the state holds: an LSTM's cells, or a transformer's window.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.engines import State, require_fit
from models.errors import EngineError

Floats = NDArray[np.float32]


class SavedModelEngine:
    """Runs the network that TensorFlow exported.

    An `EngineError` says that TensorFlow is not there, or the folder no such SavedModel.

    Parameters
    ----------
    folder
        The SavedModel.
    xla
        Whether XLA compiles the step, once for each number of streams.
    """

    name = "tensorflow"

    def __init__(self, folder: Path, *, xla: bool = False) -> None:
        self._tf = _tensorflow()
        # The loaded model must outlive its signatures.
        self._loaded, self._init, self._serve, self._inputs, self._state_shape = _load(self._tf, folder)
        if xla:
            self._serve = _compiled(self._tf, self._serve)

    def initial(self, streams: int) -> State:
        """See `Engine.initial`.

        Parameters
        ----------
        streams
            How many, `N`.

        Returns
        -------
        State
            `(N, ...)`.
        """
        return self._init(batch=self._tf.constant(streams, self._tf.int32))["state"]

    def step(self, inputs: Floats, state: State) -> tuple[Floats, State]:
        """See `Engine.step`.

        Parameters
        ----------
        inputs
            `(N, F)`.
        state
            `(N, ...)`.

        Returns
        -------
        tuple[Floats, State]
            Raw predictions `(N, O)`, and the next state.
        """
        require_fit(inputs, self._inputs, tuple(state.shape), self._state_shape)
        found = self._serve(inputs=self._tf.constant(inputs), state=state)
        return found["pred"].numpy(), found["state"]

    def to_numpy(self, state: State) -> Floats:
        """See `Engine.to_numpy`.

        Parameters
        ----------
        state
            The engine's own.

        Returns
        -------
        Floats
            `(N, ...)`.
        """
        found: Floats = state.numpy()
        return found

    def from_numpy(self, state: Floats) -> State:
        """See `Engine.from_numpy`.

        Parameters
        ----------
        state
            `(N, ...)`.

        Returns
        -------
        State
            The engine's own.
        """
        return self._tf.constant(state)


Serve = Callable[..., dict[str, Any]]


def _tensorflow() -> Any:
    try:
        import tensorflow as tf  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        raise EngineError(
            "TensorFlow is not installed: pip install tensorflow, or use the numpy engine (of an LSTM)"
        ) from error
    return tf


def _load(tf: Any, folder: Path) -> tuple[Any, Serve, Serve, int, tuple[int, ...]]:
    """Return the model, its two signatures, the width of its inputs and the shape of one stream's state."""
    try:
        loaded = tf.saved_model.load(str(folder))
        signatures = loaded.signatures
    except (OSError, ValueError, AttributeError, tf.errors.OpError) as error:
        raise EngineError(f"{folder} is no SavedModel that this TensorFlow {tf.__version__} loads: {error}") from error
    for name, wanted in (("init", {"batch"}), ("serving_default", {"inputs", "state"})):
        if name not in signatures:
            raise EngineError(f"{folder} has the signatures {sorted(signatures)}; it must have init, serving_default")
        takes, gives = set(signatures[name].structured_input_signature[1]), set(signatures[name].structured_outputs)
        if takes != wanted or gives != {"pred", "state"}:
            raise EngineError(
                f"{folder}: {name} takes {sorted(takes)} and gives {sorted(gives)}; "
                f"it must take {sorted(wanted)} and give pred, state"
            )
    serve = signatures["serving_default"]
    takes = serve.structured_input_signature[1]
    inputs, state = takes["inputs"], takes["state"]
    dtypes = {tensor.dtype for tensor in (inputs, state, *serve.structured_outputs.values())}
    known = inputs.shape.rank == 2 and (state.shape.rank or 0) >= 2 and None not in (inputs.shape[1], *state.shape[1:])
    if not known or dtypes != {tf.float32}:
        raise EngineError(
            f"{folder}: serving_default takes inputs {inputs.shape} and state {state.shape}, "
            f"{sorted(d.name for d in dtypes)}; it must take float32 (streams, F) and (streams, ...)"
        )
    return loaded, signatures["init"], serve, int(inputs.shape[1]), tuple(int(n) for n in state.shape[1:])


def _compiled(tf: Any, serve: Serve) -> Serve:
    """Let XLA compile the step."""

    def run(inputs: Any, state: Any) -> dict[str, Any]:
        return serve(inputs=inputs, state=state)

    compiled: Serve = tf.function(run, jit_compile=True)
    return compiled
