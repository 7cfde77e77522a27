"""Droplets: how often a solute is charged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from ase import Atoms

pytest.importorskip("rdkit")

from example_scripts import load

droplets = load("droplets", "datasets/droplets.py")


def test_three_solutes_in_five_are_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpacked(parts: Sequence[Atoms], _: np.random.Generator) -> Atoms:
        return Atoms(info={"charge": sum(part.info.get("charge", 0) for part in parts)})

    monkeypatch.setattr(droplets, "packed", unpacked)
    assert "three in five are charged" in " ".join(droplets.__doc__.split())
    lines = ["CO", "CC(=O)[O-]", "CN", "C[NH3+]", "CCOCCOCCOCCOC"]
    found = [droplets.droplet(1, lines, np.random.default_rng(k)).info for k in range(200)]
    charged = [info["charge"] != 0 for info in found]
    assert np.mean(charged) == pytest.approx(0.6, abs=0.1)  # 3 standard deviations
    assert not any("CCOCCOCCOCCOC" in info["smiles"] for info in found), "above 20 atoms"
