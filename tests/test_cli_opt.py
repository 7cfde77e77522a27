"""`nnpcalc opt`, `vib` and `states`: what they print and write, exit status, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write

from nnpcalc import NNPCalculator, state_energies, vibrations
from nnpcalc.cli import main
from test_cli import one_line

MODEL = ["--model", "tensornet-spice"]


@pytest.fixture
def molecules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    frames = [molecule("H2O"), molecule("NH3"), molecule("HCOOH")]
    del frames[2][[4]]
    frames[2].info["charge"] = -1
    write("molecules.extxyz", frames)
    return Path("molecules.extxyz")


def records(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_opt(molecules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", str(molecules), *MODEL]) == 0
    out, err = capsys.readouterr()
    *rows, last = out.splitlines()
    assert err == "" and last == "3 of 3 converged; written to molecules-opt.xyz"
    assert rows[0].split()[:4] == ["structure", "formula", "charge", "mult."]
    assert [row.split()[1:4] for row in rows[1:]] == [
        ["H2O", "0", "1"], ["H3N", "0", "1"], ["CHO2", "-1", "1"]
    ]  # fmt: skip
    frames = read("molecules-opt.xyz", ":")
    for row, frame in zip(rows[1:], frames, strict=True):
        assert float(row.split()[4]) == pytest.approx(frame.get_potential_energy(), abs=1e-6)
        assert np.linalg.norm(frame.get_forces(), axis=1).max() <= 0.01
        assert frame.info["converged"]
    assert frames[2].info["charge"] == -1
    assert len(read(molecules, ":")[0].info) < 2  # the input is as it was


def test_opt_json_and_other_formats(molecules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--json", "--output", "out.traj", "--method", "fire", "--fmax", "0.05", "--index", ":2"]
    assert main(["opt", str(molecules), *MODEL, *more]) == 0
    lines = records(capsys)
    assert [line["converged"] for line in lines] == [True, True]
    assert [line["energy"] for line in lines] == pytest.approx(
        [frame.get_potential_energy() for frame in read("out.traj", ":")], abs=1e-9
    )


def test_opt_that_does_not_converge(molecules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clash = molecule("CH4")
    clash.positions[1] = clash.positions[2]
    water, far = molecule("H2O"), molecule("H2O")
    far.positions[1] += 0.2
    write("some.traj", [water, clash, far])
    assert main(["opt", "some.traj", *MODEL, "--steps", "2", "--fmax", "0.5"]) == 1
    out, err = capsys.readouterr()
    rows = out.splitlines()
    assert "NOT CONVERGED" not in rows[1] and rows[2].endswith("NOT CONVERGED")
    assert rows[2].split()[4:6] == ["-", "-"]
    assert err.splitlines()[0].startswith("nnpcalc: structure 1 did not converge: atom 1 (H) and")
    assert err.splitlines()[1].endswith("fmax is not reached after 2 steps")
    assert [frame.info["converged"] for frame in read("some-opt.xyz", ":")] == [True, False, False]


def test_opt_leaves_out_what_cannot_be_computed(
    molecules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("mixed.traj", [molecule(name) for name in ("NaCl", "H2O", "OH", "CH4")])
    opt = ["opt", "mixed.traj", *MODEL, "--json"]
    error = one_line(capsys, opt)
    assert "system 0 (ClNa): atom 0 is Na" in error and "system 2 (HO) has 9 electrons" in error
    assert main([*opt, "--skip"]) == 1
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [(r["structure"], r["formula"]) for r in found] == [(1, "H2O"), (3, "CH4")]
    first, second = err.splitlines()
    assert first.startswith("nnpcalc: structure 0 is left out: ClNa: atom 0")
    assert second.startswith("nnpcalc: structure 2 is left out: HO has 9")
    assert [len(frame) for frame in read("mixed-opt.xyz", ":")] == [3, 5]
    assert main([*opt, "--skip", "--index", "0", "--output", "none.xyz"]) == 1
    assert not Path("none.xyz").exists()


def test_opt_of_a_committee(
    other_model: Path, molecules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opt = ["opt", str(molecules), "--model", "small", "--model", "other", "--index", "0"]
    opt += ["--steps", "2", "--dtype", "float64", "--overwrite", "--output", "out.xyz"]
    main([*opt, "--json"])
    (line,) = records(capsys)
    frame = read("out.xyz")
    expected = NNPCalculator(["small", "other"], device="cpu", dtype="float64").evaluate([frame])[0]
    assert expected.energy_uncertainty is not None and expected.energy_uncertainty > 1e-4
    for found in (line["energy_uncertainty"], frame.info["energy_uncertainty"]):
        assert found == pytest.approx(expected.energy_uncertainty, abs=1e-6)
    for each in (line["forces_uncertainty"], frame.arrays["forces_uncertainty"]):
        np.testing.assert_allclose(each, expected.forces_uncertainty, atol=1e-6)
    main(opt)
    head, row, _ = capsys.readouterr().out.splitlines()
    assert "+- energy" in head and f" {line['energy_uncertainty']:.6f} " in row


def test_opt_mistakes(molecules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opt = ["opt", str(molecules), *MODEL]
    assert "no format for out.unheard" in one_line(capsys, [*opt, "--output", "out.unheard"])
    assert "nowhere: there is no such directory" in one_line(
        capsys, [*opt, "--output", "nowhere/out.xyz"]
    )
    assert "cannot be written with 3 structures" in one_line(capsys, [*opt, "--output", "POSCAR"])
    Path("molecules-opt.xyz").write_text("kept")
    assert "--overwrite" in one_line(capsys, opt)
    assert Path("molecules-opt.xyz").read_text() == "kept"
    assert main([*opt, "--overwrite"]) == 0
    capsys.readouterr()
    assert "fmax must be" in one_line(capsys, [*opt, "--overwrite", "--fmax", "0"])
    assert "no-such-model" in one_line(
        capsys, ["opt", str(molecules), "--model", "no-such-model", "--output", "new.xyz"]
    )
    assert "--smiles" in one_line(capsys, ["opt", *MODEL])


def test_vib(molecules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vib = ["vib", str(molecules), *MODEL, "--index", "0", "--opt", "--symmetry-number", "2"]
    assert main(vib) == 0
    out, err = capsys.readouterr()
    assert err == "" and "H2O, charge 0, multiplicity 1, nonlinear" in out
    assert main([*vib, "--json", "--temperature", "400", "--pressure", "2"]) == 0
    (line,) = records(capsys)
    assert main(["opt", str(molecules), *MODEL, "--fmax", "1e-3", "--dtype", "float64"]) == 0
    found = vibrations(read("molecules-opt.xyz", 0), "tensornet-spice", device="cpu")
    assert line["frequencies"] == pytest.approx(found.frequencies, abs=0.05)
    assert line["zero_point_energy"] == pytest.approx(found.zero_point_energy, abs=1e-5)
    gas = found.thermochemistry(400.0, 2e5, 2)
    assert line["thermochemistry"]["gibbs_energy"] == pytest.approx(gas.gibbs_energy, abs=1e-4)
    for frequency in line["frequencies"]:
        assert f" {frequency:.1f} " in out


def test_vib_of_what_is_no_minimum(molecules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = molecule("NH3")
    flat.positions[:, 2] = 0.0
    write("flat.xyz", flat)
    assert main(["vib", "flat.xyz", *MODEL]) == 1
    out, err = capsys.readouterr()
    assert "i " in out and "no thermochemistry: H3N has imaginary frequencies" in out
    assert err.startswith("nnpcalc: warning: H3N: the largest force") and err.count("\n") == 1
    assert "temperature must be" in one_line(
        capsys, ["vib", str(molecules), *MODEL, "--index", "0", "--opt", "--temperature", "0"]
    )


def test_states(molecules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--charges", "-2", "0", "2", "--multiplicities", "1", "2"]
    assert main(["states", str(molecules), *MODEL, "--index", "0", *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = state_energies(molecule("H2O"), "tensornet-spice", [-2, 0, 2], device="cpu")
    assert [line.split()[:2] for line in lines[2:5]] == [["-2", "1"], ["0", "1"], ["+2", "1"]]
    assert [float(line.split()[2]) for line in lines[2:5]] == pytest.approx(
        [result.energy for result in expected], abs=1e-4
    )


def test_vertical_states(
    molecules: Path, small_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The small model's card lists charges -1 to 1 and multiplicities 1 and 2."""
    small = ["states", str(molecules), "--model", "small", "--index", "0"]
    assert main([*small, "--json", "--dtype", "float64"]) == 0
    (line,) = records(capsys)
    energies = {(s["charge"], s["multiplicity"]): s["energy"] for s in line["states"]}
    assert line["ionisation_energy"] == pytest.approx(energies[1, 2] - energies[0, 1])
    assert line["electron_affinity"] == pytest.approx(energies[0, 1] - energies[-1, 2])
    assert line["singlet_triplet_gap"] is None and "3" in line["missing"]["singlet_triplet_gap"]
    assert main(small) == 0
    out = capsys.readouterr().out
    assert "ionisation energy" in out and "singlet-triplet gap  not available: H2O: " in out


