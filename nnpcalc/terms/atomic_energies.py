"""The energy of each element's atom: most of a total energy, and none of its forces."""

from typing import Dict

import torch
from torch import Tensor, nn

from nnpcalc.terms.inputs import TermInputs

UNIT = 1e-12  # eV; whole picoelectronvolts stay exact when a model is cast to float32


class AtomicEnergies(nn.Module):
    """Adds a constant energy per element.

    Kept as 64-bit whole numbers of 1e-12 eV, so that no cast of the model rounds a total energy
    of 1e5 eV to float32.

    Args:
        energies: energy in eV of each atomic number.
    """

    picoelectronvolts: Tensor

    def __init__(self, energies: Dict[int, float]) -> None:
        super().__init__()
        self.unit = UNIT
        table = torch.zeros(119, dtype=torch.int64)
        for number, energy in energies.items():
            if not 1 <= int(number) <= 118:
                raise ValueError(f"atomic energies name the atomic number {number}, not in 1..118")
            if not abs(energy) < 9e6:
                raise ValueError(f"the atomic energy of Z={number} is {energy} eV: not finite")
            table[int(number)] = round(energy / UNIT)
        self.register_buffer("picoelectronvolts", table)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Energies of the atoms [N] in eV, float64 whatever the model's dtype."""
        return self.picoelectronvolts[inputs.numbers].to(torch.float64) * self.unit
