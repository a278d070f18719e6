"""Sessions run from many Python threads at once, against serial answers: `python -m tests.threaded_runs`."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import whet
from tests.session_models import model

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]

WIDE = """g (float[N, 64] x, float[64, 96] w, float[96] b) => (float[N, 96] y, float[96, N] t, int64[N] at) {
    m = MatMul(x, w)
    s = Add(m, b)
    r = Relu(s)
    y = Softmax(r)
    t = Transpose(y)
    at = ArgMax<axis = 1, keepdims = 0>(s)
}"""

IMAGE = """g (float[N, 8, H, 20] x, float[24, 8, 3, 3] w, float[24] scale, float[24] bias)
    => (float[N, 24, H, 20] y, float[N, 24, 1, 1] z) {
    c = Conv<pads = [1, 1, 1, 1]>(x, w)
    n = InstanceNormalization(c, scale, bias)
    y = Tanh(n)
    p = MaxPool<kernel_shape = [2, 2]>(y)
    axes = Constant<value = int64[2] {2, 3}>()
    z = ReduceSum(p, axes)
}"""

ROWS = """g (float[N, 12, 32] x, float[32] scale, float[32] bias)
    => (float[N, 12, 32] y, float[N] total, float[N, 12, 12] s) {
    n = LayerNormalization(x, scale, bias)
    t = Transpose<perm = [0, 2, 1]>(n)
    s = MatMul(n, t)
    p = Softmax(s)
    y = MatMul(p, n)
    q = Mul(y, y)
    axes = Constant<value = int64[2] {1, 2}>()
    total = ReduceMean<keepdims = 0>(q, axes)
}"""


def session(text: str, threads: int) -> whet.InferenceSession:
    """A compiled session of a graph in textual syntax."""
    options = whet.SessionOptions()
    options.intra_op_num_threads = threads
    return whet.InferenceSession(model(text), options, providers=["CPUExecutionProvider"])


def feeds(made: whet.InferenceSession, count: int) -> list[Feed]:
    """Random inputs; free extents differ from feed to feed."""
    rng = np.random.default_rng(3)
    result = []
    for number in range(count):
        extents = {"N": 1 + number % 5, "H": 3 + number % 4}
        result.append({
            given.name: rng.standard_normal([extents.get(d, d) for d in given.shape]).astype(np.float32)
            for given in made.get_inputs()
        })  # fmt: skip
    return result


def differing_runs(runs: int, threads: int = 8, workers: Sequence[int] = (1, 2, 1)) -> list[str]:
    """Make `runs` runs on three sessions from `threads` Python threads; those whose bits are not the serial ones'."""
    made = [session(text, w) for text, w in zip((WIDE, IMAGE, ROWS), workers, strict=True)]
    given = [feeds(s, 20) for s in made]
    serial = [[[o.tobytes() for o in s.run(None, f)] for f in each] for s, each in zip(made, given, strict=True)]
    start = threading.Barrier(threads)

    def work(thread: int) -> list[str]:
        start.wait()
        bad = []
        for number in range(thread, runs, threads):
            which, feed = number % 3, number // 3 % 20
            found = [o.tobytes() for o in made[which].run(None, given[which][feed])]
            if found != serial[which][feed]:
                bad.append(f"run {number}: session {which}, feed {feed}")
        return bad

    with ThreadPoolExecutor(threads) as pool:
        return [line for lines in pool.map(work, range(threads)) for line in lines]


def main() -> int:
    """Run, print, say whether all agree."""
    parser = argparse.ArgumentParser(prog="python -m tests.threaded_runs", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=8)
    options = parser.parse_args()
    started = time.monotonic()
    bad = differing_runs(options.runs, options.threads)
    print(
        f"{options.runs} runs from {options.threads} threads in {time.monotonic() - started:.0f} s, {len(bad)} differ"
    )
    for line in bad[:20]:
        print(line)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
