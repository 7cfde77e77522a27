"""Charge and spin as features: against the published equations, and what follows from them."""

from __future__ import annotations

import numpy as np
import torch
from ase.build import molecule

from nnpcalc.batch import AtomsBatch
from nnpcalc.kernels.tensornet import FusedTensorNet
from nnpcalc.layers import StateEmbedding
from nnpcalc.models.tensornet import TensorNet, TensorNetConfig
from nnpcalc.potential import Potential


def make_core(*names: str) -> TensorNet:
    torch.manual_seed(3)
    return TensorNet(
        TensorNetConfig(
            channels=6, layers=2, radial_functions=8, elements=(1, 6, 7, 8), attributes=(),
            attribute_weights=(), state_embedding=names,
        )
    ).to(torch.float64)  # fmt: skip


def energies(core, *systems):
    return Potential(core).evaluate(AtomsBatch.from_atoms(list(systems)), forces=False).energy


def test_equals_the_published_equations():
    torch.manual_seed(1)
    layer = StateEmbedding(5).double()
    z = torch.randn(7, 5, dtype=torch.float64)
    system = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    psi = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    found = layer(z, psi, system).detach().numpy()
    weights = {name: p.detach().numpy() for name, p in layer.named_parameters()}

    def silu(x):
        return x / (1.0 + np.exp(-x))

    for k in range(3):
        members = np.flatnonzero(system.numpy() == k)
        sign = int(psi[k] < 0)
        scores = np.array([
            np.log1p(np.exp(weights["query.weight"] @ z[i].numpy() @ weights["key"][sign] / 5**0.5))
            for i in members
        ])  # fmt: skip
        for i, share in zip(members, scores / scores.sum(), strict=True):
            x = abs(float(psi[k])) * share * weights["value"][sign]
            h = weights["residual.0.weight"] @ silu(x)
            h = weights["residual.1.weight"] @ silu(h)
            np.testing.assert_allclose(found[i], x + h, atol=1e-13)


def test_neutral_singlets_do_not_see_it():
    core = make_core("charge", "unpaired_electrons")
    plain = make_core()
    state = {k: v for k, v in core.state_dict().items() if "embedding.state" not in k}
    plain.load_state_dict(state)
    systems = [molecule("CH3OH"), molecule("H2O")]
    assert torch.equal(energies(core, *systems), energies(plain, *systems))
    assert core.conditions_on == ("charge", "multiplicity")


def test_every_state_differs():
    core = make_core("charge", "unpaired_electrons")
    states = [(q, m) for q in (-2, 0, 2) for m in (1, 3)] + [(-1, 2), (1, 2), (1, 4)]
    systems = [molecule("CH3OH", info={"charge": q, "spin": m}) for q, m in states]
    found = energies(core, *systems).tolist()
    assert len({round(e, 9) for e in found}) == len(states)


def test_fused_equals_eager_and_reaches_the_parameters():
    core = make_core("charge", "unpaired_electrons")
    ion, radical = molecule("CH3OH", info={"charge": -1}), molecule("CH3")
    ion.info["spin"] = 2
    batch = AtomsBatch.from_atoms([ion, radical, molecule("H2O")])
    eager = Potential(core).evaluate(batch)
    fused = Potential(FusedTensorNet(core, 2048)).evaluate(batch)
    torch.testing.assert_close(fused.energy, eager.energy, rtol=0, atol=1e-8)
    torch.testing.assert_close(fused.forces, eager.forces, rtol=0, atol=1e-8)
