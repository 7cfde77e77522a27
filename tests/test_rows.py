"""Rows times a fixed matrix, and the perceptrons made of it, are those of torch."""

import numpy as np
import pytest
import torch
from torch import nn

from nnpcalc.kernels import perceptron
from nnpcalc.kernels.perceptron import Activations, Perceptron
from nnpcalc.kernels.rows import FEW, ROWS, linear, mix, packed, padded

ERROR = {np.float32: 3e-6, np.float64: 1e-14}  # relative to the largest sum of products


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("rows", "depth", "columns"),
    [(1, 1, 1), (ROWS, 16, 64), (ROWS + 1, 5, 3), (21, 24, 70), (197, 64, 192)],
)
def test_linear(rows, depth, columns, dtype):
    rng = np.random.default_rng(rows)
    x, weight, bias = (
        rng.normal(size=size).astype(dtype)
        for size in ((rows, depth), (depth, columns), (columns,))
    )
    out = np.full((rows + 1, columns), 7.0, dtype)  # a row more, which must stay as it is
    linear(x, packed(weight), padded(bias), out[:rows])
    expected = x.astype(np.float64) @ weight + bias
    assert np.abs(out[:rows] - expected).max() < ERROR[dtype] * (1.0 + np.abs(expected).max())
    assert (out[rows] == 7.0).all()


def test_a_row_has_the_same_bits_wherever_it_stands():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(10 * ROWS + FEW + 2, 40)).astype(np.float32)
    weight, bias = packed(rng.normal(size=(40, 72)).astype(np.float32)), padded(np.zeros(72, "f"))
    whole = np.empty((len(x), 72), np.float32)
    linear(x, weight, bias, whole)
    for first, last in ((0, 1), (4, 9), (11, 11 + FEW), (20, 34), (7, len(x))):
        part = np.empty((last - first, 72), np.float32)
        linear(x[first:last], weight, bias, part)
        assert np.array_equal(part, whole[first:last])


def test_mix():
    rng = np.random.default_rng(2)
    x, weight = rng.normal(size=(9, 45, 40)), rng.normal(size=(3, 40, 40))
    out, parts = np.empty_like(x), (slice(0, 1), slice(1, 4), slice(4, 9))
    mix(x, packed(weight), padded(np.zeros(40)), out)
    expected = np.concatenate([x[part] @ w for part, w in zip(parts, weight, strict=True)])
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 3e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("sizes", [(64, 128, 192), (10, 20, 30), (22, 11, 5)])
def test_perceptron_and_its_reverse(sizes, dtype, error):
    torch.manual_seed(1)
    norm = nn.LayerNorm(sizes[0]).to(dtype)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -1.0, 1.0)
    first, second = nn.Linear(*sizes[:2]).to(dtype), nn.Linear(*sizes[1:]).to(dtype)
    x = (5.0 * torch.rand(7, sizes[0], dtype=dtype)).requires_grad_(True)
    expected = nn.functional.silu(second(nn.functional.silu(first(norm(x)))))
    g = torch.randn_like(expected)
    (by_x,) = torch.autograd.grad((g * expected).sum(), x)

    parameters = Perceptron.of(norm, first, second)
    assert parameters.sizes == sizes
    given = x.detach().numpy()
    kept = Activations.room(7, sizes, lambda *shape: np.empty(shape, given.dtype))
    out = np.empty_like(given)
    perceptron.run(parameters, given, kept)
    assert np.abs(kept.two - expected.detach().numpy()).max() < error
    perceptron.reverse(parameters, g.numpy().copy(), kept, out)
    assert np.abs(out - by_x.numpy()).max() < 3.0 * error
