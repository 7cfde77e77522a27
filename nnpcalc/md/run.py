"""`run`: a simulation from structures to files, that goes on where it was stopped."""

from __future__ import annotations

import errno
import operator
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from nnpcalc.md.checkpoint import Checkpoint, CheckpointError
from nnpcalc.md.compiled import several_steps
from nnpcalc.md.forcefield import ForceField, as_force_field, describe
from nnpcalc.md.integrators.common import Integrator, settings
from nnpcalc.md.signals import Interrupted, StopSignals
from nnpcalc.md.start import initial_state, same_structures
from nnpcalc.md.state import MDState
from nnpcalc.md.trajectory import Frame, Writer, open_writer, structures_of
from nnpcalc.md.trajectory import kind_of as kind_of_trajectory
from nnpcalc.md.watchdog import Incident, MDWarning, Reference, SimulationDiverged, Watchdog


@dataclass(frozen=True)
class Run:
    """What became of a simulation.

    Attributes:
        state: of the replicas that reached the last step.
        frozen: last good states of the replicas that were stopped, one each.
        incidents: why they were stopped.
    """

    state: MDState
    frozen: tuple[MDState, ...]
    incidents: tuple[Incident, ...]

    @property
    def seed(self) -> int:
        """Of all random numbers; the same seed makes the same trajectory."""
        return self.state.seed

    @property
    def atoms(self) -> list[Atoms]:
        """All replicas, by their identity; for those that were stopped, the last good frame."""
        found = [a for state in (self.state, *self.frozen) for a in structures_of(state)]
        return sorted(found, key=lambda atoms: int(atoms.info["replica"]))


def run(
    atoms: Atoms | Iterable[Atoms] | MDState,
    model: Any,
    integrator: Integrator,
    steps: int,
    *,
    temperature: float | tuple[float, ...] | None = None,
    seed: int | None = None,
    replicas: Iterable[int] | None = None,
    hydrogen_mass: float | None = None,
    trajectory: str | os.PathLike[str] | None = None,
    interval: int = 100,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_interval: int = 1000,
    resume: bool = False,
    watchdog: Watchdog | None = None,
    report: Callable[[Frame], None] | None = None,
) -> Run:
    """Run molecular dynamics of one structure or of many at once.

        run(atoms, "tensornet-spice", Langevin(0.5, temperature=300), 10_000, trajectory="run.xyz")

    Args:
        atoms: replicas; molecules, charges (`info["charge"]`) and multiplicities (`info["spin"]`)
            may differ. Momenta are taken from them if they have some. `FixAtoms` is honoured. Not
            changed. Or a state, from whose step on it runs.
        model: a name, path, `Potential`, `NNPCalculator`, or a force field; for another device or
            dtype an `NNPCalculator` or a `ModelForceField`.
        integrator: of `nnpcalc.md`.
        steps: in all, counted from the start also where a run goes on.
        temperature: K, of momenta drawn at the start in place of those of the structures. None:
            only where no structure has momenta, at the temperature of the integrator.
        seed: of all random numbers; None draws one, which the result and the checkpoint keep.
        replicas: identities, 0, 1, ... by default. A replica alone runs as in a batch, bit for bit,
            with the same seed and identity.
        hydrogen_mass: amu of hydrogen, taken from the atoms it is bound to (`heavier_hydrogen`).
        trajectory: .xyz, .traj or .h5, a frame every `interval` steps, the first at step 0.
        checkpoint: a file, written at the start, every `checkpoint_interval` steps, at the end, and
            when SIGTERM or SIGINT stops the run.
        resume: go on from the checkpoint if there is one; everything else must be as it was, but
            `steps` may grow. The result is that of a run that was never stopped, bit for bit.
        watchdog: limits; by default those of `Watchdog()`.
        report: called with every frame.

    Raises:
        ValueError: settings or structures that cannot be simulated; a checkpoint of another run.
        SimulationDiverged: a ValueError; no replica is left. While some are, those that leave the
            limits are stopped, with an `MDWarning`.
        FileExistsError: a file of the run exists and `resume` is False.
        OSError: a file cannot be written; names it. The last checkpoint is intact.
        Interrupted: a SystemExit with the status 143 or 130; the checkpoint is written.
    """
    steps = _number(steps, "steps", least=0)
    interval = _number(interval, "interval", least=1)
    checkpoint_interval = _number(checkpoint_interval, "checkpoint_interval", least=1)
    if isinstance(integrator, type) or not hasattr(integrator, "step"):
        raise ValueError(
            f"{integrator!r} is no integrator: give for example nnpcalc.md.Langevin(0.5, 300)"
        )
    force_field = as_force_field(model)
    files = _Files(
        None if trajectory is None else Path(trajectory),
        None if checkpoint is None else Path(checkpoint),
        interval,
        checkpoint_interval,
    )
    files.check(resume)
    structures = atoms
    if not isinstance(atoms, (MDState, Atoms)):
        structures = list(atoms)
    identities = None if replicas is None else list(replicas)
    guard = Watchdog() if watchdog is None else watchdog
    about = {
        "integrator": settings(integrator),
        "force field": describe(force_field),
        "trajectory": None if files.trajectory is None else files.trajectory.name,
        "interval": interval if files.trajectory is not None else None,
        "temperature": None if temperature is None else np.asarray(temperature).tolist(),
        "replicas": identities,
        "hydrogen_mass": hydrogen_mass,
        "watchdog": settings(guard),
    }
    loop = _Loop(force_field, integrator, guard, files, about, report)
    saved = files.last() if resume else None
    if saved is not None:
        _check_same(saved, about, seed, files.checkpoint)
        same_structures(structures, saved.state, saved.frozen, force_field, identities)
        loop.go_on(saved)
    else:
        state = initial_state(
            structures, force_field, integrator,
            temperature=temperature, seed=seed, replicas=identities, hydrogen_mass=hydrogen_mass,
        )  # fmt: skip
        loop.start(integrator.init(state, force_field))
    return loop.run(steps)


