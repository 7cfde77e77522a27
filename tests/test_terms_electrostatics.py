"""Coulomb: pairs, Madelung constants, images summed one by one, dampings, derivatives, errors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from nnpcalc.potential import Potential
from nnpcalc.terms import AtomicEnergies, Coulomb
from nnpcalc.terms.electrostatics import all_pairs
from nnpcalc.testing import check_potential, sample_structures
from nnpcalc.units import COULOMB
from terms_tools import charged_core, inversion_symmetric_crystal, seen


def energy_of(term: Coulomb, atoms: Atoms, charges: Any) -> float:
    values = torch.as_tensor(np.asarray(charges, dtype=float))
    energies = term(seen(term, atoms, values))
    assert energies.dtype == torch.float64 and energies.shape == (len(atoms),)
    return float(energies.sum())


def test_all_pairs_of_the_chosen_systems() -> None:
    system = torch.tensor([0, 0, 0, 2, 2, 2, 2, 3, 5, 5])
    chosen = torch.tensor([True, True, False, True, False, True])
    i, j = all_pairs(system, chosen)
    expected = {
        (a, b)
        for a, b in itertools.product(range(10), repeat=2)
        if b < a and system[a] == system[b] and chosen[system[a]]
    }
    assert i.shape[0] == len(expected)
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == expected
    i, j = all_pairs(system, torch.zeros(6, dtype=torch.bool))
    assert i.shape == j.shape == (0,)


# --- open systems --------------------------------------------------------------------------------


def bare(d: float) -> float:
    return 1.0 / d


def exponential(d: float) -> float:
    """AIMNet2: 1/d without its part at short range."""
    near = math.exp(-1.0 / (1.0 - (d / 4.6) ** 2)) / math.exp(-1.0) if d < 4.6 else 0.0
    return (1.0 - near) / d


def shielded(d: float) -> float:
    """PhysNet with a cutoff of 6 Å."""
    x = d / 3.0
    s = 6 * x**5 - 15 * x**4 + 10 * x**3 if x < 1.0 else 1.0
    return s / d + (1.0 - s) / math.sqrt(d * d + 1.0)


DAMPINGS = [
    (Coulomb(), bare),
    (Coulomb("exponential", 4.6), exponential),
    (Coulomb("shielded", 3.0), shielded),
]


@pytest.mark.parametrize(("term", "kernel"), DAMPINGS)
def test_open_systems_pair_by_pair(term: Coulomb, kernel: Any) -> None:
    atoms = molecule("C6H6") + molecule("H2O")
    atoms.positions[12:] += (6.0, 1.0, 2.0)
    q = np.random.default_rng(1).uniform(-0.5, 0.5, len(atoms))
    r = atoms.positions
    expected = [
        0.5 * COULOMB * sum(
            q[i] * q[j] * kernel(float(np.linalg.norm(r[i] - r[j])))
            for j in range(len(atoms)) if j != i
        )
        for i in range(len(atoms))
    ]  # fmt: skip
    found = term(seen(term, atoms, torch.as_tensor(q)))
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("term", "kernel"), DAMPINGS[1:])
def test_dampings_change_near_images_only(term: Coulomb, kernel: Any) -> None:
    """In a cell, and with a cutoff, as in vacuum: 1/d -> kernel(d) below the radius."""
    atoms, q = inversion_symmetric_crystal()
    images = list(itertools.product(range(-2, 3), repeat=3))
    expected = 0.0
    for (i, j), n in itertools.product(itertools.product(range(6), repeat=2), images):
        d = float(np.linalg.norm(atoms.positions[j] - atoms.positions[i] + n @ atoms.cell.array))
        if 0.0 < d < term.radius:
            expected += 0.5 * COULOMB * q[i] * q[j] * (kernel(d) - 1.0 / d)
    for periodic in ("ewald", "dsf"):
        damped = Coulomb(term.damping, term.radius, periodic=periodic)
        difference = energy_of(damped, atoms, q) - energy_of(Coulomb(periodic=periodic), atoms, q)
        assert difference == pytest.approx(expected, abs=1e-10)


def test_no_atom_and_one_atom() -> None:
    term = Coulomb()
    assert term(seen(term, Atoms(), torch.zeros(0))).shape == (0,)
    assert energy_of(term, Atoms("H"), [0.3]) == 0.0


# --- periodic systems ----------------------------------------------------------------------------

MADELUNG = [  # lattice, constant per distance of neighbours, distance / lattice constant
    ("rocksalt", 1.747564594633182, 0.5),
    ("cesiumchloride", 1.762674773070988, math.sqrt(3.0) / 2.0),
    ("zincblende", 1.638055053388790, math.sqrt(3.0) / 4.0),
]


@pytest.mark.parametrize(("lattice", "constant", "distance"), MADELUNG)
@pytest.mark.parametrize("cutoff", [6.0, 10.0])
def test_madelung_constants(lattice: str, constant: float, distance: float, cutoff: float) -> None:
    atoms = bulk("NaCl", lattice, a=5.0)
    found = -energy_of(Coulomb(cutoff=cutoff), atoms, [1.0, -1.0]) * 5.0 * distance / COULOMB
    assert found == pytest.approx(constant, abs=1e-7)
    shifted = Coulomb(periodic="dsf", cutoff=20.0)
    found = -energy_of(shifted, atoms, [1.0, -1.0]) * 5.0 * distance / COULOMB
    assert found == pytest.approx(constant, abs=5e-4)


def test_a_charge_in_its_background() -> None:
    """Ions of a simple cubic lattice in a uniform background: -2.837297 q^2 / 2 a."""
    found = energy_of(Coulomb(accuracy=1e-12), bulk("Po", "sc", a=4.0), [1.0])
    assert found == pytest.approx(-2.837297479480619 * COULOMB / 8.0, abs=1e-9)


def test_images_summed_one_by_one() -> None:
    """Cells without charge and dipole moment: the sum over spheres of cells converges."""
    atoms, q = inversion_symmetric_crystal()
    r, n = atoms.positions, np.arange(-18, 19)
    shifts = np.stack(np.meshgrid(n, n, n), -1).reshape(-1, 3) @ atoms.cell.array
    shifts = shifts[np.linalg.norm(shifts, axis=1) < 85.0]
    total = 0.0
    for i, j in itertools.product(range(6), repeat=2):
        d = np.linalg.norm(r[j] - r[i] + shifts, axis=1)
        total += 0.5 * COULOMB * q[i] * q[j] * (1.0 / d[d > 0.0]).sum()
    assert energy_of(Coulomb(), atoms, q) == pytest.approx(total, abs=2e-4)
    assert energy_of(Coulomb(cutoff=7.0, accuracy=1e-12), atoms, q) == pytest.approx(
        energy_of(Coulomb(cutoff=14.0, accuracy=1e-12), atoms, q), abs=1e-9
    )


def test_the_accuracy_is_kept() -> None:
    atoms, q = inversion_symmetric_crystal()
    exact = energy_of(Coulomb(accuracy=1e-13), atoms, q)
    scale = COULOMB * float((q * q).sum())
    for accuracy in (1e-4, 1e-6, 1e-8):
        assert abs(energy_of(Coulomb(accuracy=accuracy), atoms, q) - exact) < accuracy * scale


def test_damped_shifted_force() -> None:
    """The published function and its self energy, summed slowly."""
    atoms, q = inversion_symmetric_crystal()
    a, c = 0.25, 8.0
    term = Coulomb(periodic="dsf", cutoff=c, alpha=a)
    gauss = 2.0 * a / math.sqrt(math.pi) * math.exp(-((a * c) ** 2))

    def kernel(d: float) -> float:
        slope = math.erfc(a * c) / c**2 + gauss / c
        return math.erfc(a * d) / d - math.erfc(a * c) / c + slope * (d - c)

    expected = 0.0
    for (i, j), n in itertools.product(
        itertools.product(range(6), repeat=2), itertools.product(range(-2, 3), repeat=3)
    ):
        d = float(np.linalg.norm(atoms.positions[j] - atoms.positions[i] + n @ atoms.cell.array))
        if 0.0 < d < c:
            expected += 0.5 * COULOMB * q[i] * q[j] * kernel(d)
    tiny = 1e-6
    own = 0.5 * COULOMB * (kernel(tiny) - 1.0 / tiny)  # a charge with itself, without 1/d
    expected += own * float((q * q).sum())
    assert energy_of(term, atoms, q) == pytest.approx(expected, abs=1e-4)
    opened = Coulomb(open_systems="dsf", periodic="none", cutoff=c, alpha=a)
    atoms.pbc = False
    found = energy_of(opened, atoms, q)
    near = energy_of(Coulomb(), atoms, q)
    assert found != pytest.approx(near, abs=1e-3) and found == pytest.approx(near, abs=2.0)
    pair = Atoms("H2", [(0, 0, 0), (0, 0, 3.0)])
    expected = COULOMB * (-0.2 * kernel(3.0)) + own * (0.5**2 + 0.4**2)
    assert energy_of(opened, pair, [0.5, -0.4]) == pytest.approx(expected, abs=1e-4)


# --- as part of a potential ----------------------------------------------------------------------

ROUTES = {
    "ewald": Coulomb("shielded", 2.0, cutoff=6.0),
    "dsf": Coulomb("exponential", 3.0, periodic="dsf", open_systems="dsf", cutoff=7.0),
}
#: Charges flow and fields reach far: two molecules in one system are not additive.
CHECKS = ("rotation", "permutation", "translation", "momentum", "forces", "stress",
          "second derivatives", "batch", "isolation", "supercell", "atom", "conditions",
          "precision", "torchscript")  # fmt: skip


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_potentials_with_charges_satisfy_the_contract(route: str) -> None:
    potential = Potential(charged_core(), (AtomicEnergies({1: -13.6}), ROUTES[route]))
    structures = sample_structures(potential.elements)
    if route == "ewald":
        del structures["layer"]
    check_potential(potential, checks=CHECKS, structures=structures)


def test_energies_in_float32_are_as_good_as_the_charges() -> None:
    atoms, q = inversion_symmetric_crystal()
    term = Coulomb()
    inputs = seen(term, atoms, torch.as_tensor(q))
    single = inputs._replace(
        **{
            name: value.to(torch.float32)
            for name, value in inputs._asdict().items()
            if value.is_floating_point()
        }
    )
    assert float(term(single).sum()) == pytest.approx(float(term(inputs).sum()), abs=1e-5)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"damping": "gauss"}, "damping of Coulomb must be one of"),
        ({"periodic": "pme"}, "periodic of Coulomb must be one of"),
        ({"open_systems": "ewald"}, "open_systems of Coulomb must be one of"),
        ({"cutoff": 0.0}, "cutoff of Coulomb must be a positive length"),
        ({"cutoff": math.inf}, "cutoff of Coulomb must be a positive length"),
        ({"damping": "exponential"}, "radius of the damping"),
        ({"damping": "exponential", "radius": 11.0}, r"must be in \(0, 10.0\]"),
        ({"accuracy": 0.0}, "accuracy in"),
        ({"alpha": -1.0}, "alpha must be at least 0"),
    ],
)
def test_impossible_settings(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Coulomb(**options)


def test_systems_it_cannot_compute() -> None:
    term = Coulomb(periodic="none")
    assert term.cutoff == 0.0
    cell = bulk("NaCl", "rocksalt", a=5.0)
    with pytest.raises(ValueError, match=r"system 1 has a cell of 31.25 Å\^3"):
        term(seen(term, [molecule("H2O"), cell], torch.zeros(5)))
    term = Coulomb()
    inputs = seen(term, [molecule("H2O"), cell], torch.zeros(5))
    flat = inputs._replace(cell=torch.tensor([[[0.0] * 3] * 3, [[1.0, 0, 0], [0, 1, 0], [0] * 3]]))
    with pytest.raises(ValueError, match=r"system 1 has a cell of 0.0 Å\^3"):
        term(flat)
    with pytest.raises(ValueError, match="needs the partial charges of a core network"):
        term(inputs._replace(charges=None))
