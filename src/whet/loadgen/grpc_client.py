"""gRPC calls with messages that were encoded before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from whet.loadgen.plan import Target
from whet.loadgen.wire import INFER

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # channels of one address would share a connection
)


class GrpcSlot:
    """One channel, one call at a time. Calls `done(slot, error, detail)` once for every `send`."""

    def __init__(self, target: Target, done: Callable[[GrpcSlot, str | None, str], None]) -> None:
        self._done = done
        self._channel = grpc.aio.insecure_channel(f"{target.host}:{target.port}", options=OPTIONS)
        self._call = self._channel.unary_unary(INFER)
        self._task: asyncio.Task[None] | None = None

    def send(self, payload: bytes) -> None:
        """Start one call."""
        self._task = asyncio.get_running_loop().create_task(self._run(payload))

    async def _run(self, payload: bytes) -> None:
        error, detail = None, ""
        try:
            await self._call(payload)
        except grpc.RpcError as failure:
            error, detail = failure.code().name, (failure.details() or "")[:300]
        self._done(self, error, detail)

    def cancel(self) -> None:
        """Give up the call under way; `done` is not called for it."""
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Close the channel."""
        self.cancel()
        await self._channel.close()
