"""Calculators on their way to other processes: what is sent goes on working, and so does its copy.

The pickler of multiprocessing moves the memory of every tensor that it sees.
"""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from operator import methodcaller
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import molecule

from nnpcalc import AtomsBatch, NNPCalculator, md
from nnpcalc.neighbors import VerletList
from nnpcalc.potential import Potential
from tiny_model import attached, make_calculator, make_potential

SECONDS = 60.0  # a process that is lost would be waited for without an end

energy_of = methodcaller("get_potential_energy")


def potentials(n: int) -> list[Potential]:
    """As a committee of different members, or alone."""
    made = [make_potential() for _ in range(n)]
    with torch.no_grad():
        for k, potential in enumerate(made):
            for parameter in potential.core.parameters():
                parameter.mul_(1.0 + 0.01 * k)
    return made


def calculator(n: int, **options: Any) -> NNPCalculator:
    members = potentials(n)
    return NNPCalculator(members if n > 1 else members[0], **options)


def moved(atoms: Atoms) -> Atoms:
    atoms.rattle(1e-6, seed=3)
    return atoms


def is_shared(calc: NNPCalculator) -> bool:
    return any(parameter.is_shared() for parameter in calc.potential.parameters())


def fill_freed_memory(calc: NNPCalculator) -> list[torch.Tensor]:
    """Tensors of NaN where parameters may have been."""
    parameters = list(calc.potential.parameters())
    return [torch.full_like(p, torch.nan).clone() for p in parameters for _ in range(8)]


def written_by_multiprocessing(anything: Any) -> bytes:
    return bytes(ForkingPickler.dumps(anything))


@contextmanager
def pool(method: str) -> Iterator[Any]:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"processes cannot be made by {method} on this system")
    with multiprocessing.get_context(method).Pool(1) as processes:
        yield processes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_calculator_outlives_being_sent(n: int, dtype: str) -> None:
    calc, untouched = (calculator(n, dtype=dtype, backend="fused") for _ in range(2))
    atoms, other = attached(calc, molecule("C6H6")), attached(untouched, molecule("C6H6"))
    assert energy_of(atoms) == energy_of(other)
    received = pickle.loads(written_by_multiprocessing(atoms))
    junk = fill_freed_memory(calc)
    assert not is_shared(calc) and not is_shared(received.calc)
    expected = energy_of(moved(other))
    assert energy_of(moved(atoms)) == expected
    assert energy_of(moved(received)) == expected
    assert (received.get_forces() == other.get_forces()).all()
    del junk


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_copies_have_the_same_bits(backend: str, n: int) -> None:
    calc = calculator(n, dtype="float32", backend=backend)
    energy = energy_of(attached(calc, molecule("CH3CHO"), charge=-1))
    with torch.inference_mode():
        again = pickle.loads(pickle.dumps(calc))
    for other in (again, copy.deepcopy(calc), copy.copy(calc)):
        assert other.backend == calc.backend and other.state == calc.state
        other.reset()
        assert energy_of(attached(other, molecule("CH3CHO"), charge=-1)) == energy


def test_a_pickle_is_about_as_large_as_the_weights() -> None:
    calc = make_calculator(dtype="float64", backend="fused")
    energy_of(attached(calc, molecule("C6H6")))
    assert len(pickle.dumps(calc)) < 1.5 * len(pickle.dumps(calc.potential))


def test_a_force_field_outlives_being_sent() -> None:
    calc = make_calculator(backend="fused")
    field = md.ModelForceField(calc, skin=0.7)
    batch = field.batch([molecule("H2O"), molecule("CH4")])
    expected = field(batch)
    received = pickle.loads(written_by_multiprocessing(field))
    junk = fill_freed_memory(calc)
    for each in (field, received):
        assert torch.equal(each(batch).forces, expected.forces)
        assert each.description == field.description
    assert received._neighbors.skin == 0.7 and not is_shared(calc)
    del junk


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("move", [methodcaller("share_memory"), written_by_multiprocessing])
def test_parameters_may_go_to_other_memory(move: Any, dtype: str) -> None:
    calc, untouched = (make_calculator(dtype=dtype, backend="fused") for _ in range(2))
    atoms, other = attached(calc, molecule("C6H6")), attached(untouched, molecule("C6H6"))
    energy_of(atoms)
    move(calc.potential)
    junk = fill_freed_memory(calc)
    assert is_shared(calc)
    assert energy_of(moved(atoms)) == energy_of(moved(other))
    del junk


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_atoms_with_calculators_in_a_pool(method: str) -> None:
    calc, committee = make_calculator(backend="fused"), calculator(2, backend="fused")
    structures = [attached(calc, molecule(name)) for name in ("H2O", "CH3CHO", "CH4")]
    structures.append(attached(committee, molecule("CH3CHO")))
    expected = [energy_of(atoms) for atoms in structures]
    for atoms in structures:
        atoms.calc.reset()
    with pool(method) as processes:
        assert processes.map_async(energy_of, structures).get(SECONDS) == expected
    for atoms in structures:
        atoms.calc.reset()
    assert [energy_of(atoms) for atoms in structures] == expected


def test_a_forked_process_waits_for_no_threads() -> None:
    make_calculator(backend="fused")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pool("fork") as processes:
            assert processes.apply_async(torch.get_num_threads).get(SECONDS) == 1
    finally:
        torch.set_num_threads(before)


def test_a_neighbor_list_outlives_being_sent() -> None:
    batch = AtomsBatch.from_atoms(molecule("C6H6"), dtype=torch.float32)
    held = VerletList(5.0)
    before = held.update(batch).pairs
    received = pickle.loads(written_by_multiprocessing(held))
    for listed in (held, received):
        assert torch.equal(listed.update(batch).pairs, before)
    assert received.n_searches == held.n_searches + 1  # it searched for itself
