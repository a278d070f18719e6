"""Matrix products, packing, and convolutions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from whet.codegen.target import Target
from whet.dtypes import FLOAT32, FLOAT64, DType
from whet.kernels.conv import Conv, Convolution, Window, pack_conv_weights
from whet.kernels.conv_padded import ConvPadded
from whet.kernels.depthwise import Depthwise, pack_depthwise_weights
from whet.kernels.expression import Step, Tape
from whet.kernels.gemm import Gemm, PackB, pack_b
from whet.kernels.grouped import Grouped, pack_grouped_weights
from whet.kernels.im2col import ConvIm2col
from whet.kernels.tile import Epilogue, OperandKind

from .call import Array, Call, Operand, dense
from .draw import Draw
from .operands import apply_tape, changed, given, made, numbers

TYPES = (FLOAT32, FLOAT32, FLOAT32, FLOAT64)


def register_tile(draw: Draw, target: Target) -> tuple[int, int]:
    """(mr, nv) that fit the registers."""
    nv = draw.integer(1, 4)
    most = max((target.vector_registers - nv - 1) // (nv + 1), 1)
    return draw.integer(1, min(most, 12)), nv


def epilogue(draw: Draw, dtype: DType, row: bool) -> Epilogue | None:
    """Additions and multiplications of operands, and an activation; the long one makes tiles go through memory."""
    if draw.chance(0.3):
        return None
    kinds: list[OperandKind] = ["column", "scalar", "full", *(["row"] if row else [])]  # type: ignore[list-item]
    chosen = tuple(draw.one(kinds) for _ in range(draw.integer(0, 2)))
    count = len(chosen) + 1
    steps: list[Step] = []
    here = 0
    for i in range(len(chosen)):
        steps.append(Step(draw.one(("add", "mul")), dtype, (here, i + 1)))
        here = count + len(steps) - 1
    for op in draw.random.sample(("relu", "neg", "abs", "tanh"), draw.integer(0, 1)):
        steps.append(Step(op, dtype, (here,)))
        here = count + len(steps) - 1
    return Epilogue(Tape((dtype,) * count, tuple(steps), (here,)), chosen)


def gemm_spec(draw: Draw, target: Target) -> Gemm:
    dtype = draw.one(TYPES)
    mr, nv = register_tile(draw, target)
    m, n, k = (draw.extent(40, 1) if draw.chance(0.3) else None for _ in range(3))
    lda = None if k is None or draw.chance(0.5) else k + draw.one((0, 0, 3))
    return Gemm(
        dtype, m, n, k, lda, mr, nv, draw.one((1, mr, 2 * mr, 2 * mr + 1, 30)), draw.integer(1, 3),
        epilogue(draw, dtype, True), draw.chance(0.6), draw.chance(0.4), draw.one((0, 0, 1, 3)),
        1 if m is not None else draw.one((1, 1, 2, 7, 10)),
    )  # fmt: skip


def _fixed(draw: Draw, fixed: int | None, most: int) -> int:
    return draw.extent(most) if fixed is None else fixed


def gemm_call(draw: Draw, spec: Gemm, target: Target) -> Call:
    dtype = spec.dtype
    m, n, k = _fixed(draw, spec.m, 40), _fixed(draw, spec.n, 70), _fixed(draw, spec.k, 40)
    m -= m % spec.multiple
    batch0, batch1 = (draw.extent(2), draw.extent(2)) if spec.batch else (1, 1)
    words: dict[str, Operand | int] = {}
    words |= {name: v for name, v, f in (("m", m, spec.m), ("n", n, spec.n), ("k", k, spec.k)) if f is None}

    def strides(rows: int, columns: int, shared: bool = True) -> tuple[int, ...]:
        row = columns + draw.one((0, 0, 1, 5))
        inner, outer = row * max(rows, 1) + draw.one((0, 2)), 0
        if not spec.batch:
            return (0, 0, row, 1)
        if shared and draw.chance(0.3):
            inner = 0
        outer = (inner or row * max(rows, 1)) * max(batch1, 1)
        if shared and draw.chance(0.3):
            outer = 0
        return (outer, inner, row, 1)

    def matrices(rows: int, columns: int, at: tuple[int, ...]) -> Array:
        held = [1 if s == 0 else e for e, s in zip((batch0, batch1), at, strict=False)]
        return np.broadcast_to(draw.values(dtype, (*held, rows, columns)), (batch0, batch1, rows, columns))

    a_strides = strides(m, k)
    if spec.lda is not None:
        a_strides = (a_strides[0] and spec.lda * max(m, 1) * batch1, a_strides[1] and spec.lda * max(m, 1), spec.lda, 1)
    a = matrices(m, k, a_strides)
    words["a"] = given(dtype, a, a_strides)
    if spec.lda is None:
        words["lda"] = a_strides[2]
    width = spec.width(target)
    if spec.b_packed:
        panels = -(-n // width)
        size = panels * k * width
        shared = [spec.batch and draw.chance(0.3) for _ in range(2)]
        b_strides: tuple[int, ...] = (0 if shared[0] else size * batch1, 0 if shared[1] else size)
        b = matrices(k, n, b_strides)
        packed = np.zeros((batch0, batch1, panels, k, width), dtype.numpy)
        for i, j in itertools.product(range(batch0), range(batch1)):
            packed[i, j] = pack_b(b[i, j], width)
        words["b"] = given(dtype, packed, (*b_strides, k * width, width, 1), align=64)
    else:
        b_strides = strides(k, n)
        b = matrices(k, n, b_strides)
        words |= {"b": given(dtype, b, b_strides), "ldb": b_strides[2]}
    y = np.matmul(a.astype(np.float64), b.astype(np.float64))
    size_of = np.matmul(np.abs(a).astype(np.float64), np.abs(b).astype(np.float64))
    c_strides = strides(m, n, shared=False)
    y, scale, residual = _epilogue_operands(draw, spec.epilogue, dtype, y, words, spec.batch, strides)
    limit = 1e-6 if dtype is FLOAT32 else 1e-13
    bound = limit * (float(size_of.max(initial=0)) + 4) * scale
    if residual is not None and draw.chance(0.4) and 0 not in residual.window.strides[: 2 if spec.batch else 0]:
        # The output may be the residual's own memory.
        assert residual.values is not None
        c = changed(dtype, residual.values, residual.window.strides, y, limit * 8, bound)
        for name, word in list(words.items()):
            if word is residual:
                words[name] = c
    else:
        c = made(dtype, y.shape, c_strides, y, limit * 8, bound)
    words |= {"c": c, "ldc": c.window.strides[2]}
    if spec.batch:
        words["batch1"] = batch1
        for name in ("a", "b", "c"):
            operand = words[name]
            assert isinstance(operand, Operand)
            words |= {f"{name}_batch{i}": operand.window.strides[i] for i in range(2)}
    return Call(words, spec.tiles(target, m, n, batch0 * batch1))


def _epilogue_operands(
    draw: Draw, epilogue: Epilogue | None, dtype: DType, y: Array, words: dict[str, Operand | int], batch: bool,
    strides: Any,
) -> tuple[Array, float, Operand | None]:  # fmt: skip
    """(the result, by how much the epilogue may scale errors, a full operand that is alone)."""
    if epilogue is None:
        return y, 1.0, None
    m, n = y.shape[-2:]
    values: list[Array] = [y]
    scale, full = 1.0, []
    for i, kind in enumerate(epilogue.operands):
        rows, columns = {"column": (1, n), "row": (m, 1), "scalar": (1, 1), "full": (m, n)}[kind]
        at = strides(rows, columns)
        if kind in ("row", "scalar"):
            # Numbers for rows lie in a row.
            at = (0, 0, 1, 1) if not batch else (at[0] and 2 * max(rows, 1) * 8, at[1] and 2 * max(rows, 1), 1, 1)
        held = [1 if s == 0 else e for e, s in zip(y.shape[:2], at, strict=False)]
        x = np.broadcast_to(draw.values(dtype, (*held, rows, columns)), (*y.shape[:2], rows, columns))
        operand = given(dtype, x, at)
        words[f"e{i}"] = operand
        if batch:
            words |= {f"e{i}_batch{j}": at[j] for j in range(2)}
        if kind == "full":
            words[f"e{i}_s"] = at[2]
            full.append(operand)
        values.append(x.astype(np.float64))
        scale *= 1 + float(np.abs(values[-1]).max(initial=0))
    return apply_tape(epilogue.tape, *values), scale, full[0] if len(full) == 1 else None


def pack_spec(draw: Draw, target: Target) -> PackB:
    return PackB(draw.integer(1, 4), draw.one(("k", "n", None)), draw.one(TYPES), draw.chance(0.4))


def pack_call(draw: Draw, spec: PackB, target: Target) -> Call:
    k, n = draw.extents(2, 900)
    batch0, batch1 = (draw.extent(2), draw.extent(2)) if spec.batch else (1, 1)
    unit = {"k": 2, "n": 3, None: None}[spec.unit]
    extents = (batch0, batch1, k, n)
    strides = draw.strides(extents, unit, shared=False)
    if not spec.batch:
        strides = (0, 0, *strides[2:])
    values = draw.values(spec.dtype, extents)
    b = given(spec.dtype, values, strides)
    width = spec.width(target)
    expected = np.zeros((batch0, batch1, -(-n // width), k, width))
    for i, j in itertools.product(range(batch0), range(batch1)):
        expected[i, j] = pack_b(values[i, j], width)
    packed = made(spec.dtype, expected.shape, None, expected, align=64)
    words: dict[str, Operand | int] = {"b": b, "packed": packed, "k": k, "n": n}
    words |= {} if spec.unit == "k" else {"b_k": strides[2]}
    words |= {} if spec.unit == "n" else {"b_n": strides[3]}
    words |= {"batch1": batch1, "b_batch0": strides[0], "b_batch1": strides[1]} if spec.batch else {}
    return Call(words, spec.tiles(target, n, batch0 * batch1))


def _window(draw: Draw, rank: int) -> Window:
    kernel = tuple(draw.one((1, 2, 3, 3, 5)) if rank < 3 else draw.integer(1, 3) for _ in range(rank))
    pads = tuple(draw.integer(0, k) if draw.chance(0.5) else 0 for k in (*kernel, *kernel))
    return Window(kernel, tuple(draw.integer(1, 3) for _ in kernel), tuple(draw.one((1, 1, 2)) for _ in kernel), pads)


def _image(draw: Draw, window: Window, budget: int) -> tuple[int, ...]:
    """An image that gives at least one pixel."""
    least = [
        max((window.kernel[i] - 1) * window.dilations[i] + 1 - window.pads[i] - window.pads[i + window.rank], 1)
        for i in range(window.rank)
    ]
    each = max(int(budget ** (1 / window.rank)), 1)
    return tuple(low + draw.integer(0, each) for low in least)


def conv_spec(draw: Draw, target: Target) -> Conv:
    settings, _ = _settings(draw, target)
    return Conv(**settings, ahead=draw.one((0, 0, 1, 3)))


def im2col_spec(draw: Draw, target: Target) -> ConvIm2col:
    settings, _ = _settings(draw, target)
    last = draw.chance(0.6)
    stride = None if draw.chance(0.4) else settings["channels"] * settings["groups"] if last else 1
    return ConvIm2col(**settings, channels_last=last, pixel_stride=stride)


def padded_spec(draw: Draw, target: Target) -> ConvPadded:
    settings, _ = _settings(draw, target, 2)
    window = settings["window"]
    settings["window"] = Window(window.kernel, window.strides, (window.dilations[0], 1), window.pads)
    if settings["extents"] is not None:
        settings["extents"] = (draw.integer(1, 7), draw.integer(1, 7))
    del settings["m_block"], settings["panels"]
    last = draw.chance(0.6)
    stride = None if draw.chance(0.4) else settings["channels"] * settings["groups"] if last else 1
    return ConvPadded(
        **settings, rows=draw.integer(1, 4), columns=draw.integer(1, 9), channels_last=last, pixel_stride=stride
    )


def _settings(draw: Draw, target: Target, rank: int | None = None) -> tuple[dict[str, Any], tuple[int, ...]]:
    window = _window(draw, draw.one((1, 2, 2, 2, 3)) if rank is None else rank)
    dtype = draw.one(TYPES)
    mr, nv = register_tile(draw, target)
    channels, groups = draw.one((1, 2, 3, 4, 5, 8, 9, 16)), draw.one((1, 1, 1, 2, 3))
    image = _image(draw, window, 40)
    return {
        "window": window, "channels": channels, "outputs": draw.extent(40, 1), "groups": groups, "dtype": dtype,
        "extents": window.extents(image) if draw.chance(0.3) else None, "mr": mr, "nv": nv,
        "m_block": draw.one((1, mr, 2 * mr, 9)), "panels": draw.integer(1, 3),
        "epilogue": epilogue(draw, dtype, False),
    }, image  # fmt: skip


def convolved(x: Array, weights: Array, window: Window, groups: int, extents: tuple[int, ...]) -> Array:
    """The convolution of x [images, spatial..., channels] in float64, tap by tap."""
    rank = window.rank
    padding = [(0, 0), *((window.pads[i], window.pads[i + rank]) for i in range(rank)), (0, 0)]
    padded = np.pad(x.astype(np.float64), padding)
    outputs, channels = weights.shape[:2]
    size = outputs // groups
    result = np.zeros((x.shape[0], *extents, outputs))
    for tap in itertools.product(*map(range, window.kernel)):
        places = []
        for axis in range(rank):
            first = tap[axis] * window.dilations[axis]
            places.append(slice(first, first + (extents[axis] - 1) * window.strides[axis] + 1, window.strides[axis]))
        seen = padded[(slice(None), *places)]
        for g in range(groups):
            matrix = weights[(slice(g * size, (g + 1) * size), slice(None), *tap)].astype(np.float64)
            result[..., g * size : (g + 1) * size] += seen[..., g * channels : (g + 1) * channels] @ matrix.T
    return result


def _image_for(draw: Draw, spec: Convolution | ConvPadded) -> tuple[int, ...]:
    """A random image, or one that has the output's extents where those are fixed."""
    window = spec.window
    if spec.extents is None:
        return _image(draw, window, draw.one((4, 40, 60)))
    return tuple(
        (spec.extents[i] - 1) * window.strides[i] + (window.kernel[i] - 1) * window.dilations[i] + 1
        - window.pads[i] - window.pads[i + window.rank] + draw.integer(0, window.strides[i] - 1)
        for i in range(window.rank)
    )  # fmt: skip


