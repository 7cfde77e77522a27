"""What an integrator needs of a potential: energies and forces of a batch, and its adapters."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from nnpcalc.backends import Engine, Model, prepare
from nnpcalc.batch import AtomsBatch
from nnpcalc.calculator import NNPCalculator
from nnpcalc.committee import Committee
from nnpcalc.evaluation import checked_batch
from nnpcalc.kernels.invariance import row_block
from nnpcalc.md import loops
from nnpcalc.md.compiled import Field
from nnpcalc.md.state import changed
from nnpcalc.neighbors import NeighborList, VerletList
from nnpcalc.neighbors.geometry import periodic_basis
from nnpcalc.potential import Potential

#: Å from the origin up to which coordinates go to a float32 model as they are; its rounding is
#: 4e-6 Å there. Beyond, whole systems and periodic images are brought back first.
NEAR = 64.0


class Forces(NamedTuple):
    """What a force field says of a batch; float64.

    Attributes:
        energy: potential energies [B], eV.
        forces: [N, 3], eV/Å.
        stress: (dE/d strain) / volume [B, 3, 3], eV/Å^3, or None if not asked for.
        uncertainty: of the forces, the largest of each system [B], eV/Å, or None if unknown.
        energy_uncertainty: [B], eV, or None if unknown.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor | None = None
    uncertainty: Tensor | None = None
    energy_uncertainty: Tensor | None = None


class ForceField(Protocol):
    """A function of float64 atoms; any callable of this signature will do.

    For a replica to be the same alone and in a batch, its numbers must not depend on the other
    systems. A `description: str`, if there is one, is kept in checkpoints and compared.
    """

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> Forces: ...


