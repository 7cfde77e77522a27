"""Energies of several charges and spins at one geometry, in one evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from ase import Atoms

from nnpcalc.calculator import NNPCalculator
from nnpcalc.evaluation import (
    Evaluation,
    ExtrapolationError,
    ExtrapolationWarning,
    checked_batch,
)
from nnpcalc.state import (
    CHARGE_KEYS,
    MULTIPLICITY_KEYS,
    State,
    StateError,
    as_integer,
    resolve_state,
)


@dataclass(frozen=True)
class VerticalEnergies:
    """Energies between electronic states at one geometry, eV; N electrons, multiplicity m.

    A value is None where it cannot be had; `missing` says why, under the name of the attribute.

    Attributes:
        state: the state of the structure itself, (q, m).
        energy: E(q, m).
        ionisation_energy: E(q + 1) - E(q, m), to take one electron away, the ion in its lowest
            multiplicity (1 if it has an even number of electrons, else 2).
        electron_affinity: E(q, m) - E(q - 1), what is gained by one electron more, the ion in its
            lowest multiplicity. Positive where the electron is bound.
        singlet_triplet_gap: E(q, 3) - E(q, 1). Negative where the triplet lies lower. Only of an
            even number of electrons.
        energies: of all states that were computed, by state.
        missing: reason by attribute.
    """

    state: State
    energy: float
    ionisation_energy: float | None
    electron_affinity: float | None
    singlet_triplet_gap: float | None
    energies: Mapping[State, float]
    missing: Mapping[str, str] = field(default_factory=dict)


def state_energies(
    atoms: Atoms,
    model: Any,
    states: Iterable[tuple[int, int] | int | State],
    *,
    forces: bool = False,
    **options: Any,
) -> list[Evaluation]:
    """Evaluate one geometry in several electronic states, in one batch.

    Args:
        atoms: the geometry; the state in its `info` does not matter and is not changed.
        model: a name, path, `Potential` or `NNPCalculator`.
        states: pairs (charge, multiplicity), or charges, which get their lowest multiplicity.
        forces: compute the forces as well.
        options: of `NNPCalculator`, if the model is not one.

    Returns:
        One `nnpcalc.evaluation.Evaluation` per state, in order, with `state` and `energy`.

    Raises:
        ValueError: a state that this molecule cannot have, or outside of the model's card.

    >>> from ase.build import molecule
    >>> for found in state_energies(molecule("NH3"), "tensornet-spice", [(0, 1), (2, 1)]):
    ...     print(found.state)
    State(charge=0, multiplicity=1)
    State(charge=2, multiplicity=1)
    """
    calculator = _calculator(model, options)
    wanted = [as_state(atoms, state) for state in states]
    properties = ("energy", "forces") if forces else ("energy",)
    return calculator.evaluate([_in_state(atoms, state) for state in wanted], properties)


def vertical_energies(atoms: Atoms, model: Any, **options: Any) -> VerticalEnergies:
    """Vertical ionisation energy, electron affinity and singlet-triplet gap, in one batch.

    "Vertical" means that the atoms stay where they are; the geometry should be a minimum of the
    structure's own state. States that the model's card does not list are not computed.

    Args:
        atoms: the geometry, its charge and multiplicity in `info`.
        model: a name, path, `Potential` or `NNPCalculator`.
        options: of `NNPCalculator`, if the model is not one; with `on_extrapolation="warn"` states
            outside of the card are computed all the same, with a warning.

    Raises:
        ValueError: the structure's own state cannot be computed.
    """
    calculator = _calculator(model, options)
    own = resolve_state(atoms, calculator.charge, calculator.multiplicity)
    _check(atoms, calculator)
    electrons = int(atoms.numbers.sum()) - own.charge
    candidates: dict[str, tuple[State, State] | str] = {
        "ionisation_energy": "there is no electron to take away",
        "singlet_triplet_gap": "an odd number of electrons has neither singlet nor triplet",
        "electron_affinity": (own, State(own.charge - 1, 1 + (electrons + 1) % 2)),
    }
    if electrons:
        ion = State(own.charge + 1, 1 + (electrons - 1) % 2)
        candidates["ionisation_energy"] = (ion, own)
    if electrons % 2 == 0:
        pair = (State(own.charge, 3), State(own.charge, 1))
        candidates["singlet_triplet_gap"] = pair  # E(triplet) - E(singlet)
    missing: dict[str, str] = {}
    for name, needed in candidates.items():
        try:
            if isinstance(needed, str):
                raise StateError(needed)
            _check_seen("multiplicity" if name == "singlet_triplet_gap" else "charge", calculator)
            for state in needed:
                _check(_in_state(atoms, state), calculator)
        except (StateError, ExtrapolationError) as error:
            missing[name] = str(error)
    pairs = {n: p for n, p in candidates.items() if n not in missing and not isinstance(p, str)}
    states = list(dict.fromkeys([own, *(state for pair in pairs.values() for state in pair)]))
    found = calculator.evaluate([_in_state(atoms, state) for state in states], ("energy",))
    energies = {state: result.energy for state, result in zip(states, found, strict=True)}

    def difference(name: str) -> float | None:
        if name not in pairs:
            return None
        upper, lower = pairs[name]
        return energies[upper] - energies[lower]

    return VerticalEnergies(
        state=own,
        energy=energies[own],
        ionisation_energy=difference("ionisation_energy"),
        electron_affinity=difference("electron_affinity"),
        singlet_triplet_gap=difference("singlet_triplet_gap"),
        energies=energies,
        missing=missing,
    )


def _calculator(model: Any, options: Mapping[str, Any]) -> NNPCalculator:
    if not isinstance(model, NNPCalculator):
        return NNPCalculator(model, **options)
    if options:
        raise ValueError(f"{', '.join(options)}: options of a model, but a calculator was given")
    return model


def as_state(atoms: Atoms, state: tuple[int, int] | int | State) -> State:
    """One of the states asked for, whatever the `info` of the structure says.

    Raises:
        StateError: this molecule cannot have it.
    """
    if isinstance(state, State):
        state = (state.charge, state.multiplicity)
    charge, multiplicity = state if isinstance(state, Sequence) else (state, None)
    stateless = Atoms(atoms.numbers)
    return resolve_state(
        stateless,
        as_integer(charge, "the charge"),
        None if multiplicity is None else as_integer(multiplicity, "the multiplicity"),
        source="the states asked for",
    )


def _in_state(atoms: Atoms, state: State) -> Atoms:
    """A copy of the structure in another state."""
    copy = atoms.copy()
    for key in (*CHARGE_KEYS, *MULTIPLICITY_KEYS):
        copy.info.pop(key, None)
    copy.info[CHARGE_KEYS[0]], copy.info[MULTIPLICITY_KEYS[0]] = state.charge, state.multiplicity
    return copy


def _check(atoms: Atoms, calculator: NNPCalculator) -> None:
    """Refuse a structure in a state that cannot be, or that the model does not cover."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)  # the evaluation warns
        checked_batch(
            calculator._engine,
            [atoms],
            device=torch.device("cpu"),
            charge=calculator.charge,
            multiplicity=calculator.multiplicity,
            on_extrapolation=calculator.on_extrapolation,
        )


def _check_seen(quantity: str, calculator: NNPCalculator) -> None:
    """Refuse differences between states that the model cannot tell apart."""
    terms = getattr(calculator.potential, "terms", ())
    seen = {*calculator._engine.conditions}.union(*(getattr(t, "conditions_on", ()) for t in terms))
    if quantity not in seen:
        raise ExtrapolationError(
            f"the energies of {calculator._engine.name} do not depend on the {quantity}: use a "
            "model that was trained on states"
        )
