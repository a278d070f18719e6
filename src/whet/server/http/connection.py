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
import logging
import time
from collections import deque
from functools import lru_cache
from itertools import count
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools
import numpy as np

from whet.errors import InvalidArgument, ResourceExhausted
from whet.server.errors import PayloadTooLarge, ShuttingDown
from whet.server.http.delivery import is_gone, taken
from whet.server.http.exchange import GONE, ONLY_JSON, Exchange, Header
from whet.server.http.failures import BodyTimeout, HeadersTooLarge, RequestTimeout, failure
from whet.server.http.port import Port, status_line

LOGGER = logging.getLogger("whet.server.http")

HEADER_BYTES = 64 << 10
"""The most that the headers of a request take, names and values."""
HEADER_COUNT = 100
"""The most headers of different names, and the most of a name that came before."""

IN_PLACE = 16 << 10
"""Bytes of a body that are still to come from which they are received where they stay."""

FRAME_BYTES, FRAMES_PER_BYTE = 16 << 10, 8
"""What chunks may take beside their content: some, and this for each byte. A chunk of one byte takes six or seven."""

SHORT = 256
"""Bytes of an address up to which what it means is remembered."""

AHEAD_NS = 2_000_000
"""How long requests that one client sent ahead are answered before others have their turn."""

LINGER_S = 2.0
"""How long what comes after the last answer is thrown away."""
STALL_S = 60.0
"""How long a client may take nothing of its answer."""

BARREN_BYTES = 64 << 10
"""What may come of a body in chunks without any of its content: trailers, and extensions of chunks."""

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
_SERIALS = count(1)


