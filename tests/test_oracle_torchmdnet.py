"""TensorNet against torchmd-net 3.1.0: the same random weights, energies and forces in float64.

Run where torchmd-net is installed: ``python -m pytest -m oracle tests/test_oracle_torchmdnet.py``.
The files under test are written by torchmd-net and Lightning and read by `load_checkpoint`.

What torchmd-net rounds to float32 even in a float64 model is lifted here as far as it can be: the
centres and widths of the radial basis are made anew in float64, charges are passed in float64
(0.1 times an int64 tensor is float32). Its Warp kernels also round constants such as 1/3; its
plain torch operations do not. Both are compared, each with the tolerance it can meet.

The two also disagree about the handedness of SO(3) networks: the plain operations give the energy
that the Warp kernels, the default since torchmd-net 3.0, give for the mirror image.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.geometry import get_distances
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.interop.torchmdnet import load_checkpoint, save_checkpoint
from nnpcalc.models.tensornet import TensorNet, TensorNetConfig
from nnpcalc.potential import Potential, Results
from nnpcalc.terms import AtomicEnergies
from nnpcalc.terms.system_energy import SystemEnergy
from tests import test_torchmdnet as synthetic

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore"),  # torch-geometric, Lightning and Warp give many
]
pytest.importorskip("torchmdnet")

CUTOFF = 3.0
CHARGES = (-2, -1, 0, 1, 2)
MOLECULES = ("H2O", "CH3CHO", "C6H6", "SO2", "CH3SiH3")
#: Largest differences allowed in eV and eV/Å: those of the task, and those of rounding alone.
TOLERANCE = {"warp": 1e-6, "torch": 1e-9}
deviations: dict[tuple[str, str], list[float]] = {}


@pytest.fixture(params=["warp", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which operations torchmd-net uses: the default Warp kernels or its plain torch fallback."""
    if request.param == "torch":
        use_torch_operations(monkeypatch)
    return str(request.param)


def use_torch_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchmd-net does by itself where Warp cannot be imported."""
    from torchmdnet.models import tensornet as module

    monkeypatch.setattr(module, "OPT", False)
    for name in ("compose_tensor", "decompose_tensor", "tensor_matmul_o3", "tensor_matmul_so3"):
        monkeypatch.setattr(module, name, getattr(module, f"_{name}"))


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    """Print the largest deviations at the end (seen with -s)."""
    yield
    for (kernels, group), values in sorted(deviations.items()):
        energy, force, size = (max(values[k::3]) for k in range(3))
        print(
            f"\n{kernels:5} {group:20} max |dE| {energy:.1e} eV, max |dF| {force:.1e} eV/Å "
            f"of max |F| {size:.1f} eV/Å",
            end="",
        )


# --- the two programs ----------------------------------------------------------------------------


def options(**changes: Any) -> dict[str, Any]:
    """What torchmd-train would keep; every training option that the module needs included."""
    return {
        "load_model": None,
        "remove_ref_energy": False,
        "lr": 1e-3,
        "weight_decay": 0.0,
        "train_loss": "mse_loss",
        "train_loss_arg": {},
        "seed": 1,
        "model": "tensornet",
        "precision": 64,
        "embedding_dimension": 16,
        "num_layers": 2,
        "num_rbf": 8,
        "rbf_type": "expnorm",
        "trainable_rbf": False,
        "activation": "silu",
        "cutoff_lower": 0.0,
        "cutoff_upper": CUTOFF,
        "max_z": 20,
        "max_num_neighbors": 64,
        "equivariance_invariance_group": "O(3)",
        "static_shapes": False,
        "output_model": "Scalar",
        "output_mlp_num_layers": 0,
        "reduce_op": "add",
        "atom_filter": -1,
        "derivative": True,
        "prior_model": [{"Atomref": {"max_z": 20}}],
        "prior_args": None,
        "box_vecs": None,
        "charge": True,
        "spin": False,
    } | changes


def write_checkpoint(path: Path, **changes: Any) -> None:
    """A model with random weights, saved by Lightning as torchmd-train saves it."""
    import lightning
    from torchmdnet.module import LNNP

    model = LNNP(
        options(**changes),
        mean=torch.tensor(-31.7, dtype=torch.float64),
        std=torch.tensor(0.4, dtype=torch.float64),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm.weight" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "atomref" in name:
                parameter.copy_(20.0 * torch.randn_like(parameter))
            else:  # larger than the initial weights, for energies and forces as of real models
                gain = 1.4 if parameter.dim() == 2 else 0.3
                size = parameter.shape[-1] if parameter.dim() == 2 else 1
                parameter.copy_(gain * size**-0.5 * torch.randn_like(parameter))
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)


def read_oracle(path: Path, **changes: Any) -> Any:
    """torchmd-net's model of a file, its radial basis made anew in float64."""
    from torchmdnet.models.model import load_model

    model = load_model(str(path), derivative=True, **changes)
    basis = model.representation_model.distance_expansion
    basis.dtype = torch.float64
    basis.reset_parameters()
    return model