@dataclass(frozen=True)
class _Files:
    trajectory: Path | None
    checkpoint: Path | None
    interval: int
    checkpoint_interval: int

    def check(self, resume: bool) -> None:
        """Refuse to overwrite, and to go on without a checkpoint."""
        if self.trajectory is not None:
            kind_of_trajectory(self.trajectory)
        if resume and self.checkpoint is None:
            raise ValueError("resume=True goes on from a checkpoint: give the file")
        if resume and self.checkpoint is not None and self.checkpoint.exists():
            return
        if self.checkpoint is not None and self.checkpoint == self.trajectory:
            raise ValueError(f"trajectory and checkpoint are the same file, {self.checkpoint}")
        for path in (self.checkpoint, self.trajectory):
            if path is not None and path.exists():
                raise FileExistsError(
                    errno.EEXIST,
                    "there is a file of this name: remove it, take another name, or go on "
                    "from its checkpoint with resume=True",
                    str(path),
                )

    def last(self) -> Checkpoint | None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return None
        return Checkpoint.load(self.checkpoint)


def _check_same(
    saved: Checkpoint, about: dict[str, Any], seed: int | None, path: Path | None
) -> None:
    for name, value in about.items():
        before = saved.settings.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            name, before, value = _first_difference(name, before, value)
        if before != value:
            raise CheckpointError(
                f"{path} is of a run with {name} {before!r}, not {value!r}: give what it had, or "
                "start a new run under other names"
            )
    if seed is not None and seed != saved.state.seed:
        raise CheckpointError(
            f"{path} is of a run with seed {saved.state.seed}, not {seed}: leave the seed out"
        )


def _first_difference(
    name: str, before: dict[str, Any], now: dict[str, Any]
) -> tuple[str, Any, Any]:
    """Name and values of the first setting that differs, "integrator timestep" for example."""
    if before.get("name") != now.get("name"):
        return name, before.get("name"), now.get("name")
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return f"{name} {key}", before.get(key), now.get(key)
    return name, None, None


