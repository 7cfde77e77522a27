"""Angles from a pair list: triplets k -> j -> i, and pairs of neighbors of one atom.

This file is compiled by TorchScript: no `from __future__ import annotations` here.
"""

from typing import Tuple

import torch
from torch import Tensor


def _row_starts(receiver: Tensor, n_atoms: int) -> Tuple[Tensor, Tensor]:
    """First pair and number of pairs of each atom, of a list sorted by receiver."""
    atoms = torch.arange(n_atoms, device=receiver.device)
    begin = torch.searchsorted(receiver.contiguous(), atoms)
    end = torch.searchsorted(receiver.contiguous(), atoms, right=True)
    return begin, end - begin


def triplets(pairs: Tensor, vectors: Tensor, n_atoms: int) -> Tuple[Tensor, Tensor]:
    """All paths k -> j -> i of two pairs, k not being the same image of i.

    The angle at j lies between -vectors[ji] (to i) and vectors[kj] (to k). An atom k that is
    another periodic image of i counts; going back to i itself does not.

    Args:
        pairs: [2, P] int64, a full list sorted by receiver.
        vectors: [P, 3] in Å, r_ij = r_j - r_i of each pair.
        n_atoms: N.

    Returns:
        ji [T] and kj [T] int64: numbers of the pairs with receiver i and sender j, and with
        receiver j and sender k. Sorted by (ji, kj).
    """
    begin, count = _row_starts(pairs[0], n_atoms)
    number = count.index_select(0, pairs[1])
    ji = torch.repeat_interleave(number)
    first = begin.index_select(0, pairs[1]) - (number.cumsum(0) - number)
    kj = torch.arange(ji.shape[0], device=ji.device) + first.index_select(0, ji)
    same = pairs[0].index_select(0, ji) == pairs[1].index_select(0, kj)
    path = vectors.detach().index_select(0, ji) + vectors.detach().index_select(0, kj)
    # a path that ends within 0.001 Å of where it began has gone back
    forward = torch.nonzero(~(same & ((path * path).sum(1) < 1e-6)))[:, 0]
    return ji.index_select(0, forward), kj.index_select(0, forward)


def neighbor_pairs(pairs: Tensor, n_atoms: int) -> Tuple[Tensor, Tensor]:
    """Every two neighbors of an atom, once: the triplets of angular symmetry functions.

    Args:
        pairs: [2, P] int64, a full list sorted by receiver.
        n_atoms: N.

    Returns:
        a [T] and b [T] int64: numbers of pairs with the same receiver, a < b. Sorted by (a, b).
    """
    begin, count = _row_starts(pairs[0], n_atoms)
    index = torch.arange(pairs.shape[1], device=pairs.device)
    number = (begin + count).index_select(0, pairs[0]) - index - 1
    a = torch.repeat_interleave(number)
    start = number.cumsum(0) - number
    b = torch.arange(a.shape[0], device=a.device) - start.index_select(0, a) + a + 1
    return a, b
