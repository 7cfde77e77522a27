"""Per-atom operations of TensorNet as multilinear forms: few passes over memory, any derivative."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nnpcalc.kernels import cpu
from nnpcalc.kernels.forms import Form, Kernel, partial
from nnpcalc.models.tensornet import ORDER, from_matrix, multiply, part_norms, to_matrix

#: Order of the axes of K[c, a, b] for the map itself and for its derivative by either factor.
FORWARD, BY_LEFT, BY_RIGHT = (0, 1, 2), (1, 2, 0), (2, 0, 1)


def sparse(coefficients: Tensor, axes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where K, with its axes in that order, is not zero [E, 3], and what it is there [E]."""
    table = coefficients.numpy().transpose(axes)
    entries = np.argwhere(np.abs(table) > 1e-12)
    return entries, table[tuple(entries.T)]


def bilinear_form(coefficients: Tensor) -> Form:
    """``sum_cab K[c, a, b] x[n, a] y[n, b] g[n, c]`` per channel, from its coefficients K."""

    def kernel(axes: tuple[int, int, int], left: int, right: int) -> Kernel:
        entries, values = sparse(coefficients, axes)
        size = coefficients.shape[axes[0]]

        def evaluate(_: object, tensors: list[Tensor]) -> Tensor:
            a, b = tensors[left], tensors[right]
            x, y = a.detach().contiguous().numpy(), b.detach().contiguous().numpy()
            out = np.empty((x.shape[0], size, x.shape[2]), x.dtype)
            cpu.contract(entries, values.astype(x.dtype), x, y, out)
            return torch.from_numpy(out)

        return evaluate

    kernels = (kernel(BY_LEFT, 1, 2), kernel(BY_RIGHT, 2, 0), kernel(FORWARD, 0, 1))
    return Form(("left", "right", "g"), kernels)


def product_coefficients(symmetric: bool) -> Tensor:
    """K of the components of X Y + Y X (or 2 X Y) in those of X and Y."""
    basis = to_matrix(torch.eye(9, dtype=torch.float64).unsqueeze(-1))
    left = basis.repeat_interleave(9, 0)
    right = basis.repeat(9, 1, 1, 1)
    product = multiply(left, right)
    product = product + multiply(right, left) if symmetric else 2.0 * product
    return from_matrix(product).squeeze(-1).reshape(9, 9, 9).permute(2, 0, 1)


def _norm_coefficients() -> Tensor:
    """K of the squared norms of the three parts: [3, 9, 9]."""
    unit = torch.eye(9, dtype=torch.float64)
    both = part_norms((unit[:, None] + unit[None]).reshape(81, 9, 1)).reshape(9, 9, 3)
    alone = part_norms(unit.unsqueeze(-1)).squeeze(-1)
    return (0.5 * (both - alone[:, None] - alone[None])).permute(2, 0, 1)


def _scale_coefficients(order: tuple[int, ...]) -> Tensor:
    """K of the components x_c s_order(c)."""
    table = torch.zeros(9, 9, max(order) + 1, dtype=torch.float64)
    for c, part in enumerate(order):
        table[c, c, part] = 1.0
    return table


ANTICOMMUTATOR = bilinear_form(product_coefficients(symmetric=True))
DOUBLE_PRODUCT = bilinear_form(product_coefficients(symmetric=False))
PART_NORMS = bilinear_form(_norm_coefficients())
NORM = bilinear_form(_norm_coefficients().sum(0, keepdim=True))
SCALE = bilinear_form(_scale_coefficients((0,) * 9))
SCALE_PARTS = bilinear_form(_scale_coefficients(ORDER))


def apply(form: Form, x: Tensor, y: Tensor) -> Tensor:
    """The bilinear map of a form: x [N, A, F], y [N, B, F] -> [N, C, F]."""
    return partial(form, "g", None, x, y, None)


_SLICES = (slice(0, 1), slice(1, 4), slice(4, 9))


def _mix_by_x(_: object, tensors: list[Tensor]) -> Tensor:
    weight, g = tensors[1], tensors[2]
    return torch.cat([g[:, s] @ weight[k] for k, s in enumerate(_SLICES)], dim=1)


def _mix_by_weight(_: object, tensors: list[Tensor]) -> Tensor:
    x, g = tensors[0], tensors[2]
    f = x.shape[2]
    return torch.stack([
        g[:, s].reshape(-1, f).t() @ x[:, s].reshape(-1, f) for s in _SLICES
    ])  # fmt: skip


def _mix_by_g(_: object, tensors: list[Tensor]) -> Tensor:
    x, weight = tensors[0], tensors[1]
    return torch.cat([x[:, s] @ weight[k].t() for k, s in enumerate(_SLICES)], dim=1)


MIX = Form(("x", "weight", "g"), (_mix_by_x, _mix_by_weight, _mix_by_g))
