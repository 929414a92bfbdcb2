"""Tensor2Tensor's graph of a model: rows in; raw predictions, the loss and the last hidden states out."""

from pathlib import Path
from typing import Any, NamedTuple

import tensorflow.compat.v1 as tf
from tensor2tensor.utils import hparams_lib, registry

from .errors import TrainingError
from .problem import HIDDEN
from .records import PROBLEM

MODELS = ("lstm_seq2seq", "transformer")
"""Tensor2Tensor's models that are causal without inputs, and that we export."""


class Network(NamedTuple):
    """Tensors of one model.

    Attributes
    ----------
    raw
        `(B, T, 1, O)`: position `t` has seen the rows before `t`.
    loss
        A scalar.
    hidden
        `(B, T, 1, H)`: what the last layer makes `raw` from.
    """

    raw: Any
    loss: Any
    hidden: Any


def hyperparameters(hparams_set: str, overrides: str, data_dir: Path) -> Any:
    """Make the hyperparameters of a registered set, as `t2t-trainer` would.

    Parameters
    ----------
    hparams_set
        Its name.
    overrides
        `name=value`, separated by commas.
    data_dir
        Where the records are.

    Returns
    -------
    Any
        Tensor2Tensor's `HParams`, with the problem's.

    Raises
    ------
    TrainingError
        If there is no such set, or no such hyperparameter.
    """
    try:
        return hparams_lib.create_hparams(hparams_set, overrides, data_dir=str(data_dir), problem_name=PROBLEM)
    except (LookupError, ValueError) as error:
        raise TrainingError(f"hyperparameters {hparams_set} with {overrides!r}: {error}") from error


def build(model_name: str, hp: Any, mode: str, rows: Any) -> Network:
    """Make the model's graph, once in a `tf.Graph`: a second transformer in it would have weights of its own.

    Parameters
    ----------
    model_name
        As Tensor2Tensor registered it.
    hp
        From `hyperparameters`; changed by Tensor2Tensor, so one for each graph.
    mode
        One of `tf.estimator.ModeKeys`.
    rows
        `(B, T, ROW)`.

    Returns
    -------
    Network
        Its tensors.
    """
    model = registry.model(model_name)(hp, mode, hp.problem_hparams)
    out, losses = model({"targets": rows[:, :, None]})
    (hidden,) = tf.get_collection(HIDDEN)
    return Network(out, losses["training"], hidden)
