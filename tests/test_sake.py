"""models/sake.py against a literal transcription of its equations, and its options."""

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
from nnpcalc.models.sake import SAKE, SAKEConfig
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential

SMALL = {
    "channels": 5, "layers": 3, "radial_functions": 4, "cutoff": 4.0, "elements": (1, 6, 8),
    "heads": 2,
}  # fmt: skip


def make_core(**options: Any) -> SAKE:
    return SAKE(SAKEConfig(**{**SMALL, **options})).to(torch.float64)


def structures() -> list[Atoms]:
    """A molecule, a cell smaller than the cutoff and a lone atom."""
    crystal = bulk("C", "diamond", a=3.6)
    crystal.rattle(0.1, seed=2)
    return [molecule("CH3CHO"), crystal, Atoms("O")]


def literal_energies(core: SAKE, numbers, pairs, vectors) -> np.ndarray:
    """Energies [N] of one system, one pair at a time; atoms are moved, not vectors."""
    config, n, f = core.config, len(numbers), core.config.channels
    weights = {name: p.detach().numpy() for name, p in core.named_parameters()}
    neighbours = [[p for p, (i, _) in enumerate(pairs) if i == k] for k in range(n)]
    smooth = config.normalisation == "smooth"

    def dense(name, x):
        return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0.0)

    def sigmoid(x):
        return 0.5 * (1.0 + np.tanh(0.5 * x))

    def silu(x):
        return x * sigmoid(x)

    def celu(x):
        return np.where(x > 0.0, x, 2.0 * np.expm1(np.minimum(x, 0.0) / 2.0))

    def two_layers(name, x, last=lambda x: x):
        return last(dense(f"{name}.2", silu(dense(f"{name}.0", x))))

    def phi(p):
        x = math.pi * float(np.linalg.norm(vectors[p])) / config.cutoff
        return 0.5 * (math.cos(x) + 1.0) if smooth else 1.0

    h = [weights["embedding.element.weight"][config.elements.index(z)] for z in numbers]
    moved, v = np.zeros((n, 3)), np.zeros((n, 3))
    for k in range(config.layers):
        name = f"layers.{k}"
        e, u = [], []
        for p, (i, j) in enumerate(pairs):
            r = vectors[p] + moved[j] - moved[i]
            d = math.sqrt(r @ r + 1e-5)
            u.append(r / (d + 1e-5))
            both = np.concatenate([h[j], h[i]])
            gaps = math.exp(-5.0 / config.cutoff * d) - weights[f"{name}.edge.means"]
            basis = np.exp(-weights[f"{name}.edge.betas"] * gaps**2)
            inside = [both, basis * dense(f"{name}.edge.filter", both), [d]]
            e.append(two_layers(f"{name}.edge.out", np.concatenate(inside)))
        new, c = [], []
        for i in range(n):
            scores = {p: np.exp(celu(dense(f"{name}.score.0", e[p]))) for p in neighbours[i]}
            total = (1.0 if smooth else 0.0) + sum(phi(p) * scores[p] for p in neighbours[i])
            count = 1.0 + sum(phi(p) for p in neighbours[i]) if smooth else n
            heads, mean = np.zeros(f * config.heads), np.zeros((f * config.heads, 3))
            for p in neighbours[i]:
                g = np.outer(e[p], phi(p) * scores[p] / total).reshape(-1)
                heads += g
                mean += np.outer(np.tanh(dense(f"{name}.coefficients.0", g)), u[p]) / count
            spatial = two_layers(f"{name}.spatial", (mean**2).sum(1), silu)
            inside = np.concatenate([h[i], heads, spatial])
            new.append(h[i] + two_layers(f"{name}.node", inside, silu))
            c.append(mean)
        h = new
        if f"{name}.direction.weight" in weights:
            for i in range(n):
                scale = dense(f"{name}.damping.2", silu(dense(f"{name}.damping.0", h[i])))
                v[i] = 2.0 * sigmoid(scale) * v[i] + weights[f"{name}.direction.weight"][0] @ c[i]
            moved = moved + v
    return np.array([two_layers("readout", a)[0] for a in h])


@pytest.mark.parametrize(
    "options",
    [{}, {"moving_layers": 2}, {"moving_layers": 0}, {"normalisation": "published", "heads": 3}],
)
def test_equals_the_equations(options: dict[str, Any]) -> None:
    core = make_core(**options)
    with torch.no_grad():
        for parameter in core.parameters():  # far from an initialisation that hides errors
            parameter.add_(0.2 * torch.randn_like(parameter))
    for atoms in structures():
        batch = AtomsBatch.from_atoms(atoms)
        neighbors = neighbor_list(batch, core.cutoff if not atoms.pbc.any() else 2.8)
        found = Potential(core).evaluate(batch, neighbors, forces=False).energies
        if not len(neighbors.distances) and not core.smooth:
            continue
        expected = literal_energies(
            core, batch.numbers.tolist(), neighbors.pairs.t().tolist(), neighbors.vectors.numpy()
        )
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-11)


def test_only_layers_before_the_last_move_atoms() -> None:
    for moving, expected in [(0, []), (1, []), (2, [1]), (3, [0, 1]), (9, [0, 1])]:
        core = make_core(moving_layers=moving)
        assert [k for k, layer in enumerate(core.layers) if layer.moves] == expected


def test_large_scores_do_not_overflow() -> None:
    core = make_core()
    with torch.no_grad():
        for layer in core.layers:
            layer.score[0].bias.fill_(2000.0)
    results = Potential(core).evaluate(AtomsBatch.from_atoms(molecule("CH3CHO")))
    assert results.energy.isfinite().all() and results.forces.isfinite().all()


def test_published_normalisation_jumps_and_smooth_does_not() -> None:
    """Why "smooth" is the default."""

    def jump(**options: Any) -> float:
        pair = [Atoms("CO", [(0, 0, 0), (d, 0, 0)]) for d in (3.999999, 4.000001)]
        energy = Potential(make_core(**options)).evaluate(AtomsBatch.from_atoms(pair)).energy
        return abs(float(energy[0] - energy[1]))

    assert jump() < 1e-9
    assert jump(normalisation="published") > 1e-4


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
    """The authors' program has 852,213 parameters with 10 elements and all layers moving.

    Besides these: a bias of the embedding, `log_gamma` (unused) and the last layer's motion,
    which has no effect. Not there: a damping of the first layer's motion, of zero velocities.
    """
    core = build_core("sake", {"elements": range(1, 11), "moving_layers": 6})
    damping = 64 * 64 + 64 + 64
    theirs = 852_213 - 64 - 6 * 4 - (256 + damping) + damping
    assert sum(p.numel() for p in core.parameters()) == theirs


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"heads": 0}, "heads must be at least 1"),
        ({"radial_functions": 1}, "radial_functions must be at least 2"),
        ({"moving_layers": -1}, "moving_layers must not be negative"),
        ({"normalisation": "softmax"}, "normalisation must be one of"),
        ({"cutoff": 0.0}, "positive length"),
        ({"state_embedding": ("partial_charges",)}, "state_embedding must be"),
    ],
)
def test_impossible_configurations(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_core(**options)
