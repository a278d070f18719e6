"""Pointwise kernels over rows of a few elements each: a vector holds several rows, wherever each of them lies.

Boxes of two corners, pairs of numbers, the halves of a longer row: loops over such rows would do nothing but begin and
end. Here rows that lie apart are picked out of whole vectors, and put back with masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whet.codegen.lang import Function, LanguageError, Pointer, Value, broadcast, minimum, prefix_mask, shuffle
from whet.codegen.target import Target
from whet.dtypes import BOOL, DType
from whet.kernels.base import Frame
from whet.kernels.expression import Tape
from whet.kernels.rows import can_mask, lanes_for

MOST_APART = 4
"""Rows are at most so many times their length apart."""


@dataclass(frozen=True)
class ShortRows:
    """outputs[row, i] = tape(inputs[row, i]) for rows of `length` neighbours.

    `inputs` and `outputs` hold how many elements it is from one row to the next: `length` times up to MOST_APART; of
    an input also 0 (one row for all) or None (one element for all). An output may be the same memory as an input of
    the same strides; other overlaps are not allowed.

    Words, in order: `in{i}`, `out{i}`, `n0` (rows), `block` (rows in a tile). The grid has ceil(n0 / block) tiles.
    """

    tape: Tape
    length: int
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.tape.inputs) or len(self.outputs) != len(self.tape.outputs):
            raise LanguageError("strides and tape differ in operands", found=f"{self.inputs}, {self.outputs}")
        apart = [*(s for s in self.inputs if s), *self.outputs]
        if not all(fits(self.length, stride) for stride in apart):
            raise LanguageError("strides do not fit the rows", found=f"{self.inputs}, {self.outputs}")

    def emit(self, frame: Frame) -> None:
        """Write the kernel's body."""
        k, tape = frame.k, self.tape
        lanes = lanes_for(tape, frame.target, False)
        if not can_hold(frame.target, tape, self.length):
            raise LanguageError("no vectors of such rows here", found=f"{self.length} of {lanes}")
        inputs = [frame.address(f"in{i}", dtype) for i, dtype in enumerate(tape.inputs)]
        outputs = [frame.address(f"out{i}", tape.dtype(v)) for i, v in enumerate(tape.outputs)]
        count, block = k.index(frame.number("n0")), k.index(frame.number("block"))
        rows = lanes // self.length

        # Tiles that follow each other are one piece.
        with k.when(frame.begin < frame.end):
            readers = [_reader(k, p, s, self.length, lanes) for p, s in zip(inputs, self.inputs, strict=True)]
            writers = [Apart(k, stride, self.length, lanes) for stride in self.outputs]

            def body(row: Value, left: Value | None) -> None:
                results = tape.emit(k, [read(row, left) for read in readers], lanes)
                for p, writer, result in zip(outputs, writers, results, strict=True):
                    filled = broadcast(result, lanes) if result.lanes != lanes else result
                    writer.store(p, filled, row, left)

            over_short_rows(k, frame.begin * block, minimum(frame.end * block, count), rows, body)


def fits(length: int, stride: int) -> bool:
    """Whether rows of this length may lie so far apart."""
    return stride > 0 and stride % length == 0 and stride // length <= MOST_APART


def can_hold(target: Target, tape: Tape, length: int) -> bool:
    """Whether vectors of the target hold several whole rows of what a tape reads, computes and writes."""
    lanes = lanes_for(tape, target, False)
    return 1 < length < lanes and lanes % length == 0


def is_fast(target: Target, tape: Tape) -> bool:
    """Whether the target has the masks that make the kernel fast for what a tape reads and writes."""
    return all(can_mask(kind, target) for kind in (*tape.inputs, *(tape.dtype(v) for v in tape.outputs)))


def over_short_rows(
    k: Function, start: Value, stop: Value, rows: int, body: Callable[[Value, Value | None], None]
) -> None:
    """Do `body`(first row, None) for `rows` rows at a time, then (first row, rows left) for the rest."""
    with k.loop(stop - (rows - 1), start=start, step=rows) as row:
        body(row, None)
    rest = start + (stop - start) / rows * rows
    with k.when(rest < stop):
        body(rest, stop - rest)


