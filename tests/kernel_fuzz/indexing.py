"""Kernels that follow indices: gathers, scatters, lookups, one-hot, positions of non-zeros, rotary caches."""

from __future__ import annotations

import math

import numpy as np

from whet.codegen.target import Target
from whet.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, FLOAT64, INT32, INT64, DType
from whet.kernels.base import INDEX_OUT_OF_BOUNDS
from whet.kernels.gather import Gather, GatherElements, GatherND
from whet.kernels.generate import EyeLike, OneHot, Range, Trilu
from whet.kernels.lookup import LookupSum, Table
from whet.kernels.nonzero import NonZeroCount, NonZeroWrite
from whet.kernels.rotary import RotaryEmbedding
from whet.kernels.scatter import Reduction, ScatterElements, ScatterND

from .call import Array, Call, Operand
from .draw import ALL_TYPES, FLOATS, INTEGERS, Draw, tolerance
from .moves import ELEMENTS, element
from .operands import changed, given, made, names, numbers, tile_count, wide

INDICES = (INT32, INT64)


def _indices(draw: Draw, dtype: DType, axis: int, extents: tuple[int, ...], from_end: bool = True) -> Array:
    """Indices into an axis (not empty), negative ones too."""
    low = -axis if from_end and draw.chance(0.4) else 0
    return draw.rng.integers(low, max(axis, 1), extents).astype(dtype.numpy)


def _spoiled(draw: Draw, indices: Array, axis: int, from_end: bool = True) -> bool:
    """Put an index that is outside of the axis among the others."""
    if not indices.size or (axis and not draw.chance(0.12)):
        return False
    info = np.iinfo(indices.dtype)
    low = -axis - 1 if from_end else -1
    indices.reshape(-1)[draw.integer(0, indices.size - 1)] = draw.one((axis, low, info.min, info.max, axis + 1))
    if not axis:
        indices[...] = 0
    return True


def _fails(spoiled: bool) -> tuple[int, ...]:
    return (INDEX_OUT_OF_BOUNDS,) if spoiled else ()


def gather_spec(draw: Draw, target: Target) -> Gather:
    return Gather(element(draw), draw.one(INDICES), draw.one((None, 1, 1, 2, 3, 8, 20)))