def conv_call(draw: Draw, spec: Conv | ConvIm2col | ConvPadded, target: Target) -> Call:
    window, groups, dtype = spec.window, spec.groups, spec.dtype
    rank, last = window.rank, isinstance(spec, Conv) or spec.channels_last
    image = _image_for(draw, spec)
    if min(image) < 1:
        image = tuple(max(i, 1) for i in image)
        if spec.extents is not None and window.extents(image) != spec.extents:
            return Call(dict.fromkeys(_word_names(spec), 0), 0)
    extents = window.extents(image)
    images, channels, outputs = draw.extent(2), groups * spec.channels, groups * spec.outputs
    shape = (images, *image, channels)
    values = draw.values(dtype, shape)
    weights = draw.values(dtype, (outputs, spec.channels, *window.kernel))
    fixed = None if isinstance(spec, Conv) else spec.pixel_stride
    strides = draw.strides(shape, rank + 1 if last else None)
    if last and fixed is not None:
        strides = dense(shape)
    elif not last and fixed is not None:
        planes = draw.strides((images, channels, *image), rank + 1)
        strides = (planes[0], *planes[2:], planes[1])
    x = given(dtype, values, strides)
    words: dict[str, Operand | int] = {"x": x, "x_n": strides[0], **numbers("in", image)}
    words |= {f"x_s{i}": strides[1 + i] for i in range(rank) if fixed is None or i < rank - 1}
    if not last:
        words["x_c"] = strides[-1]
    if isinstance(spec, Conv):
        words["zero"] = given(dtype, np.zeros(spec.channels, dtype.numpy))
    if spec.extents is None:
        words |= numbers("out", extents)
    packed = pack_conv_weights(weights, groups, spec.width(target), not last)
    words["w"] = given(dtype, packed, align=64)
    y = convolved(values, weights, window, groups, extents)
    finish_words(draw, spec.epilogue, dtype, y, window.taps * spec.channels, words)
    if isinstance(spec, ConvPadded):
        return Call(words, spec.tiles((extents[0], extents[1]), images))
    return Call(words, spec.tiles(target, math.prod(extents), images))


