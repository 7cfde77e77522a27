"""calculator.py: the charge and spin contract, ASE's caching, errors, derivatives, dynamics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.verlet import VelocityVerlet
from torch import Tensor, nn

from nnpcalc import NNPCalculator
from nnpcalc.batch import AtomsBatch
from nnpcalc.calculator import ExtrapolationError, ExtrapolationWarning, NonFiniteError
from nnpcalc.potential import Potential
from nnpcalc.state import State
from nnpcalc.testing import check_calculator
from nnpcalc.testing.calculator import counting
from tiny_model import CARD, attached, diamond, make_calculator, make_potential

BACKENDS = ("eager", "fused", "torchscript")


@pytest.fixture
def calc() -> NNPCalculator:
    return make_calculator()


# --- the contract --------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "dtype"), [("eager", "float64"), ("fused", "float32")])
def test_public_contract(backend: str, dtype: str) -> None:
    calc = make_calculator(backend=backend, dtype=dtype)
    check_calculator(calc, states=[(0, 1), (0, 3), (1, 2), (-2, 1)])


def test_fifty_steps_are_fifty_one_model_calls(calc: NNPCalculator) -> None:
    calls = 0
    forward = calc.potential.forward

    def counted(*arguments: Any, **keywords: Any) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return forward(*arguments, **keywords)

    calc.potential.forward = counted  # type: ignore[method-assign]
    atoms = attached(calc, molecule("CH3CH2OH"), charge=1, weights=np.arange(4))
    dynamics = VelocityVerlet(atoms, timestep=0.5 * units.fs)

    def observe() -> None:
        atoms.info["step"] = dynamics.nsteps
        atoms.info["history"] = np.arange(dynamics.nsteps)
        atoms.get_potential_energy()
        atoms.get_forces()

    dynamics.attach(observe)
    dynamics.run(50)
    assert calls == 51


def test_nothing_is_remembered_from_earlier_molecules(calc: NNPCalculator) -> None:
    water = attached(calc, molecule("H2O"))
    expected = water.get_potential_energy()
    attached(calc, molecule("H2O"), charge=-2, spin=3).get_potential_energy()
    assert attached(calc, molecule("H2O")).get_potential_energy() == expected
    attached(calc, molecule("NH3"), charge=1).get_potential_energy()
    assert water.get_potential_energy() == expected
    assert calc.state == State(0, 1)


def test_defaults_and_their_changes(calc: NNPCalculator) -> None:
    ion = make_calculator(charge=1, multiplicity=2)
    atoms = attached(ion, molecule("H2O"))
    charged = atoms.get_potential_energy()
    assert ion.state == State(1, 2)
    asked = attached(calc, molecule("H2O"), charge=1, spin=2).get_potential_energy()
    assert charged == pytest.approx(asked, abs=1e-9)
    atoms.info["charge"], atoms.info["spin"] = 0, 1
    neutral = atoms.get_potential_energy()
    assert neutral != charged
    del atoms.info["charge"], atoms.info["spin"]
    ion.charge, ion.multiplicity = 0, None
    assert atoms.get_potential_energy() == neutral
    for wrong in ({"charge": 0.5}, {"charge": "1"}, {"multiplicity": 1.5}):
        with pytest.raises(ValueError, match="must be an integer"):
            make_calculator(**wrong)


def test_check_state_names_what_changed(calc: NNPCalculator) -> None:
    atoms = attached(calc, diamond(), charge=0)
    assert {*all_changes, "charge"} <= set(calc.check_state(atoms))
    atoms.get_potential_energy()
    assert calc.check_state(atoms) == []
    atoms.info["note"] = np.zeros(3)
    atoms.set_initial_charges([0.1, -0.1])  # a starting guess for other programs
    atoms.set_tags([1, 2])
    assert calc.check_state(atoms) == []
    atoms.info["total_charge"] = 0
    assert calc.check_state(atoms) == []
    del atoms.info["charge"]
    atoms.info["total_charge"] = 2
    assert calc.check_state(atoms) == ["charge"]
    atoms.info["spin"] = 3
    assert calc.check_state(atoms) == ["charge", "multiplicity"]
    atoms.info.clear()
    atoms.positions[0, 0] += 1e-12
    atoms.cell[0, 0] += 1e-12
    atoms.pbc[2] = False
    assert calc.check_state(atoms) == ["positions", "cell", "pbc"]
    assert "numbers" in calc.check_state(diamond() + diamond())


def test_given_partial_charges_are_part_of_the_state() -> None:
    options = {"attributes": ("partial_charges",), "attribute_weights": (2.0,)}
    calc = NNPCalculator(make_potential(**options), dtype="float64", backend="eager")
    atoms = attached(calc, molecule("H2O"))
    with pytest.raises(ExtrapolationError, match=r"set atoms.arrays\['partial_charges'\]"):
        atoms.get_potential_energy()
    atoms.set_array("partial_charges", np.array([-0.8, 0.4, 0.4]))
    first = atoms.get_potential_energy()
    atoms.arrays["partial_charges"][:] = (-0.6, 0.3, 0.3)
    assert calc.check_state(atoms) == ["partial_charges"]
    assert atoms.get_potential_energy() != first
    assert calc.evaluate([Atoms()])[0].energy == 0.0


def test_models_that_use_no_partial_charges_do_not_look_at_them(calc: NNPCalculator) -> None:
    atoms = attached(calc, molecule("H2O"))
    energy = atoms.get_potential_energy()
    atoms.set_array("partial_charges", np.array([np.inf, 0.0, 0.0]), float)
    assert calc.check_state(atoms) == []
    assert atoms.get_potential_energy() == energy


# --- results -------------------------------------------------------------------------------------


def test_results_are_those_of_the_potential() -> None:
    potential = make_potential().to(torch.float64)
    calc = NNPCalculator(potential, dtype="float64", backend="eager")
    atoms = attached(calc, diamond(), charge=2)
    expected = potential.evaluate(AtomsBatch.from_atoms(atoms), stress=True)
    assert atoms.get_potential_energy() == pytest.approx(float(expected.energy), abs=1e-10)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_potential_energies(), expected.energies, atol=1e-10)
    assert expected.forces is not None
    assert expected.stress is not None
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-10)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress[0], atol=1e-12)
    assert calc.state == State(2, 1)
    frozen = SinglePointCalculator(atoms, **calc.results)
    assert frozen.get_property("energy", atoms) == atoms.get_potential_energy()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_backend_gives_the_same(backend: str, dtype: str) -> None:
    reference = make_calculator(dtype="float64")
    calc = make_calculator(backend=backend, dtype=dtype)
    energy, force = (1e-7, 1e-6) if dtype == "float64" else (5e-3, 5e-3)
    for atoms in (molecule("CH3CHO", info={"charge": -1}), diamond(), Atoms("O")):
        for k in range(3):  # TorchScript replaces its program after the first runs
            atoms.rattle(0.01, seed=k)
            a, b = attached(reference, atoms), attached(calc, atoms)
            assert abs(a.get_potential_energy() - b.get_potential_energy()) < energy
            np.testing.assert_allclose(a.get_forces(), b.get_forces(), atol=force)
            if atoms.pbc.any():
                np.testing.assert_allclose(a.get_stress(), b.get_stress(), atol=force)


def test_float64_is_honoured() -> None:
    """Displacements of 1e-9 Å, invisible in float32, change the energy by the force."""
    moved = molecule("CH3CHO")
    moved.positions[0, 0] += 1e-7
    for backend in ("eager", "fused"):
        calc = make_calculator(backend=backend)
        atoms = attached(calc, molecule("CH3CHO"))
        force = atoms.get_forces()[0, 0]
        change = attached(calc, moved).get_potential_energy() - atoms.get_potential_energy()
        assert change == pytest.approx(-force * 1e-7, rel=1e-3, abs=3e-12)
        assert calc.backend.dtype == "float64"
        assert calc.potential.dtype == torch.float64


@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_forces_and_stress_against_differences(backend: str) -> None:
    calc = make_calculator(backend=backend)
    ion = attached(calc, molecule("CH3CHO"), charge=-1)
    ion.rattle(0.05, seed=3)
    expected = calculate_numerical_forces(ion, eps=1e-4, iatoms=range(3))
    np.testing.assert_allclose(ion.get_forces()[:3], expected, atol=2e-6)
    crystal = attached(calc, diamond())
    expected = calculate_numerical_stress(crystal, eps=1e-5)
    np.testing.assert_allclose(crystal.get_stress(), expected, atol=1e-6)


def test_stress_only_where_it_is_defined(calc: NNPCalculator) -> None:
    with pytest.raises(PropertyNotImplementedError, match="needs a periodic structure"):
        attached(calc, molecule("H2O")).get_stress()
    boxed = attached(calc, molecule("H2O", vacuum=5.0))
    with pytest.raises(PropertyNotImplementedError, match=r"pbc \[False, False, False\]"):
        boxed.get_stress()
    boxed.pbc = (True, False, False)
    assert boxed.get_stress().shape == (6,)
    # asking once must not make molecules fail afterwards
    assert attached(calc, molecule("H2O")).get_forces().shape == (3, 3)
    assert "stress" not in calc.results


def test_stress_costs_no_second_calculation_per_step(calc: NNPCalculator) -> None:
    atoms = attached(calc, diamond())
    with counting(calc) as calls:
        for step in range(5):
            atoms.positions[0, 0] += 0.01
            atoms.get_forces()
            atoms.get_stress()
            assert calls[0] == (2 if step == 0 else step + 2)


class WithCharges(nn.Module):
    """A core that also returns partial charges."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.cutoff, self.elements = inner.cutoff, inner.elements
        self.conditions_on, self.config = inner.conditions_on, inner.config

    def forward(self, numbers: Tensor, *rest: Any) -> dict[str, Tensor]:
        output: dict[str, Tensor] = self.inner(numbers, *rest)
        charges = 0.1 * (numbers - 4.0)
        return {**output, "charges": charges.to(output["energies"])}


