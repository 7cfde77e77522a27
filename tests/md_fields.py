"""Force fields with known answers, and small simulations of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor

from nnpcalc import AtomsBatch, md
from nnpcalc.md.start import initial_state
from nnpcalc.md.state import sum_per_system
from nnpcalc.neighbors import VerletList


@dataclass(frozen=True)
class Harmonic:
    """Every atom on a spring at the origin: E = k x^2 / 2, k in eV/Å^2."""

    k: float = 1.0

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        x = atoms.positions
        energy = sum_per_system((0.5 * self.k * x * x).sum(1), atoms.counts)
        return md.Forces(energy, -self.k * x, _none(atoms) if stress else None)


@dataclass(frozen=True)
class Quartic:
    """E = a x^4 / 4: something that is not harmonic."""

    a: float = 1.0

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        x = atoms.positions
        energy = sum_per_system((0.25 * self.a * x**4).sum(1), atoms.counts)
        return md.Forces(energy, -self.a * x * x * x)


class Nothing:
    """No forces: an ideal gas."""

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        zero = torch.zeros_like(atoms.positions)
        return md.Forces(atoms.cell.new_zeros(atoms.n_systems), zero, _none(atoms))


class LennardJones:
    """4 epsilon ((s/r)^12 - (s/r)^6), shifted by a smooth switch to zero at the cutoff."""

    def __init__(self, epsilon: float = 0.0104, sigma: float = 3.4, cutoff: float = 8.0) -> None:
        self.epsilon, self.sigma, self.cutoff = epsilon, sigma, cutoff
        self._neighbors = VerletList(cutoff)

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        found = self._neighbors.update(atoms)
        i, r = found.pairs[0], found.distances
        s6 = (self.sigma / r) ** 2
        s6 = s6 * s6 * s6
        pair = 4.0 * self.epsilon * (s6 * s6 - s6)
        slope = 4.0 * self.epsilon * (-12.0 * s6 * s6 + 6.0 * s6) / r
        t = r / self.cutoff
        u = 1.0 - t * t
        switch, switch_slope = u * u * u, -6.0 * u * u * t / self.cutoff
        slope = slope * switch + pair * switch_slope
        pair = pair * switch
        pull = (slope / r)[:, None] * found.vectors  # force on i, twice half a pair
        zeros = torch.zeros_like(atoms.positions)
        forces = torch.stack(
            [zeros[:, d].clone().index_add_(0, i, pull[:, d].contiguous()) for d in range(3)], 1
        )
        energies = zeros[:, 0].clone().index_add_(0, i, 0.5 * pair)
        strain = None
        if stress:
            virial = 0.5 * pull[:, :, None] * found.vectors[:, None, :]
            strain = atoms.cell.new_zeros(atoms.n_systems, 9)
            strain.index_add_(0, atoms.system[i], virial.flatten(1))
            strain = strain.reshape(-1, 3, 3) / torch.linalg.det(atoms.cell).abs()[:, None, None]
        return md.Forces(sum_per_system(energies, atoms.counts), forces, strain)


def _none(atoms: AtomsBatch) -> Tensor:
    return torch.zeros_like(atoms.cell)


def oscillators(n: int, x: float = 0.1) -> Atoms:
    """n atoms of 12 amu, at x Å on a harmonic or quartic spring."""
    return Atoms(f"C{n}", positions=[[x, 0.7 * x, -0.4 * x]] * n, masses=[12.0] * n)


def argon(size: int = 2, a: float = 5.4) -> Atoms:
    """Solid argon, 4 size^3 atoms, slightly out of place."""
    atoms: Atoms = bulk("Ar", "fcc", a=a, cubic=True).repeat(size)
    atoms.rattle(0.05, seed=3)
    return atoms


def cluster(n: int = 7) -> Atoms:
    """A lump of argon atoms without a cell."""
    atoms: Atoms = bulk("Ar", "fcc", a=5.4, cubic=True).repeat(2)[:n]
    atoms.set_cell(None)
    atoms.pbc = False
    atoms.rattle(0.1, seed=5)
    return atoms


def molecules(count: int) -> list[Atoms]:
    """Different molecules that the tiny model knows, one after the other."""
    names = ("H2O", "CH4", "CH3OH", "NH3", "C2H6", "H2CO")
    found = []
    for k in range(count):
        atoms = molecule(names[k % len(names)])
        atoms.rattle(0.03, seed=k)
        found.append(atoms)
    return found


def start(
    structures: Any, field: Any, integrator: Any, seed: int = 1, **options: Any
) -> md.MDState:
    """The first state, with forces."""
    state = initial_state(structures, field, integrator, seed=seed, **options)
    result: md.MDState = integrator.init(state, field)
    return result


def steps(state: md.MDState, field: Any, integrator: Any, n: int) -> md.MDState:
    for _ in range(n):
        state = integrator.step(state, field)
    return state


def tensors(state: md.MDState) -> dict[str, Tensor]:
    """Everything in a state that a step changes."""
    found = {
        "positions": state.positions,
        "cell": state.atoms.cell,
        "momenta": state.momenta,
        "forces": state.forces,
        "energy": state.energy,
        **state.system_variables,
        **state.atom_variables,
    }
    if state.stress is not None:
        found["stress"] = state.stress
    return found


def assert_same_bits(a: md.MDState, b: md.MDState) -> None:
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys() and a.step == b.step
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
