"""Rotary position embedding (Su et al., RoFormer, 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from whet.codegen.lang import Pointer, Value, convert, interleave, select, shuffle
from whet.dtypes import FLOAT32, FLOAT64, INT64, DType
from whet.kernels.base import INDEX_OUT_OF_BOUNDS, Frame

Positions = Literal["rows", "ids", "first"]


@dataclass(frozen=True, slots=True)
class RotaryEmbedding:
    """y = x with the first 2 * `half` elements of every head turned in pairs; the others pass through.

    A pair (a, b) at angle i becomes (a cos[i] - b sin[i], a sin[i] + b cos[i]). Pairs are elements (i, i + half), or
    (2 i, 2 i + 1) where `interleaved`. x and y are [batch, heads, rows, head] of `dtype`, the caches hold `half`
    elements of `dtype` in a row; 16-bit floats are turned in float32. x and y may be the same memory.

    The row of the caches for row r of batch entry b is, by `positions`:
    - "rows": b * cache_batch + r * cache_row, in elements;
    - "ids": number position_ids[b, r] (int64) of cache_rows rows; negative ones count from the end if `from_end`;
    - "first": number position_ids[0] + r.
    A number outside [0, cache_rows) fails with INDEX_OUT_OF_BOUNDS and b * rows + r ("first": 0 + r) as its position.

    Grid: batch * rows. Words: x, y, cos, sin; heads, rows; x_batch, x_head, x_row, y_batch, y_head, y_row, cache_row
    (strides); then cache_batch ("rows"), or position_ids, cache_rows and ("ids") ids_batch, ids_row.
    """

    dtype: DType
    head: int
    half: int
    interleaved: bool = False
    positions: Positions = "ids"
    from_end: bool = False

    def emit(self, frame: Frame) -> None:
        k = frame.k
        x, y, cos, sin = (frame.address(name, self.dtype) for name in ("x", "y", "cos", "sin"))
        heads, rows = k.index(frame.number("heads")), k.index(frame.number("rows"))
        x_batch, x_head, x_row, y_batch, y_head, y_row, cache_row = (
            k.index(frame.number(name))
            for name in ("x_batch", "x_head", "x_row", "y_batch", "y_head", "y_row", "cache_row")
        )
        cache_batch = k.index(frame.number("cache_batch")) if self.positions == "rows" else k.index(0)
        if self.positions != "rows":
            ids, cache_rows = frame.address("position_ids", INT64), k.index(frame.number("cache_rows"))
        ids_batch = ids_row = k.index(0)
        if self.positions == "ids":
            ids_batch, ids_row = k.index(frame.number("ids_batch")), k.index(frame.number("ids_row"))
        with frame.tiles() as tile:
            batch, row = tile / rows, tile % rows
            if self.positions == "rows":
                angle = batch * cache_batch + row * cache_row
            else:
                position = ids.load(batch * ids_batch + row * ids_row)
                if self.positions == "first":
                    # A first position near the type's end must not wrap into the range.
                    frame.fail_if(position >= cache_rows, INDEX_OUT_OF_BOUNDS, row)
                    position = position + row
                elif self.from_end:
                    position = select(position < 0, position + cache_rows, position)
                outside = (position < 0) | (position >= cache_rows)
                frame.fail_if(outside, INDEX_OUT_OF_BOUNDS, row if self.positions == "first" else tile)
                angle = position * cache_row
            with k.loop(heads) as head:
                self._turn(
                    x + (batch * x_batch + head * x_head + row * x_row),
                    y + (batch * y_batch + head * y_head + row * y_row),
                    cos + angle,
                    sin + angle,
                )

    def _turn(self, x: Pointer, y: Pointer, cos: Pointer, sin: Pointer) -> None:
        """One row of one head."""
        lanes = x.emitter.target.lanes(self._wide)
        for start, count in _pieces(self.half, lanes):
            a, b = self._pairs(x, start, count)
            c, s = self._load(cos, start, count), self._load(sin, start, count)
            self._store_pairs(y, start, a * c - b * s, a * s + b * c)
        for start, count in _pieces(self.head - 2 * self.half, lanes):
            at = 2 * self.half + start
            y.store(x.load(at, count), at)

    @property
    def _wide(self) -> DType:
        """The type to compute in."""
        return FLOAT64 if self.dtype is FLOAT64 else FLOAT32

    def _load(self, row: Pointer, start: int, count: int) -> Value:
        return convert(row.load(start, count), self._wide)

    def _pairs(self, x: Pointer, start: int, count: int) -> tuple[Value, Value]:
        if not self.interleaved:
            return self._load(x, start, count), self._load(x, self.half + start, count)
        both = self._load(x, 2 * start, 2 * count)
        return shuffle(both, None, range(0, 2 * count, 2)), shuffle(both, None, range(1, 2 * count, 2))

    def _store_pairs(self, y: Pointer, start: int, a: Value, b: Value) -> None:
        a, b = convert(a, self.dtype), convert(b, self.dtype)
        if not self.interleaved:
            y.store(a, start)
            y.store(b, self.half + start)
        elif a.lanes == 1:
            y.store(a, 2 * start)
            y.store(b, 2 * start + 1)
        else:
            y.store(interleave(a, b), 2 * start)


def _pieces(extent: int, lanes: int) -> list[tuple[int, int]]:
    """`extent` elements as (start, count): whole vectors, then ever smaller powers of two."""
    pieces, start = [], 0
    while start < extent:
        while lanes > extent - start:
            lanes //= 2
        pieces.append((start, lanes))
        start += lanes
    return pieces
