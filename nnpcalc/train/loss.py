"""Training loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnpcalc.train.data import Batch

SMOOTHING = 1e-3  # rounds the absolute value at zero: eV, eV/Å, e


@dataclass(frozen=True)
class Weights:
    """Weights of the parts of the loss; 0 leaves a part out."""

    energy: float  # per eV and atom
    force: float  # per eV/Å
    charge: float = 0.0  # per e


@dataclass(frozen=True)
class Totals:
    """What the means of a loss are taken over: the whole batch, also where one process has a part.

    Attributes:
        systems: conformers.
        atoms: atoms.
        charges: atoms with a labelled partial charge.
    """

    systems: int
    atoms: int
    charges: int


def loss(output: dict[str, Tensor], batch: Batch, weights: Weights, totals: Totals) -> Tensor:
    """``w_E mean_k |dE_k| / N_k + w_F mean_i ||dF_i|| + w_Q mean_i |dq_i|``, rounded near zero.

    Absolute, not squared errors: the mean absolute error is what is reported, and strained
    conformers do not dominate.

    Args:
        output: of the potential: energy [B], forces [N, 3] and, for w_Q > 0, charges [N].
        batch: the labels; a partial charge that is NaN does not count.
        weights: w_E, w_F and w_Q.
        totals: denominators of the means.

    Raises:
        ValueError: w_Q > 0, and the core returns no charges.
    """
    energy = rounded((output["energy"] - batch.energy) / batch.n_atoms).sum() / totals.systems
    force = (output["forces"] - batch.forces).square().sum(-1)
    force = (force + SMOOTHING**2).sqrt().sum() / totals.atoms
    value = weights.energy * energy.to(force.dtype) + weights.force * force
    if weights.charge > 0.0:
        if "charges" not in output:
            raise ValueError(
                "the core returns no partial charges to train: set [training] charge_weight = 0"
            )
        known = torch.isfinite(batch.partial_charges)
        charge = rounded(output["charges"][known] - batch.partial_charges[known])
        value = value + weights.charge * charge.sum().to(force.dtype) / max(totals.charges, 1)
    return value


def rounded(error: Tensor) -> Tensor:
    """The absolute value, smooth at zero."""
    return (error * error + SMOOTHING**2).sqrt()
