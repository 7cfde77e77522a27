"""Dense layers and their activation functions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def shifted_softplus(x: Tensor) -> Tensor:
    """``ln(e^x / 2 + 1 / 2)``, which is 0 at 0 (Schütt et al., arXiv 1706.08566)."""
    # Beyond its threshold torch takes softplus(x) = x; the default of 20 would show in float64.
    return nn.functional.softplus(x, threshold=40.0) - math.log(2.0)


class ShiftedSoftplus(nn.Module):
    """`shifted_softplus` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return shifted_softplus(x)


#: Activation functions by name.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "shifted_softplus": ShiftedSoftplus,
}


def dense(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer that starts with Glorot's uniform weights and no bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(
    sizes: Sequence[int], activation: str = "silu", activate_last: bool = False
) -> nn.Sequential:
    """`dense` layers with an activation function between them: [..., sizes[0]] -> [..., sizes[-1]].

    Args:
        sizes: number of features before the first layer and after each.
        activation: a name in `ACTIVATIONS`.
        activate_last: activate the last layer too.

    Raises:
        ValueError: an unknown activation.
    """
    check_activation(activation)
    layers: list[nn.Module] = []
    for k in range(len(sizes) - 1):
        layers.append(dense(sizes[k], sizes[k + 1]))
        if activate_last or k < len(sizes) - 2:
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


def check_activation(name: str) -> None:
    """Refuse a name that is not in `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        known = ", ".join(map(repr, sorted(ACTIVATIONS)))
        raise ValueError(f"unknown activation {name!r}; known are {known}")


def pair_sum(values: Tensor, receiver: Tensor, n_atoms: int) -> Tensor:
    """Sum of what the pairs [P, ...] bring to their receivers [P]: [N, ...]."""
    shape = list(values.shape)
    shape[0] = n_atoms
    zeros = torch.zeros(shape, dtype=values.dtype, device=values.device)
    return zeros.index_add(0, receiver, values)
