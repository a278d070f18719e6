"""General matrix product: C[m, n] = epilogue(A[m, k] · B[k, n]), B in panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from whet.codegen.lang import Function, Operand, Pointer, Value, minimum, prefix_mask, select, shuffle
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, INT64, DType
from whet.kernels.base import Frame
from whet.kernels.gemm_tile import rests
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
    next_panel,
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
    `width(target)` columns, filled with zeros; or, not `b_packed`, read in place: rows of n elements, word `ldb` apart.

    `batch`: matrices numbered (i0, i1) with i1 in range(batch1): word `batch1`, and for each of a, b, c and e{i} the
    words `{name}_batch0`, `{name}_batch1`, how many elements one step of i0 or i1 is (0: shared).

    A tile is `m_block` rows x `panels` panels of one matrix. `m` fixed saves code for row counts that do not occur, and
    so does `multiple`, of which m is one. `ahead` lines of the next panel are fetched in each round of the depth loop.
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
    b_packed: bool = True
    batch: bool = False
    ahead: int = 0
    multiple: int = 1

    def width(self, target: Target) -> int:
        """Columns in a panel of B."""
        return self.nv * target.lanes(self.dtype)

    def tiles(self, target: Target, m: int, n: int, batch: int = 1) -> int:
        """The number of tiles: batch * ceil(ceil(n / width) / panels) * ceil(m / m_block)."""
        columns = self.width(target) * self.panels
        return batch * ((n + columns - 1) // columns) * ((m + self.m_block - 1) // self.m_block)

    def emit(self, frame: Frame) -> None:
        k = frame.k
        tile = Tile(self.dtype, self.mr, self.nv, frame.target.lanes(self.dtype))
        a = frame.address("a", self.dtype)
        b = frame.address("b", self.dtype)
        m, n, depth = frame.number("m", self.m), frame.number("n", self.n), frame.number("k", self.k)
        lda: Value | int = self.lda if self.lda is not None else k.index(frame.number("lda"))
        ldb = None if self.b_packed else frame.number("ldb")
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
        rest_sizes = rests(self.m_block, self.mr, self.m, self.multiple)

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
            # With one panel in a tile all its row blocks follow each other: they fetch the next one together.
            shared_from = first_row if self.panels == 1 else 0
            a_block = a + moved["a"] + first_row * lda
            b_matrix = b + moved["b"]
            rows = left_over(k, m, first_row, self.m_block)
            if table is not None:
                with k.loop(rows) as row:
                    table.words.store_pointer(a_block + row * lda, row)

            def rows_at(row: Operand, count: int) -> Rows:
                if table is not None:
                    return table.rows(self.dtype, row, count)
                assert isinstance(lda, int)
                return RegularRows(a_block + times(row, lda), lda, count)

            first_panel = group * self.panels
            last_panel = minimum(first_panel + self.panels, panels)
            with k.loop(last_panel, start=first_panel) as panel:
                column = panel * tile.width
                b_panel = b_matrix + (panel * times(depth, tile.width) if self.b_packed else column)
                columns = tile.width if self.n is not None and self.n % tile.width == 0 else k.index(n) - column

                def multiply(row: Operand, count: int) -> None:
                    place = here.at(plus(first_row, row), column, columns)
                    sums = Sums(k, tile.with_rows(count))
                    lines = self.ahead if count > 1 else 0
                    ahead = next_panel(tile, b_panel, depth, plus(shared_from, row), self.mr, lines)
                    if self.b_packed or isinstance(columns, int):
                        sums.add_products(rows_at(row, count), b_panel, depth, ldb, ahead=ahead)
                        here.store(sums, place)
                        return
                    with k.when(columns >= tile.width):
                        sums.add_products(rows_at(row, count), b_panel, depth, ldb)
                        here.store_whole(sums, place)
                    with k.otherwise():
                        masks = [prefix_mask(columns - j * tile.lanes, tile.lanes) for j in range(tile.vectors)]
                        sums.add_products(rows_at(row, count), b_panel, depth, ldb, masks)
                        here.store_part(sums, place)

                over_rows(k, rows, self.mr, multiply, rest_sizes)


@dataclass(frozen=True, slots=True)
class PackB:
    """Packs matrices B [k, n] in panels for `Gemm`, at run time: [ceil(n / width)][k][width], zeros in the rest.

    Words: b, packed, k, n, b_k and b_n (elements from one row, and column, to the next; `unit` names the axis where
    that is 1 and that has no word). `batch`: words batch1, b_batch0, b_batch1 as for `Gemm`; the packed matrices
    follow each other, i1 fastest.
    """

    nv: int
    unit: Literal["k", "n"] | None = None
    dtype: DType = FLOAT32
    batch: bool = False

    def width(self, target: Target) -> int:
        """Columns in a panel."""
        return self.nv * target.lanes(self.dtype)

    def packed_elements(self, target: Target, n: int, k: int) -> int:
        """Elements of one packed matrix: ceil(n / width) * width * k."""
        width = self.width(target)
        return (n + width - 1) // width * width * k

    def tiles(self, target: Target, n: int, batch: int = 1) -> int:
        """batch * ceil(n / width): a tile is a panel."""
        width = self.width(target)
        return batch * ((n + width - 1) // width)

    def emit(self, frame: Frame) -> None:
        k = frame.k
        lanes = frame.target.lanes(self.dtype)
        b = frame.address("b", self.dtype)
        packed = frame.address("packed", self.dtype)
        depth, n = frame.number("k"), frame.number("n")
        b_k = frame.number("b_k", 1 if self.unit == "k" else None)
        b_n = frame.number("b_n", 1 if self.unit == "n" else None)
        batch1 = frame.number("batch1") if self.batch else 1
        b_batch = (frame.number("b_batch0"), frame.number("b_batch1")) if self.batch else (0, 0)
        width = self.nv * lanes
        panels = blocks_of(n, width)
        with frame.tiles() as number:
            matrix, panel = number / panels, number % panels
            start = b
            if self.batch:
                start = b + ((matrix / batch1) * b_batch[0] + (matrix % batch1) * b_batch[1])
            column = panel * width
            source = _Matrix(k, start + times(column, b_n), b_k, b_n, lanes)
            target = packed + number * (k.index(depth) * width)
            columns = k.index(n) - column
            if self.unit == "n":
                source.copy_rows(target, depth, width, columns)
                return
            first: Operand = 0
            if self.unit == "k":
                with k.when(columns >= width):
                    source.transpose_blocks(target, depth, width)
                first = select(columns >= width, k.index(depth) & -lanes, 0)
            source.copy_elements(target, first, depth, width, columns)


@dataclass(frozen=True)
class _Matrix:
    """A part of B that begins at `start`, and the ways to copy it into a panel."""

    k: Function
    start: Pointer
    row_step: Operand
    column_step: Operand
    lanes: int

    def copy_rows(self, panel: Pointer, depth: Operand, width: int, columns: Value) -> None:
        """Row by row, where columns are neighbours."""
        places = range(0, width, self.lanes)
        masks = [prefix_mask(columns - place, self.lanes) for place in places]
        with self.k.loop(depth) as p:
            row = self.start + times(p, self.row_step)
            for place, mask in zip(places, masks, strict=True):
                panel.store(row.load_masked(mask, place), p * width + place)

    def transpose_blocks(self, panel: Pointer, depth: Operand, width: int) -> None:
        """Square blocks, transposed in registers, where rows are neighbours; the depth's rest is left out."""
        with self.k.loop(self.k.index(depth) & -self.lanes, step=self.lanes) as p:
            for place in range(0, width, self.lanes):
                columns = [
                    (self.start + p + times(self.column_step, place + j)).load(0, self.lanes) for j in range(self.lanes)
                ]
                for row, vector in enumerate(transposed(columns)):
                    panel.store(vector, (p + row) * width + place)

    def copy_elements(self, panel: Pointer, first: Operand, depth: Operand, width: int, columns: Value) -> None:
        """One by one, from row `first` on."""
        k = self.k
        present = minimum(columns, width)
        with k.loop(depth, start=first) as p:
            row = self.start + times(p, self.row_step)
            with k.loop(present) as j:
                panel.store(row.load(times(j, self.column_step)), p * width + j)
            with k.loop(width, start=present) as j:
                panel.store(0.0, p * width + j)


def transposed(rows: Sequence[Value]) -> list[Value]:
    """The columns of a square of as many vectors as they have lanes."""
    count = len(rows)
    current = list(rows)
    for _ in range(count.bit_length() - 1):
        # A perfect shuffle of the rows' elements: after as many as the number has bits, rows and columns have changed.
        pairs = [(current[i], current[i + count // 2]) for i in range(count // 2)]
        low = [lane for i in range(count // 2) for lane in (i, count + i)]
        high = [lane + count // 2 for lane in low]
        current = [shuffle(a, b, half) for a, b in pairs for half in (low, high)]
    return current


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
