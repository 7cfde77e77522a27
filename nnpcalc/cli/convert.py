"""`nnpcalc convert`: another program's model as one of ours."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("convert", help="write another program's model as one of ours")
    parser.add_argument(
        "source",
        help="torchmd-net checkpoint, SchNetPack or TorchANI state dict, AIMNet2 file of Auto3D or "
        "aimnet, or NeuroChem's directory",
    )
    parser.add_argument("--to", required=True, help="name or directory of the new model")
    parser.add_argument("--format", help="torchmd-net, schnetpack, aimnet2 or ani (found out)")
    parser.add_argument("--trust", action="store_true", help="open TorchScript, which is code")
    parser.add_argument("--elements", nargs="+", help="that it was trained on, e.g. H C N O")
    parser.add_argument("--charges", nargs="+", type=int, help="that it was trained on")
    parser.add_argument("--multiplicities", nargs="+", type=int, help="that it was trained on")
    parser.add_argument("--energy-unit", help="eV, Hartree, kcal/mol, kJ/mol or a number of eV")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                        help="argument of the format's reader, e.g. member=1")  # fmt: skip
    parser.add_argument("--licence", help="of the weights, for the card")
    parser.add_argument("--citation", help="for the card")
    parser.add_argument("--method", help="what computed the training labels, for the card")
    parser.add_argument("--data", help="the training data, for the card")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Convert."""
    from nnpcalc import convert

    return convert.run(options)
