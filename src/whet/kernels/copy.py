"""Copies between strided layouts (transposes among them), and memory filled with one value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from whet.codegen.lang import Function, LanguageError, Operand, Pointer, Value, minimum, prefix_mask
from whet.dtypes import UINT8, UINT16, UINT32, UINT64, DType
from whet.kernels.base import Frame
from whet.kernels.blocks import transpose_block
from whet.kernels.expression import Step, Tape, identity
from whet.kernels.grid import Walk, ceil_div
from whet.kernels.pointwise import Pointwise, Strides
from whet.kernels.rows import can_mask
from whet.kernels.scalar_ops import CONSTANT

_ELEMENTS: dict[int, DType] = {1: UINT8, 2: UINT16, 4: UINT32, 8: UINT64}


def element_of(size: int) -> DType:
    """The type as which elements of `size` bytes are moved."""
    found = _ELEMENTS.get(size)
    if found is None:
        raise LanguageError("no elements of this size", found=size, expected="1, 2, 4 or 8 bytes")
    return found


@dataclass(frozen=True)
class StridedCopy:
    """destination[index] = source[index] for every index; the two do not overlap.

    `source` and `destination` hold strides in elements, None for a word (0 repeats the source). The vectorized
    dimension is the last: both strides 1 there make the fastest copy. Where the dimension in which the source is
    contiguous is another than the destination's (wherever they stand), squares of those two are transposed in
    registers, and `is_transposed` is true.

    Words, in order: `in0`, then `in0_s{d}` where a stride is None; `out0` and `out0_s{d}` likewise; the extents
    `n{d}`; `block`, elements of the last dimension (transposed: of the destination's contiguous one) in a tile;
    transposed: `across`, elements of the source's contiguous dimension in a tile.
    """

    element_bytes: int
    source: Strides
    destination: Strides

    def __post_init__(self) -> None:
        element_of(self.element_bytes)
        if len(self.source) != len(self.destination) or not 1 <= len(self.source) <= 8:
            raise LanguageError(
                "no such strides", found=f"{self.source} and {self.destination}", expected="1 to 8 each"
            )

    @property
    def _dense(self) -> tuple[int, int] | None:
        """(destination's, source's) contiguous dimension where they differ."""
        if 1 not in self.source or 1 not in self.destination:
            return None
        to = [d for d, s in enumerate(self.destination) if s == 1]
        of = [d for d, s in enumerate(self.source) if s == 1]
        return None if set(to) & set(of) else (to[-1], of[-1])

    @property
    def is_transposed(self) -> bool:
        """Whether squares are transposed: the grid and the words are other ones then."""
        return self._dense is not None

    def tiles(self, extents: Sequence[int], block: int, across: int = 1) -> int:
        """Tiles of the grid."""
        dense = self._dense
        if dense is None:
            return Pointwise.tiles(extents, block)
        to, of = dense
        outer = math.prod(e for d, e in enumerate(extents) if d not in dense)
        return outer * -(-extents[of] // across) * -(-extents[to] // block)

    def emit(self, frame: Frame) -> None:
        """Write the kernel's body."""
        dense = self._dense
        if dense is None:
            tape = identity(element_of(self.element_bytes))
            Pointwise(tape, len(self.source), (self.source,), (self.destination,)).emit(frame)
        else:
            self._emit_transposed(frame, *dense)

    def _emit_transposed(self, frame: Frame, to: int, of: int) -> None:
        k, element = frame.k, element_of(self.element_bytes)
        source = frame.address("in0", element)
        source_strides = [frame.number(f"in0_s{d}", s) for d, s in enumerate(self.source)]
        destination = frame.address("out0", element)
        destination_strides = [frame.number(f"out0_s{d}", s) for d, s in enumerate(self.destination)]
        extents = [k.index(frame.number(f"n{d}")) for d in range(len(self.source))]
        block, across = k.index(frame.number("block")), k.index(frame.number("across"))
        outer = [d for d in range(len(extents)) if d not in (to, of)]
        walk = Walk(
            k,
            [*(extents[d] for d in outer), ceil_div(k, extents[of], across), ceil_div(k, extents[to], block)],
            {
                "in": [*(source_strides[d] for d in outer), 0, 0],
                "out": [*(destination_strides[d] for d in outer), 0, 0],
            },
            frame.begin,
        )
        squares = _Squares(k, element, source_strides[to], destination_strides[of])
        with frame.tiles():
            row, column = walk.index(len(outer) + 1) * block, walk.index(len(outer)) * across
            row_stop, column_stop = minimum(row + block, extents[to]), minimum(column + across, extents[of])
            source_tile, destination_tile = source + walk.offset("in"), destination + walk.offset("out")
            with (
                k.loop(column_stop, start=column, step=squares.lanes) as c,
                k.loop(row_stop, start=row, step=squares.lanes) as r,
            ):
                squares.emit(source_tile, destination_tile, r, c, row_stop, column_stop)
            walk.advance()


class _Squares:
    """Squares of a matrix: source rows are contiguous along columns, the destination's columns along rows."""

    def __init__(self, k: Function, element: DType, source_stride: Operand, destination_stride: Operand) -> None:
        self.k = k
        self._element = element
        self._source_stride = source_stride
        self._destination_stride = destination_stride
        self.lanes = min(16, k.target.lanes(element))

    def emit(
        self, source: Pointer, destination: Pointer, row: Value, column: Value, row_stop: Value, column_stop: Value
    ) -> None:
        """Move the square at (row, column), as far as it lies before the stops."""
        k, n = self.k, self.lanes
        rows = [source + ((row + i) * self._source_stride + column) for i in range(n)]
        columns = [destination + ((column + i) * self._destination_stride + row) for i in range(n)]
        row_count, column_count = row_stop - row, column_stop - column
        with k.when((row_count >= n) & (column_count >= n)):
            for to, vector in zip(columns, transpose_block([p.load(0, n) for p in rows]), strict=True):
                to.store(vector)
        with k.otherwise():
            if not can_mask(self._element, k.target):
                self._element_by_element(rows[0], columns[0], row_count, column_count)
                return
            # Where little of a square is left, moving single elements is less work.
            with k.when(minimum(row_count, column_count) >= n // 4):
                self._masked(source, destination, row, column, row_count, column_count)
            with k.otherwise():
                self._element_by_element(rows[0], columns[0], row_count, column_count)

    def _masked(
        self, source: Pointer, destination: Pointer, row: Value, column: Value, row_count: Value, column_count: Value
    ) -> None:
        # Rows that are not there are others again: an access whose mask is empty takes a long time where it reaches
        # memory that does not exist.
        def clamped(first: Value, count: Value) -> list[Value]:
            return [first + minimum(count - 1, i) for i in range(self.lanes)]

        of_row, of_column = prefix_mask(column_count, self.lanes), prefix_mask(row_count, self.lanes)
        rows = [source + (r * self._source_stride + column) for r in clamped(row, row_count)]
        vectors = transpose_block([p.load_masked(of_row) for p in rows])
        columns = [destination + (c * self._destination_stride + row) for c in clamped(column, column_count)]
        for i in range(self.lanes):
            columns[i].store_masked(of_column & (column_count > i), vectors[i])

    def _element_by_element(self, source: Pointer, destination: Pointer, row_count: Value, column_count: Value) -> None:
        k, n = self.k, self.lanes
        of, to = self._source_stride, self._destination_stride
        # A few long rows or columns (the colours of an image) are worth straight code for the long side.
        with k.when(row_count >= n), k.loop(column_count) as c:
            found = [(source + c).load(k.index(r) * of) for r in range(n)]
            for number, element in enumerate(found):
                (destination + c * to).store(element, number)
        with k.otherwise():
            with k.when(column_count >= n), k.loop(row_count) as r:
                found = [(source + r * of).load(c) for c in range(n)]
                for number, element in enumerate(found):
                    (destination + r).store(element, k.index(number) * to)
            with k.otherwise(), k.loop(column_count) as column, k.loop(row_count) as row:
                destination.store(source.load(row * of + column), column * to + row)


@dataclass(frozen=True)
class Fill:
    """Every element of contiguous memory becomes `bits`, an unsigned number of `element_bytes` bytes.

    Words, in order: `out0`, `n0` (elements), `block` (elements per tile). The grid has ceil(n0 / block) tiles.
    """

    element_bytes: int
    bits: int

    @staticmethod
    def tiles(count: int, block: int) -> int:
        """Tiles of the grid."""
        return -(-count // block)

    def emit(self, frame: Frame) -> None:
        """Write the kernel's body."""
        element = element_of(self.element_bytes)
        tape = Tape((), (Step(CONSTANT, element, (), (self.bits,)),), (0,))
        Pointwise(tape, 1, (), ((1,),)).emit(frame)
