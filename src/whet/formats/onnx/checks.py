"""A node against its operator's schema: existence, arity, attribute names and types."""

from __future__ import annotations

import onnx

from whet.errors import InvalidGraph, did_you_mean
from whet.formats.onnx.attribute_checks import check_attributes
from whet.formats.onnx.attributes import type_name
from whet.formats.onnx.schemas import KNOWN_DOMAINS, Signature, newest, operator_names, signature
from whet.graph import Attribute, Graph, Node, TensorData

_A = onnx.AttributeProto
_PLURAL: dict[int, int] = {
    _A.INT: _A.INTS, _A.FLOAT: _A.FLOATS, _A.STRING: _A.STRINGS, _A.TENSOR: _A.TENSORS, _A.GRAPH: _A.GRAPHS,
    _A.TYPE_PROTO: _A.TYPE_PROTOS,
}  # fmt: skip
_EMPTY_TUPLES = frozenset({_A.INTS, _A.FLOATS, _A.STRINGS, _A.TENSORS, _A.GRAPHS, _A.SPARSE_TENSORS, _A.TYPE_PROTOS})


def check_node(node: Node, version: int) -> None:
    """Raise InvalidGraph when an operator that onnx defines is used against its schema at `version` of its domain.

    Nodes of other domains are left to the providers.
    """
    if node.domain not in KNOWN_DOMAINS:
        return
    schema = signature(node.domain, node.op_type, version)
    if schema is None:
        raise _unknown(node, version)
    _check_count(node, "inputs", len(node.inputs), schema.least_inputs, schema.most_inputs)
    _check_count(node, "outputs", len(node.outputs), schema.least_outputs, schema.most_outputs)
    for index, value in enumerate(node.inputs):
        if value is None and index < len(schema.required_inputs) and schema.required_inputs[index]:
            raise InvalidGraph("a required input is left out", node=node.label, value=schema.input_names[index])
    if node.attributes or schema.required:
        _check_attributes(node, schema)


def _check_attributes(node: Node, schema: Signature) -> None:
    for name, value in node.attributes.items():
        expected = schema.attributes.get(name)
        if expected is None:
            raise InvalidGraph(
                "an attribute that the operator does not have",
                node=node.label,
                value=name,
                found=f"{node.op}-{schema.since}",
                expected=f"one of {sorted(schema.attributes)}" if schema.attributes else "no attributes",
                hint=did_you_mean(name, schema.attributes),
            )
        if not _is_kind(value, expected):
            raise InvalidGraph(
                "an attribute of the wrong type",
                node=node.label,
                value=name,
                found=type_name(kind_of(value)),
                expected=type_name(expected),
            )
    for name in schema.required:
        if name not in node.attributes:
            raise InvalidGraph("a required attribute is missing", node=node.label, value=name)
    check_attributes(node)


def _check_count(node: Node, what: str, found: int, least: int, most: int | None) -> None:
    if found < least or (most is not None and found > most):
        expected = f"{least}" if most == least else f"at least {least}" if most is None else f"{least} to {most}"
        raise InvalidGraph(f"wrong number of {what}", node=node.label, found=found, expected=expected)


def _unknown(node: Node, version: int) -> InvalidGraph:
    later = newest(node.domain, node.op_type)
    domain = node.domain or "ai.onnx"
    if later is not None:
        first = later.since
        while first > 1 and signature(node.domain, node.op_type, first - 1) is not None:
            first -= 1
        return InvalidGraph(
            "an operator that this opset does not have yet",
            node=node.label,
            found=f"{domain} {version}",
            expected=f"{domain} {first} or later",
        )
    return InvalidGraph(
        "unknown operator",
        node=node.label,
        found=f"{node.op_type!r} in domain {domain}",
        hint=did_you_mean(node.op_type, operator_names(node.domain)),
    )


def kind_of(value: Attribute) -> int:
    """The AttributeProto type of an attribute's value (of an empty tuple: INTS)."""
    if isinstance(value, bool | int):
        return _A.INT
    if isinstance(value, float):
        return _A.FLOAT
    if isinstance(value, str | bytes):
        return _A.STRING
    if isinstance(value, TensorData):
        return _A.TENSOR
    if isinstance(value, Graph):
        return _A.GRAPH
    if isinstance(value, tuple):
        if not value:
            return _A.INTS
        # A tuple of whole floats written by hand may mix; the first float decides.
        first = next((v for v in value if isinstance(v, float)), value[0])
        return _PLURAL[kind_of(first)]
    return _A.TYPE_PROTO


def _is_kind(value: Attribute, expected: int) -> bool:
    if value == ():
        return expected in _EMPTY_TUPLES
    kind = kind_of(value)
    # Sparse tensors have been made dense.
    return kind == expected or (expected == _A.SPARSE_TENSOR and kind == _A.TENSOR)
