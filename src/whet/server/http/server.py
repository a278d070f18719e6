"""The HTTP server: a port with its TLS, its limits and its connections, all on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

from whet.errors import EPFail, InvalidArgument, NoSuchFile
from whet.server.http.connection import Connection
from whet.server.http.exchange import OVERDUE, Exchange
from whet.server.http.port import Port
from whet.server.listener import keep_out

HEADER_S = 20.0
"""How long headers may take, and a TLS handshake."""

IDLE_S = 75.0
"""How long a connection may wait for its next request."""

SHUTDOWN_S = 3600.0
"""A TLS connection that is closed has this time for the rest of its answer; who takes nothing is cut off before."""

GONE_AFTER_S, GONE_PROBES = 60, 5
"""A client that is silent for so long is asked whether it is there, so many times at 15 s from each other."""

BACKLOG = 4096
TICK_S = 0.1

LOGGER = logging.getLogger("whet.server.http")


class HttpServer:
    """Answers HTTP/1.1 on a port: `handle` gets each request. `start`, then `keep_out`, then `stop`.

    `body_bytes`, `body_s`: the most that a body takes, as it comes. Raises InvalidArgument, NoSuchFile or EPFail where
    host, port or TLS files cannot be used.
    """

    def __init__(
        self, handle: Callable[[Exchange], None], host: str, port: int, certificate: Path | None = None,
        key: Path | None = None, client_ca: Path | None = None, body_bytes: int = 1 << 20, body_s: float = 20.0,
    ) -> None:  # fmt: skip
        check_port(host, port)
        self._tls = tls_context(certificate, key, client_ca)
        self._port = Port(handle, body_bytes, body_s, HEADER_S, IDLE_S)
        self._host = host
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._listening: dict[int, int] = {}
        """The files of the sockets that listen: which one is behind a number."""
        self._reopening: asyncio.Task[None] | None = None
        self.port = port

    async def start(self) -> None:
        """Listen. Raises EPFail where another program took the port meanwhile."""
        self._beat()
        try:
            await self._listen()
        except OSError as error:
            self._still()
            raise _not_opened(self._host, self.port, error) from error

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        handshake_s, shutdown_s = (None, None) if self._tls is None else (HEADER_S, SHUTDOWN_S)

        async def listen(family: int) -> asyncio.Server:
            return await loop.create_server(
                lambda: Connection(self._port), self._host, self.port, family=family, backlog=BACKLOG, ssl=self._tls,
                ssl_handshake_timeout=handshake_s, ssl_shutdown_timeout=shutdown_s,
            )  # fmt: skip

        try:
            self._server = await listen(socket.AF_UNSPEC)
        except OSError as error:
            # localhost is an address of IPv6 too, also where the machine has none.
            if error.errno != errno.EADDRNOTAVAIL or ":" in self._host:
                raise
            self._server = await listen(socket.AF_INET)
        self._listening.clear()
        for listening in self._server.sockets:
            _notice_gone(listening)
            self._listening[listening.fileno()] = os.fstat(listening.fileno()).st_ino

    def _keep_open(self) -> None:
        """Listen again where a loop gave up: uvloop does so when it can open no file, and tells nobody."""
        if not self._listening or self._port.closing or self._reopening is not None:
            return
        if self._server is not None and all(_is_still(*one) for one in self._listening.items()):
            return

        async def reopen() -> None:
            try:
                await self._listen()
                LOGGER.warning("the port had been closed for want of files, and is open again")
            except OSError:
                pass  # with the next beat
            finally:
                self._reopening = None

        if self._server is not None:
            self._server.close()
            self._server = None
        self._reopening = asyncio.get_running_loop().create_task(reopen())

    @property
    def closing(self) -> bool:
        """Whether every answer is the last one of its connection."""
        return self._port.closing

    @closing.setter
    def closing(self, value: bool) -> None:
        self._port.closing = value

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._port.connections)

    @property
    def is_busy(self) -> bool:
        """Whether an inference is being answered, or a request is on its way."""
        return any(connection.is_computing for connection in self._port.connections)

    async def keep_out(self) -> None:
        """Take no new connections; return when every one that a client has open is taken."""
        await keep_out(self.port)

    def end_all(self) -> None:
        """End every inference that is still being answered; its client is told why."""
        for connection in tuple(self._port.connections):
            connection.end(OVERDUE)

    async def stop(self, within_s: float) -> None:
        """Close the port and idle connections; what is being answered is. What lingers is cut after `within_s`."""
        loop = asyncio.get_running_loop()
        self._port.closing = True
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._port.connections):
            connection.close_idle()
        end = loop.time() + within_s
        while self._port.connections and loop.time() < end:
            await asyncio.sleep(0.01)
        for connection in tuple(self._port.connections):
            connection.abort()
        self._still()

    def _still(self) -> None:
        """Look at nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._reopening is not None:
            self._reopening.cancel()

    def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TICK_S, self._beat)
        port = self._port
        port.now = loop.time()
        port.date = f"date: {formatdate(usegmt=True)}\r\n".encode()
        self._keep_open()
        for connection in tuple(port.connections):
            try:
                connection.check(port.now)
            except Exception as error:  # times must go on for the others
                LOGGER.error("a connection is cut off", exc_info=error)
                connection.abort()


def check_port(host: str, port: int) -> None:
    """Raise EPFail where `host` and `port` cannot be listened on: before anything else of a server is made."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (socket.gaierror, TypeError, ValueError) as error:  # the latter two: what is no name at all
        raise InvalidArgument("the host is no address of this machine", found=host, hint=str(error)) from error
    except OSError as error:
        raise _not_opened(host, port, error) from error


def _is_still(number: int, file: int) -> bool:
    """Whether a number still stands for a file."""
    try:
        return os.fstat(number).st_ino == file
    except OSError:
        return False


def _notice_gone(listening: socket.socket) -> None:
    """Let the kernel ask clients of this port that are silent for long whether they are still there."""
    with contextlib.suppress(OSError, AttributeError):  # what a system does not have
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, GONE_AFTER_S)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, GONE_PROBES)


def _not_opened(host: str, port: int, error: OSError) -> EPFail:
    hints = {
        errno.EADDRINUSE: "Another program listens there. Choose another port.",
        errno.EACCES: "Ports below 1024 need a privilege. Choose another port.",
        errno.EADDRNOTAVAIL: "This machine has no such address.",
    }
    return EPFail("the port cannot be opened", found=f"{host}:{port}", hint=hints.get(error.errno or 0, str(error)))


def tls_context(certificate: Path | None, key: Path | None, client_ca: Path | None) -> ssl.SSLContext | None:
    """What a port with TLS needs, None without. Clients show a certificate of their own where `client_ca` is given.

    Raises InvalidArgument or NoSuchFile where TLS cannot be had from these files.
    """
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise InvalidArgument("TLS needs a certificate and its key", hint="Give --tls-certificate and --tls-key.")
    for file in (certificate, key, client_ca):
        if file is not None and not file.is_file():
            raise NoSuchFile("there is no such file", file=str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise InvalidArgument(
            "the certificate and key cannot be used", file=str(certificate), value=str(key), found=str(error),
            expected="PEM files that belong to each other, the key without a password",
        ) from error  # fmt: skip
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except (ssl.SSLError, OSError) as error:
            raise InvalidArgument("the CA's file cannot be used", file=str(client_ca), found=str(error)) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context
