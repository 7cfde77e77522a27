"""Molecular dynamics of one molecule or of many at once.

    from nnpcalc import md
    md.run(atoms, "tensornet-spice", md.Langevin(0.5, temperature=300), 10_000, trajectory="a.xyz")

Units are Å, fs, eV, amu, K and GPa. A replica is the same alone and in any batch, and a run that
was stopped goes on as if it had not been, bit for bit on the CPU.
"""

from nnpcalc.md.checkpoint import Checkpoint, CheckpointError
from nnpcalc.md.constraints import heavier_hydrogen
from nnpcalc.md.forcefield import Ensemble, ForceField, Forces, ModelForceField
from nnpcalc.md.integrators import (
    NVE,
    Bussi,
    CellRescaling,
    Integrator,
    Langevin,
    NoseHoover,
    Respa,
)
from nnpcalc.md.run import Run, run
from nnpcalc.md.signals import Interrupted
from nnpcalc.md.state import MDState, kinetic_energy, pressure, temperature, volume
from nnpcalc.md.thermal import with_thermal_momenta, without_drift
from nnpcalc.md.trajectory import Frame, read_trajectory, repair
from nnpcalc.md.watchdog import Incident, MDWarning, SimulationDiverged, Watchdog

__all__ = [
    "NVE",
    "Bussi",
    "CellRescaling",
    "Checkpoint",
    "CheckpointError",
    "Ensemble",
    "ForceField",
    "Forces",
    "Frame",
    "Incident",
    "Integrator",
    "Interrupted",
    "Langevin",
    "MDState",
    "MDWarning",
    "ModelForceField",
    "NoseHoover",
    "Respa",
    "Run",
    "SimulationDiverged",
    "Watchdog",
    "heavier_hydrogen",
    "kinetic_energy",
    "pressure",
    "read_trajectory",
    "repair",
    "run",
    "temperature",
    "volume",
    "with_thermal_momenta",
    "without_drift",
]
