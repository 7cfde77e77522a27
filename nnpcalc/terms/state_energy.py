"""What a charge or a spin costs on average: most of the energy between two states."""

import math

import torch
from torch import Tensor, nn

from nnpcalc.terms.inputs import TermInputs


class StateEnergy(nn.Module):
    """Adds a Q + b Q^2 + c u to a system of charge Q with u unpaired electrons.

    Shared equally by its atoms. Fitted together with `AtomicEnergies`, it takes the electron that
    an ion has more or less, and the mean cost of unpairing, off the network. Q and u are those of
    the whole system: like every use of a total charge it is not additive over ions in one system.

    Args:
        charge: a, eV/e.
        charge_squared: b, eV/e^2.
        unpaired_electrons: c, eV.
    """

    def __init__(
        self, charge: float, charge_squared: float, unpaired_electrons: float = 0.0
    ) -> None:
        super().__init__()
        if not all(math.isfinite(v) for v in (charge, charge_squared, unpaired_electrons)):
            raise ValueError(
                f"the energy of a state is {charge} Q + {charge_squared} Q^2 + "
                f"{unpaired_electrons} u: not finite"
            )
        self.charge = float(charge)
        self.charge_squared = float(charge_squared)
        self.unpaired_electrons = float(unpaired_electrons)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Energies of the atoms [N] in eV, float64 whatever the model's dtype."""
        system, q = inputs.system, inputs.charge.to(torch.float64)
        unpaired = inputs.multiplicity.to(torch.float64) - 1.0
        energy = q * (self.charge + self.charge_squared * q) + self.unpaired_electrons * unpaired
        counts = torch.zeros_like(q)
        counts = counts.index_add(0, system, torch.ones_like(system, dtype=torch.float64))
        return (energy / counts.clamp(min=1.0))[system]
