"""The shipped weights hold molecules together: molecules that no training set contained.

The molecules of data/unseen.xyz are drawn from the validation list (their SMILES stand in the
file); their starting geometries were made anew by ETKDG and MMFF94.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.data import covalent_radii
from ase.io import read

from nnpcalc.batch import AtomsBatch
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential
from nnpcalc.units import FORCE_TO_ACCELERATION, KB, VELOCITY_SQUARED_TO_ENERGY
from nnpcalc.weights import list_models, load_potential

UNSEEN = Path(__file__).parent / "data" / "unseen.xyz"
NAME = "tensornet-spice"


def bonds(atoms):
    """Pairs closer than 1.2 times the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    distances = atoms.get_all_distances()
    i, j = np.nonzero(np.triu(distances < 1.2 * (radii[:, None] + radii[None]), 1))
    return i, j, 1.5 * (radii[i] + radii[j])


class Langevin:
    """BAOAB (Leimkuhler and Matthews, 2013) for a batch; Å, fs, amu, eV, K."""

    def __init__(self, potential, structures, temperature, timestep, friction=0.005, seed=1):
        self.potential = potential
        self.batch = AtomsBatch.from_atoms(structures, dtype=potential.dtype)
        masses = np.concatenate([a.get_masses() for a in structures])
        self.masses = torch.tensor(masses, dtype=torch.float64)[:, None]
        self.random = torch.Generator().manual_seed(seed)
        self.timestep, self.decay = timestep, np.exp(-friction * timestep)
        self.spread = torch.sqrt(KB * temperature / self.masses / VELOCITY_SQUARED_TO_ENERGY)
        self.positions = self.batch.positions.to(torch.float64)
        self.velocities = self.normal() * self.spread
        self.acceleration = self.force()

    def normal(self):
        return torch.randn(self.masses.shape[0], 3, generator=self.random, dtype=torch.float64)

    def force(self):
        from dataclasses import replace

        batch = replace(self.batch, positions=self.positions.to(self.batch.dtype))
        neighbors = neighbor_list(batch, self.potential.cutoff)
        forces = self.potential.evaluate(batch, neighbors).forces.to(torch.float64)
        return FORCE_TO_ACCELERATION * forces / self.masses

    def step(self):
        half = 0.5 * self.timestep
        self.velocities += half * self.acceleration
        self.positions = self.positions + half * self.velocities
        kick = np.sqrt(1.0 - self.decay**2)
        self.velocities = self.decay * self.velocities + kick * self.spread * self.normal()
        self.positions = self.positions + half * self.velocities
        self.acceleration = self.force()
        self.velocities += half * self.acceleration


def fast(potential):
    from nnpcalc.kernels.tensornet import FusedTensorNet

    potential.requires_grad_(False)
    return Potential(FusedTensorNet(potential.core).freeze(), tuple(potential.terms))


def run(structures, picoseconds, temperature):
    """Number of frames checked, and a text for every bond that broke."""
    potential = fast(load_potential(NAME))
    dynamics = Langevin(potential, structures, temperature, timestep=0.5)
    firsts = np.concatenate([[0], np.cumsum([len(a) for a in structures])])
    broken: dict[int, str] = {}
    temperatures = []
    for step in range(int(picoseconds * 2000)):
        dynamics.step()
        if step % 40:
            continue
        kinetic = VELOCITY_SQUARED_TO_ENERGY * dynamics.masses * dynamics.velocities**2
        temperatures.append(float(kinetic.mean()) / KB)
        positions = dynamics.positions.numpy()
        assert np.isfinite(positions).all(), f"positions are not finite at step {step}"
        for k, atoms in enumerate(structures):
            i, j, limit = bonds(atoms)
            here = positions[firsts[k] : firsts[k + 1]]
            length = np.linalg.norm(here[i] - here[j], axis=1)
            if (length > limit).any() and k not in broken:
                n = int(np.argmax(length - limit))
                name = atoms.info.get("smiles", k)
                broken[k] = f"{name}: atoms {i[n]}-{j[n]} at {length[n]:.2f} Å, step {step}"
    return np.array(temperatures), list(broken.values())


@pytest.fixture(scope="module")
def structures():
    if NAME not in list_models():
        pytest.fail(f"{NAME} is not shipped")
    return read(UNSEEN, ":")


def test_unseen_molecules_survive_half_a_picosecond(structures):
    temperatures, broken = run(structures, 0.3, 300.0)
    assert not broken
    assert temperatures[len(temperatures) // 2 :].mean() < 450.0


@pytest.mark.slow
def test_unseen_molecules_survive_20_ps(structures):
    temperatures, broken = run(structures, 20.0, 300.0)
    print(f"mean temperature {temperatures[100:].mean():.1f} K over {temperatures.size} frames")
    assert not broken, broken
    assert temperatures[100:].mean() == pytest.approx(300.0, rel=0.03)
