"""A TensorNet with twice the channels that begins as the function it was.

Every channel is there twice, and what reads both halves it. Training on such a network goes on
where that of the narrow one has come to an end, not from the beginning: Net2Net (Chen, Goodfellow
and Shlens, arXiv 1511.05641).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnpcalc.models.tensornet import TensorNet

#: Weights of the two copies of an input differ by this, in standard deviations of the weights, up
#: and down: what they add up to stays the same, but their gradients are no longer equal.
SPREAD = 0.3


def doubled(core: TensorNet, wide: TensorNet, seed: int) -> dict[str, Tensor]:
    """The parameters of a network of twice as many channels, else of the same configuration.

    Args:
        core: the trained network.
        wide: one of the right shapes; not changed.
        seed: of what makes the copies differ.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tuple(value.shape) for name, value in wide.state_dict().items()}
    return {
        name: _doubled(name, value, shapes[name], core.config.channels, generator)
        for name, value in core.state_dict().items()
    }


def _doubled(
    name: str, value: Tensor, shape: tuple[int, ...], channels: int, generator: torch.Generator
) -> Tensor:
    """One parameter; axes of several times the channels are doubled within each of these."""
    matrix = name.endswith(".weight") and value.ndim > 1 and ".element." not in name
    spread = SPREAD * float(value.std()) if matrix else 0.0
    for axis, size in enumerate(shape):
        if size == value.shape[axis]:
            continue
        block = min(channels, value.shape[axis])
        parts = value.unflatten(axis, (-1, 1, block))
        copies = torch.cat([parts, parts], dim=axis + 1)
        if matrix and axis == value.ndim - 1:  # what is read: both copies of it
            noise = torch.randn(parts.shape, generator=generator, dtype=torch.float64) * spread
            apart = torch.cat([noise, -noise], dim=axis + 1).to(value)
            copies = 0.5 * copies + apart
        value = copies.flatten(axis, axis + 2)
    # the product of key and query is now a sum of twice as many terms, over sqrt(2 F)
    return value * 0.5**0.5 if name.endswith(".key") else value
