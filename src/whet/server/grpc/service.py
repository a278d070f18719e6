"""The gRPC server: the published service's methods, each a few lines over the data plane."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from whet.errors import WhetError
from whet.server.data_plane import DataPlane
from whet.server.errors import Unsupported, grpc_code
from whet.server.grpc.convert import read_request, write_response
from whet.server.protocol.messages import message, service_methods

SERVICE = "inference.GRPCInferenceService"
UNLIMITED = -1

Handler = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]


class GrpcService:
    """The methods of the service by their names; whatever is not here answers UNIMPLEMENTED by name."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self.handlers: dict[str, Handler] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._metadata,
            "ModelInfer": self._infer,
        }

    async def _live(self, request: Any, context: Any) -> Any:
        return message("inference.ServerLiveResponse")(live=self._plane.live)

    async def _ready(self, request: Any, context: Any) -> Any:
        return message("inference.ServerReadyResponse")(ready=self._plane.ready)

    async def _metadata(self, request: Any, context: Any) -> Any:
        return message("inference.ServerMetadataResponse")(**self._plane.server_metadata())

    async def _infer(self, request: Any, context: Any) -> Any:
        return write_response(await self._plane.infer(read_request(request, time.monotonic_ns())))


def _guarded(name: str, handler: Handler | None) -> Handler:
    """A handler whose typed errors become status codes."""

    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            if handler is None:
                raise Unsupported("this server does not have this call", value=name)
            return await handler(request, context)
        except WhetError as error:
            await context.abort(grpc.StatusCode[grpc_code(error)], str(error))

    return call


def make_server(plane: DataPlane, body_bytes: int) -> grpc.aio.Server:
    """A server for the current event loop, without ports yet."""
    service = GrpcService(plane)
    handlers = {}
    for name, (request, answer, requests_stream, answers_stream) in service_methods(SERVICE).items():
        if requests_stream or answers_stream:
            continue
        handlers[name] = grpc.unary_unary_rpc_method_handler(
            _guarded(name, service.handlers.get(name)), request.FromString, answer.SerializeToString
        )
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", body_bytes),
            ("grpc.max_send_message_length", UNLIMITED),
            ("grpc.so_reuseport", 0),
        ]
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    return server
