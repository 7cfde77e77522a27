"""The charge and the spin multiplicity of a structure: where they are read, what is accepted.

`resolve_state(atoms)` turns `atoms.info` into a `State`. The rules:

- charge: `info["charge"]` or `info["total_charge"]`, in elementary charges; absent: the caller's
  default.
- multiplicity 2S + 1: `info["spin"]` (the convention of UMA, ORB, MACE and AIMNet2),
  `info["spin_multiplicity"]`, `info["multiplicity"]` or `info["mult"]`; absent: the caller's
  default; without one, the lowest that the number of electrons allows (1 or 2).
- several spellings of one quantity are fine when they agree and an error when they do not.
- accepted values are int, numpy integers, floats without a fraction (1.0) and 0-d arrays of these;
  bool, None, text and other arrays are errors.
- the number of electrons, sum of Z - charge, must not be negative and must have the parity of the
  number of unpaired electrons.

The result depends on nothing but the arguments: nothing is remembered from one structure to the
next, and `atoms` is never written to. `initial_charges` and `initial_magmoms` are starting guesses
for an electronic structure program and are not read. ASE copies `info` unchanged when atoms are
repeated, sliced or added, so a charge has to be set anew after `atoms.repeat(2)`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

CHARGE_KEYS = ("charge", "total_charge")
MULTIPLICITY_KEYS = ("spin", "spin_multiplicity", "multiplicity", "mult")

#: Largest absolute charge and largest multiplicity; integers up to 2^24 are exact in float32.
LARGEST_INTEGER = 1_000_000


class StateError(ValueError):
    """A charge or a spin multiplicity that is missing a meaning or cannot exist."""


@dataclass(frozen=True)
class State:
    """Total charge (elementary charges) and spin multiplicity 2S + 1 of one system."""

    charge: int
    multiplicity: int

    @property
    def unpaired_electrons(self) -> int:
        """Number of unpaired electrons, 2S = multiplicity - 1."""
        return self.multiplicity - 1


def resolve_state(
    atoms: Atoms,
    charge: int = 0,
    multiplicity: int | None = None,
    *,
    system: int | None = None,
    source: str | None = None,
) -> State:
    """Charge and multiplicity of `atoms`: those in `atoms.info`, else the defaults.

    Args:
        atoms: the structure; only `numbers` and `info` are read.
        charge: total charge used when `info` has none, in elementary charges.
        multiplicity: 2S + 1 used when `info` has none; None means the lowest that the number of
            electrons allows.
        system: index of the structure in a batch, named in errors.
        source: where `charge` and `multiplicity` come from, named in errors; None: the defaults.

    Raises:
        StateError: a value that is not an integer, spellings that disagree, a multiplicity below 1,
            more electrons removed than there are, or a number of unpaired electrons that cannot be
            made from the electrons there are.

    >>> from ase.build import molecule
    >>> resolve_state(molecule("H2O"))
    State(charge=0, multiplicity=1)
    >>> hydroxide = molecule("OH")
    >>> resolve_state(hydroxide).multiplicity
    2
    >>> hydroxide.info["charge"] = -1
    >>> resolve_state(hydroxide)
    State(charge=-1, multiplicity=1)
    """
    try:
        return _resolve(
            atoms.info, int(atoms.numbers.sum()), charge, multiplicity, len(atoms), source
        )
    except StateError as error:
        raise StateError(f"{system_label(atoms, system)}: {error}") from None


def says(atoms: Atoms, keys: tuple[str, ...]) -> bool:
    """Whether `atoms.info` says something under one of the spellings."""
    return any(key in atoms.info for key in keys)


def as_integer(value: Any, name: str) -> int:
    """`value` as a Python int, if it is an integer in any harmless disguise.

    Accepted: int, numpy integers, floats without a fraction, 0-d numpy arrays of these. Anything
    else is a StateError that shows the value; `name` says in it where the value came from.
    """
    if type(value) is int:
        number = value
    else:
        # np.longdouble.item() is again an np.longdouble, hence np.floating below
        plain = value.item() if _is_numpy_number(value) else value
        shown = f"{reprlib.repr(value)} ({type(value).__name__})"
        if isinstance(plain, bool) or not isinstance(plain, (int, float, np.floating)):
            hint = "; delete the key to use the default" if value is None else ""
            hint = "; use int(...) of a number that was read as text" if _is_text(value) else hint
            raise StateError(f"{name} must be an integer, not {shown}{hint}")
        if not isinstance(plain, int) and not (np.isfinite(plain) and plain == np.rint(plain)):
            hint = "round a sum of partial charges" if "charge" in name else "it is 2S + 1, not S"
            raise StateError(f"{name} must be an integer, not {shown}; {hint}")
        number = int(plain)
    if abs(number) > LARGEST_INTEGER:
        raise StateError(
            f"{name} = {reprlib.repr(value)} is beyond the largest accepted, {LARGEST_INTEGER}"
        )
    return number


def system_label(atoms: Atoms, system: int | None) -> str:
    """Name of a structure in an error text: 'system 3 (C2H6O)'."""
    numbers = atoms.numbers
    if len(numbers) == 0:
        formula = "no atoms"
    elif numbers.min() < 0 or numbers.max() >= len(chemical_symbols):  # ASE cannot name these
        formula = f"{len(numbers)} atoms"
    else:
        formula = str(atoms.get_chemical_formula())
    return formula if system is None else f"system {system} ({formula})"


def element_symbol(number: int) -> str:
    """Chemical symbol of an atomic number, also for numbers that are no element ('Z=119')."""
    return chemical_symbols[number] if 1 <= number < len(chemical_symbols) else f"Z={number}"


def _is_numpy_number(value: Any) -> bool:
    """A numpy scalar or 0-d array of integers or floats; not of bools, text, times or objects."""
    return (
        isinstance(value, (np.generic, np.ndarray))
        and value.ndim == 0
        and value.dtype.kind in "iuf"
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, (str, bytes)) or (
        isinstance(value, np.ndarray) and value.dtype.kind in "SU"
    )


def _resolve(
    info: Mapping[Any, Any],
    protons: int,
    charge: Any,
    multiplicity: Any,
    n_atoms: int,
    default: str | None,
) -> State:
    given_charge, charge_source = _read(info, CHARGE_KEYS)
    if given_charge is None:
        charge_source = default or "the default charge"
        given_charge = as_integer(charge, charge_source)
    electrons = protons - given_charge
    _check_electrons(electrons, protons, given_charge, charge_source, n_atoms)

    given_multiplicity, source = _read(info, MULTIPLICITY_KEYS)
    if given_multiplicity is None:
        if multiplicity is None:
            return State(given_charge, 1 + electrons % 2)
        source = default or "the default multiplicity"
        given_multiplicity = as_integer(multiplicity, source)
    counted = (
        f"{electrons} electrons ({protons} protons, charge {given_charge} from {charge_source})"
    )
    _check_multiplicity(given_multiplicity, source, electrons, counted)
    return State(given_charge, given_multiplicity)


def _read(info: Mapping[Any, Any], keys: tuple[str, ...]) -> tuple[int | None, str]:
    """Value of the first key present and the name of its place; (None, "") if all are absent."""
    value: int | None = None
    source = ""
    for key in keys:
        if key not in info:
            continue
        name = f"info[{key!r}]"
        found = as_integer(info[key], name)
        if value is not None and found != value:
            raise StateError(f"{source} = {value} but {name} = {found}; remove one of the two")
        if value is None:
            value, source = found, name
    return value, source


def _check_electrons(electrons: int, protons: int, charge: int, source: str, n_atoms: int) -> None:
    if electrons < 0:
        raise StateError(
            f"charge {charge} from {source} removes more electrons than the {protons} there are; "
            f"the largest charge is {protons}"
        )
    if n_atoms == 0 and charge != 0:
        raise StateError(
            f"charge {charge} from {source}, but there are no atoms to carry it; use 0"
        )


def _check_multiplicity(multiplicity: int, source: str, electrons: int, counted: str) -> None:
    """2S + 1 is at least 1, at most electrons + 1, and odd for an even number of electrons."""
    lowest, highest = 1 + electrons % 2, electrons + 1
    if multiplicity < 1:
        raise StateError(
            f"multiplicity {multiplicity} from {source} is below 1; it is 2S + 1 (1 singlet, "
            f"2 doublet, 3 triplet), not the number of unpaired electrons; the lowest for "
            f"{counted} is {lowest}"
        )
    if multiplicity > highest:
        raise StateError(
            f"multiplicity {multiplicity} from {source} needs {multiplicity - 1} unpaired "
            f"electrons but there are only {counted}; the highest multiplicity is {highest}"
        )
    if multiplicity % 2 != highest % 2:
        allowed = [m for m in (multiplicity - 1, multiplicity + 1) if lowest <= m <= highest]
        raise StateError(
            f"multiplicity {multiplicity} from {source} is impossible for {counted}: an "
            f"{'odd' if electrons % 2 else 'even'} number of electrons needs an "
            f"{'even' if electrons % 2 else 'odd'} multiplicity; nearest allowed: "
            f"{' or '.join(map(str, allowed))}; check the charge and the multiplicity 2S + 1"
        )
