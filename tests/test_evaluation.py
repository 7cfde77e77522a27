"""evaluation.py and `NNPCalculator.evaluate`: many structures in a few passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError

from nnpcalc import NNPCalculator
from nnpcalc import evaluation as module
from nnpcalc.evaluation import chunks, estimate_pairs, pair_budget
from nnpcalc.neighbors import neighbor_list
from nnpcalc.state import State
from tiny_model import attached, diamond, make_calculator, make_potential


@pytest.fixture
def calc() -> NNPCalculator:
    return make_calculator()


def mixture() -> list[Atoms]:
    """Every size, state and periodicity at once."""
    slab = diamond()
    slab.pbc = (True, True, False)
    return [
        molecule("CH3CHO", info={"charge": -1}),
        Atoms("O"),
        diamond(),
        Atoms(),
        molecule("CH3", info={"spin": 2}),
        slab,
        molecule("CH2_s3B1d", info={"spin": 3}),
        molecule("H2O"),
    ]


def passes(calc: NNPCalculator, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of systems of the passes that are run."""
    seen: list[int] = []
    run = type(calc._engine).run

    def counted(self: Any, batch: Any, *arguments: Any, **keywords: Any) -> Any:
        seen.append(batch.n_systems)
        return run(self, batch, *arguments, **keywords)

    monkeypatch.setattr(type(calc._engine), "run", counted)
    return seen


