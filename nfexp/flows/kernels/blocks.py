"""A `Block`: what a product sums up at a time in registers, some rows of its result by some panels of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from nfexp.flows.kernels.lanes import (
    OF_VECTOR,
    VECTOR,
    halves,
    interleaved,
    item,
    llvm_function,
    moved,
    splatted,
    vector_from,
    vector_to,
)


class BlockType(types.Type):  # type: ignore[misc]
    """The type of a register block: `rows` rows of `panels` vectors."""

    def __init__(self, rows: int, panels: int) -> None:
        self.rows = rows
        self.panels = panels
        super().__init__(name=f"Block({rows}, {panels})")


@register_model(BlockType)
class _BlockModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, of_type: Any) -> None:
        super().__init__(manager, of_type, ir.ArrayType(OF_VECTOR, of_type.rows * of_type.panels))


@intrinsic(prefer_literal=True)  # type: ignore[misc]
def same_rows(typing: Any, rows: Any, panels: Any, array: Any, p: Any) -> Any:
    """A block of so many equal rows: `array[p]` and the panels behind it."""
    block = BlockType(rows.literal_value, panels.literal_value)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, p = arguments[2:]
        row = []
        for v in range(block.panels):
            place = item(context, builder, signature.args[2], array, [moved(builder, p, v)])
            row.append(vector_from(builder, place))
        return _block(context, builder, block, row * block.rows)

    return block(rows, panels, array, types.intp), code


@intrinsic(prefer_literal=True)  # type: ignore[misc]
def load_block(typing: Any, rows: Any, panels: Any, array: Any, p: Any, j: Any) -> Any:
    """A block of so many rows from row j on: of panel p of `array` and those behind it."""
    block = BlockType(rows.literal_value, panels.literal_value)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = []
        for place in _places_of(context, builder, block, signature.args[2], *arguments[2:]):
            vectors.append(vector_from(builder, place))
        return _block(context, builder, block, vectors)

    return block(rows, panels, array, types.intp, types.intp), code


@intrinsic  # type: ignore[misc]
def store_block(typing: Any, array: Any, p: Any, j: Any, block: Any) -> Any:
    """The inverse of :func:`load_block`."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = _places_of(context, builder, block, signature.args[0], *arguments[:3])
        for i, place in enumerate(places):
            vector_to(builder, builder.extract_value(arguments[3], i), place)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, block), code


@intrinsic  # type: ignore[misc]
def add_rows(
    typing: Any, block: Any, a: Any, q: Any, j: Any, k: Any, weights: Any, p: Any, i: Any
) -> Any:
    """The block, and in its row r `a[q, j + r, k]` times row i of the panels of `weights` from p on."""
    return _add_products(block, a, weights, step=VECTOR)


@intrinsic  # type: ignore[misc]
def add_columns(
    typing: Any, block: Any, a: Any, q: Any, j: Any, k: Any, weights: Any, p: Any, i: Any
) -> Any:
    """The block, and in its row r `a[q, j, k + r]` times row i of the panels of `weights` from p on."""
    return _add_products(block, a, weights, step=1)


def _add_products(block: Any, a: Any, weights: Any, *, step: int) -> Any:
    """What makes an intrinsic; the numbers of its rows are a `step` apart in memory."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, a, *place, weights, p, i = arguments
        row = []
        for v in range(block.panels):
            at = item(context, builder, signature.args[5], weights, [moved(builder, p, v), i])
            row.append(vector_from(builder, at))
        number = item(context, builder, signature.args[1], a, place)
        vectors: list[Any] = []
        for r in range(block.rows):
            factor = splatted(builder, builder.load(_behind(builder, number, r * step)), VECTOR)
            for v in range(block.panels):
                summed = builder.extract_value(sums, len(vectors))
                vectors.append(_multiply_add(builder, factor, row[v], summed))
        return _block(context, builder, block, vectors)

    index = types.intp
    return block(block, a, index, index, index, weights, index, index), code


@intrinsic(prefer_literal=True)  # type: ignore[misc]
def zero_block(typing: Any, rows: Any, panels: Any) -> Any:
    """A block of zeros."""
    block = BlockType(rows.literal_value, panels.literal_value)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zeros = ir.Constant(OF_VECTOR, [0.0] * VECTOR)
        return _block(context, builder, block, [zeros] * (block.rows * block.panels))

    return block(rows, panels), code


@intrinsic  # type: ignore[misc]
def add_by_lane(typing: Any, block: Any, a: Any, p: Any, j: Any, weights: Any) -> Any:
    """The block, of one panel, and in its row r, lane by lane, a[p, j + r] weights[p]."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, a, p, j, weights = arguments
        factor = vector_from(builder, item(context, builder, signature.args[4], weights, [p]))
        vectors = []
        for r, place in enumerate(_places_of(context, builder, block, signature.args[1], a, p, j)):
            summed = builder.extract_value(sums, r)
            vectors.append(_multiply_add(builder, vector_from(builder, place), factor, summed))
        return _block(context, builder, block, vectors)

    return block(block, a, types.intp, types.intp, weights), code


@intrinsic  # type: ignore[misc]
def add_totals(typing: Any, out: Any, j: Any, block: Any) -> Any:
    """out[j + r] += the sum of row r of a block of one panel.

    Rows are added to one another in pairs, each half to a half of the other, until one vector has
    the sums of all.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, j, sums = arguments
        vectors = [builder.extract_value(sums, r) for r in range(block.rows)]
        while len(vectors) > 1:
            half = len(vectors) // 2
            pairs = zip(vectors[:half], vectors[half:], strict=True)
            vectors = [builder.fadd(*interleaved(builder, *pair)) for pair in pairs]
        (value,) = vectors
        while value.type.count > block.rows:
            value = builder.fadd(*halves(builder, value))
        place = builder.bitcast(
            item(context, builder, signature.args[0], out, [j]), value.type.as_pointer()
        )
        before = builder.load(place)
        before.align = 4
        builder.store(builder.fadd(before, value), place).align = 4
        return context.get_dummy_value()

    return types.void(out, types.intp, block), code


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    of_type = ir.FunctionType(OF_VECTOR, [OF_VECTOR] * 3)
    return builder.call(llvm_function(builder, f"llvm.fma.v{VECTOR}f32", of_type), [a, b, c])


def _block(context: Any, builder: Any, block: BlockType, vectors: Sequence[Any]) -> Any:
    value = ir.Constant(context.get_value_type(block), ir.Undefined)
    for i, vector in enumerate(vectors):
        value = builder.insert_value(value, vector, i)
    return value


def _places_of(
    context: Any, builder: Any, block: BlockType, of_type: Any, array: Any, p: Any, j: Any
) -> list[Any]:
    """Where the vectors of a block are, row by row."""
    panels = [
        item(context, builder, of_type, array, [moved(builder, p, v), j])
        for v in range(block.panels)
    ]
    places = []
    for r in range(block.rows):
        places += [_behind(builder, panel, r * VECTOR) for panel in panels]
    return places


def _behind(builder: Any, pointer: Any, numbers: int) -> Any:
    """A pointer to what lies a constant behind another: an address without a register of its own."""
    return builder.gep(pointer, [ir.Constant(ir.IntType(64), numbers)])
