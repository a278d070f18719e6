"""The requests that wait for a model, by level of priority, oldest first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from whet.server.errors import QueueFull
from whet.server.model_config import QueuePolicy
from whet.server.scheduling.work import Work

NO_POLICY = QueuePolicy()


class Waiting:
    """A queue for each level: 1 is served first. A model without levels has the one level 0.

    Work that is over stays where it is until the queue is read; it counts in nothing.
    """

    def __init__(
        self, model: str, levels: int = 0, default_level: int = 0, default_policy: QueuePolicy = NO_POLICY,
        policies: Mapping[int, QueuePolicy] | None = None,
    ) -> None:  # fmt: skip
        self._model = model
        self._default_level = default_level if levels else 0
        numbers = range(1, levels + 1) if levels else (0,)
        given = policies or {}
        self._policies = {n: given.get(n, default_policy) for n in numbers}
        self._queues: dict[int, deque[Work]] = {n: deque() for n in numbers}
        self._late: dict[int, deque[Work]] = {n: deque() for n in numbers}
        self._counts = dict.fromkeys(numbers, 0)
        self.count = 0
        """Requests that wait and that somebody waits for."""
        self.rows = 0
        """Their rows."""

    def level_of(self, priority: int) -> int:
        """The level of a request's priority; 0, and what is no level of the model's, mean the default one."""
        return priority if priority in self._queues else self._default_level

    def policy_of(self, work: Work) -> QueuePolicy:
        return self._policies[work.level]

    def add(self, work: Work) -> None:
        """Queue the work at its level. Raises QueueFull."""
        work.level = level = self.level_of(work.request.priority)
        most = self._policies[level].max_size
        if most and self._counts[level] >= most:
            where = f"level {level} of the model's queue is full" if level else "the model's queue is full"
            raise QueueFull(where, value=self._model, found=f"{self._counts[level]} requests", expected=f"{most}")
        self._queues[level].append(work)
        self._note(work, 1)

    def drop(self, work: Work) -> None:
        """The work, which waits here, is over."""
        self._note(work, -1)

    def delay(self, work: Work) -> None:
        """The work's time in the queue is over, and its level's policy serves it behind all others of the level."""
        self._queues[work.level].remove(work)
        self._late[work.level].append(work)

    def take(self, batch: list[Work]) -> None:
        """Take the works of a batch out."""
        left = set(map(id, batch))
        for level in {w.level for w in batch}:
            for queues in (self._queues, self._late):
                queue = queues[level]
                # Almost always a batch is what stands in front.
                while queue and (id(queue[0]) in left or queue[0].is_over):
                    left.discard(id(queue.popleft()))
                if left and queue:
                    queues[level] = deque(w for w in queue if id(w) not in left and not w.is_over)
        for work in batch:
            self._note(work, -1)

    def __iter__(self) -> Iterator[Work]:
        """Those that wait, in the order of service."""
        for level, queue in self._queues.items():
            yield from (w for w in queue if not w.is_over)
            yield from (w for w in self._late[level] if not w.is_over)

    def _note(self, work: Work, change: int) -> None:
        self.count += change
        self.rows += change * work.rows
        self._counts[work.level] += change
        if not self._counts[work.level]:
            self._queues[work.level].clear()
            self._late[work.level].clear()
