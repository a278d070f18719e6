"""The gRPC server: its ports, TLS and limits."""

from __future__ import annotations

import asyncio
import logging

import grpc
import grpc.aio

from whet.errors import EPFail, InvalidArgument, NoSuchFile
from whet.server.access import Access
from whet.server.data_plane import DataPlane
from whet.server.grpc.service import GrpcService
from whet.server.listener import keep_out
from whet.server.options import ServerOptions

UNLIMITED = -1

MAX_STREAMS = 1024
"""Calls of one connection at a time; the client waits with the next."""

METADATA_BYTES = 16 << 10
"""The largest metadata of a call."""

PING_S = 10
"""Clients may ping an idle connection this often."""

PING_STRIKES = 3
"""Pings that come too soon, after which the connection is closed."""

KEEPALIVE_S = 60
"""A connection that was silent for so long is asked whether its client is still there, and closed where it is not."""

KEEPALIVE_ANSWER_S = 20

REFUSE_S = 5.0
"""How long a server that stops waits for its clients to hear of it."""

QUIET_S = 0.2
"""Clients that sent nothing for so long have heard of it, or have nothing to send."""


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """False where a client went away while its answer was being sent: grpcio logs that, with a traceback."""
    return not record.getMessage().startswith("ExecuteBatchError raised in core")


logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_a_line)


def channel_options(body_bytes: int) -> list[tuple[str, int]]:
    """What grpcio is told of limits. `body_bytes`: the largest message, before and after decompression."""
    return [
        ("grpc.max_receive_message_length", body_bytes),
        ("grpc.max_send_message_length", UNLIMITED),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_S * 1000),
        ("grpc.http2.max_ping_strikes", PING_STRIKES),
        ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_ANSWER_S * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Two servers on one port would share its connections at random.
        ("grpc.so_reuseport", 0),
    ]


class GrpcServer:
    """A server on one port of the running event loop. `admin`: it is the administrative one, which asks for the token.

    Raises EPFail where the port cannot be had, NoSuchFile and InvalidArgument for TLS files.
    """

    def __init__(self, plane: DataPlane, options: ServerOptions, port: int, admin: bool = False) -> None:
        access = Access(token=options.admin_token) if admin else Access(is_open=options.admin_on_main_port)
        self._service = GrpcService(plane, access)
        self._server = grpc.aio.server(options=channel_options(options.body_bytes))
        self._server.add_generic_rpc_handlers(self._service.handlers())
        host = f"[{options.host}]" if ":" in options.host else options.host
        address = f"{host}:{port}"
        credentials = _credentials(options)
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise EPFail(
                "the gRPC port cannot be opened", value=address, hint="Is another server running? Choose another port."
            ) from error

    async def start(self) -> None:
        await self._server.start()

    async def refuse(self) -> None:
        """Refuse new calls, let streams end; return when no client brings more, or has had the time to hear of it.

        Before `stop`: grpcio cancels what its clients have sent and it has not handed out yet, without a word.
        """
        loop, service = asyncio.get_running_loop(), self._service
        end = loop.time() + REFUSE_S
        service.closing.set()
        await keep_out(self.port)
        seen = -1
        while (seen != service.inferences or service.streams) and loop.time() < end:
            seen = service.inferences
            await asyncio.sleep(QUIET_S)

    async def stop(self, drain_s: float) -> None:
        """Close the port; return when calls that run are answered, at most `drain_s` later."""
        await self._server.stop(drain_s)


def _credentials(options: ServerOptions) -> grpc.ServerCredentials | None:
    """TLS where there is a certificate; clients show one of their own where `tls_client_ca` is given."""
    certificate, key, authority = options.tls_certificate, options.tls_key, options.tls_client_ca
    if certificate is None and key is None and authority is None:
        return None
    if certificate is None or key is None:
        raise InvalidArgument("TLS needs a certificate and its key", value="--tls-certificate, --tls-key")
    try:
        pair = (key.read_bytes(), certificate.read_bytes())
        root = authority.read_bytes() if authority is not None else None
    except OSError as error:
        raise NoSuchFile("a file for TLS cannot be read", file=error.filename, found=error.strerror) from error
    return grpc.ssl_server_credentials([pair], root, require_client_auth=root is not None)
