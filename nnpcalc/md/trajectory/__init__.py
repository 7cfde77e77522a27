"""Trajectory files: extended XYZ, ASE's .traj, HDF5. A frame is in them whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ase import Atoms

from nnpcalc.md.state import MDState
from nnpcalc.md.trajectory.frame import Frame, Writer, structures_of
from nnpcalc.md.trajectory.hdf5 import HDF5Writer, read_hdf5
from nnpcalc.md.trajectory.traj import TrajWriter, read_traj, repair_traj
from nnpcalc.md.trajectory.xyz import XYZWriter, read_xyz, repair_xyz

__all__ = ["Frame", "Writer", "open_writer", "read_trajectory", "repair", "structures_of"]

KINDS = {
    ".xyz": "xyz", ".extxyz": "xyz", ".traj": "traj", ".h5": "hdf5", ".hdf5": "hdf5"
}  # fmt: skip


def kind_of(path: Path) -> str:
    """The format that a file's name asks for.

    Raises:
        ValueError: an unknown suffix.
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(
            f"{path}: trajectories end in {', '.join(KINDS)}, and the ending says the format"
        )
    return kind


def open_writer(
    path: Path,
    state: MDState,
    n_frames: int,
    attributes: dict[str, Any],
    mark: dict[str, Any] | None,
) -> Writer:
    """A new file, or one that goes on from a mark; what follows the mark is cut off.

    Args:
        path: its suffix says the format.
        state: all replicas of the run.
        n_frames: of the whole run.
        attributes: what HDF5 keeps about the run.
        mark: of the writer of an earlier run.

    Raises:
        ValueError: an unknown suffix.
        FileExistsError: a new file is asked for, but there is one.
        FileNotFoundError: a file to go on with is not there.
    """
    kind = kind_of(path)
    if mark and not path.exists():
        raise FileNotFoundError(
            errno.ENOENT, "the trajectory of the checkpoint is not there", str(path)
        )
    if kind == "xyz":
        return XYZWriter(path, mark)
    if kind == "traj":
        return TrajWriter(path, mark)
    return HDF5Writer(path, state, n_frames, attributes, mark)


def read_trajectory(path: str | os.PathLike[str], replica: int | None = None) -> Iterator[Atoms]:
    """The complete frames of a trajectory file, one Atoms per replica; a torn end is left out.

    Args:
        path: .xyz, .extxyz, .traj, .h5 or .hdf5.
        replica: only this one; None means all, frame after frame.

    Yields:
        Atoms with momenta, energy and forces; `info` has step, time (fs), replica, charge, spin,
        kinetic_energy (eV), temperature (K) and conserved_energy (eV).
    """
    file = Path(path)
    read = {"xyz": read_xyz, "traj": read_traj, "hdf5": read_hdf5}[kind_of(file)]
    for atoms in read(file):
        if replica is None or atoms.info.get("replica") == replica:
            yield atoms


def repair(path: str | os.PathLike[str]) -> int:
    """Cut a torn last frame off a trajectory file, so that other programs read it.

    A run that goes on from its checkpoint does this by itself.

    Returns:
        The number of bytes that were cut off; HDF5 files are never torn.
    """
    file = Path(path)
    kind = kind_of(file)
    if kind == "hdf5":
        return 0
    return repair_xyz(file) if kind == "xyz" else repair_traj(file)
