"""From counters to what /metrics answers: the names of Triton Inference Server, and Whet's own beside them.

Every metric is a line of a table here. The hot path knows nothing of this: it adds to plain counters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

from whet.providers.base import MemoryUse
from whet.server.data_plane import DataPlane
from whet.server.metrics.exposition import Exposition, Kind, bounds_text, labels
from whet.server.metrics.gpu import Gpus, GpuSample
from whet.server.metrics.machine import Machine, MachineSample
from whet.server.model import ServedModel
from whet.server.stats import DURATION_BOUNDS_US, ROW_BOUNDS, Duration, Histogram, ModelStats
from whet.version import __version__

FAILURE_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Triton's reasons. Each is there from the start, at 0: a rate over a series that appears late misses its start."""

TURN_NS = 300_000
"""A scrape leaves the event loop to others when it has had it for so long; it then waits for its next turn."""

MEMORY_MODELS = 8
"""Models whose memory is looked up anew in a scrape; the others keep their last figures until it is their turn."""


def _us(duration: Duration) -> int:
    return duration.ns // 1000


# Counters of each model version. Names and units are Triton's, so that its users' dashboards go on working.
TRITON: tuple[tuple[str, str, Callable[[ModelStats], int]], ...] = (
    ("nv_inference_request_success", "Requests that were answered", lambda s: s.success.count),
    ("nv_inference_count", "Inferences: the rows of all requests answered", lambda s: s.inference_count),
    ("nv_inference_exec_count", "Runs of the model: batches", lambda s: s.execution_count),
    ("nv_inference_request_duration_us", "Microseconds from receipt to answer", lambda s: _us(s.success)),
    ("nv_inference_queue_duration_us", "Microseconds in the queue", lambda s: _us(s.queue)),
    ("nv_inference_compute_input_duration_us", "Microseconds of reading inputs", lambda s: _us(s.compute_input)),
    ("nv_inference_compute_infer_duration_us", "Microseconds in the model", lambda s: _us(s.compute_infer)),
    ("nv_inference_compute_output_duration_us", "Microseconds of handing out outputs", lambda s: _us(s.compute_output)),
    ("nv_cache_num_hits_per_model", "Requests answered from the response cache", lambda s: s.cache_hit.count),
    ("nv_cache_num_misses_per_model", "Requests that the response cache did not hold", lambda s: s.cache_miss.count),
    ("nv_cache_hit_duration_per_model", "Microseconds of lookups that hit", lambda s: _us(s.cache_hit)),
    ("nv_cache_miss_duration_per_model", "Microseconds of lookups that missed", lambda s: _us(s.cache_miss)),
)

_SECONDS = bounds_text(DURATION_BOUNDS_US, 1e-6)
_ROWS = bounds_text(ROW_BOUNDS)

# Histograms of each model version: name, help, bounds, the factor from the counters' unit to the metric's, counter.
HISTOGRAMS: tuple[tuple[str, str, tuple[str, ...], float, Callable[[ModelStats], Histogram]], ...] = (
    ("whet_request_duration_seconds", "From receipt to answer", _SECONDS, 1e-6, lambda s: s.request_us),
    ("whet_queue_duration_seconds", "Time of answered requests in the queue", _SECONDS, 1e-6, lambda s: s.queue_us),
    ("whet_infer_duration_seconds", "Runs of the model, a batch each", _SECONDS, 1e-6, lambda s: s.infer_us),
    ("whet_batch_rows", "Rows of the batches that ran", _ROWS, 1.0, lambda s: s.batch_rows),
)

MEMORY_KINDS: tuple[tuple[str, Callable[[MemoryUse], int]], ...] = (
    ("weights", lambda m: m.weights),
    ("shared_weights", lambda m: m.shared_weights),
    ("arena", lambda m: m.arena),
    ("contexts", lambda m: m.contexts),
    ("code", lambda m: m.code),
    ("tables", lambda m: m.tables),
)

