"""What carries numbers between rows and panels: vectors of 16, read and written whole or in part."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nfexp.flows.kernels.lanes import (
    OF_VECTOR,
    VECTOR,
    Lanes,
    Vector,
    halves,
    interleaved,
    item,
    llvm_function,
    moved,
    shuffled,
    vector_from,
    vector_to,
)


def _mask(builder: Any, n: Any) -> Any:
    """Which lanes of a vector are below n."""
    places = ir.Constant(ir.VectorType(ir.IntType(64), VECTOR), list(range(VECTOR)))
    undefined = ir.Constant(places.type, ir.Undefined)
    first = builder.insert_element(undefined, n, ir.Constant(ir.IntType(32), 0))
    return builder.icmp_signed("<", places, shuffled(builder, first, undefined, [0] * VECTOR))


@intrinsic  # type: ignore[misc]
def load_part(typing: Any, array: Any, i: Any, j: Any, n: Any) -> Any:
    """The n numbers from `array[i, j]` on in a vector, zeros behind them.

    A whole vector if n is larger.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = item(context, builder, signature.args[0], arguments[0], arguments[1:3])
        mask = _mask(builder, arguments[3])
        place = builder.bitcast(pointer, OF_VECTOR.as_pointer())
        zeros = ir.Constant(OF_VECTOR, [0.0] * VECTOR)
        of_type = ir.FunctionType(OF_VECTOR, [place.type, ir.IntType(32), mask.type, OF_VECTOR])
        function = llvm_function(builder, f"llvm.masked.load.v{VECTOR}f32.p0", of_type)
        return builder.call(function, [place, ir.Constant(ir.IntType(32), 4), mask, zeros])

    return Vector(array, types.intp, types.intp, types.intp), code


@intrinsic  # type: ignore[misc]
def store_part(typing: Any, array: Any, i: Any, j: Any, n: Any, value: Any) -> Any:
    """Write the first n numbers of a vector, at most all, to `array[i, j]` and behind it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = item(context, builder, signature.args[0], arguments[0], arguments[1:3])
        mask = _mask(builder, arguments[3])
        place = builder.bitcast(pointer, OF_VECTOR.as_pointer())
        of_type = ir.FunctionType(ir.VoidType(), [OF_VECTOR, place.type, ir.IntType(32), mask.type])
        function = llvm_function(builder, f"llvm.masked.store.v{VECTOR}f32.p0", of_type)
        builder.call(function, [arguments[4], place, ir.Constant(ir.IntType(32), 4), mask])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.intp, Vector), code


@intrinsic  # type: ignore[misc]
def load_vector(typing: Any, array: Any, i: Any, j: Any) -> Any:
    """The vector from `array[i, j]` on."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return vector_from(
            builder, item(context, builder, signature.args[0], arguments[0], arguments[1:])
        )

    return Vector(array, types.intp, types.intp), code


@intrinsic  # type: ignore[misc]
def store_vector(typing: Any, array: Any, i: Any, j: Any, value: Any) -> Any:
    """Write a vector to `array[i, j]` and behind it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, i, j, value = arguments
        vector_to(builder, value, item(context, builder, signature.args[0], array, [i, j]))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, Vector), code


@intrinsic  # type: ignore[misc]
def folded(typing: Any, a: Any) -> Any:
    """The sum of all rows, a vector."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (value,) = arguments
        while value.type.count > VECTOR:
            value = builder.fadd(*halves(builder, value))
        return value

    return Vector(Lanes), code


@intrinsic  # type: ignore[misc]
def transpose_block(typing: Any, out: Any, p: Any, i: Any, a: Any, q: Any, j: Any) -> Any:
    """out[p, i + r, s] = a[q, j + s, r] for r and s below 16."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def place(array: int, row: int) -> Any:
            panel, first = arguments[array + 1 : array + 3]
            indices = [panel, moved(builder, first, row)]
            return item(context, builder, signature.args[array], arguments[array], indices)

        rows = [vector_from(builder, place(3, s)) for s in range(VECTOR)]
        step = VECTOR
        # shuffling the two halves of the rows into each other four times transposes 16 of them
        while step > 1:
            half = VECTOR // 2
            mixed: list[Any] = []
            for low, high in zip(rows[:half], rows[half:], strict=True):
                mixed += interleaved(builder, low, high)
            rows = mixed
            step //= 2
        for r, row in enumerate(rows):
            vector_to(builder, row, place(0, r))
        return context.get_dummy_value()

    index = types.intp
    return types.void(out, index, index, a, index, index), code