def test_states_of_molecules_that_have_none_of_them(
    molecules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("three.traj", [molecule(name) for name in ("H2O", "OH", "CH4")])
    states = ["states", "three.traj", *MODEL, "--charges", "0", "2", "--multiplicities", "1"]
    assert main([*states, "--json"]) == 1
    found = records(capsys)
    assert [len(r["states"]) for r in found] == [2, 0, 2] and "error" not in found[0]
    assert found[1]["formula"] == "HO" and "none of the states asked for" in found[1]["error"]
    assert main(states) == 1
    blocks = capsys.readouterr().out.split("\n\n")
    assert blocks[1].startswith("structure 1: HO\nnot computed: none of the states asked for is ")
    assert blocks[2].startswith("structure 2: CH4\ncharge")


def test_the_examples_of_states_can_be_computed(
    molecules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["states", "--help"])
    lines = capsys.readouterr().out.splitlines()
    examples = [line.split()[1:] for line in lines if line.startswith("  nnpcalc states ")]
    assert len(examples) == 2
    for command in examples:
        command[1] = str(molecules)
        assert main([*command, "--index", "0"]) == 0
    assert "not available" not in capsys.readouterr().out


def test_states_mistakes(molecules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = ["states", str(molecules), *MODEL, "--index", "0"]
    assert "needs --charges" in one_line(capsys, [*states, "--multiplicities", "1"])
    assert "multiplicity 2 is outside" in one_line(capsys, [*states, "--charges", "1"])
    assert "impossible" in one_line(
        capsys, [*states, "--charges", "1", "--multiplicities", "1", "3"]
    )


@pytest.mark.parametrize("command", ["opt", "vib", "states"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and "--model" in capsys.readouterr().out
