"""`nnpcalc report`: a page about a trajectory that is there."""

from __future__ import annotations

import argparse
import errno
from pathlib import Path
from typing import Any

from nnpcalc.cli.common import add_distances


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("report", help="one HTML page about a trajectory")
    parser.add_argument("file", help="trajectory of nnpcalc md, or any file that ASE reads")
    parser.add_argument("--output", metavar="FILE", help="(default: the file's name with .html)")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that is there")
    add_distances(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the page and print its name."""
    from nnpcalc.cli.structures import read_file
    from nnpcalc.report import write_report

    source = Path(options.file)
    output = Path(options.output) if options.output else source.with_suffix(".html")
    if output.exists() and not options.overwrite:
        raise FileExistsError(
            errno.EEXIST, "there is a file of this name: give --overwrite or --output", str(output)
        )
    frames: Any
    if source.suffix in (".h5", ".hdf5"):
        from nnpcalc.md import read_trajectory

        frames = read_trajectory(source)
    else:
        frames = read_file(options.file)
    write_report(output, frames, title=source.name, distances=options.distance)
    print(output)
    return 0
