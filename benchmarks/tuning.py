"""What tuning gains: sessions that choose by the cost model beside sessions whose tactics were measured.

usage: python benchmarks/tuning.py [--threads 2] [--seconds 10] [--cache FOLDER] [--output FILE.json] MODEL.onnx ...

Each model is tuned fully into a timing cache of its own (an empty folder unless --cache names one), then both sessions
take turns in one process. Prints each one's lower quartile in milliseconds, the ratio, and which choices were made
otherwise; then the geometric mean of the ratios. The cost model is good where that is under 1.05.

With --errors it tells how wrong the cost model is: for each tactic that was timed, its measured time over that of the
tactic that was predicted to be the best, divided by the same ratio of predictions. Below 1: the tactic is better than
the model thinks.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from feeds import make_feed

import whet
from whet.compiler.tactics.question import Question
from whet.tuning.machine import cpu_model
from whet.tuning.timing import Timing, lower_quartile

TURN_S = 0.1


def make_session(path: str, threads: int, keys: dict[str, str]) -> whet.InferenceSession:
    """A session of the CPU provider with these session keys."""
    options = whet.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in keys.items():
        options.add_session_config_entry(key, value)
    return whet.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def take_turns(sessions: dict[str, whet.InferenceSession], feed: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Durations of runs in nanoseconds; sessions take turns, and the first run of a turn does not count."""
    times: dict[str, list[int]] = {name: [] for name in sessions}
    end = time.perf_counter() + seconds
    turns = 0
    while turns < 6 or time.perf_counter() < end:
        for name, session in list(sessions.items())[:: 1 if turns % 2 else -1]:
            session.run(None, feed)
            stop = time.perf_counter() + TURN_S
            while True:
                begin = time.perf_counter_ns()
                session.run(None, feed)
                times[name].append(time.perf_counter_ns() - begin)
                if time.perf_counter() >= stop:
                    break
        turns += 1
    return times


def compare(path: str, threads: int, seconds: float, folder: str, tuned_only: bool = False) -> dict[str, Any]:
    """One model: both sessions' times, and what tuning decided."""
    full = make_session(path, threads, {"tune": "full", "tune.cache": folder})
    outcomes = full.tuning
    row: dict[str, Any] = {
        "model": Path(path).stem,
        "threads": threads,
        "tuning_s": sum(o.seconds for o in outcomes),
        "work": sum(o.questions for o in outcomes),
        "switches": [asdict(s) for o in outcomes for s in o.switches],
        "errors": [error for o in outcomes for finding in o.findings for error in errors(*finding)],
    }
    if tuned_only:
        return row
    sessions = {"off": make_session(path, threads, {"tune.cache": "none"}), "full": full}
    times = take_turns(sessions, make_feed(full.get_inputs(), 1), seconds)
    quartiles = {name: float(np.percentile(t, 25)) / 1e6 for name, t in times.items()}
    row |= {
        "lower_quartile_ms": quartiles,
        "minimum_ms": {name: min(t) / 1e6 for name, t in times.items()},
        "runs": {name: len(t) for name, t in times.items()},
        "ratio": quartiles["off"] / quartiles["full"],
    }
    return row


def errors(question: Question, timing: Timing) -> list[dict[str, Any]]:
    """How far off the predictions of one piece of work are, beside that of the tactic that is predicted the best."""
    costs, found = dict(question.candidates), []
    best = timing.samples.get(question.predicted)
    for name, times in timing.samples.items():
        if best is not None and name in costs and name != question.predicted:
            measured = lower_quartile(times) / lower_quartile(best)
            predicted = costs[name] / costs[question.predicted]
            found.append(
                {
                    "family": question.family, "tactic": name, "beside": question.predicted,
                    "work": question.work[:160], "us": lower_quartile(best) / 1e3,
                    "measured": measured, "predicted": predicted,
                }
            )  # fmt: skip
    return found


def show_errors(rows: list[dict[str, Any]]) -> None:
    """The errors by pair of tactics: how many, their quartiles."""
    by_pair: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        for e in row["errors"]:
            pair = e["family"], e["tactic"], e["beside"]
            by_pair.setdefault(pair, []).append(e["measured"] / e["predicted"])
    print(f"{'tactic':<22} {'beside':<22} {'count':>5} {'25%':>6} {'50%':>6} {'75%':>6}")
    for (_, tactic, beside), ratios in sorted(by_pair.items()):
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        print(f"{tactic:<22} {beside:<22} {len(ratios):>5} {low:6.2f} {middle:6.2f} {high:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--cache", help="timing cache to go on with, in place of an empty one")
    parser.add_argument("--tune-only", action="store_true", help="fill the cache and time nothing else")
    parser.add_argument("--errors", action="store_true", help="show how wrong the cost model is")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as empty:
        for path in arguments.models:
            folder = arguments.cache or empty
            row = compare(path, arguments.threads, arguments.seconds, folder, arguments.tune_only)
            rows.append(row)
            text = f"{row['model']:<26} tuned in {row['tuning_s']:5.1f} s, {len(row['switches'])} of {row['work']}"
            if "ratio" in row:
                off, full = row["lower_quartile_ms"]["off"], row["lower_quartile_ms"]["full"]
                text += f" otherwise; off {off:.3f} ms, full {full:.3f} ms, {row['ratio']:.3f}"
            print(text, flush=True)
            for s in row["switches"]:
                print(f"    {s['predicted']} -> {s['chosen']}: {s['predicted_ns'] / 1e3:.1f} -> "
                      f"{s['chosen_ns'] / 1e3:.1f} us x {s['places']} {s['node']}")  # fmt: skip
    if arguments.errors:
        show_errors(rows)
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    mean = float(np.exp(np.mean(np.log(ratios)))) if ratios else None
    if mean is not None:
        print(f"geometric mean of off / full: {mean:.3f}")
    if arguments.output is not None:
        machine = {"cpu": cpu_model() or platform.machine(), "threads": arguments.threads}
        document = {"whet": whet.__version__, "machine": machine, "geometric_mean": mean, "models": rows}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
