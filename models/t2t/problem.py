"""The problem: rows of PMU features, and what came after them.

In: `train`, `eval` and `test` folders of `*.npy` under `tmp_dir`, each `(T, N, ROW)` float32, a consecutive stretch of
`N` streams. Out: examples of `WINDOW` rows, as `tf.Example` records, and the loss: the negative logarithm of a Gaussian
likelihood, whose mean and spread both are the network's. There are no `inputs`: the network is causal, and steps.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf
from numpy.typing import NDArray
from tensor2tensor.data_generators import problem as t2t_problem
from tensor2tensor.data_generators import timeseries
from tensor2tensor.layers import modalities
from tensor2tensor.utils import registry

from .errors import TrainingError
from .shape import ANSWERS, CHANNELS, HORIZONS, INPUTS, NARROWEST, ROW, SETTLING, WIDEST, WINDOW

HIDDEN_WINDOWS = 0.25
"""Share of examples in which some channels are hidden, as they are in views without them and beside dead sensors."""
HIDDEN_CHANNELS = 0.4
"""Share of channels hidden in such an example."""
LONELY_WINDOWS = 0.2
"""Share of examples without a region."""
SEED = 1866
HIDDEN = "hidden"
"""The graph's collection of the hidden states that answers are made from."""


@registry.register_problem
class GridPmu(timeseries.TimeseriesProblem):
    """Next readings of a PMU, at several horizons, from all readings before."""

    num_train_shards = 4
    num_eval_shards = 1
    num_test_shards = 1  # none raises IndexError in Tensor2Tensor 1.15.7
    num_series = ROW
    has_inputs = False
    num_input_timestamps = 0
    num_target_timestamps = WINDOW
    is_generate_per_split = True  # no window stands in two splits

    def generate_samples(self, data_dir: str, tmp_dir: str, dataset_split: str) -> Iterator[dict[str, list[float]]]:
        """Cut windows that do not overlap, in a drawn order; hide channels and regions in some."""
        del data_dir
        name = {
            t2t_problem.DatasetSplit.TRAIN: "train",
            t2t_problem.DatasetSplit.EVAL: "eval",
            t2t_problem.DatasetSplit.TEST: "test",
        }[dataset_split]
        paths = sorted((Path(tmp_dir) / name).glob("*.npy"))
        if not paths:
            raise TrainingError(f"{tmp_dir}/{name} holds no *.npy; `gridsense train` writes them")
        rng = np.random.RandomState(SEED + len(name))
        for path in paths:
            rows = np.load(path, mmap_mode="r")
            starts = range(0, len(rows) - WINDOW + 1, WINDOW)
            cuts = [(start, stream) for start in starts for stream in range(rows.shape[1])]
            for place in rng.permutation(len(cuts)):
                start, stream = cuts[place]
                window = np.array(rows[start : start + WINDOW, stream])
                if not window[:, INPUTS + ANSWERS :].any():
                    continue
                if name == "train":
                    hide(window, rng)
                yield {"targets": window.ravel().tolist()}

    def example_reading_spec(self) -> tuple[dict[str, Any], None]:
        """Name what is in a record."""
        return {"targets": tf.FixedLenFeature([WINDOW * ROW], tf.float32)}, None

    def hparams(self, defaults: Any, model_hparams: Any) -> None:
        """Say how rows enter the network, and what its outputs are held against."""
        defaults.modality = {"targets": modalities.ModalityType.REAL_L2_LOSS}
        defaults.vocab_size = {"targets": ROW}
        defaults.input_space_id = t2t_problem.SpaceID.REAL
        defaults.target_space_id = t2t_problem.SpaceID.REAL
        model_hparams.bottom["targets"] = bottom
        model_hparams.top["targets"] = top
        model_hparams.loss["targets"] = loss

    def eval_metric_fns(self, model_hparams: Any) -> dict[str, Any]:
        """Measure on the evaluation split: the error relative to persistence, and the likelihood."""
        del model_hparams
        return {"rmse_over_persistence": _relative_error, "nll": _likelihood}


def hide(window: NDArray[np.float32], rng: np.random.RandomState) -> None:
    """Hide channels and the region of a window, in place, as they are hidden live: zeros, and the mask says so."""
    block = CHANNELS * HORIZONS
    if rng.rand() < HIDDEN_WINDOWS:
        for channel in np.flatnonzero(rng.rand(CHANNELS) < HIDDEN_CHANNELS):
            places = channel * HORIZONS + np.arange(HORIZONS)
            window[:, places] = 0
            window[:, 2 * block + channel] = 1
            window[:, INPUTS + ANSWERS + places] = 0
    if rng.rand() < LONELY_WINDOWS:
        window[:, block : 2 * block] = 0


def bottom(x: Any, model_hparams: Any, vocab_size: int) -> Any:
    """Embed the inputs of rows `(B, T, 1, ROW)`; the answers beside them are not looked at."""
    del vocab_size
    with tf.variable_scope("real"):
        return tf.layers.dense(x[..., :INPUTS], model_hparams.hidden_size, name="bottom")


def top(body_output: Any, targets: Any, model_hparams: Any, vocab_size: int) -> Any:
    """Turn hidden states into means and logarithms of spreads: `(B, T, 1, 2 * ANSWERS)`."""
    del targets, model_hparams, vocab_size
    tf.add_to_collection(HIDDEN, body_output)
    with tf.variable_scope("real"):
        return tf.layers.dense(body_output, 2 * ANSWERS, name="top")


def loss(top_out: Any, targets: Any, model_hparams: Any, vocab_size: int, weights_fn: Any) -> tuple[Any, Any]:
    """Negative logarithm of the likelihood, summed, and the sum of weights."""
    del model_hparams, vocab_size, weights_fn
    mean, spread, wanted, weight = split(top_out, targets)
    away = (wanted - mean) * tf.exp(-spread)
    return tf.reduce_sum(weight * (0.5 * tf.square(away) + spread)), tf.reduce_sum(weight)


def split(top_out: Any, targets: Any) -> tuple[Any, Any, Any, Any]:
    """Take outputs and rows apart: mean, logarithm of the spread, target, weight, each `(B, T, ANSWERS)`."""
    mean, spread = tf.split(tf.squeeze(top_out, 2), 2, axis=-1)
    answers = tf.squeeze(targets, 2)[..., INPUTS:]
    wanted, weight = tf.split(answers, 2, axis=-1)
    settled = tf.cast(tf.range(tf.shape(weight)[1]) >= SETTLING, tf.float32)
    return mean, tf.clip_by_value(spread, NARROWEST, WIDEST), wanted, weight * settled[None, :, None]


def _relative_error(predictions: Any, labels: Any, weights_fn: Any = None) -> tuple[Any, Any]:
    """Root mean square error over that of persistence, which says 0."""
    del weights_fn
    mean, _, wanted, weight = split(predictions, labels)
    wrong = tf.reduce_sum(weight * tf.square(wanted - mean))
    return tf.sqrt(wrong / tf.maximum(tf.reduce_sum(weight * tf.square(wanted)), 1e-9)), tf.constant(1.0)


def _likelihood(predictions: Any, labels: Any, weights_fn: Any = None) -> tuple[Any, Any]:
    """Mean of the loss."""
    total, weight = loss(predictions, labels, None, ROW, weights_fn)
    return total / tf.maximum(weight, 1e-9), tf.constant(1.0)
