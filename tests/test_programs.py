"""One thread or several: whichever is faster just now."""

import time
from itertools import pairwise

import pytest
import torch

from nnpcalc.kernels.programs import LARGE_STEP, SMALL_STEP, Pace, composed

SERIAL, STALLED = 1e-8, 1e-6  # seconds per element


def calls(pace: Pace, parallel: float, n: int) -> list[bool]:
    """Which of n calls took several threads, if these need so many seconds per element."""
    taken = []
    for _ in range(n):
        several = pace.several()
        pace.took(several, parallel if several else SERIAL)
        taken.append(several)
    return taken


def test_one_thread_is_measured_first_and_several_kept_if_they_do():
    pace = Pace()
    assert calls(pace, 0.6 * SERIAL, 20) == [False] * Pace.CALIBRATION + [True] * 18


def test_compiling_is_no_stall():
    pace = Pace()
    calls(pace, SERIAL, Pace.CALIBRATION)
    assert calls(pace, 1e9, 1) == [True] and calls(pace, SERIAL, 3) == [True] * 3


def test_a_busy_core_is_noticed_and_tried_again_ever_more_seldom():
    pace = Pace()
    calls(pace, SERIAL, Pace.CALIBRATION + 5)
    taken = calls(pace, STALLED, 20_000)
    attempts = [k for k, several in enumerate(taken) if several]
    pauses = [b - a - 1 for a, b in pairwise(attempts)]
    assert pauses[:5] == [0, 2, 4, 8, 16] and max(pauses) == Pace.LONGEST_BREAK
    calls(pace, SERIAL, Pace.LONGEST_BREAK + 1)  # the core is free again
    assert all(calls(pace, SERIAL, 50))


@pytest.mark.parametrize(
    ("size", "threads", "expected"),
    [(SMALL_STEP, 2, "serial"), (LARGE_STEP + 1, 2, "parallel"), (LARGE_STEP + 1, 1, "serial")],
)
def test_sizes_that_need_no_measurement(size, threads, expected):
    program = composed(lambda: None)
    program.serial, program.parallel = (lambda: "serial"), (lambda: "parallel")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert program(size) == expected
    finally:
        torch.set_num_threads(before)


def test_the_slower_program_is_left_alone():
    program, taken = composed(lambda: None), []
    program.serial = lambda: taken.append(False)

    def parallel() -> None:
        taken.append(True)
        time.sleep(0.02)

    program.parallel = parallel
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for _ in range(20):
            program(SMALL_STEP + 1)
    finally:
        torch.set_num_threads(before)
    # of 18 calls after two that are measured: one may compile, and stalls leave 0, 2, 4, 8 alone
    assert [k for k, several in enumerate(taken) if several] == [2, 3, 4, 7, 12]
