"""Harmonic vibrations of a structure at a stationary point, and what follows for an ideal gas.

relaxed = nnpcalc.optimize(atoms, "tensornet-spice", fmax=1e-3, dtype="float64").atoms
found = nnpcalc.vibrations(relaxed, "tensornet-spice")
print(found.frequencies, found.thermochemistry(298.15).gibbs_energy)
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from nnpcalc.batch import AtomsBatch
from nnpcalc.calculator import NNPCalculator
from nnpcalc.md.forcefield import ForceField, Forces, as_force_field
from nnpcalc.optimizer import Optimized
from nnpcalc.optimizer.constraints import mobile_coordinates
from nnpcalc.potential import Potential
from nnpcalc.state import State, system_label
from nnpcalc.units import ELEMENTARY_CHARGE_SI, FORCE_TO_ACCELERATION, HBAR_SI, INVCM

FloatArray = NDArray[np.float64]

#: A molecule is linear if its smallest moment of inertia is this share of the largest, or less.
LINEAR = 1e-4

#: eV/Å: with larger forces the frequencies are those of no minimum.
STATIONARY = 0.05

#: hbar in eV fs.
_HBAR = HBAR_SI / ELEMENTARY_CHARGE_SI * 1e15


class VibrationWarning(UserWarning):
    """Frequencies that mean less than they seem to."""


@dataclass(frozen=True)
class Thermochemistry:
    """A molecule as an ideal gas of rigid rotors and harmonic oscillators; energies in eV.

    Attributes:
        temperature, pressure: K and Pa.
        symmetry_number: by which rotations were divided.
        energy: of the geometry, without vibrations.
        zero_point_energy: eV.
        internal_energy, enthalpy: U and H at the temperature, `energy` included.
        entropy: eV/K, at temperature and pressure.
        gibbs_energy: H - T S.
    """

    temperature: float
    pressure: float
    symmetry_number: int
    energy: float
    zero_point_energy: float
    internal_energy: float
    enthalpy: float
    entropy: float
    gibbs_energy: float


@dataclass(frozen=True)
class Vibrations:
    """Normal modes of one structure, M of them, by ascending frequency.

    Attributes:
        atoms: a copy of the structure.
        state: its charge and multiplicity.
        energy: eV.
        fmax: eV/Å, the largest force on an atom that may move; nearly 0 at a stationary point.
        shape: "monatomic", "linear", "nonlinear"; "periodic"; or "held" where coordinates are held
            fixed. It says which motions are no vibrations: 3, 5 or 6 translations and rotations of
            a molecule, 3 translations of a crystal, none of what is held.
        frequencies: wave numbers [M], cm^-1; those of imaginary frequencies are negative.
        modes: displacements [M, n, 3], each of length 1, without mass weighting.
        reduced_masses: [M], amu.
        hessian: [3n, 3n], eV/Å^2, of all coordinates.
    """

    atoms: Atoms
    state: State
    energy: float
    fmax: float
    shape: str
    frequencies: FloatArray
    modes: FloatArray
    reduced_masses: FloatArray
    hessian: FloatArray

    @property
    def n_imaginary(self) -> int:
        """How many frequencies are imaginary: 0 at a minimum, 1 at a transition state."""
        return int((self.frequencies < 0).sum())

    @property
    def energies(self) -> FloatArray:
        """Quanta h nu [M], eV; negative for imaginary frequencies."""
        return self.frequencies * INVCM

    @property
    def zero_point_energy(self) -> float:
        """Half the sum of the quanta of the real frequencies, eV."""
        return 0.5 * float(self.energies[self.frequencies > 0].sum())

    def thermochemistry(
        self, temperature: float = 298.15, pressure: float = 101_325.0, symmetry_number: int = 1
    ) -> Thermochemistry:
        """The ideal gas of this molecule, by `ase.thermochemistry.IdealGasThermo`.

        Spin enters by the degeneracy of the multiplicity. Vibrations below some 100 cm^-1 are
        hardly harmonic, and their share of the entropy is the least certain.

        Args:
            temperature: K.
            pressure: Pa.
            symmetry_number: rotations that leave the molecule as it is: 2 of water, 12 of methane.

        Raises:
            ValueError: no minimum of a free molecule, or a setting without meaning.
        """
        from ase.thermochemistry import IdealGasThermo

        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"the temperature must be above 0 K, not {temperature!r}")
        if not (math.isfinite(pressure) and pressure > 0):
            raise ValueError(f"the pressure must be above 0 Pa, not {pressure!r}")
        if type(symmetry_number) is not int or symmetry_number < 1:
            raise ValueError(f"the symmetry number must be 1, 2, ..., not {symmetry_number!r}")
        label = system_label(self.atoms, None)
        if self.shape in ("periodic", "held"):
            raise ValueError(
                f"{label} is {self.shape}: only a free molecule is an ideal gas. Use "
                "ase.thermochemistry.HarmonicThermo with .energies"
            )
        if self.n_imaginary:
            listed = ", ".join(f"{abs(f):.0f}i" for f in self.frequencies[self.frequencies < 0])
            raise ValueError(
                f"{label} has imaginary frequencies ({listed} cm^-1), so it is no minimum: move "
                "the atoms along such a mode, optimise again and more tightly"
            )
        shape: Any = self.shape
        gas = IdealGasThermo(
            vib_energies=self.energies.tolist(),
            geometry=shape,
            potentialenergy=self.energy,
            atoms=self.atoms,
            symmetrynumber=symmetry_number,
            spin=0.5 * self.state.unpaired_electrons,
        )
        enthalpy = float(gas.get_enthalpy(temperature, verbose=False))
        entropy = float(gas.get_entropy(temperature, pressure, verbose=False))
        return Thermochemistry(
            temperature=temperature,
            pressure=pressure,
            symmetry_number=symmetry_number,
            energy=self.energy,
            zero_point_energy=self.zero_point_energy,
            internal_energy=float(gas.get_internal_energy(temperature, verbose=False)),
            enthalpy=enthalpy,
            entropy=entropy,
            gibbs_energy=enthalpy - temperature * entropy,
        )


@overload
def vibrations(
    atoms: Atoms | Optimized,
    model: Any,
    *,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | str = ...,
    on_extrapolation: str = ...,
    displacement: float = ...,
) -> Vibrations: ...
@overload
def vibrations(
    atoms: Sequence[Atoms] | Sequence[Optimized],
    model: Any,
    *,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | str = ...,
    on_extrapolation: str = ...,
    displacement: float = ...,
) -> list[Vibrations]: ...
def vibrations(
    atoms: Atoms | Optimized | Sequence[Atoms] | Sequence[Optimized],
    model: Any,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str = "float64",
    on_extrapolation: str = "raise",
    displacement: float = 0.005,
) -> Vibrations | list[Vibrations]:
    """Normal modes of a structure, from the second derivatives of the energy.

    These are exact where the model has them; of a function, and of a TorchScript file, they are
    central differences of forces, all displaced structures in one batch. Translations and rotations
    are projected out of the mass-weighted Hessian (Wilson, Decius and Cross, Molecular Vibrations
    (1955), chapter 2; Miller, Handy and Adams, J. Chem. Phys. 72, 99 (1980)). `FixAtoms` and
    `FixCartesian` are honoured.

    Args:
        atoms: a structure at a minimum or saddle point of the same model, which is not changed; or
            a result of `nnpcalc.optimize`; or a list of these, computed one after the other.
        model: a name, path, `Potential`, `NNPCalculator` (which keeps its own dtype), or a function
            of an `AtomsBatch` that returns `nnpcalc.md.Forces`.
        device, dtype, on_extrapolation: as for `NNPCalculator`, of a model that is not one yet.
        displacement: Å, of central differences.

    Raises:
        ValueError: an input that cannot be computed (as for `NNPCalculator`), no atoms, a
            constraint of another kind, or a Hessian that is not finite.

    Warns:
        VibrationWarning: the forces are above 0.05 eV/Å: optimise first.

    >>> from ase.build import molecule
    >>> from nnpcalc.optimizer import optimize
    >>> water = optimize(molecule("H2O"), "tensornet-spice", dtype="float64").atoms
    >>> [round(f, -3) for f in vibrations(water, "tensornet-spice").frequencies.tolist()]
    [2000.0, 4000.0, 4000.0]
    """
    known = (str, os.PathLike, Potential, list, tuple)
    if isinstance(model, known):
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        model = NNPCalculator(model, on_extrapolation=on_extrapolation, **options)
    if isinstance(atoms, (list, tuple)):
        return [vibrations(one, model, displacement=displacement) for one in atoms]
    if isinstance(atoms, Optimized):
        atoms = atoms.atoms
    if not isinstance(atoms, Atoms):
        raise TypeError(f"expected ase.Atoms or a result of optimize, not {type(atoms).__name__}")
    if not len(atoms):
        raise ValueError("a structure without atoms does not vibrate")
    mobile = mobile_coordinates(atoms)
    field = as_force_field(model)
    batch, state = _batch(atoms, field)
    first = field(batch)
    forces = first.forces.detach().cpu().numpy()
    if isinstance(model, NNPCalculator) and hasattr(model.potential, "hessian"):
        hessian = model.get_hessian(atoms)
    else:
        hessian = difference_hessian(batch, field, displacement)
    energy = float(first.energy[0])
    if not (math.isfinite(energy) and np.isfinite(forces).all() and np.isfinite(hessian).all()):
        raise ValueError(
            f"{system_label(atoms, None)}: energy, forces or Hessian are not finite; look at the "
            "structure"
        )
    fmax = float(np.sqrt(((forces * mobile) ** 2).sum(1).max()))
    if fmax > STATIONARY:
        warnings.warn(
            f"{system_label(atoms, None)}: the largest force is {fmax:.2g} eV/Å, so the structure "
            "is no minimum and its frequencies mean little: optimise it first",
            VibrationWarning,
            stacklevel=2,
        )
    shape, outer = _outer_motions(atoms, mobile)
    frequencies, modes, reduced = normal_modes(hessian, atoms.get_masses(), outer, mobile)
    copy = atoms.copy()
    return Vibrations(copy, state, energy, fmax, shape, frequencies, modes, reduced, hessian)


def difference_hessian(
    atoms: AtomsBatch, force_field: ForceField, displacement: float = 0.005
) -> FloatArray:
    """Second derivatives [3n, 3n], eV/Å^2, of one system by central differences of its forces.

    The error is of second order in the displacement. All 6 n structures are one batch.

    Args:
        atoms: float64, one system.
        force_field: what computes.
        displacement: Å.
    """
    n = 3 * atoms.n_atoms
    steps = displacement * torch.eye(n, dtype=torch.float64, device=atoms.device)
    steps = steps.reshape(n, -1, 3)
    moved = [
        replace(atoms, positions=atoms.positions + sign * step)
        for step in steps
        for sign in (1, -1)
    ]
    result: Forces = force_field(AtomsBatch.concatenate(moved))
    forces = result.forces.detach().cpu().to(torch.float64).numpy().reshape(n, 2, n)
    hessian = (forces[:, 1] - forces[:, 0]) / (2.0 * displacement)
    symmetric: FloatArray = 0.5 * (hessian + hessian.T)
    return symmetric


def normal_modes(
    hessian: FloatArray, masses: FloatArray, outer: FloatArray, mobile: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Wave numbers [M], modes [M, n, 3] and reduced masses [M] of a Hessian.

    Args:
        hessian: [3n, 3n], eV/Å^2.
        masses: [n], amu.
        outer: [3n, K], mass-weighted motions that are no vibrations, linearly independent.
        mobile: [n, 3], 1, or 0 for coordinates held fixed.
    """
    root = np.sqrt(np.repeat(masses, 3))
    free = np.flatnonzero(mobile.reshape(-1))
    weighted = (hessian / np.outer(root, root))[np.ix_(free, free)]
    # columns K, K + 1, ... of a full QR factorisation span what is orthogonal to the outer motions
    basis = np.linalg.qr(outer[free], mode="complete")[0][:, outer.shape[1] :]
    squares, vectors = np.linalg.eigh(basis.T @ weighted @ basis)
    displacements = np.zeros((len(squares), len(root)))
    displacements[:, free] = (basis @ vectors).T / root[free]
    lengths = np.linalg.norm(displacements, axis=1)
    energies = _HBAR * np.sign(squares) * np.sqrt(np.abs(squares) * FORCE_TO_ACCELERATION)
    modes = (displacements / lengths[:, None]).reshape(len(squares), len(masses), 3)
    return energies / INVCM, modes, 1.0 / lengths**2