@dataclass(frozen=True)
class Apart:
    """Rows of `length` elements, `stride` elements from one to the next, as vectors of neighbours."""

    k: Function
    stride: int
    length: int
    lanes: int

    def load(self, base: Pointer, row: Value, left: Value | None) -> Value:
        """A vector of the rows from `row` on, of which `left` exist (None: all)."""
        start, result = base + row * self.stride, None
        if not can_mask(base.dtype, self.k.target):
            return self._load_each(start, left)
        places = self._places()
        for j in sorted({place // self.lanes for place in places}):
            mask = self._mask(j, left)
            offset = j * self.lanes
            vector = start.load(offset, self.lanes) if mask is None else start.load_masked(mask, offset)
            if self.stride == self.length:
                return vector
            taken = [lane if place // self.lanes < j else self.lanes + place - offset
                     if place // self.lanes == j else 0 for lane, place in enumerate(places)]  # fmt: skip
            if result is None:
                result = shuffle(vector, None, [lane - self.lanes if lane >= self.lanes else 0 for lane in taken])
            else:
                result = shuffle(result, vector, taken)
        assert result is not None
        return result

    def store(self, base: Pointer, value: Value, row: Value, left: Value | None) -> None:
        """Write the rows from `row` on, of which `left` exist (None: all); nothing between them is touched."""
        start, places = base + row * self.stride, self._places()
        if not can_mask(base.dtype, self.k.target):
            self._store_each(start, value, left)
            return
        for j in sorted({place // self.lanes for place in places}):
            offset, mask = j * self.lanes, self._mask(j, left)
            moved = value
            if self.stride != self.length:
                lane_of = {place - offset: lane for lane, place in enumerate(places)}
                moved = shuffle(value, None, [lane_of.get(i, 0) for i in range(self.lanes)])
            if mask is None:
                start.store(moved, offset)
            else:
                start.store_masked(mask, moved, offset)

    def _load_each(self, start: Pointer, left: Value | None) -> Value:
        room = self.k.stack_array(start.dtype, self.lanes)
        room.store(self.k.constant(start.dtype, 0, self.lanes))
        with self.k.loop(self.lanes // self.length if left is None else left) as row:
            for i in range(self.length):
                room.store((start + row * self.stride).load(i), row * self.length + i)
        return room.load(0, self.lanes)

    def _store_each(self, start: Pointer, value: Value, left: Value | None) -> None:
        room = self.k.stack_array(start.dtype, self.lanes)
        room.store(value)
        with self.k.loop(self.lanes // self.length if left is None else left) as row:
            for i in range(self.length):
                (start + row * self.stride).store(room.load(row * self.length + i), i)

    def _places(self) -> list[int]:
        """Where each lane's element is, counted from the first row's first."""
        return [lane // self.length * self.stride + lane % self.length for lane in range(self.lanes)]

    def _mask(self, j: int, left: Value | None) -> Value | None:
        """What exists of the elements from j * lanes on; None: all."""
        offset = j * self.lanes
        inside = None if left is None else prefix_mask(left * self.stride - offset, self.lanes)
        if self.stride == self.length:
            return inside
        wanted = self.k.constant_vector(
            BOOL, [int((offset + i) % self.stride < self.length) for i in range(self.lanes)]
        )  # fmt: skip
        return wanted if inside is None else wanted & inside


def _reader(
    k: Function, base: Pointer, stride: int | None, length: int, lanes: int
) -> Callable[[Value, Value | None], Value]:
    if stride is None:
        whole = broadcast(base.load(), lanes)
        return lambda row, left: whole
    if stride == 0:
        first = [base.load(i) for i in range(length)]
        repeated = _repeated(k, base.dtype, first, lanes)
        return lambda row, left: repeated
    apart = Apart(k, stride, length, lanes)
    return lambda row, left: apart.load(base, row, left)


def _repeated(k: Function, dtype: DType, row: Sequence[Value], lanes: int) -> Value:
    """A row's elements again and again."""
    room = k.stack_array(dtype, lanes)
    for lane in range(lanes):
        room.store(row[lane % len(row)], lane)
    return room.load(0, lanes)
