"""GET /metrics over RSGI: an application of its own for the metrics port, and a function for the main one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Scrape = Callable[[str], Awaitable[tuple[str, bytes]]]
"""From an Accept header to the content type and the text: `Metrics.scrape`."""

PLAIN = ("content-type", "text/plain; charset=utf-8")


async def answer_metrics(scrape: Scrape, scope: Any, protocol: Any) -> None:
    """Answer GET or HEAD of the metrics; any other method is refused."""
    if scope.method not in ("GET", "HEAD"):
        protocol.response_str(405, [PLAIN, ("allow", "GET, HEAD")], "metrics are read with GET\n")
        return
    content_type, content = await scrape(scope.headers.get("accept") or "")
    protocol.response_bytes(
        200, [("content-type", content_type), ("cache-control", "no-store")], b"" if scope.method == "HEAD" else content
    )


class MetricsApp:
    """The application of the metrics port. Nothing but /metrics is there."""

    def __init__(self, scrape: Scrape) -> None:
        self._scrape = scrape

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        if scope.path == "/metrics":
            await answer_metrics(self._scrape, scope, protocol)
        else:
            protocol.response_str(404, [PLAIN], "only /metrics is here\n")
