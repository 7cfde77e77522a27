"""What the Triton kernels of TensorNet share: nine components in registers, and the splines.

A tensor of an atom and channel is a tuple of its nine components, in the order of
`nnpcalc.models.tensornet`; each is a block of channels (times a block of pairs, or not). Arrays of
atoms are component-major, [9, N, F], so that neighbouring threads read neighbouring channels.

These functions, like all of `triton_*.py`, run compiled on a GPU or, where the environment has
TRITON_INTERPRET=1 before triton is imported, on the CPU in Triton's interpreter.
"""

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl

#: Sizes change from step to step. Triton would compile anew where one is 1 or a multiple of 16 or
#: an array begins at an odd place; nothing is gained by that, since what is read in one go are
#: channels, whose number is a constant.
jit = partial(
    triton.jit,
    do_not_specialize=["n_atoms", "n_pairs", "n_slopes"],
    do_not_specialize_on_alignment=["sender", "slopes"],
)


@triton.jit
def load9(array, at, size, mask):
    """The components array[c * size + at]; zeros where the mask is False."""
    return (
        tl.load(array + at, mask=mask, other=0.0),
        tl.load(array + size + at, mask=mask, other=0.0),
        tl.load(array + 2 * size + at, mask=mask, other=0.0),
        tl.load(array + 3 * size + at, mask=mask, other=0.0),
        tl.load(array + 4 * size + at, mask=mask, other=0.0),
        tl.load(array + 5 * size + at, mask=mask, other=0.0),
        tl.load(array + 6 * size + at, mask=mask, other=0.0),
        tl.load(array + 7 * size + at, mask=mask, other=0.0),
        tl.load(array + 8 * size + at, mask=mask, other=0.0),
    )


@triton.jit
def store9(array, at, size, mask, x):
    """array[c * size + at] = x[c]."""
    tl.store(array + at, x[0], mask=mask)
    tl.store(array + size + at, x[1], mask=mask)
    tl.store(array + 2 * size + at, x[2], mask=mask)
    tl.store(array + 3 * size + at, x[3], mask=mask)
    tl.store(array + 4 * size + at, x[4], mask=mask)
    tl.store(array + 5 * size + at, x[5], mask=mask)
    tl.store(array + 6 * size + at, x[6], mask=mask)
    tl.store(array + 7 * size + at, x[7], mask=mask)
    tl.store(array + 8 * size + at, x[8], mask=mask)


@triton.jit
def add9(x, y):
    """x + y."""
    return (
        x[0] + y[0], x[1] + y[1], x[2] + y[2], x[3] + y[3], x[4] + y[4],
        x[5] + y[5], x[6] + y[6], x[7] + y[7], x[8] + y[8],
    )  # fmt: skip


@triton.jit
def scale9(x, s0, s1, s2):
    """x with the parts I, A and S times a factor each."""
    return (
        x[0] * s0, x[1] * s1, x[2] * s1, x[3] * s1, x[4] * s2,
        x[5] * s2, x[6] * s2, x[7] * s2, x[8] * s2,
    )  # fmt: skip


@triton.jit
def dot_parts(x, y):
    """Sums of x[c] y[c] over the components of I, A and S."""
    return (
        x[0] * y[0],
        x[1] * y[1] + x[2] * y[2] + x[3] * y[3],
        x[4] * y[4] + x[5] * y[5] + x[6] * y[6] + x[7] * y[7] + x[8] * y[8],
    )


@triton.jit
def sum_pairs9(x):
    """Sums over the pairs of a block: [pairs, channels] -> [channels], nine times."""
    return (
        tl.sum(x[0], 0), tl.sum(x[1], 0), tl.sum(x[2], 0), tl.sum(x[3], 0), tl.sum(x[4], 0),
        tl.sum(x[5], 0), tl.sum(x[6], 0), tl.sum(x[7], 0), tl.sum(x[8], 0),
    )  # fmt: skip


@triton.jit
def norms3(x):
    """Squared Frobenius norms of I Id, A and S."""
    return (
        3.0 * x[0] * x[0],
        2.0 * (x[1] * x[1] + x[2] * x[2] + x[3] * x[3]),
        2.0 * (x[4] * x[4] + x[4] * x[7] + x[7] * x[7])
        + 2.0 * (x[5] * x[5] + x[6] * x[6] + x[8] * x[8]),
    )


@triton.jit
def norms3_reverse(x, g0, g1, g2):
    """Derivative of sum_l g_l * `norms3`(x)[l] by x."""
    return (
        6.0 * g0 * x[0], 4.0 * g1 * x[1], 4.0 * g1 * x[2], 4.0 * g1 * x[3],
        g2 * (4.0 * x[4] + 2.0 * x[7]), 4.0 * g2 * x[5], 4.0 * g2 * x[6],
        g2 * (4.0 * x[7] + 2.0 * x[4]), 4.0 * g2 * x[8],
    )  # fmt: skip


@triton.jit
def normalise(x):
    """x / (|x|^2 + 1), and 1 / (|x|^2 + 1)."""
    n0, n1, n2 = norms3(x)
    inverse = 1.0 / (n0 + n1 + n2 + 1.0)
    return scale9(x, inverse, inverse, inverse), inverse


