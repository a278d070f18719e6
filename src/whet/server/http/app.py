"""The RSGI application: reads a request, calls the data plane, writes the answer."""

from __future__ import annotations

import asyncio
import time
from asyncio import current_task
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from granian import rsgi

from whet.errors import InvalidArgument
from whet.server.access import Access
from whet.server.data_plane import DataPlane
from whet.server.errors import PayloadTooLarge, ShuttingDown
from whet.server.http.calls import Asked, Calls
from whet.server.http.compression import compressed, decompressed, wanted_encoding
from whet.server.http.failures import JSON, BodyTimeout, NoSuchAddress, UnsupportedMediaType, failure
from whet.server.http.json_request import read_request
from whet.server.http.json_response import is_long, write_response
from whet.server.http.origin import OriginCheck
from whet.server.http.routes import find_call, find_route
from whet.server.http.watch import Watch
from whet.server.metrics.endpoint import answer_metrics
from whet.server.parameters import apply_parameters
from whet.server.request import InferResponse
from whet.server.tracing import take_context

_GONE: type[Exception] = vars(rsgi)["ProtocolClosed"]

BINARY = ("content-type", "application/octet-stream")
CLOSE = ("connection", "close")
HEADER_LENGTH = "inference-header-content-length"

IN_THREAD = 1 << 20
"""Bytes of JSON from which reading and writing it leave the event loop."""

MAX_PATH = 4096
"""Characters of an address. Model names are file names."""

Page = Callable[[Any, Any], Awaitable[None]]
"""Answers a request for an address outside of the protocol, given RSGI's scope and protocol."""


