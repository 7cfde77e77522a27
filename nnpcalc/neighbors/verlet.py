"""The Verlet list: a neighbor list that lasts for many steps of a trajectory.

The search looks farther than the cutoff by a skin. Until two atoms have together moved by the skin,
that is until one has moved by half of it, no pair outside can have come inside the cutoff.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nnpcalc.neighbors import geometry
from nnpcalc.neighbors.backends import candidates, find
from nnpcalc.neighbors.geometry import pair_translations, periodic_basis
from nnpcalc.neighbors.pairs import (
    OVERLAP,
    NeighborList,
    checked_cutoff,
    empty_list,
    measure,
    overlap_error,
)
from nnpcalc.neighbors.wrapping import per_atom, rounding, transform

if TYPE_CHECKING:
    from nnpcalc.batch import AtomsBatch
    from nnpcalc.neighbors.held import Held


@dataclass(frozen=True)
class _Built:
    """A search and what it holds for.

    Attributes:
        batch: the batch of the search, its cell copied. Its positions are not looked at again.
        cell: of the batch, as it was given.
        positions: float64 [N, 3] in Å. Where systems were searched at different times, each has the
            positions of its own search.
        lattice: `periodic_basis` of the cells, or None if all systems are open (on the CPU only).
        pairs, shifts: [2, Q] and [Q, 3] of the search.
        translations: [Q, 3], shifts @ cell in Å.
        jumps: int64 [N, 3], lattice vectors by which atoms have jumped since the search, or None.
        original_shifts: [Q, 3] before these jumps.
        held: the same for the CPU, while no atom has jumped; else None.
    """

    batch: AtomsBatch
    cell: Tensor
    positions: Tensor
    lattice: tuple[Tensor, Tensor, Tensor] | None
    pairs: Tensor
    shifts: Tensor
    translations: Tensor
    jumps: Tensor | None
    original_shifts: Tensor
    held: Held | None

    @staticmethod
    def of(
        batch: AtomsBatch,
        positions: Tensor,
        cutoff: float,
        skin: float,
        pairs: Tensor,
        shifts: Tensor,
    ) -> _Built:
        """A list of a batch; positions, which are not copied, are where atoms were searched."""
        cell, batch = batch.cell, replace(batch, cell=batch.cell.clone())
        may_ask, lattice, held = geometry.asking_is_free(batch.device), None, None
        if not may_ask or bool(batch.pbc.any()):
            lattice = periodic_basis(batch.cell, batch.pbc)
        translations = pair_translations(batch.cell, batch.system, pairs[0], shifts)
        if may_ask:
            from nnpcalc.neighbors.held import Held  # numba takes a while to import

            limit = float(_limit(batch, lattice, cutoff + skin, skin))
            if limit > 0:
                held = Held(positions, limit, pairs, shifts, translations, cutoff)
        return _Built(
            batch, cell, positions, lattice, pairs, shifts, translations, None, shifts, held
        )

    def same_layout(self, new: AtomsBatch) -> bool:
        """Whether atom k and system b of a batch can be atom k and system b of this one."""
        old = self.batch
        if new.system is old.system and new.cell is self.cell:  # asking for sizes takes 3 µs
            return True
        return (
            old.system.shape == new.system.shape
            and old.n_systems == new.n_systems
            and (old.dtype, old.device) == (new.dtype, new.device)
            and (old.system is new.system or torch.equal(old.system, new.system))
        )

    def held_for(self, batch: AtomsBatch) -> Held | None:
        """The candidates, if a batch of the same layout has them wherever its atoms are."""
        old = self.batch
        if (
            self.held is None
            or not (batch.numbers is old.numbers or torch.equal(batch.numbers, old.numbers))
            or not (batch.pbc is old.pbc or torch.equal(batch.pbc, old.pbc))
            or not (self.lattice is None or torch.equal(batch.cell, old.cell))
        ):
            return None
        return self.held

    def now(self, batch: AtomsBatch) -> NeighborList | None:
        """The list of a batch of the same layout; None if it takes more than measuring pairs.

        Raises:
            ValueError: two atoms in the same place.
        """
        held = self.held_for(batch)
        if held is None:
            return None
        positions = batch.positions
        measured = held.closer(positions.detach() if positions.requires_grad else positions)
        if measured is None:
            return None
        found, shortest = measured
        if shortest < OVERLAP:
            raise overlap_error(batch, found)
        return found

    def jumped(self, jumps: Tensor) -> _Built:
        """The same pairs after atoms have jumped by lattice vectors [N, 3] since the search.

        With x = x' - jump @ cell: r_ij = x'_j - x'_i + (shift - jump_j + jump_i) @ cell.
        """
        i, j = self.pairs
        shifts = self.original_shifts - jumps.index_select(0, j) + jumps.index_select(0, i)
        translations = pair_translations(self.batch.cell, self.batch.system, i, shifts)
        return replace(self, jumps=jumps, shifts=shifts, translations=translations, held=None)


@dataclass(frozen=True)
class _Comparison:
    """A batch beside the last search: stale systems [B] bool, whether some, whether all; jumps
    [N, 3] int64 and whether they are new."""

    stale: Tensor
    some: bool
    every: bool
    jumps: Tensor
    new_jumps: bool


def _limit(
    batch: AtomsBatch,
    lattice: tuple[Tensor, Tensor, Tensor] | None,
    reach: float,
    skin: float,
) -> Tensor:
    """How far an atom may move: half the skin, less what rounding could hide."""
    scale = batch.positions.abs().max().to(torch.float64) + skin
    basis, heights = (None, None) if lattice is None else (lattice[0], lattice[2])
    return skin / 2 - rounding(batch, scale, basis, heights, reach)


class VerletList:
    """A neighbor list for one trajectory, of one system or of a batch.

    `update` returns what `neighbor_list` would, pair for pair, but searches again only the systems
    of which an atom has moved by more than half the skin since their last search, or of which the
    cell, the periodicity or an element has changed. Another number of atoms or systems, dtype or
    device is a new trajectory. Positions may be wrapped, or jump by lattice vectors, at any time: a
    displacement counts modulo the lattice, and the shifts of the pairs follow the jump.

    Attributes:
        cutoff, skin: Å. They may be changed; the next update searches.
        backend: as in `neighbor_list`.
        n_searches: updates that had to search, in at least one system.
        n_systems_searched: systems searched in all updates.

    >>> from ase.build import molecule
    >>> from nnpcalc import AtomsBatch
    >>> water = AtomsBatch.from_atoms(molecule("H2O"))
    >>> neighbors = VerletList(cutoff=5.0, skin=0.5)
    >>> neighbors.update(water).n_pairs, neighbors.update(water).n_pairs, neighbors.n_searches
    (6, 6, 1)
    """

    def __init__(self, cutoff: float, *, skin: float = 0.5, backend: str = "torch") -> None:
        self.cutoff = checked_cutoff(cutoff)
        self.skin = float(skin)
        if not (math.isfinite(self.skin) and self.skin >= 0):
            raise ValueError(f"the skin must be a length in Å, 0 or more, not {skin!r}")
        self.backend = backend
        self.n_searches = 0
        self.n_systems_searched = 0
        self._built: _Built | None = None
        self._settings: tuple[float, float, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the list, which the next call makes anew: views of memory that may be moved."""
        return {**self.__dict__, "_built": None}

    def reset(self) -> None:
        """Forget the list: the next update searches."""
        self._built = None

    def held(self, batch: AtomsBatch) -> Held | None:
        """What the next update of this batch would measure, if it need not search."""
        built = self._built
        if built is None or (self.cutoff, self.skin, self.backend) != self._settings:
            return None
        return built.held_for(batch) if built.same_layout(batch) else None

    def update(self, batch: AtomsBatch) -> NeighborList:
        """The pairs of a batch closer than the cutoff: equal to `neighbor_list(batch, cutoff)`.

        The tensors are not to be written into; some are kept for the next update.

        Raises:
            ValueError: as `neighbor_list`.
        """
        built, settings = self._built, (self.cutoff, self.skin, self.backend)
        if built is not None and (settings != self._settings or not built.same_layout(batch)):
            built = None
        found = None if built is None else built.now(batch)
        if found is None:
            # nothing is kept if this fails
            self._built, self._settings = None, settings
            found = self._renewed(built, batch)
        return found

    @torch.no_grad()
    def _renewed(self, built: _Built | None, batch: AtomsBatch) -> NeighborList:
        """The pairs of a batch of the same layout as `built`, or after a search."""
        if not batch.n_atoms:
            return empty_list(batch)
        batch = replace(
            batch,
            positions=batch.positions.detach(),
            cell=batch.cell.detach() if batch.cell.requires_grad else batch.cell,
            partial_charges=None,
        )
        if self.skin == 0:
            self.n_searches += 1
            self.n_systems_searched += batch.n_systems
            return find(batch, self.cutoff, self.backend)
        built = self._search(batch) if built is None else self._follow(built, batch)
        found = measure(batch, built.pairs, built.shifts, self.cutoff, built.translations)
        self._built = built
        return found

    def _search(self, batch: AtomsBatch) -> _Built:
        """A list from a search in all systems."""
        reach = self.cutoff + self.skin
        self.n_searches += 1
        self.n_systems_searched += batch.n_systems
        pairs, shifts = candidates(batch, reach, self.backend)
        positions = batch.positions.to(torch.float64, copy=True)
        return _Built.of(batch, positions, self.cutoff, self.skin, pairs, shifts)

    def _follow(self, built: _Built, batch: AtomsBatch) -> _Built:
        """The list for new positions: the same, with other shifts, or partly searched again."""
        seen = self._compare(built, batch)
        if seen.every:
            return self._search(batch)
        if seen.some:
            return self._search_some(built, batch, seen)
        return built.jumped(seen.jumps) if seen.new_jumps else built

    def _compare(self, built: _Built, batch: AtomsBatch) -> _Comparison:
        """Compare all atoms with their last search; the host waits for the answer once."""
        old, system = built.batch, batch.system
        moved = (batch.positions - built.positions).T.contiguous()
        jumps = torch.zeros_like(moved)
        if built.lattice is not None:
            basis, inverse, _ = built.lattice
            pbc = torch.stack([per_atom(p, system) for p in old.pbc.unbind(1)])
            jumps = torch.where(pbc, transform(moved, inverse, system).round(), 0.0)
            moved = moved - transform(jumps, basis, system)
        limit = _limit(batch, built.lattice, self.cutoff + self.skin, self.skin)
        # written so that a position that is not a number counts as far
        near = ((moved * moved).sum(0) <= limit * limit) & (limit > 0)
        changed = (~near | (batch.numbers != old.numbers)).to(torch.int64)
        stale = torch.zeros_like(batch.charge).index_add_(0, system, changed) > 0
        stale |= (batch.cell != old.cell).flatten(1).any(1) | (batch.pbc != old.pbc).any(1)
        steps = jumps.T.to(torch.int64)
        new_jumps = steps.any() if built.jumps is None else (steps != built.jumps).any()
        # of positions that are not finite a search of all systems complains best
        every_stale = stale.all() | ~torch.isfinite(limit)
        some, every, jumped = torch.stack((stale.any(), every_stale, new_jumps)).tolist()
        return _Comparison(stale, some, every, steps, jumped)

    def _search_some(self, built: _Built, batch: AtomsBatch, seen: _Comparison) -> _Built:
        """Search the stale systems and put their pairs in the place of the old ones."""
        reach, system = self.cutoff + self.skin, batch.system
        stale_atom = seen.stale.index_select(0, system)
        atoms = torch.nonzero(stale_atom)[:, 0]
        systems = torch.nonzero(seen.stale)[:, 0]
        self.n_searches += 1
        self.n_systems_searched += len(systems)
        new_pairs, new_shifts = candidates(_part(batch, systems, atoms), reach, self.backend)
        new_pairs = atoms.index_select(0, new_pairs.reshape(-1)).reshape(2, -1)

        # the others keep their search, and their positions of then, moved along with the jumps
        old = built.jumped(seen.jumps) if seen.new_jumps else built
        positions = built.positions
        if built.lattice is not None:
            jumps = seen.jumps.T.to(torch.float64)
            positions = positions + transform(jumps, built.lattice[0], system).T
        positions = torch.where(stale_atom[:, None], batch.positions, positions)
        kept = torch.nonzero(~stale_atom.index_select(0, old.pairs[0]))[:, 0]
        pairs = torch.cat((old.pairs.index_select(1, kept), new_pairs), 1)
        shifts = torch.cat((old.shifts.index_select(0, kept), new_shifts))
        order = torch.sort(system.index_select(0, pairs[0]), stable=True)[1]
        pairs, shifts = pairs.index_select(1, order), shifts.index_select(0, order)
        return _Built.of(batch, positions, self.cutoff, self.skin, pairs, shifts)


def _part(batch: AtomsBatch, systems: Tensor, atoms: Tensor) -> AtomsBatch:
    """Some systems of a batch: their numbers, and those of their atoms, ascending."""
    new_number = torch.zeros_like(batch.charge)
    new_number[systems] = torch.arange(len(systems), device=batch.device)
    return replace(
        batch,
        numbers=batch.numbers.index_select(0, atoms),
        positions=batch.positions.index_select(0, atoms),
        cell=batch.cell.index_select(0, systems),
        pbc=batch.pbc.index_select(0, systems),
        system=new_number.index_select(0, batch.system.index_select(0, atoms)),
        charge=batch.charge.index_select(0, systems),
        multiplicity=batch.multiplicity.index_select(0, systems),
    )
