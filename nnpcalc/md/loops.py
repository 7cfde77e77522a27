"""What a step does besides the forces, in compiled loops for the CPU.

At 20 atoms a tensor operation on a cold cache takes 5 µs and computes for 0.05. Every function here
stands for a few of them, which remain beside its call: for other devices, and where a graph is
recorded. The arithmetic is that of the tensor operations, number by number, so that a replica's
bits depend on no other; only products that torch adds without rounding them first differ.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor


def serve(*tensors: Tensor) -> bool:
    """Whether the loops can take these tensors."""
    for tensor in tensors:
        if not tensor.is_cpu or tensor.requires_grad:
            return False
    return True


@njit(cache=True)
def _kick(momenta, forces, time, out):
    if forces.shape != momenta.shape:
        raise ValueError("forces must have a row of three for every atom")
    for k in range(out.shape[0]):
        for a in range(3):
            out[k, a] = momenta[k, a] + time * forces[k, a]


@njit(cache=True)
def _kick_and_drift(momenta, forces, positions, inverse_masses, kick, drift, out):
    for k in range(out.shape[1]):
        for a in range(3):
            p = momenta[k, a] + kick * forces[k, a]
            out[0, k, a] = p
            out[1, k, a] = positions[k, a] + drift * (p * inverse_masses[k, 0])


@njit(cache=True)
def _bath(
    momenta, forces, positions, inverse_masses, spread, random, heat, kick, drift, keep, half, out
):
    for k in range(out.shape[1]):
        w = inverse_masses[k, 0]
        for a in range(3):
            before = momenta[k, a] + kick * forces[k, a]
            x = positions[k, a] + drift * (before * w)
            p = before * keep + spread[k, 0] * random[k, a]
            out[0, k, a] = p
            out[1, k, a] = x + drift * (p * w)
            out[2, k, a] = heat[k, a] + half * ((p * p - before * before) * w)


@njit(cache=True)
def _within(values, limit):
    for k in range(values.shape[0]):
        for a in range(values.shape[1]):
            if not abs(values[k, a]) <= limit:
                return False
    return True


@njit(cache=True)
def _copy_near(positions, limit, out):
    n = positions.shape[0]
    for k in range(n):
        for a in range(3):
            x = positions[k, a]
            if not abs(x) <= limit:
                return False
            out[k, a] = x
    out[n:] = 0.0
    return True


def kicked(momenta: Tensor, forces: Tensor, time: float) -> Tensor:
    """p + t F [N, 3]."""
    out = np.empty(momenta.shape)
    _kick(momenta.numpy(), forces.numpy(), time, out)
    return torch.from_numpy(out)


def kicked_and_drifted(
    momenta: Tensor,
    forces: Tensor,
    positions: Tensor,
    inverse_masses: Tensor,
    kick: float,
    drift: float,
) -> tuple[Tensor, Tensor]:
    """p' = p + kick F and x + drift p' / m, both [N, 3]."""
    out = np.empty((2, *momenta.shape))
    _kick_and_drift(
        momenta.numpy(), forces.numpy(), positions.numpy(), inverse_masses.numpy(), kick, drift,
        out,
    )  # fmt: skip
    return torch.from_numpy(out[0]), torch.from_numpy(out[1])


def through_bath(
    momenta: Tensor,
    forces: Tensor,
    positions: Tensor,
    inverse_masses: Tensor,
    spread: Tensor,
    random: Tensor,
    heat: Tensor,
    factors: tuple[float, float, float, float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Momenta, positions and heat [N, 3] after B, A, O and A of `Langevin`.

    Args:
        spread: [N, 1] by which the normal numbers `random` [N, 3] are multiplied.
        factors: time of B, time of A, c of O, and what turns p^2 / m into energy.
    """
    out = np.empty((3, *momenta.shape))
    _bath(
        momenta.numpy(), forces.numpy(), positions.numpy(), inverse_masses.numpy(),
        spread.numpy(), random.numpy(), heat.numpy(), *factors, out,
    )  # fmt: skip
    return torch.from_numpy(out[0]), torch.from_numpy(out[1]), torch.from_numpy(out[2])


def within(values: Tensor, limit: float) -> bool:
    """Whether all values [N, 3] are numbers of at most this size."""
    return _within(values.numpy(), limit)


def copied_if_near(positions: Tensor, limit: float, n_rows: int, dtype: np.dtype) -> Tensor | None:
    """Positions [N, 3] and zeros up to n_rows, in another dtype.

    None if a coordinate lies beyond the limit (Å) or is not a number.
    """
    out = np.empty((n_rows, 3), dtype)
    return torch.from_numpy(out) if _copy_near(positions.numpy(), limit, out) else None


def leading_rows(values: Tensor, n: int) -> Tensor:
    """The first n rows in float64."""
    return torch.from_numpy(values.numpy()[:n].astype(np.float64, copy=False))
