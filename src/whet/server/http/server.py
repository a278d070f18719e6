"""The HTTP server: its ports, TLS and limits, on granian's embedded RSGI server."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings
from granian.server.embed import Server

from whet.errors import EPFail, InvalidArgument, NoSuchFile
from whet.server.listener import keep_out

HEADER_BYTES = 64 << 10
"""The most that the headers of a request take."""

HEADER_S = 20
"""How long headers may take; an idle connection is closed after as long."""

BACKLOG = 4096


class HttpServer:
    """An RSGI application on a port. `start`, then `keep_out`, then `stop`."""

    def __init__(
        self, app: Any, host: str, port: int, certificate: Path | None = None, key: Path | None = None,
        client_ca: Path | None = None,
    ) -> None:  # fmt: skip
        check_port(host, port)
        check_tls(certificate, key, client_ca)
        self._server = Server(
            app, host, port, interface=Interfaces.RSGI, http=HTTPModes.http1, websockets=False, log_enabled=False,
            backlog=BACKLOG, backpressure=BACKLOG,
            http1_settings=HTTP1Settings(header_read_timeout=HEADER_S * 1000, max_buffer_size=HEADER_BYTES),
            ssl_cert=certificate, ssl_key=key, ssl_protocol_min=SSLProtocols.tls12, ssl_ca=client_ca,
            ssl_client_verify=client_ca is not None,
        )  # fmt: skip
        self._running: asyncio.Task[None] | None = None
        self.port = port

    def start(self) -> None:
        """Listen."""
        self._running = asyncio.create_task(self._server.serve())

    async def keep_out(self) -> None:
        """Take no new connections; return when every one that a client has open is taken."""
        await keep_out(self.port)

    async def stop(self, within_s: float) -> None:
        """Close the port and idle connections; what is being answered is. What lingers is cut after `within_s`."""
        if self._running is not None:
            self._server.stop()  # type: ignore[no-untyped-call]
            await asyncio.wait({self._running}, timeout=within_s)


def check_port(host: str, port: int) -> None:
    """Raise EPFail where `host` and `port` cannot be listened on.

    granian shares ports between processes: without this, two servers would answer on one port by turns.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise InvalidArgument("the host is no address of this machine", found=host, hint=str(error)) from error
        except OSError as error:
            hints = {
                errno.EADDRINUSE: "Another program listens there. Choose another port.",
                errno.EACCES: "Ports below 1024 need a privilege. Choose another port.",
                errno.EADDRNOTAVAIL: "This machine has no such address.",
            }
            raise EPFail(
                "the port cannot be opened", found=f"{host}:{port}", hint=hints.get(error.errno or 0, str(error))
            ) from error


def check_tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> None:
    """Raise InvalidArgument or NoSuchFile where TLS cannot be had from these files."""
    if certificate is None and key is None and client_ca is None:
        return
    if certificate is None or key is None:
        raise InvalidArgument("TLS needs a certificate and its key", hint="Give --tls-certificate and --tls-key.")
    for file in (certificate, key, client_ca):
        if file is not None and not file.is_file():
            raise NoSuchFile("there is no such file", file=str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise InvalidArgument(
            "the certificate and key cannot be used", file=str(certificate), value=str(key), found=str(error),
            expected="PEM files that belong to each other, the key without a password",
        ) from error  # fmt: skip
    try:
        if client_ca is not None:
            context.load_verify_locations(client_ca)
    except (ssl.SSLError, OSError) as error:
        raise InvalidArgument("the CA's file cannot be used", file=str(client_ca), found=str(error)) from error
