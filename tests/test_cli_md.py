"""`nnpcalc md`: options to integrators, restarts, signals, and what it prints where."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from ase.io import write

import nnpcalc.report.viewer
from nnpcalc import md
from nnpcalc.cli import _parser, main
from nnpcalc.cli.md import _integrator, _steps, _watchdog
from nnpcalc.cli.progress import CSVLog, Progress, bar, clock, display_mode
from nnpcalc.report.collect import collect

#: The weights are random: only numbers that are not finite stop a run.
CALM = ["--max-temperature", "none", "--max-energy-jump", "none", "--min-distance", "none"]


@pytest.fixture
def ethanol(tmp_path: Path) -> Path:
    write(tmp_path / "ethanol.xyz", molecule("CH3CH2OH"))
    return tmp_path / "ethanol.xyz"


def command(structure: Path, *more: str) -> list[str]:
    fixed = ["--model", "small", "--dtype", "float64", "--timestep", "0.2", "--seed", "7", *CALM]
    return ["md", str(structure), *fixed, *more]


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_common_job(
    small_model: Path, ethanol: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run.xyz")
    files = ["--trajectory", run, "--log", str(tmp_path / "run.csv"), "--interval", "10"]
    assert main(command(ethanol, "--steps", "30", "--replicas", "2", *files)) == 0
    out, err = capsys.readouterr()
    *lines, last = records(out)
    assert err == "" and [line["step"] for line in lines] == [0, 10, 20, 30]
    assert lines[-1]["replica"] == [0, 1] and lines[-1]["time_left_s"] == 0.0
    assert last["finished"] and last["seed"] == 7 and last["incidents"] == []
    assert last["files"]["checkpoint"] == str(tmp_path / "run.checkpoint")
    frames = list(md.read_trajectory(run, replica=1))
    assert [frame.info["step"] for frame in frames] == [0, 10, 20, 30]
    assert frames[-1].get_potential_energy() == pytest.approx(lines[-1]["potential_energy"][1])
    with open(tmp_path / "run.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["replica"]) for row in rows[-2:]] == [("30", "0"), ("30", "1")]
    assert float(rows[-1]["temperature"]) == lines[-1]["temperature"][1]
    assert float(rows[0]["conserved_energy"]) == pytest.approx(
        float(rows[0]["potential_energy"]) + float(rows[0]["kinetic_energy"])
    )


def test_report(
    small_model: Path,
    ethanol: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`md --report`, and `report` of the trajectory afterwards."""
    for module in (nnpcalc.report, nnpcalc.report.viewer):  # without a network
        monkeypatch.setattr(module, "load_viewer", lambda: ("library", "licence"))
    run, page = tmp_path / "run.xyz", tmp_path / "page.html"
    files = ["--trajectory", str(run), "--interval", "5", "--report", str(page)]
    watched = ["--distance", "0", "1", "--distance", "2", "8"]
    assert main(command(ethanol, "--steps", "10", *files, *watched)) == 0
    last = records(capsys.readouterr().out)[-1]
    assert last["files"]["report"] == str(page)
    text = page.read_text()
    assert "tr><th>model</th><td>small</td></tr" in text and "<th>seed</th><td>7</td>" in text
    assert "distance C0 to C1 / Å" in text and text.count('class="plot"') == 5
    for suffix in (".xyz", ".traj"):
        if suffix == ".traj":
            write(run.with_suffix(".traj"), list(md.read_trajectory(run)))
        source = str(run.with_suffix(suffix))
        assert main(["report", source, "--distance", "0", "1", "--overwrite"]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "run.html")
        text = (tmp_path / "run.html").read_text()
        assert "temperature / K" in text and "distance C0 to C1 / Å" in text
        assert "time / ps" in text
    assert main(["report", str(run)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_what_the_options_say(ethanol: Path) -> None:
    def made(*options: str) -> Any:
        return _integrator(_parser().parse_args(command(ethanol, "--steps", "1", *options)))

    assert made() == md.Langevin(0.2, 300.0, friction=0.002)
    assert made("--temperature", "50", "--friction", "10") == md.Langevin(0.2, 50.0, friction=0.01)
    assert made("--ensemble", "nve", "--temperature", "50") == md.NVE(0.2)
    assert made("--ensemble", "bussi", "--relaxation", "50") == md.Bussi(0.2, 300.0, 50.0)
    assert made("--ensemble", "nose-hoover", "--chain", "2") == md.NoseHoover(0.2, 300.0, chain=2)
    assert made("--ensemble", "npt", "--pressure", "0.1", "--anisotropic") == md.CellRescaling(
        0.2, 300.0, 0.1, anisotropic=True
    )
    options = _parser().parse_args(command(ethanol, "--steps", "1", "--max-force", "50"))
    assert _watchdog(options) == md.Watchdog(50.0, None, None, None)
    plain = ["md", "x", "--model", "m", "--steps", "1"]
    assert _watchdog(_parser().parse_args(plain)) == md.Watchdog()
    in_ps = _parser().parse_args(command(ethanol, "--time", "0.03"))
    assert _steps(in_ps) == 150


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--steps", "5", "--ensemble", "nve"], "give --temperature"),
        (["--steps", "5", "--ensemble", "nve", "--friction", "1"], "--friction says nothing to"),
        (["--steps", "5", "--pressure", "1"], "it is for npt"),
        (["--steps", "5", "--ensemble", "npt"], "not periodic"),
        (["--steps", "-5"], "steps must be"),
        (["--time", "1", "--timestep", "0"], "--timestep must be above 0"),
        (["--steps", "5", "--temperature", "-1"], "temperature"),
        (["--steps", "5", "--replicas", "0"], "--replicas must be 1 or more"),
        (["--steps", "5", "--restart"], "give --checkpoint or --trajectory"),
        (["--steps", "5", "--report", "x.html"], "give --trajectory as well"),
        (["--steps", "5", "--trajectory", "x.pdb"], "trajectories end in"),
        (["--steps", "5", "--trajectory", "no/such/x.xyz"], "no such directory"),
        (["--steps", "5", "--distance", "0", "99"], "atoms 0 to 8"),
        (["--steps", "5", "--charge", "1", "--spin", "1"], "multiplicity"),
    ],
)
def test_mistakes(
    more: list[str],
    words: str,
    small_model: Path,
    ethanol: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command(ethanol, *more)) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.startswith("nnpcalc: error: ")
    assert err.count("\n") == 1


