"""How to get the same bits for a system alone and in any batch.

The rows of torch's matrix products on the CPU are rounded differently for different numbers of
rows: the library takes other loops for the rows that do not fill a block. Everything else that the
fused kernels do with atoms, they do atom by atom. So the number of atoms is brought to a multiple
of the block by atoms that stand alone; how large a block is, is found by trying.

TensorNet's inference needs this once for a batch, for what does not depend on positions
(`TensorNetInference.of_atoms`); its own products (`nnpcalc.kernels.rows`) do not have the problem.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BLOCKS = (4, 8, 16, 32)
WIDTHS = (64, 128)
MOST_ROWS = 48


def row_block() -> int | None:
    """The smallest block for the present number of threads; None if none of `BLOCKS` does it."""
    return _row_block(torch.get_num_threads())


@cache
def _row_block(_threads: int) -> int | None:
    generator = torch.Generator().manual_seed(1)
    cases = []
    for dtype in (torch.float32, torch.float64):
        for width in WIDTHS:
            rows, weight = (
                torch.rand(shape, generator=generator, dtype=torch.float64).sub(0.5).to(dtype)
                for shape in ((6 * MOST_ROWS, width), (2 * width, width))
            )
            cases.append((rows, weight.t(), rows @ weight.t()))
    for block in BLOCKS:
        if all(_rows_agree(*case, block) for case in cases):
            return block
    return None


def _rows_agree(rows: Tensor, weight: Tensor, expected: Tensor, block: int) -> bool:
    return all(
        torch.equal(rows[first : first + n] @ weight, expected[first : first + n])
        for n in range(block, MOST_ROWS + 1, block)
        for first in (0, 6, 35)
    )
