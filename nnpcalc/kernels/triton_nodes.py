"""Triton kernels over the atoms and channels of TensorNet: what happens between matrix products.

Every thread does all nine components of one atom and channel. Steps that follow each other without
a matrix product between them are one kernel, so that nothing is written only to be read again: the
normalisation at the start of a layer is done where its input is made. After the last layer the
features themselves and the norms of their parts are wanted; LAST says so.

Shapes: x and everything of its kind [9, N, F], inverse [N, F], scales and norms [N, 3, F], g [N].
Indices into them are 64 bit: [9, N, F] passes 2^31 at two million atoms.
"""

from __future__ import annotations

import triton.language as tl

from nnpcalc.kernels.triton_algebra import (
    add9,
    dot_parts,
    jit,
    load9,
    normalise,
    normalise_reverse,
    norms3,
    norms3_reverse,
    product,
    product_reverse,
    scale9,
    store9,
)


@jit
def _place(n_atoms, F: tl.constexpr, BLOCK: tl.constexpr):
    """Index in [N, F], its mask, N F, the atom, and the index of the first part in [N, 3, F]."""
    total = tl.cast(n_atoms, tl.int64) * F
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n = e // F
    return e, e < total, total, n, e + 2 * n * F


@jit
def _load3(array, at, mask, F: tl.constexpr):
    return (
        tl.load(array + at, mask=mask, other=0.0),
        tl.load(array + at + F, mask=mask, other=0.0),
        tl.load(array + at + 2 * F, mask=mask, other=0.0),
    )


@jit
def _finish(x, out, summary, e, at, total, inside, F: tl.constexpr, LAST: tl.constexpr):
    """Write x and its norms, or the normalised x and 1 / (|x|^2 + 1)."""
    if LAST:
        n0, n1, n2 = norms3(x)
        store9(out, e, total, inside, x)
        tl.store(summary + at, n0, mask=inside)
        tl.store(summary + at + F, n1, mask=inside)
        tl.store(summary + at + 2 * F, n2, mask=inside)
    else:
        normal, inverse = normalise(x)
        store9(out, e, total, inside, normal)
        tl.store(summary + e, inverse, mask=inside)


@jit
def _finish_reverse(out, summary, g, more, e, at, total, inside, F: tl.constexpr,
                    LAST: tl.constexpr):  # fmt: skip
    """Derivative by the x of `_finish`: from that by the norms in g [N, 3, F], or from those by
    the normalised x, g + more (each [9, N, F]).
    """
    x = load9(out, e, total, inside)
    if LAST:
        g0, g1, g2 = _load3(g, at, inside, F)
        by_x = norms3_reverse(x, g0, g1, g2)
    else:
        inverse = tl.load(summary + e, mask=inside, other=0.0)
        both = add9(load9(g, e, total, inside), load9(more, e, total, inside))
        by_x = normalise_reverse(x, inverse, both)
    return by_x


@jit
def scale(
    mixed, scales, out, summary, n_atoms, F: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr
):
    """x = mixed with its parts scaled; out and summary as in `_finish`."""
    e, inside, total, _, at = _place(n_atoms, F, BLOCK)
    s0, s1, s2 = _load3(scales, at, inside, F)
    x = scale9(load9(mixed, e, total, inside), s0, s1, s2)
    _finish(x, out, summary, e, at, total, inside, F, LAST)


@jit
def scale_reverse(
    mixed, scales, out, summary, g, more, by_mixed, by_scales, n_atoms,
    F: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Derivatives by mixed and by scales of `scale`; g and more as in `_finish_reverse`."""
    e, inside, total, _, at = _place(n_atoms, F, BLOCK)
    by_x = _finish_reverse(out, summary, g, more, e, at, total, inside, F, LAST)
    s0, s1, s2 = _load3(scales, at, inside, F)
    store9(by_mixed, e, total, inside, scale9(by_x, s0, s1, s2))
    p0, p1, p2 = dot_parts(by_x, load9(mixed, e, total, inside))
    tl.store(by_scales + at, p0, mask=inside)
    tl.store(by_scales + at + F, p1, mask=inside)
    tl.store(by_scales + at + 2 * F, p2, mask=inside)


@jit
def update(
    normal, change, g, out, summary, n_atoms,
    F: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x = normal + change + g change^2; out and summary as in `_finish`."""
    e, inside, total, n, at = _place(n_atoms, F, BLOCK)
    d = load9(change, e, total, inside)
    half = 0.5 * tl.load(g + n, mask=inside, other=0.0)
    x = add9(load9(normal, e, total, inside), d)
    x = add9(x, scale9(product(d, d, True), half, half, half))
    _finish(x, out, summary, e, at, total, inside, F, LAST)


@jit
def update_reverse(
    change, prefactor, out, summary, g, more, by_x, by_change, n_atoms,
    F: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Derivatives by x (and so by normal) and by change of `update`."""
    e, inside, total, n, at = _place(n_atoms, F, BLOCK)
    upstream = _finish_reverse(out, summary, g, more, e, at, total, inside, F, LAST)
    store9(by_x, e, total, inside, upstream)
    d = load9(change, e, total, inside)
    # d is both factors of g/2 product(d, d), and the derivatives by either are the same
    by_d, _ = product_reverse(d, d, upstream, True)
    k = tl.load(prefactor + n, mask=inside, other=0.0)
    store9(by_change, e, total, inside, add9(upstream, scale9(by_d, k, k, k)))


@jit
def react_reverse(
    y, message, at_zero, prefactor, reacted, inverse, g, by_y, by_message, n_atoms,
    F: tl.constexpr, SYMMETRIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Derivatives of the atoms' part of `triton_pairs.interact` by y and by message.

    g is the derivative by reacted; that by y has the atom's own message in it.
    """
    e, inside, total, n, _ = _place(n_atoms, F, BLOCK)
    f = e - n * F
    shrink = tl.load(inverse + e, mask=inside, other=0.0)
    k = tl.load(prefactor + n, mask=inside, other=0.0)
    normal, upstream = load9(reacted, e, total, inside), load9(g, e, total, inside)
    by_c = scale9(normalise_reverse(normal, shrink, upstream), k, k, k)
    by_left, by_right = product_reverse(
        load9(y, e, total, inside), load9(message, e, total, inside), by_c, SYMMETRIC
    )
    store9(by_message, e, total, inside, by_right)
    z0 = tl.load(at_zero + f, mask=inside, other=0.0)
    z1 = tl.load(at_zero + F + f, mask=inside, other=0.0)
    z2 = tl.load(at_zero + 4 * F + f, mask=inside, other=0.0)
    store9(by_y, e, total, inside, add9(by_left, scale9(by_right, z0, z1, z2)))