def _word_names(spec: Any) -> tuple[str, ...]:
    from whet.codegen.target import host_target
    from whet.kernels.base import build

    return build(spec, host_target()).words


def finish_words(
    draw: Draw, epilogue: Epilogue | None, dtype: DType, y: Array, depth: int, words: dict[str, Operand | int]
) -> tuple[Array, float]:
    """The output's words, and the epilogue's, of a convolution of result y; what comes out, and its error at most."""
    images, outputs, pixels = y.shape[0], y.shape[-1], math.prod(y.shape[1:-1])
    flat = y.reshape(images, pixels, outputs)

    def place() -> tuple[int, int, int]:
        row = outputs + draw.one((0, 0, 1, 5))
        return (row * max(pixels, 1) + draw.one((0, 3)), row, 1)

    numbers_, scale, full = [flat], 1.0, []
    for i, kind in enumerate(epilogue.operands if epilogue else ()):
        extents = {"column": (1, 1, outputs), "scalar": (1, 1, 1), "full": flat.shape}[kind]
        value = draw.values(dtype, extents)
        operand = given(dtype, value, place() if kind == "full" else None)
        words[f"e{i}"] = operand
        if kind == "full":
            words |= {f"e{i}_n": operand.window.strides[0], f"e{i}_s": operand.window.strides[1]}
            full.append((f"e{i}", operand))
        numbers_.append(value.astype(np.float64))
        scale *= 1 + float(np.abs(numbers_[-1]).max(initial=0))
    result = flat if epilogue is None else apply_tape(epilogue.tape, *numbers_)
    limit = 1e-6 if dtype is FLOAT32 else 1e-13
    bound = limit * (depth**0.5 * 8 + 8) * scale
    if len(full) == 1 and draw.chance(0.4):
        name, operand = full[0]
        assert operand.values is not None
        c = changed(dtype, operand.values, operand.window.strides, result, limit * 8, bound)
        words[name] = c
    else:
        c = made(dtype, flat.shape, place(), result, limit * 8, bound)
    words |= {"c": c, "c_n": c.window.strides[0], "ldc": c.window.strides[1]}
    return result.reshape(y.shape), bound + limit * 8 * float(np.abs(result).max(initial=0))


