"""The published AIMNet2 networks: their own TorchScript programs, and aimnet's exported models.

The networks are in the package Auto3D (``pip install --no-deps Auto3D==2.3.1``), which need not be
importable; the exported models are made here, with random weights, by aimnet 0.2.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from nnpcalc import NNPCalculator
from nnpcalc.batch import AtomsBatch
from nnpcalc.interop.aimnet2 import load
from nnpcalc.weights import load_potential, save_potential

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def published(name: str) -> Path:
    spec = importlib.util.find_spec("Auto3D")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pip install --no-deps Auto3D==2.3.1")
    path = Path(spec.submodule_search_locations[0]) / "models" / name
    if not path.exists():
        pytest.skip(f"this Auto3D has no {name}")
    return path


def in_float64(path: Path) -> Any:
    """The program with its single precision taken out, so that it can be compared closely.

    As published it converts coordinates to float32 and adds energies of 1e4 eV in float32.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith(".py"):  # 6 and 7 are torch's numbers of the two dtypes
                for text in (b'"coord"], %d)', b'"charge"], %d)', b"(_0, %d)", b"dtype=%d"):
                    data = data.replace(text % 6, text % 7)
            if not item.filename.endswith(".debug_pkl"):
                new.writestr(item.filename, data)
    buffer.seek(0)
    return torch.jit.load(buffer).double()


def from_smiles(smiles: str, charge: int = 0) -> Atoms:
    """A conformer off its equilibrium."""
    pytest.importorskip("rdkit")
    from rdkit import Chem
    from rdkit.Chem import AllChem

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    atoms = Atoms(numbers, mol.GetConformer().GetPositions(), info={"charge": charge})
    atoms.rattle(0.03, seed=2)
    return atoms


MOLECULES = {
    "water": ("O", 0),
    "zwitterion": ("[NH3+]CC(=O)[O-]", 0),
    "ammonium": ("[NH4+]", 1),
    "acetate": ("CC(=O)[O-]", -1),
    "ibuprofen": ("CC(C)Cc1ccc(cc1)C(C)C(=O)O", 0),
    "many elements": ("C[Se]CC(Br)CP(=O)(O)CS(=O)(=O)NCC(F)(Cl)C[Si](C)(C)C", 0),
}


def run(program: Any, atoms: Atoms, dtype: torch.dtype) -> tuple[float, np.ndarray, np.ndarray]:
    positions = torch.tensor(atoms.positions[None], dtype=dtype, requires_grad=True)
    charge = torch.tensor([float(atoms.info["charge"])], dtype=dtype)
    numbers = torch.tensor(atoms.numbers[None])
    output = program({"coord": positions, "numbers": numbers, "charge": charge})
    (gradient,) = torch.autograd.grad(output["energy"].sum(), positions)
    return float(output["energy"].detach()), -gradient[0].numpy(), output["charges"][0].detach()


@pytest.mark.parametrize("name", sorted(MOLECULES))
def test_energies_forces_and_charges_are_those_of_the_file(name: str) -> None:
    path = published("aimnet2_wb97m-d3_0.jpt")
    atoms = from_smiles(*MOLECULES[name])
    for program, dtype, energy_tolerance in (
        (in_float64(path), torch.float64, 1e-5),
        (torch.jit.load(path), torch.float32, 4e-3 if name == "many elements" else 5e-4),
    ):
        energy, forces, charges = run(program, atoms, dtype)
        potential = load(path, trust=True, dtype=dtype, dispersion_cutoff=40.0)
        results = potential.evaluate(AtomsBatch.from_atoms(atoms, dtype=dtype))
        assert float(results.energy) == pytest.approx(energy, abs=energy_tolerance)
        assert np.allclose(results.forces.numpy(), forces, rtol=0.0, atol=2e-5)
        assert torch.allclose(results.charges, charges, rtol=0.0, atol=1e-6)
        assert float(results.charges.sum()) == pytest.approx(atoms.info["charge"], abs=1e-6)


@pytest.mark.parametrize("member", range(4))
def test_members_of_the_ensemble(member: int) -> None:
    path = published("aimnet2_wb97m_ens_f.jpt")
    atoms = from_smiles(*MOLECULES["zwitterion"])
    program = getattr(torch.jit.load(path).models, str(member)).module
    program.outputs.atomic_shift.double()
    energy, forces, charges = run(program, atoms, torch.float32)
    potential = load(path, trust=True, member=member)
    results = potential.evaluate(AtomsBatch.from_atoms(atoms, dtype=torch.float32))
    assert float(results.energy) == pytest.approx(energy, abs=3e-5)
    assert np.allclose(results.forces.numpy(), forces, rtol=0.0, atol=2e-5)
    assert torch.allclose(results.charges, charges, rtol=0.0, atol=1e-6)


