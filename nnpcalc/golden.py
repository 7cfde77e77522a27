"""Golden values: what a model gives where it is made, to be found again on any other machine.

They are part of a model's card; `nnpcalc.verify` recomputes them.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from nnpcalc.batch import AtomsBatch
from nnpcalc.cards import WeightsError
from nnpcalc.potential import Potential
from nnpcalc.state import element_symbol


def make_golden(potential: Potential, structures: Iterable[Any]) -> list[dict[str, Any]]:
    """Golden values for a card: structures with the energy, forces and stress of the model.

    Computed in float64 on the CPU, whatever the potential's dtype and device.

    Args:
        potential: the model.
        structures: ase.Atoms with their charge and multiplicity in `info`, or batches of any size.
    """
    precise = copy.deepcopy(potential).to(device="cpu", dtype=torch.float64).eval()
    batches = [s if isinstance(s, AtomsBatch) else AtomsBatch.from_atoms(s) for s in structures]
    systems = [system for batch in batches for system in batch.to("cpu", torch.float64).split()]
    return [_golden_entry(precise, system) for system in systems]


def _golden_entry(potential: Potential, batch: AtomsBatch) -> dict[str, Any]:
    periodic = bool(batch.pbc.all())
    results = potential.evaluate(batch, stress=periodic)
    entry = {
        "label": _formula(batch.numbers.tolist()),
        "numbers": batch.numbers.tolist(),
        "positions": batch.positions.tolist(),
        "cell": batch.cell[0].tolist(),
        "pbc": batch.pbc[0].tolist(),
        "charge": batch.charge.item(),
        "multiplicity": batch.multiplicity.item(),
        "energy": results.energy.item(),
        "forces": None if results.forces is None else results.forces.tolist(),
    }
    if batch.partial_charges is not None:
        entry["partial_charges"] = batch.partial_charges.tolist()
    if results.stress is not None:
        entry["stress"] = results.stress[0].tolist()
    return entry


def _formula(numbers: list[int]) -> str:
    """Chemical formula in Hill order: C, H, then the alphabet."""
    counts = Counter(element_symbol(number) for number in numbers)
    first = [symbol for symbol in ("C", "H") if "C" in counts and symbol in counts]
    rest = sorted(set(counts) - set(first))
    return "".join(f"{s}{counts[s] if counts[s] > 1 else ''}" for s in first + rest)


def golden_batch(entry: dict[str, Any]) -> AtomsBatch:
    """The structure of one entry of `make_golden`, float64 on the CPU.

    Raises:
        WeightsError: the entry is malformed.
    """
    try:
        return _batch(entry)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"a golden value of the card is malformed: {error!r}") from error


def _batch(entry: dict[str, Any]) -> AtomsBatch:
    charges = entry.get("partial_charges")
    return AtomsBatch(
        numbers=torch.tensor(entry["numbers"], dtype=torch.int64),
        positions=torch.tensor(entry["positions"], dtype=torch.float64).reshape(-1, 3),
        cell=torch.tensor([entry["cell"]], dtype=torch.float64),
        pbc=torch.tensor([entry["pbc"]], dtype=torch.bool),
        system=torch.zeros(len(entry["numbers"]), dtype=torch.int64),
        charge=torch.tensor([entry["charge"]], dtype=torch.int64),
        multiplicity=torch.tensor([entry["multiplicity"]], dtype=torch.int64),
        partial_charges=None if charges is None else torch.tensor(charges, dtype=torch.float64),
    )
