"""The reciprocal half of the Ewald sum of one periodic system; compiled by TorchScript."""

import math
from typing import Tuple

import torch
from torch import Tensor


def splitting(cutoff: float, accuracy: float) -> Tuple[float, float]:
    """Width alpha (1/Å) and largest wave number (1/Å) for a real-space cutoff (Å).

    With s^2 = -ln(accuracy), what is left out beyond alpha = s / r_c in real space and beyond
    k = 2 alpha s in reciprocal space is the accuracy times the charges' energy, in size.
    """
    s = math.sqrt(-math.log(accuracy))
    return s / cutoff, 2.0 * s * s / cutoff


def wave_vectors(cell: Tensor, largest: float) -> Tensor:
    """One of each pair k, -k of the reciprocal vectors shorter than `largest`: [K, 3], 1/Å.

    Args:
        cell: row vectors [3, 3], Å; the wave vectors are differentiable functions of it.
        largest: 1/Å.
    """
    # n = k . a / 2 pi is the exact bound: no wave number below `largest` has a larger index
    limits = (largest / (2.0 * math.pi)) * torch.sqrt((cell.detach() * cell.detach()).sum(1))
    n = limits.to(torch.int64)
    x = torch.arange(0, int(n[0]) + 1, device=cell.device)
    y = torch.arange(-int(n[1]), int(n[1]) + 1, device=cell.device)
    z = torch.arange(-int(n[2]), int(n[2]) + 1, device=cell.device)
    index = torch.cartesian_prod(x, y, z)
    a, b, c = index[:, 0], index[:, 1], index[:, 2]
    half = (a > 0) | ((a == 0) & ((b > 0) | ((b == 0) & (c > 0))))
    k = torch.matmul(index[half].to(cell.dtype), 2.0 * math.pi * torch.linalg.inv(cell).t())
    return k[(k * k).detach().sum(1) < largest * largest]


def reciprocal_potential(
    positions: Tensor, cell: Tensor, charges: Tensor, alpha: float, largest: float
) -> Tensor:
    """Potential at each atom of all charges smeared to Gaussians and their images: [n], e/Å.

    phi_i = 4 pi / V sum_k exp(-k^2 / 4 alpha^2) / k^2 Re(exp(-i k r_i) S(k)) over all k but 0, with
    S(k) = sum_j q_j exp(i k r_j); k = 0 is the neutralising background,
    -pi sum_j q_j / (alpha^2 V). Half of sum_i q_i phi_i is the energy of the smeared charges
    including each with itself, (alpha / sqrt pi) q_i^2.

    Args:
        positions: [n, 3], Å, float64.
        cell: row vectors [3, 3], Å, float64.
        charges: [n], e, float64.
        alpha: 1/Å.
        largest: wave number up to which the sum runs, 1/Å.
    """
    volume = torch.linalg.det(cell).abs()
    k = wave_vectors(cell, largest)
    square = (k * k).sum(1)
    weights = 2.0 * torch.exp(square / (-4.0 * alpha * alpha)) / square  # 2: k and -k
    phase = torch.matmul(positions, k.t())
    cosine, sine = torch.cos(phase), torch.sin(phase)
    real = weights * torch.matmul(charges, cosine)
    imaginary = weights * torch.matmul(charges, sine)
    potential = torch.matmul(cosine, real) + torch.matmul(sine, imaginary)
    background = charges.sum() / (4.0 * alpha * alpha)
    return (4.0 * math.pi / volume) * (potential - background)