def ask_oracle(
    model: Any, batch: AtomsBatch, periodic: bool = False, mirrored: bool = False
) -> tuple[Tensor, Tensor]:
    """Energies [B] and forces [N, 3]; of the inverted structure, turned back, if mirrored."""
    sign = -1.0 if mirrored else 1.0
    energy, forces = model(
        batch.numbers,
        sign * batch.positions,
        batch.system,
        box=batch.cell if periodic else None,  # every lattice is its own inversion
        q=batch.charge.to(torch.float64),
    )
    return energy.detach()[:, 0], sign * forces.detach()


def compare(
    expected: tuple[Tensor, Tensor], found: Results, tolerance: float, label: tuple[str, str]
) -> None:
    energy, forces = expected
    assert found.forces is not None
    assert float(forces.abs().max()) > 0.1  # there is something to get wrong
    pair = [float((energy - found.energy).abs().max()), float((forces - found.forces).abs().max())]
    deviations.setdefault(label, []).extend([*pair, float(forces.abs().max())])
    assert max(pair) < tolerance, pair


# --- structures ----------------------------------------------------------------------------------


def molecules(seed: int) -> AtomsBatch:
    """Distorted molecules of different sizes, one lone atom, charges from -2 to 2."""
    random = np.random.default_rng(seed)
    structures = [molecule(name) for name in MOLECULES] + [Atoms("O", positions=[[0.3, 0.1, 9.0]])]
    for k, atoms in enumerate(structures):
        atoms.positions += random.normal(scale=0.08, size=(len(atoms), 3))
        atoms.info["charge"] = CHARGES[(k + seed) % len(CHARGES)]
    return AtomsBatch.from_atoms(structures)


def crystal(cell: np.ndarray, n_atoms: int, seed: int) -> Atoms:
    """Atoms at random in a cell, none closer than 0.9 Å, some of them outside the cell."""
    random = np.random.default_rng(seed)
    positions: list[np.ndarray] = []
    while len(positions) < n_atoms:
        new = random.random(3) @ cell
        if not positions or get_distances(new, positions, cell=cell, pbc=True)[1].min() > 0.9:
            positions.append(new)
    numbers = random.choice([1, 6, 7, 8], n_atoms)
    shifts = random.integers(-2, 3, (n_atoms, 3)) * (random.random((n_atoms, 1)) < 0.3)
    return Atoms(numbers, np.array(positions) + shifts @ cell, cell=cell, pbc=True)


# Lower triangular and reduced, as torchmd-net needs them, each height above 2 r_c = 6 Å.
ORTHORHOMBIC = [np.diag([6.1, 6.6, 7.9]), np.diag([7.0, 6.3, 6.2])]
TRICLINIC = [
    np.array([[7.4, 0.0, 0.0], [2.1, 6.9, 0.0], [-1.6, 1.9, 7.1]]),
    np.array([[6.8, 0.0, 0.0], [-3.1, 7.3, 0.0], [2.4, -2.9, 6.9]]),
]


