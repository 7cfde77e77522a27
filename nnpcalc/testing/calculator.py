"""`check_calculator`: does an ASE calculator treat charge and spin as its users believe it does?

Written against ASE's public interface only, so that any calculator can be tried; the contract is
that of `nnpcalc.state`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.verlet import VelocityVerlet

from nnpcalc.state import CHARGE_KEYS, MULTIPLICITY_KEYS

#: Energies of the same structure and state agree within this, eV; float32 models included.
SAME = 1e-4
#: Energies of different states differ by more, eV.
DIFFERENT = 1e-3
#: Forces against differences of float32 energies, eV/Å.
FORCES = 5e-2


@dataclass
class Subject:
    """A calculator, a molecule and states it can compute; `energies` are found one by one."""

    calc: Any
    atoms: Atoms
    states: Sequence[tuple[int, int]]
    energies: list[float] = field(default_factory=list)

    def prepared(self, state: tuple[int, int]) -> Atoms:
        """A copy of the molecule with the calculator, in this state."""
        return self.with_info(charge=state[0], spin=state[1])

    def with_info(self, **info: Any) -> Atoms:
        """A copy of the molecule with the calculator and these keys in `info`."""
        atoms = self.atoms.copy()
        atoms.info = dict(info)
        atoms.calc = self.calc
        return atoms

    def reference(self) -> list[float]:
        """Energies of the states, each computed by a calculator that has forgotten all else."""
        if not self.energies:
            for state in self.states:
                self.calc.reset()
                self.energies.append(float(self.prepared(state).get_potential_energy()))
        return self.energies


@contextmanager
def counting(calc: Any) -> Iterator[list[int]]:
    """Count the calls of `calc.calculate`; yields a list with the one number."""
    calls, original = [0], calc.calculate

    def calculate(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        return original(*arguments, **keywords)

    calc.calculate = calculate
    try:
        yield calls
    finally:
        del calc.calculate


def _refused(atoms: Atoms, what: str) -> None:
    try:
        energy = atoms.get_potential_energy()
    except ValueError:
        return
    except Exception as error:  # the kind of error is what is checked
        raise AssertionError(f"{what}: raised {type(error).__name__}, not ValueError") from error
    raise AssertionError(f"{what}: no error, but the energy {energy} eV")


def _equal(found: float, expected: float, what: str) -> None:
    assert abs(found - expected) <= SAME, f"{what}: {found:.6f} eV, expected {expected:.6f} eV"


# --- the contract --------------------------------------------------------------------------------


def check_results(s: Subject) -> None:
    """Energy and forces are numbers of the right shape, and all ASE does with results works."""
    atoms = s.prepared(s.states[0])
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    assert np.ndim(energy) == 0, f"the energy has the shape {np.shape(energy)}"
    assert np.isfinite(energy), f"the energy is {energy}"
    assert forces.shape == (len(atoms), 3), f"the forces have the shape {forces.shape}"
    assert np.isfinite(forces).all(), "the forces are not finite"
    _equal(atoms.get_potential_energy(force_consistent=True), energy, "force_consistent energy")
    frozen = SinglePointCalculator(atoms, **s.calc.results)
    _equal(frozen.results["energy"], energy, "SinglePointCalculator(atoms, **calc.results)")
    try:
        stress = atoms.get_stress()
    except NotImplementedError:
        return
    raise AssertionError(f"the stress of a molecule without a cell is {stress}, not an error")


def check_state_is_read(s: Subject) -> None:
    """Different states have different energies."""
    energies = s.reference()
    for k in range(1, len(s.states)):
        difference = abs(energies[k] - energies[0])
        assert difference > DIFFERENT, (
            f"(charge, multiplicity) {s.states[0]} and {s.states[k]} have the same energy within "
            f"{difference:.1e} eV: info['charge'] and info['spin'] are not read"
        )


def check_change_recomputes(s: Subject) -> None:
    """A state changed in `info` is seen by the next call, ASE's cache or not."""
    energies = s.reference()
    atoms = s.prepared(s.states[0])
    for k in (0, 1, 0, -1):
        atoms.info["charge"], atoms.info["spin"] = s.states[k]
        _equal(
            atoms.get_potential_energy(),
            energies[k],
            f"energy after info was changed to (charge, multiplicity) {s.states[k]}",
        )


