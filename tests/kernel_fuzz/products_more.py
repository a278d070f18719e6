"""Winograd convolutions, the second half of transposed ones, pooling along rows, kernels that measure the machine."""

from __future__ import annotations

import itertools
import math

import numpy as np

from whet.codegen.target import Target
from whet.dtypes import FLOAT32, INT8, UINT8
from whet.kernels.conv import Window as ConvWindow
from whet.kernels.peak import READS, FmaRate, ReadRate
from whet.kernels.pool import Pool
from whet.kernels.pool import Window as PoolWindow
from whet.kernels.pool_rows import PoolRows
from whet.kernels.scale_panels import ScalePanels
from whet.kernels.tap_sum import TapSum
from whet.kernels.walk import working
from whet.kernels.winograd import Winograd, pack_point_weights, pack_tap_weights
from whet.kernels.winograd_few import WinogradFew
from whet.kernels.winograd_line import WinogradLine, pack_line_weights

from .call import Array, Call, Operand, dense
from .draw import FLOATS, Draw
from .norms import maxima
from .operands import apply_tape, changed, epilogue_tape, given, made, names, numbers, tile_count
from .products import TYPES, convolved, epilogue, finish_words, register_tile


def winograd_spec(draw: Draw, target: Target) -> Winograd:
    dtype = draw.one(TYPES)
    mr, nv = register_tile(draw, target)
    nv = min(nv, 3)
    channels = draw.one((1, 2, 3, 5, 8, 9, 16, 17, 20))
    lanes = target.lanes(dtype)
    depth = draw.one((None, None, lanes, 2 * lanes))
    extents = (draw.integer(1, 9), draw.integer(1, 9)) if draw.chance(0.3) else None
    return Winograd(
        channels, draw.extent(40, 1), draw.one((2, 4)), (draw.integer(0, 2), draw.integer(0, 2)), dtype, extents, mr,
        nv, draw.one((1, mr, 2 * mr, 9)), draw.integer(1, 3), depth, epilogue(draw, dtype, False),
        draw.one((1, 1, 2)),
    )  # fmt: skip


def few_spec(draw: Draw, target: Target) -> WinogradFew:
    plain, rows = winograd_spec(draw, target), draw.integer(1, 5)
    depth = plain.depth or target.lanes(plain.dtype)
    return WinogradFew(
        plain.channels, plain.outputs, plain.tile, plain.pads, plain.dtype, plain.extents, rows, 1, rows,
        plain.panels, depth, plain.epilogue,
    )  # fmt: skip


