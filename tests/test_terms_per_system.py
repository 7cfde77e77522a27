"""terms/system_energy.py: the same energy for every system, in equal parts."""

from __future__ import annotations

import math

import pytest
import torch

from nnpcalc.terms.system_energy import SystemEnergy


@pytest.mark.parametrize("scripted", [False, True])
def test_every_system_gets_the_energy_once(scripted: bool) -> None:
    term: torch.nn.Module = SystemEnergy(-2.5)
    if scripted:
        with pytest.warns(DeprecationWarning, match="script"):
            term = torch.jit.script(term)
    system = torch.tensor([0, 0, 0, 2, 3, 3])  # system 1 has no atoms
    charge = torch.zeros(4)
    nothing = torch.zeros(0)
    energies = term.to(torch.float32)(system, nothing, nothing, nothing, system, charge)
    assert energies.dtype == torch.float64
    expected = [-2.5 / 3, -2.5 / 3, -2.5 / 3, -2.5, -1.25, -1.25]
    assert energies.tolist() == pytest.approx(expected, rel=1e-15)


def test_energies_that_are_no_energy() -> None:
    for energy in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not finite"):
            SystemEnergy(energy)
