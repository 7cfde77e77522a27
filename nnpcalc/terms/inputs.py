"""What an energy term sees: one immutable value for all of them.

This file is compiled by TorchScript: no `from __future__ import annotations` here.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor


class TermInputs(NamedTuple):
    """A batch of systems and what the core network said of it; N atoms, B systems, P pairs.

    Where a stress is asked for, positions, cell and vectors carry the strain, so that a term which
    uses any of them gets an exact stress without doing anything for it.

    Attributes:
        numbers: atomic numbers [N], int64.
        positions: [N, 3], Å, as given: not wrapped into the cell.
        cell: row vectors of each system's cell [B, 3, 3], Å; zeros for an open system.
        system: index of each atom's system [N], int64, ascending.
        pairs: receivers and senders [2, P], int64, sorted by receiver: those of the core
            network, or within the term's own `cutoff` if it has one.
        shifts: whole cell vectors added to r_j - r_i [P, 3], int64.
        vectors: r_j - r_i + shift @ cell [P, 3], Å.
        distances: their lengths [P], Å.
        charge: total charge of each system [B], e, in the dtype of the model.
        multiplicity: 2S + 1 of each system [B], in the dtype of the model.
        charges: the core network's partial charges [N], e, or None if it has none.
    """

    numbers: Tensor
    positions: Tensor
    cell: Tensor
    system: Tensor
    pairs: Tensor
    shifts: Tensor
    vectors: Tensor
    distances: Tensor
    charge: Tensor
    multiplicity: Tensor
    charges: Optional[Tensor]


def within(inputs: TermInputs, cutoff: float) -> TermInputs:
    """The same with the pairs closer than a cutoff (Å) only, in their order."""
    kept = (inputs.distances < cutoff).nonzero().squeeze(1)
    return TermInputs(
        inputs.numbers,
        inputs.positions,
        inputs.cell,
        inputs.system,
        inputs.pairs.index_select(1, kept),
        inputs.shifts.index_select(0, kept),
        inputs.vectors.index_select(0, kept),
        inputs.distances.index_select(0, kept),
        inputs.charge,
        inputs.multiplicity,
        inputs.charges,
    )


def with_charges(inputs: TermInputs, charges: Optional[Tensor]) -> TermInputs:
    """The same with partial charges [N] of the core network."""
    return TermInputs(
        inputs.numbers,
        inputs.positions,
        inputs.cell,
        inputs.system,
        inputs.pairs,
        inputs.shifts,
        inputs.vectors,
        inputs.distances,
        inputs.charge,
        inputs.multiplicity,
        charges,
    )


def pair_to_atoms(values: Tensor, receiver: Tensor, n_atoms: int) -> Tensor:
    """Sum of what pairs [P] bring to their receivers [P]: [N], in the dtype of the values."""
    zeros = torch.zeros(n_atoms, dtype=values.dtype, device=values.device)
    return zeros.index_add(0, receiver, values)
