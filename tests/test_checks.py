"""What a batch refuses, why, and the limits: atoms, coordinates, cells, partial charges."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from nnpcalc.batch import AtomsBatch
from nnpcalc.checks import (
    COARSEST_SPACING,
    IMAGE_RADIUS,
    MOST_IMAGES,
    SMALLEST_HEIGHT,
    InputError,
    largest_coordinate,
)
from nnpcalc.state import StateError

# numpy warns where a check divides by zero or overflows
pytestmark = pytest.mark.filterwarnings("error")


def periodic(cell: Any, pbc: Any = True, symbols: str = "H") -> Atoms:
    return Atoms(symbols, np.zeros((len(Atoms(symbols)), 3)), cell=cell, pbc=pbc)


# ------------------------------------------------------------------------------ atoms and states


def test_errors_are_value_errors() -> None:
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, r"is a dummy atom X \(Z=0\)"), (119, "has the .* 119"), (-1, "has the .* -1")],
)
def test_atoms_that_are_no_element(number: int, text: str) -> None:
    odd = Atoms(numbers=[6, number], positions=np.zeros((2, 3)))
    with pytest.raises(InputError, match=f"system 2, atom 1 {text}; remove it"):
        AtomsBatch.from_atoms([molecule("H2O"), Atoms(), odd, molecule("CH4")])


def test_all_elements_are_known() -> None:
    everything = Atoms(numbers=np.arange(1, 119), positions=np.zeros((118, 3)))
    assert AtomsBatch.from_atoms(everything).numbers.tolist() == list(range(1, 119))


def test_more_offenders_are_counted() -> None:
    with pytest.raises(InputError, match=r"system 0, atom 1 .*\(and 2 more atoms like it\)"):
        AtomsBatch.from_atoms(Atoms("HXXX"))
    with pytest.raises(InputError, match="system 2, atom 0 is"):  # first after an empty system
        AtomsBatch.from_atoms([molecule("H2O"), Atoms(), Atoms("XH")])
    with pytest.raises(InputError, match=r"\(and 1 more atom like it\)"):
        AtomsBatch.from_atoms(Atoms("XHX"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_non_finite_positions(value: float, dtype: torch.dtype) -> None:
    broken = molecule("CH4")
    broken.positions[3, 1] = value
    broken.positions[0, 0] = 1e20  # finite; the worse problem is named
    with pytest.raises(InputError, match=r"system 1, atom 3 \(H\) has the non-finite position"):
        AtomsBatch.from_atoms([molecule("H2O"), broken], dtype=dtype)


def test_state_errors_name_the_system() -> None:
    radical = molecule("CH3")
    radical.info["spin"] = 1
    with pytest.raises(StateError, match=r"system 1 \(CH3\): multiplicity 1 .* 9 electrons"):
        AtomsBatch.from_atoms([molecule("H2O"), radical])


def test_overlapping_atoms_are_left_to_the_neighbor_list() -> None:
    assert AtomsBatch.from_atoms(Atoms("H2", np.zeros((2, 3)))).n_atoms == 2


# ------------------------------------------------------------------------------ huge coordinates


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_largest_coordinate_is_where_the_spacing_becomes_too_coarse(dtype: Any) -> None:
    limit = largest_coordinate(np.dtype(dtype))
    assert np.spacing(dtype(limit)) > COARSEST_SPACING
    assert np.spacing(np.nextafter(dtype(limit), dtype(0))) <= COARSEST_SPACING


def test_coordinates_that_float32_does_not_resolve() -> None:
    far = molecule("H2O")
    far.positions[:, 1] -= 1e8
    batch = AtomsBatch.from_atoms(far)
    assert np.array_equal(batch.positions.numpy(), far.positions)
    with pytest.raises(
        InputError, match=r"system 0, atom 0 \(O\) .* float32 resolves only 8 Å"
    ) as e:
        AtomsBatch.from_atoms(far, dtype=torch.float32)
    assert "Centre the structure" in str(e.value)
    assert "float64" in str(e.value)
    with pytest.raises(InputError, match="Centre the structure"):
        batch.to(dtype=torch.float32)
    far.center()
    assert AtomsBatch.from_atoms(far, dtype=torch.float32).n_atoms == 3


@pytest.mark.parametrize("value", [9e12, 1e40, 1.7e308])
def test_coordinates_that_float64_does_not_resolve(value: float) -> None:
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(InputError, match="Centre the structure") as caught:
            AtomsBatch.from_atoms(Atoms("H", [[0.0, 0.0, value]]), dtype=dtype)
        assert ("use dtype=torch.float64" in str(caught.value)) == (dtype == torch.float32)


@given(st.floats(-2e4, 2e4), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=100, deadline=None)
def test_an_accepted_position_is_never_off_by_more_than_half_the_spacing(
    x: float, dtype: torch.dtype
) -> None:
    try:
        batch = AtomsBatch.from_atoms(Atoms("H", [[x, 0.0, 0.0]]), dtype=dtype)
    except InputError:
        assert dtype == torch.float32
        assert abs(x) >= 16384.0
    else:
        assert abs(float(batch.positions[0, 0]) - x) <= COARSEST_SPACING / 2


# ----------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize(
    "cell",
    [
        np.eye(3) * 3.6,
        np.diag([3.0, 4.0, -5.0]),  # left-handed
        [[0, 1.8, 1.8], [1.8, 0, 1.8], [1.8, 1.8, 0]],
        [[3, 0, 0], [60, 3, 0], [4, -7, 5]],  # strongly skewed
        np.diag([1e6, 1e6, 1e6]),
    ],
    ids=["cubic", "left-handed", "primitive", "skewed", "gigantic"],
)
@pytest.mark.parametrize("pbc", [True, (True, True, False), (False, False, True), False])
def test_good_cells(cell: Any, pbc: Any) -> None:
    batch = AtomsBatch.from_atoms(periodic(cell, pbc))
    assert np.array_equal(batch.cell[0].numpy(), np.asarray(cell, dtype=float))


def test_the_rows_of_non_periodic_directions_may_be_anything_finite() -> None:
    wire = periodic([[0, 0, 0], [0, 0, 0], [0, 0, 2.5]], (False, False, True))
    slab = periodic([[2.5, 0, 0], [0, 2.5, 0], [0, 0, 0]], (True, True, False))
    flat = periodic([[2.5, 0, 0], [0, 2.5, 0], [5, 5, 1e-9]], (True, True, False))
    box = periodic(np.eye(3) * 1e9, False)
    batch = AtomsBatch.from_atoms([wire, slab, flat, box], dtype=torch.float32)
    assert batch.pbc.sum(dim=1).tolist() == [1, 2, 2, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("pbc", [True, False])
def test_non_finite_cells(value: float, pbc: bool) -> None:
    cell = np.eye(3) * 5
    cell[2, 0] = value
    with pytest.raises(InputError, match=r"system 1 has the cell .* not finite"):
        AtomsBatch.from_atoms([molecule("H2O"), periodic(cell, pbc)])


def test_cells_that_do_not_fit_float32() -> None:
    with pytest.raises(InputError, match="not finite in float32"):
        AtomsBatch.from_atoms(periodic(np.eye(3) * 1e39, False), dtype=torch.float32)
    with pytest.raises(InputError, match=r"below 16384 Å in float32; set pbc=False .*float64"):
        AtomsBatch.from_atoms(periodic(np.eye(3) * 1e6), dtype=torch.float32)
    with pytest.raises(InputError, match="below 16384 Å in float32"):
        AtomsBatch.from_atoms(periodic(np.eye(3) * 1e6)).to(dtype=torch.float32)


@pytest.mark.parametrize(
    ("pbc", "direction"), [(True, "a"), ((False, True, False), "b"), ((False, False, True), "c")]
)
def test_zero_vectors_of_periodic_directions(pbc: Any, direction: str) -> None:
    with pytest.raises(
        InputError, match=rf"system 1: .* periodic direction {direction} has a zero"
    ):
        AtomsBatch.from_atoms([periodic(np.eye(3) * 4), periodic(np.zeros((3, 3)), pbc)])


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        ([[3, 0, 0], [6, 0, 0], [0, 0, 3]], True),
        ([[3, 0, 0], [6, 0, 0], [0, 0, 3]], (True, True, False)),
        ([[1, 2, 3], [4, 5, 6], [7, 8, 9]], True),
        ([[0, 0, 3], [0, 4, 0], [0, 0, -7]], (True, False, True)),
        ([[0.1, 0.2, 0.3], [0.2, 0.4, 0.6], [0, 0, 1]], True),
    ],
)
def test_linearly_dependent_vectors(cell: Any, pbc: Any) -> None:
    with pytest.raises(InputError, match=r"system 0: .* linearly dependent"):
        AtomsBatch.from_atoms([periodic(cell, pbc), periodic(np.eye(3) * 4)])


@pytest.mark.parametrize("pbc", [True, (True, False, False), (False, True, True)])
@pytest.mark.parametrize("length", [1e-3, 1e-30, 1e-150])
def test_absurdly_thin_cells(pbc: Any, length: float) -> None:
    with pytest.raises(InputError, match=r"too thin: heights .* Check the unit"):
        AtomsBatch.from_atoms(periodic(np.eye(3) * length, pbc))


def test_thin_by_skew() -> None:
    """Long vectors, but lattice planes 0.005 Å apart: heights decide, not lengths."""
    with pytest.raises(InputError, match=r"heights 0\.005, 5 Å along the periodic directions"):
        AtomsBatch.from_atoms(periodic([[5, 0, 0], [5000, 5, 0], [0, 0, 5]], (True, True, False)))


def test_cells_far_apart_in_one_direction_only_do_not_count_as_thin() -> None:
    wire = periodic(np.diag([0.02, 50, 50]), (True, False, False))
    assert AtomsBatch.from_atoms(wire).n_systems == 1
    with pytest.raises(InputError, match="periodic images within 10 Å"):
        AtomsBatch.from_atoms(periodic(np.eye(3) * 0.4))


def random_cell(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, 3)) * 10.0 ** rng.uniform(-2.5, 1.5, size=(3, 1))


@given(st.integers(0, 2**32 - 1), st.tuples(st.booleans(), st.booleans(), st.booleans()))
@settings(max_examples=200, deadline=None)
def test_limits_against_heights_by_projection(seed: int, pbc: tuple[bool, bool, bool]) -> None:
    """The height of a vector is what is left after projecting out the other periodic ones."""
    cell = random_cell(seed)
    periodic_rows = [k for k in range(3) if pbc[k]]
    heights = []
    for k in periodic_rows:
        others = cell[[m for m in periodic_rows if m != k]]
        rest = cell[k].copy()
        if len(others):
            rest -= others.T @ np.linalg.lstsq(others.T, cell[k], rcond=None)[0]
        heights.append(np.linalg.norm(rest))
    images = np.prod([2 * np.ceil(IMAGE_RADIUS / h) + 1 for h in heights])
    if heights and (min(heights) < SMALLEST_HEIGHT or images > MOST_IMAGES):
        with pytest.raises(InputError, match=r"too thin|dependent"):
            AtomsBatch.from_atoms(periodic(cell, pbc))
    else:
        assert AtomsBatch.from_atoms(periodic(cell, pbc)).n_systems == 1


# ------------------------------------------------------------------------------- partial charges


@pytest.mark.parametrize(
    ("charges", "text"),
    [
        ([0.1, np.nan, 0.0], r"system 0, atom 1 \(H\) has the partial charge nan"),
        ([0.1, 0.0, np.inf], r"atom 2 \(H\) has the partial charge inf"),
        ([[0.1], [0.0], [0.0]], r"one number per atom, not float64 of shape \(3, 1\)"),
        (["a", "b", "c"], "one number per atom"),
        ([True, False, False], "one number per atom, not bool"),
    ],
)
def test_bad_partial_charges(charges: Any, text: str) -> None:
    atoms = molecule("H2O")
    atoms.arrays["partial_charges"] = np.asarray(charges)
    with pytest.raises(InputError, match=text):
        AtomsBatch.from_atoms(atoms)


def test_no_work_in_python_per_atom() -> None:
    """Checking and copying a million atoms is quicker than looking at each in Python."""
    rng = np.random.default_rng(0)
    atoms = Atoms(numbers=np.full(1_000_000, 6), positions=rng.uniform(0, 200, (1_000_000, 3)))

    def bare_loop() -> bool:
        return any(number < 1 for number in atoms.numbers)

    def seconds(function: Callable[[], Any]) -> float:
        start = time.process_time()
        function()
        return time.process_time() - start

    batch_time = min(seconds(lambda: AtomsBatch.from_atoms(atoms)) for _ in range(3))
    assert batch_time < min(seconds(bare_loop) for _ in range(3))
