"""The command `nnpcalc`: look at models, compute, simulate, train, convert.

A command is a module here with `add_parser(commands)` and `run(options)`, and a place in
`COMMANDS`. What a user can get wrong is told in one line, with exit status 2; a defect of ours is a
traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from nnpcalc import __version__
from nnpcalc.cli import (
    benchmark,
    convert,
    energy,
    evaluate,
    md,
    models,
    opt,
    report,
    states,
    train,
    verify,
    vib,
)

#: In the order of `nnpcalc --help`.
COMMANDS = (
    models,
    verify,
    energy,
    opt,
    vib,
    states,
    md,
    report,
    train,
    evaluate,
    convert,
    benchmark,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Status 0: done; 1: done, but `verify` found differences or some structures failed; 2: the input
    is wrong, said in one line; 130 and 143: stopped by SIGINT or SIGTERM.
    """
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        print(f"nnpcalc: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nnpcalc: interrupted", file=sys.stderr)
        return 130
    return status


def _show_warning(message: Warning | str, *_: Any) -> None:
    print(f"nnpcalc: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return " ".join(text.split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnpcalc", description="Neural network potentials that know charge and spin."
    )
    parser.add_argument("--version", action="version", version=f"nnpcalc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
