"""Requests that differ in their numbers only: what else they say is read once.

A client asks a model in the same words again and again. Where the bytes before the list of numbers and those behind it
are those of a request that was read before, and what lies between is a JSON list, then the whole is that request with
another list: nothing else is looked at again. Whatever is not exactly so is read as any other request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from whet.errors import InvalidArgument
from whet.server.datatypes import Datatype
from whet.server.http.json_elements import array_of
from whet.server.http.json_request import read_request
from whet.server.request import InferRequest, InputTensor, RequestedOutput

MOST = 1024
"""Bytes of a form without its numbers. Longer ones are not worth keeping."""
FORMS = 256
"""Models, by the names that clients give, whose last form is kept."""
EVERY = 16
"""Of requests that have no form as many are looked at for one."""

_DATA = re.compile(rb'"data"\s*:\s*\[')
_NUMBERS = frozenset((int, float))

Read = tuple[InferRequest, Mapping[str, bool], bool]
"""What `read_request` gives."""


class Form:
    """What a request with one input says beside its numbers, with the bytes `before` and `after` them."""

    __slots__ = ("after", "before", "binary", "count", "kind", "name", "outputs", "shape")

    def __init__(
        self, before: bytes, after: bytes, tensor: InputTensor, outputs: tuple[RequestedOutput, ...],
        binary: Mapping[str, bool],
    ) -> None:  # fmt: skip
        self.before = before
        self.after = after
        self.name = tensor.name
        self.kind: Datatype = tensor.datatype
        self.shape = tensor.array.shape
        self.count = tensor.array.size
        self.outputs = outputs
        self.binary = binary

    def read(self, model: str, version: str, body: bytes) -> InferRequest | None:
        """The request, where its list is one that the form may have."""
        try:
            flat = orjson.loads(body[len(self.before) : len(body) - len(self.after)])
            if type(flat) is not list or len(flat) != self.count:
                return None
            array = array_of(flat, self.kind, self.name).reshape(self.shape)
        except (orjson.JSONDecodeError, InvalidArgument):
            return None  # read as a whole, it is told what is wrong with it
        tensor = InputTensor(self.name, self.kind, array)
        return InferRequest(model, [tensor], version, "", self.outputs, form=self)


class Forms:
    """Reads requests, and keeps the last form of each model."""

    def __init__(self) -> None:
        self._forms: dict[tuple[str, str], Form] = {}
        self._strange: dict[tuple[str, str], int] = {}
        """Requests since a model's form was looked for."""

    def read(self, model: str, version: str, body: bytes | memoryview, header_bytes: int | None) -> Read:
        """As `read_request`, which see."""
        if header_bytes is not None or type(body) is not bytes:
            return read_request(model, version, body, header_bytes)
        key = model, version
        form = self._forms.get(key)
        if form is not None:
            before, after = form.before, form.after
            if body.startswith(before) and body.endswith(after) and len(body) > len(before) + len(after):
                request = form.read(model, version, body)
                if request is not None:
                    return request, form.binary, False
                # Wrong, or of nested lists: who sends such once goes on.
                del self._forms[key]
        read = read_request(model, version, body, None)
        strange = self._strange.get(key, 0)
        if len(self._strange) >= FORMS and not strange:
            self._strange.clear()
            self._forms.clear()
        self._strange[key] = (strange + 1) % EVERY
        if not strange and (found := form_of(body, read)) is not None:
            self._forms[key] = found
        return read


def form_of(body: bytes, read: Read) -> Form | None:
    """The form of a request that was read, None where it has none."""
    request, binary, _ = read
    # Without escapes each quote is one that begins or ends a text, and no name can be written in two ways.
    if len(request.inputs) != 1 or b"\\" in body:
        return None
    document: dict[str, Any] = orjson.loads(body)
    entry = document["inputs"][0]
    if document.keys() - {"inputs", "outputs"} or entry.keys() != {"name", "shape", "datatype", "data"}:
        return None
    places = list(_DATA.finditer(body))
    if len(places) != 1 or not set(map(type, entry["data"])) <= _NUMBERS:
        return None
    start = places[0].end() - 1
    end = body.index(b"]", start) + 1
    if start + len(body) - end > MOST:
        return None
    return Form(body[:start], body[end:], request.inputs[0], request.outputs, binary)
