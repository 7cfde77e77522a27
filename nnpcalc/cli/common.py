"""What the commands share: their common options, reading structures, tables.

Nothing heavy is imported at the top, so that `nnpcalc --help` answers at once.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase import Atoms


# --- options -------------------------------------------------------------------------------------


def add_structures(parser: argparse.ArgumentParser, index: str = ":") -> None:
    """Options for `read_structures`: a file or SMILES, which of its structures, their state.

    Args:
        parser: of the command.
        index: structures taken unless said otherwise, as in ASE.
    """
    shown = {":": "all", "-1": "the last"}.get(index, index)
    parser.add_argument(
        "file", nargs="?", help="any structure file that ASE reads; - reads extended XYZ from stdin"
    )
    parser.add_argument(
        "--smiles", action="append", metavar="SMILES",
        help="a molecule in place of a file; may be repeated (needs rdkit)",
    )  # fmt: skip
    parser.add_argument(
        "--index", default=index, help=f"structures to take, as in ASE (default {shown})"
    )
    parser.add_argument("--charge", type=int, help="total charge, whatever the file says")
    parser.add_argument(
        "--multiplicity", "--spin", type=int, dest="multiplicity", metavar="2S+1",
        help="2S + 1, whatever the file says: 1 singlet, 2 doublet, 3 triplet. --spin is the same, "
        "as info['spin'] is in a file; neither is the number of unpaired electrons",
    )  # fmt: skip


class _Members(argparse.Action):
    """A model as its name, several as a list of names."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: Any = None) -> None:
        before = getattr(namespace, self.dest)
        members = before if isinstance(before, list) else [before] if before else []
        setattr(namespace, self.dest, [*members, value] if members else value)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options --model, a name or (a committee) a list of names, and --backend."""
    parser.add_argument(
        "--model", required=True, action=_Members,
        help="name or path of a model; given several times, their mean, and how far they disagree",
    )  # fmt: skip
    parser.add_argument(
        "--backend", default="auto", choices=["auto", "eager", "fused", "torchscript"],
        help="what computes it (default auto: the fastest that is sure to work here)",
    )  # fmt: skip


def model_name(model: str | list[str]) -> str:
    """What --model said, to be shown."""
    return model if isinstance(model, str) else " and ".join(model)


def add_machine(parser: argparse.ArgumentParser) -> None:
    """The options --dtype and --device."""
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")


def add_distances(parser: Any) -> None:
    """The option --distance of reports; `distance` is a list of pairs of atoms."""
    parser.add_argument(
        "--distance", type=int, nargs=2, action="append", default=[], metavar=("I", "J"),
        help="atoms, from 0, to plot the distance of; may be repeated",
    )  # fmt: skip


# --- structures ----------------------------------------------------------------------------------


def read_structures(options: argparse.Namespace) -> list[Atoms]:
    """The structures that the options of `add_structures` ask for, with their charge and spin.

    Raises:
        ValueError: neither file nor SMILES, or both, or something that is no structure.
        OSError: a file that cannot be read.
        ImportError: SMILES without rdkit.
    """
    from nnpcalc.state import CHARGE_KEYS, MULTIPLICITY_KEYS

    smiles = options.smiles or []
    if (options.file is None) == (not smiles):
        raise ValueError("give either a structure file (- for stdin) or --smiles")
    if smiles:
        from nnpcalc.smiles import from_smiles

        structures = [from_smiles(text) for text in smiles]
    else:
        structures = read_file(options.file, options.index)
    for atoms in structures:
        override(atoms, CHARGE_KEYS, options.charge)
        override(atoms, MULTIPLICITY_KEYS, options.multiplicity)
    return structures


def read_file(file: str, index: str = ":") -> list[Atoms]:
    """Structures of a file in any format of ASE, or of extended XYZ on stdin.

    Raises:
        ValueError: it cannot be read as a structure, or has none at this index.
        OSError: the file cannot be opened; names it.
    """
    import ase.io
    from ase import Atoms

    name = "stdin" if file == "-" else file
    try:
        found: Any
        if file == "-":
            found = ase.io.read(io.StringIO(sys.stdin.read()), index=index, format="extxyz")
        else:
            found = ase.io.read(file, index=index)
    except Exception as error:  # every format of ASE has errors of its own
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(
            f"{name} cannot be read as a structure: {type(error).__name__}: {error}"
        ) from error
    structures = [found] if isinstance(found, Atoms) else list(found)
    if not structures:
        raise ValueError(f"{name} has no structure at index {index!r}")
    return structures


def override(atoms: Atoms, keys: tuple[str, ...], value: int | None) -> None:
    """Put a value under the first of several spellings and remove the others; None changes nothing.

    Args:
        atoms: changed; read by this program, not the user's.
        keys: spellings in `atoms.info`.
        value: the new value.
    """
    if value is not None:
        for key in keys:
            atoms.info.pop(key, None)
        atoms.info[keys[0]] = value


# --- printing ------------------------------------------------------------------------------------


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells in columns; the first row is the heading."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def signed(charge: int) -> str:
    """A charge as chemists write it: +1, 0, -2."""
    return f"{charge:+d}" if charge else "0"
