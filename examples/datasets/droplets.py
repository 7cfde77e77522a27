"""Droplets for a training set: water, solutes in water and mixtures, where a model goes wrong.

    python droplets.py --teacher aimnet2_wb97m_ens_f.jpt --model tensornet-spice \\
        --smiles molecules.smi --count 90 --out droplets.xyz
    python spice_extension.py --teacher aimnet2_wb97m_ens_f.jpt --structures droplets.xyz \\
        --out droplets

A model that has seen molecules and small clusters only may hold well for them and yet let protons
hop in a droplet. Its own dynamics lead to such places fastest: a round of active learning labels
them, trains on, and looks again. Each droplet is packed at random, relaxed for some steps on the
teacher, then moved by Langevin dynamics of the model; frames of both are written as extended XYZ
(total charge and SMILES in the comment line). A frame whose forces on the model are not finite ends
a droplet's dynamics. Every droplet has its own seed; a run that was stopped goes on.

Kinds, in turn: water (12 to 48 molecules), a solute of ``--smiles`` (three in five are charged; up
to 20 atoms) in 12 to 32 waters, and 3 to 8 different neutral molecules of up to 14 atoms.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.io import read, write
from ase.optimize import FIRE
from rdkit import Chem, RDLogger
from spice_extension_labels import ELEMENTS, Structure, Teacher

from nnpcalc import md
from nnpcalc.smiles import from_smiles

VOLUME = 10.5  # Å^3 of an atom, on average, in water and in organic liquids
CONTACT = 1.6  # Å, the closest approach of two molecules when packed
CHARGED = 3 / 5  # how often a solute is
RELAXATION = (5, 10, 15, 20, 30, 40)  # steps whose frames are kept
DYNAMICS = (400, 40)  # steps of 1 fs, and how many lie between two frames
TEMPERATURES = (250.0, 600.0)
MAX_FORCE = 20.0  # eV/Å


class TeacherCalculator(Calculator):
    """The teacher behind ASE's interface."""

    implemented_properties = ("energy", "forces")

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        structure = Structure(0, atoms.numbers, atoms.positions.astype(np.float32),
                              atoms.info["charge"])  # fmt: skip
        (label,) = self.teacher([structure])
        self.results = {"energy": float(label["energy"]), "forces": label["forces"].astype(float)}


def packed(parts: Sequence[Atoms], generator: np.random.Generator) -> Atoms:
    """The molecules in a ball, turned at random, none closer than `CONTACT`; the first in it.

    The ball starts at the density of a liquid and grows while a molecule finds no place.
    """
    radius = (3.0 * VOLUME * sum(map(len, parts)) / (4.0 * np.pi)) ** (1 / 3)
    whole = Atoms()
    for part in parts:
        while True:
            one = part.copy()
            one.positions -= one.positions.mean(axis=0)
            one.positions = one.positions @ rotation(generator).T
            direction = generator.normal(size=3)
            distance = radius * generator.random() ** (1 / 3) if len(whole) else 0.0
            one.positions += direction / np.linalg.norm(direction) * distance
            gaps = np.linalg.norm(whole.positions[:, None] - one.positions, axis=2)
            if not len(whole) or gaps.min() >= CONTACT:
                break
            radius *= 1.002
        whole += one
    whole.info["charge"] = sum(part.info.get("charge", 0) for part in parts)
    return whole


