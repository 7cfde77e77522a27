"""Neighbor lists: positions to interacting pairs.

Conventions, the same in every back end: r_ij = r_j - r_i + shift_ij @ cell; the list is full, (i, j) and
(j, i) both; |r_ij| < cutoff strictly; an atom meets its own periodic images but never itself; pairs are
sorted by (i, j, shift_x, shift_y, shift_z).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nnpcalc.neighbors.brute_force import brute_force_candidates
from nnpcalc.neighbors.cell_list import cell_list_candidates
from nnpcalc.neighbors.geometry import pair_distances, pair_vectors
from nnpcalc.neighbors.pairs import NeighborList, accept

if TYPE_CHECKING:
    from nnpcalc.batch import AtomsBatch

__all__ = ["NeighborList", "neighbor_list", "pair_distances", "pair_vectors"]


@torch.no_grad()
def neighbor_list(batch: AtomsBatch, cutoff: float, *, backend: str = "torch") -> NeighborList:
    """All pairs of each system that are closer than cutoff (Å)."""
    if backend in ("brute",):
        return accept(batch, brute_force_candidates(batch, cutoff), cutoff)
    if backend in ("torch", "cell"):
        return accept(batch, cell_list_candidates(batch, cutoff), cutoff)
    raise ValueError(f"unknown neighbor list back end {backend!r}")
