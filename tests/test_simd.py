"""Vectors in numba loops: loaded, stored, cut off at the end of a row, and reckoned with."""

import numpy as np
import pytest
from numba import njit

from nnpcalc.kernels.simd import (
    LANES,
    blocks,
    exp,
    item,
    lanes_of,
    load,
    load_part,
    store,
    store_part,
    total,
    zeros,
)


@njit
def _reckon(x, y, out):
    """out = (2 x - y) / (y + 3) + x y, row by row of [N, 3, F]; the sums of these rows [N, 3]."""
    sums = np.zeros(x.shape[:2], x.dtype)
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            for f in range(0, x.shape[2], lanes_of(x)):
                left = x.shape[2] - f
                a, b = load_part(x, (n, c, f), left), load_part(y, (n, c, f), left)
                result = (2.0 * a - b) / (b + 3.0)
                result += a * b
                store_part(result, out, (n, c, f), left)
                sums[n, c] += total(result)
    return sums


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 5, 8, 15, 16, 17, 40])
def test_arithmetic_to_the_end_of_a_row(channels, dtype):
    rng = np.random.default_rng(channels)
    x, y = rng.uniform(0.5, 1.0, (2, 4, 3, channels)).astype(dtype)
    room = np.full((5, 3, channels), 7.0, dtype)
    sums = _reckon(x, y, room[:4])
    expected = (2 * x - y) / (y + 3) + x * y
    np.testing.assert_allclose(room[:4], expected, rtol=1e-6)
    assert (room[4] == 7.0).all()  # nothing beyond the end
    # after the last channel x and y are zeros, and so is the result
    np.testing.assert_allclose(sums, expected.sum(-1), rtol=1e-5)


@njit
def _copy(x, out, k):
    one = load(x, k)
    store(one + zeros(x), out, (0,))
    return item(x, k), item(x, (k + 1,))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_vectors(dtype):
    n_blocks, lanes = blocks(33, dtype)
    assert (
        lanes == LANES[np.dtype(dtype).itemsize] and (n_blocks - 1) * lanes < 33 <= n_blocks * lanes
    )
    x, out = np.arange(3 * lanes, dtype=dtype), np.full(lanes + 1, -1, dtype)
    assert _copy(x, out, 3) == (3.0, 4.0)
    assert np.array_equal(out[:-1], x[3 : 3 + lanes]) and out[-1] == -1


def test_operators_of_other_types_are_as_they_were():
    assert njit(lambda a, b: (a + b, a - b, a * b, a / b))(6, 3) == (9, 3, 18, 2.0)


@njit
def _exponentials(x, out):
    for f in range(0, x.size, lanes_of(x)):
        left = x.size - f
        store_part(exp(load_part(x, f, left)), out, f, left)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponential_function(dtype):
    """To the last digit or two of a number, and within its range for any argument."""
    largest = {np.float32: 86.0, np.float64: 707.0}[dtype]
    x = np.concatenate([np.linspace(-largest, largest, 5001), np.linspace(-1, 1, 5001)])
    x = x.astype(dtype)
    out = np.empty_like(x)
    _exponentials(x, out)
    exact = np.exp(x.astype(np.longdouble))
    assert float((np.abs(out - exact) / exact).max()) < np.finfo(dtype).eps
    beyond, out = np.array([-1e4, 0.0, 1e4], dtype), np.empty(3, dtype)
    _exponentials(beyond, out)
    assert 0.0 < out[0] < 1e-37 and out[1] == 1.0 and np.isfinite(out[2])
