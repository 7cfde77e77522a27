"""potential.py: energy, forces and stress of real structures, and what can be wrong with them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from numpy.typing import NDArray
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.models import build_core
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential, inputs
from nnpcalc.terms import ZBL, AtomicEnergies
from nnpcalc.testing import check_potential, tolerance

CONFIG = {
    "channels": 8,
    "layers": 2,
    "radial_functions": 8,
    "cutoff": 4.0,
    "elements": (1, 6, 7, 8, 11, 17, 29),
    "attributes": ("charge", "unpaired_electrons"),
    "attribute_weights": (0.5, 0.7),
}
SHIFTS = {1: -13.6, 6: -1030.0, 7: -1485.0, 8: -2041.0, 11: -4400.0, 17: -12500.0, 29: -45000.0}
F64 = torch.float64


def make_potential(**options: Any) -> Potential:
    core = build_core("tensornet", {**CONFIG, **options})
    terms = (AtomicEnergies(SHIFTS), ZBL())
    return Potential(core, terms, scale=2.0).to(F64).requires_grad_(False)


@pytest.fixture
def potential() -> Potential:
    return make_potential()


def ethanol() -> Atoms:
    atoms: Atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


def ammonium() -> Atoms:
    corners = np.array([(0, 0, 0), (1, 1, 1), (-1, -1, 1), (-1, 1, -1), (1, -1, -1)])
    atoms = Atoms("NH4", corners * 0.6, info={"charge": 1})
    atoms.rattle(0.05, seed=2)
    return atoms


def salt() -> Atoms:
    atoms: Atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.rattle(0.1, seed=3)
    return atoms


def copper() -> Atoms:
    atoms: Atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    atoms.rattle(0.05, seed=4)
    return atoms


def slab() -> Atoms:
    atoms: Atoms = fcc111("Cu", (1, 1, 3), a=3.6, vacuum=4.0)
    atoms.rattle(0.05, seed=5)
    return atoms


STRUCTURES = {
    "water": lambda: molecule("H2O"),
    "ethanol": ethanol,
    "ammonium": ammonium,
    "hydroxyl radical": lambda: molecule("OH"),
    "salt": salt,
    "copper": copper,
    "slab": slab,
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_real_structures_satisfy_the_contract(potential: Potential, name: str) -> None:
    """Molecules, an ion, a radical, crystals and a layer instead of the sample structures."""
    atoms = STRUCTURES[name]()
    structures = {"crystal" if atoms.pbc.all() else "layer" if atoms.pbc.any() else "ion": atoms}
    checks = ["rotation", "permutation", "translation", "momentum", "forces", "stress"]
    if atoms.pbc.any() and atoms.numbers.sum() % 2 == 0:
        checks.append("supercell")
    check_potential(potential, checks=checks, structures=structures)


def evaluate(potential: Potential, *systems: Atoms, **keywords: Any) -> Any:
    batch = AtomsBatch.from_atoms(systems, dtype=potential.dtype)
    return potential.evaluate(batch, **keywords)


# --- what a potential is made of -----------------------------------------------------------------


def test_energy_is_scaled_network_plus_terms(potential: Potential) -> None:
    bare, core = Potential(potential.core), potential.core
    batch = AtomsBatch.from_atoms([ethanol(), salt()])
    neighbors = neighbor_list(batch, potential.cutoff)
    output = core(
        batch.numbers, neighbors.pairs, neighbors.vectors, neighbors.distances, batch.system,
        batch.charge.to(F64), batch.multiplicity.to(F64),
    )  # fmt: skip
    shifts = torch.tensor([SHIFTS[z] for z in batch.numbers.tolist()], dtype=F64)
    expected = 2.0 * output["energies"] + shifts
    found = Potential(core, (AtomicEnergies(SHIFTS),), scale=2.0).evaluate(batch)
    torch.testing.assert_close(found.energies, expected, rtol=0.0, atol=1e-10)
    sums = torch.zeros(2, dtype=F64).index_add(0, batch.system, expected)
    torch.testing.assert_close(found.energy, sums, rtol=0.0, atol=1e-10)
    torch.testing.assert_close(found.forces, 2.0 * bare.evaluate(batch).forces)


def test_atomic_energies_keep_their_digits_in_float32(potential: Potential) -> None:
    """Energies of 1e5 eV have a resolution of 0.008 eV in float32."""
    atoms = copper() * (4, 1, 1)
    single = copy.deepcopy(potential).to(torch.float32)
    precise, rough = evaluate(potential, atoms).energy, evaluate(single, atoms).energy
    assert abs(float(precise)) > 7e5
    assert rough.dtype == F64
    assert abs(float(rough - precise)) < 1e-3


def test_results_carry_no_graph_and_inputs_stay_as_they_are(potential: Potential) -> None:
    trained = copy.deepcopy(potential).requires_grad_(True)
    batch = AtomsBatch.from_atoms([ethanol(), salt()])
    before = copy.deepcopy(batch)
    results = trained.evaluate(batch, stress=True)
    for value in (results.energy, results.energies, results.forces, results.stress):
        assert not value.requires_grad
    assert not batch.positions.requires_grad
    assert torch.equal(batch.positions, before.positions)
    assert torch.equal(batch.cell, before.cell)
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_only_what_is_asked_for_is_computed(potential: Potential) -> None:
    results = evaluate(potential, ethanol(), forces=False)
    assert results.forces is None
    assert results.stress is None
    assert results.charges is None
    assert evaluate(potential, ethanol()).stress is None


def test_forces_under_no_grad(potential: Potential) -> None:
    expected = evaluate(potential, ethanol()).forces
    with torch.no_grad():
        assert torch.equal(evaluate(potential, ethanol()).forces, expected)


def test_stress_without_a_volume_is_not_a_number(potential: Potential) -> None:
    """Zero would pass for a result."""
    stress = evaluate(potential, ethanol(), salt(), stress=True).stress
    assert bool(torch.isnan(stress[0]).all())
    assert bool(torch.isfinite(stress[1]).all())


def test_cells_of_either_hand_and_any_choice_of_vectors(potential: Potential) -> None:
    """The same lattice described by other vectors: energy, forces and stress stay."""
    atoms = salt()
    a, b, c = atoms.cell.array
    reference = evaluate(potential, atoms, stress=True)
    for vectors in ([b, a, c], [a, b + 2.0 * a, c - b], [a, b, c + 3.0 * a - 2.0 * b]):
        other = atoms.copy()
        other.set_cell(vectors)
        found = evaluate(potential, other, stress=True)
        for key in ("energy", "forces", "stress"):
            torch.testing.assert_close(
                getattr(found, key), getattr(reference, key), rtol=1e-12, atol=1e-9
            )


def test_a_large_box_is_a_vacuum(potential: Potential) -> None:
    free, boxed = ethanol(), ethanol()
    boxed.set_cell([30.0, 31.0, 32.0])
    boxed.pbc = True
    first, second = evaluate(potential, free), evaluate(potential, boxed)
    torch.testing.assert_close(first.forces, second.forces, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(first.energy, second.energy, rtol=0.0, atol=1e-9)


def test_forces_do_no_work_around_a_closed_path(potential: Potential) -> None:
    """The integral of F . dr vanishes; the path is smooth, so that the sum converges at once."""
    angles = np.arange(100) * (2.0 * np.pi / 100)
    cos, sin, zero = np.cos(angles), np.sin(angles), np.zeros(100)
    path = {
        8: 0.2 * np.stack([cos, sin, np.sin(2.0 * angles)], axis=1),
        0: 0.1 * np.stack([zero, sin, cos], axis=1),
    }
    tangent = {
        8: 0.2 * np.stack([-sin, cos, 2.0 * np.cos(2.0 * angles)], axis=1),
        0: 0.1 * np.stack([zero, cos, -sin], axis=1),
    }
    systems = [ethanol() for _ in angles]
    for atom, displacements in path.items():
        for atoms, displacement in zip(systems, displacements, strict=True):
            atoms.positions[atom] += displacement
    forces = evaluate(potential, *systems).forces.reshape(100, -1, 3).numpy()
    works = [(forces[:, atom] * t).sum() * (2.0 * np.pi / 100) for atom, t in tangent.items()]
    assert max(abs(w) for w in works) > 1e-3, "the atoms must work against each other"
    assert abs(sum(works)) < 1e-9


# --- extreme and empty structures ----------------------------------------------------------------


def test_no_atoms(potential: Potential) -> None:
    results = evaluate(potential, Atoms(), stress=True)
    assert results.energy.tolist() == [0.0]
    assert results.forces.shape == (0, 3)


def test_no_systems(potential: Potential) -> None:
    results = evaluate(potential)
    assert results.energy.shape == (0,)
    assert results.forces.shape == (0, 3)


def test_one_atom(potential: Potential) -> None:
    results = evaluate(potential, Atoms("O"))
    assert not results.forces.any()
    assert abs(float(results.energy) - SHIFTS[8]) < 10.0
    batch = AtomsBatch.from_atoms(Atoms("O"))
    assert potential.hessian(batch).tolist() == [[0.0] * 3] * 3


def test_atoms_in_the_same_place(potential: Potential) -> None:
    atoms = Atoms("COH", [(0, 0, 0), (0, 0, 1.2), (5e-7, 0, 1.2)])
    with pytest.raises(ValueError, match=r"atom 1 \(O\) and atom 2 \(H\).*same place"):
        evaluate(potential, molecule("H2O"), atoms)


def pull(potential: Potential, symbols: str, distances: NDArray[np.float64]) -> Tensor:
    """Forces on the second atom of diatomics at these distances."""
    systems = []
    for d in distances:
        atoms = Atoms(symbols, [(0, 0, 0), (0, 0, d)])
        atoms.info["charge"] = int(atoms.numbers.sum() % 2)
        systems.append(atoms)
    return evaluate(potential, *systems).forces.reshape(-1, 2, 3)[:, 1, 2]


@pytest.mark.parametrize("symbols", ["HH", "CO", "OH", "NaCl", "CuCu"])
def test_close_atoms_repel_whatever_the_network_says(symbols: str) -> None:
    potential = make_potential(channels=16)
    distances = np.geomspace(1e-3, 0.3, 40)
    forces = pull(potential, symbols, distances)
    assert bool((forces > 0.0).all())
    assert bool((forces.diff() < 0.0).all()), "closer atoms must repel more"


def test_repulsion_ends_where_bonds_are() -> None:
    """With ZBL and without, the forces are the same at the lengths of bonds."""
    full = make_potential()
    without = Potential(full.core, (full.terms[0],), scale=2.0)
    for symbols, distance in (("HH", 0.74), ("CO", 1.43), ("OH", 0.96), ("NaCl", 2.36)):
        d = np.array([distance])
        assert torch.equal(pull(full, symbols, d), pull(without, symbols, d)), symbols


# --- refusals ------------------------------------------------------------------------------------


def test_batches_that_do_not_fit_the_model(potential: Potential) -> None:
    batch = AtomsBatch.from_atoms(ethanol())
    with pytest.raises(ValueError, match=r"batch is torch.float32, the model torch.float64"):
        potential.evaluate(batch.to(dtype=torch.float32))
    with pytest.raises(ValueError, match=r"atom 1 \(system 0\) is element Z=14.*knows Z = \[1, 6"):
        evaluate(potential, molecule("SiH4", positions=None)[[1, 0]])
    with pytest.raises(ValueError, match="Hessian needs a batch of one system, got 2"):
        potential.hessian(AtomsBatch.from_atoms([ethanol(), ethanol()]))


def test_forces_need_a_graph(potential: Potential) -> None:
    batch = AtomsBatch.from_atoms(ethanol())
    arguments = inputs(batch, neighbor_list(batch, potential.cutoff))
    with torch.no_grad(), pytest.raises(AssertionError, match=r"outside torch.no_grad"):
        potential(*arguments)


# --- second derivatives ---------------------------------------------------------------------------


def test_hessian_is_symmetric_and_knows_translations(potential: Potential) -> None:
    hessian = potential.hessian(AtomsBatch.from_atoms(ethanol()))
    n = len(ethanol())
    assert hessian.shape == (3 * n, 3 * n)
    assert torch.equal(hessian, hessian.t())
    sums = hessian.reshape(n, 3, n, 3).sum(2)
    assert float(sums.abs().max()) < tolerance("momentum", F64)


def test_derivatives_flow_into_given_positions(potential: Potential) -> None:
    """Code around a potential may differentiate through it, forces included."""
    batch = AtomsBatch.from_atoms(ethanol())
    positions = batch.positions.clone().requires_grad_(True)
    moved = replace(batch, positions=positions)
    output = potential(*inputs(moved, neighbor_list(batch, potential.cutoff)), compute_stress=False)
    (gradient,) = torch.autograd.grad(output["energy"].sum(), positions, retain_graph=True)
    torch.testing.assert_close(gradient, -output["forces"])
    (second,) = torch.autograd.grad(output["forces"].square().sum(), positions)
    assert bool((second != 0.0).any())
