"""HDF5 for long batched runs: plain arrays of all frames and replicas.

The file is laid out for all frames of the run before the first, and closed. Frames are then written
into their places with no help of the HDF5 library, and a frame counts once its number is written,
last. So the file is valid at every moment, for every reader, also while it grows or after a crash.
Disk space is taken up by what has been written only (on file systems that know holes).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray

from nnpcalc.md.files import named, sync_directory, write_fully
from nnpcalc.md.state import MDState
from nnpcalc.md.trajectory.frame import Frame
from nnpcalc.units import FS

FORMAT = "nnpcalc-trajectory-1"

#: Datasets with one entry per frame: shape without it, type. N atoms, B replicas.
_PER_FRAME: dict[str, tuple[tuple[Any, ...], str]] = {
    "time": ((), "<f8"),
    "positions": (("N", 3), "<f4"),
    "momenta": (("N", 3), "<f4"),
    "forces": (("N", 3), "<f4"),
    "cell": (("B", 3, 3), "<f8"),
    "energy": (("B",), "<f8"),
    "kinetic_energy": (("B",), "<f8"),
    "temperature": (("B",), "<f8"),
    "conserved_energy": (("B",), "<f8"),
    "step": ((), "<i8"),  # the last: -1 until the frame is complete
}


class HDF5Writer:
    """Writes frames of a fixed set of replicas; a replica that was stopped is NaN from then on.

    Args:
        path: the file, made if `mark` is None.
        state: all replicas of the run; of a file that goes on they are known.
        n_frames: for which there is to be room.
        attributes: kept in the file as text.
        mark: where to go on.
    """

    def __init__(
        self,
        path: Path,
        state: MDState,
        n_frames: int,
        attributes: dict[str, Any],
        mark: dict[str, Any] | None = None,
    ) -> None:
        self.path = path
        self._frames = int(mark["frames"]) if mark else 0
        if not mark:
            if path.exists():
                raise FileExistsError(errno.EEXIST, "File exists", str(path))
            _create(path, state, n_frames, attributes)
        elif _room(path) < n_frames:
            _enlarge(path, n_frames)
        with _h5py().File(path, "r") as file:
            identities = file["replica"][:].tolist()
            self._row_of = {replica: row for row, replica in enumerate(identities)}
            self._rows = np.repeat(np.arange(len(identities)), file["counts"][:])
        self._places = _places(path)
        self._descriptor = os.open(path, os.O_RDWR)
        room = _room(path)
        if mark and room > self._frames:
            unwritten = np.full(room - self._frames, -1, "<i8")
            self._put("step", self._frames, unwritten)

    def _put(self, name: str, frame: int, values: NDArray[Any]) -> None:
        place, size = self._places[name]
        write_fully(self._descriptor, values.tobytes(), self.path, place + frame * size)

    def append(self, frame: Frame) -> None:
        """Write a frame.

        Raises:
            OSError: it does not fit; names the file, in which it does not count.
        """
        state = frame.state
        rows = np.array([self._row_of[r] for r in state.replica.tolist()])
        atoms = np.isin(self._rows, rows)
        values = {
            "time": np.array(frame.time),
            "positions": state.positions.numpy(),
            "momenta": state.momenta.numpy() / FS,
            "forces": state.forces.numpy(),
            "cell": state.atoms.cell.numpy(),
            "energy": state.energy.numpy(),
            "kinetic_energy": frame.kinetic,
            "temperature": frame.temperature,
            "conserved_energy": frame.conserved,
            "step": np.array(state.step),
        }
        for name, (shape, kind) in _PER_FRAME.items():
            value = values[name]
            if shape:
                per_atom = shape[0] == "N"
                full = np.full((len(self._rows if per_atom else self._row_of), *shape[1:]), np.nan)
                full[atoms if per_atom else rows] = value
                value = full
            self._put(name, self._frames, value.astype(kind))
        self._frames += 1

    def mark(self) -> dict[str, Any]:
        """The number of frames."""
        return {"frames": self._frames}

    def sync(self) -> None:
        """Bring everything so far to the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise named(error, self.path) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_hdf5(path: Path) -> Iterator[Atoms]:
    """The replicas of every complete frame as Atoms."""
    with _h5py().File(path, "r") as file:
        steps = file["step"][:]
        counts, pbc = file["counts"][:], file["pbc"][:]
        numbers, masses = file["numbers"][:], file["masses"][:]
        ends = np.cumsum(counts)
        for k in np.flatnonzero(steps >= 0):
            x, p, f = (file[name][k].astype(float) for name in ("positions", "momenta", "forces"))
            energy = file["energy"][k]
            for b, (end, count) in enumerate(zip(ends, counts, strict=True)):
                if np.isnan(energy[b]):
                    continue
                part = slice(end - count, end)
                info = {
                    "step": int(steps[k]),
                    "time": float(file["time"][k]),
                    "replica": int(file["replica"][b]),
                    "charge": int(file["charge"][b]),
                    "spin": int(file["multiplicity"][b]),
                }
                for name in ("kinetic_energy", "temperature", "conserved_energy"):
                    info[name] = float(file[name][k, b])
                atoms = Atoms(
                    numbers[part], x[part], cell=file["cell"][k, b], pbc=pbc[b],
                    momenta=p[part], masses=masses[part], info=info,
                )  # fmt: skip
                atoms.calc = SinglePointCalculator(atoms, energy=energy[b], forces=f[part])
                yield atoms


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "HDF5 trajectories need h5py: pip install h5py, or write .xyz or .traj"
        ) from error
    return h5py


