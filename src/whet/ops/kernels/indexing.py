"""Gathers and scatters: every index is checked, and refused with its position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    axis_within,
    expect_rank,
    indices_within,
    integer,
    required,
    text,
    whole,
)

_REDUCE: dict[str, Callable[..., Any]] = {
    "add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum,
}  # fmt: skip


def gather(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Gather(13)."""
    data, indices = required(inputs, 0, "data"), required(inputs, 1, "indices")
    axis = axis_within(int(attributes.get("axis", 0)), data.ndim)
    if indices.ndim == 0:
        index = int(indices)
        extent = data.shape[axis]
        if not -extent <= index < extent:
            raise InvalidArgument(
                "indices at position () is out of range",
                value="indices",
                found=index,
                expected=f"[{-extent}, {extent})",
            )
        return [np.asarray(data[(slice(None),) * axis + (index,)])]
    return [np.take(data, indices_within(indices, data.shape[axis], "indices", negative=True), axis=axis)]


def gather_elements(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """GatherElements(13)."""
    data, indices = required(inputs, 0, "data"), required(inputs, 1, "indices")
    expect_rank(indices, data.ndim, "indices")
    axis = axis_within(int(attributes.get("axis", 0)), data.ndim)
    wanted = indices_within(indices, data.shape[axis], "indices", negative=True)
    return [data[_element_index(data, wanted, axis)]]


def _element_index(data: Array, indices: Array, axis: int) -> tuple[Array, ...]:
    for other in range(data.ndim):
        if other != axis and indices.shape[other] > data.shape[other]:
            raise InvalidArgument(
                "indices reaches past data", value="indices", found=indices.shape, expected=f"at most {data.shape}"
            )
    grid: list[Array] = list(np.ogrid[tuple(slice(e) for e in indices.shape)])
    grid[axis] = indices
    return tuple(grid)


def _nd_index(indices: Array, extents: Sequence[int]) -> tuple[Array, ...]:
    """The last axis of `indices` as coordinates along the axes of these extents."""
    parts = []
    for number, extent in enumerate(extents):
        column = indices[..., number]
        wrong = (column < -extent) | (column >= extent)
        if wrong.any():
            position = (*(int(p) for p in np.argwhere(wrong)[0]), number)
            raise InvalidArgument(
                f"indices at position {position} is out of range",
                value="indices",
                found=int(indices[position]),
                expected=f"[{-extent}, {extent})",
            )
        parts.append(column)
    return tuple(parts)


def gather_nd(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """GatherND(13)."""
    data, indices = required(inputs, 0, "data"), required(inputs, 1, "indices").astype(np.int64)
    batch = integer(attributes, "batch_dims", 0, least=0)
    if not indices.ndim or not data.ndim or batch >= min(data.ndim, indices.ndim):
        raise InvalidArgument("the ranks do not fit", value="indices", found=f"{data.shape}, {indices.shape}")
    if data.shape[:batch] != indices.shape[:batch]:
        raise InvalidArgument(
            "the batch extents differ", value="indices", found=indices.shape[:batch], expected=data.shape[:batch]
        )
    width = indices.shape[-1]
    if width > data.ndim - batch:
        raise InvalidArgument("an index has too many parts", value="indices", found=width, expected=data.ndim - batch)
    outer = np.ogrid[tuple(slice(e) for e in indices.shape[:batch])] if batch else []
    lead = tuple(g.reshape(*g.shape, *(1,) * (indices.ndim - 1 - batch)) for g in outer)
    key = (*lead, *_nd_index(indices, data.shape[batch : batch + width]))
    return [np.asarray(data[key]) if key else np.broadcast_to(data, (*indices.shape[:-1], *data.shape)).copy()]


def scatter_nd(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """ScatterND(18)."""
    data, indices = required(inputs, 0, "data"), required(inputs, 1, "indices").astype(np.int64)
    updates = required(inputs, 2, "updates")
    if not indices.ndim or not data.ndim or indices.shape[-1] > data.ndim:
        raise InvalidArgument("the ranks do not fit", value="indices", found=f"{data.shape}, {indices.shape}")
    width = indices.shape[-1]
    expected = (*indices.shape[:-1], *data.shape[width:])
    if updates.shape != expected:
        raise InvalidArgument("the updates do not fit", value="updates", found=updates.shape, expected=expected)
    result = data.copy()
    _update(result, _nd_index(indices, data.shape[:width]), updates, attributes)
    return [result]


def scatter_elements(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """ScatterElements(18), and Scatter(11), its deprecated name."""
    data, indices = required(inputs, 0, "data"), required(inputs, 1, "indices")
    updates = required(inputs, 2, "updates")
    expect_rank(indices, data.ndim, "indices")
    if updates.shape != indices.shape:
        raise InvalidArgument("the updates do not fit", value="updates", found=updates.shape, expected=indices.shape)
    axis = axis_within(int(attributes.get("axis", 0)), data.ndim)
    wanted = indices_within(indices, data.shape[axis], "indices", negative=True)
    result = data.copy()
    _update(result, _element_index(data, wanted, axis), updates, attributes)
    return [result]


def _update(result: Array, key: tuple[Array, ...], updates: Array, attributes: Attributes) -> None:
    mode = text(attributes, "reduction", "none", ("none", "add", "mul", "max", "min"))
    if mode == "none":
        result[key if key else ...] = updates
    elif key:
        _REDUCE[mode].at(result, key, updates)  # type: ignore[attr-defined]
    else:
        for update in updates.reshape(-1, *result.shape):
            result[...] = _REDUCE[mode](result, update)


def one_hot(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """OneHot(11): an index out of range gives a row of off values."""
    indices, depth = required(inputs, 0, "indices"), whole(required(inputs, 1, "depth"), "depth")
    values = required(inputs, 2, "values")
    if values.shape != (2,):
        raise InvalidArgument("values must hold the off and the on value", value="values", found=values.shape)
    if depth < 1:
        raise InvalidArgument("depth must be positive", value="depth", found=depth, expected="at least 1")
    axis = axis_within(int(attributes.get("axis", -1)), indices.ndim + 1)
    rows = np.arange(depth).reshape(-1, *(1,) * (indices.ndim - axis))
    wanted = np.expand_dims(indices, axis)
    wanted = np.where((wanted >= -depth) & (wanted < depth), np.mod(wanted, depth), -1)
    return [np.where(wanted == rows, values[1], values[0]).astype(values.dtype, copy=False)]


def top_k(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """TopK(24): ties go to the lower index; NaN counts as the greatest."""
    x, k = required(inputs, 0, "X"), whole(required(inputs, 1, "K"), "K")
    axis = axis_within(int(attributes.get("axis", -1)), x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise InvalidArgument("K is out of range", value="K", found=k, expected=f"[0, {x.shape[axis]}]")
    moved = np.moveaxis(x, axis, -1)
    keys = moved if moved.dtype.kind in "iufb" else moved.astype(np.float32)
    if integer(attributes, "largest", 1):
        # A stable ascending sort of the reversed row, read backwards, keeps ties in the order of their indices.
        order = x.shape[axis] - 1 - np.argsort(keys[..., ::-1], axis=-1, kind="stable")[..., ::-1]
    else:
        order = np.argsort(keys, axis=-1, kind="stable")
    order = order[..., :k]
    values = np.take_along_axis(moved, order, axis=-1)
    return [
        np.ascontiguousarray(np.moveaxis(values, -1, axis)),
        np.ascontiguousarray(np.moveaxis(order, -1, axis)).astype(np.int64, copy=False),
    ]


def compress(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Compress(11)."""
    x, condition = required(inputs, 0, "input"), required(inputs, 1, "condition")
    expect_rank(condition, 1, "condition")
    axis = attributes.get("axis")
    if axis is None:
        x, where = x.reshape(-1), 0
    else:
        where = axis_within(int(axis), x.ndim)
    if condition.shape[0] > x.shape[where]:
        raise InvalidArgument(
            "condition is longer than the axis", value="condition", found=condition.shape[0], expected=x.shape[where]
        )
    return [np.compress(condition, x, axis=where)]


def non_zero(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """NonZero(13): coordinates in columns, in row-major order."""
    x = required(inputs, 0, "X")
    if x.ndim == 0:
        return [np.zeros((0, int(bool(x))), np.int64)]
    return [np.array(np.nonzero(x), np.int64).reshape(x.ndim, -1)]


INDEXING: dict[str, Kernel] = {
    "Compress": compress,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonZero": non_zero,
    "OneHot": one_hot,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TopK": top_k,
}
