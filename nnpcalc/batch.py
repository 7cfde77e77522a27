"""`AtomsBatch`: one or many structures as a handful of tensors, the only form in which atoms are
computed with.

The atoms of all structures stand behind each other, without padding, and `system` says to which
structure an atom belongs; a single molecule is a batch of one. `AtomsBatch.from_atoms` is the door
from ASE, and all that can be wrong with an input is said there (`checks.py`, `state.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from nnpcalc.checks import (
    InputError,
    check_cells,
    check_numbers,
    check_partial_charges,
    check_positions,
)
from nnpcalc.state import resolve_state, system_label

_NUMPY_DTYPES: dict[torch.dtype, np.dtype] = {
    torch.float32: np.dtype("float32"),
    torch.float64: np.dtype("float64"),
}


@dataclass(frozen=True, eq=False, repr=False)
class AtomsBatch:
    """N atoms of B systems. Immutable: `dataclasses.replace(batch, positions=...)` makes a changed
    copy.

    Shapes, dtypes and devices are checked when a batch is made; the values only by `from_atoms`.

    Attributes:
        numbers: int64 [N], atomic numbers 1 to 118.
        positions: float32 or float64 [N, 3], Å; need not lie inside the cell.
        cell: float [B, 3, 3], Å, rows are the lattice vectors as in ASE. A row may be zero where
            `pbc` is False.
        pbc: bool [B, 3], the periodic directions.
        system: int64 [N], index of the system of each atom, ascending.
        charge: int64 [B], total charges, elementary charges.
        multiplicity: int64 [B], spin multiplicities 2S + 1.
        partial_charges: float [N], elementary charges, or None.
    """

    numbers: Tensor
    positions: Tensor
    cell: Tensor
    pbc: Tensor
    system: Tensor
    charge: Tensor
    multiplicity: Tensor
    partial_charges: Tensor | None = None

    def __post_init__(self) -> None:
        n_atoms, n_systems, dtype = self.numbers.shape[0], self.cell.shape[0], self.positions.dtype
        if dtype not in _NUMPY_DTYPES:
            raise InputError(f"positions must be float32 or float64, not {dtype}")
        _check_tensor("numbers", self.numbers, (n_atoms,), torch.int64, self.device)
        _check_tensor("positions", self.positions, (n_atoms, 3), dtype, self.device)
        _check_tensor("cell", self.cell, (n_systems, 3, 3), dtype, self.device)
        _check_tensor("pbc", self.pbc, (n_systems, 3), torch.bool, self.device)
        _check_tensor("system", self.system, (n_atoms,), torch.int64, self.device)
        _check_tensor("charge", self.charge, (n_systems,), torch.int64, self.device)
        _check_tensor("multiplicity", self.multiplicity, (n_systems,), torch.int64, self.device)
        if self.partial_charges is not None:
            charges = self.partial_charges
            _check_tensor("partial_charges", charges, (n_atoms,), dtype, self.device)

    def __repr__(self) -> str:
        return (
            f"AtomsBatch(n_atoms={self.n_atoms}, n_systems={self.n_systems}, dtype={self.dtype}, "
            f"device={self.device})"
        )

    @property
    def n_atoms(self) -> int:
        """N, the atoms of all systems together."""
        return self.numbers.shape[0]

    @property
    def n_systems(self) -> int:
        """B."""
        return self.cell.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of positions, cell and partial charges."""
        return self.positions.dtype

    @property
    def device(self) -> torch.device:
        return self.positions.device

    @cached_property
    def counts(self) -> Tensor:
        """int64 [B], number of atoms of each system."""
        # not torch.bincount, which waits for the GPU to learn the size of its output
        zeros = torch.zeros(self.n_systems, dtype=torch.int64, device=self.device)
        return zeros.index_add_(0, self.system, torch.ones_like(self.system))

    @property
    def lattices(self) -> Tensor:
        """[B, 3, 3], Å: the cells of periodic systems, zeros for open ones, which have none."""
        known: Tensor | None = self.__dict__.get("_lattices")
        if known is None:
            known = torch.where(self.pbc.any(dim=1)[:, None, None], self.cell, 0.0)
            if not (known.requires_grad or known.is_inference()):  # a graph is good for one use
                self.__dict__["_lattices"] = known
        return known

    def moved(self, positions: Tensor) -> AtomsBatch:
        """The same systems at other positions [N, 3], of the same dtype and on the same device.

        Faster than `dataclasses.replace`, which checks and derives everything anew.
        """
        _check_tensor("positions", positions, (self.n_atoms, 3), self.dtype, self.device)
        batch = object.__new__(AtomsBatch)
        batch.__dict__.update(self.__dict__, positions=positions)
        return batch

    @classmethod
    def from_atoms(
        cls,
        atoms: Atoms | Iterable[Atoms],
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        charge: int = 0,
        multiplicity: int | None = None,
    ) -> AtomsBatch:
        """Check structures and copy them into a batch. The structures are not changed.

        Charge and multiplicity come from `atoms.info` (`state.resolve_state`), partial charges from
        `atoms.arrays["partial_charges"]` if every structure has them. An `Atoms` without atoms is a
        system of its own with no rows in the atom tensors; an empty list makes a batch of no
        systems.

        Args:
            atoms: one structure, or any number of them.
            dtype: torch.float64 or torch.float32, of positions, cell and partial charges.
            device: where the tensors go.
            charge, multiplicity: defaults for structures whose `info` does not say.

        Raises:
            InputError: positions or cells that are not finite or too large for `dtype`, atoms that
                are no element, periodic directions with a zero, dependent or far too short cell
                vector, partial charges on some structures only.
            StateError: charges and multiplicities that are malformed or impossible.
            Both are ValueErrors and name the system, the atom and the remedy.

        >>> from ase.build import molecule
        >>> AtomsBatch.from_atoms([molecule("H2O"), molecule("CH4")])
        AtomsBatch(n_atoms=8, n_systems=2, dtype=torch.float64, device=cpu)
        """
        if dtype not in _NUMPY_DTYPES:
            raise InputError(f"dtype must be torch.float32 or torch.float64, not {dtype}")
        structures = _as_list(atoms)
        # the array of zero length in front gives np.concatenate something when there are no
        # structures
        numbers = np.concatenate([_NO_NUMBERS, *(a.arrays["numbers"] for a in structures)])
        positions = np.concatenate([_NO_POSITIONS, *(a.arrays["positions"] for a in structures)])
        cells = np.array([a.cell.array for a in structures], dtype=np.float64).reshape(-1, 3, 3)
        pbc = np.array([a.pbc for a in structures], dtype=bool).reshape(-1, 3)
        counts = np.array([len(a) for a in structures], dtype=np.int64)
        partial_charges = _partial_charges(structures)

        check_numbers(numbers, counts)
        check_positions(positions, numbers, counts, _NUMPY_DTYPES[dtype])
        check_cells(cells, pbc, _NUMPY_DTYPES[dtype])
        if partial_charges is not None:
            check_partial_charges(partial_charges, numbers, counts)
        states = [
            resolve_state(a, charge, multiplicity, system=i) for i, a in enumerate(structures)
        ]

        return cls(
            numbers=torch.from_numpy(numbers).to(device),
            positions=torch.from_numpy(positions).to(device, dtype),
            cell=torch.from_numpy(cells).to(device, dtype),
            pbc=torch.from_numpy(pbc).to(device),
            system=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(device),
            charge=torch.tensor([s.charge for s in states], dtype=torch.int64, device=device),
            multiplicity=torch.tensor(
                [s.multiplicity for s in states], dtype=torch.int64, device=device
            ),
            partial_charges=(
                None
                if partial_charges is None
                else torch.from_numpy(partial_charges).to(device, dtype)
            ),
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AtomsBatch:
        """The batch on another device or in another floating point type; integers stay int64.

        Raises:
            InputError: going to float32 with coordinates that float32 does not resolve
                (`checks.py`).
        """
        if dtype in (None, self.dtype) and device in (None, self.device):
            return self
        if dtype == torch.float32 and self.dtype == torch.float64:
            self._check_precision(np.dtype("float32"))
        charges = self.partial_charges
        return AtomsBatch(
            numbers=self.numbers.to(device),
            positions=self.positions.to(device, dtype),
            cell=self.cell.to(device, dtype),
            pbc=self.pbc.to(device),
            system=self.system.to(device),
            charge=self.charge.to(device),
            multiplicity=self.multiplicity.to(device),
            partial_charges=None if charges is None else charges.to(device, dtype),
        )

    def _check_precision(self, dtype: np.dtype) -> None:
        positions, numbers, counts, cell, pbc = (
            tensor.detach().cpu().numpy()
            for tensor in (self.positions, self.numbers, self.counts, self.cell, self.pbc)
        )
        check_positions(positions, numbers, counts, dtype)
        check_cells(cell, pbc, dtype)

    @staticmethod
    def concatenate(batches: Sequence[AtomsBatch]) -> AtomsBatch:
        """One batch of the systems of all `batches`, in their order.

        Raises:
            InputError: no batches, different dtypes or devices, or partial charges in some of them
                only.
        """
        if not batches:
            raise InputError(
                "cannot concatenate an empty list of batches: dtype and device are unknown"
            )
        first = batches[0]
        for k, batch in enumerate(batches):
            if (batch.dtype, batch.device) != (first.dtype, first.device):
                raise InputError(
                    f"batch 0 is {first.dtype} on {first.device} but batch {k} is {batch.dtype} on "
                    f"{batch.device}; bring them together with .to(device, dtype)"
                )
        charges = [b.partial_charges for b in batches if b.n_atoms]
        given = [c for c in charges if c is not None]
        if given and len(given) != len(charges):
            raise InputError(
                "some of the batches have partial charges and some do not; give all or none"
            )
        starts = np.cumsum([0] + [b.n_systems for b in batches[:-1]])
        return AtomsBatch(
            numbers=torch.cat([b.numbers for b in batches]),
            positions=torch.cat([b.positions for b in batches]),
            cell=torch.cat([b.cell for b in batches]),
            pbc=torch.cat([b.pbc for b in batches]),
            system=torch.cat([b.system + int(s) for b, s in zip(batches, starts, strict=True)]),
            charge=torch.cat([b.charge for b in batches]),
            multiplicity=torch.cat([b.multiplicity for b in batches]),
            partial_charges=torch.cat(given) if given else None,
        )

    def split(self) -> list[AtomsBatch]:
        """The systems as batches of one, in order; their tensors are views of this batch's."""
        sizes = self.counts.tolist()
        atom_tensors = [t.split(sizes) for t in (self.numbers, self.positions, self.system)]
        charges = self.partial_charges
        per_system = [None] * len(sizes) if charges is None else charges.split(sizes)
        return [
            AtomsBatch(
                numbers=numbers,
                positions=positions,
                cell=self.cell[b : b + 1],
                pbc=self.pbc[b : b + 1],
                system=system - b,
                charge=self.charge[b : b + 1],
                multiplicity=self.multiplicity[b : b + 1],
                partial_charges=per_system[b],
            )
            for b, (numbers, positions, system) in enumerate(zip(*atom_tensors, strict=True))
        ]


_NO_NUMBERS = np.zeros(0, dtype=np.int64)
_NO_POSITIONS = np.zeros((0, 3), dtype=np.float64)


def _as_list(atoms: Atoms | Iterable[Atoms]) -> list[Atoms]:
    if isinstance(atoms, Atoms):
        return [atoms]
    if not isinstance(atoms, Iterable):
        raise InputError(f"expected ase.Atoms or a list of them, not {type(atoms).__name__}")
    structures = list(atoms)
    for i, structure in enumerate(structures):
        if not isinstance(structure, Atoms):
            raise InputError(f"expected ase.Atoms as system {i}, not {type(structure).__name__}")
    return structures


def _partial_charges(structures: list[Atoms]) -> NDArray[np.float64] | None:
    """Partial charges [N] if all structures that have atoms have them, None if no structure has."""
    with_atoms = [(i, a) for i, a in enumerate(structures) if len(a)]
    given = [a.arrays["partial_charges"] for _, a in with_atoms if "partial_charges" in a.arrays]
    if not given:
        return None
    if len(given) != len(with_atoms):
        i, a = next((i, a) for i, a in with_atoms if "partial_charges" not in a.arrays)
        raise InputError(
            f"{system_label(a, i)} has no atoms.arrays['partial_charges'], which {len(given)} "
            f"other structures have; give partial charges to all structures or to none"
        )
    for i, a in with_atoms:
        charges = a.arrays["partial_charges"]
        if charges.ndim != 1 or charges.dtype.kind not in "fiu":
            raise InputError(
                f"{system_label(a, i)}: atoms.arrays['partial_charges'] must be one number per "
                f"atom, not {charges.dtype} of shape {charges.shape}"
            )
    return np.concatenate(given).astype(np.float64, copy=False)


def _check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
        raise InputError(
            f"{name} must be {dtype} of shape {list(shape)} on {device}, not {tensor.dtype} of "
            f"shape {list(tensor.shape)} on {tensor.device}"
        )
