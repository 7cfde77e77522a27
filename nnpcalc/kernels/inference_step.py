"""A whole evaluation of TensorNet and its reverse in one compiled program.

Between its stages nothing comes back to Python: the calls of a hundred stages cost a small molecule
more time than its arithmetic. `nnpcalc.kernels.inference_chains` says what is done for a slab of
atoms; here all slabs are, by one thread or several, and meet between the chains.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

from nnpcalc.kernels import inference_chains as chains
from nnpcalc.kernels.inference_arrays import Pairs
from nnpcalc.kernels.inference_pairs import pair_vectors
from nnpcalc.kernels.programs import Programs, composed, divided
from nnpcalc.kernels.reference import keep, refer


@njit(cache=True, fastmath=False)
def first_pairs(receivers, pointer):
    """pointer [N + 1]: the first pair of each atom, from the receivers [P] in ascending order."""
    n = 0
    for p in range(receivers.size):
        while n <= receivers[p]:
            pointer[n] = p
            n += 1
    pointer[n:] = receivers.size


@njit(cache=True, fastmath=False)
def list_pairs(pairs, vectors, distances, n_atoms):
    """The `Pairs` of pairs [2, P]; `chains.forward` fills in what follows from their vectors."""
    n_pairs, kind = distances.size, vectors.dtype
    pointer = np.empty(n_atoms + 1, np.int64)
    first_pairs(pairs[0], pointer)
    return Pairs(
        pointer, pairs[1], np.empty(n_pairs, np.int64), np.empty((n_pairs, 4), kind),
        np.empty((n_pairs, 4), kind), np.empty((n_pairs, 9), kind), vectors, distances,
    )  # fmt: skip


@njit(fastmath=False)
def _one(m):
    return 1


@njit(fastmath=False)
def _all(m):
    return m.scratch.x.shape[0]


#: Among how many the atoms are divided.
workers_of: Any = Programs(_one, _all)


@divided
def forward_all(k, work, workers):
    for worker in prange(workers):
        chains.forward(k, worker, workers, work)


@divided
def backward_all(k, work, upstream, by_distance, gradient, workers):
    for worker in prange(workers):
        chains.backward(k, worker, workers, work, upstream, by_distance, gradient)


@composed
def forward(net, atoms, p, m):
    """m.energies; the other stages stay in m for `backward`."""
    arrays = (net, atoms, p, m)
    work, workers = refer(arrays), workers_of(m)
    for k in range(net.tables.shape[0] + 1):
        forward_all(k, work, workers)
    keep(arrays)


@composed
def backward(net, atoms, p, m, upstream, gradient):
    """gradient [P, 3] += derivative of sum(upstream * m.energies) by the pairs' vectors."""
    arrays = (net, atoms, p, m)
    work, workers = refer(arrays), workers_of(m)
    by_distance = np.empty_like(p.distances)
    for k in range(net.tables.shape[0], -1, -1):
        backward_all(k, work, upstream, by_distance, gradient, workers)
    keep(arrays)


class Geometry(NamedTuple):
    """Where the atoms are.

    Attributes:
        positions [N, 3], cell [B, 3, 3], system [N], pairs [2, P], shifts [P, 3]: as for
            `nnpcalc.potential.Potential.forward`.
        reach: Å; a pair nearer than the sum of its atoms' is reported [N].
    """

    positions: np.ndarray
    cell: np.ndarray
    system: np.ndarray
    pairs: np.ndarray
    shifts: np.ndarray
    reach: np.ndarray


@njit(cache=True, fastmath=False)
def _any_near(pairs, distances, reach):
    for p in range(distances.size):
        if distances[p] < reach[pairs[0, p]] + reach[pairs[1, p]]:
            return True
    return False


@njit(cache=True, fastmath=False)
def add_energies(found, scale, energies):
    """energies [N], float64, += scale times what was found."""
    for n in range(energies.size):
        energies[n] += scale * found[n]


@njit(cache=True, fastmath=False)
def add_forces(pairs, gradient, scale, forces):
    """forces [N, 3], float64, += what scale times the derivatives by the pairs' vectors says.

    Nothing is done without rows.
    """
    if not forces.shape[0]:
        return
    for p in range(gradient.shape[0]):
        i, j = pairs[0, p], pairs[1, p]
        for a in range(3):
            one = scale * gradient[p, a]
            forces[i, a] += one
            forces[j, a] -= one


@njit(cache=True, fastmath=False)
def add_virial(system, pairs, vectors, gradient, scale, virial):
    """virial [B, 3, 3], float64, += vector times scaled derivative by it, summed over the pairs.

    Nothing is done without rows.
    """
    if not virial.shape[0]:
        return
    for p in range(gradient.shape[0]):
        b = system[pairs[0, p]]
        for a in range(3):
            for c in range(3):
                virial[b, a, c] += vectors[p, a] * (scale * gradient[p, c])


@composed
def evaluate(net, atoms, where, m, scale, energies, forces, virial):
    """Adds scale times the network's to energies [N] and, where they have rows, to forces [N, 3]
    and to virial [B, 3, 3], the derivatives by a strain; all float64.

    Returns:
        vectors [P, 3], distances [P], and whether a pair is nearer than its atoms' reach.
    """
    n_atoms, n_pairs = where.system.size, where.pairs.shape[1]
    vectors = np.empty((n_pairs, 3), where.positions.dtype)
    distances = np.empty(n_pairs, where.positions.dtype)
    pair_vectors(
        where.positions, where.cell, where.system, where.pairs, where.shifts, vectors, distances
    )
    p = list_pairs(where.pairs, vectors, distances, n_atoms)
    forward(net, atoms, p, m)
    add_energies(m.energies, scale, energies)
    if forces.shape[0] or virial.shape[0]:
        gradient = np.zeros_like(vectors)
        backward(net, atoms, p, m, np.ones_like(m.energies), gradient)
        add_forces(where.pairs, gradient, scale, forces)
        add_virial(where.system, where.pairs, vectors, gradient, scale, virial)
    return vectors, distances, _any_near(where.pairs, distances, where.reach)