def winograd_call(draw: Draw, spec: Winograd, target: Target) -> Call:
    dtype, images = spec.dtype, draw.extent(2)
    ends = (draw.integer(0, 2), draw.integer(0, 2))
    pads = [spec.pads[i] + ends[i] for i in range(2)]
    stride = spec.stride
    if spec.extents is not None:
        # The padding behind an image too small is what makes up for it.
        out = spec.extents
        reach = [(extent - 1) * stride + 3 for extent in out]
        image = tuple(max(reach[i] - pads[i], 1) for i in range(2))
        ends = tuple(max(reach[i] - image[i] - spec.pads[i], 0) for i in range(2))  # type: ignore[assignment]
    else:
        image = tuple(max(3 - p, 1) + draw.integer(0, 9) for p in pads)
        out = tuple((image[i] + pads[i] - 3) // stride + 1 for i in range(2))  # type: ignore[assignment]
    values = draw.values(dtype, (images, *image, spec.channels))
    weights = draw.values(dtype, (spec.outputs, spec.channels, 3, 3))
    strides = draw.strides(values.shape, 3)
    width = spec.width(target)
    if spec.depth is None:
        packed = pack_point_weights(weights, spec.axis.matrix(), width)
    else:
        packed = pack_tap_weights(weights, width, spec.depth)
    words: dict[str, Operand | int] = {"x": given(dtype, values, strides), "x_n": strides[0], "images": images}
    words |= {"x_s0": strides[1], "x_s1": strides[2], **numbers("in", image)}
    words["zero"] = given(dtype, np.zeros(spec.channels, dtype.numpy))
    if spec.extents is None:
        words |= numbers("out", out)
    words["w"] = given(dtype, packed, align=64)
    window = ConvWindow((3, 3), (stride, stride), (1, 1), (*spec.pads, *ends))
    y = convolved(values, weights, window, 1, tuple(out))
    # Points cost some digits.
    finish_words(draw, spec.epilogue, dtype, y, spec.channels * 9 * 64, words)
    return Call(words, spec.tiles(target, out, images))


def scale_spec(draw: Draw, target: Target) -> ScalePanels:
    return ScalePanels(draw.integer(1, 4), draw.extent(40, 1) if draw.chance(0.4) else None, draw.one(TYPES))


def scale_call(draw: Draw, spec: ScalePanels, target: Target) -> Call:
    k, panels, matrices = spec.k or draw.extent(40), draw.extent(4), draw.extent(3)
    packed = draw.values(spec.dtype, (panels, k, spec.width(target)))
    shared = draw.chance(0.3)
    factors = np.broadcast_to(draw.values(spec.dtype, (1 if shared else matrices, k)), (matrices, k))
    stride = 0 if shared else k + draw.one((0, 0, 3))
    expected = packed.astype(np.float64) * factors.astype(np.float64)[:, None, :, None]
    scaled = made(spec.dtype, expected.shape, None, expected, align=64)
    words: dict[str, Operand | int] = {
        "packed": given(spec.dtype, packed, None, align=64), "factors": given(spec.dtype, factors, (stride, 1)),
        "scaled": scaled, "panels": panels, "factors_i": stride,
    }  # fmt: skip
    words |= {} if spec.k is not None else {"k": k}
    return Call(words, matrices * panels)


def line_spec(draw: Draw, target: Target) -> WinogradLine:
    dtype, points = draw.one(TYPES), draw.one((6, 8))
    mr, nv = register_tile(draw, target)
    return WinogradLine(
        draw.one((1, 2, 3, 5, 8, 9, 16, 17, 20)), draw.extent(40, 1), draw.integer(3, points - 1), points,
        draw.integer(0, 3), dtype, draw.integer(1, 20) if draw.chance(0.3) else None, mr, min(nv, 3),
        draw.one((1, mr, 2 * mr, 9)), draw.integer(1, 3), epilogue(draw, dtype, False),
    )  # fmt: skip


def line_call(draw: Draw, spec: WinogradLine, target: Target) -> Call:
    dtype, images, lines, reach = spec.dtype, draw.extent(2), draw.extent(4), spec.taps - 1
    end = draw.integer(0, 3)
    length = max(spec.taps - spec.pad - end, 1) + draw.integer(0, 20)
    if spec.extent is not None:
        # The padding behind a line too short is what makes up for it.
        length = max(spec.extent + reach - spec.pad - end, 1)
        end = max(spec.extent + reach - spec.pad - length, 0)
    out = spec.extent if spec.extent is not None else length + spec.pad + end - reach
    down = draw.chance(0.5)
    order = (1, 0) if down else (0, 1)
    image = tuple((lines, length)[i] for i in order)
    extents = tuple((lines, out)[i] for i in order)
    values = draw.values(dtype, (images, *image, spec.channels))
    weights = draw.values(dtype, (spec.outputs, spec.channels, spec.taps))
    strides = draw.strides(values.shape, 3)
    words: dict[str, Operand | int] = {"x": given(dtype, values, strides), "x_n": strides[0]}
    words |= {"x_l": strides[1 + order[0]], "x_s": strides[1 + order[1]], "in": length, "lines": lines}
    words |= {"images": images, "zero": given(dtype, np.zeros(spec.channels, dtype.numpy))}
    if spec.extent is None:
        words["out"] = out
    words["w"] = given(dtype, pack_line_weights(weights, spec.points, spec.width(target)), align=64)
    kernel, pads = ((spec.taps, 1), (spec.pad, 0, end, 0)) if down else ((1, spec.taps), (0, spec.pad, 0, end))
    window = ConvWindow(kernel, (1, 1), (1, 1), pads)
    y = convolved(values, weights.reshape(*weights.shape[:2], *kernel), window, 1, extents)
    # Points cost some digits.
    finish_words(draw, spec.epilogue, dtype, y, spec.channels * spec.taps * 64, words)
    for name, line in (("ldc", "c_l"), *((f"e{i}_s", f"e{i}_l") for i in range(4) if f"e{i}_s" in words)):
        pixel = words[name]
        assert isinstance(pixel, int)
        words |= {name: pixel * lines, line: pixel} if down else {line: pixel * out}
    return Call(words, spec.tiles(target, out, lines * images))


def tap_spec(draw: Draw, target: Target) -> TapSum:
    rank, dtype = draw.integer(1, 3), draw.one(TYPES)
    weighted = draw.chance(0.4)
    return TapSum(
        tuple(draw.integer(1, 4 if rank < 3 else 2) for _ in range(rank)),
        tuple(draw.integer(1, 3) for _ in range(rank)), tuple(draw.integer(1, 3) for _ in range(rank)),
        1 if weighted else draw.extent(40, 1), draw.extent(40, 1) if weighted else draw.integer(1, 3), weighted, dtype,
        epilogue(draw, dtype, False),
    )  # fmt: skip


def tap_call(draw: Draw, spec: TapSum, target: Target) -> Call:
    rank, dtype, taps = len(spec.kernel), spec.dtype, math.prod(spec.kernel)
    images = draw.extent(2)
    image = tuple(draw.integer(1, 6 if rank < 3 else 3) for _ in range(rank))
    before = tuple(draw.integer(0, 3) for _ in range(rank))
    out = tuple(draw.integer(1, 9 if rank < 3 else 4) for _ in range(rank))
    channels = spec.groups * spec.channels
    inner = channels if spec.weighted else channels * taps
    values = draw.values(dtype, (images, *image, inner))
    z = given(dtype, values, draw.strides(values.shape, rank + 1))
    words: dict[str, Operand | int] = {"z": z, "batch": images, **numbers("out", out), **numbers("in", image)}
    words |= {**numbers("before", before), **z.strides("z_n", *names("z_s", rank), "")}
    # [images, place.., groups, taps, channels]
    shares = values.astype(np.float64).reshape(images, *image, spec.groups, 1 if spec.weighted else taps, spec.channels)
    if spec.weighted:
        w = draw.values(dtype, (taps, channels))
        words["w"] = given(dtype, w)
        shares = shares * w.astype(np.float64).T.reshape(spec.groups, taps, 1)
    y = np.zeros((images, *out, spec.groups, spec.channels))
    for number, tap in enumerate(itertools.product(*map(range, spec.kernel))):
        for place in itertools.product(*map(range, image)):
            o = tuple(place[i] * spec.strides[i] + tap[i] * spec.dilations[i] - before[i] for i in range(rank))
            if all(0 <= o[i] < out[i] for i in range(rank)):
                y[(slice(None), *o)] += shares[(slice(None), *place, slice(None), number)]
    y = y.reshape(images, *out, channels)
    tile = draw.block(out[-1])
    words |= {"tile": tile}
    _tap_epilogue(draw, spec, y, words, rank)
    return Call(words, images * (1 if spec.weighted else spec.groups) * tile_count(out, tile))


def _tap_epilogue(draw: Draw, spec: TapSum, y: Array, words: dict[str, Operand | int], rank: int) -> None:
    dtype, inputs, scale, full = spec.dtype, [y], 1.0, []
    for i, kind in enumerate(spec.epilogue.operands if spec.epilogue else ()):
        shape = {"column": (*(1,) * (rank + 1), y.shape[-1]), "scalar": (1,) * (rank + 2), "full": y.shape}[kind]
        value = draw.values(dtype, shape)
        operand = given(dtype, value, draw.strides(shape, rank + 1) if kind == "full" else None)
        words[f"e{i}"] = operand
        if kind == "full":
            words |= operand.strides(f"e{i}_n", *names(f"e{i}_s", rank), "")
            full.append((f"e{i}", operand))
        inputs.append(value.astype(np.float64))
        scale *= 1 + float(np.abs(inputs[-1]).max(initial=0))
    result = y if spec.epilogue is None else apply_tape(spec.epilogue.tape, *inputs)
    limit = 1e-6 if dtype is FLOAT32 else 1e-13
    bound = limit * 40 * scale
    if len(full) == 1 and draw.chance(0.3):
        name, operand = full[0]
        assert operand.values is not None
        c = changed(dtype, operand.values, operand.window.strides, result, 8 * limit, bound)
        words[name] = c
    else:
        c = made(dtype, y.shape, draw.strides(y.shape, rank + 1), result, 8 * limit, bound)
    words |= {"c": c, **c.strides("c_n", *names("c_s", rank), "")}


def rows_spec(draw: Draw, target: Target) -> PoolRows:
    kind = draw.one(("max", "max", "average", "lp"))
    dtype = draw.one((*FLOATS, INT8, UINT8) if kind == "max" else FLOATS)
    never_empty = draw.chance(0.4)
    windows = []
    for _ in range(draw.integer(1, 3)):
        size = draw.integer(1, 4)
        most = (size - 1) // 2 if never_empty else size
        windows.append(PoolWindow(
            size, draw.integer(1, 3), 1 if never_empty else draw.integer(1, 2), draw.integer(0, most),
            draw.integer(0, most),
        ))  # fmt: skip
    columns = None
    if draw.chance(0.5):
        w = windows[-1]
        extent = (w.size - 1) * w.dilation + 1 + draw.integer(0, draw.one((6, 40, 90)))
        columns = (extent, (extent + w.before + w.after - (w.size - 1) * w.dilation - 1) // w.stride + 1)
    tape = epilogue_tape(draw, working(dtype), dtype) if dtype.is_float and draw.chance(0.2) else None
    return PoolRows(
        kind, dtype, dtype, tuple(windows), draw.chance(0.4), draw.one((1, 2, 3)), tape, columns, never_empty
    )


def rows_call(draw: Draw, spec: PoolRows, target: Target) -> Call:
    rank = len(spec.windows)
    batch, channels = draw.extent(2), draw.extent(4)
    space, output = [], []
    for i, w in enumerate(spec.windows):
        extent = (w.size - 1) * w.dilation + 1 + draw.integer(0, draw.one((4, 70)) if i == rank - 1 else 4)
        if i == rank - 1 and draw.chance(0.02):
            extent = draw.long()
        out = (extent + w.before + w.after - (w.size - 1) * w.dilation - 1) // w.stride + 1
        if not spec.never_empty:
            out += draw.one((0, 0, 1))
        if i == rank - 1 and spec.columns is not None:
            extent, out = spec.columns
        space.append(extent)
        output.append(out)
    extents = (batch, channels, *output)
    values = draw.values(spec.dtype, (batch, channels, *space))
    x = given(spec.dtype, values, draw.strides(values.shape, rank + 1))
    expected = None
    if spec.kind == "max" and spec.epilogue is None and math.prod(extents) < 400 and 0 not in extents:
        pool = Pool("max", spec.dtype, spec.out, spec.windows)
        found = maxima(pool, np.moveaxis(values, 1, -1), output)
        expected = None if found is None else np.moveaxis(found, -1, 1)
    out_ = made(spec.out, extents, draw.strides(extents, rank + 1), expected)
    fixed = spec.columns is not None
    words: dict[str, Operand | int] = {"x": x, "out": out_, "batch": batch, "channels": channels}
    words |= numbers("output", output[:-1] if fixed else output)
    words |= numbers("input", space[:-1] if fixed else space)
    words |= x.strides("x_batch", "x_channel", *names("x_space", rank, True))
    words |= out_.strides("out_batch", "out_channel", *names("out_space", rank, True))
    return Call(words, batch * channels * tile_count(output, spec.chunk))


def fma_spec(draw: Draw, target: Target) -> FmaRate:
    return FmaRate()


def fma_call(draw: Draw, spec: FmaRate, target: Target) -> Call:
    tiles, lanes = draw.extent(4), target.lanes(FLOAT32)
    values = draw.values(FLOAT32, (tiles, lanes)) * np.float32(0.1)
    return Call({"out": changed(FLOAT32, values, None, np.zeros((tiles, lanes))), "rounds": draw.extent(20)}, tiles)


def read_spec(draw: Draw, target: Target) -> ReadRate:
    return ReadRate()


def read_call(draw: Draw, spec: ReadRate, target: Target) -> Call:
    tiles, lanes, rounds, repeats = draw.extent(3), target.lanes(FLOAT32), draw.extent(3), draw.extent(3)
    values = draw.values(FLOAT32, (tiles, rounds * READS * lanes))
    sums = repeats * values.astype(np.float64).reshape(tiles, rounds * READS, lanes).sum(axis=1)
    out = made(FLOAT32, sums.shape, None, sums, 1e-4, 1e-3)
    words: dict[str, Operand | int] = {"x": given(FLOAT32, values, dense(values.shape)), "out": out, "rounds": rounds}
    return Call({**words, "stride": 4 * rounds * READS * lanes, "repeats": repeats}, tiles)
