"""Programs that find pairs, behind one function.

A back end returns candidates: every pair of the exact list and perhaps more, from a search a little
wider than the cutoff. `pairs.py` accepts or drops them and sorts, so that all back ends return the
same list.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nnpcalc.neighbors.geometry import periodic_basis
from nnpcalc.neighbors.pairs import NeighborList, accept, lexicographic_order, measure
from nnpcalc.neighbors.search import small_and_open, torch_candidates
from nnpcalc.neighbors.wrapping import wrap_atoms

if TYPE_CHECKING:
    from nnpcalc.batch import AtomsBatch

#: Sorted candidate pairs [2, Q] and shifts [Q, 3], int64.
PairsAndShifts = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BackendStatus:
    """Whether a neighbor list back end can be used here.

    Attributes:
        usable: whether it can.
        reason: what it is for, or why it cannot be used and what to install.
    """

    usable: bool
    reason: str


@dataclass(frozen=True)
class _Backend:
    module: str | None  # what must be importable
    package: str | None  # what to install for it
    purpose: str
    search: Callable[[AtomsBatch, float], PairsAndShifts]


def find(batch: AtomsBatch, cutoff: float, backend: str) -> NeighborList:
    """The pairs of a batch with atoms that are closer than cutoff (Å)."""
    if backend == "torch":
        if small_and_open(batch):
            from nnpcalc.neighbors.all_pairs import all_pairs  # numba takes a while to import

            return all_pairs(batch, cutoff)
        return accept(batch, torch_candidates(batch, cutoff), cutoff)
    return measure(batch, *candidates(batch, cutoff, backend), cutoff)


def candidates(batch: AtomsBatch, cutoff: float, backend: str) -> PairsAndShifts:
    """Sorted candidates for the pairs closer than cutoff (Å), from the named back end.

    Raises:
        ValueError: an unknown back end, one that is not installed, or one that cannot treat this
            batch; the text says which can.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"unknown neighbor list back end {backend!r}; there are {', '.join(BACKENDS)}"
        )
    status = _status(backend)
    if not status.usable:
        raise ValueError(f"neighbor list back end {backend!r}: {status.reason}")
    return BACKENDS[backend].search(batch, cutoff)


def list_backends() -> dict[str, BackendStatus]:
    """The neighbor list back ends by name, and whether and why (not) each can be used here.

    >>> list_backends()["torch"].usable
    True
    """
    return {name: _status(name) for name in BACKENDS}


def _status(name: str) -> BackendStatus:
    backend = BACKENDS[name]
    if backend.module is not None:
        try:
            importlib.import_module(backend.module)
        except Exception as error:  # a compiled extension may fail in many ways
            return BackendStatus(
                False,
                f"cannot import {backend.module} ({error}); install it with "
                f"`pip install {backend.package}`",
            )
    return BackendStatus(True, backend.purpose)


def _torch(batch: AtomsBatch, cutoff: float) -> PairsAndShifts:
    return torch_candidates(batch, cutoff).pairs_and_shifts()


def _search_radius(batch: AtomsBatch, cutoff: float) -> float:
    """A cutoff (Å) with which no rounding of another program loses a pair."""
    return float(wrap_atoms(batch, cutoff).radius) * (1 + 1e-6)


def _sorted(pairs: Tensor, shifts: Tensor, device: torch.device) -> PairsAndShifts:
    pairs, shifts = pairs.to(device, torch.int64), shifts.to(device, torch.int64)
    another = (pairs[0] != pairs[1]) | (shifts != 0).any(1)
    keep = torch.nonzero(another)[:, 0]
    pairs, shifts = pairs.index_select(1, keep), shifts.index_select(0, keep)
    order = lexicographic_order(pairs, shifts)
    return pairs.index_select(1, order), shifts.index_select(0, order)


