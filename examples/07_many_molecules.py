"""Relax twenty molecules at once; vibrations and states of one of them.

python examples/07_many_molecules.py --output relaxed.xyz
"""

from __future__ import annotations

import argparse
import time

from ase import Atoms
from ase.build import molecule
from ase.io import write

import nnpcalc

NEUTRAL = [
    "H2O", "NH3", "CH4", "CH3OH", "CH3CH2OH", "H2CO", "HCOOH", "CH3COOH", "CH3CONH2", "H3CNH2",
    "C2H4", "C2H6", "C6H6", "CH3SH", "CH3CN", "CH3Cl", "CH3OCH3", "CO2",
]  # fmt: skip


def molecules() -> list[Atoms]:
    """Eighteen neutral molecules and two ions, as ASE has them or with a proton more or less."""
    found = [molecule(name) for name in NEUTRAL]
    ammonium = Atoms("NH4", molecule("CH4").positions, info={"charge": 1})
    formate = molecule("HCOOH")
    del formate[3]  # the proton of the OH group
    formate.info["charge"] = -1
    return [*found, ammonium, formate]


def main() -> None:
    parser = argparse.ArgumentParser(description="Many molecules in one go.")
    parser.add_argument("--model", default="tensornet-spice", help="shipped name or path")
    parser.add_argument("--output", help="write the relaxed structures to this file")
    options = parser.parse_args()

    start = time.perf_counter()
    results = nnpcalc.optimize(molecules(), options.model, fmax=0.01)
    seconds = time.perf_counter() - start
    print("molecule    charge    energy/eV   fmax/(eV/Å)  steps")
    for found in results:
        atoms = found.atoms
        print(
            f"{atoms.get_chemical_formula():<10} {atoms.info.get('charge', 0):+6d} "
            f"{found.energy:14.4f} {found.fmax:12.4f} {found.steps:6d}   {found.reason}"
        )
    print(f"{sum(found.converged for found in results)} converged in {seconds:.1f} s")
    if options.output:
        write(options.output, [found.atoms for found in results])
        print(f"written: {options.output}")

    # frequencies want a tighter minimum, hence float64
    tight = nnpcalc.optimize(results[3].atoms, options.model, fmax=1e-3, dtype="float64")
    modes = nnpcalc.vibrations(tight.atoms, options.model)
    gas = modes.thermochemistry(298.15, symmetry_number=1)
    print(f"\nmethanol: {len(modes.frequencies)} vibrations, cm^-1:")
    print("  " + " ".join(f"{frequency:.0f}" for frequency in modes.frequencies))
    print(f"  zero-point energy {modes.zero_point_energy:.3f} eV")
    print(f"  entropy {96485.3 * gas.entropy:.1f} J/(mol K) at 298.15 K and 1 atm")

    # a model that knows unpaired electrons; its labels are semi-empirical
    methylene = molecule("CH2_s3B1d")
    states = nnpcalc.vertical_energies(methylene, "tensornet-spin-xtb")
    print(f"\nmethylene: the triplet lies {states.singlet_triplet_gap:+.2f} eV from the singlet")


if __name__ == "__main__":
    main()
