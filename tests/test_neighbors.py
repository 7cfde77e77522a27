"""Neighbor lists against ASE's, and everything their docstrings promise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from nnpcalc.batch import AtomsBatch
from nnpcalc.neighbors import (
    NeighborList,
    geometry,
    neighbor_list,
    neighbor_lists,
    pair_distances,
    pair_vectors,
)
from nnpcalc.neighbors.pairs import accept
from nnpcalc.neighbors.search import small_and_open, torch_candidates
from random_structures import ase_rows, assert_identical, batch_of, random_structure, rows_of

ALGORITHMS = ("brute_force", "cell_list")


def by(algorithm: str, batch: AtomsBatch, cutoff: float) -> NeighborList:
    """The list from one of the algorithms of the torch back end."""
    return accept(batch, torch_candidates(batch, cutoff, algorithm), cutoff)


# --- against ASE -------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("mask", range(8))
def test_equal_to_ase_for_every_periodicity(algorithm: str, mask: int) -> None:
    rng = np.random.default_rng(100 + mask)
    structures = [random_structure(rng, 4.0, mask=mask) for _ in range(6)]
    for atoms in structures:
        found = by(algorithm, batch_of(atoms), 4.0)
        np.testing.assert_array_equal(rows_of(found), ase_rows([atoms], 4.0))
    together = by(algorithm, batch_of(structures), 4.0)
    np.testing.assert_array_equal(rows_of(together), ase_rows(structures, 4.0))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_systems=st.integers(1, 6),
    cutoff=st.floats(2.0, 7.0),
    max_atoms=st.integers(1, 60),
)
def test_any_batch_equals_ase(seed: int, n_systems: int, cutoff: float, max_atoms: int) -> None:
    rng = np.random.default_rng(seed)
    structures = [random_structure(rng, cutoff, max_atoms=max_atoms) for _ in range(n_systems)]
    batch = batch_of(structures)
    found = neighbor_list(batch, cutoff)
    np.testing.assert_array_equal(rows_of(found), ase_rows(structures, cutoff))
    for algorithm in ALGORITHMS:
        assert_identical(found, by(algorithm, batch, cutoff))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_500_random_structures_equal_ase(algorithm: str) -> None:
    seed, cutoff, group = 20261121, 5.0, 20
    print(f"seed {seed}, algorithm {algorithm}")
    rng = np.random.default_rng(seed)
    structures = [random_structure(rng, cutoff, mask=k % 8) for k in range(500)]
    for begin in range(0, 500, group):
        part = structures[begin : begin + group]
        expected = [ase_rows([atoms], cutoff) for atoms in part]
        for atoms, rows in zip(part, expected, strict=True):
            np.testing.assert_array_equal(rows_of(by(algorithm, batch_of(atoms), cutoff)), rows)
        together = rows_of(by(algorithm, batch_of(part), cutoff))
        np.testing.assert_array_equal(together, ase_rows(part, cutoff))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_asking_the_device(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU executes, where looking at a value means waiting, on the CPU."""
    monkeypatch.setattr(geometry, "asking_is_free", lambda device: False)
    rng = np.random.default_rng(21)
    structures = [random_structure(rng, 4.0, mask=k % 8) for k in range(16)]
    structures += [molecule("C6H6"), Atoms(), bulk("Cu") * (6, 6, 6)]
    for part in (structures, structures[-1:], [molecule("CH4")]):
        found = by(algorithm, batch_of(part), 4.0)
        np.testing.assert_array_equal(rows_of(found), ase_rows(part, 4.0))
    broken = batch_of(molecule("CH4"))
    broken.positions[2] = math.nan
    with pytest.raises(ValueError, match="system 0: atom 2"):
        neighbor_list(broken, 4.0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gpu_finds_the_same_list(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(22)
    structures = [random_structure(rng, 4.0, mask=k % 8) for k in range(16)]
    structures.append(bulk("Cu") * (12, 12, 12))
    batch = batch_of(structures, dtype)
    for algorithm in ALGORITHMS:
        found, expected = by(algorithm, batch.to("cuda"), 4.0), by(algorithm, batch, 4.0)
        for name in ("pairs", "shifts", "vectors", "distances"):
            assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name


# --- conventions -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_conventions(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(5)
    structures = [random_structure(rng, 4.0) for _ in range(8)]
    batch = batch_of(structures, dtype)
    found = neighbor_list(batch, 4.0)
    assert (found.pairs.dtype, found.shifts.dtype) == (torch.int64, torch.int64)
    assert (found.vectors.dtype, found.distances.dtype) == (dtype, dtype)
    i, j = found.pairs
    assert torch.equal(batch.system[i], batch.system[j])
    expected = pair_vectors(batch.positions, batch.cell, batch.system, found.pairs, found.shifts)
    assert torch.equal(found.vectors, expected)
    x, y, z = expected.numpy().T
    assert np.array_equal(found.distances.numpy(), np.sqrt(x * x + y * y + z * z))
    torch.testing.assert_close(found.distances, pair_distances(expected))
    assert bool((found.distances < 4.0).all())
    # sorted, without duplicates
    rows = rows_of(found)
    np.testing.assert_array_equal(rows, np.unique(rows, axis=0))
    # every pair is there in both directions, with exactly the opposite vector
    mirrored = np.column_stack((rows[:, 1], rows[:, 0], -rows[:, 2:]))
    back = np.lexsort(mirrored.T[::-1])
    np.testing.assert_array_equal(mirrored[back], rows)
    assert torch.equal(found.vectors[back], -found.vectors)


def test_an_atom_meets_its_images_but_not_itself() -> None:
    batch = batch_of(Atoms("H", cell=[3.0, 50.0, 50.0], pbc=[True, False, False]))
    found = neighbor_list(batch, 7.0)
    assert found.pairs.tolist() == [[0] * 4, [0] * 4]
    assert found.shifts.tolist() == [[-2, 0, 0], [-1, 0, 0], [1, 0, 0], [2, 0, 0]]
    assert found.distances.tolist() == [6.0, 3.0, 3.0, 6.0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_cutoff_itself_is_outside(algorithm: str) -> None:
    # 3, 4, 5 is exact in binary
    atoms = Atoms("H2", [[0, 0, 0], [3, 4, 0]])
    assert by(algorithm, batch_of(atoms), 5.0).n_pairs == 0
    assert by(algorithm, batch_of(atoms), math.nextafter(5.0, 6.0)).n_pairs == 2
    simple_cubic = Atoms("H", cell=[2.5] * 3, pbc=True)
    assert by(algorithm, batch_of(simple_cubic), 2.5).n_pairs == 0
    assert by(algorithm, batch_of(simple_cubic), 2.5000001).n_pairs == 6


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_pairs_at_the_cutoff_are_decided_alike(seed: int) -> None:
    """Crystals have many pairs at one distance; take a distance that occurs as the cutoff."""
    rng = np.random.default_rng(seed)
    crystal = bulk("Cu", cubic=bool(rng.random() < 0.5)) * tuple(rng.integers(1, 4, 3))
    crystal.rotate(float(rng.uniform(0, 90)), rng.normal(size=3), rotate_cell=True)
    crystal.positions += rng.integers(-2, 3, (len(crystal), 3)) @ crystal.cell.array
    for dtype in (torch.float64, torch.float32):
        batch = batch_of(crystal, dtype)
        distances = neighbor_list(batch, 6.0).distances
        cutoff = float(distances[int(rng.integers(len(distances)))])
        found = neighbor_list(batch, cutoff)
        assert_identical(found, by("brute_force", batch, cutoff))
        assert_identical(found, by("cell_list", batch, cutoff))
        assert_identical(found, neighbor_list(batch, 6.0).within(cutoff))


def test_float32_far_from_the_origin() -> None:
    """The list belongs to the positions as float32 has them, and no algorithm loses a pair."""
    rng = np.random.default_rng(8)
    structures = []
    for _ in range(5):
        atoms = random_structure(rng, 4.0, mask=7, max_atoms=40)
        atoms.positions += rng.integers(-40, 40, (len(atoms), 3)) @ atoms.cell.array
        structures.append(atoms)
    batch = batch_of(structures, torch.float32)
    found = by("cell_list", batch, 4.0)
    assert_identical(found, by("brute_force", batch, 4.0))
    exact = neighbor_list(batch.to(dtype=torch.float64), 4.1)
    clearly = rows_of(exact.within(3.9))
    rows = {tuple(row) for row in rows_of(found)}
    assert {tuple(row) for row in clearly} <= rows <= {tuple(row) for row in rows_of(exact)}


# --- awkward systems ---------------------------------------------------------------------------


def test_empty_space_costs_nothing() -> None:
    """Clusters 10^7 Å apart would need 10^19 bins in a dense grid, alone or in a cell as large."""
    rng = np.random.default_rng(9)
    cluster = rng.random((100, 3)) * 10
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]]) * 1e7
    positions = np.concatenate([cluster + corner for corner in corners])
    alone = neighbor_list(batch_of(Atoms("H100", cluster)), 4.0)
    for cell, pbc in ((None, False), (np.eye(3) * 4e7, True)):
        found = by("cell_list", batch_of(Atoms("H400", positions, cell=cell, pbc=pbc)), 4.0)
        assert found.n_pairs == 4 * alone.n_pairs
        assert torch.equal(found.pairs[:, : alone.n_pairs], alone.pairs)


