"""Radial functions of a distance, tabulated: cubic Hermite splines."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Largest errors of a table for inference: of a value, in units of the largest value, and of a
#: slope, in units of the largest slope. Float32 forces are then as good as the eager network's.
TOLERANCES = {torch.float32: (3e-7, 5e-5), torch.float64: (1e-9, 3e-7)}

#: Nuclei never come nearer than this, Å: what a table does below does not matter.
NEAREST = 0.3

MOST_KNOTS = 16384

#: Tables grow by multiples of this. The smaller they are, the more of them the cache holds.
MORE_KNOTS = 64


class TableError(ValueError):
    """Radial functions that no table of a reasonable size represents well enough."""


class Grid(NamedTuple):
    """Knots at equal steps of d / (d + 1 Å), from 0 to the cutoff (Å).

    TensorNet's radial functions vary with exp(-d): they are steep where distances are short, and a
    uniform grid as fine as they need there has three times as many knots, most of them where pairs
    are many and functions flat. What a molecule touches of a table then does not fit into a cache.

    A distance has a place, which is 0 at the first knot, 1 at the second, ...
    """

    cutoff: float
    n_knots: int

    @property
    def scale(self) -> float:
        """The place of d is this times d / (d + 1 Å)."""
        return (self.n_knots - 1) * (self.cutoff + 1.0) / self.cutoff

    def places(self, distances: Tensor) -> Tensor:
        """Places of distances in Å; differentiable."""
        return self.scale * (distances / (distances + 1.0))

    def per_angstrom(self, distances: Tensor) -> Tensor:
        """Derivatives of the places, 1/Å."""
        return self.scale / (distances + 1.0).square()

    def distances(self, places: Tensor) -> Tensor:
        """Distances in Å at places."""
        share = places / self.scale
        return share / (1.0 - share)

    def table(self, function: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """`tabulate` of a radial function; as precise and where another tensor is."""
        knots = self.distances(torch.arange(self.n_knots, device=like.device).to(like.dtype))
        return tabulate(function, knots, 1.0 / self.per_angstrom(knots))


def tabulate(function: Callable[[Tensor], Tensor], knots: Tensor, steps: Tensor) -> Tensor:
    """Values and slopes (per step) of a radial function at the knots.

    Differentiable with respect to whatever the function depends on.

    Args:
        function: distances [K] -> [K, 3, F], smooth.
        knots: [K] in Å.
        steps: derivatives of the distance by the place at each knot [K], Å.

    Returns:
        [2 K, 3 F]: row 2 n holds the value at knot n, row 2 n + 1 the slope times the step there.
    """
    values, slopes = _with_slopes(function, knots, steps)
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


def hermite_weights(places: Tensor, n_knots: int) -> tuple[Tensor, Tensor]:
    """Weights of the four table rows around each place, and the interval it lies in.

    With t the place within the interval: value and slope on its left get
    ``(1 + 2t)(1 - t)^2`` and ``t (1 - t)^2``, those on its right ``t^2 (3 - 2t)`` and
    ``t^2 (t - 1)``.

    Args:
        places: [P], from 0 to n_knots - 1, as `Grid.places`.
        n_knots: number of knots.

    Returns:
        weights [P, 4], differentiable, and intervals [P], int64.
    """
    interval = places.detach().floor().clamp_(0, n_knots - 2)
    t = places - interval
    s = 1.0 - t
    weights = torch.stack(
        [(1.0 + 2.0 * t) * s * s, t * s * s, t * t * (3.0 - 2.0 * t), -t * t * s], dim=-1
    )
    return weights, interval.to(torch.int64)


def table_errors(function: Callable[[Tensor], Tensor], table: Tensor, grid: Grid) -> Tensor:
    """Largest error of a table's values and of its slopes [2], relative as in `TOLERANCES`.

    Looked for at the middle of each interval and where the slopes of a cubic spline are worst.

    Args:
        function: what was tabulated, distances [K] -> [K, 3, F].
        table: [2 K, 3 F], see `tabulate`.
        grid: its knots.
    """
    within = table.new_tensor([0.2113, 0.5, 0.7887])  # 0.5 and 0.5 +- 1 / sqrt(12)
    places = (torch.arange(grid.n_knots - 1).to(table)[:, None] + within).flatten()
    points = grid.distances(places)
    places, points = places[points > NEAREST], points[points > NEAREST]
    values, slopes = _with_slopes(function, points, torch.ones_like(points))
    weights, interval = hermite_weights(places, grid.n_knots)
    slopes_of_weights = hermite_slopes(places, grid.per_angstrom(points), grid.n_knots)
    rows = table[2 * interval[:, None] + torch.arange(4, device=table.device)]
    found = torch.stack([(w.unsqueeze(2) * rows).sum(1) for w in (weights, slopes_of_weights)])
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
        grid = Grid(cutoff, size)
        tables = [grid.table(function, allowed).detach() for function in functions]
        if n_knots:
            return [table.to(dtype) for table in tables]
        errors = [table_errors(f, t, grid) for f, t in zip(functions, tables, strict=True)]
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


def hermite_slopes(places: Tensor, per_angstrom: Tensor, n_knots: int) -> Tensor:
    """Derivatives of the weights of `hermite_weights` by the distance [P, 4], 1/Å.

    per_angstrom [P]: those of the places.
    """
    t = places - places.floor().clamp_(0, n_knots - 2)
    s = 1.0 - t
    slopes = torch.stack([-6.0 * t * s, s * (s - 2.0 * t), 6.0 * t * s, t * (t - 2.0 * s)], -1)
    return slopes * per_angstrom.unsqueeze(-1)
