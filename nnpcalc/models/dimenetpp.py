"""DimeNet++: messages of pairs that see angles (arXiv 2003.03123 and 2011.14115)."""

import math
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor, nn

from nnpcalc.layers import (
    DEFAULT_ELEMENTS,
    AtomEmbedding,
    SphericalBesselBasis,
    check_sizes,
    check_system,
    conditions,
    dense,
    legendre,
    mlp,
    pair_sum,
    polynomial_cutoff,
)
from nnpcalc.neighbors.triplets import triplets

ENVELOPES = ("smooth", "published")
RESIDUALS_BEFORE, RESIDUALS_AFTER = 1, 2  # residual blocks on either side of the skip connection
OUTPUT_LAYERS = 3


@dataclass(frozen=True)
class DimeNetPPConfig:
    """Sizes and options of a DimeNet++; the sizes are the published ones by default.

    Attributes:
        channels: F, number of features of a message.
        layers: number of interaction blocks.
        radial_functions: number of radial functions, also of those in each angular one.
        angular_functions: number of angular functions, at most 12.
        cutoff: r_c in Å.
        elements: atomic numbers the network knows.
        basis_channels: number of features that radial and angular functions are reduced to.
        triplet_channels: number of features of a message where angles enter.
        output_channels: number of features of an atom in the read-out.
        angular_envelope: "smooth", the envelope u(d) of the paper, or "published", u(d) r_c / d: a
            slip of the authors' program that weights trained with it need.
        state_embedding: which of "charge", "unpaired_electrons" are features of the atoms from the
            start, shared out by attention (`StateEmbedding`); none in the papers.
    """

    channels: int = 128
    layers: int = 4
    radial_functions: int = 6
    angular_functions: int = 7
    cutoff: float = 5.0
    elements: Tuple[int, ...] = DEFAULT_ELEMENTS
    basis_channels: int = 8
    triplet_channels: int = 64
    output_channels: int = 256
    angular_envelope: str = "smooth"
    state_embedding: Tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(
            channels=self.channels,
            layers=self.layers,
            radial_functions=self.radial_functions,
            basis_channels=self.basis_channels,
            triplet_channels=self.triplet_channels,
            output_channels=self.output_channels,
        )
        check_system(self.elements, self.cutoff, self.state_embedding)
        if self.angular_envelope not in ENVELOPES:
            raise ValueError(
                f"angular_envelope must be one of {ENVELOPES}, got {self.angular_envelope!r}"
            )


class Embedding(nn.Module):
    """First messages: ``m_ji = swish(W [h_i, h_j, swish(W e_RBF)])`` (arXiv 2003.03123, eq. 9)."""

    def __init__(self, config: DimeNetPPConfig) -> None:
        super().__init__()
        f = config.channels
        self.atoms = AtomEmbedding(config.elements, f, config.state_embedding)
        self.radial = mlp((config.radial_functions, f), activate_last=True)
        self.pair = mlp((3 * f, f), activate_last=True)

    def forward(self, h: Tensor, pairs: Tensor, rbf: Tensor) -> Tensor:
        """Features of the atoms [N, F], radial basis [P, K] -> messages [P, F]."""
        parts = [h.index_select(0, pairs[0]), h.index_select(0, pairs[1]), self.radial(rbf)]
        return self.pair(torch.cat(parts, dim=-1))


