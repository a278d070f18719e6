"""Chrome traces (chrome://tracing, Perfetto) of what sessions did, in the layout of ONNX Runtime's profile files."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from whet.providers.base import ProfileEvent

MAX_EVENTS = 1_000_000
"""Events kept in memory, as in ONNX Runtime; what comes later is only counted."""


class TraceRecorder:
    """Collects the events of one session, from any thread. Times are nanoseconds of the clock of `start_ns`."""

    def __init__(self, start_ns: int) -> None:
        self.start_ns = start_ns
        self._lock = threading.Lock()
        self._events: list[dict[str, Any]] = []
        self._dropped = 0

    def session_event(self, name: str, start_ns: int, duration_ns: int) -> None:
        """Record a stage of loading, or a whole run."""
        self._append(self._event("Session", name, start_ns, duration_ns, {}))

    def node_events(self, events: Iterable[ProfileEvent]) -> None:
        """Record what a run's executables reported."""
        for e in events:
            arguments = {"op_name": e.op, "provider": e.provider, **e.args}
            self._append(self._event("Node", f"{e.name}_kernel_time", e.start_ns, e.duration_ns, arguments))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write everything recorded so far as a JSON list of complete ("X") events, times in microseconds."""
        with self._lock:
            events = list(self._events)
            if self._dropped:
                last = events[-1]["ts"]
                events.append(
                    {**self._event("Session", f"{self._dropped} later events not kept", 0, 0, {}), "ts": last}
                )
        Path(path).write_text(json.dumps(events, separators=(",", ":")), encoding="utf-8")

    def _append(self, event: dict[str, Any]) -> None:
        with self._lock:
            if len(self._events) < MAX_EVENTS:
                self._events.append(event)
            else:
                self._dropped += 1

    def _event(self, category: str, name: str, start_ns: int, duration_ns: int, args: dict[str, Any]) -> dict[str, Any]:
        return {
            "cat": category,
            "pid": os.getpid(),
            "tid": threading.get_native_id(),
            "dur": duration_ns / 1000,
            "ts": (start_ns - self.start_ns) / 1000,
            "ph": "X",
            "name": name,
            "args": args,
        }
