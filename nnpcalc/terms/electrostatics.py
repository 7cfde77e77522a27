"""The Coulomb energy of the partial charges that a core network gives its atoms."""

import math
from typing import List, Tuple

import torch
from torch import Tensor, nn

from nnpcalc.terms.ewald import reciprocal_potential, splitting
from nnpcalc.terms.inputs import TermInputs, pair_to_atoms
from nnpcalc.units import COULOMB

DAMPINGS = ("none", "exponential", "shielded")
OPEN = ("direct", "dsf")
PERIODIC = ("ewald", "dsf", "none")


def all_pairs(system: Tensor, chosen: Tensor) -> Tuple[Tensor, Tensor]:
    """Every pair i > j of atoms in the same one of the chosen systems, without padding.

    Args:
        system: system of each atom [N], int64, ascending.
        chosen: which systems [B], bool.

    Returns:
        i and j [P], int64.
    """
    counts = torch.zeros(chosen.shape[0], dtype=torch.int64, device=system.device)
    counts = counts.index_add(0, system, torch.ones_like(system))
    first = (counts.cumsum(0) - counts).index_select(0, system)
    atoms = torch.arange(system.shape[0], device=system.device)
    earlier = torch.where(chosen.index_select(0, system), atoms - first, 0)
    i = torch.repeat_interleave(atoms, earlier)
    begin = earlier.cumsum(0) - earlier
    j = torch.arange(i.shape[0], device=system.device) + (first - begin).index_select(0, i)
    return i, j


