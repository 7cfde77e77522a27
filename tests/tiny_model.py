"""A tiny TensorNet whose charge and multiplicity matter, and calculators of it."""

from __future__ import annotations

from typing import Any

import torch
from ase import Atoms
from ase.build import bulk

from nnpcalc import NNPCalculator
from nnpcalc.models import build_core
from nnpcalc.potential import Potential
from nnpcalc.terms import ZBL, AtomicEnergies

CARD = {
    "name": "tiny",
    "charges": [-2, -1, 0, 1, 2],
    "multiplicities": [1, 2, 3],
}


def make_potential(**options: Any) -> Potential:
    """Random weights on which charge and multiplicity have effects of 0.1 eV."""
    config = {
        "channels": 8,
        "layers": 2,
        "radial_functions": 8,
        "cutoff": 4.0,
        "elements": (1, 6, 7, 8),
        "attributes": ("charge", "unpaired_electrons"),
        "attribute_weights": (2.0, 3.0),
    }
    torch.manual_seed(11)
    core = build_core("tensornet", {**config, **options})
    terms = (AtomicEnergies({1: -13.6, 6: -1030.0, 7: -1485.0, 8: -2041.0}), ZBL())
    potential = Potential(core, terms, scale=100.0)
    potential.card = dict(CARD)  # type: ignore[assignment]
    return potential


def make_calculator(**options: Any) -> NNPCalculator:
    return NNPCalculator(make_potential(), **{"dtype": "float64", "backend": "eager", **options})


def attached(calc: NNPCalculator, atoms: Atoms, **info: Any) -> Atoms:
    atoms = atoms.copy()
    atoms.info.update(info)
    atoms.calc = calc
    return atoms


def diamond() -> Atoms:
    atoms: Atoms = bulk("C", "diamond", a=3.6)
    atoms.rattle(0.1, seed=1)
    return atoms
