"""The command line: what it prints, and that every mistake is one line with exit status 2."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.io import write

from nnpcalc.cli import COMMANDS, main


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


def test_energy_of_a_committee(
    other_model: Path, water: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnpcalc.calculator import NNPCalculator

    command = ["energy", str(water), "--index", "0", "--dtype", "float64", "--backend", "eager"]
    assert main([*command, "--model", "small", "--model", "other", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    atoms = molecule("H2O")
    energies = [
        NNPCalculator(name, dtype="float64").get_potential_energy(atoms)
        for name in ("small", "other")
    ]
    assert abs(record["energy"] - np.mean(energies)) < 1e-6
    assert abs(record["energy_uncertainty"] - np.std(energies, ddof=1)) < 1e-6
    assert record["energy_uncertainty"] > 1e-4 and len(record["forces_uncertainty"]) == 3
    assert main([*command, "--model", "small", "--model", "other"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert "+- energy" in head and f"{record['energy_uncertainty']:.6f}" in row
    assert "twice" in one_line(capsys, [*command, "--model", "small", "--model", "small"])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Two that tensornet-spice knows, between them an unknown element and a missing charge."""
    frames = [molecule(name) for name in ("H2O", "NaCl", "OH", "CH4")]
    write(tmp_path / "mixed.extxyz", frames)
    return tmp_path / "mixed.extxyz"


