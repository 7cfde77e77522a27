"""Two toy sets in which a geometry does not tell the energy: A by charge, B by spin.

    python toy_sets.py A --output toy-a        python toy_sets.py B --output toy-b

In the spirit of the toy sets of arXiv 2403.15073, whose molecules could not be had: 2,000
geometries of each of a few small molecules, and each geometry labelled in every state, so that the
inputs of the states are exactly the same. A: charges, stock GFN2-xTB. B: singlet and triplet,
spin-polarised GFN2-xTB. Needs tblite, ase, numpy, rdkit.

An equal share of the geometries comes from each state: relaxed in it, then displaced along its
normal modes by the thermal distribution of quantum oscillators at 300 to 500 K, so that
geometries are independent of each other. A geometry that cannot be had in all states is
replaced. One fifth of them is for validation, with all states. ``molecule`` and ``source`` are the
number in the list below.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass

import numpy as np
from ase import units
from ase.data import atomic_masses
from rdkit import Chem, RDLogger
from xtb import XTB, Frame, Made, Surface, Unusable, embed, label, make_shards, relax

HELD = 0.2
SOFTEST = 200.0 * units.invcm  # softer modes move as if this stiff: they are not harmonic


@dataclass(frozen=True)
class Molecule:
    """A molecule, and the charges and multiplicities that its geometries are labelled in."""

    name: str
    smiles: str
    states: tuple[tuple[int, int], ...]


ION_PAIR = ((0, 1), (1, 2), (-1, 2))
SPINS = ((0, 1), (0, 3))

SETS: dict[str, tuple[Molecule, ...]] = {
    "A": (
        Molecule("formaldehyde", "C=O", ION_PAIR),
        Molecule("ethylene", "C=C", ION_PAIR),
        Molecule("acetaldehyde", "CC=O", ION_PAIR),
        Molecule("pyrrole", "c1cc[nH]c1", ION_PAIR),
        Molecule("sulfur dioxide", "O=S=O", ION_PAIR),
        Molecule("p-benzoquinone", "O=C1C=CC(=O)C=C1", ((0, 1), (-1, 2), (-2, 1))),
        Molecule("tropylium", "c1cc[cH+]ccc1", ((0, 2), (1, 1), (-1, 1))),
        Molecule("silver trimer", "[Ag]1[Ag][Ag]1", ((1, 1), (-1, 1))),
    ),
    "B": (
        Molecule("methylene", "[CH2]", SPINS),
        Molecule("imidogen", "[NH]", SPINS),
        Molecule("oxygen", "O=O", SPINS),
        Molecule("formaldehyde", "C=O", SPINS),
        Molecule("ethylene", "C=C", SPINS),
        Molecule("sulfur dioxide", "O=S=O", SPINS),
        Molecule("acetaldehyde", "CC=O", SPINS),
        Molecule("trimethylenemethane", "[CH2]C([CH2])=C", SPINS),
    ),
}


def rigid_motions(masses: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Orthonormal translations and rotations in mass-weighted coordinates: [5 or 6, 3 N]."""
    root = np.sqrt(masses)[:, None]
    centred = positions - np.average(positions, axis=0, weights=masses)
    moves = [root * axis for axis in np.eye(3)]
    moves += [root * np.cross(axis, centred) for axis in np.eye(3)]
    _, size, basis = np.linalg.svd(np.array([move.ravel() for move in moves]))
    return basis[: int((size > 1e-3 * size[0]).sum())]


