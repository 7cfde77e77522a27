"""Long trajectories: a skin and wrapped atoms change nothing, and memory stays flat."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import units
from ase.build import bulk
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.neighbors import NeighborList, VerletList, neighbor_list
from random_structures import batch_of

CUTOFF, EPSILON, SIGMA, MASS = 5.5, 0.0103, 3.405, 39.948  # argon; Å, eV, Å, amu
TIME_STEP = 2 * units.fs

Search = Callable[[AtomsBatch], NeighborList]


def lennard_jones(r: Tensor) -> tuple[Tensor, Tensor]:
    x = (SIGMA / r) ** 6
    return 4 * EPSILON * (x * x - x), -24 * EPSILON * (2 * x * x - x) / r


def energy_and_forces(n_atoms: int, found: NeighborList) -> tuple[float, Tensor]:
    """Lennard-Jones energy (eV) and forces [N, 3] (eV/Å), both zero at the cutoff."""
    r = found.distances
    energy, slope = lennard_jones(r)
    energy_there, slope_there = lennard_jones(torch.tensor(CUTOFF, dtype=r.dtype))
    energy = energy - energy_there - (r - CUTOFF) * slope_there
    pull = ((slope - slope_there) / r)[:, None] * found.vectors
    forces = found.vectors.new_zeros(n_atoms, 3).index_add_(0, found.pairs[0], pull)
    return 0.5 * float(energy.sum()), forces


def liquid_argon() -> tuple[AtomsBatch, Tensor]:
    """32 atoms in a cell of two cutoffs, hot enough to diffuse, and velocities."""
    batch = batch_of(bulk("Ar", "fcc", a=5.72, cubic=True) * (2, 2, 2))
    generator = torch.Generator().manual_seed(7)
    velocities = torch.randn(batch.n_atoms, 3, generator=generator, dtype=torch.float64)
    velocities *= np.sqrt(units.kB * 300 / MASS)
    return batch, velocities - velocities.mean(0)


def wrapped(batch: AtomsBatch) -> AtomsBatch:
    fractional = batch.positions @ torch.linalg.inv(batch.cell[0])
    steps = fractional.floor()
    if not bool(steps.any()):
        return batch
    return replace(batch, positions=batch.positions - steps @ batch.cell[0])


def run(search: Search, n_steps: int, wrap_every: int) -> tuple[Tensor, AtomsBatch]:
    """Velocity Verlet; the total energy (eV) after every step, and the last positions."""
    batch, velocities = liquid_argon()
    _, forces = energy_and_forces(batch.n_atoms, search(batch))
    energies = torch.empty(n_steps, dtype=torch.float64)
    for step in range(n_steps):
        velocities = velocities + 0.5 * TIME_STEP / MASS * forces
        batch = replace(batch, positions=batch.positions + TIME_STEP * velocities)
        if step % wrap_every == 0:
            batch = wrapped(batch)
        potential, forces = energy_and_forces(batch.n_atoms, search(batch))
        velocities = velocities + 0.5 * TIME_STEP / MASS * forces
        energies[step] = potential + 0.5 * MASS * float((velocities * velocities).sum())
    return energies, batch


def drift(energies: Tensor) -> float:
    """Slope of the total energy, meV per atom and ps."""
    time = np.arange(len(energies)) * TIME_STEP / (1000 * units.fs)
    return float(np.polyfit(time, energies.numpy(), 1)[0]) * 1000 / 32


def compare(n_steps: int) -> None:
    neighbors = VerletList(CUTOFF, skin=0.6)
    with_skin, last = run(neighbors.update, n_steps, wrap_every=7)
    without_skin, expected = run(lambda b: neighbor_list(b, CUTOFF), n_steps, wrap_every=7)
    print(
        f"\n{n_steps} steps: drift {drift(with_skin):.3e} with and {drift(without_skin):.3e} "
        f"meV/atom/ps without skin, largest deviation "
        f"{float((with_skin - with_skin[0]).abs().max()) * 1000 / 32:.3e} meV/atom, "
        f"{neighbors.n_searches} searches"
    )
    assert torch.equal(with_skin, without_skin)
    assert torch.equal(last.positions, expected.positions)
    # atoms have crossed the cell: the test is one of wrapping
    assert 0 < neighbors.n_searches < n_steps / 5
    assert float((with_skin - with_skin[0]).abs().max()) < 1e-3 * 32


def test_a_skin_changes_no_bit_of_a_trajectory() -> None:
    compare(600)


@pytest.mark.slow
def test_200_ps_with_and_without_skin() -> None:
    compare(100_000)


@pytest.mark.slow
def test_wrapped_and_unwrapped_atoms_conserve_energy_alike() -> None:
    wrapping, unwrapped = VerletList(CUTOFF, skin=0.6), VerletList(CUTOFF, skin=0.6)
    one, _ = run(wrapping.update, 50_000, wrap_every=1)
    other, last = run(unwrapped.update, 50_000, wrap_every=1_000_000)
    print(f"\ndrift {drift(one):.3e} wrapped, {drift(other):.3e} meV/atom/ps unwrapped")
    assert float((last.positions @ torch.linalg.inv(last.cell[0])).abs().max()) > 1.5
    assert abs(drift(one)) < 2e-3
    assert abs(drift(other)) < 2e-3


@pytest.mark.slow
def test_memory_is_flat() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("reads /proc")

    def resident() -> float:
        gc.collect()
        return int(statm.read_text().split()[1]) * 4096 / 2**20  # MB

    batch = batch_of(bulk("Cu", cubic=True) * (4, 4, 4))
    generator = torch.Generator().manual_seed(1)
    neighbors = VerletList(5.0, skin=0.4)
    positions = batch.positions
    before = None
    for step in range(10_500):
        noise = torch.randn(batch.n_atoms, 3, generator=generator, dtype=torch.float64)
        positions = positions + 0.01 * noise
        neighbors.update(replace(batch, positions=positions.requires_grad_()))
        positions = positions.detach()
        if step == 500:
            before = resident()
    assert before is not None
    growth = resident() - before
    print(f"\nmemory grew by {growth:.1f} MB in 10,000 steps, {neighbors.n_searches} searches")
    assert growth < 20
