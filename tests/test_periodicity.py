"""Periodicity of any kind against explicit copies: small cells, 1-D and 2-D, rotated, left-handed.

torchmd-net is silently wrong in all of these (minimum image only, lower triangular cells only, all
directions or none), so nothing here compares with it. The references know nothing of pbc: a
supercell above twice the cutoff, and a finite cluster of copies made by a loop.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.models.tensornet import TensorNet, TensorNetConfig
from nnpcalc.potential import Potential, Results
from nnpcalc.terms import ZBL, AtomicEnergies

TOLERANCE = 1e-9  # eV per atom, eV/Å
CUBIC = np.diag([3.1, 3.1, 3.1])
SKEWED = np.array([[3.0, 0.2, -0.3], [1.4, 2.9, 0.1], [-0.9, 1.2, 3.2]])
LONG = np.array([[2.6, 0.0, 0.0], [0.0, 3.9, 0.0], [0.7, -0.9, 4.6]])
PERIODICITIES = [p for p in product([False, True], repeat=3) if any(p)]


def potential(cutoff: float, layers: int = 1, group: str = "O(3)") -> Potential:
    """Random weights, larger than those of a new network so that forces are too."""
    torch.manual_seed(7)
    config = TensorNetConfig(
        channels=8,
        layers=layers,
        radial_functions=6,
        cutoff=cutoff,
        elements=(1, 6, 8),
        equivariance=group,
        attribute_weights=(0.3,),
    )
    core = TensorNet(config).to(torch.float64)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.mul_(2.0)
    return Potential(core, (AtomicEnergies({1: -13.6, 6: -1030.0, 8: -2040.0}), ZBL())).eval()


def crystal(cell: np.ndarray, pbc: tuple[bool, bool, bool], n_atoms: int = 3) -> Atoms:
    """A few atoms in a cell; one is far outside along the periodic directions."""
    places = np.array([[0.1, 0.2, 0.3], [0.55, 0.6, 0.35], [0.3, 0.7, 0.85]])[:n_atoms]
    places[-1] += np.array([2, -3, 1]) * pbc
    atoms = Atoms([8, 6, 1][:n_atoms], places @ cell, cell=cell, pbc=pbc)
    atoms.info["charge"] = 1
    return atoms


def evaluate(model: Potential, atoms: Atoms | list[Atoms], stress: bool = False) -> Results:
    return model.evaluate(AtomsBatch.from_atoms(atoms), stress=stress)


def forces(results: Results) -> Tensor:
    assert results.forces is not None
    assert bool(torch.isfinite(results.forces).all())
    assert float(results.forces.abs().max()) > 0.05  # there is something to get wrong
    return results.forces


def cluster(atoms: Atoms, radius: float) -> Atoms:
    """The cell and all its copies within `radius` of it, as a molecule; the cell comes first.

    A loop over lattice translations, many more than needed; the copies are free atoms.
    """
    basis = atoms.cell.array[atoms.pbc]
    reach = [0]
    if len(basis):
        # distance of the lattice planes: no translation beyond this can come within the radius
        spread = np.ptp(atoms.positions, axis=0)
        extent = radius + 2.0 * float(np.linalg.norm(spread)) + float(np.abs(basis).max())
        heights = 1.0 / np.linalg.norm(np.linalg.pinv(basis), axis=0)
        reach = [int(np.ceil(extent / height)) for height in heights]
    positions = [atoms.positions]
    for counts in product(*(range(-n, n + 1) for n in reach)):
        if any(counts):
            copy = atoms.positions + np.array(counts) @ basis
            gaps = np.linalg.norm(copy[:, None] - atoms.positions[None], axis=2).min(axis=1)
            if gaps.min() < radius:
                positions.append(copy)
    numbers = np.tile(atoms.numbers, len(positions))
    free = Atoms(numbers, np.concatenate(positions))
    free.info["charge"] = 1
    electrons = int(numbers.sum()) - 1
    free.info["spin"] = 1 + electrons % 2
    return free


def rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[0] *= -1
    return q


def rotated(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    """The crystal turned as a whole: its cell is full, not triangular."""
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ matrix.T)
    copy.positions = atoms.positions @ matrix.T
    return copy


# --- cells smaller than twice the cutoff ---------------------------------------------------------


@pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
@pytest.mark.parametrize("cell", [CUBIC, SKEWED, LONG], ids=["cubic", "skewed", "long"])
@pytest.mark.parametrize("n_atoms", [1, 3])
def test_a_small_cell_equals_its_supercell(cell: np.ndarray, n_atoms: int, group: str) -> None:
    cutoff = 3.4  # above the shortest cell vector of each: atoms meet their own images
    model = potential(cutoff, layers=2, group=group)
    small = crystal(cell, (True, True, True), n_atoms)
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    repeats = np.ceil(2.0 * cutoff / heights + 1e-9).astype(int)
    assert heights.min() < cutoff < 2.0 * cutoff <= (repeats * heights).min()
    large = small.repeat(repeats)  # info is kept: every atom sees the same charge
    electrons = int(large.numbers.sum()) - 1
    large.info["spin"] = 1 + electrons % 2

    one, many = (evaluate(model, atoms, stress=True) for atoms in (small, large))
    copies = int(repeats.prod())
    difference = many.energies.reshape(copies, n_atoms) - one.energies
    assert float(difference.abs().max()) < TOLERANCE
    assert float(many.energy) / copies == pytest.approx(float(one.energy), abs=TOLERANCE)
    assert many.forces is not None
    assert one.forces is not None
    difference = many.forces.reshape(copies, n_atoms, 3) - one.forces
    assert float(difference.abs().max()) < TOLERANCE
    if n_atoms > 1:
        forces(one)
    assert one.stress is not None
    assert many.stress is not None
    assert float((one.stress - many.stress).abs().max()) < TOLERANCE
    assert float(one.stress.abs().max()) > 1e-3


def test_a_supercell_of_another_shape() -> None:
    """Doubling along two skewed combinations of the cell vectors changes nothing either."""
    from ase.build import make_supercell

    model = potential(3.4)
    small = crystal(SKEWED, (True, True, True))
    large = make_supercell(small, [[1, 1, 0], [-1, 2, 0], [1, 0, 2]])
    large.info["charge"] = 1
    assert len(large) == 6 * len(small)
    one, many = evaluate(model, small), evaluate(model, large)
    assert float(many.energy) / 6.0 == pytest.approx(float(one.energy), abs=TOLERANCE)


# --- any periodicity, any cell, against explicit copies ------------------------------------------

RADIUS = 2.7  # the cutoff of these tests; one layer, so that energies reach 2 cutoffs, forces 4


@pytest.mark.parametrize("pbc", PERIODICITIES, ids=lambda p: "".join("FT"[x] for x in p))
@pytest.mark.parametrize("cell", [CUBIC, SKEWED, LONG], ids=["cubic", "skewed", "long"])
def test_periodic_directions_against_copies(cell: np.ndarray, pbc: tuple[bool, bool, bool]) -> None:
    model = potential(RADIUS)
    atoms = crystal(cell, pbc)
    found = evaluate(model, atoms)
    reference = evaluate(model, cluster(atoms, 4.0 * RADIUS))
    n = len(atoms)
    assert float((found.energies - reference.energies[:n]).abs().max()) < TOLERANCE
    assert float((forces(found) - forces(reference)[:n]).abs().max()) < TOLERANCE
    alone = atoms.copy()
    alone.pbc = False
    assert float((evaluate(model, alone).energies - found.energies).abs().max()) > 1e-6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "pbc", [(True, True, True), (True, False, True), (False, True, False)], ids=["3D", "2D", "1D"]
)
def test_rotated_cells_against_copies(pbc: tuple[bool, bool, bool], seed: int) -> None:
    model = potential(RADIUS)
    atoms = crystal(SKEWED, pbc)
    matrix = rotation(seed)
    turned = rotated(atoms, matrix)
    assert np.abs(np.triu(turned.cell.array, 1)).max() > 0.1
    found = evaluate(model, turned)
    reference = evaluate(model, cluster(turned, 4.0 * RADIUS))
    n = len(atoms)
    assert float((found.energies - reference.energies[:n]).abs().max()) < TOLERANCE
    assert float((forces(found) - forces(reference)[:n]).abs().max()) < TOLERANCE
    straight = evaluate(model, atoms)
    assert float((found.energies - straight.energies).abs().max()) < TOLERANCE
    turned_forces = forces(straight) @ torch.from_numpy(matrix).T
    assert float((forces(found) - turned_forces).abs().max()) < TOLERANCE


def test_the_choice_of_cell_vectors_does_not_matter() -> None:
    """Left-handed, reversed, permuted and unreduced vectors span the same lattice."""
    model = potential(3.4)
    atoms = crystal(SKEWED, (True, True, True))
    expected = evaluate(model, atoms, stress=True)
    changes = {
        "left-handed": np.diag([1, 1, -1]),
        "permuted": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]),
        "swapped": np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]]),
        "unreduced": np.array([[1, 0, 0], [3, 1, 0], [-2, 4, 1]]),
    }
    for change in changes.values():
        other = atoms.copy()
        other.set_cell(change @ SKEWED)
        found = evaluate(model, other, stress=True)
        assert found.stress is not None
        assert expected.stress is not None
        assert float((found.energies - expected.energies).abs().max()) < TOLERANCE
        assert float((forces(found) - forces(expected)).abs().max()) < TOLERANCE
        assert float((found.stress - expected.stress).abs().max()) < TOLERANCE


@pytest.mark.parametrize("rest", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.4], [50.0, -3.0, 7.0]])
def test_the_vector_of_an_open_direction_does_not_matter(rest: list[float]) -> None:
    model = potential(3.4)
    atoms = crystal(SKEWED, (True, True, False))
    expected = evaluate(model, atoms)
    cell = SKEWED.copy()
    cell[2] = rest
    atoms.set_cell(cell)
    found = evaluate(model, atoms)
    assert float((found.energies - expected.energies).abs().max()) < TOLERANCE
    assert float((forces(found) - forces(expected)).abs().max()) < TOLERANCE


def test_lattice_translations_of_single_atoms_do_not_matter() -> None:
    model = potential(3.4)
    atoms = crystal(SKEWED, (True, False, True))
    expected = evaluate(model, atoms)
    atoms.positions += np.array([[1, 0, -2], [-7, 0, 3], [40, 0, 25]]) @ SKEWED
    found = evaluate(model, atoms)
    assert float((found.energies - expected.energies).abs().max()) < TOLERANCE
    assert float((forces(found) - forces(expected)).abs().max()) < TOLERANCE


def test_all_kinds_in_one_batch() -> None:
    """Molecules, wires, slabs and crystals side by side are what they are alone."""
    model = potential(RADIUS)
    structures = [crystal(SKEWED, pbc) for pbc in [(False, False, False), *PERIODICITIES]]
    structures.append(rotated(crystal(LONG, (True, True, False)), rotation(5)))
    together = evaluate(model, structures)
    alone = [evaluate(model, atoms) for atoms in structures]
    energies = torch.cat([results.energies for results in alone])
    assert float((together.energies - energies).abs().max()) < TOLERANCE
    separate = torch.cat([forces(results) for results in alone])
    assert float((forces(together) - separate).abs().max()) < TOLERANCE
