"""Which atoms are bonded, judged by distances and covalent radii."""

from __future__ import annotations

import torch
from ase.data import covalent_radii
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.neighbors import NeighborList, neighbor_list

_RADII = torch.tensor(covalent_radii, dtype=torch.float64)


def covalent_radii_of(atoms: AtomsBatch) -> Tensor:
    """Covalent radii (Å) of the atoms [N]."""
    return _RADII.to(atoms.device)[atoms.numbers]


def covalent_sums(atoms: AtomsBatch, pairs: Tensor) -> Tensor:
    """Sums [P] of the covalent radii (Å) of the atoms of pairs [2, P]."""
    radii = covalent_radii_of(atoms)
    return radii.index_select(0, pairs[0]) + radii.index_select(0, pairs[1])


def longest_sum(atoms: AtomsBatch) -> float:
    """The largest sum of two covalent radii (Å) that the elements of a batch allow."""
    return 2.0 * float(_RADII[atoms.numbers.cpu()].max())


def relative_distances(
    atoms: AtomsBatch, limit: float, neighbors: NeighborList | None = None
) -> tuple[NeighborList, Tensor]:
    """Pairs and their distances [P] in units of the sum of the covalent radii, below a limit.

    Args:
        atoms: the batch.
        limit: largest relative distance.
        neighbors: a list that reaches at least limit * `longest_sum`; searched if None.
    """
    if neighbors is None:
        neighbors = neighbor_list(atoms, limit * longest_sum(atoms))
    relative = neighbors.distances / covalent_sums(atoms, neighbors.pairs)
    index = torch.nonzero(relative < limit)[:, 0]
    return neighbors.select(index), relative.index_select(0, index)
