"""Matrix products of TensorNet's inference on a GPU, which are PyTorch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


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


class Perceptron:
    """LayerNorm (if any) and linear layers with SiLU after each, but perhaps the last.

    `__call__` keeps what `reverse` needs.
    """

    def __init__(self, norm: Any, linears: list[Any], last_activated: bool) -> None:
        self.norm, self.linears, self.last_activated = norm, linears, last_activated

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        norm = self.norm
        h, mean, deviation = torch.native_layer_norm(
            x, norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
        kept = [x, mean, deviation]
        for k, linear in enumerate(self.linears):
            h = nn.functional.linear(h, linear.weight, linear.bias)
            if k + 1 < len(self.linears) or self.last_activated:
                kept.append(h)
                h = nn.functional.silu(h)
        return h, kept

    def reverse(self, g: Tensor, kept: list[Tensor]) -> Tensor:
        x, mean, deviation, *before = kept
        if not self.last_activated:
            g = g @ self.linears[-1].weight
        activated = self.linears if self.last_activated else self.linears[:-1]
        for linear, h in zip(reversed(activated), reversed(before), strict=True):
            g = torch.ops.aten.silu_backward(g, h) @ linear.weight
        norm = self.norm
        (g, _, _) = torch.ops.aten.native_layer_norm_backward(
            g, x, norm.normalized_shape, mean, deviation, norm.weight, norm.bias,
            [True, False, False],
        )  # fmt: skip
        return g
