"""The application: a request becomes calls of the data plane, and their outcome its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import lru_cache
from typing import Any

import orjson

from whet.errors import EPFail, InvalidArgument
from whet.server.access import Access
from whet.server.data_plane import DataPlane
from whet.server.errors import ShuttingDown
from whet.server.http.calls import Asked, Calls
from whet.server.http.compression import compressed, decompressed, wanted_encoding
from whet.server.http.connection import SHORT
from whet.server.http.exchange import GONE, JSON, ONLY_JSON, OVERDUE, Exchange, Header
from whet.server.http.failures import NoSuchAddress, UnsupportedMediaType, failure
from whet.server.http.json_forms import Forms, Read
from whet.server.http.json_request import read_request
from whet.server.http.json_response import LONG, is_long, write_response
from whet.server.http.origin import OriginCheck
from whet.server.http.routes import find_call, find_route
from whet.server.metrics.endpoint import answer_metrics
from whet.server.parameters import apply_parameters
from whet.server.request import InferRequest, InferResponse
from whet.server.tracing import take_context

BINARY: Header = ("content-type", "application/octet-stream")
HEADER_LENGTH = "inference-header-content-length"

IN_THREAD = 1 << 20
"""Bytes of JSON from which reading and writing it leave the event loop."""

MAX_PATH = 4096
"""Characters of an address. Model names are file names."""

Page = Callable[[Exchange], Awaitable[None]]
"""Answers a request for an address outside of the protocol."""


class HttpApp:
    """KServe v2 over HTTP: `handle` is what an HttpServer calls.

    `body_bytes`: the most that a body may have when decompressed. `pages`: further addresses by their first part, such
    as "" for `/` and `static`.
    """

    def __init__(
        self, plane: DataPlane, access: Access, body_bytes: int, origin: OriginCheck | None = None,
        pages: Mapping[str, Page] | None = None,
    ) -> None:  # fmt: skip
        self._plane = plane
        self._body_bytes = body_bytes
        self._forms = Forms()
        self._origin = origin or OriginCheck()
        self._is_local = self._origin.is_local
        self._calls = Calls(plane, access, self._origin)
        self._pages: dict[str, Page] = {"metrics": self._metrics, **(pages or {})}

    def handle(self, exchange: Exchange) -> None:
        """Answer a request, here or in a task."""
        path = exchange.path
        try:
            # /v2/models/NAME[/versions/VERSION]/infer is what almost every request is.
            if exchange.method == "POST" and path.endswith("/infer") and path.startswith("/v2/models/"):
                self._infer(exchange)
            else:
                exchange.start(self._guarded(exchange, self._other, exchange))
        except Exception as error:
            self._fail(exchange, error)

    def _infer(self, exchange: Exchange) -> None:
        """Answer an inference here where no part of it takes long; else in a task that ends with its client."""
        headers, body = exchange.headers, exchange.body
        path = exchange.path
        name, version = model_of(path) if len(path) <= SHORT else model_of.__wrapped__(path)
        if self._is_local and "origin" in headers:
            self._origin.check_local("infer", headers, exchange.authority)
        length = headers.get(HEADER_LENGTH)
        head_bytes = None if length is None else _header_length(length)
        if (head_bytes if head_bytes is not None else len(body)) >= IN_THREAD or "content-encoding" in headers:
            work = self._guarded(exchange, self._infer_long, exchange, name, version, head_bytes)
            exchange.start(work, ends_with_client=True)
            return
        read = self._forms.read(name, version, body, head_bytes)
        response = self._plane.infer_at_once(self._prepared(exchange, read[0]))
        if response is not None and _is_short(response, read) and "accept-encoding" not in headers:
            _send(exchange, *write_response(response, read[1], read[2]))
        else:
            work = self._guarded(exchange, self._infer_later, exchange, read, response)
            exchange.start(work, ends_with_client=True)

    async def _infer_long(self, exchange: Exchange, name: str, version: str, head_bytes: int | None) -> None:
        """An inference whose body is long or compressed."""
        body = exchange.body
        encoding = exchange.headers.get("content-encoding")
        if encoding is not None:
            body = await decompressed(body, encoding, self._body_bytes)
        if (head_bytes if head_bytes is not None else len(body)) < IN_THREAD:
            read = read_request(name, version, body, head_bytes)
        else:
            read = await asyncio.to_thread(read_request, name, version, body, head_bytes)
        request = self._prepared(exchange, read[0])
        await self._infer_later(exchange, read, self._plane.infer_at_once(request))

    async def _infer_later(self, exchange: Exchange, read: Read, response: InferResponse | None) -> None:
        """The rest of an inference whose request is read; `response` where it ran already."""
        request, binary, all_binary = read
        if response is None:
            response = await self._plane.infer(request)
        if _is_short(response, read):
            content, head = write_response(response, binary, all_binary)
        else:
            content, head = await asyncio.to_thread(write_response, response, binary, all_binary)
        accept = exchange.headers.get("accept-encoding")
        encoding = None if accept is None else wanted_encoding(accept)
        smaller = None if encoding is None else await compressed(content, encoding)
        if encoding is None or smaller is None:
            _send(exchange, content, head)
        else:
            _send(exchange, smaller, head, (("content-encoding", encoding), ("vary", "accept-encoding")))

    def _prepared(self, exchange: Exchange, request: InferRequest) -> InferRequest:
        """The request with what its parameters and headers say."""
        request.received_ns = exchange.received_ns
        request.source = exchange.source
        if request.parameters:
            apply_parameters(request)
        if self._plane.tracing:
            take_context(request, exchange.headers.items())
        return request

    async def _other(self, exchange: Exchange) -> None:
        path, headers, method = exchange.path, exchange.headers, exchange.method
        if len(path) > MAX_PATH:
            raise NoSuchAddress("the address is too long", found=f"{len(path)} characters", expected=f"{MAX_PATH}")
        self._origin.check_local(path, headers, exchange.authority)
        page = self._pages.get(path.split("/", 2)[1] if path[:1] == "/" else "-")
        if page is not None:
            await page(exchange)
            return
        route, names = find_route(path)
        if method == "OPTIONS":
            exchange.respond(204, (("allow", route.allow),))
            return
        call = find_call(route, method, path)
        if call.is_admin:
            self._calls.allow(call, headers, exchange.authority)
        body = exchange.body if method == "POST" else b""
        encoding = headers.get("content-encoding")
        if encoding is not None:
            body = await decompressed(body, encoding, self._body_bytes)
        # A load or unload goes on when its client is gone: a repository half changed helps nobody.
        document = await self._calls.by_name[call.name](Asked(names, headers, exchange.authority, bytes(body)))
        if document is None:
            exchange.respond(200, ())
        else:
            exchange.respond(200, ONLY_JSON, orjson.dumps(document))

    async def _guarded(self, exchange: Exchange, work: Callable[..., Coroutine[Any, Any, None]], *given: Any) -> None:
        """Do the work of a task; what it raises is the answer."""
        try:
            await work(*given)
            if exchange.is_open:
                raise RuntimeError("the call ended without an answer")
        except asyncio.CancelledError:
            if exchange.ended == OVERDUE:
                self._fail(exchange, ShuttingDown("the server stopped before the answer was ready"))
            elif exchange.ended != GONE:
                self._fail(exchange, EPFail("the server ended the request"))
                raise
        except Exception as error:
            self._fail(exchange, error)

    def _fail(self, exchange: Exchange, error: Exception) -> None:
        kind = exchange.headers.get("content-type")
        # Here, and not before the body is read: only who is wrong pays for it.
        if kind is not None and kind[:10].lower() == "multipart/" and type(error) is InvalidArgument:
            error = UnsupportedMediaType(
                "the body's Content-Type is not read here", found=kind, expected="JSON, or JSON and binary tensors"
            )
        status, headers, content = failure(error, f"{exchange.method} {exchange.path}")
        exchange.respond(status, headers, content, close=isinstance(error, ShuttingDown))

    async def _metrics(self, exchange: Exchange) -> None:
        scrape = self._plane.metrics
        if scrape is None or exchange.path != "/metrics":
            raise NoSuchAddress("there is nothing at this address", found=exchange.path)
        await answer_metrics(scrape, exchange)


def _send(exchange: Exchange, content: bytes, head: int | None, more: tuple[Header, ...] = ()) -> None:
    """Answer with an inference: `content` begins with `head` bytes of JSON where binary tensors follow."""
    if head is not None:
        exchange.respond(200, (BINARY, (HEADER_LENGTH, str(head)), *more), content)
    else:
        exchange.respond(200, (JSON, *more) if more else ONLY_JSON, content)


@lru_cache(1024)
def model_of(path: str) -> tuple[str, str]:
    """Model and version of an address that ends with infer. Raises NoSuchAddress."""
    parts = path.split("/")
    if len(parts) == 5:
        name, version = parts[3], ""
    elif len(parts) == 7 and parts[4] == "versions" and parts[5]:
        name, version = parts[3], parts[5]
    else:
        name = version = ""
    if not name:
        raise NoSuchAddress("there is nothing at this address", found=path)
    return name, version


def _header_length(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgument("Inference-Header-Content-Length is a number of bytes", found=text)
    return int(text[:20])


def _is_short(response: InferResponse, read: Read) -> bool:
    """Whether writing the answer takes so little time that it stays on the event loop."""
    size = 0
    for output in response.outputs:
        size += output.array.nbytes
    return size < LONG or (size < IN_THREAD and not is_long(response, read[1], read[2]))
