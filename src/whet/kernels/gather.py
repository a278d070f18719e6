"""Gathers: elements and rows chosen by an index tensor. Every index is checked before it is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from whet.codegen.lang import Function, LanguageError, Operand, Pointer, Value, any_true, convert, minimum, select
from whet.dtypes import INT32, INT64, DType
from whet.kernels.base import INDEX_OUT_OF_BOUNDS, Frame
from whet.kernels.copy import element_of
from whet.kernels.expression import identity
from whet.kernels.grid import Walk, ceil_div
from whet.kernels.rows import Row, RowOperand


def check_index_type(dtype: DType) -> None:
    """Raises LanguageError for what cannot be an index."""
    if dtype not in (INT32, INT64):
        raise LanguageError("indices are int32 or int64", found=dtype)


def load_index(frame: Frame, indices: Pointer, position: Value, extent: Value) -> Value:
    """The index at `position` counted from the front, as int64. Ends the kernel where it is outside its axis."""
    raw = convert(indices.load(position), INT64)
    index = select(raw < 0, raw + extent, raw)
    frame.fail_if((index < 0) | (index >= extent), INDEX_OUT_OF_BOUNDS, position)
    return index


def copy_row(k: Function, source: Pointer, destination: Pointer, start: Operand, stop: Operand) -> None:
    """Elements start to stop-1 of a row."""
    Row(k, identity(source.dtype), [RowOperand(source, 1)], [RowOperand(destination, 1)]).emit(start, stop)


@dataclass(frozen=True)
class Gather:
    """out[o, i, :] = data[o, indices[i], :] over rows of `inner` elements; negative indices count from the end.

    `inner` is fixed where it is known to be small (1 above all), None for a word. Words, in order: `data`, `indices`,
    `out`, `outer`, `axis` (the indexed axis' extent), `count` (indices), `inner` where it is not fixed, `block`
    (elements of a row in one tile). The grid has outer * count * ceil(inner / block) tiles, blocks fastest.
    """

    element_bytes: int
    index: DType
    inner: int | None = None

    def __post_init__(self) -> None:
        check_index_type(self.index)

    @staticmethod
    def tiles(outer: int, count: int, inner: int, block: int) -> int:
        """Tiles of the grid."""
        return outer * count * -(-inner // block)

    def emit(self, frame: Frame) -> None:
        """Write the kernel's body."""
        k, element = frame.k, element_of(self.element_bytes)
        data, indices = frame.address("data", element), frame.address("indices", self.index)
        out = frame.address("out", element)
        outer = k.index(frame.number("outer"))
        axis, count = k.index(frame.number("axis")), k.index(frame.number("count"))
        inner, block = k.index(frame.number("inner", self.inner)), k.index(frame.number("block"))
        strides: dict[str, list[Operand]] = {"data": [axis * inner, 0, 0], "out": [count * inner, inner, 0]}
        walk = Walk(k, [outer, count, ceil_div(k, inner, block)], strides, frame.begin)
        with frame.tiles():
            index = load_index(frame, indices, walk.index(1), axis)
            source = data + (walk.offset("data") + index * inner)
            destination = out + walk.offset("out")
            if self.inner == 1:
                destination.store(source.load())
            else:
                start = walk.index(2) * block
                copy_row(k, source, destination, start, minimum(start + block, inner))
            walk.advance()


@dataclass(frozen=True)
class GatherElements:
    """out[i0, ..] = data[i0, .., indices[i0, ..], ..]: the index replaces the coordinate along `axis`.

    `out` and `indices` are contiguous, of extents `n{d}`; data's strides are words. Words, in order: `data`,
    `indices`, `out`, `axis` (data's extent along the axis), `n{d}` and `data_s{d}` for every dimension. Data's other
    extents must be at least those of the indices. A tile is a row of the last dimension.
    """

    element_bytes: int
    index: DType
    rank: int
    axis: int

    def __post_init__(self) -> None:
        check_index_type(self.index)
        if not 0 <= self.axis < self.rank:
            raise LanguageError("no such axis", found=self.axis, expected=f"0 to {self.rank - 1}")

    @staticmethod
    def tiles(extents: Sequence[int]) -> int:
        """Tiles of the grid."""
        return math.prod(extents[:-1])

    def emit(self, frame: Frame) -> None:
        """Write the kernel's body."""
        k, element = frame.k, element_of(self.element_bytes)
        data, indices = frame.address("data", element), frame.address("indices", self.index)
        out = frame.address("out", element)
        axis = k.index(frame.number("axis"))
        extents = [k.index(frame.number(f"n{d}")) for d in range(self.rank)]
        strides: list[Operand] = [frame.number(f"data_s{d}") for d in range(self.rank)]
        axis_stride = strides[self.axis]
        strides[self.axis] = 0
        # The last dimension is walked by the loop inside.
        walk = Walk(k, [k.index(1), *extents[:-1]], {"data": [0, *strides[:-1]]}, frame.begin)
        with k.loop(frame.end, start=frame.begin) as tile:
            row = data + walk.offset("data")
            first = tile * extents[-1]

            def one_by_one(start: Operand, stop: Operand) -> None:
                with k.loop(stop, start=start) as j:
                    index = load_index(frame, indices, first + j, axis)
                    out.store(row.load(index * axis_stride + j * strides[-1]), first + j)

            # Small elements would be gathered one by one anyhow.
            lanes = frame.target.lanes(INT64) if element.bits >= 32 else 1
            if lanes == 1:
                one_by_one(0, extents[-1])
            else:
                whole = extents[-1] & -lanes
                numbers = k.constant_vector(INT64, range(lanes))
                with k.loop(whole, step=lanes) as j:
                    raw = convert(indices.load(first + j, lanes), INT64)
                    found = select(raw < 0, raw + axis, raw)
                    with k.when(any_true((found < 0) | (found >= axis))):
                        one_by_one(j, j + lanes)
                    with k.otherwise():
                        offsets = found * axis_stride + (numbers + j) * strides[-1]
                        out.store(row.gather(offsets), first + j)
                one_by_one(whole, extents[-1])
            walk.advance()


@dataclass(frozen=True)
class GatherND:
    """out[t, :] = data[batch of t, indices[t, 0], .., indices[t, width-1], :] over slices of `inner` elements.

    Words, in order: `data`, `indices`, `out`, `per_batch` (tuples that share a batch coordinate; all of them without
    batch dimensions), `batch_stride` (data's elements from one batch coordinate to the next), `inner`, and for every
    part of a tuple `axis{j}` (data's extent) and `data_s{j}` (its stride in elements). Tile t is tuple t.
    """

    element_bytes: int
    index: DType
    width: int

    def __post_init__(self) -> None:
        check_index_type(self.index)

    def emit(self, frame: Frame) -> None:
        """Write the kernel's body."""
        k, element = frame.k, element_of(self.element_bytes)
        data, indices = frame.address("data", element), frame.address("indices", self.index)
        out = frame.address("out", element)
        per_batch, batch_stride = k.index(frame.number("per_batch")), k.index(frame.number("batch_stride"))
        inner = k.index(frame.number("inner"))
        axes = [k.index(frame.number(f"axis{j}")) for j in range(self.width)]
        strides = [k.index(frame.number(f"data_s{j}")) for j in range(self.width)]
        walk = Walk(k, [k.index(1), per_batch], {"data": [batch_stride, 0]}, frame.begin)
        with k.loop(frame.end, start=frame.begin) as t:
            source = data + (walk.offset("data") + tuple_offset(frame, indices, t, axes, strides))
            copy_row(k, source, out + t * inner, 0, inner)
            walk.advance()


def tuple_offset(
    frame: Frame, indices: Pointer, number: Value, axes: Sequence[Value], strides: Sequence[Value]
) -> Value:
    """The offset in elements that tuple `number` of an index tensor names; each part is checked against its axis."""
    offset = frame.k.index(0)
    for j, (axis, stride) in enumerate(zip(axes, strides, strict=True)):
        offset = offset + load_index(frame, indices, number * len(axes) + j, axis) * stride
    return offset
