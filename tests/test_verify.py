"""Golden values: reproduced here, and a difference is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnpcalc.backends import BackendError
from nnpcalc.batch import AtomsBatch
from nnpcalc.cards import WeightsError
from nnpcalc.golden import make_golden
from nnpcalc.potential import Potential
from nnpcalc.verify import verify
from nnpcalc.weights import find_model, list_models, load_card
from small_model import edit_card, structures


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", ["eager", "fused", "torchscript"])
def test_verify(small_model: Path, dtype: torch.dtype, backend: str) -> None:
    checks = verify("small", dtype=dtype, backend=backend, trust=True)
    assert [(c.label, c.charge, c.multiplicity, c.n_atoms) for c in checks] == [
        ("C2H6O", 0, 1, 9),
        ("HO", -1, 1, 2),
        ("CH3", 0, 2, 4),
        ("C2", 0, 1, 2),
    ]
    assert all(check.passed for check in checks)
    assert [check.stress_difference is None for check in checks] == [True, True, True, False]
    # The fused back end interpolates; the other two differ from the card by rounding.
    limit = 1e-6 if backend == "fused" else 1e-11
    if dtype == torch.float32:
        limit = 1e-4
    assert max(check.force_difference for check in checks) < limit


def test_golden_values_of_a_batch(small_potential: Potential) -> None:
    """Batches and Atoms mix; formulas are ASE's."""
    frames = structures()
    one_by_one = make_golden(small_potential, frames)
    batch = AtomsBatch.from_atoms(frames[1:])
    assert make_golden(small_potential, [frames[0], batch]) == one_by_one
    assert [e["label"] for e in one_by_one] == [a.get_chemical_formula() for a in frames]
    assert make_golden(small_potential, []) == []


@pytest.mark.parametrize("key", ["energy", "forces", "stress"])
def test_verify_notices(small_model: Path, key: str) -> None:
    def change(card: dict[str, Any]) -> None:
        entry = card["golden"][3]
        entry[key] = (np.array(entry[key]) + 2e-3).tolist()

    edit_card(small_model, change)
    assert [check.passed for check in verify("small")] == [True, True, True, False]


def test_verify_needs_golden_values(small_model: Path) -> None:
    with pytest.raises(BackendError, match="backend must be one of"):
        verify("small", backend="abacus")
    edit_card(small_model, lambda card: card["golden"][0].pop("forces"))
    with pytest.raises(WeightsError, match="malformed"):
        verify("small")
    edit_card(small_model, lambda card: card.pop("golden"))
    with pytest.raises(WeightsError, match="no golden values"):
        verify("small")


@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize("backend", ["eager", "fused", "torchscript"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shipped_models_reproduce_their_golden_values(
    name: str, backend: str, dtype: torch.dtype
) -> None:
    checks = verify(name, backend=backend, dtype=dtype)
    assert [check for check in checks if not check.passed] == []
    card = load_card(name)
    assert card["name"] == name
    for key in ("reference_method", "training_data", "accuracy", "licence", "citation"):
        assert card.get(key), f"the card of {name} must say {key}"
    assert (find_model(name) / "README.md").is_file()
