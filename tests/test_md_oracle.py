"""Ensembles as `physical_validation` judges them (Merz and Shirts, PLoS ONE 13, e0202764).

A solid of 32 atoms whose vibrations forget quickly. Every deviation is printed, in standard errors:
`pytest -m oracle -s`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from md_fields import LennardJones, argon, start, steps
from nnpcalc import md
from nnpcalc.units import KB

pytestmark = pytest.mark.oracle

#: Steps between two samples: longer than the correlation times of energies and volumes, which are
#: 20 to 50 steps. With correlated samples the deviations below would look too large.
REPLICAS, WARM_UP, SAMPLES, APART = 32, 120, 16, 50
TIMESTEP, EPSILON = 8.0, 0.02

NVT: dict[str, Callable[[float], Any]] = {
    "Langevin": lambda kelvin: md.Langevin(TIMESTEP, kelvin, friction=0.01),
    "Bussi": lambda kelvin: md.Bussi(TIMESTEP, kelvin, relaxation=50.0),
    "NoseHoover": lambda kelvin: md.NoseHoover(TIMESTEP, kelvin, relaxation=100.0),
    "Respa": lambda kelvin: md.Respa(
        md.Langevin(TIMESTEP / 2, kelvin, friction=0.01), LennardJones(0.018), 2
    ),
}


def barostat(kelvin: float, pressure: float, anisotropic: bool) -> md.CellRescaling:
    return md.CellRescaling(
        TIMESTEP, kelvin, pressure, relaxation=50.0, pressure_relaxation=150.0,
        compressibility=0.4, anisotropic=anisotropic, interval=2,
    )  # fmt: skip


def units(pv: Any) -> Any:
    """eV, Å, GPa, fs and K in the kJ/mol, nm, bar and ps that the program's own formulas assume."""
    return pv.data.UnitData(
        kb=KB, energy_str="eV", energy_conversion=96.48533212, length_str="Å",
        length_conversion=0.1, volume_str="Å^3", volume_conversion=1e-3, temperature_str="K",
        temperature_conversion=1.0, pressure_str="GPa", pressure_conversion=1e4, time_str="fs",
        time_conversion=1e-3,
    )  # fmt: skip


def sample(pv: Any, integrator: Any, kelvin: float, ensemble: str, **known: Any) -> Any:
    """Energies and volumes of independent replicas, far apart in time."""
    field = LennardJones(EPSILON)
    state = start(
        [argon(a=5.3)] * REPLICAS, field, integrator, temperature=kelvin, seed=int(kelvin)
    )
    state, found = steps(state, field, integrator, WARM_UP), []
    for _ in range(SAMPLES):
        state = steps(state, field, integrator, APART)
        found.append(torch.stack((state.energy, md.kinetic_energy(state), md.volume(state))))
    potential, kinetic, volumes = (x.flatten().numpy() for x in torch.stack(found, 1))
    n = 32
    return pv.data.SimulationData(
        units=units(pv),
        ensemble=pv.data.EnsembleData(ensemble, natoms=n, temperature=kelvin, **known),
        system=pv.data.SystemData(
            natoms=n, nconstraints=0, ndof_reduction_tra=3 * n - int(state.degrees[0]),
            ndof_reduction_rot=0, mass=np.full(n, 39.95), molecule_idx=np.arange(n),
            nconstraints_per_molecule=np.zeros(n),
        ),
        observables=pv.data.ObservableData(
            kinetic_energy=kinetic, potential_energy=potential,
            total_energy=kinetic + potential, volume=volumes,
        ),
    )  # fmt: skip


def kinetic_deviations(pv: Any, data: Any) -> list[float]:
    """Of the mean and of the width of the kinetic energy."""
    return [
        float(d)
        for d in pv.kinetic_energy.distribution(
            data, strict=False, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True
        )
    ]


def ratio_deviation(pv: Any, low: Any, high: Any) -> float:
    """Of the logarithm of the ratio of two distributions from the line that theory predicts."""
    (deviation,) = pv.ensemble.check(
        low, high, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True
    )
    return float(deviation)


@pytest.mark.parametrize("name", NVT)
def test_canonical(name: str) -> None:
    """Kinetic energies, and the ratio of the potential energy distributions of two temperatures."""
    pv = pytest.importorskip("physical_validation")
    low, high = (
        sample(pv, NVT[name](kelvin), kelvin, "NVT", volume=10.6**3) for kelvin in (60.0, 68.0)
    )
    kinetic = kinetic_deviations(pv, low) + kinetic_deviations(pv, high)
    ratio = ratio_deviation(pv, low, high)
    print(f"\n{name}: kinetic {np.round(kinetic, 2)}, two temperatures {ratio:.2f}")
    assert max(kinetic) < 3 and ratio < 3


def test_a_wrong_temperature_is_found() -> None:
    """The tests here can fail: a bath 6 K warmer than it says is far beyond their limit."""
    pv = pytest.importorskip("physical_validation")
    low = sample(pv, NVT["Langevin"](60.0), 60.0, "NVT", volume=10.6**3)
    high = sample(pv, NVT["Langevin"](74.0), 68.0, "NVT", volume=10.6**3)
    found = kinetic_deviations(pv, high)[0], ratio_deviation(pv, low, high)
    print(f"\n74 K as 68 K: kinetic {found[0]:.2f}, two temperatures {found[1]:.2f}")
    assert min(found) > 3


@cache
def isobaric(kelvin: float, pressure: float, anisotropic: bool) -> Any:
    import physical_validation as pv

    integrator = barostat(kelvin, pressure, anisotropic)
    return sample(pv, integrator, kelvin, "NPT", pressure=pressure)


@pytest.mark.parametrize("anisotropic", [False, True], ids=["isotropic", "anisotropic"])
def test_isobaric(anisotropic: bool) -> None:
    """Enthalpies at two temperatures, volumes at two pressures, both together."""
    pv = pytest.importorskip("physical_validation")
    low = isobaric(60.0, 0.1, anisotropic)
    hot, pressed = isobaric(68.0, 0.1, anisotropic), isobaric(60.0, 0.18, anisotropic)
    kinetic = [d for data in (low, hot, pressed) for d in kinetic_deviations(pv, data)]
    ratios = [ratio_deviation(pv, low, other) for other in (hot, pressed)]
    print(
        f"\nanisotropic {anisotropic}: kinetic {np.round(kinetic, 2)}, two temperatures "
        f"{ratios[0]:.2f}, two pressures {ratios[1]:.2f}"
    )
    assert max(kinetic) < 3 and max(ratios) < 3


def test_convergence_of_the_energy() -> None:
    """The fluctuation of the conserved energy goes with the square of the time step."""
    pv = pytest.importorskip("physical_validation")
    simulations, spread = [], []
    for h in (16.0, 8.0, 4.0):
        field, integrator = LennardJones(), md.NVE(h)
        state, kept = start(argon(), field, integrator, temperature=60.0), []
        for _ in range(round(4000 / h)):
            state = integrator.step(state, field)
            kept.append(float(integrator.conserved(state)))
        spread.append(np.std(kept))
        simulations.append(
            pv.data.SimulationData(
                units=units(pv), dt=h,
                observables=pv.data.ObservableData(constant_of_motion=np.array(kept)),
            )
        )  # fmt: skip
    deviation = float(pv.integrator.convergence(simulations, verbose=False))
    print(f"\nNVE: ratios {spread[0] / spread[1]:.3f} {spread[1] / spread[2]:.3f}, {deviation:.4f}")
    assert deviation < 0.1
