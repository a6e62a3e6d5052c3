"""Eight numbers that take every step together: the vector registers, for compiled loops that must be told.

A loop whose next step waits for the last one can't become vector instructions by itself; several such loops side by
side can, one in each lane. LLVM makes these of whatever the machine has, AVX-512 or less.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

NUM = 8
_WORD = ir.IntType(64)
_VECTOR = ir.VectorType(_WORD, NUM)


class LanesType(types.Type):  # type: ignore[misc]
    """NUM whole numbers of 64 bits."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes({NUM} x uint64)")


LANES = LanesType()


@register_model(LanesType)  # type: ignore[untyped-decorator]
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _lane_by_lane(name: str) -> Any:
    """A function of two vectors that is one instruction of LLVM."""

    @intrinsic  # type: ignore[untyped-decorator]
    def instruction(typing: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, name)(*args)

        return LANES(LANES, LANES), generate

    return instruction


def _operator(symbol: Callable[[Any, Any], Any], name: str) -> None:
    instruction = _lane_by_lane(name)

    @overload(symbol, strict=False)  # type: ignore[untyped-decorator]
    def _overload(left: Any, right: Any) -> Any:
        if left is LANES and right is LANES:
            return lambda left, right: instruction(left, right)
        return None


# Shifts are by 0 to 63, and bring zeros in.
_operator(operator.add, "add")
_operator(operator.sub, "sub")
_operator(operator.and_, "and_")
_operator(operator.or_, "or_")
_operator(operator.xor, "xor")
_operator(operator.lshift, "shl")
_operator(operator.rshift, "lshr")


@intrinsic  # type: ignore[untyped-decorator]
def all_lanes(typing: Any, number: Any) -> Any:
    """The same whole number in every lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.cast(builder, args[0], signature.args[0], types.int64)
        first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), word, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), NUM), [0] * NUM))

    return LANES(number), generate


def _call(builder: Any, name: str, *args: Any) -> Any:
    """A function that LLVM has for vectors."""
    kind = ir.FunctionType(_VECTOR, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"{name}.v{NUM}i64"), args)


@intrinsic  # type: ignore[untyped-decorator]
def leading_zeros(typing: Any, words: Any) -> Any:
    """Zero bits before the first one of each number; 64 for zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "llvm.ctlz", args[0], ir.Constant(ir.IntType(1), 0))

    return LANES(LANES), generate


@intrinsic  # type: ignore[untyped-decorator]
def smaller(typing: Any, left: Any, right: Any) -> Any:
    """The smaller of two numbers (signed) in each lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.icmp_signed("<", *args), *args)

    return LANES(LANES, LANES), generate


@intrinsic  # type: ignore[untyped-decorator]
def any_above(typing: Any, left: Any, right: Any) -> Any:
    """Whether any lane's first number is the larger one; -1 counts as the largest of all."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        above = builder.bitcast(builder.icmp_unsigned(">", *args), ir.IntType(NUM))
        return builder.icmp_unsigned("!=", above, ir.Constant(ir.IntType(NUM), 0))

    return types.boolean(LANES, LANES), generate


def _pointer(context: Any, builder: Any, kind: Any, array: Any, offset: Any, to: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return cgutils.pointer_add(builder, data, offset, to.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, array: Any) -> Any:
    """The first NUM numbers of a contiguous array of 64-bit integers."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        offset = context.get_constant(types.int64, 0)
        return builder.load(_pointer(context, builder, signature.args[0], args[0], offset, _VECTOR), align=8)

    return LANES(array), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, lanes: Any, array: Any) -> Any:
    """The reverse of `load`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        offset = context.get_constant(types.int64, 0)
        builder.store(args[0], _pointer(context, builder, signature.args[1], args[1], offset, _VECTOR), align=8)
        return context.get_dummy_value()

    return types.void(lanes, array), generate


@intrinsic  # type: ignore[untyped-decorator]
def load_bytes(typing: Any, data: Any, places: Any) -> Any:
    """Eight bytes from each place of a contiguous uint8 array as a big-endian number, without a bounds check."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = ir.Constant(_VECTOR, ir.Undefined)
        for lane in range(NUM):
            number = ir.Constant(ir.IntType(32), lane)
            offset = builder.extract_element(args[1], number)
            word = builder.load(_pointer(context, builder, signature.args[0], args[0], offset, _WORD), align=1)
            words = builder.insert_element(words, word, number)
        if sys.byteorder == "big":
            return words
        return _call(builder, "llvm.bswap", words)

    return LANES(data, places), generate


@intrinsic  # type: ignore[untyped-decorator]
def store_fours(typing: Any, four: Any, table: Any, column: Any) -> Any:
    """The low 32 bits of four vectors, side by side from a column on in a contiguous int32 table of NUM rows.

    No bounds check.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        half = ir.VectorType(ir.IntType(32), NUM)
        parts = [builder.trunc(builder.extract_value(args[0], place), half) for place in range(4)]
        pairs = [_side_by_side(builder, parts[0], parts[1]), _side_by_side(builder, parts[2], parts[3])]
        array = context.make_array(signature.args[1])(context, builder, args[1])
        width = builder.extract_value(array.shape, 1)
        column = context.cast(builder, args[2], signature.args[2], types.int64)
        for lane in range(NUM):
            where = [2 * lane, 2 * lane + 1, 2 * NUM + 2 * lane, 2 * NUM + 2 * lane + 1]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), 4), where)
            row = builder.shuffle_vector(pairs[0], pairs[1], mask)
            place = builder.add(builder.mul(width, ir.Constant(_WORD, lane)), column)
            offset = builder.shl(place, ir.Constant(_WORD, 2))
            builder.store(row, _pointer(context, builder, signature.args[1], args[1], offset, row.type), align=4)
        return context.get_dummy_value()

    return types.void(four, table, column), generate


def _side_by_side(builder: Any, left: Any, right: Any) -> Any:
    """The numbers of two vectors in turn."""
    where = [place for lane in range(NUM) for place in (lane, NUM + lane)]
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(ir.IntType(32), 2 * NUM), where))
