"""Training: data sets, loss, trainer; ``nnpcalc train CONFIG`` on the command line."""

from nnpcalc.train.command import train
from nnpcalc.train.config import Config, read_config
from nnpcalc.train.trainer import Trainer

__all__ = ["Config", "Trainer", "read_config", "train"]
