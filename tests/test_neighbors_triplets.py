"""Triplets and pairs of neighbors against loops over the list."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms

from nnpcalc.neighbors import NeighborList, neighbor_list, neighbor_pairs, triplets
from random_structures import batch_of, random_structure


def triplets_by_loops(found: NeighborList) -> list[tuple[int, int]]:
    pairs, shifts = found.pairs.T.tolist(), found.shifts
    return [
        (a, b)
        for a, (i, j) in enumerate(pairs)
        for b, (receiver, k) in enumerate(pairs)
        if receiver == j and not (k == i and torch.equal(shifts[b], -shifts[a]))
    ]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("seed", [0, 1, 2, 4])
def test_triplets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = batch_of([random_structure(rng, 3.0, max_atoms=12) for _ in range(3)])
    found = neighbor_list(batch, 3.0)
    expected = triplets_by_loops(found)
    assert expected
    for function in (triplets, torch.jit.script(triplets)):
        ji, kj = function(found.pairs, found.vectors, batch.n_atoms)
        assert list(zip(ji.tolist(), kj.tolist(), strict=True)) == expected


def test_angles_of_a_bent_molecule() -> None:
    water = Atoms("OH2", [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    found = neighbor_list(batch_of(water), 1.2)
    ji, kj = triplets(found.pairs, found.vectors, 3)
    # two paths, H-O-H and back, both around a right angle
    assert [found.pairs[:, ji].tolist(), found.pairs[:, kj].tolist()] == [
        [[1, 2], [0, 0]],
        [[0, 0], [2, 1]],
    ]
    assert torch.equal(
        (-found.vectors[ji] * found.vectors[kj]).sum(1).abs(), torch.zeros(2).double()
    )


def test_going_on_to_another_image_is_no_return() -> None:
    chain = batch_of(Atoms("H", cell=[2.0, 9, 9], pbc=[True, False, False]))
    found = neighbor_list(chain, 3.0)
    ji, kj = triplets(found.pairs, found.vectors, 1)
    assert (ji.tolist(), kj.tolist()) == ([0, 1], [0, 1])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("seed", range(3))
def test_neighbor_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = batch_of([random_structure(rng, 3.0, max_atoms=15) for _ in range(3)])
    receivers = neighbor_list(batch, 3.0).pairs
    rows = receivers[0].tolist()
    expected = [
        (a, b) for a in range(len(rows)) for b in range(a + 1, len(rows)) if rows[a] == rows[b]
    ]
    assert expected
    for function in (neighbor_pairs, torch.jit.script(neighbor_pairs)):
        a, b = function(receivers, batch.n_atoms)
        assert list(zip(a.tolist(), b.tolist(), strict=True)) == expected


def test_nothing_from_nothing() -> None:
    found = neighbor_list(batch_of(Atoms("H")), 3.0)
    assert [t.tolist() for t in triplets(found.pairs, found.vectors, 1)] == [[], []]
    assert [t.tolist() for t in neighbor_pairs(found.pairs, 1)] == [[], []]