def rotation(generator: np.random.Generator) -> np.ndarray:
    """A random rotation matrix [3, 3], all equally likely."""
    q, r = np.linalg.qr(generator.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def usable(smiles: str, largest: int, charged: bool) -> bool:
    """Whether a SMILES is one closed-shell molecule of the wanted size and kind of charge."""
    found = Chem.MolFromSmiles(smiles)
    if found is None or "." in smiles:
        return False
    found = Chem.AddHs(found)
    return (
        3 <= found.GetNumAtoms() <= largest
        and bool(Chem.GetFormalCharge(found)) == charged
        and all(a.GetAtomicNum() in ELEMENTS for a in found.GetAtoms())
        and not any(a.GetNumRadicalElectrons() for a in found.GetAtoms())
    )


def choose(lines: list[str], generator: np.random.Generator, n: int, **wanted) -> list[str]:
    """n different lines that are `usable`."""
    chosen: list[str] = []
    for row in generator.permutation(len(lines)):
        if usable(lines[row], **wanted) and lines[row] not in chosen:
            chosen.append(lines[row])
            if len(chosen) == n:
                return chosen
    raise ValueError(f"the SMILES hold fewer than {n} molecules with {wanted}")


def droplet(kind: int, lines: list[str], generator: np.random.Generator) -> Atoms:
    """A droplet of kind 0, 1 or 2 as told above; its SMILES in ``info["smiles"]``."""
    water = molecule("H2O")
    if kind == 0:
        n = int(generator.integers(12, 49))
        names, parts = ["O"] * n, [water] * n
    elif kind == 1:
        charged = bool(generator.random() < CHARGED)
        names = choose(lines, generator, 1, largest=20, charged=charged)
        n = int(generator.integers(12, 33))
        parts = [from_smiles(names[0], seed=1), *[water] * n]
        names = names + ["O"] * n
    else:
        n = int(generator.integers(3, 9))
        names = choose(lines, generator, n, largest=14, charged=False)
        parts = [from_smiles(name, seed=1) for name in names]
    whole = packed(parts, generator)
    whole.info["smiles"] = ".".join(names)
    return whole


def relaxed(atoms: Atoms, teacher: Teacher) -> list[Atoms]:
    """Frames on the way downhill on the teacher; `atoms` ends at the last one."""
    frames: list[Atoms] = []
    atoms.calc = TeacherCalculator(teacher)
    search = FIRE(atoms, logfile=None, maxstep=0.1)
    for step, _ in enumerate(search.irun(fmax=0.05, steps=RELAXATION[-1])):
        if step in RELAXATION and np.abs(atoms.get_forces()).max() < MAX_FORCE:
            frames.append(plain(atoms))
    atoms.calc = None
    return frames


def moved(atoms: Atoms, model: str, temperature: float, seed: int) -> list[Atoms]:
    """Frames of dynamics on the model, until it diverges."""
    frames: list[Atoms] = []
    steps, interval = DYNAMICS

    def keep(frame: md.Frame) -> None:
        if frame.state.step and float(frame.state.forces.abs().max()) < 2.0 * MAX_FORCE:
            one = plain(atoms)
            one.positions = frame.state.positions.numpy()
            frames.append(one)

    integrator = md.Langevin(1.0, temperature=temperature, friction=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", md.MDWarning)
        try:
            md.run(atoms, model, integrator, steps, seed=seed, temperature=temperature,
                   interval=interval, report=keep)  # fmt: skip
        except md.SimulationDiverged:
            pass  # the frames before are what was looked for
    return frames


def plain(atoms: Atoms) -> Atoms:
    """A copy without calculator and momenta."""
    copy = Atoms(atoms.numbers, atoms.positions)
    copy.info = {"charge": int(atoms.info["charge"]), "smiles": atoms.info["smiles"]}
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True, help="a TorchScript ensemble")
    parser.add_argument("--model", required=True, help="name or path of the model to be taught")
    parser.add_argument("--smiles", type=Path, required=True, help="one molecule a line")
    parser.add_argument("--count", type=int, default=90, help="droplets")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="extended XYZ")
    args = parser.parse_args()
    torch.set_num_threads(1)
    RDLogger.DisableLog("rdApp.*")
    lines = [line.split()[0] for line in args.smiles.read_text().splitlines() if line.strip()]
    teacher = Teacher(args.teacher)
    done = set()
    if args.out.exists():
        done = {frame.info["droplet"] for frame in read(args.out, ":")}
    for number in range(args.first, args.first + args.count):
        if number in done:
            continue
        generator = np.random.default_rng([args.seed, number])
        atoms = droplet(number % 3, lines, generator)
        frames = relaxed(atoms, teacher)
        down = len(frames)
        frames += moved(atoms, args.model, generator.uniform(*TEMPERATURES), number)
        for frame in frames:
            frame.info["droplet"] = number
        write(args.out, frames, format="extxyz", append=True)
        what = f"{atoms.get_chemical_formula()}, charge {atoms.info['charge']:+d}"
        print(f"droplet {number}: {what}, {down} frames of relaxation, {len(frames) - down} of "
              "dynamics", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
