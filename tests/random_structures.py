"""Random periodic structures of the kinds that neighbor lists get wrong."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.geometry import complete_cell
from ase.neighborlist import primitive_neighbor_list
from numpy.typing import NDArray

from nnpcalc.batch import AtomsBatch
from nnpcalc.neighbors import NeighborList

MAX_DENSITY = 0.4  # atoms per Å^3


def random_structure(
    rng: np.random.Generator, cutoff: float, *, max_atoms: int = 200, mask: int | None = None
) -> Atoms:
    """A structure of 1 to max_atoms atoms, with any mixture of periodic directions.

    Cell lengths are 0.3 to 3 cutoffs, skewed by up to 60 degrees in three ways, half of the cells
    in a general orientation, some left-handed; half of the structures have atoms some cells away.

    Args:
        cutoff: Å.
        mask: the periodic directions as bits, 0 to 7; random if not given.
    """
    bits = int(rng.integers(8)) if mask is None else mask
    pbc = np.array([bits & 1, bits & 2, bits & 4], dtype=bool)
    cell = _random_cell(rng, cutoff)
    # AtomsBatch refuses cells with more than 10^5 images within 10 Å
    while np.prod(20 * np.linalg.norm(np.linalg.inv(cell), axis=0) + 3) > 5e4:
        cell = _random_cell(rng, cutoff)
    most = min(max_atoms, int(MAX_DENSITY * abs(np.linalg.det(cell))) + 1)
    n_atoms = int(np.exp(rng.uniform(0, np.log(most + 1))))
    fractional = rng.random((n_atoms, 3))
    if rng.random() < 0.5:
        fractional += rng.integers(-3, 4, (n_atoms, 3))
    positions = fractional @ cell
    if rng.random() < 0.3:
        cell[~pbc] = 0.0
    return Atoms(numbers=rng.choice([1, 6, 8], n_atoms), positions=positions, cell=cell, pbc=pbc)


def _random_cell(rng: np.random.Generator, cutoff: float) -> NDArray[np.float64]:
    lengths = rng.uniform(0.3, 3.0, 3) * cutoff
    cell = np.diag(lengths)
    if rng.random() < 0.7:
        slope = np.tan(np.radians(rng.uniform(-60, 60, 3)))
        cell[1, 0], cell[2, 0], cell[2, 1] = slope * lengths[[1, 2, 2]]
    if rng.random() < 0.5:
        cell = cell @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    if rng.random() < 0.3:
        cell[int(rng.integers(3))] *= -1
    return cell


def batch_of(structures: Atoms | list[Atoms], dtype: torch.dtype = torch.float64) -> AtomsBatch:
    """The structures as a batch, whatever their electrons."""
    structures = [structures] if isinstance(structures, Atoms) else structures
    neutral = []
    for atoms in structures:
        plain = atoms.copy()
        plain.info.clear()
        neutral.append(plain)
    return AtomsBatch.from_atoms(neutral, dtype=dtype)


def ase_rows(structures: list[Atoms], cutoff: float) -> NDArray[np.int64]:
    """Rows (i, j, shift) of all structures, sorted, by ASE's neighbor list.

    Zero cell vectors of open directions are filled in, without which ASE 3.29 loses pairs.
    """
    rows, first = [np.zeros((0, 5), dtype=np.int64)], 0
    for atoms in structures:
        cell = atoms.cell.array
        cell = np.where(cell.any(1)[:, None], cell, 10 * complete_cell(cell))
        i, j, shifts = primitive_neighbor_list(
            "ijS", atoms.pbc, cell, atoms.positions, cutoff, self_interaction=False
        )
        found = np.column_stack((i + first, j + first, shifts)).astype(np.int64)
        rows.append(found[np.lexsort(found.T[::-1])])
        first += len(atoms)
    return np.concatenate(rows)


def rows_of(found: NeighborList) -> NDArray[np.int64]:
    """Rows (i, j, shift) of a list, in its order."""
    return torch.cat((found.pairs.T, found.shifts), 1).cpu().numpy()


def assert_identical(a: NeighborList, b: NeighborList) -> None:
    """Equal to the last bit, order included."""
    for name in ("pairs", "shifts", "vectors", "distances"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype
        assert torch.equal(left, right), name
