"""Training loss and error measures."""

from __future__ import annotations

from torch import Tensor

from nnpcalc.train.data import Batch

SMOOTHING = 1e-3  # rounds the absolute value at zero: eV, eV/Å


def loss(
    output: dict[str, Tensor], batch: Batch, energy_weight: float, force_weight: float
) -> Tensor:
    """``w_E mean_k |dE_k| / N_k + w_F mean_i ||dF_i||``, each rounded near zero.

    Absolute, not squared errors: the mean absolute error is what is reported, and strained
    conformers do not dominate.
    """
    energy = (output["energy"] - batch.energy) / batch.n_atoms
    force = output["forces"] - batch.forces
    energy_loss = (energy * energy + SMOOTHING**2).sqrt().mean()
    force_loss = ((force * force).sum(-1) + SMOOTHING**2).sqrt().mean()
    return energy_weight * energy_loss.to(force_loss.dtype) + force_weight * force_loss