class Coulomb(nn.Module):
    """k_e q_i q_j / d of all pairs of atoms, and of all images where a system is periodic.

    How it is computed depends on the system alone:

    ===========================  =================================================================
    no cell                      `open_systems`: "direct", all n^2 / 2 pairs; or "dsf"
    periodic in three directions `periodic`: "ewald", "dsf", or "none", which refuses such systems
    in one or two directions     "dsf"; an error with "ewald"
    ===========================  =================================================================

    "ewald" is exact to `accuracy`; a system that is not neutral gets a uniform background (and its
    energy depends on the shape of no cell, but on its volume). "dsf" cuts off at `cutoff`: the
    damped shifted force of Fennell and Gezelter, J. Chem. Phys. 124, 234104 (2006), eq. 18, with
    the energy of each charge with itself taken off, so that charges may change; linear in the
    atoms. Everything is computed in float64.

    At short range networks learn the interaction better than point charges give it. `damping`
    replaces 1/d of near pairs, their images included, by

    - "exponential": (1 - exp(1 - 1 / (1 - (d / R)^2))) / d below R, as AIMNet2 (R = 4.6 Å);
    - "shielded": s / d + (1 - s) / sqrt(d^2 + 1 Å^2) below R, s = 6 x^5 - 15 x^4 + 10 x^3 and
      x = d / R, as PhysNet, arXiv 1902.08408 (R is half its short-range cutoff).

    Args:
        damping: "none", "exponential" or "shielded".
        radius: R, Å.
        open_systems: "direct" or "dsf".
        periodic: "ewald", "dsf" or "none".
        cutoff: of "dsf" and of the real half of "ewald", Å; how far pairs have to be found.
        alpha: damping of "dsf", 1/Å; that of "ewald" follows from the accuracy.
        accuracy: of "ewald", relative.
    """

    def __init__(
        self,
        damping: str = "none",
        radius: float = 0.0,
        open_systems: str = "direct",
        periodic: str = "ewald",
        cutoff: float = 10.0,
        alpha: float = 0.2,
        accuracy: float = 1e-8,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("damping", damping, DAMPINGS),
            ("open_systems", open_systems, OPEN),
            ("periodic", periodic, PERIODIC),
        ):
            if value not in known:
                raise ValueError(f"{name} of Coulomb must be one of {known}, got {value!r}")
        listed = periodic != "none" or open_systems == "dsf"
        if listed and not 0.0 < cutoff < math.inf:
            raise ValueError(f"the cutoff of Coulomb must be a positive length in Å, got {cutoff}")
        if damping != "none" and not (radius > 0.0 and (radius <= cutoff or not listed)):
            raise ValueError(f"the radius of the damping must be in (0, {cutoff}] Å: {radius}")
        if not alpha >= 0.0 or not 1e-15 < accuracy < 1.0:
            raise ValueError(
                f"alpha must be at least 0 and accuracy in (1e-15, 1), got {alpha} and {accuracy}"
            )
        self.damping = damping
        self.radius = float(radius)
        self.open_systems = open_systems
        self.periodic = periodic
        self.cutoff = float(cutoff) if listed else 0.0
        self.alpha = float(alpha)
        self.accuracy = float(accuracy)
        self.full_periodicity = periodic == "ewald"
        self.conditions_on = ("charge",)
        self.coulomb = COULOMB
        self.ewald_alpha, self.largest_wave = splitting(cutoff, accuracy) if listed else (0.0, 0.0)
        # v(d) = erfc(alpha d) / d - shift - slope (d - r_c) vanishes at r_c with its derivative
        r_c = self.cutoff if listed else 1.0
        self.shift = math.erfc(alpha * r_c) / r_c
        gauss = 2.0 * alpha / math.sqrt(math.pi) * math.exp(-((alpha * r_c) ** 2))
        self.slope = -(self.shift + gauss) / r_c

    def short_range(self, d: Tensor) -> Tensor:
        """What the damping changes of 1/d, times d: a function of d [P], 0 from R on."""
        x = (d / max(self.radius, 1e-9)).clamp(max=1.0)
        if self.damping == "exponential":
            # at 1 - 1e-6 the exponential has long underflown to 0, and its derivatives exist
            return -torch.exp(1.0 - 1.0 / (1.0 - x.clamp(max=1.0 - 1e-6).square()))
        s = x * x * x * (10.0 + x * (6.0 * x - 15.0))
        return (1.0 - s) * (d / torch.sqrt(d * d + 1.0) - 1.0)

    def direct(self, inputs: TermInputs, q: Tensor, chosen: Tensor) -> Tensor:
        """Energies [N] of the chosen systems [B], pair by pair."""
        i, j = all_pairs(inputs.system, chosen)
        r = inputs.positions.to(torch.float64)
        vectors = r.index_select(0, j) - r.index_select(0, i)
        d = torch.sqrt((vectors * vectors).sum(1))
        energy = (0.5 * self.coulomb) * q.index_select(0, i) * q.index_select(0, j) / d
        if self.damping != "none":
            energy = energy * (1.0 + self.short_range(d))
        return pair_to_atoms(energy, i, q.shape[0]) + pair_to_atoms(energy, j, q.shape[0])

    def listed(self, inputs: TermInputs, q: Tensor, chosen: Tensor, ewald: bool) -> Tensor:
        """Energies [N] of the chosen systems [B] from pairs within the cutoff, and self energies.

        With `ewald` the real half of the Ewald sum, else the damped shifted force.
        """
        mine = chosen.index_select(0, inputs.system)
        kept = mine.index_select(0, inputs.pairs[0]).nonzero().squeeze(1)
        i, j = inputs.pairs[0].index_select(0, kept), inputs.pairs[1].index_select(0, kept)
        d = inputs.distances.index_select(0, kept).to(torch.float64)
        if ewald:
            value = torch.erfc(self.ewald_alpha * d) / d
            own = -2.0 * self.ewald_alpha / math.sqrt(math.pi)
        else:
            value = torch.erfc(self.alpha * d) / d - self.shift - self.slope * (d - self.cutoff)
            # the same function without 1/d at d = 0: what a charge has no business to feel
            own = self.slope * self.cutoff - self.shift - 2.0 * self.alpha / math.sqrt(math.pi)
        if self.damping != "none":
            value = value + self.short_range(d) / d
        energy = (0.5 * self.coulomb) * q.index_select(0, i) * q.index_select(0, j) * value
        own_energy = (0.5 * self.coulomb * own) * q * q
        return pair_to_atoms(energy, i, q.shape[0]) + torch.where(mine, own_energy, 0.0)

    def reciprocal(self, inputs: TermInputs, q: Tensor, chosen: Tensor) -> Tensor:
        """The other half of the Ewald sum, for the chosen systems [B]: energies [N]."""
        r, cell = inputs.positions.to(torch.float64), inputs.cell.to(torch.float64)
        counts = torch.zeros(chosen.shape[0], dtype=torch.int64, device=q.device)
        counts = counts.index_add(0, inputs.system, torch.ones_like(inputs.system))
        ends: List[int] = counts.cumsum(0).tolist()
        wanted: List[bool] = chosen.tolist()
        parts: List[Tensor] = []
        begin = 0
        for b in range(len(ends)):
            mine = q[begin : ends[b]]
            if wanted[b]:
                potential = reciprocal_potential(
                    r[begin : ends[b]], cell[b], mine, self.ewald_alpha, self.largest_wave
                )
                parts.append((0.5 * self.coulomb) * mine * potential)
            else:
                parts.append(torch.zeros_like(mine))
            begin = ends[b]
        return torch.cat(parts)

    def check_cells(self, cell: Tensor, periodic: Tensor) -> None:
        """Refuse cells without a volume, or any at all."""
        volume = torch.linalg.det(cell).abs()
        bad = periodic if self.periodic == "none" else periodic & ~(volume > 1e-6)
        if bool(bad.any()):
            k = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"system {k} has a cell of {float(volume[k])} Å^3: this Coulomb term takes open "
                "systems, with a cell of zeros, and unless periodic='none' cells with a volume"
            )

    def forward(self, inputs: TermInputs) -> Tensor:
        """Energies of the atoms [N] in eV, float64; half of each pair's goes to either atom."""
        charges = inputs.charges
        if charges is None:
            raise ValueError(
                "Coulomb needs the partial charges of a core network, and this one gives none"
            )
        q = charges.to(torch.float64)
        periodic = (inputs.cell != 0.0).flatten(1).any(dim=1)
        energies = torch.zeros_like(q)
        if bool(periodic.any()):
            self.check_cells(inputs.cell.detach().to(torch.float64), periodic)
            ewald = self.periodic == "ewald"
            energies = energies + self.listed(inputs, q, periodic, ewald)
            if ewald:
                energies = energies + self.reciprocal(inputs, q, periodic)
        if not bool(periodic.all()):
            if self.open_systems == "direct":
                energies = energies + self.direct(inputs, q, ~periodic)
            else:
                energies = energies + self.listed(inputs, q, ~periodic, False)
        return energies
