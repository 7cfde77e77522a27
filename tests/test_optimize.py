"""Minima: known ones, those of ASE, and the same path alone and in any batch."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms, FixBondLength, FixCartesian
from ase.io import read
from ase.optimize import BFGS
from ase.optimize import LBFGS as AseLBFGS

from nnpcalc import AtomsBatch, NNPCalculator, md, optimize
from nnpcalc.optimizer import FIRE, LBFGS, Optimized
from tiny_model import diamond, make_calculator, make_potential
from wells import LJ_MINIMA, LennardJones, Noisy, Springs, Valley, lump

UNSEEN = Path(__file__).parent / "data" / "unseen.xyz"
METHODS = ("lbfgs", "fire")


def unseen(*places: int, amplitude: float = 0.02) -> list[Atoms]:
    """Molecules that no model was trained on, slightly out of place."""
    frames: list[Atoms] = read(UNSEEN, ":")
    chosen = [frames[k] for k in places]
    for k, atoms in enumerate(chosen):
        atoms.rattle(amplitude, seed=k)
    return chosen


def same(a: Optimized, b: Optimized) -> bool:
    """The same bits."""
    return (
        (a.converged, a.energy, a.fmax, a.steps) == (b.converged, b.energy, b.fmax, b.steps)
        and np.array_equal(a.atoms.positions, b.atoms.positions)
        and np.array_equal(a.atoms.get_forces(), b.atoms.get_forces())
    )


# --- known minima ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [3, 4, 13])
def test_lennard_jones_clusters(method: str, n: int) -> None:
    (found,) = optimize([lump(n)], LennardJones(), method=method, fmax=1e-4)
    assert found.converged and found.reason == ""
    assert found.energy == pytest.approx(LJ_MINIMA[n], abs=2e-6)
    assert found.atoms.get_potential_energy() == found.energy
    assert np.linalg.norm(found.atoms.get_forces(), axis=1).max() == pytest.approx(found.fmax)
    assert found.fmax <= 1e-4


@pytest.mark.parametrize("epsilon", [1e-3, 1.0, 30.0])
def test_the_scale_of_the_energy_hardly_matters(epsilon: float) -> None:
    found = optimize(lump(13), LennardJones(epsilon), fmax=1e-4 * epsilon)
    assert found.converged and found.steps < 60
    assert found.energy == pytest.approx(epsilon * LJ_MINIMA[13], rel=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_springs_of_very_different_strength(method: str) -> None:
    start = Atoms("C2", [[0.5, 0.4, -0.3], [-0.2, 0.1, 0.6]])
    found = optimize(start, Springs(), method=method, fmax=1e-6, steps=2000)
    assert found.converged
    assert np.abs(found.atoms.positions).max() < 1e-6
    if method == "lbfgs":
        assert found.steps <= 25


def test_a_bent_valley() -> None:
    starts = [Atoms("C", [p]) for p in ([-1.2, 1.0, 0.3], [-1.2, -1.0, 0.0], [2.0, -2.0, 1.0])]
    for found in optimize(starts, Valley(), fmax=1e-6, steps=400):
        assert found.converged and found.steps < 150
        assert found.atoms.positions[0] == pytest.approx([1.0, 1.0, 0.0], abs=1e-6)
        assert found.energy < 1e-10


def test_energies_never_rise() -> None:
    energies: dict[int, list[float]] = {0: [], 1: []}

    def observe(place: int, step: int, atoms: Atoms) -> None:
        energies[place].append(atoms.get_potential_energy())

    valley = [Atoms("C", [[-1.2, 1.0, 0.0]]), Atoms("C", [[1.5, -1.5, 0.0]])]
    results = optimize(valley, Valley(), fmax=1e-5, observe=observe)
    for place, found in enumerate(results):
        assert found.converged
        assert len(energies[place]) > 10 and energies[place][-1] == found.energy
        assert (np.diff(energies[place]) < 1e-6).all()
        assert len(energies[place]) < found.steps + 1  # some steps were refused


def test_rounded_forces_down_to_their_noise() -> None:
    """Near a minimum float32 energies jump by more than they fall; forces still show the way."""
    field = Noisy(LennardJones())
    results = optimize([lump(13, seed=k) for k in range(10)], field, fmax=2e-4)
    assert [r.reason for r in results] == [""] * 10
    assert all(r.energy == pytest.approx(LJ_MINIMA[13], abs=2e-5) for r in results)


def test_forces_that_are_not_those_of_the_energy_are_noticed() -> None:
    class Rising:
        calls = 0

        def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
            self.calls += 1
            right = LennardJones()(atoms)
            return md.Forces(right.energy + 1e-3 * self.calls, right.forces)

    start = optimize(lump(4), LennardJones(), fmax=0.1).atoms
    wrong, lone = optimize([start, Atoms("Ar")], Rising())
    assert not wrong.converged and "does not fall along the forces" in wrong.reason
    assert wrong.steps < 20
    assert lone.converged and lone.steps == 0


def test_no_atom_moves_too_far() -> None:
    path: list[np.ndarray] = []
    crowded = lump(13)
    crowded.positions *= 0.75
    for method in (LBFGS(max_step=0.07), FIRE(max_step=0.07)):
        path.clear()
        found = optimize(
            crowded, LennardJones(), method=method, observe=lambda *a: path.append(a[2].positions)
        )
        moved = [np.linalg.norm(b - a, axis=1).max() for a, b in pairwise(path)]
        assert found.converged and max(moved) == pytest.approx(0.07, abs=1e-9)


# --- beside ASE --------------------------------------------------------------------------------


def compare_with_ase(molecules: list[Atoms]) -> None:
    calculator = NNPCalculator("tensornet-spice", device="cpu", dtype="float64")
    results = optimize(molecules, calculator, fmax=1e-3)
    for atoms, found in zip(molecules, results, strict=True):
        assert found.converged
        other = atoms.copy()
        other.calc = calculator
        BFGS(other, logfile=None).run(fmax=1e-3, steps=800)
        assert found.energy == pytest.approx(other.get_potential_energy(), abs=1e-5)
        assert found.atoms.get_distances(0, range(len(atoms))) == pytest.approx(
            other.get_distances(0, range(len(atoms))), abs=0.05
        )


def test_the_minima_of_ase() -> None:
    compare_with_ase(unseen(5, 6))


@pytest.mark.slow
def test_the_minima_of_ase_for_all_unseen_molecules() -> None:
    compare_with_ase(unseen(*range(10), amplitude=0.0))


def test_no_more_evaluations_than_ase() -> None:
    molecules = unseen(3, 5, 6, 9, 5)
    calculator = NNPCalculator("tensornet-spice", device="cpu")
    ours = sum(found.steps + 1 for found in optimize(molecules, calculator, fmax=0.02))
    theirs = 0
    for atoms in molecules:
        atoms.calc = calculator
        optimizer = AseLBFGS(atoms, logfile=None)
        optimizer.run(fmax=0.02, steps=500)
        theirs += optimizer.nsteps + 1
    assert ours <= 1.1 * theirs


# --- alone and in a batch ----------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_alone_and_among_24(method: str) -> None:
    structures = [lump(3 + k % 11, seed=k, amplitude=0.2) for k in range(24)]
    together = optimize(structures, LennardJones(), method=method, fmax=1e-3, steps=300)
    assert len({found.steps for found in together}) > 5  # they leave one after the other
    for k in (0, 7, 10, 23):
        assert same(
            optimize(structures[k], LennardJones(), method=method, fmax=1e-3, steps=300),
            together[k],
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_alone_and_among_others(dtype: str) -> None:
    """Charges and elements differ, and molecules wait until there is room for them."""
    pytest.importorskip("numba")
    structures = [molecule(name) for name in ("H2O", "CH4", "CH3OH", "NH3", "C2H6", "H2CO")]
    for k, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=k)
    structures[2].info.update(charge=1, spin=2)
    structures[3].set_constraint(FixAtoms([0]))
    options: dict[str, Any] = {"dtype": dtype, "fmax": 0.05, "steps": 40}
    model = make_potential(channels=64)
    together = optimize(structures, model, **options)
    few = optimize(structures, model, max_pairs=60, **options)
    assert sum(found.converged for found in together) >= 3
    for k, atoms in enumerate(structures):
        assert same(optimize(atoms, model, **options), together[k])
        assert same(few[k], together[k])


def test_charge_and_multiplicity_of_each() -> None:
    calculator = make_calculator()
    states = [{"charge": 0}, {"charge": 1, "spin": 2}, {"charge": -1, "spin": 2}, {"spin": 3}]
    structures = []
    for info in states:
        atoms = molecule("H2O")
        atoms.info.update(info)
        structures.append(atoms)
    results = optimize(structures, calculator, fmax=0.05, steps=3)
    assert len({found.energy for found in results}) == 4
    for found, info in zip(results, states, strict=True):
        assert found.atoms.info == info
        energy, forces = found.energy, found.atoms.get_forces()
        found.atoms.calc = calculator
        assert found.atoms.get_potential_energy() == pytest.approx(energy, abs=1e-9)
        assert found.atoms.get_forces() == pytest.approx(forces, abs=1e-9)


# --- what is held, what is periodic ---------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_is_held_stays(method: str) -> None:
    start = lump(7, amplitude=0.3)
    start.set_constraint([FixAtoms([0, 1]), FixCartesian(3, mask=(True, False, False))])
    free, held = optimize([lump(7, amplitude=0.3), start], LennardJones(), method=method)
    assert held.converged and held.energy > free.energy + 1e-9
    assert np.array_equal(held.atoms.positions[:2], start.positions[:2])
    assert held.atoms.positions[3, 0] == start.positions[3, 0]
    assert abs(held.atoms.positions[3, 1:] - start.positions[3, 1:]).min() > 1e-4
    assert [c.todict() for c in held.atoms.constraints] == [c.todict() for c in start.constraints]
    assert np.linalg.norm(held.atoms.get_forces(), axis=1).max() == pytest.approx(held.fmax)
    assert np.linalg.norm(held.atoms.get_forces(apply_constraint=False), axis=1).max() > 0.01
    other = optimize(free.atoms, LennardJones())
    assert other.steps == 0


def test_all_atoms_held() -> None:
    start = lump(4)
    start.set_constraint(FixAtoms(range(4)))
    found = optimize(start, LennardJones())
    assert found.converged and found.steps == 0 and found.fmax == 0.0


def test_other_constraints_are_refused_by_name() -> None:
    start = lump(4)
    start.set_constraint(FixBondLength(0, 1))
    with pytest.raises(ValueError, match=r"system 1 \(Ar4\) has the constraint FixBondLength"):
        optimize([lump(3), start], LennardJones())


def test_periodic_atoms_in_their_cell() -> None:
    calculator = make_calculator()
    crystal = diamond()
    start = crystal.copy()
    start.calc = calculator
    found = optimize(crystal, calculator, fmax=1e-3, steps=200)
    assert found.converged and found.energy < start.get_potential_energy()
    assert np.array_equal(found.atoms.cell, crystal.cell) and found.atoms.pbc.all()


# --- what goes wrong ---------------------------------------------------------------------------


class Cliff:
    """Springs, but no numbers for atoms beyond x = 1 Å, and an error beyond x = -1 Å."""

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> md.Forces:
        x = atoms.positions[:, 0]
        if bool((x < -1.0).any()):
            raise ValueError("atoms 0 and 1 are in one place")
        output = Springs((1.0, 1.0, 1.0))(atoms)
        # those with a charge are driven outwards
        sign = 1.0 - 2.0 * (atoms.charge != 0).to(torch.float64)
        forces = output.forces * sign[atoms.system][:, None]
        forces = torch.where((x > 1.0)[:, None], torch.nan, forces)
        return md.Forces(output.energy * sign, forces)


@pytest.mark.parametrize("method", METHODS)
def test_bad_ones_do_not_stop_the_others(method: str) -> None:
    starts = [Atoms("C2", [[x, 0.1, 0.0], [0.0, 0.3, 0.0]]) for x in (0.5, 1.5, 0.9, -0.9, -1.1)]
    starts[2].info["charge"] = starts[3].info["charge"] = 2
    results = optimize([*starts, starts[0]], Cliff(), method=method, fmax=1e-3, steps=300)
    good, lost, leaves, fails, failed, again = results
    assert good.converged and same(good, again)
    assert same(good, optimize(starts[0], Cliff(), method=method, fmax=1e-3, steps=300))
    assert not lost.converged and np.isnan(lost.energy) and lost.steps == 0
    assert "not finite, first that of atom 0 (C)" in lost.reason and lost.atoms.calc is None
    assert np.array_equal(lost.atoms.positions, starts[1].positions)
    assert not leaves.converged and "not finite" in leaves.reason and leaves.steps > 0
    assert 0.9 < leaves.atoms.positions[0, 0] <= 1.0  # the last good geometry
    assert np.isfinite(leaves.atoms.get_forces()).all()
    assert not fails.converged and fails.reason == "atoms 0 and 1 are in one place"
    assert -1.0 <= fails.atoms.positions[0, 0] < -0.9
    assert failed.reason == fails.reason and np.isnan(failed.energy)


def test_atoms_in_one_place() -> None:
    clash = molecule("CH4")
    clash.positions[1] = clash.positions[2]
    bad, good = optimize([clash, molecule("H2O")], "tensornet-spice", device="cpu")
    assert good.converged and not bad.converged
    assert bad.reason.startswith("atom 1 (H) and atom 2 (H) are in the same place")


def test_too_few_steps() -> None:
    for method in METHODS:
        found = optimize(lump(13), LennardJones(), method=method, steps=3)
        assert (found.converged, found.steps) == (False, 3)
        assert found.reason == "fmax is not reached after 3 steps" and found.fmax > 0.01
        assert found.energy < optimize(lump(13), LennardJones(), steps=0).energy


def test_the_input_is_not_changed() -> None:
    start = molecule("H2O")
    start.info["label"] = "mine"
    before = start.copy()
    found = optimize(start, "tensornet-spice", device="cpu")
    assert start == before and start.calc is None and found.atoms.info == {"label": "mine"}


def test_none_and_empty() -> None:
    assert optimize([], LennardJones()) == []
    found = optimize([Atoms(), lump(3)], LennardJones())
    assert [f.converged for f in found] == [True, True] and found[0].energy == 0.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"fmax": 0.0}, "fmax must be a force"),
        ({"fmax": float("nan")}, "fmax must be a force"),
        ({"steps": -1}, "steps must be a number"),
        ({"steps": 2.5}, "steps must be a number"),
        ({"method": "newton"}, "method must be one of lbfgs, fire"),
    ],
)
def test_settings_without_meaning(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        optimize(lump(3), LennardJones(), **options)


def test_input_that_cannot_be_computed() -> None:
    ion = molecule("H2O")
    ion.info["charge"] = 1  # a doublet
    with pytest.raises(ValueError, match=r"system 1 \(H2O\) has 9 .*multiplicity 2 is outside"):
        optimize([molecule("CH4"), ion], "tensornet-spice")
    with pytest.raises(ValueError, match="dtype: the model given has its own"):
        optimize(molecule("CH4"), make_calculator(), dtype="float32")
    with pytest.raises(ValueError, match="atom 0 is Au"):
        optimize(Atoms("Au"), "tensornet-spice")
