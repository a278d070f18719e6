"""Softmax, its logarithm, and hardmax along one axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from whet.codegen.lang import (
    LanguageError,
    Operand,
    Pointer,
    Value,
    convert,
    fma,
    greater_or_second,
    reduce,
    reduce_sum,
    select,
)
from whet.codegen.vecmath import exp, log
from whet.dtypes import DType
from whet.kernels.accumulate import INFINITY, SLOTS, Arithmetic, Totals, pairwise, summation
from whet.kernels.base import Frame
from whet.kernels.extreme import Order, column_positions, row_position
from whet.kernels.walk import axes, known_mask, load, over_vectors, store, tiles, times, working

SoftmaxKind = Literal["softmax", "log_softmax", "hardmax"]

COLUMN_VECTORS = 2
"""Vectors of columns that are done together where the axis is not the innermost."""
_FIRST_MAXIMUM = Order(largest=True, last=False)


@dataclass(frozen=True, slots=True)
class Softmax:
    """out = softmax(scale * x + mask) along an axis, in at least float32.

    Words: `x`, `out` and, with `mask`, `mask` addresses; `kept0`.. (`kept_rank`, at least 1) extents, `x_kept0`..,
    `out_kept0`.., `mask_kept0`.. strides; `length`: the axis's extent, unless the field of that name fixes it; `tile`:
    positions of the last kept axis in one tile. Layout "rows": every operand has stride 1 along the axis. "columns":
    words `x_axis`, `out_axis` are strides along the axis; the last kept axis has stride 1 (no word) and there is no
    mask. Grid: kept0 * ... * ceil(last kept / tile).

    out may be x. A row that holds NaN or +infinity, or -infinity alone, becomes NaN. hardmax puts 1 at the first
    maximum (at the first NaN, if any), 0 elsewhere; it takes neither scale nor mask. An axis of no elements writes
    nothing.
    """

    kind: SoftmaxKind
    dtype: DType
    out: DType
    layout: Literal["rows", "columns"] = "rows"
    kept_rank: int = 1
    length: int | None = None
    scale: float | None = None
    mask: DType | None = None

    def emit(self, frame: Frame) -> None:
        if self.mask is not None and self.layout == "columns":
            raise LanguageError("a mask needs layout rows", found=self.layout)
        if self.kind == "hardmax" and (self.mask is not None or self.scale is not None):
            raise LanguageError("hardmax takes neither scale nor mask", found=self)
        _Emission(self, frame).emit()


class _Emission:
    """One kernel being written."""

    def __init__(self, spec: Softmax, frame: Frame) -> None:
        self.spec, self.frame, self.k = spec, frame, frame.k
        self.pointers = {"x": frame.address("x", spec.dtype), "out": frame.address("out", spec.out)}
        if spec.mask is not None:
            self.pointers["mask"] = frame.address("mask", spec.mask)
        columns = spec.layout == "columns"
        names = tuple(self.pointers)
        self.kept = axes(frame, "kept", spec.kept_rank, names, unit=names if columns else ())
        self.length = frame.number("length", spec.length)
        self.strides = {name: frame.number(f"{name}_axis") for name in names} if columns else {}
        self.tile = frame.number("tile")
        self.dtype = working(spec.dtype)
        self.lanes = frame.target.lanes(self.dtype)
        # 16-bit results are too coarse to hold exponentials that are still to be divided.
        self.exact_out = working(spec.out) is spec.out

    def emit(self) -> None:
        with tiles(self.frame, self.kept, self.tile) as (tile, _):
            pointers = {name: p + tile.offsets[name] for name, p in self.pointers.items()}
            if self.spec.layout == "columns":
                self._columns(pointers, tile.start, tile.stop)
                return
            with self.k.loop(tile.stop, start=tile.start) as row:
                placed = {name: p + times(row, self.kept.strides[name][-1]) for name, p in pointers.items()}
                self._row(placed)

    # Rows

    def _row(self, at: dict[str, Pointer]) -> None:
        if self.spec.kind == "hardmax":
            self._hardmax_row(at)
        elif isinstance(self.length, int) and self.length <= self._register_vectors * self.lanes:
            self._row_in_registers(at, self.length)
        else:
            self._row_in_cache(at)

    @property
    def _register_vectors(self) -> int:
        return self.frame.target.vector_registers // 2

    def _element(self, at: dict[str, Pointer], offset: Operand, mask: Value | None) -> Value:
        """scale * x + mask."""
        value = load(at["x"], offset, self.lanes, mask)
        if "mask" not in at:
            return value if self.spec.scale is None else value * self.spec.scale
        added = load(at["mask"], offset, self.lanes, mask)
        return value + added if self.spec.scale is None else fma(value, self.spec.scale, added)

    def _row_in_registers(self, at: dict[str, Pointer], length: int) -> None:
        """A short row of known length is loaded once."""
        k, lanes = self.k, self.lanes
        offsets = range(0, length, lanes)
        masks = [known_mask(k, length - offset, lanes) for offset in offsets]
        values = [self._element(at, offset, mask) for offset, mask in zip(offsets, masks, strict=True)]
        for i, mask in enumerate(masks):
            if mask is not None:  # a lane outside must not be the maximum, and adds exp(-infinity) to the sum
                values[i] = select(mask, values[i], -INFINITY)
        top = reduce(pairwise(values, greater_or_second), greater_or_second)
        shifted = [value - top for value in values]
        powers = [exp(value) for value in shifted]
        total = reduce_sum(pairwise(powers, lambda a, b: a + b))
        if self.spec.kind == "softmax":
            factor = 1.0 / total
            results = [power * factor for power in powers]
        else:
            amount = log(total)
            results = [value - amount for value in shifted]
        for offset, mask, result in zip(offsets, masks, results, strict=True):
            store(at["out"], result, offset, mask)

    def _row_in_cache(self, at: dict[str, Pointer]) -> None:
        """Three passes: the maximum, the sum of exponentials, the results."""
        k, lanes = self.k, self.lanes
        top = self._row_top(at)
        keeps = self.spec.kind == "softmax" and self.exact_out
        sums = Totals(k, summation(self.dtype, self.spec.length, lanes), lanes)

        def power(i: Operand, mask: Value | None) -> Value:
            result = exp(self._element(at, i, mask) - top)
            if keeps:
                store(at["out"], result, i, mask)
            return result

        sums.add_row(self.length, power)
        finish = self._finish(sums.result())

        def write(_: int, i: Operand, mask: Value | None) -> None:
            if keeps:
                result = finish(load(at["out"], i, lanes, mask))
            else:
                shifted = self._element(at, i, mask) - top
                result = finish(exp(shifted) if self.spec.kind == "softmax" else shifted)
            store(at["out"], result, i, mask)

        over_vectors(k, self.length, lanes, SLOTS, write)

    def _row_top(self, at: dict[str, Pointer]) -> Value:
        """The maximum of a row, or any element of a row with NaN: the sum that follows is NaN then."""
        tops = Totals(self.k, Arithmetic("top", self.dtype, self.dtype), self.lanes)
        tops.add_row(self.length, lambda i, mask: self._element(at, i, mask))
        return tops.result()

    def _finish(self, total: Value) -> Callable[[Value], Value]:
        """From an exponential, or from an element less the maximum, to the result."""
        if self.spec.kind == "softmax":
            factor = convert(1.0 / total, self.dtype)
            return lambda power: power * factor
        amount = convert(log(total), self.dtype)
        return lambda shifted: shifted - amount

    def _hardmax_row(self, at: dict[str, Pointer]) -> None:
        k, lanes = self.k, self.lanes
        position = row_position(k, at["x"], self.length, _FIRST_MAXIMUM)
        zero = k.constant(self.dtype, 0, lanes)
        over_vectors(k, self.length, lanes, SLOTS, lambda _, i, mask: store(at["out"], zero, i, mask))
        with k.when(k.index(self.length) > 0):
            store(at["out"], k.constant(self.dtype, 1), position)

    # Columns: every lane is a row of its own

    def _columns(self, at: dict[str, Pointer], start: Value, stop: Value) -> None:
        k, lanes = self.k, self.lanes
        wide = COLUMN_VECTORS * lanes
        main = start + ((stop - start) & -wide)
        with k.loop(main, start=start, step=wide) as column:
            self._column_block(at["x"] + column, at["out"] + column, COLUMN_VECTORS, None)

        def single(_: int, offset: Operand, mask: Value | None) -> None:
            column = main + offset
            self._column_block(at["x"] + column, at["out"] + column, 1, mask)

        over_vectors(k, stop - main, lanes, 1, single)

    def _column_block(self, x: Pointer, out: Pointer, vectors: int, mask: Value | None) -> None:
        k, lanes, dtype = self.k, self.lanes, self.dtype

        def element(group: int, i: Operand) -> Value:
            value = load(x + times(i, self.strides["x"]), group * lanes, lanes, mask)
            return value if self.spec.scale is None else value * self.spec.scale

        def put(group: int, i: Operand, value: Value) -> None:
            store(out + times(i, self.strides["out"]), value, group * lanes, mask)

        if self.spec.kind == "hardmax":
            positions = column_positions(k, self.length, dtype, vectors, _FIRST_MAXIMUM, element)
            with k.loop(self.length) as i:
                for group, position in enumerate(positions):
                    at_i = position == convert(i, position.dtype)
                    put(group, i, select(at_i, k.constant(dtype, 1, lanes), 0))
            return
        tops = Totals(k, Arithmetic("top", dtype, dtype), lanes, vectors, SLOTS // vectors)
        tops.add_columns(self.length, element)
        top = tops.values
        keeps = self.spec.kind == "softmax" and self.exact_out
        sums = Totals(k, summation(dtype, self.spec.length), lanes, vectors, SLOTS // vectors)

        def power(group: int, i: Operand) -> Value:
            result = exp(element(group, i) - top[group])
            if keeps:
                put(group, i, result)
            return result

        sums.add_columns(self.length, power)
        finishes = [self._finish(total) for total in sums.values]
        with k.loop(self.length) as i:
            for group, finish in enumerate(finishes):
                if keeps:
                    result = finish(load(out + times(i, self.strides["out"]), group * lanes, lanes, mask))
                else:
                    shifted = element(group, i) - top[group]
                    result = finish(exp(shifted) if self.spec.kind == "softmax" else shifted)
                put(group, i, result)
