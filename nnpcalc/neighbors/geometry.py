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
    """
    receiver = pairs[0]
    translations = pair_translations(cell, system, receiver, shifts)
    return positions.index_select(0, pairs[1]) - positions.index_select(0, receiver) + translations


def pair_translations(cell: Tensor, system: Tensor, receiver: Tensor, shifts: Tensor) -> Tensor:
    """The translations shift @ cell [P, 3] in Å of pairs with the receivers [P].

    The sum over lattice vectors is written out: elementwise products and sums round the same way
    for every shape and device, a matrix product does not, and a pair at the cutoff must be in or
    out whatever algorithm looked at it.
    """
    lattice = cell
    if cell.shape[0] > 1:  # one system broadcasts, which spares its gradient a scatter
        lattice = cell.index_select(0, system.index_select(0, receiver))
    shift = shifts.to(cell.dtype)
    return (
        shift[:, 0:1] * lattice[:, 0]
        + shift[:, 1:2] * lattice[:, 1]
        + shift[:, 2:3] * lattice[:, 2]
    )


def pair_distances(vectors: Tensor) -> Tensor:
    """Lengths [P] of the vectors [P, 3]; the gradient at zero length is undefined."""
    x, y, z = vectors[:, 0], vectors[:, 1], vectors[:, 2]
    return torch.sqrt(x * x + y * y + z * z)


def asking_is_free(device: torch.device) -> bool:
    """Whether the host may look at values. On a GPU it waits for all work before them."""
    return device.type == "cpu"


def periodic_basis(cell: Tensor, pbc: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Basis, inverse and plane distances of each system, for any mixture of periodic directions.

    A direction that is not periodic is replaced by a unit vector perpendicular to the periodic
    ones, so that the plane distance of a periodic direction is the spacing of its images whatever
    vector, even zero, the caller left in the others.

    Args:
        cell: [B, 3, 3] in Å.
        pbc: [B, 3] bool.

    Returns:
        basis [B, 3, 3] (rows), inverse [B, 3, 3] (fractional = positions @ inverse), heights [B, 3]
        in Å, all float64.
    """
    basis = cell.to(torch.float64)
    if not (asking_is_free(cell.device) and bool(pbc.all())):
        basis = _fill_open_directions(basis, pbc)
    # the reciprocal vectors, written out: no LAPACK call, no synchronisation on a GPU
    a, b, c = basis.unbind(1)
    cross = torch.linalg.cross(torch.stack((b, c, a), 1), torch.stack((c, a, b), 1), dim=2)
    volume = (a * cross[:, 0]).sum(1)
    inverse = (cross / volume[:, None, None]).transpose(1, 2)
    heights = 1.0 / torch.sqrt((inverse * inverse).sum(1))
    return basis, inverse, heights


def _fill_open_directions(cell: Tensor, pbc: Tensor) -> Tensor:
    """Unit vectors perpendicular to the other rows where a direction is not periodic."""
    identity = torch.eye(3, dtype=torch.float64, device=cell.device).expand_as(cell)
    rows = list(torch.where(pbc[:, :, None], cell, 0.0).unbind(1))
    known = list(pbc.unbind(1))
    for d in range(3):
        (p, q), (has_p, has_q) = ((v[(d + 1) % 3], v[(d + 2) % 3]) for v in (rows, known))
        only = p + q  # where one of them is known the other is zero
        steepest = only.abs().argmin(1, keepdim=True)
        axis = torch.zeros_like(only).scatter(1, steepest, 1.0)
        both = (has_p & has_q)[:, None]
        normal = torch.linalg.cross(torch.where(both, p, only), torch.where(both, q, axis), dim=1)
        normal = torch.where((has_p | has_q)[:, None], normal, identity[:, d])
        length = torch.sqrt((normal * normal).sum(1, keepdim=True))
        rows[d] = torch.where(known[d][:, None], rows[d], normal / length)
        known[d] = torch.ones_like(known[d])
    return torch.stack(rows, 1)
