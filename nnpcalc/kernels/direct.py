"""A potential whose forces are written out: where autograd would find nothing to do.

Its bookkeeping of positions, vectors and sums costs a small molecule half of what the network does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nnpcalc.batch import AtomsBatch
from nnpcalc.kernels import inference_step as step
from nnpcalc.kernels.inference import TensorNetInference
from nnpcalc.kernels.inference_arrays import OfAtoms
from nnpcalc.kernels.inference_step import Geometry
from nnpcalc.potential import Potential, stress_of_virial
from nnpcalc.terms import ZBL, AtomicEnergies, StateEnergy, SystemEnergy
from nnpcalc.terms.inputs import TermInputs

#: Terms that do not depend on positions, and those that depend on the distances alone.
CONSTANTS = (AtomicEnergies, StateEnergy, SystemEnergy)
OF_DISTANCES = (ZBL,)


class _Fixed(NamedTuple):
    """What stays as it is while atoms move.

    Attributes:
        made_of: the tensors it was made of; None where there was none.
        versions: of these, which count what was written into them.
        charge, multiplicity: in the dtype of the model [B].
        atoms: for the network.
        energies: of the atoms, from the terms that are constants [N], eV, float64.
        reach: pairs nearer than the sum of their atoms' are seen by a term of distances [N], Å.
    """

    made_of: tuple[Tensor | None, ...]
    versions: list[int]
    charge: Tensor
    multiplicity: Tensor
    atoms: OfAtoms
    energies: np.ndarray
    reach: np.ndarray


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are one, as in dynamics, or have the same contents."""
    if one is other or one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)


class _Sums(NamedTuple):
    """Energies of the atoms [N], forces [N or 0, 3] and virial [B or 0, 3, 3], float64."""

    energies: np.ndarray
    forces: np.ndarray
    virial: np.ndarray


def versions(tensors: tuple[Tensor | None, ...]) -> list[int]:
    """How often each was written into; not known of those made in inference mode."""
    return [0 if tensor is None else tensor._version for tensor in tensors]


def simple(terms: Iterable[nn.Module]) -> bool:
    """Whether all terms are constants or depend on the distances alone."""
    return all(type(term) in CONSTANTS + OF_DISTANCES for term in terms)


def constant_energies(
    terms: Iterable[nn.Module],
    numbers: Tensor,
    system: Tensor,
    charge: Tensor,
    multiplicity: Tensor,
) -> Tensor:
    """Energies of the atoms [N] from those terms that are constants, eV, float64; charge and
    multiplicity [B] in the dtype of the model."""
    energies = torch.zeros(numbers.shape[0], dtype=torch.float64, device=numbers.device)
    nowhere = charge.new_zeros(0, 3)
    seen = TermInputs(
        numbers, nowhere, nowhere, system, system.new_zeros(2, 0), system.new_zeros(0, 3),
        nowhere, nowhere[:, 0], charge, multiplicity, None,
    )  # fmt: skip
    for term in terms:
        if type(term) in CONSTANTS:
            energies = energies + term(seen)
    return energies