class Residual(nn.Module):
    """``x + swish(W swish(W x))``"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = mlp((channels, channels, channels), activate_last=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Interaction(nn.Module):
    """New messages from those one pair further (arXiv 2003.03123, eq. 4; f_int: 2011.14115)."""

    def __init__(self, config: DimeNetPPConfig) -> None:
        super().__init__()
        f, b, t = config.channels, config.basis_channels, config.triplet_channels
        k = config.radial_functions
        self.radial = nn.Sequential(dense(k, b, bias=False), dense(b, f, bias=False))
        self.angular = nn.Sequential(
            dense(config.angular_functions * k, b, bias=False), dense(b, t, bias=False)
        )
        self.ji = mlp((f, f), activate_last=True)
        self.kj = mlp((f, f), activate_last=True)
        self.down = nn.Sequential(dense(f, t, bias=False), nn.SiLU())
        self.up = nn.Sequential(dense(t, f, bias=False), nn.SiLU())
        self.before = nn.Sequential(*[Residual(f) for _ in range(RESIDUALS_BEFORE)])
        self.skip = mlp((f, f), activate_last=True)
        self.after = nn.Sequential(*[Residual(f) for _ in range(RESIDUALS_AFTER)])

    def forward(self, m: Tensor, rbf: Tensor, sbf: Tensor, kj: Tensor, ji: Tensor) -> Tensor:
        """Messages [P, F], bases [P, K] and [T, A K], pairs kj and ji [T] -> messages [P, F]."""
        x = self.down(self.kj(m) * self.radial(rbf))
        x = x.index_select(0, kj) * self.angular(sbf)  # f_int
        x = self.up(pair_sum(x, ji, m.shape[0]))  # sum over k
        return self.after(self.skip(self.before(self.ji(m) + x)) + m)  # f_update


class Output(nn.Module):
    """Energies of the atoms after a block, from the sum of their messages (arXiv 2011.14115)."""

    def __init__(self, config: DimeNetPPConfig) -> None:
        super().__init__()
        o = config.output_channels
        self.radial = dense(config.radial_functions, config.channels, bias=False)
        self.up = dense(config.channels, o, bias=False)
        self.hidden = mlp((o,) * (OUTPUT_LAYERS + 1), activate_last=True)
        self.last = dense(o, 1, bias=False)

    def forward(self, m: Tensor, rbf: Tensor, receiver: Tensor, n_atoms: int) -> Tensor:
        """Messages [P, F] -> energies [N]."""
        summed = pair_sum(self.radial(rbf) * m, receiver, n_atoms)
        return self.last(self.hidden(self.up(summed))).squeeze(-1)


class DimeNetPP(nn.Module):
    """DimeNet++: messages m_ji of pairs, which see the angle to every pair that ends in them.

    Gasteiger, Groß and Günnemann, arXiv 2003.03123 (DimeNet); Gasteiger et al., arXiv 2011.14115
    (++). With x = d / r_c and the envelope u(x) = 1 - 28 x^6 + 48 x^7 - 21 x^8 (eq. 8)::

        e_RBF,n  = u(x) sin(w_n x) / x                                w_n trained from n pi; eq. 7
        a_SBF,ln = u(x_kj) j_l(z_ln x_kj) Y_l0(angle) up to a factor  eq. 6
        m_ji     = embedding(h_i, h_j, e_RBF)                         eq. 9
        m_ji     = f_update(m_ji, sum_k f_int(m_kj, e_RBF, a_SBF))    each block; eq. 4
        E_i      = sum over blocks of output(sum_j e_RBF W * m_ji)

    An atom k is every neighbour of j but i itself; periodic images of i count. Memory grows with
    the number of triplets, the square of the number of neighbours.

    Deviations: u(d) in a_SBF is not divided by x, as the paper has it and the authors' program has
    not (``angular_envelope``). The angle is that between the directions i to j and j to k, of the
    authors' program: pi minus the paper's, which changes the sign of some weights only. A network
    of no more neighbours than one still has energies: the last layers do not start at 0. The
    electronic state is an addition.
    """

    Config = DimeNetPPConfig

    def __init__(self, config: DimeNetPPConfig) -> None:
        super().__init__()
        self.config = config
        self.cutoff = float(config.cutoff)
        self.elements: Tuple[int, ...] = config.elements
        self.conditions_on: Tuple[str, ...] = conditions(config.state_embedding)
        self.divided = config.angular_envelope == "published"
        k, a = config.radial_functions, config.angular_functions
        self.n_angular = a
        self.frequencies = nn.Parameter(torch.arange(1, k + 1) * math.pi)
        self.spherical = SphericalBesselBasis(a, k, config.cutoff)
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList([Interaction(config) for _ in range(config.layers)])
        self.first_output = Output(config)
        self.outputs = nn.ModuleList([Output(config) for _ in range(config.layers)])

    def radial_basis(self, distances: Tensor) -> Tensor:
        """e_RBF: [P] -> [P, K]."""
        x = (distances / self.cutoff).unsqueeze(-1)
        return polynomial_cutoff(x) / x * torch.sin(self.frequencies * x)

    def spherical_basis(self, vectors: Tensor, distances: Tensor, ji: Tensor, kj: Tensor) -> Tensor:
        """a_SBF of the triplets: [T, A K]."""
        x = distances / self.cutoff
        envelope = polynomial_cutoff(x)
        if self.divided:
            envelope = envelope / x
        radial = self.spherical(distances) * envelope[:, None, None]
        units = vectors / distances.unsqueeze(-1)
        cosines = (units.index_select(0, ji) * units.index_select(0, kj)).sum(-1)
        angular = legendre(cosines, self.n_angular)
        return (radial.index_select(0, kj) * angular.unsqueeze(-1)).flatten(1)

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
        n = numbers.shape[0]
        order = torch.sort(pairs[0], stable=True)[1]  # what finds triplets needs sorted pairs
        pairs = pairs.index_select(1, order)
        vectors, distances = vectors.index_select(0, order), distances.index_select(0, order)
        ji, kj = triplets(pairs, vectors, n)
        rbf = self.radial_basis(distances)
        sbf = self.spherical_basis(vectors, distances, ji, kj)
        h = self.embedding.atoms(numbers, charge, multiplicity, system)
        m = self.embedding(h, pairs, rbf)
        energies = self.first_output(m, rbf, pairs[0], n)
        for layer, output in zip(self.layers, self.outputs):  # noqa: B905 (TorchScript)
            m = layer(m, rbf, sbf, kj, ji)
            energies = energies + output(m, rbf, pairs[0], n)
        return {"energies": energies}
