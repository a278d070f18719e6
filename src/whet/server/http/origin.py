"""Requests that a web page makes in somebody's browser: such a page may not change the server, or read a local one.

A page of another site can send requests to a server that its reader can reach (cross-site request forgery), and one
that lets its own name point to the server's address even looks like the server's own (DNS rebinding). Browsers say
where a request comes from; other programs say nothing, and are not asked.

A server that listens on loopback is reached by local names only, unless a page rebound its own, or a proxy passes its
name on: there, every request's Host is looked at (that of an inference only where a browser sends it; the
metrics port answers under any name).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from whet.server.errors import Unauthorized

SAME = ("same-origin", "none")


class OriginCheck:
    """`hosts`: names by which people reach the server, beside addresses, `localhost` and the machine's own name.

    `is_local`: the server listens on loopback.
    """

    def __init__(self, hosts: Iterable[str] = (), is_local: bool = False) -> None:
        self.is_local = is_local
        own = {"localhost", "host.docker.internal", socket.gethostname().lower()}
        self._hosts = own | {h.lower().rstrip(".") for h in hosts}

    def check(self, call: str, headers: Any, authority: str | None) -> None:
        """Raise Unauthorized where a page of another site makes the administrative `call`."""
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site")
        if origin is None and site is None:
            return
        if site is not None and site.lower() not in SAME:
            raise Unauthorized("a web page of another site may not make this call", value=call, found=site)
        host = authority or headers.get("host") or ""
        if origin is not None and _host_port(origin) != _host_port(f"//{host}"):
            raise Unauthorized("a web page of another site may not make this call", value=call, found=origin)
        self._check_host(call, host)

    def check_local(self, call: str, headers: Any, authority: str | None) -> None:
        """Raise Unauthorized where this server is local and the request calls it by a name that is not."""
        if self.is_local and (host := authority or headers.get("host")):
            self._check_host(call, host)

    def _check_host(self, call: str, host: str) -> None:
        if not self._is_own(_host_port(f"//{host}")[0]):
            raise Unauthorized(
                "the server does not know itself by this name", value=call, found=host,
                expected=f"an address, or one of {', '.join(sorted(self._hosts))}",
                hint="Name it with --allowed-host.",
            )  # fmt: skip

    def _is_own(self, host: str) -> bool:
        if host.rstrip(".") in self._hosts:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _host_port(text: str) -> tuple[str, int | None]:
    """Host and port of an origin or of `//host:port`; ("", None) for what is neither, such as `null`."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return "", None
    return parts.hostname or "", port if port not in (80, 443) else None
