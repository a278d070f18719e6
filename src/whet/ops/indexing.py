"""Inference for operators that pick or scatter elements by index, position or value, and for generated tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from whet.dtypes import FLOAT32, INT64
from whet.errors import InvalidGraph
from whet.graph import Node, Shape, TensorData, TensorType, Type
from whet.graph.dims import Dim, ceil_div, maximum, minimum
from whet.graph.types import format_shape
from whet.ops.common import (
    attribute_dtype,
    axes_in,
    axis_in,
    dtype_of,
    elements,
    never_negative,
    required,
    shape_of,
    static_ints,
    unknown,
)
from whet.ops.movement import vector_length

_FAR = 2**31 - 1
"""Slice bounds from here on mean "to the end" in practice: no extent is larger."""


def gather(node: Node) -> Sequence[Type | None]:
    source, indices = required(node, 0), required(node, 1)
    dims, picked = shape_of(source), shape_of(indices)
    if dims is None or picked is None:
        return (TensorType(dtype_of(source)),)
    axis = axis_in(node.int_attr("axis", 0), len(dims))
    return (TensorType(dtype_of(source), (*dims[:axis], *picked, *dims[axis + 1 :])),)


def gather_elements(node: Node) -> Sequence[Type | None]:
    return (TensorType(dtype_of(required(node, 0)), shape_of(required(node, 1))),)


def gather_nd(node: Node) -> Sequence[Type | None]:
    source, indices = required(node, 0), required(node, 1)
    dims, picked = shape_of(source), shape_of(indices)
    if dims is None or picked is None or not picked or not isinstance(picked[-1], int):
        return (TensorType(dtype_of(source)),)
    batch, depth = node.int_attr("batch_dims", 0), picked[-1]
    if batch < 0 or batch + depth > len(dims):
        raise InvalidGraph(
            "the last axis of the indices addresses more axes than the data has",
            found=f"data {format_shape(dims)}, indices {format_shape(picked)}, batch_dims {batch}",
        )
    return (TensorType(dtype_of(source), (*picked[:-1], *dims[batch + depth :])),)


def slice_(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    dims, dtype = shape_of(source), dtype_of(source)
    if dims is None:
        return (TensorType(dtype),)
    starts, ends = elements(required(node, 1)), elements(required(node, 2))
    count = vector_length(node.input(1)) if starts is None else len(starts)
    if node.input(3) is not None:
        given = static_ints(node.input(3))
    else:
        given = tuple(range(count)) if count is not None else None
    if given is None:
        return (TensorType(dtype, unknown(len(dims))),)
    axes = axes_in(given, len(dims))
    steps = elements(node.input(4)) if node.input(4) is not None else (1,) * len(axes)
    none: Shape = (None,) * len(axes)
    lists = [none if x is None else x for x in (starts, ends, steps)]
    if any(len(x) != len(axes) for x in lists):
        raise InvalidGraph(
            "starts, ends, axes and steps have different lengths",
            found=[len(x) for x in (lists[0], lists[1], axes, lists[2])],
        )
    result = list(dims)
    for axis, start, end, step in zip(axes, *lists, strict=True):
        result[axis] = sliced(dims[axis], start, end, step)
    return (TensorType(dtype, tuple(result)),)


def sliced(extent: Dim, start: Dim, end: Dim, step: Dim) -> Dim:
    """The extent of `[start:end:step]` along an axis, or None where it is not known. Raises InvalidGraph for step 0."""
    if step == 0:
        raise InvalidGraph("the step of a Slice is 0", found=0, expected="a step other than 0")
    if extent is None or not isinstance(step, int):
        return None
    # One that passes the end of every axis is as good as a larger one, with which sums would leave 64 bits.
    step = max(-_FAR, min(step, _FAR))
    if isinstance(extent, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end, step).indices(extent)))
    if step < 0:
        whole = isinstance(start, int) and (start == -1 or start >= _FAR) and isinstance(end, int) and end <= -_FAR
        return ceil_div(extent, -step) if whole else None
    # A start past the end needs no clamping: the length is none then anyhow.
    first = start if isinstance(start, int) and 0 <= start < _FAR else _bound(start, extent)
    last = _bound(end, extent)
    if first is None or last is None:
        return None
    if last == extent and isinstance(start, int) and -_FAR < start < 0:
        # The last few elements, or as many as there are.
        return ceil_div(minimum(extent, -start), step)
    length = last - first
    if not never_negative(length):
        length = maximum(length, 0)
    return ceil_div(length, step)


def _bound(position: Dim, extent: Dim) -> Dim:
    """A start or end, clamped to the axis, for a positive step."""
    if position is None or extent is None:
        return None
    if isinstance(position, int):
        if position >= _FAR:
            return extent
        if position <= -_FAR or position == 0:
            return 0
        if position < 0:
            shifted = extent + position
            return shifted if never_negative(shifted) else maximum(shifted, 0)
        return minimum(extent, position)
    if position == extent:
        return extent
    return minimum(extent, position) if never_negative(position) else None


def top_k(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    dims = shape_of(source)
    if dims is None:
        return (TensorType(dtype_of(source)), TensorType(INT64))
    axis = axis_in(node.int_attr("axis", -1), len(dims))
    wanted = elements(required(node, 1))
    count: Dim = wanted[0] if wanted is not None and len(wanted) == 1 else None
    extent = dims[axis]
    if isinstance(count, int) and (count < 0 or (isinstance(extent, int) and count > extent)):
        raise InvalidGraph(
            "TopK asks for more elements than there are", found=f"k = {count}", expected=f"0 to {extent}"
        )
    result = (*dims[:axis], count, *dims[axis + 1 :])
    return (TensorType(dtype_of(source), result), TensorType(INT64, result))


def non_zero(node: Node) -> Sequence[Type | None]:
    dims = shape_of(required(node, 0))
    return (TensorType(INT64, (None if dims is None else len(dims), None)),)


def compress(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    dims = shape_of(source)
    if "axis" not in node.attributes:
        return (TensorType(dtype_of(source), (None,)),)
    if dims is None:
        return (TensorType(dtype_of(source)),)
    axis = axis_in(node.int_attr("axis", 0), len(dims))
    return (TensorType(dtype_of(source), (*dims[:axis], None, *dims[axis + 1 :])),)


def one_hot(node: Node) -> Sequence[Type | None]:
    indices, depth = shape_of(required(node, 0)), elements(required(node, 1))
    dtype = dtype_of(required(node, 2))
    if indices is None:
        return (TensorType(dtype),)
    axis = axis_in(node.int_attr("axis", -1), len(indices) + 1)
    extent: Dim = depth[0] if depth is not None and len(depth) == 1 else None
    return (TensorType(dtype, (*indices[:axis], extent, *indices[axis:])),)


def constant_of_shape(node: Node) -> Sequence[Type | None]:
    value = node.attributes.get("value")
    dtype = value.dtype if isinstance(value, TensorData) else FLOAT32
    wanted = elements(required(node, 0))
    if wanted is None:
        return (TensorType(dtype, unknown(vector_length(node.input(0)))),)
    if any(isinstance(d, int) and d < 0 for d in wanted):
        raise InvalidGraph("a shape has a negative extent", found=format_shape(wanted), expected="0 or more")
    return (TensorType(dtype, wanted),)


def range_(node: Node) -> Sequence[Type | None]:
    start, limit, delta = (required(node, i) for i in range(3))
    dtype = dtype_of(start)
    parts = [elements(v) for v in (start, limit, delta)]
    if any(p is None or len(p) != 1 for p in parts):
        constants = [v.array for v in (start, limit, delta)]
        if all(c is not None and c.size == 1 for c in constants):
            numbers = [float(c.reshape(())) for c in constants if c is not None]
            if numbers[2] != 0 and all(map(math.isfinite, numbers)):
                return (TensorType(dtype, (max(math.ceil((numbers[1] - numbers[0]) / numbers[2]), 0),)),)
        return (TensorType(dtype, (None,)),)
    first, last, step = (p[0] for p in parts if p is not None)
    if step == 0:
        raise InvalidGraph("the delta of a Range is 0", found=0, expected="a delta other than 0")
    if first is None or last is None or not isinstance(step, int):
        return (TensorType(dtype, (None,)),)
    length = last - first
    if step < 0:
        length, step = -length, -step
    count = ceil_div(length, step)
    return (TensorType(dtype, (count if never_negative(count) else maximum(count, 0),)),)


def eye_like(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    return (TensorType(attribute_dtype(node, "dtype", dtype_of(source)), shape_of(source)),)
