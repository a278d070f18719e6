"""Traces: which requests get one, what its spans say, and that they arrive at a collector."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.running import RunningServer
from tests.server.test_thin_path import save_scale_model

pytest.importorskip("httptools")
pytest.importorskip("opentelemetry.sdk")
tritonclient_http = pytest.importorskip("tritonclient.http")
tritonclient_grpc = pytest.importorskip("tritonclient.grpc")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

from whet.errors import EPFail, InvalidArgument  # noqa: E402
from whet.server.datatypes import BY_NAME  # noqa: E402
from whet.server.errors import Unsupported  # noqa: E402
from whet.server.request import InferRequest, InferResponse, InputTensor, OutputTensor, RequestTimes  # noqa: E402
from whet.server.settings import LogSettings, Settings, TraceSettings  # noqa: E402
from whet.server.tracing import Tracer, otlp_address, propagated, take_context  # noqa: E402

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
FP32 = BY_NAME["FP32"]


class Recorded:
    """A tracer whose spans stay in memory."""

    def __init__(self, traces: TraceSettings) -> None:
        self.settings = Settings(LogSettings(), traces)
        self.exporter = InMemorySpanExporter()
        self.tracer = Tracer(self.settings, SimpleSpanProcessor(self.exporter))

    def ask(self, model: str = "m", traceparent: str = "", tracestate: str = "", cached: bool = False) -> None:
        array = np.zeros((2, 3), np.float32)
        request = InferRequest(model, [InputTensor("x", FP32, array)], id="id-1")
        request.received_ns = 10_000_000
        take_context(request, [("host", "h"), ("traceparent", traceparent), ("tracestate", tracestate)])
        times = RequestTimes(10_000_000, 11_000_000, 13_000_000, 17_000_000, 18_000_000)
        if cached:
            times = RequestTimes(received_ns=10_000_000, finished_ns=18_000_000)
        outputs = [OutputTensor("y", FP32, array)]
        response = InferResponse(
            model, "2", "id-1", outputs, times=times, batch_rows=5, batch_closed="full", from_cache=cached
        )
        self.tracer.observe(request, response)

    def roots(self) -> list[Any]:
        return [s for s in self.exporter.get_finished_spans() if s.name.startswith("infer ")]


ALL = TraceSettings(("TIMESTAMPS",), rate=1)


def test_spans_of_a_request() -> None:
    recorded = Recorded(ALL)
    recorded.ask()
    *children, root = recorded.exporter.get_finished_spans()
    assert root.name == "infer m"
    assert root.kind.name == "SERVER"
    assert root.parent is None
    assert root.end_time - root.start_time == 8_000_000
    assert dict(root.attributes) == {
        "whet.model": "m", "whet.version": "2", "whet.request_id": "id-1", "whet.batch.rows": 5,
        "whet.batch.closed": "full", "whet.from_cache": False,
    }  # fmt: skip
    assert root.resource.attributes["service.name"] == "whet"
    seen = [(s.name, s.start_time - root.start_time, s.end_time - root.start_time) for s in children]
    assert seen == [
        ("receive", 0, 1_000_000), ("queue", 1_000_000, 3_000_000), ("compute", 3_000_000, 7_000_000),
        ("respond", 7_000_000, 8_000_000),
    ]  # fmt: skip
    assert all(s.parent.span_id == root.context.span_id for s in children)
    assert {s.context.trace_id for s in children} == {root.context.trace_id}
    assert dict(children[2].attributes) == {"whet.batch.rows": 5, "whet.batch.closed": "full"}


def test_a_cached_answer_has_no_computation() -> None:
    recorded = Recorded(ALL)
    recorded.ask(cached=True)
    (root,) = recorded.exporter.get_finished_spans()
    assert root.attributes["whet.from_cache"] is True


def test_tensors_are_described_and_not_copied() -> None:
    recorded = Recorded(TraceSettings(("TIMESTAMPS", "TENSORS"), rate=1))
    recorded.ask()
    (root,) = recorded.roots()
    assert (root.attributes["whet.input.x"], root.attributes["whet.output.y"]) == ("FP32[2, 3]", "FP32[2, 3]")


def test_the_callers_trace_goes_on() -> None:
    recorded = Recorded(TraceSettings(("TIMESTAMPS",), rate=1_000_000))
    recorded.ask(traceparent=SAMPLED, tracestate="vendor=1")
    recorded.ask(traceparent=NOT_SAMPLED)
    recorded.ask()
    (root,) = recorded.roots()
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == PARENT
    assert root.context.trace_state.get("vendor") == "1"


def test_a_caller_that_does_not_trace_is_followed() -> None:
    recorded = Recorded(ALL)
    recorded.ask(traceparent=NOT_SAMPLED)
    assert recorded.exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SAMPLED, True),
        (NOT_SAMPLED, False),
        (f"00-{TRACE}-{PARENT}-03", True),
        (f"cc-{TRACE}-{PARENT}-01-more", True),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (SAMPLED.upper(), None),
        (f"{SAMPLED}\n", None),
        ("", None),
        ("x" * 10_000, None),
    ],
)
def test_what_a_traceparent_says(text: str, expected: bool | None) -> None:
    assert propagated(text) is expected


def test_an_invalid_traceparent_is_as_none() -> None:
    recorded = Recorded(ALL)
    recorded.ask(traceparent="nonsense")
    (root,) = recorded.roots()
    assert root.parent is None


@pytest.mark.parametrize(("rate", "expected"), [(1, 12), (2, 6), (5, 2), (13, 0)])
def test_rate(rate: int, expected: int) -> None:
    recorded = Recorded(TraceSettings(("TIMESTAMPS",), rate=rate))
    for number in range(12):
        recorded.ask(f"model-{number % 3}")
    assert len(recorded.roots()) == recorded.tracer.traced == expected


def test_settings_change_what_is_traced() -> None:
    recorded = Recorded(TraceSettings(("OFF",), rate=1))
    settings = recorded.settings
    recorded.ask(traceparent=SAMPLED)
    settings.change_traces({"trace_level": ["TIMESTAMPS"], "trace_count": "2"})
    for _ in range(4):
        recorded.ask("a")
    settings.change_traces({"trace_count": "-1", "trace_level": ["OFF"]}, "b")
    settings.change_traces({"trace_count": "1"})
    recorded.ask("b")
    recorded.ask("c")
    recorded.ask("c")
    assert [s.name for s in recorded.roots()] == ["infer a", "infer a", "infer c"]
    with pytest.raises(Unsupported, match="trace_file"):
        settings.change_traces({"trace_file": "/etc/passwd"})


def test_a_failed_request_is_an_error() -> None:
    recorded = Recorded(ALL)
    recorded.tracer.observe_failure(InferRequest("m", [], "3", "id-2"), EPFail("it broke"))
    (root,) = recorded.exporter.get_finished_spans()
    assert root.status.status_code.name == "ERROR"
    assert root.status.description == "it broke"
    assert root.attributes["error.type"] == "EPFail"
    assert root.attributes["http.response.status_code"] == 500


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("http://[::1]:4318/other/path", "http://[::1]:4318/other/path"),
        ("collector:4318", None),
        ("file:///etc/passwd", None),
        ("http://", None),
        ("http://host:99999", None),
        ("", None),
    ],
)
def test_addresses_of_collectors(given: str, address: str | None) -> None:
    if address is None:
        with pytest.raises(InvalidArgument, match="OTLP"):
            otlp_address(given)
    else:
        assert otlp_address(given) == address


class Collector:
    """What takes spans over OTLP/HTTP, for tests."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def spans(self) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        messages = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [s for m in messages for r in m.resource_spans for c in r.scope_spans for s in c.spans]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.thread.join(10)
    made.server.server_close()


