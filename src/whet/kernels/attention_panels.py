"""Attention for many queries: they lie across the lanes of vectors, keys and values are read as they are.

A panel is a few vectors of queries. Its queries are transposed once; then, for a block of keys at a time, a row of
scores is a key's elements times the rows of the transposed queries, the softmax works down the columns without a
reduction across lanes, and a row of the transposed output is a column of the values times the rows of weights. The
output is transposed back at the end. So no operand is padded, and only the ends of panels are treated apart.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from whet.codegen.lang import (
    Function,
    Operand,
    Pointer,
    Value,
    Variables,
    broadcast,
    convert,
    fma,
    greater_or_second,
    maximum,
    minimum,
    select,
)
from whet.codegen.target import Target
from whet.dtypes import BOOL, FLOAT32, INT32
from whet.kernels.attention_parts import MINUS_INFINITY, Head, finite_maximum, looks_up, masked
from whet.kernels.base import Frame
from whet.kernels.transpose import load_square, transpose

_BLOCK_KEYS = 192
"""Most keys whose scores are held at a time: a multiple of every tile's rows."""
_UNROLL = 4
"""Elements of a head in one round of the loop over them, where registers allow it."""
_BESIDE = 8
"""Rows of the micro-kernel that leave registers for exponentials beside it."""
_AHEAD = 4
"""How many keys before its use a weight is made beside products: so many keys' products hide how long it takes."""


