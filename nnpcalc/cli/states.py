"""`nnpcalc states`: energies of several charges and spins at one geometry."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from nnpcalc.cli.common import (
    add_machine,
    add_model,
    add_structures,
    print_table,
    read_structures,
    signed,
)

if TYPE_CHECKING:
    from ase import Atoms

    from nnpcalc.calculator import NNPCalculator
    from nnpcalc.state import State

EPILOG = """\
Without --charges: vertical ionisation energy, electron affinity and singlet-triplet gap, as far as
the model's card covers the states. With it, all states of these charges and multiplicities.

examples:
  nnpcalc states relaxed.xyz --model tensornet-spice
  nnpcalc states relaxed.xyz --model tensornet-spice --charges -2 0 2 --multiplicities 1
"""

#: Name of each difference in the table.
NAMES = {
    "ionisation_energy": "ionisation energy",
    "electron_affinity": "electron affinity",
    "singlet_triplet_gap": "singlet-triplet gap",
}


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "states",
        help="energies of charge and spin states at one geometry",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_structures(parser)
    add_model(parser)
    parser.add_argument("--charges", type=int, nargs="+", metavar="Q", help="of the states")
    parser.add_argument(
        "--multiplicities", type=int, nargs="+", metavar="2S+1",
        help="of the states; impossible pairs are left out (default: the lowest of each charge)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object per structure")
    add_machine(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print tables of states, or JSON lines."""
    from nnpcalc.calculator import NNPCalculator

    if options.multiplicities and not options.charges:
        raise ValueError("--multiplicities needs --charges")
    structures = read_structures(options)
    calculator = NNPCalculator(
        options.model, device=options.device, dtype=options.dtype, backend=options.backend
    )
    for k, atoms in enumerate(structures):
        if options.charges:
            energies, own = _listed(atoms, calculator, options), None
            differences: dict[str, float | None] = {}
            missing: dict[str, str] = {}
        else:
            energies, own, differences, missing = _vertical(atoms, calculator)
        if options.json:
            states = [
                {"charge": s.charge, "multiplicity": s.multiplicity, "energy": energy}
                for s, energy in energies.items()
            ]
            record = {"structure": k, "formula": atoms.get_chemical_formula(), "states": states}
            print(json.dumps({**record, **differences, **({"missing": missing} if own else {})}))
            continue
        print(f"structure {k}: {atoms.get_chemical_formula()}")
        zero = min(energies.values()) if own is None else energies[own]
        rows = [("charge", "mult.", "energy/eV", "relative/eV")]
        for s, energy in energies.items():
            cells = signed(s.charge), str(s.multiplicity), f"{energy:.6f}", f"{energy - zero:.6f}"
            rows.append(cells)
        print_table(rows)
        for name, value in differences.items():
            shown = f"not available: {missing[name]}" if value is None else f"{value:.4f} eV"
            print(f"{NAMES[name]:<20} {shown}")
        print()
    return 0


def _listed(
    atoms: Atoms, calculator: NNPCalculator, options: argparse.Namespace
) -> dict[State, float]:
    """Energies of the states that the options ask for and that the molecule can have."""
    from nnpcalc.state import StateError, resolve_state
    from nnpcalc.states import state_energies

    states: list[Any] = list(options.charges)
    if options.multiplicities:
        states, bare = [], atoms.copy()
        bare.info = {}
        for charge in options.charges:
            for multiplicity in options.multiplicities:
                try:
                    states.append(resolve_state(bare, charge, multiplicity))
                except StateError as error:
                    impossible = error
        if not states:
            raise impossible
    return {result.state: result.energy for result in state_energies(atoms, calculator, states)}


def _vertical(
    atoms: Atoms, calculator: NNPCalculator
) -> tuple[dict[State, float], State, dict[str, float | None], dict[str, str]]:
    """Energies, the structure's own state, differences, and why some of them are missing."""
    from nnpcalc.states import vertical_energies

    found = vertical_energies(atoms, calculator)
    differences = {name: getattr(found, name) for name in NAMES}
    return dict(found.energies), found.state, differences, dict(found.missing)
