"""Functions that take a pair interaction smoothly to zero at the cutoff."""

import math

import torch
from torch import Tensor


def cosine_cutoff(distances: Tensor, cutoff: float) -> Tensor:
    """``(cos(pi d / r_c) + 1) / 2`` below the cutoff, 0 from it on; value and slope are continuous.

    Behler and Parrinello, Phys. Rev. Lett. 98, 146401 (2007), eq. 4.
    """
    smooth = 0.5 * (torch.cos(distances * (math.pi / cutoff)) + 1.0)
    return torch.where(distances < cutoff, smooth, torch.zeros_like(distances))


def polynomial_cutoff(ratio: Tensor, power: int = 6) -> Tensor:
    """Envelope ``1 - ...`` of the ratio d / r_c with two vanishing derivatives at 1.

    Gasteiger et al., arXiv 2003.03123, eq. 8. ``ratio`` has any shape; 0 from ratio 1 on.
    """
    p = float(power)
    x = ratio.clamp(max=1.0)
    value = (
        1.0
        - (p + 1.0) * (p + 2.0) / 2.0 * x.pow(p)
        + p * (p + 2.0) * x.pow(p + 1.0)
        - p * (p + 1.0) / 2.0 * x.pow(p + 2.0)
    )
    return torch.where(ratio < 1.0, value, torch.zeros_like(value))
