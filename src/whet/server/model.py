"""One loaded version of a model: its sessions, its queue, its counters."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from whet.server.check import RequestCheck
from whet.server.classification import classify
from whet.server.errors import DeadlineExceeded, http_status
from whet.server.model_config import ModelConfig
from whet.server.request import NO_PARAMETERS, Array, InferRequest, InferResponse, OutputTensor, RequestTimes
from whet.server.scheduling.cache import ResponseCache, find_key
from whet.server.scheduling.choose import Shared, make_scheduling
from whet.server.scheduling.ensemble_plan import Resolve
from whet.server.scheduling.solo import ShortRuns
from whet.server.scheduling.work import ShapeKey, Work
from whet.server.stats import BatchStats, ModelStats
from whet.session.inference_session import InferenceSession

DIGEST_S = 0.005
"""How long a large input's digest for the response cache takes, about."""

NOTED = 512
"""Requests that ran at once are counted so many at a time, or when somebody asks."""


class ServedModel:
    """A model version that answers. Made on the event loop; `infer` is a coroutine of that loop.

    An ensemble has no session; `resolve` finds its models. `shared`: what the models of one server have in common.
    """

    def __init__(
        self, config: ModelConfig, version: str, session: InferenceSession | None, shared: Shared | None = None,
        resolve: Resolve | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.version = version
        self.session = session
        self._stats = ModelStats()
        self._noted: list[tuple[int, int, int, int, int]] = []
        """Requests that ran at once and are not counted yet."""
        self.load_s = 0.0
        self.waiting_for_answers = 0
        self._check = RequestCheck(config)
        self._outputs = {t.name: t for t in config.outputs}
        shared = shared or Shared()
        self._scheduling = make_scheduling(config, session, shared, resolve, self.count_batch)
        self.scheduler = self._scheduling.scheduler
        self.instances = self._scheduling.instances
        self._cache: ResponseCache | None = shared.cache if config.response_cache else None
        # Another load of the same version may hold another model: its answers are not this one's.
        self._generation = os.urandom(16)
        self._digesting = 0
        self._short_runs = ShortRuns()
        self._loop = asyncio.get_running_loop()

    @property
    def stats(self) -> ModelStats:
        """What the model did so far."""
        if self._noted:
            self._count_noted()
        return self._stats

    def _count_noted(self) -> None:
        noted, self._noted = self._noted, []
        self._stats.count_at_once(noted)

    @property
    def pending(self) -> int:
        """Requests that wait for a run."""
        return self.scheduler.pending

    @property
    def running(self) -> int:
        """Runs that were started and have not ended."""
        return self.scheduler.running

    @property
    def in_flight(self) -> int:
        """Requests that were accepted and are not answered yet."""
        return self.waiting_for_answers

    @property
    def seen_shapes(self) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]:
        """Shapes that the model ran with: inputs with their shapes, a sample of the newest."""
        return self.instances.seen_shapes if self.instances is not None else ()

    def describe(self) -> Mapping[str, Any]:
        """How the model's scheduler stands: plain values by name."""
        return {**self.scheduler.describe(), "in_flight": self.in_flight}

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request. Raises InvalidArgument, QueueFull, DeadlineExceeded, and what the run itself raises."""
        try:
            feed, names, rows, key = self._check(request)
            if request.deadline_ns and time.monotonic_ns() >= request.deadline_ns:
                raise DeadlineExceeded("the request's time was over when it came", value=self.config.name)
            if self._cache is not None:
                return await self._infer_cached(self._cache, request, feed, names, rows, key)
            if self.scheduler.runs_at_once:
                return self._infer_here(request, feed, names, rows)
            work, outputs = await self._scheduled(request, feed, names, rows, key)
            response = self._response(request, names, rows, outputs, work.times, work.batch_rows, work.batch_closed)
            response.steps = work.steps
        except Exception as error:
            self._count_failure(error, request)
            raise
        self._count_success(rows, work.times)
        if work.batch_rows == rows:
            self._short_runs.observe((rows, key), work.times.computed_ns - work.times.started_ns)
        return response

    def infer_at_once(self, request: InferRequest, alone: bool) -> InferResponse | None:
        """The answer of a run that is made here and now: a tiny one, or a short one where its client is `alone`.

        None: `infer` answers. Raises as `infer` does.
        """
        if request.deadline_ns or self._cache is not None:
            return None
        is_tiny = self.scheduler.runs_at_once
        if not is_tiny and not (alone and self.scheduler.can_run_here):
            return None
        try:
            feed, names, rows, key = self._check(request)
            if not is_tiny and not self._short_runs.knows((rows, key)):
                return None
            response = self._infer_here(request, feed, names, rows)
            if not is_tiny:
                self._short_runs.observe((rows, key), response.times.computed_ns - response.times.started_ns)
            return response
        except Exception as error:
            self._count_failure(error, request)
            raise

    async def _scheduled(
        self, request: InferRequest, feed: Mapping[str, Array], names: tuple[str, ...], rows: int, key: ShapeKey
    ) -> tuple[Work, Sequence[Array]]:
        work = Work(request, feed, names, rows, key, self._loop.create_future())
        work.times.received_ns = request.received_ns
        self.scheduler.submit(work)
        answer = work.answer
        self.waiting_for_answers += 1
        try:
            return work, answer.result() if answer.done() else await answer
        except asyncio.CancelledError:
            self.scheduler.cancel(work)
            self._count_as("CANCELED", request)
            raise
        finally:
            self.waiting_for_answers -= 1

    async def _infer_cached(
        self, cache: ResponseCache, request: InferRequest, feed: Mapping[str, Array], names: tuple[str, ...],
        rows: int, shapes: ShapeKey,
    ) -> InferResponse:  # fmt: skip
        """Answer from the cache, or run and fill it. An answer from the cache is no inference in the statistics."""
        stats = self._stats
        began = time.monotonic_ns()
        self._digesting += 1
        try:
            key = await find_key(self._generation, request, names)
        except asyncio.CancelledError:
            self._count_as("CANCELED", request)
            raise
        finally:
            self._digesting -= 1
        found = cache.get(key)
        looked_up = time.monotonic_ns()
        if found is not None:
            stats.cache_hit.add(looked_up - began)
            times = RequestTimes(request.received_ns, looked_up, looked_up, looked_up)
            response = self._response(request, names, rows, found, times, 0, "")
            response.from_cache = True
            total = times.finished_ns - times.received_ns
            stats.success.add(total)
            stats.request_us.observe(total / 1e3)
            stats.last_inference_ms = time.time_ns() // 1_000_000
            return response
        work, outputs = await self._scheduled(request, feed, names, rows, shapes)
        inserting = time.monotonic_ns()
        cache.put(key, outputs)
        stats.cache_miss.add(looked_up - began + time.monotonic_ns() - inserting)
        response = self._response(request, names, rows, outputs, work.times, work.batch_rows, work.batch_closed)
        response.steps = work.steps
        self._count_success(rows, work.times)
        return response

    def _infer_here(
        self, request: InferRequest, feed: Mapping[str, Array], names: tuple[str, ...], rows: int
    ) -> InferResponse:
        """Answer without waiting for anything."""
        assert self.instances is not None
        outputs, began, ended = self.instances.run_here(names, feed)
        times = RequestTimes(request.received_ns, began, began, ended)
        response = self._response(request, names, rows, outputs, times, rows, "at once")
        noted = self._noted
        noted.append((rows, request.received_ns, began, ended, times.finished_ns))
        if len(noted) == NOTED:
            self._count_noted()
        return response

    async def close(self) -> None:
        """Answer what was taken, then let the instances go."""
        while self._digesting:  # on its way to the scheduler, which must still take it
            await asyncio.sleep(DIGEST_S)
        await self.scheduler.drain()
        self._scheduling.close()
        # A model, its scheduler and their callbacks hold each other: its memory must not wait for the collector.
        self.session = None

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
        stats = self._stats
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
        status = http_status(error)
        reason = "REJECTED" if status in (503, 504) else "CANCELED" if status == 499 else "OTHER"
        self._count_as("BACKEND" if status == 500 else reason, request)

    def _count_as(self, reason: str, request: InferRequest) -> None:
        stats = self._stats
        stats.fail.add(time.monotonic_ns() - request.received_ns)
        stats.failures[reason] = stats.failures.get(reason, 0) + 1

    def count_batch(self, rows: int, closed: str, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Note one run of `rows` rows."""
        stats = self._stats
        stats.execution_count += 1
        stats.batch_rows.observe(rows)
        stats.infer_us.observe(infer_ns / 1e3)
        stats.closed[closed] = stats.closed.get(closed, 0) + 1
        batch = stats.batches.get(rows)
        if batch is None:
            batch = stats.batches[rows] = BatchStats()
        batch.input.add(input_ns)
        batch.infer.add(infer_ns)
        batch.output.add(output_ns)
