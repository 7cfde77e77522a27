"""Acids and bases in several charge states, all in one pass, and what a wrong state says.

Each molecule is computed with its charge from `info`. Proton affinities follow as differences of
energies, E(base) - E(acid), since a bare proton has none; at fixed geometries and without
vibrations they come out some 40 kJ/mol above the measured enthalpies.

    python examples/02_charge_states.py
"""

from __future__ import annotations

import argparse

import numpy as np
from ase import Atoms
from ase.build import molecule

from nnpcalc import NNPCalculator
from nnpcalc.units import KJ_PER_MOL

#: Enthalpies of protonation in the gas phase, kJ/mol, from the NIST WebBook.
MEASURED = {"ammonia": 853.6, "formate": 1449.0, "acetate": 1456.0}


def protonated(base: Atoms, atom: int, direction: tuple[float, float, float]) -> Atoms:
    """The molecule with a proton 1.02 Å from one of its atoms, and one charge more."""
    acid = base + Atoms("H", [base.positions[atom] + 1.02 * np.array(direction)])
    acid.info["charge"] = base.info.get("charge", 0) + 1
    return acid


def deprotonated(acid: Atoms, hydrogen: int) -> Atoms:
    """The molecule without one of its hydrogens, and one charge less."""
    base = acid.copy()
    del base[hydrogen]
    base.info["charge"] = acid.info.get("charge", 0) - 1
    return base


def pairs() -> dict[str, tuple[Atoms, Atoms]]:
    """Bases and their acids."""
    ammonia, formic, acetic = molecule("NH3"), molecule("HCOOH"), molecule("CH3COOH")
    return {
        "ammonia": (ammonia, protonated(ammonia, atom=0, direction=(0.0, 0.0, 1.0))),
        "formate": (deprotonated(formic, hydrogen=3), formic),
        "acetate": (deprotonated(acetic, hydrogen=3), acetic),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Charge states in one batch.")
    parser.add_argument("--model", default="tensornet-spice", help="shipped name or path")
    options = parser.parse_args()

    calc = NNPCalculator(options.model)
    listed = [atoms for pair in pairs().values() for atoms in pair]
    results = calc.evaluate(listed)
    print(
        f"{'molecule':10} {'charge':>6} {'2S+1':>5} {'energy/eV':>14} {'largest force/(eV/Å)':>22}"
    )
    for atoms, result in zip(listed, results, strict=True):
        largest = np.linalg.norm(result.forces, axis=1).max()
        print(
            f"{atoms.get_chemical_formula():10} {result.state.charge:+6d} "
            f"{result.state.multiplicity:5d} {result.energy:14.4f} {largest:22.3f}"
        )
    print("\nproton affinities, kJ/mol:")
    for k, (name, measured) in enumerate(MEASURED.items()):
        affinity = (results[2 * k].energy - results[2 * k + 1].energy) / KJ_PER_MOL
        print(f"  {name:10} {affinity:6.0f}   measured {measured:6.0f}")

    # The charge is read at every call; nothing is remembered, and nothing impossible is computed.
    water = molecule("H2O")
    water.calc = calc
    print("\nwhat cannot be is an error:")
    for charge, multiplicity in ((+1, 1), (+5, 2)):
        water.info.update(charge=charge, spin=multiplicity)
        try:
            water.get_potential_energy()
        except ValueError as error:
            print(f"  {error}")


if __name__ == "__main__":
    main()
