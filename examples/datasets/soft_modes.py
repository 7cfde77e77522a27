"""Add to a corpus the directions in which molecules give way: for `[training] shift_weight`.

    python soft_modes.py --model tensornet-spice --out modes relaxed/part-*.npz
    python soft_modes.py --out soft spice-aimnet2-*.npz

Where a minimum lies is decided by its softest modes, the turning of groups above all. They are
few, and the forces along them small: a mean over forces hardly sees an error there, though it moves
the minimum by tenths of an ångström. With the array ``soft_modes`` [A, 12, 3] (float16, Å^2/eV)
training can weigh what an error of the forces dF does to the geometry, dx = H^-1 dF, with the
Hessian H of the model that is to be taught:

    dx = sum_m v_m (v_m . dF) / k_m     (eigenvectors v_m, eigenvalues k_m of H)

The files are written again under the same names into another directory, with the new array. It
holds v_m / max(|k_m|, 0.05 eV/Å^2) for the twelve softest modes, translations and rotations
projected out. With ``--model`` Hessians are central differences of its forces, a third of a second
each, and only conformers at rest have modes, on which the model, or the label, has no force
component above ``--fmax``; all others get zeros. Without, the model Hessian of Lindh stands in
(`model_hessian.py`), some milliseconds, for every conformer of more than two atoms: less exact, but
what it says along soft modes a hundred times as many conformers can teach, hot ones too.

A file is whole or absent, and a run that was stopped goes on with the next.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from model_hessian import lindh_hessian
from run_record import begin

from nnpcalc import NNPCalculator
from nnpcalc.md import ModelForceField
from nnpcalc.normal_modes import difference_hessian

MODES = 12
SOFTEST = 0.05  # eV/Å^2; eigenvalues count as no less
DISPLACEMENT = 0.01  # Å
CHUNK = 2000  # structures evaluated at once
NO_MODES = np.zeros((0, MODES, 3), np.float16)  # of a file without conformers


def read(path: Path) -> list[Atoms]:
    """The conformers of a corpus; the largest label of a force component in `info["force"]`.

    `info["spin"]` is the multiplicity if the file has that array.
    """
    with np.load(path) as data:
        n, charge, spin = data["n_atoms"], data["charge"], data.get("multiplicity")
        numbers, positions = data["numbers"], data["positions"].astype(float)
        largest = np.abs(data["forces"].astype(float)).max(1)
    molecules = []
    for k, end in enumerate(np.cumsum(n)):
        rows = slice(end - n[k], end)
        info = {"charge": int(charge[k]), "force": float(largest[rows].max())}
        if spin is not None:
            info["spin"] = int(spin[k])
        molecules.append(Atoms(numbers[rows], positions[rows], info=info))
    return molecules


def forces_of(molecules: Sequence[Atoms], model: NNPCalculator) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for start in range(0, len(molecules), CHUNK):
        for result in model.evaluate(molecules[start : start + CHUNK]):
            assert result.forces is not None
            found.append(result.forces)
    return found


def hessian(atoms: Atoms, model: NNPCalculator) -> np.ndarray:
    """The model's second derivatives [3n, 3n], eV/Å^2, by central differences of forces."""
    field = ModelForceField(model)
    return difference_hessian(field.batch([atoms]), field, DISPLACEMENT)


def inner_motions(positions: np.ndarray) -> np.ndarray:
    """An orthonormal basis [3n, K] of what is neither translation nor rotation."""
    n = len(positions)
    arms = positions - positions.mean(0)
    outer = [np.tile(axis, n) for axis in np.eye(3)]
    outer += [np.cross(axis, arms).reshape(-1) for axis in np.eye(3)]
    left, size, _ = np.linalg.svd(np.stack(outer, 1), full_matrices=True)
    return left[:, int((size > 1e-3 * size.max()).sum()) :]


def soft_modes(second_derivatives: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The softest modes over their eigenvalues [n, 12, 3], Å^2/eV; zeros where there are fewer."""
    basis = inner_motions(positions)
    stiffness, vectors = np.linalg.eigh(basis.T @ second_derivatives @ basis)
    softest = np.argsort(np.abs(stiffness))[:MODES]
    modes = basis @ vectors[:, softest] / np.maximum(np.abs(stiffness[softest]), SOFTEST)
    result = np.zeros((len(positions), MODES, 3))
    result[:, : len(softest)] = modes.reshape(len(positions), 3, -1).transpose(0, 2, 1)
    return result


def of_any(molecules: Sequence[Atoms]) -> np.ndarray:
    """The array for the conformers of a file by the model Hessian: [A, 12, 3], float16."""
    found = [NO_MODES]
    for atoms in molecules:
        modes = np.zeros((len(atoms), MODES, 3))
        if len(atoms) > 2:
            modes = soft_modes(lindh_hessian(atoms.numbers, atoms.positions), atoms.positions)
        found.append(modes.astype(np.float16))
    return np.concatenate(found)


def of_resting(molecules: Sequence[Atoms], model: NNPCalculator, fmax: float) -> np.ndarray:
    """The array for the conformers of a file by the model's own Hessian: [A, 12, 3], float16."""
    own = [np.abs(forces).max() for forces in forces_of(molecules, model)]
    found = [np.zeros((len(atoms), MODES, 3)) for atoms in molecules]
    for k, atoms in enumerate(molecules):
        if len(atoms) > 2 and min(own[k], atoms.info["force"]) <= fmax:
            found[k] = soft_modes(hessian(atoms, model), atoms.positions)
    return np.concatenate([NO_MODES, *found]).astype(np.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("files", type=Path, nargs="+", help="corpora, .npz")
    parser.add_argument("--model", help="name or path; none: Lindh's model Hessian, for all")
    parser.add_argument("--fmax", type=float, default=0.05, help="eV/Å, of a minimum")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for source in args.files:
        if (args.out / source.name).resolve() == source.resolve():
            parser.error(f"{source} lies in --out: name another directory")
        with np.load(source) as data:
            if "soft_modes" in data:
                parser.error(f"{source} has soft_modes already: give the file it was made from")
    begin(args.out, {"model": args.model, "fmax": args.fmax})
    model = NNPCalculator(args.model) if args.model else None
    for source in args.files:
        path = args.out / source.name
        if path.exists():
            continue
        began = time.monotonic()
        molecules = read(source)
        modes = of_resting(molecules, model, args.fmax) if model else of_any(molecules)
        with np.load(source) as data:
            arrays = {name: data[name] for name in data.files}
        count = int(np.logical_or.reduceat(modes.any((1, 2)), np.cumsum(arrays["n_atoms"])
                                           - arrays["n_atoms"]).sum())  # fmt: skip
        unfinished = path.with_name(f".{path.name}")
        np.savez_compressed(unfinished, **arrays, soft_modes=modes)
        unfinished.replace(path)
        seconds = time.monotonic() - began
        print(
            f"{path}: {count} of {len(arrays['n_atoms'])} with modes, {seconds:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
