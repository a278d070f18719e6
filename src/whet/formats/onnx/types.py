"""TypeProto to and from the graph's types."""

from __future__ import annotations

import onnx

from whet import dtypes
from whet.dtypes import DType
from whet.errors import InvalidGraph
from whet.formats.onnx.strings import loose_text
from whet.graph.dims import Dim, Shape, symbol
from whet.graph.types import MapType, OptionalType, SequenceType, TensorType, Type

_NAMELESS = frozenset({"None", "?"})
"""Names that exporters give to every dimension they do not know: no two of them need be equal."""


def element_type(code: int, value: str) -> DType | None:
    """The element type with ONNX's `code` (0: unknown). Raises InvalidGraph for a code that ONNX does not have."""
    if code == 0:
        return None
    found = dtypes.BY_CODE.get(code)
    if found is None:
        raise InvalidGraph(
            "unknown element type", value=value, found=f"data type {code}", expected=f"1 to {max(dtypes.BY_CODE)}"
        )
    return found


def decode_type(proto: onnx.TypeProto, value: str) -> Type | None:
    """The type that `proto` states, or None when it states nothing."""
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        return _tensor(proto.tensor_type, value, sparse=False)
    if kind == "sparse_tensor_type":
        return _tensor(proto.sparse_tensor_type, value, sparse=True)
    if kind == "sequence_type":
        return SequenceType(decode_type(proto.sequence_type.elem_type, value))
    if kind == "optional_type":
        return OptionalType(decode_type(proto.optional_type.elem_type, value))
    if kind == "map_type":
        key = element_type(proto.map_type.key_type, value)
        if key is None:
            raise InvalidGraph("a map type without a key type", value=value)
        return MapType(key, decode_type(proto.map_type.value_type, value))
    if kind is None:
        return None
    raise InvalidGraph("unknown kind of type", value=value, found=kind, expected="tensor, sequence, optional or map")


def encode_type(kind: Type | None) -> onnx.TypeProto:
    """The proto that states `kind`; an empty one for None."""
    proto = onnx.TypeProto()
    if isinstance(kind, TensorType):
        target = proto.sparse_tensor_type if kind.sparse else proto.tensor_type
        target.elem_type = kind.dtype.onnx_code if kind.dtype is not None else 0
        if kind.shape is not None:
            target.shape.SetInParent()
            for dim in kind.shape:
                _encode_dim(target.shape.dim.add(), dim)
    elif isinstance(kind, SequenceType):
        proto.sequence_type.elem_type.CopyFrom(encode_type(kind.element))
    elif isinstance(kind, OptionalType):
        proto.optional_type.elem_type.CopyFrom(encode_type(kind.element))
    elif isinstance(kind, MapType):
        proto.map_type.key_type = kind.key.onnx_code
        proto.map_type.value_type.CopyFrom(encode_type(kind.value))
    return proto


def _tensor(proto: onnx.TypeProto.Tensor | onnx.TypeProto.SparseTensor, value: str, *, sparse: bool) -> TensorType:
    shape: Shape | None = None
    if proto.HasField("shape"):
        shape = tuple(_decode_dim(d) for d in proto.shape.dim)
    return TensorType(element_type(proto.elem_type, value), shape, sparse)


def _decode_dim(proto: onnx.TensorShapeProto.Dimension) -> Dim:
    kind = proto.WhichOneof("value")
    if kind == "dim_value":
        # Exporters write -1 (and other negatives) for "not known".
        return int(proto.dim_value) if proto.dim_value >= 0 else None
    if kind == "dim_param" and proto.dim_param and proto.dim_param not in _NAMELESS:
        return symbol(loose_text(proto.dim_param))
    return None


def _encode_dim(proto: onnx.TensorShapeProto.Dimension, dim: Dim) -> None:
    if isinstance(dim, int):
        proto.dim_value = dim
    elif dim is not None:
        proto.dim_param = str(dim)
