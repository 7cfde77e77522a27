"""The state of many searches for minima at once, and the sums that a method makes of it.

As in molecular dynamics, everything about a molecule is computed from its own rows alone and in an
order that does not depend on its neighbours in the batch: its path is the same alone and in any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.md.state import changed, sum_per_system

Variables = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Search:
    """B molecules on their way down; floating point tensors are float64.

    Attributes:
        atoms: where forces are wanted next; positions [N, 3] in Å.
        mobile: [N, 3], 1 or 0 for coordinates held fixed.
        place: int64 [B], place of each molecule in the caller's list.
        evaluations: int64 [B], force evaluations so far.
        positions: [N, 3], Å, the last geometry that the method accepted.
        energy: [B], eV, of that geometry; infinite before the first.
        forces: [N, 3], eV/Å, of that geometry, zero on what is held fixed.
        raw_forces: [N, 3], eV/Å, the same without regard to what is held fixed.
        system_variables: further variables of a method, one row per molecule.
        atom_variables: the same, one row per atom.
    """

    atoms: AtomsBatch
    mobile: Tensor
    place: Tensor
    evaluations: Tensor
    positions: Tensor
    energy: Tensor
    forces: Tensor
    raw_forces: Tensor
    system_variables: Variables
    atom_variables: Variables

    @property
    def counts(self) -> Tensor:
        """int64 [B], atoms of each molecule."""
        return self.atoms.counts

    def trying(self, trial: Tensor, /, **fields: object) -> Search:
        """The search with other positions [N, 3] to evaluate, and other fields."""
        return changed(self, atoms=changed(self.atoms, positions=trial), **fields)

    def select(self, rows: Sequence[int]) -> Search:
        """The search of some molecules, given by their rows, ascending."""
        device, old = self.energy.device, self.atoms
        kept = torch.tensor(rows, dtype=torch.int64, device=device)
        chosen = torch.zeros(old.n_systems, dtype=torch.bool, device=device)
        chosen[kept] = True
        index = torch.nonzero(chosen.index_select(0, old.system))[:, 0]
        number = torch.cumsum(chosen, 0) - 1
        charges = old.partial_charges
        atoms = AtomsBatch(
            numbers=old.numbers[index],
            positions=old.positions[index],
            cell=old.cell[kept],
            pbc=old.pbc[kept],
            system=number[old.system[index]],
            charge=old.charge[kept],
            multiplicity=old.multiplicity[kept],
            partial_charges=None if charges is None else charges[index],
        )
        return replace(
            self,
            atoms=atoms,
            **{name: getattr(self, name)[index] for name in ATOM_FIELDS},
            **{name: getattr(self, name)[kept] for name in SYSTEM_FIELDS},
            system_variables={k: v[kept] for k, v in self.system_variables.items()},
            atom_variables={k: v[index] for k, v in self.atom_variables.items()},
        )

    def joined(self, other: Search) -> Search:
        """This search and, behind it, another by the same method."""
        pairs = [(name, (getattr(self, name), getattr(other, name))) for name in FIELDS]
        return replace(
            self,
            atoms=AtomsBatch.concatenate([self.atoms, other.atoms]),
            **{name: torch.cat(both) for name, both in pairs},
            system_variables=_together(self.system_variables, other.system_variables),
            atom_variables=_together(self.atom_variables, other.atom_variables),
        )


#: Tensors of a search with a row per atom, and with a row per molecule.
ATOM_FIELDS = ("mobile", "positions", "forces", "raw_forces")
SYSTEM_FIELDS = ("place", "evaluations", "energy")
FIELDS = ATOM_FIELDS + SYSTEM_FIELDS


def _together(first: Variables, second: Variables) -> Variables:
    return {key: torch.cat((value, second[key])) for key, value in first.items()}


class Method(Protocol):
    """How to go down."""

    def begin(self, atoms: AtomsBatch) -> tuple[Variables, Variables]:
        """Variables of each molecule and of each atom before the first evaluation."""
        ...

    def step(self, search: Search, energy: Tensor, raw_forces: Tensor) -> tuple[Search, Tensor]:
        """Where to evaluate next, and which molecules [B] bool cannot go on.

        Args:
            search: whose `atoms` were evaluated.
            energy: [B], eV, of `search.atoms`.
            raw_forces: [N, 3], eV/Å, of `search.atoms`, also on what is held fixed.
        """
        ...


# --- sums and lengths ---------------------------------------------------------------------------


def dot(a: Tensor, b: Tensor, counts: Tensor) -> Tensor:
    """Scalar products [B] of two vectors [N, 3] per molecule; atoms are added one by one."""
    product = a * b
    return sum_per_system(product[:, 0] + product[:, 1] + product[:, 2], counts)


def longest(vectors: Tensor, counts: Tensor) -> Tensor:
    """Length of the longest of the vectors [N, 3] of each molecule [B]."""
    square = vectors * vectors
    largest = torch.segment_reduce(
        square[:, 0] + square[:, 1] + square[:, 2], "max", lengths=counts, unsafe=True
    )
    return torch.sqrt(largest)


def spread(values: Tensor, search: Search) -> Tensor:
    """[B] to a column [N, 1]."""
    return values.index_select(0, search.atoms.system)[:, None]


def shortened(step: Tensor, limit: float, search: Search) -> Tensor:
    """Steps [N, 3], scaled down in each molecule so that no atom moves by more than `limit`."""
    length = longest(step, search.counts)
    factor = torch.where(length > limit, limit / length, 1.0)
    return step * spread(factor, search)
