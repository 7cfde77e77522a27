"""PhysNet: against numbers of its authors' TensorFlow program, and that program in numpy."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch import nn

from nnpcalc.batch import AtomsBatch
from nnpcalc.models.physnet import PhysNet, PhysNetConfig
from nnpcalc.potential import Potential
from nnpcalc.terms import Coulomb
from nnpcalc.units import COULOMB

SMALL: dict[str, Any] = {
    "channels": 6,
    "layers": 3,
    "radial_functions": 5,
    "cutoff": 5.0,
    "elements": (1, 6, 8),
    "atomic_residuals": 2,
    "message_residuals": 2,
    "output_residuals": 1,
}


def small(**options: Any) -> PhysNet:
    core = PhysNet(PhysNetConfig(**{**SMALL, **options}))
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return core.double()


def act(x: np.ndarray) -> np.ndarray:
    return np.log(np.exp(x) + 1.0) - np.log(2.0)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log(np.exp(x) + 1.0)


def dense(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    y = x @ layer.weight.detach().numpy().T
    return y if layer.bias is None else y + layer.bias.detach().numpy()


def residual(layer: Any, x: np.ndarray) -> np.ndarray:
    return x + dense(layer.second, act(dense(layer.first, act(x))))


def slow(core: PhysNet, atoms: Atoms, total: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Energies and charges of the atoms, before electrostatics, and its energy in eV."""
    c = core.config
    n, r = len(atoms), atoms.positions
    kind = [c.elements.index(z) for z in atoms.numbers]
    centres = softplus(core.basis.centres.detach().numpy())
    widths = softplus(core.basis.widths.detach().numpy())
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    distance = {(i, j): float(np.linalg.norm(r[i] - r[j])) for i, j in pairs}
    basis = {}
    for pair, d in distance.items():
        x = d / c.cutoff
        cut = 1 - 6 * x**5 + 15 * x**4 - 10 * x**3 if x < 1 else 0.0
        basis[pair] = cut * np.exp(-widths * (np.exp(-d) - centres) ** 2)
    x = core.element.detach().numpy()[kind]
    energies, charges = np.zeros(n), np.zeros(n)
    for block in core.blocks:
        xa = act(x)
        message = act(dense(block.receiver, xa))
        sent = act(dense(block.sender, xa))
        for i, j in pairs:
            message[i] += dense(block.mask, basis[i, j]) * sent[j]
        for layer in block.message:
            message = residual(layer, message)
        x = block.gate.detach().numpy() * x + dense(block.update, act(message))
        for layer in block.atoms:
            x = residual(layer, x)
        out = x
        for layer in block.before_output:
            out = residual(layer, out)
        out = dense(block.output, act(out))
        energies += out[:, 0]
        charges += out[:, 1]
    scales, shifts = core.scales.detach().numpy()[kind], core.shifts.detach().numpy()[kind]
    energies = scales[:, 0] * energies + shifts[:, 0]
    charges = scales[:, 1] * charges + shifts[:, 1]
    charges += (total - charges.sum()) / n
    electrostatic = 0.0
    for (i, j), d in distance.items():
        u = d / (c.cutoff / 2)
        switch = 6 * u**5 - 15 * u**4 + 10 * u**3 if u < 1 else 1.0
        shielded = (1 - switch) / math.sqrt(d * d + 1.0) + switch / d
        electrostatic += COULOMB / 2 * charges[i] * charges[j] * shielded
    return energies, charges, electrostatic


@pytest.mark.parametrize("charge", [-1, 0, 2])
@pytest.mark.parametrize("options", [{}, {"layers": 1, "output_residuals": 0}])
def test_against_the_published_program(charge: int, options: dict[str, Any]) -> None:
    core = small(**options)
    atoms = molecule("CH3CH2OH")
    atoms.info.update(charge=charge, spin=1 + charge % 2)
    atoms.positions *= 1.5  # neighbours on both sides of the cutoffs
    potential = Potential(core, (Coulomb("shielded", core.cutoff / 2),))
    results = potential.evaluate(AtomsBatch.from_atoms(atoms))
    energies, charges, electrostatic = slow(core, atoms, float(charge))
    assert results.charges.tolist() == pytest.approx(charges.tolist(), abs=1e-12)
    total = float(energies.sum()) + electrostatic
    assert float(results.energy) == pytest.approx(total, abs=1e-11)
    alone = Potential(core).evaluate(AtomsBatch.from_atoms(atoms))
    assert alone.energies.tolist() == pytest.approx(energies.tolist(), abs=1e-12)


# --- the authors' program itself -----------------------------------------------------------------

#: Name of each parameter there -> ours; {} is the number of a module. Weights are transposed.
NAMES = {
    "interaction_block{}/interaction_layer/k2f": "blocks.{}.mask",
    "interaction_block{}/interaction_layer/dense_i": "blocks.{}.receiver",
    "interaction_block{}/interaction_layer/dense_j": "blocks.{}.sender",
    "interaction_block{}/interaction_layer/residual_layer0/dense": "blocks.{}.message.0.first",
    "interaction_block{}/interaction_layer/residual_layer0/residual": "blocks.{}.message.0.second",
    "interaction_block{}/interaction_layer/residual_layer1/dense": "blocks.{}.message.1.first",
    "interaction_block{}/interaction_layer/residual_layer1/residual": "blocks.{}.message.1.second",
    "interaction_block{}/interaction_layer/dense": "blocks.{}.update",
    "interaction_block{}/residual_layer0/dense": "blocks.{}.atoms.0.first",
    "interaction_block{}/residual_layer0/residual": "blocks.{}.atoms.0.second",
    "output_block{}/residual_layer0/dense": "blocks.{}.before_output.0.first",
    "output_block{}/residual_layer0/residual": "blocks.{}.before_output.0.second",
    "output_block{}/dense_layer": "blocks.{}.output",
}


