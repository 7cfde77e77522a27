"""Radial functions of a distance, tabulated: cubic Hermite splines on a uniform grid."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def tabulate(function: Callable[[Tensor], Tensor], knots: Tensor) -> Tensor:
    """Values and slopes (per grid step) of a radial function at the knots.

    Differentiable with respect to whatever the function depends on.

    Args:
        function: distances [K] -> [K, 3, F], smooth.
        knots: uniform grid [K] in Å.

    Returns:
        [2 K, 3 F]: row 2 n holds the value at knot n, row 2 n + 1 the slope times the grid step.
    """
    with torch.enable_grad():
        knots = knots.detach().requires_grad_(True)
        values = function(knots)
        # The gradient is linear in the vector it is contracted with; its derivative by that
        # vector is the slope of every value at once.
        vector = torch.zeros_like(values, requires_grad=True)
        (gradient,) = torch.autograd.grad(values, knots, vector, create_graph=True)
        step = (knots[1] - knots[0]).detach().expand_as(knots)
        (slopes,) = torch.autograd.grad(gradient, vector, step, create_graph=True)
    return torch.stack([values, slopes], dim=1).flatten(2).flatten(0, 1)


def hermite_weights(distances: Tensor, step: float, n_knots: int) -> tuple[Tensor, Tensor]:
    """Weights of the four table rows around each distance, and the interval it lies in.

    With t the place within the interval: value and slope on its left get
    ``(1 + 2t)(1 - t)^2`` and ``t (1 - t)^2``, those on its right ``t^2 (3 - 2t)`` and
    ``t^2 (t - 1)``.

    Args:
        distances: [P] in Å, from 0 to ``step * (n_knots - 1)``.
        step: grid step in Å.
        n_knots: number of knots.

    Returns:
        weights [P, 4], differentiable, and intervals [P], int64.
    """
    scaled = distances / step
    interval = scaled.detach().floor().clamp_(0, n_knots - 2)
    t = scaled - interval
    s = 1.0 - t
    weights = torch.stack(
        [(1.0 + 2.0 * t) * s * s, t * s * s, t * t * (3.0 - 2.0 * t), -t * t * s], dim=-1
    )
    return weights, interval.to(torch.int64)


def hermite_slopes(distances: Tensor, step: float, n_knots: int) -> Tensor:
    """Derivatives of the weights of `hermite_weights` by the distance [P, 4], 1/Å."""
    scaled = distances / step
    t = scaled - scaled.floor().clamp_(0, n_knots - 2)
    s = 1.0 - t
    return torch.stack([-6.0 * t * s, s * (s - 2.0 * t), 6.0 * t * s, t * (t - 2.0 * s)], -1) / step
