"""LayerNorm and two linear layers with SiLU after each, in numba, and the reverse.

Both perceptrons of TensorNet's inference are of this kind, up to the last row of its head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from torch import nn

from nnpcalc.kernels.rows import linear, packed, padded
from nnpcalc.kernels.simd import EXACT, exp, lanes_of, load_part, store_part, total, zeros


class Perceptron(NamedTuple):
    """Parameters: K inputs, H1 and H2 results of the linear layers.

    Attributes:
        scale, shift, epsilon: of the LayerNorm [K], [K], [1].
        first, second: packed matrices [K, H1] and [H1, H2].
        first_back, second_back: their transposes, packed.
        first_bias, second_bias: padded.
        nothing: zeros, as many as the widest bias has.
    """

    scale: np.ndarray
    shift: np.ndarray
    epsilon: np.ndarray
    first: np.ndarray
    first_bias: np.ndarray
    first_back: np.ndarray
    second: np.ndarray
    second_bias: np.ndarray
    second_back: np.ndarray
    nothing: np.ndarray

    @staticmethod
    def of(norm: nn.LayerNorm, first: nn.Linear, second: nn.Linear) -> Perceptron:
        """Copies of the parameters of torch's modules."""

        def array(parameter: Any) -> np.ndarray:
            # not a view: share_memory, say, frees the memory that a parameter had
            return parameter.detach().numpy().copy()

        weights = [array(layer.weight) for layer in (first, second)]
        widest = max(size for weight in weights for size in weight.shape)
        return Perceptron(
            array(norm.weight),
            array(norm.bias),
            np.array([norm.eps], weights[0].dtype),
            packed(weights[0].T),
            padded(array(first.bias)),
            packed(weights[0]),
            packed(weights[1].T),
            padded(array(second.bias)),
            packed(weights[1]),
            padded(np.zeros(widest, weights[0].dtype)),
        )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """K, H1 and H2."""
        return self.scale.size, self.first_back.shape[1], self.second_back.shape[1]


class Activations(NamedTuple):
    """What `run` keeps for `reverse`.

    Attributes:
        normal: the input with mean 0 and variance 1 [N, K]; inverse: 1 / its deviation [N].
        scaled: normal, scaled and shifted; later the derivative by it [N, K].
        one, two: what the linear layers say after SiLU [N, H1], [N, H2].
        one_slope, two_slope: derivatives of these SiLU.
        by_one: derivative by one.
    """

    normal: np.ndarray
    inverse: np.ndarray
    scaled: np.ndarray
    one: np.ndarray
    one_slope: np.ndarray
    two: np.ndarray
    two_slope: np.ndarray
    by_one: np.ndarray

    @staticmethod
    def room(n: int, sizes: tuple[int, int, int], new: Callable[..., np.ndarray]) -> Activations:
        """For n rows; new makes an array of a shape."""
        inputs, one, two = ((n, size) for size in sizes)
        shapes = (inputs, (n,), inputs, one, one, two, two, one)
        return Activations(*(new(*shape) for shape in shapes))


@njit(fastmath=EXACT)
def layer_norm(x, scale, shift, epsilon, normal, inverse, out):
    """out [N, K] = scale normal + shift with normal = (x - mean) inverse."""
    for n in range(x.shape[0]):
        size, lanes = x.shape[1], lanes_of(x)
        sums = zeros(x)
        for f in range(0, size, lanes):
            sums += load_part(x, (n, f), size - f)
        mean = total(sums) / size
        for f in range(size):
            normal[n, f] = x[n, f] - mean
        squares = zeros(x)
        for f in range(0, size, lanes):
            one = load_part(normal, (n, f), size - f)
            squares += one * one
        factor = 1.0 / np.sqrt(total(squares) / size + epsilon[0])
        inverse[n] = factor
        for f in range(size):
            normal[n, f] *= factor
            out[n, f] = normal[n, f] * scale[f] + shift[f]


@njit(fastmath=EXACT)
def layer_norm_reverse(g, scale, normal, inverse, out):
    """out [N, K] = derivative of sum(g * `layer_norm`) by x."""
    for n in range(g.shape[0]):
        size = g.shape[1]
        plain, along = zeros(g), zeros(g)
        for f in range(0, size, lanes_of(g)):
            left = size - f
            u = load_part(g, (n, f), left) * load_part(scale, f, left)
            plain += u
            along += u * load_part(normal, (n, f), left)
        mean, slope, factor = total(plain) / size, total(along) / size, inverse[n]
        for f in range(size):
            out[n, f] = factor * (g[n, f] * scale[f] - mean - normal[n, f] * slope)


@njit(fastmath=EXACT)
def silu(x, slope):
    """x [N, H] becomes x / (1 + exp(-x)); slope is the derivative of that."""
    for n in range(x.shape[0]):
        size = x.shape[1]
        for f in range(0, size, lanes_of(x)):
            left = size - f
            h = load_part(x, (n, f), left)
            share = 1.0 / (1.0 + exp(-1.0 * h))
            store_part(h * share, x, (n, f), left)
            store_part(share * (1.0 + h * (1.0 - share)), slope, (n, f), left)


@njit(fastmath=EXACT)
def times(x, y):
    """x *= y, both [N, H]."""
    for n in range(x.shape[0]):
        size = x.shape[1]
        for f in range(0, size, lanes_of(x)):
            left = size - f
            product = load_part(x, (n, f), left) * load_part(y, (n, f), left)
            store_part(product, x, (n, f), left)


@njit(fastmath=EXACT)
def run(p, x, kept):
    """kept.two [N, H2] = the perceptron of x [N, K]."""
    layer_norm(x, p.scale, p.shift, p.epsilon, kept.normal, kept.inverse, kept.scaled)
    linear(kept.scaled, p.first, p.first_bias, kept.one)
    silu(kept.one, kept.one_slope)
    linear(kept.one, p.second, p.second_bias, kept.two)
    silu(kept.two, kept.two_slope)


@njit(fastmath=EXACT)
def reverse(p, g, kept, out):
    """out [N, K] = derivative of sum(g * `run`) by x; g [N, H2] is used up."""
    times(g, kept.two_slope)
    linear(g, p.second_back, p.nothing, kept.by_one)
    times(kept.by_one, kept.one_slope)
    linear(kept.by_one, p.first_back, p.nothing, kept.scaled)
    layer_norm_reverse(kept.scaled, p.scale, kept.normal, kept.inverse, out)
