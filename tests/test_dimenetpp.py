"""models/dimenetpp.py against a literal transcription of the papers, and its options."""

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
from nnpcalc.models.dimenetpp import DimeNetPP, DimeNetPPConfig
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential

SMALL = {
    "channels": 6, "layers": 2, "radial_functions": 3, "angular_functions": 4, "cutoff": 4.0,
    "elements": (1, 6, 8), "basis_channels": 3, "triplet_channels": 5, "output_channels": 7,
}  # fmt: skip


def make_core(**options: Any) -> DimeNetPP:
    return DimeNetPP(DimeNetPPConfig(**{**SMALL, **options})).to(torch.float64)


def structures() -> list[Atoms]:
    """A molecule, a cell smaller than the cutoff, a pair without triplets and a lone atom."""
    crystal = bulk("C", "diamond", a=3.6)
    crystal.rattle(0.1, seed=2)
    return [molecule("H2CO"), crystal, Atoms("OH", [(0, 0, 0), (1.0, 0.2, 0)]), Atoms("O")]


def literal_energies(core: DimeNetPP, numbers, pairs, vectors) -> np.ndarray:
    """Energies [N] of arXiv 2003.03123 and 2011.14115, one triplet at a time."""
    special = pytest.importorskip("scipy.special")
    config = core.config
    weights = {name: p.detach().numpy() for name, p in core.named_parameters()}
    lengths = [float(np.linalg.norm(v)) for v in vectors]

    def dense(name, x):
        return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0.0)

    def swish(x):
        return x * 0.5 * (1.0 + np.tanh(0.5 * x))

    def residual(name, x):
        return x + swish(dense(f"{name}.2", swish(dense(f"{name}.0", x))))

    def envelope(x):
        return 1.0 - 28.0 * x**6 + 48.0 * x**7 - 21.0 * x**8  # eq. 8

    def rbf(d):
        x = d / config.cutoff
        return envelope(x) * np.sin(weights["frequencies"] * x) / x  # eq. 7

    def sbf(kj, ji):  # eq. 6
        d, x = lengths[kj], lengths[kj] / config.cutoff
        angle = math.acos(np.dot(vectors[kj], vectors[ji]) / (d * lengths[ji]))
        values = []
        for order in range(config.angular_functions):
            harmonic = math.sqrt((2 * order + 1) / (4.0 * math.pi))
            harmonic *= special.eval_legendre(order, math.cos(angle))
            for z in roots(order, config.radial_functions):
                norm = math.sqrt(2.0) / abs(special.spherical_jn(order + 1, z))
                values.append(norm * special.spherical_jn(order, z * x) * harmonic)
        u = envelope(x) / x if config.angular_envelope == "published" else envelope(x)
        return u * np.array(values)

    def roots(order, n):
        x = np.linspace(0.5, 40.0, 20000)
        y = special.spherical_jn(order, x)
        found = []
        for k in np.flatnonzero(y[1:] * y[:-1] < 0.0)[:n]:
            z = x[k]
            for _ in range(20):  # Newton
                slope = special.spherical_jn(order, z, derivative=True)
                z -= special.spherical_jn(order, z) / slope
            found.append(z)
        return found

    def output(name, messages):
        sums = [np.zeros(config.channels) for _ in numbers]
        for p, (i, _) in enumerate(pairs):
            sums[i] = sums[i] + dense(f"{name}.radial", rbf(lengths[p])) * messages[p]
        energies = []
        for x in sums:
            x = dense(f"{name}.up", x)
            for k in (0, 2, 4):
                x = swish(dense(f"{name}.hidden.{k}", x))
            energies.append(dense(f"{name}.last", x)[0])
        return np.array(energies)

    h = [weights["embedding.atoms.element.weight"][config.elements.index(z)] for z in numbers]
    m = []
    for (i, j), d in zip(pairs, lengths, strict=True):  # eq. 9
        e = swish(dense("embedding.radial.0", rbf(d)))
        m.append(swish(dense("embedding.pair.0", np.concatenate([h[i], h[j], e]))))
    energies = output("first_output", m)
    for n in range(config.layers):
        name, new = f"layers.{n}", []
        for ji, (i, j) in enumerate(pairs):
            total = np.zeros(config.triplet_channels)
            for kj, (start, k) in enumerate(pairs):
                back = k == i and np.linalg.norm(vectors[ji] + vectors[kj]) < 1e-6
                if start != j or back:
                    continue
                radial = dense(f"{name}.radial.1", dense(f"{name}.radial.0", rbf(lengths[kj])))
                angular = dense(f"{name}.angular.1", dense(f"{name}.angular.0", sbf(kj, ji)))
                x = swish(dense(f"{name}.kj.0", m[kj])) * radial
                total = total + swish(dense(f"{name}.down.0", x)) * angular
            x = swish(dense(f"{name}.ji.0", m[ji])) + swish(dense(f"{name}.up.0", total))
            x = residual(f"{name}.before.0.layers", x)
            x = swish(dense(f"{name}.skip.0", x)) + m[ji]
            for k in range(2):
                x = residual(f"{name}.after.{k}.layers", x)
            new.append(x)
        m = new
        energies = energies + output(f"outputs.{n}", m)
    return energies


@pytest.mark.parametrize("envelope", ["smooth", "published"])
def test_equals_the_papers(envelope: str) -> None:
    core = make_core(angular_envelope=envelope)
    with torch.no_grad():
        for parameter in core.parameters():  # far from an initialisation that hides errors
            parameter.add_(0.1 * torch.randn_like(parameter))
    for atoms in structures():
        batch = AtomsBatch.from_atoms(atoms)
        neighbors = neighbor_list(batch, core.cutoff if not atoms.pbc.any() else 2.4)
        found = Potential(core).evaluate(batch, neighbors, forces=False).energies
        expected = literal_energies(
            core, batch.numbers.tolist(), neighbors.pairs.t().tolist(), neighbors.vectors.numpy()
        )
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-10)


def test_the_order_of_pairs_does_not_matter() -> None:
    core, batch = make_core(), AtomsBatch.from_atoms(molecule("CH3CHO"))
    n = neighbor_list(batch, core.cutoff)
    arguments = (batch.system, batch.charge.double(), batch.multiplicity.double())
    expected = core(batch.numbers, n.pairs, n.vectors, n.distances, *arguments)["energies"]
    order = torch.randperm(n.pairs.shape[1])
    shuffled = (n.pairs[:, order], n.vectors[order], n.distances[order])
    found = core(batch.numbers, *shuffled, *arguments)["energies"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


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
    """As many parameters as PyTorch Geometric has, its 95 elements included."""
    core = build_core("dimenetpp", {"elements": range(1, 96)})
    assert sum(p.numel() for p in core.parameters()) == 1_885_830


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"triplet_channels": 0}, "triplet_channels must be at least 1"),
        ({"angular_functions": 13}, "1 to 12 angular"),
        ({"angular_envelope": "none"}, "angular_envelope must be one of"),
        ({"cutoff": 0.0}, "positive length"),
        ({"state_embedding": ("partial_charges",)}, "state_embedding must be"),
    ],
)
def test_impossible_configurations(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_core(**options)
