"""Total charge and unpaired electrons as features of the atoms."""

import torch
from torch import Tensor, nn


class StateEmbedding(nn.Module):
    """Spreads a whole number of the system over its atoms by attention.

    a_i = psi softplus(q_i . k / sqrt F) / sum_j softplus(q_j . k / sqrt F), e_i = R(a_i v), with
    q_i = W z_i of the atom's features, keys k and values v that differ between positive and
    negative psi, and R a residual block without bias: Unke et al., Nat. Commun. 12, 7273 (2021),
    eqs. 8 to 10 (SpookyNet). The weights add up to psi, so the signal per atom does not grow with
    the system; it vanishes with psi, so neutral closed-shell systems stay additive.

    Args:
        channels: F, number of features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Parameter(torch.randn(2, channels))
        self.value = nn.Parameter(torch.randn(2, channels))
        self.residual = nn.ModuleList([nn.Linear(channels, channels, bias=False) for _ in range(2)])

    def forward(self, z: Tensor, psi: Tensor, system: Tensor) -> Tensor:
        """Atom features [N, F] and psi of each system [B] -> features to add [N, F]."""
        sign = (psi < 0).to(torch.int64)
        score = (self.query(z) * self.key[sign][system]).sum(-1) / z.shape[1] ** 0.5
        weight = nn.functional.softplus(score)
        total = torch.zeros_like(psi).index_add(0, system, weight)
        share = weight * (psi.abs() / total.clamp(min=1e-9))[system]
        x = share[:, None] * self.value[sign][system]
        h = x
        for linear in self.residual:
            h = linear(nn.functional.silu(h))
        return x + h
