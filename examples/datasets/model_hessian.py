"""The model Hessian of Lindh et al., Chem. Phys. Lett. 241, 423 (1995).

Positive semidefinite at any geometry and a matter of milliseconds: every stretch, bend and torsion
of atoms near each other counts as a spring, of a stiffness that falls off with the distances along
it. With the space of a potential's twelve softest modes its own shares 86 % (fifteen molecules).
"""

from __future__ import annotations

import numpy as np
from ase.units import Bohr, Hartree

# Stiffness in atomic units of a stretch, a bend and a torsion between atoms at the distance r0;
# exponent alpha and distance r0 of two atoms by their rows of the periodic table (Table 1).
STRETCH, BEND, TORSION = 0.45, 0.15, 0.005
ALPHA = np.array([[1.0, 0.3949, 0.3949], [0.3949, 0.28, 0.28], [0.3949, 0.28, 0.28]])  # 1/bohr^2
DISTANCE = np.array([[1.35, 2.10, 2.53], [2.10, 2.87, 3.40], [2.53, 3.40, 3.40]])  # bohr
WEAKEST = 1e-2  # springs of a smaller share of their full stiffness are left out
STRAIGHT = 0.17  # sine of an angle below which it counts as straight, and has no torsions


def lindh_hessian(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The model Hessian [3n, 3n], eV/Å^2, of atoms [n] at positions [n, 3], Å."""
    x = positions / Bohr
    row = np.searchsorted([2, 10], numbers)  # H and He, Li to Ne, all others
    alpha, r0 = ALPHA[row[:, None], row], DISTANCE[row[:, None], row]
    arm = x[None] - x[:, None]  # [i, j]: from i to j
    r = np.sqrt((arm**2).sum(-1))
    share = np.exp(alpha * (r0**2 - r**2))
    share[(share < WEAKEST) | np.eye(len(x), dtype=bool)] = 0.0
    np.fill_diagonal(r, 1.0)
    unit = arm / r[..., None]
    springs = [stretches(share, unit), bends(share, unit, r), torsions(share, arm)]
    rows = np.concatenate([gradients for _, gradients in springs]).reshape(-1, 3 * len(x))
    stiffness = np.concatenate([stiffness for stiffness, _ in springs])
    return (rows.T * stiffness) @ rows * (Hartree / Bohr**2)


def stretches(share: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stiffness [M] of the distances and their gradients [M, n, 3]; so do those below."""
    i, j = np.nonzero(np.triu(share))
    return STRETCH * share[i, j], placed(len(share), (i, -unit[i, j]), (j, unit[i, j]))


def bends(share: np.ndarray, unit: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the angles i-j-k; a straight one has no gradient and is left out."""
    both = share[:, :, None] * share[None]
    i, j, k = np.nonzero(both > WEAKEST)
    i, j, k = (atom[i < k] for atom in (i, j, k))
    cosine = (unit[j, i] * unit[j, k]).sum(-1)
    sine = np.sqrt(np.maximum(1.0 - cosine**2, 0.0))
    i, j, k, cosine, sine = (value[sine > STRAIGHT] for value in (i, j, k, cosine, sine))
    one, other = unit[j, i], unit[j, k]
    at_i = (cosine[:, None] * one - other) / (sine * r[j, i])[:, None]
    at_k = (cosine[:, None] * other - one) / (sine * r[j, k])[:, None]
    return BEND * both[i, j, k], placed(len(share), (i, at_i), (j, -at_i - at_k), (k, at_k))


def torsions(share: np.ndarray, arm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the dihedral angles i-j-k-l."""
    first, second = np.nonzero(np.triu(share))
    product = share[first][:, :, None] * share[second][:, None, :]  # [bond, i, l]
    product *= share[first, second][:, None, None]
    bond, i, last = np.nonzero(product > WEAKEST)
    stiffness = product[bond, i, last]
    j, k = first[bond], second[bond]
    a, b, c = arm[i, j], arm[j, k], arm[k, last]
    n, m = np.cross(a, b), np.cross(b, c)
    axis = np.sqrt((b**2).sum(-1))
    area, other_area = (n**2).sum(-1), (m**2).sum(-1)
    bent = np.sqrt(area) > STRAIGHT * axis * np.sqrt((a**2).sum(-1))
    bent &= np.sqrt(other_area) > STRAIGHT * axis * np.sqrt((c**2).sum(-1))
    apart = (i != k) & (last != j) & (i != last) & bent
    i, j, k, last, stiffness, a, b, c, n, m, axis, area, other_area = (
        value[apart] for value in (i, j, k, last, stiffness, a, b, c, n, m, axis, area, other_area)
    )
    at_i = -(axis / area)[:, None] * n
    at_last = (axis / other_area)[:, None] * m
    along = ((a * b).sum(-1) / axis**2)[:, None] * at_i
    other_along = ((c * b).sum(-1) / axis**2)[:, None] * at_last
    at_j, at_k = -at_i - along + other_along, -at_last + along - other_along
    gradients = placed(len(share), (i, at_i), (j, at_j), (k, at_k), (last, at_last))
    return TORSION * stiffness, gradients


def placed(n: int, *parts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Gradients [M, n, 3] of coordinates of few atoms each: their indices [M], and [M, 3]."""
    rows = np.arange(len(parts[0][0]))
    result = np.zeros((len(rows), n, 3))
    for atoms, values in parts:
        result[rows, atoms] += values
    return result
