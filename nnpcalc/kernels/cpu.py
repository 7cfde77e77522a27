"""Numba loops over pairs: the sums of a message-passing layer and all their partial derivatives.

Two multilinear forms are evaluated, each with one array left out (the derivative by that array):

* message    ``sum_p sum_c r_p[l(c)] x[j_p, c] g[i_p, c]``
* embedding  ``sum_p sum_c r_p[l(c)] (a[i_p] + b[j_p]) y[p, c] g[i_p, c]``

with channels f summed throughout, the components c = 0..8 and parts l(c) = 0..2 of
`nnpcalc.models.tensornet`, and radial functions interpolated from a table of values and slopes,
``r_p = sum_m w[p, m] table[2 knot_p + m]`` (m = 0..3). Nothing of size pairs x channels is ever
stored. Rows that several threads would share are walked in sorted order instead, so that every
result is the same for any number of threads.

Shapes: w [P, 4], table [2 K, 3 F], x and g [N, 9, F], s = (a, b) [2, N, F], y [P, 9].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from nnpcalc.kernels.programs import compiled

PART = np.array((0, 1, 1, 1, 2, 2, 2, 2, 2), dtype=np.int64)
STRIDE = 61  # spreads neighbouring knots, which hold similar numbers of pairs, over the threads

_inline: dict[str, Any] = {"fastmath": True, "inline": "always"}


@njit(cache=True)
def group(keys: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Counting sort: (pointer [n_groups + 1], order [P]) with the pairs of each key in order."""
    pointer = np.zeros(n_groups + 1, dtype=np.int64)
    for p in range(keys.size):
        pointer[keys[p] + 1] += 1
    for k in range(n_groups):
        pointer[k + 1] += pointer[k]
    fill = pointer[:-1].copy()
    order = np.empty(keys.size, dtype=np.int64)
    for p in range(keys.size):
        order[fill[keys[p]]] = p
        fill[keys[p]] += 1
    return pointer, order


@njit(**_inline)
def _radial(w, table, first, radial):
    """radial [3 F] = the four table rows from ``first`` on, weighted by w [4]."""
    w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
    t0, t1, t2, t3 = table[first], table[first + 1], table[first + 2], table[first + 3]
    for f in range(radial.size):
        radial[f] = w0 * t0[f] + w1 * t1[f] + w2 * t2[f] + w3 * t3[f]


@njit(**_inline)
def _contract_message(x, g, product):
    """product [3 F] = sum over the components of each part of x * g (each [9, F])."""
    n = x.shape[1]
    for f in range(n):
        product[f] = x[0, f] * g[0, f]
    for f in range(n):
        product[n + f] = x[1, f] * g[1, f] + x[2, f] * g[2, f] + x[3, f] * g[3, f]
    for f in range(n):
        product[2 * n + f] = (
            x[4, f] * g[4, f]
            + x[5, f] * g[5, f]
            + x[6, f] * g[6, f]
            + x[7, f] * g[7, f]
            + x[8, f] * g[8, f]
        )


@njit(**_inline)
def _contract_embedding(a, b, y, g, product):
    """product [3 F] = (a + b) times the sum over the components of each part of y * g."""
    n = a.size
    y0, y1, y2, y3, y4, y5, y6, y7, y8 = y[0], y[1], y[2], y[3], y[4], y[5], y[6], y[7], y[8]
    for f in range(n):
        product[f] = (a[f] + b[f]) * y0 * g[0, f]
    for f in range(n):
        product[n + f] = (a[f] + b[f]) * (y1 * g[1, f] + y2 * g[2, f] + y3 * g[3, f])
    for f in range(n):
        product[2 * n + f] = (a[f] + b[f]) * (
            y4 * g[4, f] + y5 * g[5, f] + y6 * g[6, f] + y7 * g[7, f] + y8 * g[8, f]
        )


@njit(**_inline)
def _project(table, first, product, out):
    """out [4] = product . each of the four table rows."""
    for m in range(4):
        row = table[first + m]
        total = row[0] * product[0]
        for f in range(1, product.size):
            total += row[f] * product[f]
        out[m] = total


@compiled
def message_sum(pointer, order, other, knot, w, table, x, out):
    """out[n, c] = sum over the pairs p of node n of r_p[l(c)] x[other_p, c].

    Grouped by receivers it is the derivative by g, grouped by senders the one by x.
    """
    n_channels = x.shape[2]
    for n in prange(pointer.size - 1):
        radial = np.empty(3 * n_channels, x.dtype)
        out[n] = 0.0
        for k in range(pointer[n], pointer[n + 1]):
            p = order[k]
            _radial(w[p], table, 2 * knot[p], radial)
            for c in range(9):
                source, target = x[other[p], c], out[n, c]
                r = radial[PART[c] * n_channels : (PART[c] + 1) * n_channels]
                for f in range(n_channels):
                    target[f] += r[f] * source[f]