@pytest.mark.parametrize("max_pairs", [None, 1, 60])
def test_equals_one_by_one(
    calc: NNPCalculator, max_pairs: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    structures = mixture()
    seen = passes(calc, monkeypatch)
    properties = ("energy", "energies", "forces", "stress")
    found = calc.evaluate(structures, properties, max_pairs=max_pairs)
    assert sum(seen) == len(structures)
    assert len(seen) == {None: 1, 1: len(structures)}.get(max_pairs, len(seen))
    if max_pairs == 60:
        assert 2 < len(seen) < len(structures)
    for atoms, result in zip(structures, found, strict=True):
        alone = attached(calc, atoms)
        assert result.energy == pytest.approx(alone.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(result.energies, alone.get_potential_energies(), atol=1e-9)
        assert result.forces is not None
        np.testing.assert_allclose(result.forces, alone.get_forces(), atol=1e-9)
        assert result.state == calc.state
        if atoms.pbc.any():
            assert result.stress is not None
            np.testing.assert_allclose(result.stress, alone.get_stress(), atol=1e-11)
        else:
            assert result.stress is None
        assert result.charges is None
    assert found[0].state == State(-1, 2)


def test_arguments(calc: NNPCalculator) -> None:
    assert calc.evaluate([]) == []
    assert calc.evaluate([], ["stress"]) == []
    (single,) = calc.evaluate(molecule("H2O"))
    (generated,) = calc.evaluate(atoms for atoms in [molecule("H2O")])
    assert single.energy == generated.energy
    (bare,) = calc.evaluate(molecule("H2O"), ["energy"])
    assert bare.forces is None
    assert bare.energy == pytest.approx(single.energy, abs=1e-10)
    with pytest.raises(PropertyNotImplementedError, match="'magmoms' is none of energy"):
        calc.evaluate([molecule("H2O")], ["magmoms"])
    with pytest.raises(PropertyNotImplementedError, match="leave stress out"):
        calc.evaluate([molecule("H2O")], ["stress"])
    with pytest.raises(ValueError, match="max_pairs must be at least 1, not 0"):
        calc.evaluate([molecule("H2O")], max_pairs=0)
    with pytest.raises(ValueError, match=r"ase.Atoms as system 1, not str"):
        calc.evaluate([molecule("H2O"), "H2O"])  # type: ignore[list-item]


def test_defaults_of_the_calculator_hold() -> None:
    calc = make_calculator(charge=1)
    results = calc.evaluate([molecule("H2O"), molecule("H2O", info={"charge": 0})])
    assert [result.state.charge for result in results] == [1, 0]


def test_the_calculator_and_the_structures_stay_as_they_are(calc: NNPCalculator) -> None:
    water = attached(calc, molecule("H2O"), note="x")
    energy = water.get_potential_energy()
    results, state = calc.results, calc.state
    structures = mixture()
    before = [(atoms.copy(), dict(atoms.info)) for atoms in structures]
    calc.evaluate(structures)
    assert calc.results is results
    assert calc.state is state
    for atoms, (copied, info) in zip(structures, before, strict=True):
        assert atoms == copied
        assert atoms.info == info
        assert sorted(atoms.arrays) == sorted(copied.arrays)
    assert water.get_potential_energy() == energy


def test_errors_name_the_place_in_the_list(calc: NNPCalculator) -> None:
    good, overlapping = molecule("H2O"), molecule("H2O")
    overlapping.positions[2] = overlapping.positions[1]
    for limit in (None, 1):
        with pytest.raises(ValueError, match=r"system 3 \(H2O\).*atom 1 \(H\) and atom 2 \(H\)"):
            calc.evaluate([good, good, good, overlapping, good], max_pairs=limit)
    impossible = molecule("H2O", info={"spin": 2})
    with pytest.raises(ValueError, match=r"system 2 \(H2O\): multiplicity 2"):
        calc.evaluate([good, good, impossible], max_pairs=1)
    with pytest.raises(ValueError, match=r"system 1 \(He\): atom 0 is He"):
        calc.evaluate([good, Atoms("He")])


def test_an_error_names_all_that_cannot_be_computed(calc: NNPCalculator) -> None:
    good, helium, broken = molecule("H2O"), Atoms("He"), molecule("CH4")
    broken.positions[2, 0] = np.nan
    with pytest.raises(
        ValueError,
        match=r"^4 of 6 systems cannot be computed: systems 1, 4 \(He\): atom 0 is He, .*; "
        r"system 2, atom 2 \(H\) has the non-finite .*; system 5 \(CH4\): multiplicity 2 ",
    ):
        calc.evaluate([good, helium, broken, good, helium, molecule("CH4", info={"spin": 2})])
    with pytest.raises(ValueError, match=r"systems 0, 1, 2, .*, 8, 9 and 5 more \(He\): "):
        calc.evaluate([helium] * 15)
    many = [molecule("H2O", info={"charge": q}) for q in range(11, 24)]
    with pytest.raises(ValueError, match=r"^13 of 13 .* largest charge is 10; and 3 other reasons"):
        calc.evaluate(many)


def test_a_forgotten_charge() -> None:
    calc = NNPCalculator("tensornet-spice", device="cpu")
    formate = molecule("HCOOH")[:4]
    missing = "CHO2 has 23 electrons with charge 0, which nobody set: is its charge missing?"
    with pytest.raises(module.ExtrapolationError) as caught:
        calc.get_potential_energy(formate)
    text = str(caught.value)
    assert text.startswith(missing) and "set atoms.info['charge']" in text and "spin" not in text
    assert "--charge" in text and "--on-extrapolation warn" in text
    with pytest.raises(ValueError, match=r"system 1 \(CHO2\) has 23 electrons"):
        calc.evaluate([molecule("H2O"), formate])
    calc.on_extrapolation = "warn"
    with pytest.warns(module.ExtrapolationWarning, match=f"^{missing[:-1]}"):
        calc.evaluate(formate)
    calc.on_extrapolation = "raise"
    formate.info["charge"] = 0
    with pytest.raises(ValueError, match=r"CHO2 has 23 electrons with charge 0: is this right\?"):
        calc.evaluate(formate)
    formate.info["spin"] = 2  # somebody means it
    with pytest.raises(ValueError, match=r"CHO2: multiplicity 2 is outside .*atoms.info\['spin'\]"):
        calc.evaluate(formate)
    formate.info = {"charge": -1}
    assert np.isfinite(calc.get_potential_energy(formate))


def test_without_electrons_there_is_no_energy(calc: NNPCalculator) -> None:
    proton = Atoms("H", info={"charge": 1})
    with pytest.raises(module.ExtrapolationError, match=r"H with charge 1 has no electrons"):
        calc.get_potential_energy(proton)
    calc.on_extrapolation = "warn"
    with pytest.warns(module.ExtrapolationWarning, match="no electrons"):
        assert np.isfinite(calc.get_potential_energy(proton))


def out_of_memory(
    calc: NNPCalculator, monkeypatch: pytest.MonkeyPatch, limit: int, error: Exception
) -> list[int]:
    """Let passes of more than `limit` atoms fail; the sizes tried."""
    tried: list[int] = []
    run = type(calc._engine).run

    def limited(self: Any, batch: Any, *arguments: Any, **keywords: Any) -> Any:
        tried.append(batch.n_atoms)
        if batch.n_atoms > limit:
            raise error
        return run(self, batch, *arguments, **keywords)

    monkeypatch.setattr(type(calc._engine), "run", limited)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError("Unable to allocate 59.3 MiB for an array"),  # numpy's
    ],
)
def test_passes_are_halved_when_memory_runs_out(
    calc: NNPCalculator, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    structures = [molecule(name) for name in ("H2O", "CH4", "NH3", "CO", "N2", "HCN", "C2H2")]
    expected = [result.energy for result in calc.evaluate(structures)]
    tried = out_of_memory(calc, monkeypatch, 8, error)
    found = [result.energy for result in calc.evaluate(structures)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert tried[0] == sum(len(atoms) for atoms in structures)
    assert max(tried[1:]) < tried[0]
    with pytest.raises(
        MemoryError, match=r"system 1 \(C2H6O\) does not fit into the memory of cpu"
    ):
        calc.evaluate([molecule("H2O"), molecule("CH3CH2OH")])


def test_other_failures_are_not_taken_for_a_lack_of_memory(
    calc: NNPCalculator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr(type(calc._engine), "run", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        calc.evaluate([molecule("H2O")] * 4)


def test_chunks() -> None:
    assert chunks([], 5) == []
    assert chunks([1, 2, 3], 100) == [(0, 3)]
    assert chunks([3, 2, 4, 9, 1, 1], 5) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert chunks([9, 9], 1) == [(0, 1), (1, 2)]


def test_estimates_are_of_the_right_size(calc: NNPCalculator) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3)
    structures = [
        molecule("C6H6"),
        bulk("C", "diamond", a=3.6, cubic=True),
        Atoms("H64", 2.1 * grid, cell=[8.4] * 3, pbc=True),
        Atoms("C64", 1.8 * grid),
        Atoms(),
        Atoms("H"),
    ]
    for atoms, estimate in zip(structures, estimate_pairs(structures, 4.0), strict=True):
        batch, _ = calc._checked_batch([atoms], torch.device("cpu"))
        pairs = neighbor_list(batch, 4.0).pairs.shape[1]
        assert pairs <= 1.2 * estimate
        assert estimate <= 4 * pairs + len(atoms)


def test_budget_follows_the_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, fused = make_calculator(), make_calculator(backend="fused", dtype="float32")
    assert pair_budget(fused._engine) > 5 * pair_budget(eager._engine)
    monkeypatch.setattr(module, "CPU_BUDGET", 1)
    assert pair_budget(eager._engine) == 1


@pytest.mark.gpu
def test_a_device_that_is_full_gets_smaller_passes() -> None:
    calc = NNPCalculator(make_potential(channels=64), device="cuda", dtype="float64")
    structures = [molecule("C6H6") for _ in range(200)]
    expected = calc.evaluate(structures[:1])[0].energy
    found = calc.evaluate(structures)
    np.testing.assert_allclose([result.energy for result in found], expected, atol=1e-8)
