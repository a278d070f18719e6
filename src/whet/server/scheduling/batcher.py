"""Dynamic batching: requests that wait for the same model and agree in shape run together.

Rows are counted, not requests. A batch is closed, and the reason kept, when it is full, has a preferred size, its
oldest request has waited long enough, or nothing more can join.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from whet.server.errors import Cancelled, DeadlineExceeded, PayloadTooLarge, QueueFull, ShuttingDown
from whet.server.model_config import DynamicBatching, QueuePolicy
from whet.server.request import Array, concatenated
from whet.server.scheduling.instances import Instances, Stop
from whet.server.scheduling.work import Work


class Batcher:
    """The queue of one model version. `max_rows` 0: every request runs alone, as it came.

    `submit` returns at once; the work's `answer` is set later, on the loop.
    """

    def __init__(
        self, instances: Instances, max_rows: int, batching: DynamicBatching | None, policy: QueuePolicy, model: str
    ) -> None:
        self._instances = instances
        self._max_rows = max_rows
        self._batching = batching if max_rows else None
        self._policy = policy
        self._model = model
        self._pending: deque[Work] = deque()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        instances.when_free = self._dispatch

    @property
    def pending(self) -> int:
        """Requests that wait."""
        return len(self._pending)

    def submit(self, work: Work) -> None:
        """Queue the work. Raises QueueFull, ShuttingDown, PayloadTooLarge; later errors are set on its answer."""
        if self._closed:
            raise ShuttingDown("the model is being unloaded", value=self._model)
        if self._max_rows and work.rows > self._max_rows:
            raise PayloadTooLarge(
                "more rows than the model's largest batch", value=self._model, found=work.rows, expected=self._max_rows
            )
        if self._policy.max_size and len(self._pending) >= self._policy.max_size:
            raise QueueFull("the model's queue is full", value=self._model, found=f"{len(self._pending)} requests")
        work.times.queued_ns = time.monotonic_ns()
        self._pending.append(work)
        self._idle.clear()
        if work.request.deadline_ns:
            self._watch_deadline(work)
        self._dispatch()

    @property
    def runs_at_once(self) -> bool:
        """Whether a request that came now would run alone, at once and on the event loop: it need not be queued."""
        return self._instances.runs_inline and not self._pending and bool(self._instances.free) and not self._closed

    async def drain(self) -> None:
        """Take nothing new; return when everything that was taken is answered."""
        self._closed = True
        self._dispatch()
        await self._idle.wait()

    def _watch_deadline(self, work: Work) -> None:
        seconds = (work.request.deadline_ns - time.monotonic_ns()) / 1e9
        handle = self._loop.call_later(max(seconds, 0.0), self._expire, work)
        work.answer.add_done_callback(lambda _: handle.cancel())

    def _expire(self, work: Work) -> None:
        if not work.answer.done():
            work.answer.set_exception(DeadlineExceeded("the request's time is over", value=self._model))

    def _dispatch(self) -> None:
        while self._instances.free and self._pending:
            batch, closed = self._next_batch()
            if not batch:
                break
            self._start(batch, closed)
        if not self._pending and not self.running:
            self._idle.set()

    def _next_batch(self) -> tuple[list[Work], str]:
        """The batch to run now with why it is closed, or nothing while it pays to wait."""
        pending = self._pending
        while pending and pending[0].is_over:
            pending.popleft()
        if not pending:
            return [], ""
        if self._batching is None:
            return [pending.popleft()], "alone"
        first = pending[0]
        batch, rows, others, closed = [first], first.rows, 0, "no more"
        for work in list(pending)[1:]:
            if work.is_over:
                continue
            if work.key != first.key:
                others += 1
                if self._batching.preserve_ordering:
                    closed = "shape"
                    break
                continue
            if rows + work.rows > self._max_rows:
                closed = "full"
                break
            batch.append(work)
            rows += work.rows
        if rows == self._max_rows:
            closed = "full"
        if closed == "no more" and not others and not self._closed:
            wait_ns = (self._batching.max_queue_delay_us or 0) * 1000
            left_ns = first.times.queued_ns + wait_ns - time.monotonic_ns()
            if wait_ns and left_ns > 0:
                if self._timer is None:
                    self._timer = self._loop.call_later(left_ns / 1e9, self._timer_over)
                return [], ""
            closed = "delay" if wait_ns else "instance free"
        taken = set(map(id, batch))
        self._pending = deque(w for w in pending if id(w) not in taken)
        return batch, closed

    def _timer_over(self) -> None:
        self._timer = None
        self._dispatch()

    def _start(self, batch: list[Work], closed: str) -> None:
        names = batch[0].output_names if len(batch) == 1 else _union(batch)
        feeds = {name: concatenated([w.feed[name] for w in batch]) for name in batch[0].feed}
        rows = sum(w.rows for w in batch)
        stop = None
        if not self._instances.runs_inline:
            stop = Stop()
            left = len(batch)

            def one_over(_: object) -> None:
                nonlocal left
                left -= 1
                if not left:
                    stop.terminate()

            for work in batch:
                work.answer.add_done_callback(one_over)
        for work in batch:
            work.batch_rows, work.batch_closed = rows, closed
        self.running += 1

        def done(outputs: Sequence[Array] | None, error: BaseException | None, began: int, ended: int) -> None:
            self.running -= 1
            self._answer(batch, names, outputs, error, began, ended)

        self._instances.start(names, feeds, stop, done)

    def _answer(
        self,
        batch: list[Work],
        names: tuple[str, ...],
        outputs: Sequence[Array] | None,
        error: BaseException | None,
        began: int,
        ended: int,
    ) -> None:
        start = 0
        for work in batch:
            work.times.started_ns, work.times.computed_ns = began, ended
            end = start + work.rows
            if not work.answer.done():
                if error is not None:
                    work.answer.set_exception(error)
                else:
                    assert outputs is not None
                    if len(batch) == 1:
                        work.answer.set_result(outputs)
                    else:
                        wanted = [outputs[names.index(n)] for n in work.output_names]
                        work.answer.set_result([a[start:end] for a in wanted])
            start = end
        if not self._pending and not self.running:
            self._idle.set()

    def cancel(self, work: Work) -> None:
        """The client went away: the work does not run, or its run is stopped when nobody else shares it."""
        if not work.answer.done():
            work.answer.set_exception(Cancelled("the client went away", value=self._model))


def _union(batch: list[Work]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for work in batch:
        names.update(dict.fromkeys(work.output_names))
    return tuple(names)
