"""Kernels that fold or normalize along an axis: reductions, extremes, softmax, running totals, top k; and checks."""

from __future__ import annotations

import numpy as np

from whet.codegen.target import Target
from whet.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, INT64, DType
from whet.kernels.base import BAD_VALUE, EXTENT_MISMATCH
from whet.kernels.check import Check
from whet.kernels.check_numbers import CheckNumbers
from whet.kernels.checks import RequireNonZero
from whet.kernels.extreme import ArgReduce
from whet.kernels.reduce import Reduce
from whet.kernels.scan import Cumulative
from whet.kernels.softmax import Softmax
from whet.kernels.topk import TopK

from .call import Array, Call, Operand
from .draw import FLOATS, INTEGERS, Draw, tolerance
from .operands import apply_tape, changed, epilogue_tape, given, made, names, numbers, tile_count, wide

NUMBERS = (*FLOATS, *FLOATS, *INTEGERS)
_SIXTEEN = (FLOAT16, BFLOAT16)


def reduce_spec(draw: Draw, target: Target) -> Reduce:
    dtype = draw.one(NUMBERS)
    kind = draw.one(("sum", "mean", "max", "min", "prod", "sum_square", "l1", "l2", "log_sum", "log_sum_exp"))
    stage = draw.one(("whole", "whole", "whole", "parts", "combine"))
    prologue = epilogue = None
    if dtype.is_float:
        if draw.chance(0.2) and stage != "combine":
            prologue = epilogue_tape(draw, dtype, FLOAT64 if dtype is FLOAT64 else FLOAT32)
        if draw.chance(0.3) and stage != "parts":
            epilogue = epilogue_tape(draw, FLOAT64 if dtype is FLOAT64 else FLOAT32, dtype)
    return Reduce(
        kind, dtype, dtype, draw.one(("rows", "columns")), draw.integer(1, 3), draw.integer(1, 3), stage, prologue,
        epilogue,
    )  # fmt: skip


def _reduced(spec: Reduce, x: Array, axes: tuple[int, ...]) -> Array | None:
    """The reduction in float64; None where it is left to the other checks."""
    if not spec.dtype.is_float:
        if spec.kind in ("max", "min") and x.size:
            return np.asarray((np.max if spec.kind == "max" else np.min)(x, axis=axes))
        if spec.kind == "sum":
            return np.sum(x.astype(np.int64), axis=axes).astype(x.dtype)
        return None
    a = wide(x) if spec.prologue is None else apply_tape(spec.prologue, wide(x))
    with np.errstate(all="ignore"):
        if spec.kind in ("sum", "mean"):
            total = a.sum(axis=axes)
            if spec.kind == "mean":
                total = total / np.prod([x.shape[i] for i in axes])
        elif spec.kind in ("sum_square", "l2"):
            total = (a * a).sum(axis=axes)
            total = np.sqrt(total) if spec.kind == "l2" else total
        elif spec.kind == "l1":
            total = np.abs(a).sum(axis=axes)
        elif spec.kind in ("max", "min") and x.size:
            total = (np.max if spec.kind == "max" else np.min)(a, axis=axes)
        elif spec.kind == "log_sum_exp" and x.size:
            total = np.log(np.exp(a).sum(axis=axes))
        else:
            return None
    return np.asarray(total if spec.epilogue is None else apply_tape(spec.epilogue, total))


