"""An event loop whose time is made up: it jumps to the next timer instead of waiting, so that delays are exact."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.errors import RuntimeException, Terminated
from whet.server.model_config import DynamicBatching, QueuePolicy
from whet.server.request import Array, InferRequest
from whet.server.scheduling.batcher import Batcher
from whet.server.scheduling.instances import Done, Instances, Stop
from whet.server.scheduling.rate_limit import Ticket
from whet.server.scheduling.work import ShapeKey, Work

US = 1e-6


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only when nothing else can happen. A wait that nothing will end is an error, not a hang."""

    def __init__(self) -> None:
        self.now = 1.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now

    def ns(self) -> int:
        """The time as schedulers want it."""
        return round(self.now * 1e9)


class _Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("everything waits, and no timer is set")
        self._loop.now += timeout
        return super().select(0)


def run(make: Callable[[VirtualLoop], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine on a loop of its own."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(make(loop))
    finally:
        loop.close()


@dataclass(slots=True)
class Run:
    """A run that a fake instance made: when it began (seconds), and what it was given."""

    began: float
    rows: int
    names: tuple[str, ...]
    stop: Stop | None


class FakeInstances(Instances):
    """Instances whose runs take `seconds(rows)` of the loop's time. y = 2x; z has a row's sum, as "names" ask for.

    A row whose first element is -13 makes its run fail.
    """

    def __init__(self, loop: VirtualLoop, count: int, seconds: Callable[[int], float]) -> None:
        super().__init__(_never, count, loop, "fake")
        self._virtual = loop
        self.seconds = seconds
        self.runs: list[Run] = []

    def start(self, names: tuple[str, ...], feed: Mapping[str, Array], stop: Stop | None, done: Done) -> None:
        assert self.free > 0
        self.free -= 1
        x = feed["x"]
        self.runs.append(Run(self._virtual.now, len(x), names, stop))
        began = self._virtual.ns()

        over = False

        def end(error: BaseException | None) -> None:
            nonlocal over
            if over:  # stopped in the moment in which it ended
                return
            over = True
            timer.cancel()
            self.free += 1
            outputs = None
            if error is None and bool((x[..., :1] == -13).any()):
                error = RuntimeException("unlucky", found=-13)
            if error is None:
                known = {"y": 2 * x, "z": x.reshape(len(x), -1).sum(1)}
                outputs = [known[n] for n in names]
            done(outputs, error, began, self._virtual.ns())
            assert self.when_free is not None
            self.when_free()

        timer = self._virtual.call_later(self.seconds(len(x)), end, None)
        if stop is not None:
            stop.on_terminate(lambda: self._virtual.call_soon(end, Terminated("stopped")) and None)


def _never(names: tuple[str, ...], feed: Mapping[str, Array], stop: Stop | None) -> Sequence[Array]:
    raise AssertionError("a fake instance runs nothing")


@dataclass(slots=True)
class Counted:
    """What a batcher counted: rows and reasons."""

    rows: int
    closed: str


class Bench:
    """A batcher on fake instances, with an easy way to ask it."""

    def __init__(
        self, loop: VirtualLoop, batching: DynamicBatching | None, max_rows: int = 8, instances: int = 1,
        seconds: Callable[[int], float] = lambda rows: 1000 * US, policy: QueuePolicy | None = None,
        ticket: Ticket | None = None, share: FakeInstances | None = None,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.instances = share or FakeInstances(loop, instances, seconds)
        self.counted: list[Counted] = []
        self.batcher = Batcher(
            self.instances, max_rows, batching, policy or QueuePolicy(), "model",
            lambda rows, closed, *_: self.counted.append(Counted(rows, closed)), ticket, loop.ns,
        )  # fmt: skip

    @property
    def batches(self) -> list[tuple[int, str]]:
        """Rows and reason of every run that succeeded, in order."""
        return [(c.rows, c.closed) for c in self.counted]

    def ask(
        self, x: Array, names: tuple[str, ...] = ("y",), deadline_us: float = 0, priority: int = 0
    ) -> Work:  # fmt: skip
        """Submit a request of these rows, now."""
        deadline = self.loop.ns() + int(deadline_us * 1000) if deadline_us else 0
        request = InferRequest("model", [], priority=priority, deadline_ns=deadline)
        key: ShapeKey = (x.shape[1:],)
        work = Work(request, {"x": x}, names, len(x), key, self.loop.create_future())
        self.batcher.submit(work)
        return work


def rows(count: int, width: int = 2, seed: int = 0) -> Array:
    """Random rows."""
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