MACHINE: tuple[tuple[str, Kind, str, Callable[[MachineSample], float]], ...] = (
    ("nv_cpu_utilization", "gauge", "CPU utilization of the machine, 0 to 1", lambda m: m.cpu_utilization),
    ("nv_cpu_memory_total_bytes", "gauge", "Memory of the machine", lambda m: m.memory_total),
    ("nv_cpu_memory_used_bytes", "gauge", "Memory of the machine that is in use", lambda m: m.memory_used),
    ("process_cpu_seconds_total", "counter", "CPU time of the server", lambda m: m.process_cpu_s),
    ("process_resident_memory_bytes", "gauge", "Resident memory of the server", lambda m: m.process_resident),
    ("process_virtual_memory_bytes", "gauge", "Virtual memory of the server", lambda m: m.process_virtual),
    ("process_threads", "gauge", "Threads of the server", lambda m: m.process_threads),
    ("process_open_fds", "gauge", "Open files and sockets of the server", lambda m: m.process_open_files),
    ("process_start_time_seconds", "gauge", "When the server started, since the epoch", lambda m: m.process_started),
)

GPU: tuple[tuple[str, Kind, str, Callable[[GpuSample], float | None]], ...] = (
    ("nv_gpu_utilization", "gauge", "GPU utilization, 0 to 1", lambda g: g.utilization),
    ("nv_gpu_memory_total_bytes", "gauge", "Memory of the GPU", lambda g: g.memory_total),
    ("nv_gpu_memory_used_bytes", "gauge", "Memory of the GPU that is in use", lambda g: g.memory_used),
    ("nv_gpu_power_usage", "gauge", "Power that the GPU draws, watts", lambda g: g.power),
    ("nv_gpu_power_limit", "gauge", "Most power that the GPU may draw, watts", lambda g: g.power_limit),
    ("nv_energy_consumption", "plain_counter", "Energy since the driver was loaded, joules", lambda g: g.energy),
    ("whet_gpu_temperature_celsius", "gauge", "Temperature of the GPU", lambda g: g.temperature),
)


