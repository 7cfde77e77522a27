"""The candidates of a search on the CPU, measured anew in one compiled loop.

A molecule of 20 atoms has 400 pairs. The tensor operations that measure and filter them take a
tenth of the time of a network, and nearly all of it goes into calling them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from nnpcalc.neighbors.pairs import OVERLAP, NeighborList


class Candidates(NamedTuple):
    """Pairs of a search.

    Attributes:
        positions: float64 [N, 3] in Å, of the search.
        moved: Å^2 up to which an atom may have moved since.
        cutoff: Å.
        pairs, shifts, translations: [2, Q], [Q, 3] and [Q, 3] in Å.
    """

    positions: np.ndarray
    moved: float
    cutoff: float
    pairs: np.ndarray
    shifts: np.ndarray
    translations: np.ndarray


@njit(cache=True, fastmath=False)
def closer(positions, held, ends, kept, vectors, distances):
    """Write what belongs to the pairs closer than the cutoff; each number as `measure` rounds it.

    Args:
        positions: [N, 3] in Å, now.
        held: `Candidates`.
        ends, kept, vectors, distances: of P pairs, written: [2 Q] (all receivers, then all
            senders, without a gap), [Q, 3], [Q, 3] and [Q].

    Returns:
        P, or -1 if an atom has moved farther, and the shortest distance.
    """
    old, pairs, shifts, translations = held.positions, held.pairs, held.shifts, held.translations
    for k in range(old.shape[0]):
        step = (positions[k, 0] - old[k, 0]) ** 2
        step += (positions[k, 1] - old[k, 1]) ** 2
        step += (positions[k, 2] - old[k, 2]) ** 2
        if not step <= held.moved:  # so that what is not a number counts as far
            return -1, 0.0
    n_all, n = pairs.shape[1], 0
    shortest = np.inf
    for p in range(n_all):
        i, j = pairs[0, p], pairs[1, p]
        x = positions[j, 0] - positions[i, 0] + translations[p, 0]
        y = positions[j, 1] - positions[i, 1] + translations[p, 1]
        z = positions[j, 2] - positions[i, 2] + translations[p, 2]
        distance = np.sqrt(x * x + y * y + z * z)
        if distance < held.cutoff:
            ends[n], ends[n_all + n] = i, j
            for a in range(3):
                kept[n, a] = shifts[p, a]
            vectors[n, 0], vectors[n, 1], vectors[n, 2] = x, y, z
            distances[n] = distance
            shortest = min(shortest, distance)
            n += 1
    for p in range(n):
        ends[n + p] = ends[n_all + p]
    return n, shortest


class Held:
    """Candidates that hold until an atom has moved too far.

    Args:
        positions: float64 [N, 3] in Å, of the search.
        limit: Å that an atom may move.
        pairs, shifts, translations: [2, Q], [Q, 3] and [Q, 3] in Å of the search.
        cutoff: Å.
    """

    def __init__(
        self,
        positions: Tensor,
        limit: float,
        pairs: Tensor,
        shifts: Tensor,
        translations: Tensor,
        cutoff: float,
    ) -> None:
        old, ends, rows, shifted = (
            tensor.contiguous().numpy() for tensor in (positions, pairs, shifts, translations)
        )
        # in the precision of the distances, as tensors are compared; pairs that overlap are wanted
        near = max(float(shifted.dtype.type(cutoff)), OVERLAP)
        self.candidates = Candidates(old, limit * limit, near, ends, rows, shifted)

    def closer(self, positions: Tensor) -> tuple[NeighborList, float] | None:
        """The pairs closer than the cutoff and the shortest distance; None if an atom has moved."""
        held = self.candidates
        n, dtype = held.pairs.shape[1], held.translations.dtype
        ends, kept = np.empty(2 * n, np.int64), np.empty((n, 3), np.int64)
        vectors, distances = np.empty((n, 3), dtype), np.empty(n, dtype)
        n, shortest = closer(positions.numpy(), held, ends, kept, vectors, distances)
        if n < 0:
            return None
        found = NeighborList(
            torch.from_numpy(ends[: 2 * n].reshape(2, n)),
            torch.from_numpy(kept[:n]),
            torch.from_numpy(vectors[:n]),
            torch.from_numpy(distances[:n]),
        )
        return found, shortest