def test_charges_where_the_model_has_them(calc: NNPCalculator) -> None:
    potential = make_potential()
    potential.core = WithCharges(potential.core)
    having = NNPCalculator(potential)
    assert having.backend.name == "eager"
    assert "WithCharges" in having.backend.reason
    atoms = attached(having, molecule("H2O"))
    np.testing.assert_allclose(atoms.get_charges(), [0.4, -0.3, -0.3], atol=1e-6)
    (evaluation,) = having.evaluate([atoms], ["charges"])
    assert evaluation.charges is not None
    np.testing.assert_allclose(evaluation.charges, [0.4, -0.3, -0.3], atol=1e-6)
    for ask in (
        attached(calc, molecule("H2O")).get_charges,
        attached(calc, Atoms("H")).get_charges,
    ):
        with pytest.raises(PropertyNotImplementedError):
            ask()
    with pytest.raises(PropertyNotImplementedError, match="no partial charges"):
        calc.evaluate([molecule("H2O")], ["charges"])


def test_hessian(calc: NNPCalculator) -> None:
    atoms = attached(calc, molecule("H2O"), charge=1)
    atoms.rattle(0.05, seed=1)
    hessian = calc.get_hessian(atoms)
    assert hessian.dtype == np.float64
    displaced = atoms.copy()
    displaced.calc = calc
    columns = []
    for sign in (1.0, -1.0):
        displaced.positions[1, 2] = atoms.positions[1, 2] + sign * 1e-4
        columns.append(displaced.get_forces().ravel())
    expected = -(columns[0] - columns[1]) / 2e-4
    np.testing.assert_allclose(hessian[:, 3 * 1 + 2], expected, atol=1e-4)
    atoms.get_potential_energy()
    np.testing.assert_array_equal(calc.get_hessian(), hessian)
    fused = make_calculator(backend="fused").get_hessian(atoms)
    np.testing.assert_allclose(fused, hessian, atol=1e-9)
    with pytest.raises(ValueError, match="give the atoms"):
        make_calculator().get_hessian()