# --- the comparisons -----------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_batches_of_charged_molecules(
    tmp_path: Path, kernels: str, layers: int, group: str
) -> None:
    path = tmp_path / "model.ckpt"
    write_checkpoint(path, num_layers=layers, equivariance_invariance_group=group)
    oracle, potential = read_oracle(path), load_checkpoint(path, dtype=torch.float64)
    mirrored = group == "SO(3)" and kernels == "torch"
    for seed in range(5):  # every molecule gets every charge
        batch = molecules(seed)
        expected = ask_oracle(oracle, batch, mirrored=mirrored)
        found = potential.evaluate(batch)
        compare(expected, found, TOLERANCE[kernels], (kernels, f"{group} charged"))
        # torchmd-net one by one, nnpcalc in one batch
        alone = [ask_oracle(oracle, system, mirrored=mirrored) for system in batch.split()]
        expected = (torch.cat([e for e, _ in alone]), torch.cat([f for _, f in alone]))
        compare(expected, found, TOLERANCE[kernels], (kernels, f"{group} one by one"))


@pytest.mark.parametrize("layers", [1, 3])
def test_the_comparison_sees_the_charge(tmp_path: Path, layers: int) -> None:
    path = tmp_path / "model.ckpt"
    write_checkpoint(path, num_layers=layers)
    potential = load_checkpoint(path, dtype=torch.float64)
    first, second = (potential.evaluate(molecules(seed)).energy for seed in (0, 0))
    assert torch.equal(first, second)
    atoms = molecule("C6H6")
    energies = []
    for charge in CHARGES:
        atoms.info["charge"] = charge
        energies.append(float(potential.evaluate(AtomsBatch.from_atoms(atoms)).energy))
    assert np.diff(sorted(energies)).min() > 1e-3  # a thousand tolerances


@pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
@pytest.mark.parametrize("cells", ["orthorhombic", "triclinic"])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_periodic_cells_above_twice_the_cutoff(
    tmp_path: Path, kernels: str, layers: int, cells: str, group: str
) -> None:
    path = tmp_path / "model.ckpt"
    write_checkpoint(path, num_layers=layers, equivariance_invariance_group=group)
    structures = [
        crystal(cell, n_atoms, seed)
        for seed, (cell, n_atoms) in enumerate(
            zip(ORTHORHOMBIC if cells == "orthorhombic" else TRICLINIC, (24, 31), strict=True)
        )
    ]
    structures[1].info["charge"] = 1
    batch = AtomsBatch.from_atoms(structures)
    compare(
        ask_oracle(
            read_oracle(path), batch, periodic=True, mirrored=(kernels, group) == ("torch", "SO(3)")
        ),
        load_checkpoint(path, dtype=torch.float64).evaluate(batch),
        TOLERANCE[kernels],
        (kernels, f"{group} {cells}"),
    )


def test_layout_2_as_torchmdnet_converts_it(tmp_path: Path, kernels: str) -> None:
    path = tmp_path / "model.ckpt"
    write_checkpoint(path, check_errors=True)  # torchmd-net, too, takes this option as the sign
    batch = molecules(0)
    oracle = read_oracle(path)
    potential = load_checkpoint(path, dtype=torch.float64)
    compare(
        ask_oracle(oracle, batch),
        potential.evaluate(batch),
        TOLERANCE[kernels],
        (kernels, "layout 2"),
    )
    other = load_checkpoint(path, layout="3", dtype=torch.float64).evaluate(batch)
    assert float((other.energy - potential.evaluate(batch).energy).abs().max()) > 1e-3


