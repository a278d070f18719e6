"""The profile of one session: what it records, and the file that it ends in."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterable

from whet.profiling.trace import TraceRecorder
from whet.providers.base import ProfileEvent

_NUMBERS = itertools.count()


class Profile:
    """Records events from any thread until it ends. Event times are nanoseconds of `time.perf_counter_ns`."""

    def __init__(self, prefix: str) -> None:
        self.start_ns = time.monotonic_ns()
        """`time.monotonic_ns()` when the recording began."""
        self._trace = TraceRecorder(time.perf_counter_ns())
        self._prefix = prefix
        self._path = ""
        self._lock = threading.Lock()

    @property
    def recording(self) -> bool:
        """Whether the profile has not ended."""
        return not self._path

    def session_event(self, name: str, start_ns: int, end_ns: int) -> None:
        """Record a stage of loading, or a whole run."""
        if self.recording:
            self._trace.session_event(name, start_ns, end_ns - start_ns)

    def node_events(self, events: Iterable[ProfileEvent]) -> None:
        """Record what a run's executables reported."""
        if self.recording:
            self._trace.node_events(events)

    def end(self) -> str:
        """Write the file, the first time, and return its path. Names are unique in a process and between processes."""
        with self._lock:
            if not self._path:
                stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
                path = f"{self._prefix}{stamp}_{os.getpid()}_{next(_NUMBERS)}.json"
                self._trace.write(path)
                self._path = path
            return self._path