def _vesin(batch: AtomsBatch, cutoff: float) -> PairsAndShifts:
    """One system after the other on the CPU; tensors of other devices are copied."""
    import vesin

    if batch.device.type != "cpu":
        raise ValueError(
            f"neighbor list back end 'vesin' computes on the CPU but the batch is on "
            f"{batch.device}; use 'torch' or 'nvalchemi'"
        )
    search = vesin.NeighborList(cutoff=_search_radius(batch, cutoff), full_list=True, n_threads=1)
    positions = batch.positions.detach().double().numpy()
    cells, pbc = batch.cell.detach().double().numpy(), batch.pbc.numpy()
    pairs, shifts, begin = [], [], 0
    for b, n in enumerate(batch.counts.tolist()):
        if n:
            points = positions[begin : begin + n]
            found, shift = search.compute(points, cells[b], pbc[b], "PS", copy=True)
            pairs.append(torch.from_numpy(found.astype("int64")).T + begin)
            shifts.append(torch.from_numpy(shift))
        begin += n
    return _sorted(torch.cat(pairs, 1), torch.cat(shifts), batch.device)


def _nvalchemi(batch: AtomsBatch, cutoff: float) -> PairsAndShifts:
    """All systems at once, on either device."""
    from nvalchemiops.torch.neighbors import (  # type: ignore[import-not-found]
        NeighborOverflowError,
        neighbor_list,
    )

    # it wants a cell with a volume, and one that holds the atoms where it is not periodic
    positions = batch.positions.detach()
    extent = (positions.amax(0) - positions.amin(0)).max() + 2 * cutoff
    basis, _, _ = periodic_basis(batch.cell, batch.pbc)
    cell = torch.where(batch.pbc[:, :, None], basis, basis * extent).to(positions.dtype)
    options: dict[str, Any] = {
        "cell": cell,
        "pbc": batch.pbc,
        "batch_idx": batch.system.to(torch.int32),
        "batch_ptr": torch.nn.functional.pad(batch.counts.cumsum(0), (1, 0)).to(torch.int32),
        "return_neighbor_list": True,
    }
    radius = _search_radius(batch, cutoff)
    while True:
        try:
            pairs, _, shifts = neighbor_list(positions, radius, **options)
        except NeighborOverflowError as error:  # its guess of the density was too low
            options["max_neighbors"] = max(
                int(error.num_neighbors), 2 * options.get("max_neighbors", 0)
            )
        else:
            return _sorted(pairs, shifts, batch.device)


def _torch_cluster(batch: AtomsBatch, cutoff: float) -> PairsAndShifts:
    """Open systems only."""
    from torch_cluster import radius

    if bool(batch.pbc.any()):
        periodic = int(torch.nonzero(batch.pbc.any(1))[0])
        raise ValueError(
            f"system {periodic} is periodic, which neighbor list back end 'torch_cluster' cannot "
            f"treat; use 'torch'"
        )
    positions, system = batch.positions.detach(), batch.system
    # each atom finds itself too; no atom can have more neighbors than its system has atoms
    most = int(batch.counts.max())
    limit = most if batch.device.type == "cpu" else min(most, 512)
    while True:
        pairs = radius(
            positions,
            positions,
            _search_radius(batch, cutoff),
            system,
            system,
            max_num_neighbors=limit,
            batch_size=batch.n_systems,
        )
        found = int(torch.bincount(pairs[0], minlength=batch.n_atoms).max())
        if found < limit or limit == most:
            break
        limit = min(most, 4 * limit)  # a full row may have been truncated
    return _sorted(pairs, pairs.new_zeros(pairs.shape[1], 3), batch.device)


BACKENDS = {
    "torch": _Backend(None, None, "any device, all systems at once; always there", _torch),
    "vesin": _Backend("vesin", "vesin", "CPU, one system after the other", _vesin),
    "nvalchemi": _Backend(
        "nvalchemiops.torch.neighbors",
        "nvalchemi-toolkit-ops",
        "CPU and CUDA, all systems at once",
        _nvalchemi,
    ),
    "torch_cluster": _Backend(
        "torch_cluster", "torch-cluster", "CPU and CUDA, open systems only", _torch_cluster
    ),
}
