"""Convolutions and pools: fused, channels-last, quantized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.activation import activate
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    expect_broadcast,
    expect_divisible,
    expect_rank,
    expect_shape,
    integer,
    optional,
    product,
    required,
    scalar,
    text,
    widen,
)
from whet.ops.contrib.quantized import quantize, read_scaled, write_scaled


@dataclass(frozen=True)
class Window:
    """A sliding window over spatial axes; `begin` and `end` are its paddings, `extents` the output's."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    extents: tuple[int, ...]


def _numbers(attributes: Attributes, name: str, count: int, default: Sequence[int], least: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in attributes.get(name, ()) or default)
    if len(values) != count or min(values, default=least) < least:
        raise InvalidArgument(f"attribute {name} does not fit", found=values, expected=f"{count} numbers >= {least}")
    return values


def window_of(spatial: Sequence[int], attributes: Attributes, kernel: Sequence[int] = ()) -> Window:
    """The window that kernel_shape (or `kernel`), strides, dilations, pads, auto_pad and ceil_mode describe."""
    rank = len(spatial)
    size = _numbers(attributes, "kernel_shape", rank, kernel, 1)
    if kernel and size != tuple(kernel):
        raise InvalidArgument("attribute kernel_shape differs from W", found=size, expected=tuple(kernel))
    strides = _numbers(attributes, "strides", rank, (1,) * rank, 1)
    dilations = _numbers(attributes, "dilations", rank, (1,) * rank, 1)
    reach = tuple((k - 1) * d + 1 for k, d in zip(size, dilations, strict=True))
    mode = text(attributes, "auto_pad", "NOTSET", ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"))
    if mode.startswith("SAME"):
        extents = tuple(-(-extent // stride) for extent, stride in zip(spatial, strides, strict=True))
        total = [
            max((out - 1) * stride + span - extent, 0)
            for out, stride, span, extent in zip(extents, strides, reach, spatial, strict=True)
        ]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        begin, end = (small, large) if mode == "SAME_UPPER" else (large, small)
        return Window(size, strides, dilations, begin, end, extents)
    pads = (0,) * (2 * rank)
    if mode == "NOTSET":
        pads = _numbers(attributes, "pads", 2 * rank, pads, 0)
    begin, end = pads[:rank], pads[rank:]
    round_up = bool(integer(attributes, "ceil_mode", 0, least=0, most=1))
    counts = []
    for axis, extent in enumerate(spatial):
        room = extent + begin[axis] + end[axis] - reach[axis]
        if room < 0:
            raise InvalidArgument(
                f"the window is larger than the padded input on spatial axis {axis}",
                found=f"window {reach[axis]}, input {extent + begin[axis] + end[axis]}",
                expected="a window that fits",
            )
        count = (-(-room // strides[axis]) if round_up else room // strides[axis]) + 1
        if (
            round_up and (count - 1) * strides[axis] >= extent + begin[axis]
        ):  # a window must not start in the end padding
            count -= 1
        counts.append(count)
    return Window(size, strides, dilations, begin, end, tuple(counts))


def patches(x: Array, window: Window, fill: float) -> Array:
    """Every window of x (N, C, *spatial), padded with `fill`: (N, C, *extents, *kernel)."""
    widths = [(0, 0), (0, 0)]
    for axis, extent in enumerate(x.shape[2:]):
        reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        needed = (window.extents[axis] - 1) * window.strides[axis] + reach
        widths.append((window.begin[axis], max(needed - extent - window.begin[axis], 0)))
    padded = np.pad(x, widths, constant_values=fill)
    rank = x.ndim - 2
    spans = tuple((k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True))
    views = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    starts = tuple(
        slice(0, (count - 1) * stride + 1, stride) for count, stride in zip(window.extents, window.strides, strict=True)
    )
    taps = tuple(slice(None, None, d) for d in window.dilations)
    return np.asarray(views[(slice(None), slice(None), *starts, *taps)])


def convolve(x: Array, w: Array, attributes: Attributes) -> Array:
    """The convolution of x (N, C, *spatial) with w (M, C / group, *kernel), attributes as in ONNX's Conv."""
    expect_rank(x, range(3, 65), "X")
    expect_rank(w, x.ndim, "W")
    group = integer(attributes, "group", 1, least=1)
    per_group = expect_divisible(x.shape[1], group, "the number of channels of X", "group")
    filters = expect_divisible(w.shape[0], group, "the number of filters of W", "group")
    if w.shape[1] != per_group:
        raise InvalidArgument("W does not fit X", value="W", found=w.shape, expected=f"second extent {per_group}")
    window = window_of(x.shape[2:], attributes, w.shape[2:])
    views = patches(x, window, 0)
    rank, batch = x.ndim - 2, x.shape[0]
    positions, taps = product(window.extents), product(window.kernel)
    # (N, C, *out, *kernel) -> (N, group, out, C / group * kernel)
    order = (0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank))
    lines = views.transpose(order).reshape(batch, positions, group, per_group * taps).transpose(0, 2, 3, 1)
    kernels = w.reshape(group, filters, per_group * taps)
    return np.asarray(np.matmul(kernels, lines).reshape(batch, w.shape[0], *window.extents))


def _conv_with_epilogue(x: Array, inputs: Inputs, attributes: Attributes, z: Array | None) -> Array:
    """activation(conv(X, W) + B + Z), channels first."""
    w, bias = required(inputs, 1, "W"), optional(inputs, 2)
    result = convolve(widen(x), widen(w), attributes)
    if bias is not None:
        expect_shape(bias, (w.shape[0],), "B")
        result = result + widen(bias).reshape(-1, *(1,) * (x.ndim - 2))
    if z is not None:
        expect_broadcast(z, result.shape, "Z")
        result = result + widen(z)
    return activate(text(attributes, "activation", ""), result, attributes.get("activation_params", ()))


def fused_conv(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """activation(conv(X, W) + B + Z) in the channels-first layout."""
    x = required(inputs, 0, "X")
    return [_conv_with_epilogue(x, inputs, attributes, optional(inputs, 3)).astype(x.dtype)]


def nhwc_conv(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """FusedConv with X, Z and Y channels-last and W (M, C / group, *kernel)."""
    x, z = required(inputs, 0, "X"), optional(inputs, 3)
    expect_rank(x, range(3, 65), "X")
    first = np.moveaxis(x, -1, 1)
    result = _conv_with_epilogue(first, inputs, attributes, None if z is None else np.moveaxis(z, -1, 1))
    return [np.ascontiguousarray(np.moveaxis(result, 1, -1)).astype(x.dtype)]


def qlinear_conv(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The integer convolution of 8-bit x and w plus int32 B, requantized; scales of w per tensor or per filter."""
    x, w = required(inputs, 0, "x"), required(inputs, 3, "w")
    x_scale, w_scale = required(inputs, 1, "x_scale"), required(inputs, 4, "w_scale")
    x_zero, w_zero = scalar(required(inputs, 2, "x_zero_point"), "x_zero_point"), required(inputs, 5, "w_zero_point")
    y_scale, y_zero = required(inputs, 6, "y_scale"), required(inputs, 7, "y_zero_point")
    last = bool(integer(attributes, "channels_last", 0, least=0, most=1))
    expect_rank(x, range(3, 65), "x")
    expect_rank(w, x.ndim, "w")
    filters, ones = w.shape[0], (1,) * (x.ndim - 2)
    for parameter, name in ((w_scale, "w_scale"), (w_zero, "w_zero_point")):
        if parameter.size != 1:
            expect_shape(parameter, (filters,), name)
    # float64 holds sums of 8-bit products exactly
    first = (np.moveaxis(x, -1, 1) if last else x).astype(np.float64) - float(x_zero)
    sums = convolve(first, w.astype(np.float64) - w_zero.astype(np.float64).reshape(-1, 1, *ones), attributes)
    bias = optional(inputs, 8)
    if bias is not None:
        expect_shape(bias, (filters,), "B")
        sums = sums + bias.reshape(-1, *ones)
    factor = scalar(x_scale, "x_scale") * w_scale.reshape(-1, *ones) / scalar(y_scale, "y_scale")
    result = quantize(sums.astype(factor.dtype) * factor, 1, int(scalar(y_zero, "y_zero_point")), y_zero.dtype)
    return [np.ascontiguousarray(np.moveaxis(result, 1, -1)) if last else result]


def qlinear_average_pool(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The average of each window of the dequantized X, quantized again; padding counts with count_include_pad."""
    x = required(inputs, 0, "X")
    expect_rank(x, range(3, 65), "X")
    last = bool(integer(attributes, "channels_last", 0, least=0, most=1))
    real = read_scaled(inputs, 0, "X")
    first = np.moveaxis(real, -1, 1) if last else real
    window = window_of(first.shape[2:], attributes)
    kernel_axes = tuple(range(first.ndim, 2 * first.ndim - 2))
    total = patches(first, window, 0).sum(axis=kernel_axes)
    ones = np.ones((1, 1, *first.shape[2:]), dtype=first.dtype)
    if integer(attributes, "count_include_pad", 0):  # the declared padding counts, what ceil_mode adds does not
        ones = np.pad(ones, [(0, 0), (0, 0), *zip(window.begin, window.end, strict=True)], constant_values=1)
        rank = len(window.kernel)
        window = Window(window.kernel, window.strides, window.dilations, (0,) * rank, (0,) * rank, window.extents)
    count = patches(ones, window, 0).sum(axis=kernel_axes)
    mean = total / np.maximum(count, 1)
    result = write_scaled(inputs, 3, mean, x.dtype, "Y")
    return [np.ascontiguousarray(np.moveaxis(result, 1, -1)) if last else result]


def nhwc_max_pool(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The maximum of each window of 8-bit x in the channels-last layout."""
    x = required(inputs, 0, "x")
    expect_rank(x, range(3, 65), "x")
    first = np.moveaxis(x, -1, 1)
    window = window_of(first.shape[2:], attributes)
    views = patches(first, window, float(np.iinfo(x.dtype).min))
    result = views.max(axis=tuple(range(first.ndim, 2 * first.ndim - 2)))
    return [np.ascontiguousarray(np.moveaxis(result, 1, -1))]


def max_pool_with_mask(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The maximum of each window of X (N, C, *spatial), each of its rows read up to the first position whose mask is 0.

    With more than one spatial axis the first position of a channel counts as unmasked, as in ONNX Runtime; a window
    that is masked throughout gives the lowest float.
    """
    x, mask = required(inputs, 0, "X"), required(inputs, 1, "M")
    expect_rank(x, range(3, 65), "X")
    expect_broadcast(mask, x.shape, "M")
    wide = widen(x)
    least = float(np.finfo(wide.dtype).min)
    window = window_of(x.shape[2:], attributes)
    unmasked = np.broadcast_to(mask, x.shape) != 0
    if x.ndim > 3:
        unmasked[(slice(None), slice(None), *(0,) * (x.ndim - 2))] = True
    seen = np.logical_and.accumulate(patches(unmasked, window, 1), axis=-1)
    result = np.where(seen, patches(wide, window, least), least).max(axis=tuple(range(x.ndim, 2 * x.ndim - 2)))
    return [result.astype(x.dtype)]


def conv_transpose_with_dynamic_pads(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """ConvTranspose of X (N, C, *spatial), W (C, M / group, *kernel); Pads is an input, (2 * spatial rank,)."""
    x, w = required(inputs, 0, "X"), required(inputs, 1, "W")
    given, bias = optional(inputs, 2), optional(inputs, 3)
    expect_rank(x, range(3, 65), "X")
    expect_rank(w, x.ndim, "W")
    rank, group = x.ndim - 2, integer(attributes, "group", 1, least=1)
    per_group = expect_divisible(x.shape[1], group, "the number of channels of X", "group")
    if w.shape[0] != x.shape[1]:
        raise InvalidArgument("W does not fit X", value="W", found=w.shape, expected=f"first extent {x.shape[1]}")
    text(attributes, "auto_pad", "NOTSET", ("NOTSET",))
    kernel = _numbers(attributes, "kernel_shape", rank, w.shape[2:], 1)
    strides = _numbers(attributes, "strides", rank, (1,) * rank, 1)
    dilations = _numbers(attributes, "dilations", rank, (1,) * rank, 1)
    extra = _numbers(attributes, "output_padding", rank, (0,) * rank, 0)
    if kernel != w.shape[2:]:
        raise InvalidArgument("attribute kernel_shape differs from W", found=kernel, expected=w.shape[2:])
    pads = [0] * (2 * rank)
    if given is not None:
        expect_shape(given, (2 * rank,), "Pads")
        pads = [int(p) for p in given]
    full = [
        (extent - 1) * stride + (k - 1) * dilation + 1 + more
        for extent, stride, k, dilation, more in zip(x.shape[2:], strides, kernel, dilations, extra, strict=True)
    ]
    if min(pads, default=0) < 0 or any(n - pads[i] - pads[rank + i] < 1 for i, n in enumerate(full)):
        raise InvalidArgument("Pads leaves no output", value="Pads", found=pads, expected=f"less than {full}")
    filters = w.shape[1]
    grouped = widen(x).reshape(x.shape[0], group, per_group, product(x.shape[2:]))
    canvas = np.zeros((x.shape[0], group * filters, *full), dtype=grouped.dtype)
    for tap in np.ndindex(*kernel):
        weights = widen(w)[(slice(None), slice(None), *tap)].reshape(group, per_group, filters).swapaxes(1, 2)
        part = np.matmul(weights, grouped).reshape(x.shape[0], group * filters, *x.shape[2:])
        where = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilations, x.shape[2:], strides, strict=True)
        )
        canvas[(slice(None), slice(None), *where)] += part
    crop = tuple(slice(pads[i], n - pads[rank + i]) for i, n in enumerate(full))
    result = canvas[(slice(None), slice(None), *crop)]
    if bias is not None:
        expect_shape(bias, (group * filters,), "B")
        result = result + widen(bias).reshape(-1, *(1,) * rank)
    return [np.ascontiguousarray(result).astype(x.dtype)]
