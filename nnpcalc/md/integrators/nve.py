"""Constant energy: velocity Verlet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from nnpcalc.md.compiled import Plan
from nnpcalc.md.forcefield import ForceField
from nnpcalc.md.integrators.common import (
    arrived,
    begin,
    check_positive,
    evaluate,
    kicked_and_drifted,
    total_energy,
)
from nnpcalc.md.state import MDState
from nnpcalc.units import FORCE_TO_ACCELERATION


@dataclass(frozen=True)
class NVE:
    """Velocity Verlet, second order, symplectic and reversible::

        p(t + h/2) = p(t) + h/2 F(x(t))
        x(t + h)   = x(t) + h p(t + h/2) / m
        p(t + h)   = p(t + h/2) + h/2 F(x(t + h))

    Swope, Andersen, Berens and Wilson, J. Chem. Phys. 76, 637 (1982).

    ======  ==============================
    h       timestep, fs
    x, p    state.positions, state.momenta
    F, m    state.forces, state.masses
    ======  ==============================

    The total energy is conserved up to fluctuations that shrink fourfold when h is halved. The
    total momentum is conserved as well, and the temperature does not count it.
    """

    timestep: float

    def __post_init__(self) -> None:
        check_positive(timestep=self.timestep)

    def init(self, state: MDState, force_field: ForceField) -> MDState:
        """The state with its forces."""
        return evaluate(begin(state, conserves_momentum=True), force_field)

    def step(self, state: MDState, force_field: ForceField) -> MDState:
        """One time step later."""
        return verlet_step(state, force_field, self.timestep, step=state.step + 1)

    def plan(self, state: MDState, steps: int) -> Plan | None:
        """The same for `nnpcalc.md.compiled`; None of a class with a step of its own."""
        if type(self) is not NVE:
            return None
        return Plan(
            0.5 * self.timestep * FORCE_TO_ACCELERATION, self.timestep, 1.0, 0.0,
            np.empty((0, 1)), np.empty((0, 0, 3)), np.empty((0, 3)),
        )  # fmt: skip

    def conserved(self, state: MDState) -> Tensor:
        """Total energy [B], eV."""
        return total_energy(state)


def verlet_step(state: MDState, force_field: ForceField, timestep: float, **fields: Any) -> MDState:
    """Velocity Verlet, and further fields of the state."""
    half = 0.5 * timestep
    momenta, positions = kicked_and_drifted(state, half, timestep)
    return arrived(state, positions, momenta, half, force_field, **fields)
