"""Ensembles as `physical_validation` judges them (Merz and Shirts, PLoS ONE 13, e0202764)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from md_fields import LennardJones, argon, start, steps
from nnpcalc import md
from nnpcalc.units import GPA, KB

pytestmark = pytest.mark.oracle
KELVIN = 60.0
REPLICAS = 8


def units(pv: Any) -> Any:
    """eV, Å, amu, fs and GPa."""
    return pv.data.UnitData(
        kb=KB, energy_str="eV", energy_conversion=1.0, length_str="Å", length_conversion=1.0,
        volume_str="Å^3", volume_conversion=1.0, temperature_str="K", temperature_conversion=1.0,
        pressure_str="eV/Å^3", pressure_conversion=1.0, time_str="fs", time_conversion=1.0,
    )  # fmt: skip


def sample(pv: Any, make: Any, kelvin: float, ensemble: str, **known: Any) -> Any:
    """Uncorrelated energies of independent replicas of solid argon."""
    field, integrator = LennardJones(), make(kelvin)
    state = start([argon()] * REPLICAS, field, integrator, temperature=kelvin, seed=int(kelvin))
    state, found = steps(state, field, integrator, 200), []
    for _ in range(120):
        state = steps(state, field, integrator, 15)
        found.append(torch.stack((state.energy, md.kinetic_energy(state), md.volume(state))))
    potential, kinetic, volumes = (x.flatten().numpy() for x in torch.stack(found, 1))
    n, degrees = 32, int(state.degrees[0])
    reduction = 3 * n - degrees
    return pv.data.SimulationData(
        units=units(pv),
        ensemble=pv.data.EnsembleData(ensemble, natoms=n, temperature=kelvin, **known),
        system=pv.data.SystemData(
            natoms=n, nconstraints=0, ndof_reduction_tra=reduction, ndof_reduction_rot=0,
            mass=np.full(n, 39.95), molecule_idx=np.arange(n),
            nconstraints_per_molecule=np.zeros(n),
        ),
        observables=pv.data.ObservableData(
            kinetic_energy=kinetic, potential_energy=potential,
            total_energy=kinetic + potential, volume=volumes,
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        lambda kelvin: md.Langevin(8.0, kelvin, friction=0.005),
        lambda kelvin: md.Bussi(8.0, kelvin, relaxation=80.0),
        lambda kelvin: md.NoseHoover(8.0, kelvin, relaxation=150.0),
    ],
    ids=["Langevin", "Bussi", "NoseHoover"],
)
def test_canonical(make: Any) -> None:
    """Kinetic energy distribution, and the ratio of two potential energy distributions."""
    pv = pytest.importorskip("physical_validation")
    volume = {"volume": 10.8**3}
    low, high = (sample(pv, make, kelvin, "NVT", **volume) for kelvin in (KELVIN, KELVIN + 4.0))
    mean, width = pv.kinetic_energy.distribution(low, strict=False, verbosity=0)
    assert abs(mean) < 3 and abs(width) < 3
    (deviation,) = pv.ensemble.check(low, high, verbosity=0, data_is_uncorrelated=True)
    assert deviation < 3


@pytest.mark.parametrize("anisotropic", [False, True])
def test_isobaric(anisotropic: bool) -> None:
    """The ratio of the enthalpy distributions at two temperatures."""
    pv = pytest.importorskip("physical_validation")
    pressure = 0.1

    def make(kelvin: float) -> md.CellRescaling:
        return md.CellRescaling(
            8.0, kelvin, pressure, relaxation=80.0, pressure_relaxation=300.0, compressibility=0.4,
            anisotropic=anisotropic, interval=2,
        )  # fmt: skip

    low, high = (
        sample(pv, make, kelvin, "NPT", pressure=pressure * GPA)
        for kelvin in (KELVIN, KELVIN + 3.0)
    )
    mean, width = pv.kinetic_energy.distribution(low, strict=False, verbosity=0)
    assert abs(mean) < 3 and abs(width) < 3
    (deviation,) = pv.ensemble.check(low, high, verbosity=0, data_is_uncorrelated=True)
    assert deviation < 3


def test_convergence_of_the_energy() -> None:
    """The fluctuation of the conserved energy goes with the square of the time step."""
    pv = pytest.importorskip("physical_validation")
    simulations = []
    for h in (16.0, 8.0, 4.0):
        field, integrator = LennardJones(), md.NVE(h)
        state, kept = start(argon(), field, integrator, temperature=KELVIN), []
        for _ in range(round(4000 / h)):
            state = integrator.step(state, field)
            kept.append(float(integrator.conserved(state)))
        simulations.append(
            pv.data.SimulationData(
                units=units(pv), dt=h,
                observables=pv.data.ObservableData(constant_of_motion=np.array(kept)),
            )
        )  # fmt: skip
    assert pv.integrator.convergence(simulations, verbose=False) < 0.1
