"""Labels by GFN2-xTB, and what the scripts that make corpora with it share.

GFN2-xTB: Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15, 1652 (2019); its spin
polarisation: Neugebauer, Bädorf, Ehlert, Hansen and Grimme, J. Comput. Chem. 44, 2120 (2023). The
stock method has no spin polarisation and puts the singlets of CH2 and O2 below their triplets:
corpora with more than one multiplicity need it.

Needs ``tblite``, ``ase``, ``numpy`` and ``rdkit``; nothing of nnpcalc. Units: eV, Å, amu, e, fs.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from ase import units
from ase.data import atomic_masses, covalent_radii
from run_record import begin

Surface = Callable[[np.ndarray], tuple[float, np.ndarray]]  # positions -> energy, forces

MAX_FORCE = 20.0  # eV/Å; labels with a larger force component are left out
MIN_DISTANCE = 0.6  # Å


class Unusable(ValueError):
    """A label that cannot be had or is not wanted; the message is what it is counted under."""


def unpaired_electrons(numbers: np.ndarray, charge: int, multiplicity: int) -> int:
    """Unpaired electrons of a state.

    Raises:
        ValueError: the number of electrons does not allow the multiplicity.
    """
    electrons = int(np.sum(numbers)) - charge
    unpaired = multiplicity - 1
    if not 0 <= unpaired <= electrons or (electrons - unpaired) % 2:
        raise ValueError(
            f"{electrons} electrons (charge {charge:+d}) cannot have multiplicity {multiplicity}"
        )
    return unpaired


class XTB:
    """Energy and forces of one state of one set of atoms.

    A call starts from the same guess each time, so that a label depends on geometry and state
    alone. Multiplicity 1 is always the closed shell: no symmetry is broken.

    Args:
        numbers: atomic numbers [N].
        charge: total charge, e.
        multiplicity: 2S + 1.
        spin_polarised: add the spin polarisation.
        restart: start from the result of the last call instead: twice as fast along a path.

    Raises:
        ValueError: an impossible state.
    """

    def __init__(
        self,
        numbers: np.ndarray,
        charge: int,
        multiplicity: int,
        spin_polarised: bool = True,
        restart: bool = False,
    ) -> None:
        from tblite.interface import Calculator

        unpaired = unpaired_electrons(numbers, charge, multiplicity)
        # Any geometry without two atoms in one place will do to build it.
        start = np.arange(3.0 * len(numbers)).reshape(-1, 3)
        self._calculator = Calculator(
            "GFN2-xTB", np.asarray(numbers, dtype=int), start, charge=charge, uhf=unpaired
        )
        self._calculator.set("verbosity", 0)
        if spin_polarised:
            self._calculator.add("spin-polarization", 1.0)
        self._restart = restart
        self._last: Any = None

    def __call__(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Positions [N, 3] in Å -> total energy in eV, forces [N, 3] in eV/Å.

        Raises:
            Unusable: "not converged" or "not finite".
        """
        self._calculator.update(positions=np.asarray(positions, dtype=float) / units.Bohr)
        try:
            result = self._calculator.singlepoint(self._last)
        except RuntimeError as error:  # tblite's own error is one
            if not any(word in str(error) for word in ("converge", "eigenvalue")):
                raise
            raise Unusable("not converged") from error
        energy = float(result.get("energy")) * units.Hartree
        forces = -np.asarray(result.get("gradient")) * (units.Hartree / units.Bohr)
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise Unusable("not finite")
        self._last = result if self._restart else None
        return energy, forces


@dataclass(frozen=True)
class Frame:
    """One labelled conformer in one state.

    Attributes:
        numbers: atomic numbers [N].
        positions: [N, 3], float32, Å.
        charge, multiplicity: the state.
        energy: total energy, eV.
        forces: [N, 3], eV/Å.
        molecule, source, split: whole numbers; see the scripts.
    """

    numbers: np.ndarray
    positions: np.ndarray
    charge: int
    multiplicity: int
    energy: float
    forces: np.ndarray
    molecule: int
    source: int
    split: int


