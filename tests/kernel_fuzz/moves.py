"""Kernels that move elements: copies, fills, periodic continuation, reversal, nearest neighbours."""

from __future__ import annotations

import numpy as np

from whet.codegen.target import Target
from whet.dtypes import INT32, INT64, UINT8, UINT16, UINT32, UINT64, DType
from whet.kernels.base import BAD_VALUE
from whet.kernels.copy import Fill, StridedCopy
from whet.kernels.periodic import Periodic
from whet.kernels.pointwise import Strides
from whet.kernels.resize import Nearest
from whet.kernels.reverse import ReverseSequence
from whet.kernels.store import StoreNumbers

from .call import Call, Operand
from .draw import Draw
from .operands import changed as changed_in_place
from .operands import given, made, names, numbers, tile_count

ELEMENTS: dict[int, DType] = {1: UINT8, 2: UINT16, 4: UINT32, 8: UINT64}


def element(draw: Draw) -> int:
    return draw.one((1, 2, 4, 4, 8))


def copy_spec(draw: Draw, target: Target) -> StridedCopy:
    rank = draw.integer(1, 5)

    def side(source: bool) -> Strides:
        fixed: list[int | None] = [None] * rank
        if draw.chance(0.75):
            fixed[draw.one((rank - 1, draw.integer(0, rank - 1)))] = 1
        if source and draw.chance(0.2):
            axis = draw.integer(0, rank - 1)
            fixed[axis] = 0 if fixed[axis] is None else fixed[axis]
        return tuple(fixed)

    return StridedCopy(element(draw), side(True), side(False))


def _strided(draw: Draw, fixed: Strides, extents: tuple[int, ...], source: bool) -> tuple[int, ...]:
    unit = fixed.index(1) if 1 in fixed else None
    found = draw.strides(extents, unit, shared=source, backwards=True)
    return tuple(0 if f == 0 else s for f, s in zip(fixed, found, strict=True))


def copy_call(draw: Draw, spec: StridedCopy, target: Target) -> Call:
    rank, dtype = len(spec.source), ELEMENTS[spec.element_bytes]
    extents = draw.extents(rank, 900)
    source, destination = _strided(draw, spec.source, extents, True), _strided(draw, spec.destination, extents, False)
    values = draw.values(dtype, [1 if s == 0 else e for e, s in zip(extents, source, strict=True)])
    values = np.broadcast_to(values, extents)
    in0, out0 = given(dtype, values, source), made(dtype, extents, destination, values)
    words: dict[str, Operand | int] = {"in0": in0, "out0": out0, **numbers("n", extents)}
    words |= {f"in0_s{d}": s for d, s in enumerate(source) if spec.source[d] is None}
    words |= {f"out0_s{d}": s for d, s in enumerate(destination) if spec.destination[d] is None}
    block, across = draw.block(extents[-1]), 1
    if spec.is_transposed:
        across = draw.block(17)
        words["across"] = across
    words["block"] = block
    return Call(words, spec.tiles(extents, block, across))


def fill_spec(draw: Draw, target: Target) -> Fill:
    size = element(draw)
    return Fill(size, draw.random.getrandbits(8 * size))


def fill_call(draw: Draw, spec: Fill, target: Target) -> Call:
    dtype, count = ELEMENTS[spec.element_bytes], draw.extent(400)
    block = draw.block(count)
    out = made(dtype, (count,), None, np.full(count, spec.bits, dtype.numpy))
    return Call({"out0": out, "n0": count, "block": block}, spec.tiles(count, block))


def periodic_spec(draw: Draw, target: Target) -> Periodic:
    return Periodic(element(draw), draw.integer(1, 3), draw.chance(0.5))


def periodic_call(draw: Draw, spec: Periodic, target: Target) -> Call:
    dtype = ELEMENTS[spec.element_bytes]
    kept = draw.extents(spec.kept_rank, 60)
    before, length, after = draw.extent(9), draw.extent(12, 1), draw.extent(20)
    extents = (*kept, before + length + after)
    strides = draw.strides(extents, spec.kept_rank - 1 if spec.unit else None)
    values = draw.values(dtype, extents)
    expected = values[..., before + (np.arange(extents[-1]) - before) % length]
    x = changed_in_place(dtype, values, strides, expected)
    tile = draw.block(kept[-1])
    words: dict[str, Operand | int] = {"x": x, "before": before, "length": length, "after": after, "tile": tile}
    words |= numbers("kept", kept) | x.strides(*names("x_kept", spec.kept_rank, spec.unit), "axis")
    return Call(words, tile_count(kept, tile))