def test_extremes(calc: NNPCalculator) -> None:
    nothing = attached(calc, Atoms())
    assert nothing.get_potential_energy() == 0.0
    assert nothing.get_forces().shape == (0, 3)
    alone = attached(calc, Atoms("O"))
    assert not alone.get_forces().any()
    assert alone.get_potential_energy() == calc.results["energies"][0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_that_switch_gradients_off(calc: NNPCalculator, mode: Any) -> None:
    atoms = attached(calc, molecule("H2O"))
    expected = atoms.get_forces()
    other = make_calculator()
    with mode():
        np.testing.assert_array_equal(attached(other, atoms).get_forces(), expected)
        other.evaluate([atoms])
    # tensors made inside are used again outside
    atoms.calc = other
    atoms.positions += 1.0
    np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-9)


def test_a_skin_saves_searches_and_changes_nothing() -> None:
    """Through jumps, wrapping, a changed cell and other molecules."""
    plain, skinned = make_calculator(skin=0.0), make_calculator(skin=1.0)
    atoms = diamond() * (2, 1, 1)
    rng = np.random.default_rng(0)
    for step in range(30):
        atoms.positions += rng.normal(0.0, 0.02, atoms.positions.shape)
        if step % 7 == 3:
            atoms.wrap()
        if step == 20:
            atoms.set_cell(atoms.cell.array * 1.02, scale_atoms=True)
        if step == 25:
            attached(skinned, molecule("H2O")).get_forces()
        expected, found = attached(plain, atoms), attached(skinned, atoms)
        np.testing.assert_allclose(found.get_forces(), expected.get_forces(), atol=1e-8)
        assert abs(found.get_potential_energy() - expected.get_potential_energy()) < 1e-8
    assert skinned._neighbors.n_searches < 10 < plain._neighbors.n_searches
    with pytest.raises(ValueError, match="skin must be a length in Å, 0 or more, not -1"):
        make_calculator(skin=-1.0)


