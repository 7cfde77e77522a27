"""`nnpcalc states`: energies of several charges and spins at one geometry."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from nnpcalc.cli.common import (
    add_machine,
    add_model,
    add_structures,
    model_options,
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
Exit status 1: one of several structures could not be computed; the others are.

examples:
  nnpcalc states relaxed.xyz --model tensornet-spin-xtb
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
    calculator = NNPCalculator(options.model, **model_options(options))
    status = 0
    for k, atoms in enumerate(structures):
        record = {"structure": k, "formula": atoms.get_chemical_formula()}
        try:
            found = _found(atoms, calculator, options)
        except ValueError as error:
            if len(structures) == 1:
                raise
            status, reason = 1, " ".join(str(error).split())
            if options.json:
                print(json.dumps({**record, "states": [], "error": reason}))
            else:
                print(f"structure {k}: {record['formula']}\nnot computed: {reason}\n")
            continue
        if options.json:
            states = [
                {"charge": s.charge, "multiplicity": s.multiplicity, "energy": energy}
                for s, energy in found.energies.items()
            ]
            missing = {"missing": found.missing} if found.own else {}
            print(json.dumps({**record, "states": states, **found.differences, **missing}))
        else:
            print(f"structure {k}: {record['formula']}")
            _print(found)
    return status


class _Found(NamedTuple):
    """Energies of states, and if none were asked for, the own one's, differences, and reasons."""

    energies: dict[State, float]
    own: State | None
    differences: dict[str, float | None]
    missing: dict[str, str]


def _print(found: _Found) -> None:
    energies = found.energies
    zero = min(energies.values()) if found.own is None else energies[found.own]
    rows = [("charge", "mult.", "energy/eV", "relative/eV")]
    for s, energy in energies.items():
        cells = signed(s.charge), str(s.multiplicity), f"{energy:.6f}", f"{energy - zero:.6f}"
        rows.append(cells)
    print_table(rows)
    for name, value in found.differences.items():
        shown = f"not available: {found.missing[name]}" if value is None else f"{value:.4f} eV"
        print(f"{NAMES[name]:<20} {shown}")
    print()


def _found(atoms: Atoms, calculator: NNPCalculator, options: argparse.Namespace) -> _Found:
    """What is asked for of one structure."""
    from nnpcalc.states import vertical_energies

    if options.charges:
        return _Found(_listed(atoms, calculator, options), None, {}, {})
    found = vertical_energies(atoms, calculator)
    differences = {name: getattr(found, name) for name in NAMES}
    return _Found(dict(found.energies), found.state, differences, dict(found.missing))


def _listed(
    atoms: Atoms, calculator: NNPCalculator, options: argparse.Namespace
) -> dict[State, float]:
    """Energies of the states that the options ask for and that the molecule can have."""
    from nnpcalc.state import StateError
    from nnpcalc.states import as_state, state_energies

    states: list[Any] = list(options.charges)
    if options.multiplicities:
        states = []
        for charge in options.charges:
            for multiplicity in options.multiplicities:
                try:
                    states.append(as_state(atoms, (charge, multiplicity)))
                except StateError as error:
                    impossible = error
        if not states:
            raise StateError(f"none of the states asked for is possible: {impossible}")
    return {result.state: result.energy for result in state_energies(atoms, calculator, states)}