class DirectPotential(Potential):
    """`Potential` of a `TensorNetInference`, whose derivatives do not go through autograd.

    Sums over pairs run in float64. Where positions have a graph, autograd does it all.
    """

    core: TensorNetInference

    def __init__(
        self, core: nn.Module, terms: tuple[nn.Module, ...] = (), scale: float = 1.0
    ) -> None:
        super().__init__(core, terms, scale)
        self._of_distances = [term for term in terms if isinstance(term, OF_DISTANCES)]
        self._fixed: _Fixed | None = None

    @staticmethod
    def serves(core: nn.Module, terms: tuple[nn.Module, ...]) -> bool:
        """Whether core and terms are such that it can be built of them."""
        return simple(terms) and isinstance(core, TensorNetInference)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fixed": None}

    def forward(
        self,
        numbers: Tensor,
        positions: Tensor,
        cell: Tensor,
        system: Tensor,
        pairs: Tensor,
        shifts: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Tensor | None = None,
        compute_forces: bool = True,
        compute_stress: bool = True,
        create_graph: bool = False,
    ) -> dict[str, Tensor]:
        """As `Potential.forward`."""
        if create_graph or positions.requires_grad:
            return super().forward(
                numbers, positions, cell, system, pairs, shifts, charge, multiplicity,
                partial_charges, compute_forces, compute_stress, create_graph,
            )  # fmt: skip
        wanted = compute_forces or compute_stress
        assert torch.is_grad_enabled() or not wanted, "call the model outside torch.no_grad()"
        fixed = self._what_stays(numbers, system, charge, multiplicity, partial_charges)
        n_atoms, n_systems = numbers.shape[0], cell.shape[0]
        where = Geometry(
            positions.contiguous().numpy(), cell.contiguous().numpy(),
            system.contiguous().numpy(), pairs.contiguous().numpy(), shifts.contiguous().numpy(),
            fixed.reach,
        )  # fmt: skip
        sums = _Sums(
            fixed.energies.copy(),
            np.zeros((n_atoms if compute_forces else 0, 3)),
            np.zeros((n_systems if compute_stress else 0, 3, 3)),
        )
        core, lent = self.core, self.core.lend(n_atoms)
        vectors, distances, near = step.evaluate(
            core.size(n_atoms), core.parameters_of_loops, fixed.atoms, where, lent.arrays,
            self.scale, *sums,
        )  # fmt: skip
        core.pool.take_back(lent)
        if near:
            seen = TermInputs(
                numbers, positions, cell, system, pairs, shifts, torch.from_numpy(vectors),
                torch.from_numpy(distances), fixed.charge, fixed.multiplicity, None,
            )  # fmt: skip
            self._add_terms(seen, where, sums)
        energies = torch.from_numpy(sums.energies)
        total = torch.zeros(n_systems, dtype=torch.float64).index_add_(0, system, energies)
        results = {"energies": energies, "energy": total}
        if compute_forces:
            results["forces"] = torch.from_numpy(sums.forces).to(positions.dtype)
        if compute_stress:
            results["stress"] = stress_of_virial(torch.from_numpy(sums.virial).to(cell.dtype), cell)
        return results

    def compiled_arguments(self, batch: AtomsBatch) -> tuple[Any, ...]:
        """Of `nnpcalc.md.compiled.Field`, all that this knows; the memory is for the next call."""
        fixed = self._what_stays(
            batch.numbers, batch.system, batch.charge, batch.multiplicity, batch.partial_charges
        )
        core, n_atoms = self.core, batch.n_atoms
        lent = core.lend(n_atoms)
        core.pool.take_back(lent)
        return (
            core.size(n_atoms), core.parameters_of_loops, fixed.atoms, lent.arrays, self.scale,
            fixed.energies, fixed.reach, batch.lattices.numpy(), batch.system.numpy(),
        )  # fmt: skip

    def _add_terms(self, seen: TermInputs, where: Geometry, sums: _Sums) -> None:
        """What the terms of distances say, and its derivatives."""
        derivatives = bool(len(sums.forces) or len(sums.virial))
        distances = seen.distances.requires_grad_(derivatives)
        for term in self._of_distances:
            energies = term(seen)
            sums.energies[:] += energies.detach().numpy()
            if energies.requires_grad:
                (slopes,) = torch.autograd.grad(energies.sum(), distances)
                along = (slopes / distances.detach()).unsqueeze(1) * seen.vectors
                step.add_forces(where.pairs, along.numpy(), 1.0, sums.forces)
                step.add_virial(
                    where.system, where.pairs, seen.vectors.numpy(), along.numpy(), 1.0, sums.virial
                )

    def _what_stays(
        self,
        numbers: Tensor,
        system: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Tensor | None,
    ) -> _Fixed:
        """Kept from the last call if it was for the same molecules in the same states."""
        made_of = (numbers, system, charge, multiplicity, partial_charges)
        last = self._fixed
        if last is not None and last.versions == versions(last.made_of):
            if all(map(_equal, last.made_of, made_of)):
                return last
        kind = self.core.dtype
        q, m = charge.to(kind), multiplicity.to(kind)
        atoms = self.core.of_atoms(numbers, system, q, m, partial_charges)
        energies = constant_energies(self.terms, numbers, system, q, m)
        reach = torch.zeros(numbers.shape[0], dtype=kind)
        for term in self._of_distances:
            reach = torch.maximum(reach, term.reaches(numbers, kind))
        fixed = _Fixed(made_of, [], q, m, atoms, energies.numpy(), reach.numpy())
        if any(tensor is not None and tensor.is_inference() for tensor in made_of):
            return fixed  # these do not count what is written into them
        self._fixed = fixed._replace(versions=versions(made_of))
        return fixed
