"""A model as bytes without its large weights, for a library that takes the weights' memory beside the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx

from whet.formats.onnx.wire import Payloads, restore
from whet.formats.onnx.write import Writer
from whet.graph import Model, TensorData


def to_bytes_detached(model: Model, opsets: Mapping[str, int] | None = None) -> tuple[bytes, dict[str, TensorData]]:
    """The model with external references in place of its large constants, and those constants by name.

    `opsets` fixes the version of each domain, by default chosen as `to_proto` does. Constants of 1 KiB and more are
    left out. The references name no file: the reader must be given every listed tensor. The model is not changed.
    Raises InvalidGraph as `to_proto` does.
    """
    payloads = Payloads()
    if opsets is not None:
        model = replace(model, opset_imports={**model.opset_imports, **opsets})
    writer = Writer(model, None if opsets is None else opsets.get(""), payloads)
    proto = writer.model()
    by_name = {name: value.data for value, name in writer.constants.items()}
    detached: dict[str, TensorData] = {}
    for tensor in proto.graph.initializer:
        payload = payloads.find(tensor.raw_data) if tensor.HasField("raw_data") else None
        data = by_name[tensor.name]
        if payload is None or data is None:
            continue
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", "detached"), ("offset", "0"), ("length", str(len(payload)))):
            tensor.external_data.add(key=key, value=text)
        detached[tensor.name] = data
    return _restored(proto, payloads), detached


def _restored(proto: onnx.ModelProto, payloads: Payloads) -> bytes:
    """The message's bytes with the tensors that are still lifted put back (those inside node attributes)."""
    pieces, _ = restore(memoryview(proto.SerializeToString()), payloads)
    return b"".join(pieces)
