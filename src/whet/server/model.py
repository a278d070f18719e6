"""One loaded version of a model: its sessions, its queue, its counters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import numpy as np

from whet.server.check import RequestCheck
from whet.server.classification import classify
from whet.server.errors import http_status
from whet.server.model_config import ModelConfig, QueuePolicy
from whet.server.request import NO_PARAMETERS, Array, InferRequest, InferResponse, OutputTensor, RequestTimes
from whet.server.scheduling.batcher import Batcher
from whet.server.scheduling.instances import Instances, Stop
from whet.server.scheduling.work import Work
from whet.server.stats import BatchStats, ModelStats
from whet.session.inference_session import InferenceSession
from whet.session.options import RunOptions


class SessionRunner:
    """Runs batches on a session. A run that may be stopped gets options of its own."""

    def __init__(self, session: InferenceSession) -> None:
        self.session = session
        self._all = tuple(o.name for o in session.get_outputs())

    def __call__(self, names: tuple[str, ...], feed: Mapping[str, Array], stop: Stop | None) -> Sequence[Array]:
        if stop is None:
            # All outputs in their order are asked for by None, which the session has a shorter way for.
            return self.session.run(None if names == self._all else names, feed)
        options = RunOptions()

        def terminate() -> None:
            options.terminate = True

        stop.on_terminate(terminate)
        return self.session.run(names, feed, options)


class ServedModel:
    """A model version that answers. Made on the event loop; `infer` is a coroutine of that loop."""

    def __init__(self, config: ModelConfig, version: str, session: InferenceSession) -> None:
        self.config = config
        self.version = version
        self.session = session
        self.stats = ModelStats()
        self.load_s = 0.0
        self._check = RequestCheck(config)
        self._outputs = {t.name: t for t in config.outputs}
        loop = asyncio.get_running_loop()
        self.instances = Instances(SessionRunner(session), config.instances, loop, config.name)
        policy = config.dynamic_batching.default_queue_policy if config.dynamic_batching else QueuePolicy()
        self.batcher = Batcher(self.instances, config.max_batch_rows, config.dynamic_batching, policy, config.name)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request. Raises InvalidArgument, QueueFull, DeadlineExceeded, and what the run itself raises."""
        try:
            feed, names, rows, key = self._check(request)
            if self.batcher.runs_at_once:
                return self._infer_here(request, feed, names, rows)
            work = Work(request, feed, names, rows, key, asyncio.get_running_loop().create_future())
            work.times.received_ns = request.received_ns
            self.batcher.submit(work)
            answer = work.answer
            try:
                outputs = answer.result() if answer.done() else await answer
            except asyncio.CancelledError:
                self.batcher.cancel(work)
                raise
        except Exception as error:
            self._count_failure(error, request)
            raise
        response = self._response(request, names, rows, outputs, work.times, work.batch_rows, work.batch_closed)
        self._count_success(rows, work.times)
        return response

    def _infer_here(
        self, request: InferRequest, feed: Mapping[str, Array], names: tuple[str, ...], rows: int
    ) -> InferResponse:
        """Answer without waiting for anything."""
        received = request.received_ns
        outputs, began, ended = self.instances.run_here(names, feed)
        times = RequestTimes(received, began, began, ended)
        response = self._response(request, names, rows, outputs, times, rows, "at once")
        self._count_success(rows, times)
        self.count_batch(rows, "at once", ended - began)
        return response

    async def close(self) -> None:
        """Answer what was taken, then let the instances go."""
        await self.batcher.drain()
        self.instances.close()

    def _response(
        self, request: InferRequest, names: tuple[str, ...], rows: int, outputs: Sequence[Array], times: RequestTimes,
        batch_rows: int, batch_closed: str,
    ) -> InferResponse:  # fmt: skip
        tensors = []
        for name, array in zip(names, outputs, strict=True):
            config = self._outputs[name]
            if config.reshape is not None:
                array = array.reshape((rows, *config.dims) if self.config.max_batch_rows else config.dims)
            tensors.append(OutputTensor(name, config.datatype, array))
        for index, wanted in enumerate(request.outputs):
            if wanted.classes:
                tensors[index] = self._classified(tensors[index], wanted.classes)
        times.finished_ns = time.monotonic_ns()
        return InferResponse(
            self.config.name, self.version, request.id, tensors, NO_PARAMETERS, times, batch_rows, batch_closed
        )

    def _classified(self, tensor: OutputTensor, classes: int) -> OutputTensor:
        return classify(tensor, classes, self._outputs[tensor.name].labels, batched=self.config.max_batch_rows > 0)

    def _count_success(self, rows: int, times: RequestTimes) -> None:
        stats = self.stats
        total = times.finished_ns - times.received_ns
        queue = times.started_ns - times.queued_ns
        infer = times.computed_ns - times.started_ns
        stats.success.add(total)
        stats.queue.add(queue)
        stats.compute_input.add(times.queued_ns - times.received_ns)
        stats.compute_infer.add(infer)
        stats.compute_output.add(times.finished_ns - times.computed_ns)
        stats.inference_count += rows
        stats.last_inference_ms = time.time_ns() // 1_000_000
        stats.request_us.observe(total / 1e3)
        stats.queue_us.observe(queue / 1e3)

    def _count_failure(self, error: Exception, request: InferRequest) -> None:
        stats = self.stats
        stats.fail.add(time.monotonic_ns() - request.received_ns)
        status = http_status(error)
        reason = (
            "REJECTED" if status == 503 else "CANCELED" if status == 499 else "BACKEND" if status >= 500 else "OTHER"
        )
        stats.failures[reason] = stats.failures.get(reason, 0) + 1

    def count_batch(self, rows: int, closed: str, infer_ns: int) -> None:
        """Note one run of `rows` rows."""
        stats = self.stats
        stats.execution_count += 1
        stats.batch_rows.observe(rows)
        stats.infer_us.observe(infer_ns / 1e3)
        stats.closed[closed] = stats.closed.get(closed, 0) + 1
        stats.batches.setdefault(rows, BatchStats()).infer.add(infer_ns)


def text_of(array: Array) -> Array:
    """BYTES of a model's strings."""
    out = np.empty(array.shape, object)
    out.reshape(-1)[:] = [s.encode() if isinstance(s, str) else s for s in array.reshape(-1)]
    return out
