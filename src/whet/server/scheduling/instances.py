"""The instances of a model: who runs a batch, and where.

A run that takes much less time than waking a thread (a tiny model) is made on the event loop itself; every other run is
made by a thread of its instance, and the loop goes on. Which of the two is decided by what runs took so far.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Protocol

from whet.errors import ResourceExhausted
from whet.server.errors import ShuttingDown
from whet.server.request import Array

INLINE_US = 60.0
"""Runs that take less than this are made on the event loop. Handing one to a thread and back takes about as long."""

OBSERVED = 8
"""Runs after which the observed time decides."""

SLOW = 8
"""A run on the loop that takes so many times `INLINE_US` is the last one there until `OBSERVED` others were short."""


class Stop:
    """Tells a run that its answer is no longer wanted. `terminate` may be called from any thread, more than once."""

    __slots__ = ("_hooks", "_lock", "terminated")

    def __init__(self) -> None:
        self.terminated = False
        self._hooks: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def on_terminate(self, hook: Callable[[], None]) -> None:
        """Call `hook` when terminated; at once if that has happened already."""
        with self._lock:
            if not self.terminated:
                self._hooks.append(hook)
                return
        hook()

    def terminate(self) -> None:
        with self._lock:
            if self.terminated:
                return
            self.terminated = True
            hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook()


class Runner(Protocol):
    """What runs a batch: a session, or in tests a fake. May be called from several threads at once."""

    def __call__(self, names: tuple[str, ...], feed: Mapping[str, Array], stop: Stop | None) -> Sequence[Array]: ...


def _closed(names: tuple[str, ...], feed: Mapping[str, Array], stop: Stop | None) -> Sequence[Array]:
    raise ShuttingDown("the model was closed")


Done = Callable[["Sequence[Array] | None", "BaseException | None", int, int], None]
"""Called on the loop with outputs or an error, and the monotonic times (ns) between which the run took place."""


class Instances:
    """`count` runs at one time. `acquire` before `start`; whoever waits for a free one is told through `when_free`.

    `may_run_here`: runs with the same shapes take about the same time, so that what was short stays short.
    """

    def __init__(
        self, runner: Runner, count: int, loop: asyncio.AbstractEventLoop, name: str, may_run_here: bool = True
    ) -> None:
        self._runner = runner
        self._loop = loop
        self.count = count
        self.free = count
        self.may_run_here = may_run_here
        self.when_free: Callable[[], None] | None = None
        self._queue: SimpleQueue[tuple[tuple[str, ...], Mapping[str, Array], Stop | None, Done] | None] = SimpleQueue()
        self._name = name
        self._threads: list[threading.Thread] = []
        self._recent: list[int] = []
        self._closed = False
        self.runs_inline = False
        """Whether the next run will be made on the event loop."""

    @property
    def seen_shapes(self) -> tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]:
        """Shapes of runs that the runner remembers."""
        return tuple(getattr(self._runner, "seen", ()))

    def run_here(self, names: tuple[str, ...], feed: Mapping[str, Array]) -> tuple[Sequence[Array], int, int]:
        """Run at once on the event loop, where an instance is free: outputs, and when it ran."""
        began = time.monotonic_ns()
        outputs = self._runner(names, feed, None)
        ended = time.monotonic_ns()
        self._observe(ended - began)
        return outputs, began, ended

    def start(self, names: tuple[str, ...], feed: Mapping[str, Array], stop: Stop | None, done: Done) -> None:
        """Run on a free instance; `done` comes later on the loop, or at once for a run that is made there."""
        assert self.free > 0
        self.free -= 1
        if self.runs_inline:
            began = time.monotonic_ns()
            outputs: Sequence[Array] | None = None
            error: BaseException | None = None
            try:
                outputs = self._runner(names, feed, stop)
            except Exception as problem:
                error = problem
            self._finish(done, outputs, error, began, time.monotonic_ns())
            return
        if len(self._threads) < self.count - self.free:
            thread = threading.Thread(target=self._work, name=f"whet-{self._name}-{len(self._threads)}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if not self._threads:
                    now = time.monotonic_ns()
                    failure = ResourceExhausted("the system starts no more threads", file=self._name, found=str(error))
                    self._loop.call_soon(self._finish, done, None, failure, now, now)
                    return
            else:
                self._threads.append(thread)
        self._queue.put((names, feed, stop, done))

    def close(self) -> None:
        """Let the threads end, and the runner go. Nothing runs any more: who calls this has waited for every run."""
        self._closed = True
        self._runner = _closed
        for _ in self._threads:
            self._queue.put(None)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            names, feed, stop, done = job
            outputs: Sequence[Array] | None = None
            error: BaseException | None = None
            began = time.monotonic_ns()
            try:
                outputs = self._runner(names, feed, stop)
            except BaseException as problem:
                error = problem
            self._loop.call_soon_threadsafe(self._finish, done, outputs, error, began, time.monotonic_ns())
            del job, names, feed, stop, done, outputs, error

    def _observe(self, ns: int) -> None:
        self._recent.append(ns)
        if ns > SLOW * INLINE_US * 1e3:
            self.runs_inline = False
        if len(self._recent) == OBSERVED:
            self.runs_inline = self.may_run_here and sorted(self._recent)[OBSERVED // 2] < INLINE_US * 1e3
            self._recent.clear()

    def _finish(
        self, done: Done, outputs: Sequence[Array] | None, error: BaseException | None, began: int, ended: int
    ) -> None:
        self.free += 1
        if error is None:
            self._observe(ended - began)
        done(outputs, error, began, ended)
        if self.when_free is not None and not self._closed:
            self.when_free()
