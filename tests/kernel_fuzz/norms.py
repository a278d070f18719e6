"""Kernels of normalization, pooling and interpolation."""

from __future__ import annotations

import itertools

import numpy as np

from whet.codegen.target import Target
from whet.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, INT8, INT32, INT64, UINT8, DType
from whet.kernels.group_norm import GroupNormApply, GroupNormCombine, GroupNormParts
from whet.kernels.lrn import Lrn
from whet.kernels.norm import LayerNorm
from whet.kernels.pool import Pool, Window
from whet.kernels.resize import WeightedSum
from whet.kernels.resize_table import ResizeTable
from whet.kernels.walk import working

from .call import Array, Call, Operand
from .draw import FLOATS, Draw, tolerance
from .operands import apply_tape, changed, epilogue_tape, given, made, names, numbers, tile_count, wide


def layer_spec(draw: Draw, target: Target) -> LayerNorm:
    dtype = draw.one(FLOATS)
    kind = draw.one(("layer", "rms"))

    def maybe(chance: float) -> DType | None:
        return dtype if draw.chance(chance) else None

    skip = maybe(0.4)
    return LayerNorm(
        kind, dtype, dtype, draw.one((1e-5, 1e-2)), maybe(0.7), maybe(0.5), skip, maybe(0.5) if skip else None,
        maybe(0.5) if skip else None, draw.chance(0.3), draw.integer(1, 3), draw.one((None, None, draw.extent(140, 1))),
        epilogue_tape(draw, working(dtype), dtype) if draw.chance(0.2) else None, draw.chance(0.3),
    )  # fmt: skip


def layer_call(draw: Draw, spec: LayerNorm, target: Target) -> Call:
    kept = draw.extents(spec.kept_rank, 16)
    length = draw.extent(140, 1) if spec.length is None else spec.length
    if spec.length is None and draw.chance(0.02):
        kept, length = (1,) * spec.kept_rank, draw.long()
    extents = (*kept, length)
    middle = spec.statistics_dtype
    tile = draw.block(kept[-1])
    words: dict[str, Operand | int] = {"tile": tile, **numbers("kept", kept)}
    if spec.length is None:
        words["length"] = length

    def place(name: str, operand: Operand) -> None:
        words.update({name: operand, **operand.strides(*names(f"{name}_kept", spec.kept_rank), "")})

    def strides() -> tuple[int, ...]:
        return draw.strides(extents, spec.kept_rank)

    values = draw.values(spec.dtype, extents)
    v = wide(values)
    skip = draw.values(spec.dtype, extents) if spec.skip is not None else None
    if skip is not None:
        v = v + wide(skip)
        place("skip", given(spec.dtype, skip, strides()))
    row: dict[str, Array] = {}
    affine = draw.strides(kept, shared=True)
    if spec.by_row:
        words |= dict(zip(names("affine_kept", spec.kept_rank), affine, strict=True))
    for name in ("scale", "bias", "skip_bias"):
        if getattr(spec, name) is not None:
            if spec.by_row and name != "skip_bias":
                held = [1 if s == 0 else e for e, s in zip(kept, affine, strict=True)]
                numbers_ = np.broadcast_to(draw.values(spec.dtype, held), kept)
                row[name], words[name] = numbers_[..., None], given(spec.dtype, numbers_, affine)
                continue
            row[name] = draw.values(spec.dtype, (length,))
            words[name] = given(spec.dtype, row[name])
    v = v + wide(row["skip_bias"]) if "skip_bias" in row else v
    mean = v.mean(axis=-1, keepdims=True) if spec.kind == "layer" else np.zeros((*kept, 1))
    deviation = 1 / np.sqrt(((v - mean) ** 2).mean(axis=-1, keepdims=True) + spec.epsilon)
    y = (v - mean) * deviation
    y = y * wide(row["scale"]) if "scale" in row else y
    y = y + wide(row["bias"]) if "bias" in row else y
    y = apply_tape(spec.epilogue, y) if spec.epilogue is not None else y
    limit = 8 * tolerance(spec.dtype)
    # Statistics of a single element's rounding errors are only held loosely.
    loose = None if length < 3 else y
    atol = max(limit, 2e-4 if spec.dtype is not FLOAT64 else 0) * (1 + float(np.abs(y).max(initial=0)))
    if draw.chance(0.3):
        x = out = changed(spec.dtype, values, strides(), loose, limit, atol)
    else:
        x = given(spec.dtype, values, strides())
        out = made(spec.out, extents, strides(), loose, limit, atol)
    place("x", x)
    place("out", out)
    if spec.total is not None:
        place("total", made(spec.dtype, extents, strides(), v, limit, limit * 4))
    if spec.statistics:
        shared = draw.strides(kept)
        wanted = {"mean": mean, "deviation": deviation} if spec.kind == "layer" else {"deviation": deviation}
        for name in wanted:
            words[name] = made(middle, kept, shared)
        words |= dict(zip(names("statistics_kept", spec.kept_rank), shared, strict=True))
    return Call(words, tile_count(kept, tile))