# --- errors --------------------------------------------------------------------------------------


def _with(atoms: Atoms, change: Any) -> Atoms:
    change(atoms)
    return atoms


def _nan(atoms: Atoms) -> None:
    atoms.positions[1, 2] = np.nan


def _overlap(atoms: Atoms) -> None:
    atoms.positions[2] = atoms.positions[1] + 1e-8


def _periodic(atoms: Atoms) -> None:
    atoms.pbc = True


BAD = [
    (molecule("H2O", info={"spin": 2}), "10 electrons.*odd multiplicity; nearest allowed: 1 or 3"),
    (molecule("H2O", info={"charge": 11}), "removes more electrons than the 10"),
    (molecule("H2O", info={"charge": 0.5}), r"info\['charge'\] must be an integer, not 0.5"),
    (molecule("H2O", info={"charge": 0, "total_charge": 1}), "remove one of the two"),
    (
        molecule("H2O", info={"charge": 3}),
        r"charge 3 is outside of what tiny was trained on, charge -2, -1, 0, 1, 2; correct "
        r"atoms.info\['charge'\].*on_extrapolation='warn'",
    ),
    (molecule("CH4", info={"spin": 5}), r"multiplicity 5 is outside.*multiplicity 1, 2, 3"),
    (
        molecule("CH3Cl"),
        r"atom 1 is Cl, an element that tiny does not know; it knows H, C, N, O. Use",
    ),
    (Atoms("XO"), "dummy atom X.*remove it or give it an element"),
    (_with(molecule("H2O"), _nan), r"atom 1 \(H\) has the non-finite position"),
    (_with(molecule("H2O"), _overlap), r"atom 1 \(H\) and atom 2 \(H\).*same place"),
    (_with(molecule("H2O"), _periodic), "periodic direction a has a zero cell vector; set the"),
]


