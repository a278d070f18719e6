"""The documents of the web page: counters as they stand, and what a model is.

Nothing is collected between two requests. Counters go out as they are; rates and percentiles over the last seconds are
the page's work, from the differences of two documents.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import orjson

from whet.server.access import Access
from whet.server.data_plane import DataPlane
from whet.server.describe import tensor_document
from whet.server.metrics.collect import Metrics
from whet.server.metrics.gpu import GpuSample
from whet.server.metrics.machine import Machine, MachineSample
from whet.server.model import ServedModel
from whet.server.model_config import TensorConfig
from whet.server.options import ServerOptions
from whet.server.repository.config_message import config_document
from whet.server.scheduling.batcher import REASONS
from whet.server.stats import DURATION_BOUNDS_US, ROW_BOUNDS, Histogram, ModelStats
from whet.version import __version__

FRESH_S = 0.5
"""Of what is read from the system or the disk: several pages that are open share one reading."""

HISTOGRAMS = ("request_us", "queue_us", "infer_us", "batch_rows")
DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


class Status:
    """What the page asks for. Made on the event loop; reads the machine only when asked."""

    def __init__(self, plane: DataPlane, metrics: Metrics, options: ServerOptions) -> None:
        self._plane = plane
        self._metrics = metrics
        self._options = options
        self._machine: Machine | None = None
        self._started = time.time()
        self._reading = asyncio.Lock()
        self._read_at = -FRESH_S
        self._sample: MachineSample | None = None
        self._gpus: list[GpuSample] = []

    async def live(self, access: Access) -> bytes:
        """Everything that changes, as JSON. `access`: the rule of the port that is asked."""
        async with self._reading:
            # Whoever waited for another's reading takes that.
            now = time.monotonic()
            if now - self._read_at >= FRESH_S:
                if self._machine is None:
                    self._machine = Machine()
                self._sample, self._gpus = await self._metrics.read(self._machine)
                self._read_at = now
        return orjson.dumps(self._live_document(access))

    def model(self, name: str, version: str = "") -> bytes:
        """What does not change while a model version is served, as JSON. Raises ModelNotFound, ModelUnavailable."""
        return orjson.dumps(_model_document(self._plane.model(name, version)))

    def _live_document(self, access: Access) -> dict[str, Any]:
        plane, options = self._plane, self._options
        repository = plane.repository
        lacks = repository.unserved if repository is not None and repository.blocks_readiness else []
        return {
            "clock_ms": time.monotonic_ns() / 1e6,
            "started": self._started,
            "uptime_s": time.time() - self._started,
            "version": __version__,
            "live": plane.live,
            "ready": plane.ready,
            "loading": plane.loading,
            "draining": plane.draining or plane.closing,
            "lacks": lacks,
            "ports": {
                "HTTP": options.http_port,
                "gRPC": options.grpc_port,
                "metrics": options.metrics_port,
                "admin": options.admin_port,
                "admin gRPC": options.admin_grpc_port,
            },
            "tls": options.tls_certificate is not None,
            "admin": "open" if access.is_open else "token" if access.token else "off",
            "control_mode": options.control_mode,
            "log_lines_dropped": self._metrics.dropped_logs(),
            "requests_traced": self._metrics.requests_traced(),
            "machine": self._sample,
            "gpus": self._gpus,
            "bounds": {"us": DURATION_BOUNDS_US, "rows": ROW_BOUNDS},
            "batch_reasons": REASONS,
            "states": repository.index() if repository is not None else [],
            "models": [self._model_figures(m) for versions in plane.models.values() for m in versions.values()],
        }

    def _model_figures(self, model: ServedModel) -> dict[str, Any]:
        config = model.config
        stats: ModelStats = model.stats
        return {
            "name": config.name,
            "version": model.version,
            "platform": config.platform,
            "max_batch_rows": config.max_batch_rows,
            "instances": model.instances.count if model.instances is not None else 0,
            "load_s": model.load_s,
            "memory": self._metrics.memory(config.name, model.version),
            "pending": model.pending,
            "in_flight": model.in_flight,
            "running": model.running,
            "rows": stats.inference_count,
            "batches": stats.execution_count,
            "last_ms": stats.last_inference_ms,
            "failures": stats.failures,
            "closed": stats.closed,
            "durations": {name: _pair(getattr(stats, name)) for name in DURATIONS},
            "histograms": {name: _histogram(getattr(stats, name)) for name in HISTOGRAMS},
        }


def _pair(duration: Any) -> tuple[int, int]:
    return duration.count, duration.ns


def _histogram(histogram: Histogram) -> dict[str, Any]:
    return {"counts": histogram.counts, "sum": histogram.sum}


def _model_document(model: ServedModel) -> dict[str, Any]:
    config = model.config
    batched = config.max_batch_rows > 0
    return {
        "name": config.name,
        "version": model.version,
        "platform": config.platform,
        "backend": config.backend,
        "providers": config.providers,
        "max_batch_rows": config.max_batch_rows,
        "is_stateful": config.sequence_batching is not None,
        "inputs": [_tensor(t, batched) for t in config.inputs],
        "outputs": [{**_tensor(t, batched), "labels": t.labels} for t in config.outputs],
        "scheduler": _texts(model.describe()),
        "config": config_document(config),
    }


def _tensor(tensor: TensorConfig, batched: bool) -> dict[str, Any]:
    return {**tensor_document(tensor, batched), "is_optional": tensor.is_optional}


def _texts(values: Mapping[str, Any]) -> dict[str, Any]:
    """With keys that JSON has: row counts become strings."""
    return {k: {str(a): b for a, b in v.items()} if isinstance(v, Mapping) else v for k, v in values.items()}
