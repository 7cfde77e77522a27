"""SchNet and PaiNN against the authors' SchNetPack 2.2.0 and against PyTorch Geometric 2.8.1.

Random weights, copied over by `load_checkpoint` or by name; energies and forces in float64. Run
where one of the two is installed: ``python -m pytest -m oracle tests/test_oracle_schnet_painn.py``.

Both programs round a few constants to float32 even in a float64 model: radial centres, widths,
frequencies, the logarithm of 2. They are made anew in float64 here.
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
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.interop.schnetpack import CheckpointError, load_checkpoint
from nnpcalc.models.schnet import SchNet, SchNetConfig
from nnpcalc.neighbors import NeighborList, neighbor_list
from nnpcalc.potential import Potential

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 1e-8  # eV and eV/Å
CUTOFF = 4.0
MOLECULES = ("H2O", "CH3CHO", "C6H6", "SO2", "CH3SiH3")
deviations: dict[str, list[tuple[float, float, float]]] = {}


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    """Print the largest deviations at the end (seen with -s)."""
    yield
    for name, values in sorted(deviations.items()):
        energy, force, size = np.array(values).max(0)
        print(
            f"\n{name:28} max |dE| {energy:.1e} eV, max |dF| {force:.1e} eV/Å of max |F| "
            f"{size:.1f} eV/Å",
            end="",
        )


def structures() -> list[Atoms]:
    systems = [molecule(name) for name in MOLECULES]
    for k, atoms in enumerate(systems):
        atoms.rattle(0.05, seed=k)
    crystal = bulk("Si", "diamond", a=5.43)
    crystal.rattle(0.1, seed=9)
    return [*systems, crystal]


def randomise(model: torch.nn.Module, gain: float = 1.0) -> None:
    """Weights far from an initialisation that hides errors (zero biases, padding rows)."""
    with torch.no_grad():
        for parameter in model.parameters():
            size = parameter.shape[-1] if parameter.dim() == 2 else 1
            scale = gain * size**-0.5 if parameter.dim() == 2 else 0.3
            parameter.copy_(scale * torch.randn_like(parameter))


def compare(name: str, potential: Potential, atoms: Atoms, energy: Tensor, forces: Tensor) -> None:
    results = potential.evaluate(AtomsBatch.from_atoms(atoms))
    assert results.forces is not None
    found = (
        float((results.energy - energy.detach()).abs().max()),
        float((results.forces - forces).abs().max()),
        float(forces.abs().max()),
    )
    deviations.setdefault(name, []).append(found)
    assert found[2] > 1e-3, "these weights give no forces"
    assert max(found[:2]) < TOLERANCE, f"{atoms.get_chemical_formula()}: {found}"


# --- SchNetPack ----------------------------------------------------------------------------------


def exact_basis(kind: str, n: int) -> Any:
    """A radial basis of SchNetPack without its rounding to float32."""
    spk = pytest.importorskip("schnetpack")
    basis = spk.nn.GaussianRBF(n, CUTOFF) if kind == "gaussian" else spk.nn.BesselRBF(n, CUTOFF)
    basis.double()
    if kind == "gaussian":
        basis.offsets = torch.linspace(0.0, CUTOFF, n, dtype=torch.float64)
        basis.widths = basis.offsets[1].expand(n).clone()
    else:
        basis.freqs = torch.arange(1, n + 1, dtype=torch.float64) * (math.pi / CUTOFF)
    return basis


def schnetpack_model(kind: str, basis: str, activation: str, **options: Any) -> Any:
    spk = pytest.importorskip("schnetpack")
    cutoff = spk.nn.CosineCutoff(CUTOFF)
    network = {"schnet": spk.representation.SchNet, "painn": spk.representation.PaiNN}[kind]
    body = network(
        n_atom_basis=16, radial_basis=exact_basis(basis, 7), cutoff_fn=cutoff,
        **{"n_interactions": 3, **options},
    )  # fmt: skip
    act = {"silu": torch.nn.functional.silu, "shifted_softplus": spk.nn.shifted_softplus}
    head = spk.atomistic.Atomwise(n_in=16, output_key="energy", activation=act[activation])
    offsets = spk.transform.AddOffsets(
        "energy", add_mean=True, add_atomrefs=True,
        atomrefs=torch.linspace(-3.0, 2.0, 100, dtype=torch.float64),
        property_mean=torch.tensor([-7.5], dtype=torch.float64),
    )  # fmt: skip
    model = spk.model.NeuralNetworkPotential(
        body, input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[head, spk.atomistic.Forces()], postprocessors=[offsets],
    )  # fmt: skip
    model = model.double()
    randomise(model)
    return model


def run_schnetpack(model: Any, atoms: Atoms) -> tuple[Tensor, Tensor]:
    """Energy [1] and forces [N, 3] with pairs found here."""
    batch = AtomsBatch.from_atoms(atoms)
    pairs = neighbor_list(batch, CUTOFF)
    inputs = {
        "_atomic_numbers": batch.numbers,
        "_positions": batch.positions.clone(),
        "_idx_i": pairs.pairs[0],
        "_idx_j": pairs.pairs[1],
        "_offsets": pairs.shifts.double() @ batch.cell[0],
        "_idx_m": batch.system,
        "_n_atoms": torch.tensor([len(atoms)]),
    }
    output = model(inputs)
    return output["energy"], output["forces"].detach()


@pytest.mark.parametrize(
    ("kind", "basis", "activation", "options"),
    [
        ("schnet", "gaussian", "silu", {}),
        ("schnet", "gaussian", "shifted_softplus", {"shared_interactions": True}),
        ("painn", "gaussian", "silu", {}),
        ("painn", "bessel", "silu", {}),
        ("painn", "bessel", "silu", {"shared_filters": True, "n_interactions": 2}),
    ],
)
def test_schnetpack(
    kind: str, basis: str, activation: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = schnetpack_model(kind, basis, activation, **options)
    torch.save(model.state_dict(), tmp_path / "parameters.pt")
    unit = 0.5  # eV per unit of the model
    potential = load_checkpoint(
        tmp_path / "parameters.pt", energy_unit=unit, readout_activation=activation,
        dtype=torch.float64,
    )  # fmt: skip
    name = f"SchNetPack {kind} {basis}"
    for atoms in structures():
        energy, forces = run_schnetpack(model, atoms)
        compare(name, potential, atoms, unit * energy, unit * forces)


def test_a_whole_pickled_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    model = schnetpack_model("painn", "gaussian", "silu")
    torch.save(model, tmp_path / "best_model")
    with pytest.raises(CheckpointError, match=r"state_dict\(\), 'parameters.pt'"):
        load_checkpoint(tmp_path / "best_model")


# --- PyTorch Geometric ---------------------------------------------------------------------------


def test_pytorch_geometric(monkeypatch: pytest.MonkeyPatch) -> None:
    schnet = pytest.importorskip("torch_geometric.nn.models.schnet")
    f, layers, k = 16, 3, 7
    theirs = schnet.SchNet(f, f, layers, k, CUTOFF, interaction_graph=lambda *_: None).double()
    randomise(theirs)
    theirs.distance_expansion.offset = torch.linspace(0.0, CUTOFF, k, dtype=torch.float64)
    theirs.distance_expansion.coeff = -0.5 / (CUTOFF / (k - 1)) ** 2
    for module in theirs.modules():
        if type(module).__name__ == "ShiftedSoftplus":
            module.shift = math.log(2.0)
    elements = (1, 6, 8, 14, 16)
    core = SchNet(SchNetConfig(f, layers, k, CUTOFF, elements)).double()
    core.load_state_dict(renamed(theirs.state_dict(), elements))
    potential = Potential(core)
    for atoms in structures():
        batch = AtomsBatch.from_atoms(atoms)
        positions = batch.positions.clone().requires_grad_(True)
        pairs = neighbor_list(batch, CUTOFF)
        theirs.interaction_graph = lambda *_, p=pairs, r=positions, c=batch.cell[0]: edges(p, r, c)
        energy = theirs(batch.numbers, positions, batch.system)[0]
        (gradient,) = torch.autograd.grad(energy.sum(), positions)
        compare("PyTorch Geometric SchNet", potential, atoms, energy, -gradient)


def edges(pairs: NeighborList, positions: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Senders and receivers [2, P] and their distances [P], as `RadiusInteractionGraph` does."""
    i, j = pairs.pairs
    vectors = positions[j] - positions[i] + pairs.shifts.double() @ cell
    return torch.stack([j, i]), vectors.norm(dim=-1)


def renamed(state: dict[str, Tensor], elements: tuple[int, ...]) -> dict[str, Tensor]:
    """Parameters of PyTorch Geometric's SchNet by the names of ours."""
    names = {
        "mlp.0": "filter.0", "mlp.2": "filter.2", "conv.lin1": "linear",
        "conv.lin2": "update.0", "lin": "update.2",
    }  # fmt: skip
    ours = {"embedding.element.weight": state["embedding.weight"][list(elements)]}
    for name, tensor in state.items():
        head, _, kind = name.rpartition(".")
        if name.startswith("interactions."):
            _, layer, part = head.split(".", 2)
            if part.startswith("conv.nn"):
                continue  # the filter again
            ours[f"layers.{layer}.{names[part]}.{kind}"] = tensor
        elif head in ("lin1", "lin2"):
            ours[f"readout.{0 if head == 'lin1' else 2}.{kind}"] = tensor
    return ours
