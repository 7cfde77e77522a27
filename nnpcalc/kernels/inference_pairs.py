"""Numba loops over the pairs of TensorNet's inference, and their reverses.

Pairs are a full list sorted by receiver: since (i, j) and (j, i) have one distance and one radial
function r, the reverse of a sum over neighbours is a walk over the same neighbours.

What a walk gathers at random, features of neighbours and rows of tables, lies in blocks of the
channels of one register (`nnpcalc.kernels.simd`). Block after block is walked through whole, so
that what belongs to it stays in the cache and the sums over neighbours in registers. L channels are
a block, B blocks are enough for F channels, and the last is filled up with zeros.

Every loop does the atoms first to last - 1 (`x` [9, n, F] are theirs alone) and their pairs.

Shapes: pointer [N + 1] (first pair of each atom), j and knot [P], w and dw [P, 4] (weights of four
table rows for a radial function and for its derivative by the distance), tables [B, 2 K, 3, L] (see
`table_blocks`), features [9, N, F] or in blocks [B, N, 9, L] (see `to_blocks`), with the components
of `nnpcalc.models.tensornet`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from nnpcalc.kernels.inference_loops import add, load_tensor, store_tensor
from nnpcalc.kernels.simd import (
    EXACT,
    blocks,
    item,
    lanes_of,
    load,
    load_part,
    store,
    total,
    zeros,
)
from nnpcalc.kernels.workspace import aligned

_inline: dict[str, Any] = {"fastmath": EXACT, "forceinline": True}


def table_blocks(table: np.ndarray) -> np.ndarray:
    """A table [2 K, 3 F] in blocks of channels [B, 2 K, 3, L]."""
    rows, channels = table.shape[0], table.shape[1] // 3
    n_blocks, lanes = blocks(channels, table.dtype)
    filled = np.zeros((rows, 3, n_blocks * lanes), table.dtype)
    filled[:, :, :channels] = table.reshape(rows, 3, channels)
    out = aligned((n_blocks, rows, 3, lanes), table.dtype)
    out[:] = filled.reshape(rows, 3, n_blocks, lanes).transpose(2, 0, 1, 3)
    return out


@njit(fastmath=EXACT)
def pair_vectors(positions, cell, system, pairs, shifts, vectors, distances):
    """vectors [P, 3] = r_j - r_i + shift @ cell, with their lengths, of pairs [2, P]."""
    for p in range(distances.size):
        i, j = pairs[0, p], pairs[1, p]
        b = system[i]
        for a in range(3):
            vectors[p, a] = positions[j, a] - positions[i, a]
        if shifts[p, 0] != 0 or shifts[p, 1] != 0 or shifts[p, 2] != 0:
            for a in range(3):
                vectors[p, a] += (
                    shifts[p, 0] * cell[b, 0, a]
                    + shifts[p, 1] * cell[b, 1, a]
                    + shifts[p, 2] * cell[b, 2, a]
                )
        x, y, z = vectors[p, 0], vectors[p, 1], vectors[p, 2]
        distances[p] = np.sqrt(x * x + y * y + z * z)


@njit(fastmath=EXACT)
def pair_geometry(first, last, pointer, vectors, distances, grid, knot, w, dw, angular):
    """What the pairs' vectors say, once for all stages; grid as in `Parameters`.

    knot, w and dw as in `hermite_weights` and `hermite_slopes`, angular [P, 9] as `pair_tensors`.
    """
    for p in range(pointer[first], pointer[last]):
        nearness = 1.0 / (distances[p] + 1.0)
        place, last_interval = grid[0] * distances[p] * nearness, int(grid[1]) - 2
        interval = max(
            0, min(int(place), last_interval)
        )  # whatever the distance: memory is not checked
        t = place - interval
        s = 1.0 - t
        knot[p] = interval
        w[p, 0], w[p, 1] = (1.0 + 2.0 * t) * s * s, t * s * s
        w[p, 2], w[p, 3] = t * t * (3.0 - 2.0 * t), -t * t * s
        per_angstrom = grid[0] * nearness * nearness
        steep = 6.0 * t * s * per_angstrom
        dw[p, 0], dw[p, 1] = -steep, s * (s - 2.0 * t) * per_angstrom
        dw[p, 2], dw[p, 3] = steep, t * (t - 2.0 * s) * per_angstrom
        inverse = -1.0 / distances[p]
        ux, uy, uz = vectors[p, 0] * inverse, vectors[p, 1] * inverse, vectors[p, 2] * inverse
        third = 1.0 / 3.0
        angular[p, 0] = 1.0
        angular[p, 1], angular[p, 2], angular[p, 3] = ux, uy, uz
        angular[p, 4], angular[p, 5], angular[p, 6] = ux * ux - third, ux * uy, ux * uz
        angular[p, 7], angular[p, 8] = uy * uy - third, uy * uz


@njit(fastmath=EXACT)
def to_blocks(x, first, out):
    """out[:, first + n] [B, N, 9, L] = x[:, n] [9, n, F], with zeros after the last channel."""
    n_blocks, lanes = out.shape[0], out.shape[3]
    for n in range(x.shape[1]):
        for b in range(n_blocks):
            f = b * lanes
            for c in range(9):
                store(load_part(x, (c, n, f), x.shape[2] - f), out, (b, first + n, c, 0))


@njit(**_inline)
def _weights(w, p):
    return item(w, (p, 0)), item(w, (p, 1)), item(w, (p, 2)), item(w, (p, 3))


@njit(**_inline)
def _radial(weights, table, b, row, part):
    """A vector of the radial functions of a part: four table rows from ``row`` on, weighted."""
    w0, w1, w2, w3 = weights
    return (
        w0 * load(table, (b, row, part, 0))
        + w1 * load(table, (b, row + 1, part, 0))
        + w2 * load(table, (b, row + 2, part, 0))
        + w3 * load(table, (b, row + 3, part, 0))
    )


@njit(**_inline)
def _nothing(x):
    """A tensor of zeros, of an array's type."""
    zero = zeros(x)
    return zero, zero, zero, zero, zero, zero, zero, zero, zero


