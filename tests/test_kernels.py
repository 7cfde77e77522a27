"""The fast path gives what the readable network gives, to any derivative."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from nnpcalc.batch import AtomsBatch
from nnpcalc.models.tensornet import TensorNet, TensorNetConfig
from nnpcalc.potential import Potential
from nnpcalc.terms import ZBL

pytest.importorskip("numba")

from nnpcalc.kernels import forms, nodes
from nnpcalc.kernels.table import (
    TOLERANCES,
    Grid,
    hermite_slopes,
    hermite_weights,
    inference_tables,
    table_errors,
)
from nnpcalc.kernels.tensornet import FusedTensorNet

TABLE_ERROR = 1e-7  # of energies (eV) and forces (eV/Å) of order 1 with 2048 knots


def make_core(**options) -> TensorNet:
    torch.manual_seed(3)
    settings = {"channels": 8, "layers": 2, "radial_functions": 12, "cutoff": 4.5, **options}
    return TensorNet(TensorNetConfig(**settings)).to(torch.float64)


def make_batch() -> AtomsBatch:
    water, ion = molecule("H2O"), molecule("CH3CHO")
    ion.info["charge"] = -1
    return AtomsBatch.from_atoms([water, ion, molecule("NH3"), bulk("Si", "diamond", 5.43)])


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("equivariance", ["O(3)", "SO(3)"])
def test_fused_equals_eager(layers, equivariance):
    core = make_core(
        layers=layers,
        equivariance=equivariance,
        attributes=("charge", "unpaired_electrons"),
        attribute_weights=(0.1, 0.3),
    )
    batch = make_batch()
    eager = Potential(core, (ZBL(),)).evaluate(batch, stress=True)
    fused = Potential(FusedTensorNet(core, 2048), (ZBL(),)).evaluate(batch, stress=True)
    torch.testing.assert_close(fused.energy, eager.energy, rtol=0, atol=TABLE_ERROR)
    torch.testing.assert_close(fused.forces, eager.forces, rtol=0, atol=TABLE_ERROR)
    torch.testing.assert_close(fused.stress, eager.stress, rtol=0, atol=TABLE_ERROR, equal_nan=True)


def test_parameter_gradients_of_a_force_loss():
    core = make_core(learnable_attribute_weights=True, state_embedding=("charge",))
    batch = make_batch()
    gradients = []
    for network in (core, FusedTensorNet(core, 2048)):
        potential = Potential(network)
        from nnpcalc.neighbors import neighbor_list
        from nnpcalc.potential import inputs

        neighbors = neighbor_list(batch, core.cutoff)
        with forms.without(forms.PARAMETERS):
            out = potential(*inputs(batch, neighbors), compute_stress=False, create_graph=True)
        loss = (out["energy"] ** 2).sum() + 100.0 * (out["forces"] ** 2).sum()
        parameters = [p for p in core.parameters() if p.requires_grad]
        with forms.without(forms.GEOMETRY):
            gradients.append(torch.autograd.grad(loss, parameters))
    for one, other in zip(*gradients, strict=True):
        assert float(one.abs().max()) > 0.0
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6 * float(one.abs().max()) + 1e-9)


def test_hessian_equals_eager():
    core = make_core().requires_grad_(False)
    batch = AtomsBatch.from_atoms(molecule("CH3OH"))
    eager = Potential(core).hessian(batch)
    fused = Potential(FusedTensorNet(core, 4096).freeze()).hessian(batch)
    # Curvature of a cubic spline: third order in the grid step.
    torch.testing.assert_close(fused, eager, rtol=0, atol=2e-4)


def test_table_error_falls_with_the_fourth_power_of_the_step():
    core = make_core()
    distances = torch.rand(4000, dtype=torch.float64) * 4.0 + 0.4
    exact = core.layers[0].radial_functions(distances).flatten(1)
    errors = []
    for n_knots in (65, 129, 257):
        grid = Grid(core.cutoff, n_knots)
        table = grid.table(core.layers[0].radial_functions, distances)
        w, knot = hermite_weights(grid.places(distances), n_knots)
        rows = 2 * knot[:, None] + torch.arange(4)
        values = (w[:, :, None] * table[rows]).sum(1)
        errors.append(float((values - exact).detach().abs().max()))
    assert errors[0] / errors[1] > 10.0
    assert errors[1] / errors[2] > 10.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_many_knots_as_the_bound_needs(dtype):
    layer = make_core().layers[0]
    (table,) = inference_tables([layer], 4.5, dtype)
    n_knots = table.shape[0] // 2
    (half,) = inference_tables([layer], 4.5, torch.float64, n_knots // 2)
    (whole,) = inference_tables([layer], 4.5, torch.float64, n_knots)
    allowed = torch.tensor(TOLERANCES[dtype], dtype=torch.float64)
    few = table_errors(layer.radial_functions, half, Grid(4.5, n_knots // 2))
    enough = table_errors(layer.radial_functions, whole, Grid(4.5, n_knots))
    assert bool((enough <= allowed).all()) and not bool((few <= allowed).all())


def test_functions_too_steep_for_a_table_are_refused():
    layer = make_core().layers[0]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1e3)
    with pytest.raises(ValueError, match="too steep for tables"):
        inference_tables([layer], 4.5, torch.float64)


def test_spline_is_smooth_across_knots():
    grid = Grid(4.5, 9)
    table = grid.table(lambda d: d.sin()[:, None, None], torch.zeros(1, dtype=torch.float64))
    knot_4 = grid.distances(torch.tensor([4.0], dtype=torch.float64))
    for side in (-1e-9, 1e-9):
        d = (knot_4 + side).requires_grad_(True)
        w, knot = hermite_weights(grid.places(d), 9)
        assert int(knot) == (3 if side < 0.0 else 4)
        value = (w[:, :, None] * table[2 * knot[:, None] + torch.arange(4)]).sum()
        (slope,) = torch.autograd.grad(value, d)
        assert float(value.detach()) == pytest.approx(float(knot_4.sin()), abs=1e-8)
        assert float(slope) == pytest.approx(float(knot_4.cos()), abs=1e-7)


def test_places_run_from_the_first_knot_to_the_cutoff():
    grid = Grid(4.5, 33)
    knots = grid.distances(torch.arange(33, dtype=torch.float64))
    assert float(knots[0]) == 0.0 and float(knots[-1]) == pytest.approx(4.5, abs=1e-13)
    torch.testing.assert_close(grid.places(knots), torch.arange(33, dtype=torch.float64))
    steps = knots.diff()
    assert bool((steps.diff() > 0.0).all()), "finest where distances are short"


def test_slopes_of_the_weights_are_their_derivatives():
    grid = Grid(4.5, 17)
    d = torch.linspace(0.1, 4.4, 40, dtype=torch.float64, requires_grad=True)
    w, _ = hermite_weights(grid.places(d), 17)
    derivatives = [torch.autograd.grad(w[:, k].sum(), d, retain_graph=True)[0] for k in range(4)]
    slopes = hermite_slopes(grid.places(d), grid.per_angstrom(d), 17)
    torch.testing.assert_close(slopes, torch.stack(derivatives, 1))


def make_topology(n=3, p=7, knots=4) -> forms.Topology:
    rng = np.random.default_rng(0)
    i = np.sort(rng.integers(0, n, p))
    return forms.Topology(i, rng.integers(0, n, p), rng.integers(0, knots - 1, p), n, knots)


@pytest.mark.parametrize("form", [forms.MESSAGE, forms.EMBEDDING])
def test_every_partial_derivative_is_one(form):
    """Contracting the derivative by a tensor with that tensor gives the form itself."""
    torch.manual_seed(1)
    topology, f = make_topology(), 2
    shapes = {
        "w": (7, 4), "table": (8, 3 * f), "x": (3, 9, f), "g": (3, 9, f), "s": (2, 3, f),
        "angular": (7, 9),
    }  # fmt: skip
    tensors = [torch.randn(shapes[name], dtype=torch.float64) for name in form.names]
    values = []
    for k, name in enumerate(form.names):
        others = [None if n == k else t for n, t in enumerate(tensors)]
        values.append(float((forms.partial(form, name, topology, *others) * tensors[k]).sum()))
    np.testing.assert_allclose(values, values[0], rtol=1e-12)
    for t in tensors:
        t.requires_grad_(True)
    function = lambda *rest: forms.partial(form, "g", topology, *rest, None)  # noqa: E731
    assert torch.autograd.gradcheck(function, tuple(tensors[:-1]), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tuple(tensors[:-1]), fast_mode=True)


@pytest.mark.parametrize("name", ["ANTICOMMUTATOR", "DOUBLE_PRODUCT", "NORM", "PART_NORMS"])
def test_node_forms(name):
    torch.manual_seed(2)
    x, y = (torch.randn(2, 9, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    form = getattr(nodes, name)
    function = lambda a, b: nodes.apply(form, a, b)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, y), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, y), fast_mode=True)


def test_without_leaves_out_only_what_it_names():
    topology = make_topology()
    w = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    table = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 9, 2, dtype=torch.float64, requires_grad=True)
    out = forms.partial(forms.MESSAGE, "g", topology, w, table, x, None).sum()
    with forms.without(forms.PARAMETERS):
        found = torch.autograd.grad(out, (w, table, x), allow_unused=True)
    assert [g is None for g in found] == [False, True, False]


def test_numbers_do_not_depend_on_threads():
    core, batch = make_core(), make_batch()
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(Potential(FusedTensorNet(core)).evaluate(batch).forces)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