class HttpApp:
    """KServe v2 over HTTP. `pages`: further addresses by their first part, such as "" for `/` and `static`.

    `closing` makes every answer the last one of its connection. One `watch` may serve several applications.
    """

    def __init__(
        self, plane: DataPlane, access: Access, watch: Watch, body_bytes: int, origin: OriginCheck | None = None,
        pages: Mapping[str, Page] | None = None,
    ) -> None:  # fmt: skip
        self._plane = plane
        self._watch = watch
        self._reading = watch.reading
        self._computing = watch.computing
        self._body_bytes = body_bytes
        self._origin = origin or OriginCheck()
        self._is_local = self._origin.is_local
        self._calls = Calls(plane, access, self._origin)
        self.pages: dict[str, Page] = {"metrics": self._metrics, **(pages or {})}
        self.closing = False

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        task: Any = current_task()
        try:
            path = scope.path
            # /v2/models/NAME[/versions/VERSION]/infer is what almost every request is.
            if scope.method == "POST" and path.endswith("/infer") and path.startswith("/v2/models/"):
                await self._infer(scope, protocol, path.split("/"), task)
            else:
                await self._other(scope, protocol, path, task)
        except asyncio.CancelledError:
            if task in self._watch.late:
                self._fail(protocol, BodyTimeout("the body did not arrive in time"), scope)
            elif task in self._watch.overdue:
                self._fail(protocol, ShuttingDown("the server stopped before the answer was ready"), scope)
            elif task not in self._watch.gone:
                raise
        except _GONE:
            # Half of a body came. Whoever still listens is told.
            self._fail(protocol, InvalidArgument("the body is shorter than its Content-Length"), scope)
        except Exception as error:
            self._fail(protocol, error, scope)
        finally:
            self._computing.pop(task, None)
            if self._watch.late or self._watch.gone:
                self._watch.late.discard(task)
                self._watch.gone.discard(task)

    async def _infer(self, scope: Any, protocol: Any, parts: list[str], task: Any) -> None:
        received = time.monotonic_ns()
        plane = self._plane
        headers = scope.headers
        name, version = _model_of(parts)
        if self._is_local and headers.get("origin") is not None:
            self._origin.check_local("infer", headers, scope.authority)
        body = await self._body(headers, protocol, task)
        length = headers.get(HEADER_LENGTH)
        self._computing[task] = (protocol, self._watch.tick)
        head_bytes = None if length is None else _header_length(length)
        if (head_bytes if head_bytes is not None else len(body)) < IN_THREAD:
            request, binary, all_binary = read_request(name, version, body, head_bytes)
        else:
            request, binary, all_binary = await asyncio.to_thread(read_request, name, version, body, head_bytes)
        request.received_ns = received
        if request.parameters:
            apply_parameters(request)
        if plane.tracing:
            take_context(request, headers.items())
        response = plane.infer_at_once(request) or await plane.infer(request)
        if _size(response) < IN_THREAD and not is_long(response, binary, all_binary):
            content, head = write_response(response, binary, all_binary)
        else:
            content, head = await asyncio.to_thread(write_response, response, binary, all_binary)
        answer = [JSON] if head is None else [BINARY, (HEADER_LENGTH, str(head))]
        accept = headers.get("accept-encoding")
        if accept is not None and (encoding := wanted_encoding(accept)) is not None:
            smaller = await compressed(content, encoding)
            if smaller is not None:
                content = smaller
                answer += [("content-encoding", encoding), ("vary", "accept-encoding")]
        if self.closing:
            answer.append(CLOSE)
        protocol.response_bytes(200, answer, content)

    async def _other(self, scope: Any, protocol: Any, path: str, task: Any) -> None:
        if len(path) > MAX_PATH:
            raise NoSuchAddress("the address is too long", found=f"{len(path)} characters", expected=f"{MAX_PATH}")
        self._origin.check_local(path, scope.headers, scope.authority)
        page = self.pages.get(path.split("/", 2)[1] if path[:1] == "/" else "-")
        if page is not None:
            await page(scope, protocol)
            return
        route, names = find_route(path)
        last = [CLOSE] if self.closing else []
        method = scope.method
        if method == "OPTIONS":
            protocol.response_empty(204, [("allow", route.allow), *last])
            return
        call = find_call(route, method, path)
        headers = scope.headers
        if call.is_admin:
            self._calls.allow(call, headers, scope.authority)
        body = await self._body(headers, protocol, task) if method == "POST" else b""
        # A load or unload goes on when its client is gone: a repository half changed helps nobody.
        asked = Asked(names, headers, scope.authority, body)
        document = await self._calls.by_name[call.name](asked)
        if document is None:
            protocol.response_empty(200, last)
        else:
            protocol.response_bytes(200, [JSON, *last], orjson.dumps(document))

    def _fail(self, protocol: Any, error: Exception, scope: Any) -> None:
        kind = scope.headers.get("content-type")
        # Here, and not before the body is read: only who is wrong pays for it.
        if kind is not None and kind[:10].lower() == "multipart/" and type(error) is InvalidArgument:
            error = UnsupportedMediaType(
                "the body's Content-Type is not read here", found=kind, expected="JSON, or JSON and binary tensors"
            )
        status, headers, content = failure(error, f"{scope.method} {scope.path}")
        if self.closing and CLOSE not in headers:
            headers.append(CLOSE)
        protocol.response_bytes(status, headers, content)

    async def _metrics(self, scope: Any, protocol: Any) -> None:
        scrape = self._plane.metrics
        if scrape is None or scope.path != "/metrics":
            raise NoSuchAddress("there is nothing at this address", found=scope.path)
        await answer_metrics(scrape, scope, protocol)

    async def _body(self, headers: Any, protocol: Any, task: Any) -> bytes:
        """The body, decompressed. Raises PayloadTooLarge, UnsupportedMediaType, InvalidArgument."""
        length = headers.get("content-length")
        most = self._body_bytes
        if length is not None and int(length) > most:
            raise PayloadTooLarge("the body is too large", found=f"{length} bytes", expected=f"at most {most}")
        self._reading[task] = self._watch.tick
        try:
            # hyper takes Content-Length away where Transfer-Encoding is there, too: such a body has no known end.
            if length is not None:
                body: bytes = await protocol()
            else:
                body = await _stream(protocol, most)
            encoding = headers.get("content-encoding")
            return body if encoding is None else await decompressed(body, encoding, most)
        finally:
            self._reading.pop(task, None)


async def _stream(protocol: Any, most: int) -> bytes:
    chunks, size = [], 0
    async for chunk in protocol:
        size += len(chunk)
        if size > most:
            raise PayloadTooLarge("the body is too large", found="a stream", expected=f"at most {most} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _model_of(parts: list[str]) -> tuple[str, str]:
    """Model and version of an address that ends with infer."""
    if len(parts) == 5:
        name, version = parts[3], ""
    elif len(parts) == 7 and parts[4] == "versions" and parts[5]:
        name, version = parts[3], parts[5]
    else:
        name = version = ""
    if not name:
        raise NoSuchAddress("there is nothing at this address", found="/".join(parts))
    return name, version


def _header_length(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgument("Inference-Header-Content-Length is a number of bytes", found=text)
    return int(text[:20])


def _size(response: InferResponse) -> int:
    size = 0
    for output in response.outputs:
        size += output.array.nbytes
    return size
