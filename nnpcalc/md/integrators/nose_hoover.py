"""Constant temperature by a deterministic thermostat: Nose-Hoover chains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnpcalc.md.forcefield import ForceField
from nnpcalc.md.integrators.common import (
    arrived,
    begin,
    check_degrees,
    check_moving,
    check_positive,
    drifted,
    evaluate,
    kicked_and_drifted,
    rowwise,
    total_energy,
)
from nnpcalc.md.state import MDState, changed, kinetic_energy, per_atom
from nnpcalc.md.thermal import refuse_drift, temperatures
from nnpcalc.units import KB


@dataclass(frozen=True)
class NoseHoover:
    """Velocity Verlet with a chain of M thermostats that acts in the middle of the step::

        dp/dt    = F - v_1 p
        dv_1/dt  = (2 K - N_f k_B T) / Q_1 - v_1 v_2
        dv_k/dt  = (Q_(k-1) v_(k-1)^2 - k_B T) / Q_k - v_k v_(k+1)
        dxi_k/dt = v_k,   Q_1 = N_f k_B T tau^2,   Q_k = k_B T tau^2

    Martyna, Klein and Tuckerman, J. Chem. Phys. 97, 2635 (1992); the chain is moved as by Martyna,
    Tuckerman, Tobias and Klein, Mol. Phys. 87, 1117 (1996), in the order half kick, half drift,
    chain, half drift, half kick of Zhang, Liu, Chen, Yan and Liu, J. Chem. Phys. 147, 034109
    (2017). Second order and reversible; conserved is
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
        half = 0.5 * self.timestep
        momenta, positions = kicked_and_drifted(state, half, half)
        state = self._thermostat(changed(state, momenta=momenta))
        positions = drifted(state, positions, state.momenta, half)
        return arrived(state, positions, state.momenta, half, force_field, step=state.step + 1)

    def conserved(self, state: MDState) -> Tensor:
        """Energy of the atoms and of the chain [B], eV."""
        position, velocity, kt, degrees = _chain(state)
        mass = (kt * self.relaxation**2)[:, None].repeat(1, self.chain)
        mass[:, 0] *= degrees
        weight = torch.ones_like(position)
        weight[:, 0] = degrees
        chain = 0.5 * mass * velocity * velocity + kt[:, None] * weight * position
        return total_energy(state) + chain.sum(1)

    def _thermostat(self, state: MDState) -> MDState:
        """The chain acts on the momenta for one time step."""
        h, tau2 = self.timestep, self.relaxation**2

        def act(lib: Any, x: Any, v: Any, kt: Any, n: Any, kinetic: Any) -> tuple[Any, Any, Any]:
            x, v, last, doubled = list(x), list(v), len(v) - 1, 2.0 * kinetic

            def push(k: int) -> None:
                """Half a step of v_k: a kick between two quarters of friction by its neighbour."""
                if k:
                    q_before = kt * tau2 * n if k == 1 else kt * tau2
                    pull = (q_before * v[k - 1] * v[k - 1] - kt) / (kt * tau2)
                else:
                    pull = (doubled - n * kt) / (n * kt * tau2)
                friction = lib.exp(-0.25 * h * v[k + 1]) if k < last else 1.0
                v[k] = (v[k] * friction + 0.5 * h * pull) * friction

            for k in range(last, -1, -1):
                push(k)
            scale = lib.exp(-h * v[0])
            doubled = doubled * scale * scale
            x = [a + h * b for a, b in zip(x, v, strict=True)]
            for k in range(last + 1):
                push(k)
            return scale, x, v

        scale, position, velocity = rowwise(act, *_chain(state), kinetic_energy(state))
        variables = {"chain_position": position, "chain_velocity": velocity}
        return changed(
            state,
            momenta=state.momenta * per_atom(state, scale),
            system_variables={**state.system_variables, **variables},
        )


def _chain(state: MDState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions and velocities of the chain [B, M], k_B T [B] in eV, degrees of freedom [B]."""
    known = state.system_variables
    return (
        known["chain_position"],
        known["chain_velocity"],
        KB * known["temperature"],
        state.degrees.to(torch.float64),
    )
