"""Training: data sets, loss, trainer; ``nnpcalc train CONFIG`` on the command line."""

from nnpcalc.train.command import evaluate_model, train
from nnpcalc.train.config import Config, read_config
from nnpcalc.train.trainer import Trainer

__all__ = ["Config", "Trainer", "evaluate_model", "read_config", "train"]
