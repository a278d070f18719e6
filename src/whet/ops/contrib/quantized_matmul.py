"""Matrix products of 8-bit tensors, given as such or quantized on the way in."""

from __future__ import annotations

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    expect_broadcast,
    expect_rank,
    expect_shape,
    integer,
    optional,
    required,
    scalar,
)
from whet.ops.contrib.matmul import checked_matmul
from whet.ops.contrib.quantized import quantize


def quantize_dynamically(x: Array) -> tuple[Array, Array, int]:
    """x as uint8 with its scale and zero point, as ONNX's DynamicQuantizeLinear defines them; 0 is always exact."""
    if x.size == 0:
        return x.astype(np.uint8), np.asarray(1, dtype=x.dtype), 0
    low, high = min(x.min(), x.dtype.type(0)), max(x.max(), x.dtype.type(0))
    scale = np.asarray((high - low) / x.dtype.type(255), dtype=x.dtype)
    if scale == 0:
        scale = np.asarray(1, dtype=x.dtype)
    zero_point = int(np.clip(np.rint(-low / scale), 0, 255))
    return quantize(x, scale, zero_point, np.dtype(np.uint8)), scale, zero_point


def _columns(parameter: Array | None, b: Array, name: str) -> Array | None:
    """A per-tensor or per-column parameter of B shaped to broadcast over B (..., K, N) and over the product."""
    if parameter is None:
        return None
    if parameter.size == 1:
        return parameter.reshape(())
    if parameter.ndim == 1:
        expect_shape(parameter, (b.shape[-1],), name)
        return parameter
    expect_shape(parameter, (*b.shape[:-2], 1, b.shape[-1]), name)
    return parameter


def integer_matmul(a: Array, a_zero: Array | int, b: Array, b_zero: Array | int) -> Array:
    """(A - a_zero) (B - b_zero), exact, as float64: sums of 8-bit products stay far below 2**53."""
    left = (a.astype(np.int32) - a_zero).astype(np.float64)
    right = (b.astype(np.int32) - b_zero).astype(np.float64)
    return checked_matmul(left, right)


def _centre(zero: Array | None) -> Array | int:
    return 0 if zero is None else zero.astype(np.int32)


def _biased(result: Array, bias: Array | None) -> Array:
    if bias is None:
        return result
    expect_shape(bias, (result.shape[-1],), "bias")
    return result + bias


def dynamic_quantize_matmul(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """A, quantized to uint8 as a whole, times the 8-bit B; scaled back, plus bias."""
    a, b, scale = required(inputs, 0, "A"), required(inputs, 1, "B"), required(inputs, 2, "b_scale")
    expect_rank(b, range(2, 65), "B")
    rounded, a_scale, a_zero = quantize_dynamically(a)
    b_zero = _columns(optional(inputs, 3), b, "b_zero_point")
    b_scale = _columns(scale, b, "b_scale")
    result = integer_matmul(rounded, a_zero, b, _centre(b_zero)).astype(a.dtype) * (a_scale * b_scale)
    return [_biased(result, optional(inputs, 4)).astype(a.dtype)]


def matmul_integer_to_float(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The product of 8-bit A and B, each with scale and zero point, as floats, plus bias."""
    a, b = required(inputs, 0, "A"), required(inputs, 1, "B")
    a_scale, b_scale = required(inputs, 2, "a_scale"), required(inputs, 3, "b_scale")
    expect_rank(b, range(2, 65), "B")
    a_zero = optional(inputs, 4)
    offset = 0 if a_zero is None else int(scalar(a_zero, "a_zero_point"))
    factor = scalar(a_scale, "a_scale") * _columns(b_scale, b, "b_scale")
    sums = integer_matmul(a, offset, b, _centre(_columns(optional(inputs, 5), b, "b_zero_point")))
    return [_biased(sums.astype(b_scale.dtype) * factor, optional(inputs, 6)).astype(b_scale.dtype)]


def qgemm(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """alpha * op(A) op(B) + C in integers, scaled; quantized to 8 bits where y_scale is given, else float."""
    a, a_scale = required(inputs, 0, "A"), required(inputs, 1, "a_scale")
    b, b_scale = required(inputs, 3, "B"), required(inputs, 4, "b_scale")
    expect_rank(a, 2, "A")
    expect_rank(b, 2, "B")
    a_zero = int(scalar(required(inputs, 2, "a_zero_point"), "a_zero_point"))
    left = a.T if integer(attributes, "transA", 0) else a
    right = b.T if integer(attributes, "transB", 0) else b
    b_zero = _columns(optional(inputs, 5), right, "b_zero_point")
    sums = integer_matmul(left, a_zero, right, _centre(b_zero))
    c = optional(inputs, 6)
    if c is not None:
        expect_broadcast(c, sums.shape, "C")
        sums = sums + c
    alpha = a_scale.dtype.type(attributes.get("alpha", 1.0))
    factor = scalar(a_scale, "a_scale") * _columns(b_scale, right, "b_scale") * alpha
    result = sums.astype(a_scale.dtype) * factor
    y_scale, y_zero = optional(inputs, 7), optional(inputs, 8)
    if y_scale is None:
        return [result]
    if y_zero is None:
        raise InvalidArgument("y_scale needs y_zero_point", value="y_zero_point")
    return [quantize(result, scalar(y_scale, "y_scale"), int(scalar(y_zero, "y_zero_point")), y_zero.dtype)]
