"""SAKE: attention over neighbours in space (arXiv 2301.08893), with a smooth cutoff."""

import math
from dataclasses import dataclass
from typing import Dict, Final, Optional, Tuple

import torch
from torch import Tensor, nn

from nnpcalc.layers import (
    DEFAULT_ELEMENTS,
    AtomEmbedding,
    check_sizes,
    check_system,
    conditions,
    cosine_cutoff,
    dense,
    mlp,
    pair_sum,
)

NORMALISATIONS = ("smooth", "published")
EPSILON = 1e-5  # of the authors' program: d = sqrt(r^2 + e), u = r / (d + e)


@dataclass(frozen=True)
class SAKEConfig:
    """Sizes and options of a SAKE network; the sizes are those the authors used for QM9.

    Attributes:
        channels: F, number of feature channels.
        layers: number of layers.
        radial_functions: K, size of the exponential-normal radial basis (at least 2).
        cutoff: r_c in Å.
        elements: atomic numbers the network knows.
        heads: H, number of attention heads.
        moving_layers: so many of the last layers move the atoms (all, if there are fewer layers):
            3 for QM9, all for MD17. What the very last layer moves has no effect.
        normalisation: "smooth", or "published" for weights that the authors' program trained: the
            energy then jumps where an atom crosses the cutoff.
        state_embedding: which of "charge", "unpaired_electrons" are features of the atoms from the
            start, shared out by attention (`StateEmbedding`); none in the paper.
    """

    channels: int = 64
    layers: int = 6
    radial_functions: int = 50
    cutoff: float = 5.0
    elements: Tuple[int, ...] = DEFAULT_ELEMENTS
    heads: int = 4
    moving_layers: int = 3
    normalisation: str = "smooth"
    state_embedding: Tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(channels=self.channels, layers=self.layers, heads=self.heads)
        check_system(self.elements, self.cutoff, self.state_embedding)
        if self.radial_functions < 2:
            raise ValueError(f"radial_functions must be at least 2, got {self.radial_functions}")
        if self.moving_layers < 0:
            raise ValueError(f"moving_layers must not be negative, got {self.moving_layers}")
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(
                f"normalisation must be one of {NORMALISATIONS}, got {self.normalisation!r}"
            )


class Edge(nn.Module):
    """Features of a pair: ``MLP[h_j, h_i, basis(d) * W[h_j, h_i], d]``, the basis trained."""

    def __init__(self, config: SAKEConfig) -> None:
        super().__init__()
        f, k = config.channels, config.radial_functions
        self.alpha = 5.0 / config.cutoff
        start = math.exp(-config.cutoff)
        self.means = nn.Parameter(torch.linspace(start, 1.0, k))
        self.betas = nn.Parameter(torch.full((k,), (2.0 / k * (1.0 - start)) ** -2))
        self.filter = dense(2 * f, k)
        self.out = mlp((2 * f + k + 1, f, f))

    def forward(self, h: Tensor, pairs: Tensor, d: Tensor) -> Tensor:
        """Features [N, F] and distances [P, 1] -> [P, F]."""
        both = torch.cat([h.index_select(0, pairs[1]), h.index_select(0, pairs[0])], dim=-1)
        gaps = torch.exp(-self.alpha * d) - self.means
        basis = torch.exp(-self.betas * gaps * gaps)
        return self.out(torch.cat([both, basis * self.filter(both), d], dim=-1))


