"""Dynamic batching: requests that wait for the same model and agree in shape run together.

Rows are counted, not requests. Why a batch was closed is one of the keys of `REASONS`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from whet.errors import Fail, Terminated
from whet.server.errors import DeadlineExceeded, PayloadTooLarge, ShuttingDown
from whet.server.model_config import DynamicBatching, QueuePolicy
from whet.server.request import Array, concatenated
from whet.server.scheduling.instances import Instances, Stop
from whet.server.scheduling.rate_limit import Ticket
from whet.server.scheduling.run_times import RunTimes
from whet.server.scheduling.scheduler import OnBatch
from whet.server.scheduling.waiting import Waiting
from whet.server.scheduling.work import Batch, Result, Work

REASONS: Mapping[str, str] = {
    "at once": "it ran as it came: the model is tiny, or its runs are short and one client asks",
    "alone": "the model takes no batches",
    "full": "no further request would have fitted",
    "preferred": "it had a preferred size",
    "delay": "its oldest request had waited as long as the configuration lets it",
    "learned delay": "its oldest request had waited as long as was predicted to pay",
    "shape": "a request of another shape waits, and an instance is free",
    "instance free": "nothing else waits, and waiting does not pay",
    "better size": "fewer rows than wait are predicted to run faster",
    "deadline": "one of its requests has no more time to wait",
    "draining": "the model is being unloaded",
    "failed together": "the batch failed, and each of its requests runs alone",
    "ensemble": "each of its steps ran in a model of its own",
}
"""All that the counters of closed batches may hold, ensembles' too, with what they mean."""

LOOKAHEAD = 1024
"""How many waiting requests are looked at for a batch."""


def _count_nothing(rows: int, closed: str, input_ns: int, infer_ns: int, output_ns: int) -> None:
    pass


