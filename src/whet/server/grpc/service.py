"""The published service on grpc.aio: bytes in, bytes out, typed errors as status codes.

Messages are parsed here and not by grpcio, which answers bytes that hold no message with an error of the server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, TypeAlias

import grpc
import grpc.aio

from whet.errors import WhetError
from whet.server.access import Access
from whet.server.data_plane import DataPlane
from whet.server.errors import Cancelled, Unsupported, grpc_code
from whet.server.grpc.calls import HEALTH, SERVICE, Calls
from whet.server.grpc.convert import ModelInferResponse, read_request, write_response
from whet.server.grpc.stream import answer_stream, told
from whet.server.protocol.messages import message, parse, service_methods
from whet.server.tracing import take_context

LOGGER = logging.getLogger("whet.server.grpc")

ModelInferRequest = message("inference.ModelInferRequest")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class GrpcService:
    """The handlers of one server. `closing`: set it, and streams answer what they have read and end."""

    def __init__(self, plane: DataPlane, access: Access) -> None:
        self._plane = plane
        self._calls = Calls(plane, access)
        self.closing = asyncio.Event()

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """What a server is given."""
        found: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self._infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._infer_stream),
        }
        for name, (request, _, _, _) in service_methods(SERVICE).items():
            if name not in found:
                found[name] = grpc.unary_unary_rpc_method_handler(self._unary(name, request, self._calls.by_name))
        health: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(name, request, self._calls.health))
            for name, (request, _, _, _) in service_methods(HEALTH).items()
        }
        return (
            grpc.method_handlers_generic_handler(SERVICE, found),
            grpc.method_handlers_generic_handler(HEALTH, health),
        )

    async def _infer(self, content: bytes, context: Context) -> bytes:
        try:
            request = read_request(parse(ModelInferRequest, content), time.monotonic_ns(), context.time_remaining())
            if self._plane.tracing:
                take_context(request, context.invocation_metadata() or ())
            response = await self._plane.infer(request)
            return write_response(response).SerializeToString()  # type: ignore[no-any-return]
        except Exception as error:
            await _fail(context, error, "ModelInfer")
            raise

    async def _infer_stream(self, requests: object, context: Context) -> None:
        given = dict(context.invocation_metadata() or ())
        ends_at_error = given.get("triton_grpc_error") == "true"

        async def answer(content: bytes) -> tuple[Any, Exception | None]:
            proto = ModelInferRequest()
            try:
                proto = parse(ModelInferRequest, content)
                request = read_request(proto, time.monotonic_ns(), context.time_remaining())
                if self._plane.tracing:
                    take_context(request, given.items())
                return write_response(await self._plane.infer(request)), None
            except Exception as error:
                _log_unforeseen(error, "ModelStreamInfer")
                known = ModelInferResponse(id=proto.id, model_name=proto.model_name, model_version=proto.model_version)
                return known, error

        error = await answer_stream(context, answer, self.closing, ends_at_error)
        if error is not None:
            await _fail(context, error, "ModelStreamInfer")

    def _unary(self, name: str, kind: Any, calls: Any) -> Any:
        call = calls.get(name)

        async def handle(content: bytes, context: Context) -> bytes:
            try:
                if call is None:
                    raise Unsupported("this server does not have this call", value=name)
                answer = await call(parse(kind, content), lambda: _authorization(context))
                return answer.SerializeToString()  # type: ignore[no-any-return]
            except Exception as error:
                await _fail(context, error, name)
                raise

        return handle


def _authorization(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            return value if isinstance(value, str) else None
    return None


def _log_unforeseen(error: Exception, call: str) -> None:
    if not isinstance(error, WhetError):
        LOGGER.error("%s failed", call, exc_info=error)


async def _fail(context: Context, error: Exception, call: str) -> None:
    """End the call with the error's status. An error that nobody foresaw is logged and told by its kind only."""
    _log_unforeseen(error, call)
    code = grpc.StatusCode[grpc_code(error)]
    if isinstance(error, Cancelled) and context.cancelled():
        return
    await context.abort(code, told(error))
