"""Widening of half and single precision floats to float64 (`compute_dtype=float64`)."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from whet import dtypes
from whet.errors import NotImplemented
from whet.graph import Node, TensorData, TensorType, Value
from whet.graph.types import OptionalType, SequenceType, Type

_NARROW = frozenset(np.dtype(t) for t in (np.float16, np.float32, ml_dtypes.bfloat16))
_NARROW_CODES = frozenset((dtypes.FLOAT16.onnx_code, dtypes.FLOAT32.onnx_code, dtypes.BFLOAT16.onnx_code))

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision", "precision")
"""Integer attributes whose value is an element type."""


def widen_value(value: Any) -> Any:
    """`value` with every float16, bfloat16 and float32 array in it as float64."""
    if isinstance(value, np.ndarray):
        return value.astype(np.float64) if value.dtype in _NARROW else value
    if isinstance(value, list):
        return [widen_value(item) for item in value]
    return value


def widen_node(node: Node) -> Node:
    """A copy of `node` whose type attributes and tensors are widened; the same node when none is.

    The copy stands outside the graph, over values of its own: it serves to bind a kernel only.
    """
    changed: dict[str, Any] = {}
    for name, value in node.attributes.items():
        if name in _TYPE_ATTRIBUTES and value in _NARROW_CODES and node.op != "BitCast":
            changed[name] = dtypes.FLOAT64.onnx_code
        elif isinstance(value, TensorData) and value.dtype.numpy in _NARROW:
            changed[name] = TensorData.from_array(value.numpy().astype(np.float64))
    if not changed:
        return node
    return Node(
        node.op_type,
        [None if v is None else Value(v.name, v.type) for v in node.inputs],
        [Value(v.name, v.type) for v in node.outputs],
        {**node.attributes, **changed},
        domain=node.domain,
        name=node.name,
    )


def widen_type(type_: Type | None) -> Type | None:
    """The widened form of a declared type."""
    if isinstance(type_, TensorType):
        if type_.dtype is not None and type_.dtype.numpy in _NARROW:
            return TensorType(dtypes.FLOAT64, type_.shape)
        return type_
    if isinstance(type_, SequenceType):
        return SequenceType(widen_type(type_.element))
    if isinstance(type_, OptionalType):
        return OptionalType(widen_type(type_.element))
    return type_


def bit_cast_source(node: Node) -> np.dtype[Any] | None:
    """The element type that the input of a BitCast has in the model, where widening changes it."""
    value = node.input(0)
    type_ = value.type if value is not None else None
    if not isinstance(type_, TensorType) or type_.dtype is None:
        raise NotImplemented("BitCast in float64 needs the declared type of its input", node=node.label)
    return type_.dtype.numpy if type_.dtype.numpy in _NARROW else None
