"""Normal modes: analytic ones, those of ASE, and the ideal gas that follows."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms, FixBondLength, FixCartesian
from ase.thermochemistry import IdealGasThermo
from ase.units import _amu, _c, _e, invcm
from ase.vibrations import Vibrations as AseVibrations

from nnpcalc import AtomsBatch, NNPCalculator, optimize, vibrations
from nnpcalc.normal_modes import VibrationWarning, difference_hessian
from tiny_model import diamond, make_calculator
from wells import LennardJones, Springs, lump


def wave_number(k: float, mass: float) -> float:
    """cm^-1 of a spring k in eV/Å^2 with a mass in amu."""
    return float(np.sqrt(k * _e * 1e20 / (mass * _amu)) / (2 * np.pi * _c * 100))


@pytest.fixture(scope="module")
def calculator() -> NNPCalculator:
    return NNPCalculator("tensornet-spice", device="cpu", dtype="float64")


def relaxed(name: str, calculator: NNPCalculator) -> Atoms:
    found = optimize(molecule(name), calculator, fmax=1e-4)
    assert found.converged
    return found.atoms


# --- analytic ----------------------------------------------------------------------------------


def test_two_atoms_of_a_lennard_jones_pair() -> None:
    """k = 36 2^(2/3) epsilon / sigma^2 at the minimum, r = 2^(1/6) sigma."""
    epsilon, sigma, masses = 0.7, 1.1, (3.0, 5.0)
    start = Atoms("HeLi", [[0.3, 0.1, 0.0], [0.3, 0.1 + 2 ** (1 / 6) * sigma, 0.0]], masses=masses)
    found = vibrations(start, LennardJones(epsilon, sigma), displacement=1e-4)
    assert found.shape == "linear" and found.fmax < 1e-9
    reduced = 15.0 / 8.0
    (frequency,) = found.frequencies
    expected = wave_number(36 * 4 ** (1 / 3) * epsilon / sigma**2, reduced)
    assert frequency == pytest.approx(expected, rel=1e-6)
    assert found.zero_point_energy == pytest.approx(0.5 * expected * invcm, rel=1e-6)
    # of unit length, the displacements are as the inverse masses, and the mass is not the reduced
    move = found.modes[0]
    assert np.linalg.norm(move) == pytest.approx(1.0)
    assert move[0] * masses[0] == pytest.approx(-move[1] * masses[1], abs=1e-9)
    assert found.reduced_masses[0] == pytest.approx((move**2).sum(1) @ np.array(masses))


def test_springs() -> None:
    """Atoms on springs at the origin: held at one of them, nothing is projected out."""
    start = Atoms("CO", np.zeros((2, 3)), masses=[12.0, 16.0])
    start.set_constraint([FixAtoms([1]), FixCartesian(0, mask=(False, True, False))])
    found = vibrations(start, Springs((1.0, 5.0, 4.0)))
    assert found.shape == "held"
    assert found.frequencies == pytest.approx([wave_number(1, 12), wave_number(4, 12)], rel=1e-9)
    assert np.abs(found.modes[0]) == pytest.approx(np.array([[1, 0, 0], [0, 0, 0]]), abs=1e-12)
    with pytest.raises(ValueError, match="is held: only a free molecule is an ideal gas"):
        found.thermochemistry()


def test_differences_have_the_error_they_should() -> None:
    batch = AtomsBatch.from_atoms(optimize(lump(7), LennardJones(), fmax=1e-6).atoms)
    exact = difference_hessian(batch, LennardJones(), 1e-5)
    errors = [
        np.abs(difference_hessian(batch, LennardJones(), h) - exact).max() for h in (0.02, 0.01)
    ]
    assert errors[0] / errors[1] == pytest.approx(4.0, abs=0.1)


# --- beside ASE --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "n_outer"),
    [("H2O", "nonlinear", 6), ("CO2", "linear", 5), ("CH3OH", "nonlinear", 6), ("N2", "linear", 5)],
)
def test_the_frequencies_of_ase(
    name: str, shape: str, n_outer: int, calculator: NNPCalculator, tmp_path: Path
) -> None:
    atoms = relaxed(name, calculator)
    found = vibrations(atoms, calculator)
    assert found.shape == shape and len(found.frequencies) == 3 * len(atoms) - n_outer
    assert found.n_imaginary == 0 and (np.diff(found.frequencies) >= 0).all()
    atoms.calc = calculator
    other = AseVibrations(atoms, delta=0.002, nfree=4, name=str(tmp_path / "vib"))
    other.run()
    theirs = np.sort(other.get_frequencies().real)[n_outer:]
    assert found.frequencies == pytest.approx(theirs, abs=0.5)
    assert found.zero_point_energy == pytest.approx(0.5 * theirs.sum() * invcm, abs=1e-4)


def test_exact_and_difference_derivatives(calculator: NNPCalculator) -> None:
    """A function has no second derivatives of its own: central differences, in one batch."""
    from nnpcalc.md import ModelForceField

    atoms = relaxed("CH4", calculator)
    field = ModelForceField("tensornet-spice", device="cpu", dtype="float64", backend="eager")
    exact = vibrations(atoms, calculator)
    batch = field.batch([atoms])
    assert difference_hessian(batch, field, 0.002) == pytest.approx(exact.hessian, abs=2e-2)
    by_differences = vibrations(atoms, field, displacement=0.002)
    assert by_differences.frequencies == pytest.approx(exact.frequencies, abs=0.5)
    assert by_differences.energy == pytest.approx(exact.energy, abs=1e-6)


def test_the_charge_and_spin_count() -> None:
    found = []
    for info in ({}, {"spin": 3}, {"charge": -2}):
        atoms = molecule("CH4")
        atoms.info.update(info)
        with pytest.warns(VibrationWarning, match="optimise it first"):
            found.append(vibrations(atoms, make_calculator()))
    assert [f.state.multiplicity for f in found] == [1, 3, 1]
    assert abs(found[0].frequencies - found[1].frequencies).max() > 1.0
    assert abs(found[0].frequencies - found[2].frequencies).max() > 1.0


def test_a_crystal_has_three_outer_motions() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VibrationWarning)
        found = vibrations(diamond(), make_calculator())
    assert found.shape == "periodic" and len(found.frequencies) == 3


def test_a_saddle_point() -> None:
    """A straight chain of three: bending it either way costs no energy to first order, but wins."""
    sigma = 3.4
    start = Atoms("Ar3", [[0, 0, -4.0], [0, 0, 0], [0, 0, 4.0]])
    straight = optimize(start, LennardJones(1.0, sigma), fmax=1e-6).atoms
    found = vibrations(straight, LennardJones(1.0, sigma))
    assert found.shape == "linear" and found.n_imaginary == 2
    assert (found.frequencies[:2] < 0).all() and (found.frequencies[2:] > 0).all()
    assert found.zero_point_energy == pytest.approx(0.5 * invcm * found.frequencies[2:].sum())
    with pytest.raises(ValueError, match=r"imaginary frequencies \(\d+i, \d+i cm\^-1\)"):
        found.thermochemistry()


# --- thermochemistry -----------------------------------------------------------------------------


def test_the_ideal_gas_of_ase(calculator: NNPCalculator) -> None:
    atoms = relaxed("H2O", calculator)
    found = vibrations(atoms, calculator)
    gas = found.thermochemistry(400.0, 2e5, symmetry_number=2)
    theirs = IdealGasThermo(
        found.frequencies * invcm, "nonlinear", found.energy, atoms, symmetrynumber=2, spin=0.0
    )
    assert gas.gibbs_energy == pytest.approx(
        theirs.get_gibbs_energy(400.0, 2e5, verbose=False), abs=1e-9
    )
    assert gas.zero_point_energy == pytest.approx(found.zero_point_energy)
    once = found.thermochemistry(400.0, 2e5)
    assert once.entropy - gas.entropy == pytest.approx(8.617333e-5 * np.log(2), rel=1e-5)
    # measured: 188.8 J/(mol K) at 298.15 K and 1 bar (CODATA key values)
    joule = found.thermochemistry(298.15, 1e5, symmetry_number=2).entropy * 96485.33
    assert joule == pytest.approx(188.8, abs=1.0)


def test_one_atom_is_a_gas() -> None:
    """The entropy of argon is that of Sackur and Tetrode; measured, 154.8 J/(mol K) at 1 bar."""
    found = vibrations(Atoms("Ar"), LennardJones())
    assert found.shape == "monatomic" and len(found.frequencies) == 0
    gas = found.thermochemistry(298.15, 1e5)
    assert gas.entropy * 96485.33 == pytest.approx(154.85, abs=0.05)
    assert gas.zero_point_energy == 0.0
    assert gas.enthalpy == pytest.approx(2.5 * 8.617333e-5 * 298.15, rel=1e-5)


def test_spin_degeneracy() -> None:
    lone = Atoms("O")
    lone.info["spin"] = 3
    gas = [vibrations(a, LennardJones()).thermochemistry() for a in (Atoms("O"), lone)]
    assert gas[1].entropy - gas[0].entropy == pytest.approx(8.617333e-5 * np.log(3), rel=1e-5)


# --- mistakes ----------------------------------------------------------------------------------


def test_mistakes(calculator: NNPCalculator) -> None:
    water = molecule("H2O")
    with pytest.raises(ValueError, match="without atoms"):
        vibrations(Atoms(), calculator)
    with pytest.warns(VibrationWarning):
        found = vibrations(molecule("CO"), calculator)
    for options, text in (
        ({"temperature": 0.0}, "temperature must be above 0 K"),
        ({"pressure": -1.0}, "pressure must be above 0 Pa"),
        ({"symmetry_number": 0}, "symmetry number must be"),
    ):
        with pytest.raises(ValueError, match=text):
            found.thermochemistry(**options)  # type: ignore[arg-type]
    water.set_constraint(FixBondLength(0, 1))
    with pytest.raises(ValueError, match="has the constraint FixBondLength"):
        vibrations(water, calculator)
    with pytest.raises(ValueError, match="atom 0 is Au"):
        vibrations(Atoms("Au"), calculator)


def test_results_of_an_optimisation(calculator: NNPCalculator) -> None:
    results = optimize([molecule("H2O"), molecule("CO")], calculator, fmax=1e-4)
    one, two = vibrations(results, calculator)
    for found in (vibrations(results[0], calculator), vibrations(results[0].atoms, calculator)):
        np.testing.assert_array_equal(found.frequencies, one.frequencies)
    assert two.shape == "linear"
    with pytest.raises(TypeError, match=r"expected ase.Atoms or a result of optimize, not str"):
        vibrations("H2O", calculator)  # type: ignore[call-overload]


def test_the_input_is_not_changed(calculator: NNPCalculator) -> None:
    atoms = relaxed("H2O", calculator)
    before, kept = atoms.copy(), atoms.calc
    found = vibrations(atoms, calculator)
    assert atoms == before and atoms.calc is kept and isinstance(kept, Calculator)
    found.atoms.positions[:] = 0.0
    assert atoms == before


@pytest.mark.filterwarnings("ignore::nnpcalc.normal_modes.VibrationWarning")
def test_a_list_of_names_is_a_committee_in_float64() -> None:
    water = Atoms("OH2", [(0, 0, 0), (0.96, 0, 0), (-0.24, 0.93, 0)])
    names = ["tensornet-spice", "tensornet-spice-2"]
    listed = vibrations(water, names).frequencies
    whole = vibrations(water, NNPCalculator(names, dtype="float64")).frequencies
    np.testing.assert_array_equal(listed, whole)
