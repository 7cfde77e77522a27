"""The first minute: load a shipped model, set charges, relax water, formate and ammonium.

python examples/01_quickstart.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.optimize import BFGS

from nnpcalc import NNPCalculator

CORNERS = np.array([(0, 0, 0), (1, 1, 1), (-1, -1, 1), (-1, 1, -1), (1, -1, -1)])


def molecules() -> dict[str, Atoms]:
    """Rough geometries; a molecule's total charge is a key of `info`, absent means 0."""
    water = molecule("H2O")
    water.rattle(0.05, seed=1)
    formate = Atoms("CO2H", [(0, 0, 0), (1.15, 0, 0.5), (-1.15, 0, 0.5), (0, 0, -1.1)])
    formate.info["charge"] = -1
    ammonium = Atoms("NH4", 0.62 * CORNERS)
    ammonium.info["charge"] = +1
    return {"water": water, "formate": formate, "ammonium": ammonium}


def main() -> None:
    parser = argparse.ArgumentParser(description="Relax a neutral molecule, an anion and a cation.")
    parser.add_argument("--model", default="tensornet-spice", help="shipped name or path")
    parser.add_argument("--fmax", type=float, default=0.02, help="largest force left, eV/Å")
    options = parser.parse_args()

    start = time.perf_counter()
    calc = NNPCalculator(options.model)
    backend = calc.backend
    print(
        f"{options.model} on {backend.device}: {backend.name} ({backend.reason}), {backend.dtype}"
    )
    print(
        f"{'molecule':10} {'charge':>6} {'energy/eV':>14} {'largest force/(eV/Å)':>24} {'steps':>6}"
    )
    relaxed = molecules()
    for name, atoms in relaxed.items():
        atoms.calc = calc
        before = np.linalg.norm(atoms.get_forces(), axis=1).max()
        optimiser = BFGS(atoms, logfile=None)
        optimiser.run(fmax=options.fmax, steps=200)
        after = np.linalg.norm(atoms.get_forces(), axis=1).max()
        print(
            f"{name:10} {calc.state.charge:+6d} {atoms.get_potential_energy():14.4f} "
            f"{before:14.3f} -> {after:6.3f} {optimiser.nsteps:6d}"
        )
    water = relaxed["water"]
    print(
        f"water: O-H {water.get_distance(0, 1):.3f} Å (measured 0.958), "
        f"H-O-H {water.get_angle(1, 0, 2):.1f}° (measured 104.5)"
    )
    print(f"done in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
