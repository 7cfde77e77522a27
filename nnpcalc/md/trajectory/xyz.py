"""Extended XYZ: text that every program reads, one block per replica and frame."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms

from nnpcalc.md.files import named, write_fully
from nnpcalc.md.trajectory.frame import Frame
from nnpcalc.state import element_symbol
from nnpcalc.units import FS

_COLUMNS = "species:S:1:pos:R:3:momenta:R:3:forces:R:3"
_ATOM = "%-2s" + " %17.10f" * 3 + " %17.10f" * 3 + " %15.8f" * 3


class XYZWriter:
    """Appends frames to an extended XYZ file: Å, eV, eV/Å, momenta in ASE's sqrt(amu eV)."""

    def __init__(self, path: Path, mark: dict[str, Any] | None = None) -> None:
        self.path = path
        flags = os.O_RDWR if mark else os.O_RDWR | os.O_CREAT | os.O_EXCL
        self._descriptor = os.open(path, flags, 0o666)
        self._size = int(mark["size"]) if mark else 0
        os.ftruncate(self._descriptor, self._size)

    def append(self, frame: Frame) -> None:
        """Write a frame.

        Raises:
            OSError: it does not fit; names the file, which is left without it.
        """
        text = "".join(_blocks(frame)).encode()
        try:
            write_fully(self._descriptor, text, self.path, self._size)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(text)

    def mark(self) -> dict[str, Any]:
        """The size in bytes."""
        return {"size": self._size}

    def sync(self) -> None:
        """Bring everything so far to the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise named(error, self.path) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _blocks(frame: Frame) -> Iterator[str]:
    state, first = frame.state, 0
    x, f = state.positions.numpy(), state.forces.numpy()
    p = state.momenta.numpy() / FS
    symbols = [element_symbol(z) for z in state.atoms.numbers.tolist()]
    rows = np.concatenate((x, p, f), axis=1).tolist()
    for row, count in enumerate(state.counts.tolist()):
        pbc = " ".join("FT"[int(flag)] for flag in state.atoms.pbc[row])
        cell = state.atoms.cell[row].flatten().tolist()
        lattice = " ".join(f"{value:.10f}" for value in cell)
        head = [f'Lattice="{lattice}"'] if any(cell) else []
        head += [f"Properties={_COLUMNS}", f"energy={float(state.energy[row]):.10f}"]
        for key, value in frame.info(row).items():
            head.append(f"{key}={value:.10g}" if isinstance(value, float) else f"{key}={value}")
        head.append(f'pbc="{pbc}"')
        lines = [str(count), " ".join(head)]
        lines += [_ATOM % (symbols[k], *rows[k]) for k in range(first, first + count)]
        first += count
        yield "\n".join(lines) + "\n"


def whole_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """(end in the file, text) of every block that is complete, in order."""
    with open(path, "rb") as file:
        end = 0
        while head := file.readline():
            try:
                count = int(head)
            except ValueError:
                return
            lines = [head, *(file.readline() for _ in range(count + 1))]
            if not all(line.endswith(b"\n") for line in lines) or b"Properties=" not in lines[1]:
                return
            end += sum(map(len, lines))
            yield end, b"".join(lines)


def read_xyz(path: Path) -> Iterator[Atoms]:
    """The complete blocks of a file as Atoms."""
    for _, block in whole_blocks(path):
        atoms = ase.io.read(io.StringIO(block.decode()), format="extxyz")
        assert isinstance(atoms, Atoms)
        yield atoms


def repair_xyz(path: Path) -> int:
    """Cut off what follows the last complete block; the number of bytes that went."""
    end, size = 0, path.stat().st_size
    for end, _ in whole_blocks(path):  # noqa: B007 (the last one counts)
        pass
    os.truncate(path, end)
    return size - end
