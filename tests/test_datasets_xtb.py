"""The xTB corpora and the experiments on them: what can go wrong without a single label."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import units
from ase.data import atomic_masses

pytest.importorskip("rdkit")

from rdkit import Chem

from example_scripts import load
from nnpcalc.models import build_core
from nnpcalc.train.data import read_corpus

open_shell, toy_sets, xtb = map(importlib.import_module, ("open_shell", "toy_sets", "xtb"))
state_variants = importlib.import_module("state_variants")


carbenes = load("carbene_labels", "datasets/carbenes.py")
carbene_table = load("carbene_table", "experiments/carbenes.py")
toy_table = load("toy_table", "experiments/toy_states.py")


def bowl(stiffness: float) -> xtb.Surface:
    """Every atom on a spring to the origin."""
    return lambda x: (0.5 * stiffness * float((x**2).sum()), -stiffness * x)


def spring(stiffness: float, length: float) -> xtb.Surface:
    """Two atoms on a spring."""

    def surface(x: np.ndarray) -> tuple[float, np.ndarray]:
        bond = x[1] - x[0]
        r = float(np.linalg.norm(bond))
        pull = stiffness * (r - length) * bond / r
        return 0.5 * stiffness * (r - length) ** 2, np.array([pull, -pull])

    return surface


class FakeXTB:
    """Springs to the origin in place of tblite; what the scripts do with it is tested."""

    def __init__(
        self, numbers: np.ndarray, charge: int, multiplicity: int, *_: Any, **__: Any
    ) -> None:
        xtb.unpaired_electrons(numbers, charge, multiplicity)
        self.offset = 10.0 * charge + multiplicity

    def __call__(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        energy, forces = bowl(0.01)(positions)
        return energy + self.offset, forces


def frame(**changes: Any) -> xtb.Frame:
    values: dict[str, Any] = {
        "numbers": np.array([8, 1]),
        "positions": np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=np.float32),
        "charge": 0,
        "multiplicity": 2,
        "energy": -100.0,
        "forces": np.ones((2, 3)),
        "molecule": 0,
        "source": 0,
        "split": 0,
    }
    return xtb.Frame(**{**values, **changes})


def test_multiplicity_needs_the_right_number_of_electrons() -> None:
    water, hydroxyl = np.array([8, 1, 1]), np.array([8, 1])
    assert [xtb.unpaired_electrons(water, 0, m) for m in (1, 3)] == [0, 2]
    assert [xtb.unpaired_electrons(hydroxyl, q, 1 + (q == 0)) for q in (-1, 0, 1)] == [0, 1, 0]
    for numbers, charge, multiplicity in ((water, 0, 2), (water, 1, 1), (hydroxyl, 0, 1)):
        with pytest.raises(ValueError, match="cannot have multiplicity"):
            xtb.unpaired_electrons(numbers, charge, multiplicity)
    with pytest.raises(ValueError, match="0 electrons"):
        xtb.unpaired_electrons(np.array([1]), 1, 3)


@pytest.mark.parametrize("charge", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("numbers", [[1, 1], [8, 1], [6, 1, 1, 1, 1], [7, 8, 35, 53]])
def test_open_shell_states_are_possible(numbers: list[int], charge: int) -> None:
    atoms = np.array(numbers)
    if atoms.sum() - charge < 1:
        return
    generator = np.random.default_rng(0)
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(40):
        states = open_shell.states_of(atoms, charge, 4, generator)
        assert len(set(states)) == len(states) <= 4
        assert states[0] == (charge, 1 + (atoms.sum() - charge) % 2)
        for q, m in states:
            xtb.unpaired_electrons(atoms, q, m)
            assert abs(q) <= 2 and 1 <= m <= 4
        seen.update(states)
    assert len(seen) >= 4


def test_the_toy_sets_hold_possible_states() -> None:
    for name, molecules in toy_sets.SETS.items():
        assert len({molecule.name for molecule in molecules}) == len(molecules)
        for molecule in molecules:
            numbers, positions = toy_sets.start_of(molecule, 1)
            assert positions.shape == (len(numbers), 3) and len(molecule.states) >= 2
            for charge, multiplicity in molecule.states:
                unpaired = xtb.unpaired_electrons(numbers, charge, multiplicity)
                assert unpaired < 2 or name == "B"
            charges = {charge for charge, _ in molecule.states}
            assert len(charges) == (len(molecule.states) if name == "A" else 1)


def test_carbenes_and_nitrenes() -> None:
    every = carbenes.candidates()
    assert len(every) == len(set(every)) > 500
    assert {"[CH2]", "[NH]", "[CH]c1ccccc1", "[N]c1ccccc1"} <= set(every)
    kinds: Counter[int] = Counter()
    for text in every:
        molecule = Chem.MolFromSmiles(text)
        assert molecule.GetNumHeavyAtoms() <= 9 and Chem.GetFormalCharge(molecule) == 0
        numbers = [atom.GetAtomicNum() for atom in Chem.AddHs(molecule).GetAtoms()]
        assert xtb.unpaired_electrons(np.array(numbers), 0, 3) == 2
        centre = carbenes.centre_of(molecule)
        hydrogens = centre.GetTotalNumHs()
        assert centre.GetDegree() + hydrogens == {6: 2, 7: 1}[centre.GetAtomicNum()]
        kinds[centre.GetAtomicNum()] += 1
    assert min(kinds[6], kinds[7]) > 30
    with pytest.raises(ValueError, match="not a carbene"):
        carbenes.centre_of(Chem.MolFromSmiles("C[CH2]"))


def skeleton(text: str) -> str:
    molecule = open_shell.parse(text)
    assert molecule is not None
    return open_shell.skeleton(molecule)


def test_skeleton_forgets_hydrogens_charges_and_bond_orders() -> None:
    assert len({skeleton(s) for s in ("CC(=O)O", "CC(=O)[O-]", "CC(O)O", "C=C(O)O")}) == 1
    assert skeleton("c1ccccc1") == skeleton("C1CCCCC1") != skeleton("CCCCCC")
    assert skeleton("CCO") != skeleton("COC") and skeleton("CCO") != skeleton("CCN")


def test_unwanted_molecules_are_left_out() -> None:
    for text in ("[Na+].[Cl-]", "C[CH2]", "[Cl-]", "CCCCCCCCCCCCC", "[SeH2]", "not a molecule"):
        assert open_shell.parse(text) is None, text


def test_no_training_skeleton_is_validated_or_kept_apart() -> None:
    lines = ["CC(=O)O", "CC(=O)[O-]", "CCO", "CCN", "C=CO", "CCC", "CC(C)O", "CCS"]
    skeletons = {row: skeleton(text) for row, text in enumerate(lines)}
    parts = {0: 1, 1: 0, 2: 0, 3: 0, 5: 0, 7: 1}  # lines 4 and 6 are kept apart
    split = open_shell.assign(skeletons, parts, 0.5, 1)
    # Line 1 is acetate to a validated acetic acid; 2 is saturated line 4; 6 is 0 without a bond.
    assert split == {0: 1, 3: 0, 5: 0, 7: 1}
    for seed in range(5):
        drawn = open_shell.assign(skeletons, None, 0.5, seed)
        assert set(drawn) == set(skeletons)
        sides: list[set[str]] = [{skeletons[r] for r in drawn if drawn[r] == k} for k in (0, 1)]
        assert not sides[0] & sides[1]


def test_relaxation_finds_the_minimum_in_short_steps() -> None:
    start = np.random.default_rng(0).normal(size=(4, 3))
    path = [start, *xtb.relax(bowl(5.0), start, 500, tolerance=1e-3)]
    assert np.abs(path[-1]).max() < 1e-3 and len(path) < 500
    assert max(np.abs(b - a).max() for a, b in pairwise(path)) <= 0.1 + 1e-12
    assert len(list(xtb.relax(bowl(5.0), start, 7))) == 7
    assert not list(xtb.relax(bowl(5.0), np.zeros((2, 3)), 7))


def test_langevin_dynamics_has_its_temperature() -> None:
    numbers = np.array([1, 6, 8] * 20)
    stiffness, temperature = 5.0, 400.0
    dynamics = xtb.langevin(
        bowl(stiffness), numbers, np.zeros((60, 3)), temperature, np.random.default_rng(3),
        step=2.0, friction=0.05,
    )  # fmt: skip
    squares = [(next(dynamics) ** 2).mean() for _ in range(3000)][500:]
    # 60 atoms of period 14 to 58 fs over 5 ps: a standard error of about 1 %.
    assert np.mean(squares) == pytest.approx(units.kB * temperature / stiffness, rel=0.04)


def test_normal_modes_of_a_spring() -> None:
    numbers = np.array([1, 9])
    positions = np.array([[0.0, 0.1, 0.0], [0.0, 0.1, 0.92]])
    quanta, modes = toy_sets.normal_modes(spring(60.0, 0.92), numbers, positions)
    mass = 1.0 / (1.0 / atomic_masses[numbers]).sum()
    omega = np.sqrt(60.0 / mass)  # 1 / (ASE's unit of time)
    assert quanta * units.s / units._hbar / units.J == pytest.approx([omega * units.s**2], rel=1e-5)
    assert modes.shape == (1, 2, 3)

    hbar = units._hbar * units.J * units.s
    generator = np.random.default_rng(1)
    for temperature in (300.0, 3000.0):
        shown = [
            toy_sets.displace(numbers, positions, quanta, modes, temperature, generator)
            for _ in range(4000)
        ]
        bonds = np.array([x[1, 2] - x[0, 2] for x in shown])
        expected = hbar / (2.0 * mass * omega)
        expected /= np.tanh(0.5 * hbar * omega / (units.kB * temperature))
        assert bonds.mean() == pytest.approx(0.92, abs=5.0 * np.sqrt(expected / 4000))
        assert bonds.var() == pytest.approx(expected, rel=0.1)
        centre = atomic_masses[numbers] @ np.array(shown)
        assert np.ptp(centre, axis=0).max() < 1e-4


def test_rigid_motions() -> None:
    bent = np.array([[0.0, 0.0, 0.0], [0.0, 0.7, 0.6], [0.0, -0.7, 0.6]])
    for positions, count in ((bent, 6), (bent * [0.0, 1.0, 0.0], 5), (bent[:2], 5)):
        motions = toy_sets.rigid_motions(np.arange(1.0, 1.0 + len(positions)), positions)
        assert motions.shape == (count, positions.size)
        assert motions @ motions.T == pytest.approx(np.eye(count), abs=1e-12)


def test_bonds_and_closest_pair() -> None:
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.96], [0.0, 3.0, 0.0]])
    bonds = xtb.bonds(np.array([8, 1, 1]), positions)
    assert bonds.tolist() == [[False, True, False], [True, False, False], [False] * 3]
    assert xtb.closest_pair(positions) == pytest.approx(0.96)


def test_a_shard_reads_back(tmp_path: Path) -> None:
    frames = [frame(), frame(charge=-1, multiplicity=1, energy=-103.5, split=1, molecule=7)]
    xtb.write_shard(tmp_path / "a.npz", frames, {"not converged": 3})
    train, validation = read_corpus([tmp_path / "a.npz"])
    assert (len(train), len(validation)) == (1, 1)
    assert (validation.charge[0], validation.multiplicity[0], validation.molecule[0]) == (-1, 1, 7)
    assert validation.energy[0] == -103.5
    np.testing.assert_array_equal(validation.positions, frames[1].positions)
    assert xtb.count(tmp_path / "a.npz") == {"labels": 2, "not converged": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_shard_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(KeyboardInterrupt):
        xtb.write_shard(tmp_path / "a.npz", [frame()])
    assert not (tmp_path / "a.npz").exists()


def test_shards_that_exist_are_not_made_again(tmp_path: Path) -> None:
    made: list[int] = []

    def make(task: int) -> xtb.Made:
        made.append(task)
        if task == 2 and len(made) < 4:
            raise RuntimeError("stopped")
        return [frame()] * task, {"force too large": 1}

    tasks = {f"part-{k}": k for k in (1, 2, 3)}
    with pytest.raises(RuntimeError, match="stopped"):
        xtb.make_shards(make, {}, tasks, tmp_path)
    made += [0, 0]
    total = xtb.make_shards(make, {}, tasks, tmp_path)
    assert made == [1, 2, 0, 0, 2, 3]
    assert total == {"labels": 6, "force too large": 3}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (xtb, toy_sets, carbenes, open_shell):
        monkeypatch.setattr(module, "XTB", FakeXTB)


@pytest.mark.usefixtures("fake")
def test_every_toy_geometry_has_all_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = iter([False, False, True] + [False] * 10_000)
    real = xtb.label

    def label(*arguments: Any, **options: Any) -> xtb.Frame:
        if next(refused):
            raise xtb.Unusable("not converged")
        return real(*arguments, **options)

    monkeypatch.setattr(toy_sets, "label", label)
    monkeypatch.setattr(xtb, "MIN_DISTANCE", 0.0)  # the springs pull the atoms together
    toy_sets.main(["A", "--output", str(tmp_path), "--geometries", "20"])
    files = sorted(tmp_path.glob("*.npz"))
    assert len(files) == len(toy_sets.SETS["A"])
    left_out = sum(xtb.count(path).get("not converged", 0) for path in files)
    assert left_out == 1
    sides: list[set[bytes]] = [set(), set()]
    for side, dataset in zip(sides, read_corpus(files), strict=True):
        for rows in state_variants.groups(state_variants.geometries_of(dataset)):
            molecule = toy_sets.SETS["A"][dataset.molecule[rows[0]]]
            states = zip(dataset.charge[rows], dataset.multiplicity[rows], strict=True)
            assert sorted(states) == sorted(molecule.states)
            first = dataset.offsets[rows[0]]
            side.add(dataset.positions[first : first + dataset.n_atoms[rows[0]]].tobytes())
    assert len(sides[0]) + len(sides[1]) == 20 * len(toy_sets.SETS["A"])
    assert not sides[0] & sides[1] and len(sides[1]) > 10


@pytest.mark.usefixtures("fake")
def test_every_carbene_geometry_has_both_states(tmp_path: Path) -> None:
    carbenes.main(["--output", str(tmp_path), "--limit", "12", "--steps", "1", "--geometries", "3"])
    train, validation = read_corpus(sorted(tmp_path.glob("*.npz")))
    assert not set(train.molecule) & set(validation.molecule) and len(train) > 20
    for rows in state_variants.groups(state_variants.geometries_of(train)):
        assert train.multiplicity[rows].tolist() == [1, 3]
    assert len((tmp_path / "molecules.txt").read_text().split()) == 12


@pytest.mark.usefixtures("fake")
def test_open_shells_keep_to_their_parts(tmp_path: Path) -> None:
    smiles = tmp_path / "smiles.txt"
    smiles.write_text("CC(=O)O\nCCO\nCCN\nC=C\nc1ccccc1\n")
    parts = tmp_path / "parts.npz"
    np.savez(parts, molecule=[0, 0, 2, 3], split=[1, 1, 0, 0])
    arguments = [str(smiles), "--parts", str(parts), "--geometries", "2", "--molecules", "2"]
    for name in ("once", "again"):
        open_shell.main([*arguments, "--output", str(tmp_path / name)])
    train, validation = read_corpus(sorted((tmp_path / "once").glob("*.npz")))
    assert set(train.molecule) == {2, 3} and set(validation.molecule) == {0}
    assert set(train.multiplicity) > {1, 2} and set(train.source) <= {20, 21}
    again = read_corpus(sorted((tmp_path / "again").glob("*.npz")))[0]
    np.testing.assert_array_equal(train.positions, again.positions)


def degenerate(path: Path, geometries: int = 6) -> None:
    """Three states of random hydroxyls and two of random waters, half of them validated."""
    generator = np.random.default_rng(5)
    frames = []
    for k in range(2 * geometries):
        water = k % 2
        numbers = np.array([8, 1, 1] if water else [8, 1])
        positions = np.arange(3.0 * len(numbers)).reshape(-1, 3) * 0.35
        positions = (positions + generator.normal(scale=0.05, size=positions.shape)).astype("f4")
        for charge, multiplicity in ((0, 1), (0, 3)) if water else ((0, 2), (1, 1), (-1, 1)):
            frames.append(
                frame(
                    numbers=numbers, positions=positions, charge=charge,
                    multiplicity=multiplicity, energy=generator.normal(scale=5.0),
                    forces=generator.normal(size=positions.shape), molecule=water,
                    split=int(k >= geometries),
                )
            )  # fmt: skip
    order = generator.permutation(len(frames))
    xtb.write_shard(path, [frames[k] for k in order])


def test_floor_is_the_best_of_all_constant_answers(tmp_path: Path) -> None:
    degenerate(tmp_path / "a.npz")
    dataset = read_corpus([tmp_path / "a.npz"])[0]
    geometry = state_variants.geometries_of(dataset)
    assert len(set(geometry)) == 6
    energy = force = 0.0
    for g in set(geometry.tolist()):
        rows = [k for k in range(len(dataset)) if geometry[k] == g]
        labels = dataset.energy[rows]
        energy += min(sum(abs(e - c) for e in labels) for c in labels)
        atoms = [slice(dataset.offsets[k], dataset.offsets[k + 1]) for k in rows]
        for column in np.stack([dataset.forces[a].ravel() for a in atoms], axis=1):
            force += min(sum(abs(f - c) for f in column) for c in column)
    best = state_variants.floor(dataset)
    assert best == pytest.approx((energy / len(dataset), force / dataset.forces.size), rel=1e-6)


def test_gaps(tmp_path: Path) -> None:
    degenerate(tmp_path / "a.npz")
    dataset = read_corpus([tmp_path / "a.npz"])[1]
    waters = dataset.take(np.flatnonzero(dataset.molecule == 1))
    energies: dict[bytes, dict[int, float]] = {}
    for k in range(len(waters)):
        place = waters.positions[3 * k : 3 * k + 3].tobytes()
        energies.setdefault(place, {})[int(waters.multiplicity[k])] = waters.energy[k]
    expected = [by_spin[3] - by_spin[1] for by_spin in energies.values()]
    assert state_variants.gaps(waters, waters.energy) == pytest.approx(expected)


def test_a_thin_corpus_keeps_the_states_of_a_geometry_together(tmp_path: Path) -> None:
    degenerate(tmp_path / "a.npz")
    state_variants.thin([tmp_path / "a.npz"], tmp_path / "b.npz", 2, 1)
    for dataset, wanted in zip(read_corpus([tmp_path / "b.npz"]), (2, 1), strict=True):
        counts = Counter(
            int(dataset.molecule[rows[0]]) * 10 + rows.size
            for rows in state_variants.groups(state_variants.geometries_of(dataset))
        )
        assert counts == {3: wanted, 12: wanted}


@pytest.mark.parametrize("attribute", ["charge", "unpaired_electrons"])
def test_variants_know_the_state_or_do_not(attribute: str) -> None:
    every = state_variants.variants(attribute)
    assert len({state_variants.slug(variant.name) for variant in every}) == len(every)
    known = "charge" if attribute == "charge" else "multiplicity"
    for variant in every:
        core = build_core("tensornet", {"channels": 8, "layers": 1, **variant.options})
        blind = variant.name in ("state-blind", "state energy only")
        assert core.conditions_on == (() if blind else (known,))
        assert variant.state_energy == ("state energy" in variant.name)
    with pytest.raises(ValueError, match=r"no variant 'best'; known are state-blind"):
        state_variants.choose(every, ["best"])
    assert [v.name for v in state_variants.choose(every, ["lambda-0.4"])] == ["λ = 0.4"]


def test_a_small_table(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    degenerate(tmp_path / "data" / "a.npz")
    arguments = [
        "A", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--seeds", "1",
        "--epochs", "1", "--channels", "8", "--variants", "state-blind", "lambda-0.1",
    ]  # fmt: skip
    toy_table.main(arguments)
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("|---") == 3 and "state-blind" in table
    fixed = json.loads((tmp_path / "out" / "lambda-0.1-1" / "result.json").read_text())
    assert fixed["attribute_weights"] == [pytest.approx(0.1)]
    result = tmp_path / "out" / "state-blind-1" / "result.json"
    before = result.stat().st_mtime_ns
    toy_table.main(arguments)
    assert result.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="made with other settings"):
        toy_table.main([*arguments, "--epochs", "2"])
    degenerate(tmp_path / "data" / "a.npz", geometries=5)
    with pytest.raises(ValueError, match=r"or data: .*remove .*state-blind-1"):
        toy_table.main(arguments)


def test_a_blind_model_has_no_ground_state(tmp_path: Path) -> None:
    degenerate(tmp_path / "a.npz")
    dataset = read_corpus([tmp_path / "a.npz"])[1]
    dataset = dataset.take(np.flatnonzero(dataset.molecule == 1))
    rounding = 1e-6 * np.random.default_rng(0).normal(size=len(dataset))
    blind = state_variants.Errors(rounding - dataset.energy, -dataset.forces)
    measured = carbene_table.measure(dataset, blind)
    assert measured["sign"] == 0.0
    assert measured["gap_mae"] == pytest.approx(carbene_table.floors_of(dataset)["gap_mae"], 1e-5)
    right = state_variants.Errors(np.zeros(len(dataset)), np.zeros_like(dataset.forces))
    assert carbene_table.measure(dataset, right)["sign"] == 1.0


def test_labels_are_gradients_and_forget_the_past() -> None:
    pytest.importorskip("tblite")
    numbers = np.array([6, 8, 1, 1])
    positions = np.array([[0.0, 0, -0.5], [0, 0, 0.7], [0, 0.95, -1.1], [0.02, -0.93, -1.15]])
    for charge, multiplicity in ((0, 1), (0, 3), (1, 2), (-1, 2)):
        surface = xtb.XTB(numbers, charge, multiplicity)
        energy, forces = surface(positions)
        for atom, axis in ((0, 2), (2, 1), (3, 0)):
            move = np.zeros_like(positions)
            move[atom, axis] = 1e-3
            slope = (surface(positions - move)[0] - surface(positions + move)[0]) / 2e-3
            assert forces[atom, axis] == pytest.approx(slope, rel=1e-4, abs=3e-4)
        assert surface(positions)[0] == energy


def test_only_spin_polarisation_gives_methylene_a_triplet_ground_state() -> None:
    pytest.importorskip("tblite")
    numbers = np.array([6, 1, 1])
    positions = np.array([[0.0, 0, 0], [0, 0.99, 0.4], [0, -0.99, 0.4]])
    gap = {
        polarised: xtb.XTB(numbers, 0, 3, polarised)(positions)[0]
        - xtb.XTB(numbers, 0, 1, polarised)(positions)[0]
        for polarised in (False, True)
    }
    assert gap[True] < -0.5 and gap[True] < gap[False] - 1.0
    with pytest.raises(xtb.Unusable, match="too close"):
        xtb.label(numbers, 0.3 * positions, 0, 1)
