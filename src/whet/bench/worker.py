"""One engine in a process of its own: `python -m whet.bench.worker ENGINE MODEL FEED RESULTS THREADS`.

Speaks JSON lines: it reports once when the model is loaded and has run (its results are in the RESULTS file), then
answers each request {"runs": n} with n timings in seconds, and ends at end of input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

from whet.bench.engines import ENGINES
from whet.bench.feed_file import load_values, save_values

WARM_UP_RUNS = 2


def main(arguments: list[str]) -> int:
    """Run the protocol over standard input and output. Returns the exit status."""
    engine, model, feed_path, results_path, threads = arguments
    # Engines may print to standard output, native code past Python's: keep the pipe for the protocol alone.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        started = time.perf_counter()
        run = ENGINES[engine](model, load_values(feed_path), int(threads))
        loaded = time.perf_counter()
        results = run()
        first = time.perf_counter()
        save_values(results_path, {str(i): value for i, value in enumerate(results)})
        # An engine whose runs take long is warm after the first.
        if first - loaded < 2.0:
            for _ in range(WARM_UP_RUNS):
                run()
    except Exception as error:  # reported to the parent, which names the engine
        _say(out, {"error": f"{type(error).__name__}: {error}"})
        return 1
    _say(out, {"load_s": loaded - started, "first_run_s": first - loaded})
    for line in sys.stdin:
        timings = []
        for _ in range(int(json.loads(line)["runs"])):
            begin = time.perf_counter()
            run()
            timings.append(time.perf_counter() - begin)
        _say(out, {"timings_s": timings})
    return 0


def _say(out: TextIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
