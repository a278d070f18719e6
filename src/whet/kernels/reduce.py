"""Reductions over axes: sums, means, norms, products, extremes, logarithms of sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from whet.codegen.lang import LanguageError, Operand, Pointer, Value, absolute, convert, maximum, minimum, select, sqrt
from whet.codegen.vecmath import exp, log
from whet.dtypes import FLOAT32, FLOAT64, INT64, UINT64, DType
from whet.kernels.accumulate import INFINITY, SLOTS, Arithmetic, Totals
from whet.kernels.base import Frame
from whet.kernels.expression import Tape
from whet.kernels.walk import Axes, apply, axes, load, over_vectors, plus, store, tiles, times, working

ReduceKind = Literal["sum", "mean", "max", "min", "prod", "sum_square", "l1", "l2", "log_sum", "log_sum_exp"]
Layout = Literal["rows", "columns"]
Stage = Literal["whole", "parts", "combine"]


@dataclass(frozen=True, slots=True)
class Reduce:
    """out[kept...] = a reduction of x[kept..., reduced...] over its reduced axes.

    Words: `x`, `out` addresses; `kept0`.. (`kept_rank`, at least 1) and `reduced0`.. (`reduced_rank`, at least 1)
    extents; `x_kept0`.., `x_reduced0`.., `out_kept0`.. strides; `tile`: positions of the last kept axis in one tile.
    Layout "rows": the last reduced axis has stride 1 in x (its stride has no word). "columns": the last kept axis has
    stride 1 in x and out (neither has a word); a `tile` of a multiple of 2 * `columns_step` is best.
    Grid: kept0 * ... * ceil(last kept / tile).

    Few long reductions are shared by threads in two stages. "parts": words `part_extent` (positions of the first
    reduced axis in one part) and `out_part` (out's stride between parts) come behind the others; out has `total_dtype`;
    the grid is that above, once for each part, at least ceil(reduced0 / part_extent) of them. "combine": x is that
    buffer, its part axis the reduced one; out is the result. `count` (elements behind one result) is a word of the
    stages that finish a mean.

    `prologue` (one input) is applied to elements, `epilogue` (one input) to results; their operands are converted to
    the types of their inputs. Integers keep their type and wrap, a mean of integers is truncated toward zero (0 of
    none), logarithms and roots of integers are taken in float64 and truncated. Over nothing: 0 (sums), 1 (prod), the
    least or greatest value (max, min), NaN (mean), -infinity (log_sum, log_sum_exp).
    """

    kind: ReduceKind
    dtype: DType
    out: DType
    layout: Layout
    kept_rank: int = 1
    reduced_rank: int = 1
    stage: Stage = "whole"
    prologue: Tape | None = None
    epilogue: Tape | None = None

    @property
    def element_dtype(self) -> DType:
        """The type of the elements as they are calculated with."""
        if self.prologue is not None:
            return working(self.prologue.dtype(self.prologue.outputs[0]))
        return working(self.dtype)

    @property
    def arithmetic(self) -> Arithmetic:
        """How elements are combined."""
        kind, element = self.kind, self.element_dtype
        if kind == "max" or kind == "min" or kind == "prod":
            return Arithmetic(kind, element, element)
        if kind == "log_sum_exp" and element.is_integer:
            element = FLOAT64
        if kind == "mean" and element.is_integer:
            element = INT64 if element.kind == "int" else UINT64
        return Arithmetic("sum", element, FLOAT64 if element is FLOAT32 else element)

    @property
    def total_dtype(self) -> DType:
        """The type of the buffer between the stages "parts" and "combine"."""
        return self.arithmetic.total

    def emit(self, frame: Frame) -> None:
        if self.stage == "parts" and self.epilogue is not None:
            raise LanguageError("an epilogue belongs to the stage that finishes", found=self.stage)
        if self.stage == "combine" and self.prologue is not None:
            raise LanguageError("a prologue belongs to the stage that reads elements", found=self.stage)
        _Emission(self, frame).emit()


def columns_step(spec: Reduce, vector_bits: int) -> int:
    """Columns that a narrow pass of layout "columns" does: tiles are best a multiple of twice as many."""
    return SLOTS * vector_bits // spec.arithmetic.chunk.bits


class _Emission:
    """One kernel being written."""

    def __init__(self, spec: Reduce, frame: Frame) -> None:
        self.spec, self.frame, self.k = spec, frame, frame.k
        rows, parts = spec.layout == "rows", spec.stage == "parts"
        self.x = frame.address("x", spec.dtype)
        self.out = frame.address("out", spec.total_dtype if parts else spec.out)
        self.kept = axes(frame, "kept", spec.kept_rank, ("x", "out"), unit=() if rows else ("x", "out"))
        self.reduced = axes(frame, "reduced", spec.reduced_rank, ("x",), unit=("x",) if rows else ())
        self.tile = frame.number("tile")
        self.count = frame.number("count") if spec.kind == "mean" and not parts else 0
        self.part_extent = frame.number("part_extent") if parts else 0
        self.out_part = frame.number("out_part") if parts else 0
        self.arithmetic = spec.arithmetic
        self.extreme = Arithmetic("max", self.arithmetic.chunk, self.arithmetic.chunk)
        self.lanes = frame.target.lanes(self.arithmetic.chunk)

    def emit(self) -> None:
        parts = self.spec.stage == "parts"
        with tiles(self.frame, self.kept, self.tile, repeated=parts) as (tile, part):
            x, out = self.x + tile.offsets["x"], self.out + tile.offsets["out"]
            reduced = self.reduced
            if parts:
                first = part * self.part_extent
                extent = maximum(minimum(self.k.index(reduced.extents[0]) - first, self.part_extent), 0)
                x = x + times(first, reduced.strides["x"][0])
                out = out + part * self.out_part
                reduced = Axes((extent, *reduced.extents[1:]), reduced.strides)
            if self.spec.layout == "rows":
                with self.k.loop(tile.stop, start=tile.start) as row:
                    self._row(x + times(row, self.kept.strides["x"][-1]), out, row, reduced)
            else:
                self._columns(x, out, tile.start, tile.stop, reduced)

    # One row: vectors along the last reduced axis

    def _row(self, x: Pointer, out: Pointer, row: Value, reduced: Axes) -> None:
        if self.spec.kind == "log_sum_exp":
            top = _finite(self._fold_row(x, reduced, self.extreme, self._element))
            total = self._fold_row(x, reduced, self.arithmetic, lambda v: exp(self._element(v) - top))
            result = log(total) + convert(top, total.dtype)
        else:
            result = self._fold_row(x, reduced, self.arithmetic, self._map)
        self._write(out, result, times(row, self.kept.strides["out"][-1]), None)

    def _fold_row(self, x: Pointer, reduced: Axes, how: Arithmetic, of: Callable[[Value], Value]) -> Value:
        totals = Totals(self.k, how, self.lanes)
        with reduced.nest(self.k, "x", self.spec.reduced_rank - 1) as offset:
            base = x + offset
            totals.add_row(reduced.extents[-1], lambda i, mask: of(load(base, i, self.lanes, mask)))
        return totals.result()

    # A stretch of columns: vectors along the last kept axis

    def _columns(self, x: Pointer, out: Pointer, start: Value, stop: Value, reduced: Axes) -> None:
        k, lanes = self.k, self.lanes
        # Rows lie far apart, and each read should take as much of one as registers hold totals for.
        for vectors in sorted({self.frame.target.vector_registers // 4, SLOTS}, reverse=True):
            main = start + ((stop - start) & -(vectors * lanes))
            with k.loop(main, start=start, step=vectors * lanes) as column:
                self._column_block(x, out, column, vectors, None, reduced)
            start = main
        over_vectors(
            k, stop - start, lanes, 1,
            lambda _, offset, mask: self._column_block(x, out, start + offset, 1, mask, reduced),
        )  # fmt: skip

    def _column_block(
        self, x: Pointer, out: Pointer, column: Value, vectors: int, mask: Value | None, reduced: Axes
    ) -> None:
        def fold(how: Arithmetic, of: Callable[[int, Value], Value]) -> list[Value]:
            return self._fold_columns(x + column, vectors, mask, reduced, how, of)

        if self.spec.kind == "log_sum_exp":
            tops = [_finite(v) for v in fold(self.extreme, lambda _, v: self._element(v))]
            totals = fold(self.arithmetic, lambda group, v: exp(self._element(v) - tops[group]))
            results = [log(t) + convert(top, t.dtype) for t, top in zip(totals, tops, strict=True)]
        else:
            results = fold(self.arithmetic, lambda _, v: self._map(v))
        for number, result in enumerate(results):
            self._write(out, result, column + number * self.lanes, mask)

    def _fold_columns(
        self,
        base: Pointer,
        vectors: int,
        mask: Value | None,
        reduced: Axes,
        how: Arithmetic,
        of: Callable[[int, Value], Value],
    ) -> list[Value]:
        totals = Totals(self.k, how, self.lanes, vectors, max(SLOTS // vectors, 1))
        with reduced.nest(self.k, "x", self.spec.reduced_rank - 1) as offset:

            def element(group: int, i: Operand) -> Value:
                place = plus(offset, times(i, reduced.strides["x"][-1]))
                return of(group, load(base + place, group * self.lanes, self.lanes, mask))

            totals.add_columns(reduced.extents[-1], element)
        return totals.values

    # Elements and results

    def _element(self, value: Value) -> Value:
        """An element as the reduction sees it, behind the prologue."""
        if self.spec.prologue is not None:
            value = apply(self.k, self.spec.prologue, value)
        return convert(convert(value, self.spec.element_dtype), self.arithmetic.chunk)

    def _map(self, value: Value) -> Value:
        element = self._element(value)
        if self.spec.stage == "combine":
            return element
        if self.spec.kind == "l1":
            return absolute(element)
        return element * element if self.spec.kind in ("sum_square", "l2") else element

    def _write(self, out: Pointer, total: Value, offset: Operand, mask: Value | None) -> None:
        if self.spec.stage != "parts":
            total = self._finish(total)
        if self.spec.epilogue is not None:
            total = apply(self.k, self.spec.epilogue, total)
        store(out, total, offset, mask)

    def _finish(self, total: Value) -> Value:
        kind = self.spec.kind
        if kind == "mean":
            return total / convert(self.k.index(self.count), total.dtype)
        if kind in ("l2", "log_sum"):
            number = total if total.is_float else convert(total, FLOAT64)
            return sqrt(number) if kind == "l2" else log(number)
        return total


def _finite(top: Value) -> Value:
    """What log_sum_exp takes off its exponents: the largest, or 0 where that is no number to subtract."""
    return select(absolute(top) < INFINITY, top, 0.0)
