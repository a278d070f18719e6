"""OpenTelemetry traces of requests: receipt, queue, computation and answer as spans of one trace.

Spans are made after the request, from the times that it carries anyway, so that a request that is not traced pays for
nothing but the decision. The packages come with `pip install 'whet[tracing]'`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from whet.errors import EPFail, InvalidArgument
from whet.server.errors import http_status
from whet.server.request import InferRequest, InferResponse, StepRun
from whet.server.settings import Settings, TraceSettings
from whet.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

# https://www.w3.org/TR/trace-context/#traceparent-header: version, trace id, parent id, flags.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1
_OTLP_PATH = "/v1/traces"


def propagated(traceparent: str) -> bool | None:
    """Whether the caller traces this request; None where it says nothing that is valid."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return None if match is None else bool(int(match[1], 16) & _SAMPLED)


def take_context(request: InferRequest, headers: Iterable[tuple[str, str | bytes]]) -> None:
    """Keep the caller's trace context, from HTTP headers or gRPC metadata (lower case), with the request."""
    for name, value in headers:
        if name == "traceparent" and isinstance(value, str):
            request.traceparent = value
        elif name == "tracestate" and isinstance(value, str):
            request.tracestate = value


class Sampling:
    """Which requests are traced under one state of the settings: what the caller traces, and every `rate`-th other.

    A caller that says that it does not trace is followed, too. No more than `count` are traced, where that is not -1.
    """

    def __init__(self, settings: TraceSettings) -> None:
        self.settings = settings
        self._seen = 0
        self._left = settings.count

    def takes(self, caller: bool | None) -> bool:
        """Whether to trace the request that is here now."""
        if not self.settings.is_on or not self._left:
            return False
        if caller is None:
            self._seen += 1
            caller = self._seen % self.settings.rate == 0
        if caller and self._left > 0:
            self._left -= 1
        return caller


class Tracer:
    """Records the traces of requests on `processor`, an OpenTelemetry span processor. Lives on the event loop.

    `observe` and `observe_failure` are called once for each request; what is traced is up to the settings.
    """

    def __init__(self, settings: Settings, processor: SpanProcessor) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider, sampling
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        own = Resource({"service.name": "whet", "service.version": __version__})
        self._provider = TracerProvider(
            sampler=sampling.ALWAYS_ON,
            # What the standard's variables (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) say goes before our own.
            resource=own.merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("whet.server", __version__)
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._settings = settings
        self._sampling: dict[str, Sampling] = {}
        self.traced = 0

    def observe(self, request: InferRequest, response: InferResponse) -> None:
        """Trace the answered request, if it is one of those that are."""
        settings = self._taken(request)
        if settings is None:
            return
        times = response.times
        span, inside, offset = self._root(request, response.version, times.received_ns)
        span.set_attributes({
            "whet.batch.rows": response.batch_rows,
            "whet.batch.closed": response.batch_closed,
            "whet.from_cache": response.from_cache,
        })  # fmt: skip
        if "TENSORS" in settings.levels:
            span.set_attributes({
                **{f"whet.input.{t.name}": _described(t) for t in request.inputs},
                **{f"whet.output.{t.name}": _described(t) for t in response.outputs},
            })  # fmt: skip
        self._inside(response, inside, offset)
        span.end(times.finished_ns + offset)

    def _inside(self, response: InferResponse | StepRun, inside: Any, offset: int) -> None:
        """The spans of a request's parts, and of an ensemble's steps with their own parts."""
        times = response.times
        compute: dict[str, Any] = {"whet.batch.rows": response.batch_rows, "whet.batch.closed": response.batch_closed}
        for name, start, end, attributes in (
            ("receive", times.received_ns, times.queued_ns, None),
            ("queue", times.queued_ns, times.started_ns, None),
            ("compute", times.started_ns, times.computed_ns, compute),
            ("respond", times.computed_ns, times.finished_ns, None),
        ):
            # A request that did not come so far (the cache had its answer) has no such times.
            if start and end:
                child = self._tracer.start_span(name, inside, start_time=start + offset, attributes=attributes)
                if name == "compute":
                    self._steps(response.steps, self._trace.set_span_in_context(child), offset)
                child.end(end + offset)

    def _steps(self, steps: Sequence[StepRun], inside: Any, offset: int) -> None:
        for step in steps:
            span = self._tracer.start_span(
                f"step {step.model}", inside, start_time=step.times.received_ns + offset,
                attributes={
                    "whet.model": step.model, "whet.version": step.version, "whet.batch.rows": step.batch_rows,
                    "whet.batch.closed": step.batch_closed, "whet.from_cache": step.from_cache,
                },
            )  # fmt: skip
            self._inside(step, self._trace.set_span_in_context(span), offset)
            span.end(step.times.finished_ns + offset)

    def observe_failure(self, request: InferRequest, error: Exception) -> None:
        """Trace the failed request, if it is one of those that are: one span, with the error as its status."""
        if self._taken(request) is None:
            return
        now = time.monotonic_ns()
        span, _, offset = self._root(request, request.version, request.received_ns or now)
        span.set_attributes({"error.type": type(error).__name__, "http.response.status_code": http_status(error)})
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, str(error)))
        span.end(now + offset)

    def close(self) -> None:
        """Export what waits, and stop."""
        self._provider.shutdown()

    def _taken(self, request: InferRequest) -> TraceSettings | None:
        settings = self._settings.traces(request.model)
        if not settings.is_on:
            return None
        # Models without settings of their own are counted together, as the server's settings mean it.
        key = "" if settings is self._settings.traces() else request.model
        found = self._sampling.get(key)
        if found is None or found.settings is not settings:
            found = self._sampling[key] = Sampling(settings)
        return settings if found.takes(propagated(request.traceparent) if request.traceparent else None) else None

    def _root(self, request: InferRequest, version: str, received_ns: int) -> tuple[Any, Any, int]:
        """The span of the whole request, the context for spans inside of it, and what makes wall times of its times."""
        self.traced += 1
        offset = time.time_ns() - time.monotonic_ns()
        context = None
        if request.traceparent and propagated(request.traceparent) is not None:
            carrier = {"traceparent": request.traceparent, "tracestate": request.tracestate}
            context = self._propagator.extract(carrier)
        span = self._tracer.start_span(
            f"infer {request.model}", context, self._trace.SpanKind.SERVER, start_time=received_ns + offset,
            attributes={"whet.model": request.model, "whet.version": version, "whet.request_id": request.id},
        )  # fmt: skip
        return span, self._trace.set_span_in_context(span), offset


def otlp_processor(endpoint: str) -> SpanProcessor:
    """What sends spans to the collector at `endpoint` (OTLP over HTTP), in batches, from a thread of its own.

    Raises InvalidArgument for what is no such address, EPFail where the packages are not installed.
    """
    address = otlp_address(endpoint)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise EPFail(
            "a package that traces need is not installed", found=error.name, hint="pip install 'whet[tracing]'"
        ) from error
    return BatchSpanProcessor(OTLPSpanExporter(address))


def otlp_address(endpoint: str) -> str:
    """The full address: `http://collector:4318` gets OTLP's path. Raises InvalidArgument."""
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise InvalidArgument(
            "not the address of an OTLP collector", found=endpoint, expected="http://HOST:4318, or https://..."
        )
    return urlunsplit(parts._replace(path=_OTLP_PATH)) if parts.path in ("", "/") else endpoint


def _described(tensor: Any) -> str:
    return f"{tensor.datatype.name}{list(tensor.array.shape)}"
