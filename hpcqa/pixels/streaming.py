"""Writing what will not be wanted soon past the caches, so that they keep what will be."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

from hpcqa.kernels import inner_kernel

_AT_ONCE = 16  # float32 numbers of a cache line
_LINE = 64  # bytes
_VECTOR = ir.VectorType(ir.FloatType(), _AT_ONCE)


@intrinsic  # type: ignore[untyped-decorator]
def _address(typing: Any, array: Any) -> Any:
    """Where a contiguous array begins."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), generate


@intrinsic  # type: ignore[untyped-decorator]
def _stream(typing: Any, source: Any, place: Any, target: Any, at: Any) -> Any:
    """Copy a line of float32 numbers between contiguous arrays; it begins a cache line in the target."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from_data = context.make_array(signature.args[0])(context, builder, args[0]).data
        to_data = context.make_array(signature.args[2])(context, builder, args[2]).data
        line = builder.load(builder.bitcast(builder.gep(from_data, [args[1]]), _VECTOR.as_pointer()))
        line.align = 4
        store = builder.store(line, builder.bitcast(builder.gep(to_data, [args[3]]), _VECTOR.as_pointer()))
        store.align = _LINE
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def fence(typing: Any) -> Any:
    """What was written before is seen before what is written after; writing past the caches does not see to it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@inner_kernel
def stream_copy(source: np.ndarray, target: np.ndarray) -> None:
    """Copy float32 numbers (n,) past the caches; both arrays are contiguous.

    A CCD's 33 MB would push code and small arrays out of a core's own cache, and whatever comes after the decoding
    would wait for them, about 50 ns a line (benchmarks/shard.py).
    """
    num = target.size
    first = min((-_address(target) % _LINE) // 4, num)
    for k in range(first):
        target[k] = source[k]
    last = first + (num - first) // _AT_ONCE * _AT_ONCE
    for k in range(first, last, _AT_ONCE):
        _stream(source, k, target, k)
    for k in range(last, num):
        target[k] = source[k]
