"""Inference of rare operators by `onnx` itself."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx.defs
import onnx.shape_inference
from onnx.defs import SchemaError

from whet.formats.onnx import node_to_proto
from whet.formats.onnx.tensors import encode_tensor
from whet.formats.onnx.types import decode_type, encode_type
from whet.graph import Expr, Node, OptionalType, SequenceType, TensorType, Type

_SMALL_BYTES = 4096
"""Constants up to this size are shown to `onnx`, whose rules read shapes, axes and counts from them."""


def infer_with_onnx(node: Node) -> Sequence[Type | None]:
    """The outputs' types as `onnx` infers them, None where it cannot; never raises."""
    nothing: Sequence[Type | None] = (None,) * len(node.outputs)
    version = onnx.defs.onnx_opset_version() if node.domain == "" else 2**31 - 1
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except SchemaError:
        return nothing
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    symbols: dict[str, Expr] = {}
    # The written names: values without a name, or with one that another value has, get a new one.
    proto = node_to_proto(node)
    for value, name in zip(node.inputs, proto.input, strict=True):
        if value is None:
            continue
        if value.type is None:
            return nothing
        types[name] = encode_type(value.type)
        _collect(value.type, symbols)
        if value.data is not None and value.data.nbytes <= _SMALL_BYTES:
            data[name] = encode_tensor(value.data, name, None)
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=[onnx.helper.make_opsetid(node.domain, version)]
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, TypeError, ValueError):
        # What `onnx` cannot infer stays open: whether the node is right shows when it runs.
        return nothing
    return [_restore(decode_type(found[n], n), symbols) if n in found else None for n in proto.output]


def _collect(kind: Type | None, symbols: dict[str, Expr]) -> None:
    """Remember the expressions in a type by their text, which is how they pass through `onnx`."""
    if isinstance(kind, TensorType):
        for dim in kind.shape or ():
            if isinstance(dim, Expr):
                symbols[str(dim)] = dim
    elif isinstance(kind, (SequenceType, OptionalType)):
        _collect(kind.element, symbols)


def _restore(kind: Type | None, symbols: dict[str, Expr]) -> Type | None:
    if isinstance(kind, TensorType) and kind.shape is not None:
        shape = tuple(symbols.get(str(d)) if isinstance(d, Expr) else d for d in kind.shape)
        return TensorType(kind.dtype, shape, kind.sparse)
    if isinstance(kind, SequenceType):
        return SequenceType(_restore(kind.element, symbols))
    if isinstance(kind, OptionalType):
        return OptionalType(_restore(kind.element, symbols))
    return kind
