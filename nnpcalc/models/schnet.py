"""SchNet: continuous-filter convolutions (arXiv 1706.08566 and J. Chem. Phys. 148, 241722)."""

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from torch import Tensor, nn

from nnpcalc.layers import (
    DEFAULT_ELEMENTS,
    AtomEmbedding,
    GaussianBasis,
    check_activation,
    check_sizes,
    check_system,
    conditions,
    cosine_cutoff,
    dense,
    mlp,
    pair_sum,
)


@dataclass(frozen=True)
class SchNetConfig:
    """Sizes and options of a SchNet.

    The defaults are those of the authors' program SchNetPack 2. The network of the first paper for
    QM9 has channels=64, layers=3, radial_functions=300 and cutoff=30.0 (there without a cutoff).

    Attributes:
        channels: F, number of feature channels (at least 2).
        layers: T, number of interaction blocks.
        radial_functions: K, number of Gaussians from 0 to the cutoff (at least 2).
        cutoff: r_c in Å.
        elements: atomic numbers the network knows.
        readout_activation: "shifted_softplus" (the papers, PyTorch Geometric) or "silu" (the
            default of SchNetPack 2).
        state_embedding: which of "charge", "unpaired_electrons" are features of the atoms from the
            start, shared out by attention (`StateEmbedding`); none in the papers.
    """

    channels: int = 128
    layers: int = 6
    radial_functions: int = 20
    cutoff: float = 5.0
    elements: Tuple[int, ...] = DEFAULT_ELEMENTS
    readout_activation: str = "shifted_softplus"
    state_embedding: Tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(layers=self.layers)
        if self.channels < 2:
            raise ValueError(f"channels must be at least 2, got {self.channels}")
        check_system(self.elements, self.cutoff, self.state_embedding)
        check_activation(self.readout_activation)


class Interaction(nn.Module):
    """One block: ``x_i + update(sum_j linear(x_j) * W(d_ij))`` (arXiv 1706.08566, eq. 2)."""

    def __init__(self, config: SchNetConfig) -> None:
        super().__init__()
        f = config.channels
        self.filter = mlp((config.radial_functions, f, f), "shifted_softplus")
        self.linear = dense(f, f, bias=False)
        self.update = mlp((f, f, f), "shifted_softplus")

    def forward(self, x: Tensor, pairs: Tensor, basis: Tensor, phi: Tensor) -> Tensor:
        """Features [N, F], basis [P, K] and cutoff function [P, 1] of the pairs -> [N, F]."""
        filters = self.filter(basis) * phi
        messages = self.linear(x).index_select(0, pairs[1]) * filters
        return x + self.update(pair_sum(messages, pairs[0], x.shape[0]))


class SchNet(nn.Module):
    """SchNet: features of atoms, messages through filters of the distance, scalar read-out.

    Schütt et al., arXiv 1706.08566 and J. Chem. Phys. 148, 241722 (2018)::

        x_i  = a_{Z_i}                                               embedding
        e_k  = exp(-(d - mu_k)^2 / (2 w^2))                          Gaussians, w = mu_2 - mu_1
        W    = (Dense ssp Dense)(e(d_ij)) f_c(d_ij)                  filter
        x_i += (Dense ssp Dense)(sum_j (Dense x_j) * W_ij)           each of T blocks
        E_i  = (Dense ssp Dense)(x_i)                                F -> F/2 -> 1

    with ssp(x) = ln(e^x / 2 + 1 / 2) and the cosine cutoff f_c.

    Deviations from the first paper, all shared with the authors' program: the cutoff function, one
    activation in the filter instead of two, and Gaussians as wide as their spacing (the paper has
    a width of 0.22 Å on a spacing of 0.1 Å). The electronic state is an addition.
    """

    Config = SchNetConfig

    def __init__(self, config: SchNetConfig) -> None:
        super().__init__()
        self.config = config
        self.cutoff = float(config.cutoff)
        self.elements: Tuple[int, ...] = config.elements
        self.conditions_on: Tuple[str, ...] = conditions(config.state_embedding)
        f = config.channels
        self.embedding = AtomEmbedding(config.elements, f, config.state_embedding)
        self.basis = GaussianBasis(config.radial_functions, config.cutoff)
        self.layers = nn.ModuleList([Interaction(config) for _ in range(config.layers)])
        self.readout = mlp((f, f // 2, 1), config.readout_activation)

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
        """-> {"energies": [N]} in the network's units; arguments as of `TensorNet.forward`."""
        x = self.embedding(numbers, charge, multiplicity, system)
        basis = self.basis(distances)
        phi = cosine_cutoff(distances, self.cutoff).unsqueeze(-1)
        for layer in self.layers:
            x = layer(x, pairs, basis, phi)
        return {"energies": self.readout(x).squeeze(-1)}