class ModelForceField:
    """A neural network potential as a force field, with a neighbor list that lasts.

    Args:
        model: a name, a path, a `Potential`, a list of these (a committee), an `NNPCalculator` or
            an `Engine`.
        device, dtype, backend, trust: as for `NNPCalculator`; not for one that is given.
        skin: Å, of the neighbor list.
        on_extrapolation: "raise" or "warn" about states that the model's card does not list.
        reproducible: on the CPU, get the same bits for a system alone and in any batch. The fused
            back end of other networks than TensorNet then computes up to three more atoms, other
            back ends one system at a time.

    Attributes:
        engine: what computes.
        description: name, back end, dtype and a digest of the parameters.
    """

    def __init__(
        self,
        model: Model | Sequence[Model] | NNPCalculator | Engine,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = "float32",
        backend: str = "auto",
        trust: bool = False,
        skin: float = 0.5,
        on_extrapolation: str = "raise",
        reproducible: bool = True,
    ) -> None:
        self.charge, self.multiplicity = 0, None
        if isinstance(model, NNPCalculator):
            on_extrapolation = model.on_extrapolation
            self.charge, self.multiplicity = model.charge, model.multiplicity
            self.engine = model._engine
        elif isinstance(model, Engine):
            self.engine = model
        else:
            self.engine = prepare(model, device=device, dtype=dtype, backend=backend, trust=trust)
        self.on_extrapolation = on_extrapolation
        self._neighbors = VerletList(self.engine.potential.cutoff, skin=skin)
        self._frame: _Frame | None = None
        on_cpu = self.engine.device.type == "cpu"
        block = row_block() if self.engine.backend.name == "fused" else None
        self._one_by_one = on_cpu and reproducible and block is None
        self._block = 1
        if block is not None and on_cpu and reproducible and not _any_batch(self.engine.program):
            self._block = block

    def __getstate__(self) -> dict[str, Any]:
        """All but what the next call makes anew, for copies and pickles."""
        return {**self.__dict__, "_frame": None}

    @property
    def description(self) -> str:
        """Name, back end, dtype and the first digits of a digest of the parameters."""
        record, digest = self.engine.backend, hashlib.sha256()
        for name, tensor in sorted(self.engine.potential.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return f"{self.engine.name} {record.name} {record.dtype} {digest.hexdigest()[:16]}"

    @property
    def device(self) -> torch.device:
        """Where the tensors of a simulation live."""
        return self.engine.device

    def batch(self, structures: Sequence[Atoms]) -> AtomsBatch:
        """Structures as the float64 batch of a simulation, after all checks of the model's range.

        Raises:
            ValueError: as for `NNPCalculator`.
        """
        device = self.device
        batch, _ = checked_batch(
            self.engine,
            structures,
            device=device,
            charge=self.charge,
            multiplicity=self.multiplicity,
            on_extrapolation=self.on_extrapolation,
        )
        exact = AtomsBatch.from_atoms(
            structures, charge=self.charge, multiplicity=self.multiplicity
        ).to(device)
        return exact if batch.partial_charges is not None else replace(exact, partial_charges=None)

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> Forces:
        """Energies, forces and perhaps stresses of a float64 batch.

        Raises:
            ValueError: two atoms in one place, or positions that are not finite.
        """
        frame = self._frame
        if frame is None or not frame.fits(atoms):
            frame = _Frame.of(atoms, self.engine.dtype, self._block)
            self._frame = frame
        batch = frame.fill(atoms)
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            output = self._run(batch, frame.n_systems, stress)
        else:  # a caller's inference_mode or no_grad must not reach into the forces
            with torch.inference_mode(False), torch.enable_grad():
                output = self._run(batch, frame.n_systems, stress)
        n, b = frame.n_atoms, frame.n_systems
        energy, forces = output["energy"], output["forces"]
        if forces.is_cpu and not (forces.requires_grad or energy.requires_grad):
            energy = torch.from_numpy(energy.numpy()[:b])
            forces = torch.from_numpy(forces.numpy()[:n].astype(np.float64, copy=False))
        else:
            energy, forces = energy[:b], forces[:n].to(torch.float64)
        strain = output["stress"][:b].to(torch.float64) if stress else None
        spread = output.get("forces_uncertainty")
        if spread is not None:  # a committee's
            spread = torch.segment_reduce(spread[:n], "max", lengths=atoms.counts, unsafe=True)
        own = output.get("energy_uncertainty")
        return Forces(energy, forces, strain, spread, None if own is None else own[:b])

    def compiled_field(self, atoms: AtomsBatch) -> Field | None:
        """What `nnpcalc.md.compiled` needs for a batch; None where it takes Python.

        That is for a class derived from this as well, which may compute something else.
        """
        frame = self._frame
        program: Any = self.engine.program
        if (
            type(self) is not ModelForceField
            or frame is None
            or not frame.fits(atoms)
            or atoms.cell is not frame.source.cell
        ):
            return None
        if frame.n_rows != frame.n_atoms or not hasattr(program, "compiled_arguments"):
            return None
        batch = frame.batch
        held = self._neighbors.held(batch)
        if held is None:
            return None
        return Field(*(*program.compiled_arguments(batch), held.candidates, frame.limit))

    def _run(self, batch: AtomsBatch, n_systems: int, stress: bool) -> dict[str, Tensor]:
        """Energy, forces and perhaps stress of a batch and its spare atoms."""
        neighbors = self._neighbors.update(batch)
        if self._one_by_one and n_systems > 1:
            return self._run_one_by_one(batch, neighbors, stress)
        return self.engine.run(batch, neighbors, forces=True, stress=stress)

    def _run_one_by_one(
        self, batch: AtomsBatch, neighbors: NeighborList, stress: bool
    ) -> dict[str, Tensor]:
        """`Engine.run` system by system; pairs are sorted, so each has a piece of the list."""
        ends = torch.cumsum(batch.counts, 0)
        pair_ends = torch.searchsorted(neighbors.pairs[0].contiguous(), ends)
        sizes = torch.diff(pair_ends, prepend=pair_ends.new_zeros(1)).tolist()
        first = (ends - batch.counts).tolist()
        pieces = (neighbors.pairs.split(sizes, 1), neighbors.shifts.split(sizes))
        vectors, distances = neighbors.vectors.split(sizes), neighbors.distances.split(sizes)
        outputs = []
        for k, part in enumerate(batch.split()):
            pairs = pieces[0][k] - first[k]
            listed = NeighborList(pairs, pieces[1][k], vectors[k], distances[k])
            outputs.append(self.engine.run(part, listed, forces=True, stress=stress))
        return {
            key: torch.cat([output[key] for output in outputs])
            for key in ("energy", "forces", "stress", "forces_uncertainty", "energy_uncertainty")
            if key in outputs[0]
        }


def _any_batch(program: Any) -> bool:
    """Whether a fused program gives a system the same bits in any batch, without spare atoms."""
    members = program.members if isinstance(program, Committee) else [program]
    return all(getattr(member.core, "brings_spare_atoms", False) for member in members)


@dataclass(frozen=True)
class _Frame:
    """What stays the same from step to step: the batch in the model's dtype, spare atoms added."""

    source: AtomsBatch
    batch: AtomsBatch
    spare: Tensor  # [n, 3], positions of the spare atoms
    first: Tensor  # [B], first atom of each system
    limit: float  # Å; larger coordinates are brought back first
    n_atoms: int  # without the spare ones
    n_systems: int
    n_rows: int  # atoms of the batch
    kind: np.dtype  # of the batch

    @staticmethod
    def of(atoms: AtomsBatch, dtype: torch.dtype, block: int) -> _Frame:
        batch = atoms.to(dtype=dtype)
        spare = (-atoms.n_atoms) % block
        if spare:
            batch = AtomsBatch.concatenate([batch, _lone_atoms(batch, spare)])
        first = torch.cumsum(atoms.counts, 0) - atoms.counts
        kind = np.dtype(str(dtype).removeprefix("torch."))
        return _Frame(
            atoms, batch, atoms.positions.new_zeros(spare, 3), first,
            NEAR if dtype == torch.float32 else math.inf,
            atoms.n_atoms, atoms.n_systems, batch.n_atoms, kind,
        )  # fmt: skip

    def fits(self, atoms: AtomsBatch) -> bool:
        old = self.source
        return (
            old.system is atoms.system
            and old.numbers is atoms.numbers
            and old.pbc is atoms.pbc
            and old.charge is atoms.charge
            and old.multiplicity is atoms.multiplicity
            and old.partial_charges is atoms.partial_charges
        )

    def fill(self, atoms: AtomsBatch) -> AtomsBatch:
        """The batch with the positions, and if they are new the cells, of other atoms."""
        batch, cell, positions = self.batch, atoms.cell, None
        if atoms.positions.is_cpu and not atoms.positions.requires_grad:
            copy = np.zeros((self.n_rows, 3), self.kind)
            if loops.copy_within(atoms.positions.numpy(), self.limit, copy):
                positions = torch.from_numpy(copy)
        if positions is None:
            far = math.isfinite(self.limit)
            positions = _brought_back(atoms, self.first) if far else atoms.positions
            positions = torch.cat((positions, self.spare)).to(batch.dtype)
        if cell is self.source.cell:
            return changed(batch, positions=positions)
        cell = torch.cat((cell.to(batch.dtype), batch.cell[atoms.n_systems :]))
        return changed(batch, positions=positions, cell=cell)


def _lone_atoms(batch: AtomsBatch, n: int) -> AtomsBatch:
    """n systems of one atom each, all like the first atom of a batch."""
    device, electrons = batch.device, int(batch.numbers[0])
    charges = batch.partial_charges
    return AtomsBatch(
        numbers=batch.numbers[:1].repeat(n),
        positions=torch.zeros(n, 3, dtype=batch.dtype, device=device),
        cell=torch.zeros(n, 3, 3, dtype=batch.dtype, device=device),
        pbc=torch.zeros(n, 3, dtype=torch.bool, device=device),
        system=torch.arange(n, device=device),
        charge=torch.zeros(n, dtype=torch.int64, device=device),
        multiplicity=torch.full((n,), 1 + electrons % 2, device=device),
        partial_charges=None if charges is None else charges.new_zeros(n),
    )


def _brought_back(atoms: AtomsBatch, first: Tensor) -> Tensor:
    """Positions [N, 3] in which float32 resolves 1e-5 Å wherever the atoms have drifted to.

    A system goes back as a whole, by multiples of `NEAR`, and periodic images by lattice vectors.
    A function of the system's own positions only, so that restarts and batches change nothing.
    """
    x = atoms.positions
    low, high = torch.aminmax(x)
    if float(low) >= -NEAR and float(high) <= NEAR:
        return x
    origin = NEAR * torch.round(x.index_select(0, first) / NEAR)
    x = x - origin.index_select(0, atoms.system)
    if not bool(atoms.pbc.any()):
        return x
    basis, inverse, _ = periodic_basis(atoms.cell, atoms.pbc)
    basis, inverse = (m.index_select(0, atoms.system) for m in (basis, inverse))
    steps = torch.round(_times(x, inverse))
    away = x.abs().amax(1, keepdim=True) > NEAR
    steps = torch.where(away & atoms.pbc.index_select(0, atoms.system), steps, 0.0)
    return x - _times(steps, basis)


def _times(rows: Tensor, matrices: Tensor) -> Tensor:
    """[N, 3] times [N, 3, 3], written out: a matrix product rounds differently in a batch."""
    x, y, z = rows.unbind(1)
    return x[:, None] * matrices[:, 0] + y[:, None] * matrices[:, 1] + z[:, None] * matrices[:, 2]


class Ensemble:
    """The mean of several force fields; how far they disagree is the uncertainty.

    Args:
        members: two or more.
    """

    def __init__(self, members: Sequence[ForceField]) -> None:
        if len(members) < 2:
            raise ValueError(f"an ensemble needs two members or more, not {len(members)}")
        self.members = tuple(members)

    @property
    def description(self) -> str:
        """The members' descriptions."""
        return " + ".join(describe(member) for member in self.members)

    def __call__(self, atoms: AtomsBatch, *, stress: bool = False) -> Forces:
        """Means; the largest standard deviation of a force [B], eV/Å, and that of the energy."""
        results = [member(atoms, stress=stress) for member in self.members]
        energies = torch.stack([result.energy for result in results])
        forces = torch.stack([result.forces for result in results])
        stresses = [result.stress for result in results if result.stress is not None]
        spread = torch.sqrt(forces.var(0).sum(1))
        return Forces(
            energy=energies.mean(0),
            forces=forces.mean(0),
            stress=torch.stack(stresses).mean(0) if stress else None,
            uncertainty=torch.segment_reduce(spread, "max", lengths=atoms.counts, unsafe=True),
            energy_uncertainty=energies.std(0),
        )


def as_force_field(model: Any, **options: Any) -> ForceField:
    """A force field from whatever may stand for one.

    Args:
        model: a name, path, `Potential`, list of these, `NNPCalculator` or `Engine`, or a callable
            (atoms, stress=...) -> `Forces`, which is returned as it is.
        options: of `ModelForceField`.
    """
    known = (str, os.PathLike, Potential, list, tuple, NNPCalculator, Engine)
    if isinstance(model, known):
        return ModelForceField(model, **options)
    if callable(model):
        if options:
            raise ValueError(f"{', '.join(options)}: options of a model, but a function was given")
        return model
    raise ValueError(
        f"a {type(model).__name__} is no force field: give the name of a model, a Potential, an "
        "NNPCalculator, or a function of an AtomsBatch that returns nnpcalc.md.Forces"
    )


def describe(force_field: ForceField) -> str:
    """A line that tells one force field from another."""
    return str(getattr(force_field, "description", type(force_field).__qualname__))
