"""build_potential: a potential from names, and errors that say what is possible."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule

import nnpcalc
from nnpcalc import NNPCalculator, build_potential
from nnpcalc.models import ARCHITECTURES
from nnpcalc.terms import ZBL, AtomicEnergies, Coulomb
from nnpcalc.weights import load_potential, save_potential


def test_one_line() -> None:
    potential = build_potential("painn", ["H", "C", 8], cutoff=4.5, channels=8, layers=1)
    assert (potential.cutoff, potential.elements, potential.dtype) == (
        4.5,
        (1, 6, 8),
        torch.float32,
    )
    assert potential.core.config.channels == 8
    atoms = molecule("CH3OH")
    atoms.calc = NNPCalculator(potential, device="cpu")
    assert np.isfinite(atoms.get_forces()).all()
    assert "build_potential" in nnpcalc.__all__


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_has_defaults(architecture: str) -> None:
    potential = build_potential(architecture, ["H", "O"], seed=3)
    assert potential.elements == (1, 8)
    assert potential.core.config.cutoff == potential.cutoff


def test_seeds() -> None:
    def weights(seed: int | None) -> dict[str, torch.Tensor]:
        return build_potential("schnet", [1], channels=4, layers=1, seed=seed).state_dict()

    before = torch.random.get_rng_state()
    first, second, other = weights(1), weights(1), weights(2)
    assert torch.equal(before, torch.random.get_rng_state())
    name = "core.layers.0.linear.weight"
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(weights(None)[name], weights(None)[name])


def test_terms_and_atomic_energies(tmp_path: Path) -> None:
    energies = {"O": -2041.0, 1: -13.6}
    potential = build_potential(
        "physnet",
        ["H", "O"],
        channels=8,
        layers=1,
        radial_functions=8,
        cutoff=4.0,
        terms=["zbl", {"name": "coulomb", "damping": "shielded", "radius": 2.0}, ZBL(0.5)],
        atomic_energies=energies,
        scale=2.0,
        dtype=torch.float64,
        seed=0,
    )
    assert [type(term) for term in potential.terms] == [AtomicEnergies, ZBL, Coulomb, ZBL]
    assert [potential.terms[k].reach for k in (1, 3)] == [0.8, 0.5]
    assert potential.dtype == torch.float64 and potential.scale == 2.0
    atoms = molecule("H2O")
    calculator = NNPCalculator(potential, device="cpu", dtype="float64")
    # the network's own part is small beside the energies of the atoms
    assert calculator.get_potential_energy(atoms) == pytest.approx(-2041.0 - 2 * 13.6, abs=50.0)
    save_potential(potential, tmp_path / "new", {"charges": [0], "multiplicities": [1]})
    again = NNPCalculator(load_potential(tmp_path / "new"), device="cpu", dtype="float64")
    difference = again.get_potential_energy(atoms) - calculator.get_potential_energy(atoms)
    assert abs(difference) < 1e-3  # load_potential gives float32


def test_d3_brings_its_tables() -> None:
    pytest.importorskip("tad_dftd3")
    wb97m = {"name": "d3", "s8": 0.3908, "a1": 0.566, "a2": 3.128}
    potential = build_potential("schnet", ["H", "O"], channels=4, layers=1, terms=[wb97m])
    calculator = NNPCalculator(potential, device="cpu")
    assert np.isfinite(calculator.get_potential_energy(molecule("H2O")))


def test_nothing_of_the_caller_is_changed() -> None:
    options: dict[str, Any] = {"terms": [{"name": "zbl", "reach": 0.7}], "elements": ["H"]}
    before = copy.deepcopy(options)
    build_potential("schnet", channels=4, layers=1, **options)
    assert options == before


SIZES = {"channels": 4, "layers": 1}


@pytest.mark.parametrize(
    ("architecture", "arguments", "text"),
    [
        ("pain", {}, r"unknown architecture 'pain' \(did you mean 'painn'\?\); known are aimnet2"),
        (
            "painn",
            {"chanels": 8},
            r"no option 'chanels' \(did you mean 'channels'\?\); its options",
        ),
        ("painn", {"channels": "8"}, "painn: channels must be a whole number like 128, got '8'"),
        ("painn", {"channels": 8.5}, "channels must be a whole number"),
        ("painn", {"channels": True}, "channels must be a whole number"),
        ("painn", {"cutoff": "5"}, "cutoff must be a number like 5.0, got '5'"),
        ("painn", {"cutoff": -1}, "cutoff must be a positive length"),
        ("painn", {"radial_basis": 3}, "radial_basis must be a name like 'bessel', got 3"),
        ("tensornet", {"attributes": "charge"}, "attributes must be a sequence like"),
        ("painn", {"elements": []}, "elements is empty"),
        ("painn", {"elements": ["H", "Xx"]}, "'Xx' is neither a chemical symbol"),
        ("painn", {"elements": [0]}, "0 is neither a chemical symbol nor an atomic number"),
        ("painn", {"elements": [1, "H"]}, "listed twice"),
        ("painn", {**SIZES, "terms": ["zlb"]}, r"unknown term 'zlb' \(did you mean 'zbl'\?\)"),
        ("painn", {**SIZES, "terms": [3]}, "a term is a name, a dictionary"),
        ("painn", {**SIZES, "terms": [{"name": "zbl", "rech": 1}]}, r"did you mean 'reach'"),
        ("painn", {**SIZES, "terms": [{"name": "zbl", "reach": 9}]}, r"reach of ZBL must lie"),
        ("painn", {**SIZES, "terms": ["coulomb"]}, "needs partial charges, which painn does not"),
        ("painn", {**SIZES, "terms": ["system_energy"]}, "system_energy needs energy"),
        ("painn", {**SIZES, "terms": ["atomic_energies"]}, "pass atomic_energies="),
        ("painn", {**SIZES, "atomic_energies": {"H": -13.6}}, "atomic_energies lacks B, C, N"),
        ("painn", {**SIZES, "scale": float("nan")}, "scale must be a finite number"),
        ("painn", {**SIZES, "dtype": torch.float16}, "float32 or torch.float64, not torch.float16"),
    ],
)
def test_errors_say_what_is_possible(
    architecture: str, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        build_potential(architecture, **arguments)


def test_atomic_energies_twice() -> None:
    energies = {1: -13.6}
    with pytest.raises(ValueError, match="give atomic energies once"):
        build_potential(
            "schnet", [1], atomic_energies=energies, terms=[AtomicEnergies(energies)], **SIZES
        )
