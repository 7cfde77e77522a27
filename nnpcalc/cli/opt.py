"""`nnpcalc opt`: geometries of least energy, all structures at once."""

from __future__ import annotations

import argparse
import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnpcalc.cli.common import (
    add_machine,
    add_model,
    add_skip,
    add_structures,
    computed,
    model_options,
    print_table,
    read_structures,
    signed,
)

if TYPE_CHECKING:
    from ase import Atoms

    from nnpcalc.optimizer import Optimized

EPILOG = """\
Exit status 1: some did not converge; their last good geometries are written all the same. Or some
were left out by --skip; these are not.

examples:
  nnpcalc opt molecules.sdf --model tensornet-spice --output relaxed.xyz
  nnpcalc opt --smiles CCO --smiles "C[NH3+]" --model tensornet-spice --fmax 0.001 --dtype float64
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "opt",
        help="optimise geometries",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_structures(parser)
    add_model(parser)
    parser.add_argument(
        "--output", metavar="FILE",
        help="optimised structures, in the ASE format of the name's ending (default: NAME-opt.xyz, "
        "extended XYZ, in this directory)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the output file")
    parser.add_argument(
        "--fmax", type=float, default=0.01, metavar="EV/Å", help="largest force left (default 0.01)"
    )
    parser.add_argument("--steps", type=int, default=500, help="at most so many (default 500)")
    parser.add_argument(
        "--method", default="lbfgs", choices=["lbfgs", "fire"], help="(default lbfgs)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per structure")
    add_skip(parser)
    add_machine(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Optimise, write the structures, print a table or JSON lines."""
    from ase.io import write

    from nnpcalc.md import ModelForceField
    from nnpcalc.optimizer import optimize
    from nnpcalc.optimizer.constraints import mobile_coordinates

    structures = read_structures(options)
    output = _output(options, len(structures))
    field = ModelForceField(options.model, **model_options(options))

    def check(atoms: Atoms) -> Atoms:
        field.batch([atoms])
        mobile_coordinates(atoms)
        return atoms

    kept = computed(structures, check) if options.skip else dict(enumerate(structures))
    if not kept:
        return 1
    optimized = optimize(
        list(kept.values()), field, method=options.method, fmax=options.fmax, steps=options.steps
    )
    results = dict(zip(kept, optimized, strict=True))
    for found in optimized:
        _keep(found)
    write(output, [found.atoms for found in optimized])
    _report(results, options)
    failed = sum(not found.converged for found in optimized)
    if not options.json:
        print(f"{len(results) - failed} of {len(results)} converged; written to {output}")
    for k, found in results.items():
        if found.reason:
            print(f"nnpcalc: structure {k} did not converge: {found.reason}", file=sys.stderr)
    return 1 if failed or len(kept) < len(structures) else 0


def _keep(found: Optimized) -> None:
    """Write into the structure what the output file is to say of it."""
    found.atoms.info["converged"] = found.converged
    if found.energy_uncertainty is not None and found.forces_uncertainty is not None:
        found.atoms.info["energy_uncertainty"] = found.energy_uncertainty
        found.atoms.arrays["forces_uncertainty"] = found.forces_uncertainty


def _output(options: argparse.Namespace, count: int) -> Path:
    """The output file, refused before anything is computed if it cannot be written as asked."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    name = "optimised" if options.file in (None, "-") else Path(options.file).stem
    path = Path(options.output or f"{name}-opt.xyz")
    if path.exists() and not options.overwrite:
        raise FileExistsError(
            errno.EEXIST, "there is a file of this name: give another, or --overwrite", str(path)
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(path.parent))
    try:
        kind = ioformats[filetype(str(path), read=False)]
    except (UnknownFileTypeError, KeyError) as error:
        raise ValueError(
            f"ASE knows no format for {path}: use an ending such as .xyz, .traj or .pdb"
        ) from error
    if not kind.can_write or (kind.single and count > 1):
        raise ValueError(
            f"{path}: the format {kind.name} cannot be written"
            f"{f' with {count} structures' if kind.can_write else ''}; use .xyz or .traj"
        )
    return path


def _report(results: dict[int, Optimized], options: argparse.Namespace) -> None:
    from nnpcalc.state import resolve_state

    committee = isinstance(options.model, list)
    spreads = ("+- energy", "+- max |F|") if committee else ()
    head = ("structure", "formula", "charge", "mult.", "energy/eV", "fmax/(eV/Å)", *spreads)
    rows: list[tuple[str, ...]] = [(*head, "steps", "")]
    for k, found in results.items():
        formula, state = found.atoms.get_chemical_formula(), resolve_state(found.atoms)
        known = found.atoms.calc is not None or not len(found.atoms)
        spread, each = found.energy_uncertainty, found.forces_uncertainty
        if options.json:
            record = {
                "structure": k,
                "formula": formula,
                "charge": state.charge,
                "multiplicity": state.multiplicity,
                "energy": found.energy if known else None,
                "fmax": found.fmax if known else None,
                "steps": found.steps,
                "converged": found.converged,
                "reason": found.reason,
            }
            if committee:
                record["energy_uncertainty"] = spread
                record["forces_uncertainty"] = None if each is None else each.tolist()
            print(json.dumps(record))
            continue
        shown = (
            ("-", "-")
            if spread is None or each is None
            else (f"{spread:.6f}", f"{each.max(initial=0.0):.6f}")
        )
        rows.append(
            (
                str(k),
                formula,
                signed(state.charge),
                str(state.multiplicity),
                f"{found.energy:.6f}" if known else "-",
                f"{found.fmax:.6f}" if known else "-",
                *(shown if committee else ()),
                str(found.steps),
                "" if found.converged else "NOT CONVERGED",
            )
        )
    if not options.json:
        print_table(rows)
