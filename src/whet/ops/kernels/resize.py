"""Resize(19), axis by axis: every interpolation is separable."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import Array, Attributes, Inputs, Outputs, integer, optional, required, text
from whet.ops.kernels.common import axes_within, back, is_float, working

_COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
)  # fmt: skip


def resize(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Resize(19), nearest, linear or cubic."""
    x, roi = required(inputs, 0, "X"), optional(inputs, 1)
    mode = text(attributes, "mode", "nearest", ("nearest", "linear", "cubic"))
    coordinates = text(attributes, "coordinate_transformation_mode", "half_pixel", _COORDINATES)
    axes = axes_within(attributes.get("axes", range(x.ndim)), x.ndim)
    scales, sizes = _extents(inputs, attributes, x, axes)
    regions: list[tuple[float, float]] = [(0.0, 1.0)] * len(axes)
    if coordinates == "tf_crop_and_resize":
        if roi is None or roi.size != 2 * len(axes):
            raise InvalidArgument(
                "roi needs a start and an end for each axis", value="roi",
                found=None if roi is None else roi.shape, expected=f"({2 * len(axes)},)",
            )  # fmt: skip
        flat = roi.astype(np.float64).reshape(-1).tolist()
        regions = list(zip(flat[: len(axes)], flat[len(axes) :], strict=True))
    if mode == "nearest" and integer(attributes, "antialias", 0):
        raise InvalidArgument("antialias does not go with mode nearest", found="antialias 1")
    y = x if mode == "nearest" else (working(x) if is_float(x.dtype) else x.astype(np.float64))
    outside: Array | None = None
    for axis, scale, size, region in zip(axes, scales, sizes, regions, strict=True):
        extent = x.shape[axis]
        if size == extent and scale == 1.0 and region == (0.0, 1.0):
            continue
        if extent == 0 and size > 0:
            raise InvalidArgument("an empty axis cannot grow", value="X", found=x.shape)
        places = source_places(coordinates, size, extent, scale, region)
        if coordinates == "tf_crop_and_resize":
            wrong = ((places < 0) | (places > extent - 1)).reshape(-1, *(1,) * (x.ndim - 1 - axis))
            outside = wrong if outside is None else outside | wrong
        if mode == "nearest":
            y = np.take(y, nearest_elements(places, extent, attributes), axis=axis)
        else:
            y = _weigh(y, axis, *weighted_elements(places, extent, scale, mode, attributes))
    if outside is not None and outside.any():
        fill = y.dtype.type(float(attributes.get("extrapolation_value", 0.0)))
        y = np.where(np.broadcast_to(outside, y.shape), fill, y)
    if y is x:
        return [x.copy()]
    if not is_float(x.dtype) and mode != "nearest":
        info = np.iinfo(x.dtype)
        y = np.clip(np.rint(y), info.min, info.max)
    return [back(y, x.dtype)]


def _extents(inputs: Inputs, attributes: Attributes, x: Array, axes: tuple[int, ...]) -> tuple[list[float], list[int]]:
    """Scale and extent along each of `axes`."""
    scales, sizes = optional(inputs, 2), optional(inputs, 3)
    given_scales, given_sizes = scales is not None and scales.size > 0, sizes is not None and sizes.size > 0
    if given_scales == given_sizes:
        raise InvalidArgument("exactly one of scales and sizes is needed", value="scales")
    extents = [x.shape[axis] for axis in axes]
    if given_scales:
        assert scales is not None
        factors = [float(s) for s in scales.reshape(-1)]
        if len(factors) != len(axes) or any(not (math.isfinite(f) and f > 0) for f in factors):
            raise InvalidArgument(
                "scales needs a positive number for each axis", value="scales", found=factors, expected=len(axes)
            )
        # In single precision, as the standard's shape inference and ONNX Runtime multiply: 10 x 2.3 is 23.
        lengths = [
            float(np.float32(extent) * np.float32(factor)) for extent, factor in zip(extents, factors, strict=True)
        ]
        return factors, [math.floor(length) for length in lengths]
    assert sizes is not None
    wanted = [int(s) for s in sizes.reshape(-1)]
    if len(wanted) != len(axes) or min(wanted, default=0) < 0:
        raise InvalidArgument("sizes needs an extent for each axis", value="sizes", found=wanted, expected=len(axes))
    factors = [size / extent if extent else 1.0 for size, extent in zip(wanted, extents, strict=True)]
    policy = text(attributes, "keep_aspect_ratio_policy", "stretch", ("stretch", "not_larger", "not_smaller"))
    if policy != "stretch":
        factor = min(factors) if policy == "not_larger" else max(factors)
        factors = [factor] * len(axes)
        wanted = [int(extent * factor + 0.5) for extent in extents]
    return factors, wanted


