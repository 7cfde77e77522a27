"""Multilinear forms as differentiable torch functions, to any order.

A form Phi(t_1, ..., t_n) is linear in each of its tensors, so its derivative by one of them is a
function of all the others, and the derivatives of that are derivatives of Phi again with one
tensor exchanged. `partial` is therefore all the calculus a layer needs: forces, training on
forces and Hessians use the same few loops of `nnpcalc.kernels.cpu`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnpcalc.kernels import cpu

Kernel = Callable[[Any, list[Tensor]], Tensor]


@dataclass(frozen=True)
class Topology:
    """Which atoms and which table interval each pair belongs to.

    Attributes:
        i, j: receiver and sender of each pair [P], int64, sorted by receiver.
        knot: table interval of each pair [P], int64.
        n_atoms: N.
        n_knots: number of knots K (K - 1 intervals).
    """

    i: np.ndarray
    j: np.ndarray
    knot: np.ndarray
    n_atoms: int
    n_knots: int

    @cached_property
    def by_receiver(self) -> tuple[np.ndarray, np.ndarray]:
        return cpu.group(self.i, self.n_atoms)

    @cached_property
    def by_sender(self) -> tuple[np.ndarray, np.ndarray]:
        return cpu.group(self.j, self.n_atoms)

    @cached_property
    def by_knot(self) -> tuple[np.ndarray, np.ndarray]:
        return cpu.group(self.knot, self.n_knots)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _fold(intervals: np.ndarray) -> Tensor:
    """Gradients per interval [K, 4, 3F] -> gradient of the table [2 K, 3F]."""
    n_knots, _, width = intervals.shape
    table = intervals[:, :2].copy()
    table[1:] += intervals[:-1, 2:]
    return torch.from_numpy(table.reshape(2 * n_knots, width))


def _message_by_w(t: Topology, a: list[Tensor]) -> Tensor:
    _, table, x, g = map(_optional, a)
    out = np.empty((t.knot.size, 4), x.dtype)
    cpu.message_weights(t.i, t.j, t.knot, table, x, g, out)
    return torch.from_numpy(out)


def _message_by_table(t: Topology, a: list[Tensor]) -> Tensor:
    w, _, x, g = map(_optional, a)
    out = np.empty((t.n_knots, 4, 3 * x.shape[2]), x.dtype)
    cpu.message_table(*t.by_knot, t.i, t.j, w, x, g, out)
    return _fold(out)


def _message_by_x(t: Topology, a: list[Tensor]) -> Tensor:
    w, table, _, g = map(_optional, a)
    out = np.empty_like(g)
    cpu.message_sum(*t.by_sender, t.i, t.knot, w, table, g, out)
    return torch.from_numpy(out)


def _message_by_g(t: Topology, a: list[Tensor]) -> Tensor:
    w, table, x, _ = map(_optional, a)
    out = np.empty_like(x)
    cpu.message_sum(*t.by_receiver, t.j, t.knot, w, table, x, out)
    return torch.from_numpy(out)


def _embedding_by_w(t: Topology, a: list[Tensor]) -> Tensor:
    _, table, s, y, g = map(_optional, a)
    out = np.empty((t.knot.size, 4), g.dtype)
    cpu.embedding_weights(t.i, t.j, t.knot, table, s, y, g, out)
    return torch.from_numpy(out)


def _embedding_by_table(t: Topology, a: list[Tensor]) -> Tensor:
    w, _, s, y, g = map(_optional, a)
    out = np.empty((t.n_knots, 4, 3 * g.shape[2]), g.dtype)
    cpu.embedding_table(*t.by_knot, t.i, t.j, w, s, y, g, out)
    return _fold(out)


def _embedding_by_s(t: Topology, a: list[Tensor]) -> Tensor:
    w, table, _, y, g = map(_optional, a)
    out = np.empty((2, g.shape[0], g.shape[2]), g.dtype)
    cpu.embedding_features(*t.by_receiver, t.i, t.knot, w, table, y, g, out[0])
    cpu.embedding_features(*t.by_sender, t.i, t.knot, w, table, y, g, out[1])
    return torch.from_numpy(out)


def _embedding_by_y(t: Topology, a: list[Tensor]) -> Tensor:
    w, table, s, _, g = map(_optional, a)
    out = np.empty((t.knot.size, 9), g.dtype)
    cpu.embedding_geometry(t.i, t.j, t.knot, w, table, s, g, out)
    return torch.from_numpy(out)


def _embedding_by_g(t: Topology, a: list[Tensor]) -> Tensor:
    w, table, s, y, _ = map(_optional, a)
    out = np.empty((t.n_atoms, 9, s.shape[2]), s.dtype)
    cpu.embedding_sum(t.by_receiver[0], t.j, t.knot, w, table, s, y, out)
    return torch.from_numpy(out)


def _optional(tensor: Tensor | None) -> np.ndarray:
    return np.empty(0) if tensor is None else _array(tensor)


@dataclass(frozen=True)
class Form:
    """A multilinear form: the names of its tensors and the derivative by each."""

    names: tuple[str, ...]
    kernels: tuple[Kernel, ...]


MESSAGE = Form(
    ("w", "table", "x", "g"),
    (_message_by_w, _message_by_table, _message_by_x, _message_by_g),
)
EMBEDDING = Form(
    ("w", "table", "s", "angular", "g"),
    (_embedding_by_w, _embedding_by_table, _embedding_by_s, _embedding_by_y, _embedding_by_g),
)

GEOMETRY = frozenset({"w", "angular"})  # tensors that depend on positions alone
PARAMETERS = frozenset({"table", "s", "weight"})  # tensors that depend on parameters alone
_unwanted: frozenset[str] = frozenset()


@contextmanager
def without(names: frozenset[str]) -> Iterator[None]:
    """Backward passes inside leave out the derivatives by the tensors of these names.

    autograd prunes whole branches of a graph by itself, but asks a custom function for the
    derivatives by all its inputs; forces need none by `PARAMETERS`, a training step on top of
    them none by `GEOMETRY`.
    """
    global _unwanted
    before, _unwanted = _unwanted, names
    try:
        yield
    finally:
        _unwanted = before


class _Partial(torch.autograd.Function):
    @staticmethod
    def forward(ctx, form, slot, topology, *tensors):
        ctx.form, ctx.slot, ctx.topology = form, slot, topology
        ctx.save_for_backward(*tensors)
        return form.kernels[slot](topology, list(tensors))

    @staticmethod
    def backward(ctx, upstream):
        tensors = list(ctx.saved_tensors)
        tensors[ctx.slot] = upstream
        gradients: list[Tensor | None] = []
        for k, name in enumerate(ctx.form.names):
            if k == ctx.slot or not ctx.needs_input_grad[3 + k] or name in _unwanted:
                gradients.append(None)
                continue
            others = [None if n == k else tensor for n, tensor in enumerate(tensors)]
            gradients.append(_Partial.apply(ctx.form, k, ctx.topology, *others))
        return (None, None, None, *gradients)


def partial(form: Form, name: str, topology: Topology | None, *tensors: Tensor | None) -> Tensor:
    """Derivative of a form by its tensor ``name`` (given as None), differentiable again."""
    return _Partial.apply(form, form.names.index(name), topology, *tensors)
