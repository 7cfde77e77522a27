"""Atoms brought into their cells, and how far around each cell a search has to look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnpcalc.neighbors import geometry
from nnpcalc.neighbors.geometry import periodic_basis
from nnpcalc.state import element_symbol

if TYPE_CHECKING:
    from nnpcalc.batch import AtomsBatch


@dataclass(frozen=True)
class Wrapped:
    """Wrapped atoms in float64, a row per coordinate: gathers of rows of three are much slower.

    Attributes:
        positions: [3, N] in Å.
        radius: scalar tensor, Å: the cutoff and a margin for the rounding of either formula, so
            that a search with these positions misses no pair that the exact formula accepts.
        wrap: [N, 3] int64, original + wrap @ cell = wrapped; None if known to be zero.
        fractional: [3, N] or None for open systems, in [0, 1] along periodic directions.
        basis: [B, 3, 3] or None, the lattice with open directions filled in.
        heights: [B, 3] or None, distances of its planes in Å.
        reach: int64 [B, 3] or None, the largest shift of a wrapped atom within the radius of
        another.
    """

    positions: Tensor
    radius: Tensor
    wrap: Tensor | None = None
    fractional: Tensor | None = None
    basis: Tensor | None = None
    heights: Tensor | None = None
    reach: Tensor | None = None


def per_atom(values: Tensor, system: Tensor) -> Tensor:
    """[B] to [N] by system; one system broadcasts."""
    return values if values.shape[0] == 1 else values.index_select(0, system)


def transform(columns: Tensor, matrix: Tensor, system: Tensor) -> Tensor:
    """Row vectors times the matrix of their system: columns [3, N], matrix [B, 3, 3] -> [3, N]."""
    if matrix.shape[0] == 1:
        return matrix[0].T @ columns
    x, y, z = columns.unbind(0)
    result = []
    for d in range(3):
        a, b, c = (m.index_select(0, system) for m in matrix[:, :, d].unbind(1))
        result.append(a * x + b * y + c * z)
    return torch.stack(result)


def wrap_atoms(batch: AtomsBatch, cutoff: float) -> Wrapped:
    """Wrap every atom into its cell along the periodic directions.

    Raises:
        ValueError: a position is not finite. Looked at on the CPU only, where it costs nothing;
            elsewhere the radius is not finite either.
    """
    x = batch.positions.detach().to(torch.float64).T.contiguous()
    scale = x.abs().max()
    may_ask = geometry.asking_is_free(batch.device)
    if may_ask and not bool(torch.isfinite(scale)):
        raise not_finite_error(batch)
    if may_ask and not bool(batch.pbc.any()):
        return Wrapped(x, (cutoff + rounding(batch, scale)) * (1 + 1e-9))
    basis, inverse, heights = periodic_basis(batch.cell.detach(), batch.pbc)
    fractional = transform(x, inverse, batch.system)
    pbc = torch.stack([per_atom(p, batch.system) for p in batch.pbc.unbind(1)])
    steps = torch.where(pbc, -fractional.floor(), 0.0)
    x = x + transform(steps, basis, batch.system)
    radius = (cutoff + rounding(batch, scale, basis, heights, cutoff)) * (1 + 1e-9)
    unmoved = may_ask and not bool(steps.any())
    wrap = None if unmoved else steps.T.to(torch.int64).contiguous()
    # wrapped fractional coordinates differ by at most 1
    reach = torch.floor(radius / heights + 1).to(torch.int64) * batch.pbc
    return Wrapped(x, radius, wrap, fractional + steps, basis, heights, reach)


def not_finite_error(batch: AtomsBatch) -> ValueError:
    """The error for the first atom that is nowhere."""
    atom = int(torch.nonzero(~torch.isfinite(batch.positions).all(1))[0])
    system = int(batch.system[atom])
    index = atom - int(torch.searchsorted(batch.system, batch.system[atom : atom + 1]))
    return ValueError(
        f"system {system}: atom {index} ({element_symbol(int(batch.numbers[atom]))}) has the "
        f"position {batch.positions[atom].tolist()}; a neighbor list needs finite positions"
    )


def rounding(
    batch: AtomsBatch,
    scale: Tensor,
    basis: Tensor | None = None,
    heights: Tensor | None = None,
    cutoff: float = 0.0,
) -> Tensor:
    """Bound (Å, scalar tensor) on the error of a distance in the dtype of the batch.

    Positions are at most `scale` from the origin; for periodic systems, basis and heights as in
    `Wrapped`. The largest terms of r_j - r_i + shift @ cell may cancel, and bound the error.
    """
    terms = 2 * scale
    if basis is not None and heights is not None:
        lengths = torch.sqrt((basis * basis).sum(2))
        # an atom at x is wrapped by at most |x| / height + 1 lattice vectors
        shifts = (2 * scale + cutoff) / heights + 3
        terms = terms + (lengths * shifts).sum(1).max()
    return 4 * torch.finfo(batch.positions.dtype).eps * terms
