"""Memory for evaluations: in one piece, used again, and a process's own."""

import os

import numpy as np
import pytest

from nnpcalc.kernels import workspace
from nnpcalc.kernels.workspace import ALIGNMENT, HUGE, Pool, in_one_piece


def room(n: int, pages: np.ndarray | None = None):
    return in_one_piece(lambda new: (new(n, 3), new(5), new(0, 2), new(2, n)), np.float32, pages)


def test_arrays_lie_apart_and_aligned():
    arrays, pages = room(1000)
    assert [array.shape for array in arrays] == [(1000, 3), (5,), (0, 2), (2, 1000)]
    for k, array in enumerate(arrays):
        array[...] = k
        assert array.size == 0 or array.ctypes.data % ALIGNMENT == 0
        assert array.flags.c_contiguous and array.flags.writeable
    assert all((array == k).all() for k, array in enumerate(arrays))
    assert arrays[0].ctypes.data % HUGE == 0 and pages.size >= HUGE


def test_pages_are_used_again_for_what_is_of_about_their_size():
    pool: Pool = Pool()
    first = pool.lend((300_000,), lambda pages: room(300_000, pages))
    pool.take_back(first)
    assert pool.lend((300_000,), lambda pages: room(300_000, pages)) is first
    pool.take_back(first)
    smaller = pool.lend((200_000,), lambda pages: room(200_000, pages))
    assert smaller.pages is first.pages and smaller.arrays[0].shape == (200_000, 3)
    pool.take_back(smaller)
    larger = pool.lend((900_000,), lambda pages: room(900_000, pages))
    assert larger.pages is not first.pages
    pool.take_back(larger)
    assert pool.lend((10,), lambda pages: room(10, pages)).pages is not larger.pages


def test_what_is_lent_is_nobody_elses():
    pool: Pool = Pool()
    lent = [pool.lend((7,), lambda pages: room(7, pages)) for _ in range(2)]
    assert lent[0].pages is not lent[1].pages


def test_no_memory_is_a_memory_error():
    with pytest.raises(MemoryError, match="bytes for the features"):
        workspace._pages(1 << 62)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_process_has_its_own():
    pages = workspace._pages(HUGE)
    pages[:] = 1
    child = os.fork()
    if child == 0:
        pages[:] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert (pages == 1).all()
