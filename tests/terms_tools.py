"""What the tests of energy terms share: their inputs, and a core network with charges."""

from __future__ import annotations

from typing import Dict, Optional

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn

from nnpcalc.batch import AtomsBatch
from nnpcalc.models import build_core
from nnpcalc.neighbors import neighbor_list
from nnpcalc.potential import inputs
from nnpcalc.terms import TermInputs


def seen(term: nn.Module, atoms: Atoms | list[Atoms], charges: Tensor | None = None) -> TermInputs:
    """What a Potential would show to a term, float64."""
    batch = AtomsBatch.from_atoms(atoms)
    neighbors = neighbor_list(batch, float(getattr(term, "cutoff", 0.0)) or 4.0)
    return TermInputs(
        numbers=batch.numbers, positions=batch.positions, cell=inputs(batch, neighbors)[2],
        system=batch.system, pairs=neighbors.pairs, shifts=neighbors.shifts,
        vectors=neighbors.vectors, distances=neighbors.distances, charge=batch.charge.double(),
        multiplicity=batch.multiplicity.double(), charges=charges,
    )  # fmt: skip


def charged_core() -> nn.Module:
    """A small network whose charges depend on the geometry, by tenths of e."""
    core = build_core(
        "physnet",
        {"channels": 4, "layers": 1, "radial_functions": 6, "cutoff": 4.0, "elements": (1, 6, 8)},
    )
    with torch.no_grad():
        core.scales.fill_(0.3)
    return core


def inversion_symmetric_crystal() -> tuple[Atoms, np.ndarray]:
    """Six charges in a triclinic cell without net charge and dipole moment."""
    rng = np.random.default_rng(5)
    cell = np.array([[5.0, 0.0, 0.0], [0.8, 5.5, 0.0], [-0.6, 0.9, 6.0]])
    half = np.array([[0.15, 0.2, 0.1], [0.3, -0.25, 0.2], [-0.2, 0.05, 0.3]])
    half += rng.uniform(-0.03, 0.03, (3, 3))
    atoms = Atoms("H6", np.concatenate([half, -half]) @ cell, cell=cell, pbc=True)
    return atoms, np.array([0.7, -0.9, 0.2] * 2)


class GivenCharges(nn.Module):
    """A core network without energy that hands on the given partial charges."""

    def __init__(self, cutoff: float = 3.0) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.elements = (1, 6, 8, 17)
        self.conditions_on = ("partial_charges",)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(
        self,
        numbers: Tensor,
        pairs: Tensor,
        vectors: Tensor,
        distances: Tensor,
        system: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Optional[Tensor] = None,
    ) -> Dict[str, Tensor]:
        assert partial_charges is not None
        return {"energies": 0.0 * partial_charges, "charges": self.scale * partial_charges}
