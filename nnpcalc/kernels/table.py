"""Radial functions of a distance, tabulated: cubic Hermite splines on a uniform grid."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: Largest errors of a table for inference: of a value, in units of the largest value, and of a
#: slope, in units of the largest slope. Float32 forces are then as good as the eager network's.
TOLERANCES = {torch.float32: (2e-6, 2e-4), torch.float64: (1e-8, 3e-6)}

#: Nuclei never come nearer than this, Å: what a table does below does not matter.
NEAREST = 0.3

MOST_KNOTS = 16384

#: Tables grow by multiples of this. The smaller they are, the more of them the cache holds.
MORE_KNOTS = 128


class TableError(ValueError):
    """Radial functions that no table of a reasonable size represents well enough."""


def tabulate(function: Callable[[Tensor], Tensor], knots: Tensor) -> Tensor:
    """Values and slopes (per grid step) of a radial function at the knots.

    Differentiable with respect to whatever the function depends on.

    Args:
        function: distances [K] -> [K, 3, F], smooth.
        knots: uniform grid [K] in Å.

    Returns:
        [2 K, 3 F]: row 2 n holds the value at knot n, row 2 n + 1 the slope times the grid step.
    """
    step = (knots[1] - knots[0]).detach().expand_as(knots)
    values, slopes = _with_slopes(function, knots, step)
    return torch.stack([values, slopes], dim=1).flatten(2).flatten(0, 1)


def _with_slopes(
    function: Callable[[Tensor], Tensor], points: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor]:
    """Values and derivatives times ``factors`` [K] at points [K], both [K, 3, F]."""
    with torch.enable_grad():
        points = points.detach().requires_grad_(True)
        values = function(points)
        # The gradient is linear in the vector it is contracted with; its derivative by that
        # vector is the slope of every value at once.
        vector = torch.zeros_like(values, requires_grad=True)
        (gradient,) = torch.autograd.grad(values, points, vector, create_graph=True)
        (slopes,) = torch.autograd.grad(gradient, vector, factors, create_graph=True)
    return values, slopes


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


def table_errors(function: Callable[[Tensor], Tensor], table: Tensor, step: float) -> Tensor:
    """Largest error of a table's values and of its slopes [2], relative as in `TOLERANCES`.

    Looked for at the middle of each interval and where the slopes of a cubic spline are worst.

    Args:
        function: what was tabulated, distances [K] -> [K, 3, F].
        table: [2 K, 3 F], see `tabulate`.
        step: grid step in Å.
    """
    n_knots = table.shape[0] // 2
    within = table.new_tensor([0.2113, 0.5, 0.7887])  # 0.5 and 0.5 +- 1 / sqrt(12)
    points = ((torch.arange(n_knots - 1).to(table)[:, None] + within) * step).flatten()
    points = points[points > NEAREST]
    values, slopes = _with_slopes(function, points, torch.ones_like(points))
    weights, interval = hermite_weights(points, step, n_knots)
    rows = table[2 * interval[:, None] + torch.arange(4, device=table.device)]
    found = torch.stack(
        [(w.unsqueeze(2) * rows).sum(1) for w in (weights, hermite_slopes(points, step, n_knots))]
    )
    exact = torch.stack([values, slopes]).detach().flatten(2)
    largest = exact.abs().amax((1, 2)).clamp_min(torch.finfo(exact.dtype).tiny)
    return (found - exact).abs().amax((1, 2)) / largest  # 0 of a layer that is zero


def inference_tables(
    stages: Sequence[Any], cutoff: float, dtype: torch.dtype, n_knots: int | None = None
) -> list[Tensor]:
    """Tables of all stages of a network, good to `TOLERANCES` or of the size asked for.

    They are computed in float64 whatever the precision of the parameters, because a float32 slope
    is good to 1e-4 only.

    Args:
        stages: modules with a method ``radial_functions``, distances [K] -> [K, 3, F].
        cutoff: Å, the last knot.
        dtype: of the tables.
        n_knots: None takes a multiple of `MORE_KNOTS` that is just enough for all stages.

    Returns:
        [2 K, 3 F] for each stage, without a graph.

    Raises:
        TableError: `MOST_KNOTS` are not enough, or the functions are not finite.
    """
    functions = [copy.deepcopy(stage).double().radial_functions for stage in stages]
    device = next(stages[0].parameters()).device
    allowed = torch.tensor(TOLERANCES[dtype], dtype=torch.float64, device=device)
    size = n_knots or 2 * MORE_KNOTS
    while True:
        step = cutoff / (size - 1)
        knots = torch.arange(size, dtype=torch.float64, device=device) * step
        tables = [tabulate(function, knots).detach() for function in functions]
        if n_knots:
            return [table.to(dtype) for table in tables]
        errors = [table_errors(f, t, step) for f, t in zip(functions, tables, strict=True)]
        excess = torch.stack(errors).amax(0) / allowed
        if not bool(excess.isfinite().all()):
            raise TableError("the radial functions are not finite: the parameters are broken")
        if float(excess.max()) <= 1.0:
            return [table.to(dtype) for table in tables]
        # errors of values fall with the fourth power of the step, those of slopes with the third
        growth = float((excess ** torch.tensor([0.25, 1.0 / 3.0]).to(excess)).max())
        size = max(size + MORE_KNOTS, MORE_KNOTS * math.ceil(size * growth / MORE_KNOTS))
        if size > MOST_KNOTS:
            raise TableError(
                f"the radial functions are too steep for tables: {size} knots would be needed "
                f"where {MOST_KNOTS} are allowed"
            )


def hermite_slopes(distances: Tensor, step: float, n_knots: int) -> Tensor:
    """Derivatives of the weights of `hermite_weights` by the distance [P, 4], 1/Å."""
    scaled = distances / step
    t = scaled - scaled.floor().clamp_(0, n_knots - 2)
    s = 1.0 - t
    return torch.stack([-6.0 * t * s, s * (s - 2.0 * t), 6.0 * t * s, t * (t - 2.0 * s)], -1) / step
