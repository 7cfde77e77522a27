"""The state of a batch of simulations: tensors that are never written to.

An integrator takes an `MDState` and returns another. Replicas of one molecule, different molecules,
charges and spins stand behind each other as in `AtomsBatch`; every quantity of a replica is
computed from its own rows alone, in an order that does not depend on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from nnpcalc.batch import AtomsBatch
from nnpcalc.units import FORCE_TO_ACCELERATION, GPA, KB, VELOCITY_SQUARED_TO_ENERGY

Variables = Mapping[str, Tensor]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class MDState:
    """N atoms of B replicas at one instant; floating point tensors are float64.

    Attributes:
        atoms: elements, positions [N, 3] in Å (not wrapped), cells, charges, multiplicities.
        momenta: [N, 3], amu Å/fs.
        forces: [N, 3], eV/Å; zero on atoms that are held fixed.
        energy: potential energies [B], eV.
        masses: [N], amu.
        mobile: [N, 1], 1 or 0 for atoms held fixed; None if all move.
        degrees: degrees of freedom of each replica [B] that its temperature counts.
        replica: int64 [B], identities of the replicas; the random numbers go by them.
        counts: int64 [B], atoms of each replica.
        place: int64 [N], place of each atom in its replica.
        owner: int64 [N], `replica` of each atom.
        seed: of all random numbers of the run.
        step: steps done since the start.
        stress: (dE/d strain) / volume [B, 3, 3], eV/Å^3, where an integrator needs it.
        system_variables: further variables of an integrator, one row per replica.
        atom_variables: the same, one row per atom.
    """

    atoms: AtomsBatch
    momenta: Tensor
    forces: Tensor
    energy: Tensor
    masses: Tensor
    mobile: Tensor | None
    degrees: Tensor
    replica: Tensor
    counts: Tensor
    place: Tensor
    owner: Tensor
    inverse_masses: Tensor
    seed: int
    step: int = 0
    stress: Tensor | None = None
    system_variables: Variables = field(default_factory=dict)
    atom_variables: Variables = field(default_factory=dict)

    @staticmethod
    def start(
        atoms: AtomsBatch,
        masses: Tensor,
        *,
        seed: int,
        momenta: Tensor | None = None,
        mobile: Tensor | None = None,
        replica: Tensor | None = None,
    ) -> MDState:
        """A state at step 0, without forces yet: an integrator's `init` computes them.

        Args:
            atoms: float64.
            masses: [N], amu.
            seed: of the random numbers.
            momenta: [N, 3], amu Å/fs; None means at rest.
            mobile: bool [N]; None means that all atoms move.
            replica: int64 [B]; None means 0 .. B - 1.

        Raises:
            ValueError: positions that are not float64, a mass that is not positive, a momentum
                that is not finite, two replicas of one identity, or a replica without atoms.
        """
        if atoms.dtype != torch.float64:
            raise ValueError(f"dynamics keeps positions in float64, not {atoms.dtype}: use .to()")
        device, counts = atoms.device, atoms.counts
        if not atoms.n_systems or not bool((counts > 0).all()):
            raise ValueError("every replica needs at least one atom; leave empty structures out")
        masses = masses.to(device, torch.float64)
        if not bool((masses > 0).all()):
            k = int((~(masses > 0)).to(torch.int64).argmax())
            raise ValueError(
                f"atom {k} has the mass {float(masses[k])} amu; masses must be positive. To hold "
                "an atom in its place use ase.constraints.FixAtoms"
            )
        replica = torch.arange(len(counts), device=device) if replica is None else replica
        if len(torch.unique(replica)) != len(counts):
            raise ValueError(
                f"{len(counts)} replicas need as many different identities, not {replica.tolist()}"
            )
        first = torch.cumsum(counts, 0) - counts
        momenta = torch.zeros_like(atoms.positions) if momenta is None else momenta
        bad = ~torch.isfinite(momenta).all(1)
        if bool(bad.any()):
            k = int(bad.to(torch.int64).argmax())
            raise ValueError(f"atom {k} has the momentum {momenta[k].tolist()} amu Å/fs")
        column = None
        if mobile is not None and not bool(mobile.all()):
            column = mobile.to(device, torch.float64)[:, None]
            momenta = momenta * column
        return MDState(
            atoms=atoms,
            momenta=momenta,
            forces=torch.zeros_like(atoms.positions),
            energy=atoms.positions.new_zeros(len(counts)),
            masses=masses,
            mobile=column,
            degrees=degrees_of_freedom(counts, column, conserved_momentum=False),
            replica=replica,
            counts=counts,
            place=torch.arange(atoms.n_atoms, device=device) - first[atoms.system],
            owner=replica[atoms.system],
            inverse_masses=1.0 / masses[:, None],
            seed=seed,
        )

    @property
    def n_systems(self) -> int:
        """B, the replicas of this state."""
        return self.atoms.n_systems

    @property
    def positions(self) -> Tensor:
        """[N, 3], Å."""
        return self.atoms.positions

    @cached_property
    def first(self) -> Tensor:
        """int64 [B], row of the first atom of each replica."""
        return torch.cumsum(self.counts, 0) - self.counts

    def moved(self, positions: Tensor, momenta: Tensor) -> MDState:
        """The state with other positions and momenta; forces and energy are still the old ones."""
        return changed(self, atoms=changed(self.atoms, positions=positions), momenta=momenta)

    def select(self, systems: Sequence[int] | Tensor) -> MDState:
        """The state of some replicas, given by their rows, in ascending order."""
        device = self.replica.device
        rows = torch.as_tensor(systems, dtype=torch.int64, device=device)
        chosen = torch.zeros(self.n_systems, dtype=torch.bool, device=device)
        chosen[rows] = True
        index = torch.nonzero(chosen[self.atoms.system])[:, 0]
        number = torch.cumsum(chosen, 0) - 1
        old, charges = self.atoms, self.atoms.partial_charges
        atoms = AtomsBatch(
            numbers=old.numbers[index],
            positions=old.positions[index],
            cell=old.cell[rows],
            pbc=old.pbc[rows],
            system=number[old.system[index]],
            charge=old.charge[rows],
            multiplicity=old.multiplicity[rows],
            partial_charges=None if charges is None else charges[index],
        )
        return replace(
            self,
            atoms=atoms,
            **{name: getattr(self, name)[index] for name in ATOM_FIELDS},
            **{name: getattr(self, name)[rows] for name in SYSTEM_FIELDS},
            mobile=None if self.mobile is None else self.mobile[index],
            stress=None if self.stress is None else self.stress[rows],
            system_variables={k: v[rows] for k, v in self.system_variables.items()},
            atom_variables={k: v[index] for k, v in self.atom_variables.items()},
        )

    def cpu(self) -> MDState:
        """The state on the CPU."""
        if self.momenta.device.type == "cpu":
            return self
        return self.to("cpu")

    def to(self, device: torch.device | str) -> MDState:
        """The state on another device."""
        return replace(
            self,
            atoms=self.atoms.to(device),
            **{name: getattr(self, name).to(device) for name in ATOM_FIELDS + SYSTEM_FIELDS},
            mobile=None if self.mobile is None else self.mobile.to(device),
            stress=None if self.stress is None else self.stress.to(device),
            system_variables={k: v.to(device) for k, v in self.system_variables.items()},
            atom_variables={k: v.to(device) for k, v in self.atom_variables.items()},
        )


def changed(value: T, **fields: Any) -> T:
    """A copy of a frozen dataclass with other fields: `dataclasses.replace` without its checks.

    For values whose shapes cannot be wrong. At 20 atoms the checks of a step would take a hundredth
    of the time of the model.
    """
    copy: T = object.__new__(type(value))
    attributes = value.__dict__.copy()
    attributes.update(fields)
    object.__setattr__(copy, "__dict__", attributes)
    return copy


#: Tensors of a state with a row per atom, and with a row per replica.
ATOM_FIELDS = ("momenta", "forces", "masses", "place", "owner", "inverse_masses")
SYSTEM_FIELDS = ("energy", "degrees", "replica", "counts")


# --- what is computed of a state -----------------------------------------------------------------


def sum_per_system(values: Tensor, counts: Tensor) -> Tensor:
    """Sums [B, ...] over the atoms of each system of values [N, ...].

    One after the other within a system, so that the rounding does not depend on the batch.
    """
    return torch.segment_reduce(values, "sum", lengths=counts, unsafe=True)


def per_atom(state: MDState, values: Tensor) -> Tensor:
    """[B] to a column [N, 1]."""
    return values.index_select(0, state.atoms.system)[:, None]


def kinetic_energy(state: MDState) -> Tensor:
    """[B], eV: sum of p^2 / (2 m)."""
    return kinetic_energy_of(state, state.momenta)


def kinetic_energy_of(state: MDState, momenta: Tensor) -> Tensor:
    """[B], eV, of other momenta [N, 3]."""
    doubled = (momenta * momenta * state.inverse_masses).sum(1)
    return sum_per_system(doubled, state.counts) * (0.5 * VELOCITY_SQUARED_TO_ENERGY)


def temperature(state: MDState) -> Tensor:
    """[B], K: 2 K / (degrees of freedom k_B); 0 for a replica without degrees of freedom."""
    return 2.0 * kinetic_energy(state) / (state.degrees.clamp(min=1) * KB)


def volume(state: MDState) -> Tensor:
    """[B], Å^3."""
    return triple_product(state.atoms.cell).abs()


def pressure(state: MDState) -> Tensor:
    """[B], GPa: (2 K / 3 - trace of the virial / 3) / V, of states with a stress.

    Raises:
        ValueError: the state has no stress.
    """
    if state.stress is None:
        raise ValueError("this state has no stress: only barostats compute it")
    trace = state.stress.diagonal(dim1=1, dim2=2).sum(1)
    return (2.0 * kinetic_energy(state) / volume(state) - trace) / 3.0 / GPA


def triple_product(cell: Tensor) -> Tensor:
    """Determinants [B] of [B, 3, 3], written out: no LAPACK call, the same alone and in a batch."""
    a, b, c = cell.unbind(1)
    return (
        a[:, 0] * (b[:, 1] * c[:, 2] - b[:, 2] * c[:, 1])
        + a[:, 1] * (b[:, 2] * c[:, 0] - b[:, 0] * c[:, 2])
        + a[:, 2] * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    )


def total_momentum(state: MDState) -> Tensor:
    """[B, 3], amu Å/fs."""
    return sum_per_system(state.momenta, state.counts)


def degrees_of_freedom(
    counts: Tensor, mobile: Tensor | None, *, conserved_momentum: bool
) -> Tensor:
    """[B]: three per mobile atom; three less where the total momentum is conserved.

    It is conserved where the forces add up to zero and nothing else acts, hence not in a replica
    some of whose atoms are held fixed.
    """
    moving = counts
    if mobile is not None:
        moving = sum_per_system(mobile[:, 0], counts).to(torch.int64)
    degrees = 3 * moving
    return degrees - 3 * (moving == counts) if conserved_momentum else degrees


def thermal_scale(temperature_kelvin: float) -> float:
    """k_B T in amu Å^2 / fs^2: the variance of a momentum component is this times the mass."""
    return KB * temperature_kelvin * FORCE_TO_ACCELERATION
