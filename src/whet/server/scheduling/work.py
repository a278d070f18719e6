"""A request on its way through a scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whet.server.request import Array, InferRequest, RequestTimes

ShapeKey = tuple[tuple[int, ...], ...]
"""The shapes, without rows, and types of a request's inputs: only equal ones share a batch."""


@dataclass(slots=True, eq=False)
class Work:
    """A checked request that waits or runs. `feed` holds the model's inputs by name, in the model's shapes and types.

    `rows` is 1 for models without batches. `answer` gets the outputs, in the order of `output_names`, or the error.
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

    @property
    def is_over(self) -> bool:
        """Whether no one waits for the answer any more: cancelled, expired, or answered."""
        return self.answer.done()
