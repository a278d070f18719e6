"""One HTTP/1.1 connection, on the event loop's own thread: bytes to requests with httptools, answers in order.

Why no other server: one that parses on its own threads hands each request over and back, which costs more than most
answers (`benchmarks/http_servers.py`). httptools (llhttp) decides what is HTTP; here is what it leaves open: limits,
times, order, and how a connection ends.

What a connection reads is in one of three states: nothing (idle), a head, a body. Beside that, at most one request is
being answered; requests that a client sends ahead wait in `_queue`, and nothing more is read meanwhile. A request that
cannot be read is told so when those before it are answered; then a connection is `_over`: what still comes is thrown
away for a while, since closing at once would take the answer from a client that is still sending.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools
import numpy as np

from whet.errors import InvalidArgument
from whet.server.errors import PayloadTooLarge, ShuttingDown
from whet.server.http.exchange import GONE, ONLY_JSON, Exchange, Header
from whet.server.http.failures import BodyTimeout, HeadersTooLarge, RequestTimeout, failure
from whet.server.http.port import Port, status_line

HEADER_BYTES = 64 << 10
"""The most that the headers of a request take, names and values."""
HEADER_COUNT = 100

IN_PLACE = 16 << 10
"""Bytes of a body that are still to come from which they are received where they stay."""

FRAME_BYTES, FRAMES_PER_BYTE = 16 << 10, 8
"""What chunks may take beside their content: some, and this for each byte. A chunk of one byte takes six or seven."""

SHORT = 256
"""Bytes of an address up to which what it means is remembered."""

AHEAD = 32
"""Requests of one connection that are answered before others have their turn."""

LINGER_S = 2.0
"""How long what comes after the last answer is thrown away."""
STALL_S = 60.0
"""How long a client may take nothing of its answer."""

_SMALL_ANSWER = 32 << 10
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE = b"connection: close\r\n"
_KEEP = b"connection: keep-alive\r\n"
_JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
_BODYLESS = frozenset((204, 304))
_METHODS = {b"GET": "GET", b"POST": "POST", b"HEAD": "HEAD"}
_NAMES = {
    spelled.encode(): name
    for name in (
        "host", "content-type", "content-length", "accept", "accept-encoding", "user-agent", "connection",
        "inference-header-content-length",
    )
    for spelled in (name, name.title())
}  # fmt: skip
_JOINED_BY = {"cookie": "; "}


class Connection(asyncio.BufferedProtocol):
    """A client's connection to a port."""

    __slots__ = (
        "_bad", "_body", "_chunks", "_exchange", "_head_bytes", "_headers", "_in_head", "_is_paused", "_is_running",
        "_left", "_next", "_over", "_parser", "_port", "_queue", "_since", "_size", "_stalled", "_transport", "_url",
        "_wire", "_writes_wait",
    )  # fmt: skip

    def __init__(self, port: Port) -> None:
        self._port = port
        self._transport: Any = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange] = deque()
        self._exchange: Exchange | None = None
        """What is being answered."""
        self._next: Exchange | None = None
        """What is being read, once its headers are there."""
        self._in_head = False
        self._url = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._chunks: list[bytes] = []
        self._size = 0
        self._left: int | None = None
        """Bytes of the body that were announced; None for chunks."""
        self._wire = 0
        """Bytes that came since the read that the head or body began in."""
        self._body: memoryview | None = None
        """Where a long body is received, `_size` bytes of it so far."""
        self._since = port.now
        self._over = False
        self._bad: Exception | None = None
        """Why nothing more is read, until it is told."""
        self._is_running = False
        self._is_paused = False
        self._writes_wait = False
        self._stalled = -1

    # What the transport calls.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._port.connections.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        # What is read here is dealt with before the loop reads anything else: connections share one place for it.
        return self._port.buffer if self._body is None else self._body[self._size :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._over or self._bad is not None:
            return
        if self._body is not None:
            self._size += nbytes
            if self._size == self._left:
                self._body_came(self._body)
            return
        data = self._port.buffer[:nbytes]
        self._wire += nbytes
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # Nothing is upgraded: the request was read as any other, what follows it is the next one.
                data = data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
                if data and not self._is_ended:
                    continue
            except httptools.HttpParserError as error:
                if not self._is_ended:
                    self._refuse(InvalidArgument("the request is not HTTP/1.1", found=_told(error)))
            break
        if self._queue:
            self._run()
        if self._is_ended:
            return
        if self._in_head:
            if self._wire > HEADER_BYTES:
                self._refuse(_too_much_head(self._wire))
        elif self._next is not None:
            if self._left is None:
                if self._wire - self._size > FRAME_BYTES + FRAMES_PER_BYTE * self._size:
                    self._refuse(InvalidArgument("the chunks of the body hold too little", found=f"{self._size} bytes"))
            elif self._left - self._size >= IN_PLACE:
                self._receive_in_place(self._left)

    def eof_received(self) -> bool:
        """The client sends nothing more, most often because it is gone."""
        if self._exchange is not None:
            self._exchange.keep_alive = False
            if self._exchange.ends_with_client:
                self._transport.abort()
            # TLS has no half of a connection that stays.
            return self._transport.get_extra_info("sslcontext") is None
        if self._next is not None and not self._is_ended:
            found = "the body is shorter than its Content-Length" if self._left is not None else "the body has no end"
            self._refuse(InvalidArgument(found))
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._port.connections.discard(self)
        self._over = True
        self._queue.clear()
        self._next = self._parser = self._body = None
        if self._exchange is not None:
            self._exchange.end(GONE)
            self._exchange = None

    def pause_writing(self) -> None:
        self._writes_wait = True
        self._stalled = -1

    def resume_writing(self) -> None:
        self._writes_wait = False
        self._run()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._in_head = True
        self._url = b""
        self._headers = {}
        self._head_bytes = self._wire = 0
        self._since = self._port.now

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        self._head_bytes += len(name) + len(value)
        key = _NAMES.get(name) or name.decode("latin-1").lower()
        text = value.decode("latin-1")
        headers = self._headers
        if key in headers:
            if key == "host":
                self._refuse(InvalidArgument("the request has more than one Host", found=f"{headers[key]}, {text}"))
            text = headers[key] + _JOINED_BY.get(key, ", ") + text
        headers[key] = text

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._is_ended:
            return
        headers, parser, url = self._headers, self._parser, self._url
        if self._head_bytes + len(url) > HEADER_BYTES or len(headers) > HEADER_COUNT:
            self._refuse(_too_much_head(self._head_bytes + len(url), len(headers)))
            return
        path, authority = _target(url) if len(url) <= SHORT else _target.__wrapped__(url)
        method, keep_alive = parser.get_method(), parser.should_keep_alive()
        exchange = self._next = Exchange(
            self, _METHODS.get(method) or method.decode("latin-1"), path, authority, headers, keep_alive,
            time.monotonic_ns(),
        )  # fmt: skip
        self._chunks = []
        self._size = self._wire = 0
        length = headers.get("content-length")
        if length is not None:
            self._left = int(length)
            if self._left > self._port.body_bytes:
                self._refuse(_too_large(f"{length} bytes", self._port.body_bytes), exchange)
                return
        else:
            self._left = None
            if "transfer-encoding" in headers and parser.get_http_version() != "1.1":
                self._refuse(InvalidArgument("HTTP/1.0 has no Transfer-Encoding"), exchange)
                return
        if not exchange.keep_alive and parser.get_http_version() not in ("1.0", "1.1"):
            self._refuse(InvalidArgument("the request is not HTTP/1.1", found=f"HTTP/{parser.get_http_version()}"))
            return
        expects = headers.get("expect")
        # A client that waits for this has sent nothing ahead, and one that does not wait needs it not.
        if expects is not None and expects.lower() == "100-continue" and self._exchange is None and not self._queue:
            self._transport.write(_CONTINUE)

    def on_body(self, content: bytes) -> None:
        if self._is_ended:
            return
        self._size += len(content)
        if self._size > self._port.body_bytes:
            self._refuse(_too_large("a stream", self._port.body_bytes), self._next)
            return
        self._chunks.append(content)

    def on_message_complete(self) -> None:
        if self._is_ended or self._next is None:
            return
        chunks = self._chunks
        if chunks:
            self._next.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._chunks = []
        self._come(self._next)

    # Long bodies.

    def _receive_in_place(self, length: int) -> None:
        """Receive the rest of the body where it stays. The parser, which does not see it, is replaced."""
        self._body = body = memoryview(np.empty(length, np.uint8))  # type: ignore[arg-type]
        at = 0
        for chunk in self._chunks:
            body[at : at + len(chunk)] = chunk
            at += len(chunk)
        self._chunks = []
        self._parser = httptools.HttpRequestParser(self)

    def _body_came(self, body: memoryview) -> None:
        exchange, self._body = self._next, None
        if exchange is not None:
            exchange.body = body
            self._come(exchange)
            self._run()

    # Answers.

    def _come(self, exchange: Exchange) -> None:
        """A whole request is there."""
        self._next = None
        self._since = self._port.now
        self._queue.append(exchange)

    def _run(self) -> None:
        """Have what waits answered, in order."""
        if self._is_running:
            return
        self._is_running = True
        queue = self._queue
        turns = AHEAD
        while queue and self._exchange is None and not self._writes_wait and not self._over:
            if not turns:
                asyncio.get_running_loop().call_soon(self._run)
                break
            turns -= 1
            self._exchange = queue.popleft()
            self._port.handle(self._exchange)
        self._is_running = False
        if self._bad is not None and not queue and self._exchange is None:
            self._refuse(self._bad)
        if bool(queue) is not self._is_paused and not self._over:
            self._is_paused = not self._is_paused
            if self._is_paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def respond(
        self, exchange: Exchange, status: int, headers: tuple[Header, ...], content: bytes, close: bool
    ) -> None:
        if exchange is not self._exchange:
            return  # nobody is there any more
        self._exchange = None
        self._since = self._port.now
        keep = exchange.keep_alive and not close and not self._port.closing
        self._write(status, headers, content, keep, exchange)
        if not keep:
            self._over = True
            self._queue.clear()
            self._transport.close()
        elif self._queue or self._bad is not None:
            self._run()

    def _write(
        self, status: int, headers: tuple[Header, ...], content: bytes, keep: bool, exchange: Exchange | None
    ) -> None:
        if headers is ONLY_JSON and status == 200:
            head = _JSON_HEAD
        else:
            head = status_line(status) + "".join([f"{k}: {v}\r\n" for k, v in headers]).encode("latin-1", "replace")
        more = b""
        if not keep:
            more = _CLOSE
        elif exchange is not None and "connection" in exchange.headers:
            more = _KEEP  # HTTP/1.0 needs to be told
        transport = self._transport
        if (exchange is not None and exchange.method == "HEAD") or status in _BODYLESS:
            length = b"" if status in _BODYLESS else b"content-length: %d\r\n" % len(content)
            transport.write(b"%b%b%b%b\r\n" % (head, more, self._port.date, length))
        elif len(content) <= _SMALL_ANSWER:
            transport.write(
                b"%b%b%bcontent-length: %d\r\n\r\n%b" % (head, more, self._port.date, len(content), content)
            )
        else:
            head = b"%b%b%bcontent-length: %d\r\n\r\n" % (head, more, self._port.date, len(content))
            transport.writelines((head, content))

    def _refuse(self, error: Exception, exchange: Exchange | None = None) -> None:
        """Tell what is wrong with what is being read, when everything before it is answered. Nothing more is read."""
        if self._over:
            return
        self._next = self._body = None
        if self._exchange is not None or self._queue:
            self._bad = error
            return
        self._over = True
        status, headers, content = failure(error, "a request")
        self._write(status, headers, content, False, exchange)
        self._since = self._port.now
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    @property
    def _is_ended(self) -> bool:
        """Whether what comes is not read."""
        return self._over or self._bad is not None

    # What the port calls.

    @property
    def is_computing(self) -> bool:
        """Whether an inference is being answered, or a request is on its way."""
        running = self._exchange is not None and self._exchange.ends_with_client
        return running or self._next is not None or bool(self._queue)

    def check(self, now: float) -> None:
        """Look whether the client took too long for what it does; the port asks a few times a second."""
        port, took = self._port, now - self._since
        if self._over:
            if took > LINGER_S and not self._writes_wait:
                self._transport.abort()
        elif self._writes_wait:
            left = self._transport.get_write_buffer_size()
            if left != self._stalled:
                self._stalled, self._since = left, now
            elif took > STALL_S:
                self._transport.abort()
        elif self._exchange is not None:
            pass
        elif self._next is not None:
            if took > port.body_s:
                self._refuse(BodyTimeout("the body did not arrive in time"), self._next)
        elif self._in_head:
            if took > port.head_s:
                self._refuse(RequestTimeout("the headers did not arrive in time"))
        elif took > port.idle_s:
            self.close_idle()

    def close_idle(self) -> None:
        """Close, unless something is being read or answered."""
        if self._exchange is None and self._next is None and not self._in_head and not self._queue and not self._over:
            self._over = True
            self._transport.close()

    def end(self, why: str) -> None:
        """End the inference that is being answered; its client is told."""
        if self._exchange is not None:
            self._exchange.end(why)
        elif self._next is not None:
            self._refuse(ShuttingDown("the server stopped before the request had come"), self._next)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


@lru_cache(1024)
def _target(url: bytes) -> tuple[str, str | None]:
    """Path and authority of a request line's address, in whichever of its forms."""
    authority = None
    if url[:1] != b"/":
        scheme, separator, rest = url.partition(b"://")
        if separator and scheme.isalpha():
            host, slash, rest = rest.partition(b"/")
            authority, url = host, slash + rest or b"/"
        elif url != b"*":
            authority, url = url, b""  # CONNECT
    path = unquote_to_bytes(url.partition(b"?")[0]).decode("utf-8", "replace")
    return path, None if authority is None else authority.decode("latin-1")


def _told(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__


def _too_much_head(size: int, count: int = 0) -> HeadersTooLarge:
    found = f"{count} headers" if count > HEADER_COUNT else f"{size} bytes"
    return HeadersTooLarge(
        "the headers are too large", found=found, expected=f"at most {HEADER_COUNT} headers of {HEADER_BYTES} bytes"
    )


def _too_large(found: str, most: int) -> PayloadTooLarge:
    return PayloadTooLarge("the body is too large", found=found, expected=f"at most {most} bytes")
