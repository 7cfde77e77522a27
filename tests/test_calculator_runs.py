"""calculator.py over time: copies, memory, files, optimisations and dynamics."""

from __future__ import annotations

import copy
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.optimize import BFGS

from nnpcalc import NNPCalculator
from nnpcalc.calculator import ExtrapolationError
from nnpcalc.testing import POTENTIAL_CHECKS, check_calculator, check_potential
from nnpcalc.testing.calculator import counting
from nnpcalc.weights import load_potential
from tiny_model import attached, diamond, make_calculator, make_potential


@pytest.fixture
def calc() -> NNPCalculator:
    return make_calculator()


# --- lifetime ------------------------------------------------------------------------------------


def test_the_potential_given_is_not_touched() -> None:
    potential = make_potential()
    calc = NNPCalculator(potential, dtype="float64")
    assert potential.dtype == torch.float32
    assert all(p.requires_grad for p in potential.core.embedding.parameters())
    assert not any(p.requires_grad for p in calc.potential.parameters())
    with torch.no_grad():
        next(potential.parameters()).add_(1.0)
    fresh = make_calculator()
    energies = [attached(c, molecule("H2O")).get_potential_energy() for c in (calc, fresh)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-6)


@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_copies_and_pickles(backend: str) -> None:
    calc = make_calculator(backend=backend)
    atoms = attached(calc, molecule("H2O"), charge=1)
    energy = atoms.get_potential_energy()
    for other in (copy.deepcopy(calc), pickle.loads(pickle.dumps(calc))):
        again = attached(other, molecule("H2O"), charge=1)
        assert again.get_potential_energy() == pytest.approx(energy, abs=1e-9)
        assert other.backend == calc.backend


def test_memory_does_not_grow(calc: NNPCalculator) -> None:
    atoms = attached(calc, molecule("CH3CHO"))

    def run(n: int) -> int:
        for _ in range(n):
            atoms.positions[0] += 1e-5
            atoms.get_forces()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = run(50)
    assert run(200) - before < 20 * 1024


def test_files_and_names(small_model: Path) -> None:
    """By name, by directory and by file: the same model, its card enforced."""
    water = molecule("H2O", info={"charge": 1})
    calcs = [
        NNPCalculator("small", backend="eager"),
        NNPCalculator(small_model, backend="eager"),
        NNPCalculator(str(small_model / "model.safetensors"), backend="torchscript"),
        NNPCalculator(small_model / "model.pt", trust=True),
    ]
    energies = [attached(calc, water).get_potential_energy() for calc in calcs]
    np.testing.assert_allclose(energies, energies[0], atol=1e-4)
    assert [calc.backend.name for calc in calcs] == ["eager", "eager"] + ["torchscript"] * 2
    for calc in calcs:
        assert calc.allowed_atomic_numbers == (1, 6, 8, 17)
        with pytest.raises(ExtrapolationError, match="charge 2 is outside of what small"):
            attached(calc, molecule("H2O"), charge=2).get_potential_energy()
        with pytest.raises(ExtrapolationError, match="does not know"):
            calc.evaluate([Atoms("He")])
        assert calc.get_hessian(water).shape == (9, 9)
    with pytest.raises(ValueError, match="no model is called 'medium'"):
        NNPCalculator("medium")


# --- dynamics ------------------------------------------------------------------------------------


@pytest.fixture
def shipped() -> NNPCalculator:
    return NNPCalculator("tensornet-spice")


def test_the_shipped_model_keeps_both_contracts(shipped: NNPCalculator) -> None:
    """Trained weights, not only random ones; TorchScript is tested elsewhere and takes seconds."""
    check_calculator(shipped)
    checks = set(POTENTIAL_CHECKS) - {"torchscript"}
    check_potential(load_potential("tensornet-spice"), checks=checks)


def test_optimisation(shipped: NNPCalculator) -> None:
    atoms = attached(shipped, molecule("CH3OH"))
    atoms.rattle(0.05, seed=1)
    before = atoms.get_potential_energy()
    assert BFGS(atoms, logfile=None).run(fmax=0.05, steps=50)
    assert atoms.get_potential_energy() < before
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.05
    assert atoms.get_distance(0, 1) == pytest.approx(1.42, abs=0.05)  # C-O


def test_langevin(shipped: NNPCalculator) -> None:
    atoms = attached(shipped, molecule("CH3OH"))
    dynamics = Langevin(
        atoms, 0.5 * units.fs, temperature_K=300.0, friction=0.01 / units.fs,
        fixcm=False, rng=np.random.default_rng(1),
    )  # fmt: skip
    with counting(shipped) as calls:
        dynamics.run(20)
    assert calls[0] == 21
    assert np.isfinite(atoms.positions).all()
    assert 0.0 < atoms.get_temperature() < 2000.0


def test_cell_relaxation(calc: NNPCalculator) -> None:
    atoms = attached(calc, diamond())
    before = atoms.get_potential_energy()
    BFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.02).run(fmax=0.01, steps=3)
    assert atoms.get_potential_energy() < before
