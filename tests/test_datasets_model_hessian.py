"""The model Hessian of Lindh et al.: against loops over ASE's derivatives, and a real Hessian."""

from __future__ import annotations

import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.geometry import (
    get_angles_derivatives,
    get_dihedrals_derivatives,
    get_distances_derivatives,
)
from ase.units import Bohr, Hartree
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "datasets"))

import model_hessian
import soft_modes

from nnpcalc import NNPCalculator
from nnpcalc.optimizer import optimize

MODEL = "tensornet-spice"


def share(atoms: Atoms, i: int, j: int) -> float:
    """exp(alpha (r0^2 - r^2)), the numbers of Table 1 for rows 1 to 3 written out."""
    rows = sorted(0 if z <= 2 else 1 if z <= 10 else 2 for z in atoms.numbers[[i, j]])
    alpha, r0 = {
        (0, 0): (1.0, 1.35), (0, 1): (0.3949, 2.10), (0, 2): (0.3949, 2.53),
        (1, 1): (0.28, 2.87), (1, 2): (0.28, 3.40), (2, 2): (0.28, 3.40),
    }[rows[0], rows[1]]  # fmt: skip
    value = float(np.exp(alpha * (r0**2 - (atoms.get_distance(i, j) / Bohr) ** 2)))
    return value if value >= 0.01 else 0.0


def by_loops(atoms: Atoms) -> NDArray[np.float64]:
    """Each spring by itself, its gradient by ASE: angles in degrees there."""
    n, x = len(atoms), atoms.positions
    hessian: NDArray[np.float64] = np.zeros((3 * n, 3 * n))

    def spring(stiffness: float, indices: tuple[int, ...], derivative: NDArray[np.float64]) -> None:
        gradient: NDArray[np.float64] = np.zeros((n, 3))
        np.add.at(gradient, list(indices), derivative)
        flat = gradient.reshape(-1)
        hessian[:] += stiffness * np.outer(flat, flat)

    def bent(i: int, j: int, k: int) -> bool:
        return bool(np.sin(np.radians(atoms.get_angle(i, j, k))) > model_hessian.STRAIGHT)

    for i, j in permutations(range(n), 2):
        if i < j:
            spring(0.45 * share(atoms, i, j), (i, j),
                   get_distances_derivatives((x[j] - x[i])[None])[0])  # fmt: skip
    for i, j, k in permutations(range(n), 3):
        weight = share(atoms, i, j) * share(atoms, j, k)
        if i < k and weight > 0.01 and bent(i, j, k):
            rows = get_angles_derivatives((x[i] - x[j])[None], (x[k] - x[j])[None])[0]
            spring(0.15 * weight, (i, j, k), np.radians(rows) * Bohr)
    for i, j, k, m in permutations(range(n), 4):
        weight = share(atoms, i, j) * share(atoms, j, k) * share(atoms, k, m)
        if j < k and weight > 0.01 and bent(i, j, k) and bent(j, k, m):
            bonds = ((x[b] - x[a])[None] for a, b in ((i, j), (j, k), (k, m)))
            rows = get_dihedrals_derivatives(*bonds)[0]
            spring(0.005 * weight, (i, j, k, m), np.radians(rows) * Bohr)
    return hessian * Hartree / Bohr**2


@pytest.mark.parametrize("name", ["H2", "H2O", "H2O2", "CH3SH", "CH3CN", "isobutane"])
def test_against_loops(name: str) -> None:
    atoms = molecule(name)
    atoms.rattle(0.05, seed=1)
    found = model_hessian.lindh_hessian(atoms.numbers, atoms.positions)
    np.testing.assert_allclose(found, by_loops(atoms), atol=1e-9 * np.abs(found).max())


def test_rigid_motions_cost_nothing_and_no_motion_less() -> None:
    atoms = molecule("CH3CONH2")
    stiffness = np.linalg.eigvalsh(model_hessian.lindh_hessian(atoms.numbers, atoms.positions))
    assert np.abs(stiffness[:6]).max() < 1e-9 * stiffness.max()
    assert stiffness[6] > 0.05  # eV/Å^2: every inner motion strains a spring


def test_the_softest_modes_are_those_of_a_potential() -> None:
    """The shared part of the spaces of 12 modes out of 21; random ones share 0.57."""
    found = optimize(molecule("CH3CONH2"), MODEL, dtype="float64", fmax=0.001).atoms
    potential = soft_modes.hessian(found, NNPCalculator(MODEL, dtype="float64"))
    spaces = []
    for hessian in (potential, model_hessian.lindh_hessian(found.numbers, found.positions)):
        modes = soft_modes.soft_modes(hessian, found.positions)
        spaces.append(np.linalg.qr(modes.transpose(0, 2, 1).reshape(-1, modes.shape[1]))[0])
    assert np.square(spaces[0].T @ spaces[1]).sum() / modes.shape[1] > 0.9
