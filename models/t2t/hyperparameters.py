"""Hyperparameter sets, registered as Tensor2Tensor does it: few, and each number with its reason.

Our command trains on one device. For several, `t2t-trainer` has Tensor2Tensor's own flags; with `--worker_gpu N` it
splits the batch, and the LSTM's weights are shared (asked of two devices on one CPU). Not so the transformer: under
TensorFlow 2 each device gets weights of its own, so train it on one.
"""

from typing import Any

from tensor2tensor.models import lstm, transformer
from tensor2tensor.utils import registry


def _common(hp: Any) -> Any:
    """Set what both networks share."""
    hp.batch_size = 32
    hp.use_fixed_batch_size = True  # else the batch is counted in tokens
    hp.optimizer = "adam"  # `true_adam` breaks under TensorFlow 2
    hp.optimizer_adam_beta1, hp.optimizer_adam_beta2, hp.optimizer_adam_epsilon = 0.9, 0.99, 1e-8
    hp.learning_rate_schedule = "constant*linear_warmup*cosdecay"
    hp.learning_rate_warmup_steps = 50
    hp.clip_grad_norm = 1.0
    hp.weight_decay = 0.0
    hp.symbol_modality_skip_top = False
    return hp


@registry.register_hparams
def lstm_pmu() -> Any:
    """Make the default: two layers of 64, small enough that thousands of streams step on one core."""
    hp = _common(lstm.lstm_seq2seq())
    hp.hidden_size = 64
    hp.num_hidden_layers = 2
    hp.dropout = 0.0  # noise of the measurement is regularisation enough: more data than parameters
    hp.learning_rate_constant = 3e-3
    hp.learning_rate_decay_steps = 1600
    return hp


@registry.register_hparams
def lstm_pmu_tiny() -> Any:
    """Make one for tests: it learns little, and quickly."""
    hp = lstm_pmu()
    hp.hidden_size = 16
    hp.num_hidden_layers = 1
    hp.batch_size = 8
    hp.learning_rate_decay_steps = 40
    return hp


@registry.register_hparams
def transformer_pmu() -> Any:
    """Make Tensor2Tensor's transformer for time series; it keeps no state and runs its window again at every frame."""
    hp = _common(transformer.transformer_timeseries())
    hp.hidden_size = 64
    hp.filter_size = 128
    hp.num_heads = 4
    hp.num_hidden_layers = 2
    hp.layer_prepostprocess_dropout = 0.0
    hp.attention_dropout = 0.0
    hp.relu_dropout = 0.0
    hp.learning_rate_constant = 1e-3
    hp.learning_rate_decay_steps = 900
    return hp