def parts_spec(draw: Draw, target: Target) -> GroupNormParts:
    return GroupNormParts(draw.one(FLOATS))


def parts_call(draw: Draw, spec: GroupNormParts, target: Target) -> Call:
    batch, spatial, channels = draw.extents(3, 900)
    block, tile = draw.one((1, 2, 7, 16, 100)), draw.one((1, 3, 16, 64, 100))
    blocks = -(-spatial // block)
    values = draw.values(spec.dtype, (batch, spatial, channels))
    expected = np.zeros((batch, blocks, 2, channels))
    for b in range(blocks):
        rows = wide(values)[:, b * block : (b + 1) * block]
        expected[:, b, 0] = rows.mean(axis=1)
        expected[:, b, 1] = ((rows - rows.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    x = given(spec.dtype, values, draw.strides(values.shape, 2))
    limit = 1e-5 if spec.dtype is not FLOAT64 else 1e-11
    parts = made(spec.parts_dtype, expected.shape, None, expected, 8 * limit, 8 * limit)
    words: dict[str, Operand | int] = {"x": x, "parts": parts, "batch": batch, "spatial": spatial}
    words |= {"channels": channels, "block": block, "tile": tile, **x.strides("x_batch", "x_row", "")}
    return Call(words, batch * blocks * -(-channels // tile))


def combine_spec(draw: Draw, target: Target) -> GroupNormCombine:
    dtype = draw.one(FLOATS)
    return GroupNormCombine(dtype, draw.one((1e-5, 1e-2)), draw.one((None, dtype)))


def combine_call(draw: Draw, spec: GroupNormCombine, target: Target) -> Call:
    batch, spatial, groups = draw.extent(3), draw.extent(60, 1), draw.extent(12, 1)
    width = draw.extent(24, 1)
    channels, block, tile = groups * width, draw.one((1, 7, 16, 100)), draw.one((1, 2, 5, 100))
    blocks = -(-spatial // block)
    while batch * blocks * channels > 6000:
        block *= 4
        blocks = -(-spatial // block)
    middle = spec.parts_dtype
    parts = draw.values(middle, (batch, blocks, 2, channels))
    parts[:, :, 1] = np.abs(parts[:, :, 1])
    rows = np.minimum(spatial - np.arange(blocks) * block, block).astype(np.float64)[None, :, None, None]
    means = wide(parts)[:, :, 0].reshape(batch, blocks, groups, width)
    squares = wide(parts)[:, :, 1].reshape(batch, blocks, groups, width)
    mean = (means * rows).sum(axis=(1, 3)) / (spatial * width)
    variance = ((means - mean[:, None, :, None]) ** 2 * rows + squares).sum(axis=(1, 3)) / (spatial * width)
    factor = np.repeat(1 / np.sqrt(variance + spec.epsilon), width, axis=-1)
    words: dict[str, Operand | int] = {"parts": given(middle, parts), "batch": batch, "spatial": spatial}
    if spec.scale is not None:
        scale = draw.values(spec.scale, (channels,))
        words["scale"] = given(spec.scale, scale)
        factor = factor * wide(scale)
    expected = np.stack([np.repeat(mean, width, axis=-1), factor], axis=1)
    limit = 1e-5 if middle is not FLOAT64 else 1e-11
    words["coefficients"] = made(middle, expected.shape, None, expected, 8 * limit, 8 * limit)
    words |= {"channels": channels, "groups": groups, "block": block, "tile": tile}
    return Call(words, batch * -(-groups // tile))


def apply_spec(draw: Draw, target: Target) -> GroupNormApply:
    dtype = draw.one(FLOATS)
    tape = epilogue_tape(draw, working(dtype), dtype) if draw.chance(0.4) else None
    return GroupNormApply(dtype, dtype, draw.one((None, dtype)), tape)


def apply_call(draw: Draw, spec: GroupNormApply, target: Target) -> Call:
    extents = draw.extents(3, 900)
    batch, spatial, channels = extents
    values = draw.values(spec.dtype, extents)
    middle = working(spec.dtype)
    coefficients = draw.values(middle, (batch, 2, channels))
    y = (wide(values) - wide(coefficients)[:, None, 0]) * wide(coefficients)[:, None, 1]
    tile = draw.block(spatial)
    words: dict[str, Operand | int] = {"coefficients": given(middle, coefficients), "batch": batch, "tile": tile}
    if spec.bias is not None:
        bias = draw.values(spec.bias, (channels,))
        words["bias"] = given(spec.bias, bias)
        y = y + wide(bias)
    y = apply_tape(spec.epilogue, y) if spec.epilogue is not None else y
    limit = 4 * tolerance(spec.dtype)
    if draw.chance(0.3):
        x = out = changed(spec.dtype, values, draw.strides(extents, 2), y, limit, 4 * limit)
    else:
        x = given(spec.dtype, values, draw.strides(extents, 2))
        out = made(spec.out, extents, draw.strides(extents, 2), y, limit, 4 * limit)
    words |= {"x": x, "out": out, "spatial": spatial, "channels": channels, **x.strides("x_batch", "x_row", "")}
    return Call({**words, **out.strides("out_batch", "out_row", "")}, batch * -(-spatial // tile))


def lrn_spec(draw: Draw, target: Target) -> Lrn:
    dtype = draw.one(FLOATS)
    return Lrn(dtype, dtype, draw.one((1, 2, 3, 5, 8)), 1e-2, draw.one((0.75, 0.5, 0.6)), 1.0, draw.integer(1, 3))


def lrn_call(draw: Draw, spec: Lrn, target: Target) -> Call:
    extents = (*draw.extents(spec.kept_rank, 12), draw.extent(130))
    kept, channels = extents[:-1], extents[-1]
    values = draw.values(spec.dtype, extents)
    v = wide(values)
    square = np.zeros(extents)
    for c in range(channels):
        part = v[..., max(c - (spec.size - 1) // 2, 0) : c + spec.size // 2 + 1]
        square[..., c] = (part * part).sum(axis=-1)
    expected = v / (spec.bias + spec.alpha / spec.size * square) ** spec.beta
    limit = 4 * tolerance(spec.dtype)
    x = given(spec.dtype, values, draw.strides(extents, spec.kept_rank))
    out = made(spec.out, extents, draw.strides(extents, spec.kept_rank), expected, limit, limit)
    tile = draw.block(kept[-1])
    words: dict[str, Operand | int] = {"x": x, "out": out, "channels": channels, "tile": tile, **numbers("kept", kept)}
    words |= x.strides(*names("x_kept", spec.kept_rank), "")
    return Call({**words, **out.strides(*names("out_kept", spec.kept_rank), "")}, tile_count(kept, tile))


def pool_spec(draw: Draw, target: Target) -> Pool:
    kind = draw.one(("max", "max", "average", "lp"))
    dtype = draw.one((*FLOATS, INT8, UINT8) if kind == "max" else FLOATS)
    windows = []
    for _ in range(draw.integer(1, 3)):
        size = draw.integer(1, 4)
        windows.append(
            Window(size, draw.integer(1, 3), draw.integer(1, 2), draw.integer(0, size), draw.integer(0, size))
        )
    indices = kind == "max" and draw.chance(0.4)
    tape = epilogue_tape(draw, working(dtype), dtype) if dtype.is_float and draw.chance(0.2) else None
    return Pool(
        kind, dtype, dtype, tuple(windows), draw.chance(0.4), draw.one((1, 2, 3)), indices, draw.one((0, 1)), tape
    )


def pool_call(draw: Draw, spec: Pool, target: Target) -> Call:
    rank = len(spec.windows)
    batch, channels = draw.extent(2), draw.extent(70)
    space = draw.extents(rank, max(600 // max(batch * channels, 1), 2), least=1)
    output = []
    for w, extent in zip(spec.windows, space, strict=True):
        room = extent + w.before + w.after - (w.size - 1) * w.dilation - 1
        # ceil_mode may add one.
        output.append(max(room // w.stride + 1, 0) if room >= 0 else draw.one((0, 1)))
        output[-1] += draw.one((0, 0, 1))
    budget = max(900 // max(batch * channels, 1), 1)
    output = [min(o, budget) for o in output]
    extents = (batch, *output, channels)
    values = draw.values(spec.dtype, (batch, *space, channels))
    x = given(spec.dtype, values, draw.strides(values.shape, rank + 1))
    expected = None
    if spec.kind == "max" and spec.epilogue is None and 0 not in extents and draw.chance(0.5):
        expected = maxima(spec, values, output)
    out = made(spec.out, extents, draw.strides(extents, rank + 1), expected)
    tile = draw.block(output[-1])
    words: dict[str, Operand | int] = {"x": x, "out": out, "batch": batch, "channels": channels, "tile": tile}
    words |= {**numbers("output", output), **numbers("input", space)}
    words |= x.strides("x_batch", *names("x_space", rank), "")
    words |= out.strides("out_batch", *names("out_space", rank), "")
    if spec.indices:
        words["indices"] = made(INT64, extents, out.window.strides)
    return Call(words, tile_count((batch, *output), tile))


def maxima(spec: Pool, values: Array, output: list[int]) -> Array | None:
    """The maxima of windows of x [images, spatial.., channels]; None where a window has no tap inside."""
    found = np.zeros((values.shape[0], *output, values.shape[-1]))
    for place in itertools.product(*(range(o) for o in output)):
        taps = []
        for p, w, extent in zip(place, spec.windows, values.shape[1:-1], strict=True):
            first = p * w.stride - w.before
            taps.append([i for i in range(first, first + w.size * w.dilation, w.dilation) if 0 <= i < extent])
        if not all(taps):
            return None
        part = wide(values)[np.ix_(range(values.shape[0]), *taps, range(values.shape[-1]))]
        found[(slice(None), *place)] = part.max(axis=tuple(range(1, values.ndim - 1)))
    return found


def sum_spec(draw: Draw, target: Target) -> WeightedSum:
    source = draw.one((FLOAT32, FLOAT32, FLOAT64, FLOAT16, BFLOAT16, UINT8, INT8, INT32))
    middle = FLOAT64 if source in (FLOAT64, INT32) else FLOAT32
    layout = draw.one(("rows", "columns"))
    return WeightedSum(
        source, middle, draw.one((source, middle)), layout, draw.one((None, 1, 2, 4)), draw.integer(2, 3),
        layout == "rows" and draw.chance(0.5), draw.one((None, 0.5)),
    )  # fmt: skip


def sum_call(draw: Draw, spec: WeightedSum, target: Target) -> Call:
    taps = draw.integer(1, 7) if spec.taps is None else spec.taps
    size, length = draw.extent(40), draw.extent(12, 1)
    others = draw.extents(spec.kept_rank - 1 if spec.layout == "columns" else spec.kept_rank, 20)
    index = draw.rng.integers(0, length, (taps, size))
    weight = draw.values(spec.middle, (taps, size))
    outside = np.zeros(size, np.bool_)
    if spec.fill is not None:
        outside = draw.rng.random(size) < 0.2
        index[0, outside] = -1
    values = draw.values(spec.source, (*others, length))
    total = (np.maximum(index, 0)[None] * 0 + wide(weight)).reshape(taps, size)
    picked = wide(values)[..., np.maximum(index, 0)] * total
    y = np.asarray(picked.sum(axis=-2), np.float64)
    y = np.where(outside, spec.fill if spec.fill is not None else 0.0, y)
    rtol = 8 * tolerance(spec.middle, spec.result)
    atol = 1e-3 * (1 if spec.result is not FLOAT64 else 1e-6) + rtol * (
        1 + float(np.abs(picked).sum(axis=-2).max(initial=0))
    )
    expected: Array | None = y
    if spec.result.is_integer:
        expected, rtol, atol = None, 0.0, 0.0  # a rounding away from a half decides
    if spec.layout == "columns":
        # [outer..., size, inner]: the last of the others is the axis of stride 1.
        extents = (*others[:-1], size, others[-1])
        expected = None if expected is None else np.moveaxis(expected, -1, -2)
        source = np.moveaxis(values, -1, -2)
        x = given(spec.source, source, draw.strides(source.shape, len(others)))
        out = made(spec.result, extents, draw.strides(extents, len(others)), expected, rtol, atol)
        kept: tuple[int, ...] = extents
        rank = spec.kept_rank
        strides = list(x.window.strides)
        words: dict[str, Operand | int] = {"x_axis": strides[-2]}
        strides[-2] = 0
        words |= dict(zip(names("x_kept", rank, True)[:-1], strides[:-1], strict=True))
        words |= out.strides(*names("out_kept", rank, True))
    else:
        extents, kept, rank = (*others, size), others, spec.kept_rank
        x = given(spec.source, values, draw.strides(values.shape, len(others) if spec.x_unit else None))
        out = made(spec.result, extents, draw.strides(extents, len(others)), expected, rtol, atol)
        words = x.strides(*names("x_kept", rank), "" if spec.x_unit else "x_axis")
        words |= out.strides(*names("out_kept", rank), "")
    tile = draw.block(kept[-1])
    words |= {"x": x, "out": out, "index": given(INT32, index), "weight": given(spec.middle, weight), "size": size}
    if spec.taps is None:
        words["taps"] = taps
    words |= {"tile": tile, **numbers("kept", kept)}
    return Call(words, tile_count(kept, tile))


def table_spec(draw: Draw, target: Target) -> ResizeTable:
    mode = draw.one(("nearest", "linear", "cubic"))
    coordinates = draw.one((
        "half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric", "tf_crop_and_resize",
    ))  # fmt: skip
    region = (0.1, 0.8) if coordinates == "tf_crop_and_resize" else None
    nearest = draw.one(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))
    scale = draw.one((None, 0.5, 1.7, 3.0))
    return ResizeTable(
        mode, coordinates, scale, draw.one((FLOAT32, FLOAT64)), nearest_mode=nearest, region=region,
        exclude_outside=draw.chance(0.3), antialias=mode != "nearest" and draw.chance(0.3),
    )  # fmt: skip


def table_call(draw: Draw, spec: ResizeTable, target: Target) -> Call:
    size = draw.extent(40)
    extent = draw.extent(40, 1)
    tile = draw.block(size)
    words: dict[str, Operand | int] = {"size": size, "extent": extent, "tile": tile}
    if spec.mode == "nearest":
        words["index"] = made(INT32, (size,))
    else:
        taps = draw.integer(1, 8)
        words |= {"taps": taps, "low": -((taps - 1) // 2)}
        words["index"] = made(INT32, (taps, size))
        words["weight"] = made(spec.weights, (taps, size))
    return Call(words, -(-size // tile))
