"""Ensembles: requests that go through several models in this process. Tensors are handed on, not copied."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

from whet.errors import Fail, WhetError
from whet.server.errors import DeadlineExceeded, ModelNotFound, ModelUnavailable, ShuttingDown
from whet.server.model_config import ModelConfig
from whet.server.request import Array, InferRequest, InputTensor, StepRun
from whet.server.scheduling.ensemble_plan import EnsemblePlan, Resolve, Step, plan_ensemble
from whet.server.scheduling.scheduler import OnBatch
from whet.server.scheduling.work import Work


class EnsembleScheduler:
    """Runs an ensemble's steps, those that do not wait for each other side by side.

    Each step is a request to the model that serves at that moment: it is batched with others', counted, and fails by
    itself, with the step named. Deadline, priority, parameters and sequence go along; an ensemble's request that is
    cancelled or too late cancels the steps that run, and a step that fails those beside it.
    """

    can_run_here = runs_at_once = False

    def __init__(self, config: ModelConfig, resolve: Resolve, on_batch: OnBatch) -> None:
        self._model = config.name
        self._resolve = resolve
        self._on_batch = on_batch
        self.plan: EnsemblePlan = plan_ensemble(config, resolve)
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[Work, asyncio.Task[None]] = {}
        self._closed = False

    @property
    def pending(self) -> int:
        """None: an ensemble's requests wait at its models."""
        return 0

    @property
    def running(self) -> int:
        return len(self._tasks)

    def submit(self, work: Work) -> None:
        if self._closed:
            raise ShuttingDown("the model is being unloaded", value=self._model)
        now = time.monotonic_ns()
        work.times.queued_ns = work.times.started_ns = now
        end = work.request.deadline_ns
        if end:
            work.timer = self._loop.call_later(max(end - now, 0) / 1e9, self._expire, work)
        task = self._loop.create_task(self._run(work))
        self._tasks[work] = task

    def cancel(self, work: Work) -> None:
        work.answer.cancel()
        task = self._tasks.get(work)
        if task is not None:
            task.cancel()

    async def drain(self) -> None:
        self._closed = True
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "ensemble", "steps": [s.title for s in self.plan.steps], "running": self.running}

    def _expire(self, work: Work) -> None:
        if not work.answer.done():
            work.answer.set_exception(DeadlineExceeded("the request's time was over", value=self._model))
        task = self._tasks.get(work)
        if task is not None:
            task.cancel()

    async def _run(self, work: Work) -> None:
        tensors: dict[str, Array] = dict(work.feed)
        ended: list[StepRun] = []
        work.steps = ended
        try:
            if self.plan.is_chain:
                for step in self.plan.steps:
                    await self._step(step, work.request, tensors, ended)
            else:
                await self._graph(work.request, tensors, ended)
            work.times.computed_ns = now = time.monotonic_ns()
            took = now - work.times.started_ns
            work.batch_rows, work.batch_closed = work.rows, "ensemble"
            if not work.answer.done():
                work.answer.set_result([tensors[name] for name in work.output_names])
                self._on_batch(work.rows, "ensemble", 0, took, 0)
        except asyncio.CancelledError:
            work.answer.cancel()
        except Exception as error:
            if not work.answer.done():
                work.answer.set_exception(error)
        finally:
            work.stop_timer()
            del self._tasks[work]

    async def _graph(self, request: InferRequest, tensors: dict[str, Array], ended: list[StepRun]) -> None:
        steps = self.plan.steps
        waits_for = [s.after for s in steps]

        async def run(at: int) -> None:
            await self._step(steps[at], request, tensors, ended)
            for following in steps[at].before:
                waits_for[following] -= 1
                if not waits_for[following]:
                    group.create_task(run(following))

        try:
            async with asyncio.TaskGroup() as group:
                for at, step in enumerate(steps):
                    if not step.after:
                        group.create_task(run(at))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None

    async def _step(
        self, step: Step, request: InferRequest, tensors: dict[str, Array], ended: list[StepRun]
    ) -> None:  # fmt: skip
        try:
            member = self._resolve(step.model, step.version)
        except ModelNotFound as error:
            raise ModelUnavailable(f"{step.title}: the model does not serve", value=step.model) from error
        inner = InferRequest(
            step.model, [InputTensor(given, kind, tensors[source]) for given, kind, source in step.inputs],
            version=step.version, id=request.id, outputs=step.requested, parameters=request.parameters,
            priority=request.priority, deadline_ns=request.deadline_ns, sequence_id=request.sequence_id,
            sequence_start=request.sequence_start, sequence_end=request.sequence_end, received_ns=time.monotonic_ns(),
        )  # fmt: skip
        try:
            response = await member.infer(inner)
        except WhetError as error:
            # Others may hold the same error: it is named in a copy.
            named = copy.copy(error)
            named.problem = f"{step.title}: {error.problem}"
            raise named from error
        except Exception as error:
            raise Fail(f"{step.title} failed", found=f"{type(error).__name__}: {error}") from error
        for target, output in zip(step.outputs, response.outputs, strict=True):
            tensors[target] = output.array
        ended.append(StepRun(
            step.model, response.version, response.times, response.batch_rows, response.batch_closed,
            response.from_cache, response.steps,
        ))  # fmt: skip


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    found: Sequence[BaseException] = errors.exceptions
    return _first(found[0]) if isinstance(found[0], BaseExceptionGroup) else found[0]