def test_thin_and_tiny_cells() -> None:
    structures = [
        Atoms("H3", [[0, 0, 0], [5, 0.1, 0], [90, 0, 0.1]], cell=[100, 0.9, 0.9], pbc=True),
        Atoms("H", cell=[[0.8, 0, 0], [0, 0, 0], [0, 0, 0]], pbc=[True, False, False]),
        Atoms("He", [[7, 7, 7]], cell=[[0, 1, 1], [1, 0, 1], [1, 1, 0]], pbc=True),
        Atoms("H"),
    ]
    for algorithm in ALGORITHMS:
        found = by(algorithm, batch_of(structures), 5.0)
        np.testing.assert_array_equal(rows_of(found), ase_rows(structures, 5.0))


def test_open_directions_may_have_any_vector() -> None:
    rng = np.random.default_rng(3)
    positions = rng.random((30, 3)) * 6
    expected = None
    for open_vector in ([0, 0, 0], [0, 0, 9], [5, 5, 0.1], [6, 0, 0]):
        cell = [[6, 0, 0], [1, 6, 0], open_vector]
        atoms = Atoms("H30", positions, cell=cell, pbc=[True, True, False])
        rows = rows_of(neighbor_list(batch_of(atoms), 4.0))
        expected = rows if expected is None else expected
        np.testing.assert_array_equal(rows, expected)


