"""A model as bytes without its large weights, for a library that takes the weights' memory beside the model."""

from __future__ import annotations

import onnx

from whet import dtypes
from whet.formats.onnx.write import to_proto
from whet.graph import Model, TensorData, Value

DETACH_BYTES = 1024
"""Constants of at least this many bytes are left out of the message."""


def to_bytes_detached(model: Model, detach_bytes: int = DETACH_BYTES) -> tuple[bytes, dict[str, TensorData]]:
    """The model serialized with external references in place of its large constants, and those constants by name.

    The references name no file: the reader must be given every listed tensor. Large constants without a name, or with
    another's, are given one; otherwise the model is left as it was.
    """
    candidates: dict[str, tuple[Value, TensorData]] = {}
    for value in model.graph.constants():
        data = value.data
        if data is not None and data.dtype is not dtypes.STRING and data.nbytes >= detach_bytes:
            if not value.name or value.name in candidates:
                value.name = model.names.fresh(value.name or "weight")
            candidates[value.name] = (value, data)
    for value, data in candidates.values():
        value.data = TensorData.from_raw(data.dtype, data.shape, memoryview(b""))
    try:
        proto = to_proto(model)
    finally:
        for value, data in candidates.values():
            value.data = data
    detached: dict[str, TensorData] = {}
    for tensor in proto.graph.initializer:
        if tensor.name in candidates:
            data = candidates[tensor.name][1]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, text in (("location", "detached"), ("offset", "0"), ("length", str(data.nbytes))):
                tensor.external_data.add(key=key, value=text)
            detached[tensor.name] = data
    return proto.SerializeToString(), detached
