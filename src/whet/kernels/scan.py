"""Running sums and products along one axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from whet.codegen.lang import LanguageError, Operand, Pointer, Value, convert
from whet.dtypes import FLOAT64, DType
from whet.kernels.base import Frame
from whet.kernels.walk import axes, load, over_vectors, plus, store, tiles, times, working


@dataclass(frozen=True, slots=True)
class Cumulative:
    """out[..., i, ...] = the sum or product of x's elements up to i along an axis (without i if `exclusive`); with
    `reverse`, of those from i on. Floats are accumulated in float64, integers in their own type, wrapping.

    Words: `x`, `out` addresses; `kept0`.. (`kept_rank`, at least 1) extents and `x_kept0`.., `out_kept0`.. strides of
    the other axes; `length`, `x_axis`, `out_axis`: extent and strides of the axis; `tile`: positions of the last kept
    axis in one tile. Layout "columns": the last kept axis has stride 1 (no word) and is vectorized; "rows": any
    strides. Grid: kept0 * ... * ceil(last kept / tile). out may be x.
    """

    kind: Literal["sum", "prod"]
    dtype: DType
    layout: Literal["rows", "columns"] = "rows"
    exclusive: bool = False
    reverse: bool = False
    kept_rank: int = 1

    def emit(self, frame: Frame) -> None:
        if not (working(self.dtype).is_float or self.dtype.is_integer):
            raise LanguageError("no running totals in this type", found=self.dtype)
        k = frame.k
        x, out = frame.address("x", self.dtype), frame.address("out", self.dtype)
        columns = self.layout == "columns"
        kept = axes(frame, "kept", self.kept_rank, ("x", "out"), unit=("x", "out") if columns else ())
        length = k.index(frame.number("length"))
        x_axis, out_axis = frame.number("x_axis"), frame.number("out_axis")
        tile = frame.number("tile")
        total_dtype = FLOAT64 if self.dtype.is_float else self.dtype

        def scan(source: Pointer, target: Pointer, lanes: int, mask: Value | None) -> None:
            total = k.variable(k.constant(total_dtype, 1 if self.kind == "prod" else 0, lanes))
            with k.loop(length) as i:
                at = length - 1 - i if self.reverse else i
                element = convert(load(source, times(at, x_axis), lanes, mask), total_dtype)
                before = total.value
                total.value = before * element if self.kind == "prod" else before + element
                store(target, before if self.exclusive else total.value, times(at, out_axis), mask)

        with tiles(frame, kept, tile) as (at, _):
            base_x, base_out = x + at.offsets["x"], out + at.offsets["out"]

            def column(_: int, offset: Operand, mask: Value | None) -> None:
                c = plus(at.start, offset)
                scan(base_x + c, base_out + c, lanes, mask)

            lanes = frame.target.lanes(working(self.dtype))
            if columns:
                over_vectors(k, at.stop - at.start, lanes, 1, column)
                return
            with k.loop(at.stop, start=at.start) as row:
                source = base_x + times(row, kept.strides["x"][-1])
                scan(source, base_out + times(row, kept.strides["out"][-1]), 1, None)
