"""Every example runs as a user would run it: in a process of its own, from another directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ase.io import read

from nnpcalc.testing import POTENTIAL_CHECKS

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

#: Settings with which each takes seconds.
SMALL = {
    "01_quickstart.py": [],
    "02_charge_states.py": [],
    "03_optimise_zwitterion.py": ["--steps", "30", "--output", "relaxed.xyz"],
    "04_langevin.py": ["--steps", "60", "--molecule", "CH3OH", "--output", "run/dynamics"],
    "05_periodic_stress.py": ["--side", "2", "--steps", "5", "--cell-steps", "8"],
    "06_add_an_architecture.py": [],
    "07_many_molecules.py": ["--output", "relaxed.xyz"],
}


def run(name: str, directory: Path, *arguments: str) -> str:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_examples_are_run_here() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(SMALL)


def test_quickstart(tmp_path: Path) -> None:
    output = run("01_quickstart.py", tmp_path, *SMALL["01_quickstart.py"])
    rows = re.findall(r"^(\w+) +([+-]\d) +(-[\d.]+) +[\d.]+ -> +([\d.]+) +\d+$", output, re.M)
    assert [(row[0], int(row[1])) for row in rows] == [
        ("water", 0),
        ("formate", -1),
        ("ammonium", 1),
    ]
    assert all(float(row[3]) <= 0.02 for row in rows)
    found = re.search(r"O-H ([\d.]+) Å.*H-O-H ([\d.]+)°", output)
    assert found is not None, output
    assert abs(float(found[1]) - 0.958) < 0.03
    assert abs(float(found[2]) - 104.5) < 4.0


def test_charge_states(tmp_path: Path) -> None:
    output = run("02_charge_states.py", tmp_path, *SMALL["02_charge_states.py"])
    rows = re.findall(r"^  (\w+) +(\d+)   measured +(\d+)$", output, re.M)
    assert [row[0] for row in rows] == ["ammonia", "formate", "acetate"]
    for name, found, measured in rows:
        assert 0.0 < float(found) - float(measured) < 120.0, name
    assert "multiplicity 1 from info['spin'] is impossible for 9 electrons" in output
    assert "charge 5" in output


def test_optimise_zwitterion(tmp_path: Path) -> None:
    output = run("03_optimise_zwitterion.py", tmp_path, *SMALL["03_optimise_zwitterion.py"])
    assert "start:" in output
    assert output.count("3 H on N, 0 H on the carboxyl group: zwitterion") == 2
    energies = [float(e) for e in re.findall(r"(-\d+\.\d+) eV[ ,]", output)]
    assert energies[-1] < energies[0] - 0.1
    assert len(read(tmp_path / "relaxed.xyz")) == 19


def test_langevin(tmp_path: Path) -> None:
    output = run("04_langevin.py", tmp_path, *SMALL["04_langevin.py"])
    assert "charge +0: 0.03 ps" in output
    frames = read(tmp_path / "run" / "dynamics.traj", ":")
    assert len(frames) == 12
    assert len({frame.get_potential_energy() for frame in frames}) == 12
    assert frames[-1].info["charge"] == 0
    assert (tmp_path / "run" / "dynamics.png").read_bytes().startswith(b"\x89PNG")


def test_periodic_stress(tmp_path: Path) -> None:
    output = run("05_periodic_stress.py", tmp_path, *SMALL["05_periodic_stress.py"])
    rows = re.findall(r"^(start|\w+ relaxed) +(\S+) +(\S+) +(\S+) +(\S+)$", output, re.M)
    assert [row[0] for row in rows] == ["start", "atoms relaxed", "cell relaxed"]
    energies = [float(row[1]) for row in rows]
    assert energies[0] > energies[1] > energies[2]
    assert float(rows[0][4]) == pytest.approx(1.0, abs=0.01)
    assert float(rows[2][4]) != float(rows[0][4])


def test_add_an_architecture(tmp_path: Path) -> None:
    output = run("06_add_an_architecture.py", tmp_path, *SMALL["06_add_an_architecture.py"])
    energies = re.findall(r"acetamide, charge [+-]\d: +(-?[\d.]+) eV", output)
    assert len(set(energies)) == 3
    assert all(f"  {name} " in output for name in POTENTIAL_CHECKS)


def test_many_molecules(tmp_path: Path) -> None:
    output = run("07_many_molecules.py", tmp_path, *SMALL["07_many_molecules.py"])
    assert "20 converged in" in output and "methanol: 12 vibrations" in output
    assert "methylene: the triplet lies" in output
    assert len(read(tmp_path / "relaxed.xyz", ":")) == 20
