"""Radial bases: a distance becomes a vector of smooth functions of it."""

import math

import torch
from torch import Tensor, nn

from nnpcalc.layers.cutoffs import cosine_cutoff


class ExpNormalBasis(nn.Module):
    """Exponential-normal radial basis times the cosine cutoff.

    ``e_k(d) = phi(d) exp(-beta (exp(-alpha d) - mu_k)^2)`` with ``alpha = 5 / r_c``, ``mu_k``
    evenly spaced in [exp(-r_c), 1] and one ``beta = (2/K (1 - exp(-r_c)))^-2`` (r_c in Å).

    Unke and Meuwly, J. Chem. Theory Comput. 15, 3678 (2019), eq. 7, in the form TensorNet uses
    (arXiv 2306.06482): alpha is scaled by the cutoff, the first centre is not.

    Args:
        n_basis: number of radial functions K.
        cutoff: r_c in Å.
    """

    index: Tensor

    def __init__(self, n_basis: int, cutoff: float) -> None:
        super().__init__()
        if n_basis < 2:
            raise ValueError(f"a radial basis needs at least 2 functions, got {n_basis}")
        self.cutoff = float(cutoff)
        self.alpha = 5.0 / self.cutoff
        self.start = math.exp(-self.cutoff)
        self.step = (1.0 - self.start) / (n_basis - 1)
        self.beta = (2.0 / n_basis * (1.0 - self.start)) ** -2
        # Whole numbers survive a change of dtype; centres kept in float32 would not.
        self.register_buffer("index", torch.arange(n_basis), persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        """Distances [P] in Å -> basis values [P, K]."""
        phi = cosine_cutoff(distances, self.cutoff)
        scaled = torch.exp(-self.alpha * distances)
        means = self.start + self.step * self.index.to(distances.dtype)
        gaps = scaled.unsqueeze(-1) - means
        return phi.unsqueeze(-1) * torch.exp(-self.beta * gaps * gaps)


class GaussianBasis(nn.Module):
    """``e_k(d) = exp(-(d - mu_k)^2 / (2 w^2))``, the centres mu_k and their spacing w even.

    Schütt et al., arXiv 1706.08566. The centres run from 0 to the cutoff. No cutoff function.

    Args:
        n_basis: number of radial functions K.
        cutoff: r_c in Å.
    """

    index: Tensor

    def __init__(self, n_basis: int, cutoff: float) -> None:
        super().__init__()
        if n_basis < 2:
            raise ValueError(f"a radial basis needs at least 2 functions, got {n_basis}")
        self.step = float(cutoff) / (n_basis - 1)
        self.register_buffer("index", torch.arange(n_basis), persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        """Distances [P] in Å -> basis values [P, K]."""
        gaps = distances.unsqueeze(-1) / self.step - self.index.to(distances.dtype)
        return torch.exp(-0.5 * gaps * gaps)


class BesselBasis(nn.Module):
    """``e_k(d) = sin(k pi d / r_c) / d`` for k = 1..K, in 1/Å.

    Gasteiger et al., arXiv 2003.03123, eq. 7, without its factor sqrt(2 / r_c), as PaiNN uses it
    (arXiv 2102.03150). No cutoff function.

    Args:
        n_basis: number of radial functions K.
        cutoff: r_c in Å.
    """

    index: Tensor

    def __init__(self, n_basis: int, cutoff: float) -> None:
        super().__init__()
        if n_basis < 1:
            raise ValueError(f"a radial basis needs at least 1 function, got {n_basis}")
        self.frequency = math.pi / float(cutoff)
        self.register_buffer("index", torch.arange(1, n_basis + 1), persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        """Distances [P] in Å, above 0 -> basis values [P, K]."""
        d = distances.unsqueeze(-1)
        return torch.sin(self.frequency * self.index.to(distances.dtype) * d) / d
