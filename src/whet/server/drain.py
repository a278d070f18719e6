"""How a server stops so that nobody who was let in goes without an answer.

not ready           load balancers look elsewhere; every answer tells its connection to close
(drain_delay_s)     time for them to see it, in which new connections are still taken
ports               no new connections; gRPC tells its clients; HTTP's idle connections may bring one more request
answers             what runs ends, within drain_s; what does not is told so
models, sockets     let go
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from whet.server.data_plane import DataPlane
from whet.server.grpc.server import GrpcServer
from whet.server.http.server import HttpServer
from whet.server.options import ServerOptions
from whet.server.repository.manager import Repository

IDLE_S = 1.0
"""How long idle connections are kept. A request that comes meanwhile is answered, and its connection told to close; one
that a client sends just when its idle connection is closed gets no answer, as with every HTTP server."""

CUT_S = 1.0
"""What is left of connections when everything is answered."""


async def drain(
    options: ServerOptions, plane: DataPlane, repository: Repository,
    servers: Sequence[HttpServer], others: Sequence[HttpServer], rpcs: Sequence[GrpcServer],
) -> None:  # fmt: skip
    """Stop all of it. `others` of the `servers` answer to machines that ask again by themselves (metrics)."""
    loop = asyncio.get_running_loop()
    plane.closing = True
    for server in servers:
        server.closing = True
    await asyncio.sleep(options.drain_delay_s)
    end = loop.time() + options.drain_s
    # Whoever waits for a load is told so: nothing will ask the model.
    await repository.stop_loading()

    async def idle_out() -> None:
        await asyncio.gather(*(server.keep_out() for server in servers))
        await _until(lambda: not any(server.connections for server in servers), loop.time() + IDLE_S)

    parting = asyncio.gather(idle_out(), *(rpc.refuse() for rpc in rpcs))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(parting, max(0.0, end - loop.time()))
    # From here on, new connections are refused, and what runs has the rest of the time.
    left = max(0.0, end - loop.time())
    calls = [asyncio.create_task(rpc.stop(left)) for rpc in rpcs]
    ending = [*calls, *(asyncio.create_task(server.stop(left + CUT_S)) for server in servers)]
    # Models stay until nothing runs: a step of an ensemble may still need one that is idle now.
    await _until(lambda: not any(server.is_busy for server in servers) and all(call.done() for call in calls), end)
    plane.draining = True
    ending.append(asyncio.create_task(repository.close()))
    await asyncio.wait(ending, timeout=max(0.0, end - loop.time()))
    for server in servers:
        server.end_all()
    ending += [asyncio.create_task(server.stop(CUT_S)) for server in others]
    await asyncio.wait(ending, timeout=CUT_S)


async def _until(done: Callable[[], bool], end: float) -> None:
    """Return when `done`, or at `end` of the loop's time."""
    loop = asyncio.get_running_loop()
    while not done() and loop.time() < end:
        await asyncio.sleep(0.01)
