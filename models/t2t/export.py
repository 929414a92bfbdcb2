"""Writes what serves a trained network without Tensor2Tensor, and proves that it is the same.

In: the best checkpoint of a run that has ended, and its test records. Out: a SavedModel that steps (state in, state
out), the weights as arrays, test vectors that Tensor2Tensor's own graph made, and what it was trained with. A step that
differs from the graph is refused. It does not train.

Both networks step behind the same signatures, `init(batch)` and `serving_default(inputs, state)`, each giving `pred`
and `state`:

- The LSTM's state is `(N, L, 2, H)`, of each cell its c and h. A step runs Tensor2Tensor's cells once. `pred` after any
  number of frames is what the graph, run over all of them, gives at the position after the last.
- The transformer has none: its state is `(N, REACH, F + 1)`, the newest rows of inputs, the oldest first, each followed
  by a 1 where there is one. A step appends a row (and drops the oldest once `REACH` are there) and runs Tensor2Tensor's
  graph over the window. `REACH` is one less than the length of an example: with the zero embedding that Tensor2Tensor's
  shift puts first, the window's positions are those that were trained, no more. So for the first `REACH` frames `pred`
  is what the graph, run over all frames, gives. After that it is what the graph gives that is run over the newest
  `REACH` frames alone, as if they were a stream's first: it is not what a run over all frames gives, whose positions
  are numbered from the stream's beginning, were never trained, and attend to what is older. (Let XLA compile its step:
  oneDNN in TensorFlow 2.2x multiplies small batches of matrices some eighty times slower.)
"""

import copy
import json
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf
from numpy.typing import NDArray

from .errors import TrainingError
from .graph import build, hyperparameters
from .problem import bottom, top
from .progress import say
from .records import windows
from .shape import ANSWERS, INPUTS, ROW, WINDOW
from .train import BEST, ENDED, RUN

REACH = WINDOW - 1
"""Frames that the transformer sees."""
FRAMES, STREAMS = 1000, 2
"""Of the test vectors."""
TOLERANCE = 1e-5
"""Of the step against the graph, absolute, in the network's raw outputs."""
AT_ONCE = 64

Floats = NDArray[np.float32]


class Step(NamedTuple):
    """Tensors of the two signatures.

    Attributes
    ----------
    batch
        How many streams begin.
    first_pred, first_state
        `(N, O)` and the state before the first frame.
    inputs, state
        `(N, F)` and the state before a frame.
    pred, next_state
        `(N, O)` and the state after it.
    """

    batch: Any
    first_pred: Any
    first_state: Any
    inputs: Any
    state: Any
    pred: Any
    next_state: Any


