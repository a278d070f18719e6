"""The micro-kernel of every matrix product: a tile of sums kept in registers, and what is done to it before the store.

A tile is `rows` x `vectors` registers. The depth loop adds the outer product of a column of A (a broadcast number for
each row) and a row of B (whole vectors). Rows of A are addresses, so that a matrix, a list of pixels and a block of
scratch memory all serve; B is a panel [depth][vectors * lanes].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from whet.codegen.lang import (
    Function,
    LanguageError,
    Operand,
    Pointer,
    Value,
    Variables,
    broadcast,
    fma,
    minimum,
    prefix_mask,
    shuffle,
)
from whet.dtypes import DType
from whet.kernels.base import Frame
from whet.kernels.expression import Tape
from whet.kernels.scalar_ops import COSTS

UNROLL = 4
"""Steps of the depth loop in one round; more cost compile time and gain nothing."""

CACHE_LINE_BITS = 512

_CHAINS = 8
"""Sums that must be under way at once to hide the latency of fma (4 cycles on 2 pipes)."""

_STRAIGHT_STEPS = 24
"""An epilogue of up to so many instructions for a row of a tile is written out for every row, on registers; a longer
one is a loop over rows, through a tile in memory."""

_ROWS_AT_ONCE = 2
"""Rows of a longer one in a round: their results are stored once all are there, as no load is moved across a store."""

OperandKind = Literal["column", "row", "scalar", "full"]


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What is done to the sums before they are stored: `tape`, whose input 0 is a sum and whose others are operands.

    Operand i is word `e{i}`. "column": one number for each output column. "row": one for each row. "scalar": one.
    "full": placed as the output is, with its own row stride, word `e{i}_s`; it may be the output's own memory, because
    every element is read just before it is written. The tape has one output; its type is the
    result's, and types change only by the tape.
    """

    tape: Tape
    operands: tuple[OperandKind, ...] = ()

    @property
    def result(self) -> DType:
        return self.tape.dtype(self.tape.outputs[0])


@dataclass(frozen=True, slots=True)
class Tile:
    """The shape of a tile of sums in registers, in rows and vectors of `lanes` elements."""

    dtype: DType
    rows: int
    vectors: int
    lanes: int

    @property
    def width(self) -> int:
        """Columns, which is the width of a panel of B."""
        return self.vectors * self.lanes

    def with_rows(self, rows: int) -> Tile:
        return Tile(self.dtype, rows, self.vectors, self.lanes)


class Rows(Protocol):
    """The rows of A that a tile needs."""

    def at(self, depth: Operand) -> list[Pointer]:
        """Where each row's element at `depth` is."""
        ...


@dataclass(frozen=True)
class RegularRows:
    """Rows a known number of elements apart: one register holds the address of all of them."""

    first: Pointer
    stride: int
    count: int

    def at(self, depth: Operand) -> list[Pointer]:
        here = self.first + depth
        return [here + row * self.stride for row in range(self.count)]


@dataclass(frozen=True)
class ListedRows:
    """Rows anywhere, a register for each."""

    starts: Sequence[Pointer]

    def at(self, depth: Operand) -> list[Pointer]:
        return [start + depth for start in self.starts]


class RowTable:
    """Addresses of rows in memory. A tile takes its rows' addresses from there: with addresses that it cannot relate to
    each other LLVM keeps one register for each and spills nothing, where it knows a common run-time stride it does."""

    def __init__(self, words: Pointer) -> None:
        self.words = words

    def rows(self, dtype: DType, first: Operand, count: int) -> ListedRows:
        """The rows `first` to `first` + `count` - 1 of the table."""
        here = self.words + first
        return ListedRows([here.load_pointer(dtype, i) for i in range(count)])