@njit(**_inline)
def _from_neighbour(weights, table, row, x, block, m):
    """The tensor of atom m, gathered from blocks, times the radial functions of its parts."""
    i = _radial(weights, table, block, row, 0)
    a = _radial(weights, table, block, row, 1)
    s = _radial(weights, table, block, row, 2)
    return (
        i * load(x, (block, m, 0, 0)), a * load(x, (block, m, 1, 0)),
        a * load(x, (block, m, 2, 0)), a * load(x, (block, m, 3, 0)),
        s * load(x, (block, m, 4, 0)), s * load(x, (block, m, 5, 0)),
        s * load(x, (block, m, 6, 0)), s * load(x, (block, m, 7, 0)),
        s * load(x, (block, m, 8, 0)),
    )  # fmt: skip


@njit(fastmath=EXACT)
def embed_pairs(first, last, pointer, j, knot, w, table, a, b, self_pair, angular, out):
    """out[c, i] = sum_p r_p[l(c)] (a_i + b_j) angular[p, c], with a and b [N, F], out [9, n, F].

    To component 0 what an atom contributes to itself is added: self_pair [N, F].
    """
    for task in range(table.shape[0] * (last - first)):
        block, n = task // (last - first), first + task % (last - first)
        f = block * lanes_of(a)
        left = a.shape[1] - f
        own = load_part(a, (n, f), left)
        zero = zeros(a)
        sums = (load_part(self_pair, (n, f), left), zero, zero, zero, zero, zero, zero, zero, zero)
        for p in range(item(pointer, n), item(pointer, n + 1)):
            weights, row = _weights(w, p), 2 * item(knot, p)
            z = own + load_part(b, (item(j, p), f), left)
            r = z * _radial(weights, table, block, row, 1)
            s = z * _radial(weights, table, block, row, 2)
            one = (
                z * _radial(weights, table, block, row, 0),
                item(angular, (p, 1)) * r, item(angular, (p, 2)) * r, item(angular, (p, 3)) * r,
                item(angular, (p, 4)) * s, item(angular, (p, 5)) * s, item(angular, (p, 6)) * s,
                item(angular, (p, 7)) * s, item(angular, (p, 8)) * s,
            )  # fmt: skip
            sums = add(sums, one)
        store_tensor(sums, out, n - first, f, left)


