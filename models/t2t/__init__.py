"""Tensor2Tensor's user directory: importing it registers the problem and the hyperparameter sets.

It runs in the training environment alone (`requirements.txt` here) and imports nothing else of GridSense.
`t2t-datagen`, `t2t-trainer` (`--t2t_usr_dir models/t2t --problem grid_pmu`) and `gridsense train` come through here.
"""

from . import hyperparameters, problem
from .shape import CHANNELS, HORIZONS

__all__ = ["CHANNELS", "HORIZONS", "hyperparameters", "problem"]