def label(
    numbers: np.ndarray,
    positions: np.ndarray,
    charge: int,
    multiplicity: int,
    *,
    spin_polarised: bool = True,
    molecule: int = 0,
    source: int = 0,
    split: int = 0,
) -> Frame:
    """Label one geometry in one state; computed at the rounded positions that are stored.

    Raises:
        Unusable: the calculation did not converge, atoms are too close, or a force is too large.
        ValueError: an impossible state.
    """
    rounded = np.asarray(positions, dtype=np.float32)
    surface = XTB(numbers, charge, multiplicity, spin_polarised)
    if closest_pair(rounded) < MIN_DISTANCE:
        raise Unusable("atoms too close")
    energy, forces = surface(rounded)
    if np.abs(forces).max() > MAX_FORCE:
        raise Unusable("force too large")
    return Frame(
        np.asarray(numbers), rounded, charge, multiplicity, energy, forces, molecule, source, split
    )


def closest_pair(positions: np.ndarray) -> float:
    """Smallest distance between two atoms, Å; infinite for one atom."""
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min())


def bonds(numbers: np.ndarray, positions: np.ndarray, stretch: float = 1.3) -> np.ndarray:
    """Which atoms are closer than ``stretch`` times the sum of covalent radii: [N, N], bool."""
    radii = covalent_radii[numbers]
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    bonded = distances < stretch * (radii[:, None] + radii[None])
    np.fill_diagonal(bonded, False)
    return bonded


def embed(molecule: Any, seed: int) -> np.ndarray:
    """Positions of a conformer [N, 3], Å, of an RDKit molecule, which keeps it as well.

    Raises:
        Unusable: it cannot be embedded.
    """
    from rdkit.Chem import AllChem

    if AllChem.EmbedMolecule(molecule, randomSeed=seed, maxAttempts=20) != 0:
        raise Unusable("not embedded")
    return np.array(molecule.GetConformer().GetPositions())


def langevin(
    surface: Surface,
    numbers: np.ndarray,
    positions: np.ndarray,
    temperature: float,
    generator: np.random.Generator,
    step: float = 1.0,
    friction: float = 0.02,
) -> Iterator[np.ndarray]:
    """Langevin dynamics without end: positions after every step.

    BAOAB splitting: Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34.

    Args:
        surface: what the atoms move on.
        numbers: atomic numbers [N].
        positions: where they start [N, 3], Å.
        temperature: K.
        generator: source of the noise.
        step: fs.
        friction: 1/fs.
    """
    masses = atomic_masses[numbers][:, None]
    kick = 0.5 * step * units.fs
    keep = np.exp(-friction * step)
    thermal = np.sqrt(units.kB * temperature / masses)
    positions = np.array(positions, dtype=float)
    velocities = thermal * generator.normal(size=positions.shape)
    _, forces = surface(positions)
    while True:
        velocities += kick * forces / masses
        positions += kick * velocities
        noise = generator.normal(size=positions.shape)
        velocities = keep * velocities + np.sqrt(1.0 - keep**2) * thermal * noise
        positions += kick * velocities
        _, forces = surface(positions)
        velocities += kick * forces / masses
        yield positions.copy()


def relax(
    surface: Surface, positions: np.ndarray, steps: int, tolerance: float = 0.03
) -> Iterator[np.ndarray]:
    """Positions along a FIRE relaxation (Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006)).

    Ends after ``steps`` or when every force component is below ``tolerance`` (eV/Å). Masses are 1.
    """
    positions = np.array(positions, dtype=float)
    velocities = np.zeros_like(positions)
    dt, mixing, downhill = 0.1, 0.1, 0
    for _ in range(steps):
        _, forces = surface(positions)
        if np.abs(forces).max() < tolerance:
            return
        if np.vdot(forces, velocities) > 0.0:
            downhill += 1
            speed = np.linalg.norm(velocities) / np.linalg.norm(forces)
            velocities = (1.0 - mixing) * velocities + mixing * speed * forces
            if downhill > 5:
                dt, mixing = min(1.1 * dt, 0.3), 0.99 * mixing
        else:
            velocities[:] = 0.0
            dt, mixing, downhill = 0.5 * dt, 0.1, 0
        velocities += dt * forces
        move = dt * velocities
        longest = np.abs(move).max()
        positions += move * min(1.0, 0.1 / longest)
        yield positions.copy()