def normal_modes(
    surface: Surface, numbers: np.ndarray, positions: np.ndarray, step: float = 0.005
) -> tuple[np.ndarray, np.ndarray]:
    """Vibrations by central differences of the forces.

    Returns:
        Quanta ħω [V], eV, and displacements of unit length in mass-weighted coordinates
        [V, N, 3]. A mode along which the energy falls has the quantum of its absolute curvature.
    """
    masses = atomic_masses[numbers]
    n = positions.size
    hessian = np.empty((n, n))
    for k in range(n):
        move = np.zeros(n)
        move[k] = step
        moves = move.reshape(-1, 3)
        _, plus = surface(positions + moves)
        _, minus = surface(positions - moves)
        hessian[k] = (minus - plus).ravel() / (2.0 * step)
    root = np.repeat(np.sqrt(masses), 3)
    weighted = 0.5 * (hessian + hessian.T) / np.outer(root, root)
    rigid = rigid_motions(masses, positions)
    rest = np.linalg.svd(rigid)[2][len(rigid) :]  # the complement of the rigid motions
    curvature, mix = np.linalg.eigh(rest @ weighted @ rest.T)
    hbar = units._hbar * units.J * units.s
    return hbar * np.sqrt(np.abs(curvature)), (mix.T @ rest).reshape(-1, *positions.shape)


def displace(
    numbers: np.ndarray,
    positions: np.ndarray,
    quanta: np.ndarray,
    modes: np.ndarray,
    temperature: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """One geometry of harmonic oscillators in equilibrium.

    The density of an oscillator's thermal mixture of states is a Gaussian with
    <x^2> = ħ / (2 ω) coth(ħω / 2 kT) in mass-weighted coordinates.
    """
    hbar = units._hbar * units.J * units.s
    quanta = np.maximum(quanta, SOFTEST)
    variance = 0.5 * hbar**2 / quanta / np.tanh(0.5 * quanta / (units.kB * temperature))
    amplitudes = np.sqrt(variance) * generator.normal(size=len(quanta))
    weighted = np.tensordot(amplitudes, modes, axes=1)
    return positions + weighted / np.sqrt(atomic_masses[numbers])[:, None]


def start_of(molecule: Molecule, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers and embedded positions."""
    structure = Chem.AddHs(Chem.MolFromSmiles(molecule.smiles))
    numbers = np.array([atom.GetAtomicNum() for atom in structure.GetAtoms()])
    return numbers, embed(structure, seed)


def toy_frames(task: tuple[str, int], geometries: int, seed: int) -> Made:
    """All geometries of one molecule in all its states."""
    RDLogger.DisableLog("rdApp.*")
    name, index = task
    molecule = SETS[name][index]
    spin_polarised = name == "B"
    generator = np.random.default_rng([seed, ord(name), index])
    numbers, start = start_of(molecule, seed)
    frames: list[Frame] = []
    left_out: Counter[str] = Counter()
    for k, state in enumerate(molecule.states):
        surface = XTB(numbers, *state, spin_polarised)
        shaken = start + generator.normal(scale=0.05, size=start.shape)  # off any symmetric saddle
        *_, relaxed = (shaken, *relax(surface, shaken, 1000, tolerance=0.01))
        quanta, modes = normal_modes(surface, numbers, relaxed)
        wanted = (k + 1) * geometries // len(molecule.states)
        while len(frames) < wanted * len(molecule.states):
            temperature = generator.uniform(300.0, 500.0)
            positions = displace(numbers, relaxed, quanta, modes, temperature, generator)
            split = int(generator.random() < HELD)
            try:
                frames += [
                    label(
                        numbers, positions, *one, spin_polarised=spin_polarised,
                        molecule=index, source=index, split=split,
                    )
                    for one in molecule.states
                ]  # fmt: skip
            except Unusable as reason:
                left_out[str(reason)] += 1
    return frames, dict(left_out)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("set", choices=sorted(SETS))
    parser.add_argument("--output", required=True, help="directory of the shards")
    parser.add_argument("--geometries", type=int, default=2000, help="of each molecule")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args(arguments)
    tasks = {
        f"toy-{given.set.lower()}-{molecule.name.replace(' ', '-')}": (given.set, index)
        for index, molecule in enumerate(SETS[given.set])
    }
    options = {"geometries": given.geometries, "seed": given.seed}
    make_shards(toy_frames, options, tasks, given.output, given.jobs)


if __name__ == "__main__":
    main()