def reduce_call(draw: Draw, spec: Reduce, target: Target) -> Call:
    kept = draw.extents(spec.kept_rank, draw.one((6, 40, 150)))
    reduced = draw.extents(spec.reduced_rank, max(900 // max(int(np.prod(kept)), 1), 3))
    if draw.chance(0.02):
        kept, reduced = (1,) * spec.kept_rank, (*(1,) * (spec.reduced_rank - 1), draw.long())
    extents = (*kept, *reduced)
    rows, rank = spec.layout == "rows", len(extents)
    if spec.stage == "combine":
        read: DType = spec.total_dtype if spec.total_dtype.is_float == spec.dtype.is_float else spec.dtype
        read = spec.dtype
    else:
        read = spec.dtype
    values = draw.values(read, extents)
    unit = rank - 1 if rows else spec.kept_rank - 1
    x = given(read, values, draw.strides(extents, unit))
    limit = max(tolerance(spec.dtype), 1e-5 if spec.dtype.is_float and spec.dtype is not FLOAT64 else 0.0)
    tile = draw.block(kept[-1])
    axes = tuple(range(spec.kept_rank, rank))
    words: dict[str, Operand | int] = {"x": x, "tile": tile, **numbers("kept", kept), **numbers("reduced", reduced)}
    strides = x.strides(*names("x_kept", spec.kept_rank, not rows), *names("x_reduced", spec.reduced_rank, rows))
    words |= strides
    if spec.stage == "parts":
        part = draw.one((1, 2, 7, 16, max(reduced[0], 1)))
        parts = -(-reduced[0] // part) + draw.one((0, 0, 1))
        shape = (parts, *kept)
        out = made(spec.total_dtype, shape, draw.strides(shape, spec.kept_rank if not rows else None))
        words |= {"out": out, "part_extent": part}
        words |= out.strides("out_part", *names("out_kept", spec.kept_rank, not rows))
        return Call(words, tile_count(kept, tile) * parts)
    expected = None if spec.stage == "combine" else _reduced(spec, values, axes)
    scale = 8 * limit * max(float(np.prod(reduced)), 1.0) ** 0.5 if limit else 0.0
    out = made(spec.out, kept, draw.strides(kept, spec.kept_rank - 1 if not rows else None), expected, 8 * limit, scale)
    words |= {"out": out, **out.strides(*names("out_kept", spec.kept_rank, not rows))}
    if spec.kind == "mean":
        words["count"] = int(np.prod(reduced))
    return Call(words, tile_count(kept, tile))


def arg_spec(draw: Draw, target: Target) -> ArgReduce:
    return ArgReduce(
        draw.one(NUMBERS), draw.chance(0.5), draw.chance(0.5), draw.one(("rows", "columns")), draw.integer(1, 3)
    )


def _axis_strides(draw: Draw, extents: tuple[int, ...], columns: bool) -> tuple[int, ...]:
    """Strides of [kept..., axis]: the axis, or in layout "columns" the last kept one, has stride 1."""
    return draw.strides(extents, len(extents) - (2 if columns else 1))


def arg_call(draw: Draw, spec: ArgReduce, target: Target) -> Call:
    columns = spec.layout == "columns"
    kept, length = draw.extents(spec.kept_rank, 40), draw.extent(130, 1)
    if draw.chance(0.02):
        kept, length = (1,) * spec.kept_rank, draw.long()
    extents = (*kept, length)
    values = draw.values(spec.dtype, extents, special=True)
    a = wide(values) if spec.dtype.is_float else values.astype(object)
    best = a
    if spec.dtype.is_float:
        best = np.where(np.isnan(a), np.inf if spec.largest else -np.inf, a)
        # NaN is beyond infinity.
        bound = 2.0 if spec.largest else -2.0
        best = np.where(np.isnan(a), np.copysign(np.finfo(np.float64).max, bound), np.clip(best, -1e300, 1e300))
    turned = best[..., ::-1] if spec.last else best
    expected = (np.argmax if spec.largest else np.argmin)(turned, axis=-1)
    expected = length - 1 - expected if spec.last else expected
    x = given(spec.dtype, values, _axis_strides(draw, extents, columns))
    out = made(INT64, kept, draw.strides(kept, spec.kept_rank - 1 if columns else None), np.asarray(expected))
    tile = draw.block(kept[-1])
    words: dict[str, Operand | int] = {"x": x, "out": out, "length": length, "tile": tile, **numbers("kept", kept)}
    words |= x.strides(*names("x_kept", spec.kept_rank, columns), "x_axis" if columns else "")
    return Call({**words, **out.strides(*names("out_kept", spec.kept_rank, columns))}, tile_count(kept, tile))


def softmax_spec(draw: Draw, target: Target) -> Softmax:
    dtype = draw.one(FLOATS)
    out = draw.one((dtype, dtype, FLOAT32)) if dtype is not FLOAT64 else FLOAT64
    kind = draw.one(("softmax", "softmax", "log_softmax", "hardmax"))
    layout = draw.one(("rows", "columns"))
    scale = draw.one((None, 0.125)) if kind != "hardmax" else None
    mask = draw.one((None, dtype)) if kind != "hardmax" and layout == "rows" else None
    length = draw.one((None, None, draw.extent(80, 1)))
    return Softmax(kind, dtype, out, layout, draw.integer(1, 3), length, scale, mask)


def softmax_call(draw: Draw, spec: Softmax, target: Target) -> Call:
    columns = spec.layout == "columns"
    kept = draw.extents(spec.kept_rank, 24)
    length = draw.extent(130) if spec.length is None else spec.length
    if spec.length is None and draw.chance(0.02):
        kept, length = (1,) * spec.kept_rank, draw.long()
    extents = (*kept, length)
    values = draw.values(spec.dtype, extents, special=True)
    scaled = wide(values) * (spec.scale or 1.0)
    words: dict[str, Operand | int] = {"tile": (tile := draw.block(kept[-1])), **numbers("kept", kept)}
    if spec.length is None:
        words["length"] = length
    if spec.mask is not None:
        strides = draw.strides(extents, len(kept), shared=True)
        mask = draw.values(spec.mask, [1 if s == 0 else e for e, s in zip(extents, strides, strict=True)])
        mask = np.broadcast_to(mask, extents)
        scaled = scaled + wide(mask)
        operand = given(spec.mask, mask, strides)
        words |= {"mask": operand, **operand.strides(*names("mask_kept", spec.kept_rank), "")}
    expected = None
    if length and values.size and np.isfinite(scaled).all():
        if spec.kind == "hardmax":
            expected = np.zeros(extents)
            np.put_along_axis(expected, scaled.argmax(axis=-1)[..., None], 1.0, axis=-1)
        else:
            away = scaled - scaled.max(axis=-1, keepdims=True)
            sums = np.exp(away).sum(axis=-1, keepdims=True)
            expected = np.exp(away) / sums if spec.kind == "softmax" else away - np.log(sums)
    limit = tolerance(spec.dtype, spec.out)
    strides = _axis_strides(draw, extents, columns)
    if spec.dtype is spec.out and draw.chance(0.3):
        x = out = changed(spec.dtype, values, strides, expected, 4 * limit, 4 * limit)
    else:
        x = given(spec.dtype, values, strides)
        out = made(spec.out, extents, _axis_strides(draw, extents, columns), expected, 4 * limit, 4 * limit)
    words |= {"x": x, "out": out, **x.strides(*names("x_kept", spec.kept_rank, columns), "x_axis" if columns else "")}
    words |= out.strides(*names("out_kept", spec.kept_rank, columns), "out_axis" if columns else "")
    return Call(words, tile_count(kept, tile))


def scan_spec(draw: Draw, target: Target) -> Cumulative:
    return Cumulative(
        draw.one(("sum", "prod")), draw.one(NUMBERS), draw.one(("rows", "columns")), draw.chance(0.3),
        draw.chance(0.3), draw.integer(1, 3),
    )  # fmt: skip


def scan_call(draw: Draw, spec: Cumulative, target: Target) -> Call:
    columns = spec.layout == "columns"
    kept, length = draw.extents(spec.kept_rank, 60), draw.extent(20)
    extents = (*kept, length)
    values = draw.values(spec.dtype, extents)
    a = wide(values) if spec.dtype.is_float else values
    a = a[..., ::-1] if spec.reverse else a
    with np.errstate(all="ignore"):
        totals = (np.cumsum if spec.kind == "sum" else np.cumprod)(a, axis=-1, dtype=a.dtype)
    if spec.exclusive and length:
        first = np.full_like(totals[..., :1], 0 if spec.kind == "sum" else 1)
        totals = np.concatenate([first, totals[..., :-1]], axis=-1)
    expected = totals[..., ::-1] if spec.reverse else totals
    unit = spec.kept_rank - 1 if columns else None
    strides = draw.strides(extents, unit)
    limit = tolerance(spec.dtype)
    if draw.chance(0.3):
        x = out = changed(spec.dtype, values, strides, expected, limit, limit)
    else:
        x = given(spec.dtype, values, strides)
        out = made(spec.dtype, extents, draw.strides(extents, unit), expected, limit, limit)
    tile = draw.block(kept[-1])
    words: dict[str, Operand | int] = {"x": x, "out": out, "length": length, "tile": tile, **numbers("kept", kept)}
    words |= x.strides(*names("x_kept", spec.kept_rank, columns), "x_axis")
    return Call(
        {**words, **out.strides(*names("out_kept", spec.kept_rank, columns), "out_axis")}, tile_count(kept, tile)
    )


def topk_spec(draw: Draw, target: Target) -> TopK:
    return TopK(draw.one(NUMBERS), draw.chance(0.5), draw.integer(1, 3))


def topk_call(draw: Draw, spec: TopK, target: Target) -> Call:
    kept, length = draw.extents(spec.kept_rank, 12), draw.extent(130)
    count = draw.integer(0, draw.one((length, min(length, 16))))
    values = draw.values(spec.dtype, (*kept, length), special=True)
    a = wide(values)
    key = a.astype(np.float64)
    if spec.dtype.is_float:
        key = np.where(np.isnan(key), 2e300, np.clip(key, -1e300, 1e300))
    exact = spec.dtype.bits < 64 or spec.dtype.is_float
    order = np.argsort(-key if spec.largest else key, axis=-1, kind="stable")[..., :count]
    shape = (*kept, count)
    expected = np.take_along_axis(values, order, axis=-1) if exact else None
    x = given(spec.dtype, values, draw.strides(values.shape, backwards=True))
    strides = draw.strides(shape)
    top = made(spec.dtype, shape, strides, expected)
    at = made(INT64, shape, strides, order if exact else None)
    tile = draw.block(kept[-1])
    words: dict[str, Operand | int] = {"x": x, "values": top, "indices": at, "length": length, "count": count}
    words |= {"tile": tile, **numbers("kept", kept), **x.strides(*names("x_kept", spec.kept_rank), "x_axis")}
    return Call({**words, **top.strides(*names("out_kept", spec.kept_rank), "out_axis")}, tile_count(kept, tile))


def check_spec(draw: Draw, target: Target) -> Check:
    return Check(draw.one(("equal", "at_most")))


def check_call(draw: Draw, spec: Check, target: Target) -> Call:
    a, b = draw.integer(0, 4), draw.integer(0, 4)
    wrong = a != b if spec.relation == "equal" else a > b
    return Call({"a": a, "b": b}, 1, (EXTENT_MISMATCH,) if wrong else ())


def finite_spec(draw: Draw, target: Target) -> CheckNumbers:
    return CheckNumbers(draw.one(FLOATS), draw.chance(0.5))


def finite_call(draw: Draw, spec: CheckNumbers, target: Target) -> Call:
    count = draw.extent(40)
    values = draw.values(spec.dtype, (count,), special=True)
    if spec.positive and draw.chance(0.8):
        values = np.abs(values)
    x = given(spec.dtype, values, draw.strides((count,), backwards=True))
    with np.errstate(all="ignore"):
        good = np.isfinite(wide(values)) & ((wide(values) > 0) if spec.positive else True)
    return Call({"x": x, "count": count, **x.strides("x_stride")}, 1, () if good.all() else (BAD_VALUE,))


def zero_spec(draw: Draw, target: Target) -> RequireNonZero:
    return RequireNonZero(draw.one(INTEGERS))


def zero_call(draw: Draw, spec: RequireNonZero, target: Target) -> Call:
    count = draw.extent(300)
    values = draw.values(spec.dtype, (count,))
    values = np.where(values == 0, np.ones((), values.dtype), values)
    if count and draw.chance(0.3):
        values[draw.integer(0, count - 1)] = 0
    block = draw.block(count)
    fails = (BAD_VALUE,) if np.any(values == 0) else ()
    return Call({"x": given(spec.dtype, values), "n": count, "block": block}, -(-count // block), fails)
