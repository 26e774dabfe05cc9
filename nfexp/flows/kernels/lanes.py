"""Values of many numbers: `Vector` and `Lanes`, float32 numbers that a kernel holds in registers.

A compiler vectorises a plain loop as it likes; these keep sums in registers where we say so, and
need no permission to reorder arithmetic: there is no fast-math flag here, and every sum has one
order.

A `Vector` is 16 numbers, a panel's width. `Lanes` are what four registers hold, 64 numbers with
AVX-512 and 32 otherwise: what is no product is computed with them, for fewer would not keep a core
busy. Products sum up in blocks of their own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model


def _lanes() -> int:
    """How many numbers four registers hold."""
    features = llvm.get_host_cpu_features()
    return 64 if features.get("avx512f") else 32


def has_fma() -> bool:
    """Whether the processor multiplies and adds in one instruction.

    Without, :func:`fma` is a call for each number.
    """
    features = llvm.get_host_cpu_features()
    return "fma" not in features or bool(features["fma"])  # only x86 has some that cannot


LANES = _lanes()
VECTOR = 16  # numbers in a row of a panel; a register of AVX-512, two of AVX2
POINTS = LANES // VECTOR  # rows of a panel in one `Lanes`
OF_VECTOR = ir.VectorType(ir.FloatType(), VECTOR)
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


class VectorType(types.Type):  # type: ignore[misc]
    """The type of `VECTOR` numbers side by side."""

    def __init__(self) -> None:
        super().__init__(name=f"Vector({VECTOR})")


Vector = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, of_type: Any) -> None:
        super().__init__(manager, of_type, OF_VECTOR)


def item(context: Any, builder: Any, of_type: Any, array: Any, indices: Sequence[Any]) -> Any:
    """A pointer to a number of an array; further axes begin at 0."""
    parts = context.make_array(of_type)(context, builder, array)
    missing = [ir.Constant(indices[0].type, 0)] * (of_type.ndim - len(indices))
    return cgutils.get_item_pointer(
        context, builder, of_type, parts, [*indices, *missing], wraparound=False
    )


def _place(context: Any, builder: Any, of_type: Any, array: Any, i: Any, j: Any) -> Any:
    """Where the lanes of `array[i, j]` begin."""
    return builder.bitcast(item(context, builder, of_type, array, [i, j]), _FLOATS.as_pointer())


def moved(builder: Any, index: Any, by: int) -> Any:
    """An index and a constant."""
    return builder.add(index, ir.Constant(index.type, by))


def vector_from(builder: Any, pointer: Any) -> Any:
    value = builder.load(builder.bitcast(pointer, OF_VECTOR.as_pointer()))
    value.align = 4
    return value


def vector_to(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, OF_VECTOR.as_pointer())).align = 4


def splatted(builder: Any, number: Any, n: int = LANES) -> Any:
    undefined = ir.Constant(ir.VectorType(ir.FloatType(), n), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return shuffled(builder, first, undefined, [0] * n)


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
        return splatted(builder, arguments[0])

    return Lanes(types.float32), code


@intrinsic  # type: ignore[misc]
def spread(typing: Any, array: Any, i: Any, j: Any) -> Any:
    """`array[i, j + r]` in all lanes of row r: a number for each of so many rows of a panel."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, i, j = arguments
        value = None
        for r in range(POINTS):
            number = builder.load(
                item(context, builder, signature.args[0], array, [i, moved(builder, j, r)])
            )
            row = splatted(builder, number, VECTOR)
            value = row if value is None else joined(builder, value, row)
        return value

    return Lanes(array, types.intp, types.intp), code


@intrinsic  # type: ignore[misc]
def repeated(typing: Any, array: Any, i: Any) -> Any:
    """The vector from `array[i, 0]` on, the same in each row."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = vector_from(
            builder, item(context, builder, signature.args[0], arguments[0], arguments[1:])
        )
        return shuffled(builder, value, value, list(range(VECTOR)) * POINTS)

    return Lanes(array, types.intp), code


@intrinsic  # type: ignore[misc]
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, rounded once."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of_type = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        return builder.call(llvm_function(builder, f"llvm.fma.v{LANES}f32", of_type), arguments)

    return Lanes(Lanes, Lanes, Lanes), code


def llvm_function(builder: Any, name: str, of_type: Any) -> Any:
    return cgutils.get_or_insert_function(builder.module, of_type, name)


@intrinsic  # type: ignore[misc]
def magnitude(typing: Any, a: Any) -> Any:
    """|a|."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of_type = ir.FunctionType(_FLOATS, [_FLOATS])
        return builder.call(llvm_function(builder, f"llvm.fabs.v{LANES}f32", of_type), arguments)

    return Lanes(Lanes), code


@intrinsic  # type: ignore[misc]
def with_sign(typing: Any, a: Any, b: Any) -> Any:
    """|a| with the sign of b."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of_type = ir.FunctionType(_FLOATS, [_FLOATS] * 2)
        return builder.call(
            llvm_function(builder, f"llvm.copysign.v{LANES}f32", of_type), arguments
        )

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
        # n + 1.5 · 2²³ has n in its lowest bits; moved by 23 they are an exponent, and 1.0 has the
        # exponent of 2⁰
        shifted = builder.fadd(arguments[0], ir.Constant(_FLOATS, [1.5 * 2.0**23] * LANES))
        bits = builder.bitcast(shifted, _INTS)
        exponent = builder.shl(bits, ir.Constant(_INTS, [23] * LANES))
        with_bias = builder.add(exponent, ir.Constant(_INTS, [0x3F800000] * LANES))
        return builder.bitcast(with_bias, _FLOATS)

    return Lanes(Lanes), code


def halves(builder: Any, value: Any) -> tuple[Any, Any]:
    """The lower and the upper lanes."""
    n = value.type.count // 2
    return shuffled(builder, value, value, range(n)), shuffled(
        builder, value, value, range(n, 2 * n)
    )


def shuffled(builder: Any, a: Any, b: Any, places: Iterable[int]) -> Any:
    """The lanes of a and b, side by side, at these places."""
    mask = [ir.Constant(ir.IntType(32), place) for place in places]
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(mask)), mask))


def joined(builder: Any, a: Any, b: Any) -> Any:
    """The lanes of a, then those of b, which has as many or fewer."""
    n, m = a.type.count, b.type.count
    b = shuffled(builder, b, b, [i % m for i in range(n)])
    return shuffled(builder, a, b, range(n + m))


def interleaved(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """a₀ b₀ a₁ b₁ …, in two values."""
    n = a.type.count
    places = [place for pair in zip(range(n), range(n, 2 * n), strict=True) for place in pair]
    return shuffled(builder, a, b, places[:n]), shuffled(builder, a, b, places[n:])


@intrinsic  # type: ignore[misc]
def total(typing: Any, a: Any) -> Any:
    """The sum of all lanes: halves are added until one number is left."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (value,) = arguments
        while value.type.count > 1:
            value = builder.fadd(*halves(builder, value))
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


# How every function of the kernel is compiled: without the GIL; a division by zero is what IEEE 754
# says; views of arrays are not counted, for all memory belongs to the caller; and there is no
# wrapper by which Python could call it.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
_NO_WRAPPERS: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
inner = njit(**OPTIONS, **_NO_WRAPPERS)
