"""models/schnet.py against a literal transcription of the paper, and its options."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from nnpcalc.batch import AtomsBatch
from nnpcalc.models import build_core
from nnpcalc.models.schnet import SchNet, SchNetConfig
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential

SMALL = {"channels": 6, "layers": 2, "radial_functions": 5, "cutoff": 4.0, "elements": (1, 6, 8)}


def make_core(**options: Any) -> SchNet:
    return SchNet(SchNetConfig(**{**SMALL, **options})).to(torch.float64)


def structures() -> list[Atoms]:
    """A molecule, a cell smaller than the cutoff and a lone atom."""
    crystal = bulk("C", "diamond", a=3.6)
    crystal.rattle(0.1, seed=2)
    return [molecule("CH3CHO"), crystal, Atoms("O")]


def literal_energies(core: SchNet, numbers, pairs, distances) -> np.ndarray:
    """Energies [N] of arXiv 1706.08566, one pair at a time."""
    config = core.config
    weights = {name: p.detach().numpy() for name, p in core.named_parameters()}

    def ssp(x):
        return np.log(0.5 * np.exp(x) + 0.5)

    def silu(x):
        return x / (1.0 + np.exp(-x))

    def two_layers(name, x, activation):
        x = activation(weights[f"{name}.0.weight"] @ x + weights[f"{name}.0.bias"])
        return weights[f"{name}.2.weight"] @ x + weights[f"{name}.2.bias"]

    centres = np.linspace(0.0, config.cutoff, config.radial_functions)
    gamma = 0.5 / (centres[1] - centres[0]) ** 2
    x = [weights["embedding.element.weight"][config.elements.index(z)] for z in numbers]
    for k in range(config.layers):
        sums = [np.zeros(config.channels) for _ in x]
        for (i, j), d in zip(pairs, distances, strict=True):
            w = two_layers(f"layers.{k}.filter", np.exp(-gamma * (d - centres) ** 2), ssp)
            w = w * 0.5 * (math.cos(math.pi * d / config.cutoff) + 1.0)
            sums[i] = sums[i] + (weights[f"layers.{k}.linear.weight"] @ x[j]) * w
        x = [a + two_layers(f"layers.{k}.update", m, ssp) for a, m in zip(x, sums, strict=True)]
    last = ssp if config.readout_activation == "shifted_softplus" else silu
    return np.array([two_layers("readout", a, last)[0] for a in x])


@pytest.mark.parametrize("options", [{}, {"readout_activation": "silu", "layers": 3}])
def test_equals_the_paper(options: dict[str, Any]) -> None:
    core = make_core(**options)
    with torch.no_grad():
        for parameter in core.parameters():  # far from an initialisation that hides errors
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch = AtomsBatch.from_atoms(structures())
    neighbors = neighbor_list(batch, core.cutoff)
    assert bool((neighbors.pairs[0] == neighbors.pairs[1]).any()), "no atom met its own image"
    found = Potential(core).evaluate(batch, neighbors, forces=False).energies
    expected = literal_energies(
        core, batch.numbers.tolist(), neighbors.pairs.t().tolist(), neighbors.distances.tolist()
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-11)


def test_states_are_features_where_asked() -> None:
    ion = molecule("CH3OH", info={"charge": 1, "spin": 2})
    batch = AtomsBatch.from_atoms([molecule("CH3OH"), ion])
    plain = Potential(make_core()).evaluate(batch, forces=False).energy
    assert abs(float(plain[0] - plain[1])) < 1e-12
    core = make_core(state_embedding=("charge", "unpaired_electrons"))
    assert core.conditions_on == ("charge", "multiplicity")
    seen = Potential(core).evaluate(batch, forces=False).energy
    assert abs(float(seen[0] - seen[1])) > 1e-6


def test_published_sizes() -> None:
    """As many parameters as PyTorch Geometric and SchNetPack have, their 100 elements included."""
    sizes = {
        116_033: {"channels": 64, "layers": 3, "radial_functions": 300, "cutoff": 30.0},
        455_809: {"channels": 128, "layers": 6, "radial_functions": 50, "cutoff": 10.0},
        424_448 + 8_321: {},
    }
    for parameters, options in sizes.items():
        core = build_core("schnet", {"elements": range(1, 101), **options})
        assert sum(p.numel() for p in core.parameters()) == parameters


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"channels": 1}, "channels must be at least 2"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"radial_functions": 1}, "at least 2 functions"),
        ({"cutoff": -1.0}, "positive length"),
        ({"elements": (0,)}, r"1\.\.118"),
        ({"readout_activation": "gelu"}, "unknown activation 'gelu'"),
        ({"state_embedding": ("partial_charges",)}, "state_embedding must be"),
    ],
)
def test_impossible_configurations(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_core(**options)
