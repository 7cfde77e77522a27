"""TensorNet with electronic-state attributes (arXiv 2306.06482 and arXiv 2403.15073)."""

from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from nnpcalc.layers import (
    DEFAULT_ELEMENTS,
    STATES,
    ExpNormalBasis,
    StateEmbedding,
    check_system,
    conditions,
    cosine_cutoff,
    element_table,
    state_columns,
)

# A 3x3 tensor of every atom and channel is kept as its 1 + 3 + 5 irreducible components [N, 9, F]:
#   0      I     trace / 3                                      T = I Id + A + S
#   1..3   v     A = skew(v) = [[0,-vz,vy],[vz,0,-vx],[-vy,vx,0]]
#   4..8   S     xx, xy, xz, yy, yz of the symmetric traceless part; zz = -xx - yy
# ORDER[c] tells which of the three parts component c belongs to.
ORDER: Tuple[int, ...] = (0, 1, 1, 1, 2, 2, 2, 2, 2)
ATTRIBUTES: Tuple[str, ...] = (*STATES, "partial_charges")


@dataclass(frozen=True)
class TensorNetConfig:
    """Sizes and options of a TensorNet.

    Attributes:
        channels: F, number of feature channels (even).
        layers: L, number of interaction layers; 0 is allowed (then no attribute has any effect).
        radial_functions: K, size of the exponential-normal radial basis.
        cutoff: r_c in Å.
        elements: atomic numbers the network knows.
        equivariance: "O(3)" (the published model: C = g (YM + MY)) or "SO(3)" (C = 2 YM).
        attributes: which of "charge", "unpaired_electrons", "partial_charges" enter.
        attribute_weights: initial lambda of each attribute, in the order of ``attributes``.
        learnable_attribute_weights: train lambda, one per layer and attribute.
        state_embedding: which of "charge", "unpaired_electrons" are also features of the atoms
            from the start, shared out by attention (`StateEmbedding`); none in the papers.
    """

    channels: int = 128
    layers: int = 2
    radial_functions: int = 32
    cutoff: float = 5.0
    elements: Tuple[int, ...] = DEFAULT_ELEMENTS
    equivariance: str = "O(3)"
    attributes: Tuple[str, ...] = ("charge",)
    attribute_weights: Tuple[float, ...] = (0.1,)
    learnable_attribute_weights: bool = False
    state_embedding: Tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.channels < 2 or self.channels % 2:
            raise ValueError(f"channels must be an even number of at least 2, got {self.channels}")
        if self.layers < 0:
            raise ValueError(f"layers must not be negative, got {self.layers}")
        if self.equivariance not in ("O(3)", "SO(3)"):
            raise ValueError(f"equivariance must be 'O(3)' or 'SO(3)', got {self.equivariance!r}")
        unknown = [name for name in self.attributes if name not in ATTRIBUTES]
        if unknown or len(set(self.attributes)) != len(self.attributes):
            raise ValueError(f"attributes must be distinct and of {ATTRIBUTES}: {self.attributes}")
        if len(self.attribute_weights) != len(self.attributes):
            raise ValueError(
                f"{len(self.attributes)} attributes need as many attribute_weights, "
                f"got {self.attribute_weights}"
            )
        check_system(self.elements, self.cutoff, self.state_embedding)


def _pack(parts: List[Tensor]) -> Tensor:
    return torch.stack(parts, dim=1)


def to_matrix(x: Tensor) -> Tensor:
    """Components [N, 9, F] -> tensors [N, 3, 3, F]."""
    trace, vx, vy, vz, sxx, sxy, sxz, syy, syz = x.unbind(1)
    full = [
        trace + sxx, sxy - vz, sxz + vy,
        sxy + vz, trace + syy, syz - vx,
        sxz - vy, syz + vx, trace - sxx - syy,
    ]  # fmt: skip
    return _pack(full).reshape(x.shape[0], 3, 3, x.shape[2])


