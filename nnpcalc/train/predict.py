"""What a potential says of training batches and of whole data sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nnpcalc.potential import Potential
from nnpcalc.train.data import Batch, Dataset, PairIndex, batches, collate, rows_of
from nnpcalc.train.processes import Processes

ALONE = Processes()


@dataclass(frozen=True)
class Errors:
    """Predicted minus labelled, in the order of a data set.

    Attributes:
        energy: [M], eV.
        forces: [A, 3], eV/Å.
        charges: [A], e, NaN where there is no label; None if the core returns none.
    """

    energy: np.ndarray
    forces: np.ndarray
    charges: np.ndarray | None = None

    @property
    def charge_mae(self) -> float | None:
        """Mean absolute error of the labelled partial charges, e; None if there are none."""
        if self.charges is None or not np.isfinite(self.charges).any():
            return None
        return float(np.nanmean(np.abs(self.charges)))


def predict(potential: Potential, batch: Batch, create_graph: bool) -> dict[str, Tensor]:
    """Energies and forces of a training batch."""
    n, p = batch.n_atoms.shape[0], batch.pairs.shape[1]
    positions = batch.positions.to(potential.dtype)
    cell = positions.new_zeros(n, 3, 3)
    shifts = torch.zeros(p, 3, dtype=torch.int64, device=positions.device)
    return potential(
        batch.numbers, positions, cell, batch.system, batch.pairs, shifts, batch.charge,
        batch.multiplicity, batch.given_charges.to(positions.dtype), True, False, create_graph,
    )  # fmt: skip


def evaluate(
    potential: Potential,
    dataset: Dataset,
    pairs: PairIndex,
    device: torch.device,
    max_atoms: int = 4000,
    processes: Processes = ALONE,
) -> Errors:
    """Errors of a potential on a data set, the work shared out among the processes."""
    energy = np.zeros(len(dataset))
    forces = np.zeros_like(dataset.forces)
    charges = np.zeros_like(dataset.partial_charges)
    has_charges = np.zeros(1)
    for rows in batches(dataset.n_atoms, processes.share(dataset.n_atoms), max_atoms):
        batch = collate(dataset, pairs, rows).to(device)
        output = predict(potential, batch, create_graph=False)
        atoms = rows_of(dataset.offsets, rows)
        energy[rows] = (output["energy"].detach() - batch.energy).cpu().numpy()
        forces[atoms] = (output["forces"].detach() - batch.forces).cpu().numpy()
        if "charges" in output:
            has_charges[0] = 1.0
            charges[atoms] = (output["charges"].detach() - batch.partial_charges).cpu().numpy()
    total = processes.sum_array(has_charges, device)
    return Errors(
        processes.sum_array(energy, device),
        processes.sum_array(forces, device),
        processes.sum_array(charges, device) if total[0] else None,
    )
