"""What the connections of one port have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from http.client import responses
from typing import Protocol

from whet.server.http.exchange import Exchange

READ_BYTES = 32 << 10
"""The most that is read at once, long bodies aside."""


class Open(Protocol):
    """A connection, as its port sees it."""

    @property
    def is_computing(self) -> bool: ...

    def check(self, now: float) -> None: ...

    def close_idle(self) -> None: ...

    def end(self, why: str) -> None: ...

    def abort(self) -> None: ...


class Port:
    """`handle` answers a request, or starts what does. Limits: `body_bytes` of a body, as it comes; seconds for a
    head, for a body, and for a connection that waits for its next request.

    `buffer`: what connections read into. `now` and `date` (a header) are brought up to date a few times a second:
    nobody asks a clock for each request.
    `closing` makes every answer the last one of its connection.
    """

    def __init__(
        self, handle: Callable[[Exchange], None], body_bytes: int, body_s: float, head_s: float, idle_s: float
    ) -> None:
        self.handle = handle
        self.body_bytes = body_bytes
        self.body_s = body_s
        self.head_s = head_s
        self.idle_s = idle_s
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.connections: set[Open] = set()
        self.now = 0.0
        self.date = b""
        self.closing = False


@cache
def status_line(status: int) -> bytes:
    """The first line of an answer."""
    return b"HTTP/1.1 %d %b\r\n" % (status, responses.get(status, "Client Closed Request").encode())
