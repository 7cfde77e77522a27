"""AtomsBatch: what goes in comes out, and what cannot be computed is refused with a reason."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from nnpcalc.batch import AtomsBatch
from nnpcalc.checks import InputError
from nnpcalc.state import resolve_state

pytestmark = pytest.mark.filterwarnings("error")

FIELDS = [field.name for field in dataclasses.fields(AtomsBatch)]


def assert_same(a: AtomsBatch, b: AtomsBatch) -> None:
    for name in FIELDS:
        ours, theirs = getattr(a, name), getattr(b, name)
        if ours is None or theirs is None:
            assert ours is theirs, name
        else:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=name)


@st.composite
def structures(draw: st.DrawFn, min_size: int = 0, partial_charges: bool = False) -> list[Atoms]:
    """Molecules and crystals of 0 to 4 atoms in possible electronic states."""
    found = []
    for _ in range(draw(st.integers(min_size, 5))):
        numbers = draw(st.lists(st.integers(1, 118), max_size=4))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        atoms = Atoms(numbers=numbers, positions=rng.normal(scale=5, size=(len(numbers), 3)))
        atoms.pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
        atoms.cell = np.diag(rng.uniform(3, 9, 3)) + rng.uniform(-1, 1, (3, 3))
        if numbers:
            atoms.info["charge"] = draw(st.integers(-2, 1))
        if draw(st.booleans()):
            atoms.info["spin"] = resolve_state(atoms).multiplicity
        if partial_charges:
            atoms.set_array("partial_charges", rng.normal(size=len(numbers)))
        found.append(atoms)
    return found


# ---------------------------------------------------------------------------------- from_atoms


def test_one_molecule() -> None:
    water = molecule("H2O")
    batch = AtomsBatch.from_atoms(water)
    assert (batch.n_atoms, batch.n_systems) == (3, 1)
    assert batch.dtype == torch.float64
    assert batch.device == torch.device("cpu")
    assert batch.numbers.tolist() == [8, 1, 1]
    assert np.array_equal(batch.positions.numpy(), water.positions)
    assert batch.cell.tolist() == np.zeros((1, 3, 3)).tolist()
    assert batch.pbc.tolist() == [[False] * 3]
    assert batch.system.tolist() == [0, 0, 0]
    assert (batch.charge.tolist(), batch.multiplicity.tolist()) == ([0], [1])
    assert batch.partial_charges is None
    assert batch.counts.tolist() == [3]


@given(structures(), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=50, deadline=None)
def test_every_field_against_a_plain_loop(atoms: list[Atoms], dtype: torch.dtype) -> None:
    batch = AtomsBatch.from_atoms(atoms, dtype=dtype)
    numbers, positions, system = [], [], []
    for b, structure in enumerate(atoms):
        for number, position in zip(structure.numbers, structure.positions, strict=True):
            numbers.append(int(number))
            positions.append(position)
            system.append(b)
        state = resolve_state(structure)
        assert int(batch.charge[b]) == state.charge
        assert int(batch.multiplicity[b]) == state.multiplicity
        assert torch.equal(batch.cell[b], torch.tensor(np.asarray(structure.cell), dtype=dtype))
        assert batch.pbc[b].tolist() == structure.pbc.tolist()
    assert batch.numbers.tolist() == numbers
    expected = torch.tensor(np.array(positions).reshape(-1, 3), dtype=dtype)
    assert torch.equal(batch.positions, expected)
    assert batch.system.tolist() == system
    assert batch.counts.tolist() == [len(a) for a in atoms]
    assert (batch.n_atoms, batch.n_systems) == (len(numbers), len(atoms))


def test_tuples_and_generators_are_lists_too() -> None:
    molecules = [molecule("H2O"), molecule("CH4")]
    expected = AtomsBatch.from_atoms(molecules)
    assert_same(AtomsBatch.from_atoms(tuple(molecules)), expected)
    assert_same(AtomsBatch.from_atoms(m for m in molecules), expected)


def test_no_structures_and_structures_without_atoms() -> None:
    nothing = AtomsBatch.from_atoms([])
    assert (nothing.n_atoms, nothing.n_systems) == (0, 0)
    assert nothing.cell.shape == (0, 3, 3)
    assert nothing.split() == []

    empty = AtomsBatch.from_atoms(Atoms())
    assert (empty.n_atoms, empty.n_systems) == (0, 1)
    assert empty.positions.shape == (0, 3)
    assert empty.counts.tolist() == [0]

    among = AtomsBatch.from_atoms([Atoms(), molecule("H2O"), Atoms(), molecule("CH3"), Atoms()])
    assert among.counts.tolist() == [0, 3, 0, 4, 0]
    assert among.system.tolist() == [1] * 3 + [3] * 4
    assert among.multiplicity.tolist() == [1, 1, 1, 2, 1]


def test_defaults_and_info_per_structure() -> None:
    molecules = [molecule("H2O"), molecule("CH3"), molecule("CH3")]
    molecules[1].info.update(charge=-1)
    batch = AtomsBatch.from_atoms(molecules, charge=1)
    assert batch.charge.tolist() == [1, -1, 1]
    assert batch.multiplicity.tolist() == [2, 1, 1]
    assert AtomsBatch.from_atoms(molecule("O2"), multiplicity=3).multiplicity.tolist() == [3]


def test_the_callers_atoms_are_neither_changed_nor_shared() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.positions += 40.0  # outside the cell, which must not be wrapped
    atoms.info["charge"] = np.int64(0)
    atoms.set_array("partial_charges", np.array([0.9, -0.9]))
    before = copy.deepcopy(atoms)
    for dtype in (torch.float32, torch.float64):
        batch = AtomsBatch.from_atoms(atoms, dtype=dtype)
        assert batch.partial_charges is not None
        for tensor in (batch.positions, batch.cell, batch.partial_charges):
            tensor += 1.0
        batch.numbers.fill_(1)
        batch.pbc.fill_(False)
    assert atoms == before
    assert atoms.info == before.info
    assert atoms.arrays.keys() == before.arrays.keys()
    assert np.array_equal(atoms.arrays["partial_charges"], before.arrays["partial_charges"])


def test_positions_keep_every_bit_in_float64() -> None:
    rng = np.random.default_rng(3)
    atoms = Atoms("H50", rng.normal(size=(50, 3)) * 1e3)
    assert np.array_equal(AtomsBatch.from_atoms(atoms).positions.numpy(), atoms.positions)


@pytest.mark.parametrize("wrong", [None, 3, "H2O", [molecule("H2O"), None], {"a": 1}, ["H2O"]])
def test_what_is_no_structure(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"expected ase\.Atoms"):
        AtomsBatch.from_atoms(wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.complex64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=re.escape(str(dtype))):
        AtomsBatch.from_atoms(molecule("H2O"), dtype=dtype)


# ------------------------------------------------------------------------------- partial charges


def charged(name: str, charges: Any) -> Atoms:
    atoms = molecule(name)
    atoms.arrays["partial_charges"] = np.asarray(charges)
    return atoms


def test_partial_charges_of_all_structures() -> None:
    batch = AtomsBatch.from_atoms(
        [charged("H2O", [-0.8, 0.4, 0.4]), Atoms(), charged("N2", [0, 0])], dtype=torch.float32
    )
    assert batch.partial_charges is not None
    assert batch.partial_charges.dtype == torch.float32
    expected = torch.tensor([-0.8, 0.4, 0.4, 0.0, 0.0])
    assert torch.equal(batch.partial_charges, expected)


def test_partial_charges_of_some_structures() -> None:
    with pytest.raises(
        InputError, match=r"system 1 \(N2\) has no .*partial_charges.*all structures"
    ):
        AtomsBatch.from_atoms([charged("H2O", [-0.8, 0.4, 0.4]), molecule("N2")])


# ----------------------------------------------------------------------------- the batch itself


def test_immutable_and_replace() -> None:
    batch = AtomsBatch.from_atoms(molecule("H2O"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.positions = batch.positions + 1.0  # type: ignore[misc]
    moved = dataclasses.replace(batch, positions=batch.positions + 1.0)
    assert torch.equal(moved.positions, batch.positions + 1.0)
    assert moved.numbers is batch.numbers


def test_counts_belong_to_the_batch_they_are_asked_of() -> None:
    """The counts are cached; a replaced `system` must not see the old ones."""
    batch = AtomsBatch.from_atoms([molecule("H2O"), molecule("H2")])
    assert batch.counts.tolist() == [3, 2]
    other = dataclasses.replace(batch, system=torch.tensor([0, 0, 0, 0, 1]))
    assert other.counts.tolist() == [4, 1]
    assert batch.counts.tolist() == [3, 2]


@pytest.mark.parametrize("name", FIELDS[:-1])
def test_fields_of_the_wrong_shape(name: str) -> None:
    batch = AtomsBatch.from_atoms([molecule("H2O"), molecule("CH4")])
    tensor = getattr(batch, name)
    if name in ("numbers", "cell"):  # these define N and B, so the other fields stop fitting
        name = {"numbers": "positions", "cell": "pbc"}[name]
        wrong = dataclasses.asdict(batch) | {
            f: t[:-1] for f, t in vars(batch).items() if t is tensor
        }
    else:
        wrong = dataclasses.asdict(batch) | {name: tensor[:-1]}
    with pytest.raises(InputError, match=f"^{name} must be .* of shape"):
        AtomsBatch(**wrong)


def test_fields_of_the_wrong_dtype() -> None:
    batch = AtomsBatch.from_atoms(molecule("H2O"))
    for name, dtype in [
        ("numbers", torch.int32),
        ("cell", torch.float32),
        ("pbc", torch.uint8),
        ("charge", torch.float64),
        ("multiplicity", torch.int32),
        ("system", torch.int32),
    ]:
        with pytest.raises(InputError, match=f"^{name} must be"):
            dataclasses.replace(batch, **{name: getattr(batch, name).to(dtype)})
    with pytest.raises(InputError, match="positions must be float32 or float64"):
        dataclasses.replace(batch, positions=batch.positions.half())
    with pytest.raises(InputError, match="partial_charges must be"):
        dataclasses.replace(batch, partial_charges=torch.zeros(2, dtype=torch.float64))


def test_moved_is_replace_of_the_positions() -> None:
    batch = AtomsBatch.from_atoms([molecule("H2O"), bulk("Si")], dtype=torch.float32)
    assert batch.counts.tolist() == [3, 2]
    moved = batch.moved(batch.positions + 1.0)
    like = dataclasses.replace(batch, positions=batch.positions + 1.0)
    for field in dataclasses.fields(AtomsBatch):
        one, other = getattr(moved, field.name), getattr(like, field.name)
        assert one is other or torch.equal(one, other)
    assert torch.equal(moved.counts, like.counts) and torch.equal(moved.lattices, like.lattices)
    assert not torch.equal(moved.positions, batch.positions)
    with pytest.raises(InputError, match="positions"):
        batch.moved(batch.positions.double())
    with pytest.raises(InputError, match="positions"):
        batch.moved(batch.positions[:2])


def test_open_systems_have_no_lattice() -> None:
    boxed = molecule("H2O", vacuum=5.0)
    batch = AtomsBatch.from_atoms([boxed, bulk("Si")])
    assert not batch.lattices[0].any() and torch.equal(batch.lattices[1], batch.cell[1])
    assert batch.lattices is batch.lattices
    for _ in range(2):  # a graph serves once
        cell = batch.cell.clone().requires_grad_(True)
        strained = dataclasses.replace(batch, cell=cell)
        strained.lattices.sum().backward()
        strained.lattices.sum().backward()
        assert cell.grad is not None and not cell.grad[0].any() and bool((cell.grad[1] == 2).all())


def test_to_where_it_is_costs_nothing() -> None:
    batch = AtomsBatch.from_atoms(molecule("H2O"))
    assert batch.to(batch.device) is batch and batch.to(dtype=batch.dtype) is batch


def test_to_changes_only_the_floating_point_type() -> None:
    batch = AtomsBatch.from_atoms([charged("H2O", [-0.8, 0.4, 0.4])])
    single = batch.to(dtype=torch.float32)
    assert single.dtype == single.cell.dtype == torch.float32
    assert single.partial_charges is not None
    assert single.partial_charges.dtype == torch.float32
    for name in ("numbers", "system", "charge", "multiplicity"):
        assert getattr(single, name).dtype == torch.int64
    assert torch.equal(single.positions, batch.positions.float())
    assert batch.dtype == torch.float64
    assert_same(batch.to("cpu"), batch)
    with pytest.raises(InputError, match="float32 or float64"):
        batch.to(dtype=torch.float16)


def test_gradients_pass_through_to_concatenate_and_split() -> None:
    batch = AtomsBatch.from_atoms([molecule("H2O"), molecule("CH4")])
    positions = batch.positions.clone().requires_grad_()
    leaf = dataclasses.replace(batch, positions=positions)
    back = AtomsBatch.concatenate(leaf.to(dtype=torch.float32).split()[::-1])
    weights = torch.arange(batch.n_atoms * 3, dtype=torch.float32).reshape(-1, 3)
    (back.positions * weights).sum().backward()
    expected = torch.cat([weights[5:], weights[:5]]).double()
    assert positions.grad is not None
    assert torch.equal(positions.grad, expected)


@given(structures(), st.booleans())
@settings(max_examples=50, deadline=None)
def test_split_gives_what_single_structures_give(atoms: list[Atoms], charges: bool) -> None:
    if charges:
        for i, structure in enumerate(atoms):
            structure.set_array("partial_charges", np.arange(len(structure)) + 0.1 * i)
    parts = AtomsBatch.from_atoms(atoms).split()
    assert len(parts) == len(atoms)
    some_atoms = any(len(a) for a in atoms)
    for part, structure in zip(parts, atoms, strict=True):
        alone = AtomsBatch.from_atoms(structure)
        if charges and some_atoms and len(structure) == 0:  # no rows instead of no charges
            assert part.partial_charges is not None
            part = dataclasses.replace(part, partial_charges=None)
        assert_same(part, alone)


@given(structures(min_size=1, partial_charges=True), st.data())
@settings(max_examples=50, deadline=None)
def test_concatenate_undoes_split(atoms: list[Atoms], data: st.DataObject) -> None:
    batch = AtomsBatch.from_atoms(atoms)
    assert_same(AtomsBatch.concatenate(batch.split()), batch)
    # also in unequal chunks
    cut = data.draw(st.integers(0, len(atoms)))
    halves = [AtomsBatch.from_atoms(atoms[:cut]), AtomsBatch.from_atoms(atoms[cut:])]
    assert_same(AtomsBatch.concatenate(halves), batch)


def test_concatenate_refuses_what_does_not_match() -> None:
    batch = AtomsBatch.from_atoms(molecule("H2O"))
    with pytest.raises(InputError, match="empty list"):
        AtomsBatch.concatenate([])
    with pytest.raises(InputError, match=r"batch 1 is torch\.float32"):
        AtomsBatch.concatenate([batch, batch.to(dtype=torch.float32)])
    with pytest.raises(InputError, match="all or none"):
        AtomsBatch.concatenate([batch, AtomsBatch.from_atoms(charged("N2", [0.0, 0.0]))])


def test_repr_is_short_and_pickle_keeps_all() -> None:
    batch = AtomsBatch.from_atoms(bulk("Cu") * (4, 4, 4))
    assert repr(batch) == "AtomsBatch(n_atoms=64, n_systems=1, dtype=torch.float64, device=cpu)"
    assert_same(pickle.loads(pickle.dumps(batch)), batch)
