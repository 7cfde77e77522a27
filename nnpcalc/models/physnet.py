"""PhysNet: energies and charges from residual blocks (arXiv 1902.08408)."""

import math
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor, nn

from nnpcalc.layers import (
    check_sizes,
    check_system,
    element_table,
    pair_sum,
    shifted_softplus,
)


@dataclass(frozen=True)
class PhysNetConfig:
    """Sizes and options of a PhysNet; the defaults are the published ones.

    Attributes:
        channels: F, number of feature channels.
        layers: number of modules, each with an output of its own.
        radial_functions: K, size of the radial basis (at least 2).
        cutoff: r_c in Å.
        elements: atomic numbers the network knows.
        atomic_residuals: residual layers on the features of an atom, per module.
        message_residuals: residual layers on the message to an atom, per module.
        output_residuals: residual layers before each output.
    """

    channels: int = 128
    layers: int = 5
    radial_functions: int = 64
    cutoff: float = 10.0
    elements: Tuple[int, ...] = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53)
    atomic_residuals: int = 2
    message_residuals: int = 3
    output_residuals: int = 1

    def __post_init__(self) -> None:
        check_sizes(channels=self.channels, layers=self.layers)
        if self.radial_functions < 2:
            raise ValueError(f"radial_functions must be at least 2, got {self.radial_functions}")
        for name in ("atomic_residuals", "message_residuals", "output_residuals"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        check_system(self.elements, self.cutoff)


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """Orthogonal weights of Glorot's variance, no bias at first."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.orthogonal_(layer.weight)
    with torch.no_grad():
        variance = layer.weight.square().mean() - layer.weight.mean().square()
        layer.weight.mul_(torch.sqrt(2.0 / ((inputs + outputs) * variance)))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """x + W2 act(W1 act(x) + b1) + b2: [N, F] -> [N, F]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _linear(channels, channels)
        self.second = _linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(shifted_softplus(self.first(shifted_softplus(x))))


class RadialBasis(nn.Module):
    """e_k(d) = f_c(d) exp(-beta_k (exp(-d) - mu_k)^2) with d in Å and
    f_c = 1 - 6 x^5 + 15 x^4 - 10 x^3, x = d / r_c.

    The centres mu_k, evenly spaced in [exp(-r_c), 1] at first, and the widths beta_k, at first
    (2 (1 - exp(-r_c)) / K)^-2, are trained and stay positive as softplus of what is stored.
    """

    def __init__(self, n_basis: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        span = 1.0 - math.exp(-cutoff)
        centres = torch.linspace(1.0, math.exp(-cutoff), n_basis, dtype=torch.float64)
        widths = torch.full_like(centres, (0.5 * n_basis / span) ** 2)
        self.centres, self.widths = (
            nn.Parameter((x + torch.log(-torch.expm1(-x))).to(torch.get_default_dtype()))
            for x in (centres, widths)
        )

    def forward(self, distances: Tensor) -> Tensor:
        """Distances [P] in Å -> basis values [P, K]."""
        x = (distances / self.cutoff).clamp(max=1.0)
        smooth = 1.0 - x * x * x * (10.0 + x * (6.0 * x - 15.0))
        widths = nn.functional.softplus(self.widths, threshold=40.0)
        centres = nn.functional.softplus(self.centres, threshold=40.0)
        gaps = torch.exp(-distances).unsqueeze(-1) - centres
        return smooth.unsqueeze(-1) * torch.exp(-widths * gaps * gaps)


class Block(nn.Module):
    """One module of the paper: messages of the neighbours, refinement, output.

    v_i = act(W_I act(x_i)) + sum_j G e(d_ij) * act(W_J act(x_j)), refined by residual layers;
    x_i <- u * x_i + W act(v_i), refined as well; an output of energy and charge from each x_i.
    """

    def __init__(self, config: PhysNetConfig) -> None:
        super().__init__()
        f = config.channels
        self.mask = _linear(config.radial_functions, f, bias=False)
        self.receiver = _linear(f, f)
        self.sender = _linear(f, f)
        self.message = nn.Sequential(*[Residual(f) for _ in range(config.message_residuals)])
        self.update = _linear(f, f)
        self.gate = nn.Parameter(torch.ones(f))
        self.atoms = nn.Sequential(*[Residual(f) for _ in range(config.atomic_residuals)])
        self.before_output = nn.Sequential(*[Residual(f) for _ in range(config.output_residuals)])
        self.output = _linear(f, 2, bias=False)

    def forward(self, x: Tensor, basis: Tensor, pairs: Tensor) -> Tuple[Tensor, Tensor]:
        """Features [N, F], radial basis [P, K], pairs [2, P] -> features [N, F], output [N, 2]."""
        a = shifted_softplus(x)
        sent = shifted_softplus(self.sender(a)).index_select(0, pairs[1])
        own = shifted_softplus(self.receiver(a))
        v = own.index_add(0, pairs[0], self.mask(basis) * sent)
        x = self.gate * x + self.update(shifted_softplus(self.message(v)))
        x = self.atoms(x)
        return x, self.output(shifted_softplus(self.before_output(x)))


class PhysNet(nn.Module):
    """PhysNet: the energy and the charge of an atom are sums over modules, each looking farther.

    Unke and Meuwly, J. Chem. Theory Comput. 15, 3678 (2019), arXiv 1902.08408. Each atom's sums
    are scaled and shifted by numbers of its element, and what the charges of a system lack to its
    total charge is shared equally.

    This is the network alone; its energy does not know the total charge. The published models add
    the Coulomb energy of the charges, `Coulomb("shielded", radius=5.0)` of `nnpcalc.terms` for
    r_c = 10 Å, and D3. The charges of far-apart molecules in one system share what is
    missing, so that each may carry a charge it should not: a limit of the method.

    Deviations from the authors' program: none in the function computed. The radial masks and the
    outputs start with random weights, not with zeros. The penalty that keeps the modules' outputs
    in order of size belongs to training and is not here.
    """

    Config = PhysNetConfig
    element_index: Tensor

    def __init__(self, config: PhysNetConfig) -> None:
        super().__init__()
        self.config = config
        self.cutoff = float(config.cutoff)
        self.elements: Tuple[int, ...] = config.elements
        self.conditions_on: Tuple[str, ...] = ()
        self.pair_bytes = 20 * config.channels * config.layers  # with forces in float32, measured
        n = len(config.elements)
        self.register_buffer("element_index", element_table(config.elements), persistent=False)
        bound = math.sqrt(3.0)
        self.element = nn.Parameter(torch.empty(n, config.channels).uniform_(-bound, bound))
        self.basis = RadialBasis(config.radial_functions, config.cutoff)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.layers)])
        self.scales = nn.Parameter(torch.ones(n, 2))  # of energy and charge
        self.shifts = nn.Parameter(torch.zeros(n, 2))

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
        """-> {"energies": [N] in the network's units, "charges": [N] in e}.

        Args:
            numbers: atomic numbers [N], int64.
            pairs: receivers and senders [2, P], int64, a full list.
            vectors: not used.
            distances: lengths of the pairs [P], Å, all above 0.
            system: system of each atom [N], int64.
            charge: total charge of each system [B], e.
            multiplicity: not used.
            partial_charges: not used.
        """
        element = self.element_index[numbers]
        x = self.element[element]
        basis = self.basis(distances)
        total = torch.zeros([x.shape[0], 2], dtype=x.dtype, device=x.device)
        for module in self.blocks:
            x, output = module(x, basis, pairs)
            total = total + output
        total = self.scales[element] * total + self.shifts[element]
        charges = total[:, 1]
        counts = pair_sum(torch.ones_like(charges), system, charge.shape[0])
        missing = charge - pair_sum(charges, system, charge.shape[0])
        charges = charges + (missing / counts.clamp(min=1.0)).index_select(0, system)
        return {"energies": total[:, 0], "charges": charges}
