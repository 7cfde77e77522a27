"""Multiple time steps: a cheap potential between the evaluations of the expensive one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nnpcalc.md.forcefield import ForceField
from nnpcalc.md.integrators.common import evaluate, kicked
from nnpcalc.md.integrators.langevin import Langevin
from nnpcalc.md.integrators.nve import NVE
from nnpcalc.md.state import MDState, changed


@dataclass(frozen=True)
class Respa:
    """Reversible reference system propagator::

        p <- p + n h/2 (F - f)(x)
        n steps of `inner` with the forces f
        p <- p + n h/2 (F - f)(x)

    Tuckerman, Berne and Martyna, J. Chem. Phys. 97, 1990 (1992). Second order in h; energies and
    forces of the run are those of the expensive potential. Keep n h below half the shortest period
    that F - f has, or the two resonate.

    ======  ============================================================
    h       inner.timestep, fs; the time step of the run is n h
    n       inner_steps
    f       forces of `cheap`, a force field
    F       forces of the force field of the run
    ======  ============================================================

    Attributes:
        inner: `NVE` or `Langevin`; says the ensemble.
        cheap: the force field of the inner steps.
        inner_steps: n.
    """

    inner: NVE | Langevin
    cheap: ForceField
    inner_steps: int

    def __post_init__(self) -> None:
        if not isinstance(self.inner, (NVE, Langevin)):
            raise ValueError(
                f"the inner steps of Respa are NVE or Langevin, not {type(self.inner).__name__}"
            )
        if type(self.inner_steps) is not int or self.inner_steps < 1:
            raise ValueError(f"inner_steps must be 1 or more, not {self.inner_steps!r}")

    @property
    def timestep(self) -> float:
        """fs, between two evaluations of the expensive potential."""
        return self.inner.timestep * self.inner_steps

    def init(self, state: MDState, force_field: ForceField) -> MDState:
        """The state with the forces of both potentials."""
        return self._evaluate(self.inner.init(state, self.cheap), force_field)

    def step(self, state: MDState, force_field: ForceField) -> MDState:
        """One step of n h later."""
        half, step = 0.5 * self.timestep, state.step
        cheap = state.atom_variables["cheap_forces"]
        state = changed(
            state,
            momenta=kicked(state.momenta, state.forces - cheap, half),
            forces=cheap,
            step=step * self.inner_steps,
        )
        for _ in range(self.inner_steps):
            state = self.inner.step(state, self.cheap)
        state = self._evaluate(state, force_field)
        slow = state.forces - state.atom_variables["cheap_forces"]
        return changed(state, momenta=kicked(state.momenta, slow, half), step=step + 1)

    def conserved(self, state: MDState) -> Tensor:
        """Total energy less the heat that a thermostat brought in [B], eV."""
        return self.inner.conserved(state)

    def _evaluate(self, state: MDState, force_field: ForceField) -> MDState:
        """The expensive forces in the place of the cheap ones, which are kept beside them."""
        cheap = {**state.atom_variables, "cheap_forces": state.forces}
        return evaluate(changed(state, atom_variables=cheap), force_field)
