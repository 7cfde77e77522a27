"""Several processes that train one model: ``torchrun --nproc-per-node N -m nnpcalc train ...``.

Every process holds the whole data set and the same weights. The conformers of a batch are shared
out, each process takes the gradient of its part of the loss, and one sum over a flat buffer gives
all of them the gradient of the whole batch; then all take the same optimiser step. The losses are
those of one process with the same batches, to rounding.

`torch.nn.parallel.DistributedDataParallel` is not used: it hooks into `Tensor.backward`, while
forces in a loss need `torch.autograd.grad` twice, which calls no such hook.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank: its number; only 0 reports and writes files.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, n_atoms: np.ndarray) -> np.ndarray:
        """Which conformers of a batch with these sizes are this process's, ascending.

        Dealt out from the largest to the smallest, back and forth, so that all have about as many
        atoms to do.
        """
        order = np.argsort(-n_atoms, kind="stable")
        turn = np.arange(order.size) % (2 * self.size)
        return np.sort(order[np.minimum(turn, 2 * self.size - 1 - turn) == self.rank])

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.size > 1:
            distributed.all_reduce(tensor)

    def sum_array(self, array: np.ndarray, device: torch.device) -> np.ndarray:
        """The sum of an array over all processes."""
        if self.size == 1:
            return array
        tensor = torch.from_numpy(array).to(device)
        self.sum(tensor)
        return tensor.cpu().numpy()


def join(device: str) -> tuple[Processes, str]:
    """Join the processes that torchrun started, or be the only one.

    Args:
        device: "cpu" or "cuda"; of several GPUs, process k of a machine takes the k-th.

    Returns:
        This process, and the device it computes on.

    Raises:
        ValueError: no device of torch; or one with a number, which every process would take.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is none that torch knows: cpu or cuda") from error
    if size == 1:
        return Processes(), device
    if kind.index is not None:
        raise ValueError(f"{size} processes cannot share {device}: say --device {kind.type}")
    if kind.type == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    return Processes(distributed.get_rank(), size), device


def leave(together: bool) -> None:
    """Undo `join`; together if no process has failed: then none hangs up on another."""
    if distributed.is_available() and distributed.is_initialized():
        if together:
            distributed.barrier()
        distributed.destroy_process_group()
