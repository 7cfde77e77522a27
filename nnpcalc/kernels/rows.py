"""Rows times a fixed matrix, in numba: channel mixing and linear layers.

A library's matrix product starts anew at every call and rounds a row differently with the number of
rows. Here weights are laid out once, loops around the products are compiled with them, and a row
gets the same bits wherever it stands.

Packed weights [Q, K, W] hold a matrix [K, F] in panels of W columns, a few registers wide, the last
filled up with zeros. Six rows times one panel are summed in registers at a time.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import njit, prange, types
from numba.core import cgutils

from nnpcalc.kernels.programs import compiled
from nnpcalc.kernels.simd import (
    EXACT,
    LANES,
    VectorType,
    intrinsic,
    multiply_add,
    spread,
    vectors_at,
)
from nnpcalc.kernels.workspace import aligned

#: Rows at a time and registers of a panel: 24 sums for the 32 registers of AVX-512, else 12 of 16.
ROWS, REGISTERS = 6, 4 if LANES[4] == 16 else 2

#: Rows that one thread takes on.
CHUNK = 16 * ROWS


def packed(weight: np.ndarray) -> np.ndarray:
    """A matrix [K, F], or several [..., K, F], as panels [..., Q, K, W]."""
    *several, depth, columns = weight.shape
    width = REGISTERS * LANES[weight.dtype.itemsize]
    panels = -(-columns // width)
    filled = np.zeros((*several, depth, panels * width), weight.dtype)
    filled[..., :columns] = weight
    out = aligned((*several, panels, depth, width), weight.dtype)
    out[...] = np.moveaxis(filled.reshape(*several, depth, panels, width), -2, -3)
    return out


def padded(bias: np.ndarray) -> np.ndarray:
    """A bias [F] with zeros for the columns that `packed` adds: [Q W]."""
    width = REGISTERS * LANES[bias.dtype.itemsize]
    out = aligned((-(-bias.size // width) * width,), bias.dtype)
    out[: bias.size], out[bias.size :] = bias, 0.0
    return out


def _tile(n_rows: int) -> Any:
    """A function for numba that multiplies n_rows rows of x by one panel."""

    @intrinsic
    def tile(typing, x, row, weights, panel, bias, out):
        if any(array.layout != "C" for array in (x, weights, bias, out)):
            return None  # what is computed below are their addresses
        vector, index = VectorType(x.dtype), ir.IntType(64)

        def number(k):
            return ir.Constant(index, k)

        def generate(context, builder, signature, values):
            x_, w_, b_, o_ = (
                context.make_array(signature.args[k])(context, builder, values[k])
                for k in (0, 2, 4, 5)
            )
            depth, columns = (cgutils.unpack_tuple(builder, a.shape, 2)[1] for a in (x_, o_))
            width = REGISTERS * vector.lanes
            first_row, first_panel = values[1], values[3]
            rows = [
                builder.gep(x_.data, [builder.mul(builder.add(first_row, number(r)), depth)])
                for r in range(n_rows)
            ]
            start = builder.mul(first_panel, number(width))
            weights_at = builder.gep(w_.data, [builder.mul(start, depth)])

            def loaded(pointer, offset):
                pointer = builder.gep(pointer, [offset])
                return [
                    builder.load(p, align=vector.dtype.bitwidth // 8)
                    for p in vectors_at(builder, pointer, vector, REGISTERS)
                ]

            # for k in range(depth): sums[r][v] += x[row + r, k] * weights[panel, k, v]
            initial, before = loaded(b_.data, start), builder.block
            head, body, after = (builder.append_basic_block() for _ in range(3))
            builder.branch(head)
            builder.position_at_end(head)
            k = builder.phi(index)
            k.add_incoming(number(0), before)
            sums = [[builder.phi(vector.llvm) for _ in initial] for _ in rows]
            for of_row in sums:
                for one, value in zip(of_row, initial, strict=True):
                    one.add_incoming(value, before)
            builder.cbranch(builder.icmp_signed("<", k, depth), body, after)
            builder.position_at_end(body)
            w = loaded(weights_at, builder.mul(k, number(width)))
            for r, of_row in enumerate(sums):
                factor = builder.load(builder.gep(rows[r], [k]))
                factor = spread(context, builder, factor, x.dtype, vector)
                for one, weight in zip(of_row, w, strict=True):
                    one.add_incoming(multiply_add(builder, vector, factor, weight, one), body)
            k.add_incoming(builder.add(k, number(1)), body)
            builder.branch(head)
            builder.position_at_end(after)

            left = builder.sub(columns, start)
            whole = builder.icmp_signed(">=", left, number(width))
            targets = [
                builder.add(builder.mul(builder.add(first_row, number(r)), columns), start)
                for r in range(n_rows)
            ]
            with builder.if_else(whole) as (then, otherwise):
                with then:
                    for target, of_row in zip(targets, sums, strict=True):
                        _store(builder, builder.gep(o_.data, [target]), vector, of_row)
                with otherwise:
                    room = cgutils.alloca_once(builder, vector.llvm, REGISTERS)
                    numbers = builder.bitcast(room, o_.data.type)
                    for target, of_row in zip(targets, sums, strict=True):
                        _store(builder, numbers, vector, of_row)
                        cgutils.raw_memcpy(
                            builder, builder.gep(o_.data, [target]), numbers, left,
                            vector.dtype.bitwidth // 8,
                        )  # fmt: skip
            return context.get_dummy_value()

        return types.void(x, types.int64, weights, types.int64, bias, out), generate

    return tile


def _store(builder: Any, pointer: Any, vector: VectorType, values: list[Any]) -> None:
    size = vector.dtype.bitwidth // 8
    for value, place in zip(values, vectors_at(builder, pointer, vector, len(values)), strict=True):
        builder.store(value, place, align=size)


_several, _one = _tile(ROWS), _tile(1)


@njit(fastmath=EXACT)
def _multiply(x, first, last, weights, bias, out):
    """out[first:last] [., F] = x[first:last] [., K] times the matrix, plus the bias."""
    whole = last - (last - first) % ROWS
    for panel in range(weights.shape[0]):
        for row in range(first, whole, ROWS):
            _several(x, row, weights, panel, bias, out)
        for row in range(whole, last):
            _one(x, row, weights, panel, bias, out)


@njit(fastmath=EXACT, forceinline=True)
def _linear(task, x, weights, bias, out):
    first = task * CHUNK
    _multiply(x, first, min(first + CHUNK, x.shape[0]), weights, bias, out)


@compiled
def linear(x, weights, bias, out):
    """out [N, F] = x [N, K] times a packed matrix, plus a padded bias."""
    for task in prange((x.shape[0] + CHUNK - 1) // CHUNK):
        _linear(task, x, weights, bias, out)


@njit(fastmath=EXACT, forceinline=True)
def _mix(task, n, x, weights, bias, out):
    """One of the chunks of the rows of I, then of A, then of S."""
    part, first, last = 0, 0, n
    chunks = (n + CHUNK - 1) // CHUNK
    if task >= chunks:
        task -= chunks
        part, first, last = 1, n, 4 * n
        chunks = (3 * n + CHUNK - 1) // CHUNK
        if task >= chunks:
            task -= chunks
            part, first, last = 2, 4 * n, 9 * n
    first += task * CHUNK
    _multiply(x, first, min(first + CHUNK, last), weights[part], bias, out)


@compiled
def mix(x, weights, bias, out):
    """Channel mixing of [9, N, F] by one packed matrix for each of I, A and S: [3, Q, F, W]."""
    n = x.shape[1]
    rows, target = x.reshape(9 * n, x.shape[2]), out.reshape(9 * n, out.shape[2])
    tasks = (n + CHUNK - 1) // CHUNK
    tasks += (3 * n + CHUNK - 1) // CHUNK + (5 * n + CHUNK - 1) // CHUNK
    for task in prange(tasks):
        _mix(task, n, rows, weights, bias, target)
