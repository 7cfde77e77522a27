"""A frame: what is written of all replicas at one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray

from nnpcalc.batch import AtomsBatch
from nnpcalc.md.state import MDState, kinetic_energy, temperature
from nnpcalc.units import FS

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Frame:
    """The replicas that run at a step, on the CPU.

    Attributes:
        state: of them.
        time: fs since the start.
        kinetic: kinetic energies [B], eV.
        temperature: [B], K.
        conserved: the integrator's conserved quantity [B], eV, or NaN.
    """

    state: MDState
    time: float
    kinetic: FloatArray
    temperature: FloatArray
    conserved: FloatArray

    @staticmethod
    def of(state: MDState, timestep: float, conserved: torch.Tensor | None) -> Frame:
        """The frame of a state; conserved [B] in eV."""
        here = state.cpu()
        blank = np.full(here.n_systems, np.nan)
        return Frame(
            here,
            here.step * timestep,
            kinetic_energy(here).numpy(),
            temperature(here).numpy(),
            blank if conserved is None else conserved.cpu().numpy(),
        )

    @property
    def uncertainties(self) -> dict[str, list[float]]:
        """Of a committee, per replica: of the energy, eV, and the largest of a force, eV/Å."""
        names = (("energy_uncertainty", "energy_uncertainty"), ("uncertainty", "max_uncertainty"))
        variables = self.state.system_variables
        return {name: variables[key].tolist() for key, name in names if key in variables}

    def info(self, row: int) -> dict[str, Any]:
        """What is said of a replica in the `info` of its Atoms."""
        state = self.state
        known = {
            "step": state.step,
            "time": self.time,
            "replica": int(state.replica[row]),
            "charge": int(state.atoms.charge[row]),
            "spin": int(state.atoms.multiplicity[row]),
            "kinetic_energy": float(self.kinetic[row]),
            "temperature": float(self.temperature[row]),
        }
        if np.isfinite(self.conserved[row]):
            known["conserved_energy"] = float(self.conserved[row])
        known.update({name: values[row] for name, values in self.uncertainties.items()})
        return known

    def structures(self) -> Iterator[Atoms]:
        """One Atoms per replica, with momenta, energy and forces."""
        for row, atoms in enumerate(structures_of(self.state)):
            atoms.info = self.info(row)
            yield atoms


class Writer(Protocol):
    """A trajectory file that frames are appended to; each is in it whole or not at all."""

    def append(self, frame: Frame) -> None: ...

    def mark(self) -> dict[str, Any]:
        """Where the file ends, JSON; `reopen` of the same class goes back to it."""
        ...

    def sync(self) -> None:
        """Bring everything so far to the disk."""
        ...

    def close(self) -> None: ...


def structures_of(state: MDState) -> list[Atoms]:
    """The replicas as Atoms with momenta (in ASE's units), energy, forces, charge and spin."""
    here, result, first = state.cpu(), [], 0
    batch: AtomsBatch = here.atoms
    for row, count in enumerate(here.counts.tolist()):
        part = slice(first, first + count)
        first += count
        atoms = Atoms(
            numbers=batch.numbers[part].numpy(),
            positions=batch.positions[part].numpy(),
            cell=batch.cell[row].numpy(),
            pbc=batch.pbc[row].numpy(),
            momenta=here.momenta[part].numpy() / FS,
            info={
                "charge": int(batch.charge[row]),
                "spin": int(batch.multiplicity[row]),
                "replica": int(here.replica[row]),
            },
        )
        masses = here.masses[part].numpy()
        if not np.array_equal(masses, atoms.get_masses()):
            atoms.set_masses(masses)
        if batch.partial_charges is not None:
            atoms.arrays["partial_charges"] = batch.partial_charges[part].numpy().copy()
        atoms.calc = SinglePointCalculator(
            atoms, energy=float(here.energy[row]), forces=here.forces[part].numpy().copy()
        )
        result.append(atoms)
    return result
