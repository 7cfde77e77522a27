"""A new architecture in one class: registered, checked, saved, loaded again, used.

In the package it would be a file in nnpcalc/models and a line in ARCHITECTURES; the rest is the
same. Any module with these four attributes and this forward will do.

    python examples/06_add_an_architecture.py
"""

# No `from __future__ import annotations`: TorchScript reads the types of this file.
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional, Tuple

import torch
from ase.build import molecule
from torch import Tensor, nn

from nnpcalc import NNPCalculator, build_potential
from nnpcalc.layers import (
    DEFAULT_ELEMENTS,
    AtomEmbedding,
    BesselBasis,
    check_sizes,
    check_system,
    conditions,
    mlp,
    pair_sum,
    polynomial_cutoff,
)
from nnpcalc.models import ARCHITECTURES
from nnpcalc.testing import POTENTIAL_CHECKS, check_potential
from nnpcalc.weights import save_potential


@dataclass(frozen=True)
class ToyNetConfig:
    """Its options; they go into the model's card, and unknown ones are errors."""

    channels: int = 32
    radial_functions: int = 8
    cutoff: float = 4.5
    elements: Tuple[int, ...] = DEFAULT_ELEMENTS
    state_embedding: Tuple[str, ...] = ("charge", "unpaired_electrons")

    def __post_init__(self) -> None:
        check_sizes(channels=self.channels, radial_functions=self.radial_functions)
        check_system(self.elements, self.cutoff, self.state_embedding)


class ToyNet(nn.Module):
    """One round of messages: E_i = network(h_i, sum_j h_j * W e(d_ij) u(d_ij))."""

    Config = ToyNetConfig

    def __init__(self, config: ToyNetConfig) -> None:
        super().__init__()
        # the four attributes that every architecture has
        self.config = config
        self.cutoff = float(config.cutoff)
        self.elements: Tuple[int, ...] = config.elements
        self.conditions_on: Tuple[str, ...] = conditions(config.state_embedding)
        f = config.channels
        self.embedding = AtomEmbedding(config.elements, f, config.state_embedding)
        self.basis = BesselBasis(config.radial_functions, config.cutoff)
        self.filter = nn.Linear(config.radial_functions, f)
        self.readout = mlp((2 * f, f, 1))

    def forward(
        self,
        numbers: Tensor,  # [N] atomic numbers
        pairs: Tensor,  # [2, P] receivers i and senders j: all (i, j) and (j, i), images too
        vectors: Tensor,  # [P, 3] r_j - r_i, Å
        distances: Tensor,  # [P] their lengths
        system: Tensor,  # [N] which system of the batch an atom belongs to
        charge: Tensor,  # [B] of each system
        multiplicity: Tensor,  # [B]
        partial_charges: Optional[Tensor] = None,  # [N], for models that use given ones
    ) -> Dict[str, Tensor]:
        h = self.embedding(numbers, charge, multiplicity, system)
        envelope = polynomial_cutoff(distances / self.cutoff).unsqueeze(-1)  # smooth at the cutoff
        weights = self.filter(self.basis(distances)) * envelope
        messages = pair_sum(h.index_select(0, pairs[1]) * weights, pairs[0], numbers.shape[0])
        return {"energies": self.readout(torch.cat([h, messages], dim=1)).squeeze(-1)}


ARCHITECTURES["toynet"] = ToyNet


def main() -> None:
    start = time.perf_counter()
    potential = build_potential("toynet", ["H", "C", "N", "O"], channels=16, terms=["zbl"], seed=1)
    count = sum(parameter.numel() for parameter in potential.parameters())
    print(f"toynet: {count} random parameters, cutoff {potential.cutoff} Å; forces, stress, charge")
    print(f"and spin come by themselves. {len(POTENTIAL_CHECKS)} checks that all potentials pass:")
    for name, check in POTENTIAL_CHECKS.items():
        check_potential(potential, checks=[name])
        print(f"  {name:20} {(check.__doc__ or '').splitlines()[0]}")

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "toynet-random"
        states = {"charges": [-1, 0, 1], "multiplicities": [1, 2]}
        save_potential(potential, path, {**states, "summary": "random weights, for show"})
        print(f"saved as {', '.join(sorted(file.name for file in path.iterdir()))}; loaded again:")
        atoms = molecule("CH3CONH2")
        atoms.calc = NNPCalculator(path, device="cpu")
        for charge in (-1, 0, 1):
            atoms.info["charge"] = charge
            energy = atoms.get_potential_energy()
            print(f"  acetamide, charge {charge:+d}: {energy:8.4f} eV (untrained)")
    print(f"done in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
