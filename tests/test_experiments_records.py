"""Corpora and results that experiments leave behind serve the same data and options only."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from example_scripts import load
from nnpcalc.train.data import read_corpus

eight = load("eight_potentials", "experiments/eight_potentials.py")


def write(path: Path, seed: int) -> None:
    """Methanol (line 0) and formaldehyde (line 1, half of them charged), a quarter validated."""
    generator = np.random.default_rng(seed)
    frames: list[Atoms] = [molecule(name) for name in ("CH3OH", "H2CO") * 8]
    for atoms in frames:
        atoms.positions += generator.normal(0.0, 0.05, atoms.positions.shape)
    n = len(frames)
    path.parent.mkdir(exist_ok=True)
    np.savez(
        path,
        n_atoms=[len(atoms) for atoms in frames],
        charge=2 * (np.arange(n) % 4 == 1),
        energy=generator.normal(size=n),
        molecule=np.arange(n) % 2,
        source=np.zeros(n, np.int64),
        split=(np.arange(n) >= 3 * n // 4).astype(int),
        numbers=np.concatenate([atoms.numbers for atoms in frames]),
        positions=np.concatenate([atoms.positions for atoms in frames]),
        forces=generator.normal(size=(sum(map(len, frames)), 3)),
    )


def test_eight_potentials_draw_anew_for_nothing_but_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "eight"
    write(corpus / "a.npz", seed=1)
    line = ["eight_potentials.py", str(corpus), "--out", str(out), "--only", "schnet"]
    line += ["--steps", "2", "--conformers", "8"]
    small = eight.Setup({"channels": 8, "layers": 1, "state_embedding": ("charge",)})
    monkeypatch.setitem(eight.SETUPS, "schnet", small)

    def main(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", [*line, *more])
        eight.main()

    main()
    result = out / "schnet" / "result.json"
    drawn, trained = (out / "all.npz").read_bytes(), result.stat().st_mtime_ns
    assert len(read_corpus([out / "all.npz"])[0]) == 8
    main()
    assert result.stat().st_mtime_ns == trained
    for option in ("--conformers", "--validation", "--seed"):
        with pytest.raises(ValueError, match=r"corpus\.json is of .* give another output dir"):
            main(option, "3")
    write(corpus / "a.npz", seed=2)
    with pytest.raises(ValueError, match=r"corpus\.json is of a corpus made of other data"):
        main()
    assert (out / "all.npz").read_bytes() == drawn
    (out / "corpus.json").unlink()  # drawn anew, but the result is still of the other
    with pytest.raises(ValueError, match=r"result\.json was made with other settings or data"):
        main()


def test_partial_charges_serve_the_corpus_they_were_added_to(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    partial = load("partial_charges_table", "experiments/partial_charges.py")
    names, data, out = tmp_path / "molecules.txt", tmp_path / "data" / "a.npz", tmp_path / "out"
    names.write_text("CO\nO=C\n")
    write(data, seed=1)
    line = ["--data", str(data), "--molecules", str(names), "--output", str(out)]
    line += ["--seeds", "1", "--epochs", "1", "--channels", "8", "--layers", "1"]
    line += ["--variants", "nothing"]
    partial.main(line)
    corpus = out / "corpus-20000.npz"
    before = corpus.stat().st_mtime_ns
    partial.main(line)
    assert corpus.stat().st_mtime_ns == before
    assert json.loads((out / "corpus-20000.json").read_text()).keys() == {"data", "molecules"}
    write(data, seed=2)
    with pytest.raises(ValueError, match=r"corpus-20000\.json is of a corpus made of other data"):
        partial.main(line)
    assert corpus.stat().st_mtime_ns == before


def test_a_corpus_that_is_not_whole_is_made_anew(tmp_path: Path) -> None:
    write(tmp_path / "corpus" / "a.npz", seed=1)
    out = tmp_path / "eight"
    out.mkdir()
    (out / "neutral.npz").write_bytes(b"")  # a run was stopped while it was written
    eight.prepare(tmp_path / "corpus", out, 8, 4, 1)
    train, _ = read_corpus([out / "neutral.npz"])
    assert len(train) and not train.charge.any()
