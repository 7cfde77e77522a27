"""Committees: the mean of several models, and their disagreement."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from nnpcalc import NNPCalculator, md, optimize
from nnpcalc.committee import CommitteeError
from tests.tiny_model import make_potential


def member(seed: int, **options):
    """The tiny model with weights of its own."""
    potential = make_potential(**options)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in potential.core.parameters():
            parameter.mul_(1.0 + 0.1 * torch.randn_like(parameter))
    potential.card = {**potential.card, "name": f"tiny-{seed}"}
    return potential


@pytest.fixture(scope="module")
def members():
    return [member(seed) for seed in (1, 2, 3)]


def structures():
    ion = molecule("CH3CHO")
    ion.info["charge"] = -2
    crystal = bulk("C", "diamond", a=3.6)
    crystal.rattle(0.1, seed=1)
    return [molecule("H2O"), ion, crystal]


@pytest.mark.parametrize("backend", ["eager", "fused", "torchscript"])
def test_mean_and_spread_of_the_members(members, backend):
    options = {"dtype": "float64", "backend": backend}
    together = NNPCalculator(members, **options)
    alone = [NNPCalculator(potential, **options) for potential in members]
    for atoms in structures():
        properties = ["energy", "forces"] + (["stress"] if atoms.pbc.any() else [])
        one = [calc.evaluate([atoms], properties)[0] for calc in alone]
        energies = np.array([result.energy for result in one])
        forces = np.stack([result.forces for result in one])
        together.calculate(atoms, properties)
        found = together.results
        assert found["energy"] == pytest.approx(energies.mean(), abs=1e-9)
        np.testing.assert_allclose(found["forces"], forces.mean(0), atol=1e-9)
        assert found["energy_uncertainty"] == pytest.approx(energies.std(ddof=1), abs=1e-9)
        spread = np.sqrt((forces.std(axis=0, ddof=1) ** 2).sum(1))
        np.testing.assert_allclose(found["forces_uncertainty"], spread, atol=1e-9)
        assert spread.max() > 1e-3  # the members differ
        if atoms.pbc.any():
            stress = np.mean([result.stress for result in one], axis=0)
            np.testing.assert_allclose(found["stress"], stress, atol=1e-9)


def test_many_structures_at_once(members):
    calc = NNPCalculator(members, dtype="float64")
    batch = calc.evaluate(structures(), ["energy", "energy_uncertainty", "forces_uncertainty"])
    for atoms, result in zip(structures(), batch, strict=True):
        atoms.calc = calc
        assert calc.get_property("energy_uncertainty", atoms) == pytest.approx(
            result.energy_uncertainty, abs=1e-9
        )
        np.testing.assert_allclose(
            calc.get_property("forces_uncertainty", atoms), result.forces_uncertainty, atol=1e-9
        )


def test_forces_are_derivatives_of_the_mean(members):
    calc = NNPCalculator(members, dtype="float64")
    atoms = molecule("CH3OH")
    atoms.calc = calc
    forces = atoms.get_forces()
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[2, 1] += sign * 1e-4
        moved.calc = calc
        forces[2, 1] += sign * moved.get_potential_energy() / 2e-4
    assert abs(forces[2, 1]) < 1e-6


def test_the_hessian_is_the_mean(members):
    options = {"dtype": "float64", "backend": "eager"}
    atoms = molecule("H2O")
    expected = np.mean([NNPCalculator(m, **options).get_hessian(atoms) for m in members], axis=0)
    found = NNPCalculator(members, **options).get_hessian(atoms)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_one_model_has_no_uncertainty(members):
    calc = NNPCalculator(members[0])
    atoms = molecule("H2O")
    atoms.calc = calc
    atoms.get_forces()
    assert "energy_uncertainty" not in calc.results
    assert calc.evaluate([atoms])[0].forces_uncertainty is None
    SinglePointCalculator(atoms, **calc.results)


def test_files_of_ase_take_the_results(members, tmp_path):
    atoms = molecule("H2O")
    atoms.calc = NNPCalculator(members)
    forces = atoms.get_forces()
    for name in ("one.traj", "one.extxyz"):
        write(tmp_path / name, atoms)
        np.testing.assert_allclose(read(tmp_path / name).get_forces(), forces, atol=1e-6)


def test_range_is_what_all_members_know(members):
    narrow = member(4, elements=(1, 8))
    narrow.card = {**narrow.card, "charges": [0, 1]}
    calc = NNPCalculator([members[0], narrow])
    with pytest.raises(ValueError, match="atom 0 is C"):
        calc.evaluate([molecule("CH4")])
    water = molecule("H2O")
    water.info["charge"] = -2
    with pytest.raises(ValueError, match="charge -2 is outside of what tiny-1 \\+ tiny-4"):
        calc.evaluate([water])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference_method": "another"}, "must have learnt the same labels"),
        ({"charges": [5]}, "no charges in common"),
    ],
)
def test_members_that_do_not_fit(members, change, message):
    other = member(5)
    other.card = {**other.card, **change}
    with pytest.raises(CommitteeError, match=message):
        NNPCalculator([members[0], other])


def test_other_misuse(members):
    with pytest.raises(CommitteeError, match="two models or more, not 1"):
        NNPCalculator(members[:1])
    with pytest.raises(CommitteeError, match="cutoffs of a committee's members differ"):
        NNPCalculator([members[0], member(6, cutoff=4.5)])
    with pytest.raises(CommitteeError, match="listed twice"):
        NNPCalculator(["tensornet-spice", "tensornet-spice"])
    with pytest.raises(CommitteeError, match="member 3 of the committee is listed twice"):
        NNPCalculator([*members, members[0]])


def test_dynamics_know_the_uncertainty(members):
    water, ion, _ = structures()
    options = {"dtype": "float64", "backend": "eager"}
    field = md.ModelForceField(members, **options)
    found = field(field.batch([water, ion]))
    expected = NNPCalculator(members, **options).evaluate([water, ion])
    np.testing.assert_allclose(
        found.uncertainty, [result.forces_uncertainty.max() for result in expected], atol=1e-9
    )
    energies = [result.energy_uncertainty for result in expected]
    np.testing.assert_allclose(found.energy_uncertainty, energies, atol=1e-9)


def test_optimised_structures_have_an_uncertainty(members):
    water, ion, _ = structures()
    overlapping = molecule("H2O")
    overlapping.positions[1] = overlapping.positions[2]
    calc = NNPCalculator(members, dtype="float64")
    found = optimize([water, overlapping, ion], calc, steps=1)
    ends = calc.evaluate([found[0].atoms, found[2].atoms])
    for result, end in zip(found[::2], ends, strict=True):
        assert result.energy_uncertainty == pytest.approx(end.energy_uncertainty, abs=1e-9)
        np.testing.assert_allclose(result.forces_uncertainty, end.forces_uncertainty, atol=1e-9)
    assert found[1].energy_uncertainty is None and found[1].forces_uncertainty is None
    assert optimize(water, members[0], steps=1).energy_uncertainty is None


def test_the_watchdog_stops_where_the_members_disagree(members):
    water, ion, _ = structures()
    limits = md.Watchdog(max_uncertainty=1e-9, max_force=1e9, max_temperature=None)
    with pytest.raises(md.SimulationDiverged, match="replica 0, step 0: the forces are uncertain"):
        md.run([water, ion], members, md.NVE(0.1), 5, seed=1, temperature=0.0, watchdog=limits)