def export(*, model: str, hparams_set: str, overrides: str, data_dir: Path, out_dir: Path, to: Path) -> None:
    """Write the SavedModel, `weights.npz`, `self_test.npz` and `trained.json`.

    Parameters
    ----------
    model
        As it was trained.
    hparams_set
        As it was trained.
    overrides
        As it was trained.
    data_dir
        Where the records are.
    out_dir
        Where the checkpoints are.
    to
        The folder to write to; a SavedModel there is replaced.

    Raises
    ------
    TrainingError
        If the run has not ended or was another, or the step is not the graph.
    """
    run, ended = _ended(out_dir)
    asked = {"model": model, "hparams_set": hparams_set, "overrides": overrides}
    if other := [f"{key} {run[key]!r}, not {asked[key]!r}" for key in asked if run[key] != asked[key]]:
        raise TrainingError(f"{out_dir} was trained with {', '.join(other)}: export it as it was trained")
    best = out_dir / BEST
    hp = hyperparameters(hparams_set, overrides, data_dir)
    inputs = test_inputs(windows(data_dir, "test", hp))
    transformer = model == "transformer"
    raw = graph_outputs(model, hp, best, inputs, REACH if transformer else FRAMES)
    say("graph", frames=FRAMES, streams=STREAMS)
    to.mkdir(parents=True, exist_ok=True)
    hp = hyperparameters(hparams_set, overrides, data_dir)
    with tf.Graph().as_default(), tf.Session() as session:
        step = _transformer_step(hp, nothing_seen(model, hp, best)) if transformer else _lstm_step(hp)
        try:
            tf.train.Saver(tf.trainable_variables()).restore(session, str(best))
        except (ValueError, tf.errors.OpError) as error:
            raise TrainingError(
                f"{best} cannot be read ({type(error).__name__}), or is of another network: train anew"
            ) from error
        weights = session.run({variable.op.name: variable for variable in tf.trainable_variables()})
        _save(session, step, to / "saved_model")
    deviation = largest_deviation(to / "saved_model", inputs, raw)
    say("checked", frames=FRAMES, streams=STREAMS, deviation=deviation, tolerance=TOLERANCE)
    if not deviation <= TOLERANCE:
        raise TrainingError(
            f"the exported step differs from Tensor2Tensor's graph by {deviation:.1e}: it is not to be used"
        )
    np.savez(to / "weights.npz", **(weights if transformer else lstm_weights(weights, hp.num_hidden_layers)))
    np.savez(to / "self_test.npz", inputs=inputs, raw=raw)
    trained = {
        "model": model,
        "hparams_set": hparams_set,
        "hyperparameters": {key: value for key, value in sorted(hp.values().items()) if key in _TELLING},
        "overrides": overrides,
        "parameters": int(sum(w.size for w in weights.values())),
        "seed": run["seed"],
        "records_sha256": run["records_sha256"],
        "window": WINDOW,
        **ended,
        "deviation": deviation,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("tensor2tensor", "numpy")},
            "tensorflow": tf.__version__ if hasattr(tf, "__version__") else tf.VERSION,
        },
    }
    (to / "trained.json").write_text(json.dumps(trained, indent=1) + "\n")
    size = sum(f.stat().st_size for f in (to / "saved_model").rglob("*") if f.is_file())
    say("exported", to=str(to), saved_model_bytes=size, parameters=trained["parameters"], deviation=deviation)


_TELLING = {
    "batch_size",
    "clip_grad_norm",
    "dropout",
    "filter_size",
    "hidden_size",
    "learning_rate_constant",
    "learning_rate_schedule",
    "learning_rate_warmup_steps",
    "num_heads",
    "num_hidden_layers",
    "optimizer",
    "optimizer_adam_beta1",
    "optimizer_adam_beta2",
    "optimizer_adam_epsilon",
    "weight_decay",
}
"""Hyperparameters that matter; Tensor2Tensor has two hundred."""


