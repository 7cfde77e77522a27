"""`nnpcalc evaluate`: errors of a model on labelled structures."""

from __future__ import annotations

import argparse
from typing import Any

from nnpcalc.cli.common import add_machine


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("evaluate", help="errors of a model on labelled structures")
    parser.add_argument("model", help="name or path of a model")
    parser.add_argument("files", nargs="+", help="npz, extended XYZ, SPICE or ModelForge HDF5")
    parser.add_argument(
        "--split",
        choices=["training", "validation", "test", "all"],
        help="which conformers (default: validation, or all if the files have no split)",
    )
    parser.add_argument("--label", action="append", default=[], metavar="WHAT=KEY",
                        help="key of the energy, forces or charges in the files")  # fmt: skip
    parser.add_argument("--plots", help="directory for parity.png")
    parser.add_argument("--json", help="write the table to this file")
    parser.add_argument("--threads", type=int, help="CPU threads")
    add_machine(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table of errors."""
    import torch

    from nnpcalc.train import evaluate_model
    from nnpcalc.train.report import format_table

    labels = dict(part.partition("=")[::2] for part in options.label)
    rows = evaluate_model(
        options.model,
        options.files,
        device=options.device,
        dtype=getattr(torch, options.dtype),
        threads=options.threads,
        split=options.split,
        labels=labels,
        plots=options.plots,
        json_file=options.json,
    )
    print(format_table(rows))
    return 0
