"""Watches requests for two things that cost nothing while nothing happens: slow bodies, and clients that went away.

Asking each request's connection whether its client is still there would cost more than most answers do; so only
requests that take longer than a tick are asked for.
"""

from __future__ import annotations

import asyncio
from typing import Any

TICK_S = 0.05

Task = asyncio.Task[Any]


class Watch:
    """The requests in flight. `reading`: task to the tick when its body began; `computing`: to its protocol and tick.

    The application enters and leaves both itself, so that the hot path pays for two dictionary entries only.
    """

    def __init__(self, body_s: float) -> None:
        self.tick = 0
        self.reading: dict[Task, int] = {}
        self.computing: dict[Task, tuple[Any, int]] = {}
        self.late: set[Task] = set()
        """Tasks that were cancelled because their body was too slow."""
        self.gone: set[Task] = set()
        """Tasks that were cancelled because their client went away."""
        self.overdue: set[Task] = set()
        """Tasks that were cancelled because the server stops and waits no longer."""
        self._body_ticks = max(2, round(body_s / TICK_S) + 1)
        self._watchers: dict[Task, Task] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """Whether any request is in flight."""
        return bool(self.reading or self.computing)

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._beat)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for watcher in self._watchers.values():
            watcher.cancel()

    def end_all(self) -> None:
        """End every request that is still in flight; it is told why."""
        for task in (*self.reading, *self.computing):
            self.overdue.add(task)
            task.cancel()

    def _beat(self) -> None:
        self.start()
        self.tick += 1
        for task, began in self.reading.items():
            if self.tick - began > self._body_ticks and task not in self.late:
                self.late.add(task)
                task.cancel()
        for task, (protocol, began) in self.computing.items():
            if self.tick - began > 1 and task not in self._watchers:
                self._watchers[task] = asyncio.create_task(self._until_gone(task, protocol))
        for task in [t for t in self._watchers if t not in self.computing]:
            self._watchers.pop(task).cancel()

    async def _until_gone(self, task: Task, protocol: Any) -> None:
        await protocol.client_disconnect()
        if task in self.computing:
            self.gone.add(task)
            task.cancel()
