"""Stops a delegate's run when its RunState is cancelled or passes its deadline."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from whet.providers.base import RunState

POLL_SECONDS = 0.01
"""How late a stop may reach the library."""

LINGER_SECONDS = 2.0
"""How long the thread goes on polling after the last run, so that a stream of short runs never has to wake it."""


class Watcher:
    """One thread that looks at the runs under way. Adding and removing a run takes no lock that a run waits for."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start over with no runs and no thread: in a forked child, which has neither (and whose lock may be held)."""
        self._active: dict[int, tuple[RunState, Callable[[], None]]] = {}
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._asleep = False
        self._next = 0

    def add(self, state: RunState, stop: Callable[[], None]) -> int | None:
        """Call `stop` (once or more, from another thread) if `state` stops before `remove` of the returned key.

        Returns None, and watches nothing, for a run that nobody can stop.
        """
        if not state.stoppable:
            return None
        with self._lock:
            self._next += 1
            key = self._next
            self._active[key] = (state, stop)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="whet-watch", daemon=True)
                self._thread.start()
            elif self._asleep:
                self._asleep = False
                self._wake.set()
        return key

    def remove(self, key: int | None) -> None:
        """Forget a run."""
        if key is None:
            return
        with self._lock:
            self._active.pop(key, None)

    def _watch(self) -> None:
        last_active = time.monotonic()
        while True:
            now = time.monotonic()
            with self._lock:
                stopped = [
                    stop
                    for state, stop in self._active.values()
                    if (state.cancel is not None and state.cancel.is_set())
                    or (state.deadline is not None and now > state.deadline)
                ]
                if self._active:
                    last_active = now
                elif now - last_active > LINGER_SECONDS:
                    self._asleep = True
                    self._wake.clear()
                # Under the lock, so that no `stop` reaches a run that `remove` has let go.
                for stop in stopped:
                    stop()
            if self._asleep:
                self._wake.wait()
                last_active = time.monotonic()
            else:
                time.sleep(POLL_SECONDS)


WATCHER = Watcher()
"""The process's watcher; its thread starts with the first run of a delegate."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WATCHER.reset)
