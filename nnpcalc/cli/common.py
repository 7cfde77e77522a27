"""What the commands share: their common options, reading structures, tables.

Nothing heavy is imported at the top, so that `nnpcalc --help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ase import Atoms

T = TypeVar("T")


# --- options -------------------------------------------------------------------------------------


def add_structures(parser: argparse.ArgumentParser, index: str = ":") -> None:
    """Options for `read_structures`: a file or SMILES, which of its structures, their state.

    Args:
        parser: of the command.
        index: structures taken unless said otherwise, as in ASE.
    """
    shown = {":": "all", "-1": "the last"}.get(index, index)
    parser.add_argument(
        "file", nargs="?",
        help="any structure file that ASE reads; - reads extended XYZ from stdin. Charge and spin "
        "are those of charge= and spin= in extended XYZ and ASE's own files, of a comment line of "
        "exactly two integers in XYZ, of the formal charges and radicals in SDF and molfiles, of "
        "the formal charges in PDB (columns 79-80), of the line of charge and multiplicity in "
        "Gaussian input; elsewhere, and if nothing is said, 0 and the lowest possible",
    )  # fmt: skip
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
    """The options --model, a name or (a committee) a list of names, and what goes with it."""
    parser.add_argument(
        "--model", required=True, action=_Members,
        help="name or path of a model; given several times, their mean, and how far they disagree",
    )  # fmt: skip
    parser.add_argument(
        "--backend", default="auto", choices=["auto", "eager", "fused", "torchscript"],
        help="what computes it (default auto: the fastest that is sure to work here)",
    )  # fmt: skip
    parser.add_argument(
        "--on-extrapolation", default="raise", choices=["raise", "warn"],
        help="what to do about charges and multiplicities that the model was not trained on "
        "(default raise: refuse them)",
    )  # fmt: skip


def model_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of `add_model` and `add_machine` say of a model, besides its name."""
    return {
        "device": options.device,
        "dtype": options.dtype,
        "backend": options.backend,
        "on_extrapolation": options.on_extrapolation,
    }


def model_name(model: str | list[str]) -> str:
    """What --model said, to be shown."""
    return model if isinstance(model, str) else " and ".join(model)


def add_machine(parser: argparse.ArgumentParser) -> None:
    """The options --dtype and --device."""
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")


def add_skip(parser: argparse.ArgumentParser) -> None:
    """The option --skip, for `computed`."""
    parser.add_argument(
        "--skip", action="store_true",
        help="leave out structures that cannot be computed, say why on stderr, and return status 1",
    )  # fmt: skip


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
        ValueError: neither file nor SMILES, or both, or something that is no structure, or has its
            charge or spin under a name that is not read.
        OSError: a file that cannot be read.
        ImportError: SMILES without rdkit.
    """
    from nnpcalc.cli.structures import Found, read_states, set_state

    smiles = options.smiles or []
    if (options.file is None) == (not smiles):
        raise ValueError("give either a structure file (- for stdin) or --smiles")
    if not smiles:
        return read_states(options.file, options.index, options.charge, options.multiplicity)
    from nnpcalc.smiles import from_smiles

    structures = [from_smiles(text) for text in smiles]
    for text, atoms in zip(smiles, structures, strict=True):
        set_state(Found(atoms, repr(text), {}), options.charge, options.multiplicity)
    return structures


def computed(structures: Sequence[Atoms], compute: Callable[[Atoms], T]) -> dict[int, T]:
    """What `compute` makes of each structure, by its place; what it refuses is said on stderr."""
    found = {}
    for k, atoms in enumerate(structures):
        try:
            found[k] = compute(atoms)
        except ValueError as error:
            reason = " ".join(str(error).split())
            print(f"nnpcalc: structure {k} is left out: {reason}", file=sys.stderr)
    return found


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
