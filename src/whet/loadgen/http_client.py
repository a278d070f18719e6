"""HTTP/1.1 over a raw connection: bytes that were made before go out, and of an answer only its status matters.

A general client parses headers into objects; here a request costs a search for two header fields, so that one core
sends more than the servers under test can take.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

from whet.loadgen.plan import Target

HEAD_LIMIT = 64 << 10


class HttpSlot(asyncio.Protocol):
    """One connection, one request at a time. Calls `done(slot, error, detail)` once for every `send`.

    `error` is None for a 200. A connection that the server closed, or that `cancel` gave up, is opened again by the
    next `send`.
    """

    def __init__(self, target: Target, done: Callable[[HttpSlot, str | None, str], None]) -> None:
        self._target = target
        self._done = done
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._waiting: bytes | None = None
        self._busy = False
        self._buffer = bytearray()
        self._head_size = 0
        self._whole = 0
        self._failed_status = ""
        self._closes = False

    def send(self, payload: bytes) -> None:
        """Send one request."""
        self._busy = True
        if self._transport is not None:
            self._transport.write(payload)
        else:
            self._waiting = payload
            self._opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self, self._target.host, self._target.port)
        except OSError as error:
            if self._waiting is not None:
                self._waiting = None
                self._finish("connect", error.strerror or str(error))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        payload, self._waiting = self._waiting, None
        if payload is not None:
            self._transport.write(payload)
        else:
            self._drop()

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self._drop()
            return
        buffer = self._buffer
        buffer += data
        if not self._whole:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(buffer) > HEAD_LIMIT:
                    self._broken("a header without end")
                return
            if not self._read_head(bytes(buffer[:end]).lower(), end + 4):
                return
        size = len(buffer)
        if self._whole < 0:
            if not buffer.endswith(b"0\r\n\r\n"):
                return
        elif size < self._whole:
            return
        elif size > self._whole:
            self._broken("bytes after the answer")
            return
        status, detail = self._failed_status, ""
        if status:
            detail = _message(bytes(buffer[self._head_size :]))
        buffer.clear()
        self._whole = 0
        if self._closes:
            self._drop()
        self._finish(status or None, detail)

    def _read_head(self, head: bytes, size: int) -> bool:
        """Set what a header tells. `_whole` becomes the size of the answer, -1 for one in chunks."""
        self._head_size = size
        at = head.find(b"\r\ncontent-length:")
        if at >= 0:
            line = head[at + 17 : head.find(b"\r\n", at + 17) if head.find(b"\r\n", at + 17) >= 0 else None]
            if not line.strip().isdigit():
                self._broken("a Content-Length that is no number")
                return False
            self._whole = size + int(line)
        elif b"\r\ntransfer-encoding: chunked" in head:
            self._whole = -1
        else:
            self._broken("neither Content-Length nor chunks")
            return False
        self._failed_status = "" if head[9:12] == b"200" else f"HTTP {head[9:12].decode('ascii', 'replace')}"
        self._closes = b"\r\nconnection: close" in head
        return True

    def _broken(self, what: str) -> None:
        self._drop()
        self._finish("protocol", what)

    def _finish(self, error: str | None, detail: str) -> None:
        if self._busy:
            self._busy = False
            self._done(self, error, detail)

    def _drop(self) -> None:
        transport, self._transport = self._transport, None
        self._buffer = bytearray()
        self._whole = 0
        if transport is not None:
            transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        # One that `_drop` left behind says nothing about the connection in use.
        if self._transport is None or not self._transport.is_closing():
            return
        self._drop()
        self._finish("disconnected", str(error) if error else "the server closed the connection")

    def eof_received(self) -> bool:
        return False

    def cancel(self) -> None:
        """Give up the request under way; `done` is not called for it."""
        self._busy = False
        self._waiting = None
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
        self._drop()


def _message(body: bytes) -> str:
    try:
        document: Any = json.loads(body)
        return str(document["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return body[:100].decode("utf-8", "replace")
