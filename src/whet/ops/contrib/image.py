"""Sampling from images: GridSample and CropAndResize."""

from __future__ import annotations

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    expect_allocatable,
    expect_shape,
    indices_within,
    integer,
    required,
    text,
    widen,
)


def _unnormalize(x: Array, extent: int, align_corners: bool) -> Array:
    return (x + 1) / 2 * (extent - 1) if align_corners else ((x + 1) * extent - 1) / 2


def _reflect(x: Array, extent: int, align_corners: bool) -> Array:
    """x mirrored at the image's borders (outer pixel centres, or outer pixel edges) until it lies inside."""
    low, high = (0.0, extent - 1.0) if align_corners else (-0.5, extent - 0.5)
    span = high - low
    if span == 0:
        return np.zeros_like(x)
    phase = np.mod(np.abs(x - low), 2 * span)
    return np.asarray(low + np.where(phase > span, 2 * span - phase, phase), dtype=x.dtype)


def _pixels(image: Array, row: Array, column: Array, padding: str, align_corners: bool) -> Array:
    """image (C, H, W) at integer positions (P,) as `padding` extends it: (C, P)."""
    _, height, width = image.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    if padding == "reflection":
        row = np.rint(_reflect(row.astype(np.float64), height, align_corners))
        column = np.rint(_reflect(column.astype(np.float64), width, align_corners))
    r = np.clip(row, 0, height - 1).astype(np.int64)
    c = np.clip(column, 0, width - 1).astype(np.int64)
    picked = image[:, r, c]
    return np.where(inside, picked, 0).astype(image.dtype) if padding == "zeros" else picked


def _cubic(distance: Array) -> tuple[Array, Array, Array, Array]:
    """The four weights of cubic convolution (Keys, 1981) with a = -0.75 at this distance past the second tap."""
    a = -0.75

    def near(t: Array) -> Array:
        return np.asarray(((a + 2) * t - (a + 3)) * t * t + 1)

    def far(t: Array) -> Array:
        return np.asarray(((a * t - 5 * a) * t + 8 * a) * t - 4 * a)

    return far(distance + 1), near(distance), near(1 - distance), far(2 - distance)


def grid_sample(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """X (N, C, H, W) at the positions of Grid (N, Ho, Wo, 2), x before y, -1 to 1 across the image."""
    x, grid = required(inputs, 0, "X"), required(inputs, 1, "Grid")
    expect_shape(x, (None, None, None, None), "X")
    expect_shape(grid, (x.shape[0], None, None, 2), "Grid")
    mode = text(attributes, "mode", "bilinear", ("bilinear", "nearest", "bicubic"))
    padding = text(attributes, "padding_mode", "zeros", ("zeros", "border", "reflection"))
    align = bool(integer(attributes, "align_corners", 0, least=0, most=1))
    batch, channels, height, width = x.shape
    if height == 0 or width == 0:
        raise InvalidArgument("X has no pixels", value="X", found=x.shape)
    wide, where = widen(x), widen(grid)
    if not np.isfinite(where).all():
        raise InvalidArgument("Grid holds a NaN or an infinity", value="Grid", expected="finite positions")
    result = np.zeros((batch, channels, grid.shape[1] * grid.shape[2]), dtype=wide.dtype)
    for n in range(batch):
        column = _unnormalize(where[n, ..., 0].reshape(-1), width, align)
        row = _unnormalize(where[n, ..., 1].reshape(-1), height, align)
        if mode != "bicubic" and padding != "zeros":
            if padding == "reflection":
                column, row = _reflect(column, width, align), _reflect(row, height, align)
            column, row = np.clip(column, 0, width - 1), np.clip(row, 0, height - 1)
        result[n] = _sample(wide[n], row, column, mode, padding, align)
    return [result.reshape(batch, channels, *grid.shape[1:3]).astype(x.dtype)]


def _sample(image: Array, row: Array, column: Array, mode: str, padding: str, align: bool) -> Array:
    if mode == "nearest":
        return _pixels(image, np.rint(row), np.rint(column), padding, align)
    top, left = np.floor(row), np.floor(column)
    down, right = (row - top).astype(image.dtype), (column - left).astype(image.dtype)
    if mode == "bilinear":
        row_taps, column_taps = [(0, 1 - down), (1, down)], [(0, 1 - right), (1, right)]
    else:
        row_taps = list(zip((-1, 0, 1, 2), _cubic(down), strict=True))
        column_taps = list(zip((-1, 0, 1, 2), _cubic(right), strict=True))
    total = np.zeros((image.shape[0], row.size), dtype=image.dtype)
    for i, row_weight in row_taps:
        for j, column_weight in column_taps:
            total += _pixels(image, top + i, left + j, padding, align) * (row_weight * column_weight)
    return total


def crop_and_resize(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Boxes (R, 4) of X (N, C, H, W), given as y1, x1, y2, x2 from 0 to 1, resampled to crop_size: (R, C, h, w)."""
    x, boxes = required(inputs, 0, "X"), required(inputs, 1, "rois")
    batch_indices, crop_size = required(inputs, 2, "batch_indices"), required(inputs, 3, "crop_size")
    expect_shape(x, (None, None, None, None), "X")
    expect_shape(boxes, (None, 4), "rois")
    expect_shape(batch_indices, (boxes.shape[0],), "batch_indices")
    expect_shape(crop_size, (2,), "crop_size")
    mode = text(attributes, "mode", "bilinear", ("bilinear", "nearest"))
    fill = float(attributes.get("extrapolation_value", 0.0))
    height, width = int(crop_size[0]), int(crop_size[1])
    if height < 1 or width < 1:
        raise InvalidArgument("crop_size must be positive", value="crop_size", found=(height, width))
    images = indices_within(batch_indices, x.shape[0], "batch_indices")
    wide = widen(x)
    shape = (boxes.shape[0], x.shape[1], height, width)
    expect_allocatable(shape, wide.dtype, "the output")
    result = np.full(shape, fill, dtype=wide.dtype)
    for r, (y1, x1, y2, x2) in enumerate(widen(boxes)):
        rows = _crop_positions(y1, y2, height, x.shape[2])
        columns = _crop_positions(x1, x2, width, x.shape[3])
        inside = ((rows >= 0) & (rows <= x.shape[2] - 1))[:, None] & ((columns >= 0) & (columns <= x.shape[3] - 1))
        row, column = (a.reshape(-1) for a in np.meshgrid(rows, columns, indexing="ij"))
        if mode == "nearest":  # a half rounds away from zero here
            row, column = np.floor(row + 0.5), np.floor(column + 0.5)
        values = _sample(wide[images[r]], row, column, mode, "border", True)
        result[r] = np.where(inside, values.reshape(x.shape[1], height, width), fill)
    return [result.astype(x.dtype)]


def _crop_positions(first: Array, last: Array, count: int, extent: int) -> Array:
    if count == 1:
        return np.asarray([0.5 * (first + last) * (extent - 1)])
    return np.asarray(
        first * (extent - 1) + np.arange(count).astype(first.dtype) * ((last - first) * (extent - 1) / (count - 1))
    )
