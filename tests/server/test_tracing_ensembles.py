"""Traces of ensembles: a span for each step, with its own parts inside."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.server.test_ensemble import CHAIN, DIAMOND, FP32, members, sessions
from whet.server.model import ServedModel
from whet.server.model_config import ModelConfig
from whet.server.request import InferRequest, InputTensor
from whet.server.settings import LogSettings, Settings, TraceSettings
from whet.server.tracing import Tracer
from whet.session.inference_session import InferenceSession

assert sessions  # a fixture

PARTS = ["compute", "queue", "receive", "respond"]


def traced(config: ModelConfig, models: dict[str, InferenceSession]) -> list[Any]:
    """The spans of one request to the ensemble."""
    exporter = InMemorySpanExporter()
    tracer = Tracer(Settings(LogSettings(), TraceSettings(("TIMESTAMPS",), rate=1)), SimpleSpanProcessor(exporter))

    async def go() -> None:
        plane = await members(models)
        plane.publish(ServedModel(config, "1", None, None, plane.model))
        plane.on_answer = tracer.observe
        x = np.float32([[1, 2, 3], [4, 5, 6]])
        request = InferRequest("pipeline", [InputTensor("in", FP32, x)], id="id-1", received_ns=1)
        await plane.infer(request)
        for versions in plane.models.values():
            for model in versions.values():
                await model.close()

    asyncio.run(go())
    tracer.close()
    return list(exporter.get_finished_spans())


@pytest.mark.parametrize(
    ("config", "steps"),
    [(CHAIN, ["double", "double", "square"]), (DIAMOND, ["add", "double", "square"])],
    ids=["chain", "diamond"],
)
def test_each_step_has_a_span(config: ModelConfig, steps: list[str], sessions: Any) -> None:
    spans = traced(config, sessions)
    by_id = {s.context.span_id: s for s in spans}
    (root,) = [s for s in spans if s.parent is None]
    assert root.name == "infer pipeline"
    assert root.attributes["whet.batch.closed"] == "ensemble"
    (compute,) = [s for s in spans if s.name == "compute" and s.parent.span_id == root.context.span_id]
    of_steps = [s for s in spans if s.name.startswith("step ")]
    assert sorted(s.name.removeprefix("step ") for s in of_steps) == steps
    for step in of_steps:
        assert step.parent.span_id == compute.context.span_id
        assert step.attributes["whet.version"] == "1"
        assert step.attributes["whet.batch.rows"] == 2
        assert step.attributes["whet.batch.closed"] != "ensemble"
        assert compute.start_time <= step.start_time < step.end_time <= compute.end_time
        inside = [s for s in spans if s.parent is not None and s.parent.span_id == step.context.span_id]
        assert sorted(s.name for s in inside) == PARTS
        assert all(step.start_time <= s.start_time <= s.end_time <= step.end_time for s in inside)
    # The last step has what the others made.
    last = max(of_steps, key=lambda s: s.end_time)
    assert all(s.end_time <= last.start_time for s in of_steps if s is not last)
    assert len(by_id) == 1 + len(PARTS) + len(steps) * (1 + len(PARTS))
    assert {s.context.trace_id for s in spans} == {root.context.trace_id}
