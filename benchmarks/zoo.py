"""A folder of models on Whet and its peers: one process per engine, interleaved rounds, float32 everywhere.

usage: python benchmarks/zoo.py [--threads 2] [--rounds 7] [--batch 1] [--torch PYTHON] [--output FILE.json] MODEL ...

Prints, per model, each engine's lower quartile in milliseconds and Whet's speed-up over the best peer, with the
interval that 95% of resampled rounds fall into. A folder stands for the models in it. `--torch` names the Python of an
environment with PyTorch, timm and transformers (see `torch_worker.py`): it adds torch.compile where that knows the
model. An engine that does not compute in float32 is not timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch_worker
from feeds import make_feed, model_files

import whet
from whet.bench.runner import SideBySide, run_side_by_side

ENGINES = ("whet", "onnxruntime", "openvino")
LIMIT = 1e-4


def difference(found: list[Any], expected: list[Any]) -> float:
    """Largest difference over each output's own range."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        wide = np.asarray(b, np.float64)
        if wide.size:
            gap = np.abs(np.asarray(a, np.float64) - wide).max()
            span = float(np.ptp(wide)) or float(np.abs(wide).max()) or 1.0
            worst = max(worst, float(gap) / span)
    return worst


def speed_up(result: SideBySide, samples: int = 2000) -> tuple[str, float, float, float] | None:
    """(best peer, their lower quartile over ours, 2.5% and 97.5% bounds by resampling the runs), where both ran."""
    timed = {r.engine: np.asarray(r.timings_ms) for r in result.results if r.timings_ms}
    ours = timed.pop("whet", None)
    if ours is None or not timed:
        return None
    best = min(timed, key=lambda name: float(np.percentile(timed[name], 25)))
    theirs, rng = timed[best], np.random.default_rng(0)

    def quartile(values: Any) -> float:
        return float(np.percentile(values, 25))

    ratios = [quartile(rng.choice(theirs, theirs.size)) / quartile(rng.choice(ours, ours.size)) for _ in range(samples)]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return best, quartile(theirs) / quartile(ours), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--torch", help="the Python of an environment with PyTorch")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for path in (p for given in arguments.models for p in model_files(given)):
        session = whet.InferenceSession(path, providers=["ReferenceExecutionProvider"])
        feed = make_feed(session.get_inputs(), arguments.batch)
        del session
        more = {}
        if arguments.torch is not None and Path(path).stem in torch_worker.NETWORKS:
            more["torch.compile"] = [arguments.torch, torch_worker.__file__]
        result = run_side_by_side(
            path, ENGINES, feed, threads=arguments.threads, rounds=arguments.rounds, external=more
        )
        row: dict[str, Any] = {**result.as_dict(), "batch": arguments.batch}
        text = f"{Path(path).stem:<24}"
        outputs = {r.engine: r.outputs for r in result.results if r.outputs}
        for r in result.results:
            text += f" {r.engine} " + (f"{r.latency.lower_quartile_ms:.3f} ms" if r.latency else f"({r.error[:60]})")
        found = speed_up(result)
        if found is not None:
            best, ratio, low, high = found
            row["speed_up"] = {"peer": best, "ratio": ratio, "low": low, "high": high}
            text += f"  speed-up {ratio:.2f} ({low:.2f} to {high:.2f}) over {best}"
        if "whet" in outputs and "onnxruntime" in outputs:
            row["difference"] = difference(outputs["whet"], outputs["onnxruntime"])
            text += "" if row["difference"] <= LIMIT else f"  DIFFERS by {row['difference']:.1e} of the range"
        rows.append(row)
        print(text, flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
