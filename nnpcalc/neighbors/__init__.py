"""Neighbor lists: positions to interacting pairs.

The conventions, the same whatever found the pairs: r_ij = r_j - r_i + shift_ij @ cell; a full list,
(i, j) and (j, i) both; |r_ij| < cutoff strictly; an atom meets its own periodic images but never
itself; sorted by (i, j, shift_x, shift_y, shift_z). Open, partly periodic, triclinic and
left-handed systems can share a batch, cells may be smaller than the cutoff, and atoms may be
anywhere.

`neighbor_list` builds a list, `VerletList` keeps one through a trajectory, `triplets` and
`neighbor_pairs` make angles of one. `pair_vectors` repeats the vectors with an autograd graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from nnpcalc.neighbors.backends import BackendStatus, find, list_backends
from nnpcalc.neighbors.geometry import pair_distances, pair_vectors
from nnpcalc.neighbors.pairs import NeighborList, checked_cutoff, empty_list
from nnpcalc.neighbors.triplets import neighbor_pairs, triplets
from nnpcalc.neighbors.verlet import VerletList

if TYPE_CHECKING:
    from nnpcalc.batch import AtomsBatch

__all__ = [
    "BackendStatus",
    "NeighborList",
    "VerletList",
    "list_backends",
    "neighbor_list",
    "neighbor_lists",
    "neighbor_pairs",
    "pair_distances",
    "pair_vectors",
    "triplets",
]


@torch.no_grad()
def neighbor_list(batch: AtomsBatch, cutoff: float, *, backend: str = "torch") -> NeighborList:
    """All pairs of each system of a batch that are closer than a cutoff.

    Time and memory are linear in the atoms, for one large system and for many small ones. The torch
    back end does small systems by brute force (open ones on the CPU in a compiled loop) and the
    others with a cell list; the pairs are the same, and `search.py` says where it changes over.

    Args:
        batch: N atoms of B systems.
        cutoff: Å.
        backend: "torch" (any device), "vesin" (CPU), "nvalchemi" or "torch_cluster" (open systems);
            the last three are optional packages, see `list_backends`.

    Returns:
        The pairs, on the batch's device; vectors and distances in its dtype and without autograd
        graph.

    Raises:
        ValueError: a cutoff that is no positive number, two atoms in the same place, positions that
            are not finite, or a back end that cannot be used; the text names atoms, system and
            remedy.
    """
    cutoff = checked_cutoff(cutoff)
    if not batch.n_atoms:
        return empty_list(batch)
    return find(batch, cutoff, backend)


def neighbor_lists(
    batch: AtomsBatch, cutoffs: Sequence[float], *, backend: str = "torch"
) -> list[NeighborList]:
    """Lists for several cutoffs (Å) from one search, in the order of the cutoffs.

    A network and its long-ranged terms want different lists; this searches with the longest cutoff
    and takes the others out of that list. Each equals the one `neighbor_list` builds.
    """
    if not cutoffs:
        raise ValueError("neighbor_lists needs at least one cutoff")
    limits = [checked_cutoff(cutoff) for cutoff in cutoffs]
    longest = neighbor_list(batch, max(limits), backend=backend)
    return [longest if limit == max(limits) else longest.within(limit) for limit in limits]
