"""General matrix product: C[m, n] = epilogue(A[m, k] · B[k, n]), B in panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from whet.codegen.lang import Operand, Value, minimum
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, INT64, DType
from whet.kernels.base import Frame
from whet.kernels.tile import (
    Epilogue,
    RegularRows,
    Rows,
    RowTable,
    Sums,
    Tile,
    blocks_of,
    finish,
    left_over,
    over_rows,
    plus,
    times,
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Gemm:
    """A product of matrices, or of two batches of them.

    Words: a, b, c, m, n, k, lda, ldc, e0, e0_s, ...; those that are fixed here have no word. A has unit stride along
    k and rows `lda` elements apart; C likewise, `ldc` apart. B is packed (`PackB`, `pack_b`) in panels of
    `width(target)` columns, filled with zeros.

    `batch`: matrices numbered (i0, i1) with i1 in range(batch1): word `batch1`, and for each of a, b, c and e{i} the
    words `{name}_batch0`, `{name}_batch1`, how many elements one step of i0 or i1 is (0: shared).

    A tile is `m_block` rows x `panels` panels of one matrix. `m` fixed saves code for row counts that do not occur.
    """

    dtype: DType = FLOAT32
    m: int | None = None
    n: int | None = None
    k: int | None = None
    lda: int | None = None
    mr: int = 14
    nv: int = 2
    m_block: int = 112
    panels: int = 4
    epilogue: Epilogue | None = None
    batch: bool = False

    def width(self, target: Target) -> int:
        """Columns in a panel of B."""
        return self.nv * target.lanes(self.dtype)

    def tiles(self, target: Target, m: int, n: int, batch: int = 1) -> int:
        """The number of tiles: batch * ceil(ceil(n / width) / panels) * ceil(m / m_block)."""
        return batch * -(-n // (self.width(target) * self.panels)) * -(-m // self.m_block)

    def emit(self, frame: Frame) -> None:
        k = frame.k
        tile = Tile(self.dtype, self.mr, self.nv, frame.target.lanes(self.dtype))
        a = frame.address("a", self.dtype)
        b = frame.address("b", self.dtype)
        m, n, depth = frame.number("m", self.m), frame.number("n", self.n), frame.number("k", self.k)
        lda = frame.number("lda", self.lda)
        everywhere = finish(frame, tile, self.epilogue)
        operands = [f"e{i}" for i in range(len(everywhere.operands))]
        batch1 = frame.number("batch1") if self.batch else 1
        strides = {
            name: (frame.number(f"{name}_batch0"), frame.number(f"{name}_batch1")) if self.batch else (0, 0)
            for name in ("a", "b", "c", *operands)
        }
        table = None if isinstance(lda, int) else RowTable(frame.scratch(INT64, self.m_block))
        row_blocks = blocks_of(m, self.m_block)
        panels = blocks_of(n, tile.width)
        groups = blocks_of(n, tile.width * self.panels)
        rests = None if self.m is None else [self.m % self.m_block % self.mr, self.m_block % self.mr]

        with frame.tiles() as number:
            # Rows run fastest: tiles that follow each other share their panels of B.
            rest, row_block = number / row_blocks, number % row_blocks
            group: Value = rest
            index0: Operand = 0
            index1: Operand = 0
            if self.batch:
                matrix, group = rest / groups, rest % groups
                index0, index1 = matrix / batch1, matrix % batch1
            moved = {
                name: plus(times(index0, stride0), times(index1, stride1))
                for name, (stride0, stride1) in strides.items()
            }
            here = everywhere.moved(moved["c"], [moved[name] for name in operands])
            first_row = row_block * self.m_block
            a_block = a + moved["a"] + first_row * lda
            b_matrix = b + moved["b"]
            rows = left_over(k, m, first_row, self.m_block)
            if table is not None:
                with k.loop(rows) as row:
                    table.words.store_pointer(a_block + row * lda, row)

            def rows_at(row: Operand, count: int) -> Rows:
                if table is not None:
                    return table.rows(self.dtype, row, count)
                return RegularRows(a_block + times(row, lda), lda, count)

            first_panel = group * self.panels
            last_panel = minimum(first_panel + self.panels, panels)
            with k.loop(last_panel, start=first_panel) as panel:
                column = panel * tile.width
                b_panel = b_matrix + panel * times(depth, tile.width)
                columns = tile.width if self.n is not None and self.n % tile.width == 0 else k.index(n) - column

                def multiply(row: Operand, count: int) -> None:
                    sums = Sums(k, tile.with_rows(count))
                    sums.add_products(rows_at(row, count), b_panel, depth)
                    here.store(sums, here.at(plus(first_row, row), column, columns))

                over_rows(k, rows, self.mr, multiply, rests)


def pack_b(matrix: Array, width: int) -> Array:
    """B [k, n] as panels [ceil(n / width), k, width], zeros in the rest of the last one."""
    depth, columns = matrix.shape
    whole = columns // width
    packed = aligned_empty((-(-columns // width), depth, width), matrix.dtype)
    packed[:whole] = matrix[:, : whole * width].reshape(depth, whole, width).transpose(1, 0, 2)
    if whole * width < columns:
        packed[whole, :, : columns - whole * width] = matrix[:, whole * width :]
        packed[whole, :, columns - whole * width :] = 0
    return packed


def aligned_empty(shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """An array that starts at a multiple of 64 bytes."""
    count = prod(shape) * dtype.itemsize
    room = np.empty(count + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + count].view(dtype).reshape(shape)


def choose_tile(target: Target, m: int | None, n: int, k: int, dtype: DType = FLOAT32) -> Sequence[int]:
    """(mr, nv, m_block, panels)."""
    return 14, 2, 112, 4
