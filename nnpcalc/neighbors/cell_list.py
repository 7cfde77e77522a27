"""The cell list: every pair of a batch in time and memory linear in the atoms.

One code for CPU and CUDA, in tensor operations, for all systems at once:

1. Atoms of periodic systems are wrapped, and copied ("ghosts") into the images that come within the
   cutoff of the cell. Only images with a lexicographically positive shift are needed, because
   (i, j, s) and (j, i, -s) are the same pair. From here on nothing is periodic.
2. Atoms and ghosts are put into bins, as wide as the cutoff in x and y and a quarter of it in z,
   and sorted by bin. The box that is binned is the one the atoms occupy, and bins are integer keys,
   not an array: empty ones cost nothing.
3. Bins that differ only in z have consecutive keys, so the partners of a bin are a few ranges of
   the sorted atoms, found by binary search.
4. Ranges are expanded to candidate pairs in chunks that stay in the cache, and the close ones kept
   as integer keys (i, j, image), in both directions. Sorting the keys gives the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nnpcalc.neighbors import geometry
from nnpcalc.neighbors.pairs import (
    Candidates,
    PairCode,
    image_grid,
    joined,
    sorted_codes,
    true_indices,
)
from nnpcalc.neighbors.wrapping import Wrapped, per_atom, transform

if TYPE_CHECKING:
    from nnpcalc.batch import AtomsBatch

SLICES = 4  # bins per cutoff along z, where more of them cost nothing
ONE_BIN = 48  # systems of at most this many atoms are a single bin
CHUNK = {"cpu": 1 << 16, "cuda": 1 << 25}  # candidates at a time
FAR_AWAY = 1 << 62  # the bin of ghosts that no atom can reach


@dataclass(frozen=True)
class Points:
    """Atoms or ghosts: positions [3, Q] in Å, atom [Q] int64, image [Q] int64 or None for zero.

    image is 0 for the atom itself and grows with the shift in lexicographic order.
    """

    positions: Tensor
    atom: Tensor
    image: Tensor | None = None

    def ordered(self, order: Tensor) -> Points:
        """The points in another order."""
        image = None if self.image is None else self.image.index_select(0, order)
        return Points(
            self.positions.index_select(1, order), self.atom.index_select(0, order), image
        )

    def followed_by(self, ghosts: Points) -> Points:
        """These atoms and their ghosts."""
        assert ghosts.image is not None
        return Points(
            torch.cat((self.positions, ghosts.positions), 1),
            torch.cat((self.atom, ghosts.atom)),
            torch.cat((torch.zeros_like(self.atom), ghosts.image)),
        )


@dataclass(frozen=True)
class Bins:
    """The grid of each system: origin [B, 3] and width [B, 3] in Å, dims [B, 3], first key [B]."""

    origin: Tensor
    width: Tensor
    dims: Tensor
    first: Tensor


@dataclass(frozen=True)
class Ranges:
    """Candidates in compressed form: point `point[r]` meets `length[r]` points from `start[r]` on.

    All [R] int64; numbers of sorted points.
    """

    point: Tensor
    start: Tensor
    length: Tensor


def cell_list_candidates(batch: AtomsBatch, wrapped: Wrapped) -> Candidates:
    """Sorted candidates for the pairs within the radius of `wrapped`.

    On a GPU the host waits for the numbers of ghosts, candidates and pairs, besides the sizes that
    the choice of the algorithm asks for and the check for overlapping atoms at the end.
    """
    system = batch.system
    bins = make_bins(batch, wrapped)
    points = Points(wrapped.positions, torch.arange(batch.n_atoms, device=batch.device))
    keys, order = torch.sort(bin_keys(bins, points.positions, system))
    points = points.ordered(order)
    ghosts, reach = make_ghosts(batch, wrapped)
    ghost_keys = None
    if ghosts is not None:
        ghost_keys = bin_keys(
            bins, ghosts.positions, system.index_select(0, ghosts.atom), strangers=True
        )
        ghost_keys, ghost_order = torch.sort(ghost_keys)
        points = points.followed_by(ghosts.ordered(ghost_order))
    ranges = find_ranges(bins, keys, system.index_select(0, order), ghost_keys)
    images = image_grid(reach, batch.device)
    code = PairCode.of(batch.n_atoms, len(images))
    codes = close_pairs(ranges, points, wrapped.radius, code, len(images) // 2)
    codes = sorted_codes(codes)
    return Candidates(codes, code, None if ghosts is None else images, wrapped.wrap)


def make_ghosts(batch: AtomsBatch, wrapped: Wrapped) -> tuple[Points | None, list[int]]:
    """The copies with positive shift that can be within the radius of any point of the cell.

    Also the largest shift along each lattice vector. Along one of them an atom at fractional
    coordinate f has copies f + s between -w and 1 + w, with w the radius in units of the distance
    of the planes: a range of s in closed form. In the product of three ranges, in lexicographic
    order, the positive shifts are those after zero.
    """
    if wrapped.fractional is None or wrapped.heights is None or wrapped.basis is None:
        return None, [0, 0, 0]
    system, device = batch.system, batch.positions.device
    width = torch.where(batch.pbc, wrapped.radius / wrapped.heights, -1.0)
    w = torch.stack([per_atom(c, system) for c in width.unbind(1)])
    f = wrapped.fractional
    low = torch.where(w > 0, torch.ceil(-w - f), 0.0).to(torch.int64)
    high = torch.where(w > 0, torch.floor(1 + w - f), 0.0).to(torch.int64)
    size = high - low + 1
    skip = (-low[0] * size[1] - low[1]) * size[2] - low[2] + 1
    number = size[0] * size[1] * size[2] - skip
    end = number.cumsum(0)
    largest = torch.maximum(high.amax(1), -low.amin(1))
    n_ghosts, *reach = torch.cat((end[-1:], largest)).tolist()

    source = torch.repeat_interleave(number, output_size=n_ghosts)
    index = torch.arange(n_ghosts, device=device) - (end - number - skip).index_select(0, source)
    low, size = low.index_select(1, source), size.index_select(1, source)
    shifts = []
    for d in (2, 1, 0):
        quotient = torch.div(index, size[d], rounding_mode="floor")
        shifts.append(index - quotient * size[d] + low[d])
        index = quotient
    s2, s1, s0 = shifts
    image = (s0 * (2 * reach[1] + 1) + s1) * (2 * reach[2] + 1) + s2
    translation = torch.stack((s0, s1, s2)).to(torch.float64)
    positions = wrapped.positions.index_select(1, source) + transform(
        translation, wrapped.basis, system.index_select(0, source)
    )
    return Points(positions, source, image), reach


def make_bins(batch: AtomsBatch, wrapped: Wrapped) -> Bins:
    """Grids around the atoms of each system, with empty layers of a cutoff on every side.

    Systems wider than 2^19 cutoffs or so (fewer in large batches) get wider bins instead of more,
    so that all keys fit into 62 bits; small systems get one.
    """
    counts = batch.counts[:, None]
    if batch.n_systems == 1:
        low, high = (v[None] for v in torch.aminmax(wrapped.positions, dim=1))
    else:
        rows = wrapped.positions.T.contiguous()
        low, high = (
            torch.segment_reduce(rows, kind, lengths=batch.counts, axis=0, unsafe=True)
            for kind in ("min", "max")
        )
        low, high = (torch.where(counts == 0, 0.0, v) for v in (low, high))
    extent = high - low
    most = 2.0 ** ((59 - batch.n_systems.bit_length()) // 3) - 16
    width = torch.maximum(wrapped.radius, extent / most)
    width = torch.where(counts <= ONE_BIN, extent + wrapped.radius, width)
    width[:, 2] /= SLICES
    dims = (extent / width).floor().to(torch.int64) + 3
    dims[:, 2] += 2 * (SLICES - 1)
    volume = dims.prod(1)
    return Bins(low, width, dims, volume.cumsum(0) - volume)


def bin_keys(bins: Bins, points: Tensor, system: Tensor, *, strangers: bool = False) -> Tensor:
    """Key of the bin of each point [3, Q]; strangers may lie outside the grid."""
    key = per_atom(bins.first, system)
    inside = None
    for d in range(3):
        origin, width = per_atom(bins.origin[:, d], system), per_atom(bins.width[:, d], system)
        dim = per_atom(bins.dims[:, d], system)
        index = ((points[d] - origin) / width).floor_().add_(SLICES if d == 2 else 1)
        if strangers:
            here = (index >= 0) & (index < dim)
            inside = here if inside is None else inside & here
        key = index.to(torch.int64) + (key * dim if d else 0)
    key = key + per_atom(bins.first, system)
    return key if inside is None else torch.where(inside, key, FAR_AWAY)


def find_ranges(bins: Bins, keys: Tensor, system: Tensor, ghost_keys: Tensor | None) -> Ranges:
    """Candidate ranges of every sorted atom: atoms after it in its own and the following bins, and
    ghosts in all neighboring bins."""
    n_atoms, device = len(keys), keys.device
    atoms = torch.arange(n_atoms, device=device)
    compact = geometry.asking_is_free(device)
    if compact:
        bin_key, number = torch.unique_consecutive(keys, return_counts=True)
        begin = number.cumsum(0) - number
    else:  # every atom searches for itself: more work, but no size to wait for
        bin_key, number, begin = keys, torch.ones_like(keys), atoms
    bin_system = system.index_select(0, begin)
    ny, nz = (per_atom(bins.dims[:, d], bin_system) for d in (1, 2))

    all_rows = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    searches = [(keys, 0, [row for row in all_rows if row > (0, 0)])]
    if ghost_keys is not None:
        searches.append((ghost_keys, n_atoms, all_rows))
    starts, lengths = [], []
    for sorted_keys, offset, rows in searches:
        dx, dy = torch.tensor(rows, device=device).T[:, :, None]
        center = (dx * ny + dy) * nz + bin_key
        start = torch.searchsorted(sorted_keys, center - SLICES)
        lengths.append(torch.searchsorted(sorted_keys, center + SLICES, right=True) - start)
        starts.append(start + offset)
    length, start = torch.cat(lengths).T, torch.cat(starts).T
    own_end = torch.searchsorted(keys, bin_key + SLICES, right=True)

    if compact:  # most are empty
        bin_of, column = torch.nonzero(length).unbind(1)
        start, length = start[bin_of, column], length[bin_of, column]
        number_of = number.index_select(0, bin_of)
        row = torch.repeat_interleave(number_of)
        first = number_of.cumsum(0) - number_of
        atom = torch.arange(len(row)) + (begin.index_select(0, bin_of) - first).index_select(0, row)
        start, length = start.index_select(0, row), length.index_select(0, row)
        own_end = torch.repeat_interleave(own_end, number, output_size=n_atoms)
    else:
        atom = atoms.repeat_interleave(length.shape[1])
        start, length = start.reshape(-1), length.reshape(-1)
    return Ranges(
        torch.cat((atoms, atom)),
        torch.cat((atoms + 1, start)),
        torch.cat((own_end - atoms - 1, length)),
    )


def close_pairs(
    ranges: Ranges, points: Points, radius: Tensor, code: PairCode, home: int
) -> Tensor:
    """Codes [Q] of the pairs in `ranges` that are within the radius, in both directions.

    home is the number of the image without a shift.
    """
    device = points.atom.device
    receiver, sender = code.receiver(points.atom), code.sender(points.atom)
    image = 0 if points.image is None else points.image
    # a ghost's image is seen from the atom, the atom's from the ghost is opposite
    forward, backward = sender + (home + image), receiver + (home - image)

    end = ranges.length.cumsum(0)
    jump = ranges.start - (end - ranges.length)
    chunk = CHUNK["cpu" if device.type == "cpu" else "cuda"]
    total = int(end[-1])
    stops = [[len(end), total]]
    if total > chunk:
        last = torch.searchsorted(end, torch.arange(chunk, total, chunk, device=device))
        stops = torch.stack((last + 1, end.index_select(0, last)), 1).tolist() + stops
    radius_squared = radius * radius
    found = []
    r0 = c0 = 0
    for r1, c1 in stops:
        if c1 > c0:
            point = ranges.point[r0:r1]
            row = torch.repeat_interleave(ranges.length[r0:r1], output_size=c1 - c0)
            j = torch.arange(c0, c1, device=device).add_(jump[r0:r1].index_select(0, row))
            squared = torch.zeros_like(radius)
            for x in points.positions.unbind(0):
                d = x.index_select(0, j).sub_(x.index_select(0, point).index_select(0, row))
                squared = d.square_().add_(squared)
            close = true_indices(squared < radius_squared)
            i, j = point.index_select(0, row.index_select(0, close)), j.index_select(0, close)
            found.append(receiver.index_select(0, i) + forward.index_select(0, j))
            found.append(sender.index_select(0, i) + backward.index_select(0, j))
        r0, c0 = r1, c1
    return joined(found) if found else end[:0]