def write_shard(
    path: str | Path, frames: Sequence[Frame], left_out: dict[str, int] | None = None
) -> None:
    """Write frames in the format of `nnpcalc.train.data.read_corpus`: the whole file or none.

    What was left out, and how often, goes into the file as well.
    """
    path = Path(path)
    left_out = left_out or {}
    arrays: dict[str, Any] = {
        "n_atoms": np.array([len(f.numbers) for f in frames], dtype=np.int32),
        "charge": np.array([f.charge for f in frames], dtype=np.int8),
        "multiplicity": np.array([f.multiplicity for f in frames], dtype=np.int8),
        "energy": np.array([f.energy for f in frames], dtype=np.float64),
        "molecule": np.array([f.molecule for f in frames], dtype=np.int32),
        "source": np.array([f.source for f in frames], dtype=np.uint8),
        "split": np.array([f.split for f in frames], dtype=np.uint8),
        "numbers": np.concatenate([np.zeros(0), *(f.numbers for f in frames)]).astype(np.uint8),
        "left_out": np.array(sorted(left_out), dtype=np.str_),
        "left_out_counts": np.array([left_out[key] for key in sorted(left_out)], dtype=np.int64),
    }
    for name in ("positions", "forces"):
        rows = [np.zeros((0, 3)), *(getattr(f, name) for f in frames)]
        arrays[name] = np.concatenate(rows).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


Made = tuple[list[Frame], dict[str, int]]  # frames, and how many labels were left out and why


def _one_shard(work: tuple[Callable[[Any], Made], Any, Path]) -> Path:
    make, task, path = work
    write_shard(path, *make(task))
    return path


def make_shards(
    make: Callable[..., Made],
    options: dict[str, Any],
    tasks: dict[str, Any],
    output: str | Path,
    jobs: int = 1,
    molecules: Sequence[str] = (),
) -> dict[str, int]:
    """Make ``output/<name>.npz`` for every task whose file is not there yet.

    Args:
        make: makes the frames of a task; a function of the task and the options alone, so that a
            run that was stopped gives the same files when it goes on.
        options: further arguments of ``make``, by name.
        tasks: by the name of the shard. Like the options, as JSON can hold them.
        output: directory.
        jobs: processes.
        molecules: lines of ``molecules.txt`` in the directory, if there shall be one.

    Returns:
        Number of frames in all the files, under "labels", and of those left out, by reason.

    Raises:
        ValueError: the directory holds shards of other tasks or options.
    """
    tasks_sha256 = hashlib.sha256(json.dumps(tasks).encode()).hexdigest()
    begin(Path(output), {"options": options, "tasks_sha256": tasks_sha256}, molecules)
    make = partial(make, **options)
    files = {name: Path(output) / f"{name}.npz" for name in tasks}
    work = [(make, tasks[name], path) for name, path in files.items() if not path.exists()]
    print(f"{len(tasks) - len(work)} of {len(tasks)} shards are already there", flush=True)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # read when tblite is first imported, by each process
    start, made = time.monotonic(), 0
    with get_context("spawn").Pool(jobs) if jobs > 1 else nullcontext() as pool:
        finished = pool.imap_unordered(_one_shard, work) if pool else map(_one_shard, work)
        for done, path in enumerate(finished, 1):
            made += count(path)["labels"]
            seconds = time.monotonic() - start
            rate = made / max(seconds, 1e-9)
            print(f"{done}/{len(work)} shards, {made} labels, {rate:.0f}/s", flush=True)
    total: dict[str, int] = {}
    for path in files.values():
        for key, number in count(path).items():
            total[key] = total.get(key, 0) + number
    print(", ".join(f"{key}: {number}" for key, number in total.items()), flush=True)
    return total


def count(path: Path) -> dict[str, int]:
    """Number of frames in a shard, under "labels", and of those left out, by reason."""
    with np.load(path, allow_pickle=False) as data:
        left_out = dict(
            zip(data["left_out"].tolist(), data["left_out_counts"].tolist(), strict=True)
        )
        return {"labels": int(data["n_atoms"].size), **left_out}
