"""The torch back end: which algorithm is the fastest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nnpcalc.neighbors.brute_force import brute_force_candidates
from nnpcalc.neighbors.cell_list import cell_list_candidates
from nnpcalc.neighbors.geometry import asking_is_free
from nnpcalc.neighbors.pairs import Candidates
from nnpcalc.neighbors.wrapping import Wrapped, not_finite_error, wrap_atoms

if TYPE_CHECKING:
    from nnpcalc.batch import AtomsBatch

# Brute force looks at B n^2 M distances: n atoms in the largest of B systems, M images. It is
# faster up to a number of them, and in batches of small systems up to a number per atom. Measured
# on one thread of a server CPU with a cutoff of 5 Å and 0.1 atoms/Å^3
# (tests/benchmarks/neighbors.py --crossover): for one system the algorithms meet near 1,000 atoms
# without and 200 atoms with periodicity (M = 27), for a hundred periodic systems near 55 atoms
# each. On a GPU both are bound by launches, and the number is a guess.
FEW_DISTANCES = {"cpu": 1_000_000, "cuda": 16_000_000}
FEW_PER_ATOM = 1500

# Atoms of the largest open system for which `all_pairs` is faster than either, on the CPU.
FEW_ATOMS = 128


def small_and_open(batch: AtomsBatch) -> bool:
    """Whether `nnpcalc.neighbors.all_pairs` is the right algorithm for a batch."""
    return (
        asking_is_free(batch.device)
        and not bool(batch.pbc.any())
        and int(batch.counts.max()) <= FEW_ATOMS
    )


def torch_candidates(batch: AtomsBatch, cutoff: float, algorithm: str = "auto") -> Candidates:
    """Sorted candidates for the pairs closer than cutoff (Å).

    Args:
        algorithm: "auto" chooses by size, "brute_force" or "cell_list"; the pairs are the same.
    """
    wrapped = wrap_atoms(batch, cutoff)
    n, reach = largest_system(batch, wrapped)
    images = (2 * reach[0] + 1) * (2 * reach[1] + 1) * (2 * reach[2] + 1)
    distances = batch.n_systems * n * n * images
    few = FEW_DISTANCES["cpu" if batch.device.type == "cpu" else "cuda"]
    small = distances <= max(few, FEW_PER_ATOM * batch.n_atoms)
    if algorithm == "brute_force" or (algorithm == "auto" and small):
        return brute_force_candidates(batch, wrapped, n, reach)
    return cell_list_candidates(batch, wrapped)


def largest_system(batch: AtomsBatch, wrapped: Wrapped) -> tuple[int, list[int]]:
    """Atoms of the largest system, and the most images within the radius along each vector.

    Raises:
        ValueError: a position is not finite.
    """
    if wrapped.reach is None:
        return (batch.n_atoms if batch.n_systems == 1 else int(batch.counts.max())), [0, 0, 0]
    finite = torch.isfinite(wrapped.radius).to(torch.int64)
    sizes = torch.cat((batch.counts.amax(0, keepdim=True), wrapped.reach.amax(0), finite[None]))
    n, *reach, finite_number = sizes.tolist()
    if not finite_number:
        raise not_finite_error(batch)
    return n, reach
