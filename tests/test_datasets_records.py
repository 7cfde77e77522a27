"""A directory of shards belongs to one run of a script: others are refused, its own goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rdkit")

from example_scripts import load

#: The function that makes a shard, and arguments of a small run.
SCRIPTS = {
    "carbenes": ("carbene_frames", ["--limit", "6", "--molecules", "2"]),
    "open_shell": ("shard", ["--molecules", "2"]),
    "toy_sets": ("toy_frames", ["A"]),
}


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the scripts; its shards are empty."""
    module = load(f"record_{request.param}", f"datasets/{request.param}.py")
    monkeypatch.setattr(module, SCRIPTS[request.param][0], lambda task, **options: ([], {}))
    return module


@pytest.fixture
def arguments(script: Any, tmp_path: Path) -> list[str]:
    name = script.__name__.removeprefix("record_")
    given = [*SCRIPTS[name][1], "--output", str(tmp_path / "out")]
    if name == "open_shell":
        smiles = tmp_path / "smiles.txt"
        smiles.write_text("CC(=O)O\nCCO\nCCN\nC=C\nc1ccccc1\n")
        given = [str(smiles), *given]
    return given


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_directory_holds_one_run(script: Any, arguments: list[str], tmp_path: Path) -> None:
    script.main(arguments)
    before = contents(tmp_path / "out")
    others = {
        "record_carbenes": [["--held", "0.9"], ["--limit", "5"], ["--noise", "0.1"]],
        "record_open_shell": [["--held", "0.9"], ["--molecules", "3"], ["--states", "2"]],
        "record_toy_sets": [["--geometries", "10"]],
    }
    for more in [["--seed", "2"], *others[script.__name__]]:
        with pytest.raises(ValueError, match=r"run\.json belongs to a run with other options"):
            script.main([*arguments, *more])
        assert contents(tmp_path / "out") == before, more


def test_a_stopped_run_goes_on_with_any_number_of_jobs(
    script: Any, arguments: list[str], tmp_path: Path
) -> None:
    script.main(arguments)
    before = contents(tmp_path / "out")
    gone = sorted((tmp_path / "out").glob("*.npz"))[-1]
    gone.unlink()
    script.main(arguments)
    assert contents(tmp_path / "out") == before
    script.main([*arguments, "--jobs", "2"])
    assert contents(tmp_path / "out") == before


def test_shards_of_an_unknown_run_are_refused(
    script: Any, arguments: list[str], tmp_path: Path
) -> None:
    script.main(arguments)
    (tmp_path / "out" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"no run\.json that tells how they were made"):
        script.main(arguments)


def test_other_molecules_are_another_run(tmp_path: Path) -> None:
    begin = load("record_alone", "datasets/run_record.py").begin
    begin(tmp_path, {"seed": 1}, ["CO", "CN"])
    assert (tmp_path / "molecules.txt").read_text() == "CO\nCN\n"
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 1
    begin(tmp_path, {"seed": 1}, ["CO", "CN"])
    with pytest.raises(ValueError, match="other options"):
        begin(tmp_path, {"seed": 1}, ["CO", "CS"])
    assert (tmp_path / "molecules.txt").read_text() == "CO\nCN\n"
