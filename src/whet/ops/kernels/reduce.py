"""Softmax and its kin, reductions, positions of extremes, running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import Array, Attributes, Inputs, Outputs, axis_within, integer, optional, required, whole
from whet.ops.kernels.common import axes_within, back, is_float, mean_along, working


def softmax_along(x: Array, axis: int) -> Array:
    """exp(x - max) over its sum along one axis; every step is rounded to x's type (see `row_sum`)."""
    if not x.size:
        return x.copy()
    y: Array = x - x.max(axis=axis, keepdims=True)
    np.exp(y, out=y)
    y /= row_sum(y, axis)
    return y


def row_sum(x: Array, axis: int) -> Array:
    """The sum along an axis, which stays as an extent of 1, in x's type.

    Up to 16 elements are added in x's own type, each partial sum rounded, which the standard's bfloat16 conformance
    data expect; in a longer row such sums would stop growing, so they run in at least float32.
    """
    wide = x if x.shape[axis] <= 16 else working(x)
    return back(wide.sum(axis=axis, keepdims=True), x.dtype)


def softmax(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Softmax(13)."""
    x = required(inputs, 0, "input")
    axis = axis_within(int(attributes.get("axis", -1)), x.ndim)
    return [softmax_along(x, axis)]


def log_softmax(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """LogSoftmax(13)."""
    given = required(inputs, 0, "input")
    x = working(given)
    axis = axis_within(int(attributes.get("axis", -1)), x.ndim)
    if not x.shape[axis]:
        return [given.copy()]
    shifted = x - x.max(axis=axis, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    return [back(shifted, given.dtype)]


def hardmax(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Hardmax(13): 1 at the first maximum along the axis, else 0."""
    x = required(inputs, 0, "input")
    axis = axis_within(int(attributes.get("axis", -1)), x.ndim)
    result = np.zeros(x.shape, x.dtype)
    if x.size:
        np.put_along_axis(result, np.expand_dims(working(x).argmax(axis=axis), axis), x.dtype.type(1), axis)
    return [result]


Reduction = Callable[[Array, tuple[int, ...], bool], Array]


def _sum(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    return np.asarray(x.sum(axis=axes, keepdims=keep, dtype=x.dtype))


def _mean(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    if is_float(x.dtype):
        return np.asarray(mean_along(x, axes, keepdims=keep))
    count = int(np.prod([x.shape[a] for a in axes], dtype=np.int64))
    if count == 0:
        raise InvalidArgument("the mean of no integers is undefined", value="data", found=x.shape)
    total = np.asarray(x.sum(axis=axes, keepdims=keep, dtype=np.int64 if x.dtype.kind == "i" else np.uint64))
    # Truncated toward zero, as an integer division in C.
    return np.sign(total) * (np.abs(total) // count) if x.dtype.kind == "i" else total // np.uint64(count)


def _log_sum_exp(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    if not x.size:
        return np.log(_sum(x, axes, keep))
    wide = x if is_float(x.dtype) else x.astype(np.float64)
    top = wide.max(axis=axes, keepdims=True)
    top = np.where(np.isfinite(top), top, wide.dtype.type(0))
    total = np.log(np.exp(wide - top).sum(axis=axes, keepdims=True)) + top
    return np.asarray(total if keep else total.squeeze(axis=axes))


def _extreme(largest: bool) -> Reduction:
    def reduction(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
        function: Any = np.maximum if largest else np.minimum
        if x.dtype == np.bool_:
            function = np.logical_or if largest else np.logical_and
            return np.asarray(function.reduce(x, axis=axes, keepdims=keep))
        if all(x.shape[a] for a in axes):
            return np.asarray(function.reduce(x, axis=axes, keepdims=keep))
        if is_float(x.dtype):
            start: Any = x.dtype.type(-np.inf if largest else np.inf)
        else:
            info = np.iinfo(x.dtype)
            start = info.min if largest else info.max
        return np.asarray(function.reduce(x, axis=axes, keepdims=keep, initial=start))

    return reduction


REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, axes, keep: _sum(np.abs(x), axes, keep),
    "ReduceL2": lambda x, axes, keep: np.sqrt(_sum(x * x, axes, keep)),
    "ReduceLogSum": lambda x, axes, keep: np.log(_sum(x, axes, keep)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _extreme(True),
    "ReduceMean": _mean,
    "ReduceMin": _extreme(False),
    "ReduceProd": lambda x, axes, keep: np.asarray(x.prod(axis=axes, keepdims=keep, dtype=x.dtype)),
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
}


def _reduce(name: str) -> Kernel:
    reduction = REDUCTIONS[name]

    def kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
        x = required(inputs, 0, "data")
        given = optional(inputs, 1)
        keep = bool(integer(attributes, "keepdims", 1))
        if given is None or not given.size:
            if integer(attributes, "noop_with_empty_axes", 0):
                # No axis is reduced; what the operator does to single elements still happens.
                return [back(reduction(working(x), (), keep), x.dtype)]
            axes = tuple(range(x.ndim))
        else:
            axes = axes_within([int(a) for a in given.reshape(-1)], x.ndim)
        if name in ("ReduceMax", "ReduceMin"):
            return [reduction(x, axes, keep)]
        return [back(reduction(working(x), axes, keep), x.dtype)]

    return kernel


def _position(largest: bool) -> Kernel:
    def kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
        x = working(required(inputs, 0, "data"))
        axis = axis_within(int(attributes.get("axis", 0)), x.ndim)
        if not x.shape[axis]:
            raise InvalidArgument(
                "there is no extreme along an empty axis", value="data", found=x.shape, expected=f"extent > 0 at {axis}"
            )
        last = bool(integer(attributes, "select_last_index", 0))
        view = np.flip(x, axis) if last else x
        found = view.argmax(axis=axis) if largest else view.argmin(axis=axis)
        if last:
            found = x.shape[axis] - 1 - found
        if integer(attributes, "keepdims", 1):
            found = np.expand_dims(found, axis)
        return [np.asarray(found, np.int64)]

    return kernel


def _running(function: Any) -> Kernel:
    def kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
        given = required(inputs, 0, "x")
        axis = axis_within(whole(required(inputs, 1, "axis"), "axis"), given.ndim)
        x = working(given)
        if integer(attributes, "reverse", 0):
            x = np.flip(x, axis)
        result = function.accumulate(x, axis=axis, dtype=x.dtype)
        if integer(attributes, "exclusive", 0) and x.shape[axis]:
            result = np.roll(result, 1, axis)
            result[(slice(None),) * axis + (0,)] = function.identity
        if integer(attributes, "reverse", 0):
            result = np.flip(result, axis)
        return [back(result, given.dtype)]

    return kernel


REDUCE: dict[str, Kernel] = {
    **{name: _reduce(name) for name in REDUCTIONS},
    "ArgMax": _position(True),
    "ArgMin": _position(False),
    "CumProd": _running(np.multiply),
    "CumSum": _running(np.add),
    "Hardmax": hardmax,
    "LogSoftmax": log_softmax,
    "Softmax": softmax,
}
