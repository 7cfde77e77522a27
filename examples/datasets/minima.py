"""Geometries on the way to a model's minima, for a training set: where its soft modes go wrong.

    python minima.py --model tensornet-spice --data spice-aimnet2-*.npz --count 12000 --out minima
    cat minima/part-*.xyz > minima.xyz
    python spice_extension.py --teacher aimnet2_wb97m_ens_f.jpt --structures minima.xyz \\
        --first-molecule 4000000 --out relaxed

A corpus of conformers from hot dynamics teaches little about minima: there forces are small, and so
an error that dynamics forgives moves an atom of a flexible molecule by tenths of an ångström. A
round of active learning optimises training molecules with the model that is to be taught, labels
what it passes and where it ends, and trains on.

Of every molecule one random training conformer, in one piece, of 6 to 40 atoms, is optimised.
Frames are written as extended XYZ (total charge, and multiplicity if known, in the comment line):
after some steps, and the last. A shard depends on the options only, is whole or absent, and a run
that was stopped goes on with the next.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii
from ase.io import write
from run_record import begin
from scipy.sparse.csgraph import connected_components

from nnpcalc.optimizer import optimize

SIZES = (6, 40)  # atoms
PASSED = (6, 20)  # steps whose frames are kept, beside the last
FMAX, STEPS = 0.03, 200  # eV/Å; steps at most
SHARD = 1000  # molecules
KEPT = ("charge", "spin", "molecule")  # of what is known of a structure


def conformers(files: Sequence[Path], seed: int) -> list[Atoms]:
    """One training conformer of each molecule of the corpora, in random order.

    Args:
        files: corpora as `nnpcalc.train.data.read_npz` describes them. Without ``split`` all is for
            training; ``multiplicity`` becomes ``info["spin"]``.
        seed: of which conformer, and of the order.
    """
    generator = np.random.default_rng(seed)
    found: dict[int, tuple[float, Atoms]] = {}
    for path in files:
        with np.load(path) as data:
            size, molecule = data["n_atoms"], data["molecule"]
            numbers, positions, charge = data["numbers"], data["positions"], data["charge"]
            split, spin = data.get("split", np.zeros(size.size)), data.get("multiplicity")
        ends = np.cumsum(size)
        fits = (split == 0) & (size >= SIZES[0]) & (size <= SIZES[1])
        for k in np.flatnonzero(fits):
            lot, name = generator.random(), int(molecule[k])
            if lot < found.get(name, (2.0,))[0]:
                rows = slice(ends[k] - size[k], ends[k])
                info = {"charge": int(charge[k]), "molecule": name}
                if spin is not None:
                    info["spin"] = int(spin[k])
                found[name] = lot, Atoms(numbers[rows], positions[rows].astype(float), info=info)
    whole = [found[name][1] for name in sorted(found) if in_one_piece(found[name][1])]
    return [whole[k] for k in generator.permutation(len(whole))]


def in_one_piece(atoms: Atoms) -> bool:
    """Whether bonds hold all atoms together."""
    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances() < 1.25 * (radii[:, None] + radii)
    return connected_components(near)[0] == 1


def relaxed(
    molecules: Sequence[Atoms], model: str, steps: Sequence[int] = PASSED
) -> Iterator[Atoms]:
    """The frames of their optimisations to be labelled: after so many steps, and the last."""
    passed: list[Atoms] = []

    def observe(_: int, step: int, atoms: Atoms) -> None:
        if step in steps:
            passed.append(atoms.copy())

    results = optimize(molecules, model, fmax=FMAX, steps=STEPS, observe=observe)
    yield from passed
    for result in results:
        if np.isfinite(result.energy) and result.steps not in steps:
            yield result.atoms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", required=True, help="name or path")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="corpora, .npz")
    parser.add_argument("--count", type=int, required=True, help="molecules")
    parser.add_argument("--first", type=int, default=0, help="molecules of the order to skip")
    parser.add_argument(
        "--passed", type=int, nargs="*", default=PASSED, metavar="STEP",
        help="keep the frames after these steps too; none: minima only",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {"model": args.model, "seed": args.seed, "passed": args.passed}
    begin(args.out, {**settings, "data": [path.name for path in args.data]})
    molecules = conformers(args.data, args.seed)[args.first : args.first + args.count]
    for start in range(0, len(molecules), SHARD):
        path = args.out / f"part-{args.first + start:06d}.xyz"
        if path.exists():
            continue
        began, frames = time.monotonic(), []
        for atoms in relaxed(molecules[start : start + SHARD], args.model, args.passed):
            frame = Atoms(atoms.numbers, atoms.positions)
            frame.info = {key: atoms.info[key] for key in KEPT if key in atoms.info}
            frames.append(frame)
        unfinished = path.with_name(f".{path.name}")
        write(unfinished, frames, format="extxyz")
        unfinished.replace(path)
        seconds = time.monotonic() - began
        print(f"{path}: {len(frames)} frames, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
