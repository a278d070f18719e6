"""Matrix products with transposes, scaling, bias and activation fused into them."""

from __future__ import annotations

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.contrib.activation import activate, gelu_tanh, softmax
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
    text,
    widen,
)


def checked_matmul(a: Array, b: Array) -> Array:
    """numpy.matmul whose refusals name both shapes."""
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise InvalidArgument(
            "A and B do not multiply", found=f"{a.shape} x {b.shape}", expected="the same inner extent"
        )
    try:
        return np.asarray(np.matmul(a, b))
    except ValueError as error:
        raise InvalidArgument("the batch axes of A and B do not broadcast", found=f"{a.shape} x {b.shape}") from error


def _transposed(x: Array, batch: bool, last_two: bool, name: str) -> Array:
    """x with its first axis moved behind the batch axes (`batch`), then its last two swapped (`last_two`)."""
    if batch:
        expect_rank(x, range(3, 65), name)
        x = np.moveaxis(x, 0, -2)
    return np.swapaxes(x, -1, -2) if last_two and x.ndim > 1 else x


def _scaled_product(inputs: Inputs, attributes: Attributes) -> Array:
    a, b = required(inputs, 0, "A"), required(inputs, 1, "B")
    flags = {
        name: bool(integer(attributes, name, 0, least=0, most=1))
        for name in ("transA", "transB", "transBatchA", "transBatchB")
    }
    left = _transposed(widen(a), flags["transBatchA"], flags["transA"], "A")
    right = _transposed(widen(b), flags["transBatchB"], flags["transB"], "B")
    return np.asarray(float(attributes.get("alpha", 1.0)) * checked_matmul(left, right))


def fused_matmul(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """alpha * op(A) op(B), op transposing as the four attributes say; rank-1 operands are not transposed."""
    return [_scaled_product(inputs, attributes).astype(required(inputs, 0, "A").dtype)]


def fused_matmul_activation(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """FusedMatMul, then the named activation; Softmax runs along `activation_axis`."""
    result = _scaled_product(inputs, attributes)
    name = text(attributes, "activation", None)
    if name == "Softmax":
        result = softmax(result, integer(attributes, "activation_axis", -1))
    else:
        result = activate(name, result, _activation_parameters(attributes))
    return [result.astype(required(inputs, 0, "A").dtype)]


def _activation_parameters(attributes: Attributes) -> list[float]:
    parameters: list[float] = []
    second = "activation_gamma" if text(attributes, "activation", "") == "Selu" else "activation_beta"
    for name in ("activation_alpha", second):
        if name not in attributes:
            break
        parameters.append(float(attributes[name]))
    return parameters


def fused_gemm(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """activation(alpha * op(A) op(B) + beta * C), all matrices, C broadcast to the product."""
    a, b, c = required(inputs, 0, "A"), required(inputs, 1, "B"), optional(inputs, 2)
    expect_rank(a, 2, "A")
    expect_rank(b, 2, "B")
    left = widen(a).T if integer(attributes, "transA", 0) else widen(a)
    right = widen(b).T if integer(attributes, "transB", 0) else widen(b)
    result = float(attributes.get("alpha", 1.0)) * checked_matmul(left, right)
    if c is not None:
        expect_broadcast(c, result.shape, "C")
        result = result + float(attributes.get("beta", 1.0)) * widen(c)
    result = activate(text(attributes, "activation", ""), result, _activation_parameters(attributes))
    return [result.astype(a.dtype)]


def gemm_fast_gelu(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The tanh approximation of Gelu of X W + bias."""
    x, w, bias = required(inputs, 0, "X"), required(inputs, 1, "W"), optional(inputs, 2)
    result = checked_matmul(widen(x), widen(w))
    if bias is not None:
        expect_shape(bias, (w.shape[-1],), "bias")
        result = result + widen(bias)
    return [gelu_tanh(result).astype(x.dtype)]


def matmul_integer16(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """The product of int16 or uint16 matrices in int32, wrapping as 32-bit addition does."""
    a, b = required(inputs, 0, "A"), required(inputs, 1, "B")
    wide = checked_matmul(a.astype(np.int64), b.astype(np.int64))
    unsigned = a.dtype == np.uint16 and b.dtype == np.uint16
    return [wide.astype(np.uint32 if unsigned else np.int32)]
