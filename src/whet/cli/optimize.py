"""`whet optimize`: passes, placement, proof, timing beside the installed peers, and the saved model."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from whet.bench.engines import installed_engines, installed_peers
from whet.bench.runner import SideBySide, run_side_by_side
from whet.cli.bench import show_side_by_side
from whet.cli.inputs import ImageSettings, read_feed
from whet.cli.output import Output, check_target, format_bytes
from whet.cli.session import LEVEL_OPTIONS, make_session, placement_document, placement_rows, session_options
from whet.errors import InvalidArgument, VerificationFailed, shorten
from whet.providers.reference.random import draws
from whet.session.auto import AutoReport
from whet.session.inference_session import InferenceSession
from whet.session.prepare import LoadSettings, load
from whet.verify.compare import Difference, compare_all
from whet.verify.levels import bisect_patches, exported_outputs, reference_outputs


def optimize(
    out: Output, model: Path, output: Path | None, save: bool, inputs: list[str], dims: list[str],
    providers: list[str] | None, level: str, seed: int, batch: int | None, threads: int, tolerance: float, rounds: int,
) -> dict[str, Any]:  # fmt: skip
    """The main job. Returns what it printed. Raises VerificationFailed, and saves nothing, when answers moved.

    A model that draws random numbers cannot be verified: a warning and `verified` in the document say so.
    """
    if level not in LEVEL_OPTIONS or level == "disabled":
        raise InvalidArgument("unknown optimization level", found=level, expected="basic, extended or all")
    target = output or model.with_name(f"{model.stem}.whet.onnx")
    if save and target.resolve() == model.resolve():
        raise InvalidArgument(
            "the optimized model would replace the original", file=str(target), hint="Give -o another name."
        )
    if save:
        check_target(target)
    started = time.perf_counter()
    with out.progress(f"optimizing {model.name}"):
        session = make_session(model, providers, session_options(level, threads))
    load_ms = (time.perf_counter() - started) * 1e3
    feed, drawn = read_feed(session.interface, inputs, dims, seed, batch, ImageSettings())
    unoptimized = list(load(str(model), LoadSettings(level="disabled")).model.graph.all_nodes())
    before = len(unoptimized)
    after = sum(1 for _ in session.optimized_model.graph.all_nodes())
    out.text(f"[bold]{escape(str(model))}[/]: {before} nodes, {after} at level {level} ({load_ms:.0f} ms)")
    counts = session.pass_report.counts()
    out.table("Passes", ("pass", "rewrites"), list(counts.items()), right=(1,))
    out.table("Placement", ("provider", "nodes", ""), placement_rows(session.placement), right=(1,))
    out.text(escape(session.placement.summary()))
    if session.auto_report is not None:
        _show_auto(out, session.auto_report)

    random = next((node for node in unoptimized if draws(node)), None)
    checks: list[Difference] = []
    if random is not None:
        out.warn(f"not verified: {random.label} draws random numbers, so no two answers are the same")
    else:
        with out.progress("verifying against the unoptimized graph in float64"):
            checks = _verify(session, model, feed, level, tolerance, saved=save)
        out.table(
            "Verified against the unoptimized graph (reference provider, float64)",
            ("output", "largest difference", "range", "of range", ""),
            [(d.name, f"{d.max_abs:.3g}", f"{d.value_range:.3g}", f"{d.error:.3g}", "same") for d in checks],
            right=(1, 2, 3),
        )

    document: dict[str, Any] = {
        "model": str(model),
        "level": level,
        "nodes_before": before,
        "nodes_after": after,
        "load_ms": load_ms,
        "random_inputs": drawn,
        "passes": counts,
        "placement": placement_document(session.placement),
        "auto": asdict(session.auto_report) if session.auto_report is not None else None,
        "verified": random is None,
        "verification": [
            {"output": d.name, "max_abs": d.max_abs, "range": d.value_range, "error": d.error} for d in checks
        ],
    }
    if save:
        session.save_optimized_model(str(target))
        document["saved"] = str(target)
        out.text(
            f"saved {escape(str(target))} ({format_bytes(target.stat().st_size)}), which ONNX Runtime reads as well"
        )
    if rounds:
        timing = _time(out, model, target if save else None, feed, threads, rounds)
        document["timing"] = timing.as_dict()
        if random is None:
            _check_peers(out, timing, checks)
    out.result(document)
    return document


def _show_auto(out: Output, report: AutoReport) -> None:
    """What `--provider auto` measured, and why it kept what it kept."""
    out.table(
        "Providers measured",
        ("provider", "median ms", "error", "", ""),
        [
            (
                row.name,
                "" if row.median_ms is None else f"{row.median_ms:.3f}",
                "" if row.max_error is None else f"{row.max_error:.3g}",
                row.verdict,
                shorten(row.error or "", 120),
            )
            for row in report.rows
        ],
        right=(1, 2),
    )
    out.text(f"compared with {escape(report.compared_with)}")


def _verify(
    session: InferenceSession, model: Path, feed: dict[str, Any], level: str, tolerance: float, *, saved: bool
) -> list[Difference]:
    """The comparison of this session's outputs; what would be saved must give the same answers too."""
    expected = reference_outputs(str(model), feed, float64=True)
    names = [a.name for a in session.get_outputs()]
    checks = compare_all(names, session.run(None, feed), expected, same_type=False)
    if saved:
        exported = compare_all(names, exported_outputs(session, feed), expected, same_type=False)
        for difference in exported:
            if not difference.within(tolerance):
                raise VerificationFailed(
                    "the model in its saved form gives other answers than the unoptimized one",
                    file=str(model),
                    value=difference.name,
                    found=difference.problem or f"{difference.error:.3g} of the range",
                    expected=f"at most {tolerance:g}",
                    hint="Nothing was saved; --no-save leaves the saving out.",
                )
    wrong = [d for d in checks if not d.within(tolerance)]
    if wrong:
        worst = max(wrong, key=lambda d: d.error)
        suspect = bisect_patches(str(model), feed, session_options(level).level, tolerance=tolerance)
        where = f"pass {suspect.rewrite}, patch {suspect.patch}" if suspect else "no pass: a provider's arithmetic"
        raise VerificationFailed(
            "the optimized model gives other answers than the unoptimized one",
            file=str(model),
            node=where,
            value=worst.name,
            found=worst.problem or f"{worst.error:.3g} of the range",
            expected=f"at most {tolerance:g}",
            hint="Nothing was saved.",
        )
    return checks


