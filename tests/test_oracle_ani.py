"""ANI against the authors' TorchANI 2.9.0.

Random weights, read by `load`; energies and forces in float64. Run where it is installed:
``python -m pytest -m oracle tests/test_oracle_ani.py``.

TorchANI keeps the constants of the symmetry functions and the self energies in float32 even in a
float64 model. They are made anew in float64 here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

import small_ani
from nnpcalc.batch import AtomsBatch
from nnpcalc.interop.ani import load
from nnpcalc.potential import Potential
from nnpcalc.units import HARTREE

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 1e-8  # eV and eV/Å
MOLECULES = ("H2O", "CH3CHO", "C6H6", "HCN", "CH3CONH2", "N2H4", "CH4", "H2")
HALIDES = ("SO2", "CH3SH", "CH2SCH2", "F2O", "CF3CN", "CH3CH2Cl", "ClF", "SH2")
deviations: dict[str, list[tuple[float, float, float]]] = {}

#: Even constants of the two published kinds: cutoff, first centre, eta; the same of the angular
#: functions with zeta; numbers of distances and angles.
CONSTANTS = {
    "ani1x": ((5.2, 0.9, 16.0, 16), (3.5, 0.9, 8.0, 4), (32.0, 8)),
    "ani2x": ((5.1, 0.8, 19.7, 16), (3.5, 0.8, 12.5, 8), (14.1, 4)),
}


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    """Print the largest deviations at the end (seen with -s)."""
    yield
    for name, values in sorted(deviations.items()):
        energy, force, size = np.array(values).max(0)
        print(
            f"\n{name:24} max |dE| {energy:.1e} eV, max |dF| {force:.1e} eV/Å of max |F| "
            f"{size:.1f} eV/Å",
            end="",
        )


def torchani_model(kind: str, members: int) -> Any:
    """An ANI model of TorchANI with random weights and exact constants, float64."""
    torchani = pytest.importorskip("torchani")
    from torchani.arch import Assembler

    symbols = {"ani1x": "H C N O", "ani2x": "H C N O S F Cl"}[kind].split()
    assembler = Assembler(periodic_table_index=True)
    assembler.set_symbols(symbols)
    assembler.set_atomic_networks(ctor=kind)
    assembler.set_global_cutoff_fn("cosine")
    assembler.set_aev_computer(angular=kind, radial=kind, strategy="pyaev")
    assembler.set_neighborlist("all_pairs")
    assembler.set_gsaes_as_self_energies("wb97x-631gd")
    model = assembler.assemble(members).double()
    assert torchani.__version__.startswith("2.")
    with torch.no_grad():
        for parameter in model.parameters():
            size = parameter.shape[-1] if parameter.dim() == 2 else 1
            scale = 3.0 * size**-0.5 if parameter.dim() == 2 else 0.3
            parameter.copy_(scale * torch.randn_like(parameter))
        (r_cut, r_first, r_eta, r_n), (a_cut, a_first, a_eta, a_n), (zeta, angles) = CONSTANTS[kind]
        (computer,) = [m for n, m in model.named_modules() if n.endswith("aev_computer")]
        radial, angular = computer.radial, computer.angular
        assert (radial.cutoff, angular.cutoff) == (r_cut, a_cut)
        for buffer, value in (
            (radial.eta, torch.tensor([r_eta], dtype=torch.float64)),
            (radial.shifts, r_first + (r_cut - r_first) / r_n * torch.arange(r_n).double()),
            (angular.eta, torch.tensor([a_eta], dtype=torch.float64)),
            (angular.zeta, torch.tensor([zeta], dtype=torch.float64)),
            (angular.shifts, a_first + (a_cut - a_first) / a_n * torch.arange(a_n).double()),
            (angular.sections, math.pi / angles * (torch.arange(angles).double() + 0.5)),
        ):
            torch.testing.assert_close(buffer, value, rtol=1e-6, atol=1e-6)
            buffer.copy_(value)
    return model


def ask(model: Any, atoms: Atoms) -> tuple[float, torch.Tensor]:
    """TorchANI's energy and forces, eV and eV/Å."""
    positions = torch.tensor(atoms.positions[None], requires_grad=True)
    species = torch.tensor(atoms.numbers[None])
    periodic = {}
    if atoms.pbc.any():
        periodic = {"cell": torch.tensor(atoms.cell.array), "pbc": torch.tensor(atoms.pbc)}
    energy = model((species, positions), **periodic).energies.sum()
    (gradient,) = torch.autograd.grad(energy, positions)
    return float(energy.detach()) * HARTREE, -gradient[0] * HARTREE


def compare(name: str, potential: Potential, model: Any, atoms: Atoms) -> None:
    energy, forces = ask(model, atoms)
    results = potential.evaluate(AtomsBatch.from_atoms(atoms, dtype=torch.float64))
    assert results.forces is not None
    found = (
        abs(float(results.energy) - energy),
        float((results.forces - forces).abs().max()),
        float(forces.abs().max()),
    )
    deviations.setdefault(name, []).append(found)
    assert found[2] > 1e-2, "these weights give no forces"
    assert max(found[:2]) < TOLERANCE, f"{atoms.get_chemical_formula()}: {found}"


def rattled(names: tuple[str, ...]) -> list[Atoms]:
    systems = [molecule(name) for name in names]
    for k, atoms in enumerate(systems):
        atoms.rattle(0.05, seed=k)
    return systems


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kind", ["ani1x", "ani2x"])
def test_molecules(kind: str, members: int) -> None:
    model = torchani_model(kind, members)
    potential = load(model.state_dict(), dtype=torch.float64)
    assert potential.core.members == members
    for atoms in rattled(MOLECULES + (HALIDES if kind == "ani2x" else ())):
        compare(f"{kind}, {members} members", potential, model, atoms)


def test_crystal() -> None:
    model = torchani_model("ani2x", 1)
    potential = load(model.state_dict(), dtype=torch.float64)
    diamond = bulk("C", "diamond", a=3.6, cubic=True).repeat((3, 3, 3))  # above 2 cutoffs
    diamond.rattle(0.1, seed=4)
    diamond.numbers[::7] = 7
    compare("periodic", potential, model, diamond)


def test_a_saved_state_dict(tmp_path: Path) -> None:
    model = torchani_model("ani1x", 2)
    torch.save(model.state_dict(), tmp_path / "ani.pt")
    potential = load(tmp_path / "ani.pt", member=1, dtype=torch.float64)
    compare("one member of a file", potential, model[1], rattled(MOLECULES[:2])[1])


def test_neurochem_directory(tmp_path: Path) -> None:
    neurochem = pytest.importorskip("torchani.neurochem")
    from torchani.arch import ANI

    directory = small_ani.write_directory(tmp_path / "ani", members=1)
    computer, symbols = neurochem.load_aev_computer_and_symbols(next(directory.glob("*.params")))
    networks = neurochem.load_member(symbols, directory / "train0" / "networks")
    energies = neurochem.load_sae(directory / "sae_linfit.dat")
    model = ANI(symbols, computer, networks, energies, periodic_table_index=True).double()
    potential = load(directory, dtype=torch.float64)
    for atoms in rattled(("H2O", "CH3CHO")):
        energy, forces = ask(model, atoms)
        results = potential.evaluate(AtomsBatch.from_atoms(atoms, dtype=torch.float64))
        assert results.forces is not None
        # its constants are in float32: 4e-6 Hartree for a carbon atom
        assert abs(float(results.energy) - energy) < 1e-5 * HARTREE * len(atoms)
        torch.testing.assert_close(results.forces, forces, rtol=0, atol=1e-4)
