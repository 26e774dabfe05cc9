"""A value of many numbers: `Lanes`, float32 numbers that a kernel computes with as if they were one.

A compiler vectorises a plain loop as it likes; these keep sums in registers where we say so, and need no permission
to reorder arithmetic: there is no fast-math flag here, and every sum has one order. One `Lanes` fills as many
registers as the machine can multiply at full speed: four where there are 32 of them, otherwise two.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model


def _lanes() -> int:
    features = llvm.get_host_cpu_features()
    return 64 if features.get("avx512f") else 16


LANES = _lanes()
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)


class LanesType(types.Type):  # type: ignore[misc]
    """The type of `LANES` numbers side by side."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes({LANES})")


Lanes = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, of_type: Any) -> None:
        super().__init__(manager, of_type, _FLOATS)


def _place(context: Any, builder: Any, of_type: Any, array: Any, i: Any, j: Any) -> Any:
    """Where the lanes of `array[i, j]` begin; a third axis of the array is the lanes themselves."""
    parts = context.make_array(of_type)(context, builder, array)
    indices = [i, j]
    if of_type.ndim == 3:
        indices.append(ir.Constant(i.type, 0))
    pointer = cgutils.get_item_pointer(context, builder, of_type, parts, indices, wraparound=False)
    return builder.bitcast(pointer, _FLOATS.as_pointer())


def _splat(builder: Any, number: Any) -> Any:
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTS, [0] * LANES))


@intrinsic  # type: ignore[misc]
def load(typing: Any, array: Any, i: Any, j: Any) -> Any:
    """The lanes from `array[i, j]` on."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(_place(context, builder, signature.args[0], *arguments))
        value.align = 4
        return value

    return Lanes(array, types.intp, types.intp), code


@intrinsic  # type: ignore[misc]
def store(typing: Any, array: Any, i: Any, j: Any, value: Any) -> Any:
    """Write lanes to `array[i, j]` and behind it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments[:3])
        builder.store(arguments[3], place).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, Lanes), code


@intrinsic  # type: ignore[misc]
def splat(typing: Any, number: Any) -> Any:
    """The same number in every lane."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0])

    return Lanes(types.float32), code


@intrinsic  # type: ignore[misc]
def splat_at(typing: Any, array: Any, i: Any, j: Any, k: Any) -> Any:
    """`array[i, j, k]` in every lane."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        parts = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(context, builder, signature.args[0], parts, arguments[1:], wraparound=False)
        return _splat(builder, builder.load(pointer))

    return Lanes(array, types.intp, types.intp, types.intp), code


@intrinsic  # type: ignore[misc]
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, rounded once."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of_type = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        return builder.call(_llvm_function(builder, f"llvm.fma.v{LANES}f32", of_type), arguments)

    return Lanes(Lanes, Lanes, Lanes), code


def _llvm_function(builder: Any, name: str, of_type: Any) -> Any:
    return cgutils.get_or_insert_function(builder.module, of_type, name)


@intrinsic  # type: ignore[misc]
def magnitude(typing: Any, a: Any) -> Any:
    """|a|."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of_type = ir.FunctionType(_FLOATS, [_FLOATS])
        return builder.call(_llvm_function(builder, f"llvm.fabs.v{LANES}f32", of_type), arguments)

    return Lanes(Lanes), code


@intrinsic  # type: ignore[misc]
def with_sign(typing: Any, a: Any, b: Any) -> Any:
    """|a| with the sign of b."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of_type = ir.FunctionType(_FLOATS, [_FLOATS] * 2)
        return builder.call(_llvm_function(builder, f"llvm.copysign.v{LANES}f32", of_type), arguments)

    return Lanes(Lanes, Lanes), code


@intrinsic  # type: ignore[misc]
def where_less(typing: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """`yes` where a < b, otherwise `no`: so too where a or b is not a number."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, yes, no = arguments
        return builder.select(builder.fcmp_ordered("<", a, b), yes, no)

    return Lanes(Lanes, Lanes, Lanes, Lanes), code


@intrinsic  # type: ignore[misc]
def power_of_two(typing: Any, n: Any) -> Any:
    """2ⁿ for whole n, |n| ≤ 126."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # n + 1.5 · 2²³ has n in its lowest bits; moved by 23 they are an exponent, and 1.0 has the exponent of 2⁰
        shifted = builder.fadd(arguments[0], ir.Constant(_FLOATS, [1.5 * 2.0**23] * LANES))
        bits = builder.bitcast(shifted, _INTS)
        exponent = builder.shl(bits, ir.Constant(_INTS, [23] * LANES))
        with_bias = builder.add(exponent, ir.Constant(_INTS, [0x3F800000] * LANES))
        return builder.bitcast(with_bias, _FLOATS)

    return Lanes(Lanes), code


@intrinsic  # type: ignore[misc]
def total(typing: Any, a: Any) -> Any:
    """The sum of all lanes: the upper half is added to the lower one until one number is left."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[0]
        n = LANES
        while n > 1:
            n //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            indices = ir.VectorType(ir.IntType(32), n)
            low = builder.shuffle_vector(value, undefined, ir.Constant(indices, list(range(n))))
            high = builder.shuffle_vector(value, undefined, ir.Constant(indices, list(range(n, 2 * n))))
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.float32(Lanes), code


def _operator(of_python: Callable[..., Any], name: str) -> None:
    """Let `of_python`, such as operator.add, work on two `Lanes` by the builder's method `name`."""

    @intrinsic  # type: ignore[misc]
    def operation(typing: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, name)(*arguments)

        return Lanes(Lanes, Lanes), code

    @overload(of_python)  # type: ignore[misc]
    def on_lanes(a, b):
        if isinstance(a, LanesType) and isinstance(b, LanesType):
            return lambda a, b: operation(a, b)
        return None


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


# How every function of the kernel is compiled: without the GIL, a division by zero is what IEEE 754 says, and there is
# no wrapper by which Python could call it.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
inner = njit(**_OPTIONS)
