"""Positions of extremes along an axis, as numpy finds them: NaN counts as the extreme, and ties have an order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from whet.codegen.irtypes import integer_range
from whet.codegen.lang import Function, Operand, Pointer, Value, convert, halves, iota, is_nan, select
from whet.dtypes import INT32, INT64, DType
from whet.kernels.accumulate import INFINITY, SLOTS
from whet.kernels.base import Frame
from whet.kernels.walk import axes, load, over_vectors, store, tiles, times, working


def comparable(dtype: DType) -> DType:
    """The type in which extremes are looked for: at least 32 bits, so that positions fit lanes of the same width."""
    wide = working(dtype)
    return wide if wide.bits >= 32 else INT32


@dataclass(frozen=True, slots=True)
class Order:
    """Which of two elements is the extreme."""

    largest: bool
    last: bool

    def worst(self, dtype: DType) -> float | int:
        """A value that no element is behind."""
        low, high = (-INFINITY, INFINITY) if dtype.is_float else integer_range(dtype)
        return low if self.largest else high

    def replaces(self, new: Value, best: Value) -> Value:
        """Whether an element takes the place of the best one before it."""
        if self.last:
            better = new >= best if self.largest else new <= best
            return better | is_nan(new) if new.is_float else better
        if not new.is_float:
            return new > best if self.largest else new < best
        behind = new <= best if self.largest else new >= best
        return ~behind & ~is_nan(best)

    def beats(self, a: Value, at_a: Value, b: Value, at_b: Value) -> Value:
        """Whether element b at its position wins over a at its, in whatever order they come."""
        later, earlier = at_b > at_a, at_b < at_a
        equal = a == b
        better = b > a if self.largest else b < a
        if a.is_float:
            equal = equal | (is_nan(a) & is_nan(b))
            better = (better & ~is_nan(a)) | (is_nan(b) & ~is_nan(a))
        return better | (equal & (later if self.last else earlier))


def row_position(k: Function, x: Pointer, length: Operand, order: Order) -> Value:
    """Where the extreme of `length` (at least 1) elements in a row is, as int64."""
    dtype = comparable(x.dtype)
    lanes = k.target.lanes(dtype)
    counter = INT32 if dtype.bits == 32 else INT64
    # Lanes remember the number of the vector: element numbers could need more than 32 bits.
    best = k.variables(dict.fromkeys(range(SLOTS), k.constant(dtype, order.worst(dtype), lanes)))
    vector = k.variables(dict.fromkeys(range(SLOTS), k.constant(counter, -1, lanes)))

    def body(slot: int, i: Operand, mask: Value | None) -> None:
        value = convert(load(x, i, lanes, mask), dtype)
        number = convert(k.index(i) / lanes, counter)
        chosen = order.replaces(value, best[slot]) | (vector[slot] == -1)
        if mask is not None:
            chosen = chosen & mask
        best[slot] = select(chosen, value, best[slot])
        vector[slot] = select(chosen, number, vector[slot])

    over_vectors(k, length, lanes, SLOTS, body)
    found = []
    for slot in range(SLOTS):
        wide = convert(vector[slot], INT64)
        # Lanes that met no element must not win: theirs is the position that loses every tie.
        position = select(wide < 0, integer_range(INT64)[0 if order.last else 1], wide * lanes + iota(wide, INT64))
        found.append((best[slot], position))
    while len(found) > 1:
        found = [_winner(*a, *b, order) for a, b in zip(found[::2], found[1::2], strict=True)]
    return _across(*found[0], order)


def _winner(a: Value, at_a: Value, b: Value, at_b: Value, order: Order) -> tuple[Value, Value]:
    wins = order.beats(a, at_a, b, at_b)
    return select(wins, b, a), select(wins, at_b, at_a)


def _across(best: Value, position: Value, order: Order) -> Value:
    while best.lanes > 1:
        (a, b), (at_a, at_b) = halves(best), halves(position)
        best, position = _winner(a, at_a, b, at_b, order)
    return position


def column_positions(
    k: Function, length: Operand, dtype: DType, groups: int, order: Order, element: Callable[[int, Operand], Value]
) -> list[Value]:
    """For each of `groups` vectors, lane by lane: which of rows 0 to `length`-1 (at least 1) holds the extreme.

    element(group, i) gives a group's lanes of row i in the type `comparable(...)`. Positions are integers of its width.
    """
    lanes = k.target.lanes(dtype)
    counter = INT32 if dtype.bits == 32 else INT64
    best = k.variables({g: k.constant(dtype, order.worst(dtype), lanes) for g in range(groups)})
    position = k.variables({g: k.constant(counter, -1, lanes) for g in range(groups)})
    with k.loop(length) as i:
        number = convert(i, counter)
        for g in range(groups):
            value = element(g, i)
            chosen = order.replaces(value, best[g]) | (position[g] == -1)
            best[g] = select(chosen, value, best[g])
            position[g] = select(chosen, k.constant(counter, 0, lanes) + number, position[g])
    return [p for _, p in position.items()]


@dataclass(frozen=True, slots=True)
class ArgReduce:
    """out[kept...] (int64) = the position along an axis of the largest or smallest element; NaN counts as both.

    Of equal elements the first is meant, the last with `last`. Words: `x`, `out` addresses; `kept0`.. (`kept_rank`, at
    least 1) extents; `x_kept0`.., `out_kept0`.. strides; `length`: the axis's extent, at least 1; `tile`: positions of
    the last kept axis in one tile. Layout "rows": the axis has stride 1. "columns": `x_axis` is its stride, the last
    kept axis has stride 1 in x and out (no word), and `length` fits int32. Grid: kept0 * ... * ceil(last kept / tile).
    """

    dtype: DType
    largest: bool
    last: bool = False
    layout: Literal["rows", "columns"] = "rows"
    kept_rank: int = 1

    def emit(self, frame: Frame) -> None:
        k, order = frame.k, Order(self.largest, self.last)
        x, out = frame.address("x", self.dtype), frame.address("out", INT64)
        rows = self.layout == "rows"
        kept = axes(frame, "kept", self.kept_rank, ("x", "out"), unit=() if rows else ("x", "out"))
        x_axis = 1 if rows else frame.number("x_axis")
        length, tile = frame.number("length"), frame.number("tile")
        dtype = comparable(self.dtype)
        lanes = frame.target.lanes(dtype)
        with tiles(frame, kept, tile) as (at, _):
            base_x, base_out = x + at.offsets["x"], out + at.offsets["out"]

            def column(_: int, c: Operand, mask: Value | None) -> None:
                place = base_x + (at.start + c)

                def element(_: int, i: Operand) -> Value:
                    return convert(load(place + times(i, x_axis), 0, lanes, mask), dtype)

                found = column_positions(k, length, dtype, 1, order, element)[0]
                store(base_out, found, at.start + c, mask)

            if not rows:
                over_vectors(k, at.stop - at.start, lanes, 1, column)
                return
            with k.loop(at.stop, start=at.start) as row:
                position = row_position(k, base_x + times(row, kept.strides["x"][-1]), length, order)
                base_out.store(position, times(row, kept.strides["out"][-1]))