@compiled
def message_weights(i, j, knot, table, x, g, out):
    """Derivative of the message form by w: out [P, 4]."""
    for p in prange(knot.size):
        product = np.empty(3 * x.shape[2], x.dtype)
        _contract_message(x[j[p]], g[i[p]], product)
        _project(table, 2 * knot[p], product, out[p])


@compiled
def message_table(pointer, order, i, j, w, x, g, out):
    """Derivative of the message form by the table, per interval: out [K, 4, 3 F]."""
    n_knots = pointer.size - 1
    for step in prange(n_knots):
        n = (step * STRIDE) % n_knots
        product = np.empty(3 * x.shape[2], x.dtype)
        out[n] = 0.0
        for k in range(pointer[n], pointer[n + 1]):
            p = order[k]
            _contract_message(x[j[p]], g[i[p]], product)
            for m in range(4):
                target, weight = out[n, m], w[p, m]
                for f in range(product.size):
                    target[f] += weight * product[f]


@compiled
def embedding_sum(pointer, j, knot, w, table, s, y, out):
    """Derivative of the embedding form by g: out [N, 9, F]; pairs are sorted by receiver."""
    n_channels = s.shape[2]
    for n in prange(pointer.size - 1):
        radial = np.empty(3 * n_channels, s.dtype)
        out[n] = 0.0
        for p in range(pointer[n], pointer[n + 1]):
            _radial(w[p], table, 2 * knot[p], radial)
            a, b = s[0, n], s[1, j[p]]
            for part in range(3):
                r = radial[part * n_channels : (part + 1) * n_channels]
                for f in range(n_channels):
                    r[f] *= a[f] + b[f]
            for c in range(9):
                target, weight = out[n, c], y[p, c]
                r = radial[PART[c] * n_channels : (PART[c] + 1) * n_channels]
                for f in range(n_channels):
                    target[f] += weight * r[f]


@compiled
def embedding_weights(i, j, knot, table, s, y, g, out):
    """Derivative of the embedding form by w: out [P, 4]."""
    for p in prange(knot.size):
        product = np.empty(3 * s.shape[2], s.dtype)
        _contract_embedding(s[0, i[p]], s[1, j[p]], y[p], g[i[p]], product)
        _project(table, 2 * knot[p], product, out[p])


@compiled
def embedding_table(pointer, order, i, j, w, s, y, g, out):
    """Derivative of the embedding form by the table, per interval: out [K, 4, 3 F]."""
    n_knots = pointer.size - 1
    for step in prange(n_knots):
        n = (step * STRIDE) % n_knots
        product = np.empty(3 * s.shape[2], s.dtype)
        out[n] = 0.0
        for k in range(pointer[n], pointer[n + 1]):
            p = order[k]
            _contract_embedding(s[0, i[p]], s[1, j[p]], y[p], g[i[p]], product)
            for m in range(4):
                target, weight = out[n, m], w[p, m]
                for f in range(product.size):
                    target[f] += weight * product[f]


@compiled
def embedding_geometry(i, j, knot, w, table, s, g, out):
    """Derivative of the embedding form by y: out [P, 9]."""
    n_channels = s.shape[2]
    for p in prange(knot.size):
        radial = np.empty(3 * n_channels, s.dtype)
        _radial(w[p], table, 2 * knot[p], radial)
        a, b = s[0, i[p]], s[1, j[p]]
        for c in range(9):
            source = g[i[p], c]
            r = radial[PART[c] * n_channels : (PART[c] + 1) * n_channels]
            total = r[0] * (a[0] + b[0]) * source[0]
            for f in range(1, n_channels):
                total += r[f] * (a[f] + b[f]) * source[f]
            out[p, c] = total


@compiled
def embedding_features(pointer, order, receiver, knot, w, table, y, g, out):
    """Derivative by a (pairs grouped by receiver) or by b (grouped by sender): out [N, F]."""
    n_channels = g.shape[2]
    for n in prange(pointer.size - 1):
        radial = np.empty(3 * n_channels, g.dtype)
        target = out[n]
        target[:] = 0.0
        for k in range(pointer[n], pointer[n + 1]):
            p = order[k]
            _radial(w[p], table, 2 * knot[p], radial)
            for c in range(9):
                source, weight = g[receiver[p], c], y[p, c]
                r = radial[PART[c] * n_channels : (PART[c] + 1) * n_channels]
                for f in range(n_channels):
                    target[f] += weight * r[f] * source[f]


@compiled
def contract(entries, coefficients, a, b, out):
    """out[n, c] = sum over the entries (c, p, q) of coefficient * a[n, p] * b[n, q].

    Shapes: entries [E, 3], coefficients [E], a [N, A, F], b [N, B, F], out [N, C, F].
    """
    n_channels = out.shape[2]
    for n in prange(out.shape[0]):
        out[n] = 0.0
        for e in range(coefficients.size):
            factor = coefficients[e]
            target = out[n, entries[e, 0]]
            left, right = a[n, entries[e, 1]], b[n, entries[e, 2]]
            for f in range(n_channels):
                target[f] += factor * left[f] * right[f]
