"""DimeNet++ against PyTorch Geometric 2.8.1: the same random weights, energies and forces.

Run where it is installed: ``python -m pytest -m oracle tests/test_oracle_dimenetpp.py``.

Its neighbour list and its triplets need further packages; here they are found by loops. It keeps
the roots of the spherical Bessel functions in float32; here they are exact. It divides the angular
functions by the distance once more, so the option for that is compared, not the default.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.models.dimenetpp import DimeNetPP, DimeNetPPConfig
from nnpcalc.potential import Potential

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]
dimenet: Any = pytest.importorskip("torch_geometric.nn.models.dimenet")

TOLERANCE = 1e-8  # eV and eV/Å
CUTOFF, ELEMENTS = 4.0, (1, 6, 8, 14, 16)


def exact_roots(n: int, k: int) -> np.ndarray:
    """Roots of j_0 .. j_{n-1} in float64, between those of the order below."""
    optimize = pytest.importorskip("scipy.optimize")
    special = pytest.importorskip("scipy.special")
    points = np.arange(1, k + n) * np.pi
    rows = [points[:k]]
    for order in range(1, n):
        points = np.array([
            optimize.brentq(lambda x, o=order: special.spherical_jn(o, x), a, b, xtol=1e-15)
            for a, b in pairwise(points)
        ])  # fmt: skip
        rows.append(points[:k])
    return np.array(rows)


def radius_graph(positions: Tensor, r: float, **_: Any) -> Tensor:
    distances = (positions[:, None] - positions[None]).detach().norm(dim=-1)
    return ((distances < r) & (distances > 0.0)).nonzero().t().flip(0)  # senders, receivers


def triplets(edge_index: Tensor, num_nodes: int) -> tuple[Tensor, ...]:
    edges = edge_index.t().tolist()
    found = [
        (i, j, k, kj, ji)
        for (ji, (j, i)), (kj, (k, end)) in product(enumerate(edges), enumerate(edges))
        if end == j and k != i
    ]
    columns = torch.tensor(found, dtype=torch.int64).reshape(-1, 5).t()
    return edge_index[1], edge_index[0], *columns


def renamed(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Parameters of PyTorch Geometric's DimeNet++ by the names of ours."""
    blocks = {
        "lin_rbf1": "radial.0", "lin_rbf2": "radial.1", "lin_sbf1": "angular.0",
        "lin_sbf2": "angular.1", "lin_ji": "ji.0", "lin_kj": "kj.0", "lin_down": "down.0",
        "lin_up": "up.0", "lin": "skip.0", "layers_before_skip.0.lin1": "before.0.layers.0",
        "layers_before_skip.0.lin2": "before.0.layers.2",
        "layers_after_skip.0.lin1": "after.0.layers.0",
        "layers_after_skip.0.lin2": "after.0.layers.2",
        "layers_after_skip.1.lin1": "after.1.layers.0",
        "layers_after_skip.1.lin2": "after.1.layers.2",
    }  # fmt: skip
    outputs = {"lin_rbf": "radial", "lin_up": "up", "lin": "last"}
    outputs |= {f"lins.{k}": f"hidden.{2 * k}" for k in range(3)}
    names = {
        "rbf.freq": "frequencies", "emb.emb.weight": "embedding.atoms.element.weight",
        "emb.lin_rbf.weight": "embedding.radial.0.weight",
        "emb.lin_rbf.bias": "embedding.radial.0.bias",
        "emb.lin.weight": "embedding.pair.0.weight", "emb.lin.bias": "embedding.pair.0.bias",
    }  # fmt: skip
    for kind, (theirs, ours) in product(("weight", "bias"), blocks.items()):
        names |= {f"interaction_blocks.{n}.{theirs}.{kind}": f"layers.{n}.{ours}.{kind}"
                  for n in range(layers)}  # fmt: skip
    for kind, (theirs, ours) in product(("weight", "bias"), outputs.items()):
        for n in range(layers + 1):
            block = "first_output" if n == 0 else f"outputs.{n - 1}"
            names[f"output_blocks.{n}.{theirs}.{kind}"] = f"{block}.{ours}.{kind}"
    return {names[name]: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("angular", "radial", "layers", "sizes"),
    [(4, 3, 2, (12, 6, 3, 8)), (7, 6, 4, (128, 64, 8, 256))],
)
def test_pytorch_geometric(
    angular: int, radial: int, layers: int, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_geometric.nn.models import dimenet_utils

    monkeypatch.setattr(dimenet_utils, "Jn_zeros", exact_roots)
    monkeypatch.setattr(dimenet, "radius_graph", radius_graph)
    monkeypatch.setattr(dimenet, "triplets", triplets)
    f, t, b, o = sizes
    theirs = dimenet.DimeNetPlusPlus(
        f, 1, layers, t, b, o, angular, radial, CUTOFF, output_initializer="glorot_orthogonal"
    ).double()
    with torch.no_grad():
        theirs.rbf.freq.copy_(torch.arange(1, radial + 1, dtype=torch.float64) * np.pi)
        for parameter in theirs.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    core = DimeNetPP(
        DimeNetPPConfig(f, layers, radial, angular, CUTOFF, ELEMENTS, b, t, o, "published")
    ).double()
    state = renamed(theirs.state_dict(), layers)
    rows = state["embedding.atoms.element.weight"][list(ELEMENTS)]
    core.load_state_dict({**state, "embedding.atoms.element.weight": rows})
    if angular == 7:
        assert sum(p.numel() for p in theirs.parameters()) == 1_885_830
    worst = np.zeros(3)
    for k, name in enumerate(("H2O", "CH3CHO", "C6H6", "SO2", "CH3SiH3", "OH")):
        atoms = molecule(name)
        atoms.rattle(0.05, seed=k)
        batch = AtomsBatch.from_atoms(atoms)
        results = Potential(core).evaluate(batch)
        assert results.forces is not None
        positions = batch.positions.clone().requires_grad_(True)
        energy = theirs(batch.numbers, positions)
        (gradient,) = torch.autograd.grad(energy.sum(), positions)
        found = [
            float((results.energy - energy.detach()).abs()),
            float((results.forces + gradient).abs().max()),
            float(gradient.abs().max()),
        ]
        assert found[2] > 1e-3, "these weights give no forces"
        assert max(found[:2]) < TOLERANCE, f"{name}: {found}"
        worst = np.maximum(worst, found)
    print(f"\nDimeNet++ {sizes}: max |dE| {worst[0]:.1e} eV, max |dF| {worst[1]:.1e} eV/Å of "
          f"max |F| {worst[2]:.1f} eV/Å")  # fmt: skip
