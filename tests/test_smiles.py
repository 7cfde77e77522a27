"""SMILES to structures: charge and multiplicity as the string says them, geometry as rdkit's."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from nnpcalc.smiles import from_smiles
from nnpcalc.state import resolve_state


@pytest.mark.parametrize(
    ("smiles", "formula", "charge", "multiplicity"),
    [
        ("O", "H2O", 0, 1),
        ("CC(=O)[O-]", "C2H3O2", -1, 1),
        ("C[NH3+]", "CH6N", 1, 1),
        ("[NH3+]CC(=O)[O-]", "C2H5NO2", 0, 1),
        ("[CH3]", "CH3", 0, 2),
        ("[CH2]", "CH2", 0, 3),
        ("[O][O]", "O2", 0, 3),
        ("O=O", "O2", 0, 1),
        ("[O-]C(=O)CCC(=O)[O-]", "C4H4O4", -2, 1),
        ("[H][H]", "H2", 0, 1),
        ("[Na+].[Cl-]", "ClNa", 0, 1),
    ],
)
def test_states(smiles: str, formula: str, charge: int, multiplicity: int) -> None:
    pytest.importorskip("rdkit")
    atoms = from_smiles(smiles)
    assert atoms.get_chemical_formula() == formula
    assert atoms.info == {"charge": charge, "spin": multiplicity, "smiles": smiles}
    state = resolve_state(atoms)  # the electrons allow it
    assert (state.charge, state.multiplicity) == (charge, multiplicity)


def test_geometry() -> None:
    """Bonds have their lengths; the same seed gives the same conformer, another one another."""
    pytest.importorskip("rdkit")
    ethanol = from_smiles("CCO")
    assert abs(ethanol.get_distance(0, 1) - 1.51) < 0.03
    assert abs(ethanol.get_distance(1, 2) - 1.42) < 0.03
    assert np.array_equal(ethanol.positions, from_smiles("CCO").positions)
    butanol = [from_smiles("CCCCO", seed=seed).get_all_distances() for seed in (1, 2)]
    assert np.abs(butanol[0] - butanol[1]).max() > 0.1


def test_molecules_of_a_complex_do_not_overlap() -> None:
    pytest.importorskip("rdkit")
    benzenes = from_smiles("c1ccccc1.c1ccccc1")
    distances = benzenes.get_all_distances()
    first = np.array([0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17])
    second = np.setdiff1d(np.arange(24), first)
    assert 2.0 < distances[np.ix_(first, second)].min() < 6.0


@pytest.mark.parametrize(
    ("smiles", "words"),
    [
        ("", "no atoms"),
        ("C1CC", "unclosed"),
        ("[CH5]", "greater than permitted"),
        ("c1cccc1", "kekulize"),
        ("*C", "wildcard"),
        ("hello", "no SMILES"),
    ],
)
def test_mistakes(smiles: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rdkit")
    with pytest.raises(ValueError, match=words):
        from_smiles(smiles)
    assert capfd.readouterr().err == ""  # rdkit's own lines stay away


def test_without_rdkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match=r"nnpcalc\[smiles\]"):
        from_smiles("C")
