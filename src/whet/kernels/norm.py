"""Normalization of rows: layer norm and root-mean-square norm, alone or behind a residual addition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from whet.codegen.lang import LanguageError, Operand, Pointer, Value, convert, fma, reduce_sum, select, sqrt
from whet.dtypes import DType
from whet.kernels.accumulate import SLOTS, Totals, pairwise, summation
from whet.kernels.base import Frame
from whet.kernels.expression import Tape
from whet.kernels.walk import (
    apply,
    axes,
    known_mask,
    load,
    over_vectors,
    plus,
    store,
    tiles,
    times,
    working,
)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """out = (v - mean) / sqrt(variance + epsilon) * scale + bias over rows of v = x + skip + skip_bias.

    Kind "rms" takes no mean off: out = v / sqrt(mean(v**2) + epsilon) * scale + bias. Statistics and arithmetic are in
    float32 (float64 for float64), the statistics' sums in float64.

    Words: `x`, `out` and, where their fields give a type, `scale`, `bias`, `skip`, `skip_bias`, `total` (v, an output)
    addresses, with `statistics` `mean` (kind "layer" only) and `deviation` (1 / sqrt(variance + epsilon)) of type
    `statistics_dtype`; `kept0`.. (`kept_rank`, at least 1) extents; `x_kept0`.., `out_kept0`.., `skip_kept0`..,
    `total_kept0`.. strides, with `statistics` `statistics_kept0`..; `length`: elements of a row, unless the field of
    that name fixes it; `tile`: positions of the last kept axis in one tile. Rows, scale, bias and skip_bias have
    stride 1. Grid: kept0 * ... * ceil(last kept / tile). out may be x or skip, and total x or skip.

    With `by_row` scale and bias are one number for each row; words `affine_kept0`.. are their strides.
    """

    kind: Literal["layer", "rms"]
    dtype: DType
    out: DType
    epsilon: float
    scale: DType | None = None
    bias: DType | None = None
    skip: DType | None = None
    skip_bias: DType | None = None
    total: DType | None = None
    statistics: bool = False
    kept_rank: int = 1
    length: int | None = None
    epilogue: Tape | None = None
    by_row: bool = False

    @property
    def statistics_dtype(self) -> DType:
        """The type of the outputs `mean` and `deviation`."""
        return working(self.dtype)

    def emit(self, frame: Frame) -> None:
        if not self.statistics_dtype.is_float:
            raise LanguageError("norms are for floats", found=self.dtype)
        _Emission(self, frame).emit()


Element = Callable[[Operand, Value | None], Value]


class _Emission:
    """One kernel being written."""

    def __init__(self, spec: LayerNorm, frame: Frame) -> None:
        self.spec, self.frame, self.k = spec, frame, frame.k
        self.dtype = spec.statistics_dtype
        self.lanes = frame.target.lanes(self.dtype)
        given = {"x": spec.dtype, "out": spec.out, "skip": spec.skip, "total": spec.total}
        self.rows = {name: frame.address(name, dtype) for name, dtype in given.items() if dtype is not None}
        vectors = {"scale": spec.scale, "bias": spec.bias, "skip_bias": spec.skip_bias}
        self.vectors = {name: frame.address(name, dtype) for name, dtype in vectors.items() if dtype is not None}
        self.statistics: dict[str, Pointer] = {}
        if spec.statistics:
            names = ("mean", "deviation") if spec.kind == "layer" else ("deviation",)
            self.statistics = {name: frame.address(name, self.dtype) for name in names}
        operands = (*self.rows, *(["statistics"] if spec.statistics else []), *(["affine"] if spec.by_row else []))
        self.of_row: dict[str, Value] = {}
        """Scale and bias of the row at hand, where they belong to rows."""
        self.kept = axes(frame, "kept", spec.kept_rank, operands)
        self.length = frame.number("length", spec.length)
        self.tile = frame.number("tile")

    def emit(self) -> None:
        spec = self.spec
        strides = {name: s[-1] for name, s in self.kept.strides.items()}
        with tiles(self.frame, self.kept, self.tile) as (tile, _), self.k.loop(tile.stop, start=tile.start) as row:
            at = {name: p + tile.offsets[name] + times(row, strides[name]) for name, p in self.rows.items()}
            if spec.by_row:
                number = plus(tile.offsets["affine"], times(row, strides["affine"]))
                given = {name: self.vectors[name] for name in ("scale", "bias") if name in self.vectors}
                self.of_row = {name: convert(load(p, number, 1), self.dtype) for name, p in given.items()}
            if isinstance(self.length, int) and self.length <= self.frame.target.vector_registers // 2 * self.lanes:
                mean, deviation = self._row_in_registers(at, self.length)
            else:
                mean, deviation = self._row_in_cache(at)
            for name, pointer in self.statistics.items():
                place = pointer + tile.offsets["statistics"] + times(row, strides["statistics"])
                store(place, mean if name == "mean" else deviation, 0)

    def _row_in_registers(self, at: dict[str, Pointer], length: int) -> tuple[Value, Value]:
        """A short row of known length is loaded once."""
        k, lanes = self.k, self.lanes
        offsets = range(0, length, lanes)
        masks = [known_mask(k, length - offset, lanes) for offset in offsets]
        values = [self._sum(at, offset, mask) for offset, mask in zip(offsets, masks, strict=True)]
        if self.spec.total is not None:
            for offset, mask, value in zip(offsets, masks, values, strict=True):
                store(at["total"], value, offset, mask)
        count = k.constant(self.dtype, length)
        mean = k.constant(self.dtype, 0)
        if self.spec.kind == "layer":
            mean = _add_lanes(values) / count
            values = [value - mean for value in values]
            for i, mask in enumerate(masks):
                if mask is not None:  # outside lanes hold -mean now
                    values[i] = select(mask, values[i], 0.0)
        deviation = self._deviation(_add_lanes([value * value for value in values]) / count)
        for offset, mask, value in zip(offsets, masks, values, strict=True):
            self._write(at, offset, mask, value * deviation)
        return mean, deviation

    def _row_in_cache(self, at: dict[str, Pointer]) -> tuple[Value, Value]:
        """Three passes: the mean, the mean square of what is left, the results."""
        k, lanes = self.k, self.lanes
        how = summation(self.dtype, self.spec.length, lanes)
        count = convert(k.index(self.length), how.total)
        mean = k.constant(self.dtype, 0)
        element = self._first_pass(at)
        if self.spec.kind == "layer":
            sums = Totals(k, how, lanes)
            sums.add_row(self.length, element)
            mean = convert(sums.result() / count, self.dtype)
            element = self._later_pass(at)
        squares = Totals(k, how, lanes)

        def square(i: Operand, mask: Value | None) -> Value:
            value = element(i, mask) if self.spec.kind == "rms" else element(i, mask) - mean
            return value * value

        squares.add_row(self.length, square)
        deviation = convert(self._deviation(squares.result() / count), self.dtype)
        element = self._later_pass(at)

        def write(_: int, i: Operand, mask: Value | None) -> None:
            value = element(i, mask)
            if self.spec.kind == "layer":
                value = value - mean
            self._write(at, i, mask, value * deviation)

        over_vectors(k, self.length, lanes, SLOTS, write)
        return mean, deviation

    def _sum(self, at: dict[str, Pointer], i: Operand, mask: Value | None) -> Value:
        """x + skip + skip_bias."""
        value = load(at["x"], i, self.lanes, mask)
        if self.spec.skip is not None:
            value = value + convert(load(at["skip"], i, self.lanes, mask), self.dtype)
        if self.spec.skip_bias is not None:
            value = value + convert(load(self.vectors["skip_bias"], i, self.lanes, mask), self.dtype)
        return value

    def _first_pass(self, at: dict[str, Pointer]) -> Element:
        def element(i: Operand, mask: Value | None) -> Value:
            value = self._sum(at, i, mask)
            if self.spec.total is not None:
                store(at["total"], value, i, mask)
            return value

        return element

    def _later_pass(self, at: dict[str, Pointer]) -> Element:
        # `total` may have overwritten x or skip, so that it is read again even where it was rounded.
        if self.spec.total is not None:
            return lambda i, mask: convert(load(at["total"], i, self.lanes, mask), self.dtype)
        return lambda i, mask: self._sum(at, i, mask)

    def _deviation(self, variance: Value) -> Value:
        return 1.0 / sqrt(variance + self.spec.epsilon)

    def _write(self, at: dict[str, Pointer], i: Operand, mask: Value | None, value: Value) -> None:
        names = [name for name in ("scale", "bias") if name in self.vectors]
        parts = self.of_row
        if not self.spec.by_row:
            parts = {name: convert(load(self.vectors[name], i, self.lanes, mask), self.dtype) for name in names}
        if "scale" in parts and "bias" in parts:
            value = fma(value, parts["scale"], parts["bias"])
        elif "scale" in parts:
            value = value * parts["scale"]
        elif "bias" in parts:
            value = value + parts["bias"]
        if self.spec.epilogue is not None:
            value = apply(self.k, self.spec.epilogue, value)
        store(at["out"], value, i, mask)


def _add_lanes(values: list[Value]) -> Value:
    return reduce_sum(pairwise(values, lambda a, b: a + b))
