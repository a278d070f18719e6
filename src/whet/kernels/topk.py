"""The k largest or smallest elements along an axis, in order: few in registers, many in a heap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whet.codegen.lang import (
    Function,
    LanguageError,
    Operand,
    Pointer,
    Value,
    any_true,
    broadcast,
    convert,
    iota,
    maximum,
    minimum,
    reinterpret,
    select,
    shuffle,
)
from whet.dtypes import FLOAT64, INT8, INT16, INT32, INT64, DType
from whet.kernels.base import Frame
from whet.kernels.walk import axes, over_vectors, plus, tiles, times, working

REGISTER_COUNT = 16
"""Up to this many elements are kept in order in registers."""


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
        x_axis, out_axis = k.index(frame.number("x_axis")), k.index(frame.number("out_axis"))
        tile = frame.number("tile")
        with tiles(frame, kept, tile) as (at, _), k.loop(at.stop, start=at.start) as row:
            source = x + at.offsets["x"] + times(row, kept.strides["x"][-1])
            place = plus(at.offsets["out"], times(row, kept.strides["out"][-1]))
            row_out = _Row(k, self, source, x_axis, values + place, indices + place, out_axis)
            with k.when(count > REGISTER_COUNT):
                heap = _Heap(row_out)
                heap.fill(count)
                row_out.each_better(count, length, lambda: row_out.get(k.index(0)).key, heap.replace(count))
                heap.sort(count)
            with k.when((count > 0) & (count <= REGISTER_COUNT)):
                leaders = _Leaders(row_out)
                leaders.fill(length)
                row_out.each_better(k.index(REGISTER_COUNT), length, leaders.last_key, leaders.insert)
                leaders.write(count)


@dataclass(frozen=True)
class _Entry:
    """An element with its position in x; `key` is an integer that is larger the better the element is."""

    value: Value
    position: Value
    key: Value

    def is_worse(self, other: _Entry) -> Value:
        """Whether the other one stands before it in the result."""
        return (self.key < other.key) | ((self.key == other.key) & (self.position > other.position))


class _Row:
    """One row of x and where its results go."""

    def __init__(
        self, k: Function, spec: TopK, x: Pointer, x_stride: Value, values: Pointer, positions: Pointer, stride: Value
    ) -> None:
        self.k, self.spec = k, spec
        self.x, self.x_stride = x, x_stride
        self.values, self.positions, self.stride = values, positions, stride

    def key(self, raw: Value) -> Value:
        """The keys of elements as they are in memory."""
        key = _ordered(convert(raw, working(raw.dtype)))
        return key if self.spec.largest else ~key

    def element(self, position: Value) -> _Entry:
        """An element of x."""
        value = self.x.load(position * self.x_stride)
        return _Entry(value, position, self.key(value))

    def get(self, slot: Value) -> _Entry:
        """What stands at a place of the result."""
        value = self.values.load(slot * self.stride)
        return _Entry(value, self.positions.load(slot * self.stride), self.key(value))

    def put(self, slot: Value, entry: _Entry) -> None:
        """Set a place of the result."""
        self.values.store(entry.value, slot * self.stride)
        self.positions.store(entry.position, slot * self.stride)

    def each_better(
        self, start: Value, length: Value, least: Callable[[], Value], take: Callable[[_Entry], None]
    ) -> None:
        """Hand `take` each element from `start` on whose key is above `least()`, which `take` changes."""
        k = self.k
        lanes = k.target.lanes(working(self.spec.dtype))
        worst = k.variable(least())
        keys = k.stack_array(worst.value.dtype, lanes)

        def offer(key: Value, position: Value) -> None:
            with k.when(key > worst.value):
                take(self.element(position))
                worst.value = least()

        def body(_: int, offset: Operand, mask: Value | None) -> None:
            first = start + offset
            raw = self.x.load(first, lanes) if mask is None else self.x.load_masked(mask, first)
            key = self.key(raw)
            # Most vectors of a long row hold nothing that is good enough.
            with k.when(any_true(key > worst.value)):
                keys.store(key)
                with k.loop(minimum(length - first, lanes), nonempty=True) as lane:
                    offer(keys.load(lane), first + lane)

        with k.when(self.x_stride == 1):
            over_vectors(k, maximum(length - start, 0), lanes, 1, body)
        with k.otherwise(), k.loop(length, start=start) as i:
            offer(self.element(i).key, i)


class _Leaders:
    """The best REGISTER_COUNT elements in order, in registers: keys and positions."""

    def __init__(self, row: _Row) -> None:
        k = self.k = row.k
        self.row = row
        dtype = row.element(k.index(0)).key.dtype
        self.keys = k.variable(k.constant(dtype, 0, REGISTER_COUNT))
        self.positions = k.variable(k.constant(INT64, 0, REGISTER_COUNT))

    def last_key(self) -> Value:
        """The key of the worst one."""
        return self.keys.value.lane(REGISTER_COUNT - 1)

    def fill(self, length: Value) -> None:
        """Put the first elements in order."""
        with self.k.loop(minimum(length, REGISTER_COUNT)) as i:
            self.insert(self.row.element(i), filled=i)

    def insert(self, entry: _Entry, filled: Value | None = None) -> None:
        """Put an element behind those that are as good; `filled`: elements so far, where there may be fewer."""
        keys, positions = self.keys.value, self.positions.value
        onward = [REGISTER_COUNT, *range(REGISTER_COUNT - 1)]
        before = shuffle(keys, broadcast(entry.key, REGISTER_COUNT), onward)
        stays, follows = keys >= entry.key, before >= entry.key
        if filled is not None:
            lane = iota(keys, INT64)
            stays, follows = stays & (lane < filled), follows & (lane <= filled)
        new_positions = broadcast(entry.position, REGISTER_COUNT)
        moved = shuffle(positions, new_positions, onward)
        self.keys.value = select(stays, keys, select(follows, broadcast(entry.key, REGISTER_COUNT), before))
        self.positions.value = select(stays, positions, select(follows, new_positions, moved))

    def write(self, count: Value) -> None:
        """Write the first `count`."""
        k = self.k
        positions = k.stack_array(INT64, REGISTER_COUNT)
        positions.store(self.positions.value)
        with k.loop(count) as j:
            self.row.put(j, self.row.element(positions.load(j)))


class _Heap:
    """A heap of elements, the worst on top, kept where the results will be."""

    def __init__(self, row: _Row) -> None:
        self.k, self.row = row.k, row

    def fill(self, count: Value) -> None:
        """A heap of the first `count` elements."""
        k, row = self.k, self.row
        with k.loop(count) as i:
            row.put(i, row.element(i))
        half = count / 2
        with k.loop(half) as i:
            slot = half - 1 - i
            self.sink(slot, row.get(slot), count)

    def replace(self, count: Value) -> Callable[[_Entry], None]:
        """What puts an element into the worst one's place."""
        return lambda entry: self.sink(self.k.index(0), entry, count)

    def sort(self, count: Value) -> None:
        """Take the worst element away again and again; it goes behind the others."""
        k, row, top = self.k, self.row, self.k.index(0)
        with k.loop(count - 1) as i:
            last = count - 1 - i
            worst = row.get(top)
            self.sink(top, row.get(last), last)
            row.put(last, worst)

    def sink(self, slot: Value, entry: _Entry, count: Value) -> None:
        """Put an element into a slot, or below it while a worse one stands there; the heap has `count` slots."""
        k, row = self.k, self.row
        hole = k.variable(slot)
        with k.repeat():
            left = hole.value * 2 + 1
            k.leave_if(left >= count)
            right = select(left + 1 < count, left + 1, left)
            at_left, at_right = row.get(left), row.get(right)
            is_right = at_right.is_worse(at_left)
            child = _Entry(
                select(is_right, at_right.value, at_left.value),
                select(is_right, at_right.position, at_left.position),
                select(is_right, at_right.key, at_left.key),
            )
            k.leave_if(~child.is_worse(entry))
            row.put(hole.value, child)
            hole.value = select(is_right, right, left)
        row.put(hole.value, entry)


def _ordered(value: Value) -> Value:
    """A signed integer for each number, in the same order; NaN above all, both zeros alike."""
    if value.dtype.is_float:
        bits = reinterpret(value + 0.0, INT64 if value.dtype is FLOAT64 else INT32)
        largest = (1 << (bits.dtype.bits - 1)) - 1
        key = select(bits < 0, bits ^ largest, bits)
        return select(value == value, key, largest)
    if value.dtype.kind == "int":
        return value
    signed = {8: INT8, 16: INT16, 32: INT32, 64: INT64}[value.dtype.bits]
    return reinterpret(value ^ (1 << (value.dtype.bits - 1)), signed)
