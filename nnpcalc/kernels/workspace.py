"""Memory of an evaluation by hand, kept for the next one.

Fresh arrays cost a page fault for every 4 kB, and a small molecule's views of them more time than
its arithmetic.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np


def _memory() -> int:
    """Bytes of this machine, where it says."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on every system
        return 2**33


#: Bytes up to which memory is kept between evaluations: fresh memory costs a step of thousands of
#: atoms a fifth of its time.
KEPT = _memory() // 8

#: Bytes of a cache line.
ALIGNMENT = 64


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Uninitialised memory from numpy, which asks for huge pages where torch does not."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes].view(dtype).reshape(shape)


M = TypeVar("M", bound=tuple[Any, ...])


def n_bytes(memory: Any) -> int:
    """Of the arrays of a tuple, also those within tuples in it."""
    if isinstance(memory, tuple):
        return sum(map(n_bytes, memory))
    return int(memory.nbytes)


class Lent(Generic[M]):
    """Arrays of a pool.

    Attributes:
        n_atoms: what they are for.
        arrays, n_bytes: the tuple and its size.
    """

    def __init__(self, n_atoms: int, arrays: M) -> None:
        self.n_atoms, self.arrays, self.n_bytes = n_atoms, arrays, n_bytes(arrays)


class Pool(Generic[M]):
    """Lends tuples of arrays and keeps the last one that came back, unless it is large."""

    def __init__(self) -> None:
        self._kept: list[Lent[M]] = []

    def lend(self, n_atoms: int, room: Callable[[int], M]) -> Lent[M]:
        """Arrays for so many atoms that nobody else has; room makes them if need be."""
        try:
            last = self._kept.pop()
        except IndexError:
            pass
        else:
            if last.n_atoms == n_atoms:
                return last
        return Lent(n_atoms, room(n_atoms))

    def take_back(self, lent: Lent[M]) -> None:
        """Nobody needs these any more."""
        if lent.n_bytes <= KEPT:
            self._kept[:] = [lent]

    def __deepcopy__(self, memo: object) -> Pool[M]:
        return Pool()

    def __reduce__(self) -> tuple[type[Pool[M]], tuple[()]]:
        return Pool, ()
