"""`NNPCalculator`: a neural network potential behind ASE's calculator interface. No mathematics.

    atoms.info["charge"] = -1
    atoms.calc = NNPCalculator("tensornet-spice")
    atoms.get_potential_energy()

Charge and spin multiplicity are read from `atoms.info` by the rules of `nnpcalc.state`, at every
call and from the atoms at hand only: a changed charge always recomputes, an unrelated key in `info`
never does, and nothing is remembered from an earlier molecule.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from numpy.typing import NDArray

from nnpcalc.backends import Backend, Model, prepare
from nnpcalc.batch import AtomsBatch
from nnpcalc.checks import check_positions
from nnpcalc.committee import Committee
from nnpcalc.evaluation import (
    Evaluation,
    ExtrapolationError,
    ExtrapolationWarning,
    FloatArray,
    NonFiniteError,
    checked_batch,
    evaluate_in_chunks,
    has_volume,
    unpack,
)
from nnpcalc.neighbors import VerletList
from nnpcalc.potential import Potential
from nnpcalc.state import State, as_integer, resolve_state, system_label

__all__ = [
    "Evaluation",
    "ExtrapolationError",
    "ExtrapolationWarning",
    "NNPCalculator",
    "NonFiniteError",
]

PROPERTIES = ("energy", "free_energy", "energies", "forces", "stress", "charges", "dipole")
OF_COMMITTEES = ("energy_uncertainty", "forces_uncertainty")
OF_CHARGES = ("charges", "dipole")


@dataclass(frozen=True)
class _Frame:
    """What stays the same from step to step: its tensors are made, checked and moved once."""

    counts: NDArray[np.int64]
    contents: tuple[bytes, ...]
    state: State
    partial_charges: FloatArray | None
    batch: AtomsBatch
    atoms: Atoms

    def fits(self, atoms: Atoms, state: State, partial_charges: FloatArray | None) -> bool:
        return (
            self.state == state
            and self.contents == _contents(atoms)
            and _same(self.partial_charges, partial_charges)
        )


class NNPCalculator(Calculator):
    """ASE calculator of a neural network potential.

    Energies come with forces, since whoever asks for one mostly wants the other; the stress is
    computed from the first time it is asked for. What a call cannot compute is an error, never a
    zero or a NaN, and the caller's Atoms are not written to.

    Args:
        model: a shipped name (`nnpcalc.list_models()`), a path to a model directory, a
            .safetensors or a TorchScript .pt file, or a Potential, which is copied; or a list of
            them, a committee: the mean is returned, and `results` have the members' disagreement
            as energy_uncertainty (eV) and forces_uncertainty ([n], eV/Å).
        device: "cpu", "cuda", ...; None means "cuda" where there is one, else "cpu".
        dtype: "float32" or "float64" (or the torch.dtype) of the network. Vibrations and tight
            optimisations want float64; energies are summed up in float64 either way.
        charge: total charge of structures whose `info` has none, e.
        multiplicity: 2S + 1 of structures whose `info` has none; None means the lowest possible.
        backend: "auto", "eager", "fused" or "torchscript"; `calc.backend` says what runs and why.
        on_extrapolation: what to do about charges and multiplicities that the model's card does
            not list, "raise" or "warn". Unknown elements are always an error.
        trust: run a TorchScript file that no shipped card vouches for. TorchScript is code.
        skin: Å by which the neighbor list looks farther than the cutoff, so that it is rebuilt only
            after an atom has moved by half of that; 0 rebuilds it at every step. The results do
            not depend on it.

    Attributes:
        state: charge and multiplicity of the last calculation, None before the first.
        charge, multiplicity: the defaults; changing one is seen by the next call.
        on_extrapolation: as above.

    Raises:
        WeightsError, BackendError: the model, back end or device cannot be had.
        CommitteeError: the models of a list cannot answer together.

    >>> from ase.build import molecule
    >>> water = molecule("H2O")
    >>> water.calc = NNPCalculator("tensornet-spice")
    >>> water.get_forces().shape
    (3, 3)
    """

    implemented_properties = list(PROPERTIES)  # noqa: RUF012 (ASE declares it)

    def __init__(
        self,
        model: Model | Sequence[Model],
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = "float32",
        charge: int = 0,
        multiplicity: int | None = None,
        backend: str = "auto",
        on_extrapolation: str = "raise",
        trust: bool = False,
        skin: float = 0.5,
    ) -> None:
        super().__init__()
        if on_extrapolation not in ("raise", "warn"):
            raise ValueError(
                f"on_extrapolation must be 'raise' or 'warn', not {on_extrapolation!r}"
            )
        self._engine = prepare(model, device=device, dtype=dtype, backend=backend, trust=trust)
        self._device = self._engine.device
        self._numpy_dtype = np.dtype(self.backend.dtype)
        self.charge = as_integer(charge, "the default charge")
        self.multiplicity = (
            None if multiplicity is None else as_integer(multiplicity, "the default multiplicity")
        )
        self.on_extrapolation = on_extrapolation
        self._neighbors = VerletList(self._engine.potential.cutoff, skin=skin)
        self.state: State | None = None
        self._stress_wanted = False
        self._frame: _Frame | None = None
        self._properties: tuple[str, ...] = PROPERTIES
        if isinstance(self._engine.potential, Committee):
            self._properties += OF_COMMITTEES
        self.implemented_properties = list(self._properties)
        self.parameters.update(
            model=self._engine.name, backend=self.backend.name, dtype=self.backend.dtype
        )

    def __repr__(self) -> str:
        b = self.backend
        return f"NNPCalculator({self._engine.name!r}, {b.name}, {b.device}, {b.dtype})"

    def __getstate__(self) -> dict[str, Any]:
        """All but what the next call makes anew, for copies and pickles."""
        return {**self.__dict__, "_frame": None}

    @property
    def backend(self) -> Backend:
        """What computes, and why."""
        return self._engine.backend

    @property
    def potential(self) -> Potential | Committee:
        """The model."""
        return self._engine.potential

    @property
    def card(self) -> dict[str, Any]:
        """The model's card; empty for a Potential without one."""
        return self._engine.card

    @property
    def allowed_atomic_numbers(self) -> tuple[int, ...]:
        """Atomic numbers of the elements the model knows, ascending."""
        return tuple(self._engine.elements.tolist())

    def set(self, **keywords: Any) -> dict[str, Any]:
        """Refuse ASE's way of changing parameters: nothing would come of it.

        Raises:
            ValueError: any keyword was given.
        """
        if keywords:
            raise ValueError(
                f"{', '.join(keywords)} cannot be changed by set(); assign calc.charge or "
                "calc.multiplicity, or make a new NNPCalculator"
            )
        return {}

    # --- one structure -----------------------------------------------------------------------

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What of `atoms` differs from the last calculation, as far as the model can see it.

        Positions, numbers, cell and pbc; the charge and multiplicity that `atoms` resolve to, not
        the contents of `info`; and given partial charges where the model uses them.

        Raises:
            StateError: charge or multiplicity are malformed or impossible.
        """
        last, used = self.atoms, self.state
        if last is None or used is None:
            return [*all_changes, "charge", "multiplicity"]
        state = resolve_state(atoms, self.charge, self.multiplicity)
        changes = [
            name
            for name, before, now in (
                ("positions", last.arrays["positions"], atoms.arrays["positions"]),
                ("numbers", last.arrays["numbers"], atoms.arrays["numbers"]),
                ("cell", last.cell.array, atoms.cell.array),
            )
            if not _same(before, now)
            and (before.shape != now.shape or not (np.abs(before - now) <= tol).all())
        ]
        if not _same(last.pbc, atoms.pbc):
            changes.append("pbc")
        if state.charge != used.charge:
            changes.append("charge")
        if state.multiplicity != used.multiplicity:
            changes.append("multiplicity")
        if not _same(last.arrays.get("partial_charges"), self._given_charges(atoms)):
            changes.append("partial_charges")
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute energy and forces, the stress where it has been asked for, into `results`.

        Args:
            atoms: the structure; None means the last one.
            properties: names of `implemented_properties`.
            system_changes: not used.

        Raises:
            PropertyNotImplementedError: the stress without a periodic cell, the dipole moment with
                one, or the charges or dipole moment of a model that has none.
            InputError, StateError, ExtrapolationError: what of `atoms` cannot be computed; all
                ValueErrors.
            NonFiniteError: the model returned no number.
        """
        atoms = self._or_last(atoms)
        self.results = {}
        if "stress" in properties:
            if not has_volume(atoms):
                raise PropertyNotImplementedError(
                    "the stress needs a periodic structure whose cell has a volume; this one has "
                    f"pbc {atoms.pbc.tolist()} and a cell of {atoms.cell.volume:.3g} Å^3"
                )
            self._stress_wanted = True
        stress = self._stress_wanted and has_volume(atoms)
        if "dipole" in properties and atoms.pbc.any():
            _refuse_periodic_dipole()
        state = resolve_state(atoms, self.charge, self.multiplicity)
        # neither a caller's inference_mode nor its no_grad may reach into the forces
        with torch.inference_mode(False), torch.enable_grad():
            batch = self._batch(atoms, state)
            neighbors = self._neighbors.update(batch)
            output = self._engine.run(batch, neighbors, forces=True, stress=stress)
            (result,) = unpack(output, [atoms], [state], None)
        self._remember(atoms, state)
        self.results = _ase_results(result)
        if result.charges is None:
            self.implemented_properties = [p for p in self._properties if p not in OF_CHARGES]
            _refuse_charges(properties)

    def get_hessian(self, atoms: Atoms | None = None) -> FloatArray:
        """Second derivatives of the energy [3n, 3n], eV/Å^2, exact, by the eager model.

        Row 3 i + a belongs to coordinate a of atom i. Use dtype="float64" for vibrations.

        Args:
            atoms: the structure; None means the one of the last calculation.

        Raises:
            ValueError: as for `calculate`.
        """
        atoms = self._or_last(atoms)
        state = resolve_state(atoms, self.charge, self.multiplicity)
        with torch.inference_mode(False), torch.enable_grad():
            hessian = self.potential.hessian(self._batch(atoms, state))
        result: FloatArray = hessian.detach().cpu().to(torch.float64).numpy()
        if not np.isfinite(result).all():
            raise NonFiniteError(
                f"{system_label(atoms, None)}: the Hessian is not finite; look at the structure"
            )
        return result

    # --- many structures ---------------------------------------------------------------------

    def evaluate(
        self,
        structures: Iterable[Atoms],
        properties: Sequence[str] = ("energy", "forces"),
        *,
        max_pairs: int | None = None,
    ) -> list[Evaluation]:
        """Evaluate many structures in as few passes as memory allows, faster than one by one.

        Structures of any size, charge and multiplicity mix. Neither `results` nor the structures
        are touched.

        Args:
            structures: the structures; the defaults of the calculator hold for states not given.
            properties: names of `implemented_properties`. Without "forces" and "stress" the
                derivatives are not computed, which saves most of the time.
            max_pairs: estimated pairs of atoms within the cutoff in one pass; None lets the memory
                decide. Where a device runs out of memory nevertheless, the pass is halved.

        Returns:
            One `Evaluation` per structure, in order.

        Raises:
            ValueError: as for `calculate`; names the structure by its place in the list.
            PropertyNotImplementedError: an unknown property, the stress of structures none of which
                has a periodic cell, the dipole moment of any that has, or charges of a model
                without.
            MemoryError: a single structure is too large.
        """
        listed = [structures] if isinstance(structures, Atoms) else list(structures)
        unknown = [name for name in properties if name not in self._properties]
        if unknown:
            known = ", ".join(self._properties)
            raise PropertyNotImplementedError(f"{unknown[0]!r} is none of {known}")
        stress = "stress" in properties and bool(listed)
        if stress and not any(has_volume(atoms) for atoms in listed):
            raise PropertyNotImplementedError(
                "none of the structures is periodic with a cell of some volume: leave stress out"
            )
        if "dipole" in properties and any(atoms.pbc.any() for atoms in listed):
            _refuse_periodic_dipole()
        with torch.inference_mode(False), torch.enable_grad():
            batch, states = self._checked_batch(listed, torch.device("cpu"))
            results = list(
                evaluate_in_chunks(
                    self._engine, batch, listed, states, max_pairs,
                    forces=not {"forces", "forces_uncertainty"}.isdisjoint(properties),
                    stress=stress,
                )
            )  # fmt: skip
        if results and results[0].charges is None:
            _refuse_charges(properties)
        return results

    # --- what both need ----------------------------------------------------------------------

    def _or_last(self, atoms: Atoms | None) -> Atoms:
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise ValueError("nothing was calculated before: give the atoms")
        return atoms

    def _given_charges(self, atoms: Atoms) -> FloatArray | None:
        if "partial_charges" not in self._engine.conditions:
            return None
        charges: FloatArray | None = atoms.arrays.get("partial_charges")
        return charges

    def _checked_batch(
        self, atoms: Sequence[Atoms], device: torch.device
    ) -> tuple[AtomsBatch, list[State]]:
        return checked_batch(
            self._engine,
            atoms,
            device=device,
            charge=self.charge,
            multiplicity=self.multiplicity,
            on_extrapolation=self.on_extrapolation,
        )

    def _batch(self, atoms: Atoms, state: State) -> AtomsBatch:
        """The structure as tensors; only positions are new while nothing else has changed."""
        frame = self._frame
        charges = self._given_charges(atoms)
        if frame is not None and frame.fits(atoms, state, charges):
            positions = atoms.arrays["positions"]
            numbers = frame.atoms.arrays["numbers"]
            check_positions(positions, numbers, frame.counts, self._numpy_dtype)
            # always a copy: the caller's array will move
            tensor = torch.from_numpy(positions.astype(self._numpy_dtype)).to(self._device)
            return frame.batch.moved(tensor)
        batch, _ = self._checked_batch([atoms], self._device)
        kept = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc)
        kept.info = {"charge": state.charge, "spin": state.multiplicity}
        if charges is not None:
            kept.arrays["partial_charges"] = charges.copy()
        self._frame = _Frame(
            counts=np.array([len(atoms)]),
            contents=_contents(atoms),
            state=state,
            partial_charges=None if charges is None else charges.copy(),
            batch=batch,
            atoms=kept,
        )
        return batch

    def _remember(self, atoms: Atoms, state: State) -> None:
        """Keep what `check_state` compares with, and nothing else of the caller's atoms."""
        self.state = state
        assert self._frame is not None
        like = self._frame.atoms
        # another object each time, for somebody may hold the last one; ASE's own ways to make one
        # take longer than the neighbor list
        self.atoms = copy.copy(like)
        self.atoms.info = dict(like.info)
        self.atoms.arrays = {name: array.copy() for name, array in like.arrays.items()}
        self.atoms.arrays["positions"] = atoms.positions.copy()


