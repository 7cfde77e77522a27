"""What every test shares: few threads, fixed seeds, shipped weights only."""

from __future__ import annotations

import os

# Read by OpenMP when torch is first imported, hence before it.
os.environ.setdefault("OMP_NUM_THREADS", "2")

from pathlib import Path

import pytest
import torch

from nnpcalc.potential import Potential
from nnpcalc.weights import make_golden, save_potential
from small_model import STATES, make_potential, structures

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Random weights and displacements are the same in every run and in every order of tests."""
    torch.manual_seed(20240315)


@pytest.fixture(autouse=True)
def _no_user_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite sees the shipped models only, whatever the user's environment adds."""
    monkeypatch.delenv("NNPCALC_WEIGHTS", raising=False)


@pytest.fixture
def small_potential() -> Potential:
    """Random weights, float32."""
    return make_potential()


@pytest.fixture
def small_model(
    small_potential: Potential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The directory of `small_potential`, saved as the user's model "small"."""
    card = {**STATES, "golden": make_golden(small_potential, structures())}
    save_potential(small_potential, tmp_path / "models" / "small", card)
    monkeypatch.setenv("NNPCALC_WEIGHTS", str(tmp_path / "models"))
    return tmp_path / "models" / "small"


@pytest.fixture
def other_model(small_model: Path, small_potential: Potential) -> Path:
    """The directory of a second model of the user's, "other"."""
    for parameter in small_potential.core.parameters():
        parameter.data.mul_(1.01)
    save_potential(small_potential, small_model.parent / "other", STATES)
    return small_model.parent / "other"