def test_both_protocols_hand_on_the_callers_trace(tmp_path: Path, collector: Collector) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    save_scale_model(folder / "scale.onnx")
    endpoint = f"http://127.0.0.1:{collector.server.server_port}"
    x = np.random.default_rng().standard_normal((3, 4), np.float32)
    with RunningServer(folder, "--trace-endpoint", endpoint, "--trace-rate", "1000000") as server:
        for number, module in enumerate((tritonclient_http, tritonclient_grpc)):
            client = module.InferenceServerClient(server.http if module is tritonclient_http else server.grpc)
            tensor = module.InferInput("x", x.shape, "FP32")
            tensor.set_data_from_numpy(x)
            parent = f"00-{number + 1:032x}-{PARENT}-01"
            answer = client.infer("scale", [tensor], request_id=f"r-{number}", headers={"traceparent": parent})
            np.testing.assert_array_equal(answer.as_numpy("y"), 2 * x + 1)
            client.infer("scale", [tensor], headers={"traceparent": parent[:-1] + "0"})
            client.infer("scale", [tensor])
            client.close()
    # Leaving stopped the server: it sends what waits before it ends.
    by_trace: dict[int, set[str]] = {}
    for span in collector.spans():
        by_trace.setdefault(int.from_bytes(span.trace_id, "big"), set()).add(span.name)
    names = {"infer scale", "receive", "queue", "compute", "respond"}
    assert by_trace == {1: names, 2: names}
    roots = {int.from_bytes(s.trace_id, "big"): s for s in collector.spans() if s.name == "infer scale"}
    assert all(s.parent_span_id.hex() == PARENT for s in roots.values())
    ids = {k: {a.key: a.value for a in s.attributes}["whet.request_id"].string_value for k, s in roots.items()}
    assert ids == {1: "r-0", 2: "r-1"}
