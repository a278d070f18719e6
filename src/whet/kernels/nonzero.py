"""Where a tensor is not zero: how often, and the coordinates."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import Operand, Value, any_true, convert, minimum, reduce_sum
from whet.dtypes import INT64, DType
from whet.kernels.base import Frame
from whet.kernels.walk import load, over_vectors, working


@dataclass(frozen=True, slots=True)
class NonZeroCount:
    """count[0] (int64) = the elements of x (dense) that are not 0; NaN is not 0. Words: `x`, `count` addresses;
    `size`: elements of x. Grid: 1."""

    dtype: DType

    def emit(self, frame: Frame) -> None:
        k = frame.k
        x, count = frame.address("x", self.dtype), frame.address("count", INT64)
        size = frame.number("size")
        lanes = frame.target.lanes(INT64)
        with frame.tiles():
            total = k.variable(k.constant(INT64, 0, lanes))

            def body(_: int, i: Operand, mask: Value | None) -> None:
                total.value = total.value + convert(load(x, i, lanes, mask) != 0, INT64)

            over_vectors(k, size, lanes, 1, body)
            count.store(reduce_sum(total.value))


@dataclass(frozen=True, slots=True)
class NonZeroWrite:
    """out[a, j] (int64) = coordinate a of the j-th element of x (dense, row-major order) that is not 0.

    Words: `x`, `out` addresses; `extent0`.. of x's `rank` axes; `out_row`: out's stride from one coordinate to the
    next, at least the number that NonZeroCount finds, which must not have changed. Grid: 1.
    """

    dtype: DType
    rank: int

    def emit(self, frame: Frame) -> None:
        k = frame.k
        x, out = frame.address("x", self.dtype), frame.address("out", INT64)
        extents = [k.index(frame.number(f"extent{i}")) for i in range(self.rank)]
        out_row = frame.number("out_row")
        size = k.index(1)
        for extent in extents:
            size = size * extent
        lanes = frame.target.lanes(working(self.dtype))
        with frame.tiles():
            found = k.variable(k.index(0))

            def body(_: int, start: Operand, mask: Value | None) -> None:
                stop = minimum(k.index(start) + lanes, size)
                # Most vectors of a sparse tensor hold nothing.
                with (
                    k.when(any_true(load(x, start, lanes, mask) != 0)),
                    k.loop(stop, start=start) as i,
                    k.when(load(x, i, 1) != 0),
                ):
                    rest = i
                    for axis in reversed(range(self.rank)):
                        out.store(rest % extents[axis] if axis else rest, found.value + axis * k.index(out_row))
                        rest = rest / extents[axis]
                    found.value = found.value + 1

            over_vectors(k, size, lanes, 1, body)
