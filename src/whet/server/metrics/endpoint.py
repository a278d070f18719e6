"""GET /metrics: an application of its own for the metrics port, and a function for the main one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from whet.server.http.exchange import Exchange

LOGGER = logging.getLogger("whet.server.metrics")

Scrape = Callable[[str], Awaitable[tuple[str, bytes]]]
"""From an Accept header to the content type and the text: `Metrics.scrape`."""

PLAIN = ("content-type", "text/plain; charset=utf-8")


async def answer_metrics(scrape: Scrape, exchange: Exchange) -> None:
    """Answer GET or HEAD of the metrics; any other method is refused."""
    if exchange.method not in ("GET", "HEAD"):
        exchange.respond(405, (PLAIN, ("allow", "GET, HEAD")), b"metrics are read with GET\n")
        return
    content_type, content = await scrape(exchange.headers.get("accept") or "")
    exchange.respond(200, (("content-type", content_type), ("cache-control", "no-store")), content)


class MetricsApp:
    """The application of the metrics port. Nothing but /metrics is there."""

    def __init__(self, scrape: Scrape) -> None:
        self._scrape = scrape

    def handle(self, exchange: Exchange) -> None:
        """Answer a request."""
        if exchange.path == "/metrics":
            exchange.start(self._answer(exchange))
        else:
            exchange.respond(404, (PLAIN,), b"only /metrics is here\n")

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await answer_metrics(self._scrape, exchange)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            LOGGER.error("a scrape failed", exc_info=error)
            exchange.respond(500, (PLAIN,), f"the scrape failed: {type(error).__name__}\n".encode())
