"""A potential whose forces are written out: where autograd would find nothing to do.

Its bookkeeping of positions, vectors and sums costs a small molecule half of what the network does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from nnpcalc.kernels.inference import TensorNetInference
from nnpcalc.neighbors import pair_vectors
from nnpcalc.potential import Potential, stress_of_virial
from nnpcalc.terms import ZBL, AtomicEnergies
from nnpcalc.terms.inputs import TermInputs

#: Terms that are constants or functions of the distances alone.
OF_DISTANCES = (AtomicEnergies, ZBL)


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

    @staticmethod
    def serves(core: nn.Module, terms: tuple[nn.Module, ...]) -> bool:
        """Whether core and terms are such that it can be built of them."""
        plain = all(type(term) in OF_DISTANCES for term in terms)
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
            charge, multiplicity = charge.to(vectors.dtype), multiplicity.to(vectors.dtype)
            energies, gradient = self.core.evaluate(
                numbers, pairs, vectors, distances, system, charge, multiplicity, partial_charges,
                derivative=wanted,
            )  # fmt: skip
        energies = energies.to(torch.float64) * self.scale
        if wanted:
            distances.requires_grad_(True)
        seen = TermInputs(
            numbers, positions, cell, system, pairs, shifts, vectors, distances, charge,
            multiplicity, None,
        )  # fmt: skip
        for term in self.terms:
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
