"""Triton kernels over the pairs of TensorNet: the sums over neighbours and their reverse.

One program does one receiving atom and a block of channels, and walks the atom's pairs a few at a
time; it alone writes what it writes, so nothing is atomic and the same input gives the same bits.
Radial functions and their slopes are looked up as in `nnpcalc.kernels.inference_loops`, whose
algorithm this is: pairs are a full list sorted by receiver, and because (i, j) and (j, i) have one
distance, the reverse of a sum over neighbours walks the same neighbours.

A look-up reads four consecutive table rows [3 F]; interval and weights are found from the distance
in registers, so that per pair only the sender, the distance and (in the embedding) the vector are
read. Sums over channels are written per block of channels, for the host to add.

Shapes: pointer [N + 1] (first pair of each atom), sender and distances [P], vectors [P, 3],
table [2 K, 3 F], features of atoms [9, N, F] or [N, F].
"""

from __future__ import annotations

import triton.language as tl

from nnpcalc.kernels.triton_algebra import (
    add9,
    dot_parts,
    hermite,
    hermite_slopes,
    interval,
    jit,
    load9,
    normalise,
    norms3,
    norms3_reverse,
    product,
    rows4,
    scale9,
    store9,
    sum_pairs9,
    weighted,
)


@jit
def _zeros9(like):
    z = tl.zeros_like(like)
    return (z, z, z, z, z, z, z, z, z)


@jit
def _block(pointer, n_atoms, F: tl.constexpr, BLOCK_F: tl.constexpr):
    """What a program works on: atom, its first and last pair, channels, mask, size of [N, F].

    Atoms run faster than blocks of channels: all atoms of a block are done at about one time.
    """
    n = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    size = tl.cast(n_atoms, tl.int64) * F
    return n, tl.load(pointer + n), tl.load(pointer + n + 1), f, f < F, size


@jit
def _direction(vectors, distance, p, here):
    """Unit vector u = -r_ij / d of each pair; zeros outside the mask."""
    inverse = -1.0 / tl.where(here, distance, 1.0)
    return (
        tl.load(vectors + 3 * p, mask=here, other=0.0) * inverse,
        tl.load(vectors + 3 * p + 1, mask=here, other=0.0) * inverse,
        tl.load(vectors + 3 * p + 2, mask=here, other=0.0) * inverse,
    )


@jit
def embed_pairs(
    pointer, sender, distances, vectors, table, a, b, at_zero, out, norm, n_atoms,
    F: tl.constexpr, SCALE: tl.constexpr, KNOTS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """out[c, i] = sum_p r_p[l(c)] (a_i + b_j) angular[p, c], with the pair of i and itself.

    norm [N, F] is the squared norm of out; at_zero [F] the radial function of the trace at 0.
    """
    n, begin, end, f, inside, size = _block(pointer, n_atoms, F, BLOCK_F)
    own = tl.load(a + n * F + f, mask=inside, other=0.0)
    k = tl.arange(0, BLOCK_P)
    total = _zeros9(own[None, :] + tl.zeros([BLOCK_P, 1], own.dtype))
    for first in range(begin, end, BLOCK_P):
        p = first + k
        here = p < end
        mask = here[:, None] & inside[None, :]
        d = tl.load(distances + p, mask=here, other=0.0)
        j = tl.load(sender + p, mask=here, other=0)
        z = own[None, :] + tl.load(b + j[:, None] * F + f[None, :], mask=mask, other=0.0)
        row, t = interval(d, SCALE, KNOTS)
        w = hermite(t)
        at = row[:, None] * (3 * F) + f[None, :]
        z = tl.where(mask, z, 0.0)
        rz0 = weighted(rows4(table, at, mask, 3 * F), w) * z
        rz1 = weighted(rows4(table + F, at, mask, 3 * F), w) * z
        rz2 = weighted(rows4(table + 2 * F, at, mask, 3 * F), w) * z
        x, y, v = _direction(vectors, d, p, here)
        total = (
            total[0] + rz0,
            total[1] + x[:, None] * rz1,
            total[2] + y[:, None] * rz1,
            total[3] + v[:, None] * rz1,
            total[4] + (x * x - 1.0 / 3.0)[:, None] * rz2,
            total[5] + (x * y)[:, None] * rz2,
            total[6] + (x * v)[:, None] * rz2,
            total[7] + (y * y - 1.0 / 3.0)[:, None] * rz2,
            total[8] + (y * v)[:, None] * rz2,
        )
    s = sum_pairs9(total)
    at_n = n * F + f
    self_pair = own + tl.load(b + at_n, mask=inside, other=0.0)
    trace = s[0] + tl.load(at_zero + f, mask=inside, other=0.0) * self_pair
    s = (trace, s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8])
    store9(out, at_n, size, inside, s)
    n0, n1, n2 = norms3(s)
    tl.store(norm + at_n, n0 + n1 + n2, mask=inside)


