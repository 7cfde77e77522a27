"""Brute force: every atom against every image of every atom of its system.

O(n^2) per system with a small constant: systems are padded to the largest and all distances
computed, in an order that needs no sorting afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnpcalc.neighbors.pairs import Candidates, image_grid
from nnpcalc.neighbors.wrapping import Wrapped

if TYPE_CHECKING:
    from nnpcalc.batch import AtomsBatch

CHUNK = {"cpu": 1 << 16, "cuda": 1 << 25}  # distances at a time


def brute_force_candidates(
    batch: AtomsBatch, wrapped: Wrapped, n: int, reach: list[int]
) -> Candidates:
    """Sorted candidates for the pairs within the radius of `wrapped`.

    Args:
        n: atoms of the largest system.
        reach: most images to look at along each lattice vector, over all systems.
    """
    counts, n_systems = batch.counts, batch.n_systems
    translations = image_grid(reach, batch.device)
    n_images = len(translations)
    receivers = _pad(wrapped.positions, batch, n)
    senders = receivers
    if wrapped.basis is not None and wrapped.reach is not None:
        lattice = torch.einsum("md,bdc->cbm", translations.to(torch.float64), wrapped.basis)
        if n_systems > 1:
            foreign = (translations.abs() > wrapped.reach[:, None, :]).any(2)
            lattice.masked_fill_(foreign, torch.nan)  # which is close to nothing
        senders = (receivers[:, :, :, None] + lattice[:, :, None, :]).flatten(2)
    found = _close_pairs(receivers, senders, wrapped.radius)

    # found are flat indices of [B, n, n, n_images]
    image = None
    if n_images > 1:
        image = found % n_images
        found = torch.div(found, n_images, rounding_mode="floor")
    i = torch.div(found, n, rounding_mode="floor")
    j = found - i * n
    if n_systems > 1:
        system = torch.div(i, n, rounding_mode="floor")
        start = (counts.cumsum(0) - counts).index_select(0, system)
        i, j = i + (start - system * n), j + start
    another = i != j if image is None else (i != j) | (image != n_images // 2)
    keep = torch.nonzero(another)[:, 0]
    pairs = torch.stack((i.index_select(0, keep), j.index_select(0, keep)))
    if image is None:
        return Candidates(pairs)
    return Candidates(pairs, image.index_select(0, keep), translations, wrapped.wrap)


def _pad(columns: Tensor, batch: AtomsBatch, n: int) -> Tensor:
    """[3, N] to [3, B, n], filled with NaN."""
    if batch.n_systems == 1:
        return columns[:, None, :]
    numbers = torch.arange(batch.n_systems, device=columns.device)
    shift = numbers * n - (batch.counts.cumsum(0) - batch.counts)
    slot = torch.arange(batch.n_atoms, device=columns.device) + shift.index_select(0, batch.system)
    padded = columns.new_full((3, batch.n_systems * n), torch.nan).index_copy_(1, slot, columns)
    return padded.reshape(3, batch.n_systems, n)


def _close_pairs(receivers: Tensor, senders: Tensor, radius: Tensor) -> Tensor:
    """Flat indices of [B, n, s]: receivers [3, B, n] and senders [3, B, s] within the radius."""
    _, n_systems, n = receivers.shape
    n_senders = senders.shape[2]
    chunk = CHUNK["cpu" if receivers.device.type == "cpu" else "cuda"]
    rows = max(1, min(n, chunk // n_senders))
    systems = max(1, chunk // (n * n_senders))
    radius_squared = radius * radius
    found = []
    for b in range(0, n_systems, systems):
        s = senders[:, b : b + systems, None, :]
        for i in range(0, n, rows):
            r = receivers[:, b : b + systems, i : i + rows, None]
            squared = (s[0] - r[0]).square_()
            squared.add_((s[1] - r[1]).square_()).add_((s[2] - r[2]).square_())
            close = torch.nonzero((squared < radius_squared).reshape(-1))[:, 0]
            found.append(close.add_((b * n + i) * n_senders))
    return torch.cat(found)
