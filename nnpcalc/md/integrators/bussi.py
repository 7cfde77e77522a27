"""Constant temperature by rescaling all velocities with one random factor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nnpcalc.md.forcefield import ForceField
from nnpcalc.md.integrators.common import (
    begin,
    check_degrees,
    check_moving,
    check_positive,
    evaluate,
    rowwise,
    total_energy,
)
from nnpcalc.md.integrators.nve import verlet_step
from nnpcalc.md.random import STREAM_THERMOSTAT, Noise
from nnpcalc.md.state import MDState, changed, kinetic_energy, per_atom, sum_per_system
from nnpcalc.md.thermal import refuse_drift, temperatures
from nnpcalc.units import KB


@dataclass(frozen=True)
class Bussi:
    """Velocity Verlet, then stochastic velocity rescaling: p <- a p with::

        a^2 = c + (1 - c) k_B T / (2 K) (R_1^2 + S) + 2 R_1 sqrt(c (1 - c) k_B T / (2 K))
        c = exp(-h / tau),   sign a = sign(R_1 + sqrt(2 c K / ((1 - c) k_B T)))

    Bussi, Donadio and Parrinello, J. Chem. Phys. 126, 014101 (2007), eqs. A7 and A8. The canonical
    distribution with little disturbance of the dynamics, which keeps its diffusion.

    ======  ======================================================================
    h       timestep, fs
    T       temperature, K; one, or one for each replica
    tau     relaxation, fs
    K, N_f  kinetic energy and degrees of freedom of the replica
    R_1, S  a normal number and the sum of N_f - 1 squares of others
    ======  ======================================================================

    The total momentum stays what it was and must be zero at the start; it is not counted in N_f.
    """

    timestep: float
    temperature: float | tuple[float, ...]
    relaxation: float = 100.0
    _noise: Noise = field(
        default_factory=lambda: Noise(STREAM_THERMOSTAT), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_positive(timestep=self.timestep, relaxation=self.relaxation)

    def init(self, state: MDState, force_field: ForceField) -> MDState:
        """The state with its forces and no heat yet.

        Raises:
            ValueError: a replica at rest, drifting, or of one atom alone; a temperature of 0.
        """
        return evaluate(begin_rescaling(state, self.temperature, "Bussi"), force_field)

    def step(self, state: MDState, force_field: ForceField) -> MDState:
        """One time step later."""
        state = verlet_step(state, force_field, self.timestep)
        state = rescaled(state, self._noise, self.timestep / self.relaxation)
        return changed(state, step=state.step + 1)

    def conserved(self, state: MDState) -> Tensor:
        """Total energy less the heat that came in [B], eV."""
        return total_energy(state) - state.system_variables["heat"]


def begin_rescaling(state: MDState, kelvin: float | tuple[float, ...], integrator: str) -> MDState:
    """The state with what `rescaled` needs."""
    state = begin(state, conserves_momentum=True)
    check_degrees(state, integrator)
    target = temperatures(kelvin, state)
    if not bool((target > 0).all()):
        raise ValueError(f"{integrator} needs temperatures above 0 K, not {target.tolist()}")
    check_moving(state, integrator)
    refuse_drift(state, target, integrator)
    # of the 3 n normal numbers of a replica the first is R_1 and the next N_f - 1 make S
    number = 3 * state.place[:, None] + torch.arange(3, device=state.place.device)
    summed = (number >= 1) & (number < per_atom(state, state.degrees))
    return changed(
        state,
        system_variables={
            **state.system_variables,
            "temperature": target,
            "heat": torch.zeros_like(state.energy),
        },
        atom_variables={**state.atom_variables, "summed": summed.to(torch.float64)},
    )


def rescaled(state: MDState, noise: Noise, time: float) -> MDState:
    """The state after a thermostat has acted for a time, in units of its relaxation time."""
    random = noise.at(state.seed, state.owner, state.place, state.step)
    r = random[:, 0].index_select(0, state.first)
    squares = (random * random * state.atom_variables["summed"]).sum(1)
    s = sum_per_system(squares, state.counts)
    kinetic, kelvin = kinetic_energy(state), state.system_variables["temperature"]
    keep = math.exp(-time)

    def factors(lib: Any, r: Any, s: Any, k: Any, t: Any, heat: Any) -> tuple[Any, Any]:
        fresh = (1.0 - keep) * 0.5 * KB * t / k  # k_B T / (2 K) times 1 - c
        squared = keep + fresh * (r * r + s) + 2.0 * r * lib.sqrt(keep * fresh)
        sign = r + lib.sqrt(keep / fresh)
        return lib.sqrt(squared) * sign / abs(sign), heat + (squared - 1.0) * k

    factor, heat = rowwise(factors, r, s, kinetic, kelvin, state.system_variables["heat"])
    return changed(
        state,
        momenta=state.momenta * per_atom(state, factor),
        system_variables={**state.system_variables, "heat": heat},
    )