@dataclass(frozen=True, slots=True)
class PanelShape:
    """A panel's extents, in vectors of `lanes` queries, and the micro-kernel's rows beside them."""

    lanes: int
    vectors: int
    rows: int
    panels: int

    @property
    def width(self) -> int:
        """Queries of a panel."""
        return self.lanes * self.vectors

    @property
    def tile_rows(self) -> int:
        """Queries of a tile."""
        return self.width * self.panels

    @property
    def few_rows(self) -> int:
        """Up to so many queries, a panel would be so empty that each alone is faster."""
        return max(self.lanes // 4, 1)


def panel_shape(target: Target, tile_queries: int) -> PanelShape:
    """The panels for a target's registers and for tiles of about so many queries."""
    lanes = target.lanes(FLOAT32)
    rows, vectors = (12, 2) if target.vector_registers >= 32 else (6, 2)
    return PanelShape(lanes, vectors, rows, max(tile_queries // (lanes * vectors), 1))


class PanelMemory:
    """A tile's scratch memory: for each panel the transposed queries and output, maxima and sums; a block's scores."""

    def __init__(self, frame: Frame, shape: PanelShape, head: int, value_head: int) -> None:
        self.shape, self.head, self.value_head = shape, head, value_head
        width, panels = shape.width, shape.panels
        self.queries = frame.scratch(FLOAT32, panels * head * width)
        self.output = frame.scratch(FLOAT32, panels * value_head * width)
        self.maxima = frame.scratch(FLOAT32, panels * width)
        self.sums = frame.scratch(FLOAT32, panels * width)
        self.scores = frame.scratch(FLOAT32, (_BLOCK_KEYS + _AHEAD) * width)
        self.last_keys = frame.scratch(FLOAT32, shape.rows * head)


@dataclass(frozen=True, slots=True)
class _Panel:
    """One panel against one block of keys; `row` is the panel's first row in the tile, `key` the block's first key."""

    k: Function
    head: Head
    memory: PanelMemory
    vectors: int
    row: Value
    key: Value
    count: Value
    queries: Pointer
    output: Pointer
    maxima: Pointer
    sums: Pointer

    @property
    def lanes(self) -> int:
        return self.memory.shape.lanes

    @property
    def width(self) -> int:
        return self.memory.shape.width

    @property
    def columns(self) -> range:
        return range(self.vectors)

    def load(self, base: Pointer, offset: Operand = 0) -> list[Value]:
        """A row of a scratch array: a vector for each column."""
        bytes_ = 4 * self.lanes
        row = base + offset
        return [row.load(j * self.lanes, self.lanes, align=bytes_) for j in self.columns]

    def store(self, base: Pointer, values: list[Value], offset: Operand = 0) -> None:
        row = base + offset
        for j in self.columns:
            row.store(values[j], j * self.lanes, align=4 * self.lanes)


def attend_panels(k: Function, head: Head, memory: PanelMemory) -> None:
    """Compute a tile's rows."""
    shape = memory.shape
    panels = (head.rows + (shape.width - 1)) / shape.width
    _start(k, head, memory)
    # Blocks of equal size: a short last one would cost as much around its inner loops as a whole one.
    total = maximum(head.end - head.first, 0)
    blocks = maximum((total + (_BLOCK_KEYS - 1)) / _BLOCK_KEYS, 1)
    step = (total + (blocks * shape.rows - 1)) / (blocks * shape.rows) * shape.rows
    with k.loop(head.end, start=head.first, step=maximum(step, 1)) as key, k.loop(panels) as p:
        row = p * shape.width
        end = minimum(head.end, key + step)
        if head.upper is not None:
            end = minimum(end, head.upper + row + shape.width)
        with k.when(end > key):
            with k.when(head.rows - row <= shape.lanes):
                _block(_panel(k, head, memory, 1, p, key, end - key))
            with k.otherwise():
                _block(_panel(k, head, memory, shape.vectors, p, key, end - key))
    _finish(k, head, memory)


def _panel(k: Function, head: Head, memory: PanelMemory, vectors: int, p: Value, key: Value, count: Value) -> _Panel:
    width = memory.shape.width
    return _Panel(
        k, head, memory, vectors, p * width, key, count,
        memory.queries + p * (memory.head * width), memory.output + p * (memory.value_head * width),
        memory.maxima + p * width, memory.sums + p * width,
    )  # fmt: skip


def _start(k: Function, head: Head, memory: PanelMemory) -> None:
    """Transpose the queries, and clear what sums up."""
    shape, lanes = memory.shape, memory.shape.lanes
    zero = k.constant(FLOAT32, 0.0, lanes)
    top = k.constant(FLOAT32, MINUS_INFINITY, lanes) if head.sink is None else broadcast(head.sink, lanes)
    with k.loop((head.rows + (lanes - 1)) / lanes) as group:
        panel, column = group / shape.vectors, group % shape.vectors * lanes
        # The rows past the last one repeat it; nothing of theirs is kept.
        rows = [head.q + minimum(group * lanes + i, head.rows - 1) * head.q_row for i in range(lanes)]
        to = memory.queries + (panel * (memory.head * shape.width) + column)

        def pack(d: Operand, count: int, rows: list[Pointer] = rows, to: Pointer = to) -> None:
            square = transpose(load_square([row + d for row in rows], count))
            for i in range(count):
                to.store(square[i] * head.query_factor, (k.index(d) + i) * shape.width)

        whole = memory.head // lanes * lanes
        with k.loop(whole, step=lanes) as d:
            pack(d, lanes)
        if memory.head > whole:
            pack(whole, memory.head - whole)
        output = memory.output + (panel * (memory.value_head * shape.width) + column)
        with k.loop(memory.value_head) as d:
            output.store(zero, d * shape.width)
        memory.maxima.store(top, group * lanes)
        memory.sums.store(zero if head.sink is None else k.constant(FLOAT32, 1.0, lanes), group * lanes)


def _block(panel: _Panel) -> None:
    top = _scores(panel)
    if _is_masked(panel.head):
        _masks(panel)
        top = _largest(panel)
    _weigh(panel, top)


def _is_masked(head: Head) -> bool:
    return head.mask is not None or head.upper is not None or head.lower is not None


def _scores(panel: _Panel) -> list[Value]:
    """scores[key, query] = sum over d of k[key, d] q[query, d], a tile of keys at a time; the largest so far."""
    k, head, memory = panel.k, panel.head, panel.memory
    tile = range(memory.shape.rows)
    zero = k.constant(FLOAT32, 0.0, panel.lanes)
    top = k.variables(dict(enumerate(panel.load(panel.maxima))))
    with k.loop(panel.count, step=len(tile), nonempty=True) as first:
        keys = k.variable(head.k + (panel.key + first) * head.k_row)
        stride = k.variable(head.k_row)
        with k.when(panel.count - first < len(tile)):
            _copy_last_keys(panel, keys.value, panel.count - first)
            keys.value, stride.value = memory.last_keys, k.index(memory.head)
        rows = [keys.value + stride.value * i for i in tile]
        sums = k.variables({(i, j): zero for i in tile for j in panel.columns})
        unroll = _UNROLL if k.target.vector_registers >= 32 else 1
        whole = memory.head - memory.head % unroll
        with k.loop(whole, step=unroll) as d:
            for step in range(unroll):
                _add_products(panel, sums, [row + d for row in rows], step, panel.queries + d * panel.width)
        for last in range(whole, memory.head):
            _add_products(panel, sums, rows, last, panel.queries)
        scores = {at: head.capped(value) for at, value in sums.items()}
        for i in tile:
            panel.store(memory.scores, [scores[i, j] for j in panel.columns], (first + i) * panel.width)
        if not _is_masked(head):
            for j in panel.columns:
                top[j] = functools.reduce(greater_or_second, [scores[i, j] for i in tile], top[j])
    return [top[j] for j in panel.columns]


def _add_products(
    panel: _Panel, sums: Variables[tuple[int, int], Value], rows: list[Pointer], step: int, queries: Pointer
) -> None:
    """Add the products of element `step` of each row and of the queries."""
    vectors = panel.load(queries, step * panel.width)
    for i, row in enumerate(rows):
        element = broadcast(row.load(step), panel.lanes)
        for j in panel.columns:
            sums[i, j] = fma(element, vectors[j], sums[i, j])


def _copy_last_keys(panel: _Panel, keys: Pointer, count: Value) -> None:
    """Fewer keys than a tile has, followed by copies of the last one, to where all of the tile's rows may be read."""
    k, memory, lanes = panel.k, panel.memory, panel.lanes
    whole = memory.head // lanes * lanes
    with k.loop(memory.shape.rows) as i:
        source, to = keys + minimum(i, count - 1) * panel.head.k_row, memory.last_keys + i * memory.head
        with k.loop(whole, step=lanes) as d:
            to.store(source.load(d, lanes), d)
        for left in range(whole, memory.head):
            to.store(source.load(left), left)


def _masks(panel: _Panel) -> None:
    """Add the mask; scores of keys that a query does not see become minus infinity."""
    k, head, memory = panel.k, panel.head, panel.memory
    if head.mask is not None:
        _add_mask(panel)
    for limit, above in ((head.upper, True), (head.lower, False)):
        if limit is None:
            continue
        # The limit of query 0 of the panel, as an index into the block.
        limit = limit + panel.row - panel.key
        crossing = limit < panel.count - 1 if above else limit + (panel.width - 1) > 0
        with k.when(crossing):
            near = convert(minimum(maximum(limit, -(1 << 30)), 1 << 30), INT32)
            limits = [
                k.constant_vector(INT32, range(j * panel.lanes, (j + 1) * panel.lanes)) + near for j in panel.columns
            ]
            with k.loop(panel.count, nonempty=True) as i:
                scores = panel.load(memory.scores, i * panel.width)
                key = broadcast(convert(i, INT32), panel.lanes)
                hidden = [key > last if above else key < last for last in limits]
                masked = [select(h, MINUS_INFINITY, s) for h, s in zip(hidden, scores, strict=True)]
                panel.store(memory.scores, masked, i * panel.width)


def _add_mask(panel: _Panel) -> None:
    """The mask's rows, transposed, on the scores."""
    k, head, scores, lanes, width = panel.k, panel.head, panel.memory.scores, panel.lanes, panel.width
    assert head.mask is not None
    mask = head.mask + (panel.row * head.mask_row + panel.key * head.mask_key)
    with k.when(head.mask_row == 0), k.loop(panel.count, nonempty=True) as i:
        element = broadcast(mask.load(i * head.mask_key), lanes)
        panel.store(scores, [masked(s, element) for s in panel.load(scores, i * width)], i * width)
    with k.when(head.mask_row != 0):
        whole = k.variable(k.index(0))
        with k.when(head.mask_key == 1):
            whole.value = panel.count / lanes * lanes
        last = head.rows - panel.row - 1
        for j in panel.columns:
            # Rows past the last one repeat it.
            rows = [mask + minimum(last, j * lanes + i) * head.mask_row for i in range(lanes)]
            column = scores + j * lanes
            with k.loop(whole.value, step=lanes) as i:
                square = transpose([_addend(k, row.load(i, lanes)) for row in rows])
                for key, addend in enumerate(square):
                    to = column + (i + key) * width
                    to.store(to.load(0, lanes) + addend)
            with k.loop(panel.count, start=whole.value) as i:
                addend = k.constant(FLOAT32, 0.0, lanes)
                for lane, row in enumerate(rows):
                    addend = addend.with_lane(lane, _addend(k, row.load(i * head.mask_key)))
                to = column + i * width
                to.store(to.load(0, lanes) + addend)


def _addend(k: Function, mask: Value) -> Value:
    """A mask as float32 addends."""
    if mask.dtype is not BOOL:
        return mask
    return select(mask, k.constant(FLOAT32, 0.0, mask.lanes), MINUS_INFINITY)


def _largest(panel: _Panel) -> list[Value]:
    """The largest scores so far."""
    k, scores = panel.k, panel.memory.scores
    top = k.variables(dict(enumerate(panel.load(panel.maxima))))
    with k.loop(panel.count, nonempty=True) as i:
        for j, score in enumerate(panel.load(scores, i * panel.width)):
            top[j] = greater_or_second(score, top[j])
    return [top[j] for j in panel.columns]


def _weigh(panel: _Panel, top: list[Value]) -> None:
    """Turn scores into exp(score - maximum) in place, and go on with the sums of them and of the values times them."""
    k, head, memory = panel.k, panel.head, panel.memory
    base = [finite_maximum(t) for t in top]
    correction = [head.exponential(old - b) for old, b in zip(panel.load(panel.maxima), base, strict=True)]
    total = k.variables({j: s * correction[j] for j, s in enumerate(panel.load(panel.sums))})

    def make(key: Value) -> list[Value]:
        place = key * panel.width
        weights = [head.exponential(score - b) for score, b in zip(panel.load(memory.scores, place), base, strict=True)]
        panel.store(memory.scores, weights, place)
        return weights

    def count(weights: list[Value]) -> None:
        for j in panel.columns:
            total[j] = total[j] + weights[j]

    start = 0
    if looks_up(k.target):
        # The scores behind the block's last ones are anything, and so are their weights, which nobody reads.
        start = min(_BESIDE, memory.value_head)
        with k.loop(_AHEAD, nonempty=True) as i:
            make(i)
        with _value_tile(panel, start, 0, correction) as add, k.loop(panel.count, nonempty=True) as i:
            weights = panel.load(memory.scores, i * panel.width)
            make(i + _AHEAD)
            count(weights)
            add(i, weights)
    else:
        with k.loop(panel.count, nonempty=True) as i:
            count(make(i))
    for size, tiles in _parts(memory.value_head - start, memory.shape.rows):
        with (
            k.loop(tiles) as t,
            _value_tile(panel, size, t * size + start, correction) as add,
            k.loop(panel.count, nonempty=True) as i,
        ):
            add(i, panel.load(memory.scores, i * panel.width))
        start += size * tiles
    panel.store(panel.maxima, top)
    panel.store(panel.sums, [total[j] for j in panel.columns])


@contextmanager
def _value_tile(
    panel: _Panel, size: int, first: Operand, correction: list[Value]
) -> Iterator[Callable[[Value, list[Value]], None]]:
    """output[d, query] = output[d, query] correction[query] + sum over keys of v[key, d] weights[key, query], for
    `size` d from `first` on. Gives what adds one key's part."""
    output = panel.output + panel.k.index(first) * panel.width
    values = panel.head.v + (panel.key * panel.head.v_row + first)
    tile = range(size)
    sums = panel.k.variables(
        {(i, j): o * correction[j] for i in tile for j, o in enumerate(panel.load(output, i * panel.width))}
    )

    def add(key: Value, weights: list[Value]) -> None:
        row = values + key * panel.head.v_row
        for i in tile:
            element = broadcast(row.load(i), panel.lanes)
            for j in panel.columns:
                sums[i, j] = fma(element, weights[j], sums[i, j])

    yield add
    for i in tile:
        panel.store(output, [sums[i, j] for j in panel.columns], i * panel.width)


def _parts(extent: int, limit: int) -> list[tuple[int, int]]:
    """`extent` as tiles of at most `limit`, as equal as can be: (size, number of such tiles)."""
    if not extent:
        return []
    tiles = -(-extent // limit)
    size, larger = divmod(extent, tiles)
    return [(s, n) for s, n in ((size + 1, larger), (size, tiles - larger)) if n]


def _finish(k: Function, head: Head, memory: PanelMemory) -> None:
    """Divide by the sums, transpose back and store."""
    shape, lanes = memory.shape, memory.shape.lanes
    with k.loop((head.rows + (lanes - 1)) / lanes) as group:
        panel, column = group / shape.vectors, group % shape.vectors * lanes
        source = memory.output + (panel * (memory.value_head * shape.width) + column)
        total = memory.sums.load(group * lanes, lanes)
        factor = 1.0 / select(total == 0.0, 1.0, total)
        rows = [head.y + minimum(group * lanes + i, head.rows - 1) * head.y_row for i in range(lanes)]

        def unpack(d: Operand, count: int, rows: list[Pointer] = rows, source: Pointer = source) -> None:
            columns = [source.load((k.index(d) + i) * shape.width, lanes) * factor for i in range(count)]
            square = transpose(columns + columns[:1] * (lanes - count))
            keep = k.constant_vector(BOOL, [i < count for i in range(lanes)])
            # Rows past the last one are written first, over the last one, which then gets its own.
            for i in reversed(range(lanes)):
                if count == lanes:
                    rows[i].store(square[i], d)
                else:
                    rows[i].store_masked(keep, square[i], d)

        whole = memory.value_head // lanes * lanes
        with k.loop(whole, step=lanes) as d:
            unpack(d, lanes)
        if memory.value_head > whole:
            unpack(whole, memory.value_head - whole)
