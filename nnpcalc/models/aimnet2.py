"""AIMNet2: atoms in molecules whose charges are equilibrated (doi:10.1039/D4SC08572H)."""

import math
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from nnpcalc.layers import check_sizes, check_system, cosine_cutoff, element_table, pair_sum


@dataclass(frozen=True)
class AIMNet2Config:
    """Sizes and options of an AIMNet2; the defaults are the published ones.

    Attributes:
        channels: A, features of an atom per radial function.
        layers: passes, at least 2; all but the last update features and charges.
        radial_functions: G, Gaussians of the distance.
        cutoff: r_c in Å.
        elements: atomic numbers the network knows.
        first_shift: centre of the first Gaussian in Å; the others follow evenly up to the cutoff.
        vector_combinations: H, combinations of the vector sums per feature.
        hidden: sizes of the hidden layers in the passes before the last.
        last_hidden: the same in the last pass.
        features: size of the final feature vector of an atom, the AIM.
        readout: sizes of the hidden layers between it and the energy.
        open_shell: two charges per atom, of spin up and spin down (AIMNet2-NSE).
    """

    channels: int = 16
    layers: int = 3
    radial_functions: int = 16
    cutoff: float = 5.0
    elements: Tuple[int, ...] = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 33, 34, 35, 53)
    first_shift: float = 0.8
    vector_combinations: int = 12
    hidden: Tuple[int, ...] = (512, 380)
    last_hidden: Tuple[int, ...] = (512, 380, 380)
    features: int = 256
    readout: Tuple[int, ...] = (128, 128)
    open_shell: bool = False

    def __post_init__(self) -> None:
        if self.layers < 2:
            raise ValueError(f"AIMNet2 has at least 2 layers (passes), got {self.layers}")
        names = ("channels", "radial_functions", "vector_combinations", "features")
        check_sizes(**{name: getattr(self, name) for name in names})
        for name in ("hidden", "last_hidden", "readout"):
            if any(size < 1 for size in getattr(self, name)):
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_system(self.elements, self.cutoff)
        if not 0.0 <= self.first_shift < self.cutoff < math.inf:
            raise ValueError(
                f"first_shift and cutoff must be lengths in Å, the cutoff the larger: "
                f"{self.first_shift}, {self.cutoff}"
            )


def _perceptron(sizes: Sequence[int], last_linear: bool) -> nn.Sequential:
    """Linear layers with GELU between them, and after the last unless it is linear."""
    layers: List[nn.Module] = []
    for k in range(len(sizes) - 1):
        linear = nn.Linear(sizes[k], sizes[k + 1])
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if k < len(sizes) - 2 or not last_linear:
            layers.append(nn.GELU())
    return nn.Sequential(*layers)


class Convolution(nn.Module):
    """What an atom sees of its neighbours' features, scalars only.

    S_iag = sum_j a_jag g_g(d_ij) and the lengths of vectors mixed over the radial functions,
    v_iah = |sum_g w_agh sum_j a_jag g_g(d_ij) r_ij / d_ij|^2.

    Args:
        channels: A, or the number of charges.
        radial_functions: G.
        combinations: H.
    """

    def __init__(self, channels: int, radial_functions: int, combinations: int) -> None:
        super().__init__()
        self.size = channels * (radial_functions + combinations)
        mix = torch.randn(channels, radial_functions, combinations) / radial_functions**0.5
        self.mix = nn.Parameter(mix)

    def forward(self, senders: Tensor, radial: Tensor, units: Tensor, i: Tensor, n: int) -> Tensor:
        """-> [N, A (G + H)].

        Args:
            senders: features of the neighbours [P, A, G] or, the same for all radial functions,
                [P, A, 1].
            radial: g_g(d_ij), smooth at the cutoff [P, G].
            units: r_ij / d_ij [P, 3].
            i: receivers [P], int64.
            n: number of atoms N.
        """
        weighted = senders * radial[:, None, :]
        parts = [pair_sum(weighted, i, n).flatten(1)]
        squares = torch.zeros(
            [n, self.mix.shape[0], self.mix.shape[2]], dtype=radial.dtype, device=radial.device
        )
        for d in range(3):
            component = pair_sum(weighted * units[:, d, None, None], i, n)
            mixed = torch.einsum("nag,agh->nah", component, self.mix)
            squares = squares + mixed * mixed
        parts.append(squares.flatten(1))
        return torch.cat(parts, dim=1)


def equilibrate(charges: Tensor, weights: Tensor, total: Tensor, system: Tensor) -> Tensor:
    """Spread what is missing to the total charge: q_i + f_i (Q - sum_j q_j) / sum_j f_j.

    Args:
        charges: raw charges [N, C].
        weights: f, not negative [N, C].
        total: Q of each system [B, C].
        system: [N].
    """
    missing = total - pair_sum(charges, system, total.shape[0])
    sums = pair_sum(weights, system, total.shape[0])
    share = missing / sums.clamp(min=1e-12)
    return charges + weights * share.index_select(0, system)


