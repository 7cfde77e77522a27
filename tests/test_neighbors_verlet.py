"""`VerletList` equals `neighbor_list` at every step, and searches only when it must."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from nnpcalc.batch import AtomsBatch
from nnpcalc.neighbors import VerletList, geometry, neighbor_list
from random_structures import assert_identical, batch_of, random_structure


def moved(batch: AtomsBatch, by: torch.Tensor) -> AtomsBatch:
    """The batch with other positions."""
    return replace(batch, positions=batch.positions + by.to(batch.dtype))


def lattice_jumps(batch: AtomsBatch, rng: np.random.Generator, share: float) -> torch.Tensor:
    """Translations [N, 3] of some atoms by lattice vectors along periodic directions."""
    steps = rng.integers(-2, 3, (batch.n_atoms, 3)) * (rng.random((batch.n_atoms, 1)) < share)
    steps = torch.tensor(steps, dtype=batch.dtype) * batch.pbc[batch.system]
    return (steps[:, None] @ batch.cell[batch.system])[:, 0]


@pytest.fixture(params=[True, False], ids=["cpu", "as-on-a-gpu"])
def asking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways through the code, on the CPU."""
    monkeypatch.setattr(geometry, "asking_is_free", lambda device: request.param)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_systems=st.integers(1, 4),
    skin=st.sampled_from([0.0, 0.2, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_any_trajectory(seed: int, n_systems: int, skin: float, dtype: torch.dtype) -> None:
    """Random walks with jumps of single atoms, changed cells and changed periodicity."""
    rng = np.random.default_rng(seed)
    structures = [
        random_structure(rng, 4.0, max_atoms=30, mask=k % 8)
        for k in rng.integers(8, size=n_systems)
    ]
    batch = batch_of(structures, dtype)
    neighbors = VerletList(4.0, skin=skin)
    for _ in range(15):
        batch = moved(batch, torch.tensor(rng.normal(0, 0.04, (batch.n_atoms, 3))))
        if rng.random() < 0.5:
            batch = moved(batch, lattice_jumps(batch, rng, 0.2))
        if rng.random() < 0.1:
            batch = replace(batch, cell=batch.cell * 1.01)
        if rng.random() < 0.1:
            batch = replace(batch, pbc=batch.pbc & torch.tensor(rng.random(3) < 0.8))
        assert_identical(neighbors.update(batch), neighbor_list(batch, 4.0))


def test_searches_after_half_the_skin(asking: None) -> None:
    batch = batch_of(bulk("Cu", cubic=True) * (2, 2, 2))
    neighbors = VerletList(4.0, skin=0.5)
    neighbors.update(batch)
    step = torch.zeros(batch.n_atoms, 3)
    for distance, searches in ((0.2499, 1), (-0.2499, 1), (0.2501, 2), (0.5, 2), (0.5003, 3)):
        step[3, 1] = distance
        assert_identical(
            neighbors.update(moved(batch, step)), neighbor_list(moved(batch, step), 4.0)
        )
        assert neighbors.n_searches == searches, distance


def test_no_pair_is_missed_when_two_atoms_approach() -> None:
    """Each may come by half the skin: the worst case."""
    batch = batch_of(Atoms("H2", [[0, 0, 0], [4.9998, 0, 0]]))
    neighbors = VerletList(4.0, skin=1.0)
    assert neighbors.update(batch).n_pairs == 0
    closer = moved(batch, torch.tensor([[0.49995, 0, 0], [-0.49995, 0, 0]]))
    assert neighbors.update(closer).n_pairs == 2
    assert neighbors.n_searches == 1


def test_jumps_need_no_search(asking: None) -> None:
    """Wrapping is not motion; the shifts follow, and follow back."""
    rng = np.random.default_rng(3)
    batch = batch_of([random_structure(rng, 4.0, mask=mask) for mask in (7, 5, 7)])
    neighbors = VerletList(4.0, skin=0.5)
    neighbors.update(batch)
    for share in (0.1, 1.0, 0.0, 0.5):
        jumped = moved(batch, lattice_jumps(batch, rng, share))
        assert_identical(neighbors.update(jumped), neighbor_list(jumped, 4.0))
    assert neighbors.n_searches == 1


def test_only_stale_systems_are_searched(asking: None) -> None:
    rng = np.random.default_rng(4)
    structures = [random_structure(rng, 4.0, max_atoms=40) for _ in range(6)]
    batch = batch_of(structures)
    neighbors = VerletList(4.0, skin=0.5)
    neighbors.update(batch)
    assert neighbors.n_systems_searched == 6
    step = torch.zeros(batch.n_atoms, 3)
    step[batch.system == 1] = 0.3
    step[batch.system == 4] = -0.2
    # those that stay may jump while others are searched
    batch = moved(moved(batch, step), lattice_jumps(batch, rng, 0.3))
    assert_identical(neighbors.update(batch), neighbor_list(batch, 4.0))
    assert (neighbors.n_searches, neighbors.n_systems_searched) == (2, 8)
    # the others still remember where they were searched
    step = torch.zeros(batch.n_atoms, 3, dtype=torch.float64)
    step[batch.system == 0] = 0.14
    assert_identical(neighbors.update(moved(batch, step)), neighbor_list(moved(batch, step), 4.0))
    assert neighbors.n_systems_searched == 8
    cell = batch.cell.clone()
    cell[5] = cell[5] * 1.001
    batch = replace(batch, cell=cell)
    assert_identical(neighbors.update(batch), neighbor_list(batch, 4.0))
    assert neighbors.n_systems_searched == 9


def test_another_structure_gets_another_list(asking: None) -> None:
    """The same number of atoms at the same places is not the same structure."""
    crystal = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    batch = batch_of(crystal)
    for change in (
        {"numbers": batch.numbers.flip(0)},
        {"pbc": torch.tensor([[True, True, False]])},
        {"cell": batch.cell * 1.0001},
        {"positions": batch.positions.flip(0)},
    ):
        neighbors = VerletList(5.0, skin=0.5)
        neighbors.update(batch)
        other = replace(batch, **change)
        assert_identical(neighbors.update(other), neighbor_list(other, 5.0))
        assert neighbors.n_searches == 2, change
    # the same atoms, divided differently
    pair = batch_of([molecule("H2O"), molecule("H2O")])
    neighbors = VerletList(5.0, skin=0.5)
    neighbors.update(pair)
    water, extra = molecule("H2O"), Atoms("O", [[0, 2, 0]])
    one = batch_of(water + extra)
    two = batch_of([water + extra, water[1:]])
    for other in (two, one, batch_of(molecule("CH4")), pair.to(dtype=torch.float32)):
        assert_identical(neighbors.update(other), neighbor_list(other, 5.0))


def test_settings_may_change() -> None:
    batch = batch_of(bulk("Cu") * (3, 3, 3))
    neighbors = VerletList(4.0, skin=0.5)
    neighbors.update(batch)
    neighbors.cutoff = 5.0
    assert_identical(neighbors.update(batch), neighbor_list(batch, 5.0))
    neighbors.skin = 0.0
    assert_identical(neighbors.update(batch), neighbor_list(batch, 5.0))
    assert_identical(neighbors.update(batch), neighbor_list(batch, 5.0))
    assert neighbors.n_searches == 4
    neighbors.skin = 1.0
    neighbors.update(batch)
    neighbors.reset()
    neighbors.update(batch)
    assert neighbors.n_searches == 6


def test_positions_changed_in_place_are_seen() -> None:
    batch = batch_of(bulk("Cu") * (3, 3, 3))
    neighbors = VerletList(4.0, skin=0.5)
    neighbors.update(batch)
    batch.positions[5] += 1.0
    batch.cell.mul_(1.01)
    assert_identical(neighbors.update(batch), neighbor_list(batch, 4.0))
    assert neighbors.n_searches == 2


def test_no_graph_is_kept_alive() -> None:
    batch = batch_of(bulk("Cu") * (2, 2, 2))
    neighbors = VerletList(4.0, skin=0.5)
    leaf = batch.positions.clone().requires_grad_()
    positions = leaf * 1.0
    found = neighbors.update(replace(batch, positions=positions))
    assert not found.vectors.requires_grad
    alive = weakref.ref(positions)
    del positions
    gc.collect()
    assert alive() is None


def test_errors_leave_nothing_behind(asking: None) -> None:
    batch = batch_of([molecule("H2O"), molecule("CH4")])
    neighbors = VerletList(5.0, skin=0.5)
    neighbors.update(batch)
    broken = batch.positions.clone()
    broken[4] = math.nan
    with pytest.raises(ValueError, match="system 1: atom 1"):
        neighbors.update(replace(batch, positions=broken))
    assert_identical(neighbors.update(batch), neighbor_list(batch, 5.0))
    together = batch.positions.clone()
    together[5] = together[6]
    with pytest.raises(ValueError, match=r"system 1: atom 2 \(H\) and atom 3 \(H\) are in"):
        neighbors.update(replace(batch, positions=together))
    assert_identical(neighbors.update(batch), neighbor_list(batch, 5.0))


def test_empty_batches_pass_through() -> None:
    neighbors = VerletList(5.0)
    assert neighbors.update(batch_of([])).n_pairs == 0
    assert neighbors.update(batch_of(molecule("H2O"))).n_pairs == 6


@pytest.mark.parametrize("skin", [-0.1, math.nan, math.inf])
def test_a_skin_is_a_length(skin: float) -> None:
    with pytest.raises(ValueError, match="skin must be a length"):
        VerletList(5.0, skin=skin)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_atoms_that_meet_without_a_search(dtype: torch.dtype, asking: None) -> None:
    batch = batch_of(Atoms("OHH", [[0, 0, 0], [0.01, 0, 0], [0, 0, 1]]), dtype)
    neighbors = VerletList(5.0, skin=0.5)
    neighbors.update(batch)
    meeting = moved(batch, torch.tensor([[0.01, 0, 0], [0, 0, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match=r"system 0: atom 0 \(O\) and atom 1 \(H\) are in"):
        neighbors.update(meeting)
    assert neighbors.n_searches == 1
    leaf = batch.positions.clone().requires_grad_()
    assert_identical(neighbors.update(replace(batch, positions=leaf)), neighbor_list(batch, 5.0))