class Connection(asyncio.BufferedProtocol):
    """A client's connection to a port."""

    __slots__ = (
        "_again", "_bad", "_barren", "_body", "_chunks", "_exchange", "_grown", "_head_bytes", "_headers", "_in_head",
        "_is_paused", "_is_running", "_left", "_next", "_over", "_owes_continue", "_parser", "_port", "_queue",
        "_repeated", "_repeated_in", "_since", "_size", "_taken", "_transport", "_url", "_wire", "_writes_wait",
        "serial",
    )  # fmt: skip

    def __init__(self, port: Port) -> None:
        self._port = port
        self.serial = next(_SERIALS)
        """Which connection this is, among all of the process."""
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
        self._barren = self._grown = 0
        """Bytes of chunks that came without content, since the body had `_grown` bytes."""
        self._again = b""
        """A head that asked for another protocol, without that: it is read again."""
        self._repeated = 0
        self._repeated_in: dict[str, str] | None = None
        """How many headers came again, in these."""
        self._owes_continue = False
        """Whether a client that wants to be told may wait for 100 Continue."""
        self._since = port.now
        self._over = False
        self._bad: tuple[Exception, Exchange | None] | None = None
        """Why nothing more is read, until it is told."""
        self._is_running = False
        self._is_paused = False
        self._writes_wait = False
        self._taken = -1
        """What the client had taken of its answers when that was looked at last."""

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
                # Nothing is upgraded: the head is read again without its wish, and what follows it is its body.
                data = data[upgrade.args[0] :]
                if self._again:
                    data = memoryview(self._again + data.tobytes())
                    self._again = b""
                self._parser = httptools.HttpRequestParser(self)
                if data and not self._is_ended:
                    continue
            except httptools.HttpParserError as error:
                if not self._is_ended:
                    ours = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
                    if isinstance(ours, Exception):
                        self._refuse(ours)
                    else:
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
                if self._size != self._grown:
                    self._grown = self._size
                    self._barren = 0
                else:
                    self._barren += nbytes
                frames = self._wire - self._size
                if frames > FRAME_BYTES + FRAMES_PER_BYTE * self._size or self._barren > BARREN_BYTES:
                    found = f"{self._size} bytes in {self._wire}"
                    self._refuse(InvalidArgument("the chunks of the body hold too little", found=found), self._next)
            elif self._left - self._size >= IN_PLACE:
                self._receive_in_place(self._left)

    def eof_received(self) -> bool:
        """The client sends nothing more, most often because it is gone; else it has its answers first."""
        if self._next is not None and not self._is_ended:
            found = "the body is shorter than its Content-Length" if self._left is not None else "the body has no end"
            self._refuse(InvalidArgument(found), self._next)
        running = self._exchange
        last = self._queue[-1] if self._queue else running
        if last is None:
            return False
        if self._bad is None:
            last.keep_alive = False
        if running is not None and running.ends_with_client:
            self._transport.abort()
        # TLS has no half of a connection that stays.
        return self._transport.get_extra_info("sslcontext") is None

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
            if self._repeated_in is not headers:
                self._repeated_in, self._repeated = headers, 0
            self._repeated += 1
            if self._repeated > HEADER_COUNT:
                return  # refused when all are there; to join them takes longer with each
            text = headers[key] + _JOINED_BY.get(key, ", ") + text
        headers[key] = text

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._is_ended:
            return
        headers, parser, url = self._headers, self._parser, self._url
        repeated = self._repeated if self._repeated_in is headers else 0
        if self._head_bytes + len(url) > HEADER_BYTES or len(headers) > HEADER_COUNT or repeated > HEADER_COUNT:
            self._refuse(_too_much_head(self._head_bytes + len(url), max(len(headers), repeated)))
            return
        method, keep_alive = parser.get_method(), parser.should_keep_alive()
        if "upgrade" in headers and method != b"CONNECT" and parser.should_upgrade():
            # The parser would take the body for the other protocol.
            self._again = _without_upgrade(method, url, parser.get_http_version(), headers)
            return
        path, authority = _target(url) if len(url) <= SHORT else _target.__wrapped__(url)
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
            if "transfer-encoding" in headers:
                self._barren = self._grown = 0
                coding = headers["transfer-encoding"].strip().lower()
                if parser.get_http_version() != "1.1" or coding != "chunked":
                    self._refuse(InvalidArgument("the Transfer-Encoding is not read here", found=coding,
                                                 expected="chunked, in HTTP/1.1"), exchange)  # fmt: skip
                    return
        # Only 1.1 keeps a connection without being asked to.
        if not keep_alive or "connection" in headers:
            version = parser.get_http_version()
            if version not in ("1.0", "1.1"):
                self._refuse(InvalidArgument("the request is not HTTP/1.1", found=f"HTTP/{version}"), exchange)
                return
        if method == b"CONNECT":
            exchange.keep_alive = False  # what follows is not for us
        expects = headers.get("expect")
        if expects is not None and expects.lower() == "100-continue" and parser.get_http_version() == "1.1":
            # Where others are answered first, they have sent nothing of it, or do not wait.
            self._owes_continue = self._exchange is not None or bool(self._queue)
            if not self._owes_continue:
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
        try:
            body = memoryview(np.empty(length, np.uint8))  # type: ignore[arg-type]
        except MemoryError:
            self._refuse(ResourceExhausted("there is no memory for the body", found=f"{length} bytes"), self._next)
            return
        self._body = body
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
        end = 0
        while queue and self._exchange is None and not self._writes_wait and not self._over:
            self._exchange = exchange = queue.popleft()
            try:
                self._port.handle(exchange)
            except Exception as error:
                LOGGER.error("a request has no answer", exc_info=error)
                self._transport.abort()
                break
            if queue:
                now = time.monotonic_ns()
                if not end:
                    end = now + AHEAD_NS
                elif now > end:
                    asyncio.get_running_loop().call_soon(self._run)
                    break
        self._is_running = False
        if self._bad is not None and not queue and self._exchange is None:
            self._refuse(*self._bad)
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
            if self._queue or self._next is not None or self._is_ended or self._in_head:
                self._linger()  # to close with something unread would take this answer from the client
            else:
                self._over = True
                self._transport.close()
        elif self._queue or self._bad is not None:
            self._run()
        elif self._owes_continue:
            self._owes_continue = False
            if self._next is not None and not self._size and "expect" in self._next.headers:
                self._transport.write(_CONTINUE)

    def awaits(self, exchange: Exchange) -> bool:
        """Whether this is what is being answered."""
        return exchange is self._exchange

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
            self._bad = error, exchange
            return
        status, headers, content = failure(error, "a request")
        self._write(status, headers, content, False, exchange)
        self._linger()

    def _linger(self) -> None:
        """The last answer is written: throw away what still comes, until the client has seen that."""
        self._over = True
        self._next = self._body = None
        self._queue.clear()
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
        if self._over or self._writes_wait:
            has = taken(self._transport)
            if has is None:
                if self._over and took > LINGER_S:
                    self._transport.abort()
            elif has != self._taken:
                self._taken, self._since = has, now
            elif took > STALL_S:
                self._transport.abort()
        elif self._exchange is not None:
            # Nothing is read while others wait behind it, the end of the connection neither.
            if self._is_paused and self._exchange.ends_with_client and is_gone(self._transport):
                self._transport.abort()
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


def _without_upgrade(method: bytes, url: bytes, version: str, headers: dict[str, str]) -> bytes:
    """A head that asks for no other protocol."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items() if name != "upgrade"])
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, url, version.encode(), lines.encode("latin-1"))


def _told(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__


def _too_much_head(size: int, count: int = 0) -> HeadersTooLarge:
    found = f"{count} headers" if count > HEADER_COUNT else f"{size} bytes"
    return HeadersTooLarge(
        "the headers are too large", found=found, expected=f"at most {HEADER_COUNT} headers of {HEADER_BYTES} bytes"
    )


def _too_large(found: str, most: int) -> PayloadTooLarge:
    return PayloadTooLarge("the body is too large", found=found, expected=f"at most {most} bytes")