def reverse_spec(draw: Draw, target: Target) -> ReverseSequence:
    return ReverseSequence(element(draw))


def reverse_call(draw: Draw, spec: ReverseSequence, target: Target) -> Call:
    dtype = ELEMENTS[spec.element_bytes]
    extents = draw.extents(3, 500)
    batch, time, _ = extents
    values = draw.values(dtype, extents)
    lengths = draw.rng.integers(0, time + 1, batch)
    expected = values.copy()
    fails: tuple[int, ...] = ()
    if batch * time and draw.chance(0.15):
        lengths[draw.integer(0, batch - 1)] = draw.one((-1, time + 1, -(2**63), 2**63 - 1))
        fails = (BAD_VALUE,)
    else:
        for b in range(batch):
            expected[b, : lengths[b]] = values[b, : lengths[b]][::-1]
    x, out = given(dtype, values, draw.strides(extents, 2)), made(dtype, extents, draw.strides(extents, 2), expected)
    words: dict[str, Operand | int] = {"x": x, "lengths": given(INT64, lengths), "out": out, "inner": extents[2]}
    words |= {"batch": batch, "time": time, **x.strides("x_batch", "x_time", "")}
    return Call({**words, **out.strides("out_batch", "out_time", "")}, batch * time, fails)


def nearest_spec(draw: Draw, target: Target) -> Nearest:
    indexed = tuple(draw.chance(0.5) for _ in range(draw.integer(1, 4)))
    filled, repeats, row = draw.chance(0.4), None, None
    if draw.chance(0.3):
        indexed, repeats = (*indexed[:-1], False), draw.one((2, 2, 3, 4))
        row = draw.one((None, repeats * draw.integer(1, 40)))
    return Nearest(element(draw), indexed, filled, repeats, row)


def nearest_call(draw: Draw, spec: Nearest, target: Target) -> Call:
    dtype, rank = ELEMENTS[spec.element_bytes], len(spec.indexed)
    extents, times = draw.extents(rank, 500), spec.repeats or 1
    if spec.repeats is not None:
        extents = (*extents[:-1], extents[-1] // times * times if spec.row is None else spec.row)
    looked_up = tuple(min(draw.extent(12, 1), 2400 // 12 ** (sum(spec.indexed[d:])) + 2) for d in range(rank))
    sources = tuple(s if i else e for s, e, i in zip(looked_up, extents, spec.indexed, strict=True))
    sources = (*sources[:-1], sources[-1] if spec.indexed[-1] else sources[-1] // times)
    values = draw.values(dtype, sources)
    x = given(dtype, values, draw.strides(sources, None if spec.indexed[-1] else rank - 1))
    out_strides = draw.strides(extents, rank - 1)
    words: dict[str, Operand | int] = {"x": x}
    picked, outside = np.repeat(values, times, axis=-1) if times > 1 else values, np.zeros(extents, np.bool_)
    for d in range(rank):
        if spec.indexed[d]:
            table = draw.rng.integers(-1 if spec.filled else 0, sources[d], extents[d])
            words[f"table{d}"] = given(INT32, table)
            picked = np.take(picked, np.maximum(table, 0), axis=d)
            outside |= (table < 0).reshape([-1 if i == d else 1 for i in range(rank)])
    if spec.filled:
        fill = draw.values(dtype, (1,))
        words["fill"] = given(dtype, fill)
        picked = np.where(outside, fill[0], picked)
    out = made(dtype, extents, out_strides, picked)
    tile = draw.block(extents[-1]) * times if spec.row is None else spec.row
    words |= {"out": out, "tile": tile, **numbers("n", extents), **out.strides(*names("out_n", rank, True))}
    return Call({**words, **x.strides(*names("x_n", rank, not spec.indexed[-1]))}, tile_count(extents, tile))


def store_spec(draw: Draw, target: Target) -> StoreNumbers:
    return StoreNumbers(draw.one((INT64, INT32, UINT8)), draw.integer(0, 9))


def store_call(draw: Draw, spec: StoreNumbers, target: Target) -> Call:
    values = draw.values(spec.dtype, (spec.count,))
    out = made(spec.dtype, (spec.count,), None, values)
    return Call({"out": out, **numbers("v", values.tolist())}, 1)
