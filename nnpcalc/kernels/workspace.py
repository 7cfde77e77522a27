"""Memory of an evaluation by hand, kept for the next one.

Fresh arrays cost a page fault for every 4 kB, and a small molecule's views of them more time than
its arithmetic.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
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

#: Bytes of a huge page.
HUGE = 1 << 21

#: How much larger than need be memory may be that is used again.
SPARE = 4


def _pages(size: int) -> np.ndarray:
    """Fresh memory, in huge pages where there are any: what was used before keeps small ones."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    try:
        memory = mmap.mmap(-1, size, **private)  # shared memory has small pages
    except OSError as error:
        raise MemoryError(f"{size} bytes for the features of the atoms: {error}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def in_one_piece(
    arrange: Callable[[Callable[..., np.ndarray]], M], dtype: Any, pages: np.ndarray | None
) -> tuple[M, np.ndarray]:
    """Arrays one after the other in huge pages: small pages take a small molecule's arrays longer
    to find than to read.

    Args:
        arrange: makes a tuple of arrays, each by calling what it is given with a shape.
        dtype: of all of them.
        pages: of an earlier call, which are used again if they are of about the right size.

    Returns:
        The tuple, uninitialised, and the pages that it lies in.
    """
    itemsize, sizes = np.dtype(dtype).itemsize, []

    def count(*shape: int) -> np.ndarray:
        sizes.append(-(-math.prod(shape) * itemsize // ALIGNMENT) * ALIGNMENT)
        return np.empty(0, dtype)

    arrange(count)
    size = -(-sum(sizes) // HUGE) * HUGE + HUGE
    if pages is None or not size <= pages.size <= SPARE * size:
        pages = _pages(size)
    raw, used = pages, -pages.ctypes.data % HUGE

    def take(*shape: int) -> np.ndarray:
        nonlocal used
        start = used
        used += -(-math.prod(shape) * itemsize // ALIGNMENT) * ALIGNMENT
        return raw[start : start + math.prod(shape) * itemsize].view(dtype).reshape(shape)

    return arrange(take), pages


class Lent(Generic[M]):
    """Arrays of a pool.

    Attributes:
        size: what they are for: atoms and threads, say.
        arrays, pages: the tuple, and where it lies.
    """

    def __init__(self, size: tuple[int, ...], arrays: M, pages: np.ndarray) -> None:
        self.size, self.arrays, self.pages = size, arrays, pages


class Pool(Generic[M]):
    """Lends tuples of arrays and keeps the last one that came back, unless it is large."""

    def __init__(self) -> None:
        self._kept: list[Lent[M]] = []

    def lend(
        self, size: tuple[int, ...], room: Callable[[np.ndarray | None], tuple[M, np.ndarray]]
    ) -> Lent[M]:
        """Arrays of this size that nobody else has; room makes them if need be, of pages or new."""
        pages = None
        try:
            last = self._kept.pop()
        except IndexError:
            pass
        else:
            if last.size == size:
                return last
            pages = last.pages
        return Lent(size, *room(pages))

    def take_back(self, lent: Lent[M]) -> None:
        """Nobody needs these any more."""
        if lent.pages.size <= KEPT:
            self._kept[:] = [lent]

    def __deepcopy__(self, memo: object) -> Pool[M]:
        return Pool()

    def __reduce__(self) -> tuple[type[Pool[M]], tuple[()]]:
        return Pool, ()
