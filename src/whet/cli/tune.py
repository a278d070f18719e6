"""`whet tune`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from whet.cli.inputs import ImageSettings, read_feed
from whet.cli.output import Output, Step, atomic_path, check_target
from whet.cli.session import make_session, session_options
from whet.codegen.target import host_target
from whet.errors import InvalidArgument, WhetError
from whet.runtime.cores import core_budget
from whet.session.inference_session import InferenceSession
from whet.session.options import SessionOptions
from whet.tuning import cache
from whet.tuning.machine import machine_fields
from whet.tuning.settings import Progress, default_folder
from whet.tuning.timing import lower_quartile
from whet.tuning.tuner import Outcome

MODES = ("quick", "full")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def tune(
    out: Output, models: Sequence[Path], mode: str, budget: str, threads: int, shapes: Sequence[str], inputs: list[str],
    dims: list[str], level: str, folder: Path | None,
) -> None:  # fmt: skip
    """Time the tactics of models and keep the timings. What is finished stays when this is interrupted."""
    if mode not in MODES:
        raise InvalidArgument("unknown mode", value="--mode", found=mode, expected=" or ".join(MODES))
    seconds = seconds_of(budget)
    if len(models) > 1 and (shapes or inputs):
        raise InvalidArgument("--shapes and --input are one model's", found=f"{len(models)} models")
    started = time.monotonic()
    rows, documents = [], []
    for model in models:
        for wanted in shapes or [""]:
            left = seconds - (time.monotonic() - started)
            with out.progress(f"tuning {model.name}", total=100) as bar:
                options = _options(mode, max(left, 0.0), threads, wanted, level, folder)
                options._tuning_report = _reporter(bar, model.name)
                try:
                    outcomes = _tuned(model, options, inputs, dims)
                except KeyboardInterrupt:
                    out.warn("interrupted: what was timed is kept, and the same command goes on from there")
                    raise
            total = _sum(outcomes)
            rows.append(_row(model, wanted, total))
            documents.append(_document(model, wanted, total))
    out.result({"mode": mode, "folder": str(folder or default_folder()), "models": documents})
    out.table("", ("model", "work", "timed", "switched", "saved", "seconds", ""), rows, right=range(1, 6))
    if not all(d["complete"] for d in documents):
        out.text("The budget was over before everything was timed: run the same command again to go on.")


def show(out: Output, folder: Path | None) -> None:
    """List what is known of this machine."""
    where = folder or default_folder()
    mine = machine_fields(host_target(), core_budget())
    rows, documents = [], []
    others = 0
    for report in cache.survey(where):
        for fields, timings in (report.contents.machines if report.contents is not None else {}).items():
            if fields != mine:
                others += len(timings)
                continue
            for timing in timings.values():
                times = {name: lower_quartile(t) for name, t in timing.samples.items()}
                best = min(times, key=lambda name: times[name])
                text = ", ".join(f"{name} {ns / 1e3:.1f}" for name, ns in sorted(times.items(), key=lambda t: t[1]))
                rows.append((timing.family, timing.threads, _short(timing.work), timing.extents, text))
                documents.append(
                    {
                        "family": timing.family, "work": timing.work, "threads": timing.threads,
                        "extents": timing.extents, "fastest": best, "lower_quartile_ns": times,
                        "runs": {name: len(t) for name, t in timing.samples.items()},
                        "given_up": timing.given_up,
                    }
                )  # fmt: skip
    out.result({"folder": str(where), "timings": documents, "of_other_machines_or_versions": others})
    out.table("", ("family", "threads", "work", "extents", "lower quartile in us"), rows, right=(1,))
    out.text(f"{len(rows)} pieces of work in {where}; {others} of other machines or versions")


def verify(out: Output, folder: Path | None) -> bool:
    """Look at every file of the cache; whether all are sound."""
    where = folder or default_folder()
    mine = machine_fields(host_target(), core_budget())
    reports = cache.survey(where)
    rows, documents = [], []
    for report in reports:
        machines = report.contents.machines if report.contents is not None else {}
        count = sum(len(t) for t in machines.values())
        whose = "this machine and version" if mine in machines else "another machine or version"
        rows.append((report.path.name, count, whose if machines else "", report.problem or "sound"))
        documents.append(
            {"file": str(report.path), "timings": count, "current": mine in machines, "problem": report.problem}
        )
    sound = all(report.problem is None for report in reports)
    out.result({"folder": str(where), "sound": sound, "files": documents})
    out.table("", ("file", "timings", "of", ""), rows, right=(1,))
    if not rows:
        out.text(f"no timings in {where}")
    return sound


def merge(out: Output, files: Sequence[Path], folder: Path | None) -> None:
    """Take timings from files."""
    where = folder or default_folder()
    # All are read first: a damaged one is refused before anything is taken.
    contents = [cache.read_export(path) for path in files]
    documents = []
    for path, found in zip(files, contents, strict=True):
        taken, left = cache.merge(where, found)
        documents.append({"file": str(path), "taken": taken, "known": left})
        out.text(f"{path}: {taken} taken, {left} known as well or better")
    out.result({"folder": str(where), "files": documents})


def export(out: Output, target: Path, folder: Path | None) -> None:
    """Write all timings to one file."""
    where = folder or default_folder()
    check_target(target)
    data = cache.export(where)
    if not data:
        raise InvalidArgument("there are no timings", file=str(where), hint="Run `whet tune MODEL` first.")
    with atomic_path(target) as path:
        path.write_bytes(data)
    count = sum(len(t) for t in cache.parse(data).machines.values())
    out.result({"folder": str(where), "file": str(target), "timings": count})
    out.text(f"{count} timings written to {target}")


def clear(out: Output, folder: Path | None) -> None:
    """Forget all timings."""
    where = folder or default_folder()
    removed = cache.clear(where)
    out.result({"folder": str(where), "removed": removed})
    out.text(f"{removed} files removed from {where}")


def seconds_of(text: str) -> float:
    """The seconds of `90`, `60s`, `5m` or `1h`. Raises InvalidArgument."""
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds <= 0:
        raise InvalidArgument("not a time", value="--budget", found=text, expected="90, 60s, 5m or 1h")
    return seconds


def _options(
    mode: str, seconds: float, threads: int, shapes: str, level: str, folder: Path | None
) -> SessionOptions:  # fmt: skip
    options = session_options(level, threads)
    options.add_session_config_entry("tune", mode)
    options.add_session_config_entry("tune.budget", f"{seconds:.3f}")
    if folder is not None:
        options.add_session_config_entry("tune.cache", os.fspath(folder))
    if shapes:
        options.add_session_config_entry("shapes.max", shapes)
    return options


def _tuned(model: Path, options: SessionOptions, inputs: list[str], dims: list[str]) -> list[Outcome]:
    session = make_session(model, None, options)
    if not session.tuning or inputs or dims:
        # What a program is depends on its inputs: the first run makes, and tunes, it.
        _run(session, inputs, dims)
    return session.tuning


def _run(session: InferenceSession, inputs: list[str], dims: list[str]) -> None:
    feed, drawn = read_feed(session.interface, inputs, dims, 0, None, ImageSettings())
    try:
        session.run(None, feed)
    except WhetError:
        if not drawn:
            raise
        # Numbers that are drawn at random may be none that the model takes.


def _reporter(bar: Step, name: str) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        share = 100 * progress.done // max(progress.total, 1)
        eta = "" if progress.eta_s is None else f", about {math.ceil(progress.eta_s)} s left"
        bar.set(share, f"tuning {name}: {progress.what}, {progress.done} of {progress.total} timed{eta}")

    return report


def _sum(outcomes: Sequence[Outcome]) -> Outcome:
    return Outcome(
        sum(o.questions for o in outcomes),
        sum(o.timed for o in outcomes),
        all(o.complete for o in outcomes),
        sum(o.seconds for o in outcomes),
        tuple(switch for o in outcomes for switch in o.switches),
    )


def _row(model: Path, shapes: str, outcome: Outcome) -> tuple[object, ...]:
    saved = sum(s.saved_ns for s in outcome.switches)
    name = model.name if not shapes else f"{model.name} {shapes}"
    state = "" if outcome.complete else "not complete"
    return (
        name, outcome.questions, outcome.timed, len(outcome.switches), f"{saved / 1e3:.1f} us",
        f"{outcome.seconds:.1f}", state,
    )  # fmt: skip


def _document(model: Path, shapes: str, outcome: Outcome) -> dict[str, object]:
    return {
        "model": str(model),
        "shapes": shapes,
        "work": outcome.questions,
        "timed": outcome.timed,
        "complete": outcome.complete,
        "seconds": outcome.seconds,
        "switches": [
            {
                "family": s.family, "node": s.node, "places": s.places, "from": s.predicted, "to": s.chosen,
                "from_ns": s.predicted_ns, "to_ns": s.chosen_ns,
            }
            for s in outcome.switches
        ],
    }  # fmt: skip


def _short(work: str) -> str:
    return work if len(work) <= 160 else f"{work[:157]}..."
