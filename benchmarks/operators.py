"""Every family of operators at five sizes beside ONNX Runtime: one process per engine, interleaved rounds.

usage: python benchmarks/operators.py [--only FAMILY] [--threads 2] [--rounds 5] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from operator_cases import Case, all_cases

ROUND_SECONDS = 0.004
"""About how long one engine runs one model in one round."""
PAUSE_SECONDS = 0.02
ENGINES = ("whet", "onnxruntime")


def _session(engine: str, model: bytes, threads: int) -> tuple[Callable[[dict[str, Any]], Any], bool]:
    """A way to run the model, and whether all of it is compiled."""
    if engine == "whet":
        import whet

        options = whet.SessionOptions()
        options.intra_op_num_threads = threads
        session = whet.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        compiled = set(session.placement.by_provider) <= {"CPUExecutionProvider"}
        return lambda feed: session.run(None, feed), compiled
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed), True


def worker(pipe: Connection, engine: str, threads: int) -> None:
    """Answers ("load", model, feed) and ("time", None) until it gets None."""
    session: Callable[[dict[str, Any]], Any] | None = None
    feed: dict[str, Any] = {}
    count = 1
    while (message := pipe.recv()) is not None:
        try:
            if message[0] == "load":
                session, compiled = _session(engine, message[1], threads)
                feed = message[2]
                results = session(feed)
                started = time.perf_counter()
                session(feed)
                count = max(3, min(2000, int(ROUND_SECONDS / max(time.perf_counter() - started, 1e-7))))
                pipe.send((compiled, [np.asarray(r) for r in results]))
            elif session is not None:
                # The other engine's workers spin for a while after their last run, on the cores that this one needs.
                time.sleep(PAUSE_SECONDS)
                session(feed)
                session(feed)
                times = []
                for _ in range(count):
                    started = time.perf_counter()
                    session(feed)
                    times.append(time.perf_counter() - started)
                pipe.send(float(np.percentile(times, 25)))
        except Exception as error:  # the other engine goes on; the row says what happened
            pipe.send(f"{type(error).__name__}: {error}"[:300])


def difference(a: list[Any], b: list[Any]) -> float:
    """Largest difference over each output's largest magnitude."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return float("inf")
        if x.size:
            wide = np.abs(x.astype(np.float64) - y.astype(np.float64)).max()
            worst = max(worst, float(wide / max(float(np.abs(y.astype(np.float64)).max()), 1e-30)))
    return worst


def measure(case: Case, pipes: dict[str, Connection], rounds: int) -> dict[str, Any]:
    row: dict[str, Any] = {"family": case.family, "size": case.size}
    results = {}
    for engine, pipe in pipes.items():
        pipe.send(("load", case.model, case.feed))
        answer = pipe.recv()
        if isinstance(answer, str):
            row["error"] = f"{engine}: {answer}"
            return row
        compiled, results[engine] = answer
        if engine == "whet":
            row["compiled"] = compiled
    row["difference"] = difference(results["whet"], results["onnxruntime"])
    times: dict[str, list[float]] = {engine: [] for engine in pipes}
    for _ in range(rounds):
        for engine, pipe in pipes.items():
            pipe.send(("time", None))
            times[engine].append(pipe.recv())
    for engine, each in times.items():
        # Whatever else runs on the machine only adds time.
        row[f"{engine}_us"] = round(min(each) * 1e6, 2)
    row["ratio"] = round(row["whet_us"] / row["onnxruntime_us"], 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for engine in ENGINES:
        here, there = context.Pipe()
        context.Process(target=worker, args=(there, engine, arguments.threads), daemon=True).start()
        pipes[engine] = here
    rows = []
    for case in all_cases(arguments.only):
        row = measure(case, pipes, arguments.rounds)
        rows.append(row)
        note = row.get("error") or f"{row['whet_us']:>10.1f} {row['onnxruntime_us']:>10.1f} us  {row['ratio']:>6.2f}"
        mark = "" if row.get("compiled", True) else "  (not wholly compiled)"
        wrong = f"  DIFFERENCE {row['difference']:.1e}" if row.get("difference", 0) > 1e-4 else ""
        print(f"{row['family']:<28}{row['size']:<18}{note}{mark}{wrong}", flush=True)
    for pipe in pipes.values():
        pipe.send(None)
    slow = [r for r in rows if r.get("ratio", 0) > 1.5]
    print(f"{len(rows)} cases, {len(slow)} above 1.5 times ONNX Runtime's time")
    if arguments.out:
        report = {
            "machine": {
                "processor": platform.processor(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
            },
            "versions": {name: metadata.version(name) for name in ("whet", "onnxruntime", "llvmlite", "numpy")},
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
