"""The fast inertial relaxation engine, FIRE 2.0, for many molecules at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.optimizer.search import Search, Variables, dot, shortened, spread


@dataclass(frozen=True)
class FIRE:
    """Guénolé et al., Comput. Mater. Sci. 175, 109584 (2020), algorithm 2, with Euler's
    semi-implicit integration; after Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006).

    Atoms of unit mass move as in dynamics, v <- v + dt F, while the velocities are turned towards
    the forces, v <- (1 - a) v + a F |v| / |F|. As long as that is downhill, P = F.v > 0, dt grows
    and a shrinks; else the atoms go back by half a step and stop. It needs several times as many
    evaluations as L-BFGS but only forces, never energies.

    Attributes:
        max_step: Å that an atom may move in one step.
        timestep, shortest, longest: the first dt and its limits, Å sqrt(amu/eV) (10.2 fs).
        growth, cut: factors of dt after a step downhill and uphill.
        mixing, decay: the first a, and its factor after a step downhill.
        delay: steps downhill before dt grows.
        patience: steps uphill in a row after which the molecule is given up.
    """

    max_step: float = 0.2
    timestep: float = 0.1
    shortest: float = 0.002
    longest: float = 1.0
    growth: float = 1.1
    cut: float = 0.5
    mixing: float = 0.25
    decay: float = 0.99
    delay: int = 20
    patience: int = 2000

    def begin(self, atoms: AtomsBatch) -> tuple[Variables, Variables]:
        """At rest."""
        x, b = atoms.positions, atoms.n_systems
        whole = torch.zeros(b, dtype=torch.int64, device=x.device)
        system = {
            "timestep": x.new_full((b,), self.timestep),
            "mixing": x.new_full((b,), self.mixing),
            "downhill": whole,  # steps in a row
            "uphill": whole,
        }
        return system, {"velocities": torch.zeros_like(x)}

    def step(self, search: Search, energy: Tensor, raw_forces: Tensor) -> tuple[Search, Tensor]:
        """One step of the dynamics, from the geometry that was just evaluated."""
        old, counts, x = search.system_variables, search.counts, search.atoms.positions
        forces = raw_forces * search.mobile
        velocities = search.atom_variables["velocities"]
        down = dot(forces, velocities, counts) > 0
        downhill = torch.where(down, old["downhill"] + 1, 0)
        uphill = torch.where(down, 0, old["uphill"] + 1)
        early = search.evaluations <= self.delay  # the first steps only gain speed
        dt, mixing = old["timestep"], old["mixing"]
        longer = torch.clamp(dt * self.growth, max=self.longest)
        shorter = torch.clamp(dt * self.cut, min=self.shortest)
        fast = downhill > self.delay
        dt = torch.where(down, torch.where(fast, longer, dt), torch.where(early, dt, shorter))
        mixing = torch.where(
            down,
            torch.where(fast, mixing * self.decay, mixing),
            torch.where(early, mixing, self.mixing),
        )
        row, dt_row, mixing_row = (spread(value, search) for value in (down, dt, mixing))
        back = torch.where(row, 0.0, -0.5 * dt_row * velocities)
        velocities = torch.where(row, velocities, 0.0) + dt_row * forces
        speed = torch.sqrt(dot(velocities, velocities, counts))
        pull = torch.sqrt(dot(forces, forces, counts))
        ratio = torch.where(pull > 0, speed / pull, 0.0)
        velocities = (1.0 - mixing_row) * velocities + mixing_row * spread(ratio, search) * forces
        after = search.trying(
            x + shortened(back + dt_row * velocities, self.max_step, search),
            positions=x,
            energy=energy,
            forces=forces,
            raw_forces=raw_forces,
            system_variables={
                "timestep": dt, "mixing": mixing, "downhill": downhill, "uphill": uphill
            },
            atom_variables={"velocities": velocities},
        )  # fmt: skip
        return after, uphill > self.patience
