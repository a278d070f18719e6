"""`whet serve`: everything wired together in one process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal

from whet.errors import WhetError
from whet.server.access import Access
from whet.server.data_plane import DataPlane
from whet.server.drain import drain
from whet.server.grpc.server import GrpcServer
from whet.server.http.app import HttpApp
from whet.server.http.origin import OriginCheck, is_loopback
from whet.server.http.server import HttpServer
from whet.server.logs import fields
from whet.server.malloc import keep_freed
from whet.server.metrics.endpoint import MetricsApp
from whet.server.observe import Observers
from whet.server.open_files import allow_files
from whet.server.options import ServerOptions
from whet.server.repository.manager import Repository
from whet.server.web.pages import WebPages
from whet.server.web.status import Status

LOGGER = logging.getLogger("whet.server")


async def serve(options: ServerOptions) -> None:
    """Serve until the process is told to stop (SIGTERM, SIGINT); then answer what was accepted, and return.

    A stop while models are still loaded ends that. Raises WhetErrors for options, ports, files for TLS and a repository
    that cannot be used; nothing is left open then.
    """
    options.check()
    keep_freed()
    allow_files()
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
    origin = OriginCheck(options.allowed_hosts, is_loopback(options.host))
    status = Status(plane, observers.metrics, options)
    main, admin = (
        HttpApp(plane, access, options.body_bytes, origin, WebPages(status, access).by_part)
        for access in (Access(is_open=options.admin_on_main_port), Access(token=options.admin_token))
    )
    apps = ((options.http_port, main), (options.admin_port, admin))
    tls = (options.tls_certificate, options.tls_key, options.tls_client_ca)
    limits = (options.body_bytes, options.body_s)
    servers = [HttpServer(app.handle, options.host, port, *tls, *limits) for port, app in apps if port is not None]
    scrapes: list[HttpServer] = []
    if options.metrics_port is not None:
        scrapes.append(HttpServer(MetricsApp(observers.metrics.scrape).handle, options.host, options.metrics_port))
    rpcs = []
    if options.grpc_port is not None:
        rpcs.append(GrpcServer(plane, options, options.grpc_port))
    if options.admin_grpc_port is not None:
        rpcs.append(GrpcServer(plane, options, options.admin_grpc_port, admin=True))
    # Every port can be had: open them.
    for server in (*servers, *scrapes):
        await server.start()
    for rpc in rpcs:
        await rpc.start()
    try:
        failure = await _load(repository, options, stopped)
        if failure is None and not stopped.is_set():
            _settled(plane, options)
            await stopped.wait()
    except WhetError as error:
        failure = error
    LOGGER.info("stopping: accepted requests are answered")
    await drain(options, plane, repository, servers, scrapes, rpcs)
    LOGGER.info("stopped")
    observers.close()
    if failure is not None:
        raise failure


async def _load(repository: Repository, options: ServerOptions, stopped: asyncio.Event) -> WhetError | None:
    """Load what is served from the start, unless `stopped` comes first. Returns the error that ends the server."""
    loading = asyncio.create_task(repository.start())
    stopping = asyncio.create_task(stopped.wait())
    await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not loading.done():
        loading.cancel()
        await asyncio.wait((loading,))
        return None
    errors = loading.result()
    return errors[0] if errors and options.exit_on_error else None


def _settled(plane: DataPlane, options: ServerOptions) -> None:
    """Everything that is served from the start is there."""
    # Modules and loaded models stay: without this the collector walks through all of them again and again, and every
    # request waits for 40 ms. What a model does not hold in cycles is freed as before.
    gc.collect()
    gc.freeze()
    plane.loading = False
    LOGGER.info("ready", extra=fields(
        models=len(plane.models), http_port=options.http_port, grpc_port=options.grpc_port,
        metrics_port=options.metrics_port,
    ))  # fmt: skip