#: What it gives: energies and charges of the atoms, then energy and forces with the Coulomb energy.
ENERGIES = [-3.177833488233, 7.678552407006, 0.087407616628, -0.060057448353]
CHARGES = [-3.079435462345, 1.856506346953, 0.09915274732, 0.123776368071]
ENERGY = -56.25124243540748
FORCES = [
    [-16.280407070118, 10.247382989902, 47.359533690137],
    [-4.256444307826, -5.977170810326, -38.130768697339],
    [15.909560812195, -3.852562368326, -12.557963347036],
    [4.627290565749, -0.417649811249, 3.329198354237],
]


def invented(name: str, *shape: int) -> torch.Tensor:
    """The values that both programs were given."""
    phase = zlib.crc32(name.encode()) % 997
    return torch.tensor(np.cos(1.7 * np.arange(math.prod(shape)) + phase).reshape(shape))


def test_energies_charges_and_forces_of_the_tensorflow_program() -> None:
    """MMunibas/PhysNet at e243e2c under TensorFlow 2.15 (compat.v1), float64, without D3."""
    f, k, elements = 5, 6, (1, 6, 8)
    core = PhysNet(
        PhysNetConfig(
            channels=f, layers=2, radial_functions=k, cutoff=5.0, elements=elements,
            atomic_residuals=1, message_residuals=2, output_residuals=1,
        )
    )  # fmt: skip
    state = {}
    for block in range(2):
        for theirs, ours in NAMES.items():
            name, inputs = theirs.format(block), k if theirs.endswith("k2f") else f
            outputs = 2 if theirs.endswith("dense_layer") else f
            state[f"{ours.format(block)}.weight"] = invented(f"{name}/W", inputs, outputs).t()
            if not theirs.endswith(("k2f", "dense_layer")):
                state[f"{ours.format(block)}.bias"] = invented(f"{name}/b", f)
        gate = f"interaction_block{block}/interaction_layer/u"
        state[f"blocks.{block}.gate"] = invented(gate, f)
    rows = list(elements)
    state["element"] = invented("embeddings", 95, f)[rows]
    for ours, theirs in (("scales", "scale"), ("shifts", "shift")):
        columns = [invented(f"{letter}{theirs}", 95)[rows] for letter in "EQ"]
        state[ours] = torch.stack(columns, dim=1)
    state["basis.centres"] = core.basis.centres + 0.1 * invented("rbf_layer/centers", k)
    state["basis.widths"] = core.basis.widths + 0.1 * invented("rbf_layer/widths", k)
    core = core.double()
    core.load_state_dict({name: value.detach().double() for name, value in state.items()})
    positions = [(0.0, 0.0, 0.0), (0.1, 0.2, 1.25), (0.9, -0.2, -0.6), (-3.4, 0.3, -2.5)]
    atoms = Atoms([6, 8, 1, 1], positions, info={"charge": -1})
    potential = Potential(core, (Coulomb("shielded", 2.5),))
    results = potential.evaluate(AtomsBatch.from_atoms(atoms))
    alone = Potential(core).evaluate(AtomsBatch.from_atoms(atoms))
    assert alone.energies.tolist() == pytest.approx(ENERGIES, abs=1e-6)
    assert results.charges.tolist() == pytest.approx(CHARGES, abs=1e-6)
    assert float(results.energy) == pytest.approx(ENERGY, abs=1e-5)
    assert results.forces.numpy() == pytest.approx(np.array(FORCES), abs=1e-5)


def test_the_radial_basis_starts_as_published() -> None:
    core = PhysNet(PhysNetConfig(radial_functions=64, cutoff=10.0)).double()
    centres = nn.functional.softplus(core.basis.centres)
    widths = nn.functional.softplus(core.basis.widths)
    expected = torch.linspace(1.0, math.exp(-10.0), 64, dtype=torch.float64)
    assert torch.allclose(centres, expected, rtol=1e-5, atol=1e-6)
    width = (0.5 / ((1.0 - math.exp(-10.0)) / 64)) ** 2
    assert torch.allclose(widths, torch.full_like(widths, width), rtol=1e-6)


def test_charges_add_up_in_every_system_of_a_batch() -> None:
    ions = [Atoms("H"), molecule("H2O"), Atoms(), molecule("CH3")]
    ions[0].info["charge"], ions[3].info["charge"] = 1, -1
    batch = AtomsBatch.from_atoms(ions)
    charges = Potential(small()).evaluate(batch).charges
    sums = torch.zeros(4, dtype=torch.float64).index_add(0, batch.system, charges)
    assert sums.tolist() == pytest.approx([1.0, 0.0, 0.0, -1.0], abs=1e-13)


def test_default_weights_are_orthogonal_and_of_glorots_size() -> None:
    weight = PhysNet(PhysNetConfig()).blocks[0].update.weight.detach().double()
    product = weight @ weight.t()
    scale = float(product.diagonal().mean())
    assert torch.allclose(product, scale * torch.eye(128, dtype=torch.float64), atol=1e-4)
    assert float(weight.var()) == pytest.approx(2.0 / 256.0, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"channels": 0}, "channels must be at least 1"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"radial_functions": 1}, "radial_functions must be at least 2"),
        ({"output_residuals": -1}, "must not be negative"),
        ({"cutoff": math.nan}, "positive length"),
        ({"elements": (1, 1)}, "listed twice"),
        ({"elements": ()}, "atomic numbers"),
    ],
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PhysNetConfig(**{**SMALL, **options})
