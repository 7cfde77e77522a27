"""The published AIMNet2 networks: their own TorchScript programs, and aimnet 0.2.5.

The networks are in the package Auto3D (``pip install --no-deps Auto3D==2.3.1``), which need not be
importable; molecules are made by RDKit. Their programs take no cells: crystals are computed by
aimnet's own calculator, given the published weights. Exported models with random weights are made
here by aimnet. Run where aimnet is installed, and once more where RDKit is; what cannot be run is
skipped: ``python -m pytest -m oracle tests/test_oracle_aimnet2.py -s`` prints the deviations.
"""

from __future__ import annotations

import importlib.util
import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.spacegroup import crystal
from torch import Tensor, nn

from nnpcalc import NNPCalculator
from nnpcalc.batch import AtomsBatch
from nnpcalc.interop.aimnet2 import load
from nnpcalc.potential import Potential
from nnpcalc.terms import D3, Coulomb, D3Tables, TermInputs
from nnpcalc.terms.inputs import pair_to_atoms
from nnpcalc.weights import load_potential, save_potential

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ENERGY_TOLERANCE = 1e-5  # eV, in float64
FORCE_TOLERANCE = 2e-5  # eV/Å: the charges of the files add up to 1e-7 e only
deviations: dict[str, tuple[float, float, float]] = {}


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    """Print the deviations at the end (seen with -s)."""
    yield
    for name, (energy, force, charge) in deviations.items():
        print(
            f"\n{name:36} |dE| {energy:.1e} eV, max |dF| {force:.1e} eV/Å, max |dq| {charge:.1e} e",
            end="",
        )


def compare(
    name: str, atoms: Atoms, energy: float, forces: np.ndarray, charges: np.ndarray
) -> tuple[float, float, float]:
    """Deviations of the atoms' calculator, which are kept for the report."""
    found = (
        abs(atoms.get_potential_energy() - energy),
        float(np.abs(atoms.get_forces() - forces).max()),
        float(np.abs(atoms.get_charges() - charges).max()),
    )
    deviations[name] = found
    return found


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
    return (
        float(output["energy"].detach()),
        -gradient[0].numpy(),
        output["charges"][0].detach().numpy(),
    )


@pytest.mark.parametrize("name", sorted(MOLECULES))
def test_energies_forces_and_charges_are_those_of_the_file(name: str) -> None:
    path = published("aimnet2_wb97m-d3_0.jpt")
    atoms = from_smiles(*MOLECULES[name])
    for program, dtype, energy_tolerance in (
        (in_float64(path), torch.float64, ENERGY_TOLERANCE),
        (torch.jit.load(path), torch.float32, 4e-3 if name == "many elements" else 5e-4),
    ):
        theirs = run(program, atoms, dtype)
        potential = load(path, trust=True, dtype=dtype, dispersion_cutoff=40.0)
        atoms.calc = NNPCalculator(potential, device="cpu", dtype=dtype)
        found = compare(f"{name}, {str(dtype).removeprefix('torch.')}", atoms, *theirs)
        assert np.all(np.array(found) <= (energy_tolerance, FORCE_TOLERANCE, 1e-6)), found
        assert atoms.get_charges().sum() == pytest.approx(atoms.info["charge"], abs=1e-6)


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
    assert np.allclose(results.charges.numpy(), charges, rtol=0.0, atol=1e-6)


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


# --- crystals ------------------------------------------------------------------------------------


def aimnet_calculator(tmp_path: Path) -> Any:
    """aimnet's own calculator with the published weights and the damped shifted force.

    In float64 but for its dispersion energy and what it returns as forces.
    """
    pytest.importorskip("aimnet", reason="pip install aimnet==0.2.5")
    yaml = pytest.importorskip("yaml")
    import aimnet.models
    from aimnet.calculators import AIMNet2Calculator
    from aimnet.config import build_module

    program = torch.jit.load(published("aimnet2_wb97m-d3_0.jpt"))
    weights = {**dict(program.named_parameters()), **dict(program.named_buffers())}
    assert aimnet.models.__file__ is not None
    config = yaml.safe_load(
        (Path(aimnet.models.__file__).parent / "aimnet2_dftd3_wb97m.yaml").read_text()
    )
    outputs = config["kwargs"]["outputs"]
    dispersion = outputs.pop("dftd3")["kwargs"]
    options = outputs.pop("lrcoulomb")["kwargs"]
    outputs["srcoulomb"] = {"class": "aimnet.modules.SRCoulomb", "kwargs": options}
    text = yaml.safe_dump(config, sort_keys=False)
    model = build_module(yaml.safe_load(text))
    model.outputs.atomic_shift.double()
    own = model.state_dict()
    assert set(own) - set(weights) == {"outputs.srcoulomb.rc"}
    model.load_state_dict({name: weights.get(name, value) for name, value in own.items()})
    shifts = weights["outputs.atomic_shift.shifts.weight"].flatten()
    content = {
        "format_version": 2, "model_yaml": text, "cutoff": 5.0, "needs_coulomb": True,
        "needs_dispersion": True, "coulomb_mode": "sr_embedded", "coulomb_sr_rc": options["rc"],
        "coulomb_sr_envelope": "exp", "d3_params": {"s6": 1.0, **dispersion},
        "has_embedded_lr": True, "has_embedded_d3ts": False,
        "implemented_species": (torch.isfinite(shifts) & (shifts != 0.0)).nonzero()[:, 0].tolist(),
        "state_dict": model.state_dict(),
    }  # fmt: skip
    torch.save(content, tmp_path / "published.pt")
    calculator = AIMNet2Calculator(str(tmp_path / "published.pt"), device="cpu")
    calculator.set_lrcoulomb_method("dsf", cutoff=15.0, dsf_alpha=0.2)
    for module in (calculator.model, calculator.external_coulomb, calculator.external_dftd3):
        module.double()
    for name in ("keys_in", "keys_in_optional"):  # else coordinates become float32
        kinds = getattr(calculator, name).items()
        double = {key: torch.float64 if kind == torch.float32 else kind for key, kind in kinds}
        setattr(calculator, name, double)
    return calculator


