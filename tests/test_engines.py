"""Every engine gives what the equations give, from the same weights; what they refuse, and that threads change no bit.

JAX and TensorFlow are optional: their tests run where the package is installed.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import engines
from models.engines import ArrayEngine, Engine
from models.errors import EngineError, ShapeError
from models.network import Weights, fold, step
from models.saved_model import SavedModelEngine
from tests.reference.lstm import first_state_of, step_each
from tests.reference.small_network import frames, small_weights

JAX = importlib.util.find_spec("jax") is not None
TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
needs_jax = pytest.mark.skipif(
    not JAX, reason="JAX is not installed: these run in .venv-engines (test_engines_environment.py)"
)
needs_tensorflow = pytest.mark.skipif(
    not TENSORFLOW, reason="TensorFlow is not installed: these run in .venv-engines (test_engines_environment.py)"
)

Make = Callable[[Weights, Path], Engine]


def export_lstm(weights: Weights, folder: Path) -> Path:
    """What Tensor2Tensor's graph does, written in TensorFlow's own operations, under the signatures of an export."""
    import tensorflow as tf  # noqa: PLC0415 - optional

    module = tf.Module()
    module.variables_of_it = [tf.Variable(part) for part in (weights.bottom_kernel, weights.bottom_bias)]

    def core(embedding: Any, state: Any) -> dict[str, Any]:
        out, cells = embedding, []
        for layer, (kernel, bias) in enumerate(weights.cells):
            gates = tf.matmul(tf.concat([out, state[:, layer, 1]], 1), kernel) + bias
            i, j, f, o = tf.split(gates, 4, 1)
            c = tf.sigmoid(f + 1.0) * state[:, layer, 0] + tf.sigmoid(i) * tf.tanh(j)
            out = tf.sigmoid(o) * tf.tanh(c)
            cells.append(tf.stack([c, out], 1))
        return {"pred": tf.matmul(out, weights.top_kernel) + weights.top_bias, "state": tf.stack(cells, 1)}

    def init(batch: Any) -> dict[str, Any]:
        hidden = weights.state_shape[-1]
        return core(tf.zeros([batch, hidden]), tf.zeros([batch, *weights.state_shape]))

    def serve(inputs: Any, state: Any) -> dict[str, Any]:
        kernel, bias = module.variables_of_it
        return core(tf.matmul(inputs, kernel) + bias, state)

    takes = (
        tf.TensorSpec([None, weights.inputs], name="inputs"),
        tf.TensorSpec([None, *weights.state_shape], name="state"),
    )
    return export(module, folder, init, serve, takes)


def export_window(folder: Path, *, state_name: str = "state", known: bool = True) -> Path:
    """A network without memory, that keeps the newest four frames as its state and predicts their sum."""
    import tensorflow as tf  # noqa: PLC0415 - optional

    def init(batch: Any) -> dict[str, Any]:
        return {"pred": tf.zeros([batch, 3]), "state": tf.zeros([batch, 4, 3])}

    def serve(inputs: Any, **window: Any) -> dict[str, Any]:
        newest = tf.concat([window[state_name][:, 1:], inputs[:, None]], 1)
        return {"pred": tf.reduce_sum(newest, 1), "state": newest}

    takes = tf.TensorSpec([None, 3], name="inputs"), tf.TensorSpec([None, 4 if known else None, 3], name=state_name)
    return export(tf.Module(), folder, init, serve, takes)


def export(module: Any, folder: Path, init: Any, serve: Any, takes: tuple[Any, Any]) -> Path:
    import tensorflow as tf  # noqa: PLC0415 - optional

    batch = tf.TensorSpec([], tf.int32, name="batch")
    signatures = {
        "init": tf.function(init).get_concrete_function(batch=batch),
        "serving_default": tf.function(serve).get_concrete_function(**{each.name: each for each in takes}),
    }
    tf.saved_model.save(module, str(folder), signatures)
    return folder


def numpy_engine(weights: Weights, _: Path) -> Engine:
    return ArrayEngine(weights)


def numpy_threads(weights: Weights, _: Path) -> Engine:
    return ArrayEngine(weights, threads=2)


def jax_engine(weights: Weights, _: Path) -> Engine:
    return ArrayEngine(weights, "jax")


def tensorflow_engine(weights: Weights, folder: Path) -> Engine:
    return SavedModelEngine(export_lstm(weights, folder))


def tensorflow_xla(weights: Weights, folder: Path) -> Engine:
    return SavedModelEngine(export_lstm(weights, folder), xla=True)


every_engine = pytest.mark.parametrize(
    "make",
    [
        numpy_engine,
        numpy_threads,
        pytest.param(jax_engine, marks=needs_jax),
        pytest.param(tensorflow_engine, marks=needs_tensorflow),
        pytest.param(tensorflow_xla, marks=needs_tensorflow),
    ],
)


@every_engine
def test_an_engine_gives_what_the_equations_give(make: Make, tmp_path: Path) -> None:
    weights = small_weights(1, scale=0.3)
    engine = make(weights, tmp_path)
    state = engine.initial(3)
    exact = np.stack([first_state_of(weights)] * 3)
    np.testing.assert_allclose(engine.to_numpy(state), exact, rtol=0, atol=1e-6)
    worst = 0.0
    for frame in 2 * frames(2, 200, 3, weights.inputs):
        raw, state = engine.step(frame, state)
        expected, exact = step_each(weights, frame, exact)
        assert isinstance(raw, np.ndarray)
        assert raw.dtype == np.float32
        worst = max(worst, np.abs(raw - expected).max(), np.abs(engine.to_numpy(state) - exact).max())
    assert worst < 1e-5


@every_engine
def test_a_state_goes_to_the_host_and_back_and_may_be_stepped_twice(make: Make, tmp_path: Path) -> None:
    weights = small_weights(3)
    engine = make(weights, tmp_path)
    frame = frames(4, 2, weights.inputs)
    _, state = engine.step(frame, engine.initial(2))
    there = engine.to_numpy(state)
    assert there.shape == (2, *weights.state_shape)
    assert there.dtype == np.float32
    raw, _ = engine.step(frame, state)
    again, _ = engine.step(frame, engine.from_numpy(there.copy()))
    np.testing.assert_array_equal(raw, again)
    np.testing.assert_array_equal(there, engine.to_numpy(state))


@every_engine
def test_what_does_not_fit_the_network_is_refused(make: Make, tmp_path: Path) -> None:
    weights = small_weights(5)
    engine = make(weights, tmp_path)
    state, frame = engine.initial(2), frames(6, 2, weights.inputs)
    with pytest.raises(ShapeError, match=r"takes float32 \(streams, 5\)"):
        engine.step(frame[:, :4], state)
    with pytest.raises(ShapeError, match="float64"):
        engine.step(frame.astype(np.float64), state)
    with pytest.raises(ShapeError, match=r"must be \(1, 2, 2, 4\)"):
        engine.step(frame[:1], state)
    with pytest.raises(ShapeError, match="the state is"):
        engine.step(frame, engine.from_numpy(np.zeros((2, 2, 2, 5), np.float32)))


@every_engine
def test_streams_may_come_and_go(make: Make, tmp_path: Path) -> None:
    weights = small_weights(7)
    engine = make(weights, tmp_path)
    for streams in (1, 5, 2):
        raw, state = engine.step(frames(8, streams, weights.inputs), engine.initial(streams))
        assert raw.shape == (streams, weights.outputs)
        assert engine.to_numpy(state).shape == (streams, *weights.state_shape)


@pytest.mark.parametrize("streams", [1, engines.TILE, engines.TILE + 1, 3 * engines.TILE + 70])
def test_threads_change_no_bit(streams: int) -> None:
    weights = small_weights(9, inputs=42, hidden=64, outputs=42, scale=0.2)
    one, three = ArrayEngine(weights), ArrayEngine(weights, threads=3)
    state, other = one.initial(streams), three.initial(streams)
    for frame in frames(10, 3, streams, weights.inputs):
        raw, state = one.step(frame, state)
        found, other = three.step(frame, other)
        np.testing.assert_array_equal(raw, found)
        np.testing.assert_array_equal(state, other)


def test_tiles_meet_without_a_gap() -> None:
    weights = small_weights(11)
    engine, streams = ArrayEngine(weights), 2 * engines.TILE + 3
    frame, state = frames(12, streams, weights.inputs), frames(13, streams, *weights.state_shape)
    raw, following = engine.step(frame, state)
    edges = [0, engines.TILE - 1, engines.TILE, 2 * engines.TILE - 1, 2 * engines.TILE, streams - 1]
    expected_raw, expected_state = step_each(weights, frame[edges], state[edges])
    np.testing.assert_allclose(raw[edges], expected_raw, rtol=0, atol=1e-5)
    np.testing.assert_allclose(following[edges], expected_state, rtol=0, atol=1e-5)


@given(
    seed=st.integers(0, 10**6),
    streams=st.sampled_from([0, 1, 2, 17, engines.TILE - 1, engines.TILE, engines.TILE + 1, 3 * engines.TILE]),
    inputs=st.integers(1, 50),
    hidden=st.integers(1, 40),
    layers=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_the_tiles_of_numpy_do_what_the_step_does(
    *, seed: int, streams: int, inputs: int, hidden: int, layers: int
) -> None:
    weights = small_weights(seed, inputs=inputs, hidden=hidden, layers=layers, scale=0.3)
    engine, folded = ArrayEngine(weights), fold(weights)
    state = same = frames(seed + 1, streams, *weights.state_shape)
    for frame in frames(seed + 2, 3, streams, inputs):
        raw, state = engine.step(frame, state)
        expected, same = step(folded, frame, same)
        np.testing.assert_allclose(raw, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(state, same, rtol=0, atol=1e-5)


def test_one_engine_serves_callers_side_by_side() -> None:
    weights = small_weights(20, inputs=42, hidden=64, outputs=42, scale=0.2)
    engine = ArrayEngine(weights)
    fed = frames(21, 40, 300, weights.inputs)
    alone = [engine.step(frame, engine.initial(300))[0] for frame in fed]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda frame: engine.step(frame, engine.initial(300))[0], fed))
    np.testing.assert_array_equal(together, alone)


@needs_jax
def test_jax_keeps_the_state_on_its_device() -> None:
    import jax  # noqa: PLC0415 - optional

    weights = small_weights(14)
    engine = ArrayEngine(weights, "jax")
    _, state = engine.step(frames(15, 2, weights.inputs), engine.initial(2))
    assert isinstance(state, jax.Array)


@pytest.mark.skipif(JAX, reason="JAX is installed: nothing to refuse")
def test_without_jax_its_engine_says_how_to_get_it() -> None:
    with pytest.raises(EngineError, match=r"gridsense-pmu\[jax\]"):
        ArrayEngine(small_weights(), "jax")


@pytest.mark.skipif(TENSORFLOW, reason="TensorFlow is installed: nothing to refuse")
def test_without_tensorflow_its_engine_says_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="TensorFlow is not installed"):
        SavedModelEngine(tmp_path)


def test_naming_the_engines_loads_neither_jax_nor_tensorflow() -> None:
    program = "import sys, models.engines, models.saved_model; assert not {'jax', 'tensorflow'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@needs_tensorflow
@pytest.mark.parametrize("xla", [False, True])
def test_a_saved_models_state_may_have_any_shape(tmp_path: Path, *, xla: bool) -> None:
    engine = SavedModelEngine(export_window(tmp_path), xla=xla)
    state = engine.initial(2)
    assert engine.to_numpy(state).shape == (2, 4, 3)
    fed = frames(16, 6, 2, 3)
    for frame in fed:
        raw, state = engine.step(frame, state)
    np.testing.assert_allclose(raw, fed[-4:].sum(axis=0), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(engine.to_numpy(state), fed[-4:].swapaxes(0, 1))


@needs_tensorflow
def test_a_saved_model_with_other_signatures_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf  # noqa: PLC0415 - optional

    with pytest.raises(EngineError, match="no SavedModel"):
        SavedModelEngine(tmp_path / "nowhere")
    tf.saved_model.save(tf.Module(), str(tmp_path / "none"))
    with pytest.raises(EngineError, match="must have init, serving_default"):
        SavedModelEngine(tmp_path / "none")
    with pytest.raises(EngineError, match=r"it must take .*'inputs', 'state'"):
        SavedModelEngine(export_window(tmp_path / "named", state_name="window"))
    with pytest.raises(EngineError, match="state"):
        SavedModelEngine(export_window(tmp_path / "unknown", known=False))
    damaged = export_window(tmp_path / "damaged")
    (damaged / "saved_model.pb").write_bytes(b"\xff" * 100)
    with pytest.raises(EngineError, match="no SavedModel"):
        SavedModelEngine(damaged)
