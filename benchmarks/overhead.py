"""What a call costs when there is nothing to compute: Identity on a 1x2 tensor, one process per engine, interleaved.

usage: python benchmarks/overhead.py [--rounds 9] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

CALLS = 5000
ENGINES = ("whet", "onnxruntime")


def model() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(made.SerializeToString())


def worker(pipe: Connection, engine: str) -> None:
    """Answers each number of calls with the microseconds that one took, until it gets 0."""
    package: Any = __import__(engine)
    session = package.InferenceSession(model(), providers=["CPUExecutionProvider"])
    feed = {"x": np.ones((1, 2), np.float32)}
    while count := pipe.recv():
        for _ in range(200):
            session.run(None, feed)
        started = time.perf_counter()
        for _ in range(count):
            session.run(None, feed)
        pipe.send((time.perf_counter() - started) / count * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for engine in ENGINES:
        here, there = context.Pipe()
        context.Process(target=worker, args=(there, engine), daemon=True).start()
        pipes[engine] = here
    times: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(arguments.rounds):
        for engine, pipe in pipes.items():
            pipe.send(CALLS)
            times[engine].append(pipe.recv())
    report: dict[str, Any] = {"calls": CALLS, "rounds": arguments.rounds, "engines": {}}
    for engine, pipe in pipes.items():
        pipe.send(0)
        quartile, median = np.percentile(times[engine], [25, 50])
        version = metadata.version(engine)
        report["engines"][engine] = {"version": version, "lower_quartile_us": quartile, "median_us": median}
        print(f"{engine:<12} {version:<10} lower quartile {quartile:6.2f} us   median {median:6.2f} us")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
