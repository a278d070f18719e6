"""The settings that the trace and logging extensions show and change. Nothing here takes a path from a request."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from whet.errors import InvalidArgument, did_you_mean
from whet.server.errors import Unsupported

LEVELS = ("OFF", "TIMESTAMPS", "TENSORS")

LARGEST = 10**18 - 1
NUMBER = re.compile("-?(0|[1-9][0-9]{0,17})")
"""A number as a string, as Triton's clients send it."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged. `verbose` 0 leaves out everything that is only for finding faults."""

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose: int = 0
    format: Literal["default", "ISO8601", "json"] = "default"

    def document(self) -> dict[str, Any]:
        """The settings with the protocol's names."""
        return {
            "log_file": "",
            "log_info": self.info,
            "log_warning": self.warning,
            "log_error": self.error,
            "log_verbose_level": self.verbose,
            "log_format": self.format,
        }

    def changed(self, document: Mapping[str, Any]) -> LogSettings:
        """The settings after a request's changes. Raises InvalidArgument, and Unsupported for a file."""
        found = self
        for name, value in document.items():
            if name in ("log_info", "log_warning", "log_error"):
                if type(value) is not bool:
                    raise InvalidArgument("a log setting is true or false", value=name, found=value)
                changes: dict[str, Any] = {name.removeprefix("log_"): value}
                found = replace(found, **changes)
            elif name == "log_verbose_level":
                value = _whole(value)
                if type(value) is not int or not 0 <= value < 100:
                    raise InvalidArgument("the verbose level is a small whole number", value=name, found=value)
                found = replace(found, verbose=value)
            elif name == "log_format":
                if value not in ("default", "ISO8601", "json"):
                    raise InvalidArgument("unknown log format", found=value, expected="default, ISO8601, json")
                found = replace(found, format=value)
            elif name == "log_file":
                raise Unsupported("a request cannot name the log's file", value=name)
            else:
                raise InvalidArgument("unknown log setting", value=name, hint=did_you_mean(name, self.document()))
        return found

    def level(self) -> int:
        """The lowest level of Python's logging that is written."""
        if self.verbose:
            return logging.DEBUG
        if self.info:
            return logging.INFO
        if self.warning:
            return logging.WARNING
        return logging.ERROR if self.error else logging.CRITICAL + 1


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Which requests are traced: every `rate`-th, `count` of them at most (-1: no end), at `levels`."""

    levels: tuple[str, ...] = ("OFF",)
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0
    mode: str = "opentelemetry"

    @property
    def is_on(self) -> bool:
        return "OFF" not in self.levels and self.count != 0

    def document(self) -> dict[str, list[str] | str]:
        """The settings with the protocol's names; values are strings there."""
        return {
            "trace_level": list(self.levels),
            "trace_rate": str(self.rate),
            "trace_count": str(self.count),
            "log_frequency": str(self.log_frequency),
            "trace_file": "",
            "trace_mode": self.mode,
        }

    def changed(self, document: Mapping[str, Any], defaults: TraceSettings) -> TraceSettings:
        """The settings after a request's changes; null goes back to `defaults`. Raises InvalidArgument, Unsupported."""
        found = self
        for name, given in document.items():
            if name == "trace_file":
                raise Unsupported("a request cannot name the trace's file", value=name)
            if name == "trace_mode":
                raise Unsupported("the trace mode is set when the server starts", value=name)
            if name == "trace_level":
                found = replace(found, levels=defaults.levels if given is None else _levels(given))
            elif name in _NUMBERS:
                field, least = _NUMBERS[name]
                value = getattr(defaults, field) if given is None else _number(name, given, least)
                changes: dict[str, Any] = {field: value}
                found = replace(found, **changes)
            else:
                raise InvalidArgument("unknown trace setting", value=name, hint=did_you_mean(name, self.document()))
        return found


_NUMBERS: dict[str, tuple[str, int]] = {
    "trace_rate": ("rate", 1),
    "trace_count": ("count", -1),
    "log_frequency": ("log_frequency", 0),
}


def _levels(given: Any) -> tuple[str, ...]:
    levels = (given,) if isinstance(given, str) else given
    if not isinstance(levels, Sequence) or not levels or any(level not in LEVELS for level in levels):
        raise InvalidArgument("unknown trace level", found=given, expected=", ".join(LEVELS))
    return ("OFF",) if "OFF" in levels else tuple(dict.fromkeys(levels))


def _whole(given: Any) -> Any:
    """2.0 is the whole number 2 in JSON."""
    return int(given) if type(given) is float and given.is_integer() else given


def _number(name: str, given: Any, least: int) -> int:
    if isinstance(given, (list, tuple)) and len(given) == 1:
        given = given[0]
    given = _whole(given)
    value = int(given) if type(given) is int or (type(given) is str and NUMBER.fullmatch(given)) else None
    if value is None or not least <= value <= LARGEST:
        raise InvalidArgument(
            "not a number in the setting's range", value=name, found=given, expected=f"{least} to {LARGEST}"
        )
    return value


class Settings:
    """The current settings: the server's, and traces of single models where they differ."""

    def __init__(self, logs: LogSettings, traces: TraceSettings) -> None:
        self.logs = logs
        self.default_traces = traces
        self._traces = traces
        self._by_model: dict[str, TraceSettings] = {}
        self.on_logs: Callable[[LogSettings], None] | None = None
        self.on_traces: Callable[[TraceSettings, str], None] | None = None

    def traces(self, model: str = "") -> TraceSettings:
        """The trace settings of a model, or of the server."""
        return self._by_model.get(model, self._traces)

    def change_traces(self, document: Mapping[str, Any], model: str = "") -> TraceSettings:
        """Change the settings of a model, or of the server and of every model that has none of its own."""
        base = self._traces if model else self.default_traces
        changed = self.traces(model).changed(document, base)
        if model:
            self._by_model[model] = changed
        else:
            self._traces = changed
        if self.on_traces is not None:
            self.on_traces(changed, model)
        return changed

    def change_logs(self, document: Mapping[str, Any]) -> LogSettings:
        """Change what is logged."""
        self.logs = self.logs.changed(document)
        if self.on_logs is not None:
            self.on_logs(self.logs)
        return self.logs
