"""Numba loops over atoms of TensorNet's inference: stages, their reverses, few passes over memory.

Arrays of atoms are component-major, [9, N, F] with the components of `nnpcalc.models.tensornet`,
so that the channel mixing of I, A and S is one matrix product over contiguous memory each. What
happens between the atoms is in `nnpcalc.kernels.inference_pairs`.

Nine vectors of channels (`nnpcalc.kernels.simd`) are the tensors of an atom: their components, or
their entries xx, xy, xz, yx, .. zz as matrices.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from nnpcalc.kernels.simd import EXACT, item, lanes_of, load_part, store_part, total, zeros

_inline: dict[str, Any] = {"fastmath": EXACT, "forceinline": True}


@njit(**_inline)
def load_tensor(x, n, f, left):
    """The components of x[:, n] for the channels from f on, `left` of which there are."""
    return (
        load_part(x, (0, n, f), left), load_part(x, (1, n, f), left),
        load_part(x, (2, n, f), left), load_part(x, (3, n, f), left),
        load_part(x, (4, n, f), left), load_part(x, (5, n, f), left),
        load_part(x, (6, n, f), left), load_part(x, (7, n, f), left),
        load_part(x, (8, n, f), left),
    )  # fmt: skip


@njit(**_inline)
def store_tensor(v, x, n, f, left):
    """x[:, n] = v, as in `load_tensor`."""
    store_part(v[0], x, (0, n, f), left)
    store_part(v[1], x, (1, n, f), left)
    store_part(v[2], x, (2, n, f), left)
    store_part(v[3], x, (3, n, f), left)
    store_part(v[4], x, (4, n, f), left)
    store_part(v[5], x, (5, n, f), left)
    store_part(v[6], x, (6, n, f), left)
    store_part(v[7], x, (7, n, f), left)
    store_part(v[8], x, (8, n, f), left)


@njit(**_inline)
def add(u, v):
    return (
        u[0] + v[0], u[1] + v[1], u[2] + v[2], u[3] + v[3], u[4] + v[4], u[5] + v[5], u[6] + v[6],
        u[7] + v[7], u[8] + v[8],
    )  # fmt: skip


@njit(**_inline)
def _scale(k, v):
    return (
        k * v[0], k * v[1], k * v[2], k * v[3], k * v[4], k * v[5], k * v[6], k * v[7], k * v[8],
    )  # fmt: skip


@njit(**_inline)
def _dot(u, v):
    return (
        u[0] * v[0] + u[1] * v[1] + u[2] * v[2] + u[3] * v[3] + u[4] * v[4] + u[5] * v[5]
        + u[6] * v[6] + u[7] * v[7] + u[8] * v[8]
    )  # fmt: skip


@njit(**_inline)
def _norms(v):
    """Squared Frobenius norms of I, A and S."""
    return (
        3.0 * (v[0] * v[0]),
        2.0 * (v[1] * v[1] + v[2] * v[2] + v[3] * v[3]),
        2.0 * (
            v[4] * v[4] + v[4] * v[7] + v[7] * v[7] + v[5] * v[5] + v[6] * v[6] + v[8] * v[8]
        ),
    )  # fmt: skip


@njit(**_inline)
def _norms_reverse(v, by_i, by_a, by_s):
    """Derivative by v of the sum of `_norms`, each times its factor."""
    a, s = 4.0 * by_a, 4.0 * by_s
    xx, yy = v[4] + 0.5 * v[7], v[7] + 0.5 * v[4]
    return (
        6.0 * by_i * v[0], a * v[1], a * v[2], a * v[3], s * xx, s * v[5], s * v[6], s * yy,
        s * v[8],
    )  # fmt: skip


@njit(**_inline)
def _matrix(v):
    """Matrices of components."""
    return (
        v[0] + v[4], v[5] - v[3], v[6] + v[2],
        v[5] + v[3], v[0] + v[7], v[8] - v[1],
        v[6] - v[2], v[8] + v[1], v[0] - v[4] - v[7],
    )  # fmt: skip


@njit(**_inline)
def _matrix_reverse(m):
    """Derivative by the components from that by the entries."""
    return (
        m[0] + m[4] + m[8],
        m[7] - m[5], m[2] - m[6], m[3] - m[1],
        m[0] - m[8], m[1] + m[3], m[2] + m[6], m[4] - m[8], m[5] + m[7],
    )  # fmt: skip


@njit(**_inline)
def _components(m):
    """Components of matrices."""
    third = (1.0 / 3.0) * (m[0] + m[4] + m[8])
    return (
        third,
        0.5 * (m[7] - m[5]), 0.5 * (m[2] - m[6]), 0.5 * (m[3] - m[1]),
        m[0] - third, 0.5 * (m[1] + m[3]), 0.5 * (m[2] + m[6]), m[4] - third,
        0.5 * (m[5] + m[7]),
    )  # fmt: skip


@njit(**_inline)
def _components_reverse(u):
    """Derivative by the entries from that by the components."""
    third = (1.0 / 3.0) * (u[0] - u[4] - u[7])
    return (
        third + u[4], 0.5 * (u[5] - u[3]), 0.5 * (u[6] + u[2]),
        0.5 * (u[5] + u[3]), third + u[7], 0.5 * (u[8] - u[1]),
        0.5 * (u[6] - u[2]), 0.5 * (u[8] + u[1]), third,
    )  # fmt: skip


@njit(**_inline)
def _transposed(m):
    return m[0], m[3], m[6], m[1], m[4], m[7], m[2], m[5], m[8]


@njit(**_inline)
def _multiply(a, b):
    """Matrix product."""
    return (
        a[0] * b[0] + a[1] * b[3] + a[2] * b[6],
        a[0] * b[1] + a[1] * b[4] + a[2] * b[7],
        a[0] * b[2] + a[1] * b[5] + a[2] * b[8],
        a[3] * b[0] + a[4] * b[3] + a[5] * b[6],
        a[3] * b[1] + a[4] * b[4] + a[5] * b[7],
        a[3] * b[2] + a[4] * b[5] + a[5] * b[8],
        a[6] * b[0] + a[7] * b[3] + a[8] * b[6],
        a[6] * b[1] + a[7] * b[4] + a[8] * b[7],
        a[6] * b[2] + a[7] * b[5] + a[8] * b[8],
    )


@njit(**_inline)
def _product(a, b, symmetric):
    """a b + b a, or 2 a b."""
    one = _multiply(a, b)
    return add(one, _multiply(b, a) if symmetric else one)


@njit(fastmath=EXACT)
def part_norms(x, out):
    """out[n, l] [N, 3, F] = squared norms of the parts of x [9, N, F]."""
    for n in range(x.shape[1]):
        channels = x.shape[2]
        for f in range(0, channels, lanes_of(x)):
            left = channels - f
            i, a, s = _norms(load_tensor(x, n, f, left))
            store_part(i, out, (n, 0, f), left)
            store_part(a, out, (n, 1, f), left)
            store_part(s, out, (n, 2, f), left)


@njit(fastmath=EXACT)
def part_norms_reverse(x, g, out):
    """out = derivative of sum(g * `part_norms`) by x; g [N, 3, F]."""
    for n in range(x.shape[1]):
        channels = x.shape[2]
        for f in range(0, channels, lanes_of(x)):
            left = channels - f
            i, a = load_part(g, (n, 0, f), left), load_part(g, (n, 1, f), left)
            s = load_part(g, (n, 2, f), left)
            store_tensor(_norms_reverse(load_tensor(x, n, f, left), i, a, s), out, n, f, left)


@njit(fastmath=EXACT)
def whole_norms(x, out):
    """out [N, F] = squared norms of x [9, N, F], all three parts together."""
    for n in range(x.shape[1]):
        channels = x.shape[2]
        for f in range(0, channels, lanes_of(x)):
            left = channels - f
            i, a, s = _norms(load_tensor(x, n, f, left))
            store_part(i + a + s, out, (n, f), left)


@njit(fastmath=EXACT)
def whole_norms_reverse(x, g, out):
    """out += derivative of sum(g * `whole_norms`) by x; g [N, F]."""
    for n in range(x.shape[1]):
        channels = x.shape[2]
        for f in range(0, channels, lanes_of(x)):
            left = channels - f
            u = load_part(g, (n, f), left)
            change = _norms_reverse(load_tensor(x, n, f, left), u, u, u)
            store_tensor(add(load_tensor(out, n, f, left), change), out, n, f, left)


@njit(fastmath=EXACT)
def normalise(x, out, inverse):
    """out = x / (|x|^2 + 1); inverse [N, F] = 1 / (|x|^2 + 1)."""
    for n in range(x.shape[1]):
        channels = x.shape[2]
        for f in range(0, channels, lanes_of(x)):
            left = channels - f
            v = load_tensor(x, n, f, left)
            i, a, s = _norms(v)
            scale = 1.0 / (1.0 + i + a + s)
            store_part(scale, inverse, (n, f), left)
            store_tensor(_scale(scale, v), out, n, f, left)


@njit(**_inline)
def _normalised_reverse(normalised, inverse, g):
    """Derivative of sum(g * v / (|v|^2 + 1)) by v, from the normalised v."""
    factor = -1.0 * _dot(g, normalised)
    return add(_scale(inverse, g), _norms_reverse(normalised, factor, factor, factor))


@njit(fastmath=EXACT)
def normalise_reverse(normalised, inverse, g, h, out):
    """out = derivative of sum((g + h) * x / (|x|^2 + 1)) by x, from the normalised x."""
    for n in range(g.shape[1]):
        channels = g.shape[2]
        for f in range(0, channels, lanes_of(g)):
            left = channels - f
            v = load_tensor(normalised, n, f, left)
            u = add(load_tensor(g, n, f, left), load_tensor(h, n, f, left))
            store_tensor(
                _normalised_reverse(v, load_part(inverse, (n, f), left), u), out, n, f, left
            )


@njit(**_inline)
def _load_row(x, f, left):
    """The components of x [9, F]."""
    return (
        load_part(x, (0, f), left), load_part(x, (1, f), left), load_part(x, (2, f), left),
        load_part(x, (3, f), left), load_part(x, (4, f), left), load_part(x, (5, f), left),
        load_part(x, (6, f), left), load_part(x, (7, f), left), load_part(x, (8, f), left),
    )  # fmt: skip


@njit(**_inline)
def _each(u, v):
    """Component by component: u v."""
    return (
        u[0] * v[0], u[1] * v[1], u[2] * v[2], u[3] * v[3], u[4] * v[4], u[5] * v[5], u[6] * v[6],
        u[7] * v[7], u[8] * v[8],
    )  # fmt: skip


@njit(fastmath=EXACT)
def react(y, at_zero, g, symmetric, message, inverse, out):
    """out = C / (|C|^2 + 1) with C = g product(y, message + at_zero y); inverse as in `normalise`.

    message is overwritten by the one with the atom's own part. at_zero [9, F], g [N], and symmetric
    [1], which says what product: a b + b a, or 2 a b.
    """
    for n in range(y.shape[1]):
        channels = y.shape[2]
        for f in range(0, channels, lanes_of(y)):
            left = channels - f
            own = load_tensor(y, n, f, left)
            whole = add(load_tensor(message, n, f, left), _each(_load_row(at_zero, f, left), own))
            store_tensor(whole, message, n, f, left)
            product = _product(_matrix(own), _matrix(whole), symmetric[0])
            v = _scale(item(g, n), _components(product))
            i, a, s = _norms(v)
            scale = 1.0 / (1.0 + i + a + s)
            store_part(scale, inverse, (n, f), left)
            store_tensor(_scale(scale, v), out, n, f, left)


@njit(fastmath=EXACT)
def react_reverse(y, message, at_zero, g, symmetric, reacted, inverse, upstream, by_y, by_m):
    """Derivatives of sum(upstream * `react`) by y and by the neighbours' messages."""
    for n in range(y.shape[1]):
        channels = y.shape[2]
        for f in range(0, channels, lanes_of(y)):
            left = channels - f
            by_c = _normalised_reverse(
                load_tensor(reacted, n, f, left),
                load_part(inverse, (n, f), left),
                load_tensor(upstream, n, f, left),
            )
            u = _components_reverse(_scale(item(g, n), by_c))
            a = _transposed(_matrix(load_tensor(y, n, f, left)))
            b = _transposed(_matrix(load_tensor(message, n, f, left)))
            first, second = _multiply(u, b), _multiply(a, u)
            first = _matrix_reverse(add(first, _multiply(b, u) if symmetric[0] else first))
            second = _matrix_reverse(add(second, _multiply(u, a) if symmetric[0] else second))
            store_tensor(second, by_m, n, f, left)
            own = _each(_load_row(at_zero, f, left), second)
            store_tensor(add(first, own), by_y, n, f, left)


