"""The one table of tolerances, for the public checks and for the package's own tests."""

from __future__ import annotations

import torch

#: Property: largest accepted deviation in float64 and in float32. Absolute, in eV, eV/Å or eV/Å^3,
#: but relative to the largest reference value where that exceeds 1 (`allowed`).
TOLERANCES: dict[str, tuple[float, float]] = {
    # exact symmetries: rounding only
    "rotation": (1e-8, 1e-3),
    "permutation": (1e-10, 1e-4),
    "translation": (1e-10, 1e-3),
    "batch": (1e-10, 1e-4),
    "supercell": (1e-9, 1e-3),
    "size consistency": (1e-10, 1e-4),
    "momentum": (1e-8, 1e-3),
    # derivatives against differences of energies
    "forces": (1e-6, 2e-2),
    "stress": (1e-7, 1e-3),
    "hessian": (1e-5, 5e-2),
    # jump of energy (eV) or force (eV/Å) where a neighbour enters
    "cutoff": (1e-6, 1e-4),
    # the same model by another route
    "torchscript": (1e-12, 1e-6),
    "fused": (1e-8, 1e-4),
    "reload": (0.0, 0.0),
    "float32": (1e-3, 1e-3),
    # what must differ, must differ by more
    "sensitivity": (1e-9, 1e-6),
}


def tolerance(name: str, dtype: torch.dtype) -> float:
    """An entry of `TOLERANCES` for torch.float64 or torch.float32."""
    double, single = TOLERANCES[name]
    return double if dtype == torch.float64 else single
