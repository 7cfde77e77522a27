"""The core networks. Adding an architecture is one file here and one line in ARCHITECTURES."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import nn

from nnpcalc.models.tensornet import TensorNet

ARCHITECTURES: dict[str, Any] = {
    "tensornet": TensorNet,
}

__all__ = ["ARCHITECTURES", "build_core"]


def build_core(architecture: str, config: dict[str, Any]) -> nn.Module:
    """Build a core network with random weights from its name and the fields of its Config.

    Raises:
        ValueError: unknown architecture, or a key its Config does not have.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {architecture!r}; known are {', '.join(sorted(ARCHITECTURES))}"
        )
    core = ARCHITECTURES[architecture]
    known = {field.name for field in fields(core.Config)}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(
            f"{architecture} has no option {', '.join(map(repr, unknown))}; "
            f"its options are {', '.join(sorted(known))}"
        )
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
    return core(core.Config(**values))
