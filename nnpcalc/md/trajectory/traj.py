"""ASE's own binary format, .traj.

ASE writes the data of a frame behind the file's end, and then the number of frames at its start; a
frame that was not finished is therefore not counted. What ASE cannot do is go back by some frames,
or read a file whose end is missing; the numbers at the start of the file say how.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io.trajectory import Trajectory

from nnpcalc.md.files import named
from nnpcalc.md.trajectory.frame import Frame

#: Magic text and tag (24 bytes), version, number of frames, place of the table of their places.
_HEADER = struct.Struct("<24sqqq")
_MAGIC = b"- of Ulm"
_GROWTH = 42  # the table has room for 1, 42, 42^2, ... frames


class TrajWriter:
    """Appends the replicas of every frame as images of an ASE trajectory."""

    def __init__(self, path: Path, mark: dict[str, Any] | None = None) -> None:
        self.path = path
        if mark:
            _go_back(path, mark)
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        self._file = Trajectory(str(path), "a")
        self._mark = self._look()

    def append(self, frame: Frame) -> None:
        """Write a frame.

        Raises:
            OSError: it does not fit; names the file, which is left without it.
        """
        try:
            for atoms in frame.structures():
                self._file.write(atoms)
            self._mark = self._look()
        except OSError as error:
            self._abandon()
            raise named(error, self.path) from error

    def _abandon(self) -> None:
        """Give up a frame: what is left in ASE's buffers must not reach the file later."""
        try:
            self._file.backend.fd.close()
        except OSError:  # the buffer does not fit either
            pass
        if self._mark["size"]:
            _go_back(self.path, self._mark)
        else:
            os.truncate(self.path, 0)

    def mark(self) -> dict[str, Any]:
        """Number of images, size in bytes and place of the table."""
        return self._mark

    def _look(self) -> dict[str, Any]:
        size = self.path.stat().st_size
        if not size:
            return {"size": 0}
        _, frames, table = _read_header(self.path)
        return {"size": size, "frames": frames, "table": table}

    def sync(self) -> None:
        """Bring everything so far to the disk."""
        try:
            os.fsync(self._file.backend.fd.fileno())
        except OSError as error:
            raise named(error, self.path) from error

    def close(self) -> None:
        """Close the file."""
        if not self._file.backend.fd.closed:
            self._file.close()


def read_traj(path: Path) -> Iterator[Atoms]:
    """The images of a file."""
    if path.stat().st_size:
        with Trajectory(str(path)) as images:
            yield from images


def repair_traj(path: Path) -> int:
    """Cut off images that are not complete; the number of bytes that went.

    Raises:
        ValueError: the table of images is missing, or the file is no trajectory.
    """
    size = path.stat().st_size
    if not size:
        return 0
    _, frames, table = _read_header(path)
    room = 1
    while room < frames:
        room *= _GROWTH
    end = table + 8 * room if table != 48 else 56
    if end > size:
        raise ValueError(f"{path} lacks the table of its images: it cannot be repaired")
    with open(path, "rb") as file:
        file.seek(table)
        places = struct.unpack(f"<{frames}q", file.read(8 * frames))
        whole = 0
        for place in places:
            file.seek(place)
            length = file.read(8)
            if len(length) < 8:
                break
            image_end = place + 8 + struct.unpack("<q", length)[0]
            if image_end > size:
                break
            whole, end = whole + 1, max(end, image_end)
    _go_back(path, {"size": end, "frames": whole, "table": table})
    return size - end


def _read_header(path: Path) -> tuple[bytes, int, int]:
    with open(path, "rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        raise ValueError(f"{path} is no ASE trajectory, or its beginning is damaged")
    magic, _, frames, table = _HEADER.unpack(head)
    return magic, frames, table


def _go_back(path: Path, mark: dict[str, Any]) -> None:
    """Make a file what it was when the mark was made; tables of then are still in their place."""
    if not mark["size"]:
        os.truncate(path, 0)
        return
    _read_header(path)
    with open(path, "r+b") as file:
        file.seek(32)
        file.write(struct.pack("<qq", mark["frames"], mark["table"]))
        file.truncate(mark["size"])
