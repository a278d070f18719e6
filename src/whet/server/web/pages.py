"""The addresses of the web page: `/`, and everything under `/ui/`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from whet.server.access import Access
from whet.server.http.failures import JSON, MethodNotAllowed, NoSuchAddress
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

GUARDS: tuple[tuple[str, str], ...] = (
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

    async def root(self, scope: Any, protocol: Any) -> None:
        """Lead to the page."""
        if scope.path != "/":
            raise NoSuchAddress("there is nothing at this address", found=scope.path)
        _only_read(scope)
        protocol.response_empty(307, [("location", "ui/"), ("cache-control", "no-store")])

    async def ui(self, scope: Any, protocol: Any) -> None:
        """A static file, or one of the documents `/ui/status` and `/ui/models/NAME/VERSION`."""
        _only_read(scope)
        path = scope.path
        if path == "/ui":
            protocol.response_empty(307, [("location", "ui/"), ("cache-control", "no-store")])
        elif path == "/ui/status":
            _send(scope, protocol, await self._status.live(self._access))
        elif path.startswith("/ui/models/") and path.count("/") == 4:
            _, _, _, name, version = path.split("/")
            _send(scope, protocol, self._status.model(name, version))
        else:
            self._file(scope, protocol, path[4:] or "index.html")

    def _file(self, scope: Any, protocol: Any, name: str) -> None:
        found = static_files().get(name)
        if found is None:
            raise NoSuchAddress("there is nothing at this address", found=scope.path, hint="The page is at /ui/.")
        kind, tag, content = found
        headers = [("etag", tag), ("cache-control", "no-cache"), *GUARDS]
        if tag in (scope.headers.get("if-none-match") or ""):
            protocol.response_empty(304, headers)
        else:
            protocol.response_bytes(200, [("content-type", kind), *headers], b"" if scope.method == "HEAD" else content)


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


def _only_read(scope: Any) -> None:
    if scope.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(scope.method, scope.path, "GET, HEAD")


def _send(scope: Any, protocol: Any, content: bytes) -> None:
    headers = [JSON, ("cache-control", "no-store"), *GUARDS]
    protocol.response_bytes(200, headers, b"" if scope.method == "HEAD" else content)