def gather_call(draw: Draw, spec: Gather, target: Target) -> Call:
    dtype = ELEMENTS[spec.element_bytes]
    inner = draw.extent(70) if spec.inner is None else spec.inner
    outer, axis, count = draw.extents(3, 900 // max(inner, 1))
    values = draw.values(dtype, (outer, axis, inner))
    indices = _indices(draw, spec.index, axis, (count,))
    block = draw.block(inner)
    tiles = spec.tiles(outer, count, inner, block)
    spoiled = bool(tiles) and _spoiled(draw, indices, axis)
    expected = None if spoiled or not tiles else np.take(values, indices, axis=1, mode="wrap")
    out = made(dtype, (outer, count, inner), None, expected)
    words: dict[str, Operand | int] = {"data": given(dtype, values), "indices": given(spec.index, indices), "out": out}
    words |= {"outer": outer, "axis": axis, "count": count, "block": block}
    if spec.inner is None:
        words["inner"] = inner
    return Call(words, tiles, _fails(spoiled))


def gather_elements_spec(draw: Draw, target: Target) -> GatherElements:
    rank = draw.integer(1, 4)
    return GatherElements(element(draw), draw.one(INDICES), rank, draw.integer(0, rank - 1))


def _element_axes(draw: Draw, rank: int, axis: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(extents of indices, extents of data): data's are at least the indices' but along the axis."""
    extents = draw.extents(rank, 300)
    data = [e + draw.one((0, 0, 0, 2)) for e in extents]
    data[axis] = draw.extent(20)
    return extents, tuple(data)


def gather_elements_call(draw: Draw, spec: GatherElements, target: Target) -> Call:
    dtype = ELEMENTS[spec.element_bytes]
    extents, data_extents = _element_axes(draw, spec.rank, spec.axis)
    axis = data_extents[spec.axis]
    values = draw.values(dtype, data_extents)
    indices = _indices(draw, spec.index, axis, extents)
    spoiled = _spoiled(draw, indices, axis)
    part = values[tuple(slice(None) if d == spec.axis else slice(e) for d, e in enumerate(extents))]
    expected = None if spoiled or not indices.size else np.take_along_axis(part, indices % max(axis, 1), spec.axis)
    data = given(dtype, values, draw.strides(data_extents, shared=False, backwards=True))
    words: dict[str, Operand | int] = {"data": data, "indices": given(spec.index, indices), "axis": axis}
    words |= {"out": made(dtype, extents, None, expected), **numbers("n", extents)}
    words |= data.strides(*names("data_s", spec.rank))
    return Call(words, spec.tiles(extents), _fails(spoiled))


def gather_nd_spec(draw: Draw, target: Target) -> GatherND:
    return GatherND(element(draw), draw.one(INDICES), draw.integer(1, 3))


def gather_nd_call(draw: Draw, spec: GatherND, target: Target) -> Call:
    dtype = ELEMENTS[spec.element_bytes]
    batch, per_batch, inner = draw.extents(3, 200)
    batch = max(batch, 1)
    axes = draw.extents(spec.width, 24)
    values = draw.values(dtype, (batch, *axes, inner))
    strides = draw.strides(values.shape, values.ndim - 1)
    parts = [_indices(draw, spec.index, a, (batch, per_batch)) for a in axes]
    spoiled = False
    if batch * per_batch:
        for part, a in zip(parts, axes, strict=True):
            spoiled = _spoiled(draw, part, a) or spoiled
    indices = np.stack(parts, axis=-1)
    expected = None
    if not spoiled and indices.size:
        at = [part % max(a, 1) for part, a in zip(parts, axes, strict=True)]
        expected = values[(np.arange(batch)[:, None], *at)]
    data = given(dtype, values, strides)
    words: dict[str, Operand | int] = {"data": data, "indices": given(spec.index, indices)}
    words |= {"out": made(dtype, (batch, per_batch, inner), None, expected), "inner": inner, "per_batch": per_batch}
    words |= {"batch_stride": strides[0], **numbers("axis", axes), **numbers("data_s", strides[1:-1])}
    return Call(words, batch * per_batch, _fails(spoiled))


def _reduction(draw: Draw) -> Reduction:
    return draw.one(("none", "none", "add", "mul", "max", "min"))


def _combine(reduction: Reduction, dtype: DType, there: Array, update: Array) -> Array:
    if reduction == "none":
        return update
    if dtype is BOOL:
        return there | update if reduction in ("add", "max") else there & update
    a, b = there, update
    if dtype in (FLOAT16, BFLOAT16):
        a, b = a.astype(np.float32), b.astype(np.float32)
    with np.errstate(all="ignore"):
        made_ = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[reduction](a, b)
    return np.asarray(made_).astype(dtype.numpy)


def scatter_elements_spec(draw: Draw, target: Target) -> ScatterElements:
    rank = draw.integer(1, 3)
    return ScatterElements(draw.one(ALL_TYPES), draw.one(INDICES), rank, draw.integer(0, rank - 1), _reduction(draw))


def scatter_elements_call(draw: Draw, spec: ScatterElements, target: Target) -> Call:
    extents, out_extents = _element_axes(draw, spec.rank, spec.axis)
    if math.prod(extents) > 120:
        extents = tuple(min(e, 5) for e in extents)
    axis = out_extents[spec.axis]
    values, updates = draw.values(spec.dtype, out_extents), draw.values(spec.dtype, extents)
    indices = _indices(draw, spec.index, axis, extents)
    spoiled = _spoiled(draw, indices, axis)
    expected = values.copy()
    if not spoiled:
        order = [*(d for d in range(spec.rank) if d != spec.axis), spec.axis]
        for at in np.ndindex(*(extents[d] for d in order)):
            place = [0] * spec.rank
            for d, i in zip(order, at, strict=True):
                place[d] = i
            source = tuple(place)
            place[spec.axis] = int(indices[source]) % axis
            to = tuple(place)
            expected[to] = _combine(spec.reduction, spec.dtype, expected[to], updates[source])
    out = changed(spec.dtype, values, draw.strides(out_extents), expected, tolerance(spec.dtype), 0.0)
    words: dict[str, Operand | int] = {"out": out, "indices": given(spec.index, indices), "axis": axis}
    words |= {"updates": given(spec.dtype, updates), **numbers("n", extents)}
    return Call({**words, **out.strides(*names("out_s", spec.rank))}, spec.tiles(extents), _fails(spoiled))


def scatter_nd_spec(draw: Draw, target: Target) -> ScatterND:
    return ScatterND(draw.one(ALL_TYPES), draw.one(INDICES), draw.integer(1, 3), _reduction(draw))


def scatter_nd_call(draw: Draw, spec: ScatterND, target: Target) -> Call:
    inner, count = draw.extent(70), draw.extent(20)
    axes = draw.extents(spec.width, 12)
    values = draw.values(spec.dtype, (*axes, inner))
    updates = draw.values(spec.dtype, (count, inner))
    parts = [_indices(draw, spec.index, a, (count,)) for a in axes]
    spoiled = False
    if inner:
        for part, a in zip(parts, axes, strict=True):
            spoiled = _spoiled(draw, part, a) or spoiled
    expected = values.copy()
    if not spoiled and inner:
        for t in range(count):
            at = tuple(int(part[t]) % a for part, a in zip(parts, axes, strict=True))
            expected[at] = _combine(spec.reduction, spec.dtype, expected[at], updates[t])
    strides = draw.strides(values.shape, spec.width)
    out = changed(spec.dtype, values, strides, expected, tolerance(spec.dtype), 0.0)
    block = draw.block(inner)
    words: dict[str, Operand | int] = {"out": out, "indices": given(spec.index, np.stack(parts, axis=-1))}
    words |= {"updates": given(spec.dtype, updates), "count": count, "inner": inner, "block": block}
    words |= {**numbers("axis", axes), **numbers("out_s", strides[:-1])}
    return Call(words, spec.tiles(inner, block), _fails(spoiled))


def lookup_spec(draw: Draw, target: Target) -> LookupSum:
    out = draw.one((FLOAT32, FLOAT32, FLOAT64))
    types = (FLOAT32, FLOAT16, BFLOAT16, FLOAT64) if out is FLOAT64 else (FLOAT32, FLOAT16, BFLOAT16)
    tables = tuple(Table(draw.one(types), draw.one((INT32, INT64, None))) for _ in range(draw.integer(1, 3)))
    return LookupSum(tables, out)


def lookup_call(draw: Draw, spec: LookupSum, target: Target) -> Call:
    rows, columns, width = draw.extents(3, 400)
    total = np.zeros((rows, columns, width))
    words: dict[str, Operand | int] = {"columns": columns, "width": width}
    spoiled = False
    for t, table in enumerate(spec.tables):
        extent = columns if table.index is None else draw.extent(9)
        values = draw.values(table.dtype, (extent, width))
        words[f"table{t}"] = given(table.dtype, values)
        if table.index is None:
            total = total + wide(values)
            continue
        indices = _indices(draw, table.index, extent, (rows, columns), from_end=False)
        spoiled = _spoiled(draw, indices, extent, from_end=False) or spoiled
        if not spoiled and indices.size:
            total = total + wide(values)[indices]
        operand = given(table.index, indices, draw.strides(indices.shape))
        words |= {f"index{t}": operand, f"rows{t}": extent, **operand.strides(f"index{t}_i", f"index{t}_j")}
    words["out"] = made(spec.out, total.shape, None, total, tolerance(spec.out), tolerance(spec.out) * 4)
    return Call(words, rows * columns, _fails(spoiled))


def one_hot_spec(draw: Draw, target: Target) -> OneHot:
    return OneHot(draw.one((INT32, INT64, FLOAT32, *INTEGERS)), draw.one(ALL_TYPES))


def one_hot_call(draw: Draw, spec: OneHot, target: Target) -> Call:
    outer, depth, inner = draw.extents(3, 500)
    low = 0 if spec.index.kind == "uint" else -depth - 2
    indices = draw.rng.integers(low, depth + 3, (outer, inner)).astype(spec.index.numpy)
    values = draw.values(spec.dtype, (2,))
    at = indices.astype(np.float64)[:, None, :]
    steps = np.arange(depth)[None, :, None]
    expected = np.where((at == steps) | (at == steps - depth), values[1], values[0])
    tile = draw.block(outer)
    words: dict[str, Operand | int] = {"indices": given(spec.index, indices), "values": given(spec.dtype, values)}
    words |= {"out": made(spec.dtype, (outer, depth, inner), None, expected), "outer": outer, "depth": depth}
    return Call({**words, "inner": inner, "tile": tile}, -(-outer // tile))


_DIAGONALS = (0, 0, 1, -1, 2, -3, 10, -70, 2**62, -(2**62), 2**63 - 1, -(2**63))


def trilu_spec(draw: Draw, target: Target) -> Trilu:
    return Trilu(draw.one(ALL_TYPES), draw.chance(0.5), draw.integer(1, 3))


def trilu_call(draw: Draw, spec: Trilu, target: Target) -> Call:
    *kept, columns = draw.extents(spec.kept_rank + 1, 600)
    extents = (*kept, columns)
    values, diagonal = draw.values(spec.dtype, extents), draw.one(_DIAGONALS)
    near = max(min(diagonal, 10**6), -(10**6))
    distance = np.arange(columns)[None, :] - np.arange(kept[-1])[:, None]
    keep = distance >= near if spec.upper else distance <= near
    expected = np.where(keep, values, np.zeros((), values.dtype))
    rank = spec.kept_rank + 1
    strides = draw.strides(extents, rank - 1)
    tile = draw.block(kept[-1])
    words: dict[str, Operand | int] = {"columns": columns, "diagonal": diagonal, "tile": tile, **numbers("kept", kept)}
    if draw.chance(0.3):
        x = out = changed(spec.dtype, values, strides, expected)
    else:
        x, out = (
            given(spec.dtype, values, strides),
            made(spec.dtype, extents, draw.strides(extents, rank - 1), expected),
        )
    words |= {"x": x, "out": out, **x.strides(*names("x_kept", spec.kept_rank), "")}
    return Call({**words, **out.strides(*names("out_kept", spec.kept_rank), "")}, tile_count(kept, tile))


def range_spec(draw: Draw, target: Target) -> Range:
    return Range(draw.one((*FLOATS, *INTEGERS)))


def range_call(draw: Draw, spec: Range, target: Target) -> Call:
    count = draw.extent(300)
    start, delta = draw.values(spec.dtype, (1,)), draw.values(spec.dtype, (1,))
    with np.errstate(all="ignore"):
        if spec.dtype.is_float:
            expected = wide(start)[0] + np.arange(count) * wide(delta)[0]
        else:
            exact = [(int(start[0]) + i * int(delta[0])) % 2**spec.dtype.bits for i in range(count)]
            expected = np.array(exact, np.uint64).astype(spec.dtype.numpy)
    tile = draw.block(count)
    limit = tolerance(spec.dtype)
    words: dict[str, Operand | int] = {"start": given(spec.dtype, start), "delta": given(spec.dtype, delta)}
    words |= {"out": made(spec.dtype, (count,), None, expected, limit, limit), "count": count, "tile": tile}
    return Call(words, -(-count // tile))


def eye_spec(draw: Draw, target: Target) -> EyeLike:
    return EyeLike(draw.one(ALL_TYPES))


def eye_call(draw: Draw, spec: EyeLike, target: Target) -> Call:
    rows, columns = draw.extents(2, 600)
    diagonal = draw.one(_DIAGONALS)
    near = max(min(diagonal, 10**6), -(10**6))
    expected = (np.arange(columns)[None, :] - np.arange(rows)[:, None] == near).astype(spec.dtype.numpy)
    tile = draw.block(rows)
    words: dict[str, Operand | int] = {"out": made(spec.dtype, (rows, columns), None, expected), "rows": rows}
    return Call({**words, "columns": columns, "diagonal": diagonal, "tile": tile}, -(-rows // tile))


def _sparse(draw: Draw, dtype: DType, extents: tuple[int, ...]) -> Array:
    values = draw.values(dtype, extents, special=True)
    return np.where(draw.rng.random(extents) < draw.one((0.0, 0.1, 0.5, 1.0)), values, np.zeros((), values.dtype))


def count_spec(draw: Draw, target: Target) -> NonZeroCount:
    return NonZeroCount(draw.one(ALL_TYPES))


def count_call(draw: Draw, spec: NonZeroCount, target: Target) -> Call:
    x = _sparse(draw, spec.dtype, (draw.extent(500),))
    count = made(INT64, (1,), None, np.array([np.count_nonzero(wide(x))]))
    return Call({"x": given(spec.dtype, x), "count": count, "size": x.size}, 1)


def positions_spec(draw: Draw, target: Target) -> NonZeroWrite:
    return NonZeroWrite(draw.one(ALL_TYPES), draw.integer(1, 4))


def positions_call(draw: Draw, spec: NonZeroWrite, target: Target) -> Call:
    extents = draw.extents(spec.rank, 500)
    x = _sparse(draw, spec.dtype, extents)
    expected = np.stack(np.nonzero(wide(x)))
    row = expected.shape[1] + draw.one((0, 0, 3))
    out = made(INT64, expected.shape, (row, 1), expected)
    words: dict[str, Operand | int] = {"x": given(spec.dtype, x), "out": out, "out_row": row}
    return Call({**words, **numbers("extent", extents)}, 1)


def rotary_spec(draw: Draw, target: Target) -> RotaryEmbedding:
    half = draw.one((1, 2, 3, 4, 7, 8, 16, 20))
    head = 2 * half + draw.one((0, 0, 1, 5, 16))
    positions = draw.one(("rows", "ids", "first"))
    from_end = positions == "ids" and draw.chance(0.5)
    return RotaryEmbedding(draw.one(FLOATS), head, half, draw.chance(0.5), positions, from_end)


def rotary_call(draw: Draw, spec: RotaryEmbedding, target: Target) -> Call:
    batch, heads, rows = draw.extents(3, 24)
    extents = (batch, heads, rows, spec.head)
    values = draw.values(spec.dtype, extents)
    strides = draw.strides(extents, 3)
    words: dict[str, Operand | int] = {"heads": heads, "rows": rows}
    spoiled = False
    if spec.positions == "rows":
        shape: tuple[int, ...] = (batch, rows, spec.half)
        cache_strides = draw.strides(shape, 2, shared=True)
        words |= {"cache_batch": cache_strides[0], "cache_row": cache_strides[1]}
        positions = np.zeros((batch, rows), np.int64)
    else:
        cache_rows = draw.extent(20, 1) + (rows if spec.positions == "first" else 0)
        shape = (cache_rows, spec.half)
        cache_strides = draw.strides(shape, 1)
        words |= {"cache_row": cache_strides[0], "cache_rows": cache_rows}
        if spec.positions == "first":
            first = draw.rng.integers(0, cache_rows - rows + 1, (1,))
            if batch * rows and draw.chance(0.1):
                first[0], spoiled = draw.one((cache_rows, -1, 2**63 - 1, -(2**63))), True
            words["position_ids"] = given(INT64, first)
            positions = np.broadcast_to(first + np.arange(rows), (batch, rows))
        else:
            positions = _indices(draw, INT64, cache_rows, (batch, rows), spec.from_end)
            spoiled = _spoiled(draw, positions, cache_rows, spec.from_end)
            ids = given(INT64, positions, draw.strides((batch, rows)))
            words |= {"position_ids": ids, **ids.strides("ids_batch", "ids_row")}
            positions = positions % cache_rows
    caches = [
        draw.values(spec.dtype, [1 if s == 0 else e for e, s in zip(shape, cache_strides, strict=True)])
        for _ in range(2)
    ]
    caches = [np.broadcast_to(c, shape) for c in caches]
    expected = None
    if not spoiled and values.size:
        cos, sin = (wide(c) if spec.positions == "rows" else wide(c)[positions] for c in caches)
        turned = wide(values).copy()
        at = (slice(0, 2 * spec.half, 2), slice(1, 2 * spec.half, 2))
        if not spec.interleaved:
            at = (slice(0, spec.half), slice(spec.half, 2 * spec.half))
        a, b = turned[..., at[0]].copy(), turned[..., at[1]].copy()
        turned[..., at[0]] = a * cos[:, None] - b * sin[:, None]
        turned[..., at[1]] = a * sin[:, None] + b * cos[:, None]
        expected = turned
    limit = tolerance(spec.dtype)
    if draw.chance(0.3) and not spoiled:
        x = y = changed(spec.dtype, values, strides, expected, limit, 4 * limit)
    else:
        x = given(spec.dtype, values, strides)
        y = made(spec.dtype, extents, draw.strides(extents, 3), expected, limit, 4 * limit)
    words |= {"x": x, "y": y, "cos": given(spec.dtype, caches[0], cache_strides)}
    words |= {"sin": given(spec.dtype, caches[1], cache_strides), **x.strides("x_batch", "x_head", "x_row", "")}
    return Call({**words, **y.strides("y_batch", "y_head", "y_row", "")}, batch * rows, _fails(spoiled))
