"""Long runs and replays: `python -m tests.fuzz --seconds 600`, `python -m tests.fuzz --kind bytes --seed 123`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from .cases import KINDS, run_case
from .watchdog import BAD, fuzz


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--kind", choices=[*KINDS, "both"], default="both")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to run")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, help="at most this many seeds")
    parser.add_argument("--seed", type=int, help="replay one seed in this process")
    parser.add_argument("--stop-after", type=int, default=0, help="stop after this many bad outcomes (0: never)")
    options = parser.parse_args()
    kinds = tuple(KINDS) if options.kind == "both" else (options.kind,)
    if options.seed is not None:
        outcomes = [run_case(kind, options.seed) for kind in kinds]
        for outcome in outcomes:
            print(outcome.kind, outcome.status, outcome.detail)
        return int(any(outcome.status in BAD for outcome in outcomes))
    counts: Counter[str] = Counter()
    last = time.monotonic()
    bad = 0
    for outcome in fuzz(kinds, options.start, options.seconds, options.count):
        counts[f"{outcome.kind} {outcome.status}"] += 1
        if outcome.status in BAD:
            bad += 1
            print(f"{outcome.kind} seed {outcome.seed} {outcome.status}\n{outcome.detail}", flush=True)
            if options.stop_after and bad >= options.stop_after:
                break
        if time.monotonic() - last > 20:
            last = time.monotonic()
            print(f"seed {outcome.seed} {dict(sorted(counts.items()))}", flush=True)
    print(f"{sum(counts.values())} cases {dict(sorted(counts.items()))}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
