"""Numba programs for one thread and for several, and the choice between them.

Both give the same bits. Several threads are faster where there is enough to do, and many times
slower where one of them has to wait for a core that another program keeps busy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from numba import njit

# Elements of a loop's largest array below which one thread works alone: some 5,000 pairs.
SMALL = 200_000

# The same for all loops of a step together, by the elements of the atoms' features. Up to LARGE,
# where trying costs little, it is measured whether several threads are faster.
SMALL_STEP, LARGE_STEP = 20_000, 2_000_000


def _start_threads() -> None:
    """Start numba's threads now: doing so sets the OpenMP default, which is torch's setting too."""
    before = torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(before)


_start_threads()


def _follow_torch() -> None:
    """One setting for the number of threads: torch's."""
    wanted = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(wanted)


def _twin(function: Any, suffix: str, **names: Any) -> Any:
    """A copy of a function; numba's cache goes by the name, so every program needs its own."""
    name = f"{function.__name__}_{suffix}"
    twin = FunctionType(function.__code__, {**function.__globals__, **names}, name)
    twin.__qualname__, twin.__module__ = name, function.__module__
    return twin


def compiled(function: Callable[..., None]) -> Any:
    """A function of arrays alone that runs a loop over threads for large ones, plain for small.

    A parallel loop hands its work to other threads even if only one may run; a plain one does not.
    """
    serial = njit(fastmath=True, cache=True)(function)
    parallel = njit(fastmath=True, cache=True, parallel=True)(_twin(function, "parallel"))

    @wraps(function)
    def run(*arrays: np.ndarray) -> None:
        # the threads first: sizes of a dozen arrays take longer than many a loop over small ones
        if torch.get_num_threads() > 1 and max(array.size for array in arrays) > SMALL:
            _follow_torch()
            parallel(*arrays)
        else:
            serial(*arrays)

    return run


class Pace:
    """Whether several threads are worth their while just now, from how long calls have taken.

    The first calls take one thread, to know its pace. When several threads then take a multiple of
    its time, one works alone for a while, and for longer each time that happens again; but once is
    nothing, since another program may just have gone to sleep.
    """

    CALIBRATION, STALLED, FIRST_BREAK, LONGEST_BREAK = 2, 3.0, 2, 4096

    def __init__(self) -> None:
        self._alone = self.CALIBRATION  # calls that one thread shall still take
        self._break = 0
        self._compiled = False
        self._seconds_per_element = math.inf  # with one thread

    @property
    def fast(self) -> bool:
        """Whether several threads have not been found wanting."""
        return self._compiled and self._alone <= 0

    def several(self) -> bool:
        """Whether the next call is for several threads."""
        self._alone -= 1
        return self._alone < 0

    def took(self, several: bool, seconds_per_element: float) -> None:
        """Learn from a call."""
        if not several:
            self._seconds_per_element = min(self._seconds_per_element, seconds_per_element)
        elif not self._compiled:  # the first time says nothing
            self._compiled = True
        elif seconds_per_element > self.STALLED * self._seconds_per_element:
            self._alone = self._break
            self._break = min(max(2 * self._break, self.FIRST_BREAK), self.LONGEST_BREAK)
        else:
            self._break = 0


def _program(function: Any, kind: str, **options: Any) -> Any:
    """A program of which all that it calls by name is of one kind, "serial" or "parallel"."""
    names = {
        name: getattr(value, kind)
        for name, value in function.__globals__.items()
        if hasattr(value, "serial") and hasattr(value, "parallel")
    }
    return njit(fastmath=True, **options)(_twin(function, kind, **names))


@dataclass(frozen=True)
class Programs:
    """Functions of numba that `composed` programs call: the plain ones, and those with threads."""

    serial: Any
    parallel: Any


def divided(function: Callable[..., None]) -> Any:
    """`Programs` of a loop: plain, and over threads.

    What the loop does belongs into a function that it calls: numba's analysis of parallel loops
    takes vectors and tuples for arrays.
    """
    return Programs(
        _program(function, "serial", inline="always"), _program(function, "parallel", parallel=True)
    )


class composed:
    """Two programs from a function that calls `divided` or composed ones by their names.

    One of them calls the plain programs only and the other the parallel ones only, without coming
    back to Python between them.

    Attributes:
        serial, parallel: the programs.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.pace = Pace()
        self.serial, self.parallel = (
            _program(function, kind, cache=True, inline="always")  # compiled once, with its caller
            for kind in ("serial", "parallel")
        )

    def prefers_several(self, size: int) -> bool:
        """Whether several threads are right for what calls this many times, by what is known."""
        if size <= SMALL_STEP or torch.get_num_threads() == 1:
            return False
        _follow_torch()
        return size > LARGE_STEP or self.pace.fast

    def __call__(self, size: int, *arguments: Any) -> Any:
        """Call the program for features of so many elements."""
        if size <= SMALL_STEP or torch.get_num_threads() == 1:
            return self.serial(*arguments)
        _follow_torch()
        if size > LARGE_STEP:
            return self.parallel(*arguments)
        several = self.pace.several()
        start = time.perf_counter()
        result = (self.parallel if several else self.serial)(*arguments)
        self.pace.took(several, (time.perf_counter() - start) / size)
        return result
