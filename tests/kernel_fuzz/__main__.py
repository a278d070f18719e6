"""Random generated kernels on random arguments: `python -m tests.kernel_fuzz --calls 10000000 --kernels 3000 --jobs 2`.

Every operand lies against guard pages, before or behind it by turns; inputs are read-only while a kernel runs; all
else is poisoned. Each argument block is run in both placements, with two poisons and the grid cut in two ways: the same
bits must come out, nothing beside an operand's elements may change, and most results are compared with numpy in
float64. A call is one entry of a kernel with an argument block and a range of tiles of its own. `--seed S` without
`--kernels` replays one kernel in this process; `--only-call N` one of its argument blocks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from .case import Result, run_case, targets
from .families import FAMILIES
from .host import Host
from .runner import fuzz


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernel_fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=10_000_000, help="entries of kernels in all (default 10 million)")
    parser.add_argument("--kernels", type=int, help="distinct kernels (default 3000)")
    parser.add_argument("--seed", type=int, help="the first seed, or the one to replay")
    parser.add_argument("--only-call", type=int, help="with --seed: replay this argument block only")
    parser.add_argument("--family", choices=[f.name for f in FAMILIES], help="only this family")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, help="write the counts here")
    options = parser.parse_args()
    if options.only_call is not None or (options.seed is not None and options.kernels is None):
        return _replay(options.seed or 0, options.only_call, min(options.calls, 3000))
    return _run(options, options.kernels or 3000)


def _replay(seed: int, only: int | None, calls: int) -> int:
    result = run_case(Host(), seed, calls, lambda number, variant: None, only)
    print(f"seed {seed}: {result.family} for {result.target}, {result.symbol}, {result.calls} calls")
    for failure in result.failures:
        print(failure)
    return int(bool(result.failures))


def _run(options: argparse.Namespace, kernels: int) -> int:
    start = last = time.monotonic()
    totals = Totals()
    first, wanted = options.seed or 0, options.calls
    entries = -(-wanted // kernels)
    missing = kernels
    # Two seeds may give the same code, and some families get fewer calls: go on until there are enough of both.
    while missing > 0:
        for result in fuzz(first, missing, entries, options.jobs, options.family):
            totals.add(result)
            for failure in result.failures:
                print(f"seed {result.seed}: {failure}", flush=True)
            if time.monotonic() - last > 20:
                last = time.monotonic()
                print(totals.line(last - start), flush=True)
        first += missing
        missing = max(kernels - len(totals.symbols), -(-(wanted - totals.calls) // max(totals.each, 1)))
        if options.family is not None:
            break
    print(totals.line(time.monotonic() - start))
    for name, count in sorted(totals.families.items()):
        print(f"  {name}: {count} kernels, {totals.family_calls[name]} calls")
    print(f"  targets: {dict(totals.targets)}")
    if options.json is not None:
        options.json.write_text(json.dumps(totals.record(time.monotonic() - start), indent=1) + "\n")
    silent = [f.name for f in FAMILIES if f.name not in totals.families and options.family is None]
    if silent and kernels >= 2 * len(FAMILIES):
        print(f"families without a kernel: {silent}")
    return int(totals.failures > 0)


class Totals:
    """Counts of a run."""

    def __init__(self) -> None:
        self.seeds = self.calls = self.failures = 0
        self.symbols: set[str] = set()
        self.families: Counter[str] = Counter()
        self.family_calls: Counter[str] = Counter()
        self.targets: Counter[str] = Counter()
        self.target_calls: Counter[str] = Counter()

    @property
    def each(self) -> int:
        """Calls of a seed."""
        return self.calls // self.seeds if self.seeds else 0

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.calls += result.calls
        self.failures += len(result.failures)
        if result.symbol:
            self.symbols.add(f"{result.target} {result.symbol}")
        self.families[result.family] += 1
        self.family_calls[result.family] += result.calls
        self.targets[result.target] += 1
        self.target_calls[result.target] += result.calls

    def line(self, seconds: float) -> str:
        rate = self.calls / max(seconds, 1e-9)
        return (
            f"{self.calls} calls of {len(self.symbols)} distinct kernels in {seconds:.0f} s ({rate:.0f} a second), "
            f"{self.failures} failures"
        )

    def record(self, seconds: float) -> dict[str, object]:
        """The counts as JSON."""
        return {
            "calls": self.calls, "kernels": len(self.symbols), "failures": self.failures, "seconds": round(seconds),
            "targets": {n: {"kernels": c, "calls": self.target_calls[n]} for n, c in sorted(self.targets.items())},
            "families": {n: {"kernels": c, "calls": self.family_calls[n]} for n, c in sorted(self.families.items())},
            "can_run": sorted(targets()),
        }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
