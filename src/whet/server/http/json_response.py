"""An InferResponse as a JSON body, with or without binary tensors behind it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import orjson

from whet.errors import InvalidArgument
from whet.server.datatypes import BY_NAME, BYTES
from whet.server.http.large_json import write_list
from whet.server.request import InferResponse, OutputTensor
from whet.server.tensor_bytes import to_bytes

_HALVES = (BY_NAME["FP16"], BY_NAME["BF16"])

LONG = 1 << 16
"""Elements from which a list is written in steps."""

MARK = os.urandom(12).hex()
"""Stands for a long list until it is written. No answer can hold it: it is another text in each process."""


def is_long(response: InferResponse, binary: Mapping[str, bool], all_binary: bool) -> bool:
    """Whether a list of the JSON is written in steps, which pause: then not on the event loop."""
    return any(
        t.array.size >= LONG and t.datatype is not BYTES and not binary.get(t.name, all_binary)
        for t in response.outputs
    )


def write_response(response: InferResponse, binary: Mapping[str, bool], all_binary: bool) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part where binary tensors follow.

    Numbers that JSON does not have (NaN and infinities) are written as null; the binary form keeps them.
    """
    parts: list[bytes | memoryview] = []
    outputs = []
    long: list[Any] = []
    for tensor in response.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype.name, "shape": tensor.array.shape}
        if binary.get(tensor.name, all_binary):
            raw = to_bytes(tensor)
            entry["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            data = _data(tensor)
            if tensor.array.size >= LONG and tensor.datatype is not BYTES:
                long.append(data)
                data = MARK
            entry["data"] = data
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = response.parameters
    document["outputs"] = outputs
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if long:
        between = head.split(orjson.dumps(MARK))
        head = b"".join([*chain.from_iterable(zip(between, map(write_list, long), strict=False)), between[-1]])
    if not parts:
        return head, None
    return b"".join((head, *parts)), len(head)


def _data(tensor: OutputTensor) -> Any:
    array = tensor.array
    kind = tensor.datatype
    if kind is BYTES:
        return [_text(e, tensor.name) for e in array.reshape(-1)]
    if kind in _HALVES:
        array = array.astype(np.float32)
    return array.ravel()


def _text(element: Any, name: str) -> str:
    if isinstance(element, str):
        return element
    try:
        return str(bytes(element), "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            "the output is not text, which JSON needs", value=name, hint="Ask for it as binary data."
        ) from error
