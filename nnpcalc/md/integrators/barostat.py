"""Constant pressure: stochastic cell rescaling."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nnpcalc.md.forcefield import ForceField
from nnpcalc.md.integrators.bussi import begin_rescaling, rescaled
from nnpcalc.md.integrators.common import check_positive, drifted, evaluate, kicked
from nnpcalc.md.random import STREAM_BAROSTAT, STREAM_THERMOSTAT, Noise
from nnpcalc.md.state import MDState, changed, sum_per_system, triple_product, volume
from nnpcalc.units import GPA, KB, VELOCITY_SQUARED_TO_ENERGY

#: Largest relative change of a length in one application of the barostat.
LARGEST_STRAIN = 0.1


@dataclass(frozen=True)
class CellRescaling:
    """Velocity Verlet, Bussi's thermostat and stochastic rescaling of the cell.

    Isotropic, in the variable l = sqrt(V), whose noise is additive::

        dl = -(b l / 2 tau_p) (P - P_int - k_B T / (2 V)) dt + sqrt(k_B T b / (2 tau_p)) dW

    Bernetti and Bussi, J. Chem. Phys. 153, 114107 (2020). Anisotropic, for the matrix h of cell
    vectors (rows)::

        dh = -(b / 3 tau_p) h (P - P_int - k_B T / V) dt + sqrt(2 b k_B T / (3 V tau_p)) h dW

    with P_int a tensor and dW nine independent numbers: Del Tatto, Raiteri, Bernetti and Bussi,
    Appl. Sci. 12, 1139 (2022). The rotation in this change of h is taken out. Positions follow the
    cell, momenta go the opposite way.

    ======  ======================================================================
    h       timestep, fs
    T       temperature, K; one, or one for each replica
    P       pressure, GPa (0.0001 is 1 bar)
    P_int   (sum of p p / m - virial) / V of the instant
    tau_p   relaxation of the volume, fs; tau (relaxation) that of the temperature
    b       compressibility, 1/GPa: only b / tau_p matters; 0.45 is water, 0.005 a hard solid
    ======  ======================================================================

    The volume distribution is right to first order in interval h / tau_p.

    Attributes:
        anisotropic: let the shape of the cell change as well; not for liquids, which do not
            resist shear.
        interval: steps between two applications of the barostat. The stress is computed for these
            only, and the neighbor list searched again.
    """

    timestep: float
    temperature: float | tuple[float, ...]
    pressure: float
    relaxation: float = 100.0
    pressure_relaxation: float = 1000.0
    compressibility: float = 0.45
    anisotropic: bool = False
    interval: int = 5
    _thermal: Noise = field(
        default_factory=lambda: Noise(STREAM_THERMOSTAT), init=False, repr=False, compare=False
    )
    _cell: Noise = field(
        default_factory=lambda: Noise(STREAM_BAROSTAT), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_positive(
            timestep=self.timestep,
            relaxation=self.relaxation,
            pressure_relaxation=self.pressure_relaxation,
            compressibility=self.compressibility,
        )
        if not math.isfinite(self.pressure):
            raise ValueError(f"the pressure must be finite (GPa), not {self.pressure!r}")
        if type(self.interval) is not int or self.interval < 1:
            raise ValueError(f"interval must be 1 step or more, not {self.interval!r}")

    def init(self, state: MDState, force_field: ForceField) -> MDState:
        """The state with its forces and stress.

        Raises:
            ValueError: a replica that is not periodic in three directions, has fixed atoms or fewer
                than three atoms, or what `Bussi` refuses.
        """
        periodic = state.atoms.pbc.all(1) & (volume(state) > 0)
        for bad, text in (
            (~periodic, "is not periodic in all three directions, and has no pressure"),
            (
                state.counts < 3,
                "has fewer than the three atoms whose random numbers a barostat uses",
            ),
        ):
            if bool(bad.any()):
                b = int(bad.to(torch.int64).argmax())
                raise ValueError(f"replica {int(state.replica[b])} {text}; use another integrator")
        if state.mobile is not None:
            raise ValueError("a barostat moves every atom with the cell: leave FixAtoms out")
        state = begin_rescaling(state, self.temperature, "CellRescaling")
        return evaluate(state, force_field, stress=True)

    def step(self, state: MDState, force_field: ForceField) -> MDState:
        """One time step later."""
        half, step = 0.5 * self.timestep, state.step
        momenta = kicked(state.momenta, state.forces, half)
        moved = state.moved(drifted(state, state.positions, momenta, self.timestep), momenta)
        if step % self.interval == 0:
            moved = strained(moved, self._strain(state))
        soon = (step + 1) % self.interval == 0
        moved = evaluate(moved, force_field, stress=soon)
        moved = changed(moved, momenta=kicked(moved.momenta, moved.forces, half))
        moved = rescaled(moved, self._thermal, self.timestep / self.relaxation)
        return changed(moved, step=step + 1)

    def conserved(self, state: MDState) -> None:
        """Nothing is conserved."""
        return None

    def _strain(self, state: MDState) -> Tensor:
        """The matrices [B, 3, 3] that rows of the cells are multiplied by, at a state's pressure.

        Raises:
            ValueError: a change beyond `LARGEST_STRAIN`.
        """
        kt, v = KB * state.system_variables["temperature"], volume(state)
        rate = self.compressibility / GPA / self.pressure_relaxation * self.timestep * self.interval
        random = self._random(state)
        internal = internal_pressure(state, v)
        one = torch.eye(3, dtype=v.dtype, device=v.device)
        if self.anisotropic:
            excess = (self.pressure * GPA - kt / v)[:, None, None] * one - internal
            noise = torch.sqrt(2.0 * rate * kt / (3.0 * v))[:, None, None] * random
            strain = without_rotation(one - (rate / 3.0) * excess + noise)
        else:
            scalar = internal.diagonal(dim1=1, dim2=2).sum(1) / 3.0
            length = torch.sqrt(v)
            change = -0.5 * rate * length * (self.pressure * GPA - scalar - 0.5 * kt / v)
            change = change + torch.sqrt(0.5 * rate * kt) * random[:, 0, 0]
            # (V'/V)^(1/3); torch.pow rounds differently in a batch, exp and log do not
            factor = torch.exp(torch.log(1.0 + change / length) * (2.0 / 3.0))
            strain = factor[:, None, None] * one
        large = ~((strain - one).abs().flatten(1).amax(1) <= LARGEST_STRAIN)
        if bool(large.any()):
            b = int(large.to(torch.int64).argmax())
            raise ValueError(
                f"replica {int(state.replica[b])}: the barostat would change the cell by more than "
                f"{LARGEST_STRAIN:.0%} at once, at an internal pressure of "
                f"{float(internal[b].diagonal().mean()) / GPA:.3g} GPa. Relax the structure first, "
                "or lengthen pressure_relaxation"
            )
        return strain

    def _random(self, state: MDState) -> Tensor:
        """Normal numbers [B, 3, 3]: those of the first three atoms of each replica."""
        random = self._cell.at(state.seed, state.owner, state.place, state.step)
        return torch.stack([random.index_select(0, state.first + k) for k in range(3)], 1)


def internal_pressure(state: MDState, volumes: Tensor) -> Tensor:
    """(sum of p p / m) / V - stress [B, 3, 3], eV/Å^3; volumes [B] in Å^3."""
    assert state.stress is not None
    p = state.momenta
    flux = (p[:, :, None] * p[:, None, :] * state.inverse_masses[:, :, None]).flatten(1)
    kinetic = sum_per_system(flux, state.counts).reshape(-1, 3, 3) * VELOCITY_SQUARED_TO_ENERGY
    return kinetic / volumes[:, None, None] - state.stress


def strained(state: MDState, strain: Tensor) -> MDState:
    """The state with cells and positions times strain [B, 3, 3], and momenta times its inverse."""
    system, atoms = state.atoms.system, state.atoms
    return changed(
        state,
        atoms=changed(
            atoms,
            cell=_product(atoms.cell, strain),
            positions=_row_product(atoms.positions, strain.index_select(0, system)),
        ),
        momenta=_row_product(
            state.momenta, inverse(strain).transpose(1, 2).index_select(0, system)
        ),
    )


def without_rotation(matrix: Tensor) -> Tensor:
    """S of the polar decomposition matrix = S R [B, 3, 3], for a matrix near the unit matrix.

    S is the square root of matrix matrix^T, found by Newton's iteration S <- (S + S^-1 A) / 2.
    """
    square = _product(matrix, matrix.transpose(1, 2))
    root = 0.5 * (matrix + matrix.transpose(1, 2))
    for _ in range(6):
        root = 0.5 * (root + _product(inverse(root), square))
        root = 0.5 * (root + root.transpose(1, 2))
    return root


def inverse(matrix: Tensor) -> Tensor:
    """Inverses of [B, 3, 3] by cofactors: the same bits alone and in a batch."""
    a, b, c = matrix.unbind(1)
    columns = torch.stack([
        torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b),
    ], 2)  # fmt: skip
    return columns / triple_product(matrix)[:, None, None]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix products of [B, 3, 3], written out for the same reason."""
    return (
        left[:, :, 0:1] * right[:, 0:1, :]
        + left[:, :, 1:2] * right[:, 1:2, :]
        + left[:, :, 2:3] * right[:, 2:3, :]
    )


def _row_product(rows: Tensor, matrices: Tensor) -> Tensor:
    """Rows [N, 3] times matrices [N, 3, 3]."""
    return (
        rows[:, 0:1] * matrices[:, 0]
        + rows[:, 1:2] * matrices[:, 1]
        + rows[:, 2:3] * matrices[:, 2]
    )
