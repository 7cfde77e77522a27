"""Brute force: every atom against every image of every atom of its system.

O(n^2) per system with a small constant: systems are padded to the largest, all distances
computed as one matrix product, |a|^2 - 2 a b + |b|^2, and met in an order that needs no sorting.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnpcalc.neighbors.pairs import Candidates, PairCode, fresh, image_grid, joined, true_indices
from nnpcalc.neighbors.wrapping import Wrapped

if TYPE_CHECKING:
    from nnpcalc.batch import AtomsBatch

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 25}  # distances at a time


def brute_force_candidates(
    batch: AtomsBatch, wrapped: Wrapped, n: int, reach: list[int]
) -> Candidates:
    """Sorted candidates for the pairs within the radius of `wrapped`.

    Args:
        n: atoms of the largest system.
        reach: most images to look at along each lattice vector, over all systems.
    """
    device, n_systems = batch.device, batch.n_systems
    translations = image_grid(reach, device)
    n_images = len(translations)
    code = PairCode.of(batch.n_atoms, n_images)
    first = batch.counts.cumsum(0) - batch.counts
    row = first[:, None] + torch.arange(n, device=device)
    row_code = (code.receiver(row) + code.sender(first)[:, None]).reshape(-1)
    column = code.sender(torch.arange(n, device=device))[:, None]
    column_code = (column + torch.arange(n_images, device=device)).reshape(-1)

    atoms = _pad(wrapped.positions, batch, n)
    atoms = atoms - atoms[:, :, :1]  # rounding grows with the distance from the origin
    images = None
    if wrapped.basis is not None and wrapped.reach is not None:
        images = torch.einsum("md,bdc->cbm", translations.to(torch.float64), wrapped.basis)
        if n_systems > 1:
            foreign = (translations.abs() > wrapped.reach[:, None, :]).any(2)
            images.masked_fill_(foreign, torch.nan)  # which is close to nothing

    chunk = CHUNK["cpu" if device.type == "cpu" else "cuda"]
    n_columns = n * n_images
    n_rows = max(1, min(n, chunk // n_columns))
    n_together = max(1, chunk // (n * n_columns))
    # one buffer for all chunks: fresh memory costs more than the product that fills it
    size = min(n_together, n_systems) * n_rows * n_columns
    buffer = fresh((size,), torch.float64, device)
    found = []
    for b in range(0, n_systems, n_together):
        receivers = atoms[:, b : b + n_together]
        senders = receivers
        if images is not None:
            senders = (receivers[..., None] + images[:, b : b + n_together, None]).flatten(2)
        left, right, rounding = _factors(receivers, senders)
        limit = wrapped.radius * wrapped.radius + rounding
        for i in range(0, n, n_rows):
            rows = left[:, i : i + n_rows]
            shape = (rows.shape[0], rows.shape[1], n_columns)
            squared = torch.bmm(rows, right, out=buffer[: math.prod(shape)].view(shape))
            itself = squared.view(*shape[:2], n, n_images)[..., n_images // 2]
            itself.diagonal(i, 1, 2).fill_(torch.inf)
            index = true_indices((squared < limit).reshape(-1))
            row = torch.div(index, n_columns, rounding_mode="floor")
            index.sub_(row * n_columns)
            codes = column_code.index_select(0, index)
            found.append(codes.add_(row_code.index_select(0, row.add_(b * n + i))))
    return Candidates(joined(found), code, None if images is None else translations, wrapped.wrap)


def _pad(columns: Tensor, batch: AtomsBatch, n: int) -> Tensor:
    """[3, N] to [3, B, n], filled with NaN."""
    if batch.n_systems == 1:
        return columns[:, None, :]
    numbers = torch.arange(batch.n_systems, device=columns.device)
    shift = numbers * n - (batch.counts.cumsum(0) - batch.counts)
    slot = torch.arange(batch.n_atoms, device=columns.device) + shift.index_select(0, batch.system)
    padded = columns.new_full((3, batch.n_systems * n), torch.nan).index_copy_(1, slot, columns)
    return padded.reshape(3, batch.n_systems, n)


def _factors(receivers: Tensor, senders: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two matrices of which the product is the squared distances [B, n, s].

    From receivers [3, B, n] and senders [3, B, s], in Å; also a bound on the rounding, Å^2.
    """
    left = receivers.new_ones(5, *receivers.shape[1:])
    left[:3] = receivers
    torch.sum(receivers * receivers, 0, out=left[3])
    right = senders.new_ones(5, *senders.shape[1:])
    torch.mul(senders, -2, out=right[:3])
    torch.sum(senders * senders, 0, out=right[4])
    largest = torch.nan_to_num(left[3]).max() + torch.nan_to_num(right[4]).max()
    rounding = 32 * torch.finfo(torch.float64).eps * largest
    # with two strided factors bmm is eight times slower
    return left.permute(1, 2, 0).contiguous(), right.transpose(0, 1), rounding