def check_unrelated_keys(s: Subject) -> None:
    """Other keys in `info` neither recompute nor raise, whatever they hold."""
    atoms = s.prepared(s.states[0])
    with counting(s.calc) as calls:
        s.calc.reset()
        atoms.get_forces()
        for value in (1, 2, "text", np.arange(3), {"a": np.zeros(2)}, [1, 2], None):
            atoms.info["unrelated"] = value
            atoms.get_forces()
            atoms.get_potential_energy()
        assert calls[0] == 1, f"unrelated keys in info made {calls[0] - 1} more calculations"


def check_dynamics(s: Subject) -> None:
    """n steps of molecular dynamics are n + 1 calculations, with a step counter in `info`."""
    atoms = s.prepared(s.states[0])
    atoms.info["array"] = np.zeros((2, 2))
    dynamics = VelocityVerlet(atoms, timestep=0.1 * units.fs, logfile=None)

    def observe() -> None:
        atoms.info["step"] = dynamics.nsteps
        atoms.get_potential_energy()

    dynamics.attach(observe, interval=1)
    with counting(s.calc) as calls:
        s.calc.reset()
        dynamics.run(5)
    assert calls[0] == 6, f"5 steps of dynamics took {calls[0]} calculations, not 6"


def check_no_memory(s: Subject) -> None:
    """A molecule without keys is in the default state, whatever was computed before."""
    s.calc.reset()
    expected = s.with_info().get_potential_energy()
    for state in s.states:
        s.prepared(state).get_potential_energy()
        found = s.with_info().get_potential_energy()
        _equal(found, expected, f"energy without keys after a molecule in the state {state}")
    atoms = s.prepared(s.states[-1])
    atoms.get_potential_energy()
    atoms.info.clear()
    _equal(atoms.get_potential_energy(), expected, "energy after the keys were deleted")


def check_forces_of_state(s: Subject) -> None:
    """Forces are those of the state asked for."""
    h = 1e-2
    for state in s.states:
        atoms = s.prepared(state)
        energies = []
        for steps in (-2, -1, 1, 2):
            displaced = s.prepared(state)
            displaced.positions[0, 2] += steps * h
            energies.append(displaced.get_potential_energy())
        slope = (energies[0] - 8.0 * energies[1] + 8.0 * energies[2] - energies[3]) / (12.0 * h)
        force = atoms.get_forces()[0, 2]
        assert abs(force + slope) <= FORCES, (
            f"force of {force:.4f} eV/Å in the state {state}, {-slope:.4f} by differences"
        )


def check_spellings(s: Subject) -> None:
    """Every usual key is read, and two that disagree are an error."""
    energies = s.reference()
    charge, multiplicity = s.states[1]
    for a in CHARGE_KEYS:
        for b in MULTIPLICITY_KEYS:
            found = s.with_info(**{a: charge, b: multiplicity}).get_potential_energy()
            _equal(found, energies[1], f"energy with the state in info[{a!r}] and info[{b!r}]")
    _refused(s.with_info(charge=0, total_charge=2), "charge and total_charge that disagree")
    _refused(s.with_info(spin=1, multiplicity=3), "spin and multiplicity that disagree")


def check_number_types(s: Subject) -> None:
    """Whole numbers count in any type, as files give them back."""
    energies = s.reference()
    charge, multiplicity = s.states[1]
    for kind in (int, float, np.int64, np.int32, np.float64, np.array):
        atoms = s.with_info(charge=kind(charge), spin=kind(multiplicity))
        found = atoms.get_potential_energy()
        _equal(found, energies[1], f"energy with the state as {getattr(kind, '__name__', kind)}")
    file = io.StringIO()
    bare = s.prepared(s.states[1])
    bare.calc = None
    write(file, bare, format="extxyz")
    file.seek(0)
    again: Any = read(file, format="extxyz")
    again.calc = s.calc
    _equal(again.get_potential_energy(), energies[1], "energy after writing and reading extxyz")


def check_malformed(s: Subject) -> None:
    """What is no whole number is an error, not a guess."""
    for value in (0.5, float("nan"), float("inf"), "1", "neutral", None, [1], np.zeros(2), True):
        _refused(s.with_info(charge=value), f"charge {value!r}")
        _refused(s.with_info(spin=value), f"spin {value!r}")
    _refused(s.with_info(spin=0), "spin 0 (the multiplicity is 2S + 1, at least 1)")


