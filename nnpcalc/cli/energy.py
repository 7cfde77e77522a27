"""`nnpcalc energy`: energies and forces of structures."""

from __future__ import annotations

import argparse
import json
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

    from nnpcalc.calculator import NNPCalculator
    from nnpcalc.evaluation import Evaluation


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser("energy", help="energy and forces of structures")
    add_structures(parser)
    add_model(parser)
    parser.add_argument("--forces", action="store_true", help="print the forces of all atoms")
    parser.add_argument("--json", action="store_true", help="print one JSON object per structure")
    add_skip(parser)
    add_machine(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a table of energies, or JSON lines."""
    from nnpcalc.calculator import NNPCalculator

    structures = read_structures(options)
    calculator = NNPCalculator(options.model, **model_options(options))
    results = _evaluated(structures, calculator, options.skip)
    committee = isinstance(options.model, list)
    head = ("structure", "formula", "charge", "mult.", "energy/eV", "max |F|/(eV/Å)")
    rows: list[tuple[str, ...]] = [(*head, "+- energy", "+- max |F|") if committee else head]
    force_rows: list[tuple[str, ...]] = [("structure", "atom", "Fx/(eV/Å)", "Fy", "Fz")]
    for k, result in results.items():
        atoms, energy, forces, state = structures[k], result.energy, result.forces, result.state
        assert forces is not None
        formula = atoms.get_chemical_formula()
        if options.json:
            record = {
                "structure": k,
                "formula": formula,
                "charge": state.charge,
                "multiplicity": state.multiplicity,
                "energy": energy,
                "forces": forces.tolist(),
            }
            if result.energy_uncertainty is not None and result.forces_uncertainty is not None:
                record["energy_uncertainty"] = result.energy_uncertainty
                record["forces_uncertainty"] = result.forces_uncertainty.tolist()
            print(json.dumps(record))
            continue
        largest = float((forces**2).sum(axis=1).max() ** 0.5) if len(atoms) else 0.0
        rows.append(
            (
                str(k),
                formula,
                signed(state.charge),
                str(state.multiplicity),
                f"{energy:.6f}",
                f"{largest:.6f}",
            )
        )
        if result.energy_uncertainty is not None and result.forces_uncertainty is not None:
            spread = float(result.forces_uncertainty.max(initial=0.0))
            rows[-1] += (f"{result.energy_uncertainty:.6f}", f"{spread:.6f}")
        if options.forces:
            for symbol, force in zip(atoms.symbols, forces, strict=True):
                force_rows.append((str(k), symbol, *(f"{component:.6f}" for component in force)))
    if not options.json:
        print_table(rows)
    if options.forces and not options.json:
        print()
        print_table(force_rows)
    return 1 if len(results) < len(structures) else 0


def _evaluated(
    structures: list[Atoms], calculator: NNPCalculator, skip: bool
) -> dict[int, Evaluation]:
    """Results by the place of the structure, all in one go if none of them is to be left out."""
    try:
        return dict(enumerate(calculator.evaluate(structures)))
    except ValueError:
        if not skip:
            raise
    return computed(structures, lambda atoms: calculator.evaluate([atoms])[0])
