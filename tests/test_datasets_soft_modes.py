"""Soft modes of minima: what they are, of whom, and that a run goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "datasets"))

import soft_modes
from model_hessian import lindh_hessian

from nnpcalc import NNPCalculator
from nnpcalc.optimizer import optimize
from nnpcalc.train.data import read_corpus

MODEL = "tensornet-spice"
SPIN_MODEL = "tensornet-spin-xtb"


def corpus(path: Path, molecules: list[Atoms], forces: float = 1.0) -> None:
    """The molecules in one file, with labels that no minimum has."""
    n_atoms = np.array([len(atoms) for atoms in molecules])
    np.savez(
        path,
        n_atoms=n_atoms,
        charge=np.array([atoms.info.get("charge", 0) for atoms in molecules]),
        energy=np.zeros(len(molecules)),
        molecule=np.arange(len(molecules)),
        source=np.zeros(len(molecules), np.int64),
        split=np.zeros(len(molecules), np.int64),
        numbers=np.concatenate([atoms.numbers for atoms in molecules]),
        positions=np.concatenate([atoms.positions for atoms in molecules]),
        forces=np.full((n_atoms.sum(), 3), forces),
    )


@pytest.fixture(scope="module")
def methanol() -> Atoms:
    return optimize(molecule("CH3OH"), MODEL, dtype="float64", fmax=0.001).atoms


def test_a_force_along_the_modes_moves_a_minimum_as_they_say(methanol: Atoms) -> None:
    """A small constant force on the hydrogen of the OH group; the molecule is relaxed under it."""
    model = NNPCalculator(MODEL, dtype="float64")
    modes = soft_modes.soft_modes(soft_modes.hessian(methanol, model), methanol.positions)
    pull: NDArray[np.float64] = np.zeros((len(methanol), 3))
    hydrogen = int(np.argmin(methanol.get_distances(1, range(6)) + 9.0 * (methanol.numbers != 1)))
    plane = np.cross(
        methanol.positions[0] - methanol.positions[1],
        methanol.positions[hydrogen] - methanol.positions[1],
    )
    pull[hydrogen] = 0.002 * plane / np.linalg.norm(plane)  # turns the group about C-O
    # without net force and torque, as errors of a model's forces are
    basis = soft_modes.inner_motions(methanol.positions)
    pull = (basis @ (basis.T @ pull.reshape(-1))).reshape(-1, 3)
    expected = np.linalg.norm(np.einsum("nmc,nc->m", modes, pull))
    relaxed = methanol.copy()
    for _ in range(40):  # Newton's steps with the Hessian of the start
        relaxed.calc = model
        total = (relaxed.get_forces() + pull).reshape(-1)
        hessian = basis.T @ soft_modes.hessian(methanol, model) @ basis
        step = basis @ np.linalg.solve(hessian, basis.T @ total)
        relaxed.positions += step.reshape(-1, 3)
        if np.abs(step).max() < 1e-6:
            break
    moved = np.linalg.norm(relaxed.positions - methanol.positions)
    assert moved > 0.004
    assert expected == pytest.approx(moved, rel=0.1)


def test_modes_are_those_of_the_exact_hessian(methanol: Atoms) -> None:
    model = NNPCalculator(MODEL, dtype="float64")
    exact = model.get_hessian(methanol).reshape(18, 18)
    assert soft_modes.hessian(methanol, model) == pytest.approx(exact, abs=0.05)
    modes = soft_modes.soft_modes(exact, methanol.positions)
    assert modes.shape == (6, soft_modes.MODES, 3)
    flat = modes.transpose(1, 0, 2).reshape(soft_modes.MODES, -1)
    sizes = np.linalg.norm(flat, axis=1)
    vectors = flat / sizes[:, None]
    assert vectors @ vectors.T == pytest.approx(np.eye(soft_modes.MODES), abs=1e-8)
    for vector, size in zip(vectors, sizes, strict=True):
        assert exact @ vector == pytest.approx(vector / size, abs=0.05)  # 1 / size: the stiffness
    assert (np.diff(sizes) <= 0.0).all(), "the softest come first"
    assert np.abs(vectors.reshape(-1, 6, 3).sum(1)).max() < 1e-6, "no translation"


@pytest.mark.parametrize(("name", "count"), [("H2", 0), ("CO2", 4), ("H2O", 3), ("CH3OH", 12)])
def test_modes_there_are(name: str, count: int) -> None:
    atoms = optimize(molecule(name), MODEL, fmax=0.01).atoms
    atoms.info["force"] = 9.0
    found = soft_modes.of_resting([atoms], NNPCalculator(MODEL), fmax=0.05)
    assert int(found.any((0, 2)).sum()) == count


def test_a_soft_direction_counts_as_no_softer_than_the_floor() -> None:
    positions = molecule("H2O").positions
    basis = soft_modes.inner_motions(positions)
    hessian = basis @ np.diag([1e-4, -2e-3, 30.0]) @ basis.T
    sizes = np.linalg.norm(soft_modes.soft_modes(hessian, positions)[:, :3], axis=(0, 2))
    floor = 1.0 / soft_modes.SOFTEST
    assert sizes == pytest.approx([floor, floor, 1.0 / 30.0])


def test_a_file_gets_the_array_where_conformers_rest(
    methanol: Atoms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    hot = methanol.copy()
    hot.rattle(0.1, seed=1)
    ammonium = Atoms("NH4", np.vstack([np.zeros(3), 0.6 * np.array(
        [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])]), info={"charge": 1})  # fmt: skip
    ammonium = optimize(ammonium, MODEL, fmax=0.01).atoms
    source, out = tmp_path / "part-0000.npz", tmp_path / "modes"
    corpus(source, [hot, methanol, ammonium])
    line = ["soft_modes.py", str(source), "--model", MODEL, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    soft_modes.main()
    assert "2 of 3 with modes" in capsys.readouterr().out
    train, _ = read_corpus([out / "part-0000.npz"])
    assert not train.soft_modes[:6].any()
    assert train.soft_modes[6:12].any((0, 2)).sum() == 12
    assert train.soft_modes[12:].any((0, 2)).sum() == 9
    assert (train.positions == read_corpus([source])[0].positions).all()
    before = (out / "part-0000.npz").read_bytes()
    soft_modes.main()
    assert (out / "part-0000.npz").read_bytes() == before
    assert capsys.readouterr().out == ""
    # a structure whose label is at rest counts as well, wherever the model's own minimum lies
    corpus(source, [hot], forces=0.0)
    monkeypatch.setattr(sys, "argv", [*line[:-1], str(tmp_path / "other")])
    soft_modes.main()
    assert "1 of 1 with modes" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*line[:-1], str(tmp_path)])
    with pytest.raises(SystemExit):
        soft_modes.main()
    assert "name another directory" in capsys.readouterr().err


def test_without_a_model_every_conformer_gets_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    hot = molecule("CH3OH")
    hot.rattle(0.1, seed=1)
    waters = [molecule("H2O").positions + shift for shift in (0.0, 3.0)]
    pair = Atoms("OH2OH2Ne", np.vstack([*waters, [[9.0, 9.0, 9.0]]]))
    source, out = tmp_path / "part-0000.npz", tmp_path / "modes"
    corpus(source, [hot, molecule("HCl"), pair])
    monkeypatch.setattr(sys, "argv", ["soft_modes.py", str(source), "--out", str(out)])
    soft_modes.main()
    assert "2 of 3 with modes" in capsys.readouterr().out
    found = read_corpus([out / "part-0000.npz"])[0].soft_modes
    expected = soft_modes.soft_modes(lindh_hessian(hot.numbers, hot.positions), hot.positions)
    np.testing.assert_allclose(found[:6], expected, atol=2e-3 * np.abs(expected).max())
    assert not found[6:8].any()
    # two waters and a lone atom: nothing holds them together, the floor bounds what they weigh
    free = np.linalg.norm(found[8:].astype(float), axis=(0, 2))
    assert (free[:9] == pytest.approx(1.0 / soft_modes.SOFTEST, rel=1e-2)) and free[9] < free[0]
    other = ["soft_modes.py", str(source), "--model", MODEL, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", other)
    with pytest.raises(ValueError, match="belongs to a run with other options"):
        soft_modes.main()


def test_the_multiplicity_reaches_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methylene as singlet and as triplet, at the same place, by a model that tells them apart."""
    source, out = tmp_path / "part-0000.npz", tmp_path / "modes"
    positions = molecule("CH2_s3B1d").positions
    corpus(source, [Atoms("CH2", positions)] * 2, forces=0.0)
    assert "spin" not in soft_modes.read(source)[0].info
    arrays = dict(np.load(source))
    np.savez(source, **arrays, multiplicity=np.array([1, 3]))
    line = ["soft_modes.py", str(source), "--model", SPIN_MODEL, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    soft_modes.main()
    made = np.load(out / "part-0000.npz")
    assert made["multiplicity"].tolist() == [1, 3]
    model = NNPCalculator(SPIN_MODEL)
    for k, spin in enumerate((1, 3)):
        atoms = Atoms("CH2", positions, info={"charge": 0, "spin": spin})
        expected = soft_modes.soft_modes(soft_modes.hessian(atoms, model), positions)
        found = made["soft_modes"][3 * k : 3 * k + 3].astype(float)
        np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=2e-3)
    assert np.abs(made["soft_modes"][:3]) != pytest.approx(np.abs(made["soft_modes"][3:]), abs=0.01)


def test_a_file_with_modes_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plain, done, out = tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "out"
    corpus(plain, [molecule("H2O")])
    np.savez(done, **np.load(plain), soft_modes=np.zeros((3, soft_modes.MODES, 3), np.float16))
    monkeypatch.setattr(sys, "argv", ["soft_modes.py", str(plain), str(done), "--out", str(out)])
    with pytest.raises(SystemExit):
        soft_modes.main()
    assert f"{done} has soft_modes already" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("model", [[], ["--model", MODEL]])
def test_an_empty_shard_stays_one(
    model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, empty, out = tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "out"
    corpus(full, [molecule("H2O")])
    np.savez(empty, **{name: array[:0] for name, array in np.load(full).items()})
    monkeypatch.setattr(sys, "argv", ["soft_modes.py", str(empty), "--out", str(out), *model])
    soft_modes.main()
    made = np.load(out / "b.npz")
    assert made["n_atoms"].size == 0
    assert made["soft_modes"].shape == (0, soft_modes.MODES, 3)
    assert made["soft_modes"].dtype == np.float16