def test_structures_that_cannot_be_computed(
    mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["energy", str(mixed), "--model", "tensornet-spice", "--json"]
    error = one_line(capsys, command)
    assert "2 of 4 systems" in error and "system 1 (ClNa): atom 0 is Na" in error
    assert "system 2 (HO) has 9 electrons with charge 0, which nobody set" in error
    assert main([*command, "--skip"]) == 1
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [(r["structure"], r["formula"]) for r in found] == [(0, "H2O"), (3, "CH4")]
    lines = err.splitlines()
    assert lines[0].startswith("nnpcalc: structure 1 is left out: ClNa: atom 0 is Na")
    assert lines[1].startswith("nnpcalc: structure 2 is left out: HO has 9") and len(lines) == 2
    assert main([*command, "--skip", "--index", "0"]) == 0
    assert capsys.readouterr() == (out.splitlines()[0] + "\n", "")


@pytest.mark.filterwarnings("default::nnpcalc.evaluation.ExtrapolationWarning")
@pytest.mark.parametrize("command", [["energy"], ["opt"], ["md", "--steps", "1"], ["states"]])
def test_extrapolation_as_advised(
    command: list[str],
    mixed: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(mixed.parent)
    command = [*command, str(mixed), "--model", "tensornet-spice", "--index", "2"]
    assert "HO has 9 electrons" in one_line(capsys, command)
    assert main([*command, "--on-extrapolation", "warn"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("nnpcalc: warning: ") and "HO" in line for line in lines)


def test_charge_of_the_command_line_wins(
    small_model: Path, water: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["energy", str(water), "--model", "small", "--index", "1", "--json"]
    assert main([*command, "--charge", "-1"]) == 0
    assert json.loads(capsys.readouterr().out)["charge"] == -1
    error = one_line(capsys, [*command, "--charge", "-1", "--multiplicity", "2"])
    assert "multiplicity" in error
    assert "charge" in one_line(capsys, [*command, "--charge", "2"])  # the model has not seen +2


def test_spin_is_the_multiplicity(
    small_model: Path, water: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--spin means what info["spin"] means: 2S + 1."""
    command = ["energy", str(water), "--model", "small", "--index", "1", "--json", "--charge", "0"]
    found = []
    for option in (["--spin", "2"], ["--multiplicity", "2"], []):
        assert main([*command, *option]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] == found[2] and found[0]["multiplicity"] == 2
    assert "2S + 1" in one_line(capsys, [*command, "--spin", "0"])


def test_structures_from_stdin(
    small_model: Path,
    water: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["--model", "small", "--json"]
    assert main(["energy", str(water), *command]) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO(water.read_text()))
    assert main(["energy", "-", *command]) == 0
    assert capsys.readouterr().out == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "stdin" in one_line(capsys, ["energy", "-", *command])


def test_structures_from_smiles(small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rdkit")
    command = ["energy", "--model", "small", "--json"]
    assert main([*command, "--smiles", "C[O-]", "--smiles", "[CH3]"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["formula"], r["charge"], r["multiplicity"]) for r in records] == [
        ("CH3O", -1, 1),
        ("CH3", 0, 2),
    ]
    assert main([*command, "--smiles", "C[O-]", "--charge", "0", "--spin", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["multiplicity"] == 2
    assert "unclosed" in one_line(capsys, [*command, "--smiles", "C1CC"])
    assert "either" in one_line(capsys, command)
    assert "either" in one_line(capsys, [*command, "x.xyz", "--smiles", "C"])


def test_smiles_without_rdkit(
    small_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    error = one_line(capsys, ["energy", "--model", "small", "--smiles", "C"])
    assert "pip install 'nnpcalc[smiles]'" in error


ENDLESS = """
import sys
from types import SimpleNamespace
from nnpcalc import cli

def run(options):
    while True:
        print("a line")

cli._parser = lambda: SimpleNamespace(parse_args=lambda _: SimpleNamespace(run=run))
sys.exit(cli.main([]))
"""


def test_a_reader_that_has_seen_enough() -> None:
    """`nnpcalc ... | head` ends without a traceback."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "a line\n"
    process.stdout.close()
    assert process.wait(60) == 141 and process.stderr.read() == ""
    process.stderr.close()


def test_benchmark(small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["benchmark", "--model", "small", "--seconds", "0.001"]
    assert main([*command, "--json", "--backend", "fused"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["structures"], r["systems"], r["atoms"]) for r in records] == [
        ("water", 1, 3),
        ("aspirin", 1, 21),
        ("64 aspirins", 64, 1344),
        ("water box", 1, 192),
    ]
    for record in records:
        seconds = record["ms_per_call"] / 1000
        assert record["calls"] >= 5 and record["backend"] == "fused"
        assert record["ns_per_day"] == pytest.approx(record["systems"] * 0.5e-6 * 86400 / seconds)
    assert main([*command, "--backend", "eager"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + 4 + 1 and table[2].split()[:3] == ["aspirin", "21", "eager"]
    assert "--seconds" in one_line(capsys, [*command, "--seconds", "0"])
    assert "device" in one_line(capsys, [*command, "--device", "abacus"])


def test_benchmark_structures() -> None:
    """Aspirin has its bonds; the box has the density of water and no close contacts."""
    from nnpcalc.cli.benchmark import aspirin, water_box

    acid = aspirin()
    assert acid.get_chemical_formula() == "C9H8O4"
    distances = acid.get_all_distances()[np.triu_indices(21, 1)]
    assert 0.9 < distances.min() and (distances < 1.6).sum() == 21  # one ring
    box = water_box()
    assert box.get_masses().sum() * 1.66054 / box.cell.volume == pytest.approx(1.0, abs=0.01)
    between = box.get_all_distances(mic=True)[0][3:]
    assert between.min() > 1.4


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
    assert "no device 'cuda:99'" in one_line(
        capsys, ["energy", str(water), "--model", "small", "--device", "cuda:99"]
    )
    assert "index" in one_line(capsys, ["energy", str(water), "--model", "small", "--index", "5:"])
    assert "missing.toml" in one_line(capsys, ["train", str(tmp_path / "missing.toml")])


@pytest.mark.parametrize(
    "command", [[], *([module.__name__.rpartition(".")[2]] for module in COMMANDS)]
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert " ".join(["usage: nnpcalc", *command]) in capsys.readouterr().out


def test_unknown_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["energy", "x.xyz", "--model", "small", "--chrage", "1"])
    assert stopped.value.code == 2
    assert "--chrage" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
