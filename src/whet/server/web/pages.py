"""The addresses of the web page: `/`, and everything under `/ui/`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from whet.server.access import Access
from whet.server.http.exchange import JSON, Exchange, Header
from whet.server.http.failures import MethodNotAllowed, NoSuchAddress
from whet.server.web.status import Status

TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Scripts and styles are files of this server, and nothing turns text into markup: model names come from anybody.
POLICY = "; ".join((
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
))  # fmt: skip

TO_PAGE: tuple[Header, ...] = (("location", "ui/"), ("cache-control", "no-store"))
GUARDS: tuple[Header, ...] = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
)


class WebPages:
    """Answers the page's addresses on one port, whose rule is `access`. Give `by_part` to `HttpApp`."""

    def __init__(self, status: Status, access: Access) -> None:
        self._status = status
        self._access = access
        self.by_part = {"": self.root, "ui": self.ui}

    async def root(self, exchange: Exchange) -> None:
        """Lead to the page."""
        if exchange.path != "/":
            raise NoSuchAddress("there is nothing at this address", found=exchange.path)
        _only_read(exchange)
        exchange.respond(307, TO_PAGE)

    async def ui(self, exchange: Exchange) -> None:
        """A static file, or one of the documents `/ui/status` and `/ui/models/NAME/VERSION`."""
        _only_read(exchange)
        path = exchange.path
        if path == "/ui":
            exchange.respond(307, TO_PAGE)
        elif path == "/ui/status":
            _send(exchange, await self._status.live(self._access))
        elif path.startswith("/ui/models/") and path.count("/") == 4:
            _, _, _, name, version = path.split("/")
            _send(exchange, self._status.model(name, version))
        else:
            self._file(exchange, path[4:] or "index.html")

    def _file(self, exchange: Exchange, name: str) -> None:
        found = static_files().get(name)
        if found is None:
            raise NoSuchAddress("there is nothing at this address", found=exchange.path, hint="The page is at /ui/.")
        kind, tag, content = found
        headers: tuple[Header, ...] = (("etag", tag), ("cache-control", "no-cache"), *GUARDS)
        if tag in (exchange.headers.get("if-none-match") or ""):
            exchange.respond(304, headers)
        else:
            exchange.respond(200, (("content-type", kind), *headers), content)


@cache
def static_files() -> Mapping[str, tuple[str, str, bytes]]:
    """Content type, entity tag and content of each file by its name. Read once, when the page is first asked for."""
    found = {}
    for file in files("whet.server.web").joinpath("static").iterdir():
        kind = TYPES.get(file.name[file.name.rfind(".") :])
        if kind is not None:
            content = file.read_bytes()
            found[file.name] = kind, f'"{hashlib.sha256(content).hexdigest()[:20]}"', content
    return found


def _only_read(exchange: Exchange) -> None:
    if exchange.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(exchange.method, exchange.path, "GET, HEAD")


def _send(exchange: Exchange, content: bytes) -> None:
    exchange.respond(200, (JSON, ("cache-control", "no-store"), *GUARDS), content)
