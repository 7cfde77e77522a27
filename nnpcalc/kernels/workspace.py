"""Memory of an evaluation by hand, shared by torch and numba and kept for the next one.

Fresh arrays cost a page fault for every 4 kB, and a small molecule's views of them more time than
its arithmetic.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnpcalc.kernels.simd import blocks


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


def mixed(x: Tensor, weights: Tensor) -> Tensor:
    """Channel mixing of [9, N, F] by one matrix [F, F] for each of I, A and S, from the right."""
    out = torch.empty_like(x)
    for part, weight, target in zip(_parts(x), weights.unbind(), _parts(out), strict=True):
        torch.mm(part, weight, out=target)
    return out


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """The rows of channels of I, A and S: [N, F], [3 N, F] and [5 N, F]."""
    _, n, channels = x.shape
    return x.view(-1, channels).split((n, 3 * n, 5 * n))


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Uninitialised memory from numpy, which asks for huge pages where torch does not."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes].view(dtype).reshape(shape)


class Block:
    """An array [9, N, F] with the views of it that an evaluation needs.

    Attributes:
        tensor, array: for torch and for numba, on the same memory.
        parts: see `_parts`.
    """

    __slots__ = ("array", "parts", "tensor")

    def __init__(self, n_atoms: int, channels: int, dtype: np.dtype) -> None:
        self.array = aligned((9, n_atoms, channels), dtype)
        self.tensor = torch.from_numpy(self.array)
        self.parts = _parts(self.tensor)

    def mix(self, weights: tuple[Tensor, ...], out: Block) -> None:
        """As `mixed`."""
        for part, weight, target in zip(self.parts, weights, out.parts, strict=True):
            torch.mm(part, weight, out=target)


def gathered(n_atoms: int, channels: int, dtype: np.dtype) -> np.ndarray:
    """An array of features as `nnpcalc.kernels.inference_pairs` gathers them: [B, N, 9, L]."""
    n_blocks, lanes = blocks(channels, dtype)
    return aligned((n_blocks, n_atoms, 9, lanes), dtype)


class LayerMemory:
    """What an interaction layer keeps for its reverse, and its output."""

    def __init__(self, n_atoms: int, channels: int, dtype: np.dtype) -> None:
        size = (n_atoms, channels, dtype)
        self.normal, self.y, self.message, self.reacted, self.change, self.out = (
            Block(*size) for _ in range(6)
        )
        self.gathered_y = gathered(*size)
        self.inverse, self.inverse_product = np.empty((2, n_atoms, channels), dtype)


class Workspace:
    """All arrays of the size of the atoms' features of one evaluation and its reverse.

    Args:
        n_atoms, channels, layers: sizes N, F and number of interaction layers.
        dtype: of the arrays.
    """

    def __init__(self, n_atoms: int, channels: int, layers: int, dtype: np.dtype) -> None:
        self.size = (n_atoms, channels, layers, dtype)
        size = (n_atoms, channels, dtype)
        self.summed, self.mixed, self.start = (Block(*size) for _ in range(3))
        self.layers = [LayerMemory(*size) for _ in range(layers)]
        # of the reverse: derivatives by what the names say, and by a layer's output and input
        self.by_change, self.by_reacted, self.by_y, self.by_message = (
            Block(*size) for _ in range(4)
        )
        self.by_out, self.by_in = Block(*size), Block(*size)
        self.gathered = gathered(*size)
        self.norms_array = np.empty((n_atoms, 3, channels), dtype)
        self.norms = torch.from_numpy(self.norms_array)

    @property
    def n_bytes(self) -> int:
        """Memory of it all, but for the norms."""
        return int(self.summed.array.nbytes) * (10 + 7 * len(self.layers))


class Pool:
    """Lends workspaces and keeps the last one that came back."""

    def __init__(self) -> None:
        self._kept: list[Workspace] = []

    def lend(self, n_atoms: int, channels: int, layers: int, dtype: np.dtype) -> Workspace:
        """One of this size that nobody else has."""
        size = (n_atoms, channels, layers, dtype)
        try:
            workspace = self._kept.pop()
        except IndexError:
            pass
        else:
            if workspace.size == size:
                return workspace
        with torch.inference_mode(False):  # it will be written into outside of that mode
            return Workspace(*size)

    def take_back(self, workspace: Workspace) -> None:
        """Keep it, in the place of another, unless it is large."""
        if workspace.n_bytes <= KEPT:
            self._kept[:] = [workspace]

    def __deepcopy__(self, memo: object) -> Pool:
        return Pool()

    def __reduce__(self) -> tuple[type[Pool], tuple[()]]:
        return Pool, ()
