"""A measurement as a JSON document and as a row of a table."""

from __future__ import annotations

from typing import Any

from whet.loadgen.histogram import Histogram
from whet.loadgen.run import Result

PERCENTILES = (50, 90, 95, 99, 99.9)
COLUMNS = ["connections", "rate", "requests/s", *(f"p{p:g}" for p in PERCENTILES), "max", "errors", "stable"]


def latency_document(latency: Histogram) -> dict[str, Any]:
    """Milliseconds: mean, percentiles, largest."""
    document = {"count": latency.count, "mean_ms": round(latency.mean_s * 1e3, 4)}
    document |= {f"p{p:g}_ms": round(latency.percentile(p) * 1e3, 4) for p in PERCENTILES}
    return document | {"max_ms": round(latency.max_s * 1e3, 4)}


def document(result: Result) -> dict[str, Any]:
    """Everything that was measured, with the settings that it was measured with."""
    plan = result.plan
    found: dict[str, Any] = {
        "loop": "closed" if plan.pace.rate is None else "open",
        "protocol": plan.target.protocol,
        "encoding": "binary" if plan.target.binary or plan.target.protocol == "grpc" else "json",
        "connections": plan.pace.connections,
        "processes": plan.processes,
        "requests_per_s": round(result.rate, 2),
        "latency": latency_document(result.latency),
        "errors": {
            kind: {"count": count, "example": result.details[kind]} for kind, count in sorted(result.errors.items())
        },
        "stable": result.stable,
        "seconds": round(result.seconds, 3),
        "window_requests_per_s": [round(rate, 2) for rate in result.window_rates],
        "window_mean_ms": [round(mean * 1e3, 4) for mean in result.window_mean_s],
    }
    if plan.pace.rate is not None:
        found["intended_rate"] = plan.pace.rate
        found["arrivals"] = plan.pace.arrivals
        found["waiting_at_end"] = result.backlog
        found["generator_late"] = latency_document(result.late)
    if len(result.by_model) > 1:
        found["models"] = {name: latency_document(latency) for name, latency in result.by_model.items()}
    return found


def milliseconds(seconds: float) -> str:
    """Three digits that matter."""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def row(result: Result) -> list[str]:
    """The cells under COLUMNS; times in milliseconds."""
    pace = result.plan.pace
    return [
        str(pace.connections),
        "closed" if pace.rate is None else f"{pace.rate:g}",
        f"{result.rate:,.0f}" if result.rate >= 100 else f"{result.rate:.1f}",
        *(milliseconds(result.latency.percentile(p)) for p in PERCENTILES),
        milliseconds(result.latency.max_s),
        str(result.error_count),
        "yes" if result.stable else "no",
    ]