def _create(path: Path, state: MDState, n_frames: int, attributes: dict[str, Any]) -> None:
    """Lay the file out under another name, and rename it."""
    here = state.cpu()
    sizes = {"N": here.atoms.n_atoms, "B": here.n_systems}
    fixed = {
        "numbers": here.atoms.numbers.numpy(),
        "masses": here.masses.numpy(),
        "counts": here.counts.numpy(),
        "replica": here.replica.numpy(),
        "charge": here.atoms.charge.numpy(),
        "multiplicity": here.atoms.multiplicity.numpy(),
        "pbc": here.atoms.pbc.numpy(),
    }
    units = {
        "positions": "Å", "momenta": "sqrt(amu eV)", "forces": "eV/Å", "cell": "Å", "time": "fs",
        "energy": "eV", "kinetic_energy": "eV", "temperature": "K", "conserved_energy": "eV",
    }  # fmt: skip
    about = {"format": FORMAT, **attributes, "units": units}
    _lay_out(path, n_frames, sizes, fixed, {k: json.dumps(v) for k, v in about.items()})


def _lay_out(
    path: Path,
    n_frames: int,
    sizes: dict[str, int],
    fixed: dict[str, NDArray[Any]],
    attributes: dict[str, str],
    frames_of: Path | None = None,
) -> None:
    """Write a file with room for frames under another name, and rename it.

    Args:
        path: its name in the end.
        n_frames: number of frames.
        sizes: N and B.
        fixed: datasets that do not change.
        attributes: of the file.
        frames_of: a file whose frames are copied.
    """
    h5py = _h5py()
    temporary = path.with_name(f".{path.name}.new")
    shapes = {
        name: (n_frames, *(sizes.get(s, s) for s in shape))
        for name, (shape, _) in _PER_FRAME.items()
    }
    try:
        _try_room(temporary, sum(8 * int(np.prod(shape)) for shape in shapes.values()))
        with h5py.File(temporary, "w") as file:
            for name, array in fixed.items():
                file[name] = array
            for name, text in attributes.items():
                file.attrs[name] = text
            for name, (_, kind) in _PER_FRAME.items():
                _contiguous(h5py, file, name, shapes[name], kind)
        if frames_of is not None:
            _copy_frames(frames_of, temporary)
        with open(temporary, "rb") as raw:
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise named(error, path) from error
    sync_directory(path.parent)


def _try_room(path: Path, size: int) -> None:
    """Fail on a full disk before the HDF5 library does, which then crashes the interpreter."""
    with open(path, "wb") as file:
        file.write(b"\1" * (1 << 18))
        file.flush()
        os.fsync(file.fileno())
        os.truncate(path, max(size, 1 << 18))
    path.unlink()


def _copy_frames(source: Path, target: Path) -> None:
    """Copy all frames into a file that has room for more, without the HDF5 library."""
    frames, old, new = _room(source), _places(source), _places(target)
    with open(source, "rb") as reader, open(target, "r+b") as writer:
        for name, (place, size) in old.items():
            reader.seek(place)
            writer.seek(new[name][0])
            for _ in range(frames):
                writer.write(reader.read(size))


def _contiguous(h5py: Any, file: Any, name: str, shape: tuple[int, ...], kind: str) -> None:
    """A dataset with a fixed place in the file; only "step" is filled, with -1."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    h5py.h5d.create(
        file.id,
        name.encode(),
        h5py.h5t.py_create(np.dtype(kind)),
        h5py.h5s.create_simple(shape),
        layout,
    )
    if name == "step":
        file[name][:] = -1


def _enlarge(path: Path, n_frames: int) -> None:
    """Make room for more frames by writing the file anew."""
    with _h5py().File(path, "r") as file:
        fixed = {k: v[:] for k, v in file.items() if k not in _PER_FRAME}
        sizes = {"N": len(fixed["numbers"]), "B": len(fixed["counts"])}
        attributes = dict(file.attrs)
    _lay_out(path, n_frames, sizes, fixed, attributes, frames_of=path)


def _room(path: Path) -> int:
    with _h5py().File(path, "r") as file:
        return int(file["step"].shape[0])


def _places(path: Path) -> dict[str, tuple[int, int]]:
    """Place of each dataset in the file, and bytes of one frame of it."""
    with _h5py().File(path, "r") as file:
        return {
            name: (
                int(file[name].id.get_offset()),
                int(np.prod(file[name].shape[1:], dtype=np.int64)) * file[name].dtype.itemsize,
            )
            for name in _PER_FRAME
        }