class Metrics:
    """What /metrics answers. Lives on the event loop; `scrape` reads the machine in a thread."""

    def __init__(self, plane: DataPlane, gpus: Gpus | None = None) -> None:
        self._plane = plane
        self._machine = Machine()
        self._gpus = gpus
        self._reading = asyncio.Lock()
        self._memory: dict[tuple[str, str], tuple[int, MemoryUse]] = {}
        self._turn = 0
        self.dropped_logs: Callable[[], int] = lambda: 0
        self.requests_traced: Callable[[], int] = lambda: 0

    async def scrape(self, accept: str = "") -> tuple[str, bytes]:
        """The content type and the text, in the format that the Accept header prefers."""
        machine, gpus = await self.read(self._machine)
        out = Exposition(accept)
        since = time.monotonic_ns()
        for _ in self._write(out, self._models(), machine, gpus):
            # The text of many models takes milliseconds: requests go on between its parts.
            if time.monotonic_ns() - since > TURN_NS:
                await asyncio.sleep(0)
                since = time.monotonic_ns()
        return out.content_type, out.content()

    async def read(self, machine: Machine) -> tuple[MachineSample, list[GpuSample]]:
        """The machine's and the GPUs' figures, read in a thread, and models' memory looked up anew.

        `machine`: the asker's own, so that two who ask do not shorten the time of each other's utilization.
        """
        models = self._models()
        async with self._reading:
            return await asyncio.to_thread(self._read, machine, models)

    def memory(self, name: str, version: str) -> MemoryUse | None:
        """What a model version held when it was last looked up."""
        return self._memory.get((name, version), (0, None))[1]

    def _models(self) -> list[ServedModel]:
        return [m for _, versions in sorted(self._plane.models.items()) for _, m in sorted(versions.items())]

    def render(
        self,
        accept: str,
        models: list[ServedModel],
        machine: MachineSample | None = None,
        gpus: Sequence[GpuSample] = (),
    ) -> tuple[str, bytes]:
        """What a scrape does on the event loop, in one go: the text from the counters and from what was read."""
        out = Exposition(accept)
        for _ in self._write(out, models, machine, gpus):
            pass
        return out.content_type, out.content()

    def _write(
        self, out: Exposition, models: list[ServedModel], machine: MachineSample | None, gpus: Sequence[GpuSample]
    ) -> Iterator[None]:
        """Write everything; stops after each family."""
        yield from self._write_models(out, models)
        yield from self._write_server(out)
        if machine is not None:
            for name, kind, text, value in MACHINE:
                out.family(name, kind, text)
                out.sample("", value(machine))
        if gpus:
            by_gpu = [(labels(gpu_uuid=gpu.uuid), gpu) for gpu in gpus]
            for name, kind, text, of_gpu in GPU:
                found = [(label, of_gpu(gpu)) for label, gpu in by_gpu]
                if any(figure is not None for _, figure in found):
                    out.family(name, kind, text)
                    for label, figure in found:
                        if figure is not None:
                            out.sample(label, figure)

    def _read(self, machine: Machine, models: list[ServedModel]) -> tuple[MachineSample, list[GpuSample]]:
        """Everything that may block, or that takes long where there are many models."""
        known = self._memory
        self._turn += 1
        keys = {(m.config.name, m.version): m for m in models}
        for gone in known.keys() - keys.keys():
            del known[gone]
        for key in sorted(keys, key=lambda k: known[k][0] if k in known else 0)[:MEMORY_MODELS]:
            # An ensemble has no session: its members have.
            session = keys[key].session
            known[key] = (self._turn, session.memory if session is not None else MemoryUse())
        return machine.sample(), self._gpus.sample() if self._gpus else []

    def _write_models(self, out: Exposition, models: list[ServedModel]) -> Iterator[None]:
        labelled = [(labels(model=m.config.name, version=m.version), m) for m in models]
        for name, text, value in TRITON:
            out.family(name, "plain_counter", text)
            for label, model in labelled:
                out.sample(label, value(model.stats))
            yield
        out.family("nv_inference_request_failure", "plain_counter", "Requests that failed, by reason")
        for label, model in labelled:
            for reason in (*FAILURE_REASONS, *(model.stats.failures.keys() - set(FAILURE_REASONS))):
                out.sample(f"{label},{labels(reason=reason)}", model.stats.failures.get(reason, 0))
        yield
        out.family("nv_inference_pending_request_count", "gauge", "Requests that wait in the queue")
        for label, model in labelled:
            out.sample(label, model.pending)
        out.family("nv_model_load_duration_secs", "gauge", "How long the last load took, seconds")
        for label, model in labelled:
            out.sample(label, model.load_s)
        for name, text, bounds, scale, histogram in HISTOGRAMS:
            out.family(name, "histogram", text)
            for label, model in labelled:
                counted = histogram(model.stats)
                out.histogram(label, bounds, counted.counts, counted.sum * scale)
            yield
        out.family("whet_batches_total", "counter", "Batches that ran, by why they were closed")
        for label, model in labelled:
            for reason, count in sorted(model.stats.closed.items()):
                out.sample(f"{label},{labels(reason=reason)}", count)
        yield
        out.family("whet_in_flight_requests", "gauge", "Requests that were accepted and are not answered yet")
        for label, model in labelled:
            out.sample(label, model.in_flight)
        out.family("whet_running_batches", "gauge", "Runs of the model that are under way")
        for label, model in labelled:
            out.sample(label, model.scheduler.running)
        yield
        out.family(
            "whet_model_memory_bytes", "gauge", "Memory that the model holds, by kind; shared_weights lie in weights"
        )
        for label, model in labelled:
            memory = self.memory(model.config.name, model.version)
            if memory is not None:
                for kind_name, part in MEMORY_KINDS:
                    out.sample(f'{label},kind="{kind_name}"', part(memory))
        yield

    def _write_server(self, out: Exposition) -> Iterator[None]:
        plane = self._plane
        out.family("whet_server_info", "gauge", "The server's version; always 1")
        out.sample(labels(version=__version__), 1)
        out.family("whet_server_ready", "gauge", "Whether the server takes requests: 1 or 0")
        out.sample("", int(plane.ready))
        out.family("whet_model_ready", "gauge", "Whether the model version answers: 1 or 0")
        if plane.repository is not None:
            for entry in plane.repository.index():
                label = labels(model=entry["name"], version=entry.get("version", ""))
                out.sample(label, int(entry.get("state") == "READY"))
        else:
            for versions in plane.models.values():
                for model in versions.values():
                    out.sample(labels(model=model.config.name, version=model.version), 1)
        yield
        out.family("whet_log_lines_dropped_total", "counter", "Log lines that were lost because nobody read them")
        out.sample("", self.dropped_logs())
        out.family("whet_requests_traced_total", "counter", "Requests of which a trace was recorded")
        out.sample("", self.requests_traced())
