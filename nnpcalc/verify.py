"""Does a model give the same numbers here as where it was made?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnpcalc.backends import Engine, prepare
from nnpcalc.cards import WeightsError
from nnpcalc.golden import golden_batch
from nnpcalc.neighbors import neighbor_list
from nnpcalc.weights import TORCHSCRIPT_FILE, load_card, locate

#: Largest accepted difference: eV per atom, and eV/Å or eV/Å^3. The fused back end's tables set the
#: limits of float64; float32 carries about 7 digits of energies of some eV per atom.
TOLERANCE = {torch.float64: (1e-9, 1e-6), torch.float32: (2e-5, 1e-3)}


@dataclass(frozen=True)
class GoldenCheck:
    """One structure of a card's golden values, recomputed.

    Attributes:
        label: chemical formula.
        charge: total charge, e.
        multiplicity: 2S + 1.
        n_atoms: number of atoms.
        energy_difference: here minus card, eV.
        force_difference: largest over the components, eV/Å.
        stress_difference: largest over the components, eV/Å^3, or None for a molecule.
        passed: all within `TOLERANCE`.
    """

    label: str
    charge: int
    multiplicity: int
    n_atoms: int
    energy_difference: float
    force_difference: float
    stress_difference: float | None
    passed: bool


def verify(
    name_or_path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    backend: str = "eager",
    trust: bool = False,
) -> list[GoldenCheck]:
    """Recompute the golden values of a model's card on this machine.

    Args:
        name_or_path: a name of `nnpcalc.list_models`, or the path of a model directory.
        device: where to compute.
        dtype: torch.float32 or torch.float64; the golden values are float64.
        backend: as in `NNPCalculator`; "torchscript" means the model's own file model.pt.
        trust: run a model.pt that is not a shipped one. TorchScript is code.

    Raises:
        WeightsError: the model cannot be loaded, or its card has no golden values.
        BackendError: the back end, dtype or device cannot be had.
    """
    path: Path = locate(name_or_path)
    entries = load_card(path).get("golden")
    if not isinstance(entries, list) or not entries:
        raise WeightsError(f"the card of {name_or_path} has no golden values to compare with")
    if backend == "torchscript":
        path = (path if path.is_dir() else path.parent) / TORCHSCRIPT_FILE
    engine = prepare(path, device=device, dtype=dtype, backend=backend, trust=trust)
    return [_check(engine, entry) for entry in entries]


def _check(engine: Engine, entry: dict[str, Any]) -> GoldenCheck:
    potential = engine.potential
    batch = golden_batch(entry).to(potential.device, potential.dtype)
    try:
        energy, label = float(entry["energy"]), str(entry["label"])
        forces = torch.tensor(entry["forces"], dtype=torch.float64).reshape(batch.n_atoms, 3)
        stress = entry.get("stress")
        if stress is not None:
            stress = torch.tensor(stress, dtype=torch.float64).reshape(1, 3, 3)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"a golden value of the card is malformed: {error!r}") from error
    neighbors = neighbor_list(batch, potential.cutoff)
    results = engine.run(batch, neighbors, forces=True, stress=stress is not None)
    energy_difference = float(results["energy"]) - energy
    force_difference = _largest(results["forces"], forces)
    stress_difference = None if stress is None else _largest(results["stress"], stress)
    per_atom, per_component = TOLERANCE[potential.dtype]
    passed = (
        abs(energy_difference) <= per_atom * max(batch.n_atoms, 1)
        and force_difference <= per_component
        and (stress_difference is None or stress_difference <= per_component)
    )
    return GoldenCheck(
        label=label,
        charge=int(batch.charge),
        multiplicity=int(batch.multiplicity),
        n_atoms=batch.n_atoms,
        energy_difference=energy_difference,
        force_difference=force_difference,
        stress_difference=stress_difference,
        passed=passed,
    )


def _largest(found: Tensor, reference: Tensor) -> float:
    difference = (found.detach().to("cpu", torch.float64) - reference).abs()
    return float(difference.max()) if difference.numel() else 0.0
