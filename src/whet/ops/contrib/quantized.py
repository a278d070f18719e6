"""Linear quantization and the element-wise, reducing and joining operators on 8-bit tensors (QLinear*)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.activation import leaky_relu, sigmoid, softmax
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    axis_within,
    broadcast_shape,
    expect_divisible,
    expect_rank,
    expect_shape,
    integer,
    integer_range,
    optional,
    product,
    required,
    scalar,
    widen,
)


def quantize(x: Array, scale: Array | float, zero_point: Array | int, dtype: np.dtype[Any]) -> Array:
    """round(x / scale) + zero_point, ties to even, saturated to the range of `dtype`; NaN gives its least value."""
    least, most = integer_range(dtype)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = np.clip(np.rint(x / scale) + zero_point, least, most)
    return np.where(np.isnan(steps), least, steps).astype(dtype)


def dequantize(x: Array, scale: Array, zero_point: Array | None) -> Array:
    """(x - zero_point) * scale in the type of scale."""
    centred = x.astype(np.int32) - (0 if zero_point is None else zero_point.astype(np.int32))
    return np.asarray(centred.astype(scale.dtype) * scale)


def read_scaled(inputs: Inputs, index: int, name: str) -> Array:
    """Inputs index, index + 1, index + 2 as floats: a tensor, its scalar scale and its optional scalar zero point."""
    data, scale, zero = required(inputs, index, name), required(inputs, index + 1, f"{name}_scale"), None
    if (given := optional(inputs, index + 2)) is not None:
        scalar(given, f"{name}_zero_point")
        zero = given.reshape(())
    scalar(scale, f"{name}_scale")
    return dequantize(data, scale.reshape(()), zero)


def write_scaled(inputs: Inputs, index: int, x: Array, dtype: np.dtype[Any], name: str) -> Array:
    """x quantized by the scalars at inputs index (scale) and index + 1 (optional zero point)."""
    scale, zero = required(inputs, index, f"{name}_scale"), optional(inputs, index + 1)
    if zero is not None and zero.dtype != dtype:
        raise InvalidArgument(f"{name}_zero_point has the wrong type", value=name, found=zero.dtype, expected=dtype)
    offset = 0 if zero is None else int(scalar(zero, f"{name}_zero_point"))
    return quantize(x, scalar(scale, f"{name}_scale"), offset, dtype)


def _per_axis(x: Array, parameter: Array, attributes: Attributes, name: str) -> Array:
    """`parameter` shaped to broadcast over x: a scalar, or one number per index of `axis`."""
    if parameter.size == 1 and (parameter.ndim == 0 or "axis" not in attributes):
        return parameter.reshape(())
    axis = axis_within(integer(attributes, "axis", 1), x.ndim)
    expect_shape(parameter, (x.shape[axis],), name)
    return parameter.reshape(tuple(-1 if i == axis else 1 for i in range(x.ndim)))


def quantize_linear(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """x quantized per tensor, or per index of `axis`; uint8 where there is no zero point."""
    x, scale, zero = required(inputs, 0, "x"), required(inputs, 1, "y_scale"), optional(inputs, 2)
    factor = _per_axis(x, widen(scale), attributes, "y_scale")
    if zero is None:
        return [quantize(widen(x), factor, 0, np.dtype(np.uint8))]
    expect_shape(zero, scale.shape, "y_zero_point")
    offset = _per_axis(x, zero, attributes, "y_zero_point").astype(np.int32)
    return [quantize(widen(x), factor, offset, zero.dtype)]


def dequantize_linear(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """(x - zero_point) * scale per tensor, or per index of `axis`, in the type of the scale."""
    x, scale, zero = required(inputs, 0, "x"), required(inputs, 1, "x_scale"), optional(inputs, 2)
    factor = _per_axis(x, scale, attributes, "x_scale")
    if zero is not None:
        expect_shape(zero, scale.shape, "x_zero_point")
        zero = _per_axis(x, zero, attributes, "x_zero_point")
    return [dequantize(x, factor, zero)]


def _binary(inputs: Inputs, function: Callable[[Array, Array], Array]) -> Outputs:
    a, b = required(inputs, 0, "A"), required(inputs, 3, "B")
    broadcast_shape((a.shape, b.shape), "A and B")
    result = function(read_scaled(inputs, 0, "A"), read_scaled(inputs, 3, "B"))
    return [write_scaled(inputs, 6, result, a.dtype, "C")]


def qlinear_add(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """A + B, both dequantized, quantized to C's scale."""
    return _binary(inputs, np.add)


