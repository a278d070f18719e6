"""`whet serve`: everything wired together in one process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable

from whet.server.access import Access
from whet.server.data_plane import DataPlane
from whet.server.grpc.server import GrpcServer
from whet.server.http.app import HttpApp
from whet.server.http.server import HttpServer
from whet.server.http.watch import Watch
from whet.server.logs import fields
from whet.server.metrics.endpoint import MetricsApp
from whet.server.observe import Observers
from whet.server.options import ServerOptions
from whet.server.repository.manager import Repository

LOGGER = logging.getLogger("whet.server")


async def serve(options: ServerOptions) -> None:
    """Serve until the process is told to stop (SIGTERM, SIGINT); then answer what was accepted, and return."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def stop() -> None:
        if stopped.is_set():
            os._exit(1)  # the second signal: at once
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    plane = DataPlane()
    observers = Observers(plane, options)
    plane.loading = True
    # Before any port is open: a call may come at once.
    repository = Repository(plane, options)
    plane.repository = repository
    watch = Watch(options.body_s)
    watch.start()
    main = HttpApp(plane, Access(is_open=options.admin_on_main_port), watch, options.body_bytes)
    admin = HttpApp(plane, Access(token=options.admin_token), watch, options.body_bytes)
    apps = ((options.http_port, main), (options.admin_port, admin))
    tls = (options.tls_certificate, options.tls_key, options.tls_client_ca)
    servers = [HttpServer(app, options.host, port, *tls) for port, app in apps if port is not None]
    if options.metrics_port is not None:
        servers.append(HttpServer(MetricsApp(observers.metrics.scrape), options.host, options.metrics_port))
    for server in servers:
        server.start()
    rpcs = []
    if options.grpc_port is not None:
        rpcs.append(GrpcServer(plane, options, options.grpc_port))
    if options.admin_grpc_port is not None:
        rpcs.append(GrpcServer(plane, options, options.admin_grpc_port, admin=True))
    for rpc in rpcs:
        await rpc.start()
    errors = await repository.start()
    if errors and options.exit_on_error:
        stopped.set()
    plane.loading = False
    LOGGER.info("ready", extra=fields(
        models=len(plane.models), http_port=options.http_port, grpc_port=options.grpc_port,
        metrics_port=options.metrics_port,
    ))  # fmt: skip
    await stopped.wait()
    LOGGER.info("stopping: accepted requests are answered, new ones refused")
    end = loop.time() + options.drain_s
    plane.closing = main.closing = admin.closing = True
    # A request whose body still arrives was accepted, too.
    await _until(lambda: not watch.reading, end)
    plane.draining = True
    await asyncio.wait({asyncio.create_task(repository.close())}, timeout=max(0.0, end - loop.time()))
    await _until(lambda: not watch.busy, end)
    await asyncio.gather(*(rpc.stop(max(0.0, end - loop.time())) for rpc in rpcs))
    await asyncio.gather(*(server.stop(1.0) for server in servers))
    watch.stop()
    LOGGER.info("stopped")
    observers.close()
    if errors and options.exit_on_error:
        raise errors[0]


async def _until(done: Callable[[], bool], end: float) -> None:
    """Return when `done`, or at `end` of the loop's time."""
    loop = asyncio.get_running_loop()
    while not done() and loop.time() < end:
        await asyncio.sleep(0.01)
