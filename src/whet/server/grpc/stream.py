"""ModelStreamInfer: requests of one stream run together and are answered in the order in which they came.

So does Triton for models that give one answer to a request. A request that fails is answered with an `error_message`
and its id, and the stream goes on; with the metadata `triton_grpc_error: true` the stream ends with the error's status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc.aio

from whet.errors import WhetError
from whet.server.errors import ShuttingDown
from whet.server.protocol.messages import message

ModelStreamInferResponse = message("inference.ModelStreamInferResponse")

MAX_IN_FLIGHT = 256
"""Requests of one stream that wait or run at a time; the next is read when the first of them is answered."""

Task: TypeAlias = "asyncio.Task[tuple[Any, Exception | None]]"

QUIET_S = 0.1
"""A stream that brought nothing for so long brings nothing that was sent before its server began to stop."""

REST_S = 1.0
"""A stream that brings more all the time is not read for longer."""

FINAL = "triton_final_response"

Answer = Callable[[bytes], Awaitable["tuple[Any, Exception | None]"]]
"""Answers one request: the ModelInferResponse, or one with what is known of the request beside the error."""


def told(error: Exception) -> str:
    """What a client is told of an error: of one that nobody foresaw its kind only."""
    return str(error) if isinstance(error, WhetError) else f"the server failed: {type(error).__name__}"


async def answer_stream(
    context: grpc.aio.ServicerContext[Any, Any], answer: Answer, closing: asyncio.Event, ends_at_error: bool
) -> Exception | None:
    """Answer the stream's requests until the client has no more. Returns the error with which the stream ends.

    When `closing` is set, what the client has sent is read and answered; then the stream ends. Whatever ends this
    early stops the work.
    """
    running: asyncio.Queue[Task | None] = asyncio.Queue(MAX_IN_FLIGHT)
    pending: set[Task] = set()
    loop = asyncio.get_running_loop()
    came = loop.time()

    async def read_all() -> None:
        nonlocal came
        while (content := await context.read()) is not grpc.aio.EOF:
            came = loop.time()
            task: Task = loop.create_task(answer(content))  # type: ignore[arg-type]
            pending.add(task)
            task.add_done_callback(pending.discard)
            await running.put(task)

    async def read() -> None:
        reading = loop.create_task(read_all())
        closed = loop.create_task(closing.wait())
        try:
            await asyncio.wait((reading, closed), return_when=asyncio.FIRST_COMPLETED)
            end = loop.time() + REST_S
            while not reading.done() and (now := loop.time()) < end and (running.full() or now - came < QUIET_S):
                await asyncio.wait((reading,), timeout=QUIET_S / 2)
        finally:
            reading.cancel()
            closed.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await running.put(None)

    reader = loop.create_task(read())
    try:
        while (task := await running.get()) is not None:
            response, error = await task
            if error is not None and ends_at_error:
                return error
            response.parameters[FINAL].bool_param = True
            sent = ModelStreamInferResponse(infer_response=response)
            if error is not None:
                sent.error_message = told(error)
            await context.write(sent.SerializeToString())
    finally:
        reader.cancel()
        for left in list(pending):
            left.cancel()
        await asyncio.gather(reader, *pending, return_exceptions=True)
    return ShuttingDown("the server is shutting down", hint="Ask another one.") if closing.is_set() else None
