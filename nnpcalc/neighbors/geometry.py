"""The pair vector: the one formula that every neighbor list back end and every model uses.

This file is compiled by TorchScript: no `from __future__ import annotations` here.
"""

from typing import Tuple

import torch
from torch import Tensor


def pair_vectors(
    positions: Tensor, cell: Tensor, system: Tensor, pairs: Tensor, shifts: Tensor
) -> Tensor:
    """Vectors r_ij = r_j - r_i + shift_ij @ cell, differentiable and scriptable.

    Args:
        positions: [N, 3] in Å.
        cell: [B, 3, 3] in Å, lattice vectors as rows; any values where a system is open.
        system: [N] int64, the system of each atom.
        pairs: [2, P] int64, row 0 the receiver i, row 1 the sender j.
        shifts: [P, 3] int64, lattice translations of atom j.

    Returns:
        [P, 3] in Å.

    The sum over lattice vectors is written out: elementwise products and sums round the same way for
    every shape and device, a batched matrix product does not, and a pair at the cutoff must be in
    or out whatever algorithm looked at it.
    """
    receiver = pairs[0]
    lattice = cell.index_select(0, system.index_select(0, receiver))
    shift = shifts.to(positions.dtype)
    translation = (
        shift[:, 0:1] * lattice[:, 0] + shift[:, 1:2] * lattice[:, 1] + shift[:, 2:3] * lattice[:, 2]
    )
    return positions.index_select(0, pairs[1]) - positions.index_select(0, receiver) + translation


def pair_distances(vectors: Tensor) -> Tensor:
    """Lengths [P] of the vectors [P, 3]; the gradient at zero length is undefined."""
    x, y, z = vectors[:, 0], vectors[:, 1], vectors[:, 2]
    return torch.sqrt(x * x + y * y + z * z)


def periodic_basis(cell: Tensor, pbc: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Basis, inverse and plane distances of each system, for any mixture of periodic directions.

    A direction that is not periodic is replaced by a unit vector perpendicular to the periodic ones, so
    that the plane distance of a periodic direction is the spacing of its images whatever (even zero)
    vector the caller left in the others.

    Args:
        cell: [B, 3, 3] in Å.
        pbc: [B, 3] bool.

    Returns:
        basis [B, 3, 3] (rows), inverse [B, 3, 3] (fractional = positions @ inverse), heights [B, 3]
        in Å, all float64.
    """
    vectors = cell.to(torch.float64)
    identity = torch.eye(3, dtype=torch.float64, device=cell.device).expand_as(vectors)
    known = pbc
    rows = torch.where(pbc[:, :, None], vectors, torch.zeros_like(vectors))
    for d in range(3):
        second, third = (d + 1) % 3, (d + 2) % 3
        p, q = rows[:, second], rows[:, third]
        both = (known[:, second] & known[:, third])[:, None]
        neither = (~known[:, second] & ~known[:, third])[:, None]
        single = p + q  # the unknown one is zero
        # the Cartesian axis that is least parallel to the only known vector
        axis = identity[:, 0].scatter(1, single.abs().argmin(1, keepdim=True), 2.0)
        axis = (axis > 1.5).to(torch.float64)
        normal = torch.linalg.cross(
            torch.where(both, p, single), torch.where(both, q, axis), dim=1
        )
        normal = torch.where(neither, identity[:, d], normal)
        length = torch.sqrt((normal * normal).sum(1, keepdim=True)).clamp_min(1e-300)
        filled = torch.where(known[:, d : d + 1], rows[:, d], normal / length)
        rows = torch.cat((rows[:, :d], filled[:, None], rows[:, d + 1 :]), 1)
        known = torch.cat((known[:, :d], torch.ones_like(known[:, :1]), known[:, d + 1 :]), 1)
    # the reciprocal vectors, written out: no LAPACK call, no synchronisation on a GPU
    cross = torch.stack(
        [torch.linalg.cross(rows[:, (d + 1) % 3], rows[:, (d + 2) % 3], dim=1) for d in range(3)], 2
    )
    volume = (rows[:, 0] * cross[:, :, 0]).sum(1)
    inverse = cross / volume[:, None, None]
    heights = 1.0 / torch.sqrt((inverse * inverse).sum(1))
    return rows, inverse, heights