def test_nothing_is_overwritten(
    small_model: Path, ethanol: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, name in (("--trajectory", "a.xyz"), ("--log", "a.csv"), ("--checkpoint", "a.ck")):
        file = tmp_path / name
        file.write_text("mine")
        assert main(command(ethanol, "--steps", "1", option, str(file))) == 2
        err = capsys.readouterr().err
        assert f"{file}: there is a file of this name" in err and "--restart" in err
        assert file.read_text() == "mine"


def test_the_watchdog_stops_replicas(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two: status 1, a warning, and the other goes on. All: status 1 and one line."""
    squeezed = molecule("CH3CH2OH")
    squeezed.positions *= 0.4
    write(tmp_path / "two.xyz", [molecule("CH3CH2OH"), squeezed])
    options = ["--model", "small", "--steps", "2", "--index", ":", "--seed", "1"]
    assert main(["md", str(tmp_path / "two.xyz"), *options]) == 1
    out, err = capsys.readouterr()
    last = records(out)[-1]
    assert [incident["replica"] for incident in last["incidents"]] == [1]
    assert "nnpcalc: warning: replica 1, step 0" in err and err.count("\n") == 1
    assert main(["md", str(tmp_path / "two.xyz"), *options, "--max-force", "1e-9"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("nnpcalc: no replica is left: replica 0") and err.count("\n") == 1


def test_a_committee_and_its_limit(
    other_model: Path, ethanol: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = command(ethanol, "--model", "other", "--steps", "5", "--check-interval", "5")
    assert main(both) == 0
    assert main([*both, "--max-uncertainty", "1e-9"]) == 1
    assert "the forces are uncertain by" in "".join(capsys.readouterr())
    assert main(command(ethanol, "--steps", "5", "--max-uncertainty", "1")) == 2
    assert "give --model twice" in capsys.readouterr().err
    assert main(command(ethanol, "--steps", "5", "--max-uncertainty", "none")) == 0
    assert main([*both, "--max-uncertainty", "nan"]) == 2
    assert "max_uncertainty must be positive (eV/Å), not nan" in capsys.readouterr().err


def test_what_a_committee_says_of_its_uncertainty(
    other_model: Path, ethanol: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nnpcalc import NNPCalculator

    run = tmp_path / "run.xyz"
    files = ["--trajectory", str(run), "--interval", "2"]
    assert main(command(ethanol, "--model", "other", "--steps", "4", *files)) == 0
    *lines, _ = records(capsys.readouterr().out)
    frames = list(md.read_trajectory(run))
    calculator = NNPCalculator(["small", "other"], device="cpu", dtype="float64")
    assert len(lines) == len(frames) == 3
    for line, frame, found in zip(lines, frames, calculator.evaluate(frames), strict=True):
        assert found.forces_uncertainty is not None
        expected = {"energy_uncertainty": found.energy_uncertainty,
                    "max_uncertainty": found.forces_uncertainty.max()}  # fmt: skip
        for name, value in expected.items():
            assert value is not None and value > 1e-5
            assert line[name] == [pytest.approx(value, rel=1e-5)]
            assert frame.info[name] == pytest.approx(value, rel=1e-5)
    (series,) = [values for name, _, values in collect(frames, []).panels() if "uncert" in name]
    assert series[0][2] == [frame.info["energy_uncertainty"] for frame in frames]
    assert main(command(ethanol, "--steps", "1")) == 0
    assert "uncertainty" not in capsys.readouterr().out


def test_several_structures(
    small_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last is run, which is said unless somebody asked for it."""
    path = tmp_path / "three.extxyz"
    write(path, [molecule("CH4"), molecule("CH4"), molecule("H2O")])
    for index, said, counts in (
        ([], "nnpcalc: 3 structures, the last is run; --index : for all\n", 1),
        (["--index", "-1"], "", 1),
        (["--index", ":"], "", 3),
    ):
        assert main(command(path, "--steps", "1", *index)) == 0
        out, err = capsys.readouterr()
        assert err == said and len(records(out)[0]["replica"]) == counts


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_killed_and_restarted(
    number: signal.Signals, status: int, small_model: Path, ethanol: Path, tmp_path: Path
) -> None:
    """SIGTERM gives 143 and a checkpoint; --restart ends with every byte as if nothing happened."""

    def arguments(name: str, steps: int) -> list[str]:
        files = ["--trajectory", str(tmp_path / f"{name}.xyz"), "--interval", "5",
                 "--log", str(tmp_path / f"{name}.csv")]  # fmt: skip
        return command(ethanol, "--steps", str(steps), *files)

    process = subprocess.Popen(
        [sys.executable, "-m", "nnpcalc", *arguments("parts", 1_000_000)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["step"] >= 20:
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert f"stopped by {number.name} after step" in err and "--restart goes on" in err
    assert err.count("\n") == 1
    stopped = md.Checkpoint.load(tmp_path / "parts.checkpoint").state.step
    assert 20 <= stopped < 1_000_000

    assert main([*arguments("parts", stopped + 12), "--restart"]) == 0
    assert main(arguments("whole", stopped + 12)) == 0
    for end in ("xyz", "csv"):
        whole, parts = (tmp_path / f"{name}.{end}" for name in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes()


def test_restart_with_another_setting_is_refused(
    small_model: Path, ethanol: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--trajectory", str(tmp_path / "run.xyz"), "--interval", "5"]
    assert main(command(ethanol, "--steps", "10", *files)) == 0
    capsys.readouterr()
    again = command(ethanol, "--steps", "20", *files, "--restart")
    assert main([*again, "--temperature", "400"]) == 2
    assert "temperature" in capsys.readouterr().err
    assert main(again) == 0
    assert len(list(md.read_trajectory(tmp_path / "run.xyz"))) == 5


def test_the_log_forgets_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        ",".join(["step", "time_fs", "replica", "potential_energy", "kinetic_energy",
                  "temperature", "conserved_energy"])
        + "\n0,0.0,0,1,2,3,4\n10,5.0,0,1,2,3,4\n20,10.0,0,1,2,3,4\n30,15."
    )  # fmt: skip
    CSVLog(tmp_path / "a.csv", last_step=10).close()
    assert [row.split(",")[0] for row in (tmp_path / "a.csv").read_text().splitlines()] == [
        "step", "0", "10"
    ]  # fmt: skip
    (tmp_path / "b.csv").write_text("something else\n")
    with pytest.raises(ValueError, match="no log of nnpcalc md"):
        CSVLog(tmp_path / "b.csv", last_step=10)


# --- what is shown -------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_where_what_is_shown() -> None:
    assert display_mode(Terminal(), False, {"TERM": "xterm"}) == "bar"
    assert display_mode(Terminal(), False, {"TERM": "dumb"}) == "lines"
    assert display_mode(Terminal(), False, {}) == "lines"
    assert display_mode(Terminal(), True, {"TERM": "xterm"}) == "json"
    assert display_mode(io.StringIO(), False, {"TERM": "xterm"}) == "json"


RECORD = {
    "step": 450, "replica": [0, 1], "temperature": [290.0, 311.0], "drift_meV_per_atom": 0.0123,
    "steps_per_second": 312.5, "ns_per_day": 13.5, "time_left_s": 92.0,
}  # fmt: skip


def test_bar() -> None:
    line = bar(RECORD, 1000, 140, colours=False)
    assert line.startswith(" 45% [") and line.isascii() and "\x1b" not in line
    for text in ("450/1000", "1:32 left", "312.5 steps/s", "13.5 x 2 ns/day", "300 K",
                 "drift +0.0123 meV/atom"):  # fmt: skip
        assert text in line
    for width in range(20, 140):
        assert len(bar(RECORD, 1000, width, colours=False)) <= width
    assert "\x1b[32m" in bar(RECORD, 1000, 140, colours=True)
    assert [clock(s) for s in (0.2, 61, 3723)] == ["0:00", "1:01", "1:02:03"]


@pytest.mark.parametrize("mode", ["bar", "lines"])
def test_progress_on_a_terminal(mode: str) -> None:
    from tiny_model import make_calculator

    out = io.StringIO()
    progress = Progress(mode, 4, 0.5, out)
    atoms = [molecule("H2O"), molecule("CH4")]
    limits = md.Watchdog(max_temperature=None, max_energy_jump=None)
    md.run(atoms, make_calculator(), md.Langevin(0.5, 300.0), 4, interval=1, seed=1,
           watchdog=limits, report=progress)  # fmt: skip
    progress.close()
    text = out.getvalue()
    assert "4/4" in text and "0:00 left" in text and "ns/day" in text and text.endswith("\n")
    if mode == "lines":
        assert "\r" not in text and "\x1b" not in text


def test_numbers_of_a_record() -> None:
    """Drift and speed against their definitions."""
    from tiny_model import make_calculator

    progress = Progress("json", 3, 0.5, io.StringIO())
    frames: list[md.Frame] = []
    limits = md.Watchdog(max_temperature=None, max_energy_jump=None)
    md.run(molecule("H2O"), make_calculator(), md.Langevin(0.5, 300.0), 3, interval=1, seed=1,
           watchdog=limits, report=frames.append)  # fmt: skip
    found = [progress.record(frame) for frame in frames]
    change = frames[3].conserved[0] - frames[0].conserved[0]
    assert found[3]["drift_meV_per_atom"] == pytest.approx(1e3 * change / 3)
    rate = found[3]["steps_per_second"]
    assert found[3]["ns_per_day"] == pytest.approx(rate * 0.5e-6 * 86400)
    assert found[0]["steps_per_second"] is None
    assert np.isclose(found[1]["time_left_s"], 2 / found[1]["steps_per_second"])


def test_help_is_quick() -> None:
    """Neither torch nor ASE is imported for it."""
    code = (
        "import sys; from nnpcalc.cli import main\n"
        "try: main(['md', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'ase', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "COLUMNS": "80"})  # fmt: skip
    assert done.returncode == 0 and "--ensemble" in done.stdout
