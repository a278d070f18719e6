"""What a served model needs of whoever runs its requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from whet.server.scheduling.work import Work

OnBatch = Callable[[int, str, int, int, int], None]
"""Told of each run: its rows, why the batch was closed, and the nanoseconds for joining inputs, running, and handing
out the answers."""


class Scheduler(Protocol):
    """Takes work and answers it, on the event loop: a batcher, the sequences of a stateful model, or an ensemble."""

    @property
    def can_run_here(self) -> bool:
        """Whether a request that came now could run on the event loop, and nothing would be overtaken."""
        ...

    @property
    def runs_at_once(self) -> bool:
        """Whether a request that came now would run alone, at once and on the event loop: it need not be queued."""
        ...

    @property
    def pending(self) -> int:
        """Requests that wait."""
        ...

    @property
    def running(self) -> int:
        """Runs that were started and have not ended."""
        ...

    def submit(self, work: Work) -> None:
        """Take the work; its answer is set later, on the loop. Raises QueueFull, ShuttingDown, InvalidArgument."""
        ...

    def cancel(self, work: Work) -> None:
        """The client went away: the work does not run, or its run is stopped when nobody else shares it."""
        ...

    async def drain(self) -> None:
        """Take nothing new; return when everything that was taken is answered."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """How it stands, for people: plain values by name."""
        ...
