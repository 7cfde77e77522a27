"""Constant temperature by a deterministic thermostat: Nose-Hoover chains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnpcalc.md.forcefield import ForceField
from nnpcalc.md.integrators.common import (
    begin,
    check_degrees,
    check_moving,
    check_positive,
    evaluate,
    total_energy,
)
from nnpcalc.md.integrators.nve import verlet_step
from nnpcalc.md.state import MDState, changed, kinetic_energy, per_atom
from nnpcalc.md.thermal import refuse_drift, temperatures
from nnpcalc.units import KB


@dataclass(frozen=True)
class NoseHoover:
    """Velocity Verlet between two half steps of a chain of M thermostats::

        dp/dt    = F - v_1 p
        dv_1/dt  = (2 K - N_f k_B T) / Q_1 - v_1 v_2
        dv_k/dt  = (Q_(k-1) v_(k-1)^2 - k_B T) / Q_k - v_k v_(k+1)
        dxi_k/dt = v_k,   Q_1 = N_f k_B T tau^2,   Q_k = k_B T tau^2

    Martyna, Klein and Tuckerman, J. Chem. Phys. 97, 2635 (1992); the explicit reversible integrator
    of Martyna, Tuckerman, Tobias and Klein, Mol. Phys. 87, 1117 (1996), with one step of the chain
    per half time step. Second order; conserved is
    ``H + sum_k Q_k v_k^2 / 2 + N_f k_B T xi_1 + k_B T sum_(k>1) xi_k``.

    ========  =======================================================================
    h         timestep, fs
    T         temperature, K; one, or one for each replica
    tau       relaxation, fs
    M         chain, number of thermostats
    xi, v, Q  positions (no unit), velocities (1/fs) and masses (eV fs^2) of the chain
    ========  =======================================================================

    The total momentum stays what it was and must be zero at the start. Small stiff molecules
    explore their states better with Langevin or Bussi.
    """

    timestep: float
    temperature: float | tuple[float, ...]
    relaxation: float = 100.0
    chain: int = 3

    def __post_init__(self) -> None:
        check_positive(timestep=self.timestep, relaxation=self.relaxation)
        if type(self.chain) is not int or self.chain < 1:
            raise ValueError(f"the chain needs 1 thermostat or more, not {self.chain!r}")

    def init(self, state: MDState, force_field: ForceField) -> MDState:
        """The state with its forces and a chain at rest.

        Raises:
            ValueError: a replica at rest, drifting, or of one atom alone; a temperature of 0.
        """
        state = begin(state, conserves_momentum=True)
        check_degrees(state, "NoseHoover")
        kelvin = temperatures(self.temperature, state)
        if not bool((kelvin > 0).all()):
            raise ValueError(f"NoseHoover needs temperatures above 0 K, not {kelvin.tolist()}")
        check_moving(state, "NoseHoover")
        refuse_drift(state, kelvin, "NoseHoover")
        still = state.energy.new_zeros(state.n_systems, self.chain)
        variables = {"temperature": kelvin, "chain_position": still, "chain_velocity": still}
        state = changed(state, system_variables={**state.system_variables, **variables})
        return evaluate(state, force_field)

    def step(self, state: MDState, force_field: ForceField) -> MDState:
        """One time step later."""
        state = self._thermostat(state, 0.5 * self.timestep)
        state = verlet_step(state, force_field, self.timestep)
        state = self._thermostat(state, 0.5 * self.timestep)
        return changed(state, step=state.step + 1)

    def conserved(self, state: MDState) -> Tensor:
        """Energy of the atoms and of the chain [B], eV."""
        position, velocity = (
            state.system_variables[name] for name in ("chain_position", "chain_velocity")
        )
        kt, mass = self._masses(state)
        weight = torch.ones_like(position)
        weight[:, 0] = state.degrees.to(weight.dtype)
        chain = 0.5 * mass * velocity * velocity + kt[:, None] * weight * position
        return total_energy(state) + chain.sum(1)

    def _masses(self, state: MDState) -> tuple[Tensor, Tensor]:
        """k_B T [B] in eV and Q [B, M] in eV fs^2."""
        kt = KB * state.system_variables["temperature"]
        mass = (kt * self.relaxation**2)[:, None].repeat(1, self.chain)
        mass[:, 0] *= state.degrees
        return kt, mass

    def _thermostat(self, state: MDState, time: float) -> MDState:
        """The chain acts on the momenta for a time in fs."""
        kt, masses = self._masses(state)
        q = masses.unbind(1)
        x = list(state.system_variables["chain_position"].unbind(1))
        v = list(state.system_variables["chain_velocity"].unbind(1))
        doubled, target = 2.0 * kinetic_energy(state), kt * state.degrees

        def pull(k: int) -> Tensor:
            if k == 0:
                return (doubled - target) / q[0]
            return (q[k - 1] * v[k - 1] * v[k - 1] - kt) / q[k]

        for k in reversed(range(self.chain)):
            v[k] = _driven(v, k, pull(k), time)
        scale = torch.exp(-time * v[0])
        doubled = doubled * scale * scale
        x = [a + time * b for a, b in zip(x, v, strict=True)]
        for k in range(self.chain):
            v[k] = _driven(v, k, pull(k), time)
        return changed(
            state,
            momenta=state.momenta * per_atom(state, scale),
            system_variables={
                **state.system_variables,
                "chain_position": torch.stack(x, 1),
                "chain_velocity": torch.stack(v, 1),
            },
        )


def _driven(v: list[Tensor], k: int, pull: Tensor, time: float) -> Tensor:
    """v_k after half a time: a kick between two quarters of the friction by its neighbour."""
    if k + 1 == len(v):
        return v[k] + 0.5 * time * pull
    friction = torch.exp(-0.25 * time * v[k + 1])
    return (v[k] * friction + 0.5 * time * pull) * friction
