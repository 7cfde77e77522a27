"""Numba loops of TensorNet's inference: each stage and its reverse, in few passes over memory.

Arrays of atoms are component-major, [9, N, F] with the components of `nnpcalc.models.tensornet`,
so that the channel mixing of I, A and S is one matrix product over contiguous memory each. Pairs
are a full list sorted by receiver: since (i, j) and (j, i) have one distance and one radial
function r, the reverse of a sum over neighbours is a walk over the same neighbours.

Shapes: pointer [N + 1] (first pair of each atom), j and knot [P], w and dw [P, 4] (weights of four
table rows for a radial function and for its derivative by the distance), table [2 K, 3 F].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from nnpcalc.kernels.cpu import compiled

_inline: dict[str, Any] = {"fastmath": True, "inline": "always"}


@njit(**_inline)
def _interpolate(w, p, table, first, radial):
    """radial [3 F] = the four table rows from ``first`` on, weighted by w[p]."""
    w0, w1, w2, w3 = w[p, 0], w[p, 1], w[p, 2], w[p, 3]
    for f in range(radial.size):
        radial[f] = (
            w0 * table[first, f]
            + w1 * table[first + 1, f]
            + w2 * table[first + 2, f]
            + w3 * table[first + 3, f]
        )


@njit(**_inline)
def _interpolate_both(w, dw, p, table, first, radial, slope):
    """`_interpolate` with two sets of weights, each table row read once."""
    w0, w1, w2, w3 = w[p, 0], w[p, 1], w[p, 2], w[p, 3]
    d0, d1, d2, d3 = dw[p, 0], dw[p, 1], dw[p, 2], dw[p, 3]
    for f in range(radial.size):
        t0, t1 = table[first, f], table[first + 1, f]
        t2, t3 = table[first + 2, f], table[first + 3, f]
        radial[f] = w0 * t0 + w1 * t1 + w2 * t2 + w3 * t3
        slope[f] = d0 * t0 + d1 * t1 + d2 * t2 + d3 * t3


@njit(**_inline)
def _load(x, n, block):
    """block [9, F] = x[:, n]."""
    for c in range(9):
        for f in range(block.shape[1]):
            block[c, f] = x[c, n, f]


@njit(**_inline)
def _store(block, n, out):
    """out[:, n] = block [9, F]."""
    for c in range(9):
        for f in range(block.shape[1]):
            out[c, n, f] = block[c, f]


@compiled
def pair_geometry(vectors, distances, grid, knot, w, dw, angular):
    """What the pairs' vectors say, once for all stages; grid: step (Å) and number of knots.

    knot, w and dw as in `hermite_weights` and `hermite_slopes`, angular [P, 9] as `pair_tensors`.
    """
    step, last = grid[0], int(grid[1]) - 2
    for p in prange(distances.size):
        scaled = distances[p] / step
        interval = min(int(scaled), last)
        t = scaled - interval
        s = 1.0 - t
        knot[p] = interval
        w[p, 0], w[p, 1] = (1.0 + 2.0 * t) * s * s, t * s * s
        w[p, 2], w[p, 3] = t * t * (3.0 - 2.0 * t), -t * t * s
        steep = 6.0 * t * s / step
        dw[p, 0], dw[p, 1] = -steep, s * (s - 2.0 * t) / step
        dw[p, 2], dw[p, 3] = steep, t * (t - 2.0 * s) / step
        inverse = -1.0 / distances[p]
        ux, uy, uz = vectors[p, 0] * inverse, vectors[p, 1] * inverse, vectors[p, 2] * inverse
        third = 1.0 / 3.0
        angular[p, 0] = 1.0
        angular[p, 1], angular[p, 2], angular[p, 3] = ux, uy, uz
        angular[p, 4], angular[p, 5], angular[p, 6] = ux * ux - third, ux * uy, ux * uz
        angular[p, 7], angular[p, 8] = uy * uy - third, uy * uz


@compiled
def embed_pairs(pointer, j, knot, w, table, a, b, angular, out):
    """out[c, i] = sum_p r_p[l(c)] (a_i + b_j) angular[p, c]."""
    channels = a.shape[1]
    for n in prange(pointer.size - 1):
        radial = np.empty(3 * channels, a.dtype)
        block = np.zeros((9, channels), a.dtype)
        for p in range(pointer[n], pointer[n + 1]):
            _interpolate(w, p, table, 2 * knot[p], radial)
            m = j[p]
            y1, y2, y3, y4 = angular[p, 1], angular[p, 2], angular[p, 3], angular[p, 4]
            y5, y6, y7, y8 = angular[p, 5], angular[p, 6], angular[p, 7], angular[p, 8]
            for f in range(channels):
                block[0, f] += radial[f] * (a[n, f] + b[m, f])
            for f in range(channels):
                r = radial[channels + f] * (a[n, f] + b[m, f])
                block[1, f] += y1 * r
                block[2, f] += y2 * r
                block[3, f] += y3 * r
            for f in range(channels):
                r = radial[2 * channels + f] * (a[n, f] + b[m, f])
                block[4, f] += y4 * r
                block[5, f] += y5 * r
                block[6, f] += y6 * r
                block[7, f] += y7 * r
                block[8, f] += y8 * r
        _store(block, n, out)


@compiled
def embed_pairs_reverse(pointer, j, knot, w, dw, table, a, b, angular, distances, g, gradient):
    """gradient[p] [P, 3] = derivative of sum(g * `embed_pairs`) by the vector of pair p."""
    channels = a.shape[1]
    for n in prange(pointer.size - 1):
        radial = np.empty(3 * channels, a.dtype)
        slope = np.empty(3 * channels, a.dtype)
        own = np.empty((9, channels), a.dtype)
        _load(g, n, own)
        for p in range(pointer[n], pointer[n + 1]):
            _interpolate_both(w, dw, p, table, 2 * knot[p], radial, slope)
            m = j[p]
            for f in range(channels):
                z = a[n, f] + b[m, f]
                for part in range(3):
                    radial[part * channels + f] *= z
                    slope[part * channels + f] *= z
            zero = radial[0] * 0.0  # of the arrays' type
            q1 = q2 = q3 = q4 = q5 = q6 = q7 = q8 = by_distance = zero
            y1, y2, y3, y4 = angular[p, 1], angular[p, 2], angular[p, 3], angular[p, 4]
            y5, y6, y7, y8 = angular[p, 5], angular[p, 6], angular[p, 7], angular[p, 8]
            for f in range(channels):
                by_distance += slope[f] * own[0, f]
            for f in range(channels):
                r, g1, g2, g3 = radial[channels + f], own[1, f], own[2, f], own[3, f]
                q1 += r * g1
                q2 += r * g2
                q3 += r * g3
                by_distance += slope[channels + f] * (y1 * g1 + y2 * g2 + y3 * g3)
            for f in range(channels):
                r = radial[2 * channels + f]
                g4, g5, g6, g7, g8 = own[4, f], own[5, f], own[6, f], own[7, f], own[8, f]
                q4 += r * g4
                q5 += r * g5
                q6 += r * g6
                q7 += r * g7
                q8 += r * g8
                by_distance += slope[2 * channels + f] * (
                    y4 * g4 + y5 * g5 + y6 * g6 + y7 * g7 + y8 * g8
                )
            # angular = (1, u, xx, xy, xz, yy, yz of u u^t - 1/3) with u = -vector / distance
            ux, uy, uz = y1, y2, y3
            gx = q1 + 2.0 * ux * q4 + uy * q5 + uz * q6
            gy = q2 + ux * q5 + 2.0 * uy * q7 + uz * q8
            gz = q3 + ux * q6 + uy * q8
            along = gx * ux + gy * uy + gz * uz
            inverse = 1.0 / distances[p]
            gradient[p, 0] -= (gx - along * ux) * inverse + by_distance * ux
            gradient[p, 1] -= (gy - along * uy) * inverse + by_distance * uy
            gradient[p, 2] -= (gz - along * uz) * inverse + by_distance * uz


@compiled
def message_pairs(pointer, j, knot, w, table, y, out):
    """out[c, i] = sum_p r_p[l(c)] y[c, j_p]."""
    channels = y.shape[2]
    for n in prange(pointer.size - 1):
        radial = np.empty(3 * channels, y.dtype)
        block = np.zeros((9, channels), y.dtype)
        for p in range(pointer[n], pointer[n + 1]):
            _interpolate(w, p, table, 2 * knot[p], radial)
            m = j[p]
            for c in range(9):
                first = (0 if c == 0 else 1 if c < 4 else 2) * channels
                for f in range(channels):
                    block[c, f] += radial[first + f] * y[c, m, f]
        _store(block, n, out)


@compiled
def message_pairs_reverse(pointer, j, knot, w, dw, table, y, vectors, distances, g, out, gradient):
    """Derivatives of sum(g * `message_pairs`): out += by y, gradient [P, 3] += by the vectors."""
    channels = y.shape[2]
    for n in prange(pointer.size - 1):
        radial = np.empty(3 * channels, y.dtype)
        slope = np.empty(3 * channels, y.dtype)
        block = np.zeros((9, channels), y.dtype)
        own = np.empty((9, channels), y.dtype)
        _load(g, n, own)
        for p in range(pointer[n], pointer[n + 1]):
            _interpolate_both(w, dw, p, table, 2 * knot[p], radial, slope)
            m = j[p]
            for c in range(9):
                first = (0 if c == 0 else 1 if c < 4 else 2) * channels
                for f in range(channels):
                    block[c, f] += radial[first + f] * g[c, m, f]
            by_distance = radial[0] * 0.0  # of the arrays' type
            for f in range(channels):
                by_distance += slope[f] * own[0, f] * y[0, m, f]
            for f in range(channels):
                by_distance += slope[channels + f] * (
                    own[1, f] * y[1, m, f] + own[2, f] * y[2, m, f] + own[3, f] * y[3, m, f]
                )
            for f in range(channels):
                by_distance += slope[2 * channels + f] * (
                    own[4, f] * y[4, m, f]
                    + own[5, f] * y[5, m, f]
                    + own[6, f] * y[6, m, f]
                    + own[7, f] * y[7, m, f]
                    + own[8, f] * y[8, m, f]
                )
            factor = by_distance / distances[p]
            gradient[p, 0] += factor * vectors[p, 0]
            gradient[p, 1] += factor * vectors[p, 1]
            gradient[p, 2] += factor * vectors[p, 2]
        for c in range(9):
            for f in range(channels):
                out[c, n, f] += block[c, f]


@njit(**_inline)
def _norm(x, n, out):
    """out [F] = squared Frobenius norm of x[:, n]."""
    for f in range(out.size):
        sxx, syy = x[4, n, f], x[7, n, f]
        out[f] = 3.0 * x[0, n, f] * x[0, n, f] + 2.0 * (sxx * sxx + sxx * syy + syy * syy)
    for c in (1, 2, 3, 5, 6, 8):
        for f in range(out.size):
            out[f] += 2.0 * x[c, n, f] * x[c, n, f]


@njit(**_inline)
def _add_norm_gradient(x, n, factor, first, last, out):
    """out[c, n] += factor [F] * derivative of the squared norm by x[c, n], first <= c < last."""
    for c in range(first, last):
        if c == 4 or c == 7:
            other = 11 - c
            for f in range(factor.size):
                out[c, n, f] += factor[f] * (4.0 * x[c, n, f] + 2.0 * x[other, n, f])
        else:
            k = 6.0 if c == 0 else 4.0
            for f in range(factor.size):
                out[c, n, f] += factor[f] * (k * x[c, n, f])


@compiled
def part_norms(x, out):
    """out[n, l] [N, 3, F] = squared norms of the parts of x [9, N, F]."""
    channels = x.shape[2]
    for n in prange(x.shape[1]):
        for f in range(channels):
            sxx, syy = x[4, n, f], x[7, n, f]
            out[n, 0, f] = 3.0 * x[0, n, f] * x[0, n, f]
            out[n, 1, f] = 2.0 * (
                x[1, n, f] * x[1, n, f] + x[2, n, f] * x[2, n, f] + x[3, n, f] * x[3, n, f]
            )
            out[n, 2, f] = 2.0 * (sxx * sxx + sxx * syy + syy * syy)
        for c in (5, 6, 8):
            for f in range(channels):
                out[n, 2, f] += 2.0 * x[c, n, f] * x[c, n, f]


@compiled
def part_norms_reverse(x, g, out):
    """out += derivative of sum(g * `part_norms`) by x; g [N, 3, F]."""
    for n in prange(x.shape[1]):
        _add_norm_gradient(x, n, g[n, 0], 0, 1, out)
        _add_norm_gradient(x, n, g[n, 1], 1, 4, out)
        _add_norm_gradient(x, n, g[n, 2], 4, 9, out)


@compiled
def normalise(x, out, inverse):
    """out = x / (|x|^2 + 1); inverse [N, F] = 1 / (|x|^2 + 1)."""
    channels = x.shape[2]
    for n in prange(x.shape[1]):
        norm = np.empty(channels, x.dtype)
        _norm(x, n, norm)
        for f in range(channels):
            inverse[n, f] = 1.0 / (norm[f] + 1.0)
        for c in range(9):
            for f in range(channels):
                out[c, n, f] = x[c, n, f] * inverse[n, f]


@compiled
def normalise_reverse(normalised, inverse, g, out):
    """out = derivative of sum(g * x / (|x|^2 + 1)) by x, from the normalised x."""
    channels = g.shape[2]
    for n in prange(g.shape[1]):
        factor = np.zeros(channels, g.dtype)
        for c in range(9):
            for f in range(channels):
                factor[f] -= g[c, n, f] * normalised[c, n, f]
                out[c, n, f] = g[c, n, f] * inverse[n, f]
        _add_norm_gradient(normalised, n, factor, 0, 9, out)


@njit(**_inline)
def _bilinear(entries, coefficients, x, y, n, block):
    """block[c] += sum over the entries (c, a, b) of coefficient * x[a, n] * y[b, n]."""
    for e in range(coefficients.size):
        c, a, b, k = entries[e, 0], entries[e, 1], entries[e, 2], coefficients[e]
        for f in range(block.shape[1]):
            block[c, f] += k * x[a, n, f] * y[b, n, f]


@compiled
def react(entries, coefficients, y, at_zero, g, message, inverse, out):
    """out = C / (|C|^2 + 1) with C = g product(y, message + at_zero y); inverse as in `normalise`.

    message is overwritten by the one with the atom's own part. at_zero [9, F], g [N].
    """
    channels = y.shape[2]
    for n in prange(y.shape[1]):
        block = np.zeros((9, channels), y.dtype)
        for c in range(9):
            for f in range(channels):
                message[c, n, f] += at_zero[c, f] * y[c, n, f]
        _bilinear(entries, coefficients, y, message, n, block)
        for c in range(9):
            for f in range(channels):
                out[c, n, f] = g[n] * block[c, f]
        norm = np.empty(channels, y.dtype)
        _norm(out, n, norm)
        for f in range(channels):
            inverse[n, f] = 1.0 / (norm[f] + 1.0)
        for c in range(9):
            for f in range(channels):
                out[c, n, f] *= inverse[n, f]


@compiled
def react_reverse(
    by_left, left, by_right, right, y, message, at_zero, g, reacted, inverse, upstream, by_y, by_m
):
    """Derivatives of sum(upstream * `react`) by y and by the neighbours' messages.

    by_left and left: entries and coefficients of the product's derivative by its first factor, as
    a bilinear map of (second factor, upstream); by_right and right: by the second factor, of
    (upstream, first factor).
    """
    channels = y.shape[2]
    for n in prange(y.shape[1]):
        factor = np.zeros(channels, y.dtype)
        for c in range(9):
            for f in range(channels):
                factor[f] -= upstream[c, n, f] * reacted[c, n, f]
                upstream[c, n, f] *= inverse[n, f]
        _add_norm_gradient(reacted, n, factor, 0, 9, upstream)
        for c in range(9):
            for f in range(channels):
                upstream[c, n, f] *= g[n]
        first = np.zeros((9, channels), y.dtype)
        second = np.zeros((9, channels), y.dtype)
        _bilinear(by_left, left, message, upstream, n, first)
        _bilinear(by_right, right, upstream, y, n, second)
        for c in range(9):
            for f in range(channels):
                by_m[c, n, f] = second[c, f]
                by_y[c, n, f] = first[c, f] + at_zero[c, f] * second[c, f]


@compiled
def update(entries, coefficients, x, change, g, out):
    """out = x + change + g change^2, with the entries of the product a b + b a; g [N]."""
    channels = x.shape[2]
    for n in prange(x.shape[1]):
        block = np.zeros((9, channels), x.dtype)
        _bilinear(entries, coefficients, change, change, n, block)
        half = 0.5 * g[n]
        for c in range(9):
            for f in range(channels):
                out[c, n, f] = x[c, n, f] + change[c, n, f] + half * block[c, f]


@compiled
def update_reverse(by_left, left, change, g, upstream, out):
    """out = derivative of sum(upstream * `update`) by change."""
    channels = change.shape[2]
    for n in prange(change.shape[1]):
        block = np.zeros((9, channels), change.dtype)
        _bilinear(by_left, left, change, upstream, n, block)
        for c in range(9):
            for f in range(channels):
                out[c, n, f] = upstream[c, n, f] + g[n] * block[c, f]


@compiled
def scale_parts(x, scales, out):
    """out[c, n] = x[c, n] * scales[n, l(c)]; scales [N, 3, F]."""
    for n in prange(x.shape[1]):
        for c in range(9):
            part = 0 if c == 0 else 1 if c < 4 else 2
            for f in range(x.shape[2]):
                out[c, n, f] = x[c, n, f] * scales[n, part, f]


@compiled
def scale_parts_reverse(x, scales, g, by_x, by_scales):
    """Derivatives of sum(g * `scale_parts`) by x and by scales."""
    for n in prange(x.shape[1]):
        for part in range(3):
            for f in range(x.shape[2]):
                by_scales[n, part, f] = 0.0
        for c in range(9):
            part = 0 if c == 0 else 1 if c < 4 else 2
            for f in range(x.shape[2]):
                by_x[c, n, f] = g[c, n, f] * scales[n, part, f]
                by_scales[n, part, f] += g[c, n, f] * x[c, n, f]
