"""How fast the sequence model steps: against re-running a window, against the machine's matrix product, against time.

Prints a table; with `--json` the last line is one JSON object. Two cores, for every engine that is installed (the
engines' environment, scripts/engines/environment.py, has all). `--device` measures on an accelerator. `--quick` ends
within a minute. Every row's outputs are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CORES = sorted(os.sched_getaffinity(0))[:2]
FORCED: list[str] = []
if __name__ == "__main__":
    # Two cores, whatever the machine has; our threads share the streams out, the BLAS below them has one each. This
    # must be said before NumPy, TensorFlow or JAX is loaded.
    os.sched_setaffinity(0, CORES)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
        os.environ[name] = "1"
    # A BLAS told to take itself for an older machine would measure that machine.
    FORCED = [name for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if os.environ.pop(name, None)]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402  # after the number of threads
from numpy.typing import NDArray  # noqa: E402  # with numpy

from models.artifact import open_artifact, weights_of  # noqa: E402  # after the path
from models.engines import ArrayEngine, Engine  # noqa: E402  # after the path
from models.layout import place  # noqa: E402  # after the path
from models.network import Weights, fold, step  # noqa: E402  # after the path
from models.predictor import Predictor  # noqa: E402  # after the path
from models.saved_model import SavedModelEngine  # noqa: E402  # after the path
from models.spec import SLOTS, Spec  # noqa: E402  # after the path
from scripts.timing import best_s  # noqa: E402  # after the path

Floats = NDArray[np.float32]
BUNDLED = Path(__file__).parents[2] / "models" / "bundled"
SIZES = (100, 1000, 5000)
COMPARED = 1000
"""Streams at which a step is held against its window, and against the matrix product."""
WINDOW = 250
"""Frames that are run again where nothing is remembered."""
TOLERANCE = 1e-5
RATE_HZ = 30.0
REGION = 30
"""PMUs that stand together, as under one concentrator."""


@dataclass(frozen=True)
class Contestant:
    """An engine, and the ways to run a window again with its network.

    Attributes
    ----------
    label
        Name in the table and in the JSON line.
    engine
        What steps.
    windows
        By name: takes inputs `(T, N, F)`, gives what is predicted after the last of them, `(N, O)`. The fastest counts.
    """

    label: str
    engine: Engine
    windows: dict[str, Callable[[Floats], Floats]]


def step_flops(weights: Weights) -> int:
    """Count the multiplications and additions that one stream's step cannot do without.

    Parameters
    ----------
    weights
        Of the network.

    Returns
    -------
    int
        Those of its matrix products, the linear bottom multiplied into the first cell.
    """
    layers, _, hidden = weights.state_shape
    widths = [weights.inputs] + [hidden] * (layers - 1)
    return sum(2 * (width + hidden) * 4 * hidden for width in widths) + 2 * hidden * weights.outputs


def largest(keeps_up: Callable[[int], bool], first: int, within: float) -> int:
    """Find the largest number that is still in time.

    Parameters
    ----------
    keeps_up
        Whether a number is in time; more take longer.
    first
        Where to begin.
    within
        By which share of it what is found may be too small.

    Returns
    -------
    int
        It was in time itself; 0 where not even one is.
    """
    low, high = 0, first
    while keeps_up(high):
        low, high = high, high * 5 // 4 + 1
    while not low and high > 1:
        fewer = high * 4 // 5
        low, high = (fewer, high) if keeps_up(fewer) else (0, fewer)
    while high - low > max(1, within * low):
        middle = (low + high) // 2
        low, high = (middle, high) if keeps_up(middle) else (low, middle)
    return low


def steps(engine: Engine) -> Callable[[Floats], Floats]:
    """Make a window of an engine's own steps.

    Parameters
    ----------
    engine
        That steps.

    Returns
    -------
    Callable[[Floats], Floats]
        One call a frame.
    """

    def window(inputs: Floats) -> Floats:
        state = engine.initial(inputs.shape[1])
        raw = np.empty(0, np.float32)
        for frame in inputs:
            raw, state = engine.step(frame, state)
        return raw

    return window


def numpy_contestant(weights: Weights) -> Contestant:
    """Take NumPy, on all cores.

    Parameters
    ----------
    weights
        Of the network.

    Returns
    -------
    Contestant
        Its window by steps. What else was tried was no faster, since it moves more memory: a layer's inputs multiplied
        for many frames at once, or all frames of a few streams before the next streams.
    """
    engine = ArrayEngine(weights, threads=len(CORES))
    return Contestant("numpy", engine, {"steps": steps(engine)})


def jax_contestant(weights: Weights) -> Contestant:
    """Take JAX, on its default device.

    Parameters
    ----------
    weights
        Of the network.

    Returns
    -------
    Contestant
        Its window compiled as one loop over the frames, which keeps everything on the device.
    """
    import jax  # noqa: PLC0415 - optional

    engine, folded = ArrayEngine(weights, "jax"), fold(weights)

    def loop(inputs: Any, state: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            state, _ = jax.lax.scan(lambda s, frame: (step(folded, frame, s)[1], None), state, inputs[:-1])
            return step(folded, inputs[-1], state)[0]

    compiled = jax.jit(loop)

    def window(inputs: Floats) -> Floats:
        return np.asarray(compiled(inputs, engine.initial(inputs.shape[1])))

    return Contestant("jax", engine, {"steps": steps(engine), "compiled loop": window})


def tensorflow_contestants(folder: Path) -> list[Contestant]:
    """Take TensorFlow, with and without XLA.

    Parameters
    ----------
    folder
        The SavedModel.

    Returns
    -------
    list[Contestant]
        Their windows as one graph that loops over the frames.
    """
    import tensorflow as tf  # noqa: PLC0415 - optional

    loaded = tf.saved_model.load(str(folder))
    serve = loaded.signatures["serving_default"]
    out = []
    for xla in (False, True):
        engine = SavedModelEngine(folder, xla=xla)

        def loop(inputs: Any, state: Any) -> Any:
            def body(t: Any, state: Any) -> Any:
                return t + 1, serve(inputs=inputs[t], state=state)["state"]

            last = tf.shape(inputs)[0] - 1
            _, state = tf.while_loop(lambda t, _: t < last, body, (0, state), maximum_iterations=last)
            return serve(inputs=inputs[-1], state=state)["pred"]

        compiled = tf.function(loop, jit_compile=xla)

        def window(inputs: Floats, engine: Engine = engine, compiled: Any = compiled) -> Floats:
            raw: Floats = compiled(tf.constant(inputs), engine.initial(inputs.shape[1])).numpy()
            return raw

        label = "tensorflow_xla" if xla else "tensorflow"
        out.append(Contestant(label, engine, {"steps": steps(engine), "graph loop": window}))
    return out


def export(weights: Weights, folder: Path) -> Path:
    """Write weights as a SavedModel, in TensorFlow's own operations: what training would have exported.

    Parameters
    ----------
    weights
        Of the network.
    folder
        Where.

    Returns
    -------
    Path
        The folder.
    """
    import tensorflow as tf  # noqa: PLC0415 - optional

    module, begun = tf.Module(), ArrayEngine(weights).initial(1)

    def serve(inputs: Any, state: Any) -> dict[str, Any]:
        above, cells = tf.matmul(inputs, weights.bottom_kernel) + weights.bottom_bias, []
        for layer, (kernel, bias) in enumerate(weights.cells):
            i, j, f, o = tf.split(tf.matmul(tf.concat([above, state[:, layer, 1]], 1), kernel) + bias, 4, 1)
            cell = tf.sigmoid(f + 1.0) * state[:, layer, 0] + tf.sigmoid(i) * tf.tanh(j)
            above = tf.sigmoid(o) * tf.tanh(cell)
            cells.append(tf.stack([cell, above], 1))
        return {"pred": tf.matmul(above, weights.top_kernel) + weights.top_bias, "state": tf.stack(cells, 1)}

    def init(batch: Any) -> dict[str, Any]:
        return {"pred": tf.zeros([batch, weights.outputs]), "state": tf.tile(begun, [batch, 1, 1, 1])}

    takes = {
        "inputs": tf.TensorSpec([None, weights.inputs], name="inputs"),
        "state": tf.TensorSpec([None, *weights.state_shape], name="state"),
    }
    signatures = {
        "init": tf.function(init).get_concrete_function(batch=tf.TensorSpec([], tf.int32, name="batch")),
        "serving_default": tf.function(serve).get_concrete_function(**takes),
    }
    tf.saved_model.save(module, str(folder), signatures)
    return folder


def processor_flops(least_s: float) -> float:
    """Measure the cores' own float32 matrix product, all of them at once.

    Parameters
    ----------
    least_s
        Seconds to spend at least.

    Returns
    -------
    float
        Floating-point operations a second.
    """
    rng, size, pool = np.random.default_rng(0), 1024, ThreadPoolExecutor(len(CORES))
    sets = [[rng.random((size, size), np.float32) for _ in range(3)] for _ in CORES]

    def multiply(parts: list[Floats]) -> None:
        for _ in range(4):
            np.matmul(parts[0], parts[1], out=parts[2])

    return len(CORES) * 4 * 2 * size**3 / best_s(lambda: list(pool.map(multiply, sets)), least_s)


def device_flops(library: str, least_s: float) -> float:
    """Measure the accelerator's own float32 matrix product, at float32's full precision.

    Parameters
    ----------
    library
        "jax" or "tensorflow".
    least_s
        Seconds to spend at least.

    Returns
    -------
    float
        Floating-point operations a second.
    """
    size, times = 8192, 10
    square = np.random.default_rng(0).random((size, size), np.float32) / size
    call: Callable[[], object]
    if library == "jax":
        import jax  # noqa: PLC0415 - optional

        def product(x: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return jax.lax.fori_loop(0, times, lambda _, y: x @ y, x)

        compiled, there = jax.jit(product), jax.device_put(square)

        def call() -> object:
            return compiled(there).block_until_ready()
    else:
        import tensorflow as tf  # noqa: PLC0415 - optional

        constant = tf.constant(square)

        def call() -> object:
            found = constant
            for _ in range(times):
                found = tf.matmul(constant, found)
            return found[0, 0].numpy()  # waits

    return times * 2 * size**3 / best_s(call, least_s)


def agree(one: Floats, other: Floats, what: str) -> None:
    """End the program where two ways to compute the same do not.

    Parameters
    ----------
    one, other
        `(N, O)`.
    what
        They are.

    Raises
    ------
    SystemExit
        If they differ.
    """
    worst = float(np.abs(one - other).max()) if one.shape == other.shape else float("inf")
    if not worst <= TOLERANCE:
        raise SystemExit(f"{what} differ by {worst:.1e}: nothing was measured")


def frames_in_time(spec: Spec, engine: Engine, pmus: int, frames: int) -> float:
    """Let the whole predictor run, a frame a call as in live operation.

    Parameters
    ----------
    spec
        Of the features.
    engine
        That steps.
    pmus
        How many, each with one view of all slots.
    frames
        How many frames.

    Returns
    -------
    float
        Seconds that a frame takes, on average.
    """
    layout = place(spec.slots, [spec.slots] * pmus, [f"region {s // REGION}" for s in range(pmus)])
    predictor = Predictor(spec, layout, engine)
    rng = np.random.default_rng(3)
    values = (1 + 0.01 * rng.standard_normal((10, pmus, len(spec.slots)), np.float32)).astype(np.float32)
    good = rng.random(values.shape, np.float32) > 0.01
    state = predictor.initial()
    started = 0.0
    for t in range(-5, frames):
        if t == 0:
            started = time.perf_counter()
        now = slice(t % 10, t % 10 + 1)
        state, _ = predictor.step(state, np.asarray([1000 + t]), values[now], good[now])
    return (time.perf_counter() - started) / frames


def real_time(spec: Spec, engine: Engine, frames: int, within: float) -> tuple[int, float]:
    """Find how many PMUs an engine keeps up with.

    Parameters
    ----------
    spec
        Of the features.
    engine
        That steps.
    frames
        To measure each number by.
    within
        See `largest`.

    Returns
    -------
    tuple[int, float]
        PMUs, and the seconds that a frame of them took when it was measured once more, twice as long.
    """
    due_s = 1 / spec.rate_hz
    few = 1000
    slope_s = frames_in_time(spec, engine, few, frames) / few
    pmus = largest(
        # Whatever else the machine does must not decide: two tries each.
        lambda n: any(frames_in_time(spec, engine, n, frames) < due_s for _ in range(2)),
        max(1, round(0.9 * due_s / slope_s)),
        within,
    )
    took_s = frames_in_time(spec, engine, pmus, 2 * frames) if pmus else float("inf")
    while pmus and took_s >= due_s:
        pmus = pmus * 97 // 100
        took_s = frames_in_time(spec, engine, pmus, 2 * frames)
    return pmus, took_s


def network() -> tuple[Spec, Weights, Path | None, str]:
    """Take the bundled network, or one of its size with weights drawn at random.

    Returns
    -------
    tuple[Spec, Weights, Path | None, str]
        With its SavedModel where there is one, and what to call it.
    """
    found = sorted(BUNDLED.rglob("manifest.json")) if BUNDLED.is_dir() else []
    if found:
        artifact = open_artifact(found[-1].parent)
        return artifact.spec(), weights_of(artifact), artifact.saved_model, f"the bundled network {artifact.name}"
    spec = Spec(RATE_HZ, (1, 15, 60), (0.5, 2.0), ((0.01, 0.02, 0.03),) * len(SLOTS))
    rng, hidden, layers = np.random.default_rng(1), 64, 2

    def draw(*shape: int) -> Floats:
        return (rng.standard_normal(shape, np.float32) * 0.1).astype(np.float32)

    cells = tuple((draw(2 * hidden, 4 * hidden), draw(4 * hidden)) for _ in range(layers))
    weights = Weights(draw(spec.inputs, hidden), draw(hidden), cells, draw(hidden, spec.outputs), draw(spec.outputs))
    return spec, weights, None, "a network with weights drawn at random"


def accelerators() -> dict[str, str]:
    """Name what there is besides the processor.

    Returns
    -------
    dict[str, str]
        By library that is installed and sees one.
    """
    seen = {}
    if importlib.util.find_spec("jax"):
        import jax  # noqa: PLC0415 - optional

        if jax.default_backend() != "cpu":
            seen["jax"] = str(jax.devices()[0].device_kind)
    if importlib.util.find_spec("tensorflow"):
        import tensorflow as tf  # noqa: PLC0415 - optional

        # Else an accelerator multiplies with fewer digits than float32 has.
        tf.config.experimental.enable_tensor_float_32_execution(enabled=False)
        devices = tf.config.list_physical_devices("GPU") + tf.config.list_physical_devices("TPU")
        if devices:
            seen["tensorflow"] = str(devices[0].name)
    return seen


def contestants(weights: Weights, saved_model: Path | None, libraries: set[str], folder: Path) -> Iterator[Contestant]:
    """Take every engine that can be had.

    Parameters
    ----------
    weights
        Of the network.
    saved_model
        Its SavedModel; None to write one.
    libraries
        To measure, of numpy, jax and tensorflow.
    folder
        For what is written.

    Yields
    ------
    Contestant
        One after the other.
    """
    if "numpy" in libraries:
        yield numpy_contestant(weights)
    if "tensorflow" in libraries:
        yield from tensorflow_contestants(saved_model or export(weights, folder / "saved_model"))
    if "jax" in libraries:
        yield jax_contestant(weights)


def measure(
    one: Contestant, spec: Spec, weights: Weights, flops: float, *, inputs: Floats, expected: Floats, quick: bool
) -> dict[str, float]:
    """Measure one engine and print its rows.

    Parameters
    ----------
    one
        The engine.
    spec
        Of the features.
    weights
        Of the network.
    flops
        Of the matrix product that it is held against, a second.
    inputs
        `(T, N, F)` of a window.
    expected
        `(N, O)`: what NumPy, stepping, predicts after it; this engine must too.
    quick
        Whether to end soon.

    Returns
    -------
    dict[str, float]
        For the JSON line.
    """
    rng, least_s = np.random.default_rng(4), 0.2 if quick else 2.0
    windows_s = {}
    for way, window in one.windows.items():
        agree(window(inputs), expected, f"{one.label}: a window by {way}, and the steps of NumPy,")
        windows_s[way] = best_s(lambda window=window: window(inputs), 0, 1 if quick else 4)  # type: ignore[misc]
    way = min(windows_s, key=lambda each: windows_s[each])
    figures = {}
    for streams in SIZES:
        frame = rng.standard_normal((streams, spec.inputs), np.float32)
        _, state = one.engine.step(frame, one.engine.initial(streams))
        took_s = best_s(lambda frame=frame, state=state: one.engine.step(frame, state), least_s)  # type: ignore[misc]
        share = streams * step_flops(weights) / took_s / flops
        line = f"{one.label:15s}{streams:8d}{took_s * 1e3:10.3f} ms{share:10.0%}"
        figures[f"step_ms_{streams}"] = took_s * 1e3
        if streams == COMPARED:
            figures |= {"share_of_gemm": share, "ratio_window": windows_s[way] / took_s}
            line += f"{windows_s[way] * 1e3:12.0f} ms{windows_s[way] / took_s:8.0f}  {way}"
        print(line, flush=True)
    pmus, took_s = real_time(spec, one.engine, 10 if quick else 60, 0.1 if quick else 0.02)
    print(f"{one.label:15s}{pmus:8d} PMUs keep up with {spec.rate_hz:.0f}/s: {took_s * 1e3:.1f} ms a frame", flush=True)
    return figures | {"window_ms": windows_s[way] * 1e3, "pmus_real_time": pmus}


def main() -> None:
    """Measure, print a table, and on request the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="make the last line one JSON object")
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--device", action="store_true", help="measure on an accelerator")
    arguments = parser.parse_args()
    if not arguments.device:
        os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1"}

    there = {name for name in ("jax", "tensorflow") if importlib.util.find_spec(name)}
    devices = accelerators() if arguments.device else {}
    libraries = set(devices) if arguments.device else there | {"numpy"}
    spec, weights, saved_model, called = network()
    layers, _, hidden = weights.state_shape
    print(f"stepping predictor: {called}, {weights.inputs} inputs, {layers} x {hidden}, {weights.outputs} outputs")
    if FORCED:
        print(f"measured without {' and '.join(FORCED)}, which the environment had set")
    for missing in sorted({"jax", "tensorflow"} - there):
        print(f"not measured: {missing} is not installed here (scripts/engines/environment.py makes an environment)")
    if arguments.device and not devices:
        print("not measured: no accelerator that JAX or TensorFlow, as installed here, can see")
    figures: dict[str, Any] = {}
    if libraries:
        least_s = 1.0 if arguments.quick else 3.0
        flops = {name: device_flops(name, least_s) for name in devices} or {"cores": processor_flops(least_s)}
        print(f"{'engine':15s}{'streams':>8s}{'step':>13s}{'of product':>10s}{'window':>15s}{'ratio':>8s}  window by")
        inputs = np.random.default_rng(2).standard_normal((WINDOW, COMPARED, spec.inputs), np.float32)
        expected = steps(ArrayEngine(weights, threads=len(CORES)))(inputs)
        with tempfile.TemporaryDirectory() as folder:
            for one in contestants(weights, saved_model, libraries, Path(folder)):
                where = one.label.removesuffix("_xla") if devices else "cores"
                if not devices:  # what else the machine does changes; what it can do does not
                    flops[where] = max(flops[where], processor_flops(least_s / 2))
                found = measure(
                    one, spec, weights, flops[where], inputs=inputs, expected=expected, quick=arguments.quick
                )
                figures[one.label] = {key: round(value, 4) for key, value in found.items()}
        for where, rate in flops.items():
            by = f"{devices[where]} by {where}" if devices else f"{len(CORES)} cores by numpy {np.__version__}"
            print(f"float32 matrix product of {by}: {rate / 1e9:.0f} GFLOP/s")
        figures["gemm_gflops"] = {where: round(rate / 1e9, 1) for where, rate in flops.items()}
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
