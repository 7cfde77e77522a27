"""SchNet and PaiNN on the fast path give what the readable networks give, to any derivative."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from torch import nn

from nnpcalc.batch import AtomsBatch
from nnpcalc.models import build_core
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import Potential, inputs

pytest.importorskip("numba")

from nnpcalc.kernels import filters, forms
from nnpcalc.kernels.painn import FusedPaiNN
from nnpcalc.kernels.schnet import FusedSchNet

FUSED: dict[str, Any] = {"schnet": FusedSchNet, "painn": FusedPaiNN}
TABLE_ERROR = 1e-7  # with 2048 knots, of the size of energies (eV) and forces (eV/Å)


def make_core(architecture: str, **options: Any) -> nn.Module:
    torch.manual_seed(3)
    settings = {"channels": 8, "layers": 3, "radial_functions": 12, "cutoff": 4.5}
    elements = (1, 6, 7, 8, 14)
    states = ("charge", "unpaired_electrons")
    settings |= {"elements": elements, "state_embedding": states}
    return build_core(architecture, {**settings, **options}).to(torch.float64)


def make_batch() -> AtomsBatch:
    ion, crystal = molecule("CH3CHO", info={"charge": -1}), bulk("Si", "diamond", 5.43)
    crystal.rattle(0.1, seed=1)
    return AtomsBatch.from_atoms([molecule("H2O"), ion, molecule("NH3"), crystal])


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("schnet", {}), ("painn", {}), ("painn", {"radial_basis": "gaussian", "layers": 1})],
)
def test_fused_equals_eager(architecture: str, options: dict[str, Any]) -> None:
    core, batch = make_core(architecture, **options), make_batch()
    eager = Potential(core).evaluate(batch, stress=True)
    for fused in (FUSED[architecture](core, 2048), FUSED[architecture](core, 2048).freeze()):
        found = Potential(fused).evaluate(batch, stress=True)
        for name in ("energy", "forces", "stress"):
            expected = getattr(eager, name)
            allowed = TABLE_ERROR * max(1.0, float(expected.nan_to_num().abs().max()))
            torch.testing.assert_close(
                getattr(found, name), expected, rtol=0, atol=allowed, equal_nan=True
            )


@pytest.mark.parametrize("architecture", sorted(FUSED))
def test_parameter_gradients_of_a_force_loss(architecture: str) -> None:
    core, batch = make_core(architecture), make_batch()
    gradients = []
    for network in (core, FUSED[architecture](core, 2048)):
        arguments = inputs(batch, neighbor_list(batch, network.cutoff))
        with forms.without(forms.PARAMETERS):
            out = Potential(network)(*arguments, compute_stress=False, create_graph=True)
        loss = (out["energy"] ** 2).sum() + 100.0 * (out["forces"] ** 2).sum()
        with forms.without(forms.GEOMETRY):
            gradients.append(torch.autograd.grad(loss, list(core.parameters()), allow_unused=True))
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            scale = float(one.abs().max())
            torch.testing.assert_close(other, one, rtol=0, atol=1e-6 * scale + 1e-9)


@pytest.mark.parametrize("architecture", sorted(FUSED))
def test_hessian_equals_eager(architecture: str) -> None:
    core = make_core(architecture).requires_grad_(False)
    batch = AtomsBatch.from_atoms(molecule("CH3OH"))
    eager = Potential(core).hessian(batch)
    fused = Potential(FUSED[architecture](core, 4096).freeze()).hessian(batch)
    # Curvature of a cubic spline: third order in the grid step.
    torch.testing.assert_close(fused, eager, rtol=0, atol=2e-4)


def test_many_radial_functions_get_more_knots() -> None:
    core = make_core("schnet", radial_functions=60)
    fused = FusedSchNet(core)
    assert fused.n_knots == 24 * 60
    batch = make_batch()
    found = Potential(fused).evaluate(batch).forces
    torch.testing.assert_close(found, Potential(core).evaluate(batch).forces, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "components"), [(filters.FILTER, 1), (filters.FILTER, 3), (filters.DIRECTION, 3)]
)
def test_every_partial_derivative_is_one(form: forms.Form, components: int) -> None:
    """Contracting the derivative by a tensor with that tensor gives the form itself."""
    torch.manual_seed(1)
    n, p, knots, f = 3, 7, 4, 2
    rng = np.random.default_rng(0)
    i = np.sort(rng.integers(0, n, p))
    topology = forms.Topology(i, rng.integers(0, n, p), rng.integers(0, knots - 1, p), n, knots)
    x = (n, components, f) if form is filters.FILTER else (n, f)
    shapes = {
        "w": (p, 4), "table": (2 * knots, f), "x": x, "angular": (p, 3), "g": (n, components, f)
    }  # fmt: skip
    tensors = [torch.randn(shapes[name], dtype=torch.float64) for name in form.names]
    values = []
    for k, name in enumerate(form.names):
        others = [None if m == k else t for m, t in enumerate(tensors)]
        values.append(float((forms.partial(form, name, topology, *others) * tensors[k]).sum()))
    np.testing.assert_allclose(values, values[0], rtol=1e-12)
    for t in tensors:
        t.requires_grad_(True)
    function = lambda *rest: forms.partial(form, "g", topology, *rest, None)  # noqa: E731
    assert torch.autograd.gradcheck(function, tuple(tensors[:-1]), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tuple(tensors[:-1]), fast_mode=True)
