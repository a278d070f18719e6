"""Tensors that are written by rule: one-hot rows, triangles, ranges, diagonals."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import Function, LanguageError, Operand, Pointer, Value, clamp, convert, iota, minimum
from whet.dtypes import BOOL, FLOAT32, FLOAT64, INT64, UINT8, UINT16, UINT32, UINT64, DType
from whet.kernels.base import Frame
from whet.kernels.walk import axes, load, over_vectors, store, tiles, times, working


def _storage(dtype: DType) -> DType:
    """An integer type of the same size, for elements that are only moved."""
    found = {8: UINT8, 16: UINT16, 32: UINT32, 64: UINT64}.get(dtype.bits)
    if found is None or dtype.bits < 8:
        raise LanguageError("elements of this type cannot be moved one by one", found=dtype)
    return found


def _fill(k: Function, out: Pointer, count: Operand, value: Value) -> None:
    """Write one value `count` times in a row."""
    lanes = k.target.lanes(out.dtype)
    vector = value if lanes == 1 else k.constant_vector(out.dtype, [0] * lanes) | value
    over_vectors(
        k,
        count,
        lanes,
        2,
        lambda _, i, mask: out.store(vector, i) if mask is None else out.store_masked(mask, vector, i),
    )


@dataclass(frozen=True, slots=True)
class OneHot:
    """out[o, d, i] = values[1] where indices[o, i] is d or d - depth, else values[0]; all tensors dense.

    Words: `indices`, `values` (2 elements), `out` addresses; `outer`, `depth`, `inner` extents; `tile`: outer
    positions in one tile. Grid: ceil(outer / tile). An index out of range, or no whole number, matches nothing.
    """

    index: DType
    dtype: DType

    def emit(self, frame: Frame) -> None:
        k, storage = frame.k, _storage(self.dtype)
        indices, values = frame.address("indices", self.index), frame.address("values", storage)
        out = frame.address("out", storage)
        outer, depth, inner = (k.index(frame.number(name)) for name in ("outer", "depth", "inner"))
        tile = frame.number("tile")
        off, on = values.load(0), values.load(1)
        with frame.tiles() as number:
            start = number * tile
            with k.loop(minimum(start + tile, outer), start=start) as o:
                block = out + o * depth * inner
                _fill(k, block, depth * inner, off)
                with k.loop(inner) as i:
                    given = load(indices, o * inner + i, 1)
                    d = convert(given, INT64)
                    valid = d < depth
                    if self.index.kind == "uint":
                        valid = valid & (d >= 0)  # else an uint64 past the int64s
                    else:
                        valid = valid & (d >= -depth)
                        d = d + convert(d < 0, INT64) * depth
                    if given.is_float:
                        valid = valid & (convert(convert(given, INT64), given.dtype) == given)
                    with k.when(valid):
                        block.store(on, d * inner + i)


@dataclass(frozen=True, slots=True)
class Trilu:
    """out[..., r, c] = x[..., r, c] where c - r >= diagonal (`upper`) or c - r <= diagonal (else), and 0 elsewhere.

    Words: `x`, `out` addresses; `kept0`.. (`kept_rank`, at least 1) extents, of which the last is that of rows,
    `x_kept0`.., `out_kept0`.. strides; `columns`, of stride 1; `diagonal` (any int64); `tile`: rows in one tile.
    Grid: kept0 * ... * ceil(rows / tile). out may be x.
    """

    dtype: DType
    upper: bool
    kept_rank: int = 1

    def emit(self, frame: Frame) -> None:
        k, storage = frame.k, _storage(self.dtype)
        x, out = frame.address("x", storage), frame.address("out", storage)
        kept = axes(frame, "kept", self.kept_rank, ("x", "out"))
        columns, diagonal = k.index(frame.number("columns")), k.index(frame.number("diagonal"))
        tile = frame.number("tile")
        # A diagonal beyond the matrix is as good as its edge, and cannot overflow; -1 leaves nothing of row 0.
        diagonal = clamp(diagonal, -k.index(kept.extents[-1]) - 1, columns)
        lanes = frame.target.lanes(storage)
        zero = k.constant(storage, 0)
        with tiles(frame, kept, tile) as (at, _), k.loop(at.stop, start=at.start) as row:
            source = x + at.offsets["x"] + times(row, kept.strides["x"][-1])
            target = out + at.offsets["out"] + times(row, kept.strides["out"][-1])
            edge = clamp(row + diagonal + (0 if self.upper else 1), 0, columns)
            first, last = (edge, columns) if self.upper else (k.index(0), edge)

            def copy(_: int, i: Operand, mask: Value | None) -> None:
                store(target, load(source, first + i, lanes, mask), first + i, mask)

            over_vectors(k, last - first, lanes, 2, copy)
            if self.upper:
                _fill(k, target, edge, zero)
            else:
                _fill(k, target + edge, columns - edge, zero)


@dataclass(frozen=True, slots=True)
class Range:
    """out[i] = start + i * delta: floats in float64, rounded once; integers wrap.

    Words: `start`, `delta` (one element each), `out` addresses; `count` elements; `tile`: elements in one tile.
    Grid: ceil(count / tile).
    """

    dtype: DType

    def emit(self, frame: Frame) -> None:
        k = frame.k
        start, delta = frame.address("start", self.dtype), frame.address("delta", self.dtype)
        out = frame.address("out", self.dtype)
        count, tile = k.index(frame.number("count")), frame.number("tile")
        dtype = FLOAT64 if self.dtype.is_float else self.dtype
        first, step = convert(load(start, 0, 1), dtype), convert(load(delta, 0, 1), dtype)
        lanes = frame.target.lanes(working(self.dtype))
        ones = k.constant(dtype, 1, lanes)
        with frame.tiles() as number:
            begin = number * tile

            def body(_: int, i: Operand, mask: Value | None) -> None:
                at = begin + i
                numbers = convert(at, dtype) * ones + convert(iota(ones), dtype)
                store(out, numbers * step + first, at, mask)

            over_vectors(k, minimum(count - begin, tile), lanes, 2, body)


@dataclass(frozen=True, slots=True)
class EyeLike:
    """out[r, c] = 1 where c - r is `diagonal`, else 0; out is dense.

    Words: `out` address; `rows`, `columns` extents; `diagonal` (any int64); `tile`: rows in one tile. Grid:
    ceil(rows / tile).
    """

    dtype: DType

    def emit(self, frame: Frame) -> None:
        k, storage = frame.k, _storage(self.dtype)
        out = frame.address("out", storage)
        rows, columns, diagonal = (k.index(frame.number(name)) for name in ("rows", "columns", "diagonal"))
        tile = frame.number("tile")
        diagonal = clamp(diagonal, -rows, columns)
        one = k.constant(FLOAT32, 1.0) if self.dtype is not BOOL else k.constant(BOOL, 1)
        with frame.tiles() as number:
            start = number * tile
            with k.loop(minimum(start + tile, rows), start=start) as r:
                _fill(k, out + r * columns, columns, k.constant(storage, 0))
                c = r + diagonal
                with k.when((c >= 0) & (c < columns)):
                    (out.as_type(self.dtype)).store(convert(one, self.dtype), r * columns + c)
