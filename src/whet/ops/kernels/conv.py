"""Convolutions of any rank: a matrix product over windows, built in chunks of output rows; depthwise tap by tap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import Array, Attributes, Inputs, Outputs, expect_shape, integer, optional, required
from whet.ops.kernels.common import BLOCK_BYTES, back, ints, positive, spatial_padding, working

Index: TypeAlias = tuple[Any, ...]

_WINDOW_BYTES = 16 << 20
"""The windows of one chunk of output rows take at most about this much."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Extents of a convolution along its spatial axes."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    output: tuple[int, ...]
    groups: int


def geometry(x_shape: Sequence[int], w_shape: Sequence[int], attributes: Attributes) -> Geometry:
    """Check the shapes of X (N, C, spatial) and W (M, C / group, kernel) and work out the output's extents."""
    rank = len(x_shape) - 2
    if rank < 1 or len(w_shape) != rank + 2:
        raise InvalidArgument(
            "X and W must have one rank, at least 3", value="W", found=f"{tuple(x_shape)} and {tuple(w_shape)}"
        )
    kernel = ints(attributes, "kernel_shape", w_shape[2:])
    if kernel != tuple(w_shape[2:]):
        raise InvalidArgument("kernel_shape is not W's", value="W", found=w_shape[2:], expected=kernel)
    strides = ints(attributes, "strides", (1,) * rank)
    dilations = ints(attributes, "dilations", (1,) * rank)
    positive(kernel, "kernel_shape")
    positive(strides, "strides")
    positive(dilations, "dilations")
    groups = integer(attributes, "group", 1, least=1)
    if w_shape[1] * groups != x_shape[1] or w_shape[0] % groups:
        raise InvalidArgument(
            "the channels of X and W do not fit",
            value="W",
            found=f"X {tuple(x_shape)}, W {tuple(w_shape)}, group {groups}",
            expected="W (M, C / group, ...) with M a multiple of group",
        )
    pads = spatial_padding(attributes, x_shape[2:], kernel, strides, dilations)
    if any(p < 0 for pair in pads for p in pair):
        raise InvalidArgument("attribute pads has a negative value", found=pads, expected="at least 0")
    output = []
    for extent, k, s, d, (before, after) in zip(x_shape[2:], kernel, strides, dilations, pads, strict=True):
        reach = (k - 1) * d + 1
        padded = extent + before + after
        if padded < reach:
            raise InvalidArgument(
                "the kernel is larger than the padded input", value="X", found=f"{padded} < {reach}",
                expected="kernel extent at most the padded extent",
            )  # fmt: skip
        output.append((padded - reach) // s + 1)
    return Geometry(kernel, strides, dilations, tuple(pads), tuple(output), groups)


def convolve(x: Array, w: Array, g: Geometry) -> Array:
    """The plain convolution of X and W, which have one type."""
    if math.prod((x.shape[0], w.shape[0], *g.output)) == 0 or x.shape[1] == 0:
        return np.zeros((x.shape[0], w.shape[0], *g.output), x.dtype)
    if any(p for pair in g.pads for p in pair):
        padded = np.zeros((*x.shape[:2], *(e + a + b for e, (a, b) in zip(x.shape[2:], g.pads, strict=True))), x.dtype)
        inner: Index = (..., *(slice(a, a + e) for e, (a, _) in zip(x.shape[2:], g.pads, strict=True)))
        padded[inner] = x
        x = padded
    if all(k == 1 for k in g.kernel):
        return _pointwise(x, w, g)
    if w.shape[1] == 1 and g.groups > 1:
        return _depthwise(x, w, g)
    return _windowed(x, w, g)


def tap_slices(tap: Sequence[int], g: Geometry) -> tuple[slice, ...]:
    """The part of the padded input that one kernel position meets over all outputs."""
    return tuple(
        slice(t * d, t * d + (o - 1) * s + 1, s)
        for t, d, o, s in zip(tap, g.dilations, g.output, g.strides, strict=True)
    )


def _pointwise(x: Array, w: Array, g: Geometry) -> Array:
    sampled: Index = (..., *tap_slices((0,) * len(g.kernel), g))
    x = x[sampled]
    columns = np.ascontiguousarray(x).reshape(x.shape[0], g.groups, w.shape[1], -1)
    y: Array = np.matmul(w.reshape(g.groups, -1, w.shape[1]), columns)
    return y.reshape(x.shape[0], w.shape[0], *g.output)


def _depthwise(x: Array, w: Array, g: Geometry) -> Array:
    """One input channel a group: multiply and add shifted images, a cacheful of channels at a time."""
    count, channels = x.shape[0], x.shape[1]
    each = w.shape[0] // channels
    y = np.empty((count, channels, each, *g.output), x.dtype)
    taps = w.reshape(channels, each, -1)
    step = max(BLOCK_BYTES // max(math.prod(g.output) * each * x.itemsize, 1), 1)
    ones = (1,) * len(g.kernel)
    for n in range(count):
        for start in range(0, channels, step):
            part = slice(start, start + step)
            total = y[n, part]
            scratch = np.empty_like(total)
            for position, tap in enumerate(product(*(range(k) for k in g.kernel))):
                index: Index = (n, part, *tap_slices(tap, g))
                image = x[index][:, None]
                weight = taps[part, :, position].reshape(-1, each, *ones)
                if position == 0:
                    np.multiply(image, weight, out=total)
                else:
                    np.multiply(image, weight, out=scratch)
                    total += scratch
    return y.reshape(count, w.shape[0], *g.output)


def _windowed(x: Array, w: Array, g: Geometry) -> Array:
    count = x.shape[0]
    per_group = w.shape[1]
    depth = per_group * math.prod(g.kernel)
    spatial = x.strides[2:]
    windows = np.lib.stride_tricks.as_strided(
        x,
        (count, g.groups, per_group, *g.kernel, *g.output),
        (
            x.strides[0],
            x.strides[1] * per_group,
            x.strides[1],
            *(stride * d for stride, d in zip(spatial, g.dilations, strict=True)),
            *(stride * s for stride, s in zip(spatial, g.strides, strict=True)),
        ),
        writeable=False,
    )
    matrix = w.reshape(g.groups, -1, depth)
    y = np.empty((count, g.groups, matrix.shape[1], *g.output), x.dtype)
    rows = g.output[0]
    row_bytes = g.groups * depth * math.prod(g.output[1:]) * x.itemsize
    step = min(max(_WINDOW_BYTES // max(row_bytes, 1), 1), rows)
    row_axis = 2 + len(g.kernel)
    for n in range(count):
        for start in range(0, rows, step):
            part = windows[n][(slice(None),) * row_axis + (slice(start, start + step),)]
            columns = part.reshape(g.groups, depth, -1)
            y[n, :, :, start : start + step] = np.matmul(matrix, columns).reshape(
                g.groups, -1, part.shape[row_axis], *g.output[1:]
            )
    return y.reshape(count, w.shape[0], *g.output)


def add_bias(y: Array, bias: Array | None, channels: int) -> Array:
    """`y` with a value for each channel added in place."""
    if bias is not None:
        expect_shape(bias, (channels,), "B")
        y += bias.astype(y.dtype, copy=False).reshape(-1, *(1,) * (y.ndim - 2))
    return y


def conv(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Conv(22)."""
    x, w = required(inputs, 0, "X"), required(inputs, 1, "W")
    wide = working(x)
    y = convolve(wide, w.astype(wide.dtype, copy=False), geometry(x.shape, w.shape, attributes))
    return [back(add_bias(y, optional(inputs, 2), w.shape[0]), x.dtype)]


def _centred(x: Array, zero_point: Array | None, axis: int | None, name: str) -> Array:
    """x minus its zero point (a scalar, or a vector along `axis`), as float64: exact for sums below 2^53."""
    wide = x.astype(np.float64)
    if zero_point is None:
        return wide
    if zero_point.size == 1:
        return wide - zero_point.reshape(()).astype(np.float64)
    if axis is None:
        raise InvalidArgument(f"{name} must be a scalar", value=name, found=zero_point.shape, expected="()")
    expect_shape(zero_point, (x.shape[axis],), name)
    return wide - zero_point.astype(np.float64).reshape(-1, *(1,) * (x.ndim - 1 - axis))


def conv_integer(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """ConvInteger(10): exact in int32 (padding counts as the zero point)."""
    x, w = required(inputs, 0, "x"), required(inputs, 1, "w")
    y = convolve(
        _centred(x, optional(inputs, 2), None, "x_zero_point"),
        _centred(w, optional(inputs, 3), 0, "w_zero_point"),
        geometry(x.shape, w.shape, attributes),
    )
    return [y.astype(np.int64).astype(np.int32)]


def qlinear_conv(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """QLinearConv(10): the exact integer sum and bias, scaled in float64, rounded half to even, saturated."""
    x, w = required(inputs, 0, "x"), required(inputs, 3, "w")
    y_zero_point = required(inputs, 7, "y_zero_point")
    total = convolve(
        _centred(x, optional(inputs, 2), None, "x_zero_point"),
        _centred(w, optional(inputs, 5), 0, "w_zero_point"),
        geometry(x.shape, w.shape, attributes),
    )
    add_bias(total, optional(inputs, 8), w.shape[0])
    x_scale, y_scale = (_scale(required(inputs, i, name), name) for i, name in ((1, "x_scale"), (6, "y_scale")))
    w_scale = required(inputs, 4, "w_scale").astype(np.float64)
    w_scale = w_scale.reshape(()) if w_scale.size == 1 else w_scale.reshape(-1, *(1,) * (x.ndim - 2))
    return [requantize(total, x_scale * w_scale / y_scale, y_zero_point)]


def _scale(array: Array, name: str) -> Any:
    if array.size != 1:
        raise InvalidArgument(f"{name} must be a scalar", value=name, found=array.shape, expected="()")
    value = array.reshape(()).astype(np.float64)[()]
    if not (np.isfinite(value) and value > 0):
        raise InvalidArgument(f"{name} must be positive and finite", value=name, found=value)
    return value


def requantize(total: Array, scale: Any, zero_point: Array) -> Array:
    """round(total scale) + zero point, saturated to the zero point's type."""
    info = np.iinfo(zero_point.dtype)
    shifted = np.rint(total * scale) + zero_point.reshape(()).astype(np.float64)
    result: Array = np.clip(shifted, info.min, info.max).astype(zero_point.dtype)
    return result


def conv_transpose(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """ConvTranspose(22): each input element adds its multiple of the kernel to the output."""
    given, w = required(inputs, 0, "X"), required(inputs, 1, "W")
    x = working(given)
    rank = x.ndim - 2
    if rank < 1 or w.ndim != x.ndim:
        raise InvalidArgument("X and W must have one rank, at least 3", value="W", found=f"{x.shape} and {w.shape}")
    groups = integer(attributes, "group", 1, least=1)
    if w.shape[0] != x.shape[1] or x.shape[1] % groups:
        raise InvalidArgument("the channels of X and W do not fit", value="W", found=f"{x.shape} and {w.shape}")
    kernel = ints(attributes, "kernel_shape", w.shape[2:])
    if kernel != tuple(w.shape[2:]):
        raise InvalidArgument("kernel_shape is not W's", value="W", found=w.shape[2:], expected=kernel)
    strides = ints(attributes, "strides", (1,) * rank)
    dilations = ints(attributes, "dilations", (1,) * rank)
    for values, name in ((kernel, "kernel_shape"), (strides, "strides"), (dilations, "dilations")):
        positive(values, name)
    extra = ints(attributes, "output_padding", (0,) * rank)
    full = [
        (e - 1) * s + (k - 1) * d + 1 + p
        for e, s, k, d, p in zip(x.shape[2:], strides, kernel, dilations, extra, strict=True)
    ]
    pads, output = _transpose_extents(attributes, x.shape[2:], strides, full)
    channels = w.shape[1] * groups
    y = _scatter_taps(x, w.astype(x.dtype, copy=False), groups, strides, dilations, full)
    y = y.reshape(x.shape[0], channels, *full)
    result = np.zeros((x.shape[0], channels, *output), x.dtype)
    source, target = [slice(None)] * 2, [slice(None)] * 2
    for before, extent, total in zip(pads, output, full, strict=True):
        start = max(before, 0)
        stop = min(before + extent, total)
        source.append(slice(start, max(stop, start)))
        target.append(slice(start - before, start - before + max(stop - start, 0)))
    result[tuple(target)] = y[tuple(source)]
    return [back(add_bias(result, optional(inputs, 2), channels), given.dtype)]


def _transpose_extents(
    attributes: Attributes, extents: Sequence[int], strides: Sequence[int], full: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding cut off before each axis (negative: zeros put in front) and the output's extents."""
    rank = len(extents)
    mode = attributes.get("auto_pad", "NOTSET")
    shape = attributes.get("output_shape")
    if shape is not None and len(shape) >= rank:
        output = [int(d) for d in shape[-rank:]]
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        output = [e * s for e, s in zip(extents, strides, strict=True)]
    else:
        pads = ints(attributes, "pads", (0,) * (2 * rank)) if mode == "NOTSET" else (0,) * (2 * rank)
        output = [f - pads[i] - pads[i + rank] for i, f in enumerate(full)]
        if any(o < 0 for o in output):
            raise InvalidArgument("attribute pads cuts off more than the output", found=list(pads), expected=list(full))
        return list(pads[:rank]), output
    # Where the output is longer than what the kernel reaches, the rest behind it is zero.
    total = [max(f - o, 0) for f, o in zip(full, output, strict=True)]
    if mode == "SAME_UPPER":
        return [t // 2 for t in total], output
    return [t - t // 2 for t in total], output


def _scatter_taps(
    x: Array, w: Array, groups: int, strides: Sequence[int], dilations: Sequence[int], full: Sequence[int]
) -> Array:
    count, channels = x.shape[:2]
    spatial, kernel = x.shape[2:], w.shape[2:]
    matrix = w.reshape(groups, channels // groups, -1).swapaxes(1, 2)
    y = np.zeros((count, groups, w.shape[1], *full), x.dtype)
    if not x.size:
        return y
    row = math.prod(spatial[1:])
    step = max(_WINDOW_BYTES // max(matrix.shape[1] * groups * row * x.itemsize, 1), 1)
    for n in range(count):
        for start in range(0, spatial[0], step):
            part = np.ascontiguousarray(x[n, :, start : start + step])
            rows = part.shape[1]
            columns = np.matmul(matrix, part.reshape(groups, channels // groups, -1))
            columns = columns.reshape(groups, w.shape[1], *kernel, rows, *spatial[1:])
            for tap in product(*(range(k) for k in kernel)):
                where = [
                    slice(t * d, t * d + (e - 1) * s + 1, s)
                    for t, d, e, s in zip(tap, dilations, (rows, *spatial[1:]), strides, strict=True)
                ]
                first = where[0]
                where[0] = slice(first.start + start * strides[0], first.stop + start * strides[0], first.step)
                target: Index = (n, slice(None), slice(None), *where)
                source: Index = (slice(None), slice(None), *tap)
                y[target] += columns[source]
    return y


CONVOLUTIONS: dict[str, Kernel] = {
    "Conv": conv,
    "ConvInteger": conv_integer,
    "ConvTranspose": conv_transpose,
    "QLinearConv": qlinear_conv,
}
