#!/usr/bin/env python3
"""How much more two Python threads on one session with one worker each do than one thread alone.

usage: throughput.py [--seconds S] [--rounds R] [--output FILE.json] [MODEL.onnx ...]

Without models: one product of matrices; a small network of eight steps; the same so small that a run is mostly Python,
which one thread at a time does. One thread and two threads take turns, `--rounds` times; the ratio is that of the
medians of their runs per second. Free dimensions of models become 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import psutil

import whet

HEAD = '<ir_version: 10, opset_import: ["": 20]>'
PRODUCT = f"""{HEAD} product (float[192, 192] x, float[192, 192] w) => (float[192, 192] y) {{
    m = MatMul(x, w)
    y = Relu(m)
}}"""
STEPS = """{head} steps (float[{rows}, {columns}] x, float[{columns}, {columns}] w) => (float[{rows}, {columns}] y) {{
    a = MatMul(x, w)
    b = Tanh(a)
    c = MatMul(b, w)
    d = Softmax(c)
    e = Transpose(d)
    f = Transpose(e)
    g = MatMul(f, w)
    y = Add(g, x)
}}"""
TEXTS = {
    "product": PRODUCT,
    "steps": STEPS.format(head=HEAD, rows=256, columns=256),
    "short": STEPS.format(head=HEAD, rows=32, columns=32),
}


def session(model: Path | bytes) -> whet.InferenceSession:
    """A session with one worker."""
    options = whet.SessionOptions()
    options.intra_op_num_threads = 1
    given = model if isinstance(model, bytes) else str(model)
    return whet.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def feed_for(made: whet.InferenceSession) -> dict[str, Any]:
    """Random numbers for every input; integers are 0 and 1, free dimensions 1."""
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for given in made.get_inputs():
        shape = [d if isinstance(d, int) else 1 for d in given.shape]
        if "float" in given.type or "double" in given.type:
            dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}.get(given.type, np.float16)
            feed[given.name] = (rng.random(shape) * 0.1).astype(dtype)
        elif given.type == "tensor(bool)":
            feed[given.name] = rng.random(shape) < 0.5
        else:
            feed[given.name] = rng.integers(0, 2, shape).astype(given.type[7:-1])
    return feed


def rate(made: whet.InferenceSession, feed: dict[str, Any], threads: int, seconds: float) -> float:
    """Runs per second of so many Python threads together."""
    counts = [0] * threads
    start = threading.Barrier(threads + 1)
    stop = threading.Event()

    def work(number: int) -> None:
        start.wait()
        while not stop.is_set():
            made.run(None, feed)
            counts[number] += 1

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    begun = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - begun)


def measure(name: str, made: whet.InferenceSession, seconds: float, rounds: int) -> dict[str, Any]:
    """One model's rates."""
    feed = feed_for(made)
    rate(made, feed, 2, min(seconds, 0.5))
    one, two = [], []
    for _ in range(rounds):
        one.append(rate(made, feed, 1, seconds))
        two.append(rate(made, feed, 2, seconds))
    ratio = statistics.median(two) / statistics.median(one)
    print(
        f"{name}: {statistics.median(one):.0f} runs/s of one thread, {statistics.median(two):.0f} of two: {ratio:.2f}"
    )
    return {"model": name, "one_thread": one, "two_threads": two, "ratio": ratio}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    chosen: dict[str, Path | bytes] = {path.stem: path for path in options.models}
    if not chosen:
        chosen = {name: onnx.parser.parse_model(text).SerializeToString() for name, text in TEXTS.items()}
    results = [measure(name, session(model), options.seconds, options.rounds) for name, model in chosen.items()]
    if options.output is not None:
        record = {
            "whet": whet.__version__, "python": platform.python_version(), "numpy": np.__version__,
            "machine": platform.machine(), "system": platform.platform(), "cores": psutil.cpu_count(logical=False),
            "results": results,
        }  # fmt: skip
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
