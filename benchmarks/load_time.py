#!/usr/bin/env python3
"""How long importing Whet, loading a model and running the passes take, each in fresh processes.

usage: load_time.py [--runs N] [--output FILE.json] MODEL.onnx ...

Prints the median and the fastest of N runs in milliseconds, and writes all of them with machine and versions as JSON.
Loading and passes are timed in a process that has imported the engine already; the file is in the page cache.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import psutil

import whet

IMPORT = """
import time
started = time.perf_counter()
import whet
print((time.perf_counter() - started) * 1e3)
"""
ENGINE = """
import time
started = time.perf_counter()
import whet
whet.InferenceSession
print((time.perf_counter() - started) * 1e3)
"""
LOAD = """
import sys, time
from whet.session.prepare import LoadSettings, load
started = time.perf_counter()
loaded = load(sys.argv[1], LoadSettings(level=sys.argv[2]))
print((time.perf_counter() - started) * 1e3)
"""


def measure(code: str, arguments: list[str], runs: int) -> list[float]:
    """`runs` timings in milliseconds, one fresh process each, after one that is not counted."""
    timings = []
    for _ in range(runs + 1):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        timings.append(float(done.stdout))
    return timings[1:]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = [("import whet", measure(IMPORT, [], arguments.runs))]
    rows.append(("import whet; whet.InferenceSession", measure(ENGINE, [], arguments.runs)))
    for model in arguments.models:
        for level in ("disabled", "all"):
            rows.append((f"{model.stem}, level {level}", measure(LOAD, [str(model), level], arguments.runs)))
    for name, timings in rows:
        print(f"{name:45} median {statistics.median(timings):8.1f} ms   fastest {min(timings):8.1f} ms")
    if arguments.output is not None:
        document = {
            "whet": whet.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()} {platform.system()}, {psutil.cpu_count()} CPUs",
            "timings_ms": dict(rows),
        }
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
