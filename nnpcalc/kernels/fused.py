"""Which architectures have a fast path on the CPU, for training and for inference."""

from __future__ import annotations

from typing import Any

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


def fused_for_inference(core: nn.Module, n_knots: int) -> nn.Module:
    """The fastest program for a core of `FUSED` whose parameters will not change."""
    if type(core) is TensorNet:
        return TensorNetInference(core, n_knots)
    fused: nn.Module = FUSED[type(core)](core, n_knots).freeze()
    return fused
