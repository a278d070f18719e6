"""Long runs: `python -m tests.random_graphs --count 100000 --start 0 --jobs 2`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

from .one_seed import work
from .shrink import FIXTURES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.random_graphs", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--start", type=int, default=0, help="the first seed; continue a stopped run with its last one")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--share", type=int, default=5, help="level all and the saved model for every n-th seed")
    parser.add_argument("--cpu", action="store_true", help="check the CPU provider instead of the levels")
    parser.add_argument("--fixtures", type=Path, default=FIXTURES, help="where shrunk failures are written")
    parser.add_argument("--no-shrink", action="store_true", help="only report failures")
    parser.add_argument("--stop-after", type=int, default=0, help="stop after this many failures (0: never)")
    options = parser.parse_args()
    write = None if options.no_shrink else options.fixtures
    counts = {"ok": 0, "refused": 0, "failed": 0}
    began = last = time.monotonic()
    seeds = range(options.start, options.start + options.count)
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=2000) as pool:
        tasks = ((seed, options.share, write, options.cpu) for seed in seeds)
        for done, (seed, outcome, lines) in enumerate(pool.imap(work, tasks, chunksize=4), 1):
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
