"""How far values are from float64: every value that a compiled model still has, with every tactic forced in turn.

usage: python benchmarks/accuracy.py [--length 64] [--image 32] [--limit 1e-4] [--output FILE.json] MODEL.onnx ...

The unoptimized graph is evaluated once, in float64, by the reference provider. Values that survive (a step of the
compiled program leaves them behind, and the graph of the file has them) become outputs behind the passes, so that
nothing is fused otherwise than usual. Tactics are those that the compiler itself names when it chooses: each is taken
wherever it is possible, and the cost model's choice elsewhere. An error is the largest difference over the range of the
exact value. `--length` and `--image` are what free extents become. A process for each model; the exit status is 1 where
an error is above the limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from feeds import make_feed, model_files

import whet
from whet.verify.compare import TOLERANCE
from whet.verify.values import compare_values


def measure(path: str, length: int, image: int) -> dict[str, Any]:
    """Each tactic's worst value."""
    started = time.perf_counter()
    session = whet.InferenceSession(path, providers=["ReferenceExecutionProvider"])
    feed = make_feed(session.get_inputs(), length=length, image=image)
    del session
    tactics: dict[str, Any] = {}
    for report in compare_values(path, feed):
        worst = report.worst
        tactics[report.tactic or "chosen"] = {
            "choices": report.used,
            "values": len(report.differences),
            "worst": None if worst is None else worst.name,
            "error": 0.0 if worst is None else worst.error,
            "range": None if worst is None else worst.value_range,
            "problem": "" if worst is None else worst.problem,
            "steps_done_otherwise": len(report.other_steps),
        }
    shapes = {name: list(array.shape) for name, array in feed.items()}
    return {"inputs": shapes, "tactics": tactics, "seconds": round(time.perf_counter() - started, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--image", type=int, default=32)
    parser.add_argument("--limit", type=float, default=TOLERANCE)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.models[0], arguments.length, arguments.image)))
        return 0
    rows: dict[str, Any] = {}
    failed = False
    for path in (p for given in arguments.models for p in model_files(given)):
        options = ["--child", "--length", str(arguments.length), "--image", str(arguments.image)]
        done = subprocess.run([sys.executable, __file__, *options, path], capture_output=True, text=True, check=False)
        name = Path(path).stem
        if done.returncode:
            print(f"{name}: failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            rows[name], failed = {"problem": done.stderr[-2000:]}, True
            continue
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        for tactic, row in rows[name]["tactics"].items():
            over = not row["error"] <= arguments.limit
            failed |= over
            text = f"{name:<24}{tactic:<34}{row['error']:.1e} of the range at {row['worst']}"
            print(f"{text}, of {row['values']} values{'   OVER' if over else ''}", flush=True)
    if arguments.output is not None:
        report = {"whet": whet.__version__, "limit": arguments.limit, "models": rows}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
