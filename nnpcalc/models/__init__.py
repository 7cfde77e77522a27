"""The core networks. Adding an architecture is one file here and one line in ARCHITECTURES."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import nn

from nnpcalc.models.aimnet2 import AIMNet2
from nnpcalc.models.ani2x import ANI2x
from nnpcalc.models.dimenetpp import DimeNetPP
from nnpcalc.models.painn import PaiNN
from nnpcalc.models.physnet import PhysNet
from nnpcalc.models.sake import SAKE
from nnpcalc.models.schnet import SchNet
from nnpcalc.models.tensornet import TensorNet

ARCHITECTURES: dict[str, Any] = {
    "aimnet2": AIMNet2,
    "ani2x": ANI2x,
    "dimenetpp": DimeNetPP,
    "painn": PaiNN,
    "physnet": PhysNet,
    "sake": SAKE,
    "schnet": SchNet,
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
