"""Packing of a matrix that is known only at run: B in the panels that `Gemm` reads."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import Operand, Pointer, Value, prefix_mask
from whet.codegen.values import constant_vector
from whet.dtypes import INT64, DType
from whet.kernels.base import Frame
from whet.kernels.grid import ceil_div


@dataclass(frozen=True, slots=True)
class PackB:
    """Panels [ceil(n / width), k, width] of B [k, n], zeros behind the last column, for a batch of matrices.

    Words: b, packed, k, n, b_row, b_column (strides), batch1, b_batch0, b_batch1, packed_batch0, packed_batch1: matrix
    number i is (i / batch1, i % batch1). `unit_column` fixes b_column as 1 (and b_column has no word). A tile is one
    panel of one matrix; panels run fastest: batch * ceil(n / width) tiles.
    """

    dtype: DType
    width: int
    unit_column: bool = False

    def emit(self, frame: Frame) -> None:
        k = frame.k
        b, packed = frame.address("b", self.dtype), frame.address("packed", self.dtype)
        depth, columns = k.index(frame.number("k")), k.index(frame.number("n"))
        row, column = frame.number("b_row"), frame.number("b_column", 1 if self.unit_column else None)
        batch1 = k.index(frame.number("batch1"))
        b0, b1 = frame.number("b_batch0"), frame.number("b_batch1")
        p0, p1 = frame.number("packed_batch0"), frame.number("packed_batch1")
        panels = ceil_div(k, columns, self.width)
        lanes = min(frame.target.lanes(self.dtype), self.width)
        with frame.tiles() as tile:
            matrix, panel = tile / panels, tile % panels
            i0, i1 = matrix / batch1, matrix % batch1
            first = panel * self.width
            source = b + (i0 * b0 + i1 * b1 + first * column)
            target = packed + (i0 * p0 + i1 * p1 + first * depth)
            inside = columns - first
            with k.loop(depth) as p:
                for j in range(0, self.width, lanes):
                    mask = prefix_mask(inside - j, lanes)
                    values = self._row(frame, source + p * row, j, column, mask, lanes)
                    target.store(values, p * self.width + j)

    def _row(self, frame: Frame, source: Pointer, j: int, column: Operand, mask: Value, lanes: int) -> Value:
        if self.unit_column:
            return source.load_masked(mask, j)
        steps = constant_vector(frame.k, INT64, range(j, j + lanes))
        return source.gather(steps * column, mask)
