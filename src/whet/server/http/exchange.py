"""One HTTP request, and how it is answered. The application sees this and not the connection behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Protocol

Header = tuple[str, str]

JSON: Header = ("content-type", "application/json")
ONLY_JSON: tuple[Header, ...] = (JSON,)
"""The headers of most answers: this very tuple costs nothing to write."""

GONE = "gone"
OVERDUE = "overdue"


class Answers(Protocol):
    """Where answers go. `serial`: the number of the connection."""

    serial: int

    def respond(
        self, exchange: Exchange, status: int, headers: tuple[Header, ...], content: bytes, close: bool
    ) -> None: ...

    def awaits(self, exchange: Exchange) -> bool: ...


class Exchange:
    """A request whose body is there. `respond` answers it, once; whatever comes later is dropped.

    `path` is without escapes and query; `headers` by their lower-case names, those that came twice joined by commas;
    `authority`: host and port where the request line names them, None where only `Host` does. `body` as it came, not
    decompressed: a view of its bytes where it is long. `received_ns`: when its headers were there, monotonic.
    `ended`: why its task was cancelled, GONE or OVERDUE, "" where nobody did.
    """

    __slots__ = (
        "_answers", "authority", "body", "ended", "ends_with_client", "headers", "keep_alive", "method", "path",
        "received_ns", "task",
    )  # fmt: skip

    def __init__(
        self, answers: Answers, method: str, path: str, authority: str | None, headers: Mapping[str, str],
        keep_alive: bool, received_ns: int,
    ) -> None:  # fmt: skip
        self._answers = answers
        self.method = method
        self.path = path
        self.authority = authority
        self.headers = headers
        self.keep_alive = keep_alive
        self.received_ns = received_ns
        self.body: bytes | memoryview = b""
        self.task: asyncio.Task[None] | None = None
        self.ends_with_client = False
        self.ended = ""

    @property
    def source(self) -> int:
        """The same for the requests of one connection."""
        return self._answers.serial

    @property
    def is_open(self) -> bool:
        """Whether a client waits for the answer."""
        return self._answers.awaits(self)

    def respond(
        self, status: int, headers: tuple[Header, ...] = ONLY_JSON, content: bytes = b"", close: bool = False
    ) -> None:
        """Answer. `close`: this is the last answer of the connection. A HEAD request gets the headers only."""
        self._answers.respond(self, status, headers, content, close)

    def start(self, work: Coroutine[Any, Any, None], ends_with_client: bool = False) -> None:
        """Let a task answer. `ends_with_client`: it is cancelled when the client goes, or a stop takes too long."""
        self.ends_with_client = ends_with_client
        self.task = asyncio.get_running_loop().create_task(work)

    def end(self, why: str) -> None:
        """Cancel the task, where it is one that may be."""
        if self.task is not None and self.ends_with_client and not self.ended:
            self.ended = why
            # Not before its first step: a task that never began could tell nobody.
            self.task.get_loop().call_soon(self.task.cancel)