class Layer(nn.Module):
    """Semantic and spatial attention, and the motion of the atoms (arXiv 2301.08893)."""

    moves: Final[bool]

    def __init__(self, config: SAKEConfig, moves: bool) -> None:
        super().__init__()
        f, wide = config.channels, config.channels * config.heads
        self.moves, self.epsilon = moves, EPSILON
        self.smooth = config.normalisation == "smooth"
        self.edge = Edge(config)
        self.score = nn.Sequential(dense(f, config.heads), nn.CELU(2.0))
        self.coefficients = nn.Sequential(dense(wide, wide, bias=False), nn.Tanh())
        self.spatial = mlp((wide, f, f), activate_last=True)
        self.node = mlp((f + wide + f, f, f), activate_last=True)
        if moves:
            self.direction = dense(wide, 1, bias=False)
            self.damping = nn.Sequential(*mlp((f, f), activate_last=True), dense(f, 1, bias=False))

    def attention(self, edges: Tensor, phi: Tensor, receiver: Tensor, n_atoms: int) -> Tensor:
        """Weights of the heads [P, H]; the largest score is taken off against overflow."""
        scores = self.score(edges)
        index = receiver.unsqueeze(-1).expand_as(scores)
        top = torch.zeros((n_atoms, scores.shape[1]), dtype=scores.dtype, device=scores.device)
        top = top.scatter_reduce(0, index, scores.detach(), "amax")
        raw = torch.exp(scores - top.index_select(0, receiver))
        if self.smooth:
            raw = raw * phi
            total = pair_sum(raw, receiver, n_atoms) + torch.exp(-top)
        else:
            total = pair_sum(raw, receiver, n_atoms)
        return raw / total.index_select(0, receiver)

    def forward(
        self, h: Tensor, v: Tensor, pairs: Tensor, vectors: Tensor, phi: Tensor, counts: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Features [N, F] and velocities [N, 3] -> the same.

        Args:
            h, v: features and velocities.
            pairs: [2, P].
            vectors: between the moved atoms [P, 3].
            phi: cutoff function of the pairs' first distances [P, 1].
            counts: number of neighbours, in the sense of the normalisation [N, 1].
        """
        i, n = pairs[0], h.shape[0]
        d = torch.sqrt((vectors * vectors).sum(-1, keepdim=True) + self.epsilon)
        units = vectors / (d + self.epsilon)
        edges = self.edge(h, pairs, d)
        weights = self.attention(edges, phi, i, n)
        heads = (edges.unsqueeze(-1) * weights.unsqueeze(1)).flatten(1)
        coefficients = self.coefficients(heads)
        summed = pair_sum(units.unsqueeze(-1) * coefficients.unsqueeze(1), i, n)
        mean = summed / counts.unsqueeze(-1)
        spatial = self.spatial((mean * mean).sum(1))
        h = h + self.node(torch.cat([h, pair_sum(heads, i, n), spatial], dim=-1))
        if self.moves:
            v = 2.0 * torch.sigmoid(self.damping(h)) * v + self.direction(mean).squeeze(-1)
        return h, v


class SAKE(nn.Module):
    """SAKE: spatial attention kinetic network, whose layers also move the atoms.

    Wang and Chodera, arXiv 2301.08893, in the form of the authors' program (choderalab/sake). Each
    layer, with d = sqrt(r_ij^2 + 1e-5) and u_ij = r_ij / (d + 1e-5)::

        e_ij = MLP(h_j, h_i, basis(d) * W(h_j, h_i), d)                   features of a pair
        a_ij = softmax over j of celu_2(W e_ij), for each of H heads      semantic attention
        g_ij = e_ij (x) a_ij                                              F H features
        C_i  = mean over j of tanh(W g_ij) u_ij                           spatial attention
        h_i += MLP(h_i, sum_j g_ij, MLP(|C_i|^2))
        v_i  = 2 sigmoid(MLP(h_i)) v_i + w . C_i,   x_i += v_i            in layers that move
        E_i  = (Dense SiLU Dense)(h_i)                                    after the last layer

    Deviations from the authors' program, which has no cutoff by default and jumps where an atom
    comes into range (``normalisation``): the attention is
    ``a_ij = f_c(d_ij) e^s_ij / (1 + sum_k f_c(d_ik) e^s_ik)`` and the mean divides by
    ``1 + sum_k f_c(d_ik)``, both with the cosine cutoff f_c of the distances before any layer moved
    an atom. The electronic state is an addition.
    """

    Config = SAKEConfig

    def __init__(self, config: SAKEConfig) -> None:
        super().__init__()
        self.config = config
        self.cutoff = float(config.cutoff)
        self.elements: Tuple[int, ...] = config.elements
        self.conditions_on: Tuple[str, ...] = conditions(config.state_embedding)
        self.smooth = config.normalisation == "smooth"
        f, n = config.channels, config.layers
        first = n - config.moving_layers
        self.embedding = AtomEmbedding(config.elements, f, config.state_embedding)
        self.layers = nn.ModuleList([Layer(config, first <= k < n - 1) for k in range(n)])
        self.readout = mlp((f, f, 1))

    def counts(self, phi: Tensor, receiver: Tensor, system: Tensor, n_systems: int) -> Tensor:
        """What a mean over neighbours divides by: [N, 1]."""
        ones = torch.ones((system.shape[0], 1), dtype=phi.dtype, device=phi.device)
        if self.smooth:
            return ones + pair_sum(phi, receiver, system.shape[0])
        return pair_sum(ones, system, n_systems).index_select(0, system)  # atoms of the system

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
        h = self.embedding(numbers, charge, multiplicity, system)
        phi = cosine_cutoff(distances, self.cutoff).unsqueeze(-1)
        counts = self.counts(phi, pairs[0], system, charge.shape[0])
        v = torch.zeros((h.shape[0], 3), dtype=h.dtype, device=h.device)
        for layer in self.layers:
            h, v = layer(h, v, pairs, vectors, phi, counts)
            if layer.moves:
                vectors = vectors + v.index_select(0, pairs[1]) - v.index_select(0, pairs[0])
        return {"energies": self.readout(h).squeeze(-1)}
