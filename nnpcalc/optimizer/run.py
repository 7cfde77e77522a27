"""`optimize`: geometries of least energy, many at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch import Tensor

from nnpcalc.backends import Engine
from nnpcalc.batch import AtomsBatch
from nnpcalc.calculator import NNPCalculator
from nnpcalc.committee import Committee
from nnpcalc.evaluation import (
    ExtrapolationWarning,
    FloatArray,
    checked_batch,
    estimate_pairs,
    evaluate_in_chunks,
    pair_budget,
)
from nnpcalc.md.forcefield import ForceField, as_force_field
from nnpcalc.optimizer.constraints import mobile_coordinates
from nnpcalc.optimizer.fire import FIRE
from nnpcalc.optimizer.lbfgs import LBFGS
from nnpcalc.optimizer.search import Method, Search, longest
from nnpcalc.state import element_symbol

METHODS: dict[str, type[LBFGS] | type[FIRE]] = {"lbfgs": LBFGS, "fire": FIRE}

#: Molecules that are done stay in the batch until they are this share of it: a batch of another
#: composition needs a new neighbor list.
IDLE_SHARE = 0.1

#: On the CPU a batch may be so many times larger than one pass of `NNPCalculator.evaluate`: what is
#: done for a batch as a whole then no longer counts.
CPU_ROOM = 8


@dataclass(frozen=True)
class Optimized:
    """What became of one structure.

    Attributes:
        atoms: a copy of the structure at its last good geometry, with its constraints and `info`;
            a `SinglePointCalculator` holds energy and forces.
        converged: whether no force on an atom is larger than asked for.
        energy: eV; NaN if the first evaluation failed already.
        fmax: the largest force on an atom, without those on coordinates held fixed, eV/Å.
        steps: geometries tried after the first one, as in ASE.
        reason: why it did not converge; empty if it did.
        energy_uncertainty: of a committee, eV; None of one model, or without an energy.
        forces_uncertainty: of each atom [n], eV/Å, or None.
    """

    atoms: Atoms
    converged: bool
    energy: float
    fmax: float
    steps: int
    reason: str
    energy_uncertainty: float | None = None
    forces_uncertainty: FloatArray | None = None


@overload
def optimize(structures: Atoms, model: Any, **options: Any) -> Optimized: ...
@overload
def optimize(structures: Iterable[Atoms], model: Any, **options: Any) -> list[Optimized]: ...
def optimize(
    structures: Atoms | Iterable[Atoms],
    model: Any,
    *,
    method: str | Method = "lbfgs",
    fmax: float = 0.01,
    steps: int = 500,
    observe: Callable[[int, int, Atoms], None] | None = None,
    max_pairs: int | None = None,
    **options: Any,
) -> Optimized | list[Optimized]:
    """Minimise the energies of structures of any size, charge and multiplicity, all together.

    Each has its own history, step length and convergence, and leaves the batch when it is done. Its
    path is the same alone and in any batch, on the CPU bit for bit. What goes wrong with one on the
    way is told in its result and does not stop the others. Cells do not change; `FixAtoms` and
    `FixCartesian` are honoured. The structures given are not written to.

    Args:
        structures: one, or any number.
        model: a name, path, `Potential`, `NNPCalculator`, or a function of an `AtomsBatch` that
            returns `nnpcalc.md.Forces`. In float32, which is the default of a name, forces below
            some 1e-5 eV/Å are noise.
        method: "lbfgs", "fire", or an `LBFGS` or `FIRE` with other settings than the default.
        fmax: eV/Å, the largest force on an atom of a structure that is done.
        steps: geometries tried at most after the first one.
        observe: called as observe(place in the list, step, atoms) with every geometry that a
            structure has come to, the first at step 0; its `calc` has energy and forces.
        max_pairs: estimated pairs of atoms within the cutoff in one evaluation; the others wait
            for a place. None lets the memory decide; a function gets all at once.
        options: `device`, `dtype`, `backend`, `on_extrapolation`, ... of
            `nnpcalc.md.ModelForceField`, if the model is not one yet.

    Returns:
        One result per structure, in order; a single one for a single structure.

    Raises:
        ValueError: an input that cannot be computed (as for `NNPCalculator`), a constraint of
            another kind, or a setting without meaning. Names the structure.

    >>> from ase.build import molecule
    >>> water = optimize(molecule("H2O"), "tensornet-spice")
    >>> water.converged, f"{water.atoms.get_distance(0, 1):.2f}"
    (True, '0.96')
    """
    if not (math.isfinite(fmax) and fmax > 0):
        raise ValueError(f"fmax must be a force in eV/Å above 0, not {fmax!r}")
    if type(steps) is not int or steps < 0:
        raise ValueError(f"steps must be a number of steps, 0 or more, not {steps!r}")
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
        method = METHODS[method]()
    listed = [structures] if isinstance(structures, Atoms) else list(structures)
    if isinstance(model, (NNPCalculator, Engine)):
        fixed = [name for name in ("device", "dtype", "backend", "trust") if name in options]
        if fixed:
            raise ValueError(f"{', '.join(fixed)}: the model given has its own; leave it out")
    field = as_force_field(model, **options)
    run = _Run(listed, field, method, fmax, steps, observe, max_pairs)
    results = run.results()
    engine = getattr(field, "engine", None)
    if engine is not None and isinstance(engine.potential, Committee):
        results = _with_uncertainty(results, field, engine)
    return results[0] if isinstance(structures, Atoms) else results


def _with_uncertainty(results: list[Optimized], field: Any, engine: Engine) -> list[Optimized]:
    """The results with what the members of a committee disagree about at the end."""
    places = [k for k, found in enumerate(results) if found.atoms.calc is not None]
    structures = [results[k].atoms for k in places]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)  # it was said at the start
        batch, states = checked_batch(
            engine, structures, device=torch.device("cpu"), charge=field.charge,
            multiplicity=field.multiplicity, on_extrapolation="warn",
        )  # fmt: skip
    ends = evaluate_in_chunks(engine, batch, structures, states, None, forces=True, stress=False)
    results = list(results)
    for k, end in zip(places, ends, strict=True):
        results[k] = replace(
            results[k],
            energy_uncertainty=end.energy_uncertainty,
            forces_uncertainty=end.forces_uncertainty,
        )
    return results


class _Run:
    """The structures that wait, those that are searched, and the results so far."""

    def __init__(
        self,
        structures: Sequence[Atoms],
        field: ForceField,
        method: Method,
        fmax: float,
        steps: int,
        observe: Callable[[int, int, Atoms], None] | None,
        max_pairs: int | None,
    ) -> None:
        self.structures, self.field, self.method = structures, field, method
        self.fmax, self.steps, self.observe = fmax, steps, observe
        self.found: dict[int, Optimized] = {}
        several = len(structures) > 1
        self.mobile = [
            torch.from_numpy(mobile_coordinates(atoms, k if several else None))
            for k, atoms in enumerate(structures)
        ]
        check = getattr(field, "batch", AtomsBatch.from_atoms)
        self.parts = check(structures).split() if structures else []
        engine = getattr(field, "engine", None)
        self.limit: float = math.inf
        self.costs = [1] * len(structures)
        if engine is not None:
            potential = engine.potential
            cutoff = getattr(potential, "core_cutoff", potential.cutoff)
            self.costs = estimate_pairs(structures, cutoff)
            room = CPU_ROOM if potential.device.type == "cpu" else 1
            self.limit = room * pair_budget(engine) if max_pairs is None else max_pairs
        self.waiting = [k for k, atoms in enumerate(structures) if len(atoms)][::-1]
        for k, atoms in enumerate(structures):
            if not len(atoms):
                self.found[k] = Optimized(atoms.copy(), True, 0.0, 0.0, 0, "")
        self.search: Search | None = None

    def results(self) -> list[Optimized]:
        """Search until nothing is left."""
        self._fill()
        while self.search is not None:
            self._advance(self.search)
        return [self.found[k] for k in range(len(self.structures))]

    # --- who is in the batch ----------------------------------------------------------------------

    def _fill(self) -> None:
        """Let in as many of those that wait as there is room for; one at least."""
        used = 0 if self.search is None else sum(self.costs[k] for k in self.search.place.tolist())
        new: list[int] = []
        while self.waiting and (used + self.costs[self.waiting[-1]] <= self.limit or not used):
            new.append(self.waiting.pop())
            used += self.costs[new[-1]]
        if new:
            fresh = self._start(new)
            self.search = fresh if self.search is None else self.search.joined(fresh)

    def _start(self, places: list[int]) -> Search:
        atoms = AtomsBatch.concatenate([self.parts[k] for k in places])
        x, whole = atoms.positions, torch.tensor(places, device=atoms.device)
        system, atom = self.method.begin(atoms)
        return Search(
            atoms=atoms,
            mobile=torch.cat([self.mobile[k] for k in places]).to(x.device),
            place=whole,
            evaluations=torch.zeros_like(whole),
            positions=x,
            energy=x.new_full((len(places),), math.inf),
            forces=torch.zeros_like(x),
            raw_forces=torch.zeros_like(x),
            system_variables=system,
            atom_variables=atom,
        )

    def _leave(self, search: Search) -> None:
        """Go on without those that are done, once they are a good part of the batch."""
        places = search.place.tolist()
        going = [k for k, place in enumerate(places) if place not in self.found]
        if len(going) <= (1.0 - IDLE_SHARE) * len(places):
            self.search = search.select(going) if going else None
            self._fill()
        else:
            self.search = search

    # --- one evaluation ---------------------------------------------------------------------------

    def _advance(self, search: Search) -> None:
        """Evaluate, judge, take out what is done, move the others."""
        try:
            output = self.field(search.atoms)
        except ValueError as error:
            self._drop_culprits(search, error)
            return
        tried = search.trying(search.atoms.positions, evaluations=search.evaluations + 1)
        energy, forces = output.energy.detach(), output.forces.detach()
        largest = longest(forces * tried.mobile, tried.counts)
        sound = torch.isfinite(energy) & torch.isfinite(largest)
        search, stuck = self.method.step(tried, energy, forces)
        verdict = torch.stack(
            (sound & (largest <= self.fmax), ~sound, stuck, tried.evaluations > self.steps)
        )  # of one molecule the first that holds
        rows = {k: flags for k, flags in enumerate(verdict.T.tolist()) if any(flags)}
        if self.observe is not None:
            self._show(tried, search, energy, forces)
        places = tried.place.tolist()
        for k, (done, broken, no_way, _) in rows.items():
            if places[k] in self.found:
                continue
            if done:
                self._finish(
                    tried, k, positions=tried.atoms.positions, energy=energy, forces=forces
                )
            elif broken:
                self._finish(tried, k, self._not_finite(tried, k, forces))
            elif no_way:
                self._finish(search, k, _STUCK)
            else:
                self._finish(search, k, f"fmax is not reached after {self.steps} steps")
        self._leave(search)

    def _drop_culprits(self, search: Search, error: ValueError) -> None:
        """Finish the molecules that fail alone as well."""
        failed = set()
        for k, place in enumerate(search.place.tolist()):
            try:
                self.field(search.select([k]).atoms)
            except ValueError as own:
                failed.add(k)
                if place not in self.found:
                    self._finish(search, k, str(own).removeprefix("system 0: "))  # it was alone
        if not failed:
            raise error
        going = [k for k in range(search.atoms.n_systems) if k not in failed]
        self.search = search.select(going) if going else None
        self._fill()

    # --- results ----------------------------------------------------------------------------------

    def _finish(
        self,
        search: Search,
        row: int,
        reason: str = "",
        *,
        positions: Tensor | None = None,
        energy: Tensor | None = None,
        forces: Tensor | None = None,
    ) -> None:
        """The result of one molecule: at the positions given, else at its last good geometry."""
        atoms, value, largest = self._geometry(
            search,
            row,
            search.positions if positions is None else positions,
            search.energy if energy is None else energy,
            search.raw_forces if forces is None else forces,
        )
        steps = max(int(search.evaluations[row]) - 1, 0)
        self.found[int(search.place[row])] = Optimized(
            atoms, not reason, value, largest, steps, reason
        )

    def _geometry(
        self, search: Search, row: int, positions: Tensor, energy: Tensor, forces: Tensor
    ) -> tuple[Atoms, float, float]:
        """One molecule as Atoms with a calculator, its energy and its largest force."""
        first = int(search.counts[:row].sum())
        rows = slice(first, first + int(search.counts[row]))
        atoms = self.structures[int(search.place[row])].copy()
        atoms.arrays["positions"][:] = positions[rows].cpu().numpy()
        value = float(energy[row])
        if not math.isfinite(value):  # there is no good geometry
            return atoms, math.nan, math.nan
        atoms.calc = SinglePointCalculator(
            atoms, energy=value, forces=forces[rows].cpu().numpy().copy()
        )
        free = (forces[rows] * search.mobile[rows]).square().sum(1)
        return atoms, value, math.sqrt(float(free.max()))

    def _not_finite(self, search: Search, row: int, forces: Tensor) -> str:
        first = int(search.counts[:row].sum())
        own = forces[first : first + int(search.counts[row])]
        bad = (~torch.isfinite(own).all(1)).nonzero()[:, 0].tolist()
        where = ""
        if bad:
            symbol = element_symbol(int(search.atoms.numbers[first + bad[0]]))
            where = f", first that of atom {bad[0]} ({symbol})"
        return f"energy or forces are not finite{where}: the geometry left the model's range"

    def _show(self, tried: Search, after: Search, energy: Tensor, forces: Tensor) -> None:
        """Tell the caller about the geometries that were accepted."""
        assert self.observe is not None
        kept = (after.positions == tried.atoms.positions).all(1)
        for row, part in enumerate(kept.split(tried.counts.tolist())):
            place = int(tried.place[row])
            if place in self.found or not bool(part.all()):
                continue
            atoms, value, _ = self._geometry(tried, row, tried.atoms.positions, energy, forces)
            if math.isfinite(value):
                self.observe(place, int(tried.evaluations[row]) - 1, atoms)


_STUCK = (
    "the energy does not fall along the forces any more: they are noise (use dtype='float64' or a "
    "larger fmax), or not the derivatives of the energy"
)
