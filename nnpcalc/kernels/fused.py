"""Which architectures have a fast path, for training and for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nnpcalc.kernels.inference import TensorNetInference
from nnpcalc.kernels.painn import FusedPaiNN
from nnpcalc.kernels.schnet import FusedSchNet
from nnpcalc.kernels.tensornet import FusedTensorNet
from nnpcalc.models.painn import PaiNN
from nnpcalc.models.schnet import SchNet
from nnpcalc.models.tensornet import TensorNet

#: Differentiable to any order, by positions and parameters: built from a core and `n_knots`.
FUSED: dict[type, Any] = {TensorNet: FusedTensorNet, SchNet: FusedSchNet, PaiNN: FusedPaiNN}

#: Those of them that have kernels for inference on a CUDA device as well, which need triton.
ON_CUDA: tuple[type, ...] = (TensorNet,)


#: Knots where the architecture does not choose them itself.
KNOTS = {torch.float32: 512, torch.float64: 4096}


def fused_for_inference(core: nn.Module, n_knots: int | None = None) -> nn.Module:
    """The fastest program for a core of `FUSED` whose parameters will not change.

    Without a number of knots TensorNet takes as many as the bound on a table's error needs (see
    `nnpcalc.kernels.table.inference_tables`); the others take `KNOTS`.

    A core of `ON_CUDA` may be on a CUDA device; the others have to be on the CPU.
    """
    if type(core) is TensorNet:
        if core.linear.weight.device.type == "cuda":
            from nnpcalc.kernels.triton_tensornet import TritonTensorNet

            return TritonTensorNet(core, n_knots)
        return TensorNetInference(core, n_knots)
    size = n_knots or KNOTS[next(core.parameters()).dtype]
    fused: nn.Module = FUSED[type(core)](core, size).freeze()
    return fused