def _time(out: Output, model: Path, saved: Path | None, feed: dict[str, Any], threads: int, rounds: int) -> SideBySide:
    engines = installed_engines()
    models = {}
    if saved is not None:
        for peer in installed_peers():
            if peer == "onnxruntime":
                label = f"{peer}@saved"
                engines.append(label)
                models[label] = str(saved)
    with out.progress("timing") as step:
        result = run_side_by_side(
            str(model), engines, feed, threads=threads, rounds=rounds, models=models, progress=step.describe
        )
    peers = {r.engine: r.latency.median_ms for r in result.results if r.latency and r.engine in installed_peers()}
    notes = {}
    for r in result.results:
        if r.latency is not None and r.engine not in peers and peers:
            best = min(peers, key=lambda name: peers[name])
            notes[r.engine] = f"{peers[best] / r.latency.median_ms:.2f}x"
    out.text("[bold]Side by side[/]: one process each, rounds interleaved; `@saved` runs the saved model")
    if notes:
        out.text(
            f"the last column is the speed against {escape(min(peers, key=lambda name: peers[name]))}, the best peer"
        )
    show_side_by_side(out, result, notes)
    return result


def _check_peers(out: Output, timing: SideBySide, checks: list[Difference]) -> None:
    """Say so when an engine's own answers differ from the first engine's."""
    first = next((r for r in timing.results if r.latency is not None), None)
    if first is None:
        return
    names = [d.name for d in checks]
    for other in timing.results:
        if other.latency is None or other is first or len(other.outputs) != len(names):
            continue
        apart = [
            replace(d) for d in compare_all(names, other.outputs, first.outputs, same_type=False) if not d.within(1e-3)
        ]
        if apart:
            worst = max(apart, key=lambda d: d.error)
            how = worst.problem or f"{worst.error:.3g} of its range"
            out.warn(f"{other.engine} differs from {first.engine} in {worst.name}: {how}")
