"""Pooling. Maxima and sums over windows are separable, so each axis is reduced on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import Array, Attributes, Inputs, Outputs, integer, required
from whet.ops.kernels.common import back, ints, is_float, mean_along, positive, spatial_padding, working


@dataclass(frozen=True, slots=True)
class _Axis:
    """One spatial axis: window, and padding that covers every window (`after` with what ceil_mode adds)."""

    extent: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int
    declared_after: int
    output: int

    def tap(self, position: int) -> slice:
        start = position * self.dilation
        return slice(start, start + (self.output - 1) * self.stride + 1, self.stride)


def _axes(x: Array, attributes: Attributes) -> list[_Axis]:
    rank = x.ndim - 2
    if rank < 1:
        raise InvalidArgument("X needs at least 3 dimensions", value="X", found=x.shape, expected="(N, C, ...)")
    kernel = attributes.get("kernel_shape")
    if kernel is None:
        raise InvalidArgument("attribute kernel_shape is missing", expected=f"{rank} integers")
    kernel = ints(attributes, "kernel_shape", (1,) * rank)
    strides = ints(attributes, "strides", (1,) * rank)
    dilations = ints(attributes, "dilations", (1,) * rank)
    for values, name in ((kernel, "kernel_shape"), (strides, "strides"), (dilations, "dilations")):
        positive(values, name)
    mode = attributes.get("auto_pad", "NOTSET")
    pads = spatial_padding(attributes, x.shape[2:], kernel, strides, dilations)
    ceil = bool(integer(attributes, "ceil_mode", 0)) and mode == "NOTSET"
    axes = []
    for extent, k, s, d, (before, after) in zip(x.shape[2:], kernel, strides, dilations, pads, strict=True):
        reach = (k - 1) * d + 1
        if before < 0 or after < 0 or extent + before + after < reach:
            raise InvalidArgument(
                "the window is larger than the padded input",
                value="X",
                found=f"extent {extent}, pads {before} and {after}",
                expected=f"at least {reach} together",
            )
        span = extent + before + after - reach
        output = (math.ceil(span / s) if ceil else span // s) + 1
        if ceil and (output - 1) * s >= extent + before:
            output -= 1  # the last window may not start in the padding after the end
        needed = (output - 1) * s + reach - extent - before
        axes.append(_Axis(extent, k, s, d, before, max(needed, after), after, output))
    return axes


def _padded(x: Array, axes: Sequence[_Axis], fill: Any) -> Array:
    if not any(a.before or a.after for a in axes):
        return x
    result = np.full((*x.shape[:2], *(a.extent + a.before + a.after for a in axes)), fill, x.dtype)
    inner: tuple[Any, ...] = (..., *(slice(a.before, a.before + a.extent) for a in axes))
    result[inner] = x
    return result


def _combine(x: Array, axes: Sequence[_Axis], function: Any) -> Array:
    """Reduce every window of the padded `x` with a ufunc, axis after axis."""
    for number, axis in enumerate(axes):
        index: list[Any] = [slice(None)] * x.ndim
        index[number + 2] = axis.tap(0)
        total = x[tuple(index)].copy()
        for position in range(1, axis.kernel):
            index[number + 2] = axis.tap(position)
            function(total, x[tuple(index)], out=total)
        x = total
    return x


def _lowest(dtype: np.dtype[Any]) -> Any:
    return dtype.type(-np.inf) if is_float(dtype) else np.iinfo(dtype).min


def max_pool(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """MaxPool(22): maxima and, where asked for, their positions in the flattened input."""
    given = required(inputs, 0, "X")
    x = working(given)
    axes = _axes(x, attributes)
    padded = _padded(x, axes, _lowest(x.dtype))
    if output_count < 2:
        return [back(_combine(padded, axes, np.maximum), given.dtype)]
    shape = (*x.shape[:2], *(a.output for a in axes))
    best = np.full(shape, _lowest(x.dtype), x.dtype)
    where = np.full(shape, -1, np.int64)
    positions = _positions(axes, integer(attributes, "storage_order", 0))
    for tap in product(*(range(a.kernel) for a in axes)):
        index: tuple[Any, ...] = (..., *(a.tap(t) for a, t in zip(axes, tap, strict=True)))
        candidate, position = padded[index], positions[index]
        better = (candidate > best) | ((where < 0) & (position >= 0))
        np.copyto(best, candidate, where=better)
        np.copyto(where, position, where=better)
    images = np.arange(x.shape[0] * x.shape[1], dtype=np.int64).reshape(*x.shape[:2], *(1,) * len(axes))
    return [back(best, given.dtype), where + images * math.prod(x.shape[2:])]


def _positions(axes: Sequence[_Axis], column_major: int) -> Array:
    """The flat position of each padded spatial element, -1 in the padding."""
    extents = [a.extent for a in axes]
    flat = np.arange(math.prod(extents), dtype=np.int64)
    inner = flat.reshape(extents[::-1]).transpose() if column_major else flat.reshape(extents)
    result = np.full([a.extent + a.before + a.after for a in axes], -1, np.int64)
    result[tuple(slice(a.before, a.before + a.extent) for a in axes)] = inner
    return result


def average_pool(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """AveragePool(22)."""
    given = required(inputs, 0, "X")
    x = working(given)
    axes = _axes(x, attributes)
    total = _combine(_padded(x, axes, 0), axes, np.add)
    include = bool(integer(attributes, "count_include_pad", 0))
    for number, axis in enumerate(axes):
        starts = np.arange(axis.output)[:, None] * axis.stride + np.arange(axis.kernel) * axis.dilation
        low, high = (0, axis.before + axis.extent + axis.declared_after) if include else (
            axis.before, axis.before + axis.extent,
        )  # fmt: skip
        counts = ((starts >= low) & (starts < high)).sum(axis=1).astype(total.dtype)
        total /= counts.reshape(-1, *(1,) * (len(axes) - 1 - number))
    return [back(total, given.dtype)]


def lp_pool(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """LpPool(22): the p-norm of each window."""
    given = required(inputs, 0, "X")
    x = working(given)
    axes = _axes(x, attributes)
    order = integer(attributes, "p", 2, least=1)
    total = _combine(_padded(np.abs(x) ** order, axes, 0), axes, np.add)
    return [back(total ** x.dtype.type(1 / order), given.dtype)]


def _global_input(inputs: Inputs) -> Array:
    x = required(inputs, 0, "X")
    if x.ndim < 3:
        raise InvalidArgument("X needs at least 3 dimensions", value="X", found=x.shape, expected="(N, C, ...)")
    if not math.prod(x.shape[2:]):
        raise InvalidArgument("the spatial axes are empty", value="X", found=x.shape)
    return x


def global_average_pool(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """GlobalAveragePool(22)."""
    x = _global_input(inputs)
    return [back(mean_along(working(x), tuple(range(2, x.ndim))), x.dtype)]


def global_max_pool(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """GlobalMaxPool(22)."""
    x = _global_input(inputs)
    return [back(working(x).max(axis=tuple(range(2, x.ndim)), keepdims=True), x.dtype)]


def global_lp_pool(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """GlobalLpPool(22)."""
    x = _global_input(inputs)
    order = integer(attributes, "p", 2, least=1)
    wide = np.abs(working(x))
    total = (wide**order).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
    return [back(total ** wide.dtype.type(1 / order), x.dtype)]


def max_roi_pool(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """MaxRoiPool(22): maxima over a grid of cells of each region, whose corners are rounded; an empty cell gives 0."""
    x, rois = required(inputs, 0, "X"), required(inputs, 1, "rois")
    if x.ndim != 4 or rois.ndim != 2 or rois.shape[1] != 5:
        raise InvalidArgument(
            "the shapes do not fit", value="rois", found=f"{x.shape}, {rois.shape}", expected="(R, 5)"
        )
    rows, columns = ints(attributes, "pooled_shape", (1, 1))
    positive((rows, columns), "pooled_shape")
    scale = float(attributes.get("spatial_scale", 1.0))
    result = np.zeros((rois.shape[0], x.shape[1], rows, columns), x.dtype)
    for number, roi in enumerate(rois):
        batch = int(roi[0])
        if not 0 <= batch < x.shape[0]:
            raise InvalidArgument("a region's batch index is out of range", value="rois", found=batch)
        corners = np.floor(roi[1:].astype(np.float64) * scale + 0.5).astype(np.int64)
        left, top, right, bottom = (int(c) for c in corners)
        height, width = max(bottom - top + 1, 1), max(right - left + 1, 1)
        for i, j in product(range(rows), range(columns)):
            y0, y1 = (int(np.clip(v + top, 0, x.shape[2])) for v in _cell(i, height, rows))
            x0, x1 = (int(np.clip(v + left, 0, x.shape[3])) for v in _cell(j, width, columns))
            if y1 > y0 and x1 > x0:
                result[number, :, i, j] = x[batch, :, y0:y1, x0:x1].max(axis=(1, 2))
    return [result]


def _cell(index: int, extent: int, cells: int) -> tuple[int, int]:
    return index * extent // cells, -(-(index + 1) * extent // cells)


POOLS: dict[str, Kernel] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "MaxRoiPool": max_roi_pool,
}