def _number(value: Any, name: str, *, least: int) -> int:
    """A number of steps, also one of numpy."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{name} must be a number of steps, {least} or more, not {value!r}")
    return number


class _Loop:
    """A run: the present state, the last good one, and the files."""

    def __init__(
        self,
        force_field: ForceField,
        integrator: Integrator,
        watchdog: Watchdog,
        files: _Files,
        about: dict[str, Any],
        report: Callable[[Frame], None] | None,
    ) -> None:
        self.force_field, self.integrator, self.watchdog = force_field, integrator, watchdog
        self.files, self.about, self.report = files, about, report
        self.frozen: list[MDState] = []
        self.incidents: list[Incident] = []
        self.writer: Writer | None = None
        self.marks: dict[str, Any] = {}

    state: MDState  # of the replicas that run
    good: MDState  # the same replicas when everything was last checked
    reference: Reference
    resumed = False

    def start(self, state: MDState) -> None:
        """Begin at the first state."""
        self.state = self.good = state
        self.reference = self.watchdog.reference(state, self.integrator)

    def go_on(self, saved: Checkpoint) -> None:
        """Begin at a checkpoint."""
        place = getattr(self.force_field, "device", "cpu")
        state = saved.state.to(place)
        self.state = self.good = state
        self.frozen = list(saved.frozen)
        self.incidents = list(saved.incidents)
        reference = saved.reference
        if reference is None:
            reference = self.watchdog.reference(state, self.integrator)
        conserved = reference.conserved
        self.reference = Reference(
            None if conserved is None else conserved.to(place), reference.bonds.to(place)
        )
        self.marks, self.resumed = saved.marks, True

    def run(self, steps: int) -> Run:
        """Step until the end; files are closed whatever happens."""
        if steps < self.state.step:
            raise ValueError(
                f"the run has {self.state.step} steps already, more than {steps}: steps counts "
                "from the start"
            )
        try:
            self._run(steps)
        finally:
            if self.writer is not None:
                self.writer.close()
        return Run(self.state, tuple(self.frozen), tuple(self.incidents))

    def _run(self, steps: int) -> None:
        with StopSignals() as signals:
            self._begin(steps)
            intervals = [self.files.checkpoint_interval, self.watchdog.interval]
            writes = self.writer is not None or self.report is not None
            if writes:
                intervals.append(self.files.interval)
            while (step := self.state.step) < steps and not signals.received:
                due = min(steps, *(step - step % interval + interval for interval in intervals))
                while self.state.step < due and not signals.received:
                    self._advance(due)
                if self.state.step < due:
                    break
                self._check()
                if writes and due % self.files.interval == 0:
                    self._write()
                if due % self.files.checkpoint_interval == 0 or due == steps:
                    self._save()
            if signals.received:
                if self.good is not self.state:
                    self._check()
                self._save()
                raise Interrupted(signals.received, self.state.step, self.files.checkpoint)

    def _begin(self, steps: int) -> None:
        """The files, and what is in them before the first step."""
        if not self.resumed:
            self._check()
            # before anything else, so that there is always one to go on from
            self._save()
        self._open(steps)
        if not self.resumed or (self.writer is not None and not self.marks):
            self._write()

    # --- steps -----------------------------------------------------------------------------------

    def _advance(self, due: int) -> None:
        """One step of all replicas that can take it, after some more if they go without Python."""
        before = self.state
        self.state = several_steps(
            before,
            self.integrator,
            self.force_field,
            due - before.step - 1,
            self.watchdog.max_force,
        )
        if self.state is not before and not self.watchdog.calm(self.state):
            self._check()
            return
        while True:
            try:
                after = self.integrator.step(self.state, self.force_field)
            except ValueError as error:
                self._stop(self._culprits(error))
                continue
            self.state = after
            if not self.watchdog.calm(after):
                self._check()
            return

    def _culprits(self, error: ValueError) -> dict[int, Incident]:
        """The replicas whose step fails, found by letting each take it alone."""
        found = {}
        for row in range(self.state.n_systems):
            try:
                self.integrator.step(self.state.select([row]), self.force_field)
            except ValueError as own:
                identity = int(self.state.replica[row])
                found[row] = Incident(identity, self.state.step + 1, str(own))
        if not found:
            raise error
        return found

    def _check(self) -> None:
        """Stop the replicas that are beyond the limits; what is left is good."""
        found, reference = self.watchdog.check(self.state, self.integrator, self.reference)
        self.reference = reference
        if found:
            self._stop(found)
        self.good = self.state

    def _stop(self, found: dict[int, Incident]) -> None:
        """Freeze replicas, by row, at their last good state."""
        for row, incident in sorted(found.items()):
            self.frozen.append(self.good.select([row]).cpu())
            self.incidents.append(incident)
        left = [row for row in range(self.state.n_systems) if row not in found]
        if not left:
            raise SimulationDiverged(self.incidents, self.frozen)
        for incident in found.values():
            warnings.warn(f"{incident}; the others go on", MDWarning, stacklevel=6)
        rows = torch.tensor(left, device=self.state.replica.device)
        self.state, self.good = self.state.select(rows), self.good.select(rows)
        self.reference = self.reference.select(rows)

    # --- files -----------------------------------------------------------------------------------

    def _open(self, steps: int) -> None:
        path = self.files.trajectory
        if path is None:
            return
        mark = self.marks.get("trajectory")
        if self.resumed and mark is None:
            path.unlink(missing_ok=True)  # of a run that was stopped before its first checkpoint
        n_frames = steps // self.files.interval + 1
        about = {**self.about, "seed": self.state.seed, "timestep": self.integrator.timestep}
        self.writer = open_writer(path, self.state, n_frames, about, mark)

    def _write(self) -> None:
        frame = Frame.of(
            self.state, self.integrator.timestep, self.integrator.conserved(self.state)
        )
        if self.writer is not None:
            self.writer.append(frame)
        if self.report is not None:
            self.report(frame)

    def _save(self) -> None:
        if self.files.checkpoint is None:
            return
        marks = {}
        if self.writer is not None:
            self.writer.sync()
            marks["trajectory"] = self.writer.mark()
        Checkpoint(
            self.state, tuple(self.frozen), tuple(self.incidents), self.reference,
            self.about, marks,
        ).save(self.files.checkpoint)  # fmt: skip