def _outer_motions(atoms: Atoms, mobile: FloatArray) -> tuple[str, FloatArray]:
    """Shape, and the mass-weighted translations and rotations [3n, K]."""
    n, root = len(atoms), np.sqrt(atoms.get_masses())
    if not mobile.all():
        return "held", np.zeros((3 * n, 0))
    motions = [np.outer(root, axis).reshape(-1) for axis in np.eye(3)]
    if atoms.pbc.any():
        return "periodic", np.stack(motions, 1)
    moments, axes = atoms.get_moments_of_inertia(vectors=True)
    if n == 1:
        return "monatomic", np.stack(motions, 1)
    turning = moments > LINEAR * moments.max()
    arms = atoms.positions - atoms.get_center_of_mass()
    for axis in axes[turning]:
        turn = root[:, None] * np.cross(axis, arms)
        motions.append(turn.reshape(-1) / np.linalg.norm(turn))
    return "nonlinear" if turning.all() else "linear", np.stack(motions, 1)


def _batch(atoms: Atoms, field: ForceField) -> tuple[AtomsBatch, State]:
    """The structure as a float64 batch, checked by the model if it can, and its state."""
    check = getattr(field, "batch", None)
    batch = AtomsBatch.from_atoms([atoms]) if check is None else check([atoms])
    return batch, State(int(batch.charge[0]), int(batch.multiplicity[0]))
