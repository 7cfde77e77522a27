"""Vectors of channels for numba loops: numbers in a hardware register, where sums of them stay.

A loop over the last axis of an array leaves the instructions to the compiler, which writes every
sum back to memory at every turn. Numbers of a `VectorType` are LLVM's own vectors instead, and
arithmetic with them is written as usual:

    one = load(x, (i, f))        # x[i, f], x[i, f + 1], ... as many as a register holds
    sum += factor * one          # factor is a number or a vector
    store(sum, out, (i, f))

Indices are tuples, or one integer, and are not looked at: negative ones do not count from the end.
Only `load_part` and `store_part` stop at the end of a row.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import llvmlite.ir as ir
import numpy as np
from llvmlite import binding
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, overload, register_model

#: Freedom for the compiler that leaves the order of sums alone: the same function then gives the
#: same bits wherever it is compiled into.
EXACT = {"nnan", "ninf", "nsz", "contract"}

intrinsic: Any = extending.intrinsic  # what it returns is a function for numba, not for mypy

_FEATURES = binding.get_host_cpu_features()
_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16

#: Numbers in a register of this machine, by itemsize.
LANES = {4: _BYTES // 4, 8: _BYTES // 8}


def blocks(channels: int, dtype: Any) -> tuple[int, int]:
    """How many registers so many channels fill, the last perhaps in part, and the lanes of one."""
    lanes = LANES[np.dtype(dtype).itemsize]
    return -(-channels // lanes), lanes


_LLVM = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


class VectorType(types.Type):
    """As many floating-point numbers of a kind as a register holds."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        self.lanes = LANES[dtype.bitwidth // 8]
        self.llvm = ir.VectorType(_LLVM[dtype], self.lanes)
        super().__init__(name=f"Vector({dtype}, {self.lanes})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, kind.llvm)


def _pointer(context: Any, builder: Any, kinds: tuple[Any, Any], values: tuple[Any, Any]) -> Any:
    """Of the number at an index of an array."""
    (kind, index_kind), (value, index) = kinds, values
    whole = isinstance(index_kind, types.Integer)
    indices = [index] if whole else cgutils.unpack_tuple(builder, index, index_kind.count)
    array = context.make_array(kind)(context, builder, value)
    return cgutils.get_item_pointer(context, builder, kind, array, indices, wraparound=False)


def _vectors(builder: Any, pointer: Any, kind: VectorType) -> Any:
    return builder.bitcast(pointer, kind.llvm.as_pointer())


def vectors_at(builder: Any, pointer: Any, kind: VectorType, count: int) -> list[Any]:
    """Pointers to so many vectors one after the other."""
    first = _vectors(builder, pointer, kind)
    return [builder.gep(first, [_lane(k)]) for k in range(count)]


def multiply_add(builder: Any, kind: VectorType, a: Any, b: Any, c: Any) -> Any:
    """a b + c of vectors, in one instruction where the machine has it."""
    return _call(builder, kind, "fmuladd", a, b, c)


def _call(builder: Any, kind: VectorType, name: str, *arguments: Any) -> Any:
    """One of LLVM's own functions of vectors."""
    shape = ir.FunctionType(kind.llvm, [kind.llvm] * len(arguments))
    name = f"llvm.{name}.v{kind.lanes}f{kind.dtype.bitwidth}"
    return builder.call(cgutils.get_or_insert_function(builder.module, shape, name), arguments)


def _lane(k: int) -> Any:
    return ir.Constant(ir.IntType(32), k)


def _is_whole(builder: Any, count: Any, kind: VectorType) -> Any:
    """Whether so many numbers fill a vector."""
    return builder.icmp_signed(">=", count, ir.Constant(count.type, kind.lanes))


@intrinsic
def item(typing, array, index):
    """The number at an index of an array."""

    def generate(context, builder, signature, values):
        return builder.load(_pointer(context, builder, signature.args, values))

    return array.dtype(array, index), generate


@intrinsic
def load(typing, array, index):
    """The vector of numbers from an index of an array on."""
    kind = VectorType(array.dtype)

    def generate(context, builder, signature, values):
        pointer = _pointer(context, builder, signature.args, values)
        return builder.load(_vectors(builder, pointer, kind), align=array.dtype.bitwidth // 8)

    return kind(array, index), generate


@intrinsic
def load_part(typing, array, index, count):
    """As `load`, with zeros after the first `count` numbers."""
    kind = VectorType(array.dtype)
    size = array.dtype.bitwidth // 8

    def generate(context, builder, signature, values):
        pointer = _pointer(context, builder, signature.args[:2], values[:2])
        with builder.if_else(_is_whole(builder, values[2], kind)) as (then, otherwise):
            with then:
                whole = builder.load(_vectors(builder, pointer, kind), align=size)
                after_whole = builder.block
            with otherwise:
                room = cgutils.alloca_once(builder, kind.llvm)
                builder.store(ir.Constant(kind.llvm, [0.0] * kind.lanes), room)
                numbers = builder.bitcast(room, pointer.type)
                cgutils.raw_memcpy(builder, numbers, pointer, values[2], size)
                part = builder.load(room)
                after_part = builder.block
        vector = builder.phi(kind.llvm)
        vector.add_incoming(whole, after_whole)
        vector.add_incoming(part, after_part)
        return vector

    return kind(array, index, count), generate


@intrinsic
def store(typing, vector, array, index):
    """Write a vector to an array, from an index on."""

    def generate(context, builder, signature, values):
        pointer = _pointer(context, builder, signature.args[1:], values[1:])
        align = vector.dtype.bitwidth // 8
        builder.store(values[0], _vectors(builder, pointer, vector), align=align)
        return context.get_dummy_value()

    return types.void(vector, array, index), generate


@intrinsic
def store_part(typing, vector, array, index, count):
    """As `store`, but no more than the first `count` numbers."""
    size = vector.dtype.bitwidth // 8

    def generate(context, builder, signature, values):
        pointer = _pointer(context, builder, signature.args[1:3], values[1:3])
        with builder.if_else(_is_whole(builder, values[3], vector)) as (then, otherwise):
            with then:
                builder.store(values[0], _vectors(builder, pointer, vector), align=size)
            with otherwise:
                room = cgutils.alloca_once_value(builder, values[0])
                numbers = builder.bitcast(room, pointer.type)
                cgutils.raw_memcpy(builder, pointer, numbers, values[3], size)
        return context.get_dummy_value()

    return types.void(vector, array, index, count), generate


@intrinsic
def zeros(typing, array):
    """A vector of zeros of an array's type."""
    kind = VectorType(array.dtype)

    def generate(context, builder, signature, values):
        return ir.Constant(kind.llvm, [0.0] * kind.lanes)

    return kind(array), generate


@intrinsic
def lanes_of(typing, array):
    """Numbers in a vector of an array's type."""
    kind = VectorType(array.dtype)

    def generate(context, builder, signature, values):
        return ir.Constant(ir.IntType(64), kind.lanes)

    return types.int64(array), generate


@intrinsic
def total(typing, vector):
    """Sum of the numbers of a vector."""

    def generate(context, builder, signature, values):
        kind = vector.llvm.element
        name = f"llvm.vector.reduce.fadd.v{vector.lanes}f{vector.dtype.bitwidth}"
        signature = ir.FunctionType(kind, (kind, vector.llvm))
        function = cgutils.get_or_insert_function(builder.module, signature, name)
        return builder.call(function, (ir.Constant(kind, 0.0), values[0]), fastmath=("fast",))

    return vector.dtype(vector), generate


#: By itemsize: arguments of `exp` that it is right for, ln 2 as a sum of two numbers the first of
#: which has few digits, the degree of the series, and the exponent's bias and place in a number.
_EXP = {
    4: (-87.0, 88.0, 0.693359375, -2.12194440054691e-4, 7, 127, 23),
    8: (-708.0, 709.0, 6.93147180369123816490e-01, 1.90821492927058770002e-10, 13, 1023, 52),
}


@intrinsic
def exp(typing, vector):
    """The exponential function, of the nearest argument for which it is a normal number."""

    def generate(context, builder, signature, values):
        bits, kind = vector.dtype.bitwidth, vector.llvm
        low, high, ln2, rest, degree, bias, place = _EXP[bits // 8]

        def every(number):
            return ir.Constant(kind, [number] * vector.lanes)

        x = _call(builder, vector, "maxnum", values[0], every(low))
        x = _call(builder, vector, "minnum", x, every(high))
        # x = n ln 2 + r with |r| <= ln 2 / 2, exp(x) = 2^n exp(r)
        n = _call(builder, vector, "rint", builder.fmul(x, every(1.4426950408889634)))
        r = multiply_add(builder, vector, n, every(-ln2), x)
        r = multiply_add(builder, vector, n, every(-rest), r)
        series = every(1.0 / math.factorial(degree))
        for k in reversed(range(degree)):
            series = multiply_add(builder, vector, series, r, every(1.0 / math.factorial(k)))
        whole = ir.VectorType(ir.IntType(bits), vector.lanes)
        exponent = builder.add(builder.fptosi(n, whole), ir.Constant(whole, [bias] * vector.lanes))
        power = builder.shl(exponent, ir.Constant(whole, [place] * vector.lanes))
        return builder.fmul(series, builder.bitcast(power, kind))

    return vector(vector), generate


def spread(context: Any, builder: Any, value: Any, kind: Any, vector: VectorType) -> Any:
    """A vector as it is, a number in every lane."""
    if isinstance(kind, VectorType):
        return value
    unknown = ir.Constant(vector.llvm, ir.Undefined)
    number = context.cast(builder, value, kind, vector.dtype)
    first = builder.insert_element(unknown, number, _lane(0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(first, unknown, everywhere)


def _arithmetic(python: Any, instruction: str) -> None:
    """Give numba a binary operator of two vectors, or of a vector and a number."""

    @intrinsic
    def compute(typing, a, b):
        vector = a if isinstance(a, VectorType) else b

        def generate(context, builder, signature, values):
            pairs = zip(values, signature.args, strict=True)
            x, y = (spread(context, builder, value, kind, vector) for value, kind in pairs)
            return getattr(builder, instruction)(x, y, flags=tuple(sorted(EXACT)))

        return vector(a, b), generate

    @overload(python)
    def implement(a, b):
        if isinstance(a, VectorType) or isinstance(b, VectorType):
            return lambda a, b: compute(a, b)
        return None


for _operators, _instruction in (
    ((operator.add, operator.iadd), "fadd"),
    ((operator.sub, operator.isub), "fsub"),
    ((operator.mul, operator.imul), "fmul"),
    ((operator.truediv, operator.itruediv), "fdiv"),
):
    for _operator in _operators:
        _arithmetic(_operator, _instruction)
