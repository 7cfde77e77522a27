"""Ziegler-Biersack-Littmark screened nuclear repulsion for atoms that come too close."""

import torch
from torch import Tensor, nn

from nnpcalc.layers.cutoffs import polynomial_cutoff
from nnpcalc.terms.inputs import TermInputs, pair_to_atoms
from nnpcalc.units import BOHR, COULOMB

# Covalent radii in Å of Z = 1 .. 96: Cordero et al., Dalton Trans. 2008, 2832.
COVALENT_RADII = (
    0.31, 0.28, 1.28, 0.96, 0.84, 0.76, 0.71, 0.66, 0.57, 0.58, 1.66, 1.41, 1.21, 1.11, 1.07,
    1.05, 1.02, 1.06, 2.03, 1.76, 1.70, 1.60, 1.53, 1.39, 1.39, 1.32, 1.26, 1.24, 1.32, 1.22,
    1.22, 1.20, 1.19, 1.20, 1.20, 1.16, 2.20, 1.95, 1.90, 1.75, 1.64, 1.54, 1.47, 1.46, 1.42,
    1.39, 1.45, 1.44, 1.42, 1.39, 1.39, 1.38, 1.39, 1.40, 2.44, 2.15, 2.07, 2.04, 2.03, 2.01,
    1.99, 1.98, 1.98, 1.96, 1.94, 1.92, 1.92, 1.89, 1.90, 1.87, 1.87, 1.75, 1.70, 1.62, 1.51,
    1.44, 1.41, 1.36, 1.36, 1.32, 1.45, 1.46, 1.48, 1.40, 1.50, 1.50, 2.60, 2.21, 2.15, 2.06,
    2.00, 1.96, 1.90, 1.87, 1.80, 1.69,
)  # fmt: skip


class ZBL(nn.Module):
    """Universal screened nuclear repulsion, switched off smoothly below single-bond lengths.

    E_ij = k_e Z_i Z_j / d * sum_k c_k exp(-d_k d / a) * s(d / d_ij) with
    a = 0.88534 a_0 / (Z_i^0.23 + Z_j^0.23): Ziegler, Biersack and Littmark, The Stopping and
    Range of Ions in Solids (1985). s is the polynomial envelope (power 6), zero from
    d_ij = reach * (R_i + R_j) on, R the covalent radii; half of E_ij goes to either atom.

    Args:
        reach: the switching distance as a fraction of the sum of covalent radii.
    """

    radii: Tensor

    def __init__(self, reach: float = 0.8) -> None:
        super().__init__()
        if not 0.0 < reach <= 1.5:
            raise ValueError(f"the reach of ZBL must lie in (0, 1.5], got {reach}")
        self.reach = float(reach)
        self.coulomb = COULOMB
        self.length = 0.88534 * BOHR
        radii = torch.full((119,), 1.5, dtype=torch.float64)
        radii[1 : 1 + len(COVALENT_RADII)] = torch.tensor(COVALENT_RADII, dtype=torch.float64)
        # Whole hundredths of an Å, exact in every dtype the model may be cast to.
        self.register_buffer("radii", (radii * 100.0).round().to(torch.int64), persistent=False)

    def reaches(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """Å [N]; pairs further apart than the sum of their two atoms' are left alone."""
        return self.radii.to(dtype).index_select(0, numbers) * (0.01 * self.reach)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Energies of the atoms [N] in eV."""
        distances = inputs.distances
        dtype = distances.dtype
        radii = self.reaches(inputs.numbers, dtype)
        i, j = inputs.pairs[0], inputs.pairs[1]
        switch_off = radii.index_select(0, i) + radii.index_select(0, j)
        if not distances.is_cuda:  # few pairs are so near, mostly none; a GPU would have to wait
            near = torch.nonzero(distances < switch_off).flatten()
            distances = distances.index_select(0, near)
            if near.shape[0] == 0:
                return torch.zeros_like(radii)
            switch_off = switch_off.index_select(0, near)
            i, j = i.index_select(0, near), j.index_select(0, near)
        first, second = inputs.numbers.index_select(0, i), inputs.numbers.index_select(0, j)
        z_i, z_j = first.to(dtype), second.to(dtype)
        x = distances * (z_i.pow(0.23) + z_j.pow(0.23)) / self.length
        screening = (
            0.18175 * torch.exp(-3.1998 * x)
            + 0.50986 * torch.exp(-0.94229 * x)
            + 0.28022 * torch.exp(-0.4029 * x)
            + 0.02817 * torch.exp(-0.20162 * x)
        )
        energy = 0.5 * self.coulomb * z_i * z_j / distances * screening
        energy = energy * polynomial_cutoff(distances / switch_off, 6)
        return pair_to_atoms(energy, i, inputs.numbers.shape[0])