class SelfEnergy(nn.Module):
    """What aimnet's damped shifted force leaves of the energy of each charge with itself.

    It takes off erfc(a r_c) / 2 r_c + a / sqrt pi per q^2, as for a shifted potential without
    shifted force; ours is half of the whole pair function without 1/d at d = 0.
    """

    def __init__(self, coulomb: Coulomb) -> None:
        super().__init__()
        self.factor = -0.5 * coulomb.coulomb * coulomb.slope * coulomb.cutoff

    def forward(self, inputs: TermInputs) -> Tensor:
        assert inputs.charges is not None
        return self.factor * inputs.charges.double().square()


class SharpD3(D3):
    """Coordination numbers counted up to the cutoff without switching them off."""

    def coordination_numbers(self, inputs: TermInputs) -> Tensor:
        radii = self.radii[self.element_index[inputs.numbers]] * self.bohr
        i, j = inputs.pairs[0], inputs.pairs[1]
        counted = torch.sigmoid(16.0 * ((radii[i] + radii[j]) / inputs.distances - 1.0))
        return pair_to_atoms(counted, i, inputs.numbers.shape[0])


def as_aimnet(potential: Potential) -> Potential:
    """The potential with aimnet's two conventions in place of ours."""
    terms: list[nn.Module] = []
    for term in potential.terms:
        if isinstance(term, D3):
            options = {key: getattr(term, key) for key in ("s8", "a1", "a2", "s6", "cutoff")}
            tables = D3Tables(term.c6, term.coordination, term.r4r2, term.radii)
            term = SharpD3(term.elements, **options, tables=tables)
        terms.append(term)
        if isinstance(term, Coulomb) and term.periodic == "dsf":
            terms.append(SelfEnergy(term))
    return Potential(potential.core, tuple(terms)).double()


def crystals() -> dict[str, Atoms]:
    """Urea, and ammonium chloride sheared; both smaller than any cutoff and off equilibrium."""
    urea = crystal(
        ["C", "O", "N", "H", "H"],
        [(0.0, 0.5, 0.326), (0.0, 0.5, 0.5953), (0.1459, 0.6459, 0.1766),
         (0.2575, 0.7575, 0.2827), (0.1441, 0.6441, -0.038)],
        spacegroup=113, cellpar=[5.565, 5.565, 4.684, 90.0, 90.0, 90.0],
    )  # fmt: skip
    a, h = 3.87, 1.03 / math.sqrt(3.0)
    corners = np.array([(h, h, h), (h, -h, -h), (-h, h, -h), (-h, -h, h)])
    salt = Atoms(
        "NClH4", np.concatenate([[(0.0,) * 3, (a / 2,) * 3], corners]), cell=[a] * 3, pbc=True
    )
    sheared = a * np.eye(3)
    sheared[[1, 2, 2], [0, 0, 1]] = 0.3, -0.2, 0.4
    salt.set_cell(sheared, scale_atoms=True)
    found = {"urea": urea, "ammonium chloride": salt}
    for atoms in found.values():
        atoms.rattle(0.03, seed=1)
        atoms.info["charge"] = 0
    return found


@pytest.mark.parametrize("name", sorted(crystals()))
def test_crystals_are_those_of_aimnet(tmp_path: Path, name: str) -> None:
    """To 1e-5 eV with aimnet's conventions; with ours, which are nearer to Ewald, to 1e-3 eV."""
    calculator = aimnet_calculator(tmp_path)
    atoms = crystals()[name]
    output = calculator.eval(
        {
            "coord": torch.tensor(atoms.positions),
            "numbers": torch.tensor(atoms.numbers),
            "charge": torch.tensor([0.0]),
            "cell": torch.tensor(atoms.cell.array),
        },
        forces=True,
        stress=True,
    )
    energy = float(output["energy"].detach())
    forces, charges, stress = (
        output[key].detach().numpy() for key in ("forces", "charges", "stress")
    )
    path = published("aimnet2_wb97m-d3_0.jpt")
    ours = load(path, trust=True, dtype=torch.float64, periodic="dsf")
    for potential, suffix, tolerances in (
        (as_aimnet(ours), "aimnet's conventions", (ENERGY_TOLERANCE, FORCE_TOLERANCE, 1e-6)),
        (ours, "ours", (1e-3, 1e-3, 1e-6)),
    ):
        atoms.calc = NNPCalculator(potential, device="cpu", dtype=torch.float64)
        found = compare(f"{name}, {suffix}", atoms, energy, forces, charges)
        assert np.all(np.array(found) <= tolerances), found
        assert np.allclose(atoms.get_stress(voigt=False), stress, rtol=0.0, atol=1e-5)


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
