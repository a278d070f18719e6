"""Inference for normalizations, reductions and recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence

from whet.dtypes import FLOAT32, INT64
from whet.errors import InvalidGraph
from whet.graph import Node, Shape, TensorType, Type
from whet.graph.dims import Dim
from whet.graph.types import format_shape
from whet.ops.common import attribute_dtype, axes_in, axis_in, dtype_of, required, shape_of, static_ints, unknown
from whet.ops.movement import vector_length


def batch_norm(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    x = shape_of(source)
    channels = x[1] if x is not None and len(x) > 1 else None
    for i in range(1, min(len(node.inputs), 5)):
        shape = shape_of(node.input(i))
        if shape is None or channels is None:
            continue
        if len(shape) != 1 or (isinstance(shape[0], int) and isinstance(channels, int) and shape[0] != channels):
            raise InvalidGraph(
                f"input {i} of BatchNormalization has one number a channel",
                found=f"{format_shape(shape)} for input {format_shape(x)}",
                expected=f"[{channels}]",
            )
    statistic = TensorType(dtype_of(node.input(3)), (channels,))
    return (source.type, statistic, statistic)


def layer_norm(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    x = shape_of(source)
    stash = attribute_dtype(node, "stash_type", FLOAT32)
    if x is None:
        return (source.type, TensorType(stash), TensorType(stash))
    axis = axis_in(node.int_attr("axis", -1), len(x))
    reduced = TensorType(stash, (*x[:axis], *(1,) * (len(x) - axis)))
    return (source.type, reduced, reduced)


def reduce(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    x, keep = shape_of(source), node.int_attr("keepdims", 1) != 0
    dtype = dtype_of(source)
    axes_input = node.input(1)
    if axes_input is None:
        if node.int_attr("noop_with_empty_axes", 0):
            return (source.type,)
        return (TensorType(dtype, () if not keep else None if x is None else (1,) * len(x)),)
    given = static_ints(axes_input)
    if x is None:
        return (TensorType(dtype),)
    if given is None:
        count = vector_length(axes_input)
        return (TensorType(dtype, unknown(len(x) if keep else None if not count else len(x) - count)),)
    if not given:
        if node.int_attr("noop_with_empty_axes", 0):
            return (source.type,)
        given = tuple(range(len(x)))
    return (TensorType(dtype, reduced_shape(x, axes_in(given, len(x)), keep)),)


def reduced_shape(x: Shape, axes: Sequence[int], keep: bool) -> Shape:
    if keep:
        return tuple(1 if i in axes else d for i, d in enumerate(x))
    return tuple(d for i, d in enumerate(x) if i not in axes)


def arg_reduce(node: Node) -> Sequence[Type | None]:
    x = shape_of(required(node, 0))
    if x is None:
        return (TensorType(INT64),)
    axis = axis_in(node.int_attr("axis", 0), len(x))
    return (TensorType(INT64, reduced_shape(x, (axis,), node.int_attr("keepdims", 1) != 0)),)


def recurrent(node: Node) -> Sequence[Type | None]:
    """LSTM, GRU, RNN: all outputs, then the last hidden (and cell) state."""
    source = required(node, 0)
    x, weight = shape_of(source), shape_of(required(node, 2))
    if x is not None and len(x) != 3:
        raise InvalidGraph("a recurrent layer's input has rank 3", found=format_shape(x))
    directions = 2 if node.str_attr("direction", "forward") == "bidirectional" else 1
    hidden: Dim = node.int_attr("hidden_size", 0) or (weight[-1] if weight is not None and weight else None)
    by_batch = node.int_attr("layout", 0) == 1
    first, second = (None, None) if x is None else (x[0], x[1])
    steps, batch = (second, first) if by_batch else (first, second)
    dtype = dtype_of(source)
    every: Shape
    last: Shape
    if by_batch:
        every, last = (batch, steps, directions, hidden), (batch, directions, hidden)
    else:
        every, last = (steps, directions, batch, hidden), (directions, batch, hidden)
    state = TensorType(dtype, last)
    return (TensorType(dtype, every), state, state)
