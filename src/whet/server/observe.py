"""Metrics, traces and logs of a server, put together from its options and hung onto its data plane."""

from __future__ import annotations

import logging

from whet.server.data_plane import DataPlane
from whet.server.logs import ServerLog, log_answer, log_failure
from whet.server.metrics.collect import Metrics
from whet.server.metrics.gpu import find_gpus
from whet.server.options import ServerOptions
from whet.server.request import InferRequest, InferResponse
from whet.server.settings import LogSettings, Settings, TraceSettings
from whet.server.tracing import Tracer, otlp_processor

LOGGER = logging.getLogger("whet.server")


class Observers:
    """What watches a server. Made on the event loop, before anything else of the server; `close` comes last.

    Raises InvalidArgument and EPFail for a trace endpoint that cannot be used.
    """

    def __init__(self, plane: DataPlane, options: ServerOptions) -> None:
        self._plane = plane
        traces = TraceSettings(rate=options.trace_rate)
        if options.trace_endpoint is not None:
            traces = TraceSettings(("TIMESTAMPS",), options.trace_rate)
        logs = LogSettings(verbose=options.log_verbose, format="json" if options.log_format == "json" else "default")
        settings = plane.settings = Settings(logs, traces)
        processor = None if options.trace_endpoint is None else otlp_processor(options.trace_endpoint)
        self._tracer = None if processor is None else Tracer(settings, processor)
        self._log = ServerLog(logs)
        self._gpus = find_gpus()
        self.metrics = Metrics(plane, self._gpus)
        self.metrics.dropped_logs = lambda: self._log.dropped
        if self._tracer is not None:
            tracer = self._tracer
            self.metrics.requests_traced = lambda: tracer.traced
        settings.on_logs = self._logs_changed
        settings.on_traces = self._traces_changed
        plane.metrics = self.metrics.scrape
        plane.tracing = self._tracer is not None
        plane.on_failure = self._failed
        self._logs_changed(logs)

    def close(self) -> None:
        """Send the traces that wait, write the lines that wait."""
        self._plane.on_answer = self._plane.on_failure = self._plane.metrics = None
        if self._tracer is not None:
            self._tracer.close()
        if self._gpus is not None:
            self._gpus.close()
        self._log.stop()

    def _logs_changed(self, logs: LogSettings) -> None:
        self._log.apply(logs)
        # The hook is not even set where nobody listens: the hot path looks at one attribute.
        self._plane.on_answer = self._answered if self._tracer is not None or logs.verbose else None

    def _traces_changed(self, traces: TraceSettings, model: str) -> None:
        if traces.is_on and self._tracer is None:
            LOGGER.warning("traces are on, but none are recorded: the server was started without --trace-endpoint")

    def _answered(self, request: InferRequest, response: InferResponse) -> None:
        if self._tracer is not None:
            self._tracer.observe(request, response)
        if self._plane.settings.logs.verbose:
            log_answer(request, response)

    def _failed(self, request: InferRequest, error: Exception) -> None:
        if self._tracer is not None:
            self._tracer.observe_failure(request, error)
        log_failure(request, error)
