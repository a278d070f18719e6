"""Single tensors in files: the `.pb` test data that ONNX's own models come with."""

from __future__ import annotations

import onnx
from google.protobuf.message import DecodeError

from whet.config import DEFAULT_LIMITS, Limits
from whet.errors import InvalidProtobuf
from whet.formats.onnx.external import ExternalData
from whet.formats.onnx.tensors import TensorReader
from whet.formats.onnx.wire import Payloads
from whet.graph.tensor import TensorData


def read_tensor(data: bytes, file: str, limits: Limits = DEFAULT_LIMITS) -> TensorData:
    """The tensor that a serialized TensorProto holds; `file` names it in errors. External data is refused."""
    proto = onnx.TensorProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise InvalidProtobuf("the file holds no serialized tensor", file=file, found=str(error)) from error
    return TensorReader(Payloads(), ExternalData(None, file), limits).dense(proto, proto.name or file)