def test_layout_2_keeps_the_handedness_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.ckpt"
    write_checkpoint(path, check_errors=True, equivariance_invariance_group="SO(3)")
    batch = molecules(0)
    found = load_checkpoint(path, dtype=torch.float64).evaluate(batch)
    with_warp = ask_oracle(read_oracle(path), batch)[0]
    assert float((with_warp - found.energy).abs().max()) > 1e-3  # torchmd-net 3 gets it wrong
    use_torch_operations(monkeypatch)
    compare(ask_oracle(read_oracle(path), batch), found, 1e-9, ("torch", "SO(3) layout 2"))


def test_removed_reference_energies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_torch_operations(monkeypatch)
    path = tmp_path / "model.ckpt"
    settings = {"max_z": 20, "trainable": False, "enable": False}
    write_checkpoint(path, remove_ref_energy=True, prior_args=[settings])
    batch = molecules(1)
    for total in (False, True):
        oracle = read_oracle(path, **({"remove_ref_energy": False} if total else {}))
        found = load_checkpoint(path, total_energy=total, dtype=torch.float64).evaluate(batch)
        compare(ask_oracle(oracle, batch), found, 1e-9, ("torch", "reference energies"))


def test_real_float32_model(tmp_path: Path, kernels: str) -> None:
    """Untouched: float32 weights and radial buffers, as such files are used."""
    from torchmdnet.models.model import load_model

    path = tmp_path / "model.ckpt"
    write_checkpoint(path, precision=32, num_layers=2)
    batch = molecules(2).to(dtype=torch.float32)
    energy, forces = load_model(str(path), derivative=True)(
        batch.numbers, batch.positions.clone(), batch.system, q=batch.charge
    )
    found = load_checkpoint(path).evaluate(batch)
    torch.testing.assert_close(energy[:, 0].double(), found.energy, rtol=1e-6, atol=3e-4)
    torch.testing.assert_close(forces, found.forces, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
@pytest.mark.parametrize("charged", [True, False])
def test_torchmdnet_reads_what_we_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, charged: bool, group: str
) -> None:
    from torchmdnet.models.model import load_model

    use_torch_operations(monkeypatch)
    core = TensorNet(
        TensorNetConfig(
            channels=16,
            layers=2,
            radial_functions=8,
            cutoff=CUTOFF,
            elements=(16, 1, 6, 8, 14),
            equivariance=group,
            attributes=("charge",) if charged else (),
            attribute_weights=(0.1,) if charged else (),
        )
    ).to(torch.float64)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if name.endswith("attribute_weights"):
                parameter.copy_(torch.full_like(parameter, 0.1))  # not the float32 neighbour of 0.1
            else:
                parameter.mul_(2.0)
    terms = (AtomicEnergies({1: -13.6, 6: -1030.0, 8: -2043.0}), SystemEnergy(0.7))
    potential = Potential(core, terms, scale=2.5)
    path = tmp_path / "ours.ckpt"
    save_checkpoint(potential, path)
    model = load_model(str(path), derivative=True)  # no promotion: the file holds exact buffers
    batch = molecules(3)
    if not charged:
        batch = AtomsBatch.from_atoms([molecule(name) for name in MOLECULES])
    expected = ask_oracle(model, batch, mirrored=group == "SO(3)")
    compare(expected, potential.evaluate(batch), 1e-9, ("torch", f"{group} our file"))


def test_golden_numbers_of_the_normal_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmdnet.models.model import load_model

    use_torch_operations(monkeypatch)
    batch = synthetic.water()
    checkpoint = synthetic.tiny_checkpoint()
    for k, content in enumerate([checkpoint, synthetic.in_layout_2(checkpoint)]):
        path = synthetic.write(tmp_path / f"{k}.ckpt", content)
        energy, forces = ask_oracle(load_model(str(path), derivative=True), batch)
        expected = torch.tensor(synthetic.GOLDEN_ENERGIES, dtype=torch.float64)
        torch.testing.assert_close(energy, expected, rtol=0, atol=1e-12)
        expected = torch.tensor(synthetic.GOLDEN_FORCES, dtype=torch.float64)
        torch.testing.assert_close(forces[:3], expected, rtol=0, atol=1e-12)
