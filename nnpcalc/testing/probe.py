"""A potential under test and the structures to try it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.potential import Potential, Results
from nnpcalc.testing.tolerances import tolerance

FloatArray = NDArray[np.float64]
AT_ONCE = 24  # structures per pass, which bounds the memory


@dataclass(frozen=True, eq=False)
class Probe:
    """A copy of a potential in one dtype and the structures to try it on."""

    potential: Potential
    structures: Mapping[str, Atoms]
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return self.potential.dtype

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def batch(self, *structures: Atoms) -> AtomsBatch:
        device = self.potential.device
        batch = AtomsBatch.from_atoms(structures, dtype=self.dtype, device=device)
        if batch.n_atoms == 0:  # no atom was there to say that it has a partial charge
            batch = replace(batch, partial_charges=batch.positions.new_zeros(0))
        return batch

    def results(self, *structures: Atoms, stress: bool = False) -> Results:
        return self.potential.evaluate(self.batch(*structures), stress=stress)

    def energies(self, structures: list[Atoms]) -> FloatArray:
        """Energies [B] without derivatives, eV."""
        parts = []
        for begin in range(0, len(structures), AT_ONCE):
            batch = self.batch(*structures[begin : begin + AT_ONCE])
            parts.append(array(self.potential.evaluate(batch, forces=False).energy))
        return np.concatenate(parts)

    def close(self, what: str, found: Any, expected: Any, name: str) -> None:
        """Compare within `TOLERANCES[name]`, relative to reference values above 1."""
        a, b = array(found), array(expected)
        assert a.shape == b.shape, f"{what}: shape {a.shape}, expected {b.shape}"
        if not a.size:
            return
        assert np.isfinite(a).all(), f"{what}: not finite"
        allowed = tolerance(name, self.dtype) * max(1.0, float(np.abs(b).max()))
        deviation = float(np.abs(a - b).max())
        assert deviation <= allowed, (
            f"{what} deviates by {deviation:.2e}, allowed is {allowed:.1e} ({self.dtype})"
        )


def array(values: Any) -> FloatArray:
    """Anything numerical as a float64 array on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().to(torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)
