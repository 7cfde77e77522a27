"""Constant temperature, every atom in its own heat bath: Langevin dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nnpcalc.md import loops
from nnpcalc.md.compiled import Plan
from nnpcalc.md.forcefield import ForceField
from nnpcalc.md.integrators.common import (
    arrived,
    begin,
    check_positive,
    drifted,
    evaluate,
    kicked_and_drifted,
    total_energy,
)
from nnpcalc.md.random import STREAM_THERMOSTAT, Noise
from nnpcalc.md.state import MDState, changed, per_atom, sum_per_system, thermal_scale
from nnpcalc.md.thermal import temperatures
from nnpcalc.units import FORCE_TO_ACCELERATION, VELOCITY_SQUARED_TO_ENERGY

_HALF = 0.5 * VELOCITY_SQUARED_TO_ENERGY


@dataclass(frozen=True)
class Langevin:
    """Langevin dynamics by the splitting BAOAB::

        dx = p/m dt,   dp = F dt - g p dt + sqrt(2 g m k_B T) dW

        B   p <- p + h/2 F(x)
        A   x <- x + h/2 p/m
        O   p <- c p + sqrt((1 - c^2) m k_B T) R,   c = exp(-g h)
        A   x <- x + h/2 p/m
        B   p <- p + h/2 F(x)

    Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34 and J. Chem. Phys. 138, 174102
    (2013). Second order; for a harmonic oscillator the distribution of positions is exact.

    ======  =======================================================================
    h       timestep, fs
    T       temperature, K; one, or one for each replica
    g       friction, 1/fs: momenta forget in 1/g. 0.001 is 1/ps
    R       normal numbers, keyed by seed, replica, step and atom (`nnpcalc.md.random`)
    ======  =======================================================================

    Nothing is conserved but the energy less the heat that O has brought in, whose drift measures
    the error of the time step. The centre of mass takes part: all 3N degrees of freedom count.

    Attributes:
        timestep, temperature, friction: h, T and g.
    """

    timestep: float
    temperature: float | tuple[float, ...]
    friction: float = 0.002
    _noise: Noise = field(
        default_factory=lambda: Noise(STREAM_THERMOSTAT), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_positive(timestep=self.timestep, friction=self.friction)

    def init(self, state: MDState, force_field: ForceField) -> MDState:
        """The state with its forces, the size of the noise and no heat yet."""
        state = begin(state, conserves_momentum=False)
        kelvin = temperatures(self.temperature, state)
        lost = -math.expm1(-2.0 * self.friction * self.timestep)  # 1 - c^2
        spread = torch.sqrt(
            lost * thermal_scale(1.0) * per_atom(state, kelvin) * state.masses[:, None]
        )
        if state.mobile is not None:
            spread = spread * state.mobile
        state = changed(
            state,
            system_variables={
                **state.system_variables,
                "temperature": kelvin,
            },
            atom_variables={
                **state.atom_variables,
                "noise": spread,
                "heat": torch.zeros_like(state.momenta),
            },
        )
        return evaluate(state, force_field)

    def step(self, state: MDState, force_field: ForceField) -> MDState:
        """One time step later."""
        random = self._noise.at(state.seed, state.owner, state.place, state.step)
        momenta, positions, heat = self._through_bath(state, random)
        return arrived(
            state, positions, momenta, 0.5 * self.timestep, force_field,
            step=state.step + 1, atom_variables={**state.atom_variables, "heat": heat},
        )  # fmt: skip

    def plan(self, state: MDState, steps: int) -> Plan | None:
        """Up to so many steps for `nnpcalc.md.compiled`; None of a class with a step of its own."""
        if type(self) is not Langevin:
            return None
        half = 0.5 * self.timestep
        noise = self._noise.span(state.seed, state.owner, state.place, state.step, steps)
        variables = state.atom_variables
        return Plan(
            half * FORCE_TO_ACCELERATION, half, math.exp(-self.friction * self.timestep), _HALF,
            variables["noise"].numpy(), noise.numpy(), variables["heat"].numpy().copy(),
        )  # fmt: skip

    def _through_bath(self, state: MDState, random: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Momenta, positions and heat after B, A, O and A."""
        half, keep = 0.5 * self.timestep, math.exp(-self.friction * self.timestep)
        spread, heat = state.atom_variables["noise"], state.atom_variables["heat"]
        if state.momenta.is_cpu:
            p, x, w = state.momenta, state.atoms.positions, state.inverse_masses
            arrays = [t.numpy() for t in (p, state.forces, x, w, spread, random, heat)]
            out = np.empty((3, len(arrays[0]), 3))
            loops.bath(*arrays, half * FORCE_TO_ACCELERATION, half, keep, _HALF, out)  # type: ignore[call-arg]
            return torch.from_numpy(out[0]), torch.from_numpy(out[1]), torch.from_numpy(out[2])
        before, positions = kicked_and_drifted(state, half, half)
        momenta = torch.addcmul(before * keep, spread, random)
        positions = drifted(state, positions, momenta, half)
        # kept per coordinate and summed when it is asked for, which is seldom
        gained = torch.addcmul(momenta * momenta, before, before, value=-1.0)
        return momenta, positions, torch.addcmul(heat, gained, state.inverse_masses, value=_HALF)

    def conserved(self, state: MDState) -> Tensor:
        """Total energy less the heat that came in [B], eV."""
        heat = state.atom_variables["heat"].sum(1)
        return total_energy(state) - sum_per_system(heat, state.counts)