def test_batches_with_empty_systems_and_none() -> None:
    water = molecule("H2O")
    found = neighbor_list(batch_of([Atoms(), water, Atoms(), water, Atoms()]), 5.0)
    assert found.pairs.tolist() == [
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5],
        [1, 2, 0, 2, 0, 1, 4, 5, 3, 5, 3, 4],
    ]
    crystal = bulk("Cu") * (5, 5, 5)
    both = by("cell_list", batch_of([Atoms(), crystal, Atoms(), crystal]), 4.0)
    assert both.n_pairs == 2 * by("cell_list", batch_of(crystal), 4.0).n_pairs
    for nothing in (batch_of([]), batch_of([Atoms()])):
        found = neighbor_list(nothing, 5.0)
        assert (found.n_pairs, tuple(found.vectors.shape)) == (0, (0, 3))


def test_a_batch_is_its_systems() -> None:
    """Large and small, open and periodic together equal each alone, to the last bit."""
    rng = np.random.default_rng(4)
    structures = [
        bulk("NaCl", "rocksalt", a=5.64) * (4, 4, 4),
        molecule("C6H6"),
        Atoms("H900", rng.random((900, 3)) * 30),
        random_structure(rng, 4.5, mask=3),
        molecule("CH4"),
    ]
    batch = batch_of(structures)
    found = neighbor_list(batch, 4.5)
    first = 0
    for k, atoms in enumerate(structures):
        index = torch.nonzero(batch.system[found.pairs[0]] == k)[:, 0]
        part = found.select(index)
        assert_identical(
            replace(part, pairs=part.pairs - first), neighbor_list(batch_of(atoms), 4.5)
        )
        first += len(atoms)


# --- the interface -----------------------------------------------------------------------------


