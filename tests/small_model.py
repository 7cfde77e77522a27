"""A small potential with random weights for the tests of files, and structures to try it on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.build import bulk, molecule

from nnpcalc.batch import AtomsBatch
from nnpcalc.models import build_core
from nnpcalc.potential import Potential
from nnpcalc.terms import ZBL, AtomicEnergies

CONFIG = {
    "channels": 8,
    "layers": 2,
    "radial_functions": 8,
    "cutoff": 4.5,
    "elements": [1, 6, 8, 17],
    "attributes": ["charge", "unpaired_electrons"],
    "attribute_weights": [0.1, 0.2],
}
STATES = {"charges": [-1, 0, 1], "multiplicities": [1, 2]}
ATOMIC_ENERGIES = {1: -13.6, 6: -1035.2, 8: -2041.3, 17: -12520.7}


def structures() -> list[Atoms]:
    """A molecule, an ion, a radical and a crystal smaller than the cutoff."""
    hydroxide = molecule("OH")
    hydroxide.info["charge"] = -1
    crystal = bulk("C", "diamond", a=3.6)
    crystal.rattle(0.05, seed=1)
    return [molecule("CH3CH2OH"), hydroxide, molecule("CH3"), crystal]


def make_potential() -> Potential:
    """The architecture of the shipped model, small, with random weights."""
    core = build_core("tensornet", CONFIG)
    return Potential(core, (AtomicEnergies(ATOMIC_ENERGIES), ZBL(reach=0.9)), scale=1.7)


def evaluate(potential: Potential, dtype: torch.dtype, atoms: Any) -> dict[str, torch.Tensor]:
    results = potential.evaluate(AtomsBatch.from_atoms(atoms, dtype=dtype), stress=True)
    assert results.forces is not None and results.stress is not None
    return {"energy": results.energy, "forces": results.forces, "stress": results.stress}


def assert_equal(first: dict[str, Any], second: dict[str, Any], tolerance: float) -> None:
    """Absolute differences; energies per atom stay below 1e4 eV here and accumulate in float64."""
    for key, value in first.items():
        torch.testing.assert_close(
            torch.as_tensor(value), second[key], rtol=0.0, atol=tolerance, equal_nan=True
        )


def edit_card(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the card of a saved model as a mistake or an attacker would."""
    card = json.loads((model / "card.json").read_text())
    change(card)
    (model / "card.json").write_text(json.dumps(card))
