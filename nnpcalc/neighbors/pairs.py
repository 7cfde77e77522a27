"""From candidate pairs to a `NeighborList`: the only place where a pair is accepted.

Every algorithm and back end hands its candidates to this file, which computes the vectors with one
formula, compares them with the cutoff and brings them into one order. That is why all return the
same pairs, also where a distance equals the cutoff up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nnpcalc.neighbors.geometry import pair_distances, pair_translations, pair_vectors
from nnpcalc.state import element_symbol

if TYPE_CHECKING:
    from nnpcalc.batch import AtomsBatch

OVERLAP = 1e-6  # Å; closer atoms are an error
CHUNK = 1 << 16  # pairs at a time on the CPU, so that intermediate results stay in the cache


@dataclass(frozen=True, eq=False)
class NeighborList:
    """Pairs of atoms closer than a cutoff, sorted by (i, j, shift_x, shift_y, shift_z).

    Attributes:
        pairs: [2, P] int64; row 0 is the receiver i, row 1 the sender j.
        shifts: [P, 3] int64, lattice translations of j.
        vectors: [P, 3] in Å, r_j - r_i + shift @ cell; without an autograd graph.
        distances: [P] in Å.
    """

    pairs: Tensor
    shifts: Tensor
    vectors: Tensor
    distances: Tensor

    @property
    def n_pairs(self) -> int:
        """P."""
        return self.pairs.shape[1]

    def within(self, cutoff: float) -> NeighborList:
        """The pairs closer than a shorter cutoff (Å): equal to a list built with that cutoff."""
        return self.select(true_indices(self.distances < cutoff))

    def select(self, index: Tensor) -> NeighborList:
        """The pairs with the numbers index [Q] int64, in that order."""
        return NeighborList(
            self.pairs.index_select(1, index),
            self.shifts.index_select(0, index),
            self.vectors.index_select(0, index),
            self.distances.index_select(0, index),
        )


@dataclass(frozen=True)
class PairCode:
    """A pair as one integer that sorts like (i, j, image).

    (i << atom_bits | j) << image_bits | image, with image the number of a translation.
    """

    atom_bits: int
    image_bits: int

    @staticmethod
    def of(n_atoms: int, n_images: int) -> PairCode:
        """The code for numbers of atoms and images, an error if 63 bits are not enough."""
        code = PairCode((n_atoms - 1).bit_length(), (n_images - 1).bit_length())
        if 2 * code.atom_bits + code.image_bits > 62:
            raise ValueError(
                f"{n_atoms} atoms with {n_images} periodic images within the cutoff are too many "
                f"for one neighbor list; split the batch or shorten the cutoff"
            )
        return code

    def receiver(self, atom: Tensor) -> Tensor:
        """What an atom [Q] adds to a code as i."""
        return atom << (self.atom_bits + self.image_bits)

    def sender(self, atom: Tensor) -> Tensor:
        """What an atom [Q] adds to a code as j."""
        return atom << self.image_bits

    def decode(self, codes: Tensor, pairs: Tensor) -> Tensor:
        """Write i and j of codes [Q] into pairs [2, Q]; the images [Q] are returned."""
        torch.bitwise_right_shift(codes, self.atom_bits + self.image_bits, out=pairs[0])
        torch.bitwise_right_shift(codes, self.image_bits, out=pairs[1])
        pairs[1].bitwise_and_((1 << self.atom_bits) - 1)
        return codes & ((1 << self.image_bits) - 1)


@dataclass(frozen=True)
class Candidates:
    """Superset of the pairs, as an algorithm of the torch back end finds it.

    Attributes:
        codes: [Q] int64, ascending, of pairs and of rows of `translations`.
        code: how to read them.
        translations: [M, 3] int64, in lexicographic order; None if all systems are open.
        wrap: int64 [N, 3], original + wrap @ cell = wrapped, or None for zero.
    """

    codes: Tensor
    code: PairCode
    translations: Tensor | None = None
    wrap: Tensor | None = None

    def pairs_and_shifts(self) -> tuple[Tensor, Tensor]:
        """[2, Q] and [Q, 3] int64, the shifts of the atoms as given, not of the wrapped ones.

        Both are in order: going from one to the other changes all shifts of (i, j) alike.
        """
        pairs = fresh((2, len(self.codes)), torch.int64, self.codes.device)
        image = self.code.decode(self.codes, pairs)
        if self.translations is None:
            return pairs, pairs.new_zeros(len(self.codes), 3)
        shifts = self.translations.index_select(0, image)
        if self.wrap is not None:
            shifts.add_(self.wrap.index_select(0, pairs[1]))
            shifts.sub_(self.wrap.index_select(0, pairs[0]))
        return pairs, shifts


def fresh(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, on the CPU in memory that NumPy asks huge pages for.

    Lists of a million pairs are 70 MB, of which the first touch of 4 kB pages costs more time than
    the list.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(shape, dtype=str(dtype).removeprefix("torch.")))


def joined(codes: list[Tensor]) -> Tensor:
    """Codes [Q] of their parts, of which there is at least one."""
    total = sum(len(part) for part in codes)
    return torch.cat(codes, out=fresh((total,), torch.int64, codes[0].device))


def sorted_codes(codes: Tensor) -> Tensor:
    """Codes [Q] in ascending order."""
    values, indices = (fresh((len(codes),), torch.int64, codes.device) for _ in range(2))
    return torch.sort(codes, out=(values, indices))[0]


def true_indices(mask: Tensor) -> Tensor:
    """Where a mask [Q] is true, int64. NumPy's loop is several times faster than torch's."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return torch.nonzero(mask)[:, 0]


