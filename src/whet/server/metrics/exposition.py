"""Prometheus' text format and OpenMetrics, written directly.

A scrape is made on the event loop between requests, so it has to be short: `prometheus_client` builds an object for
each sample and takes several times as long for the same text (benchmarks/scrape.py). Tests read what is written here
with that library's two parsers.

Formats: https://prometheus.io/docs/instrumenting/exposition_formats/ (0.0.4) and OpenMetrics 1.0.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Kind = Literal["counter", "plain_counter", "gauge", "histogram"]
"""`counter`: its name ends in `_total`. `plain_counter`: one whose name does not, as Triton's. OpenMetrics would rename
it, and Prometheus asks for OpenMetrics first: there it is called `unknown`, and keeps its name."""

_OPEN_KINDS: dict[Kind, str] = {
    "counter": "counter",
    "plain_counter": "unknown",
    "gauge": "gauge",
    "histogram": "histogram",
}
_TEXT_KINDS: dict[Kind, str] = {**_OPEN_KINDS, "plain_counter": "counter"}

_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def labels(**values: str) -> str:
    """The text between the braces of a sample. Lone surrogates, which UTF-8 cannot hold, become question marks."""
    return ",".join(
        f'{name}="{value.translate(_ESCAPED).encode("utf-8", "replace").decode()}"' for name, value in values.items()
    )


def bounds_text(bounds: Sequence[float], scale: float = 1.0) -> tuple[str, ...]:
    """The values of `le` for a histogram's bounds, as both formats write floats, with the last one, +Inf."""
    return (*(repr(float(f"{bound * scale:.12g}")) for bound in bounds), "+Inf")


def prefers_openmetrics(accept: str) -> bool:
    """Whether an Accept header names OpenMetrics with at least the weight of plain text. Patterns do not name it."""
    weights: dict[str, float] = {}
    for entry in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in entry.split(";"))
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weights[kind] = float(weight)
        except ValueError:
            weights[kind] = 0.0
    asked = weights.get("application/openmetrics-text", 0.0)
    return asked > 0.0 and asked >= weights.get("text/plain", 0.0)


class Exposition:
    """Collects lines; `family` first, then the family's samples. `accept` is the request's header of that name."""

    def __init__(self, accept: str = "") -> None:
        self._open = prefers_openmetrics(accept)
        self._lines: list[str] = []
        self._name = ""

    @property
    def content_type(self) -> str:
        return OPENMETRICS if self._open else TEXT

    def family(self, name: str, kind: Kind, help_text: str) -> None:
        """Begin a family. `help_text` is one line."""
        self._name = name
        family, kinds = name, _TEXT_KINDS
        if self._open:
            kinds = _OPEN_KINDS
            if kind == "counter":
                family = name.removesuffix("_total")
        self._lines.append(f"# HELP {family} {help_text}\n# TYPE {family} {kinds[kind]}\n")

    def sample(self, label_text: str, value: float) -> None:
        """A value of the current family, under `labels(...)` or ""."""
        if label_text:
            self._lines.append(f"{self._name}{{{label_text}}} {value!r}\n")
        else:
            self._lines.append(f"{self._name} {value!r}\n")

    def histogram(self, label_text: str, bounds: Sequence[str], counts: Sequence[int], total: float) -> None:
        """A histogram of the current family. `counts` by bucket, not summed up; `bounds` from `bounds_text`."""
        start, below, lines = f'{self._name}_bucket{{{label_text},le="', 0, self._lines
        for bound, count in zip(bounds, counts, strict=True):
            below += count
            lines.append(f'{start}{bound}"}} {below}\n')
        lines.append(f"{self._name}_sum{{{label_text}}} {total!r}\n{self._name}_count{{{label_text}}} {below}\n")

    def content(self) -> bytes:
        """Everything that was collected."""
        return ("".join(self._lines) + ("# EOF\n" if self._open else "")).encode()
