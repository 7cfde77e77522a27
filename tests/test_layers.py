"""nnpcalc.layers: the pieces that architectures share, against their formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from nnpcalc.layers import (
    AtomEmbedding,
    BesselBasis,
    ExpNormalBasis,
    GaussianBasis,
    SphericalBesselBasis,
    check_activation,
    check_sizes,
    check_system,
    conditions,
    element_table,
    legendre,
    mlp,
    pair_sum,
    shifted_softplus,
    state_columns,
)
from nnpcalc.layers.spherical import bessel_roots, spherical_bessel

DISTANCES = torch.tensor([0.4, 1.0, 2.5, 4.999], dtype=torch.float64)


def test_gaussian_basis() -> None:
    found = GaussianBasis(11, 5.0)(DISTANCES)
    for row, d in zip(found, DISTANCES.tolist(), strict=True):
        expected = [math.exp(-((d - 0.5 * k) ** 2) / (2.0 * 0.5**2)) for k in range(11)]
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64))


def test_bessel_basis() -> None:
    found = BesselBasis(4, 5.0)(DISTANCES)
    for row, d in zip(found, DISTANCES.tolist(), strict=True):
        expected = [math.sin(k * math.pi * d / 5.0) / d for k in (1, 2, 3, 4)]
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("basis", [GaussianBasis, BesselBasis, ExpNormalBasis])
def test_bases_are_not_rounded_by_a_model_in_float32(basis) -> None:
    exact = basis(7, 4.7)(DISTANCES)
    cast = basis(7, 4.7).to(torch.float32).to(torch.float64)(DISTANCES)
    assert torch.equal(cast, exact)
    assert basis(7, 4.7)(DISTANCES.float()).dtype == torch.float32
    assert list(basis(7, 4.7).state_dict()) == []


@pytest.mark.parametrize(
    ("basis", "size"), [(GaussianBasis, 1), (BesselBasis, 0), (ExpNormalBasis, 1)]
)
def test_bases_need_functions(basis, size) -> None:
    with pytest.raises(ValueError, match="a radial basis needs at least"):
        basis(size, 5.0)


def test_shifted_softplus_and_its_derivatives() -> None:
    x = torch.tensor([-900.0, -30.0, -1.0, 0.0, 3.0, 21.0, 900.0], dtype=torch.float64)
    expected = np.logaddexp(x.numpy() - math.log(2.0), -math.log(2.0))
    np.testing.assert_allclose(shifted_softplus(x).numpy(), expected, rtol=0, atol=1e-13)
    x.requires_grad_(True)
    (slope,) = torch.autograd.grad(shifted_softplus(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    sigmoid = 1.0 / (1.0 + np.exp(-np.clip(x.detach().numpy(), -700, 700)))
    np.testing.assert_allclose(slope.detach().numpy(), sigmoid, rtol=0, atol=1e-15)
    np.testing.assert_allclose(curvature.numpy(), sigmoid * (1.0 - sigmoid), rtol=0, atol=1e-15)


def test_mlp_activates_between_layers() -> None:
    network = mlp((3, 5, 2), "shifted_softplus").double()
    x = torch.randn(4, 3, dtype=torch.float64)
    first, second = network[0], network[2]
    expected = second(shifted_softplus(first(x)))
    assert torch.equal(network(x), expected)
    assert not first.bias.any() and first.weight.abs().max() <= math.sqrt(6.0 / 8.0)
    assert [type(layer).__name__ for layer in mlp((3, 2), activate_last=True)] == ["Linear", "SiLU"]
    with pytest.raises(ValueError, match=r"unknown activation 'relu'; known are .*'silu'"):
        mlp((3, 2), "relu")
    with pytest.raises(ValueError, match="unknown activation"):
        check_activation("softplus")


def test_pair_sum() -> None:
    values = torch.arange(12.0).reshape(3, 2, 2)
    found = pair_sum(values, torch.tensor([2, 0, 2]), 4)
    assert torch.equal(found[2], values[0] + values[2])
    assert torch.equal(found[0], values[1])
    assert not found[1].any() and not found[3].any()


def test_element_table_names_every_element_once() -> None:
    table = element_table((8, 1, 118))
    assert [int(table[z]) for z in (8, 1, 118)] == [0, 1, 2]
    assert int((table >= 0).sum()) == 3


def test_states_and_conditions() -> None:
    charge, multiplicity = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 4.0])
    assert state_columns([1, 0], charge, multiplicity).tolist() == [[0.0, -1.0], [3.0, 2.0]]
    assert state_columns([], charge, multiplicity).shape == (2, 0)
    assert conditions(("unpaired_electrons", "charge")) == ("multiplicity", "charge")


def test_atom_embedding_adds_the_states() -> None:
    embedding = AtomEmbedding((6, 1), 5, ("unpaired_electrons", "charge")).double()
    numbers, system = torch.tensor([1, 6, 1, 6]), torch.tensor([0, 0, 1, 1])
    charge = torch.tensor([0.0, -2.0], dtype=torch.float64)
    multiplicity = torch.tensor([1.0, 3.0], dtype=torch.float64)
    element = embedding.element.weight[[1, 0, 1, 0]]
    expected = element + embedding.state[0](element, multiplicity - 1.0, system)
    expected = expected + embedding.state[1](element, charge, system)
    found = embedding(numbers, charge, multiplicity, system)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[:2], element[:2]), "a neutral singlet has no state to add"
    scripted = torch.jit.script(embedding)
    torch.testing.assert_close(scripted(numbers, charge, multiplicity, system), found)


def test_checks_name_what_is_wrong() -> None:
    check_system((1, 8), 5.0, ("charge",))
    for arguments, text in [
        (((1,), 0.0), "positive length"),
        (((1,), math.nan), "positive length"),
        (((), 5.0), r"1\.\.118"),
        (((1, 119), 5.0), r"1\.\.118"),
        (((6, 6), 5.0), "twice"),
        (((6,), 5.0, ("spin",)), "state_embedding must be"),
        (((6,), 5.0, ("charge", "charge")), "state_embedding must be"),
    ]:
        with pytest.raises(ValueError, match=text):
            check_system(*arguments)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        check_sizes(layers=0)


def test_spherical_bessel_functions_and_their_derivatives() -> None:
    special = pytest.importorskip("scipy.special")
    x = np.linspace(0.01, 40.0, 3001)
    for order in range(12):
        t = torch.tensor(x, requires_grad=True)
        value = spherical_bessel(order, t)
        (slope,) = torch.autograd.grad(value.sum(), t, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), t)
        y, dy = special.spherical_jn(order, x), special.spherical_jn(order, x, derivative=True)
        ddy = -2.0 / x * dy - (1.0 - order * (order + 1) / x**2) * y  # its differential equation
        np.testing.assert_allclose(value.detach(), y, rtol=0, atol=1e-13)
        np.testing.assert_allclose(slope.detach(), dy, rtol=0, atol=1e-12)
        np.testing.assert_allclose(curvature[50:], ddy[50:], rtol=0, atol=1e-10)
        single = spherical_bessel(order, torch.tensor(x, dtype=torch.float32))
        np.testing.assert_allclose(single, y, rtol=0, atol=1e-5)


def test_spherical_basis() -> None:
    special = pytest.importorskip("scipy.special")
    for order, row in enumerate(bessel_roots(8, 7)):
        assert special.spherical_jn(order, np.array(row)) == pytest.approx(0.0, abs=1e-14)
        assert len(row) == 7 and all(2.5 < b - a < 5.0 for a, b in pairwise([0.0, *row]) if a)
        assert row[0] < order + 1.5 * np.pi, "a root was left out"
    basis = SphericalBesselBasis(5, 3, 4.0)
    d = np.linspace(0.0, 4.0, 20001)
    values = basis(torch.tensor(d)).numpy()
    assert values.shape == (len(d), 5, 3)
    np.testing.assert_allclose(values[-1], 0.0, atol=1e-13)
    # orthonormal in the unit ball for each order: the integral of R R x^2 is 1 or 0
    x = d[:, None, None, None] / 4.0
    integrand = values[:, :, :, None] * values[:, :, None, :] * x**2
    overlap = integrand.sum(0) * (x[1, 0, 0, 0] - x[0, 0, 0, 0])
    np.testing.assert_allclose(overlap, np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-6)
    cast = SphericalBesselBasis(5, 3, 4.0).to(torch.float32)
    assert torch.equal(cast(torch.tensor(d)), basis(torch.tensor(d)))
    with pytest.raises(ValueError, match="got 13 and 3"):
        SphericalBesselBasis(13, 3, 4.0)


def test_legendre() -> None:
    special = pytest.importorskip("scipy.special")
    cosines = np.linspace(-1.0, 1.0, 41)
    for size in (1, 2, 7):
        found = legendre(torch.tensor(cosines), size)
        assert found.shape == (41, size)
        for order in range(size):
            factor = math.sqrt((2 * order + 1) / (4.0 * math.pi))
            expected = factor * special.eval_legendre(order, cosines)
            np.testing.assert_allclose(found[:, order], expected, atol=1e-14)
