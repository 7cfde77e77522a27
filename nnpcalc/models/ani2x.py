"""ANI-2x: symmetry functions of an atom's environment and a network per element."""

import math
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from nnpcalc.layers import (
    STATES,
    StateEmbedding,
    check_sizes,
    check_system,
    conditions,
    cosine_cutoff,
    dense,
    element_table,
    pair_sum,
    state_columns,
)
from nnpcalc.neighbors.triplets import neighbor_pairs

#: Hidden layers of the published networks; those of S, F and Cl serve every other element too.
PUBLISHED_HIDDEN = {1: (256, 192, 160), 6: (224, 192, 160), 7: (192, 160, 128), 8: (192, 160, 128)}
OTHER_HIDDEN = (160, 128, 96)
CELU_ALPHA = 0.1
ACTIVATIONS = ("celu", "silu")


@dataclass(frozen=True)
class ANI2xConfig:
    """Sizes and options of an ANI network; the defaults are those of one published ANI-2x member.

    The distances and angles at which symmetry functions are centred are even: distances run from
    `first_shift` up to the cutoff, exclusive; angles are the middles of equal parts of [0, pi].

    Attributes:
        cutoff: r_c of the radial functions in Å.
        elements: atomic numbers the network knows, in the order of the environment vector.
        radial_functions: number of radial functions per element.
        radial_width: eta of the radial functions, 1/Å^2.
        angular_cutoff: r_c of the angular functions in Å, at most `cutoff`.
        angular_functions: number of distances in the angular functions.
        angular_width: eta of the angular functions, 1/Å^2.
        angles: number of angles in the angular functions.
        angle_exponent: zeta.
        first_shift: smallest distance at which a function is centred, Å.
        hidden: sizes of the hidden layers, for each element in its order or once for all; ()
            means the published ones.
        activation: "celu", CELU(0.1) of the paper, whose second derivative jumps at 0; or "silu",
            which is smooth, for new models that vibrations are computed with.
        members: networks whose mean energy counts; 8 in the published ensemble.
        state_embedding: which of "charge", "unpaired_electrons" the networks see
            (`StateEmbedding`); none in the paper, so that other states are refused.
        state_channels: number of features with which they see them.
    """

    cutoff: float = 5.1
    elements: Tuple[int, ...] = (1, 6, 7, 8, 16, 9, 17)
    radial_functions: int = 16
    radial_width: float = 19.7
    angular_cutoff: float = 3.5
    angular_functions: int = 8
    angular_width: float = 12.5
    angles: int = 4
    angle_exponent: float = 14.1
    first_shift: float = 0.8
    hidden: Tuple[Tuple[int, ...], ...] = ()
    activation: str = "celu"
    members: int = 1
    state_embedding: Tuple[str, ...] = ()
    state_channels: int = 16

    def __post_init__(self) -> None:
        check_system(self.elements, self.cutoff, self.state_embedding)
        names = ("radial_functions", "angular_functions", "angles", "members", "state_channels")
        check_sizes(**{name: getattr(self, name) for name in names})
        if not 0.0 <= self.first_shift < self.angular_cutoff <= self.cutoff:
            raise ValueError(
                "0 <= first_shift < angular_cutoff <= cutoff must hold, got "
                f"{self.first_shift}, {self.angular_cutoff} and {self.cutoff} Å"
            )
        for name in ("radial_width", "angular_width", "angle_exponent"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        hidden = tuple(tuple(sizes) for sizes in self.hidden)  # JSON has lists
        hidden = hidden or tuple(PUBLISHED_HIDDEN.get(z, OTHER_HIDDEN) for z in self.elements)
        hidden = hidden * len(self.elements) if len(hidden) == 1 else hidden
        if len(hidden) != len(self.elements) or any(n < 1 for sizes in hidden for n in sizes):
            raise ValueError(
                "hidden needs sizes of at least 1, a tuple for each of the "
                f"{len(self.elements)} elements or one for all, got {self.hidden}"
            )
        object.__setattr__(self, "hidden", hidden)  # the card then says the sizes
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {ACTIVATIONS}, got {self.activation!r}")


class Environment(nn.Module):
    """Atomic environment vectors: what surrounds an atom, summed per element (Smith 2017)."""

    element_index: Tensor
    pair_index: Tensor
    radial_index: Tensor
    angular_index: Tensor
    angle_index: Tensor

    def __init__(self, config: ANI2xConfig) -> None:
        super().__init__()
        n = self.n_elements = len(config.elements)
        self.cutoff, self.angular_cutoff = float(config.cutoff), float(config.angular_cutoff)
        self.radial_width, self.angular_width = config.radial_width, config.angular_width
        self.zeta = config.angle_exponent
        self.first = config.first_shift
        self.radial_step = (config.cutoff - self.first) / config.radial_functions
        self.angular_step = (config.angular_cutoff - self.first) / config.angular_functions
        self.angle_step = math.pi / config.angles
        # unordered pairs of elements: (0, 0), (0, 1) ... (1, 1) ...
        pairs = [(a, b) for a in range(n) for b in range(a, n)]
        self.n_pairs = len(pairs)
        table = [[pairs.index((min(a, b), max(a, b))) for b in range(n)] for a in range(n)]
        self.register_buffer("element_index", element_table(config.elements), persistent=False)
        self.register_buffer("pair_index", torch.tensor(table), persistent=False)
        # Whole numbers survive a change of dtype; centres kept in float32 would not.
        sizes = (config.radial_functions, config.angular_functions, config.angles)
        for name, size in zip(("radial", "angular", "angle"), sizes):  # noqa: B905
            self.register_buffer(f"{name}_index", torch.arange(size), persistent=False)
        self.radial_size = n * config.radial_functions
        self.angular_size = self.n_pairs * config.angular_functions * config.angles

    def radial(self, distances: Tensor) -> Tensor:
        """exp(-eta (d - s)^2) f_c(d) of each distance s (Smith 2017, eq. 3): [P] -> [P, K]."""
        shifts = self.first + self.radial_step * self.radial_index.to(distances.dtype)
        gaps = distances.unsqueeze(-1) - shifts
        phi = 0.25 * cosine_cutoff(distances, self.cutoff)
        return torch.exp(-self.radial_width * gaps * gaps) * phi.unsqueeze(-1)

    def angular(self, cosines: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Smith 2017, eq. 4, of an angle between two distances: three [T] -> [T, K]."""
        # cos(theta - s) without arccos; the sine of the scaled angle is never 0
        cosine = 0.95 * cosines
        sine = torch.sqrt(1.0 - cosine * cosine)
        angles = (self.angle_index.to(cosine.dtype) + 0.5) * self.angle_step
        turned = cosine.unsqueeze(-1) * torch.cos(angles) + sine.unsqueeze(-1) * torch.sin(angles)
        shifts = self.first + self.angular_step * self.angular_index.to(cosine.dtype)
        gaps = 0.5 * (first + second).unsqueeze(-1) - shifts
        phi = 2.0 * cosine_cutoff(first, self.angular_cutoff)
        phi = phi * cosine_cutoff(second, self.angular_cutoff)
        by_distance = torch.exp(-self.angular_width * gaps * gaps) * phi.unsqueeze(-1)
        by_angle = (0.5 + 0.5 * turned) ** self.zeta
        return (by_distance.unsqueeze(-1) * by_angle.unsqueeze(-2)).flatten(1)

    def forward(self, element: Tensor, pairs: Tensor, vectors: Tensor, distances: Tensor) -> Tensor:
        """Elements [N] as rows of the tables, pairs as in `ANI2x.forward` -> [N, sizes]."""
        n = element.shape[0]
        target = pairs[0] * self.n_elements + element.index_select(0, pairs[1])
        radial = pair_sum(self.radial(distances), target, n * self.n_elements)
        near = (distances < self.angular_cutoff).nonzero().squeeze(1)
        # what finds pairs of neighbours needs pairs sorted by receiver
        near = near.index_select(0, torch.sort(pairs[0].index_select(0, near), stable=True)[1])
        pairs = pairs.index_select(1, near)
        distances = distances.index_select(0, near)
        units = vectors.index_select(0, near) / distances.unsqueeze(-1)
        a, b = neighbor_pairs(pairs, n)
        cosines = (units.index_select(0, a) * units.index_select(0, b)).sum(-1)
        values = self.angular(cosines, distances.index_select(0, a), distances.index_select(0, b))
        species = element.index_select(0, pairs[1])
        target = self.pair_index[species.index_select(0, a), species.index_select(0, b)]
        target = pairs[0].index_select(0, a) * self.n_pairs + target
        angular = pair_sum(values, target, n * self.n_pairs)
        parts = [radial.view(n, self.radial_size), angular.view(n, self.angular_size)]
        return torch.cat(parts, dim=1)


class MemberLinear(nn.Module):
    """A linear layer for each member of an ensemble: [1 or M, n, in] -> [M, n, out]."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        layers = [dense(inputs, outputs) for _ in range(members)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight.transpose(1, 2)) + self.bias.unsqueeze(1)


class StateFeatures(nn.Module):
    """The electronic state as features of the atoms, shared out by element and environment."""

    order: List[int]

    def __init__(self, config: ANI2xConfig, size: int) -> None:
        super().__init__()
        f = config.state_channels
        self.order = [STATES.index(name) for name in config.state_embedding]
        self.element = nn.Embedding(len(config.elements), f)
        self.environment = dense(size, f)
        self.state = nn.ModuleList([StateEmbedding(f) for _ in config.state_embedding])

    def forward(
        self, element: Tensor, aev: Tensor, charge: Tensor, multiplicity: Tensor, system: Tensor
    ) -> Tensor:
        """-> [N, F], zero in a neutral closed-shell system."""
        z = self.element(element) + self.environment(aev)
        state = state_columns(self.order, charge, multiplicity)
        features = torch.zeros_like(z)
        for k, embedding in enumerate(self.state):
            features = features + embedding(z, state[:, k], system)
        return features


class ANI2x(nn.Module):
    """ANI: fixed symmetry functions of the environment, then a perceptron of the atom's element.

    Devereux et al., J. Chem. Theory Comput. 16, 4192 (2020), with the symmetry functions of Smith,
    Isayev and Roitberg, Chem. Sci. 8, 3192 (2017). For every element X and every unordered pair
    X, Y of them, with the cosine cutoff f_c (eq. 2)::

        G_i,X   = 1/4 sum_j exp(-eta (d_ij - s)^2) f_c(d_ij)                     eq. 3
        G_i,XY  = 2 sum_{j<k} ((1 + cos(theta_jik - t)) / 2)^zeta                eq. 4
                  exp(-eta ((d_ij + d_ik) / 2 - s)^2) f_c(d_ij) f_c(d_ik)
        E_i     = mean over members of network_{Z_i}(G_i),  CELU(0.1) activated

    The factor 1/4 and cos(theta) = 0.95 cos(true angle) are not in the paper but in the program
    that made the published weights, which need them. Other options give ANI-1x and ANI-1ccx.

    The energies know neither charge nor spin: `charges` and `multiplicities` say which states may
    be asked for. The electronic state (``state_embedding``) is an addition, which lifts that.
    """

    Config = ANI2xConfig

    def __init__(self, config: ANI2xConfig) -> None:
        super().__init__()
        self.config = config
        self.cutoff = float(config.cutoff)
        self.elements: Tuple[int, ...] = config.elements
        self.conditions_on: Tuple[str, ...] = conditions(config.state_embedding)
        #: States that make sense, checked with those of the card; () is all.
        self.charges: Tuple[int, ...] = () if "charge" in self.conditions_on else (0,)
        self.multiplicities: Tuple[int, ...] = () if "multiplicity" in self.conditions_on else (1,)
        self.members = config.members
        # memory of a pair in a pass with forces in float32, measured
        self.pair_bytes = 160 * config.angular_functions * config.angles + 200 * config.members
        self.environment = Environment(config)
        size = self.environment.radial_size + self.environment.angular_size
        self.state = nn.ModuleList([StateFeatures(config, size)] if config.state_embedding else [])
        size += config.state_channels if config.state_embedding else 0
        networks = []
        for hidden in config.hidden:
            layers: List[nn.Module] = []
            for inputs, outputs in zip((size, *hidden), hidden):  # noqa: B905
                smooth = config.activation == "silu"
                layers.append(MemberLinear(config.members, inputs, outputs))
                layers.append(nn.SiLU() if smooth else nn.CELU(CELU_ALPHA))
            layers.append(MemberLinear(config.members, (size, *hidden)[-1], 1))
            networks.append(nn.Sequential(*layers))
        self.networks = nn.ModuleList(networks)

    def member_energies(
        self,
        numbers: Tensor,
        pairs: Tensor,
        vectors: Tensor,
        distances: Tensor,
        system: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
    ) -> Tensor:
        """Energies of the atoms by each member of the ensemble [M, N]; their spread is telling."""
        element = self.environment.element_index[numbers]
        aev = self.environment(element, pairs, vectors, distances)
        for state in self.state:
            aev = torch.cat([aev, state(element, aev, charge, multiplicity, system)], dim=1)
        energies = torch.zeros((self.members, len(numbers)), dtype=aev.dtype, device=aev.device)
        for k, network in enumerate(self.networks):
            chosen = (element == k).nonzero().squeeze(1)
            values = network(aev.index_select(0, chosen).unsqueeze(0)).squeeze(-1)
            energies = energies.index_add(1, chosen, values)
        return energies

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
        energies = self.member_energies(
            numbers, pairs, vectors, distances, system, charge, multiplicity
        )
        return {"energies": energies.mean(0)}
