"""Other programs behind `neighbor_list`: the same pairs, or an error that helps."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

import nnpcalc
from nnpcalc.neighbors import VerletList, neighbor_list
from random_structures import assert_identical, batch_of, random_structure

OPTIONAL = {
    "vesin": "vesin",
    "nvalchemi": "nvalchemiops.torch.neighbors",
    "torch_cluster": "torch_cluster",
}


@pytest.fixture(params=OPTIONAL)
def backend(request: pytest.FixtureRequest) -> str:
    """Each optional back end that is installed."""
    pytest.importorskip(OPTIONAL[request.param], exc_type=ImportError)
    return request.param


def structures(backend: str, seed: int) -> list[Atoms]:
    """Random structures that the back end can treat, and a dense one."""
    rng = np.random.default_rng(seed)
    mask = 0 if backend == "torch_cluster" else None
    found = [random_structure(rng, 4.0, mask=mask, max_atoms=80) for _ in range(12)]
    return [*found, Atoms("H300", rng.random((300, 3)) * 4), molecule("CH4")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_same_list(backend: str, dtype: torch.dtype) -> None:
    batch = batch_of(structures(backend, 12), dtype)
    expected = neighbor_list(batch, 4.0)
    assert_identical(neighbor_list(batch, 4.0, backend=backend), expected)
    one_by_one = [neighbor_list(b, 4.0, backend=backend).n_pairs for b in batch.split()]
    assert sum(one_by_one) == expected.n_pairs


def test_pairs_at_the_cutoff(backend: str) -> None:
    crystal = bulk("Cu", cubic=True) * (2, 2, 2)
    crystal.pbc = backend != "torch_cluster"
    batch = batch_of(crystal)
    cutoff = float(neighbor_list(batch, 5.0).distances.median())
    found = neighbor_list(batch, cutoff, backend=backend)
    assert_identical(found, neighbor_list(batch, cutoff))


def test_nothing_is_truncated(backend: str) -> None:
    """More neighbors than any default: torch-cluster keeps 32, others guess a density."""
    rng = np.random.default_rng(2)
    batch = batch_of([molecule("H2O"), Atoms("H700", rng.random((700, 3)) * 5)])
    assert neighbor_list(batch, 9.0, backend=backend).n_pairs == 6 + 700 * 699


def test_verlet_list_with_a_backend(backend: str) -> None:
    batch = batch_of(structures(backend, 3))
    neighbors = VerletList(4.0, skin=0.3, backend=backend)
    assert_identical(neighbors.update(batch), neighbor_list(batch, 4.0))


def test_list_backends_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_installed(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", nothing_installed)
    status = nnpcalc.list_backends()
    assert list(status) == ["torch", "vesin", "nvalchemi", "torch_cluster"]
    assert [s.usable for s in status.values()] == [True, False, False, False]
    assert "pip install nvalchemi-toolkit-ops" in status["nvalchemi"].reason
    with pytest.raises(ValueError, match=r"'vesin'.*pip install vesin"):
        neighbor_list(batch_of(molecule("H2O")), 5.0, backend="vesin")


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match=r"unknown .* 'verlet'; there are torch, vesin"):
        neighbor_list(batch_of(molecule("H2O")), 5.0, backend="verlet")


def test_torch_cluster_refuses_periodic_systems() -> None:
    pytest.importorskip("torch_cluster")
    batch = batch_of([molecule("H2O"), bulk("Cu")])
    with pytest.raises(ValueError, match="system 1 is periodic"):
        neighbor_list(batch, 3.0, backend="torch_cluster")
