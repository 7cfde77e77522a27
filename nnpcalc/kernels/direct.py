"""A potential whose forces are written out: where autograd would find nothing to do.

Its bookkeeping of positions, vectors and sums costs a small molecule half of what the network does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from nnpcalc.kernels.inference import OfAtoms, TensorNetInference
from nnpcalc.neighbors import pair_vectors
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
    """

    made_of: tuple[Tensor | None, ...]
    versions: list[int]
    charge: Tensor
    multiplicity: Tensor
    atoms: OfAtoms
    energies: Tensor


def _versions(tensors: tuple[Tensor | None, ...]) -> list[int]:
    return [0 if tensor is None else tensor._version for tensor in tensors]


@njit(cache=True)
def _forces(pairs, gradient, forces):
    """forces [N, 3] += what the derivatives by the pairs' vectors [P, 3] say."""
    for p in range(gradient.shape[0]):
        i, j = pairs[0, p], pairs[1, p]
        for a in range(3):
            forces[i, a] += gradient[p, a]
            forces[j, a] -= gradient[p, a]


@njit(cache=True)
def _virial(system, pairs, vectors, gradient, virial):
    """virial [B, 3, 3] += vector times derivative by it, summed over the pairs of each system."""
    for p in range(gradient.shape[0]):
        b = system[pairs[0, p]]
        for a in range(3):
            for c in range(3):
                virial[b, a, c] += vectors[p, a] * gradient[p, c]


class DirectPotential(Potential):
    """`Potential` of a `TensorNetInference`, whose derivatives do not go through autograd.

    Sums over pairs run in float64. Where positions have a graph, autograd does it all.
    """

    core: TensorNetInference

    def __init__(
        self, core: nn.Module, terms: tuple[nn.Module, ...] = (), scale: float = 1.0
    ) -> None:
        super().__init__(core, terms, scale)
        self._constants = [term for term in terms if type(term) in CONSTANTS]
        self._of_distances = [term for term in terms if type(term) in OF_DISTANCES]
        self._fixed: _Fixed | None = None

    @staticmethod
    def serves(core: nn.Module, terms: tuple[nn.Module, ...]) -> bool:
        """Whether core and terms are such that it can be built of them."""
        plain = all(type(term) in CONSTANTS + OF_DISTANCES for term in terms)
        return plain and isinstance(core, TensorNetInference)

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
        with torch.no_grad():
            vectors = pair_vectors(positions, cell, system, pairs, shifts)
            distances = torch.sqrt((vectors * vectors).sum(-1))
            fixed = self._what_stays(numbers, system, charge, multiplicity, partial_charges)
            energies, gradient = self.core.evaluate(
                pairs, vectors, distances, fixed.atoms, derivative=wanted
            )
            energies = energies.to(torch.float64) * self.scale + fixed.energies
        if wanted and self._of_distances:
            distances.requires_grad_(True)
        seen = TermInputs(
            numbers, positions, cell, system, pairs, shifts, vectors, distances, fixed.charge,
            fixed.multiplicity, None,
        )  # fmt: skip
        for term in self._of_distances:
            energies = energies + term(seen)
        results: dict[str, Tensor] = {"energies": energies.detach()}
        sums = torch.zeros(cell.shape[0], dtype=torch.float64)
        results["energy"] = sums.index_add_(0, system, results["energies"])
        if gradient is not None:
            whole = gradient.numpy().astype(np.float64)
            whole *= self.scale
            if energies.requires_grad:  # a term found something
                (slopes,) = torch.autograd.grad(energies.sum(), distances)
                along = (slopes / distances.detach()).unsqueeze(1) * vectors
                whole += along.numpy()
            self._derivatives(
                results, whole, pairs, vectors, system, cell, compute_forces, compute_stress
            )
        return results

    def _what_stays(
        self,
        numbers: Tensor,
        system: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Tensor | None,
    ) -> _Fixed:
        """Kept from the last call if it was for the very same tensors, as in dynamics."""
        made_of = (numbers, system, charge, multiplicity, partial_charges)
        last = self._fixed
        if (
            last is not None
            and all(a is b for a, b in zip(last.made_of, made_of, strict=True))
            and last.versions == _versions(made_of)
        ):
            return last
        kind = self.core.at_zero.dtype
        q, m = charge.to(kind), multiplicity.to(kind)
        atoms = self.core.of_atoms(numbers, system, q, m, partial_charges)
        energies = torch.zeros(numbers.shape[0], dtype=torch.float64)
        nowhere = torch.zeros(0, 3, dtype=kind)
        seen = TermInputs(
            numbers, nowhere, nowhere, system, system.new_zeros(2, 0), system.new_zeros(0, 3),
            nowhere, nowhere[:, 0], q, m, None,
        )  # fmt: skip
        for term in self._constants:
            energies = energies + term(seen)
        fixed = _Fixed(made_of, [], q, m, atoms, energies)
        if any(tensor is not None and tensor.is_inference() for tensor in made_of):
            return fixed  # these do not count what is written into them
        self._fixed = fixed._replace(versions=_versions(made_of))
        return fixed

    @staticmethod
    def _derivatives(
        results: dict[str, Tensor],
        gradient: np.ndarray,
        pairs: Tensor,
        vectors: Tensor,
        system: Tensor,
        cell: Tensor,
        forces: bool,
        stress: bool,
    ) -> None:
        """Add forces and stress to results, from the derivatives by the vectors [P, 3]."""
        ends: Any = pairs.numpy()
        if forces:
            total = np.zeros((system.shape[0], 3))
            _forces(ends, gradient, total)
            results["forces"] = torch.from_numpy(total).to(vectors.dtype)
        if stress:
            virial = np.zeros((cell.shape[0], 3, 3))
            _virial(system.numpy(), ends, vectors.numpy(), gradient, virial)
            results["stress"] = stress_of_virial(torch.from_numpy(virial).to(cell.dtype), cell)
