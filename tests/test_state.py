"""The charge and spin contract: what is read, what is accepted, what is impossible."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from hypothesis import given
from hypothesis import strategies as st

from nnpcalc.state import (
    CHARGE_KEYS,
    LARGEST_INTEGER,
    MULTIPLICITY_KEYS,
    State,
    StateError,
    as_integer,
    resolve_state,
)

INTEGER_DISGUISES = [
    pytest.param(int, id="int"),
    pytest.param(float, id="float"),
    pytest.param(np.int8, id="int8"),
    pytest.param(np.int64, id="int64"),
    pytest.param(np.float32, id="float32"),
    pytest.param(np.float64, id="float64"),
    pytest.param(np.longdouble, id="longdouble"),
    pytest.param(np.array, id="0-d array"),
    pytest.param(lambda v: np.array(float(v)), id="0-d float array"),
]

NO_INTEGERS = [
    True,
    False,
    np.True_,
    None,
    "1",
    "neutral",
    b"1",
    0.5,
    np.float32(0.99),
    float("nan"),
    float("inf"),
    -np.inf,
    1 + 0j,
    [1],
    (1,),
    {},
    np.array([1]),
    np.array([1, 2]),
    np.array(True),
    np.array("1"),
    np.array(None),
    np.timedelta64(1, "s"),
    np.timedelta64(1, "ns"),  # of which numpy makes an int
]


def water(**info: Any) -> Atoms:
    atoms = molecule("H2O")
    atoms.info.update(info)
    return atoms


def methyl(**info: Any) -> Atoms:
    atoms = molecule("CH3")
    atoms.info.update(info)
    return atoms


def test_nothing_given_is_neutral_with_the_lowest_multiplicity() -> None:
    assert resolve_state(water()) == State(charge=0, multiplicity=1)
    assert resolve_state(methyl()) == State(charge=0, multiplicity=2)


@pytest.mark.parametrize("key", CHARGE_KEYS)
def test_each_spelling_of_the_charge(key: str) -> None:
    assert resolve_state(water(**{key: -1})) == State(-1, 2)


@pytest.mark.parametrize("key", MULTIPLICITY_KEYS)
def test_each_spelling_of_the_multiplicity(key: str) -> None:
    state = resolve_state(water(**{key: 3}))
    assert state == State(0, 3)
    assert state.unpaired_electrons == 2


def test_the_keys_are_those_of_the_contract() -> None:
    assert CHARGE_KEYS == ("charge", "total_charge")
    assert MULTIPLICITY_KEYS == ("spin", "spin_multiplicity", "multiplicity", "mult")


@pytest.mark.parametrize("disguise", INTEGER_DISGUISES)
def test_integers_in_disguise(disguise: Any) -> None:
    state = resolve_state(water(charge=disguise(-2), spin=disguise(3)))
    assert state == State(-2, 3)
    assert type(state.charge) is int
    assert type(state.multiplicity) is int


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
@pytest.mark.parametrize("key", ["charge", "total_charge", "spin", "mult"])
def test_other_values_are_errors_that_show_key_and_value(key: str, value: Any) -> None:
    with pytest.raises(StateError, match="must be an integer") as caught:
        resolve_state(water(**{key: value}))
    text = str(caught.value)
    assert f"info[{key!r}]" in text
    assert type(value).__name__ in text
    assert "H2O" in text


def test_a_value_is_shown_as_it_was_given() -> None:
    with pytest.raises(
        StateError, match=r"info\['charge'\] must be an integer, not 0\.5 \(float\)"
    ):
        resolve_state(water(charge=0.5))
    with pytest.raises(StateError, match=r"not '1' \(str\)"):
        resolve_state(water(spin="1"))
    with pytest.raises(StateError, match="delete the key"):
        resolve_state(water(charge=None))


def test_the_hint_fits_the_quantity() -> None:
    for key, value, hint in (
        ("charge", 0.5, "; round a sum of partial charges"),
        ("spin", 1.5, "; it is 2S + 1, not S"),
        ("charge", "-1", "; use int(...) of a number that was read as text"),
        ("mult", np.array("1"), "; use int(...) of a number that was read as text"),
    ):
        with pytest.raises(StateError) as caught:
            resolve_state(water(**{key: value}))
        assert str(caught.value).endswith(hint)


def test_the_source_of_a_state_is_named() -> None:
    with pytest.raises(StateError, match="charge 11 from the states asked for removes more"):
        resolve_state(water(), 11, source="the states asked for")


def test_a_long_value_does_not_fill_the_screen() -> None:
    with pytest.raises(StateError) as caught:
        resolve_state(water(charge="x" * 100_000))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [10**7, -(10**7), 10**30, 1e300, -1e300])
def test_absurd_integers(value: float) -> None:
    with pytest.raises(StateError, match="beyond the largest accepted"):
        resolve_state(water(charge=value))


def test_both_spellings_of_a_charge_may_agree_but_not_differ() -> None:
    assert resolve_state(water(charge=1, total_charge=1.0)) == State(1, 2)
    with pytest.raises(StateError, match=r"info\['charge'\] = 1 .*info\['total_charge'\] = -1"):
        resolve_state(water(charge=1, total_charge=-1))


def test_an_unreadable_second_spelling_is_not_overlooked() -> None:
    with pytest.raises(StateError, match="total_charge"):
        resolve_state(water(charge=1, total_charge="1"))


@pytest.mark.parametrize("first", MULTIPLICITY_KEYS)
@pytest.mark.parametrize("second", MULTIPLICITY_KEYS)
def test_spellings_of_the_multiplicity_that_differ(first: str, second: str) -> None:
    if first == second:
        return
    assert resolve_state(water(**{first: 3, second: np.int64(3)})) == State(0, 3)
    with pytest.raises(StateError, match="remove one of the two") as caught:
        resolve_state(water(**{first: 1, second: 3}))
    assert f"{first!r}] = 1" in str(caught.value)
    assert f"{second!r}] = 3" in str(caught.value)


def test_info_wins_over_the_defaults() -> None:
    assert resolve_state(water(), charge=1) == State(1, 2)
    assert resolve_state(water(), charge=1, multiplicity=4) == State(1, 4)
    assert resolve_state(water(charge=0), charge=1) == State(0, 1)
    assert resolve_state(water(spin=3), multiplicity=1) == State(0, 3)
    # the default charge decides about the default multiplicity, not the charge in info about itself
    assert resolve_state(methyl(charge=1), charge=-3) == State(1, 1)


def test_a_bad_default_is_named_as_the_default() -> None:
    with pytest.raises(StateError, match=r"the default charge must be an integer, not 0\.5"):
        resolve_state(water(), charge=0.5)  # type: ignore[arg-type]
    with pytest.raises(StateError, match="multiplicity 1 from the default multiplicity is imposs"):
        resolve_state(methyl(), multiplicity=1)


def test_parity_error_names_electrons_charge_and_the_nearest_multiplicities() -> None:
    with pytest.raises(StateError) as caught:
        resolve_state(water(charge=-1, spin=3), system=7)
    text = str(caught.value)
    assert "system 7 (H2O)" in text
    assert "11 electrons (10 protons, charge -1 from info['charge'])" in text
    assert "multiplicity 3 from info['spin']" in text
    assert "nearest allowed: 2 or 4" in text


def test_nearest_multiplicities_stay_in_range() -> None:
    with pytest.raises(StateError, match="nearest allowed: 2;"):
        resolve_state(methyl(spin=1))
    hydrogen = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], info={"spin": 2})
    with pytest.raises(StateError, match="nearest allowed: 1 or 3;"):
        resolve_state(hydrogen)


def test_the_same_multiplicity_is_right_or_wrong_with_the_charge() -> None:
    assert resolve_state(water(charge=1, spin=2)) == State(1, 2)
    with pytest.raises(StateError, match="even number of electrons needs an odd multiplicity"):
        resolve_state(water(charge=0, spin=2))
    with pytest.raises(StateError, match="odd number of electrons needs an even multiplicity"):
        resolve_state(water(charge=1, spin=1))


@pytest.mark.parametrize("value", [0, -1])
def test_multiplicity_below_one_explains_the_convention(value: int) -> None:
    with pytest.raises(StateError, match=r"2S \+ 1.*not the number of unpaired electrons"):
        resolve_state(water(spin=value))


def test_more_unpaired_electrons_than_electrons() -> None:
    assert resolve_state(Atoms("H2", info={"spin": 3})) == State(0, 3)
    with pytest.raises(StateError, match="needs 4 unpaired electrons but there are only 2"):
        resolve_state(Atoms("H2", info={"spin": 5}))


def test_charge_that_removes_more_electrons_than_there_are() -> None:
    assert resolve_state(Atoms("H", info={"charge": 1})) == State(1, 1)
    with pytest.raises(
        StateError, match=r"charge 2 .* removes more electrons than the 1 there are"
    ):
        resolve_state(Atoms("H", info={"charge": 2}))


def test_no_atoms() -> None:
    assert resolve_state(Atoms()) == State(0, 1)
    for charge in (-1, 1):
        with pytest.raises(StateError, match="no atoms"):
            resolve_state(Atoms(info={"charge": charge}))


def test_unknown_elements_do_not_hide_the_error() -> None:
    """The text of the error contains the formula, which ASE cannot make for Z > 118."""
    with pytest.raises(StateError, match="2 atoms"):
        resolve_state(Atoms(numbers=[1, 130], info={"charge": "x"}))


def test_error_is_a_value_error() -> None:
    assert issubclass(StateError, ValueError)


def test_nothing_is_written_into_the_atoms() -> None:
    atoms = methyl(charge=np.int64(1), note=np.arange(3))
    before = dict(atoms.info)
    arrays = {key: value.copy() for key, value in atoms.arrays.items()}
    resolve_state(atoms, 3, 1)
    assert list(atoms.info) == list(before)
    assert all(atoms.info[key] is before[key] for key in before)
    assert arrays.keys() == atoms.arrays.keys()
    assert all(np.array_equal(arrays[key], atoms.arrays[key]) for key in arrays)


def test_nothing_is_remembered_from_the_previous_molecule() -> None:
    resolve_state(methyl(charge=1, spin=3))
    assert resolve_state(methyl()) == State(0, 2)


def test_unrelated_info_does_not_matter() -> None:
    noisy = water(md_step=7, field=np.ones(3), Charge=5, initial="x")
    assert resolve_state(noisy) == resolve_state(water())


def test_initial_charges_and_moments_are_not_read() -> None:
    atoms = water()
    atoms.set_initial_charges([1.0, 0.0, 0.0])
    atoms.set_initial_magnetic_moments([1.0, 1.0, 0.0])
    assert resolve_state(atoms) == State(0, 1)


def test_survives_an_extxyz_file() -> None:
    """ASE reads integers back as np.int64, on which some calculators fail."""
    text = io.StringIO()
    write(text, water(charge=-1, spin=2), format="extxyz")
    text.seek(0)
    again = read(text, format="extxyz")
    assert isinstance(again, Atoms)
    assert isinstance(again.info["charge"], np.integer)
    assert resolve_state(again) == State(-1, 2)


def possible(electrons: int, multiplicity: int) -> bool:
    """Counting spins up and down: up - down = multiplicity - 1, up + down = electrons."""
    twice_up = electrons + multiplicity - 1
    up, down = twice_up // 2, electrons - twice_up // 2
    return twice_up % 2 == 0 and up >= 0 and down >= 0 and multiplicity >= 1


@given(
    numbers=st.lists(st.integers(1, 118), min_size=1, max_size=6),
    charge=st.integers(-10, 130),
    multiplicity=st.integers(-2, 12),
)
def test_accepts_exactly_the_states_that_exist(
    numbers: list[int], charge: int, multiplicity: int
) -> None:
    atoms = Atoms(numbers=numbers, info={"charge": charge, "spin": multiplicity})
    electrons = sum(numbers) - charge
    if electrons >= 0 and possible(electrons, multiplicity):
        assert resolve_state(atoms) == State(charge, multiplicity)
    else:
        with pytest.raises(StateError):
            resolve_state(atoms)


@given(numbers=st.lists(st.integers(1, 118), min_size=1, max_size=6), charge=st.integers(-10, 130))
def test_default_multiplicity_is_the_lowest_possible(numbers: list[int], charge: int) -> None:
    electrons = sum(numbers) - charge
    if electrons < 0:
        return
    found = resolve_state(Atoms(numbers=numbers), charge=charge).multiplicity
    assert found == min(m for m in (1, 2) if possible(electrons, m))


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_floats_are_integers_only_if_they_are(value: float) -> None:
    if value.is_integer() and abs(value) <= LARGEST_INTEGER:
        assert as_integer(value, "x") == value
    else:
        with pytest.raises(StateError):
            as_integer(value, "x")
