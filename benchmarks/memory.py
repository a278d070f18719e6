"""Memory of a session after three runs, beside ONNX Runtime: bytes of its own (USS) over a bare import, a process each.

usage: python benchmarks/memory.py [--limit 1.1] [--extra-mb 60] [--output FILE.json] MODEL.onnx ...

USS counts pages that only this process holds, mapped model files included: run nothing else that maps the models. A row
is marked OVER where Whet's growth passes LIMIT times ONNX Runtime's plus EXTRA.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))

from feeds import make_feed

ENGINES = ("whet", "onnxruntime")
RUNS = 3


def measure(engine: str, path: str) -> dict[str, Any]:
    """Growth of this process's USS, in bytes: after loading, and after the runs."""
    process = psutil.Process()
    module = importlib.import_module(engine)
    session_class = module.InferenceSession  # Whet imports its engine here
    before = process.memory_full_info().uss
    session = session_class(path, providers=["CPUExecutionProvider"])
    loaded = process.memory_full_info().uss
    feed = make_feed(session.get_inputs())
    for _ in range(RUNS):
        session.run(None, feed)
    found: dict[str, Any] = {"load": loaded - before, "run": process.memory_full_info().uss - before}
    if engine == "whet":
        found["reported"] = session.memory.total
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--limit", type=float, default=1.1)
    parser.add_argument("--extra-mb", type=float, default=60.0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.models[0])))
        return
    rows: dict[str, Any] = {}
    for path in arguments.models:
        row = {}
        for engine in ENGINES:
            command = [sys.executable, __file__, "--child", engine, path]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            row[engine] = json.loads(done.stdout.splitlines()[-1])
        ours, theirs = row["whet"]["run"] / 1e6, row["onnxruntime"]["run"] / 1e6
        over = ours > arguments.limit * theirs + arguments.extra_mb
        rows[Path(path).stem] = row
        text = f"{Path(path).stem:<26} whet {ours:8.1f} MB (reports {row['whet']['reported'] / 1e6:8.1f})"
        print(f"{text}   onnxruntime {theirs:8.1f} MB   {ours / theirs:5.2f}{'   OVER' if over else ''}", flush=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
