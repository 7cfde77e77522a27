"""Ensembles: distributions over many replicas against statistical mechanics."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from md_fields import Harmonic, LennardJones, Nothing, Quartic, argon, oscillators, start, steps
from nnpcalc import AtomsBatch, md
from nnpcalc.units import FORCE_TO_ACCELERATION, GPA, KB

stats = pytest.importorskip("scipy.stats")
KELVIN = 300.0


def gamma_p_value(energies: torch.Tensor, degrees: int, kelvin: float = KELVIN) -> float:
    """Kolmogorov-Smirnov: sums of squares of `degrees` normal numbers, in units of k_B T / 2."""
    scaled = 2.0 * energies.numpy() / (KB * kelvin)
    return float(stats.kstest(scaled, stats.chi2(degrees).cdf).pvalue)


def test_drawn_momenta() -> None:
    integrator, field = md.NVE(1.0), Harmonic()
    state = start([oscillators(4)] * 2000, field, integrator, temperature=KELVIN)
    assert gamma_p_value(md.kinetic_energy(state), 9) > 1e-3
    assert float(state.momenta.reshape(2000, 4, 3).sum(1).abs().max()) < 1e-12
    assert state.degrees.unique().tolist() == [9]


@pytest.mark.parametrize(
    ("make", "degrees"),
    [
        (lambda h: md.Langevin(h, KELVIN, friction=0.02), 12),
        (lambda h: md.Bussi(h, KELVIN, relaxation=30.0), 9),
        (lambda h: md.Respa(md.Langevin(h / 2, KELVIN, friction=0.02), Quartic(15.0), 2), 12),
    ],
    ids=["Langevin", "Bussi", "Respa"],
)
def test_canonical_distribution(make: Any, degrees: int) -> None:
    """Started far too cold; kinetic and potential energies reach their distributions."""
    integrator, field = make(2.0), Quartic(20.0)
    state = start([oscillators(4, 0.2)] * 1500, field, integrator, temperature=30.0)
    state = steps(state, field, integrator, 250)
    assert gamma_p_value(md.kinetic_energy(state), degrees) > 1e-3
    if degrees == 12:  # a x^4 / 4 per coordinate: a gamma distribution of shape 1/4 each
        scaled = state.energy.numpy() / (KB * KELVIN)
        assert stats.kstest(scaled, stats.gamma(12 / 4).cdf).pvalue > 1e-3


def test_bussi_thermostat_alone() -> None:
    """Without forces: <K> relaxes as exp(-t / tau), and its distribution is that of 3N - 3."""
    tau, h, n = 50.0, 5.0, 20
    field, integrator = Nothing(), md.Bussi(h, KELVIN, relaxation=tau)
    state = start([oscillators(3)] * 3000, field, integrator, temperature=4 * KELVIN)
    before = float(md.kinetic_energy(state).mean())
    middle = steps(state, field, integrator, n)
    goal = 3 * KB * KELVIN
    expected = goal + (before - goal) * math.exp(-n * h / tau)
    error = float(md.kinetic_energy(middle).std()) / math.sqrt(3000)
    assert float(md.kinetic_energy(middle).mean()) == pytest.approx(expected, abs=4 * error)
    late = steps(middle, field, integrator, 100)
    assert gamma_p_value(md.kinetic_energy(late), 6) > 1e-3
    assert float(late.momenta.reshape(3000, 3, 3).sum(1).abs().max()) < 1e-12


class Springs:
    """Atoms of one mass bound to their common centre by k, eV/Å^2: E = k sum |x - c|^2 / 2."""

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        x = atoms.positions.reshape(atoms.n_systems, -1, 3)
        away = x - x.mean(1, keepdim=True)
        energy = 10.0 * (away * away).sum((1, 2))
        return md.Forces(energy, -20.0 * away.reshape(-1, 3))


@pytest.mark.parametrize("wh", [1.0, 0.5])
def test_bussi_is_second_order(wh: float) -> None:
    """Velocity Verlet conserves p^2 / 2m + (1 - (w h)^2 / 4) k x^2 / 2 of an oscillator, so that
    the exact thermostat gives <U> = N_f k_B T / 2 / (1 - (w h)^2 / 4): 33 % and 7 % too much."""
    h = wh / math.sqrt(20.0 * FORCE_TO_ACCELERATION / 12.0)
    field, integrator = Springs(), md.Bussi(h, KELVIN, relaxation=3 * h)
    atoms = oscillators(4)
    atoms.positions += np.random.default_rng(1).normal(0.0, 0.03, (4, 3))
    state = start([atoms] * 1500, field, integrator, temperature=KELVIN)
    state, found = steps(state, field, integrator, 60), []
    for _ in range(25):
        state = steps(state, field, integrator, 6)
        found.append(float(state.energy.mean()) / (4.5 * KB * KELVIN))
    assert np.mean(found) == pytest.approx(1.0 / (1.0 - wh * wh / 4.0), abs=0.015)
    assert gamma_p_value(md.kinetic_energy(state), 9) > 1e-3


@pytest.mark.parametrize("anisotropic", [False, True])
def test_barostat_is_first_order(anisotropic: bool) -> None:
    """Against nothing a pressure P makes V = V_0 exp(-b P t / tau_p); the error goes with h."""
    errors = []
    for h in (8.0, 4.0, 2.0):
        integrator = md.CellRescaling(
            h, 1e-6, 0.1, pressure_relaxation=100.0, compressibility=4.5,
            anisotropic=anisotropic, interval=1,
        )  # fmt: skip
        atoms, field = argon(1), Nothing()
        state = start(atoms, field, integrator, temperature=1e-6)
        state = steps(state, field, integrator, round(400 / h))
        errors.append(float(md.volume(state)) / atoms.get_volume() - math.exp(-4.5 * 0.1 * 4.0))
    for longer, shorter in itertools.pairwise(errors):
        assert math.log2(longer / shorter) == pytest.approx(1.0, abs=0.1)
    assert abs(errors[-1]) < 0.01


def test_nose_hoover_keeps_the_temperature() -> None:
    """Time averages over argon: mean and variance of the kinetic energy."""
    kelvin, field = 40.0, LennardJones()
    integrator = md.NoseHoover(8.0, kelvin, relaxation=150.0)
    state = start([argon()] * 6, field, integrator, temperature=kelvin)
    state, found = steps(state, field, integrator, 60), []
    for _ in range(300):
        state = integrator.step(state, field)
        found.append(md.kinetic_energy(state))
    kinetic, degrees = torch.stack(found), 93
    assert float(kinetic.mean()) == pytest.approx(0.5 * degrees * KB * kelvin, rel=0.03)
    expected = math.sqrt(degrees / 2) * KB * kelvin
    assert float(kinetic.std()) == pytest.approx(expected, rel=0.3)


def box(n: int, kelvin: float, pressure: float) -> Atoms:
    """n atoms of an ideal gas at its mean volume."""
    length = (n * KB * kelvin / (pressure * GPA)) ** (1 / 3)
    rng = np.random.default_rng(n)
    return Atoms(f"Ar{n}", rng.random((n, 3)) * length, cell=[length] * 3, pbc=True)


@pytest.mark.parametrize("anisotropic", [False, True])
def test_volume_of_an_ideal_gas(anisotropic: bool) -> None:
    """p(V) ~ V^(N - 1) exp(-P V / k_B T) where the total momentum is zero: a gamma distribution."""
    n, pressure = 15, 0.01
    integrator = md.CellRescaling(
        2.0, KELVIN, pressure, relaxation=20.0, pressure_relaxation=400.0,
        compressibility=1 / pressure, anisotropic=anisotropic, interval=1,
    )  # fmt: skip
    field = Nothing()
    state = start([box(n, KELVIN, pressure)] * 200, field, integrator, temperature=KELVIN)
    state = steps(state, field, integrator, 400)
    scaled = (md.volume(state) * pressure * GPA / (KB * KELVIN)).numpy()
    assert stats.kstest(scaled, stats.gamma(n).cdf).pvalue > 1e-3
    assert gamma_p_value(md.kinetic_energy(state), 3 * n - 3) > 1e-3
    cell = state.atoms.cell
    off = float((cell / md.volume(state)[:, None, None] ** (1 / 3) - torch.eye(3)).abs().max())
    assert (off > 0.01) == anisotropic


def test_barostat_reaches_the_pressure() -> None:
    """Compressed argon expands until its mean pressure is the one asked for."""
    kelvin, field = 40.0, LennardJones()
    integrator = md.CellRescaling(
        8.0, kelvin, 0.1, relaxation=100.0, pressure_relaxation=400.0, compressibility=0.4
    )
    state = start([argon(a=5.15)] * 4, field, integrator, temperature=kelvin)
    first, state, found = md.pressure(state), steps(state, field, integrator, 150), []
    for _ in range(50):
        state = steps(state, field, integrator, 4)
        state = integrator.step(state, field)
        found.append(md.pressure(state))
    assert float(first.min()) > 0.15
    assert float(torch.stack(found).mean()) == pytest.approx(0.1, abs=0.03)


def test_anisotropic_cell_finds_the_cube() -> None:
    """An oblong argon crystal goes back to the cubic cell, without turning."""
    field, kelvin = LennardJones(), 10.0
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2)
    atoms.set_cell(atoms.cell.array * [1.03, 1.0, 0.97], scale_atoms=True)
    integrator = md.CellRescaling(
        8.0, kelvin, 0.0, relaxation=100.0, pressure_relaxation=300.0, compressibility=0.4,
        anisotropic=True,
    )  # fmt: skip
    state = start(atoms, field, integrator, temperature=kelvin)
    cells = []
    for _ in range(60):
        state = steps(state, field, integrator, 5)
        cells.append(state.atoms.cell[0])
    cell = torch.stack(cells[30:]).mean(0)
    lengths = torch.linalg.norm(cell, dim=1)
    assert float(lengths.max() / lengths.min()) < 1.02
    rotation = cell - cell.T
    assert float(rotation.abs().max()) < 0.1


def test_what_a_barostat_refuses() -> None:
    integrator, field = md.CellRescaling(1.0, KELVIN, 0.0), LennardJones()
    with pytest.raises(ValueError, match=r"replica 1 is not periodic in all three directions"):
        start([argon(), oscillators(3)], field, integrator)
    from ase.constraints import FixAtoms

    fixed = argon()
    fixed.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="leave FixAtoms out"):
        start(fixed, field, integrator)
    squeezed = argon(a=4.0)
    violent = md.CellRescaling(1.0, KELVIN, 0.0, pressure_relaxation=10.0)
    state = start(squeezed, field, violent)
    with pytest.raises(ValueError, match=r"change the cell by more than 10% at once"):
        violent.step(state, field)
