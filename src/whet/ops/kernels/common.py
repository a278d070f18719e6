"""What the kernels share beyond the checks of `ops.contrib.common`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.common import Array

BLOCK_BYTES = 1 << 18
"""Work on large arrays proceeds in blocks of about this size, so that intermediate results stay in the cache."""

_SMALL = frozenset(
    np.dtype(t)
    for t in (
        np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e5m2fnuz, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e8m0fnu,
    )
)  # fmt: skip


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a real floating-point type, ml_dtypes' included."""
    return dtype.kind == "f" or dtype in _SMALL


def working(array: Array) -> Array:
    """`array` in the type to calculate in: floats below 32 bits become float32."""
    return array.astype(np.float32) if array.dtype in _SMALL else array


def working_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type to calculate in for operands of `dtype`."""
    return np.dtype(np.float32) if dtype in _SMALL else dtype


def mean_along(array: Array, axes: int | tuple[int, ...], *, keepdims: bool = True) -> Array:
    """The mean along axes; over none it is NaN."""
    total = np.asarray(array.sum(axis=axes, keepdims=keepdims))
    count = array.size // total.size if total.size else 1
    total /= array.dtype.type(count)
    return total


def back(array: Array, dtype: np.dtype[Any]) -> Array:
    """`array` as `dtype`, not copied when it already is."""
    return array.astype(dtype, copy=False)


def ints(attributes: Mapping[str, Any], name: str, default: Sequence[int]) -> tuple[int, ...]:
    """The integer-list attribute `name`, of the length of `default`."""
    value = attributes.get(name)
    if value is None:
        return tuple(default)
    result = tuple(int(v) for v in value)
    if len(result) != len(default):
        raise InvalidArgument(
            f"attribute {name} has the wrong length", found=list(result), expected=f"{len(default)} integers"
        )
    return result


def positive(values: Sequence[int], name: str) -> None:
    """Raise InvalidArgument unless every one of `values` is at least 1."""
    if any(v < 1 for v in values):
        raise InvalidArgument(f"attribute {name} must be positive", found=list(values), expected="at least 1")


def axes_within(axes: Sequence[int], rank: int, name: str = "axes") -> tuple[int, ...]:
    """`axes` counted from the front, checked for range and repetition."""
    result = []
    for axis in axes:
        if not -rank <= axis < rank:
            raise InvalidArgument(f"{name} is out of range", value=name, found=axis, expected=f"[{-rank}, {rank})")
        result.append(int(axis) % rank)
    if len(set(result)) != len(result):
        raise InvalidArgument(f"{name} repeats an axis", value=name, found=[int(a) for a in axes])
    return tuple(result)


def spatial_padding(
    attributes: Mapping[str, Any],
    extents: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    """Padding before and after each spatial axis, from `pads` or `auto_pad`."""
    rank = len(extents)
    mode = attributes.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        pads = ints(attributes, "pads", (0,) * (2 * rank))
        return [(pads[i], pads[i + rank]) for i in range(rank)]
    if mode == "VALID":
        return [(0, 0)] * rank
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise InvalidArgument(
            "attribute auto_pad has an unknown value", found=mode, expected="NOTSET, VALID, SAME_UPPER or SAME_LOWER"
        )
    result = []
    for extent, size, stride, dilation in zip(extents, kernel, strides, dilations, strict=True):
        reach = (size - 1) * dilation + 1
        total = max((math.ceil(extent / stride) - 1) * stride + reach - extent, 0)
        small = total // 2
        result.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
    return result
