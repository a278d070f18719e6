"""Arithmetic over broadcast operands; integer division is defined for every divisor but 0."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import Array, Attributes, Inputs, Outputs, broadcast_shape, integer, required, text
from whet.ops.kernels.common import back, is_float, working


def _operands(inputs: Inputs) -> tuple[Array, Array]:
    a, b = required(inputs, 0, "A"), required(inputs, 1, "B")
    if a.dtype != b.dtype:
        raise InvalidArgument("the operands differ in type", value="B", found=b.dtype, expected=a.dtype)
    if a.shape != b.shape and a.ndim and b.ndim:
        broadcast_shape((a.shape, b.shape), "A and B")
    return a, b


def _binary(function: Any) -> Kernel:
    def kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
        a, b = _operands(inputs)
        return [np.asarray(function(a, b))]

    return kernel


def _refuse_zero(b: Array, what: str) -> None:
    zero = b == 0
    if zero.any():
        position = tuple(int(i) for i in np.argwhere(zero)[0])
        raise InvalidArgument(f"integer {what} by zero at position {list(position)}", value="B", found=0)


def div(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Div(14): integers are truncated toward zero, the least one over -1 wraps to itself; by 0 is refused."""
    a, b = _operands(inputs)
    if is_float(a.dtype):
        return [np.asarray(a / b)]
    _refuse_zero(b, "division")
    if a.dtype.kind == "u":
        return [np.asarray(a // b)]
    quotient = np.where(b == -1, -a, a // np.where(b == -1, 1, b).astype(b.dtype))
    # Floor division is one too low where the signs differ and there is a remainder.
    inexact = (quotient * b != a) & ((a < 0) != (b < 0))
    return [back(np.asarray(quotient + inexact), a.dtype)]


def mod(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Mod(13): the divisor's sign for integers (Python's %), the dividend's where fmod is set; by 0 is refused."""
    a, b = _operands(inputs)
    fmod = bool(integer(attributes, "fmod", 0))
    if is_float(a.dtype):
        if fmod:
            return [back(np.asarray(np.fmod(working(a), working(b))), a.dtype)]
        return [back(np.asarray(np.mod(working(a), working(b))), a.dtype)]
    _refuse_zero(b, "remainder")
    if a.dtype.kind == "i":
        safe = np.where(b == -1, 1, b).astype(b.dtype)  # x mod -1 is 0, but the least integer would trap
        return [np.asarray(np.fmod(a, safe) if fmod else np.mod(a, safe))]
    return [np.asarray(np.fmod(a, b) if fmod else np.mod(a, b))]


def power(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Pow(15): the result has the base's type; a negative integer exponent of an integer goes through float64."""
    a, b = required(inputs, 0, "X"), required(inputs, 1, "Y")
    broadcast_shape((a.shape, b.shape), "X and Y")
    if is_float(a.dtype):
        x = working(a)
        y = working(b)
        if b.size == 1 and y.dtype.kind == "f":
            exponent = float(y.reshape(-1)[0])
            if exponent == 2.0 and b.ndim <= a.ndim:
                return [back(np.asarray(x * x), a.dtype)]
            if exponent == 3.0 and b.ndim <= a.ndim:
                return [back(np.asarray(x * x * x), a.dtype)]
        if y.dtype.kind != "f" or y.dtype.itemsize < x.dtype.itemsize:
            y = y.astype(x.dtype)
        return [back(np.asarray(np.power(x, y)), a.dtype)]
    if b.dtype.kind in "iu" and not (b.dtype.kind == "i" and (b < 0).any()):
        return [np.power(a, b, dtype=np.result_type(a, b), casting="unsafe").astype(a.dtype)]
    return [from_float(np.power(a.astype(np.float64), b.astype(np.float64)), a.dtype)]


def from_float(x: Array, dtype: np.dtype[Any]) -> Array:
    """Floats to integers, truncated toward zero; NaN becomes 0.

    What is out of range, which the standard leaves open, becomes the nearest end for 32- and 64-bit types, and keeps
    the low bits of the nearest int32 for narrower ones (as a conversion through int32 does).
    """
    if dtype == np.bool_:
        return np.not_equal(x, 0)
    if dtype.itemsize < 4:
        return from_float(x, np.dtype(np.int32)).astype(dtype)
    info = np.iinfo(dtype)
    x = np.trunc(x)
    if x.dtype.itemsize < 8:
        x = x.astype(np.float64)
    # 2^63 and 2^64 are floats but no integers: compare first, clip what remains.
    high = x >= float(info.max)
    low = x <= float(info.min)
    safe = np.where(high | low | np.isnan(x), 0, x).astype(dtype)
    return np.where(high, info.max, np.where(low, info.min, safe)).astype(dtype)


def bit_shift(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """BitShift(28): signed integers keep their sign to the right; past the width, or by a negative amount, only the
    sign is left (to the right) or nothing."""
    a, b = _operands(inputs)
    direction = text(attributes, "direction", None, ("LEFT", "RIGHT"))
    width = a.dtype.itemsize * 8
    if a.dtype.kind not in "iu":
        raise InvalidArgument("only integers shift", value="X", found=a.dtype, expected="an integer type")
    outside = (b < 0) | (b >= width)
    amount = np.where(outside, 0, b).astype(b.dtype)
    if direction == "LEFT":
        return [np.where(outside, a.dtype.type(0), np.left_shift(a, amount))]
    emptied = np.where(a < 0, a.dtype.type(-1), a.dtype.type(0)) if a.dtype.kind == "i" else a.dtype.type(0)
    return [np.where(outside, emptied, np.right_shift(a, amount))]


def _variadic(function: Any) -> Kernel:
    def kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
        result = required(inputs, 0, "data_0")
        for index in range(1, len(inputs)):
            other = required(inputs, index, f"data_{index}")
            if other.dtype != result.dtype:
                raise InvalidArgument("the operands differ in type", found=other.dtype, expected=result.dtype)
            result = np.asarray(function(result, other))
        return [result]

    return kernel


def mean(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Mean(13)."""
    total = working(required(inputs, 0, "data_0"))
    for index in range(1, len(inputs)):
        total = total + working(required(inputs, index, f"data_{index}"))
    return [back(np.asarray(total / total.dtype.type(len(inputs))), required(inputs, 0, "data_0").dtype)]


def where(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Where(16)."""
    condition, x, y = required(inputs, 0, "condition"), required(inputs, 1, "X"), required(inputs, 2, "Y")
    if condition.dtype != np.bool_:
        raise InvalidArgument("the condition must be boolean", value="condition", found=condition.dtype)
    if x.dtype != y.dtype:
        raise InvalidArgument("the operands differ in type", value="Y", found=y.dtype, expected=x.dtype)
    broadcast_shape((condition.shape, x.shape, y.shape), "condition, X and Y")
    return [np.where(condition, x, y)]


def isinf(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """IsInf(20)."""
    x = required(inputs, 0, "X")
    negative = bool(integer(attributes, "detect_negative", 1))
    positive = bool(integer(attributes, "detect_positive", 1))
    infinite = np.isinf(x)
    if negative and positive:
        return [infinite]
    if negative:
        return [infinite & (x < 0)]
    return [infinite & (x > 0) if positive else np.zeros(x.shape, np.bool_)]


ARITHMETIC: dict[str, Kernel] = {
    "Add": _binary(np.add),
    "And": _binary(np.logical_and),
    "BitShift": bit_shift,
    "Div": div,
    "Equal": _binary(np.equal),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "IsInf": isinf,
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Max": _variadic(np.maximum),
    "Mean": mean,
    "Min": _variadic(np.minimum),
    "Mod": mod,
    "Mul": _binary(np.multiply),
    "Or": _binary(np.logical_or),
    "Pow": power,
    "Sub": _binary(np.subtract),
    "Sum": _variadic(np.add),
    "Where": where,
    "Xor": _binary(np.logical_xor),
}