def test_the_file_becomes_a_model_like_any_other(tmp_path: Path) -> None:
    """Saved, loaded, in the calculator with charges, dipole moment and a periodic cell."""
    potential = load(published("aimnet2_wb97m-d3_0.jpt"), trust=True, periodic="ewald")
    save_potential(potential, tmp_path / "aimnet2", {"charges": [-1, 0, 1], "multiplicities": [1]})
    loaded = load_potential(tmp_path / "aimnet2")
    atoms = from_smiles(*MOLECULES["acetate"])
    batch = AtomsBatch.from_atoms(atoms, dtype=torch.float32)
    assert torch.equal(loaded.evaluate(batch).energy, potential.evaluate(batch).energy)
    atoms.calc = NNPCalculator(loaded, device="cpu")
    assert atoms.get_charges().sum() == pytest.approx(-1.0, abs=1e-6)
    water = molecule("H2O")
    water.calc = atoms.calc
    debye = np.linalg.norm(water.get_dipole_moment()) / 0.2081943
    assert debye == pytest.approx(1.9, abs=0.3)
    water.center(vacuum=15.0)
    alone = water.get_potential_energy()
    water.pbc = True
    assert water.get_potential_energy() == pytest.approx(alone, abs=1e-3)
    assert np.isfinite(water.get_stress()).all()


# --- aimnet's own format -------------------------------------------------------------------------


def exported(tmp_path: Path, channels: int) -> tuple[Path, Any]:
    """A model with random weights as aimnet exports and loads it."""
    pytest.importorskip("aimnet", reason="pip install aimnet==0.2.5")
    yaml = pytest.importorskip("yaml")
    from aimnet.config import build_module
    from aimnet.models.base import load_model

    def module(name: str, **options: Any) -> dict[str, Any]:
        return {"class": f"aimnet.modules.{name}", "kwargs": options}

    mlp = {"activation_fn": "torch.nn.GELU", "last_linear": True, "hidden": [16, 16]}
    outputs = {
        "energy_mlp": module("Output", n_in=24, n_out=1, key_in="aim", key_out="energy", mlp=mlp),
        "atomic_shift": module("AtomicShift", key_in="energy", key_out="energy"),
        "atomic_sum": module("AtomicSum", key_in="energy", key_out="energy"),
        "srcoulomb": module("SRCoulomb", rc=4.6, key_in="charges", key_out="energy"),
    }
    config = {
        "class": "aimnet.models.AIMNet2",
        "kwargs": {
            "nfeature": 8, "d2features": True, "ncomb_v": 6,
            "hidden": [[32, 24], [32, 24], [32, 24, 24]], "aim_size": 24,
            "aev": {"rc_s": 5.0, "nshifts_s": 8}, "num_charge_channels": channels,
            "outputs": outputs,
        },
    }  # fmt: skip
    text = yaml.safe_dump(config, sort_keys=False)
    torch.manual_seed(1)
    model = build_module(yaml.safe_load(text))
    species = [1, 6, 7, 8]
    model.outputs.atomic_shift.double()
    with torch.no_grad():
        model.outputs.atomic_shift.shifts.weight.zero_()
        for z in species:
            model.outputs.atomic_shift.shifts.weight[z] = -13.6 * z * z
        for k in range(2):  # weights of the charges far above the 1e-6 that aimnet adds to them
            model.mlps[k][4].bias[channels : 2 * channels] = 3.0
    content = {
        "format_version": 2, "model_yaml": text, "cutoff": 5.0, "needs_coulomb": True,
        "needs_dispersion": False, "coulomb_mode": "sr_embedded", "coulomb_sr_rc": 4.6,
        "coulomb_sr_envelope": "exp", "d3_params": None, "has_embedded_lr": True,
        "has_embedded_d3ts": False, "implemented_species": species,
        "state_dict": model.state_dict(),
    }  # fmt: skip
    torch.save(content, tmp_path / "model.pt")
    return tmp_path / "model.pt", load_model(str(tmp_path / "model.pt"))[0]


@pytest.mark.parametrize(
    ("channels", "charge", "spin"), [(1, 0, 1), (1, -1, 2), (2, 0, 3), (2, 1, 2)]
)
def test_exported_models(tmp_path: Path, channels: int, charge: int, spin: int) -> None:
    """Without D3, whose data are not in the file; the Coulomb energy is added on both sides."""
    path, model = exported(tmp_path, channels)
    atoms = molecule("CH3CONH2")
    atoms.rattle(0.05, seed=3)
    atoms.info.update(charge=charge, spin=spin)
    results = load(path).evaluate(AtomsBatch.from_atoms(atoms, dtype=torch.float32))
    positions = torch.tensor(atoms.positions[None], dtype=torch.float32, requires_grad=True)
    output = model(
        {
            "coord": positions,
            "numbers": torch.tensor(atoms.numbers[None]),
            "charge": torch.tensor([float(charge)]),
            "mult": torch.tensor([float(spin)]),
        }
    )
    q = output["charges"][0].double()
    d = torch.cdist(positions[0].double(), positions[0].double()) + torch.eye(len(atoms))
    pairs = q[:, None] * q[None, :] / d * (1.0 - torch.eye(len(atoms)))
    energy = output["energy"].double().sum() + 0.5 * 14.399645 * pairs.sum()
    (gradient,) = torch.autograd.grad(energy, positions)
    assert float(results.energy) == pytest.approx(float(energy.detach()), abs=2e-5)
    assert torch.allclose(results.charges, output["charges"][0].detach(), rtol=0.0, atol=2e-6)
    assert torch.allclose(results.forces, -gradient[0], rtol=0.0, atol=2e-5)
