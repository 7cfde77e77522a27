"""`nnpcalc train`: train a model, or go on with a stopped run."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("train", help="train a model, or go on with a stopped run")
    parser.add_argument("config", help="the training configuration, TOML")
    parser.add_argument("--data", default=".", help="directory of the data files it names")
    parser.add_argument("--output", default="runs", help="directory of the run (default runs)")
    parser.add_argument("--init", help="name or path of a model whose weights to start from")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--minutes", type=float, help="stop with a checkpoint after this long")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train."""
    from nnpcalc.train import train

    train(
        options.config,
        data=options.data,
        output=options.output,
        device=options.device,
        threads=options.threads,
        minutes=options.minutes,
        initial=options.init,
    )
    return 0
