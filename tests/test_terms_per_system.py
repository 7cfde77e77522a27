"""Energies per system: a constant, and one that follows the electronic state."""

from __future__ import annotations

import math

import pytest
import torch

from nnpcalc.terms import StateEnergy, SystemEnergy, TermInputs


def inputs_of(system: torch.Tensor, charge: torch.Tensor, multiplicity: torch.Tensor) -> TermInputs:
    """What these terms look at; the rest is empty."""
    nothing, none = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    return TermInputs(
        numbers=system, positions=nothing, cell=nothing, system=system, pairs=none, shifts=none,
        vectors=nothing, distances=nothing, charge=charge, multiplicity=multiplicity, charges=None,
    )  # fmt: skip


@pytest.mark.parametrize("scripted", [False, True])
def test_every_system_gets_the_energy_once(scripted: bool) -> None:
    term: torch.nn.Module = SystemEnergy(-2.5)
    if scripted:
        with pytest.warns(DeprecationWarning, match="script"):
            term = torch.jit.script(term)
    system = torch.tensor([0, 0, 0, 2, 3, 3])  # system 1 has no atoms
    energies = term.to(torch.float32)(inputs_of(system, torch.zeros(4), torch.ones(4)))
    assert energies.dtype == torch.float64
    expected = [-2.5 / 3, -2.5 / 3, -2.5 / 3, -2.5, -1.25, -1.25]
    assert energies.tolist() == pytest.approx(expected, rel=1e-15)


def test_energies_that_are_no_energy() -> None:
    for energy in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not finite"):
            SystemEnergy(energy)


@pytest.mark.parametrize("scripted", [False, True])
def test_a_state_costs_the_same_whatever_the_size(scripted: bool) -> None:
    term: torch.nn.Module = StateEnergy(4.0, 2.5, 1.5)
    if scripted:
        with pytest.warns(DeprecationWarning, match="script"):
            term = torch.jit.script(term)
    system = torch.tensor([0, 0, 0, 1, 2, 2, 4])  # system 3 has no atoms
    charge = torch.tensor([0.0, 1.0, -2.0, 1.0, 0.0])
    multiplicity = torch.tensor([1.0, 2.0, 3.0, 1.0, 3.0])
    energies = term(inputs_of(system, charge, multiplicity))
    total = torch.zeros(5, dtype=torch.float64).index_add(0, system, energies)
    assert total.tolist() == pytest.approx([0.0, 8.0, 5.0, 0.0, 3.0])


def test_states_that_cost_nothing_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        StateEnergy(1.0, math.nan)
