"""PaiNN: equivariant messages of scalars and vectors (arXiv 2102.03150)."""

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor, nn

from nnpcalc.layers import (
    DEFAULT_ELEMENTS,
    AtomEmbedding,
    BesselBasis,
    GaussianBasis,
    check_sizes,
    check_system,
    conditions,
    cosine_cutoff,
    dense,
    mlp,
    pair_sum,
)

BASES = ("bessel", "gaussian")


@dataclass(frozen=True)
class PaiNNConfig:
    """Sizes and options of a PaiNN; the defaults are the published ones.

    Attributes:
        channels: F, number of feature channels (at least 2).
        layers: number of message and update blocks.
        radial_functions: K, size of the radial basis.
        cutoff: r_c in Å.
        elements: atomic numbers the network knows.
        radial_basis: "bessel" (the paper) or "gaussian" (the default of SchNetPack 2).
        norm_offset: e in |V v| = sqrt(V v . V v + e); above 0, for the derivatives at V v = 0. The
            authors' program has 1e-8, with a curvature of up to 10^4 where a vector vanishes.
        state_embedding: which of "charge", "unpaired_electrons" are features of the atoms from the
            start, shared out by attention (`StateEmbedding`); none in the paper.
    """

    channels: int = 128
    layers: int = 3
    radial_functions: int = 20
    cutoff: float = 5.0
    elements: Tuple[int, ...] = DEFAULT_ELEMENTS
    radial_basis: str = "bessel"
    norm_offset: float = 1e-4
    state_embedding: Tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(layers=self.layers, radial_functions=self.radial_functions)
        if self.channels < 2:
            raise ValueError(f"channels must be at least 2, got {self.channels}")
        check_system(self.elements, self.cutoff, self.state_embedding)
        if self.radial_basis not in BASES:
            raise ValueError(f"radial_basis must be one of {BASES}, got {self.radial_basis!r}")
        if not self.norm_offset > 0.0:
            raise ValueError(f"norm_offset must be above 0, got {self.norm_offset}")


class Message(nn.Module):
    """Sum over neighbours of scalars and vectors (arXiv 2102.03150, eqs. 7 and 8)."""

    def __init__(self, config: PaiNNConfig) -> None:
        super().__init__()
        f = config.channels
        self.filter = dense(config.radial_functions, 3 * f)
        self.atoms = mlp((f, f, 3 * f))

    def forward(
        self, s: Tensor, v: Tensor, pairs: Tensor, units: Tensor, basis: Tensor, phi: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Scalars [N, F], vectors [N, 3, F], unit vectors [P, 3], basis [P, K], cutoff [P, 1]."""
        i, j = pairs[0], pairs[1]
        n, f = s.shape[0], s.shape[1]
        weights = self.atoms(s).index_select(0, j) * (self.filter(basis) * phi)  # phi(s_j) W(d)
        scalar, radial, passed = weights.split(f, dim=-1)
        vectors = radial.unsqueeze(1) * units.unsqueeze(-1)
        vectors = vectors + passed.unsqueeze(1) * v.index_select(0, j)
        return s + pair_sum(scalar, i, n), v + pair_sum(vectors, i, n)  # eqs. 7 and 8


class Update(nn.Module):
    """Mixing of an atom's scalars and vectors (arXiv 2102.03150, eqs. 9 and 10)."""

    def __init__(self, config: PaiNNConfig) -> None:
        super().__init__()
        f = config.channels
        self.norm_offset = config.norm_offset
        self.mix = dense(f, 2 * f, bias=False)
        self.atoms = mlp((2 * f, f, 3 * f))

    def forward(self, s: Tensor, v: Tensor) -> Tuple[Tensor, Tensor]:
        """Scalars [N, F] and vectors [N, 3, F] -> the same."""
        f = s.shape[1]
        left, right = self.mix(v).split(f, dim=-1)  # V v and U v
        norm = torch.sqrt((left * left).sum(1) + self.norm_offset)
        # not chunk: its TorchScript derivative is wrong where a part (the last a_vv) is unused
        ss, vv, sv = self.atoms(torch.cat([s, norm], dim=-1)).split(f, dim=-1)
        s = s + ss + sv * (left * right).sum(1)  # eq. 9
        return s, v + vv.unsqueeze(1) * right  # eq. 10


class PaiNN(nn.Module):
    """PaiNN: scalar and vector features, rotation-equivariant messages, scalar read-out.

    Schütt, Unke and Gastegger, arXiv 2102.03150::

        s_i = a_{Z_i},  v_i = 0                                       embedding
        (w_s, w_r, w_v) = phi(s_j) * W(d_ij),   W = Dense(e(d)) f_c(d),  phi = Dense SiLU Dense
        s_i += sum_j w_s                                              eq. 7
        v_i += sum_j w_v v_j + w_r r_ij / d_ij                        eq. 8
        (a_ss, a_vv, a_sv) = (Dense SiLU Dense)(s_i, |V v_i|)
        s_i += a_ss + a_sv <U v_i, V v_i>                             eq. 9
        v_i += a_vv U v_i                                             eq. 10
        E_i = (Dense SiLU Dense)(s_i)                                 F -> F/2 -> 1

    with e_k(d) = sin(k pi d / r_c) / d and the cosine cutoff f_c.

    Deviations from the paper: the norm |V v| is rounded off at 0 (``norm_offset``), more than in
    the authors' program. The electronic state is an addition.
    """

    Config = PaiNNConfig

    def __init__(self, config: PaiNNConfig) -> None:
        super().__init__()
        self.config = config
        self.cutoff = float(config.cutoff)
        self.elements: Tuple[int, ...] = config.elements
        self.conditions_on: Tuple[str, ...] = conditions(config.state_embedding)
        f = config.channels
        self.embedding = AtomEmbedding(config.elements, f, config.state_embedding)
        basis = BesselBasis if config.radial_basis == "bessel" else GaussianBasis
        self.basis = basis(config.radial_functions, config.cutoff)
        self.messages = nn.ModuleList([Message(config) for _ in range(config.layers)])
        self.updates = nn.ModuleList([Update(config) for _ in range(config.layers)])
        self.readout = mlp((f, f // 2, 1))

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
        s = self.embedding(numbers, charge, multiplicity, system)
        v = torch.zeros((s.shape[0], 3, s.shape[1]), dtype=s.dtype, device=s.device)
        basis = self.basis(distances)
        phi = cosine_cutoff(distances, self.cutoff).unsqueeze(-1)
        units = vectors / distances.unsqueeze(-1)
        for message, update in zip(self.messages, self.updates):  # noqa: B905 (TorchScript)
            s, v = message(s, v, pairs, units, basis, phi)
            s, v = update(s, v)
        return {"energies": self.readout(s).squeeze(-1)}
