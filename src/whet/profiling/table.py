"""Where the time of runs went: a row for each kind of step, with its rates and how near they come to the machine's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from whet.profiling.peak import Peak
from whet.providers.base import ProfileEvent

By = Literal["operator", "step"]


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """Steps that are counted together. Times are of one run, on average."""

    operators: str
    """The operators that a step computes, joined by +."""
    tactic: str
    name: str
    """The node of a step, where each step has a row."""
    provider: str
    calls: float
    """Steps in a run."""
    ms: float
    share: float
    """Part of the time of all steps, 0 to 1."""
    gflops: float | None
    """Arithmetic in GFLOP/s; None where the provider does not say what it does."""
    gbytes: float | None
    """Bytes in GB/s that the step must read and write at least."""
    peak: float | None
    """The time that the machine needs at the least, over the time taken: 1 is all that it can do."""
    bound: str
    """What bounds the steps: compute or memory."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class _Sum:
    calls: int = 0
    ns: int = 0
    flops: int = 0
    nbytes: int = 0
    compute_ns: float = 0.0
    memory_ns: float = 0.0
    least_ns: float = 0.0
    known: bool = True


def profile_rows(events: Iterable[ProfileEvent], peak: Peak, runs: int = 1, by: By = "operator") -> list[ProfileRow]:
    """The events of `runs` runs as rows, longest first: steps of one operator and tactic together, or each alone."""
    sums: dict[tuple[str, str, str, str], _Sum] = {}
    for event in events:
        tactic = str(event.args.get("tactic", ""))
        key = (event.op, tactic, event.name if by == "step" else "", event.provider)
        total = sums.setdefault(key, _Sum())
        total.calls += 1
        total.ns += event.duration_ns
        if "flops" not in event.args:
            total.known = False
            continue
        flops, nbytes = int(event.args["flops"]), int(event.args["bytes"])
        compute, memory = peak.least_ns(flops, nbytes, bool(event.args.get("parallel")))
        total.flops += flops
        total.nbytes += nbytes
        total.compute_ns += compute
        total.memory_ns += memory
        total.least_ns += max(compute, memory)
    all_ns = max(sum(total.ns for total in sums.values()), 1)
    rows = [
        ProfileRow(
            operators=operators,
            tactic=tactic,
            name=name,
            provider=provider,
            calls=total.calls / runs,
            ms=total.ns / runs / 1e6,
            share=total.ns / all_ns,
            gflops=total.flops / max(total.ns, 1) if total.known else None,
            gbytes=total.nbytes / max(total.ns, 1) if total.known else None,
            peak=total.least_ns / max(total.ns, 1) if total.known else None,
            bound=("compute" if total.compute_ns > total.memory_ns else "memory") if total.known else "",
        )
        for (operators, tactic, name, provider), total in sums.items()
    ]
    return sorted(rows, key=lambda row: -row.ms)


COLUMNS = ("operators", "tactic", "calls", "ms", "share", "GFLOP/s", "GB/s", "of peak", "bound by")
RIGHT = range(2, 8)
"""The columns of numbers."""


def table_cells(row: ProfileRow, width: int = 36) -> tuple[str, ...]:
    """The row as text for COLUMNS; the name stands before the operators where it has one."""
    label = f"{row.name} {row.operators}" if row.name else row.operators
    tactic = row.tactic if row.gflops is not None else row.provider.removesuffix("ExecutionProvider").lower()
    return (
        _clipped(label, width),
        _clipped(tactic, 20),
        f"{row.calls:.0f}",
        f"{row.ms:.3f}",
        f"{row.share:.1%}",
        "" if row.gflops is None else f"{row.gflops:.1f}",
        "" if row.gbytes is None else f"{row.gbytes:.1f}",
        "" if row.peak is None else f"{row.peak:.0%}",
        row.bound,
    )


def _clipped(text: str, width: int) -> str:
    """The text, its middle left out where it is longer than `width`."""
    if len(text) <= width:
        return text
    half = (width - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
