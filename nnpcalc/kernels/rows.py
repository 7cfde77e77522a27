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
from numba import njit, types
from numba.core import cgutils

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

#: And of those that are left over.
FEW = 3


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

        def generate(context, builder, signature, values):
            x_, w_, b_, o_ = (
                context.make_array(signature.args[k])(context, builder, values[k])
                for k in (0, 2, 4, 5)
            )
            depth, columns = (cgutils.unpack_tuple(builder, a.shape, 2)[1] for a in (x_, o_))
            start = builder.mul(values[3], ir.Constant(index, REGISTERS * vector.lanes))
            function = _tile_function(context, builder.module, n_rows, x.dtype, vector)
            pointers = (
                (x_, builder.mul(values[1], depth)),
                (w_, builder.mul(start, depth)),
                (b_, start),
                (o_, builder.add(builder.mul(values[1], columns), start)),
            )
            places = [builder.gep(array.data, [offset]) for array, offset in pointers]
            builder.call(function, [*places, depth, columns, builder.sub(columns, start)])
            return context.get_dummy_value()

        return types.void(x, types.int64, weights, types.int64, bias, out), generate

    return tile


def _tile_function(context: Any, module: Any, n_rows: int, dtype: Any, vector: VectorType) -> Any:
    """What a tile computes, once in a module: compiled into every place it would take long.

    Its arguments are where the rows of x, the panel, its biases and its results begin, and the
    lengths of a row of x, of a row of results and of the rest of that row.
    """
    index, number_type = ir.IntType(64), vector.llvm.element
    signature = ir.FunctionType(ir.VoidType(), [number_type.as_pointer()] * 4 + [index] * 3)
    name = f"nnpcalc_tile_{n_rows}_{REGISTERS}_{vector.lanes}_{dtype}"
    function = cgutils.get_or_insert_function(module, signature, name)
    if function.blocks:
        return function
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    x, weights, bias, out, depth, columns, left = function.args
    width = REGISTERS * vector.lanes

    def number(k):
        return ir.Constant(index, k)

    def row_of(start, k, length):
        return builder.gep(start, [builder.mul(number(k), length)])

    def loaded(pointer):
        return [
            builder.load(p, align=vector.dtype.bitwidth // 8)
            for p in vectors_at(builder, pointer, vector, REGISTERS)
        ]

    # for k in range(depth): sums[r][v] += x[r, k] * weights[k, v]
    rows = [row_of(x, r, depth) for r in range(n_rows)]
    initial, before = loaded(bias), builder.block
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
    w = loaded(row_of(weights, width, k))
    for r, of_row in enumerate(sums):
        factor = builder.load(builder.gep(rows[r], [k]))
        factor = spread(context, builder, factor, dtype, vector)
        for one, weight in zip(of_row, w, strict=True):
            one.add_incoming(multiply_add(builder, vector, factor, weight, one), body)
    k.add_incoming(builder.add(k, number(1)), body)
    builder.branch(head)
    builder.position_at_end(after)

    targets = [row_of(out, r, columns) for r in range(n_rows)]
    with builder.if_else(builder.icmp_signed(">=", left, number(width))) as (then, otherwise):
        with then:
            for target, of_row in zip(targets, sums, strict=True):
                _store(builder, target, vector, of_row)
        with otherwise:
            room = cgutils.alloca_once(builder, vector.llvm, REGISTERS)
            numbers = builder.bitcast(room, out.type)
            for target, of_row in zip(targets, sums, strict=True):
                _store(builder, numbers, vector, of_row)
                size = vector.dtype.bitwidth // 8
                cgutils.raw_memcpy(builder, target, numbers, left, size)
    builder.ret_void()
    return function


def _store(builder: Any, pointer: Any, vector: VectorType, values: list[Any]) -> None:
    size = vector.dtype.bitwidth // 8
    for value, place in zip(values, vectors_at(builder, pointer, vector, len(values)), strict=True):
        builder.store(value, place, align=size)


_several, _few, _one = _tile(ROWS), _tile(FEW), _tile(1)


@njit(fastmath=EXACT)
def _multiply(x, first, last, weights, bias, out):
    """out[first:last] [., F] = x[first:last] [., K] times the matrix, plus the bias."""
    for panel in range(weights.shape[0]):
        row = first
        while row + ROWS <= last:
            _several(x, row, weights, panel, bias, out)
            row += ROWS
        while row + FEW <= last:
            _few(x, row, weights, panel, bias, out)
            row += FEW
        while row < last:
            _one(x, row, weights, panel, bias, out)
            row += 1


@njit(fastmath=EXACT)
def linear(x, weights, bias, out):
    """out [N, F] = x [N, K] times a packed matrix, plus a padded bias."""
    _multiply(x, 0, x.shape[0], weights, bias, out)


@njit(fastmath=EXACT)
def mix(x, weights, bias, out):
    """Channel mixing of [9, N, F] by one packed matrix for each of I, A and S: [3, Q, F, W]."""
    n = x.shape[1]
    rows, target = x.reshape(9 * n, x.shape[2]), out.reshape(9 * n, out.shape[2])
    _multiply(rows, 0, n, weights[0], bias, target)
    _multiply(rows, n, 4 * n, weights[1], bias, target)
    _multiply(rows, 4 * n, 9 * n, weights[2], bias, target)
