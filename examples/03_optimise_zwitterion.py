"""Relax the glycine zwitterion between three waters, and see whether the proton stays.

Neutral in total, charged in its parts; in vacuum alone, glycine would rather be an acid.

    python examples/03_optimise_zwitterion.py --output relaxed.xyz
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ase import Atoms
from ase.io import write
from ase.optimize import BFGS

from nnpcalc import NNPCalculator

# From a force field (MMFF94): ammonium and carboxylate ends, bridged by three waters.
SYMBOLS = "NCCOOOOOHHHHHHHHHHH"
POSITIONS = [
    (-0.77, -1.12, 0.63), (0.72, -1.22, 0.51), (1.31, -0.40, -0.66), (0.85, -0.72, -1.80),
    (2.07, 0.56, -0.33), (1.13, 2.72, 0.66), (-1.54, -1.52, -1.91), (-1.16, 1.41, 1.20),
    (-1.02, -0.13, 0.83), (-1.20, -1.73, 1.33), (-1.19, -1.32, -0.31), (1.13, -0.90, 1.47),
    (0.95, -2.28, 0.37), (1.61, 1.94, 0.26), (1.73, 3.42, 0.36), (-1.93, -1.57, -2.80),
    (-0.62, -1.22, -2.16), (-1.76, 2.18, 1.29), (-0.31, 1.91, 1.06),
]  # fmt: skip
NITROGEN = 0
CARBOXYLATE = (3, 4)


def bonded_hydrogens(atoms: Atoms, atom: int) -> int:
    """Hydrogens within 1.25 Å of an atom."""
    distances = atoms.get_distances(atom, range(len(atoms)))
    return int(((distances < 1.25) & (atoms.numbers == 1)).sum())


def describe(atoms: Atoms) -> str:
    oxygen = sum(bonded_hydrogens(atoms, k) for k in CARBOXYLATE)
    n_h = bonded_hydrogens(atoms, NITROGEN)
    kind = "zwitterion" if (n_h, oxygen) == (3, 0) else "not a zwitterion"
    return f"{n_h} H on N, {oxygen} H on the carboxyl group: {kind}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Relax glycine(+-) with three waters by BFGS.")
    parser.add_argument("--model", default="tensornet-spice", help="shipped name or path")
    parser.add_argument("--fmax", type=float, default=0.03, help="largest force left, eV/Å")
    parser.add_argument("--steps", type=int, default=400, help="at most so many steps")
    parser.add_argument("--output", type=Path, help="write the relaxed structure to this file")
    options = parser.parse_args()

    atoms = Atoms(SYMBOLS, POSITIONS, info={"charge": 0})
    atoms.calc = NNPCalculator(options.model)
    start = atoms.get_potential_energy()
    print(f"start:   {start:.4f} eV, {describe(atoms)}")

    optimiser = BFGS(atoms, logfile=None)

    def report() -> None:
        if optimiser.nsteps % 25 == 0:
            gained = atoms.get_potential_energy() - start
            print(f"  step {optimiser.nsteps:4d}   {gained:8.4f} eV")

    optimiser.attach(report)
    converged = optimiser.run(fmax=options.fmax, steps=options.steps)
    state = f"relaxed to {options.fmax} eV/Å" if converged else "not converged"
    print(
        f"end:     {atoms.get_potential_energy():.4f} eV after {optimiser.nsteps} steps, {state}, "
        f"{describe(atoms)}"
    )
    if options.output:
        write(options.output, atoms)
        print(f"written: {options.output}")


if __name__ == "__main__":
    main()
