"""`whet bench`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.markup import escape

from whet.bench.engines import installed_engines
from whet.bench.runner import SideBySide, run_side_by_side
from whet.bench.statistics import Latency, summarize
from whet.cli.inputs import ImageSettings, read_feed
from whet.cli.output import Output
from whet.cli.session import make_session, session_options
from whet.errors import InvalidArgument, shorten
from whet.profiling.peak import Peak, machine_peak
from whet.profiling.table import COLUMNS as COLUMNS_OF_PROFILE
from whet.profiling.table import RIGHT, By, ProfileRow, profile_rows, table_cells
from whet.runtime.values import Array
from whet.session.inference_session import InferenceSession
from whet.session.prepare import LoadSettings, load

WARM_UP = 3
SECONDS = 3.0
COLUMNS = ("latency in ms", "median", "mean", "p95", "p99", "per s", "load", "")


def bench(
    out: Output, model: Path, inputs: list[str], dims: list[str], providers: list[str] | None, engines: list[str],
    level: str, seed: int, batch: int | None, threads: int, warm_up: int, runs: int, seconds: float, rounds: int,
    profile: str | None = None,
) -> None:  # fmt: skip
    """Time one session in this process, or engines side by side in a process each."""
    if profile not in (None, "operator", "step"):
        raise InvalidArgument("--profile takes 'operator' or 'step'", found=profile)
    if engines:
        if profile is not None:
            raise InvalidArgument("--profile looks into one session: it takes no --engine")
        if runs or seconds != SECONDS or warm_up != WARM_UP:
            raise InvalidArgument("--engine takes --rounds, and no --runs, --seconds or --warm-up")
        if providers or level != "all":
            raise InvalidArgument(
                "--engine takes no --provider and no --level: engines run at their best settings",
                hint="Name Whet's delegates as engines: whet+onnxruntime, whet+openvino.",
            )
        names = installed_engines() if engines == ["all"] else engines
        interface = load(str(model), LoadSettings(level="disabled")).interface
        feed, _ = read_feed(interface, inputs, dims, seed, batch, ImageSettings())
        with out.progress("timing") as step:
            result = run_side_by_side(str(model), names, feed, threads=threads, rounds=rounds, progress=step.describe)
        out.result(result.as_dict())
        show_side_by_side(out, result)
        return
    started = time.perf_counter()
    session = make_session(model, providers, session_options(level, threads))
    load_ms = (time.perf_counter() - started) * 1e3
    feed, _ = read_feed(session.interface, inputs, dims, seed, batch, ImageSettings())
    for _ in range(warm_up):
        session.run(None, feed)
    timings: list[float] = []
    deadline = time.perf_counter() + seconds
    with out.progress("timing", total=runs or None) as step:
        while len(timings) < runs if runs else (time.perf_counter() < deadline or not timings):
            begin = time.perf_counter()
            session.run(None, feed)
            timings.append(time.perf_counter() - begin)
            step.advance()
    latency = summarize(timings, _rows(feed))
    found = None if profile is None else _profile(session, feed, latency, "step" if profile == "step" else "operator")
    out.result(
        {
            "model": str(model),
            "providers": session.get_providers(),
            "placement": session.placement.summary(),
            "load_ms": load_ms,
            "batch": _rows(feed),
            "latency": latency.as_dict(),
            **({} if found is None else found.as_dict()),
        }
    )
    out.table(
        "", COLUMNS, [latency_row(", ".join(session.placement.by_provider), latency, load_ms, "")], right=range(1, 7)
    )
    out.text(f"{latency.runs} runs, {_rows(feed)} rows each; {escape(session.placement.summary())}")
    if found is not None:
        found.show(out)


PROFILED_SECONDS = 1.0
MOST_PROFILED_RUNS = 50


@dataclass(frozen=True, slots=True)
class _Profile:
    """Where the time of some runs went, beside what the machine could do."""

    runs: int
    peak: Peak
    rows: list[ProfileRow]

    def as_dict(self) -> dict[str, object]:
        rows = [row.as_dict() for row in self.rows]
        return {"profiled_runs": self.runs, "machine_peak": asdict(self.peak), "profile": rows}

    def show(self, out: Output) -> None:
        cells = [table_cells(row) for row in self.rows]
        # The first column, a list of operators, is the one that may be folded.
        out.table("Where the time goes", COLUMNS_OF_PROFILE, cells, RIGHT, range(1, len(COLUMNS_OF_PROFILE)))
        p = self.peak
        out.text(f"{self.runs} runs, {sum(row.ms for row in self.rows):.3f} ms of each in steps")
        out.text(
            f"this machine at most: {p.gflops_all:.0f} GFLOP/s, {p.l2_gbytes_all:.0f} GB/s from L2, "
            f"{p.memory_gbytes_all:.0f} GB/s from memory with {p.threads} threads; "
            f"{p.gflops_one:.0f}, {p.l2_gbytes_one:.0f} and {p.memory_gbytes_one:.0f} with one"
        )


def _profile(session: InferenceSession, feed: dict[str, Array], latency: Latency, by: By) -> _Profile:
    runs = max(1, min(MOST_PROFILED_RUNS, int(PROFILED_SECONDS * 1e3 / max(latency.median_ms, 1e-3))))
    events = session.profile(feed, runs)
    peak = machine_peak()
    return _Profile(runs, peak, profile_rows(events, peak, runs, by))


def show_side_by_side(out: Output, result: SideBySide, note: Mapping[str, str] | None = None) -> None:
    """The table of a comparison, fastest median first; failures and the engines' versions below it."""
    rows = []
    for r in sorted(result.results, key=lambda r: r.latency.median_ms if r.latency else float("inf")):
        if r.latency is not None:
            rows.append(latency_row(r.engine, r.latency, r.load_ms, (note or {}).get(r.engine, "")))
    out.table("", COLUMNS, rows, right=range(1, 7))
    for r in result.results:
        if r.latency is None:
            out.text(f"[bold]{escape(r.engine)}[/] failed: {escape(shorten(r.error))}")
    versions = {r.engine.partition("@")[0].rpartition("+")[2]: r.version for r in result.results if "+" not in r.engine}
    out.text(escape(", ".join(f"{name} {version}" for name, version in versions.items())))


def latency_row(label: str, latency: Latency, load_ms: float, note: str) -> tuple[str, ...]:
    """One row of the timing table."""
    figures = (latency.median_ms, latency.mean_ms, latency.p95_ms, latency.p99_ms)
    return (label, *(f"{f:.3f}" for f in figures), f"{latency.throughput_per_s:.0f}", f"{load_ms:.0f}", note)


def _rows(feed: dict[str, Array]) -> int:
    """Rows of a run: the first dimension when every input of rank 1 or more agrees on it, else 1."""
    sizes = {v.shape[0] for v in feed.values() if getattr(v, "ndim", 0) > 0}
    return sizes.pop() if len(sizes) == 1 else 1
