"""A JSON inference request, with or without binary tensors behind it, becomes an InferRequest."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import orjson

from whet.errors import InvalidArgument
from whet.server.datatypes import Datatype, datatype
from whet.server.http.json_elements import array_of
from whet.server.http.large_json import LARGE, NumberList, cut_lists
from whet.server.parameters import tensor_parameters
from whet.server.request import NO_PARAMETERS, Array, InferRequest, InputTensor, RequestedOutput
from whet.server.tensor_bytes import check_shape, from_bytes

MAX_DEPTH = 100


def _is_flat_enough(document: Any) -> bool:
    """Whether a document has at most MAX_DEPTH levels of lists and objects."""
    level = [document]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            parts = value.values() if type(value) is dict else value if type(value) is list else ()
            if not _NESTING.isdisjoint(map(type, parts)):
                inner += [part for part in parts if type(part) in _NESTING]
        if not inner:
            return True
        level = inner
    return False


_NESTING = frozenset((list, dict))
_NO_LISTS: Mapping[str, NumberList] = {}
_NOTHING = memoryview(b"")


def parse_json(body: bytes) -> dict[str, Any]:
    """The object that a body holds. Raises InvalidArgument for anything else."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument("the body is not valid JSON", found=str(error)) from error
    # Each level takes two bytes.
    if len(body) > 2 * MAX_DEPTH and body.count(b"[") + body.count(b"{") > MAX_DEPTH and not _is_flat_enough(document):
        raise InvalidArgument("the body is nested too deeply", expected=f"at most {MAX_DEPTH} levels")
    if not isinstance(document, dict):
        raise InvalidArgument("the body is not a JSON object", found=type(document).__name__)
    return document


def read_request(
    model: str, version: str, body: bytes | memoryview, header_bytes: int | None
) -> tuple[InferRequest, dict[str, bool], bool]:
    """The request; which outputs are wanted in binary (by name); and whether those that are not named are.

    `header_bytes`: the length of the JSON part where binary tensors follow it.
    """
    if header_bytes is None:
        head, rest = bytes(body), _NOTHING
    else:
        if not 0 <= header_bytes <= len(body):
            raise InvalidArgument(
                "Inference-Header-Content-Length is not in the body's range", found=header_bytes,
                expected=f"0 to {len(body)}",
            )  # fmt: skip
        view = memoryview(body)
        head, rest = bytes(view[:header_bytes]), view[header_bytes:]
    lists: Mapping[str, NumberList] = _NO_LISTS
    if len(head) >= LARGE:
        head, lists = cut_lists(head)
    document = parse_json(head)
    inputs_json = document.get("inputs")
    if not isinstance(inputs_json, list):
        raise InvalidArgument("`inputs` is a list of tensors", found=type(inputs_json).__name__)
    inputs = []
    at = 0
    for entry in inputs_json:
        tensor, at = _input(entry, rest, at, lists)
        inputs.append(tensor)
    if at != len(rest):
        raise InvalidArgument("binary data is left over behind the last tensor", found=f"{len(rest) - at} bytes")
    # What most requests do not have is not worth a call.
    given = document.get("parameters")
    parameters = NO_PARAMETERS if given is None else _parameters(given, "request")
    given = document.get("outputs")
    outputs, binary = ((), {}) if given is None else _outputs(given)
    request_id = document.get("id", "")
    if not isinstance(request_id, str):
        raise InvalidArgument("`id` is a string", found=type(request_id).__name__)
    request = InferRequest(model, inputs, version, request_id, outputs, parameters)
    return request, binary, parameters.get("binary_data_output") is True


def _parameters(given: Any, where: str) -> Mapping[str, Any]:
    if given is None:
        return NO_PARAMETERS
    if not isinstance(given, dict):
        raise InvalidArgument(f"`parameters` of a {where} is an object", found=type(given).__name__)
    return given


def _outputs(given: Any) -> tuple[tuple[RequestedOutput, ...], dict[str, bool]]:
    if not isinstance(given, list):
        raise InvalidArgument("`outputs` is a list", found=type(given).__name__)
    outputs, binary = [], {}
    for entry in given:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise InvalidArgument("an output is an object with a name", found=type(entry).__name__)
        parameters = _parameters(entry.get("parameters"), "requested output")
        tensor_parameters(parameters, name)
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise InvalidArgument("`classification` is a number of classes", value=name, found=classes)
        outputs.append(RequestedOutput(name, classes))
        if "binary_data" in parameters:
            binary[name] = parameters["binary_data"] is True
    return tuple(outputs), binary


def _input(entry: Any, rest: memoryview, at: int, lists: Mapping[str, NumberList]) -> tuple[InputTensor, int]:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise InvalidArgument("an input is an object with a name", found=type(entry).__name__)
    kind = datatype(entry.get("datatype"), name)
    extents = entry.get("shape")
    if not isinstance(extents, list):
        raise InvalidArgument("`shape` is a list of extents", value=name, found=type(extents).__name__)
    shape = check_shape(extents, name)
    parameters = entry.get("parameters")
    if parameters:
        tensor_parameters(_parameters(parameters, "tensor"), name)
        size = parameters.get("binary_data_size")
        if size is not None:
            if "data" in entry:
                raise InvalidArgument("an input has data and binary data", value=name)
            if type(size) is not int or not 0 <= size <= len(rest) - at:
                raise InvalidArgument(
                    "binary_data_size passes the end of the body",
                    value=name,
                    found=size,
                    expected=f"at most {len(rest) - at}",
                )
            return InputTensor(name, kind, from_bytes(rest[at : at + size], kind, shape, name)), at + size
    data = entry.get("data")
    if lists and type(data) is str and data in lists:
        return InputTensor(name, kind, lists[data].array(kind, shape, name)), at
    return InputTensor(name, kind, from_list(data, kind, shape, name)), at


def from_list(data: Any, kind: Datatype, shape: tuple[int, ...], name: str) -> Array:
    """A tensor of JSON data: a flat or nested list in row-major order."""
    if not isinstance(data, list):
        raise InvalidArgument("an input's `data` is a list", value=name, found=type(data).__name__)
    count = prod(shape)
    flat = _flat(data, name) if data and type(data[0]) is list else data
    if len(flat) != count:
        raise InvalidArgument(
            "the data does not fill the shape",
            value=name,
            found=f"{len(flat)} elements",
            expected=f"{count} for {list(shape)}",
        )
    return array_of(flat, kind, name).reshape(shape)


def _flat(data: list[Any], name: str) -> list[Any]:
    """The elements of nested lists, which must all be equally long at each depth."""
    while data and type(data[0]) is list:
        length = len(data[0])
        flat: list[Any] = []
        for part in data:
            if type(part) is not list or len(part) != length:
                raise InvalidArgument("the data's lists are ragged", value=name)
            flat += part
        data = flat
    return data
