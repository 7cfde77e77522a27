"""models/painn.py against a literal transcription of the paper, and its options."""

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
from nnpcalc.models.painn import PaiNN, PaiNNConfig
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential

SMALL = {"channels": 6, "layers": 2, "radial_functions": 5, "cutoff": 4.0, "elements": (1, 6, 8)}


def make_core(**options: Any) -> PaiNN:
    return PaiNN(PaiNNConfig(**{**SMALL, **options})).to(torch.float64)


def structures() -> list[Atoms]:
    """A molecule, a cell smaller than the cutoff and a lone atom."""
    crystal = bulk("C", "diamond", a=3.6)
    crystal.rattle(0.1, seed=2)
    return [molecule("CH3CHO"), crystal, Atoms("O")]


def literal_energies(core: PaiNN, numbers, pairs, vectors) -> np.ndarray:
    """Energies [N] of arXiv 2102.03150, one pair at a time."""
    config, f = core.config, core.config.channels
    weights = {name: p.detach().numpy() for name, p in core.named_parameters()}

    def dense(name, x):
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def two_layers(name, x):
        h = dense(f"{name}.0", x)
        return dense(f"{name}.2", h * 0.5 * (1.0 + np.tanh(0.5 * h)))  # SiLU

    def basis(d):
        n = config.radial_functions
        if config.radial_basis == "bessel":
            return np.sin(np.arange(1, n + 1) * math.pi * d / config.cutoff) / d
        centres = np.linspace(0.0, config.cutoff, n)
        return np.exp(-0.5 * ((d - centres) / centres[1]) ** 2)

    s = [weights["embedding.element.weight"][config.elements.index(z)] for z in numbers]
    v = [np.zeros((f, 3)) for _ in s]
    for k in range(config.layers):
        ds, dv = [np.zeros(f) for _ in s], [np.zeros((f, 3)) for _ in s]
        for (i, j), vector in zip(pairs, vectors, strict=True):
            d = float(np.linalg.norm(vector))
            cutoff = 0.5 * (math.cos(math.pi * d / config.cutoff) + 1.0)
            w = dense(f"messages.{k}.filter", basis(d)) * cutoff
            scalar, radial, passed = np.split(two_layers(f"messages.{k}.atoms", s[j]) * w, 3)
            ds[i] += scalar  # eq. 7
            dv[i] += passed[:, None] * v[j] + np.outer(radial, vector / d)  # eq. 8
        s = [a + b for a, b in zip(s, ds, strict=True)]
        v = [a + b for a, b in zip(v, dv, strict=True)]
        for i in range(len(s)):
            mixed = weights[f"updates.{k}.mix.weight"] @ v[i]
            left, right = mixed[:f], mixed[f:]
            norm = np.sqrt((left**2).sum(1) + config.norm_offset)
            ss, vv, sv = np.split(two_layers(f"updates.{k}.atoms", np.concatenate([s[i], norm])), 3)
            s[i] = s[i] + ss + sv * (left * right).sum(1)  # eq. 9
            v[i] = v[i] + vv[:, None] * right  # eq. 10
    return np.array([two_layers("readout", a)[0] for a in s])


@pytest.mark.parametrize(
    "options", [{}, {"radial_basis": "gaussian", "layers": 3, "norm_offset": 1e-8}]
)
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
        core, batch.numbers.tolist(), neighbors.pairs.t().tolist(), neighbors.vectors.numpy()
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-11)


def test_vectors_see_angles_that_scalars_do_not() -> None:
    """Two neighbours at the same distances, at another angle and too far to see each other."""

    def bent(angle: float) -> Atoms:
        turned = (3.0 * math.cos(angle), 3.0 * math.sin(angle), 0.0)
        return Atoms("OHH", [(0, 0, 0), (3.0, 0, 0), turned])

    batch = AtomsBatch.from_atoms([bent(2.0), bent(3.0)])
    assert neighbor_list(batch, 4.0).pairs.shape[1] == 8
    energy = Potential(make_core(layers=1)).evaluate(batch, forces=False).energy
    assert abs(float(energy[0] - energy[1])) > 1e-6


def test_states_are_features_where_asked() -> None:
    ion = molecule("CH3OH", info={"charge": 1, "spin": 2})
    batch = AtomsBatch.from_atoms([molecule("CH3OH"), ion])
    plain = Potential(make_core()).evaluate(batch, forces=False).energy
    assert abs(float(plain[0] - plain[1])) < 1e-12
    core = make_core(state_embedding=("charge", "unpaired_electrons"))
    assert core.conditions_on == ("charge", "multiplicity")
    seen = Potential(core).evaluate(batch, forces=False).energy
    assert abs(float(seen[0] - seen[1])) > 1e-6


def test_published_size() -> None:
    """As many parameters as SchNetPack has, its 100 elements included."""
    core = build_core("painn", {"elements": range(1, 101)})
    assert sum(p.numel() for p in core.parameters()) == 589_057


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"channels": 1}, "channels must be at least 2"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"radial_functions": 0}, "radial_functions must be at least 1"),
        ({"radial_functions": 1, "radial_basis": "gaussian"}, "at least 2 functions"),
        ({"radial_basis": "sinc"}, "radial_basis must be one of"),
        ({"norm_offset": 0.0}, "norm_offset must be above 0"),
        ({"cutoff": -1.0}, "positive length"),
        ({"elements": (6, 6)}, "twice"),
        ({"state_embedding": ("partial_charges",)}, "state_embedding must be"),
    ],
)
def test_impossible_configurations(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_core(**options)
