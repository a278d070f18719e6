"""Chains of convolutions."""

from __future__ import annotations

import itertools

import numpy as np

from whet.codegen.target import Target
from whet.dtypes import FLOAT32, FLOAT64, DType
from whet.kernels.chain import MOST_TAPS, Chain, Pointwise, Shape
from whet.kernels.chain_shape import ChainWork, chain_refusal
from whet.kernels.conv import Window, pack_conv_weights
from whet.kernels.depthwise import pack_depthwise_weights
from whet.kernels.gemm import pack_b
from whet.kernels.pairs import pack_pairs
from whet.kernels.tile import Epilogue

from .call import Array, Call, Operand
from .draw import Draw
from .operands import apply_tape, given, made
from .products import epilogue, finish_words


def chain_spec(draw: Draw, target: Target) -> Chain:
    dtype = draw.one((FLOAT32, FLOAT32, FLOAT64))
    while True:
        kernel = (draw.one((1, 2, 3, 3, 5)), draw.one((1, 2, 3, 3, 5)))
        window = Window(
            kernel, (draw.integer(1, 3), draw.integer(1, 3)), (draw.one((1, 1, 2)), draw.one((1, 1, 2))),
            tuple(draw.integer(0, k) if draw.chance(0.5) else 0 for k in (*kernel, *kernel)),
        )  # fmt: skip
        image = (draw.integer(1, 12), draw.integer(1, 12))
        out = window.extents(image)
        vectors, panels = draw.integer(1, 3), draw.integer(1, 3)
        channels = vectors * panels * target.lanes(dtype)
        work = ChainWork(window, channels, image, (out[0], out[1]), None, None, 0.0, dtype)
        if min(out) > 0 and window.taps <= MOST_TAPS and chain_refusal(target, work) is None:
            break
    first, last = draw.extent(20, 1) if draw.chance(0.7) else None, draw.extent(40, 1) if draw.chance(0.6) else None
    most = 3 if target.vector_registers < 32 else 6
    shape = Shape(
        vectors, panels if last is not None else draw.integer(1, panels), draw.integer(1, most), draw.integer(1, 7),
        draw.integer(1, 3), draw.integer(1, 5), draw.integer(1, most), draw.integer(1, 3),
    )  # fmt: skip
    step = (first or channels) + draw.one((0, 0, 3))
    return Chain(
        window, channels, image, (out[0], out[1]), (step * image[1] + draw.one((0, 0, 5)), step), shape,
        None if first is None else Pointwise(first, _inner(draw, dtype)),
        epilogue(draw, dtype, False) if last is None else _inner(draw, dtype),
        None if last is None else Pointwise(last, epilogue(draw, dtype, False)),
        dtype, last is None and draw.chance(0.4),
    )  # fmt: skip


def _inner(draw: Draw, dtype: DType) -> Epilogue | None:
    """An epilogue of results that nobody else sees: of their type, from one number for each channel."""
    while True:
        found = epilogue(draw, dtype, False)
        if found is None or ("full" not in found.operands and found.result is dtype):
            return found


def chain_call(draw: Draw, spec: Chain, target: Target) -> Call:
    dtype, images, window = spec.dtype, draw.extent(2), spec.window
    first = spec.channels if spec.expand is None else spec.expand.channels
    strides = (spec.steps[0] * spec.image[0] + draw.one((0, 2)), *spec.steps, 1)
    values = draw.values(dtype, (images, *spec.image, first))
    words: dict[str, Operand | int] = {"x": given(dtype, values, strides), "x_n": strides[0]}
    x, depth = values.astype(np.float64), window.taps
    if spec.expand is not None:
        w = draw.values(dtype, (spec.channels, first, 1, 1))
        words["wx"] = given(dtype, pack_conv_weights(w, 1, spec.width(target)), align=64)
        x = _finish(draw, spec.expand.epilogue, "x", dtype, x @ w[:, :, 0, 0].T.astype(np.float64), words)
        depth *= first
    w = draw.values(dtype, (spec.channels, 1, *window.kernel))
    words["wd"] = given(dtype, pack_depthwise_weights(w, target.lanes(dtype)), align=64)
    x = _filtered(x, w, spec)
    if spec.project is not None:
        x = _finish(draw, spec.epilogue, "d", dtype, x, words)
        w = draw.values(dtype, (spec.project.channels, spec.channels))
        lanes, width = target.lanes(dtype), spec.shape.project_vectors * target.lanes(dtype)
        packed = pack_pairs(w.T, width, lanes) if spec.in_pairs(target) else pack_b(w.T, width)
        words["wp"] = given(dtype, packed, align=64)
        x, depth = x @ w.T.astype(np.float64), depth * spec.channels
    last = spec.epilogue if spec.project is None else spec.project.epilogue
    # Errors of what lies before grow with its size.
    size = int(np.abs(x).max(initial=0)) + 1
    result, error = finish_words(draw, last, dtype, x, depth * size * size, words)
    if spec.totals:
        band = spec.shape.band
        sums = np.stack([result[:, r : r + band].sum((1, 2)) for r in range(0, spec.out[0], band)], 1)
        totals_n = sums.shape[1] * spec.channels + draw.one((0, 3))
        bound = 2 * band * spec.out[1] * error
        words["totals"] = made(dtype, sums.shape, (totals_n, spec.channels, 1), sums, 0, bound)
        words["totals_n"] = totals_n
    return Call(words, spec.tiles(target, images))


def _finish(
    draw: Draw, inner: Epilogue | None, prefix: str, dtype: DType, y: Array, words: dict[str, Operand | int]
) -> Array:  # fmt: skip
    if inner is None:
        return y
    numbers = [y]
    for i, kind in enumerate(inner.operands):
        value = draw.values(dtype, (1, 1, 1, y.shape[-1] if kind == "column" else 1))
        words[f"{prefix}{i}"] = given(dtype, value)
        numbers.append(value.astype(np.float64))
    return apply_tape(inner.tape, *numbers)


def _filtered(x: Array, weights: Array, spec: Chain) -> Array:
    window = spec.window
    padded = np.pad(x, [(0, 0), *((window.pads[i], window.pads[i + 2]) for i in range(2)), (0, 0)])
    result = np.zeros((x.shape[0], *spec.out, spec.channels))
    for tap in itertools.product(*map(range, window.kernel)):
        places = [
            slice(first := tap[i] * window.dilations[i], first + (spec.out[i] - 1) * window.strides[i] + 1,
                  window.strides[i])
            for i in range(2)
        ]  # fmt: skip
        result += padded[(slice(None), *places)] * weights[(slice(None), 0, *tap)].astype(np.float64)
    return result
