"""Inference for the quantized operators of the `com.microsoft` domain."""

from __future__ import annotations

from collections.abc import Sequence

from whet.dtypes import INT32, UINT16, UINT32
from whet.graph import Node, Shape, TensorType, Type
from whet.graph.dims import Dim
from whet.ops.common import axis_in, broadcast_inputs, dtype_of, required, shape_of
from whet.ops.conv import conv_shape
from whet.ops.matmul import product_shape


def matmul_to_float(node: Node) -> Sequence[Type | None]:
    """MatMulIntegerToFloat, DynamicQuantizeMatMul: the product in the type of a scale."""
    index = 3 if node.op_type == "MatMulIntegerToFloat" else 2
    shape = product_shape(shape_of(required(node, 0)), shape_of(required(node, 1)))
    return (TensorType(dtype_of(node.input(index)), shape),)


def matmul_integer16(node: Node) -> Sequence[Type | None]:
    """MatMulInteger16: uint32 where both operands are unsigned."""
    kinds = [dtype_of(node.input(i)) for i in (0, 1)]
    shape = product_shape(shape_of(required(node, 0)), shape_of(required(node, 1)))
    dtype = None if None in kinds else UINT32 if kinds == [UINT16, UINT16] else INT32
    return (TensorType(dtype, shape),)


def qgemm(node: Node) -> Sequence[Type | None]:
    """8-bit where there is a scale for the result, else in the type of A's scale."""
    a, b = shape_of(required(node, 0)), shape_of(required(node, 3))
    rows = None if a is None or len(a) != 2 else a[1 if node.int_attr("transA", 0) else 0]
    columns = None if b is None or len(b) != 2 else b[0 if node.int_attr("transB", 0) else 1]
    dtype = dtype_of(node.input(8)) if node.input(7) is not None else dtype_of(node.input(1))
    return (TensorType(dtype, (rows, columns)),)


def qlinear_conv(node: Node) -> Sequence[Type | None]:
    """QLinearConv, channels first or last."""
    x, w = shape_of(required(node, 0)), shape_of(required(node, 3))
    dtype = dtype_of(node.input(7))
    if not node.int_attr("channels_last", 0):
        return (TensorType(dtype, conv_shape(node, x, w)),)
    shape = conv_shape(node, None if x is None else (x[0], x[-1], *x[1:-1]), w)
    return (TensorType(dtype, None if shape is None else (shape[0], *shape[2:], shape[1])),)


def global_average_pool(node: Node) -> Sequence[Type | None]:
    """All spatial axes become 1."""
    source = required(node, 0)
    x = shape_of(source)
    if x is None or len(x) < 3:
        return (TensorType(dtype_of(source)),)
    ones: Shape = (1,) * (len(x) - 2)
    shape = (x[0], *ones, x[-1]) if node.int_attr("channels_last", 0) else (*x[:2], *ones)
    return (TensorType(dtype_of(source), shape),)


def reduce_mean(node: Node) -> Sequence[Type | None]:
    """QLinearReduceMean, in its operand's type."""
    source = required(node, 0)
    return (TensorType(dtype_of(source), _reduced(node, shape_of(source))),)


def reduce_sum(node: Node) -> Sequence[Type | None]:
    """ReduceSumInteger, in the 32-bit type of the same sign."""
    source = required(node, 0)
    dtype = dtype_of(source)
    wide = None if dtype is None else UINT32 if dtype.kind == "uint" else INT32
    return (TensorType(wide, _reduced(node, shape_of(source))),)


def _reduced(node: Node, x: Shape | None) -> Shape | None:
    if x is None:
        return None
    axes = {axis_in(axis, len(x)) for axis in node.ints_attr("axes")} or set(range(len(x)))
    if node.int_attr("keepdims", 1):
        return tuple(1 if i in axes else extent for i, extent in enumerate(x))
    return tuple(extent for i, extent in enumerate(x) if i not in axes)


def mul_integer(node: Node) -> Sequence[Type | None]:
    return (TensorType(INT32, broadcast_inputs((required(node, 0), required(node, 2)))),)


def where(node: Node) -> Sequence[Type | None]:
    """QLinearWhere."""
    values = (required(node, 0), required(node, 1), required(node, 4))
    return (TensorType(dtype_of(values[1]), broadcast_inputs(values)),)


def concat(node: Node) -> Sequence[Type | None]:
    """QLinearConcat: tensors at inputs 2, 5, 8 and so on."""
    dtype = dtype_of(node.input(1))
    shapes = [shape_of(node.input(i)) for i in range(2, len(node.inputs), 3)]
    if not shapes or shapes[0] is None:
        return (TensorType(dtype),)
    result: list[Dim] = list(shapes[0])
    axis = axis_in(node.int_attr("axis", 0), len(result))
    for shape in shapes[1:]:
        if shape is None or len(shape) != len(result):
            return (TensorType(dtype),)
        more, here = shape[axis], result[axis]
        result[axis] = None if more is None or here is None else here + more
    return (TensorType(dtype, tuple(result)),)