@njit(fastmath=EXACT)
def update(x, change, g, out):
    """out = x + change + g change^2; g [N]."""
    for n in range(x.shape[1]):
        channels = x.shape[2]
        for f in range(0, channels, lanes_of(x)):
            left = channels - f
            v = load_tensor(change, n, f, left)
            m = _matrix(v)
            square = _scale(item(g, n), _components(_multiply(m, m)))
            store_tensor(add(add(load_tensor(x, n, f, left), v), square), out, n, f, left)


@njit(fastmath=EXACT)
def update_reverse(change, g, upstream, out):
    """out = derivative of sum(upstream * `update`) by change."""
    for n in range(change.shape[1]):
        channels = change.shape[2]
        for f in range(0, channels, lanes_of(change)):
            left = channels - f
            m = _transposed(_matrix(load_tensor(change, n, f, left)))
            above = load_tensor(upstream, n, f, left)
            u = _components_reverse(_scale(item(g, n), above))
            by_square = _matrix_reverse(add(_multiply(u, m), _multiply(m, u)))
            store_tensor(add(above, by_square), out, n, f, left)


@njit(fastmath=EXACT)
def weighted_sum(x, weights, bias, out):
    """out [N] = x [N, H] times weights [H], plus bias [1]."""
    for n in range(x.shape[0]):
        size = x.shape[1]
        sums = zeros(x)
        for f in range(0, size, lanes_of(x)):
            sums += load_part(x, (n, f), size - f) * load_part(weights, f, size - f)
        out[n] = total(sums) + bias[0]


