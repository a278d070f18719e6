"""`whet serve`: everything wired together in one process."""

from __future__ import annotations

import asyncio
import logging
import signal

from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server as HttpServer

from whet.server.data_plane import DataPlane
from whet.server.grpc.service import make_server
from whet.server.http.app import HttpApp
from whet.server.options import ServerOptions
from whet.server.repository.manager import Repository

LOGGER = logging.getLogger("whet.server")


async def serve(options: ServerOptions) -> None:
    """Serve until the process is told to stop (SIGTERM, SIGINT); then answer what was accepted, and return."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    plane = DataPlane()
    plane.loading = True
    servers = []
    if options.http_port is not None:
        http = HttpServer(
            HttpApp(plane, options.body_bytes), options.host, options.http_port, interface=Interfaces.RSGI,
            http=HTTPModes.http1, websockets=False, log_enabled=False,
        )  # fmt: skip
        servers.append(http)
    running = [asyncio.create_task(s.serve()) for s in servers]
    rpc = None
    if options.grpc_port is not None:
        rpc = make_server(plane, options.body_bytes)
        rpc.add_insecure_port(f"{options.host}:{options.grpc_port}")
        await rpc.start()
    repository = Repository(plane, options)
    await repository.start()
    plane.loading = False
    await stopped.wait()
    plane.draining = True
    await repository.close()
    if rpc is not None:
        await rpc.stop(options.drain_s)
    for server in servers:
        server.stop()  # type: ignore[no-untyped-call]
    await asyncio.gather(*running)
