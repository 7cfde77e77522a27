"""Frames on the way to minima: of whom they are, what is kept, and that a run goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "datasets"))

import minima

from nnpcalc import NNPCalculator

MODEL = "tensornet-spice"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Ethanol four times, acetone once for training and once not, water, and two waters apart."""
    far = molecule("CH3OH") + molecule("CH3OH")
    far.positions[6:] += 5.0
    rows = [
        *[(molecule("CH3CH2OH"), 0, 0)] * 4, (molecule("CH3COCH3"), 3, 1), (molecule("C6H6"), 5, 0),
        (molecule("H2O"), 7, 0), (far, 8, 0),
    ]  # fmt: skip
    generator = np.random.default_rng(0)
    arrays = {
        "n_atoms": np.array([len(atoms) for atoms, _, _ in rows], np.int32),
        "molecule": np.array([name for _, name, _ in rows], np.int32),
        "split": np.array([split for _, _, split in rows], np.uint8),
        "charge": np.zeros(len(rows), np.int8),
        "numbers": np.concatenate([atoms.numbers for atoms, _, _ in rows]).astype(np.uint8),
        "positions": np.concatenate(
            [atoms.positions + generator.normal(0.0, 0.05, (len(atoms), 3)) for atoms, _, _ in rows]
        ).astype(np.float32),
    }
    path = tmp_path / "corpus.npz"
    np.savez(path, **arrays)
    return path


def test_one_training_conformer_of_each_whole_molecule_of_the_right_size(corpus: Path) -> None:
    found = minima.conformers([corpus], seed=1)
    assert sorted(atoms.info["molecule"] for atoms in found) == [0, 5]
    again = minima.conformers([corpus], seed=1)
    assert all((a.positions == b.positions).all() for a, b in zip(found, again, strict=True))
    picked = {
        float(atoms.positions[0, 0])
        for seed in range(20)
        for atoms in minima.conformers([corpus], seed)
        if atoms.info["molecule"] == 0
    }
    assert len(picked) > 1, "always the same conformer"


def test_frames_lead_downhill_to_a_minimum(corpus: Path) -> None:
    start = minima.conformers([corpus], seed=1)
    frames = list(minima.relaxed(start, MODEL))
    calculator = NNPCalculator(MODEL)
    for atoms in start:
        mine = [f for f in frames if f.info["molecule"] == atoms.info["molecule"]]
        assert len(mine) >= 2
        first, *energies = (e.energy for e in calculator.evaluate([atoms, *mine]))
        assert first > energies[0] > energies[-1]
        forces = calculator.evaluate([mine[-1]])[0].forces
        assert forces is not None
        assert np.linalg.norm(forces, axis=1).max() <= 1.01 * minima.FMAX


def test_minima_only(corpus: Path) -> None:
    start = minima.conformers([corpus], seed=1)
    whole = list(minima.relaxed(start, MODEL))
    ends = list(minima.relaxed(start, MODEL, ()))
    assert [f.info["molecule"] for f in ends] == [a.info["molecule"] for a in start]
    for atoms in ends:
        last = [f for f in whole if f.info["molecule"] == atoms.info["molecule"]][-1]
        assert atoms.positions == pytest.approx(last.positions, abs=1e-9)


def test_a_stopped_run_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(minima, "SHARD", 1)
    out = tmp_path / "minima"
    line = ["minima.py", "--model", MODEL, "--data", str(corpus), "--count", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    minima.main()
    first, second = sorted(out.glob("*.xyz"))
    whole = second.read_bytes()
    second.unlink()
    capsys.readouterr()
    minima.main()
    assert second.read_bytes() == whole
    assert str(first) not in capsys.readouterr().out
    frames: list[Atoms] = read(second, index=":")
    assert all(atoms.info["charge"] == 0 and "molecule" in atoms.info for atoms in frames)
    monkeypatch.setattr(sys, "argv", [*line, "--seed", "2"])
    with pytest.raises(ValueError, match="belongs to a run with other options"):
        minima.main()


def test_the_multiplicity_is_passed_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "spin" not in minima.conformers([corpus], seed=1)[0].info
    arrays = dict(np.load(corpus))
    np.savez(corpus, **arrays, multiplicity=np.full(len(arrays["n_atoms"]), 3))
    assert {atoms.info["spin"] for atoms in minima.conformers([corpus], seed=1)} == {3}
    seen: list[int] = []

    def optimize(molecules: list[Atoms], *_, **__) -> list[SimpleNamespace]:
        seen.extend(atoms.info["spin"] for atoms in molecules)
        return [SimpleNamespace(atoms=atoms, energy=0.0, steps=3) for atoms in molecules]

    monkeypatch.setattr(minima, "optimize", optimize)
    out = tmp_path / "minima"
    line = ["minima.py", "--model", MODEL, "--data", str(corpus), "--count", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    minima.main()
    frames: list[Atoms] = read(out / "part-000000.xyz", index=":")
    assert seen == [3, 3] == [atoms.info["spin"] for atoms in frames]


def test_without_a_split_all_is_for_training(corpus: Path) -> None:
    arrays = dict(np.load(corpus))
    del arrays["split"]
    np.savez(corpus, **arrays)
    found = minima.conformers([corpus], seed=1)
    assert sorted(atoms.info["molecule"] for atoms in found) == [0, 3, 5]
