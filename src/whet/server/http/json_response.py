"""An InferResponse as a JSON body, with or without binary tensors behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from whet.errors import InvalidArgument
from whet.server.datatypes import BYTES
from whet.server.request import InferResponse, OutputTensor
from whet.server.tensor_bytes import to_bytes


def write_response(response: InferResponse, binary: Mapping[str, bool], all_binary: bool) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part where binary tensors follow.

    Numbers that JSON does not have (NaN and infinities) are written as null; the binary form keeps them.
    """
    parts: list[bytes | memoryview] = []
    outputs = []
    for tensor in response.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype.name, "shape": tensor.array.shape}
        if binary.get(tensor.name, all_binary):
            raw = to_bytes(tensor)
            entry["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            entry["data"] = _data(tensor)
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = response.parameters
    document["outputs"] = outputs
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not parts:
        return head, None
    return b"".join((head, *parts)), len(head)


def _data(tensor: OutputTensor) -> Any:
    array = tensor.array
    if tensor.datatype is BYTES:
        return [_text(e, tensor.name) for e in array.reshape(-1)]
    if array.dtype.kind == "V" or (array.dtype.itemsize == 2 and tensor.datatype.dtype.is_float):
        array = array.astype(np.float32)
    return np.ascontiguousarray(array).reshape(-1)


def _text(element: Any, name: str) -> str:
    if isinstance(element, str):
        return element
    try:
        return str(bytes(element), "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            "the output is not text, which JSON needs", value=name, hint="Ask for it as binary data."
        ) from error
