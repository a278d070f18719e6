"""Inference for element-wise operators, casts and selections."""

from __future__ import annotations

from collections.abc import Sequence

from whet.dtypes import BOOL, FLOAT32
from whet.graph import Node, TensorType, Type
from whet.ops.common import (
    attribute_dtype,
    axis_in,
    broadcast_inputs,
    common_dtype,
    dtype_of,
    required,
    shape_of,
    tensor,
)


def same(node: Node) -> Sequence[Type | None]:
    """The first input's type, for unary operators and Identity."""
    return (required(node, 0).type,)


def boolean(node: Node) -> Sequence[Type | None]:
    """Bool in the first input's shape (IsNaN, IsInf)."""
    return (TensorType(BOOL, shape_of(required(node, 0))),)


def broadcasting(node: Node) -> Sequence[Type | None]:
    """All inputs broadcast; one element type (Add, Max, ...)."""
    inputs = node.inputs
    required(node, 0)
    first = inputs[0]
    assert first is not None
    if len(inputs) == 1:
        return (first.type,)
    return (TensorType(common_dtype(inputs), broadcast_inputs(inputs)),)


def comparing(node: Node) -> Sequence[Type | None]:
    """Both inputs broadcast; result bool."""
    common_dtype(node.inputs)
    return (TensorType(BOOL, broadcast_inputs(node.inputs)),)


def power(node: Node) -> Sequence[Type | None]:
    """Broadcast; the element type of the first input (Pow, BitShift, PRelu)."""
    return (TensorType(dtype_of(required(node, 0)), broadcast_inputs(node.inputs)),)


def where(node: Node) -> Sequence[Type | None]:
    return (TensorType(common_dtype(node.inputs[1:]), broadcast_inputs(node.inputs)),)


def cast(node: Node) -> Sequence[Type | None]:
    return (TensorType(attribute_dtype(node, "to", None), shape_of(required(node, 0))),)


def cast_like(node: Node) -> Sequence[Type | None]:
    return (TensorType(dtype_of(required(node, 1)), shape_of(required(node, 0))),)


def bit_cast(node: Node) -> Sequence[Type | None]:
    return (TensorType(attribute_dtype(node, "to", None), shape_of(required(node, 0))),)


def dropout(node: Node) -> Sequence[Type | None]:
    return (required(node, 0).type, TensorType(BOOL, shape_of(required(node, 0))))


def random_like(node: Node) -> Sequence[Type | None]:
    """The shape of the input; the element type of attribute `dtype`, else the input's."""
    source = required(node, 0)
    return (TensorType(attribute_dtype(node, "dtype", dtype_of(source)), shape_of(source)),)


def random_shape(node: Node) -> Sequence[Type | None]:
    return (TensorType(attribute_dtype(node, "dtype", FLOAT32), node.ints_attr("shape")),)


def softmax(node: Node) -> Sequence[Type | None]:
    """Softmax, LogSoftmax, Hardmax: the input's type; the axis must exist."""
    from_input = tensor(required(node, 0))
    if from_input is not None and from_input.shape is not None:
        axis_in(node.int_attr("axis", -1), len(from_input.shape))
    return (from_input,)