def qlinear_mul(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """A * B, both dequantized, quantized to C's scale."""
    return _binary(inputs, np.multiply)


def qlinear_leaky_relu(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """LeakyRelu of the dequantized X, quantized to Y's scale."""
    result = leaky_relu(read_scaled(inputs, 0, "X"), float(attributes.get("alpha", 0.01)))
    return [write_scaled(inputs, 3, result, required(inputs, 0, "X").dtype, "Y")]


def qlinear_sigmoid(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Sigmoid of the dequantized X, quantized to Y's scale."""
    return [write_scaled(inputs, 3, sigmoid(read_scaled(inputs, 0, "X")), required(inputs, 0, "X").dtype, "Y")]


def qlinear_softmax(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Softmax of the dequantized X along `axis` (`opset` >= 13), or over all axes from `axis` on (before)."""
    x = required(inputs, 0, "X")
    real = read_scaled(inputs, 0, "X")
    axis = axis_within(integer(attributes, "axis", -1), x.ndim)
    if integer(attributes, "opset") >= 13:
        result = softmax(real, axis)
    else:
        result = softmax(real.reshape(product(x.shape[:axis]), product(x.shape[axis:])), 1).reshape(x.shape)
    return [write_scaled(inputs, 3, result, x.dtype, "Y")]


def qlinear_reduce_mean(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The mean of the dequantized data over `axes` (all where there are none), quantized again."""
    data = required(inputs, 0, "data")
    axes = tuple(axis_within(int(a), data.ndim, "axes") for a in attributes.get("axes", ())) or None
    keep = bool(integer(attributes, "keepdims", 1, least=0, most=1))
    mean = np.asarray(read_scaled(inputs, 0, "data").mean(axis=axes, keepdims=keep))
    return [write_scaled(inputs, 3, mean, data.dtype, "reduced")]


def qlinear_global_average_pool(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The mean over all spatial axes, kept with extent 1; channels first, or last with `channels_last`."""
    x = required(inputs, 0, "X")
    expect_rank(x, range(3, 65), "X")
    last = bool(integer(attributes, "channels_last", 0, least=0, most=1))
    axes = tuple(range(1, x.ndim - 1)) if last else tuple(range(2, x.ndim))
    mean = read_scaled(inputs, 0, "X").mean(axis=axes, keepdims=True)
    return [write_scaled(inputs, 3, mean, x.dtype, "Y")]


def qlinear_where(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """X where the condition holds, else Y, each requantized to Z's scale."""
    condition, x, y = required(inputs, 0, "condition"), required(inputs, 1, "X"), required(inputs, 4, "Y")
    broadcast_shape((condition.shape, x.shape, y.shape), "condition, X and Y")
    real = np.where(condition, read_scaled(inputs, 1, "X"), read_scaled(inputs, 4, "Y"))
    return [write_scaled(inputs, 7, real, x.dtype, "Z")]


def qlinear_concat(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Tensors (each with scale and zero point) joined along `axis`, requantized to the output's scale."""
    zero = required(inputs, 1, "Y_zero_point")
    count = expect_divisible(len(inputs) - 2, 3, "the number of inputs after the first two", "3")
    if count < 1:
        raise InvalidArgument("QLinearConcat has nothing to join", found=len(inputs), expected="at least 5 inputs")
    parts = [write_scaled(inputs, 0, read_scaled(inputs, 2 + 3 * i, f"X{i}"), zero.dtype, "Y") for i in range(count)]
    axis = axis_within(integer(attributes, "axis"), parts[0].ndim)
    for i, part in enumerate(parts):
        expect_shape(part, [None if a == axis else extent for a, extent in enumerate(parts[0].shape)], f"X{i}")
    return [np.concatenate(parts, axis=axis)]


def mul_integer(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """(A - A_zero_point) * (B - B_zero_point) in int32."""
    a, a_zero = required(inputs, 0, "A"), optional(inputs, 1)
    b, b_zero = required(inputs, 2, "B"), optional(inputs, 3)
    broadcast_shape((a.shape, b.shape), "A and B")
    left = a.astype(np.int32) - (0 if a_zero is None else int(scalar(a_zero, "A_zero_point")))
    right = b.astype(np.int32) - (0 if b_zero is None else int(scalar(b_zero, "B_zero_point")))
    return [np.asarray(left * right, dtype=np.int32)]


def reduce_sum_integer(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The sum of 8-bit data over `axes` (all where there are none) in the 32-bit type of the same sign."""
    data = required(inputs, 0, "data")
    axes = tuple(axis_within(int(a), data.ndim, "axes") for a in attributes.get("axes", ())) or None
    keep = bool(integer(attributes, "keepdims", 1, least=0, most=1))
    dtype = np.uint32 if data.dtype.kind == "u" else np.int32
    return [np.asarray(data.sum(axis=axes, keepdims=keep, dtype=dtype))]
