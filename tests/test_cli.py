"""The command line: what it prints, and that every mistake is one line with exit status 2."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.io import write

from nnpcalc.cli import main


@pytest.fixture
def water(tmp_path: Path) -> Path:
    frames = [molecule("H2O"), molecule("OH")]
    frames[1].info["charge"] = -1
    write(tmp_path / "water.extxyz", frames)
    return tmp_path / "water.extxyz"


def one_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The single line that a mistake prints."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("nnpcalc: error: ") and err.count("\n") == 1
    return err


def test_models(small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("small ")]
    assert line.split() == ["small", "tensornet", "4.5", "-1..1", "1,2", "H", "C", "O", "Cl"]
    assert main(["models", "small"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["golden"] == "4 structures" and card["config"]["channels"] == 8


def test_verify(small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "small", "--dtype", "float64"]) == 0
    assert "4 of 4 golden values reproduced" in capsys.readouterr().out
    card = json.loads((small_model / "card.json").read_text())
    card["golden"][0]["energy"] += 0.001
    (small_model / "card.json").write_text(json.dumps(card))
    assert main(["verify", "small"]) == 1
    out = capsys.readouterr().out
    assert "DIFFERS" in out and "-1.0e+00" in out and "3 of 4" in out


def test_energy(small_model: Path, water: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nnpcalc.calculator import NNPCalculator

    command = ["energy", str(water), "--model", "small", "--dtype", "float64"]
    assert main([*command, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["formula"], r["charge"], r["multiplicity"]) for r in records] == [
        ("H2O", 0, 1),
        ("HO", -1, 1),
    ]
    atoms = molecule("H2O")
    atoms.calc = NNPCalculator("small", dtype="float64")
    assert abs(records[0]["energy"] - atoms.get_potential_energy()) < 1e-6  # 8 digits in the file
    np.testing.assert_allclose(records[0]["forces"], atoms.get_forces(), atol=1e-6)

    assert main([*command, "--forces", "--index", "0"]) == 0
    table = capsys.readouterr().out
    assert "H2O" in table and "HO" not in table and len(table.splitlines()) == 2 + 1 + 1 + 3


def test_charge_of_the_command_line_wins(
    small_model: Path, water: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["energy", str(water), "--model", "small", "--index", "1", "--json"]
    assert main([*command, "--charge", "-1"]) == 0
    assert json.loads(capsys.readouterr().out)["charge"] == -1
    error = one_line(capsys, [*command, "--charge", "-1", "--multiplicity", "2"])
    assert "multiplicity" in error
    assert "charge" in one_line(capsys, [*command, "--charge", "2"])  # the model has not seen +2


def test_mistakes_are_one_line(
    small_model: Path, water: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "small" in one_line(capsys, ["verify", "smal"])
    assert "no model" in one_line(capsys, ["energy", str(water), "--model", "smal"])
    assert "missing.xyz" in one_line(
        capsys, ["energy", str(tmp_path / "missing.xyz"), "--model", "small"]
    )
    (tmp_path / "empty.xyz").write_text("3\nthree atoms\nH 0 0 0\n")
    assert "empty.xyz" in one_line(
        capsys, ["energy", str(tmp_path / "empty.xyz"), "--model", "small"]
    )
    assert "backend" in one_line(capsys, ["verify", "small", "--backend", "abacus"])
    assert "device" in one_line(capsys, ["verify", "small", "--device", "abacus"])
    assert "trust" in one_line(capsys, ["verify", "small", "--backend", "torchscript"])
    assert "missing.toml" in one_line(capsys, ["train", str(tmp_path / "missing.toml")])


def test_unknown_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["energy", "x.xyz", "--model", "small", "--chrage", "1"])
    assert stopped.value.code == 2
    assert "--chrage" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