@jit
def embed_pairs_reverse(
    pointer, sender, distances, vectors, table, a, b, summed, by_norm, by_summed, slopes, gradient,
    n_atoms, n_pairs, n_slopes,
    F: tl.constexpr, SCALE: tl.constexpr, KNOTS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """gradient[block, p] [blocks, P, 3]: what this block of channels adds to the derivative of
    the energy by the vector of each pair.

    by_summed [9, N, F] and by_norm [N, F] are the derivatives by the outputs of `embed_pairs`.
    slopes [n_slopes, P]: the derivatives by the distance that the layers left, a row for each layer
    and block of channels.
    """
    n, begin, end, f, inside, size = _block(pointer, n_atoms, F, BLOCK_F)
    at_n = n * F + f
    own = tl.load(a + at_n, mask=inside, other=0.0)
    factor = tl.load(by_norm + at_n, mask=inside, other=0.0)
    g = add9(
        load9(by_summed, at_n, size, inside),
        norms3_reverse(load9(summed, at_n, size, inside), factor, factor, factor),
    )
    k = tl.arange(0, BLOCK_P)
    block = tl.program_id(1).to(tl.int64)
    for first in range(begin, end, BLOCK_P):
        p = first + k
        here = p < end
        mask = here[:, None] & inside[None, :]
        d = tl.load(distances + p, mask=here, other=0.0)
        j = tl.load(sender + p, mask=here, other=0)
        z = own[None, :] + tl.load(b + j[:, None] * F + f[None, :], mask=mask, other=0.0)
        row, t = interval(d, SCALE, KNOTS)
        w, dw = hermite(t), hermite_slopes(t, d, SCALE)
        at = row[:, None] * (3 * F) + f[None, :]
        z = tl.where(mask, z, 0.0)
        rows = rows4(table, at, mask, 3 * F)
        by_distance = tl.sum(weighted(rows, dw) * z * g[0][None, :], 1)
        # q[c]: derivative by the component c of the pair tensor; steep: by the radial function
        rows = rows4(table + F, at, mask, 3 * F)
        rz, sz = weighted(rows, w) * z, weighted(rows, dw) * z
        x, y, v = _direction(vectors, d, p, here)
        by_x = tl.sum(rz * g[1][None, :], 1)
        by_y = tl.sum(rz * g[2][None, :], 1)
        by_v = tl.sum(rz * g[3][None, :], 1)
        by_distance += tl.sum(
            sz * (x[:, None] * g[1][None, :] + y[:, None] * g[2][None, :]
                  + v[:, None] * g[3][None, :]), 1
        )  # fmt: skip
        rows = rows4(table + 2 * F, at, mask, 3 * F)
        rz, sz = weighted(rows, w) * z, weighted(rows, dw) * z
        xx = tl.sum(rz * g[4][None, :], 1)
        xy = tl.sum(rz * g[5][None, :], 1)
        xv = tl.sum(rz * g[6][None, :], 1)
        yy = tl.sum(rz * g[7][None, :], 1)
        yv = tl.sum(rz * g[8][None, :], 1)
        by_distance += tl.sum(
            sz * ((x * x - 1.0 / 3.0)[:, None] * g[4][None, :] + (x * y)[:, None] * g[5][None, :]
                  + (x * v)[:, None] * g[6][None, :] + (y * y - 1.0 / 3.0)[:, None] * g[7][None, :]
                  + (y * v)[:, None] * g[8][None, :]), 1
        )  # fmt: skip
        by_x += 2.0 * x * xx + y * xy + v * xv
        by_y += x * xy + 2.0 * y * yy + v * yv
        by_v += x * xv + y * yv
        for s in range(block, n_slopes, tl.num_programs(1)):
            by_distance += tl.load(slopes + s * n_pairs + p, mask=here, other=0.0)
        along = by_x * x + by_y * y + by_v * v
        inverse = 1.0 / tl.where(here, d, 1.0)
        target = gradient + 3 * (block * n_pairs + p)
        tl.store(target, -((by_x - along * x) * inverse + by_distance * x), mask=here)
        tl.store(target + 1, -((by_y - along * y) * inverse + by_distance * y), mask=here)
        tl.store(target + 2, -((by_v - along * v) * inverse + by_distance * v), mask=here)


@jit
def interact(
    pointer, sender, distances, table, y, at_zero, g, message, reacted, inverse, n_atoms,
    F: tl.constexpr, SCALE: tl.constexpr, KNOTS: tl.constexpr, SYMMETRIC: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """message[c, i] = sum_p r_p[l(c)] y[c, j_p] + at_zero[c] y[c, i], and what it does at i.

    reacted = C / (|C|^2 + 1) with C = g `product`(y, message); inverse [N, F] = 1 / (|C|^2 + 1).
    at_zero [9, F]; g [N], the prefactor of the product.
    """
    n, begin, end, f, inside, size = _block(pointer, n_atoms, F, BLOCK_F)
    at_n = n * F + f
    own = load9(y, at_n, size, inside)
    k = tl.arange(0, BLOCK_P)
    total = _zeros9(own[0][None, :] + tl.zeros([BLOCK_P, 1], own[0].dtype))
    for first in range(begin, end, BLOCK_P):
        p = first + k
        here = p < end
        mask = here[:, None] & inside[None, :]
        d = tl.load(distances + p, mask=here, other=0.0)
        j = tl.load(sender + p, mask=here, other=0)
        row, t = interval(d, SCALE, KNOTS)
        w = hermite(t)
        at = row[:, None] * (3 * F) + f[None, :]
        r0 = weighted(rows4(table, at, mask, 3 * F), w)
        r1 = weighted(rows4(table + F, at, mask, 3 * F), w)
        r2 = weighted(rows4(table + 2 * F, at, mask, 3 * F), w)
        theirs = load9(y, j[:, None] * F + f[None, :], size, mask)
        total = add9(total, scale9(theirs, r0, r1, r2))
    # at_zero [9, F] is the same for the components of one part
    z0 = tl.load(at_zero + f, mask=inside, other=0.0)
    z1 = tl.load(at_zero + F + f, mask=inside, other=0.0)
    z2 = tl.load(at_zero + 4 * F + f, mask=inside, other=0.0)
    received = add9(sum_pairs9(total), scale9(own, z0, z1, z2))
    store9(message, at_n, size, inside, received)
    prefactor = tl.load(g + n)
    c = scale9(product(own, received, SYMMETRIC), prefactor, prefactor, prefactor)
    normal, shrink = normalise(c)
    store9(reacted, at_n, size, inside, normal)
    tl.store(inverse + at_n, shrink, mask=inside)


@jit
def message_reverse(
    pointer, sender, distances, table, y, by_message, by_y, slopes, n_atoms, n_pairs,
    F: tl.constexpr, SCALE: tl.constexpr, KNOTS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Reverse of the sum over neighbours in `interact`: by_y [9, N, F] += the derivative by y;
    slopes[block, p] [blocks, P]: this block's part of the derivative by the distance.
    """
    n, begin, end, f, inside, size = _block(pointer, n_atoms, F, BLOCK_F)
    at_n = n * F + f
    own = load9(by_message, at_n, size, inside)
    g = (
        own[0][None, :], own[1][None, :], own[2][None, :], own[3][None, :], own[4][None, :],
        own[5][None, :], own[6][None, :], own[7][None, :], own[8][None, :],
    )  # fmt: skip
    k = tl.arange(0, BLOCK_P)
    block = tl.program_id(1).to(tl.int64)
    total = _zeros9(g[0] + tl.zeros([BLOCK_P, 1], own[0].dtype))
    for first in range(begin, end, BLOCK_P):
        p = first + k
        here = p < end
        mask = here[:, None] & inside[None, :]
        d = tl.load(distances + p, mask=here, other=0.0)
        j = tl.load(sender + p, mask=here, other=0)
        row, t = interval(d, SCALE, KNOTS)
        w, dw = hermite(t), hermite_slopes(t, d, SCALE)
        at = row[:, None] * (3 * F) + f[None, :]
        at_j = j[:, None] * F + f[None, :]
        q0, q1, q2 = dot_parts(load9(y, at_j, size, mask), g)
        rows = rows4(table, at, mask, 3 * F)
        r0, steep = weighted(rows, w), weighted(rows, dw) * q0
        rows = rows4(table + F, at, mask, 3 * F)
        r1, steep = weighted(rows, w), steep + weighted(rows, dw) * q1
        rows = rows4(table + 2 * F, at, mask, 3 * F)
        r2, steep = weighted(rows, w), steep + weighted(rows, dw) * q2
        total = add9(total, scale9(load9(by_message, at_j, size, mask), r0, r1, r2))
        tl.store(slopes + block * n_pairs + p, tl.sum(steep, 1), mask=here)
    before = load9(by_y, at_n, size, inside)
    store9(by_y, at_n, size, inside, add9(before, sum_pairs9(total)))