@dataclass(frozen=True)
class Ahead:
    """Memory that is wanted next, brought to L2 beside the products of a tile: `lines` cache lines in each round of the
    depth loop, from `start` on. It need not exist."""

    start: Pointer
    lines: int

    @property
    def line(self) -> int:
        """Elements in a cache line."""
        return CACHE_LINE_BITS // self.start.dtype.bits

    def step(self) -> int:
        """Elements that a step of the depth loop goes on, in the mean."""
        return self.lines * self.line // UNROLL

    def moved(self, depth: Operand) -> Ahead:
        """What is fetched from `depth` on."""
        return Ahead(self.start + times(depth, self.step()), self.lines)

    def fetch(self, depth: Operand, number: int) -> None:
        """Ask for line `number` of the round that begins at `depth`."""
        self.start.prefetch(times(depth, self.step()) + number * self.line, locality=2)


def next_panel(tile: Tile, panel: Pointer, depth: Operand, row: Operand, mr: int, lines: int) -> Ahead | None:
    """The part of the panel behind `panel` to fetch beside the products of row tile `row` / `mr`, `lines` in a round;
    None for no lines. As many row tiles as it takes share the panel, the ones behind them begin again."""
    if not lines:
        return None
    ahead = Ahead(panel, lines)
    parts = -(-UNROLL * tile.width // (lines * ahead.line))
    part = row / mr % parts if isinstance(row, Value) else int(row) // mr % parts
    return Ahead(panel + plus(times(depth, tile.width), times(part, times(depth, ahead.step()))), lines)


class Totals(Protocol):
    """A finished tile of sums."""

    @property
    def tile(self) -> Tile: ...

    def totals(self) -> list[list[Value]]:
        """The sums by row and vector."""
        ...


class Sums:
    """A tile of sums. A small tile is kept several times, each for some of the depth, to have enough under way."""

    def __init__(self, k: Function, tile: Tile) -> None:
        self.k = k
        self._tile = tile
        copies = 1
        while copies < UNROLL and copies * tile.rows * tile.vectors < _CHAINS:
            copies *= 2
        self.copies = copies
        zero = k.constant(tile.dtype, 0, tile.lanes)
        places = [(c, i, j) for c in range(copies) for i in range(tile.rows) for j in range(tile.vectors)]
        self._sums: Variables[tuple[int, int, int], Value] = k.variables(dict.fromkeys(places, zero))

    @property
    def tile(self) -> Tile:
        return self._tile

    def add_products(
        self, a: Rows, b: Pointer, depth: Operand, b_stride: Operand | None = None, masks: Sequence[Value] = (),
        ahead: Ahead | None = None,
    ) -> None:  # fmt: skip
        """Add the product of rows `a` and the panel at `b`, over `depth`; `ahead` is fetched meanwhile.

        Rows of B are `b_stride` elements apart where it is no panel; `masks` are its vectors' columns that exist.
        """
        k = self.k
        stride = self.tile.width if b_stride is None else b_stride

        def b_row(row: Pointer) -> list[Value]:
            places = [j * self.tile.lanes for j in range(self.tile.vectors)]
            if masks:
                return [row.load_masked(mask, place) for mask, place in zip(masks, places, strict=True)]
            return [row.load(place, self.tile.lanes) for place in places]

        if isinstance(depth, float):
            raise TypeError("a depth is an integer")
        main = depth & -UNROLL if isinstance(depth, Value) else depth - depth % UNROLL
        if not isinstance(main, int) or main > 0:
            with k.loop(main, step=UNROLL) as p:
                self._steps(a, b, p, stride, UNROLL, b_row, ahead)
        if isinstance(depth, int):
            if depth % UNROLL:
                self._steps(a, b, main, stride, depth % UNROLL, b_row)
        else:
            with k.loop(depth, start=main) as p:
                self._steps(a, b, p, stride, 1, b_row)

    def _steps(
        self, a: Rows, b: Pointer, depth: Operand, stride: Operand, count: int,
        b_row: Callable[[Pointer], list[Value]], ahead: Ahead | None = None,
    ) -> None:  # fmt: skip
        k, tile, sums = self.k, self.tile, self._sums
        row_starts = a.at(depth)
        column = _broadcasts(k, row_starts, count)
        panel = b + times(depth, stride)
        for step in range(count):
            b_vectors = b_row(panel + times(stride, step))
            copy = step % self.copies
            if ahead is not None:
                for line in range(step, ahead.lines, count):
                    ahead.fetch(depth, line)
            for i in range(tile.rows):
                a_i = column(i, step)
                for j in range(tile.vectors):
                    sums[copy, i, j] = multiply_add(b_vectors[j], a_i, sums[copy, i, j])

    def totals(self) -> list[list[Value]]:
        """The sums by row and vector."""
        return [[self._total(i, j) for j in range(self.tile.vectors)] for i in range(self.tile.rows)]

    def _total(self, i: int, j: int) -> Value:
        parts = [self._sums[c, i, j] for c in range(self.copies)]
        while len(parts) > 1:
            parts = [x + y for x, y in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]


def multiply_add(a: Value, b: Value, c: Value) -> Value:
    """a * b + c: floats with one rounding, integers with their low bits."""
    return fma(a, b, c) if c.is_float else a * (broadcast(b, a.lanes) if b.lanes != a.lanes else b) + c


def _broadcasts(k: Function, rows: Sequence[Pointer], count: int) -> Callable[[int, int], Value]:
    """How to get row i's element `step` steps on, of `count`."""
    if k.target.architecture == "aarch64" and count == UNROLL and rows[0].dtype.bits * UNROLL == 128:
        # Its fma takes a number from a lane of a register: one load serves all steps.
        vectors = [row.load(0, UNROLL) for row in rows]
        return lambda i, step: shuffle(vectors[i], None, [step] * UNROLL)
    return lambda i, step: rows[i].load(step)


@dataclass(frozen=True)
class _Place:
    """An epilogue's operand where a tile starts; `stride` is between rows of a full one."""

    kind: OperandKind
    start: Pointer
    stride: Operand


@dataclass(frozen=True)
class Target:
    """Where a tile of results goes: its first element, the row stride, and the epilogue's operands there.

    `columns` is how many columns there are from the tile's first on (it may be more than the tile has).
    """

    start: Pointer
    stride: Operand
    columns: Operand
    operands: tuple[_Place, ...] = ()


@dataclass(frozen=True)
class Finish:
    """The epilogue and the output of one kernel: words, addresses, and how a finished tile is written."""

    k: Function
    epilogue: Epilogue | None
    c: Pointer
    stride: Operand
    operands: tuple[_Place, ...]
    room: Pointer
    each: Callable[[Value], None] | None = None
    """Called with every vector of results beside writing it: what adds them up in a variable."""

    def moved(self, c: Operand, operands: Sequence[Operand]) -> Finish:
        """The same with the output and each operand that many elements further: another matrix of a batch."""
        moved = tuple(
            _Place(p.kind, p.start + offset, p.stride) for p, offset in zip(self.operands, operands, strict=True)
        )
        return Finish(self.k, self.epilogue, self.c + c, self.stride, moved, self.room, self.each)

    def at(self, row: Operand, column: Operand, columns: Operand) -> Target:
        """A tile's place; `columns` are left from `column` on."""
        places = []
        for p in self.operands:
            offset = {
                "column": column,
                "row": row,
                "scalar": 0,
                "full": plus(times(row, p.stride), column),
            }[p.kind]
            places.append(_Place(p.kind, p.start + offset, p.stride))
        start = self.c + plus(times(row, self.stride), column)
        return Target(start, self.stride, columns, tuple(places))

    def store(self, sums: Totals, to: Target) -> None:
        """Do the epilogue to the sums and write them; columns beyond the matrix are not touched."""
        k, tile = self.k, sums.tile
        if isinstance(to.columns, Value) and not self._is_straight(tile) and k.target.has("avx512f"):
            # Masks cost nothing here: one long epilogue serves both.
            self.store_part(sums, to)
        elif isinstance(to.columns, Value):
            with k.when(to.columns >= tile.width):
                self.store_whole(sums, to)
            with k.otherwise():
                self.store_part(sums, to)
        elif to.columns >= tile.width:
            self.store_whole(sums, to)
        else:
            self.store_part(sums, to)

    def store_whole(self, sums: Totals, to: Target) -> None:
        """`store` of a tile that is known to have all its columns."""
        self._store(sums, to, [None] * sums.tile.vectors)

    def store_part(self, sums: Totals, to: Target) -> None:
        """`store` of a tile of which some columns may lie beyond the matrix."""
        self._store(sums, to, self._masks(sums.tile, to))

    def store_rows(self, sums: Totals, to: Target, rows: Operand) -> None:
        """`store` of the first `rows` rows only."""
        tile = sums.tile
        whole = isinstance(to.columns, int) and to.columns >= tile.width
        self._store_rows(sums, to, [None] * tile.vectors if whole else self._masks(tile, to), rows)

    def _masks(self, tile: Tile, to: Target) -> list[Value | None]:
        left = self.k.index(to.columns)
        return [prefix_mask(left - j * tile.lanes, tile.lanes) for j in range(tile.vectors)]

    def _store(self, sums: Totals, to: Target, masks: Sequence[Value | None]) -> None:
        tile = sums.tile
        # Masks of AVX-512 have registers of their own; elsewhere a masked access is many instructions.
        costly_masks = masks[0] is not None and not self.k.target.has("avx512f")
        if costly_masks or not self._is_straight(tile):
            self._store_rows(sums, to, masks, tile.rows)
            return
        for i, row in enumerate(sums.totals()):
            for j, total in enumerate(row):
                self._finish(total, to, i, j * tile.lanes, masks[j])

    def _store_rows(self, sums: Totals, to: Target, masks: Sequence[Value | None], rows: Operand) -> None:
        """Through memory, so that the epilogue is written once for all rows."""
        k, tile = self.k, sums.tile
        for i, row in enumerate(sums.totals()):
            for j, total in enumerate(row):
                self.room.store(total, (i * tile.vectors + j) * tile.lanes, align=64)

        def finish_rows(first: Operand, count: int) -> None:
            results = []
            for row in (plus(first, i) for i in range(count)):
                for j, mask in enumerate(masks):
                    total = self.room.load(plus(times(row, tile.width), j * tile.lanes), tile.lanes)
                    results.append((self._result(total, to, row, j * tile.lanes, mask), row, j * tile.lanes, mask))
            for result, row, column, mask in results:
                self._write(result, to, row, column, mask)

        if isinstance(rows, int):
            rest = rows % _ROWS_AT_ONCE
            with k.loop(rows - rest, step=_ROWS_AT_ONCE) as number:
                finish_rows(number, _ROWS_AT_ONCE)
            if rest:
                finish_rows(rows - rest, rest)
        else:
            with k.loop(rows) as number:
                finish_rows(number, 1)

    def _finish(self, total: Value, to: Target, row: Operand, column: int, mask: Value | None) -> None:
        self._write(self._result(total, to, row, column, mask), to, row, column, mask)

    def _result(self, total: Value, to: Target, row: Operand, column: int, mask: Value | None) -> Value:
        """A vector of sums behind the epilogue."""
        lanes, values = total.lanes, [total]
        for place in to.operands:
            if place.kind == "scalar":
                values.append(place.start.load())
            elif place.kind == "row":
                values.append(place.start.load(row))
            else:
                offset = column if place.kind == "column" else plus(times(row, place.stride), column)
                values.append(
                    place.start.load(offset, lanes) if mask is None else place.start.load_masked(mask, offset)
                )
        result = total if self.epilogue is None else self.epilogue.tape.emit(self.k, values, lanes)[0]
        return result if result.lanes == lanes else broadcast(result, lanes)

    def _write(self, result: Value, to: Target, row: Operand, column: int, mask: Value | None) -> None:
        if self.each is not None:
            self.each(result)
        offset = plus(times(row, to.stride), column)
        if mask is None:
            to.start.store(result, offset)
        else:
            to.start.store_masked(mask, result, offset)

    def _is_straight(self, tile: Tile) -> bool:
        """Whether the epilogue is short enough to be written out for every row."""
        steps = () if self.epilogue is None else self.epilogue.tape.steps
        return sum(COSTS.get(step.op, 1) for step in steps) * tile.vectors <= _STRAIGHT_STEPS


def finish(frame: Frame, tile: Tile, epilogue: Epilogue | None, stride_name: str = "ldc") -> Finish:
    """Ask for the words of the output (`c`, `ldc`) and of the epilogue's operands (`e0`, `e0_s` if full, ...)."""
    result = tile.dtype if epilogue is None else epilogue.result
    c = frame.address("c", result)
    stride = frame.number(stride_name)
    places = []
    for i, kind in enumerate(() if epilogue is None else epilogue.operands):
        assert epilogue is not None
        start = frame.address(f"e{i}", epilogue.tape.inputs[i + 1])
        places.append(_Place(kind, start, frame.number(f"e{i}_s") if kind == "full" else 0))
    room = frame.k.stack_array(tile.dtype, tile.rows * tile.width)
    return Finish(frame.k, epilogue, c, stride, tuple(places), room)


def inner_finish(
    frame: Frame, tile: Tile, epilogue: Epilogue | None, c: Pointer, stride: Operand, prefix: str
) -> Finish:  # fmt: skip
    """Like `finish` for results that stay in the kernel's own memory at `c`: asks for the words of the epilogue's
    operands only ({prefix}0, ...), none of which is full."""
    places = []
    for i, kind in enumerate(() if epilogue is None else epilogue.operands):
        assert epilogue is not None
        if kind == "full":
            raise LanguageError("a result in a kernel's own memory has no full operands", value=f"{prefix}{i}")
        places.append(_Place(kind, frame.address(f"{prefix}{i}", epilogue.tape.inputs[i + 1]), 0))
    room = frame.k.stack_array(tile.dtype, tile.rows * tile.width)
    return Finish(frame.k, epilogue, c, stride, tuple(places), room)


def over_rows(
    k: Function, rows: Operand, most: int, body: Callable[[Operand, int], None], known: Sequence[int] | None = None
) -> None:
    """Do `body`(first row, count) for all `rows`: `most` at a time, then the rest in ever smaller pieces.

    `known` lists the rests that can occur where that is known: each is then one piece of its size.
    """
    if isinstance(rows, float):
        raise TypeError("a number of rows is an integer")
    rest = rows % most
    whole = rows - rest
    with k.loop(whole, step=most) as row:
        body(row, most)
    if isinstance(rest, int):
        if rest:
            body(whole, rest)
        return
    if known is not None:
        for size in sorted(set(known) - {0}):
            with k.when(rest == size):
                body(whole, size)
        return
    first = k.variable(k.index(whole))
    size = 1 << (most - 1).bit_length() - 1 if most > 1 else 0
    while size:
        with k.when((rest & size) != 0):
            body(first.value, size)
            first.value = first.value + size
        size //= 2


def blocks_of(extent: Operand, size: int) -> Operand:
    """How many blocks of `size` cover `extent`."""
    if isinstance(extent, Value):
        return (extent + (size - 1)) / size
    return -(-int(extent) // size)


def even_size(extent: int, most: int) -> int:
    """The size of parts of `extent`, at most `most` and about equal; 1 where there is nothing to part."""
    parts = -(-extent // max(most, 1))
    return -(-extent // parts) if parts else 1


def left_over(k: Function, extent: Operand, start: Value, most: int) -> Value:
    """How much of `extent` is there from `start` on, `most` at most."""
    return minimum(k.index(extent) - start, most)


def plus(a: Operand, b: Operand) -> Operand:
    """a + b, written down only where it is not known."""
    if not isinstance(a, Value) and a == 0:
        return b
    if not isinstance(b, Value) and b == 0:
        return a
    return a + b


def times(a: Operand, b: Operand) -> Operand:
    """a * b, written down only where it is not known."""
    if not isinstance(a, Value) and a in (0, 1):
        return b if a else 0
    if not isinstance(b, Value) and b in (0, 1):
        return a if b else 0
    return a * b
