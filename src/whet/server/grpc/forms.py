"""Messages whose form was seen before are read and written without protobuf.

A client's requests differ in their tensors' bytes, and hardly in anything else: in a message as clients write it those
bytes come last. What goes before them, byte by byte, is the message's *form*. A message that begins as an earlier one
did, and is as long, says the same but for the bytes of its tensors: nothing of it has to be parsed or checked again.
Reading a small request takes a tenth of the time so, and a large tensor's bytes are used where they came in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.server.datatypes import BYTES, Datatype
from whet.server.request import Array, InferRequest, InferResponse, InputTensor, RequestedOutput

RAW_INPUT_CONTENTS = 7
RAW_OUTPUT_CONTENTS = 6
"""Field numbers of ModelInferRequest and ModelInferResponse."""

MOST_FORMS = 256
MOST_HEADER_BYTES = 1024
"""Longer ones are parsed each time, so that what is kept stays small whatever clients send."""

LARGE_BYTES = 1 << 15
"""Tensors from this size on are joined to their header without a copy of their own."""


@dataclass(frozen=True, slots=True)
class Part:
    """One input of a form: its bytes begin at `start`, and `before` is what stands between them and the last input's.

    `is_aligned`: elements may be read where they are.
    """

    name: str
    datatype: Datatype
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    count: int
    start: int
    end: int
    is_aligned: bool
    before: bytes


@dataclass(frozen=True, slots=True)
class Form:
    """What a request says beside its inputs' bytes."""

    header: bytes
    model: str
    version: str
    outputs: tuple[RequestedOutput, ...]
    parts: tuple[Part, ...]


class RequestForms:
    """The forms of requests without parameters whose inputs are raw bytes of fixed-size elements."""

    def __init__(self) -> None:
        self._forms: dict[tuple[int, bytes], Form] = {}

    def __len__(self) -> int:
        return len(self._forms)

    def read(self, content: bytes, received_ns: int) -> InferRequest | None:
        """The request in these bytes; None where their form is not known."""
        form = self._forms.get(_key(content))
        if form is None or not content.startswith(form.header):
            return None
        inputs = []
        for part in form.parts:
            start = part.start
            if part.before and content[start - len(part.before) : start] != part.before:
                return None
            if part.is_aligned:
                array: Array = np.frombuffer(content, part.dtype, part.count, start)
            else:
                array = np.frombuffer(content[start : part.end], part.dtype)
            inputs.append(InputTensor(part.name, part.datatype, array.reshape(part.shape)))
        return InferRequest(form.model, inputs, form.version, "", form.outputs, received_ns=received_ns)

    def learn(self, content: bytes, request: InferRequest) -> None:
        """Remember the form of a request that was read from these bytes by other means, if it is one to remember."""
        # An id is another in each request, as a rule.
        if request.parameters or request.id or any(t.datatype is BYTES for t in request.inputs):
            return
        places = raw_places(content)
        if not places or len(places) != len(request.inputs) or places[0][0] > MOST_HEADER_BYTES:
            return
        parts, end = [], places[0][0]
        for tensor, (start, stop) in zip(request.inputs, places, strict=True):
            array = tensor.array
            if stop - start != array.nbytes or start == stop:
                return
            parts.append(Part(
                tensor.name, tensor.datatype, array.dtype, array.shape, array.size, start, stop,
                start % array.itemsize == 0, content[end:start],
            ))  # fmt: skip
            end = stop
        if len(self._forms) >= MOST_FORMS:
            self._forms.clear()
        header = content[: places[0][0]]
        self._forms[_key(content)] = Form(header, request.model, request.version, request.outputs, tuple(parts))


def _key(content: bytes) -> tuple[int, bytes]:
    # The model's name stands first; so models whose requests are equally long do not drive each other out.
    return len(content), content[:24]


def raw_places(content: bytes) -> list[tuple[int, int]]:
    """Where the bytes of a request's inputs begin and end, if they are the last fields of the message; else none."""
    places: list[tuple[int, int]] = []
    for number, start, end in fields(content):
        if number == RAW_INPUT_CONTENTS:
            places.append((start, end))
        elif places:
            return []
    return places if places and places[-1][1] == len(content) else []


def fields(content: bytes) -> Iterator[tuple[int, int, int]]:
    """The fields of a message that was parsed: the number of one that holds bytes, else 0, and where the value begins
    and ends. Ends at a group."""
    at, size = 0, len(content)
    while at < size:
        tag, at = _varint(content, at)
        match tag & 7:
            case 0:
                _, end = _varint(content, at)
            case 1:
                end = at + 8
            case 2:
                length, at = _varint(content, at)
                end = at + length
            case 5:
                end = at + 4
            case _:
                # Nobody sends groups: what follows is called a field that is none, and no place is the last one.
                yield 0, at, size
                return
        # With another wire type it is no field that anybody knows, whatever its number.
        yield tag >> 3 if tag & 7 == 2 else 0, at, end
        at = end


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


class ResponseForms:
    """The beginnings of responses with one output of fixed-size elements, without parameters."""

    def __init__(self) -> None:
        self._headers: dict[tuple[str, str, str, str, tuple[int, ...]], bytes] = {}

    def write(self, response: InferResponse) -> bytes | None:
        """The response's bytes; None where its form is not known."""
        outputs = response.outputs
        if len(outputs) != 1 or response.parameters or response.id:
            return None
        tensor = outputs[0]
        array = tensor.array
        header = self._headers.get((response.model, response.version, tensor.name, tensor.datatype.name, array.shape))
        if header is None:
            return None
        if array.nbytes >= LARGE_BYTES and array.flags.c_contiguous:
            return b"".join((header, array.reshape(-1).view(np.uint8)))  # type: ignore[arg-type]
        return header + array.tobytes()

    def learn(self, content: bytes, response: InferResponse) -> None:
        """Remember the form of a response that was written as these bytes, if it is one to remember."""
        outputs = response.outputs
        if len(outputs) != 1 or response.parameters or response.id or outputs[0].datatype is BYTES:
            return
        tensor = outputs[0]
        size = tensor.array.nbytes
        *_, last = fields(content)
        header = content[: len(content) - size]
        if last != (RAW_OUTPUT_CONTENTS, len(header), len(content)) or len(header) > MOST_HEADER_BYTES:
            return
        if len(self._headers) >= MOST_FORMS:
            self._headers.clear()
        key = (response.model, response.version, tensor.name, tensor.datatype.name, tensor.array.shape)
        self._headers[key] = header
