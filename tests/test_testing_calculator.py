"""nnpcalc.testing.check_calculator: an honest calculator passes, each dishonest one is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones

from nnpcalc.state import State, resolve_state
from nnpcalc.testing import CALCULATOR_CHECKS, check_calculator


class Honest(Calculator):
    """Springs between all atoms, stiffer with charge and multiplicity; keeps the contract."""

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.used: State | None = None

    def state_of(self, atoms: Atoms) -> State:
        return resolve_state(atoms)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        changes: list[str] = super().check_state(atoms, tol=tol)
        if self.used is not None and self.state_of(atoms) != self.used:
            changes.append("state")
        return changes

    def check_geometry(self, atoms: Atoms) -> None:
        if not np.isfinite(atoms.positions).all():
            raise ValueError("positions must be finite")
        if (atoms.get_all_distances()[np.triu_indices(len(atoms), 1)] < 1e-6).any():
            raise ValueError("atoms in the same place")
        if atoms.pbc.any() and atoms.cell.volume == 0.0:
            raise ValueError("periodic without a cell")

    def stiffness(self, state: State) -> float:
        return 1.0 + 0.1 * state.charge + 0.03 * state.multiplicity

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.check_geometry(atoms)
        self.used = self.state_of(atoms)
        k = self.stiffness(self.used)
        difference = atoms.positions[:, None] - atoms.positions[None]
        energy = 0.25 * k * float((difference**2).sum())
        forces = -k * difference.sum(1)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}


class NeverLooksAtInfo(Honest):
    def state_of(self, atoms):
        return State(0, 1)


class StaleCache(Honest):
    """ASE's own check_state, as in ORB."""

    def check_state(self, atoms, tol=1e-15):
        return Calculator.check_state(self, atoms, tol=tol)


class ComparesAllOfInfo(Honest):
    """As in TorchMD-Net: correct, but a step counter costs a calculation and an array raises."""

    def check_state(self, atoms, tol=1e-15):
        changes = Calculator.check_state(self, atoms, tol=tol)
        if self.atoms is not None and atoms.info != self.atoms.info:
            changes.append("info")
        return changes


class RemembersTheCharge(Honest):
    """As in AIMNet2: a molecule without a charge gets the one of the molecule before."""

    last = 0

    def state_of(self, atoms):
        self.last = atoms.info.get("charge", self.last)
        resolve_state(atoms)
        return State(int(self.last), 1)


class WritesDefaults(Honest):
    """As in UMA."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        atoms.info.setdefault("charge", 0)


class MovesAtoms(Honest):
    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        atoms.arrays["positions"] -= atoms.positions.mean(0)


class KnowsOneSpelling(Honest):
    def state_of(self, atoms):
        resolve_state(atoms)
        return State(int(atoms.info.get("charge", 0)), int(atoms.info.get("spin", 1)))


class LastSpellingWins(Honest):
    def state_of(self, atoms):
        bare = Atoms(atoms.numbers)
        for key in ("total_charge", "charge"):
            if key in atoms.info:
                bare.info["charge"] = atoms.info[key]
        for key in ("mult", "multiplicity", "spin_multiplicity", "spin"):
            if key in atoms.info:
                bare.info["spin"] = atoms.info[key]
        return resolve_state(bare)


class WantsPythonIntegers(Honest):
    """As in ORB and UMA: np.int64 is what files give back."""

    def state_of(self, atoms):
        state = resolve_state(atoms)
        if not all(type(value) is int for key, value in atoms.info.items() if key != "step"):
            raise TypeError("charge must be int")
        return state


class Truncates(Honest):
    def state_of(self, atoms):
        try:
            return resolve_state(atoms)
        except ValueError:
            bare = Atoms(atoms.numbers, info={"charge": int(float(atoms.info.get("charge", 0)))})
            return resolve_state(bare)


class NoParity(Honest):
    """As in every peer."""

    def state_of(self, atoms):
        bare = Atoms([36] * len(atoms), info=atoms.info)
        try:
            return resolve_state(bare)
        except ValueError as error:
            if "impossible" not in str(error):
                raise
            return State(int(atoms.info["charge"]), int(atoms.info["spin"]))


class ForcesOfTheNeutral(Honest):
    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] /= self.stiffness(self.used)


class NoFreeEnergy(Honest):
    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        del self.results["free_energy"]


class OwnResults(Honest):
    """As in MACE: SinglePointCalculator(atoms, **calc.results) then fails."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["node_energy"] = np.zeros(len(atoms))


class StressOfNothing(Honest):
    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results["stress"] = np.zeros(6)


class Silent(Honest):
    def check_geometry(self, atoms):
        pass


MUTANTS = [
    ("state is read", NeverLooksAtInfo, "are not read"),
    ("change recomputes", StaleCache, "after info was changed"),
    ("unrelated keys", ComparesAllOfInfo, "more calculations|ambiguous"),
    ("dynamics", ComparesAllOfInfo, "not 6|ambiguous"),
    ("no memory", RemembersTheCharge, "without keys after"),
    ("input untouched", WritesDefaults, "info was {}"),
    ("input untouched", MovesAtoms, "'positions'. was changed"),
    ("spellings", KnowsOneSpelling, "total_charge"),
    ("spellings", LastSpellingWins, "disagree: no error"),
    ("number types", WantsPythonIntegers, "charge must be int"),
    ("malformed", Truncates, "charge 0.5: no error"),
    ("parity", NoParity, "multiplicity 2 at charge 0: no error"),
    ("forces of the state", ForcesOfTheNeutral, "by differences"),
    ("results", NoFreeEnergy, "results: raised"),
    ("results", OwnResults, "node_energy"),
    ("results", StressOfNothing, "stress of a molecule"),
    ("bad geometry", Silent, "nan: no error"),
]


def test_an_honest_calculator_passes() -> None:
    check_calculator(Honest())
    check_calculator(Honest(), states=[(0, 1), (0, 3), (1, 2), (-1, 2)])


def test_every_check_has_a_mutant() -> None:
    assert {name for name, _, _ in MUTANTS} == set(CALCULATOR_CHECKS)


@pytest.mark.parametrize(("check", "mutant", "text"), MUTANTS)
def test_dishonest_calculators_are_found(check: str, mutant: Any, text: str) -> None:
    with pytest.raises(AssertionError, match=text) as caught:
        check_calculator(mutant(), checks=[check])
    assert f"  {check}: " in str(caught.value)


def test_a_calculator_without_charges_fails_in_what_it_lacks() -> None:
    with pytest.raises(AssertionError, match="state is read: ") as caught:
        check_calculator(LennardJones())
    for check in ("spellings", "malformed", "parity", "bad geometry"):
        assert f"  {check}: " in str(caught.value)
    for check in ("no memory", "dynamics", "input untouched"):
        assert f"  {check}: " not in str(caught.value)


def test_arguments_of_the_check() -> None:
    with pytest.raises(ValueError, match="no check is called 'everything'"):
        check_calculator(Honest(), checks=["everything"])
    with pytest.raises(ValueError, match="two different states"):
        check_calculator(Honest(), states=[(0, 1), (0, 1)])


def test_the_calculator_is_given_back_as_it_was() -> None:
    calc = Honest()
    check_calculator(calc)
    assert "calculate" not in vars(calc)
    assert calc.results == {}
