"""Sequences: requests of one id run one after the other, and a model's state goes from each to the next."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.errors import InvalidArgument
from whet.server.errors import DeadlineExceeded, ShuttingDown
from whet.server.model_config import DynamicBatching, ModelConfig, SequenceBatching
from whet.server.request import Array
from whet.server.scheduling.batcher import Batcher
from whet.server.scheduling.sequence_inputs import SequenceInputs, State
from whet.server.scheduling.work import Work

Id = int | str


def batching_of(sequence: SequenceBatching) -> DynamicBatching:
    """How requests of different sequences are joined: the strategies differ in preferred sizes only."""
    return DynamicBatching(preferred_rows=sequence.preferred_rows, max_queue_delay_us=sequence.max_queue_delay_us)


def slots_of(config: ModelConfig) -> int:
    """How many sequences may go on at one time; more wait for one of them to end."""
    sequence = config.sequence_batching
    assert sequence is not None
    rows = max(config.max_batch_rows, 1)
    if sequence.strategy == "oldest":
        rows = sequence.max_candidate_sequences or rows
    return config.instances * rows


@dataclass(slots=True, eq=False)
class _Sequence:
    """A sequence that goes on: `slot` is its own until it ends, None while it waits for one."""

    id: Id
    state: State
    slot: int | None = None
    works: deque[Work] = field(default_factory=deque)
    running: tuple[Work, Work] | None = None
    """The request that was handed to the batcher, and what was handed over for it."""
    ends: bool = False
    started: bool = False
    timer: asyncio.TimerHandle | None = None


class SequenceScheduler:
    """Hands the requests of sequences to a batcher: of each sequence one at a time, in their order, with its state.

    A sequence begins with a request that says so, gets a slot as soon as one is free, and keeps it until its last
    request is answered or it has been idle for too long. A request that fails, expires or is cancelled leaves the state
    as it was; if it is the first, the sequence ends with it, and what waits behind it fails.
    """

    def __init__(
        self, batcher: Batcher, config: ModelConfig, inputs: SequenceInputs,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:  # fmt: skip
        assert config.sequence_batching is not None
        self._batcher = batcher
        self._inputs = inputs
        self._model = config.name
        self._batched = config.max_batch_rows > 0
        self._strategy = config.sequence_batching.strategy
        self._idle_s = config.sequence_batching.max_sequence_idle_us / 1e6
        self._sequences: dict[Id, _Sequence] = {}
        self._free_slots = list(range(slots_of(config)))[::-1]
        self._backlog: deque[_Sequence] = deque()
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._closed = False
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    can_run_here = runs_at_once = False

    @property
    def pending(self) -> int:
        return sum(len(s.works) for s in self._sequences.values()) + self._batcher.pending

    @property
    def running(self) -> int:
        return self._batcher.running

    def submit(self, work: Work) -> None:
        """Take a request of a sequence. Raises InvalidArgument for one that does not go on, or that begins twice."""
        request = work.request
        if self._closed:
            raise ShuttingDown("the model is being unloaded", value=self._model)
        if not request.sequence_id:
            raise InvalidArgument(
                f"model {self._model!r} takes requests of sequences only", expected="a `sequence_id` that is not 0"
            )
        if self._batched and work.rows != 1:
            raise InvalidArgument(
                f"model {self._model!r}: a request of a sequence has one row", found=work.rows, expected=1
            )
        sequence = self._sequences.get(request.sequence_id)
        if sequence is not None and not sequence.ends and request.sequence_start:
            raise InvalidArgument(
                f"model {self._model!r}: a sequence of this id goes on", found=request.sequence_id,
                hint="End it, or take another id.",
            )  # fmt: skip
        if sequence is not None and sequence.ends:
            raise InvalidArgument(
                f"model {self._model!r}: the last request of this sequence was sent, and is not answered yet",
                found=request.sequence_id,
            )
        # Refused before the sequence exists: its id may be none that the model can take.
        self._inputs.controls(request.sequence_id, False, False)
        if sequence is None:
            if not request.sequence_start:
                raise InvalidArgument(
                    f"model {self._model!r}: no sequence of this id goes on: it has not begun, has ended, or was idle "
                    f"for more than {self._idle_s:g} s", found=request.sequence_id,
                    hint="Begin it with a request that has `sequence_start`.",
                )  # fmt: skip
            sequence = _Sequence(request.sequence_id, self._inputs.first_state())
            self._sequences[sequence.id] = sequence
            if self._free_slots:
                sequence.slot = self._free_slots.pop()
            else:
                self._backlog.append(sequence)
        sequence.ends = request.sequence_end
        work.times.queued_ns = now = self._clock()
        if request.deadline_ns:
            work.timer = self._loop.call_later(max(request.deadline_ns - now, 0) / 1e9, self._expire, work)
        self._count += 1
        self._idle.clear()
        if sequence.timer is not None:
            sequence.timer.cancel()
            sequence.timer = None
        sequence.works.append(work)
        self._advance(sequence)

    def cancel(self, work: Work) -> None:
        work.answer.cancel()
        self._drop(work)

    async def drain(self) -> None:
        """Answer the requests that were taken. Sequences that would go on end here: a state is not kept for later."""
        self._closed = True
        await self._idle.wait()
        for sequence in list(self._sequences.values()):
            self._remove(sequence)
        await self._batcher.drain()

    def describe(self) -> Mapping[str, Any]:
        return {
            **self._batcher.describe(),
            "kind": f"sequences, {self._strategy}",
            "waiting_requests": self.pending,
            "sequences": len(self._sequences) - len(self._backlog),
            "sequences_waiting": len(self._backlog),
            "free_slots": len(self._free_slots),
        }

    def slot(self, sequence: Id) -> int | None:
        """The slot of a sequence that goes on; None while it waits for one, or where there is none of this id."""
        found = self._sequences.get(sequence)
        return found.slot if found else None

    # One sequence

    def _advance(self, sequence: _Sequence) -> None:
        """Hand the next request over."""
        while sequence.slot is not None and sequence.running is None and sequence.works:
            work = sequence.works.popleft()
            if work.is_over:
                self._settle(sequence, work, None)
                continue
            request = work.request
            feed = {
                **work.feed,
                **sequence.state,
                **self._inputs.controls(sequence.id, request.sequence_start, request.sequence_end),
            }
            states = tuple(s.output for s in self._inputs.states if s.output not in work.output_names)
            key = (*work.key, *(a.shape[1:] if self._batched else a.shape for a in sequence.state.values()))
            answer: asyncio.Future[Sequence[Array]] = self._loop.create_future()
            inner = Work(request, feed, (*work.output_names, *states), work.rows, key, answer, work.times)
            sequence.running = work, inner
            answer.add_done_callback(lambda _, s=sequence, w=work, i=inner: self._done(s, w, i))  # type: ignore[misc]
            try:
                self._batcher.submit(inner)
            except Exception as error:
                if not answer.done():
                    answer.set_exception(error)

    def _done(self, sequence: _Sequence, work: Work, inner: Work) -> None:
        sequence.running = None
        work.batch_rows, work.batch_closed = inner.batch_rows, inner.batch_closed
        outputs: Sequence[Array] | None = None
        if inner.answer.cancelled():
            error: BaseException | None = None
        else:
            error = inner.answer.exception()
            outputs = inner.answer.result() if error is None else None
        work.stop_timer()
        if outputs is not None:
            by_name = dict(zip(inner.output_names, outputs, strict=True))
            if not work.is_over:
                # The state of a request that nobody waits for any more is not kept: the client may send it again.
                sequence.started = True
                sequence.state = {s.input: by_name[s.output] for s in self._inputs.states}
                work.answer.set_result(outputs[: len(work.output_names)])
        elif error is not None and not work.is_over:
            work.answer.set_exception(error)
        self._settle(sequence, work, error)
        self._advance(sequence)

    def _settle(self, sequence: _Sequence, work: Work, error: BaseException | None) -> None:
        """A request of the sequence is over, one way or another."""
        self._count -= 1
        if not self._count:
            self._idle.set()
        if self._sequences.get(sequence.id) is not sequence:
            return
        if work.request.sequence_start and not sequence.started:
            reason = InvalidArgument(
                f"model {self._model!r}: the first request of the sequence failed", value=str(sequence.id),
                found=str(error) if error else "cancelled, or too late",
            )  # fmt: skip
            for waiting in sequence.works:
                if not waiting.is_over:
                    waiting.answer.set_exception(reason)
                waiting.stop_timer()
                self._count -= 1
            sequence.works.clear()
            if not self._count:
                self._idle.set()
            self._remove(sequence)
        elif not sequence.works and sequence.running is None:
            if sequence.ends:
                self._remove(sequence)
            else:
                sequence.timer = self._loop.call_later(self._idle_s, self._remove, sequence)

    def _remove(self, sequence: _Sequence) -> None:
        """The sequence is over: its slot goes to the one that has waited longest."""
        if self._sequences.get(sequence.id) is sequence:
            del self._sequences[sequence.id]
        if sequence.timer is not None:
            sequence.timer.cancel()
            sequence.timer = None
        if sequence.slot is None:
            if sequence in self._backlog:
                self._backlog.remove(sequence)
            return
        slot, sequence.slot = sequence.slot, None
        if self._backlog:
            following = self._backlog.popleft()
            following.slot = slot
            self._advance(following)
        else:
            self._free_slots.append(slot)

    def _expire(self, work: Work) -> None:
        if not work.answer.done():
            work.answer.set_exception(DeadlineExceeded("the request's time is over", value=self._model))
        self._drop(work)

    def _drop(self, work: Work) -> None:
        """The work is over before its answer is there."""
        work.stop_timer()
        sequence = self._sequences.get(work.request.sequence_id)
        if sequence is None:
            return
        if sequence.running is not None and sequence.running[0] is work:
            self._batcher.cancel(sequence.running[1])
        elif work in sequence.works:
            sequence.works.remove(work)
            self._settle(sequence, work, None)
