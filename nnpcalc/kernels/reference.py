"""One argument for many: a tuple of arrays by its address, for numba's parallel loops.

A parallel loop hands every array that it uses to its threads one by one, which costs more than a
small loop computes, and it takes no tuple within a tuple. A reference is one number.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

from nnpcalc.kernels.simd import intrinsic

_ADDRESS = ir.IntType(8).as_pointer()


class ReferenceType(types.Type):
    """Where a value of another type lies."""

    def __init__(self, of: Any) -> None:
        self.of = of
        super().__init__(name=f"Reference({of})")


@register_model(ReferenceType)
class _ReferenceModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: ReferenceType) -> None:
        super().__init__(manager, kind, _ADDRESS)


@intrinsic
def refer(typing, value):
    """A reference to a value, good until the function that made it returns or calls `keep`.

    numba frees what it sees no more use of, so a call of `keep` with the value has to follow.
    """

    def generate(context, builder, signature, values):
        return builder.bitcast(cgutils.alloca_once_value(builder, values[0]), _ADDRESS)

    return ReferenceType(value)(value), generate


@intrinsic
def follow(typing, reference):
    """The value behind a reference."""
    kind = reference.of

    def generate(context, builder, signature, values):
        pointer = builder.bitcast(values[0], context.get_value_type(kind).as_pointer())
        value = builder.load(pointer)
        context.nrt.incref(builder, kind, value)  # numba gives up what it gets from a call
        return value

    return kind(reference), generate


@intrinsic
def keep(typing, value):
    """Nothing but a use of the value, up to which it lives."""

    def generate(context, builder, signature, values):
        return context.get_dummy_value()

    return types.void(value), generate