def image_grid(reach: list[int], device: torch.device) -> Tensor:
    """All translations with |shift_d| <= reach[d], [M, 3] int64 in lexicographic order."""
    axes = [torch.arange(-k, k + 1, device=device) for k in reach]
    return torch.cartesian_prod(*axes).reshape(-1, 3)


def checked_cutoff(cutoff: float) -> float:
    """The cutoff as a float, an error if it is no length."""
    value = float(cutoff)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"the cutoff must be a positive number of Å, not {cutoff!r}")
    return value


def empty_list(batch: AtomsBatch) -> NeighborList:
    """The list without pairs."""
    none = batch.system.new_zeros(2, 0)
    vectors = batch.positions.new_zeros(0, 3)
    return NeighborList(none, none.new_zeros(0, 3), vectors, vectors[:, 0])


def accept(batch: AtomsBatch, candidates: Candidates, cutoff: float) -> NeighborList:
    """The candidates that are closer than cutoff (Å).

    Raises:
        ValueError: two atoms in the same place.
    """
    table = _translation_table(batch, candidates)
    images = candidates.translations
    if images is not None and table is None:
        return measure(batch, *candidates.pairs_and_shifts(), cutoff)
    positions = batch.positions.detach().contiguous()
    codes = candidates.codes
    found = _empty(fresh((2, len(codes)), torch.int64, codes.device), positions)
    # everything about one chunk while it is in the cache
    for part in _chunks(found.pairs):
        image = candidates.code.decode(codes[part], found.pairs[:, part])
        i, j, vector = found.pairs[0, part], found.pairs[1, part], found.vectors[part]
        torch.index_select(positions, 0, j, out=vector)
        vector.sub_(positions.index_select(0, i))
        if images is not None and table is not None:
            torch.index_select(images, 0, image, out=found.shifts[part])
            if batch.n_systems > 1:
                image.add_(batch.system.index_select(0, i) * len(images))
            vector.add_(table.index_select(0, image))
        _lengths(vector, found.distances[part])
    return _closer(batch, found, cutoff)


