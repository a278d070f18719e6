"""The RSGI application: reads a request, calls the data plane, writes the answer."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import unquote

import orjson

from whet.errors import InvalidArgument, WhetError
from whet.server.data_plane import DataPlane
from whet.server.errors import ModelNotFound, PayloadTooLarge, http_status
from whet.server.http.json_request import read_request
from whet.server.http.json_response import write_response

JSON = ("content-type", "application/json")
BINARY = ("content-type", "application/octet-stream")
HEADER_LENGTH = "inference-header-content-length"

DEFAULT_BODY_BYTES = 64 << 20


class HttpApp:
    """KServe v2 over HTTP. `body_bytes`: the largest body that is read."""

    def __init__(self, plane: DataPlane, body_bytes: int = DEFAULT_BODY_BYTES) -> None:
        self._plane = plane
        self._body_bytes = body_bytes

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        try:
            parts = scope.path.split("/")
            # /v2/models/NAME[/versions/VERSION]/infer is what almost every request is.
            if scope.method == "POST" and parts[-1] == "infer" and parts[1:3] == ["v2", "models"]:
                await self._infer(scope, protocol, parts)
                return
            await self._other(scope, protocol, parts)
        except WhetError as error:
            _fail(protocol, error)

    async def _infer(self, scope: Any, protocol: Any, parts: list[str]) -> None:
        received = time.monotonic_ns()
        headers = scope.headers
        body = await self._body(headers, protocol)
        name, version = _model_of(parts[:-1])
        length = headers.get(HEADER_LENGTH)
        request, binary, all_binary = read_request(
            name, version, body, None if length is None else _header_length(length)
        )
        request.received_ns = received
        response = await self._plane.infer(request)
        content, head_bytes = write_response(response, binary, all_binary)
        if head_bytes is None:
            protocol.response_bytes(200, [JSON], content)
        else:
            protocol.response_bytes(200, [BINARY, (HEADER_LENGTH, str(head_bytes))], content)

    async def _other(self, scope: Any, protocol: Any, parts: list[str]) -> None:
        plane = self._plane
        match parts[1:]:
            case ["v2", "health", "live"]:
                protocol.response_empty(200 if plane.live else 503, [])
            case ["v2", "health", "ready"]:
                protocol.response_empty(200 if plane.ready else 503, [])
            case ["v2"] | ["v2", ""]:
                _answer(protocol, plane.server_metadata())
            case _:
                raise ModelNotFound("there is nothing at this address", found=scope.path)

    async def _body(self, headers: Any, protocol: Any) -> bytes:
        length = headers.get("content-length")
        if length is not None and length.isdigit():
            if int(length) > self._body_bytes:
                raise PayloadTooLarge("the body is too large", found=f"{length} bytes", expected=f"{self._body_bytes}")
            return bytes(await protocol())
        chunks, size = [], 0
        async for chunk in protocol:
            size += len(chunk)
            if size > self._body_bytes:
                raise PayloadTooLarge("the body is too large", found="a stream", expected=f"{self._body_bytes} bytes")
            chunks.append(chunk)
        return b"".join(chunks)


def _model_of(parts: list[str]) -> tuple[str, str]:
    match parts[3:]:
        case [name]:
            return unquote(name), ""
        case [name, "versions", version]:
            return unquote(name), unquote(version)
    raise ModelNotFound("there is nothing at this address", found="/".join(parts))


def _header_length(text: str) -> int:
    if not text.isdigit():
        raise InvalidArgument("Inference-Header-Content-Length is a number of bytes", found=text)
    return int(text[:20])


def _answer(protocol: Any, document: object, status: int = 200) -> None:
    protocol.response_bytes(status, [JSON], orjson.dumps(document))


def _fail(protocol: Any, error: Exception) -> None:
    _answer(protocol, {"error": str(error)}, http_status(error))