@njit(fastmath=EXACT)
def weighted_sum_reverse(g, weights, out):
    """out [N, H] = derivative of sum(g * `weighted_sum`) by x; g [N]."""
    for n in range(g.size):
        for f in range(weights.size):
            out[n, f] = g[n] * weights[f]


@njit(fastmath=EXACT)
def scale_parts(x, scales, out):
    """out[c, n] = x[c, n] * scales[n, l(c)]; scales [N, 3, F]."""
    for n in range(x.shape[1]):
        channels = x.shape[2]
        for f in range(0, channels, lanes_of(x)):
            left = channels - f
            i, a = load_part(scales, (n, 0, f), left), load_part(scales, (n, 1, f), left)
            s = load_part(scales, (n, 2, f), left)
            store_tensor(
                _each((i, a, a, a, s, s, s, s, s), load_tensor(x, n, f, left)), out, n, f, left
            )


@njit(fastmath=EXACT)
def scale_parts_reverse(x, scales, g, by_x, by_scales):
    """Derivatives of sum(g * `scale_parts`) by x and by scales."""
    for n in range(x.shape[1]):
        channels = x.shape[2]
        for f in range(0, channels, lanes_of(x)):
            left = channels - f
            i, a = load_part(scales, (n, 0, f), left), load_part(scales, (n, 1, f), left)
            s = load_part(scales, (n, 2, f), left)
            u = load_tensor(g, n, f, left)
            store_tensor(_each((i, a, a, a, s, s, s, s, s), u), by_x, n, f, left)
            p = _each(u, load_tensor(x, n, f, left))
            store_part(p[0], by_scales, (n, 0, f), left)
            store_part(p[1] + p[2] + p[3], by_scales, (n, 1, f), left)
            store_part(p[4] + p[5] + p[6] + p[7] + p[8], by_scales, (n, 2, f), left)
