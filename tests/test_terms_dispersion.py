"""D3: against a slow transcription of the equations, tad-dftd3 and simple-dftd3; derivatives."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from nnpcalc.batch import AtomsBatch
from nnpcalc.cards import build_from_card, describe
from nnpcalc.models import build_core
from nnpcalc.potential import Potential
from nnpcalc.terms import D3, D3Tables, dispersion, reference_tables
from nnpcalc.testing import check_potential
from nnpcalc.units import BOHR, HARTREE
from nnpcalc.weights import load_potential, save_potential
from terms_tools import charged_core, seen

ELEMENTS = (1, 6, 8)
WB97M = {"s8": 0.3908, "a1": 0.5660, "a2": 3.1280}


def invented_tables() -> D3Tables:
    """Numbers of the right size: two references for H, five for C, three for O."""
    generator = torch.Generator().manual_seed(3)
    c6 = 5.0 + 40.0 * torch.rand(3, 3, 5, 5, generator=generator, dtype=torch.float64)
    c6 = 0.5 * (c6 + c6.permute(1, 0, 3, 2))
    coordination = torch.tensor(
        [[0.9, 0.0, -1, -1, -1], [0, 1.0, 2.0, 3.0, 4.0], [0, 1.0, 2.0, -1, -1]],
        dtype=torch.float64,
    )
    known = coordination >= 0.0
    c6 = c6 * (known[:, None, :, None] & known[None, :, None, :])
    r4r2 = torch.tensor([2.0, 3.1, 2.6], dtype=torch.float64)
    return D3Tables(c6, coordination, r4r2, torch.tensor([0.8, 1.9, 1.6], dtype=torch.float64))


def term(**options: Any) -> D3:
    made: D3 = D3(ELEMENTS, **{**WB97M, "tables": invented_tables(), **options}).double()
    return made


def slow_energy(atoms: Atoms, tables: D3Tables, cutoff: float, s6: float = 1.0) -> float:
    """The equations term by term, in bohr and hartree; images by hand; in eV."""
    c6_table, cn_table, r4r2, radii = (t.numpy() for t in tables)
    n, reach = len(atoms), range(-3, 4) if atoms.pbc.any() else range(1)
    kind = [ELEMENTS.index(z) for z in atoms.numbers]
    pairs = []
    for i in range(n):
        for j in range(n):
            for a in reach:
                for b in reach:
                    for c in reach:
                        shift = np.array([a, b, c]) @ atoms.cell.array
                        d = float(np.linalg.norm(atoms.positions[j] - atoms.positions[i] + shift))
                        if 0.0 < d < cutoff:
                            x = min(max((d / cutoff - 0.8) / 0.2, 0.0), 1.0)
                            switch = 1.0 - 10.0 * x**3 + 15.0 * x**4 - 6.0 * x**5
                            pairs.append((i, j, d / BOHR, switch))
    cn = np.zeros(n)
    for i, j, d, switch in pairs:
        ratio = (radii[kind[i]] + radii[kind[j]]) / d
        cn[i] += switch / (1.0 + math.exp(-16.0 * (ratio - 1.0)))
    energy = 0.0
    for i, j, d, switch in pairs:
        numerator = denominator = 0.0
        for a in range(5):
            for b in range(5):
                ca, cb = cn_table[kind[i], a], cn_table[kind[j], b]
                if ca < 0.0 or cb < 0.0:
                    continue
                weight = math.exp(-4.0 * ((cn[i] - ca) ** 2 + (cn[j] - cb) ** 2))
                numerator += weight * c6_table[kind[i], kind[j], a, b]
                denominator += weight
        c6 = numerator / denominator
        c8 = 3.0 * c6 * r4r2[kind[i]] * r4r2[kind[j]]
        r0 = WB97M["a1"] * math.sqrt(c8 / c6) + WB97M["a2"]
        damped = s6 * c6 / (d**6 + r0**6) + WB97M["s8"] * c8 / (d**8 + r0**8)
        energy -= 0.5 * damped * switch
    return energy * HARTREE


@pytest.mark.parametrize("name", ["CH3CH2OH", "C2H2", "O2", "H"])
def test_molecules_against_the_equations(name: str) -> None:
    atoms = Atoms("H") if name == "H" else molecule(name)
    atoms.rattle(0.1, seed=1)
    for cutoff, s6 in ((40.0, 1.0), (3.0, 0.5)):
        found = term(cutoff=cutoff, s6=s6)
        expected = slow_energy(atoms, invented_tables(), cutoff, s6)
        assert float(found(seen(found, atoms)).sum()) == pytest.approx(expected, abs=1e-12)


def test_crystals_against_the_equations() -> None:
    atoms = bulk("C", "diamond", a=3.6)
    atoms.rattle(0.1, seed=1)
    found = term(cutoff=6.0)
    expected = slow_energy(atoms, invented_tables(), 6.0)
    assert float(found(seen(found, atoms)).sum()) == pytest.approx(expected, abs=1e-11)


def test_high_coordination_numbers_do_not_underflow() -> None:
    """Far from every reference the nearest one counts, in float32 too."""
    atoms = bulk("C", "fcc", a=2.2)  # twelve neighbours at 1.6 Å
    found = term(cutoff=4.0)
    assert float(found.coordination_numbers(seen(found, atoms)).max()) > 10.0
    energy = float(found(seen(found, atoms)).sum())
    single = found.float()
    inputs = seen(single, atoms)
    inputs = inputs._replace(distances=inputs.distances.float())
    assert float(single(inputs).sum()) == pytest.approx(energy, rel=1e-5)


def test_potentials_with_d3_satisfy_the_contract() -> None:
    potential = Potential(charged_core(), (term(cutoff=6.0),))
    checks = ("rotation", "forces", "stress", "second derivatives", "batch", "supercell", "cutoff",
              "size consistency", "precision", "torchscript")  # fmt: skip
    check_potential(potential, checks=checks)


def test_saved_models_carry_their_tables(tmp_path: Path) -> None:
    core = build_core("tensornet", {"channels": 4, "layers": 0, "elements": [1, 6, 8]})
    potential = Potential(core, (term(cutoff=9.0),)).float()
    card = {"charges": [0], "multiplicities": [1]}
    save_potential(potential, tmp_path / "model", card)
    loaded = load_potential(tmp_path / "model")
    assert loaded.cutoff == 9.0
    batch = AtomsBatch.from_atoms(molecule("CH3CH2OH"), dtype=torch.float32)
    assert torch.equal(loaded.evaluate(batch).energy, potential.evaluate(batch).energy)
    described = json.loads(json.dumps({**card, **describe(potential)}))
    assert described["terms"][0] == {"name": "d3", "elements": [1, 6, 8], **WB97M,
                                     "s6": 1.0, "cutoff": 9.0}  # fmt: skip
    bare = build_from_card(described, "the card")
    assert torch.isnan(bare.evaluate(batch).energy).all()


def test_settings_and_elements() -> None:
    with pytest.raises(ValueError, match="distinct atomic numbers"):
        D3((1, 1), **WB97M)
    with pytest.raises(ValueError, match="distinct atomic numbers"):
        D3((), **WB97M)
    with pytest.raises(ValueError, match="cutoff, a1 and a2 of D3 must be positive"):
        term(cutoff=0.0)
    with pytest.raises(ValueError, match=r"c6 of the D3 tables must be \(2, 2, 5, 5\)"):
        D3((1, 6), **WB97M, tables=invented_tables())
    with pytest.raises(ValueError, match=r"D3 lacks the elements Z = \[8\]"):
        Potential(charged_core(), (D3((1, 6), **WB97M),))
    with pytest.raises(ValueError, match=r"D3 knows the elements 1..88"):
        reference_tables((1, 92))


def test_without_tad_dftd3_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(dispersion, "import_module", absent)
    with pytest.raises(ImportError, match="pip install tad-dftd3"):
        reference_tables((1, 6))


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["C60", "CH3CH2OH", "SiCl4", "LiF", "PH3", "H2", "NaCl", "HCO"])
def test_energies_and_forces_are_those_of_tad_dftd3(name: str) -> None:
    tad = pytest.importorskip("tad_dftd3", reason="pip install tad-dftd3")
    atoms = molecule(name)
    atoms.rattle(0.1, seed=1)
    elements = tuple(sorted({int(z) for z in atoms.numbers} | {1, 6, 8}))
    found = D3(elements, **WB97M, cutoff=60.0, tables=reference_tables(elements))
    potential = Potential(charged_core(), (found.double(),)).double()
    potential.core.scales.data.zero_()
    potential.core.element_index[list(elements)] = 0
    potential.core.elements = elements
    results = potential.evaluate(AtomsBatch.from_atoms(atoms))
    r = (torch.tensor(atoms.positions) / BOHR).requires_grad_(True)
    names = {**WB97M, "s6": 1.0, "s9": 0.0}
    parameters = {key: torch.tensor(value, dtype=torch.float64) for key, value in names.items()}
    energy = tad.dftd3(torch.tensor(atoms.numbers), r, parameters).sum() * HARTREE
    (gradient,) = torch.autograd.grad(energy, r)
    assert float(results.energy) == pytest.approx(float(energy.detach()), abs=1e-6)
    assert torch.allclose(results.forces, -gradient / BOHR, rtol=0.0, atol=1e-7)


@pytest.mark.oracle
def test_energies_of_crystals_are_those_of_simple_dftd3() -> None:
    """What is left out beyond a cutoff c goes as 1 / c^3: two cutoffs give the limit."""
    pytest.importorskip("tad_dftd3", reason="pip install tad-dftd3")
    interface = pytest.importorskip("dftd3.interface", reason="pip install dftd3")
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.rattle(0.05, seed=1)
    model = interface.DispersionModel(
        atoms.numbers, atoms.positions / BOHR, atoms.cell.array / BOHR, np.array([True] * 3)
    )
    model.set_realspace_cutoff(disp2=150.0, disp3=10.0, cn=60.0)
    parameters = interface.RationalDampingParam(**WB97M, s6=1.0, s9=0.0)
    expected = model.get_dispersion(parameters, grad=True)
    tables = reference_tables((11, 17))
    energies = []
    for cutoff in (20.0, 40.0):
        found = D3((11, 17), **WB97M, cutoff=cutoff, tables=tables).double()
        energies.append(float(found(seen(found, atoms)).sum()))
    limit = (8.0 * energies[1] - energies[0]) / 7.0
    assert limit == pytest.approx(expected["energy"] * HARTREE, abs=5e-5)
    assert abs(energies[1] - limit) > 1e-4
