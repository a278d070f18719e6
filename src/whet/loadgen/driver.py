"""Sends requests on an event loop, closed or open loop, and collects what became of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.loadgen.arrivals import Alarm, intervals
from whet.loadgen.histogram import Histogram
from whet.loadgen.http_client import HttpSlot
from whet.loadgen.plan import Plan

MIX = 4096  # requests of the mix before it repeats
RETRY_S = 0.05  # a connection that just failed waits so long, or a stopped server would be asked as fast as we can


@dataclass
class Window:
    """What happened in one stretch of time."""

    seconds: float = 0.0
    latency: list[Histogram] = field(default_factory=list)  # one a model, answered requests only
    errors: dict[str, int] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)  # an example of each kind of error
    late: Histogram = field(default_factory=Histogram)  # how long after the intended time this tool itself woke
    backlog: int = 0  # requests of an open loop that wait for a connection at the end


@dataclass(frozen=True)
class Mix:
    """For each model its encoded requests, and its weight."""

    payloads: Sequence[Sequence[bytes]]
    weights: Sequence[float]

    def sequence(self, seed: int) -> list[tuple[int, bytes]]:
        """The order in which models, and the requests of each, take turns."""
        if len(self.payloads) == 1:
            return [(0, payload) for payload in self.payloads[0]]
        rng = random.Random(seed)
        chosen = rng.choices(range(len(self.payloads)), self.weights, k=MIX)
        return [(model, rng.choice(self.payloads[model])) for model in chosen]


class Driver:
    """Keeps one process's share of the connections busy from `start` to `stop`."""

    def __init__(self, plan: Plan, mix: Mix, connections: int, rate: float | None, seed: int) -> None:
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._sequence = mix.sequence(seed)
        self._next = 0
        self._models = len(mix.payloads)
        self._slots: list[Any] = [self._make_slot() for _ in range(connections)]
        self._under_way: dict[Any, tuple[int, float]] = {}
        self._idle: list[Any] = []
        self._backlog: deque[float] = deque()
        self._rate = rate
        self._gaps = intervals(rate, plan.pace.arrivals, seed) if rate is not None else None
        self._alarm = Alarm(self._loop, self._arrive) if rate is not None else None
        self._due = 0.0
        self._running = False
        self._tick: asyncio.TimerHandle | None = None
        self._fresh()

    def _make_slot(self) -> Any:
        if self._plan.target.protocol == "http":
            return HttpSlot(self._plan.target, self._done)
        from whet.loadgen.grpc_client import GrpcSlot

        return GrpcSlot(self._plan.target, self._done)

    def _fresh(self) -> None:
        self._since = time.monotonic()
        self._latencies: list[list[float]] = [[] for _ in range(self._models)]
        self._late: list[float] = []
        self._window = Window()

    def start(self) -> None:
        """Begin to send."""
        self._running = True
        self._sweep()
        if self._gaps is None or self._alarm is None:
            for slot in self._slots:
                self._send(slot, time.monotonic())
        else:
            self._idle = list(self._slots)
            self._due = time.monotonic() + next(self._gaps)
            self._alarm.set(self._due)

    def cut(self) -> Window:
        """End the current window, begin the next, and return what the ended one saw."""
        window, latencies, late = self._window, self._latencies, self._late
        window.seconds = time.monotonic() - self._since
        window.backlog = len(self._backlog)
        self._fresh()
        for values in latencies:
            window.latency.append(Histogram())
            window.latency[-1].add(values)
        window.late.add(late)
        return window

    async def stop(self) -> None:
        """Send nothing more and give up what is under way."""
        self._running = False
        if self._alarm is not None:
            self._alarm.close()
        if self._tick is not None:
            self._tick.cancel()
        for slot in self._slots:
            slot.cancel()
            if hasattr(slot, "close"):
                await slot.close()

    def _send(self, slot: Any, started: float) -> None:
        model, payload = self._sequence[self._next]
        self._next = (self._next + 1) % len(self._sequence)
        self._under_way[slot] = (model, started)
        slot.send(payload)

    def _done(self, slot: Any, error: str | None, detail: str) -> None:
        model, started = self._under_way.pop(slot)
        now = time.monotonic()
        if not self._running:
            return
        if error is None:
            self._latencies[model].append(now - started)
        else:
            self._count_error(error, detail)
            if not error.startswith("HTTP"):
                self._loop.call_later(RETRY_S, self._ready, slot)
                return
        self._ready(slot, now)

    def _ready(self, slot: Any, now: float | None = None) -> None:
        """Give a free connection its next request, if there is one."""
        if not self._running:
            return
        if self._gaps is None:
            self._send(slot, time.monotonic() if now is None else now)
        elif self._backlog:
            self._send(slot, self._backlog.popleft())
        else:
            self._idle.append(slot)

    def _count_error(self, error: str, detail: str) -> None:
        self._window.errors[error] = self._window.errors.get(error, 0) + 1
        self._window.details.setdefault(error, detail)

    def _arrive(self) -> None:
        """Start every request whose time has come."""
        assert self._gaps is not None
        assert self._alarm is not None
        if not self._running:
            return
        now = time.monotonic()
        while self._due <= now:
            self._late.append(now - self._due)
            if self._idle:
                self._send(self._idle.pop(), self._due)
            else:
                self._backlog.append(self._due)
            self._due += next(self._gaps)
        self._alarm.set(self._due)

    def _sweep(self) -> None:
        """Give up requests that are too old; once in a twentieth of the timeout is exact enough and costs nothing."""
        limit = time.monotonic() - self._plan.timeout_s
        for slot in [s for s, (_, started) in self._under_way.items() if started <= limit]:
            slot.cancel()
            del self._under_way[slot]
            self._count_error("timeout", f"no answer within {self._plan.timeout_s:g} s")
            self._ready(slot)
        while self._backlog and self._backlog[0] <= limit:
            self._backlog.popleft()
            self._count_error("timeout", f"no answer within {self._plan.timeout_s:g} s")
        self._tick = self._loop.call_later(min(self._plan.timeout_s / 20, 0.1), self._sweep)