def test_several_cutoffs_from_one_search() -> None:
    rng = np.random.default_rng(6)
    batch = batch_of([random_structure(rng, 6.0) for _ in range(5)])
    cutoffs = [3.0, 6.0, 4.5, 6.0]
    for cutoff, found in zip(cutoffs, neighbor_lists(batch, cutoffs), strict=True):
        assert_identical(found, neighbor_list(batch, cutoff))
    with pytest.raises(ValueError, match="at least one cutoff"):
        neighbor_lists(batch, [])


def test_overlapping_atoms_are_named() -> None:
    rng = np.random.default_rng(1)
    atoms = Atoms("H" * 20 + "O" + "C" * 179, rng.random((200, 3)) * 60)
    atoms.positions[73] = atoms.positions[20] + [0, 0, 5e-7]
    for structures in ([atoms], [molecule("H2O"), atoms]):
        where = f"system {len(structures) - 1}: atom 20 .O. and atom 73 .C. are in the same place"
        for algorithm in ALGORITHMS:
            with pytest.raises(ValueError, match=where):
                by(algorithm, batch_of(structures), 3.0)
    image = Atoms("HF", [[0, 0, 0], [4, 0, 0]], cell=[4, 4, 4], pbc=True)
    where = r"atom 0 \(H\) and atom 1 \(F\) \(its image \[-1, 0, 0\]\)"
    with pytest.raises(ValueError, match=where):
        neighbor_list(batch_of(image), 3.0)


def test_positions_that_are_not_finite_are_named() -> None:
    batch = batch_of([molecule("H2O"), molecule("CH4")])
    positions = batch.positions.clone()
    positions[5, 1] = math.nan
    with pytest.raises(ValueError, match=r"system 1: atom 2 \(H\) has the position"):
        neighbor_list(replace(batch, positions=positions), 5.0)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, math.nan, math.inf])
def test_a_cutoff_is_a_length(cutoff: float) -> None:
    with pytest.raises(ValueError, match="cutoff must be a positive number"):
        neighbor_list(batch_of(molecule("H2O")), cutoff)


def test_no_graph_and_no_change_of_the_input() -> None:
    batch = batch_of(bulk("Cu") * (3, 3, 3))
    before = batch.positions.clone()
    tracked = replace(
        batch, positions=batch.positions.requires_grad_(), cell=batch.cell.requires_grad_()
    )
    found = neighbor_list(tracked, 5.0)
    assert not found.vectors.requires_grad
    assert not found.distances.requires_grad
    assert torch.equal(batch.positions, before)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_pair_vectors_are_differentiable_and_scriptable() -> None:
    rng = np.random.default_rng(2)
    batch = batch_of([random_structure(rng, 3.0, max_atoms=8, mask=7) for _ in range(2)])
    found = neighbor_list(batch, 3.0)
    assert found.n_pairs > 0
    positions, cell = batch.positions.clone().requires_grad_(), batch.cell.clone().requires_grad_()
    scripted = torch.jit.script(pair_vectors)
    for function in (pair_vectors, scripted):
        vectors = function(positions, cell, batch.system, found.pairs, found.shifts)
        assert torch.equal(vectors.detach(), found.vectors)
        assert torch.autograd.gradcheck(
            lambda x, c, f=function: f(x, c, batch.system, found.pairs, found.shifts),
            (positions, cell),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_open_systems_have_an_algorithm_of_their_own(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(5)
    structures = [random_structure(rng, 5.0, mask=0) for _ in range(8)] + [Atoms("O"), Atoms()]
    batch = AtomsBatch.from_atoms(structures, dtype=dtype)
    assert small_and_open(batch)
    assert_identical(neighbor_list(batch, 5.0), by("brute_force", batch, 5.0))
    for far in (Atoms("O"), bulk("Si", cubic=True)):
        none = neighbor_list(AtomsBatch.from_atoms(far, dtype=dtype), 1.0)
        assert none.n_pairs == 0 and none.vectors.shape == (0, 3)


def test_which_batches_are_small_and_open() -> None:
    crystal, large = (
        bulk("Si", cubic=True),
        Atoms("H129", positions=np.arange(387.0).reshape(-1, 3)),
    )
    for structure in (crystal, large):
        assert not small_and_open(AtomsBatch.from_atoms([molecule("H2O"), structure]))
