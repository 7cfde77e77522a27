"""What a step does besides the forces, in compiled loops over NumPy arrays, for the CPU.

At 20 atoms a tensor operation on a cold cache takes 5 µs and computes for 0.05. Every loop here
stands for a few of them, which remain beside its call for other devices. The arithmetic is the
same, number by number, so that a replica's bits depend on no other; only products that torch adds
without rounding them first differ. That they are not fast-math is said at each of them, for numba
gives a function the options of the first that calls it.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, fastmath=False)
def kick(momenta, forces, time, out):
    """out = p + t F, all [N, 3]."""
    if forces.shape != momenta.shape:
        raise ValueError("a force field must return a row of three forces for every atom")
    for k in range(out.shape[0]):
        for a in range(3):
            out[k, a] = momenta[k, a] + time * forces[k, a]


@njit(cache=True, fastmath=False)
def kick_and_drift(momenta, forces, positions, inverse_masses, kick, drift, out):
    """out [2, N, 3] = p' = p + kick F, and x + drift p' / m."""
    for k in range(out.shape[1]):
        for a in range(3):
            p = momenta[k, a] + kick * forces[k, a]
            out[0, k, a] = p
            out[1, k, a] = positions[k, a] + drift * (p * inverse_masses[k, 0])


@njit(cache=True, fastmath=False)
def bath(
    momenta, forces, positions, inverse_masses, spread, random, heat, kick, drift, keep, half, out
):
    """out [3, N, 3] = momenta, positions and heat after B, A, O and A of `Langevin`.

    Args:
        spread, random: [N, 1] and [N, 3] of O, whose product is the noise.
        kick, drift, keep, half: time of B, time of A, c of O, and what turns p^2 / m into energy.
    """
    for k in range(out.shape[1]):
        w = inverse_masses[k, 0]
        for a in range(3):
            before = momenta[k, a] + kick * forces[k, a]
            x = positions[k, a] + drift * (before * w)
            p = before * keep + spread[k, 0] * random[k, a]
            out[0, k, a] = p
            out[1, k, a] = x + drift * (p * w)
            out[2, k, a] = heat[k, a] + half * ((p * p - before * before) * w)


@njit(cache=True, fastmath=False)
def within(values, limit):
    """Whether all values [N, 3] are numbers of at most this size."""
    for k in range(values.shape[0]):
        for a in range(3):
            if not abs(values[k, a]) <= limit:
                return False
    return True


@njit(cache=True, fastmath=False)
def copy_within(values, limit, out):
    """Copy values [N, 3] to the first rows of `out`; False if one is larger, or no number."""
    for k in range(values.shape[0]):
        for a in range(3):
            if not abs(values[k, a]) <= limit:
                return False
            out[k, a] = values[k, a]
    return True


@njit(cache=True, fastmath=False)
def uniform(low_key, high_key, steps, replica, atom, stream, out):
    """out [S, N, 3] = the first three uniform numbers at the addresses of `nnpcalc.md.random`.

    Args:
        low_key, high_key, stream: uint64.
        steps, replica, atom: uint64 [S], [N] and [N].
    """
    mask, half_word = np.uint64(0xFFFFFFFF), np.uint64(32)
    for s in range(steps.size):
        step = steps[s]
        for n in range(atom.size):
            for block in range(2):
                k0, k1 = low_key, high_key
                c0, c1, c2 = atom[n], replica[n], step & mask
                c3 = ((step >> half_word) << np.uint64(16)) | (stream << np.uint64(4))
                c3 |= np.uint64(block)
                for _ in range(10):
                    first, second = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
                    c0, c1 = (second >> half_word) ^ c1 ^ k0, second & mask
                    c2, c3 = (first >> half_word) ^ c3 ^ k1, first & mask
                    k0 = (k0 + np.uint64(0x9E3779B9)) & mask
                    k1 = (k1 + np.uint64(0xBB67AE85)) & mask
                number = (c0 << np.uint64(20)) | (c1 >> np.uint64(12))
                out[s, n, 2 * block] = np.float64(np.int64(2 * number + 1)) * 2.0**-53
                if block == 0:
                    number = (c2 << np.uint64(20)) | (c3 >> np.uint64(12))
                    out[s, n, 1] = np.float64(np.int64(2 * number + 1)) * 2.0**-53


@njit(cache=True, fastmath=False)
def far_apart(positions, counts, radii, limit):
    """Whether no two atoms of an open system are near each other, looking at all pairs.

    Args:
        positions: [N, 3], Å.
        counts: int64 [B], atoms of each system.
        radii: [N], Å.
        limit: distances in units of the sum of the radii.
    """
    first = 0
    for n in counts:
        for i in range(first, first + n):
            for j in range(first, i):
                squared = 0.0
                for a in range(3):
                    squared += (positions[i, a] - positions[j, a]) ** 2
                if not squared > (limit * (radii[i] + radii[j])) ** 2:
                    return False
        first += n
    return True