@triton.jit
def normalise_reverse(normal, inverse, g):
    """Derivative of sum(g * x / (|x|^2 + 1)) by x, from the normalised x."""
    p0, p1, p2 = dot_parts(g, normal)
    factor = -(p0 + p1 + p2)
    return add9(
        scale9(g, inverse, inverse, inverse), norms3_reverse(normal, factor, factor, factor)
    )


@triton.jit
def matrix(x):
    """Components -> the 3x3 tensor, row by row."""
    return (
        x[0] + x[4], x[5] - x[3], x[6] + x[2],
        x[5] + x[3], x[0] + x[7], x[8] - x[1],
        x[6] - x[2], x[8] + x[1], x[0] - x[4] - x[7],
    )  # fmt: skip


@triton.jit
def matrix_reverse(t):
    """Transpose of `matrix` as a linear map."""
    return (
        t[0] + t[4] + t[8], t[7] - t[5], t[2] - t[6], t[3] - t[1],
        t[0] - t[8], t[1] + t[3], t[2] + t[6], t[4] - t[8], t[5] + t[7],
    )  # fmt: skip


@triton.jit
def components(t):
    """3x3 tensor -> components, the inverse of `matrix`."""
    trace = (t[0] + t[4] + t[8]) / 3.0
    return (
        trace, 0.5 * (t[7] - t[5]), 0.5 * (t[2] - t[6]), 0.5 * (t[3] - t[1]),
        t[0] - trace, 0.5 * (t[1] + t[3]), 0.5 * (t[2] + t[6]), t[4] - trace, 0.5 * (t[5] + t[7]),
    )  # fmt: skip


@triton.jit
def components_reverse(g):
    """Transpose of `components` as a linear map."""
    third = (g[0] - g[4] - g[7]) / 3.0
    return (
        third + g[4], 0.5 * (g[5] - g[3]), 0.5 * (g[6] + g[2]),
        0.5 * (g[5] + g[3]), third + g[7], 0.5 * (g[8] - g[1]),
        0.5 * (g[6] - g[2]), 0.5 * (g[8] + g[1]), third,
    )  # fmt: skip


@triton.jit
def transpose(a):
    """Transpose of a 3x3 tensor."""
    return (a[0], a[3], a[6], a[1], a[4], a[7], a[2], a[5], a[8])


@triton.jit
def multiply(a, b):
    """Product of 3x3 tensors."""
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


@triton.jit
def product(y, m, SYMMETRIC: tl.constexpr):
    """Components of Y M + M Y, or of 2 Y M."""
    a, b = matrix(y), matrix(m)
    c = multiply(a, b)
    if SYMMETRIC:
        c = add9(c, multiply(b, a))
    else:
        c = add9(c, c)
    return components(c)


@triton.jit
def product_reverse(y, m, g, SYMMETRIC: tl.constexpr):
    """Derivatives of sum(g * `product`) by y and by m."""
    a, b, c = transpose(matrix(y)), transpose(matrix(m)), components_reverse(g)
    by_y, by_m = multiply(c, b), multiply(a, c)
    if SYMMETRIC:
        by_y, by_m = add9(by_y, multiply(b, c)), add9(by_m, multiply(c, a))
    else:
        by_y, by_m = add9(by_y, by_y), add9(by_m, by_m)
    return matrix_reverse(by_y), matrix_reverse(by_m)


@triton.jit
def interval(distance, SCALE: tl.constexpr, KNOTS: tl.constexpr):
    """First of the four table rows around each distance, and the place within, 0 to 1.

    SCALE is that of `nnpcalc.kernels.table.Grid`.
    """
    place = SCALE * (distance / (distance + 1.0))
    knot = tl.minimum(tl.maximum(tl.floor(place), 0.0), KNOTS - 2.0)
    return 2 * knot.to(tl.int32), place - knot


@triton.jit
def hermite(t):
    """Weights of the four rows, as in `nnpcalc.kernels.table.hermite_weights`."""
    s = 1.0 - t
    return (1.0 + 2.0 * t) * s * s, t * s * s, t * t * (3.0 - 2.0 * t), -t * t * s


@triton.jit
def hermite_slopes(t, distance, SCALE: tl.constexpr):
    """Derivatives of the weights by the distance."""
    s, far = 1.0 - t, distance + 1.0
    per_angstrom = SCALE / (far * far)
    steep = 6.0 * t * s * per_angstrom
    left, right = s * (s - 2.0 * t) * per_angstrom, t * (t - 2.0 * s) * per_angstrom
    return -steep, left, steep, right


@triton.jit
def rows4(table, at, mask, WIDTH: tl.constexpr):
    """Four consecutive rows of the table."""
    return (
        tl.load(table + at, mask=mask, other=0.0),
        tl.load(table + at + WIDTH, mask=mask, other=0.0),
        tl.load(table + at + 2 * WIDTH, mask=mask, other=0.0),
        tl.load(table + at + 3 * WIDTH, mask=mask, other=0.0),
    )


@triton.jit
def weighted(rows, w):
    """The rows [pairs, channels] times the weights [pairs], added."""
    return (
        w[0][:, None] * rows[0]
        + w[1][:, None] * rows[1]
        + w[2][:, None] * rows[2]
        + w[3][:, None] * rows[3]
    )
