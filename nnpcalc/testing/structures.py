"""Small structures made of whatever elements a potential knows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import NDArray

#: Light atoms first: their repulsion is soft enough for finite differences.
PREFERRED = (1, 6, 8, 7)


def sample_structures(elements: Sequence[int], seed: int = 0) -> dict[str, Atoms]:
    """A molecule, an ion, a small triclinic crystal, a layer and an atom.

    All have an even number of electrons in their neutral state, so that each is a singlet and so is
    any union of them; the ion has charge +2. Every atom carries `partial_charges`.

    Args:
        elements: atomic numbers to choose from.
        seed: of the positions.
    """
    rng = np.random.default_rng(seed)
    known = [z for z in PREFERRED if z in elements] + [z for z in elements if z not in PREFERRED]
    chosen = known[:3]
    molecule = _cluster(_even(chosen, 6), rng)
    ion = _cluster(_even(chosen, 3), rng)
    ion.info["charge"] = 2
    cell = np.array([[3.9, 0.0, 0.0], [0.9, 4.1, 0.0], [-0.7, 0.8, 4.3]])
    crystal = _filled(_even(chosen, 4), cell, rng)
    layer = _filled(_even(chosen, 4), cell, rng)
    layer.pbc = (True, True, False)
    even = [z for z in known if z % 2 == 0]
    atom = Atoms([even[0]]) if even else Atoms([known[0]], info={"charge": 1})
    structures = {
        "molecule": molecule, "ion": ion, "crystal": crystal, "layer": layer, "atom": atom
    }  # fmt: skip
    for atoms in structures.values():
        atoms.arrays["partial_charges"] = rng.uniform(-0.3, 0.3, len(atoms))
    return structures


def random_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """A proper rotation [3, 3], to be used as positions @ rotation."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def _even(elements: Sequence[int], n_atoms: int) -> list[int]:
    """About n_atoms numbers with an even sum."""
    numbers = [elements[k % len(elements)] for k in range(n_atoms)]
    if sum(numbers) % 2:
        numbers.append(next(z for z in elements if z % 2))
    return numbers


def _spacing(a: int, b: int) -> float:
    return float(covalent_radii[a] + covalent_radii[b]) * 1.05 + 0.15


def _cluster(numbers: list[int], rng: np.random.Generator) -> Atoms:
    """Each atom beside an earlier one, none closer than a stretched bond."""
    positions = np.zeros((1, 3))
    while len(positions) < len(numbers):
        k = len(positions)
        base = int(rng.integers(k))
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        length = _spacing(numbers[base], numbers[k]) * rng.uniform(1.0, 1.2)
        trial = positions[base] + length * direction
        distances = np.linalg.norm(positions - trial, axis=1)
        needed = [_spacing(z, numbers[k]) for z in numbers[:k]]
        if (distances > np.array(needed) - 1e-9).all():
            positions = np.vstack([positions, trial])
    return Atoms(numbers, positions)


def _filled(numbers: list[int], cell: NDArray[np.float64], rng: np.random.Generator) -> Atoms:
    """Atoms near half of the corners of a 2 x 2 x 2 grid, the cell scaled to their size."""
    corners = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * 0.5
    order = np.argsort(corners.sum(1) % 1.0, kind="stable")  # no two share an edge at first
    fractional = corners[order][: len(numbers)] + rng.uniform(-0.04, 0.04, (len(numbers), 3))
    size = max(_spacing(a, b) for a in numbers for b in numbers)
    scaled = cell * max(1.0, size / 1.9)
    return Atoms(numbers, fractional @ scaled, cell=scaled, pbc=True)
