"""Inference for sequences and optionals."""

from __future__ import annotations

from collections.abc import Sequence

from whet.dtypes import BOOL, FLOAT32, INT64
from whet.graph import Node, OptionalType, SequenceType, TensorType, Type
from whet.graph.dims import Dim
from whet.ops.common import attribute_dtype, axis_in, dtype_of, element_type, required, shape_of
from whet.ops.merge import join


def construct(node: Node) -> Sequence[Type | None]:
    element = required(node, 0).type
    for value in node.inputs[1:]:
        element = join(element, value.type if value is not None else None)
    return (SequenceType(element),)


def empty(node: Node) -> Sequence[Type | None]:
    return (SequenceType(TensorType(attribute_dtype(node, "dtype", FLOAT32))),)


def at(node: Node) -> Sequence[Type | None]:
    return (element_type(required(node, 0)),)


def insert(node: Node) -> Sequence[Type | None]:
    source, added = required(node, 0), required(node, 1).type
    # An empty sequence says nothing of the shapes that it will hold.
    empty_source = source.producer is not None and source.producer.op == "SequenceEmpty"
    return (SequenceType(added if empty_source else join(element_type(source), added)),)


def erase(node: Node) -> Sequence[Type | None]:
    return (required(node, 0).type,)


def length(node: Node) -> Sequence[Type | None]:
    return (TensorType(INT64, ()),)


def split_to(node: Node) -> Sequence[Type | None]:
    source = required(node, 0)
    x = shape_of(source)
    if x is None:
        return (SequenceType(TensorType(dtype_of(source))),)
    axis = axis_in(node.int_attr("axis", 0), len(x))
    if node.input(1) is None and not node.int_attr("keepdims", 1):
        return (SequenceType(TensorType(dtype_of(source), (*x[:axis], *x[axis + 1 :]))),)
    part: Dim = 1 if node.input(1) is None else None
    return (SequenceType(TensorType(dtype_of(source), (*x[:axis], part, *x[axis + 1 :]))),)


def concat_from(node: Node) -> Sequence[Type | None]:
    element = element_type(required(node, 0))
    if not isinstance(element, TensorType):
        return (None,)
    x = element.shape
    if x is None:
        return (TensorType(element.dtype),)
    if node.int_attr("new_axis", 0):
        axis = axis_in(node.int_attr("axis", 0), len(x) + 1)
        return (TensorType(element.dtype, (*x[:axis], None, *x[axis:])),)
    axis = axis_in(node.int_attr("axis", 0), len(x))
    return (TensorType(element.dtype, (*x[:axis], None, *x[axis + 1 :])),)


def optional(node: Node) -> Sequence[Type | None]:
    value = node.input(0)
    if value is not None:
        return (OptionalType(value.type),)
    declared = node.attributes.get("type")
    return (OptionalType(declared if isinstance(declared, (TensorType, SequenceType)) else None),)


def optional_get(node: Node) -> Sequence[Type | None]:
    kind = required(node, 0).type
    return (kind.element if isinstance(kind, OptionalType) else kind,)


def optional_has(node: Node) -> Sequence[Type | None]:
    return (TensorType(BOOL, ()),)
