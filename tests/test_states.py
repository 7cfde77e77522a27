"""Energies of several states at one geometry, and the differences with names."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms
from ase.build import molecule

from nnpcalc import Potential, State, state_energies, vertical_energies
from nnpcalc.calculator import ExtrapolationError, ExtrapolationWarning, NNPCalculator
from nnpcalc.state import StateError
from nnpcalc.states import VerticalEnergies
from tiny_model import attached, make_calculator, make_potential


def alone(calculator: NNPCalculator, atoms: Atoms, charge: int, multiplicity: int) -> float:
    """The energy of one state, the ordinary way."""
    other = attached(calculator, atoms)
    other.info = {"charge": charge, "spin": multiplicity}
    return float(other.get_potential_energy())


def test_states_are_those_of_single_calculations() -> None:
    calculator, atoms = make_calculator(), molecule("H2CO")
    atoms.info = {"total_charge": 1, "multiplicity": 2, "label": "x"}  # neither of these matters
    before = atoms.copy()
    wanted = [(0, 1), (0, 3), (1, 2), -1, State(-2, 1), (2, 1)]
    found = state_energies(atoms, calculator, wanted, forces=True)
    states = [(0, 1), (0, 3), (1, 2), (-1, 2), (-2, 1), (2, 1)]
    assert [(f.state.charge, f.state.multiplicity) for f in found] == states
    for result, (charge, multiplicity) in zip(found, states, strict=True):
        assert result.energy == pytest.approx(
            alone(calculator, atoms, charge, multiplicity), abs=1e-9
        )
        assert result.forces is not None and result.forces.shape == (4, 3)
    assert len({result.energy for result in found}) == len(states)
    assert atoms == before and atoms.info == before.info
    assert state_energies(atoms, calculator, [0])[0].forces is None


def test_one_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    calculator, batches = make_calculator(), []
    run = type(calculator._engine).run

    def counting(self: object, batch: object, *rest: object, **options: object) -> object:
        batches.append(batch)
        return run(self, batch, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(type(calculator._engine), "run", counting)
    state_energies(molecule("H2O"), calculator, [(0, 1), (1, 2), (-1, 2), (0, 3)])
    assert [batch.n_systems for batch in batches] == [4]  # type: ignore[attr-defined]
    vertical_energies(molecule("H2O"), calculator)
    assert [batch.n_systems for batch in batches] == [4, 4]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("info", "states"),
    [
        ({}, {"own": (0, 1), "cation": (1, 2), "anion": (-1, 2), "gap": ((0, 3), (0, 1))}),
        (
            {"charge": -1},
            {"own": (-1, 2), "cation": (0, 1), "anion": (-2, 1), "gap": None},
        ),
        (
            {"spin": 3},
            {"own": (0, 3), "cation": (1, 2), "anion": (-1, 2), "gap": ((0, 3), (0, 1))},
        ),
    ],
)
def test_vertical_energies(info: dict[str, int], states: dict[str, tuple[int, int]]) -> None:
    calculator, atoms = make_calculator(), molecule("H2CO")
    atoms.info = dict(info)
    found = vertical_energies(atoms, calculator)
    energy = alone(calculator, atoms, *states["own"])
    assert (found.state.charge, found.state.multiplicity) == states["own"]
    assert found.energy == pytest.approx(energy, abs=1e-9)
    assert found.ionisation_energy == pytest.approx(
        alone(calculator, atoms, *states["cation"]) - energy, abs=1e-9
    )
    assert found.electron_affinity == pytest.approx(
        energy - alone(calculator, atoms, *states["anion"]), abs=1e-9
    )
    if states["gap"] is None:
        assert found.singlet_triplet_gap is None
        assert found.missing == {
            "singlet_triplet_gap": "an odd number of electrons has neither singlet nor triplet"
        }
    else:
        upper, lower = (alone(calculator, atoms, *s) for s in states["gap"])  # type: ignore[misc]
        assert found.singlet_triplet_gap == pytest.approx(upper - lower, abs=1e-9)
        assert not found.missing
    assert found.energies[found.state] == found.energy


def test_what_the_card_does_not_cover_is_not_computed() -> None:
    found = vertical_energies(molecule("H2O"), "tensornet-spice", device="cpu")
    assert found.state == State(0, 1) and list(found.energies) == [found.state]
    names = ("ionisation_energy", "electron_affinity", "singlet_triplet_gap")
    assert sorted(found.missing) == sorted(names)
    assert all(getattr(found, name) is None for name in names)
    assert (
        "multiplicity 2 is outside of what tensornet-spice was trained on"
        in (found.missing["ionisation_energy"])
    )
    with pytest.raises(ExtrapolationError, match=r"system 1.*multiplicity 2"):
        state_energies(molecule("H2O"), "tensornet-spice", [(0, 1), (1, 2)], device="cpu")


def test_a_charge_outside_of_the_card() -> None:
    atoms = molecule("H2O")
    atoms.info["charge"] = 2
    found = vertical_energies(atoms, make_calculator())
    assert found.ionisation_energy is None and found.electron_affinity is not None
    assert "charge 3 is outside" in found.missing["ionisation_energy"]
    with pytest.warns(ExtrapolationWarning, match="charge 3") as caught:
        warned = vertical_energies(atoms, make_calculator(on_extrapolation="warn"))
    assert len(caught) == 1
    assert warned.ionisation_energy is not None and not warned.missing


def test_a_model_that_is_blind_to_states() -> None:
    blind = make_potential(attributes=(), attribute_weights=())
    found = vertical_energies(molecule("H2O"), blind, dtype="float64")
    assert found.ionisation_energy is found.electron_affinity is found.singlet_triplet_gap is None
    assert "do not depend on the charge" in found.missing["ionisation_energy"]
    assert "do not depend on the multiplicity" in found.missing["singlet_triplet_gap"]


def test_a_bare_proton_has_no_electron_to_lose() -> None:
    proton = Atoms("H")
    proton.info["charge"] = 1
    with pytest.raises(ExtrapolationError, match="has no electrons"):
        vertical_energies(proton, make_calculator())
    with pytest.warns(ExtrapolationWarning, match="has no electrons"):
        found = vertical_energies(proton, make_calculator(on_extrapolation="warn"))
    assert found.missing["ionisation_energy"] == "there is no electron to take away"
    assert "singlet_triplet_gap" in found.missing  # 2 unpaired electrons of none
    assert found.electron_affinity is not None


def test_mistakes() -> None:
    calculator = make_calculator()
    with pytest.raises(StateError, match="impossible") as caught:
        state_energies(molecule("H2O"), calculator, [(0, 1), (1, 1)])
    source = "from the states asked for"
    assert f"multiplicity 1 {source}" in str(caught.value)
    assert f"charge 1 {source}" in str(caught.value) and "default" not in str(caught.value)
    with pytest.raises(StateError, match="must be an integer"):
        state_energies(molecule("H2O"), calculator, [(0.5, 1)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="device: options of a model"):
        state_energies(molecule("H2O"), calculator, [0], device="cpu")
    with pytest.raises(ValueError, match="outside"):
        state_energies(molecule("H2O"), calculator, [(4, 1)])
    outside = molecule("H2O")
    outside.info["spin"] = 5
    with pytest.raises(ExtrapolationError, match="multiplicity 5"):
        vertical_energies(outside, calculator)


def test_the_result_is_a_value() -> None:
    found = vertical_energies(molecule("CH4"), make_calculator())
    assert isinstance(found, VerticalEnergies)
    with pytest.raises(AttributeError):
        found.energy = 0.0  # type: ignore[misc]
    assert isinstance(make_potential(), Potential) and torch.is_grad_enabled()
