"""Does a committee's disagreement tell where it is wrong?

    python committee.py tensornet-spice tensornet-spice-2 --data DIRECTORY/spice-aimnet2-*.npz

Validation conformers of labelled files: mean absolute errors of each member and of their mean, and,
for tenths of the conformers from the most agreed upon to the least, how far the members disagree
about the forces and how far their mean is off. If the two went together perfectly, both columns
would grow alike and the rank correlation would be 1.

Prints Markdown; `--json` writes the numbers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from ase import Atoms

from nnpcalc import NNPCalculator
from nnpcalc.train.readers import read_dataset


def structures(dataset, rows) -> list[Atoms]:
    """Conformers as ASE sees them."""
    found = []
    for row in rows:
        atoms = slice(dataset.offsets[row], dataset.offsets[row + 1])
        info = {"charge": int(dataset.charge[row]), "spin": int(dataset.multiplicity[row])}
        found.append(Atoms(dataset.numbers[atoms], dataset.positions[atoms], info=info))
    return found


def ranks(x: np.ndarray) -> np.ndarray:
    """Place of each value in the sorted row."""
    return np.argsort(np.argsort(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("models", nargs="+", help="two or more names or paths")
    parser.add_argument("--data", nargs="+", required=True, help="npz files with a split")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    _, dataset = read_dataset(args.data)
    molecules = structures(dataset, range(len(dataset)))
    labels = [
        dataset.forces[dataset.offsets[k] : dataset.offsets[k + 1]] for k in range(len(dataset))
    ]

    rows, result = [], {}
    for model in [*args.models, args.models]:
        calculator = NNPCalculator(model)
        found = [
            r
            for k in range(0, len(molecules), 200)
            for r in calculator.evaluate(molecules[k : k + 200])
        ]
        off = np.array([np.abs(r.forces - f).mean() for r, f in zip(found, labels, strict=True)])
        energies = np.array([r.energy for r in found])
        per_atom = 1e3 * np.abs(energies - dataset.energy) / dataset.n_atoms
        forces = 1e3 * np.average(off, weights=dataset.n_atoms)
        name = "mean of all" if isinstance(model, list) else model
        rows.append((name, per_atom.mean(), forces))
        result[name] = {"energy_mae": per_atom.mean(), "force_mae": forces}
    print(f"{len(dataset)} validation conformers\n\n| model | meV/atom | meV/Å |\n|---|---|---|")
    for name, energy, force in rows:
        print(f"| {name} | {energy:.2f} | {force:.1f} |")

    # off and energies are those of the committee, which came last
    spread = np.array([r.forces_uncertainty.mean() / np.sqrt(3.0) for r in found])
    energy_spread = np.array([r.energy_uncertainty for r in found])
    for what, x, y in (
        ("forces", spread, off),
        ("energies", energy_spread, np.abs(energies - dataset.energy)),
    ):
        correlation = float(np.corrcoef(ranks(x), ranks(y))[0, 1])
        result[f"rank_correlation_{what}"] = correlation
        print(f"\nRank correlation of disagreement and error of the {what}: {correlation:.2f}")
    print("\n| tenth | members disagree by, meV/Å | mean is off by, meV/Å |\n|---|---|---|")
    tenths = np.array_split(np.argsort(spread), 10)
    for k, tenth in enumerate(tenths):
        print(f"| {k + 1} | {1e3 * spread[tenth].mean():.0f} | {1e3 * off[tenth].mean():.0f} |")
    result["tenths"] = [[float(spread[t].mean()), float(off[t].mean())] for t in tenths]
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
