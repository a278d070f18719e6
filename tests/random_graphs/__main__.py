"""Long runs: `python -m tests.random_graphs --count 100000 --start 0 --jobs 2`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto

from .check import ALL_STAGES, Feed, OracleError, check
from .generator import generate
from .shrink import FIXTURES, Shrunk, shrink, write_fixture


def run_seed(seed: int, share_saved: int, write: Path | None) -> tuple[int, str, list[str]]:
    """Checks one seed: (seed, "ok" | "refused" | "failed", lines to print)."""
    stages = [stage for stage in ALL_STAGES if stage != "saved" or seed % share_saved == 0]
    case = generate(seed)
    try:
        failures = check(case.model, case.feeds, inexact=case.inexact, stages=stages)
    except OracleError as error:
        return seed, "refused", [f"ONNX Runtime: {error}"[:200]]
    except Exception:
        return seed, "failed", [traceback.format_exc()]
    if not failures:
        return seed, "ok", []
    lines = [f"{f.stage} {f.output}: {f.message}"[:400] for f in failures[:4]]
    if write is not None:
        first = failures[0]

        def fails(model: ModelProto, feeds: Sequence[Feed]) -> bool:
            return any(f.kind == first.kind for f in check(model, feeds, inexact=case.inexact, stages=stages))

        stages = [first.stage] if first.stage in ("float64", "saved") else ["float64", first.stage]
        small = shrink(case.model, case.feeds, fails)
        path = write_fixture(f"seed_{seed}", small, write)
        lines.append(f"{_operators(small)} in {path.name}")
    return seed, "failed", lines


def _operators(small: Shrunk) -> str:
    return " ".join(node.op_type for node in small.model.graph.node)


def _work(arguments: tuple[int, int, Path | None]) -> tuple[int, str, list[str]]:
    return run_seed(*arguments)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.random_graphs", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first seed; continue a stopped run with its last one")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--share-saved", type=int, default=5, help="check the saved model of every n-th seed")
    parser.add_argument("--fixtures", type=Path, default=FIXTURES, help="where shrunk failures are written")
    parser.add_argument("--no-shrink", action="store_true", help="only report failures")
    parser.add_argument("--stop-after", type=int, default=0, help="stop after this many failures (0: never)")
    options = parser.parse_args()
    write = None if options.no_shrink else options.fixtures
    counts = {"ok": 0, "refused": 0, "failed": 0}
    began = last = time.monotonic()
    seeds = range(options.start, options.start + options.count)
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=2000) as pool:
        work = ((seed, options.share_saved, write) for seed in seeds)
        for done, (seed, outcome, lines) in enumerate(pool.imap(_work, work, chunksize=4), 1):
            counts[outcome] += 1
            if lines:
                print(f"seed {seed} {outcome}\n  " + "\n  ".join(lines), flush=True)
            if time.monotonic() - last > 20 or done == len(seeds):
                last = time.monotonic()
                rate = done / (last - began)
                print(f"{done}/{len(seeds)} (next {seed + 1}) {counts} {rate:.1f} graphs/s", flush=True)
            if options.stop_after and counts["failed"] >= options.stop_after:
                pool.terminate()
                break
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
