"""The server's log on standard error: a line each, as text or as JSON, written by a thread of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from whet.server.errors import http_status
from whet.server.request import InferRequest, InferResponse
from whet.server.settings import LogSettings

REQUESTS = logging.getLogger("whet.server.requests")

MOST_WAITING = 10_000
"""Lines that wait for a slow reader of the log. More are dropped and counted: the event loop never waits."""

LEVELS: tuple[tuple[int, str], ...] = (
    (logging.ERROR, "error"),
    (logging.WARNING, "warning"),
    (logging.INFO, "info"),
    (logging.DEBUG, "verbose"),
)
"""From the highest: a record belongs to the first that it reaches. The names are those of `LogSettings`."""

# What would end a line, or move a terminal's cursor: names and messages come from requests and from models.
_CONTROL = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0xD800, 0xE000))
}


def fields(**values: Any) -> dict[str, Mapping[str, Any]]:
    """The `extra` of a log call: named values of the line, those that are None or "" left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None and value != ""}}


class LineFormatter(logging.Formatter):
    """One line for a record; `style` as in `LogSettings.format`. A traceback in text follows on indented lines."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self._line_style = style

    def format(self, record: logging.LogRecord) -> str:
        named: Mapping[str, Any] = getattr(record, "fields", {})
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else record.exc_text or ""
        if self._line_style == "json":
            document = {
                "time": _iso(record.created), "level": record.levelname.lower(), "logger": record.name,
                "message": record.getMessage(), **named,
            }  # fmt: skip
            if trace:
                document["traceback"] = trace
            return json.dumps(document, default=str)
        moment = _iso(record.created) if self._line_style == "ISO8601" else _local(record.created)
        parts = [moment, record.levelname, f"{record.name}:", record.getMessage().translate(_CONTROL)]
        parts += [f"{name}={_value(value)}" for name, value in named.items()]
        lines = [" ".join(parts), *(f"  {line.translate(_CONTROL)}" for line in trace.splitlines())]
        return "\n".join(lines)


class ServerLog(logging.Handler):
    """Takes the records of the whole process and writes them to `stream`.

    Use `apply` for changed settings, and `stop` to write what waits and to leave Python's logging as it was.
    """

    def __init__(self, settings: LogSettings, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stderr
        self._queue: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        self._wanted: frozenset[str] = frozenset()
        self.dropped = 0
        self._root = logging.getLogger()
        self._own = logging.getLogger("whet")
        self._own_level = self._own.level
        self._thread = threading.Thread(target=self._write, name="whet-log", daemon=True)
        self._thread.start()
        self._root.addHandler(self)
        self.apply(settings)

    def apply(self, settings: LogSettings) -> None:
        """Write what `settings` say from now on."""
        switches = {
            "error": settings.error,
            "warning": settings.warning,
            "info": settings.info,
            "verbose": settings.verbose > 0,
        }
        self._wanted = frozenset(name for name, on in switches.items() if on)
        # Other packages stay at their warnings; only Whet's own loggers follow the settings down.
        self._own.setLevel(settings.level())
        self.setFormatter(LineFormatter(settings.format))

    def emit(self, record: logging.LogRecord) -> None:
        kind = next((name for level, name in LEVELS if record.levelno >= level), "verbose")
        if kind not in self._wanted:
            return
        try:
            self._queue.put_nowait(self.format(record))
        except queue.Full:
            self.dropped += 1
        except Exception:
            self.handleError(record)

    def stop(self) -> None:
        """Write every line that waits, within a second, and let go.

        Not in `close`: `logging.config`, which the HTTP server uses at its start, closes the handlers that it finds.
        """
        self._root.removeHandler(self)
        self._own.setLevel(self._own_level)
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=1.0)
            self._thread.join(1.0)
        self.close()

    def _write(self) -> None:
        while (line := self._queue.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._queue.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                # Nobody reads any more. The server goes on.
                self.dropped += 1


def log_answer(request: InferRequest, response: InferResponse) -> None:
    """The line of an answered request; only verbose logs have it."""
    times = response.times
    REQUESTS.debug("answered", extra=fields(
        request_id=request.id, model=response.model, version=response.version, status=200,
        latency_ms=_ms(times.finished_ns - times.received_ns), queue_ms=_ms(times.started_ns - times.queued_ns),
        infer_ms=_ms(times.computed_ns - times.started_ns), batch_rows=response.batch_rows,
        batch_closed=response.batch_closed,
    ))  # fmt: skip


def log_failure(request: InferRequest, error: Exception) -> None:
    """The line of a request that failed: an error where the server or the model is at fault, else verbose."""
    status = http_status(error)
    level = logging.ERROR if status == 500 else logging.DEBUG
    if REQUESTS.isEnabledFor(level):
        REQUESTS.log(level, "failed", extra=fields(
            request_id=request.id, model=request.model, version=request.version, status=status,
            latency_ms=_ms(time.monotonic_ns() - request.received_ns) if request.received_ns else None,
            error=type(error).__name__, reason=str(error),
        ))  # fmt: skip


def _ms(ns: int) -> float:
    return round(ns / 1e6, 3)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "milliseconds")


def _value(value: Any) -> str:
    text = str(value)
    return text if text and text.isalnum() else json.dumps(text) if not isinstance(value, int | float) else text
