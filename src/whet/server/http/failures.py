"""Errors that only HTTP has, and how an error becomes an answer."""

from __future__ import annotations

import logging

import orjson

from whet.errors import InvalidArgument, WhetError
from whet.server.errors import Unauthorized, http_status
from whet.server.http.exchange import JSON, Header

LOGGER = logging.getLogger("whet.server.http")


class MethodNotAllowed(InvalidArgument):
    """The address is there, and not for this method. `allow`: the methods that it is for."""

    def __init__(self, method: str, path: str, allow: str) -> None:
        super().__init__("this address does not take the method", value=path, found=method[:40], expected=allow)
        self.allow = allow


class UnsupportedMediaType(InvalidArgument):
    """A body in a form, or compressed in a way, that the server does not read."""


class BodyTimeout(InvalidArgument):
    """A body that did not arrive in time."""


class RequestTimeout(InvalidArgument):
    """Headers that did not arrive in time."""


class HeadersTooLarge(InvalidArgument):
    """More headers, or longer ones, than a request may have."""


class NoSuchAddress(InvalidArgument):
    """Nothing is at this address."""


_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NoSuchAddress, 404),
    (MethodNotAllowed, 405),
    (BodyTimeout, 408),
    (RequestTimeout, 408),
    (UnsupportedMediaType, 415),
    (HeadersTooLarge, 431),
)


def failure(error: Exception, call: str) -> tuple[int, tuple[Header, ...], bytes]:
    """Status, headers and body for an error. One that nobody foresaw is logged, and told by its kind only."""
    if isinstance(error, WhetError):
        text = str(error)
    else:
        LOGGER.error("%s failed", call, exc_info=error)
        text = f"the server failed: {type(error).__name__}"
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 0) or http_status(error)
    more: tuple[Header, ...] = ()
    if isinstance(error, MethodNotAllowed):
        more = (("allow", error.allow),)
    elif isinstance(error, UnsupportedMediaType):
        more = (("accept-encoding", "gzip, deflate, identity"),)
    elif isinstance(error, Unauthorized):
        more = (("www-authenticate", 'Bearer realm="whet"'),)
    # Text from a request may hold what is no text: it is shown escaped.
    return status, (JSON, *more), orjson.dumps({"error": text.encode("utf-8", "backslashreplace").decode()})