def measure(
    batch: AtomsBatch,
    pairs: Tensor,
    shifts: Tensor,
    cutoff: float,
    translations: Tensor | None = None,
) -> NeighborList:
    """The pairs that are closer than cutoff (Å), in the order given.

    Args:
        pairs: [2, Q] int64.
        shifts: [Q, 3] int64.
        translations: [Q, 3], shifts @ cell in Å, if the caller has kept them.

    Raises:
        ValueError: two atoms in the same place.
    """
    positions = batch.positions.detach().contiguous()
    found = replace(_empty(pairs, positions, with_shifts=False), shifts=shifts)
    for part in _chunks(pairs):
        vector = found.vectors[part]
        if translations is None:
            vector.copy_(
                pair_vectors(positions, batch.cell, batch.system, pairs[:, part], shifts[part])
            )
        else:
            torch.index_select(positions, 0, pairs[1, part], out=vector)
            vector.sub_(positions.index_select(0, pairs[0, part])).add_(translations[part])
        _lengths(vector, found.distances[part])
    return _closer(batch, found, cutoff)


def _lengths(vectors: Tensor, out: Tensor) -> None:
    """Write the lengths [P] of the vectors [P, 3], the same bits in every loop and on a GPU."""
    if vectors.device.type != "cpu":
        out.copy_(pair_distances(vectors))
        return
    x, y, z = vectors.numpy().T
    # correctly rounded, which torch's root on the CPU is not
    np.sqrt(x * x + y * y + z * z, out=out.numpy())


def _chunks(pairs: Tensor) -> list[slice]:
    n_pairs = pairs.shape[1]
    chunk = CHUNK if pairs.device.type == "cpu" else max(n_pairs, 1)
    return [slice(begin, begin + chunk) for begin in range(0, n_pairs, chunk)]


def _empty(pairs: Tensor, positions: Tensor, *, with_shifts: bool = True) -> NeighborList:
    n_pairs, dtype, device = pairs.shape[1], positions.dtype, positions.device
    return NeighborList(
        pairs,
        fresh((n_pairs if with_shifts else 0, 3), torch.int64, device).zero_(),
        fresh((n_pairs, 3), dtype, device),
        fresh((n_pairs,), dtype, device),
    )


def _closer(batch: AtomsBatch, found: NeighborList, cutoff: float) -> NeighborList:
    """The accepted part of a list whose vectors and distances are known."""
    if not found.n_pairs:
        return found
    shortest, longest = torch.stack(torch.aminmax(found.distances)).tolist()
    if shortest < OVERLAP:
        raise overlap_error(batch, found)
    # compared as tensors are: in the precision of the distances
    limit = cutoff if found.distances.dtype == torch.float64 else float(np.float32(cutoff))
    return found if longest < limit else found.within(cutoff)


def _translation_table(batch: AtomsBatch, candidates: Candidates) -> Tensor | None:
    """[B * M, 3] translations in Å, where looking them up is cheaper than computing them."""
    translations = candidates.translations
    if translations is None or candidates.wrap is not None:
        return None
    n_systems, n_images = batch.n_systems, len(translations)
    if n_systems * n_images > len(candidates.codes):
        return None
    systems = torch.arange(n_systems, device=translations.device)
    receivers = systems.repeat_interleave(n_images)
    return pair_translations(
        batch.cell.detach(), systems, receivers, translations.repeat(n_systems, 1)
    )


def lexicographic_order(pairs: Tensor, shifts: Tensor) -> Tensor:
    """Permutation [Q] that sorts by (i, j, shift): stable sorts from the last key to the first."""
    order = torch.arange(pairs.shape[1], device=pairs.device)
    for key in (shifts[:, 2], shifts[:, 1], shifts[:, 0], pairs[1], pairs[0]):
        order = order.index_select(0, torch.sort(key.index_select(0, order), stable=True)[1])
    return order


def overlap_error(batch: AtomsBatch, found: NeighborList) -> ValueError:
    """The error for the closest pair of a list."""
    closest = int(found.distances.argmin())
    i, j = (int(k) for k in found.pairs[:, closest])
    system = int(batch.system[i])
    first = int(torch.searchsorted(batch.system, batch.system[i : i + 1]))
    shift = found.shifts[closest].tolist()
    image = f" (its image {shift})" if any(shift) else ""
    elements = [element_symbol(int(batch.numbers[k])) for k in (i, j)]
    return ValueError(
        f"system {system}: atom {i - first} ({elements[0]}) and atom {j - first} ({elements[1]})"
        f"{image} are in the same place, {float(found.distances[closest]):.1e} Å apart; move them "
        f"apart or remove one of them"
    )