def test_inputs(rows: Floats) -> Floats:
    """Lay test windows end to end.

    Parameters
    ----------
    rows
        `(n, WINDOW, ROW)`.

    Returns
    -------
    Floats
        `(FRAMES, STREAMS, F)`; windows are taken again where there are too few.
    """
    each = -(-FRAMES // WINDOW)
    chosen = np.take(rows, range(each * STREAMS), axis=0, mode="wrap")[:, :, :INPUTS]
    streams = chosen.reshape(STREAMS, each * WINDOW, INPUTS)[:, :FRAMES]
    return np.ascontiguousarray(streams.swapaxes(0, 1))


def graph_outputs(model: str, hp: Any, checkpoint: Path, inputs: Floats, reach: int) -> Floats:
    """Let Tensor2Tensor's graph of the whole model say what it predicts after each frame.

    Parameters
    ----------
    model
        As it was trained.
    hp
        From `hyperparameters`.
    checkpoint
        Of the weights.
    inputs
        `(T, N, F)`.
    reach
        It is shown no more than so many frames: a run over all while there are no more, then one a frame.

    Returns
    -------
    Floats
        `(T, N, O)`. Its outputs are shifted by one: position `t + 1` has seen the rows up to `t`, so one row more is
        run, which nothing looks at.
    """
    count, streams, _ = inputs.shape
    with tf.Graph().as_default(), tf.Session() as session:
        rows = tf.placeholder(tf.float32, [None, None, ROW])
        raw = build(model, hp, tf.estimator.ModeKeys.EVAL, rows).raw
        tf.train.Saver(tf.trainable_variables()).restore(session, str(checkpoint))
        padded = np.zeros((streams, count + 1, ROW), np.float32)
        padded[:, :count, :INPUTS] = inputs.swapaxes(0, 1)
        first = min(count, reach)
        out = np.empty((count, streams, 2 * ANSWERS), np.float32)
        out[:first] = session.run(raw, {rows: padded[:, : first + 1]})[:, 1:, 0].swapaxes(0, 1)
        for frame in range(first, count, AT_ONCE):
            last = range(frame, min(frame + AT_ONCE, count))
            slid = np.stack([padded[:, t + 1 - reach : t + 2] for t in last])
            slid[:, :, -1] = 0
            found = session.run(raw, {rows: slid.reshape(-1, reach + 1, ROW)})
            out[frame : last.stop] = found[:, reach, 0].reshape(len(last), streams, -1)
    return out


def nothing_seen(model: str, hp: Any, checkpoint: Path) -> Floats:
    """Let Tensor2Tensor's graph say what it predicts before any frame.

    Parameters
    ----------
    model
        As it was trained.
    hp
        From `hyperparameters`.
    checkpoint
        Of the weights.

    Returns
    -------
    Floats
        `(O,)`: its first position.
    """
    with tf.Graph().as_default(), tf.Session() as session:
        raw = build(model, copy.deepcopy(hp), tf.estimator.ModeKeys.EVAL, tf.zeros([1, 2, ROW])).raw
        tf.train.Saver(tf.trainable_variables()).restore(session, str(checkpoint))
        first: Floats = session.run(raw)[0, 0, 0]
    return first


def largest_deviation(folder: Path, inputs: Floats, raw: Floats) -> float:
    """Load the SavedModel as whoever serves it does, and step it.

    Parameters
    ----------
    folder
        Of the SavedModel.
    inputs
        `(T, N, F)`.
    raw
        `(T, N, O)`, wanted.

    Returns
    -------
    float
        The largest absolute difference.
    """
    with tf.Graph().as_default(), tf.Session() as session:
        loaded = tf.saved_model.load(session, ["serve"], str(folder)).signature_def
        init, serve = loaded["init"], loaded["serving_default"]
        state = session.run(init.outputs["state"].name, {init.inputs["batch"].name: inputs.shape[1]})
        fetches = [serve.outputs[name].name for name in ("pred", "state")]
        one = session.make_callable(fetches, [serve.inputs[name].name for name in ("inputs", "state")])
        worst = 0.0
        for frame, wanted in zip(inputs, raw, strict=True):
            found, state = one(frame, state)
            worst = max(worst, float(np.nan_to_num(np.abs(found - wanted), nan=np.inf).max()))
    return worst


def lstm_weights(variables: dict[str, Floats], layers: int) -> dict[str, Floats]:
    """Give the LSTM's weights short names.

    Parameters
    ----------
    variables
        By Tensor2Tensor's names.
    layers
        How many cells.

    Returns
    -------
    dict[str, Floats]
        `bottom/kernel`, `bottom/bias`, `cell_0/kernel`, …, `top/bias`.
    """
    out = {}
    for place in ("bottom", *(f"cell_{layer}" for layer in range(layers)), "top"):
        for part in ("kernel", "bias"):
            (name,) = (n for n in variables if f"/{place}/" in n and n.endswith(f"/{part}"))
            out[f"{place}/{part}"] = variables[name]
    return out


def _ended(out_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what a run was begun with, and how it ended."""
    try:
        return json.loads((out_dir / RUN).read_text()), json.loads((out_dir / ENDED).read_text())
    except FileNotFoundError as error:
        raise TrainingError(f"{error.filename} is missing: no training has ended there; run train (again)") from error


def _lstm_step(hp: Any) -> Step:
    """Tensor2Tensor's layers of `lstm_seq2seq`, under its names, with the state in hand."""
    layers, hidden = hp.num_hidden_layers, hp.hidden_size
    cells = tf.nn.rnn_cell.MultiRNNCell([tf.nn.rnn_cell.LSTMCell(hidden) for _ in range(layers)])

    def run(embedding: Any, state: Any) -> tuple[Any, Any]:
        before = tuple(tf.nn.rnn_cell.LSTMStateTuple(state[:, n, 0], state[:, n, 1]) for n in range(layers))
        with tf.variable_scope("lstm_seq2seq", reuse=tf.AUTO_REUSE):
            with tf.variable_scope("body/lstm_seq2seq/decoder/rnn/multi_rnn_cell") as scope:
                out, after = cells(embedding, before, scope=scope)
            with tf.variable_scope("real_l2_loss_modality"):
                pred = top(out, None, hp, ROW)
        return pred, tf.stack([tf.stack([cell.c, cell.h], 1) for cell in after], 1)

    inputs = tf.placeholder(tf.float32, [None, INPUTS], "inputs")
    state = tf.placeholder(tf.float32, [None, layers, 2, hidden], "state")
    batch = tf.placeholder(tf.int32, [], "batch")
    with tf.variable_scope("lstm_seq2seq/real_l2_loss_modality"):
        embedding = bottom(inputs, hp, ROW)
    pred, next_state = run(embedding, state)
    # What the shift to the right puts first: an embedding of zeros, which is not that of a row of zeros.
    first = run(tf.zeros([batch, hidden]), tf.zeros([batch, layers, 2, hidden]))
    return Step(batch, *first, inputs, state, pred, next_state)


def _transformer_step(hp: Any, first_pred: Floats) -> Step:
    """Tensor2Tensor's whole graph over a window of rows, built once: it would make new weights a second time."""
    width = INPUTS + 1

    inputs = tf.placeholder(tf.float32, [None, INPUTS], "inputs")
    state = tf.placeholder(tf.float32, [None, REACH, width], "state")
    batch = tf.placeholder(tf.int32, [], "batch")
    row = tf.concat([inputs, tf.ones_like(inputs[:, :1])], 1)[:, None]
    seen = _seen(state)[:, None, None]
    here = tf.equal(tf.range(REACH)[None, :, None], seen)
    filled = tf.where(tf.broadcast_to(here, tf.shape(state)), tf.broadcast_to(row, tf.shape(state)), state)
    slid = tf.concat([state[:, 1:], row], 1)
    next_state = tf.where(tf.broadcast_to(seen < REACH, tf.shape(state)), filled, slid)
    # The rows after the newest, which causal attention does not see, are zeros.
    rows = tf.ensure_shape(tf.pad(next_state[:, :, :INPUTS], [[0, 0], [0, 1], [0, ROW - INPUTS]]), [None, WINDOW, ROW])
    raw = build("transformer", hp, tf.estimator.ModeKeys.PREDICT, rows).raw
    pred = tf.gather(raw[:, :, 0], _seen(next_state), batch_dims=1)
    first = tf.tile(tf.constant(first_pred[None]), tf.stack([batch, 1]))
    return Step(batch, first, tf.zeros([batch, REACH, width]), inputs, state, pred, next_state)


def _seen(window: Any) -> Any:
    """`(N,)`: how many rows of a window are there."""
    return tf.cast(tf.round(tf.reduce_sum(window[:, :, INPUTS], 1)), tf.int32)


def _save(session: Any, step: Step, folder: Path) -> None:
    """Write a SavedModel of what the signatures need and nothing else, its weights as constants."""
    signature: Callable[..., Any] = tf.saved_model.predict_signature_def
    outputs = (step.first_pred, step.first_state, step.pred, step.next_state)
    names = [tensor.op.name for tensor in outputs]
    frozen = tf.graph_util.convert_variables_to_constants(session, session.graph_def, names)
    shutil.rmtree(folder, ignore_errors=True)
    with tf.Graph().as_default() as graph, tf.Session() as bare:
        tf.import_graph_def(frozen, name="")
        t = Step(*(graph.get_tensor_by_name(tensor.name) for tensor in step))
        builder = tf.saved_model.builder.SavedModelBuilder(str(folder))
        builder.add_meta_graph_and_variables(
            bare,
            ["serve"],
            {
                "init": signature({"batch": t.batch}, {"pred": t.first_pred, "state": t.first_state}),
                "serving_default": signature(
                    {"inputs": t.inputs, "state": t.state}, {"pred": t.pred, "state": t.next_state}
                ),
            },
            strip_default_attrs=True,
        )
        builder.save()
    for empty in folder.iterdir():
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()
