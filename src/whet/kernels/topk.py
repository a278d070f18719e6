"""The k largest or smallest elements along an axis, in order, by a heap."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import Function, LanguageError, Operand, Pointer, Value, convert, reinterpret, select
from whet.dtypes import FLOAT64, INT32, INT64, UINT64, DType
from whet.kernels.base import Frame
from whet.kernels.walk import axes, load, tiles, times, working


@dataclass(frozen=True, slots=True)
class TopK:
    """values[..., j, ...], indices[..., j, ...] (int64) = the element of rank j along an axis of x, and its position.

    The largest comes first, or the smallest; of equal elements the one of the lower position; NaN counts as the
    largest. Words: `x`, `values`, `indices` addresses; `kept0`.. (`kept_rank`, at least 1) extents and `x_kept0`..,
    `out_kept0`.. (of values and indices alike) strides of the other axes; `length`, `x_axis`, `out_axis`: extent of x
    and strides along the axis; `count`: elements wanted, 0 to `length`; `tile`: positions of the last kept axis in one
    tile. Grid: kept0 * ... * ceil(last kept / tile). values is not x. The time is length * log(count).
    """

    dtype: DType
    largest: bool = True
    kept_rank: int = 1

    def emit(self, frame: Frame) -> None:
        if not (working(self.dtype).is_float or self.dtype.is_integer):
            raise LanguageError("no order in this type", found=self.dtype)
        k = frame.k
        x, values = frame.address("x", self.dtype), frame.address("values", self.dtype)
        indices = frame.address("indices", INT64)
        kept = axes(frame, "kept", self.kept_rank, ("x", "out"))
        length, count = k.index(frame.number("length")), k.index(frame.number("count"))
        x_axis, out_axis = frame.number("x_axis"), frame.number("out_axis")
        tile = frame.number("tile")
        with tiles(frame, kept, tile) as (at, _), k.loop(at.stop, start=at.start) as row:
            source = x + at.offsets["x"] + times(row, kept.strides["x"][-1])
            place = times(row, kept.strides["out"][-1])
            heap = _Heap(k, self, source, x_axis, indices + at.offsets["out"] + place, out_axis)
            with k.when(count > 0):
                heap.fill(count)
                heap.improve(count, length)
                heap.sort(count)
            target = values + at.offsets["out"] + place
            with k.loop(count) as j:
                target.store(source.load(times(heap.position(j), x_axis)), times(j, out_axis))


class _Heap:
    """A heap of positions, the worst element on top, kept where the results' positions will be."""

    def __init__(
        self, k: Function, spec: TopK, x: Pointer, x_stride: Operand, memory: Pointer, stride: Operand
    ) -> None:
        self.k, self.spec = k, spec
        self.x, self.x_stride = x, x_stride
        self.memory, self.stride = memory, stride

    def position(self, slot: Value) -> Value:
        """The position in a slot of the heap."""
        return self.memory.load(times(slot, self.stride))

    def put(self, slot: Operand, position: Value) -> None:
        """Set a slot of the heap."""
        self.memory.store(position, times(slot, self.stride))

    def key(self, position: Value) -> Value:
        """An int64 that is larger the better the element is."""
        key = _ordered(load(self.x, times(position, self.x_stride), 1))
        return key if self.spec.largest else ~key

    def fill(self, count: Value) -> None:
        """A heap of the first `count` elements."""
        k = self.k
        with k.loop(count) as i:
            self.put(i, i)
        half = count / 2
        with k.loop(half) as i:
            slot = half - 1 - i
            self.sink(slot, self.position(slot), count)

    def improve(self, count: Value, length: Value) -> None:
        """Let every later element that is better than the worst one take its place."""
        k = self.k
        worst = k.variable(self.key(self.position(k.index(0))))
        with k.loop(length, start=count) as i, k.when(self.key(i) > worst.value):
            self.sink(k.index(0), i, count)
            worst.value = self.key(self.position(k.index(0)))

    def sort(self, count: Value) -> None:
        """Take the worst element away again and again; it goes behind the others."""
        k = self.k
        with k.loop(count - 1) as i:
            last = count - 1 - i
            worst, moved = self.position(k.index(0)), self.position(last)
            self.sink(k.index(0), moved, last)
            self.put(last, worst)

    def sink(self, slot: Value, position: Value, count: Value) -> None:
        """Put an element into a slot, or below it while a worse one stands there; the heap has `count` slots."""
        k = self.k
        key = self.key(position)
        hole = k.variable(slot)
        with k.repeat():
            left = hole.value * 2 + 1
            k.leave_if(left >= count)
            right = select(left + 1 < count, left + 1, left)
            at_left, at_right = self.position(left), self.position(right)
            key_left, key_right = self.key(at_left), self.key(at_right)
            is_right = _worse(key_right, at_right, key_left, at_left)
            child, at_child = select(is_right, right, left), select(is_right, at_right, at_left)
            k.leave_if(~_worse(select(is_right, key_right, key_left), at_child, key, position))
            self.put(hole.value, at_child)
            hole.value = child
        self.put(hole.value, position)


def _worse(key_a: Value, at_a: Value, key_b: Value, at_b: Value) -> Value:
    return (key_a < key_b) | ((key_a == key_b) & (at_a > at_b))


def _ordered(value: Value) -> Value:
    """An int64 for each number, in the same order; NaN above all, both zeros alike."""
    if value.dtype.is_float:
        bits = reinterpret(value + 0.0, INT64 if value.dtype is FLOAT64 else INT32)
        largest = (1 << (bits.dtype.bits - 1)) - 1
        key = select(bits < 0, bits ^ largest, bits)
        return convert(select(value == value, key, largest), INT64)
    if value.dtype is UINT64:
        return reinterpret(value ^ (1 << 63), INT64)
    return convert(value, INT64)