class Batcher:
    """The queue of one model version. `max_rows` 0, or no `batching`: every request runs alone, as it came.

    The oldest request of the highest level decides on the shape. With an instance free, its batch runs when it has the
    largest preferred size that can be had, is full, or its oldest request has waited for the maximum delay; where
    there are preferred sizes and the delay is over, with everything that is there. Without a configured delay,
    `RunTimes` says how long waiting pays. A batch of several requests that fails is run again one by one, so that only
    those fail that are at fault.

    A request's deadline, and its level's default timeout (the sooner holds), cover the run: when the last request of a
    running batch has expired or is cancelled, the run is stopped. A level that delays instead of refusing moves a
    request whose default timeout is over behind the others.
    """

    def __init__(
        self, instances: Instances, max_rows: int, batching: DynamicBatching | None, policy: QueuePolicy, model: str,
        on_batch: OnBatch = _count_nothing, ticket: Ticket | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:  # fmt: skip
        self._instances = instances
        self._max_rows = max_rows
        self._batching = batching if max_rows else None
        self._model = model
        self._on_batch = on_batch
        self._ticket = ticket
        self._clock = clock
        if batching is not None:
            self._waiting = Waiting(
                model, batching.priority_levels, batching.default_priority_level, batching.default_queue_policy,
                batching.priority_queue_policy,
            )  # fmt: skip
        else:
            self._waiting = Waiting(model, default_policy=policy)
        self._preserves_order = batching is not None and batching.preserve_ordering
        self._preferred = frozenset(batching.preferred_rows) if batching else frozenset()
        delay_us = batching.max_queue_delay_us if batching else 0
        self._delay_ns = None if delay_us is None else delay_us * 1000
        self.times = RunTimes()
        self._order: list[Batch] = []
        self._retries: deque[Batch] = deque()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None
        self._timer_ns = 0
        self._decision_ns = 0
        self._decision_rows = 0
        self._closed = False
        self._dispatching = False
        self.running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        instances.when_free = self.dispatch
        self._may_run_at_once = ticket is None
        if ticket is not None:
            ticket.when_free = self.dispatch

    @property
    def pending(self) -> int:
        return self._waiting.count + len(self._retries)

    @property
    def can_run_here(self) -> bool:
        instances = self._instances
        return (
            instances.may_run_here
            and instances.free > 0
            and not self._waiting.count
            and self._may_run_at_once
            and not self._closed
        )

    @property
    def runs_at_once(self) -> bool:
        return self._instances.runs_inline and self.can_run_here

    def submit(self, work: Work) -> None:
        """Queue the work. Raises QueueFull, ShuttingDown, PayloadTooLarge; later errors are set on its answer."""
        if self._closed:
            raise ShuttingDown("the model is being unloaded", value=self._model)
        if self._max_rows and work.rows > self._max_rows:
            raise PayloadTooLarge(
                "more rows than the model's largest batch", value=self._model, found=work.rows, expected=self._max_rows
            )
        now = self._clock()
        self._waiting.add(work)
        work.times.queued_ns = now
        if self._delay_ns is None:
            self.times.arrived(work.rows, now)
        self._idle.clear()
        self._watch(work, now)
        self.dispatch()

    def cancel(self, work: Work) -> None:
        self._leave(work)
        work.answer.cancel()
        self.dispatch()

    async def drain(self) -> None:
        self._closed = True
        self.dispatch()
        await self._idle.wait()

    def describe(self) -> Mapping[str, Any]:
        return {
            "kind": "batches" if self._batching else "one by one",
            "waiting_requests": self.pending,
            "waiting_rows": self._waiting.rows + sum(b.rows for b in self._retries),
            "running": self.running,
            "instances": self._instances.count,
            **self.times.document(),
        }

    # Time

    def _watch(self, work: Work, now: int) -> None:
        """Wait for the work's end of time."""
        end = work.request.deadline_ns
        policy = self._waiting.policy_of(work)
        if policy.default_timeout_us:
            limit = now + policy.default_timeout_us * 1000
            if policy.delay_expired:
                if not end or limit < end:
                    work.timer = self._loop.call_later((limit - now) / 1e9, self._delay, work)
                    return
            else:
                end = min(end or limit, limit)
        if end:
            work.timer = self._loop.call_later(max(end - now, 0) / 1e9, self._expire, work)

    def _delay(self, work: Work) -> None:
        if work.state == "waiting" and not work.is_over:
            self._waiting.delay(work)
        end = work.request.deadline_ns
        left = max(end - self._clock(), 0) / 1e9
        work.timer = self._loop.call_later(left, self._expire, work) if end and work.state != "over" else None

    def _expire(self, work: Work) -> None:
        where = "while it waited" if work.state == "waiting" else "while it ran"
        self._leave(work)
        if not work.answer.done():
            work.answer.set_exception(DeadlineExceeded(f"the request's time was over {where}", value=self._model))
        self.dispatch()

    def _leave(self, work: Work) -> None:
        """Nobody waits for the work's answer any more."""
        if work.state == "waiting":
            self._waiting.drop(work)
        elif work.state == "running":
            batch = work.batch
            assert batch is not None
            batch.left -= 1
            if not batch.left and batch.stop is not None:
                batch.stop.terminate()
        work.state = "over"
        work.stop_timer()

    # Batches

    def dispatch(self) -> None:
        """Start what can be started."""
        # A run on the event loop ends within `start`, and calls this again.
        if self._dispatching:
            return
        self._dispatching = True
        try:
            while self._instances.free > 0:
                while self._retries and not self._retries[0].left:
                    self._finish(self._retries.popleft(), Result(None, Terminated("nobody waits"), 0, 0))
                batch = self._retries[0] if self._retries else self._next_batch()
                if batch is None or (self._ticket is not None and not self._ticket.acquire()):
                    break
                if self._retries:
                    self._retries.popleft()
                else:
                    self._waiting.take(batch.works)
                    if self._preserves_order:
                        self._order.append(batch)
                self._start(batch)
        finally:
            self._dispatching = False
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._waiting.count and not self.running and not self._retries:
            self._idle.set()
            if self._ticket is not None:
                self._ticket.waits = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _next_batch(self) -> Batch | None:
        """The batch to run now, or nothing while it pays to wait."""
        if not self._waiting.count:
            return None
        works: list[Work] = []
        rows = preferred_rows = preferred = 0
        closed = ""
        for work in islice(self._waiting, LOOKAHEAD):
            if self._batching is None:
                return _batch([work], "alone")
            if works and work.key != works[0].key:
                closed = "shape"
                if self._preserves_order:
                    break
                continue
            if works and rows + work.rows > self._max_rows:
                closed = "full"
                break
            works.append(work)
            rows += work.rows
            if rows in self._preferred:
                preferred, preferred_rows = len(works), rows
            if rows == self._max_rows:
                closed = "full"
                break
        if not works:
            return None
        now = self._clock()
        oldest = min(w.times.queued_ns for w in works)
        if self._delay_ns is None:
            end = now if closed else self._learned_end(rows, now)
        else:
            end = oldest + self._delay_ns
        if preferred and (now < end or preferred_rows == rows):
            return _batch(works[:preferred], "preferred")
        if closed:
            return self._sized(works, rows, closed)
        if self._closed:
            return _batch(works, "draining")
        if now < end:
            # One that would be too late then goes now, with all that can go with it.
            run_ns = self.times.predicted(rows) or 0.0
            deadline = min((w.request.deadline_ns for w in works if w.request.deadline_ns), default=0)
            if deadline and deadline - run_ns <= end:
                return _batch(works, "deadline")
            self._wake_at(end, now)
            return None
        if self._delay_ns is None:
            return self._sized(works, rows, "learned delay" if now > self._decision_ns else "instance free")
        return self._sized(works, rows, "delay" if self._delay_ns else "instance free")

    def _learned_end(self, rows: int, now: int) -> int:
        """Until when to wait, where the configuration does not say."""
        if not self._decision_ns:
            self.times.decided(now)
            self._decision_ns, self._decision_rows = now, rows
        joined = rows - self._decision_rows
        return self._decision_ns + self.times.wait_ns(rows, joined, self._max_rows)

    def _sized(self, works: list[Work], rows: int, closed: str) -> Batch:
        """All of the works, or fewer where the model runs that better."""
        most = self.times.fewer(rows)
        if most < rows:
            fewer, total = [], 0
            for work in works:
                if total + work.rows > most:
                    break
                fewer.append(work)
                total += work.rows
            if total == most:
                return _batch(fewer, "better size")
        return _batch(works, closed)

    def _wake_at(self, end: int, now: int) -> None:
        if self._timer is not None:
            if self._timer_ns == end:
                return
            self._timer.cancel()
        self._timer_ns = end
        self._timer = self._loop.call_later((end - now) / 1e9, self._timer_over)

    def _timer_over(self) -> None:
        self._timer = None
        self.dispatch()

    # Runs

    def _start(self, batch: Batch) -> None:
        works = batch.works
        self._decision_ns = 0
        if not self._instances.runs_inline:
            batch.stop = Stop()
        for work in works:
            work.state, work.batch = "running", batch
            work.batch_rows, work.batch_closed = batch.rows, batch.closed
        self.running += 1
        began = self._clock()
        try:
            feeds = {name: concatenated([w.feed[name] for w in works]) for name in works[0].feed}
        except Exception as error:  # there is no memory, and every other request goes on
            self._done(batch, Result(None, error, began, began), 0)
            return
        input_ns = self._clock() - began

        def done(outputs: Sequence[Array] | None, error: BaseException | None, began: int, ended: int) -> None:
            self._done(batch, Result(outputs, error, began, ended), input_ns)

        self._instances.start(batch.names, feeds, batch.stop, done)

    def _done(self, batch: Batch, result: Result, input_ns: int) -> None:
        self.running -= 1
        if self._ticket is not None:
            self._ticket.release()
        took = result.ended_ns - result.began_ns
        if result.error is None and self._batching is not None:
            self.times.observe(batch.rows, took)
        began = self._clock()
        if self._should_retry(batch, result):
            singles = [_batch([w], "failed together") for w in batch.works if w.state == "running" and not w.is_over]
            for single in singles:
                single.works[0].batch = single
            self._retries.extend(singles)
            if self._preserves_order:
                at = self._order.index(batch)
                self._order[at : at + 1] = singles
                self._answer_in_order()
        else:
            self._finish(batch, result)
        if result.error is None:
            self._on_batch(batch.rows, batch.closed, input_ns, took, self._clock() - began)
        self._note_idle()

    def _should_retry(self, batch: Batch, result: Result) -> bool:
        if len(batch.works) == 1 or not batch.left:
            return False
        if result.error is not None:
            return isinstance(result.error, Exception) and not isinstance(result.error, Terminated)
        assert result.outputs is not None
        return any(not o.ndim or o.shape[0] != batch.rows for o in result.outputs)

    def _finish(self, batch: Batch, result: Result) -> None:
        """Answer the batch, behind those that came before it where order is kept."""
        if not self._preserves_order:
            self._answer(batch, result)
            return
        batch.result = result
        self._answer_in_order()

    def _answer_in_order(self) -> None:
        while self._order and self._order[0].result is not None:
            first = self._order.pop(0)
            assert first.result is not None
            self._answer(first, first.result)

    def _answer(self, batch: Batch, result: Result) -> None:
        outputs, error = result.outputs, result.error
        if error is not None and not isinstance(error, Exception):
            error = Fail(f"the run ended with {type(error).__name__}", value=self._model, found=str(error) or None)
        start = 0
        for work in batch.works:
            work.times.started_ns, work.times.computed_ns = result.began_ns, result.ended_ns
            end = start + work.rows
            work.state = "over"
            work.batch = None
            work.stop_timer()
            if not work.answer.done():
                if error is not None:
                    work.answer.set_exception(error)
                else:
                    assert outputs is not None
                    if len(batch.works) == 1:
                        work.answer.set_result(outputs)
                    elif work.output_names == batch.names:
                        work.answer.set_result([a[start:end] for a in outputs])
                    else:
                        wanted = [outputs[batch.names.index(n)] for n in work.output_names]
                        work.answer.set_result([a[start:end] for a in wanted])
            start = end


def _batch(works: list[Work], closed: str) -> Batch:
    if len(works) == 1:
        names = works[0].output_names
    else:
        names = tuple(dict.fromkeys(name for w in works for name in w.output_names))
    return Batch(works, sum(w.rows for w in works), closed, names, left=len(works))
