"""Node attributes to and from AttributeProto, graphs excepted (the builder and the writer make those)."""

from __future__ import annotations

from typing import Any, cast

import onnx

from whet.errors import InvalidGraph
from whet.formats.onnx.tensors import TensorReader, encode_tensor
from whet.formats.onnx.types import decode_type, encode_type
from whet.formats.onnx.wire import Payloads
from whet.graph import Attribute, MapType, OptionalType, SequenceType, TensorData, TensorType

_A = onnx.AttributeProto
FIELDS: dict[int, str] = {
    _A.FLOAT: "f", _A.INT: "i", _A.STRING: "s", _A.TENSOR: "t", _A.GRAPH: "g", _A.SPARSE_TENSOR: "sparse_tensor",
    _A.TYPE_PROTO: "tp", _A.FLOATS: "floats", _A.INTS: "ints", _A.STRINGS: "strings", _A.TENSORS: "tensors",
    _A.GRAPHS: "graphs", _A.SPARSE_TENSORS: "sparse_tensors", _A.TYPE_PROTOS: "type_protos",
}  # fmt: skip
"""The field that holds each attribute type's value."""
_SINGLE = ("f", "i", "s", "t", "g", "sparse_tensor", "tp")


def type_name(code: int) -> str:
    """An attribute type as messages write it: `INTS`."""
    return str(_A.AttributeType.Name(code)) if code in _A.AttributeType.values() else f"type {code}"


def attribute_kind(proto: onnx.AttributeProto, node: str) -> int:
    """The attribute's type, told from its content where old writers left it out. Raises InvalidGraph."""
    kind = int(proto.type)
    if kind == _A.UNDEFINED:
        found = [code for code, field in FIELDS.items() if _holds(proto, field)]
        if len(found) == 1:
            return found[0]
        raise InvalidGraph("an attribute without a type", node=node, value=proto.name)
    field = FIELDS.get(kind)
    if field is None:
        raise InvalidGraph("an attribute of an unknown type", node=node, value=proto.name, found=f"type {kind}")
    if not _holds(proto, field):
        other = next((code for code, name in FIELDS.items() if name != field and _holds(proto, name)), None)
        if other is not None or field in ("t", "g", "sparse_tensor", "tp"):
            raise InvalidGraph(
                "an attribute whose content is not of its type",
                node=node,
                value=proto.name,
                found="nothing" if other is None else type_name(other),
                expected=type_name(kind),
            )
    return kind


def decode_attribute(proto: onnx.AttributeProto, kind: int, reader: TensorReader, node: str) -> Attribute:
    """The Python value of an attribute that holds no graph."""
    name = proto.name
    where = f"{node}.{name}"
    if kind == _A.INT:
        return int(proto.i)
    if kind == _A.INTS:
        return tuple(proto.ints)
    if kind == _A.FLOAT:
        return float(proto.f)
    if kind == _A.FLOATS:
        return tuple(proto.floats)
    if kind == _A.STRING:
        return _text(proto.s)
    if kind == _A.STRINGS:
        texts = tuple(_text(t) for t in proto.strings)
        # One type for all: a single element that is not text makes all of them bytes.
        decoded = tuple(t for t in texts if isinstance(t, str))
        return decoded if len(decoded) == len(texts) else tuple(bytes(t) for t in proto.strings)
    if kind == _A.TENSOR:
        return reader.dense(proto.t, where)
    if kind == _A.TENSORS:
        return tuple(reader.dense(t, where) for t in proto.tensors)
    if kind == _A.SPARSE_TENSOR:
        return reader.sparse(proto.sparse_tensor, where)
    if kind == _A.SPARSE_TENSORS:
        return tuple(reader.sparse(t, where) for t in proto.sparse_tensors)
    protos = [proto.tp] if kind == _A.TYPE_PROTO else list(proto.type_protos)
    found = [decode_type(p, where) for p in protos]
    types = tuple(t for t in found if t is not None)
    if len(types) != len(found):
        raise InvalidGraph("an attribute that states no type", node=node, value=name)
    return types[0] if kind == _A.TYPE_PROTO else types


def encode_attribute(
    name: str, value: Attribute, payloads: Payloads | None, kind: int | None = None
) -> onnx.AttributeProto:
    """The proto of an attribute that holds no graph. `kind` is its type where an empty tuple does not tell."""
    proto = onnx.AttributeProto(name=name)
    if isinstance(value, bool | int):
        proto.type, proto.i = _A.INT, int(value)
    elif isinstance(value, float):
        proto.type, proto.f = _A.FLOAT, value
    elif isinstance(value, str | bytes):
        proto.type, proto.s = _A.STRING, _bytes(value)
    elif isinstance(value, TensorData):
        proto.type = _A.TENSOR
        proto.t.CopyFrom(encode_tensor(value, name, payloads))
    elif isinstance(value, TensorType | SequenceType | OptionalType | MapType):
        proto.type = _A.TYPE_PROTO
        proto.tp.CopyFrom(encode_type(value))
    elif isinstance(value, tuple):
        _encode_tuple(proto, value, payloads, kind)
    else:
        raise TypeError(f"attribute {name} cannot be written: {type(value).__name__}")
    return proto


def _encode_tuple(
    proto: onnx.AttributeProto, value: tuple[Any, ...], payloads: Payloads | None, kind: int | None
) -> None:
    if not value:
        proto.type = cast(Any, kind if kind is not None and FIELDS.get(kind, "f") not in _SINGLE else _A.INTS)
    elif all(isinstance(v, int) for v in value):
        proto.type = _A.INTS
        proto.ints.extend(value)
    elif all(isinstance(v, int | float) for v in value):
        proto.type = _A.FLOATS
        proto.floats.extend(value)
    elif all(isinstance(v, str | bytes) for v in value):
        proto.type = _A.STRINGS
        proto.strings.extend(_bytes(v) for v in value)
    elif all(isinstance(v, TensorData) for v in value):
        proto.type = _A.TENSORS
        proto.tensors.extend(encode_tensor(v, "", payloads) for v in value)
    elif all(isinstance(v, TensorType | SequenceType | OptionalType | MapType) for v in value):
        proto.type = _A.TYPE_PROTOS
        proto.type_protos.extend(encode_type(v) for v in value)
    else:
        raise TypeError(f"attribute {proto.name} cannot be written: {value!r}")


def _holds(proto: onnx.AttributeProto, field: str) -> bool:
    return bool(proto.HasField(field)) if field in _SINGLE else len(getattr(proto, field)) > 0


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