@pytest.mark.parametrize(("atoms", "text"), BAD)
def test_bad_structures(calc: NNPCalculator, atoms: Atoms, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        attached(calc, atoms).get_potential_energy()
    assert calc.results == {}
    with pytest.raises(ValueError, match=text):
        calc.evaluate([molecule("H2O"), atoms])
    assert np.isfinite(attached(calc, molecule("H2O")).get_potential_energy())


def test_bad_positions_are_found_in_a_running_simulation(calc: NNPCalculator) -> None:
    """Also on the short way, where only positions are new."""
    for change, text in ((_nan, "non-finite position"), (_overlap, "same place")):
        atoms = attached(calc, molecule("H2O"))
        atoms.get_forces()
        change(atoms)
        with pytest.raises(ValueError, match=text):
            atoms.get_forces()


def test_extrapolation_as_a_warning() -> None:
    calc = make_calculator(on_extrapolation="warn")
    atoms = attached(calc, molecule("H2O"), charge=4)
    with pytest.warns(ExtrapolationWarning, match="charge 4 is outside"):
        atoms.get_potential_energy()
    assert calc.state == State(4, 1)
    with pytest.raises(ExtrapolationError, match="does not know"):
        attached(calc, Atoms("He")).get_potential_energy()
    with pytest.raises(ValueError, match="'raise' or 'warn', not 'ignore'"):
        make_calculator(on_extrapolation="ignore")


def test_without_a_card_only_elements_are_limited() -> None:
    potential = make_potential()
    del potential.card
    calc = NNPCalculator(potential)
    assert calc.card == {}
    attached(calc, molecule("CH4"), charge=3, spin=4).get_potential_energy()


def broken(key: str, atom: int, value: float) -> Potential:
    class Broken(Potential):
        def forward(self, *arguments: Any, **keywords: Any) -> dict[str, Tensor]:
            output = super().forward(*arguments, **keywords)
            if key in output:
                output[key] = output[key].clone()
                output[key][atom] = value
            return output

    healthy = make_potential()
    potential = Broken(healthy.core, tuple(healthy.terms), healthy.scale)
    potential.card = dict(CARD)  # type: ignore[assignment]
    return potential


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("forces", np.nan, r"the forces are not finite, first that of atom 2 \(H\)"),
        ("energies", np.inf, r"the energies are not finite, first that of atom 2 \(H\)"),
    ],
)
def test_results_that_are_no_numbers_are_never_returned(key: str, value: float, text: str) -> None:
    calc = NNPCalculator(broken(key, 2, value), backend="eager")
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=f"H2O: {text}.*nnpcalc verify"):
            attached(calc, molecule("H2O")).get_potential_energy()
        assert calc.results == {}
    with pytest.raises(NonFiniteError, match=r"system 1 \(H2O\)"):
        calc.evaluate([Atoms(), molecule("H2O")])


def test_asking_for_nothing(calc: NNPCalculator) -> None:
    with pytest.raises(ValueError, match="give the atoms"):
        calc.calculate()
    with pytest.raises(PropertyNotImplementedError):
        attached(calc, molecule("H2O")).get_dipole_moment()


def test_set_is_refused(calc: NNPCalculator) -> None:
    with pytest.raises(
        ValueError, match=r"charge cannot be changed by set\(\); assign calc.charge"
    ):
        calc.set(charge=1)
    with pytest.raises(TypeError, match="multiplicty"):
        make_calculator(multiplicty=2)
