"""A small periodic box of water: stress, pressure, and relaxing the cell.

The box may be smaller than twice the cutoff of the model: all images within it are taken.

    python examples/05_periodic_stress.py --side 3
"""

from __future__ import annotations

import argparse

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from nnpcalc import NNPCalculator

WATER_VOLUME = 29.9  # Å^3 per molecule at 1 g/cm^3


def water_box(side: int, seed: int) -> Atoms:
    """side^3 molecules on a grid, turned at random, in a periodic cube of liquid density."""
    rng = np.random.default_rng(seed)
    spacing = WATER_VOLUME ** (1.0 / 3.0)
    box = Atoms(cell=[side * spacing] * 3, pbc=True)
    for corner in np.ndindex(side, side, side):
        water = molecule("H2O")
        water.positions -= water.get_center_of_mass()
        water.rotate(rng.uniform(0.0, 360.0), rng.normal(size=3))
        water.positions += (np.array(corner) + 0.5) * spacing
        box += water
    return box


def report(name: str, atoms: Atoms) -> None:
    stress = atoms.get_stress(voigt=False)
    pressure = -np.trace(stress) / 3.0 / units.GPa
    forces = np.linalg.norm(atoms.get_forces(), axis=1)
    mass = atoms.get_masses().sum() / units.kg * 1000.0
    density = mass / (atoms.get_volume() * 1e-24)
    print(
        f"{name:14} {atoms.get_potential_energy() / len(atoms):12.4f} {forces.max():10.3f} "
        f"{pressure:10.2f} {density:10.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Stress of a water box and a few cell steps.")
    parser.add_argument("--model", default="tensornet-spice", help="shipped name or path")
    parser.add_argument("--side", type=int, default=3, help="molecules along an edge")
    parser.add_argument("--steps", type=int, default=40, help="steps with the cell fixed")
    parser.add_argument("--cell-steps", type=int, default=15, help="steps with the cell free")
    parser.add_argument("--seed", type=int, default=1, help="of the orientations")
    options = parser.parse_args()

    atoms = water_box(options.side, options.seed)
    atoms.calc = NNPCalculator(options.model)
    edge = atoms.cell.lengths()[0]
    cutoff = atoms.calc.potential.cutoff
    print(f"{len(atoms) // 3} waters in a cube of {edge:.2f} Å, cutoff {cutoff:.1f} Å")
    print(f"{'':14} {'eV/atom':>12} {'max F eV/Å':>10} {'P / GPa':>10} {'g/cm^3':>10}")
    report("start", atoms)
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=options.steps)
    report("atoms relaxed", atoms)
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.05, steps=options.cell_steps)
    report("cell relaxed", atoms)
    with np.printoptions(precision=4, suppress=True):
        print("stress / GPa (xx yy zz yz xz xy):", atoms.get_stress() / units.GPa)


if __name__ == "__main__":
    main()