def check_parity(s: Subject) -> None:
    """An electron count that cannot have the multiplicity is an error."""
    for charge, multiplicity in s.states:
        wrong = s.with_info(charge=charge, spin=multiplicity + 1)
        _refused(wrong, f"multiplicity {multiplicity + 1} at charge {charge}")
    protons = int(s.atoms.numbers.sum())
    _refused(s.with_info(charge=protons + 1), f"charge {protons + 1} of {protons} protons")
    expected = s.reference()[0]
    found = s.prepared(s.states[0]).get_potential_energy()
    _equal(found, expected, "energy after a refused calculation")


def check_input_untouched(s: Subject) -> None:
    """The caller's atoms are not written to."""
    for info in ({}, {"charge": s.states[1][0], "spin": s.states[1][1], "note": "x"}):
        atoms = s.with_info(**info)
        before = atoms.copy()
        atoms.get_potential_energy()
        atoms.get_forces()
        assert atoms.info == info, f"info was {info} and is {atoms.info} after the calculation"
        names = sorted(before.arrays)
        assert sorted(atoms.arrays) == names, f"arrays were {names}, are {sorted(atoms.arrays)}"
        for name in names:
            same = np.array_equal(atoms.arrays[name], before.arrays[name])
            assert same, f"atoms.arrays[{name!r}] was changed"
        assert np.array_equal(atoms.cell.array, before.cell.array), "the cell was changed"
        assert np.array_equal(atoms.pbc, before.pbc), "pbc was changed"


def check_bad_geometry(s: Subject) -> None:
    """Positions that are not finite, coinciding atoms and cells of no volume are errors."""
    for value in (np.nan, np.inf):
        atoms = s.prepared(s.states[0])
        atoms.positions[-1, 1] = value
        _refused(atoms, f"a position of {value}")
    atoms = s.prepared(s.states[0])
    atoms.positions[1] = atoms.positions[0]
    _refused(atoms, "two atoms in the same place")
    atoms = s.prepared(s.states[0])
    atoms.pbc = True
    _refused(atoms, "periodic boundaries without a cell")


#: Name of each check of `check_calculator`.
CALCULATOR_CHECKS: dict[str, Callable[[Subject], None]] = {
    "results": check_results,
    "state is read": check_state_is_read,
    "change recomputes": check_change_recomputes,
    "unrelated keys": check_unrelated_keys,
    "dynamics": check_dynamics,
    "no memory": check_no_memory,
    "forces of the state": check_forces_of_state,
    "spellings": check_spellings,
    "number types": check_number_types,
    "malformed": check_malformed,
    "parity": check_parity,
    "input untouched": check_input_untouched,
    "bad geometry": check_bad_geometry,
}


def check_calculator(
    calc: Any,
    atoms: Atoms | None = None,
    *,
    states: Sequence[tuple[int, int]] = ((0, 1), (2, 1)),
    checks: Iterable[str] | None = None,
) -> None:
    """Check that an ASE calculator honours charge and spin multiplicity.

    Args:
        calc: any ASE calculator.
        atoms: a molecule it can compute; water by default. Its `info` is not used.
        states: at least two different (charge, multiplicity) it can compute the molecule in.
        checks: names from `CALCULATOR_CHECKS`; all by default.

    Raises:
        AssertionError: names every violated rule with what was found.
    """
    names = list(CALCULATOR_CHECKS if checks is None else checks)
    unknown = sorted(set(names) - set(CALCULATOR_CHECKS))
    if unknown:
        raise ValueError(f"no check is called {unknown[0]!r}; they are {list(CALCULATOR_CHECKS)}")
    if len(set(states)) < 2:
        raise ValueError(f"two different states are needed, not {list(states)}")
    subject = Subject(calc, molecule("H2O") if atoms is None else atoms, states)
    failures = []
    for name in names:
        try:
            CALCULATOR_CHECKS[name](subject)
        except AssertionError as error:
            failures.append(f"{name}: {error}")
        except Exception as error:  # a calculator may break in any way
            failures.append(f"{name}: raised {type(error).__name__}: {error}")
        calc.reset()
    if failures:
        listed = "\n  ".join(failures)
        raise AssertionError(f"the calculator violates {len(failures)} rules:\n  {listed}")
