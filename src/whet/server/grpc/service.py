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
from whet.server.errors import Cancelled, ShuttingDown, Unsupported, grpc_code
from whet.server.grpc.calls import HEALTH, SERVICE, Calls
from whet.server.grpc.convert import LONGEST_S, ModelInferResponse, read_request, write_response
from whet.server.grpc.forms import RequestForms, ResponseForms
from whet.server.grpc.stream import answer_stream, told
from whet.server.protocol.messages import message, parse, service_methods
from whet.server.request import InferRequest, InferResponse
from whet.server.tracing import take_context

LOGGER = logging.getLogger("whet.server.grpc")

ModelInferRequest = message("inference.ModelInferRequest")

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class GrpcService:
    """The handlers of one server. `closing`: set it, and streams answer what they have been sent and end, and unary
    inferences are refused. `inferences`: how many unary ones came; `streams`: how many are open."""

    def __init__(self, plane: DataPlane, access: Access) -> None:
        self._plane = plane
        self._calls = Calls(plane, access)
        self.closing = asyncio.Event()
        self.inferences = 0
        self.streams = 0
        self._requests = RequestForms()
        self._responses = ResponseForms()

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
        self.inferences += 1
        try:
            if self.closing.is_set():
                raise ShuttingDown("the server is shutting down", hint="Ask another one.")
            request = self._read(content, context.time_remaining())
            if self._plane.tracing:
                take_context(request, context.invocation_metadata() or ())
            response = await self._plane.infer(request)
            return self._responses.write(response) or self._write(response)
        except Exception as error:
            await _fail(context, error, "ModelInfer")
            raise

    def _read(self, content: bytes, remaining_s: float | None) -> InferRequest:
        received = time.monotonic_ns()
        request = self._requests.read(content, received)
        if request is None:
            request = read_request(parse(ModelInferRequest, content), received, remaining_s)
            self._requests.learn(content, request)
        elif remaining_s is not None and remaining_s < LONGEST_S:
            request.deadline_ns = received + int(remaining_s * 1e9)
        return request

    def _write(self, response: InferResponse) -> bytes:
        content: bytes = write_response(response).SerializeToString()
        self._responses.learn(content, response)
        return content

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

        self.streams += 1
        try:
            error = await answer_stream(context, answer, self.closing, ends_at_error)
        finally:
            self.streams -= 1
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
