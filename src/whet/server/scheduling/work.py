"""A request on its way through a scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from whet.server.request import Array, InferRequest, RequestTimes, StepRun
from whet.server.scheduling.instances import Stop

ShapeKey = tuple[tuple[int, ...] | None, ...]
"""The shapes, without rows, of a model's inputs in their order, None for one that is left out: only requests of equal
keys share a batch."""


@dataclass(slots=True, eq=False)
class Work:
    """A checked request that waits or runs. `feed` holds the model's inputs by name, in the model's shapes and types.

    `rows` is 1 for models without batches. `answer` gets the outputs, in the order of `output_names`, or the error.
    The batcher keeps its own notes in `level` (of priority), `timer`, `state` and `batch`; an ensemble in `steps`.
    """

    request: InferRequest
    feed: Mapping[str, Array]
    output_names: tuple[str, ...]
    rows: int
    key: ShapeKey
    answer: asyncio.Future[Sequence[Array]]
    times: RequestTimes = field(default_factory=RequestTimes)
    batch_rows: int = 0
    batch_closed: str = ""
    level: int = 0
    timer: asyncio.TimerHandle | None = None
    state: Literal["waiting", "running", "over"] = "waiting"
    batch: Batch | None = None
    steps: Sequence[StepRun] = ()

    @property
    def is_over(self) -> bool:
        """Whether no one waits for the answer any more: cancelled, expired, or answered."""
        return self.answer.done()

    def stop_timer(self) -> None:
        """Forget the deadline: the answer is there, or the scheduler that set it has handed the work on."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(slots=True, eq=False)
class Batch:
    """Works that run together. `left`: how many of them somebody still waits for; at 0 the run is stopped."""

    works: list[Work]
    rows: int
    closed: str
    names: tuple[str, ...]
    stop: Stop | None = None
    left: int = 0
    result: Result | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended, and between which times (monotonic, ns)."""

    outputs: Sequence[Array] | None
    error: BaseException | None
    began_ns: int
    ended_ns: int
