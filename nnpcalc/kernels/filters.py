"""Continuous-filter convolutions as multilinear forms: what SchNet and PaiNN sum over pairs.

* filter     ``sum_p sum_c r_p x[j_p, c] g[i_p, c]``         any number of components c
* direction  ``sum_p sum_a r_p x[j_p] u[p, a] g[i_p, a]``    a = 0..2

with channels f summed throughout and radial functions r_p [F] interpolated from a table, as in
`nnpcalc.kernels.cpu`; `nnpcalc.kernels.forms` says how they are differentiated.

Shapes: w [P, 4], table [2 K, F], x [N, C, F] or [N, F], u [P, 3], g [N, C, F] or [N, 3, F].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from nnpcalc.kernels.cpu import STRIDE, _project, _radial, compiled
from nnpcalc.kernels.forms import Form, Topology, _fold, _optional

_inline: dict[str, Any] = {"fastmath": True, "inline": "always"}

# --- loops ---------------------------------------------------------------------------------------


@njit(**_inline)
def _contract_filter(x, g, product):
    """product [F] = sum over the components of x * g (each [C, F])."""
    for f in range(product.size):
        product[f] = x[0, f] * g[0, f]
    for c in range(1, x.shape[0]):
        for f in range(product.size):
            product[f] += x[c, f] * g[c, f]


@njit(**_inline)
def _contract_direction(x, u, g, product):
    """product [F] = x times the sum over the directions of u * g."""
    u0, u1, u2 = u[0], u[1], u[2]
    for f in range(product.size):
        product[f] = x[f] * (u0 * g[0, f] + u1 * g[1, f] + u2 * g[2, f])


@compiled
def filter_sum(pointer, order, other, knot, w, table, x, out):
    """out[n, c] = sum over the pairs p of node n of r_p x[other_p, c]: derivative by g or by x."""
    n_channels = x.shape[2]
    for n in prange(pointer.size - 1):
        radial = np.empty(n_channels, x.dtype)
        out[n] = 0.0
        for k in range(pointer[n], pointer[n + 1]):
            p = order[k]
            _radial(w[p], table, 2 * knot[p], radial)
            for c in range(x.shape[1]):
                source, target = x[other[p], c], out[n, c]
                for f in range(n_channels):
                    target[f] += radial[f] * source[f]


@compiled
def filter_weights(i, j, knot, table, x, g, out):
    """Derivative of the filter form by w: out [P, 4]."""
    for p in prange(knot.size):
        product = np.empty(x.shape[2], x.dtype)
        _contract_filter(x[j[p]], g[i[p]], product)
        _project(table, 2 * knot[p], product, out[p])


@compiled
def filter_table(pointer, order, i, j, w, x, g, out):
    """Derivative of the filter form by the table, per interval: out [K, 4, F]."""
    n_knots = pointer.size - 1
    for step in prange(n_knots):
        n = (step * STRIDE) % n_knots
        product = np.empty(x.shape[2], x.dtype)
        out[n] = 0.0
        for k in range(pointer[n], pointer[n + 1]):
            p = order[k]
            _contract_filter(x[j[p]], g[i[p]], product)
            for m in range(4):
                target, weight = out[n, m], w[p, m]
                for f in range(product.size):
                    target[f] += weight * product[f]


@compiled
def direction_sum(pointer, j, knot, w, table, x, u, out):
    """Derivative of the direction form by g: out [N, 3, F]; pairs are sorted by receiver."""
    n_channels = x.shape[1]
    for n in prange(pointer.size - 1):
        radial = np.empty(n_channels, x.dtype)
        out[n] = 0.0
        for p in range(pointer[n], pointer[n + 1]):
            _radial(w[p], table, 2 * knot[p], radial)
            source = x[j[p]]
            for f in range(n_channels):
                radial[f] *= source[f]
            for a in range(3):
                target, weight = out[n, a], u[p, a]
                for f in range(n_channels):
                    target[f] += weight * radial[f]


@compiled
def direction_features(pointer, order, receiver, knot, w, table, u, g, out):
    """Derivative of the direction form by x, pairs grouped by sender: out [N, F]."""
    n_channels = g.shape[2]
    for n in prange(pointer.size - 1):
        radial = np.empty(n_channels, g.dtype)
        target = out[n]
        target[:] = 0.0
        for k in range(pointer[n], pointer[n + 1]):
            p = order[k]
            _radial(w[p], table, 2 * knot[p], radial)
            u0, u1, u2 = u[p, 0], u[p, 1], u[p, 2]
            source = g[receiver[p]]
            for f in range(n_channels):
                total = u0 * source[0, f] + u1 * source[1, f] + u2 * source[2, f]
                target[f] += radial[f] * total


@compiled
def direction_geometry(i, j, knot, w, table, x, g, out):
    """Derivative of the direction form by u: out [P, 3]."""
    n_channels = x.shape[1]
    for p in prange(knot.size):
        radial = np.empty(n_channels, x.dtype)
        _radial(w[p], table, 2 * knot[p], radial)
        source = x[j[p]]
        for a in range(3):
            other = g[i[p], a]
            total = radial[0] * source[0] * other[0]
            for f in range(1, n_channels):
                total += radial[f] * source[f] * other[f]
            out[p, a] = total


@compiled
def direction_weights(i, j, knot, table, x, u, g, out):
    """Derivative of the direction form by w: out [P, 4]."""
    for p in prange(knot.size):
        product = np.empty(x.shape[1], x.dtype)
        _contract_direction(x[j[p]], u[p], g[i[p]], product)
        _project(table, 2 * knot[p], product, out[p])


@compiled
def direction_table(pointer, order, i, j, w, x, u, g, out):
    """Derivative of the direction form by the table, per interval: out [K, 4, F]."""
    n_knots = pointer.size - 1
    for step in prange(n_knots):
        n = (step * STRIDE) % n_knots
        product = np.empty(x.shape[1], x.dtype)
        out[n] = 0.0
        for k in range(pointer[n], pointer[n + 1]):
            p = order[k]
            _contract_direction(x[j[p]], u[p], g[i[p]], product)
            for m in range(4):
                target, weight = out[n, m], w[p, m]
                for f in range(product.size):
                    target[f] += weight * product[f]


# --- forms ---------------------------------------------------------------------------------------


def _filter_by_w(t: Topology, a: list[Tensor]) -> Tensor:
    _, table, x, g = map(_optional, a)
    out = np.empty((t.knot.size, 4), x.dtype)
    filter_weights(t.i, t.j, t.knot, table, x, g, out)
    return torch.from_numpy(out)


def _filter_by_table(t: Topology, a: list[Tensor]) -> Tensor:
    w, _, x, g = map(_optional, a)
    out = np.empty((t.n_knots, 4, x.shape[2]), x.dtype)
    filter_table(*t.by_knot, t.i, t.j, w, x, g, out)
    return _fold(out)


def _filter_by_x(t: Topology, a: list[Tensor]) -> Tensor:
    w, table, _, g = map(_optional, a)
    out = np.empty_like(g)
    filter_sum(*t.by_sender, t.i, t.knot, w, table, g, out)
    return torch.from_numpy(out)


def _filter_by_g(t: Topology, a: list[Tensor]) -> Tensor:
    w, table, x, _ = map(_optional, a)
    out = np.empty_like(x)
    filter_sum(*t.by_receiver, t.j, t.knot, w, table, x, out)
    return torch.from_numpy(out)


def _direction_by_w(t: Topology, a: list[Tensor]) -> Tensor:
    _, table, x, u, g = map(_optional, a)
    out = np.empty((t.knot.size, 4), x.dtype)
    direction_weights(t.i, t.j, t.knot, table, x, u, g, out)
    return torch.from_numpy(out)


def _direction_by_table(t: Topology, a: list[Tensor]) -> Tensor:
    w, _, x, u, g = map(_optional, a)
    out = np.empty((t.n_knots, 4, x.shape[1]), x.dtype)
    direction_table(*t.by_knot, t.i, t.j, w, x, u, g, out)
    return _fold(out)


def _direction_by_x(t: Topology, a: list[Tensor]) -> Tensor:
    w, table, _, u, g = map(_optional, a)
    out = np.empty((t.n_atoms, g.shape[2]), g.dtype)
    direction_features(*t.by_sender, t.i, t.knot, w, table, u, g, out)
    return torch.from_numpy(out)


def _direction_by_u(t: Topology, a: list[Tensor]) -> Tensor:
    w, table, x, _, g = map(_optional, a)
    out = np.empty((t.knot.size, 3), x.dtype)
    direction_geometry(t.i, t.j, t.knot, w, table, x, g, out)
    return torch.from_numpy(out)


def _direction_by_g(t: Topology, a: list[Tensor]) -> Tensor:
    w, table, x, u, _ = map(_optional, a)
    out = np.empty((t.n_atoms, 3, x.shape[1]), x.dtype)
    direction_sum(t.by_receiver[0], t.j, t.knot, w, table, x, u, out)
    return torch.from_numpy(out)


FILTER = Form(
    ("w", "table", "x", "g"), (_filter_by_w, _filter_by_table, _filter_by_x, _filter_by_g)
)
DIRECTION = Form(
    ("w", "table", "x", "angular", "g"),
    (_direction_by_w, _direction_by_table, _direction_by_x, _direction_by_u, _direction_by_g),
)