def _contents(atoms: Atoms) -> tuple[bytes, ...]:
    """All but positions that a batch is made of, to be compared."""
    return atoms.arrays["numbers"].tobytes(), atoms.pbc.tobytes(), atoms.cell.array.tobytes()


def _same(a: NDArray[Any] | None, b: NDArray[Any] | None) -> bool:
    """Whether arrays are equal bit for bit, which takes a fifth of the time of `np.array_equal`."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _refuse_charges(properties: Sequence[str]) -> None:
    asked = [name for name in OF_CHARGES if name in properties]
    if asked:
        raise PropertyNotImplementedError(f"this model has no partial charges, hence no {asked[0]}")


def _refuse_periodic_dipole() -> None:
    raise PropertyNotImplementedError(
        "the dipole moment of a periodic structure depends on the choice of its cell: set pbc to "
        "False for a molecule in a box"
    )


def _ase_results(result: Evaluation) -> dict[str, Any]:
    """Under ASE's names, for SinglePointCalculator takes no other, but for a committee's two."""
    results: dict[str, Any] = {
        "energy": result.energy,
        "free_energy": result.energy,
        "energies": result.energies,
        "forces": result.forces,
    }
    if result.stress is not None:
        results["stress"] = result.stress
    if result.charges is not None:
        results["charges"] = result.charges
    if result.dipole is not None:
        results["dipole"] = result.dipole
    if result.energy_uncertainty is not None:
        results["energy_uncertainty"] = result.energy_uncertainty
        results["forces_uncertainty"] = result.forces_uncertainty
    return results
