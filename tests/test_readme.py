"""The README's Python runs as it stands there, one block after the other, and says the truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ase.build import molecule

README = Path(__file__).resolve().parent.parent / "README.md"
#: Blocks that show a signature, or need tensors and files of the reader.
NOT_RUN = ('backend="auto", ...)', "torch.jit.load")


def blocks() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return [block for block in found if not any(mark in block for mark in NOT_RUN)]


def test_the_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    molecules = [molecule("H2O"), molecule("NH3")]
    names: dict[str, Any] = {"molecules": molecules}
    listed = blocks()
    assert len(listed) >= 5
    for block in listed:
        exec(block.replace("10_000", "200"), names)
    formate = names["atoms"]
    assert formate.get_distance(1, 3) < 1.2  # its hydrogen is on carbon
    lengths = formate.get_distance(1, 0), formate.get_distance(1, 2)
    assert lengths[0] == pytest.approx(lengths[1], abs=0.01)  # two equal bonds to oxygen
    assert formate.calc.results["energy_uncertainty"] < 0.1
    assert len(names["first"]) >= 2 and not names["run"].incidents
    assert [(s.state.charge, s.state.multiplicity) for s in names["states"]] == [
        (-1, 2), (0, 1), (1, 2),
    ]  # fmt: skip
    assert len(names["modes"]) == 2 and names["modes"][0].frequencies.size


def test_the_formate_of_the_examples_is_formate(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    path = README.parent / "examples" / "07_many_molecules.py"
    exec(path.read_text(), names)
    formate = names["molecules"]()[-1]
    assert formate.info["charge"] == -1
    assert formate.get_distance(1, 3) < 1.2
