"""From the model's path to its first output, import excluded: with no kernel cached, and with all of them.

usage: python benchmarks/first_output.py [--runs 5] [--output FILE.json] MODEL.onnx ...

Each run is a fresh process. The object cache lies in a folder of its own that is emptied for the cold runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHILD = """
import json, sys, time
sys.path.insert(0, sys.argv[2])
import whet, whet.providers.cpu
from feeds import make_feed
started = time.perf_counter()
session = whet.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
loaded = time.perf_counter()
feed = make_feed(session.get_inputs())
ready = time.perf_counter()
session.run(None, feed)
print(json.dumps([loaded - started, time.perf_counter() - ready]))
"""


def once(model: str, cache: str) -> list[float]:
    """Seconds until the session is made, and of the first run."""
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    command = [sys.executable, "-c", CHILD, model, str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    times: list[float] = json.loads(done.stdout)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in arguments.models:
        row: dict[str, Any] = {"model": Path(model).stem}
        cold = []
        for _ in range(arguments.runs):
            with tempfile.TemporaryDirectory() as folder:
                cold.append(once(model, folder))
        with tempfile.TemporaryDirectory() as folder:
            once(model, folder)
            warm = [once(model, folder) for _ in range(arguments.runs)]
        for name, times in (("cold", cold), ("warm", warm)):
            row[f"{name}_load_s"] = statistics.median(load for load, _ in times)
            row[f"{name}_total_s"] = statistics.median(load + first for load, first in times)
        rows.append(row)
        print(
            f"{row['model']:<26} nothing cached {row['cold_total_s']:6.2f} s (load {row['cold_load_s']:.2f})   "
            f"kernels cached {row['warm_total_s']:6.2f} s (load {row['warm_load_s']:.2f})",
            flush=True,
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
