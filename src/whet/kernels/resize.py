"""Interpolation along one axis after another: tables of elements and weights, nearest copies, weighted sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whet.codegen.lang import (
    Operand,
    Pointer,
    Value,
    broadcast,
    clamp,
    convert,
    fma,
    integer_range,
    prefix_mask,
    round_even,
    select,
    shuffle,
)
from whet.dtypes import INT32, INT64, DType
from whet.kernels.base import Frame
from whet.kernels.copy import element_of
from whet.kernels.gather import copy_row
from whet.kernels.walk import Tile, axes, load, over_vectors, plus, store, tiles, times, working

Term = Callable[[Operand, Value], Value]
"""One element of a sum: term(tap, what the sum is so far)."""

UNROLLED_TAPS = 4
"""Sums of up to so many elements are written without a loop."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """out[i0, .., in] = x[t0[i0], .., tn[in]], with a table of positions (int32) where `indexed`, else i itself.

    The last dimension has stride 1 in out, and in x unless it is indexed. A negative position makes the whole slice
    `fill`, where that is asked for. With `repeats` the last dimension has no table: every element of x, which has
    stride 1 there too, stands so many times in out, and `tile` is a multiple of it; `row` is the last extent where that
    is known and one tile.

    Words: `x`, `out` addresses; `fill`, the address of one element, with `filled`; `n0`.. extents, `x_n0`.., `out_n0`..
    strides; `table{d}`, the address of each table; `tile`: elements of the last dimension in one tile. Grid: n0 * ... *
    ceil(last / tile).
    """

    element_bytes: int
    indexed: tuple[bool, ...]
    filled: bool = False
    repeats: int | None = None
    row: int | None = None

    def emit(self, frame: Frame) -> None:
        k, element, rank = frame.k, element_of(self.element_bytes), len(self.indexed)
        x, out = frame.address("x", element), frame.address("out", element)
        fill = frame.address("fill", element).load() if self.filled else k.constant(element, 0)
        inner = self.indexed[-1]
        over = axes(frame, "n", rank, ("x", "out"), unit=("out",) if inner else ("x", "out"))
        tables = {d: frame.address(f"table{d}", INT32) for d in range(rank) if self.indexed[d]}
        tile = frame.number("tile")
        with tiles(frame, over, tile) as (at, _):
            source: Operand = 0
            inside: Value = k.index(0) == 0
            for d, coordinate in enumerate(at.coordinates):
                position = coordinate
                if d in tables:
                    position = convert(tables[d].load(coordinate), INT64)
                    inside = inside & (position >= 0)
                source = plus(source, times(position, over.strides["x"][d]))
            row, target = x + source, out + at.offsets["out"]
            with k.when(inside):
                if inner and self.filled:
                    stride = over.strides["x"][-1]
                    with k.loop(at.stop, start=at.start) as i:
                        position = convert(tables[rank - 1].load(i), INT64)
                        with k.when(position >= 0):
                            target.store(row.load(position * stride), i)
                        with k.otherwise():
                            target.store(fill, i)
                elif self.repeats is not None:
                    _repeated(frame, row, target, at, self.repeats, self.row)
                elif inner:
                    _looked_up(frame, row, over.strides["x"][-1], tables[rank - 1], target, at)
                else:
                    copy_row(k, row, target, at.start, at.stop)
            if self.filled:
                with k.otherwise(), k.loop(at.stop, start=at.start) as i:
                    target.store(fill, i)


def _repeated(frame: Frame, row: Pointer, target: Pointer, at: Tile, repeats: int, size: int | None) -> None:
    """target[i] = row[i / repeats] over a tile that begins and ends with an element of the row; `size`: the known
    extent of a row that is one tile."""
    k = frame.k
    lanes = frame.target.lanes(target.dtype)
    first: Operand = at.start / repeats
    count: Operand = (at.stop - at.start) / repeats
    if size is not None:
        first, count = 0, size // repeats
        # Vectors that a short row fills need no masks.
        lanes = min(lanes, max(2, 1 << (size // repeats).bit_length() - 1))

    def part(_: int, offset: Operand, mask: Value | None) -> None:
        i = plus(first, offset)
        found = load(row, i, lanes, mask)
        for part in range(repeats):
            spread = shuffle(found, None, [(part * lanes + lane) // repeats for lane in range(lanes)])
            left = (k.index(count) - offset) * repeats - part * lanes
            place = times(i, repeats) + part * lanes
            store(target, spread, place, None if mask is None else prefix_mask(left, lanes))

    over_vectors(k, count, lanes, 1, part)


def _looked_up(frame: Frame, row: Pointer, stride: Operand, table: Pointer, target: Pointer, at: Tile) -> None:
    """target[i] = row[table[i]] over a tile."""
    # Small elements would be gathered one by one anyhow.
    lanes = frame.target.lanes(target.dtype) if target.dtype.bits >= 32 else 1

    def part(_: int, offset: Operand, mask: Value | None) -> None:
        i = plus(at.start, offset)
        offsets = convert(_row(table, i, lanes, mask), INT64) * stride
        found = row.load(offsets) if lanes == 1 else row.gather(offsets, mask)
        store(target, found, i, mask)

    over_vectors(frame.k, at.stop - at.start, lanes, 2, part)


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """out[.., i, ..] = the sum over t of weight[t, i] * x[.., index[t, i], ..] along one axis.

    x is `source`, the sum is made in `middle` (float32 or float64), out is `result`: integers are rounded to even and
    held in their range. A negative index of tap 0 gives `fill`, where that is not None. `taps` is fixed where it is
    known, else a word.

    Words: `x`, `index` (int32 [taps, size]), `weight` (`middle` [taps, size]), `out` addresses; `size`, `x_axis`, and
    `taps` where it is not fixed; `kept0`.. (`kept_rank`, at least 1) extents, `x_kept0`.., `out_kept0`.. strides;
    `tile`. Layout "columns": the last two kept axes are the output's axis (stride 0 in x) and an axis of stride 1;
    grid: kept0 * ... * ceil(last / tile). Layout "rows": the axis has stride 1 in out and is no kept axis; `tile` is in
    positions of the last kept axis; grid likewise.
    """

    source: DType
    middle: DType
    result: DType
    layout: str
    taps: int | None
    kept_rank: int
    x_unit: bool = False
    """Rows: x has stride 1 along the axis, and `x_axis` no word."""
    fill: float | None = None

    def emit(self, frame: Frame) -> None:
        k = frame.k
        x, index = frame.address("x", self.source), frame.address("index", INT32)
        weight, out = frame.address("weight", self.middle), frame.address("out", self.result)
        size, x_axis = k.index(frame.number("size")), frame.number("x_axis", 1 if self.x_unit else None)
        taps = frame.number("taps", self.taps)
        columns = self.layout == "columns"
        kept = axes(frame, "kept", self.kept_rank, ("x", "out"), unit=("x", "out") if columns else ())
        tile = frame.number("tile")
        lanes = frame.target.lanes(self.middle)

        def total(term: Term) -> Value:
            zero = k.constant(self.middle, 0, lanes)
            if isinstance(taps, int) and taps <= UNROLLED_TAPS:
                result = zero
                for number in range(taps):
                    result = term(number, result)
                return result
            found = k.variable(zero)
            with k.loop(taps) as t:
                found.value = term(t, found.value)
            return found.value

        with tiles(frame, kept, tile) as (at, _):
            base, target = x + at.offsets["x"], out + at.offsets["out"]
            if columns:
                i = at.coordinates[-1]
                first = index.load(i)

                def column(_: int, offset: Operand, mask: Value | None) -> None:
                    c = plus(at.start, offset)

                    def term(t: Operand, before: Value) -> Value:
                        place = times(t, size)
                        position: Value = clamp(convert(index.load(plus(place, i)), INT64), 0, 1 << 40)
                        element = convert(load(base, position * x_axis + c, lanes, mask), self.middle)
                        return fma(broadcast(weight.load(plus(place, i)), lanes), element, before)

                    store(target, self._finished(total(term), first < 0), c, mask)

                over_vectors(k, at.stop - at.start, lanes, 1, column)
                return
            with k.loop(at.stop, start=at.start) as row:
                source = base + times(row, kept.strides["x"][-1])
                line = target + times(row, kept.strides["out"][-1])

                def along(_: int, i: Operand, mask: Value | None) -> None:
                    def term(t: Operand, before: Value) -> Value:
                        place = plus(times(t, size), i)
                        found = _row(index, place, lanes, mask)
                        offsets = convert(clamp(found, 0, (1 << 31) - 1), INT64)
                        if not self.x_unit:
                            offsets = offsets * x_axis
                        element = source.load(offsets) if lanes == 1 else source.gather(offsets, mask)
                        value = convert(convert(element, working(self.source)), self.middle)
                        return fma(_row(weight, place, lanes, mask), value, before)

                    store(line, self._finished(total(term), _row(index, i, lanes, mask) < 0), i, mask)

                over_vectors(k, size, lanes, 1, along)

    def _finished(self, value: Value, outside: Value) -> Value:
        if self.fill is not None:
            value = select(outside, value.like(self.fill), value)
        if not self.result.is_integer:
            return value
        low, high = integer_range(self.result)
        if self.result.bits == 64:
            high -= 1023  # the largest below it that float64 has
        return clamp(round_even(value), float(low), float(high))


def _row(pointer: Pointer, offset: Operand, lanes: int, mask: Value | None) -> Value:
    return pointer.load(offset, lanes) if mask is None else pointer.load_masked(mask, offset)