def source_places(coordinates: str, size: int, extent: int, scale: float, region: tuple[float, float]) -> Array:
    """Where each output element lies on the input axis."""
    i = np.arange(size, dtype=np.float64)
    length = scale * extent  # the output's extent before rounding
    if coordinates == "align_corners":
        return i * ((extent - 1) / (length - 1)) if length != 1 else np.zeros(size)
    if coordinates == "asymmetric":
        return i / scale
    if coordinates == "tf_crop_and_resize":
        start, end = region
        if length == 1:
            return np.full(size, (start + end) * (extent - 1) / 2)
        return start * (extent - 1) + i * (end - start) * (extent - 1) / (length - 1)
    if coordinates == "pytorch_half_pixel" and length == 1:
        return np.zeros(size)
    # From a size the ratio is exact; from a scale it is the scale's inverse.
    places = (i + 0.5) * (extent / size if size == length else 1 / scale) - 0.5
    if coordinates == "half_pixel_symmetric":
        places += extent / 2 * (1 - size / length)
    return places


def nearest_elements(places: Array, extent: int, attributes: Attributes) -> Array:
    """The input element that each output element is, by `nearest_mode`."""
    rule = text(
        attributes, "nearest_mode", "round_prefer_floor", ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    )
    if rule == "floor":
        index = np.floor(places)
    elif rule == "ceil":
        index = np.ceil(places)
    elif rule == "round_prefer_floor":
        index = np.ceil(places - 0.5)
    else:
        index = np.floor(places + 0.5)
    return np.clip(index, 0, extent - 1).astype(np.int64)


def weighted_elements(
    places: Array, extent: int, scale: float, mode: str, attributes: Attributes
) -> tuple[Array, Array]:
    """For each output element the input elements that make it, and their weights: both (size, taps)."""
    # Antialiasing widens the filter when shrinking.
    stretch = min(scale, 1.0) if integer(attributes, "antialias", 0) else 1.0
    radius = 1 if mode == "linear" else 2
    base = np.floor(places)
    # On an element the window starts one earlier, with weight 0 at its far end.
    low = math.floor(-radius / stretch) + 1
    offsets = np.arange(low, 2 - low)
    distance = (base[:, None] + offsets - places[:, None]) * stretch
    if mode == "linear":
        weights = np.maximum(1 - np.abs(distance), 0)
    else:
        weights = _cubic(np.abs(distance), float(attributes.get("cubic_coeff_a", -0.75)))
    if stretch < 1:
        weights /= weights.sum(axis=1, keepdims=True)
    index = (base[:, None] + offsets).astype(np.int64)
    if integer(attributes, "exclude_outside", 0):
        weights = np.where((index < 0) | (index >= extent), 0, weights)
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total == 0, 1, total)
    return np.clip(index, 0, extent - 1), weights


def _cubic(d: Array, a: float) -> Array:
    """Keys' cubic convolution kernel at distance d."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _weigh(x: Array, axis: int, index: Array, weights: Array) -> Array:
    total: Any = None
    shape = (-1, *(1,) * (x.ndim - 1 - axis))
    for tap in range(index.shape[1]):
        column = weights[:, tap].astype(x.dtype)
        if not column.any():
            continue
        part = np.take(x, index[:, tap], axis=axis)
        part *= column.reshape(shape)
        total = part if total is None else np.add(total, part, out=total)
    if total is None:
        return np.zeros((*x.shape[:axis], index.shape[0], *x.shape[axis + 1 :]), x.dtype)
    result: Array = total
    return result


RESIZE: dict[str, Kernel] = {"Resize": resize}
