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
    shift: float = 0.0  # per Å by which a minimum moves


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
    """``w_E mean_k |dE_k| / N_k + w_F mean_i ||dF_i|| + w_Q mean_i |dq_i| + w_S mean_k s_k``.

    Absolute, not squared errors, rounded near zero: the mean absolute error is what is reported,
    and strained conformers do not dominate.

    ``s_k`` is the root-mean-square distance, Å, that the error of the forces moves the atoms of a
    conformer near a minimum, in the harmonic approximation: ``|H^-1 dF| / sqrt(N_k)`` with its
    Hessian H, of which `soft_modes` of the batch holds the softest modes. These hardly count among
    the forces, whose errors are largest where bonds are stiff, but decide where minima lie. Away
    from minima, with a model Hessian, it is a weight on errors along soft directions. It is 0 where
    a conformer has no modes.

    Args:
        output: of the potential: energy [B], forces [N, 3] and, for w_Q > 0, charges [N].
        batch: the labels; a partial charge that is NaN does not count.
        weights: w_E, w_F, w_Q and w_S.
        totals: denominators of the means.

    Raises:
        ValueError: w_Q > 0, and the core returns no charges.
    """
    energy = rounded((output["energy"] - batch.energy) / batch.n_atoms).sum() / totals.systems
    error = output["forces"] - batch.forces
    force = (error.square().sum(-1) + SMOOTHING**2).sqrt().sum() / totals.atoms
    value = weights.energy * energy.to(force.dtype) + weights.force * force
    if weights.charge > 0.0:
        if "charges" not in output:
            raise ValueError(
                "the core returns no partial charges to train: set [training] charge_weight = 0"
            )
        known = torch.isfinite(batch.partial_charges)
        charge = rounded(output["charges"][known] - batch.partial_charges[known])
        value = value + weights.charge * charge.sum().to(force.dtype) / max(totals.charges, 1)
    if weights.shift > 0.0:
        value = value + weights.shift * shifts(error, batch).sum() / totals.systems
    return value


def shifts(error: Tensor, batch: Batch) -> Tensor:
    """How far the minima move by an error of the forces [N, 3], eV/Å: [B], Å, RMS over atoms."""
    modes = batch.soft_modes.to(error.dtype)
    along = torch.einsum("nmc,nc->nm", modes, error)
    along = along.new_zeros(len(batch.n_atoms), modes.shape[1]).index_add(0, batch.system, along)
    return (along.square().sum(1) / batch.n_atoms + SMOOTHING**2).sqrt()


def rounded(error: Tensor) -> Tensor:
    """The absolute value, smooth at zero."""
    return (error * error + SMOOTHING**2).sqrt()
