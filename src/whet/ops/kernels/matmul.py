"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import (
    Array,
    Attributes,
    Inputs,
    Outputs,
    expect_broadcast,
    expect_rank,
    integer,
    optional,
    required,
)
from whet.ops.kernels.common import back, is_float, working
from whet.ops.kernels.quantize import check_scale, dequantize, quantize


def product(a: Array, b: Array) -> Array:
    """numpy's matrix product with the shapes checked; a stack of matrices times one matrix is one product."""
    if not a.ndim or not b.ndim:
        raise InvalidArgument("a matrix product needs at least one dimension", found=f"{a.shape} and {b.shape}")
    inner = b.shape[-2] if b.ndim > 1 else b.shape[0]
    if a.shape[-1] != inner:
        raise InvalidArgument(
            "the inner extents differ", value="B", found=f"{a.shape} and {b.shape}", expected=f"{a.shape[-1]} rows in B"
        )
    if a.ndim > 2 and b.ndim == 2:
        flat = np.matmul(a.reshape(-1, a.shape[-1]), b) if a.size else np.zeros((0, b.shape[1]), a.dtype)
        if a.size:
            return flat.reshape(*a.shape[:-1], b.shape[1])
    try:
        return np.asarray(np.matmul(a, b))
    except ValueError as error:
        raise InvalidArgument("the stacks do not broadcast", value="B", found=f"{a.shape} and {b.shape}") from error


def matmul(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """MatMul(13)."""
    a, b = required(inputs, 0, "A"), required(inputs, 1, "B")
    if a.dtype != b.dtype:
        raise InvalidArgument("the operands differ in type", value="B", found=b.dtype, expected=a.dtype)
    return [back(product(working(a), working(b)), a.dtype)]


def gemm(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Gemm(13): alpha A' B' + beta C."""
    given = required(inputs, 0, "A")
    a, b, c = working(given), working(required(inputs, 1, "B")), optional(inputs, 2)
    expect_rank(a, 2, "A")
    expect_rank(b, 2, "B")
    if integer(attributes, "transA", 0):
        a = a.T
    if integer(attributes, "transB", 0):
        b = b.T
    y = product(a, b)
    alpha, beta = float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))
    if alpha != 1.0:
        y = _scaled(y, alpha)
    if c is not None and beta != 0.0:
        expect_broadcast(c, y.shape, "C")
        addend = working(c)
        y = y + (addend if beta == 1.0 else _scaled(addend, beta))
    return [back(y, given.dtype)]


def _scaled(x: Array, factor: float) -> Array:
    scaled: Array = x * (x.dtype.type(factor) if is_float(x.dtype) else factor)
    return back(scaled, x.dtype)


def exact(a: Array, zero_point: Array | None, rows: bool, name: str) -> Array:
    """`a` minus its zero point (scalar, or one for each row or column) as float64: exact while sums stay below 2^53."""
    wide = a.astype(np.float64)
    if zero_point is None:
        return wide
    zero = zero_point.astype(np.float64)
    if zero.size == 1:
        return wide - zero.reshape(())
    if zero.ndim == 1:
        zero = zero[:, None] if rows else zero
    try:
        return wide - zero
    except ValueError as error:
        raise InvalidArgument(
            f"{name} does not fit", value=name, found=zero_point.shape, expected=f"() or one for each part of {a.shape}"
        ) from error


def matmul_integer(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """MatMulInteger(10): exact, wrapped to int32."""
    a = exact(required(inputs, 0, "A"), optional(inputs, 2), True, "a_zero_point")
    b = exact(required(inputs, 1, "B"), optional(inputs, 3), False, "b_zero_point")
    return [product(a, b).astype(np.int64).astype(np.int32)]


def qlinear_matmul(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """QLinearMatMul(21): the exact product scaled in float64, rounded half to even, saturated."""
    a, b = required(inputs, 0, "a"), required(inputs, 3, "b")
    a_scale, b_scale = required(inputs, 1, "a_scale"), required(inputs, 4, "b_scale")
    y_scale, y_zero = required(inputs, 6, "y_scale"), required(inputs, 7, "y_zero_point")
    for scale, name in ((a_scale, "a_scale"), (b_scale, "b_scale"), (y_scale, "y_scale")):
        check_scale(scale, name)
    if not is_float(a.dtype):
        left = exact(a, required(inputs, 2, "a_zero_point"), True, "a_zero_point")
        right = exact(b, required(inputs, 5, "b_zero_point"), False, "b_zero_point")
    else:
        left = dequantize(a, np.ones((), np.float64), required(inputs, 2, "a_zero_point"), 0, 0)
        right = dequantize(b, np.ones((), np.float64), required(inputs, 5, "b_zero_point"), 0, 0)
    total = product(left, right)
    total = total * _aligned(a_scale, True) * _aligned(b_scale, False)
    return [quantize(total, _aligned(y_scale, True), y_zero, y_zero.dtype, True)]


def _aligned(scale: Array, rows: bool) -> Any:
    wide = scale.astype(np.float64)
    if wide.size == 1:
        return wide.reshape(())
    return wide[:, None] if rows and wide.ndim == 1 else wide


def einsum(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Einsum(12), contracted pair by pair."""
    equation = attributes.get("equation")
    if not isinstance(equation, str):
        raise InvalidArgument("attribute equation is missing", expected="a string")
    operands = [required(inputs, i, f"input {i}") for i in range(len(inputs))]
    wide = [working(x) for x in operands]
    try:
        result = np.einsum(equation.replace(" ", ""), *wide, optimize=len(wide) > 1 and all(x.size for x in wide))
    except ValueError as error:
        raise InvalidArgument(
            f"the equation does not fit the inputs: {error}",
            found=f"{equation!r} on {', '.join(str(x.shape) for x in operands)}",
        ) from error
    return [back(np.asarray(result), operands[0].dtype)]


MATMULS: dict[str, Kernel] = {
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": matmul,
    "MatMulInteger": matmul_integer,
    "QLinearMatMul": qlinear_matmul,
}
