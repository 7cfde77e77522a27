"""What is watched while a simulation runs, so that one replica's disaster stays its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nnpcalc.md import loops
from nnpcalc.md.bonds import covalent_radii_of, relative_distances
from nnpcalc.md.integrators.common import Integrator
from nnpcalc.md.state import MDState, temperature
from nnpcalc.state import element_symbol

#: Relative distances (in sums of covalent radii) at which two atoms are bonded at the start, count
#: as newly bonded, and have lost their bond.
BONDED, FORMED, BROKEN = 1.25, 1.1, 1.75

#: Atoms of a molecule from which on a search takes less time than all its pairs.
LARGE = 1000


@dataclass(frozen=True)
class Incident:
    """Why a replica was stopped.

    Attributes:
        replica: its identity.
        step: at which it was noticed.
        reason: in words, with numbers and units.
        atoms: places of the atoms in the replica, if particular ones are to blame.
    """

    replica: int
    step: int
    reason: str
    atoms: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"replica {self.replica}, step {self.step}: {self.reason}"


class SimulationDiverged(ValueError):
    """No replica is left: `incidents` says why, `frozen` has the last good states."""

    def __init__(self, incidents: Sequence[Incident], frozen: Sequence[MDState] = ()) -> None:
        self.incidents, self.frozen = tuple(incidents), tuple(frozen)
        first = "; ".join(str(incident) for incident in self.incidents[:3])
        more = len(self.incidents) - 3
        super().__init__(
            f"{first}{f'; and {more} more' if more > 0 else ''}. Look at the last frames; usual "
            "remedies are a relaxed structure, a shorter time step, or a model that was trained on "
            "such structures"
        )


class MDWarning(UserWarning):
    """A replica was stopped while the others go on."""


@dataclass(frozen=True)
class Reference:
    """What a check compares with: energies of the last check, bonds of the start.

    Attributes:
        conserved: [B], eV, or None.
        bonds: int64 [3, K]: row of the replica, and the places of two atoms in it, ascending.
    """

    conserved: Tensor | None
    bonds: Tensor

    def select(self, rows: Tensor) -> Reference:
        """The reference of some replicas, given by their rows, ascending."""
        kept = torch.isin(self.bonds[0], rows)
        bonds = self.bonds[:, kept]
        bonds[0] = torch.searchsorted(rows, bonds[0].contiguous())
        return Reference(None if self.conserved is None else self.conserved[rows], bonds)


@dataclass(frozen=True)
class Watchdog:
    """Limits beyond which a replica is stopped. None leaves one out.

    Forces are looked at in every step, everything else every `interval` steps and before anything
    is written.

    Attributes:
        max_force: on any atom, eV/Å.
        max_temperature: K, of the instant.
        max_energy_jump: of the conserved quantity between two checks, eV per atom.
        min_distance: between two atoms, in sums of their covalent radii.
        fixed_bonds: stop when a bond breaks or forms.
        max_uncertainty: of the forces, eV/Å, where the force field says it.
        interval: steps between two full checks.
    """

    max_force: float = 300.0
    max_temperature: float | None = 10_000.0
    max_energy_jump: float | None = 0.1
    min_distance: float | None = 0.5
    fixed_bonds: bool = False
    max_uncertainty: float | None = None
    interval: int = 100

    def __post_init__(self) -> None:
        for name, unit in (
            ("max_force", "eV/Å"), ("max_temperature", "K"), ("max_energy_jump", "eV per atom"),
            ("min_distance", "sums of covalent radii"), ("max_uncertainty", "eV/Å"),
        ):  # fmt: skip
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ValueError(f"{name} must be positive ({unit}), not {limit!r}")
        if type(self.interval) is not int or self.interval < 1:
            raise ValueError(f"the watchdog's interval must be 1 or more, not {self.interval!r}")

    def reference(self, state: MDState, integrator: Integrator) -> Reference:
        """What later checks compare with, from the first state."""
        bonds = _near(state, BONDED)[0] if self.fixed_bonds else torch.zeros(3, 0).long()
        return Reference(integrator.conserved(state), bonds.to(state.replica.device))

    def calm(self, state: MDState) -> bool:
        """Whether the forces on all replicas are numbers within the limit; cheap."""
        if state.forces.is_cpu:
            return bool(loops.within(state.forces.numpy(), self.max_force))
        low, high = torch.aminmax(state.forces)
        return float(low) >= -self.max_force and float(high) <= self.max_force

    def check(
        self, state: MDState, integrator: Integrator, reference: Reference
    ) -> tuple[dict[int, Incident], Reference]:
        """Look at everything.

        Returns:
            Incidents by the row of the replica, the gravest of each; and the next reference.
        """
        found: dict[int, Incident] = {}
        conserved = integrator.conserved(state)
        finite = bool(torch.isfinite(state.positions).all())
        if not (finite and self.calm(state) and bool(torch.isfinite(state.energy).all())):
            self._forces(state, found)
        if not finite:  # and without neighbors
            return found, reference
        self._contacts(state, found)
        self._temperature(state, found)
        self._energy(state, conserved, reference, found)
        self._uncertainty(state, found)
        if self.fixed_bonds:
            self._bonds(state, reference, found)
        return found, replace(reference, conserved=conserved)

    def _forces(self, state: MDState, found: dict[int, Incident]) -> None:
        largest = state.forces.abs().amax(1)
        sound = (largest <= self.max_force) & torch.isfinite(state.positions).all(1)
        for k in torch.nonzero(~sound)[:, 0].tolist():
            _note(
                found, state, int(state.atoms.system[k]),
                f"the force on atom {_name(state, k)} is {float(largest[k]):.4g} eV/Å, beyond "
                f"{self.max_force:g}", (int(state.place[k]),),
            )  # fmt: skip
        for b in torch.nonzero(~torch.isfinite(state.energy))[:, 0].tolist():
            _note(found, state, b, f"the energy is {float(state.energy[b])}")

    def _contacts(self, state: MDState, found: dict[int, Incident]) -> None:
        if self.min_distance is None or _far_apart(state, self.min_distance):
            return
        pairs, relative = _near(state, self.min_distance)
        for k in torch.argsort(relative).tolist():
            b, i, j = pairs[:, k].tolist()
            row = int(torch.nonzero(state.atoms.system == b)[0, 0])
            _note(
                found, state, b,
                f"atoms {_name(state, row + i)} and {_name(state, row + j)} are at "
                f"{float(relative[k]):.2f} of the sum of their covalent radii", (i, j),
            )  # fmt: skip

    def _temperature(self, state: MDState, found: dict[int, Incident]) -> None:
        if self.max_temperature is None:
            return
        kelvin = temperature(state)
        for b in torch.nonzero(~(kelvin <= self.max_temperature))[:, 0].tolist():
            _note(
                found, state, b,
                f"the temperature is {float(kelvin[b]):.4g} K, beyond {self.max_temperature:g}",
            )  # fmt: skip

    def _energy(
        self,
        state: MDState,
        conserved: Tensor | None,
        reference: Reference,
        found: dict[int, Incident],
    ) -> None:
        if self.max_energy_jump is None or conserved is None or reference.conserved is None:
            return
        jump = (conserved - reference.conserved) / state.counts
        for b in torch.nonzero(~(jump.abs() <= self.max_energy_jump))[:, 0].tolist():
            _note(
                found, state, b,
                f"the conserved energy changed by {float(jump[b]):.3g} eV per atom since the last "
                f"check, beyond {self.max_energy_jump:g}",
            )  # fmt: skip

    def _uncertainty(self, state: MDState, found: dict[int, Incident]) -> None:
        values = state.system_variables.get("uncertainty")
        if self.max_uncertainty is None or values is None:
            return
        for b in torch.nonzero(~(values <= self.max_uncertainty))[:, 0].tolist():
            _note(
                found, state, b,
                f"the forces are uncertain by {float(values[b]):.3g} eV/Å, beyond "
                f"{self.max_uncertainty:g}",
            )  # fmt: skip

    def _bonds(self, state: MDState, reference: Reference, found: dict[int, Incident]) -> None:
        pairs, relative = _near(state, BROKEN)
        before = set(map(tuple, reference.bonds.T.tolist()))
        near = dict(zip(map(tuple, pairs.T.tolist()), relative.tolist(), strict=True))
        changed = [(bond, "broke") for bond in before if bond not in near]
        changed += [(b, "formed") for b, r in near.items() if r < FORMED and b not in before]
        for (b, i, j), what in sorted(changed):
            row = int(torch.nonzero(state.atoms.system == b)[0, 0])
            names = f"{_name(state, row + i)} and {_name(state, row + j)}"
            _note(found, state, b, f"the bond of atoms {names} {what}", (i, j))


def _far_apart(state: MDState, limit: float) -> bool:
    """Whether it takes no search to see that `_near` would find nothing."""
    atoms = state.atoms
    if not atoms.positions.is_cpu or bool(atoms.pbc.any()) or int(state.counts.max()) > LARGE:
        return False
    positions, counts, radii = atoms.positions, state.counts, covalent_radii_of(atoms)
    # a little farther than the limit, so that rounding hides nothing
    limit *= 1.0 + 1e-9
    return bool(loops.far_apart(positions.numpy(), counts.numpy(), radii.numpy(), limit))


def _near(state: MDState, limit: float) -> tuple[Tensor, Tensor]:
    """Pairs closer than a limit in sums of covalent radii, each once.

    Returns:
        [3, K]: row of the replica and two places, ascending; and relative distances [K], of the
        nearest images.
    """
    neighbors, relative = relative_distances(state.atoms, limit)
    i, j = neighbors.pairs
    index = torch.nonzero(i <= j)[:, 0]
    i, j, relative = i[index], j[index], relative[index]
    rows = torch.stack((state.atoms.system[i], state.place[i], state.place[j]))
    if not len(index):
        return rows, relative
    unique, back = torch.unique(rows, dim=1, return_inverse=True)
    nearest = torch.full((unique.shape[1],), torch.inf, dtype=relative.dtype, device=i.device)
    return unique, nearest.scatter_reduce(0, back, relative, "amin")


def _name(state: MDState, atom: int) -> str:
    """'4 (H)', of the atom in row `atom`."""
    return f"{int(state.place[atom])} ({element_symbol(int(state.atoms.numbers[atom]))})"


def _note(
    found: dict[int, Incident],
    state: MDState,
    row: int,
    reason: str,
    atoms: tuple[int, ...] = (),
) -> None:
    """Keep the first incident of a replica."""
    if row not in found:
        found[row] = Incident(int(state.replica[row]), state.step, reason, atoms)