def from_matrix(t: Tensor) -> Tensor:
    """Tensors [N, 3, 3, F] -> components [N, 9, F]: I = tr T / 3, A = (T - T^t)/2, S = the rest."""
    xx, xy, xz, yx, yy, yz, zx, zy, zz = t.reshape(t.shape[0], 9, t.shape[3]).unbind(1)
    trace = (xx + yy + zz) / 3.0
    return _pack([
        trace,
        0.5 * (zy - yz), 0.5 * (xz - zx), 0.5 * (yx - xy),
        xx - trace, 0.5 * (xy + yx), 0.5 * (xz + zx), yy - trace, 0.5 * (yz + zy),
    ])  # fmt: skip


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of [N, 3, 3, F] with [N, 3, 3, F], channel by channel."""
    return a[:, :, 0:1] * b[:, 0:1, :] + a[:, :, 1:2] * b[:, 1:2, :] + a[:, :, 2:3] * b[:, 2:3, :]


def part_norms(x: Tensor) -> Tensor:
    """Squared Frobenius norms of I Id, A and S: [N, 9, F] -> [N, 3, F]."""
    trace, v, sxx, syy = x[:, 0], x[:, 1:4], x[:, 4], x[:, 7]
    szz = sxx + syy
    off = x[:, 5] * x[:, 5] + x[:, 6] * x[:, 6] + x[:, 8] * x[:, 8]
    return _pack([
        3.0 * trace * trace,
        2.0 * (v * v).sum(1),
        sxx * sxx + syy * syy + szz * szz + 2.0 * off,
    ])  # fmt: skip


def normalise(x: Tensor) -> Tensor:
    """X / (||X||^2 + 1) with the squared Frobenius norm of the whole tensor: [N, 9, F]."""
    return x / (part_norms(x).sum(1, keepdim=True) + 1.0)


def pair_tensors(vectors: Tensor, distances: Tensor) -> Tensor:
    """Components [P, 9] of Id, skew(u) and u u^t - Id/3 for the unit vector u = -r_ij / d.

    The papers point u from the sender j to the receiver i; r_ij points from i to j.
    """
    ux, uy, uz = (-vectors / distances.unsqueeze(-1)).unbind(1)
    third = 1.0 / 3.0
    return _pack([
        torch.ones_like(ux), ux, uy, uz,
        ux * ux - third, ux * uy, ux * uz, uy * uy - third, uy * uz,
    ])  # fmt: skip


class TensorLinear(nn.Module):
    """Channel mixing of I, A and S by one matrix without bias each: [N, 9, F] -> [N, 9, F]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        bound = channels**-0.5
        self.weight = nn.Parameter(torch.empty(3, channels, channels).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.transpose(1, 2)
        mixed = [x[:, 0:1] @ w[0], x[:, 1:4] @ w[1], x[:, 4:9] @ w[2]]
        return torch.cat(mixed, dim=1)


class Embedding(nn.Module):
    """Pair embedding and its sum over neighbours (arXiv 2306.06482, eqs. 6 to 10)."""

    part: Tensor
    element_index: Tensor

    def __init__(self, config: TensorNetConfig) -> None:
        super().__init__()
        f = config.channels
        self.cutoff = config.cutoff
        self.basis = ExpNormalBasis(config.radial_functions, config.cutoff)
        self.register_buffer("element_index", element_table(config.elements), persistent=False)
        self.register_buffer("part", torch.tensor(ORDER), persistent=False)
        self.element = nn.Embedding(len(config.elements), f)
        self.pair = nn.Linear(2 * f, f)
        self.radial = nn.Linear(config.radial_functions, 3 * f)
        self.mix = TensorLinear(f)
        self.norm = nn.LayerNorm(f)
        self.scalars = nn.ModuleList([nn.Linear(f, 2 * f), nn.Linear(2 * f, 3 * f)])
        self.state = nn.ModuleList([StateEmbedding(f) for _ in config.state_embedding])

    def radial_functions(self, distances: Tensor) -> Tensor:
        """phi(d) f_c(d) of the three parts: [P] -> [P, 3, F]; a function of the distance alone."""
        phi = cosine_cutoff(distances, self.cutoff)
        return (self.radial(self.basis(distances)) * phi.unsqueeze(-1)).unflatten(-1, [3, -1])

    def atom_features(
        self, numbers: Tensor, state: Tensor, system: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """The two halves of the linear pair embedding, Z_ij = receiver_i + sender_j: 2 x [N, F]."""
        z = self.element(self.element_index[numbers])
        element = z
        for k, embedding in enumerate(self.state):
            z = z + embedding(element, state[:, k], system)
        receiver, sender = self.pair.weight.chunk(2, dim=1)
        return z @ receiver.t() + self.pair.bias, z @ sender.t()

    def forward(
        self,
        numbers: Tensor,
        pairs: Tensor,
        vectors: Tensor,
        distances: Tensor,
        state: Tensor,
        system: Tensor,
    ) -> Tensor:
        """-> tensor features X [N, 9, F]; state: [B, number of embedded attributes]."""
        i, j = pairs[0], pairs[1]
        receiver, sender = self.atom_features(numbers, state, system)
        weights = self.radial_functions(distances) * (receiver[i] + sender[j]).unsqueeze(1)
        messages = weights.index_select(1, self.part) * pair_tensors(vectors, distances)[..., None]
        summed = torch.zeros(
            (numbers.shape[0], 9, receiver.shape[1]), dtype=messages.dtype, device=messages.device
        ).index_add(0, i, messages)
        return self.update(summed, receiver + sender)

    def add_self(self, summed: Tensor, self_pair: Tensor) -> Tensor:
        """Neighbour sums [N, 9, F] and the self pairs' Z_ii [N, F] -> sums with self pairs.

        An atom is its own neighbour at distance 0, where only the trace part survives.
        """
        at_zero = self.radial_functions(torch.zeros_like(self_pair[:1, 0]))[:, 0]
        trace = summed[:, 0:1] + (at_zero * self_pair).unsqueeze(1)
        return torch.cat([trace, summed[:, 1:]], dim=1)

    def scales(self, norms: Tensor) -> Tensor:
        """Squared norms [N, F] -> factors of the three parts [N, 3, F]."""
        h = self.norm(norms)
        for linear in self.scalars:
            h = nn.functional.silu(linear(h))
        return h.reshape(norms.shape[0], 3, norms.shape[1])

    def update(self, summed: Tensor, self_pair: Tensor) -> Tensor:
        """Neighbour sums [N, 9, F] and the self pairs' Z_ii [N, F] -> X [N, 9, F]."""
        x = self.add_self(summed, self_pair)
        return self.mix(x) * self.scales(part_norms(x).sum(1)).index_select(1, self.part)


class Interaction(nn.Module):
    """One message-passing layer (arXiv 2306.06482, eqs. 11 to 14; g: arXiv 2403.15073)."""

    part: Tensor

    def __init__(self, config: TensorNetConfig) -> None:
        super().__init__()
        f, k = config.channels, config.radial_functions
        self.cutoff = config.cutoff
        self.parity = config.equivariance == "O(3)"
        self.basis = ExpNormalBasis(k, config.cutoff)
        self.register_buffer("part", torch.tensor(ORDER), persistent=False)
        sizes = [(k, f), (f, 2 * f), (2 * f, 3 * f)]
        self.radial = nn.ModuleList([nn.Linear(a, b) for a, b in sizes])
        self.mix_before = TensorLinear(f)
        self.mix_after = TensorLinear(f)
        weights = torch.tensor(config.attribute_weights, dtype=torch.float64).to(
            torch.get_default_dtype()
        )
        self.attribute_weights = nn.Parameter(
            weights, requires_grad=config.learnable_attribute_weights
        )

    def radial_functions(self, distances: Tensor) -> Tensor:
        """Message weights f_I, f_A, f_S: [P] -> [P, 3, F]; a function of the distance alone."""
        h = self.basis(distances)
        for linear in self.radial:
            h = nn.functional.silu(linear(h))
        phi = cosine_cutoff(distances, self.cutoff)
        return (h * phi.unsqueeze(-1)).unflatten(-1, [3, -1])

    def prefactor(self, attributes: Tensor) -> Tensor:
        """g = 1 + sum_k lambda_k a_k: [N, A] -> [N, 1, 1]."""
        return (1.0 + attributes @ self.attribute_weights)[:, None, None]

    def at_zero(self, x: Tensor) -> Tensor:
        """Message weights of an atom to itself, at distance 0: [1, 9, F] in the dtype of x."""
        return self.radial_functions(torch.zeros_like(x[:1, 0, 0])).index_select(1, self.part)

    def forward(self, x: Tensor, pairs: Tensor, distances: Tensor, attributes: Tensor) -> Tensor:
        """X [N, 9, F] and attributes [N, A] -> X [N, 9, F]."""
        x = normalise(x)
        y = self.mix_before(x)
        weights = self.radial_functions(distances).index_select(1, self.part)
        summed = torch.zeros_like(y).index_add(0, pairs[0], weights * y.index_select(0, pairs[1]))
        return self.update(x, y, summed, attributes)

    def update(self, x: Tensor, y: Tensor, summed: Tensor, attributes: Tensor) -> Tensor:
        """Normalised X, mixed Y and the neighbours' messages (each [N, 9, F]) -> X [N, 9, F]."""
        message = to_matrix(summed + self.at_zero(y) * y)  # an atom is its own neighbour
        node = to_matrix(y)
        g = self.prefactor(attributes)
        if self.parity:
            mixed = g * from_matrix(multiply(node, message) + multiply(message, node))
        else:  # the published SO(3) networks have the prefactor at dX dX alone
            mixed = from_matrix(2.0 * multiply(node, message))
        change = self.mix_after(normalise(mixed))
        delta = to_matrix(change)
        return x + change + g * from_matrix(multiply(delta, delta))


class TensorNet(nn.Module):
    """TensorNet: Cartesian rank-2 tensors per atom, O(3)-equivariant messages, scalar read-out.

    Simeon and De Fabritiis, arXiv 2306.06482; total charge, spin or partial charges enter each
    interaction layer by the prefactor g = 1 + sum_k lambda_k a_k of arXiv 2403.15073,
    ``C = g (Y M + M Y)`` (SO(3): ``C = 2 Y M``) and ``X <- X + dX + g dX dX``. With every a_k = 0,
    or with no layer, it is the published TensorNet.

    The state's attributes reach every atom of a system alike, so the energy of two far-apart
    fragments in one charged system is not the sum of their own (arXiv 2403.15073 has the same
    limit): put such fragments into separate systems of a batch.

    Deviations from the paper: none in the function computed. Tensors are kept as 1 + 3 + 5
    components, the pair embedding is split into a receiver's and a sender's half, and the
    self-neighbour at distance zero is added per atom, not per pair.
    """

    Config = TensorNetConfig
    order: List[int]
    embedded: List[int]

    def __init__(self, config: TensorNetConfig) -> None:
        super().__init__()
        self.config = config
        self.cutoff = float(config.cutoff)
        self.elements: Tuple[int, ...] = config.elements
        used = config.attributes if config.layers else ()
        used += tuple(name for name in config.state_embedding if name not in used)
        self.conditions_on: Tuple[str, ...] = conditions(used)
        self.embedded = [STATES.index(name) for name in config.state_embedding]
        self.order = [ATTRIBUTES.index(name) for name in config.attributes]
        f = config.channels
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList([Interaction(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(3 * f)
        self.linear = nn.Linear(3 * f, f)
        head = [nn.Linear(f, f // 2), nn.Linear(f // 2, 1)]
        for layer in head:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.output = nn.ModuleList(head)

    def attributes(
        self,
        system: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        partial_charges: Optional[Tensor],
    ) -> Tensor:
        """The attributes of each atom in the configured order: [N, A]."""
        columns: List[Tensor] = []
        for k in self.order:
            if k == 0:
                columns.append(charge[system])
            elif k == 1:
                columns.append((multiplicity - 1.0)[system])
            else:
                assert partial_charges is not None, (
                    "this model needs per-atom partial charges: set atoms.arrays['partial_charges']"
                )
                columns.append(partial_charges)
        if len(columns) == 0:
            return torch.zeros((system.shape[0], 0), dtype=charge.dtype, device=charge.device)
        return torch.stack(columns, dim=1)

    def embedded_state(self, charge: Tensor, multiplicity: Tensor) -> Tensor:
        """What the embedding sees of the state of each system: [B, number of attributes]."""
        return state_columns(self.embedded, charge, multiplicity)

    def readout(self, x: Tensor) -> Tensor:
        """X [N, 9, F] -> energy of each atom [N], in the network's units."""
        return self.readout_of_norms(part_norms(x))

    def readout_of_norms(self, norms: Tensor) -> Tensor:
        """Squared norms of I, A and S [N, 3, F] -> energy of each atom [N]."""
        h = nn.functional.silu(self.linear(self.norm(norms.flatten(1))))
        for k, linear in enumerate(self.output):
            h = linear(h)
            if k == 0:
                h = nn.functional.silu(h)
        return h.squeeze(-1)

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
        """-> {"energies": [N]} in the network's units.

        Args:
            numbers: atomic numbers [N], int64.
            pairs: receivers and senders [2, P], int64, a full list.
            vectors: r_j - r_i of each pair [P, 3], Å.
            distances: their lengths [P], Å, all above 0.
            system: system of each atom [N], int64.
            charge: total charge of each system [B], e.
            multiplicity: 2S + 1 of each system [B].
            partial_charges: given charges of the atoms [N], e, where the model uses them.
        """
        attributes = self.attributes(system, charge, multiplicity, partial_charges)
        state = self.embedded_state(charge, multiplicity)
        x = self.embedding(numbers, pairs, vectors, distances, state, system)
        for layer in self.layers:
            x = layer(x, pairs, distances, attributes)
        return {"energies": self.readout(x)}
