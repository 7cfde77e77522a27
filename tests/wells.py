"""Energy surfaces with known minima, as force fields of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.cluster import Icosahedron
from torch import Tensor

from nnpcalc import AtomsBatch, md
from nnpcalc.md.state import sum_per_system
from nnpcalc.neighbors import neighbor_list

#: Energies of the global minima of Lennard-Jones clusters in units of the well depth: Wales and
#: Doye, J. Phys. Chem. A 101, 5111 (1997).
LJ_MINIMA = {3: -3.0, 4: -6.0, 7: -16.505384, 13: -44.326801}


class LennardJones:
    """4 e ((s/r)^12 - (s/r)^6) between all atoms, without a cutoff."""

    def __init__(self, epsilon: float = 1.0, sigma: float = 3.4) -> None:
        self.epsilon, self.sigma = epsilon, sigma

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        found = neighbor_list(atoms, 100.0)
        i, r = found.pairs[0], found.distances
        # products, not powers: these round differently in batches of other sizes
        s2 = (self.sigma / r) * (self.sigma / r)
        s6 = s2 * s2 * s2
        pull = 4.0 * self.epsilon * (6.0 * s6 - 12.0 * s6 * s6) / (r * r)
        zeros = torch.zeros_like(atoms.positions)
        forces = zeros.clone().index_add_(0, i, pull[:, None] * found.vectors)
        pairs = 2.0 * self.epsilon * (s6 * s6 - s6)
        energies = zeros[:, 0].clone().index_add_(0, i, pairs)
        return md.Forces(sum_per_system(energies, atoms.counts), forces)


@dataclass
class Springs:
    """Every atom on three springs at the origin, k in eV/Å^2; counts what it is asked."""

    k: tuple[float, float, float] = (1.0, 20.0, 400.0)
    evaluations: int = 0

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        self.evaluations += 1
        k = torch.tensor(self.k, dtype=torch.float64)
        x = atoms.positions
        return md.Forces(sum_per_system((0.5 * k * x * x).sum(1), atoms.counts), -k * x)


class Valley:
    """Rosenbrock's bent valley in x and y, 100 (y - x^2)^2 + (1 - x)^2, and z^2; minimum (1, 1, 0).

    Rosenbrock, The Computer Journal 3, 175 (1960).
    """

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        x, y, z = atoms.positions.unbind(1)
        bend, rest = y - x * x, 1.0 - x
        energy = sum_per_system(100.0 * bend * bend + rest * rest + z * z, atoms.counts)
        gradient = torch.stack((-400.0 * x * bend - 2.0 * rest, 200.0 * bend, 2.0 * z), 1)
        return md.Forces(energy, -gradient)


@dataclass
class Noisy:
    """Another field in single precision: its forces and energies are those of rounded positions."""

    field: LennardJones

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        rounded = md.state.changed(atoms, positions=atoms.positions.float().double())
        output = self.field(rounded)
        return md.Forces(output.energy.float().double(), output.forces.float().double())


def lump(n: int, seed: int = 0, amplitude: float = 0.1, sigma: float = 3.4) -> Atoms:
    """n atoms of the 13-atom icosahedron, out of place."""
    whole = Icosahedron("Ar", 2)
    middle = whole.positions.mean(0)
    order = np.argsort(np.linalg.norm(whole.positions - middle, axis=1))
    positions = whole.positions[order][:n] - middle
    shell = np.linalg.norm(positions[1])
    positions = positions * (1.08 * sigma / shell)
    positions += np.random.default_rng(seed).normal(0.0, amplitude, positions.shape)
    return Atoms(f"Ar{n}", positions)


def energy_of(field: md.ForceField, atoms: Atoms) -> float:
    return float(field(AtomsBatch.from_atoms(atoms)).energy[0])


def forces_of(field: md.ForceField, atoms: Atoms) -> Tensor:
    return field(AtomsBatch.from_atoms(atoms)).forces
