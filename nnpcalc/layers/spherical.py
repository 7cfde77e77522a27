"""Functions of a distance and an angle: spherical Bessel functions and Legendre polynomials."""

import math
from itertools import pairwise
from typing import List

import torch
from torch import Tensor, nn

UNIT = 2.0**-53


def spherical_bessel(order: int, x: Tensor) -> Tensor:
    """``j_l(x)`` for x >= 0, accurate to rounding in float32 too, any number of derivatives.

    The recurrence ``j_{l+1} = (2l + 1) / x j_l - j_{l-1}`` loses all digits where x is well below
    the order; there the power series is summed, up to the order 12.
    """
    switch = 0.5 * order + 1.0
    small = x < switch
    edge = torch.full_like(x, switch)
    low, high = torch.where(small, x, edge), torch.where(small, edge, x)
    y = 0.5 * low * low
    series = torch.ones_like(x)
    for k in range(16, 0, -1):
        series = 1.0 - y / float(k * (2 * order + 2 * k + 1)) * series
    for k in range(order):
        series = series * low / float(2 * k + 3)
    below = torch.sin(high) / high
    value = (below - torch.cos(high)) / high
    for n in range(1, order):
        value, below = (2.0 * n + 1.0) / high * value - below, value
    return torch.where(small, series, below if order == 0 else value)


def bessel_roots(n_orders: int, n_roots: int) -> List[List[float]]:
    """The first positive roots of j_l for l = 0 .. n_orders - 1."""
    known = [math.pi * k for k in range(1, n_roots + n_orders)]
    roots = [known[:n_roots]]
    for order in range(1, n_orders):
        # roots of neighbouring orders take turns
        known = [_bisect(order, low, high) for low, high in pairwise(known)]
        roots.append(known[:n_roots])
    return roots


def _bisect(order: int, low: float, high: float) -> float:
    sign = _bessel(order, low) > 0.0
    while True:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            return middle
        if (_bessel(order, middle) > 0.0) == sign:
            low = middle
        else:
            high = middle


def _bessel(order: int, x: float) -> float:
    """j_l for x not far below the order."""
    below = math.sin(x) / x
    value = (below - math.cos(x)) / x
    for n in range(1, order):
        value, below = (2 * n + 1) / x * value - below, value
    return below if order == 0 else value


def legendre(cosines: Tensor, n_orders: int) -> Tensor:
    """Spherical harmonics ``Y_l0 = sqrt((2l + 1) / 4 pi) P_l(cosine)``: [T] -> [T, n_orders]."""
    values = [torch.ones_like(cosines), cosines]
    for n in range(1, n_orders - 1):
        values.append(((2 * n + 1) * cosines * values[n] - n * values[n - 1]) / float(n + 1))
    scaled: List[Tensor] = []
    for n in range(n_orders):
        scaled.append(values[n] * math.sqrt((2 * n + 1) / (4.0 * math.pi)))
    return torch.stack(scaled, dim=-1)


class SphericalBesselBasis(nn.Module):
    """``sqrt(2) / |j_{l+1}(z_ln)| j_l(z_ln d / r_c)``, z_ln the n-th root of j_l: each is 0 at r_c.

    Gasteiger et al., arXiv 2003.03123, eq. 6, with the units of r_c. No cutoff function.

    Args:
        n_angular: number of orders l, from 0, at most 12.
        n_radial: number of roots for each.
        cutoff: r_c in Å.
    """

    roots: Tensor
    norms: Tensor

    def __init__(self, n_angular: int, n_radial: int, cutoff: float) -> None:
        super().__init__()
        if not 1 <= n_angular <= 12 or n_radial < 1:
            raise ValueError(
                f"a spherical basis has 1 to 12 angular and at least 1 radial functions, "
                f"got {n_angular} and {n_radial}"
            )
        self.n_angular, self.unit = n_angular, UNIT
        self.cutoff = float(cutoff)
        roots = bessel_roots(n_angular, n_radial)
        norms = [[2.0**0.5 / abs(_bessel(n + 1, z)) for z in row] for n, row in enumerate(roots)]
        # as whole numbers of 2^-53, which no change of the model's dtype rounds
        self.register_buffer("roots", _whole(roots), persistent=False)
        self.register_buffer("norms", _whole(norms), persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        """Distances [P] in Å -> basis values [P, n_angular, n_radial]."""
        x = (distances / self.cutoff).unsqueeze(-1)
        roots = (self.roots.to(torch.float64) * self.unit).to(x.dtype)
        norms = (self.norms.to(torch.float64) * self.unit).to(x.dtype)
        values: List[Tensor] = []
        for n in range(self.n_angular):
            values.append(norms[n] * spherical_bessel(n, roots[n] * x))
        return torch.stack(values, dim=1)


def _whole(values: List[List[float]]) -> Tensor:
    return torch.tensor([[round(value / UNIT) for value in row] for row in values])
