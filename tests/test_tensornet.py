"""models/tensornet.py against a literal transcription of the papers, and its attributes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.models import ARCHITECTURES, build_core
from nnpcalc.models.tensornet import (
    TensorNet,
    TensorNetConfig,
    from_matrix,
    multiply,
    part_norms,
    to_matrix,
)
from nnpcalc.neighbors import NeighborList, neighbor_list
from nnpcalc.potential import Potential
from nnpcalc.testing import tolerance

SMALL = {"channels": 6, "layers": 2, "radial_functions": 5, "cutoff": 4.0, "elements": (1, 6, 8)}


def make_core(**options: Any) -> TensorNet:
    return TensorNet(TensorNetConfig(**{**SMALL, **options})).to(torch.float64)


def structures() -> list[Atoms]:
    """A charged molecule, a radical, a cell smaller than the cutoff and a lone atom."""
    ion = molecule("CH3CO", info={"charge": -1})
    crystal = bulk("C", "diamond", a=3.6)
    crystal.rattle(0.1, seed=2)
    systems = [ion, molecule("CH3"), crystal, Atoms("O", info={"spin": 3})]
    for k, atoms in enumerate(systems):
        atoms.arrays["partial_charges"] = torch.linspace(-0.3, 0.2 + k, len(atoms)).numpy()
    return systems


# --- the papers, literally: 3 x 3 tensors, one pair at a time ------------------------------------


def _phi(d: float, cutoff: float) -> float:
    return 0.5 * (math.cos(math.pi * d / cutoff) + 1.0) if d < cutoff else 0.0


def _basis(d: float, config: TensorNetConfig) -> Tensor:
    k, cutoff = config.radial_functions, config.cutoff
    means = torch.linspace(math.exp(-cutoff), 1.0, k, dtype=torch.float64)
    beta = (2.0 / k * (1.0 - math.exp(-cutoff))) ** -2
    return _phi(d, cutoff) * torch.exp(-beta * (math.exp(-5.0 / cutoff * d) - means) ** 2)


def _skew(v: Tensor) -> Tensor:
    x, y, z = v
    zero = torch.zeros((), dtype=v.dtype)
    rows = [torch.stack([zero, -z, y]), torch.stack([z, zero, -x]), torch.stack([-y, x, zero])]
    return torch.stack(rows)


def _parts(t: Tensor) -> list[Tensor]:
    """[F, 3, 3] -> I Id, A, S."""
    trace = t.diagonal(dim1=1, dim2=2).sum(-1) / 3.0
    scalar = trace[:, None, None] * torch.eye(3, dtype=t.dtype)
    skew = 0.5 * (t - t.transpose(1, 2))
    return [scalar, skew, t - scalar - skew]


def _mix(parts: list[Tensor], weights: Tensor) -> list[Tensor]:
    return [torch.einsum("gf,fab->gab", w, part) for w, part in zip(weights, parts, strict=True)]


def _norm(t: Tensor) -> Tensor:
    return (t * t).sum((1, 2))


def literal_energies(core: TensorNet, batch: AtomsBatch, neighbors: NeighborList) -> Tensor:
    """Energies [N] of arXiv 2306.06482 with the prefactor of arXiv 2403.15073, by loops."""
    config, silu = core.config, torch.nn.functional.silu
    n, f = batch.n_atoms, config.channels
    identity = torch.eye(3, dtype=torch.float64)
    # an atom is its own neighbour at distance 0, without a direction
    edges = [(i, i, 0.0, torch.zeros(3, dtype=torch.float64)) for i in range(n)]
    for (i, j), vector in zip(neighbors.pairs.t().tolist(), neighbors.vectors, strict=True):
        d = float(vector.norm())
        edges.append((i, j, d, -vector / d))
    values = {
        "charge": batch.charge[batch.system].double(),
        "unpaired_electrons": batch.multiplicity[batch.system].double() - 1.0,
        "partial_charges": batch.partial_charges,
    }
    e = core.embedding
    x = torch.zeros(n, f, 3, 3, dtype=torch.float64)
    z = e.element.weight[[config.elements.index(k) for k in batch.numbers.tolist()]]
    for i, j, d, u in edges:
        pair = e.pair(torch.cat([z[i], z[j]]))
        weights = (_phi(d, config.cutoff) * e.radial(_basis(d, config))).reshape(3, f) * pair
        outer = torch.outer(u, u)
        shapes = [identity, _skew(u), outer - torch.trace(outer) / 3.0 * identity]
        for w, shape in zip(weights, shapes, strict=True):
            x[i] = x[i] + w[:, None, None] * shape
    embedded = []
    for t in x:
        h = e.norm(_norm(t))
        for linear in e.scalars:
            h = silu(linear(h))
        mixed = _mix(_parts(t), e.mix.weight)
        scaled = zip(h.reshape(3, f), mixed, strict=True)
        embedded.append(sum(s[:, None, None] * part for s, part in scaled))
    x = torch.stack(embedded)
    for layer in core.layers:
        lambdas = zip(config.attributes, layer.attribute_weights, strict=True)
        g = 1.0 + sum((w * values[name] for name, w in lambdas), torch.zeros(n))
        x = torch.stack([t / (_norm(t) + 1.0)[:, None, None] for t in x])
        y = [_mix(_parts(t), layer.mix_before.weight) for t in x]
        message = torch.zeros_like(x)
        for i, j, d, _ in edges:
            h = _basis(d, config)
            for linear in layer.radial:
                h = silu(linear(h))
            weights = _phi(d, config.cutoff) * h.reshape(3, f)
            weighted = zip(weights, y[j], strict=True)
            message[i] = message[i] + sum(w[:, None, None] * part for w, part in weighted)
        updated = []
        for i in range(n):
            node = sum(y[i])
            if config.equivariance == "O(3)":
                product = g[i] * (node @ message[i] + message[i] @ node)
            else:
                product = 2.0 * node @ message[i]
            product = product / (_norm(product) + 1.0)[:, None, None]
            delta = sum(_mix(_parts(product), layer.mix_after.weight))
            updated.append(x[i] + delta + g[i] * delta @ delta)
        x = torch.stack(updated)
    energies = []
    for t in x:
        h = silu(core.linear(core.norm(torch.cat([_norm(part) for part in _parts(t)]))))
        energies.append(core.output[1](silu(core.output[0](h)))[0])
    return torch.stack(energies)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": 0},
        {"layers": 3, "attributes": (), "attribute_weights": ()},
        {"equivariance": "SO(3)", "attributes": ("charge",), "attribute_weights": (0.8,)},
        {"attributes": ("unpaired_electrons",), "attribute_weights": (0.6,)},
        {
            # an order of its own: the attributes must not be mixed up
            "attributes": ("partial_charges", "charge", "unpaired_electrons"),
            "attribute_weights": (0.9, -0.4, 0.3),
        },
    ],
)
@torch.no_grad()
def test_equals_the_papers(options: dict[str, Any]) -> None:
    core = make_core(**options)
    for parameter in core.parameters():  # far from an initialisation that hides errors
        parameter.add_(0.3 * torch.randn_like(parameter))
    batch = AtomsBatch.from_atoms(structures())
    neighbors = neighbor_list(batch, core.cutoff)
    assert bool((neighbors.pairs[0] == neighbors.pairs[1]).any()), "no atom met its own image"
    found = Potential(core).evaluate(batch, neighbors, forces=False).energies
    expected = literal_energies(core, batch, neighbors)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


# --- attributes ----------------------------------------------------------------------------------


def energies(core: TensorNet, *systems: Atoms) -> Tensor:
    return Potential(core).evaluate(AtomsBatch.from_atoms(systems), forces=False).energy


def test_neutral_singlets_are_the_published_tensornet() -> None:
    attributes = ("charge", "unpaired_electrons")
    extended = make_core(attributes=attributes, attribute_weights=(0.7, 0.9))
    published = make_core(attributes=(), attribute_weights=())
    state = {k: v for k, v in extended.state_dict().items() if "attribute_weights" not in k}
    missing, unexpected = published.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("attribute_weights" in key for key in missing)
    systems = [molecule("CH3CHO"), bulk("C", "diamond", a=3.6)]
    assert torch.equal(energies(extended, *systems), energies(published, *systems))
    ion = molecule("CH3CHO", info={"charge": 1})
    assert not torch.equal(energies(extended, ion), energies(published, ion))


def test_no_layer_no_effect_of_any_attribute() -> None:
    core = make_core(layers=0, attribute_weights=(5.0,))
    assert core.conditions_on == ()
    charged = molecule("H2O", info={"charge": 2})
    neutral, ionised = energies(core, molecule("H2O"), charged).tolist()
    assert abs(neutral - ionised) < tolerance("batch", torch.float64)


def test_declared_conditions() -> None:
    attributes = ("partial_charges", "unpaired_electrons", "charge")
    core = make_core(attributes=attributes, attribute_weights=(0.1, 0.1, 0.1))
    assert core.conditions_on == ("partial_charges", "multiplicity", "charge")


@pytest.mark.parametrize("learnable", [True, False])
def test_attribute_weights_are_one_per_layer_and_trained_if_asked(learnable: bool) -> None:
    core = make_core(
        layers=3,
        attributes=("charge", "unpaired_electrons"),
        attribute_weights=(0.1, 0.2),
        learnable_attribute_weights=learnable,
    )
    weights = [layer.attribute_weights for layer in core.layers]
    assert len({id(w) for w in weights}) == 3
    radical = molecule("CH3", info={"charge": 0})
    batch = AtomsBatch.from_atoms([molecule("CH3O", info={"charge": 1}), radical])
    neighbors = neighbor_list(batch, core.cutoff)
    output = core(
        batch.numbers,
        neighbors.pairs,
        neighbors.vectors,
        neighbors.distances,
        batch.system,
        batch.charge.double(),
        batch.multiplicity.double(),
    )
    output["energies"].sum().backward()
    for w in weights:
        torch.testing.assert_close(w.detach(), torch.tensor([0.1, 0.2], dtype=torch.float64))
        assert w.requires_grad is learnable
        assert (w.grad is not None and bool((w.grad != 0.0).all())) is learnable


def test_charge_and_spin_act_independently() -> None:
    core = make_core(attributes=("charge", "unpaired_electrons"), attribute_weights=(0.5, 0.7))
    states = [(0, 1), (0, 3), (2, 1), (2, 3), (-2, 1)]
    systems = [molecule("CH3OH", info={"charge": q, "spin": m}) for q, m in states]
    found = energies(core, *systems)
    assert len(set(found.tolist())) == len(states)


def test_a_model_of_partial_charges_needs_them() -> None:
    core = make_core(attributes=("partial_charges",), attribute_weights=(1.0,))
    with pytest.raises(ValueError, match=r"atoms.arrays\['partial_charges'\]"):
        energies(core, molecule("H2O"))
    given = molecule("H2O")
    given.set_array("partial_charges", np.array([-0.8, 0.4, 0.4]))
    other = molecule("H2O")
    other.set_array("partial_charges", np.array([-0.7, 0.35, 0.35]))
    first, second = energies(core, given, other).tolist()
    assert first != second


# --- symmetry groups -----------------------------------------------------------------------------


def chiral() -> tuple[Atoms, Atoms]:
    one = molecule("CH3CH2OH")
    one.rattle(0.3, seed=4)
    other = one.copy()
    other.positions *= (1.0, 1.0, -1.0)
    return one, other


def test_o3_cannot_tell_mirror_images_apart_and_so3_can() -> None:
    symmetric = energies(make_core(), *chiral())
    handed = energies(make_core(equivariance="SO(3)"), *chiral())
    allowed = tolerance("rotation", torch.float64)
    assert abs(float(symmetric[0] - symmetric[1])) < allowed
    assert abs(float(handed[0] - handed[1])) > 100.0 * allowed


# --- the algebra of components -------------------------------------------------------------------


def test_components_and_matrices_are_the_same_thing() -> None:
    a, b = torch.randn(2, 4, 3, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(to_matrix(from_matrix(a)), a)
    x = torch.randn(4, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(from_matrix(to_matrix(x)), x)
    expected = torch.einsum("nabf,nbcf->nacf", a, b)
    torch.testing.assert_close(multiply(a, b), expected)
    torch.testing.assert_close(part_norms(from_matrix(a)).sum(1), (a * a).sum((1, 2)))


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"channels": 7}, "even number"),
        ({"channels": 0}, "even number"),
        ({"layers": -1}, "negative"),
        ({"radial_functions": 1}, "at least 2"),
        ({"cutoff": 0.0}, "positive length"),
        ({"cutoff": math.nan}, "positive length"),
        ({"elements": ()}, r"1\.\.118"),
        ({"elements": (0, 1)}, r"1\.\.118"),
        ({"elements": (6, 6)}, "twice"),
        ({"equivariance": "E(3)"}, "SO"),
        ({"attributes": ("spin",)}, "distinct"),
        ({"attributes": ("charge", "charge"), "attribute_weights": (1.0, 1.0)}, "distinct"),
        ({"state_embedding": ("partial_charges",)}, "state_embedding must be"),
        ({"attribute_weights": (0.1, 0.2)}, "as many attribute_weights"),
    ],
)
def test_impossible_configurations(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_core(**options)


def test_build_core() -> None:
    core = build_core("tensornet", {"channels": 4, "elements": [1, 8], "layers": 1})
    assert isinstance(core, ARCHITECTURES["tensornet"])
    assert core.elements == (1, 8)
    with pytest.raises(ValueError, match=r"'chanels'.*channels"):
        build_core("tensornet", {"chanels": 4})
    with pytest.raises(ValueError, match=r"unknown architecture 'tensornet3'.*tensornet"):
        build_core("tensornet3", {})