@njit(fastmath=EXACT)
def embed_pairs_reverse(
    first, last, pointer, j, knot, w, dw, table, a, b, angular, distances, g, gradient
):
    """gradient[p] [P, 3] += derivative of sum(g * `embed_pairs`) by the vector of pair p.

    g in blocks, of the atoms first to last - 1 alone.
    """
    for n in range(first, last):
        for p in range(item(pointer, n), item(pointer, n + 1)):
            weights, slopes, row, m = _weights(w, p), _weights(dw, p), 2 * item(knot, p), item(j, p)
            y1, y2, y3 = item(angular, (p, 1)), item(angular, (p, 2)), item(angular, (p, 3))
            y4, y5, y6 = item(angular, (p, 4)), item(angular, (p, 5)), item(angular, (p, 6))
            y7, y8 = item(angular, (p, 7)), item(angular, (p, 8))
            q1 = q2 = q3 = q4 = q5 = q6 = q7 = q8 = steep = zeros(a)
            for block in range(table.shape[0]):
                f = block * lanes_of(a)
                left = a.shape[1] - f
                z = load_part(a, (n, f), left) + load_part(b, (m, f), left)
                steep += (
                    z * _radial(slopes, table, block, row, 0) * load(g, (block, n - first, 0, 0))
                )
                r = z * _radial(weights, table, block, row, 1)
                g1, g2 = load(g, (block, n - first, 1, 0)), load(g, (block, n - first, 2, 0))
                g3 = load(g, (block, n - first, 3, 0))
                q1 += r * g1
                q2 += r * g2
                q3 += r * g3
                r = z * _radial(slopes, table, block, row, 1)
                steep += r * (y1 * g1 + y2 * g2 + y3 * g3)
                r = z * _radial(weights, table, block, row, 2)
                g4, g5 = load(g, (block, n - first, 4, 0)), load(g, (block, n - first, 5, 0))
                g6, g7 = load(g, (block, n - first, 6, 0)), load(g, (block, n - first, 7, 0))
                g8 = load(g, (block, n - first, 8, 0))
                q4 += r * g4
                q5 += r * g5
                q6 += r * g6
                q7 += r * g7
                q8 += r * g8
                r = z * _radial(slopes, table, block, row, 2)
                steep += r * (y4 * g4 + y5 * g5 + y6 * g6 + y7 * g7 + y8 * g8)
            # angular = (1, u, xx, xy, xz, yy, yz of u u^t - 1/3) with u = -vector / distance
            ux, uy, uz = y1, y2, y3
            gx = total(q1 + (2.0 * ux) * q4 + uy * q5 + uz * q6)
            gy = total(q2 + ux * q5 + (2.0 * uy) * q7 + uz * q8)
            gz = total(q3 + ux * q6 + uy * q8)
            along = gx * ux + gy * uy + gz * uz
            inverse, by_distance = 1.0 / distances[p], total(steep)
            gradient[p, 0] -= (gx - along * ux) * inverse + by_distance * ux
            gradient[p, 1] -= (gy - along * uy) * inverse + by_distance * uy
            gradient[p, 2] -= (gz - along * uz) * inverse + by_distance * uz


@njit(fastmath=EXACT)
def message_pairs(block, first, last, pointer, j, knot, w, table, y, out):
    """out[c, i] = sum_p r_p[l(c)] y[c, j_p] for a block, with y in blocks and out [9, n, F]."""
    for n in range(first, last):
        sums = _nothing(y)
        for p in range(item(pointer, n), item(pointer, n + 1)):
            sums = add(
                sums,
                _from_neighbour(_weights(w, p), table, 2 * item(knot, p), y, block, item(j, p)),
            )
        f = block * lanes_of(y)
        store_tensor(sums, out, n - first, f, out.shape[2] - f)


@njit(fastmath=EXACT)
def message_pairs_reverse(
    block, first, last, pointer, j, knot, w, dw, table, y, g, out, by_distance
):
    """Derivatives of sum(g * `message_pairs`) for a block, with y and g in blocks.

    out [9, n, F] += that by y of these atoms. by_distance [P] is that by the distances, to which
    every block but the first adds.
    """
    for n in range(first, last):
        sums = _nothing(y)
        for p in range(item(pointer, n), item(pointer, n + 1)):
            weights, slopes, row, m = _weights(w, p), _weights(dw, p), 2 * item(knot, p), item(j, p)
            sums = add(sums, _from_neighbour(weights, table, row, g, block, m))
            product = load(g, (block, n, 0, 0)) * load(y, (block, m, 0, 0))
            steep = _radial(slopes, table, block, row, 0) * product
            product = (
                load(g, (block, n, 1, 0)) * load(y, (block, m, 1, 0))
                + load(g, (block, n, 2, 0)) * load(y, (block, m, 2, 0))
                + load(g, (block, n, 3, 0)) * load(y, (block, m, 3, 0))
            )
            steep += _radial(slopes, table, block, row, 1) * product
            product = (
                load(g, (block, n, 4, 0)) * load(y, (block, m, 4, 0))
                + load(g, (block, n, 5, 0)) * load(y, (block, m, 5, 0))
                + load(g, (block, n, 6, 0)) * load(y, (block, m, 6, 0))
                + load(g, (block, n, 7, 0)) * load(y, (block, m, 7, 0))
                + load(g, (block, n, 8, 0)) * load(y, (block, m, 8, 0))
            )
            steep += _radial(slopes, table, block, row, 2) * product
            slope = total(steep)
            by_distance[p] = by_distance[p] + slope if block else slope
        f = block * lanes_of(y)
        left = out.shape[2] - f
        mine = load_tensor(out, n - first, f, left)
        store_tensor(add(mine, sums), out, n - first, f, left)


@njit(fastmath=EXACT)
def add_along(first, last, pointer, by_distance, vectors, distances, gradient):
    """gradient[p] [P, 3] += by_distance [P] along the vector."""
    for p in range(pointer[first], pointer[last]):
        factor = by_distance[p] / distances[p]
        gradient[p, 0] += factor * vectors[p, 0]
        gradient[p, 1] += factor * vectors[p, 1]
        gradient[p, 2] += factor * vectors[p, 2]