class AIMNet2(nn.Module):
    """AIMNet2: features a_iag of elements and environments, charges that flow between the passes.

    Anstine, Zubatyuk and Isayev, Chem. Sci. 16, 10228 (2025), doi:10.1039/D4SC08572H. In each pass
    every atom looks at the features and charges of its neighbours (`Convolution`) and an MLP makes
    of that changes of its features and charges and a weight f_i; charges then add up to the total
    charge of the system (`equilibrate` with f_i^2). The last pass gives the vector from which the
    energy is read.

    With `open_shell` there are two charges per atom that add up to (Q + u) / 2 and (Q - u) / 2 for
    u unpaired electrons, as in AIMNet2-NSE (after Zubatyuk et al., Nat. Commun. 12, 4870 (2021));
    their difference is the output "spin_charges".

    This is the network alone. The published models add atomic energies, the Coulomb energy of the
    charges beyond 4.6 Å and D3: `nnpcalc.terms` has `AtomicEnergies`, `Coulomb` and `D3`, and
    `nnpcalc.interop.aimnet2` reads the published files.

    The charges flow through the whole system, however large: the energy of two molecules far apart
    is the sum of their own only as far as each keeps its charge, which is learned, not built in.

    Deviations from the authors' program: the charges add up exactly; it adds 1e-6 to the sum of
    f_i^2, which leaves 1e-7 e and makes an energy depend on the size of the repeated cell.
    """

    Config = AIMNet2Config
    element_index: Tensor
    index: Tensor

    def __init__(self, config: AIMNet2Config) -> None:
        super().__init__()
        self.config = config
        self.cutoff = float(config.cutoff)
        self.elements: Tuple[int, ...] = config.elements
        self.open_shell = config.open_shell
        conditions = ("charge", "multiplicity") if config.open_shell else ("charge",)
        self.conditions_on: Tuple[str, ...] = conditions
        self.additive = False  # two molecules in one system exchange charge
        a, g, h = config.channels, config.radial_functions, config.vector_combinations
        self.pair_bytes = 100 * a * g  # memory of a pass with forces in float32, measured
        c = self.charge_channels = 2 if config.open_shell else 1
        self.channels, self.radial_functions = a, g
        self.register_buffer("element_index", element_table(config.elements), persistent=False)
        # Whole numbers survive a change of dtype; centres kept in float32 would not.
        self.register_buffer("index", torch.arange(g), persistent=False)
        self.first, self.step = config.first_shift, (config.cutoff - config.first_shift) / g
        start = torch.empty(len(config.elements), a)
        nn.init.orthogonal_(start)
        self.element = nn.Parameter(start[:, :, None].repeat(1, 1, g))
        self.feature_convolution = Convolution(a, g, h)
        self.charge_convolution = Convolution(c, g, h)
        first = a * g + self.feature_convolution.size
        later = first + c + self.charge_convolution.size
        changes = a * g + 2 * c
        passes = [_perceptron([first, *config.hidden, changes], last_linear=True)]
        for _ in range(config.layers - 2):
            passes.append(_perceptron([later, *config.hidden, changes], last_linear=False))
        passes.append(_perceptron([later, *config.last_hidden, config.features], False))
        self.passes = nn.ModuleList(passes)
        self.readout = _perceptron([config.features, *config.readout, 1], last_linear=True)

    def radial(self, distances: Tensor) -> Tensor:
        """exp(-((d - s_g) / w)^2) f_c(d) with centres s_g at distances w: [P] -> [P, G]."""
        centres = self.first + self.step * self.index.to(distances.dtype)
        gaps = (distances.unsqueeze(-1) - centres) / self.step
        return torch.exp(-gaps * gaps) * cosine_cutoff(distances, self.cutoff).unsqueeze(-1)

    def totals(self, charge: Tensor, multiplicity: Tensor) -> Tensor:
        """What the charges of each system add up to: [B, C]."""
        if not self.open_shell:
            return charge.unsqueeze(-1)
        unpaired = multiplicity - 1.0
        return 0.5 * torch.stack([charge + unpaired, charge - unpaired], dim=-1)

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
        """-> {"energies": [N], "charges": [N]} and, for open shells, "spin_charges" [N].

        Args:
            numbers: atomic numbers [N], int64.
            pairs: receivers and senders [2, P], int64, a full list.
            vectors: r_j - r_i of each pair [P, 3], Å.
            distances: their lengths [P], Å, all above 0.
            system: system of each atom [N], int64.
            charge: total charge of each system [B], e.
            multiplicity: 2S + 1 of each system [B].
            partial_charges: not used.
        """
        n, i, j = numbers.shape[0], pairs[0], pairs[1]
        radial = self.radial(distances)
        units = vectors / distances.unsqueeze(-1)
        total = self.totals(charge, multiplicity)
        a = self.element[self.element_index[numbers]]
        q = torch.zeros([n, self.charge_channels], dtype=a.dtype, device=a.device)
        out = q
        for k, mlp in enumerate(self.passes):
            senders = a.index_select(0, j)
            seen = [a.flatten(1), self.feature_convolution(senders, radial, units, i, n)]
            if k > 0:
                charges = q.index_select(0, j).unsqueeze(-1)
                seen += [q, self.charge_convolution(charges, radial, units, i, n)]
            out = mlp(torch.cat(seen, dim=1))
            if k < len(self.passes) - 1:
                c = self.charge_channels
                f = out[:, c : 2 * c]
                q = equilibrate(q + out[:, :c], f * f, total, system)
                a = a + out[:, 2 * c :].unflatten(1, [self.channels, self.radial_functions])
        output = {"energies": self.readout(out).squeeze(-1), "charges": q.sum(-1)}
        if self.open_shell:
            output["spin_charges"] = q[:, 0] - q[:, 1]
        return output
