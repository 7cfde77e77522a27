"""A constant per system: the mean energy that some programs take off their training labels."""

import math

import torch
from torch import Tensor, nn

from nnpcalc.terms.inputs import TermInputs


class SystemEnergy(nn.Module):
    """Adds the same energy to every system, whatever its size, in equal parts to its atoms.

    Not extensive: two molecules in one system get it once, in two systems twice. It exists for
    networks that were trained to the distance from the mean label of their data set; a new model
    wants `AtomicEnergies`.

    Args:
        energy: eV per system.
    """

    def __init__(self, energy: float) -> None:
        super().__init__()
        if not math.isfinite(energy):
            raise ValueError(f"the energy per system is {energy} eV: not finite")
        self.energy = float(energy)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Energies of the atoms [N] in eV, float64 whatever the model's dtype."""
        system = inputs.system
        counts = torch.zeros(inputs.charge.shape[0], dtype=torch.float64, device=system.device)
        counts = counts.index_add(0, system, torch.ones_like(system, dtype=torch.float64))
        return self.energy / counts[system]
