"""Number formats of the matrix products in a training step; validation is always in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

PRODUCTS = frozenset({"linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm",
                      "baddbmm", "einsum"})  # fmt: skip


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a device that is not there, and a format that it does not have.

    Raises:
        ValueError: names the format, the device and the remedy.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"this PyTorch finds no NVIDIA GPU for the device {device}: use cpu")
    remedy = "use precision = 'float32'"
    if precision == "tf32":
        if device.type != "cuda":
            raise ValueError(f"precision = 'tf32' is for NVIDIA GPUs, not for {device}: {remedy}")
        if torch.cuda.get_device_capability(device) < (8, 0):
            raise ValueError(f"{torch.cuda.get_device_name(device)} has no TF32: {remedy}")
    if precision == "bfloat16":
        if device.type not in ("cuda", "cpu"):
            raise ValueError(f"precision = 'bfloat16' is not supported on {device}: {remedy}")
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError(f"{torch.cuda.get_device_name(device)} has no bfloat16: {remedy}")


@contextmanager
def matrix_products(precision: str) -> Iterator[None]:
    """A forward pass inside, and its derivatives, multiply matrices in this format.

    "tf32" rounds the factors to 10 bits of mantissa, "bfloat16" factors and products to 7. Sums
    over neighbours, energies, parameters and the optimiser keep their types.
    """
    if precision == "tf32":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
    elif precision == "bfloat16":
        with Bfloat16Products():
            yield
    else:
        yield


class Bfloat16Products(TorchFunctionMode):
    """Matrix products of float32 tensors inside are done in bfloat16 and give float32.

    `torch.autocast` would pass bfloat16 on to whatever comes after a product, and sums such as
    `index_add` refuse to mix it with float32; a network need not know of this mode.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(_rounded, (args, kwargs or {}))
        result = func(*args, **kwargs)
        return result.float() if result.dtype == torch.bfloat16 else result


def _rounded(value: Any) -> Any:
    single = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.to(torch.bfloat16) if single else value