def depthwise_spec(draw: Draw, target: Target) -> Depthwise:
    window = _window(draw, 2)
    dtype, channels = draw.one(TYPES), draw.extent(70, 1)
    image = _image(draw, window, 100)
    extents = window.extents(image)
    return Depthwise(
        window, channels, dtype, (image[1], extents[1]) if draw.chance(0.4) else None, draw.integer(1, 7),
        draw.integer(1, 4), draw.integer(1, 4), epilogue(draw, dtype, False), draw.integer(1, 3),
        extents[0] if draw.chance(0.4) else None, channels + draw.one((0, 0, 3)) if draw.chance(0.5) else None,
        draw.chance(0.3), draw.chance(0.4),
    )  # fmt: skip


def depthwise_call(draw: Draw, spec: Depthwise, target: Target) -> Call:
    weights = draw.values(spec.dtype, (spec.channels, 1, *spec.window.kernel))
    packed = pack_depthwise_weights(weights, target.lanes(spec.dtype))
    return _strips_call(draw, spec, target, spec.channels, spec.channels, weights, packed)


def grouped_spec(draw: Draw, target: Target) -> Grouped:
    window = _window(draw, 2)
    dtype, channels = draw.one(TYPES), draw.one((1, 2, 3, 4, 5, 8, 8, 16, 16, 20))
    outputs = channels if draw.chance(0.5) else draw.one((1, 2, 3, 4, 7, 8, 12, 16, 24))
    groups = draw.integer(1, max(2, 70 // max(channels, outputs)))
    image = _image(draw, window, 60)
    extents = window.extents(image)
    return Grouped(
        window, groups, channels, outputs, dtype, (image[1], extents[1]) if draw.chance(0.4) else None,
        draw.integer(1, 7), draw.integer(1, 4), draw.integer(1, 4), epilogue(draw, dtype, False), draw.integer(1, 3),
        extents[0] if draw.chance(0.4) else None,
        groups * channels + draw.one((0, 0, 3)) if draw.chance(0.5) else None, draw.chance(0.3), draw.chance(0.5),
    )  # fmt: skip


def grouped_call(draw: Draw, spec: Grouped, target: Target) -> Call:
    outputs = spec.groups * spec.outputs
    weights = draw.values(spec.dtype, (outputs, spec.channels, *spec.window.kernel))
    packed = pack_grouped_weights(weights, spec.groups, target.lanes(spec.dtype))
    return _strips_call(draw, spec, target, spec.groups * spec.channels, outputs, weights, packed)


def _strips_call(
    draw: Draw, spec: Depthwise | Grouped, target: Target, channels: int, outputs: int, weights: Array, packed: Array
) -> Call:  # fmt: skip
    """A call of a kernel that works through an image in strips, on an image of so many channels."""
    window, dtype = spec.window, spec.dtype
    image = _image(draw, window, draw.one((9, 100 if isinstance(spec, Depthwise) else 60)))
    if spec.columns is not None:
        image = (image[0], spec.columns[0])
    if spec.out_rows is not None:
        reach = (window.kernel[0] - 1) * window.dilations[0] + 1 - window.pads[0] - window.pads[2]
        least = (spec.out_rows - 1) * window.strides[0] + reach
        image = (max(least, 1) + draw.integer(0, window.strides[0] - 1), image[1])
        while window.extents(image)[0] > spec.out_rows:
            image = (image[0] - 1, image[1])
    extents = window.extents(image)
    images = draw.extent(2)
    values = draw.values(dtype, (images, *image, channels))
    strides = draw.strides(values.shape, 3)
    if spec.pixel_stride is not None:
        row = spec.pixel_stride * image[1] + draw.one((0, 0, 5))
        strides = (row * image[0] + draw.one((0, 2)), row, spec.pixel_stride, 1)
    words: dict[str, Operand | int] = {"x": given(dtype, values, strides), "x_n": strides[0]}
    words |= {"x_s0": strides[1], "in0": image[0]}
    words |= {} if spec.pixel_stride is not None else {"x_s1": strides[2]}
    words |= {} if spec.out_rows is not None else {"out0": extents[0]}
    words |= {} if spec.columns is not None else {"in1": image[1], "out1": extents[1]}
    words["w"] = given(dtype, packed, align=64)
    if isinstance(spec, Depthwise):
        y = _by_channel(values, weights, window, extents)
    else:
        y = convolved(values, weights, window, spec.groups, extents)
    result, error = finish_words(draw, spec.epilogue, dtype, y, window.taps * weights.shape[1], words)
    if spec.totals:
        sums = np.stack([result[:, r : r + spec.rows].sum((1, 2)) for r in range(0, extents[0], spec.rows)], 1)
        strides = (sums.shape[1] * outputs + draw.one((0, 3)), outputs, 1)
        bound = 2 * spec.rows * extents[1] * error
        totals = made(dtype, sums.shape, strides, sums, 0, bound)
        words |= {"totals": totals, "totals_n": strides[0]}
    return Call(words, spec.tiles(target, extents[0], images))


def _by_channel(x: Array, weights: Array, window: Window, extents: tuple[int, ...]) -> Array:
    padded = np.pad(x.astype(np.float64), [(0, 0), *((window.pads[i], window.pads[i + 2]) for i in range(2)), (0, 0)])
    result = np.zeros((x.shape[0], *extents, x.shape[-1]))
    for tap in itertools.product(*map(range, window.kernel)):
        places = [
            slice(first := tap[i] * window.dilations[i], first + (extents[i] - 1) * window.strides[i] + 1,
                  window.strides[i])
            for i in range(2)
        ]  # fmt: skip
        result += padded[(slice(None), *places)] * weights[(slice(None), 0, *tap)].astype(np.float64)
    return result
