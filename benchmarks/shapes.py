"""What a new shape costs: a new class of extents, a new extent inside a class, and a thousand random shapes in a row.

usage: python benchmarks/shapes.py [--output FILE.json] [--rounds N] [--random N] NAME=MODEL.onnx ...

NAME says which extents are changed: `minilm` (batch and length) or `unet` (height and width). Printed and written:

- first_ms: a first run of a class less a repeated run, for each of a few classes, in one process that has run another
  class before; the kernels are in the cache on disk. The least of N fresh processes counts.
- inside_us: a run whose extents differ from the last run's, in one class, less a repeated run, by the shortest of
  interleaved runs. Of runs that take milliseconds the difference scatters by tens of microseconds.
- prepare_us: the same, timed alone: slots, words and addresses of the new extents, and the checks of the shapes.
- rss: resident bytes at run 200 and at the end of the random shapes (only with --random).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

Feed = dict[str, Any]


def minilm(batch: int, length: int) -> Feed:
    return {
        "input_ids": np.arange(batch * length, dtype=np.int64).reshape(batch, length) % 1000,
        "attention_mask": np.ones((batch, length), np.int64),
    }


def unet(height: int, width: int) -> Feed:
    return {
        "sample": np.linspace(-1, 1, 4 * height * width, dtype=np.float32).reshape(1, 4, height, width),
        "timestep": np.array([10], np.int64),
        "encoder_hidden_states": np.zeros((1, 77, 768), np.float32),
    }


MODELS: dict[str, tuple[Callable[[int, int], Feed], list[tuple[int, int]], tuple[tuple[int, int], tuple[int, int]]]] = {
    "minilm": (minilm, [(1, 8), (1, 32), (2, 64), (4, 128), (8, 16)], ((1, 17), (1, 18))),
    "unet": (unet, [(8, 8), (8, 16), (16, 16), (16, 32), (32, 32)], ((8, 16), (16, 8))),
}
"""A feed of two extents; classes, the first to warm up; two shapes of one class that take about as long."""
RANDOM = {"minilm": (4, 128), "unet": (16, 16)}
"""The largest extents of random shapes. The UNet halves its image three times, so its extents are multiples of 8."""
STEP = {"minilm": (1, 1), "unet": (8, 8)}


def timed(session: Any, feed: Feed) -> float:
    begin = time.perf_counter()
    session.run(None, feed)
    return time.perf_counter() - begin


def first_runs(name: str, path: str) -> list[float]:
    """For each class after the first: its first run less the shortest of three repeated ones, in ms."""
    import whet

    make, classes, _ = MODELS[name]
    session = whet.InferenceSession(path)
    session.run(None, make(*classes[0]))
    found = []
    for extents in classes[1:]:
        feed = make(*extents)
        first = timed(session, feed)
        found.append((first - min(timed(session, feed) for _ in range(3))) * 1e3)
    return found


def inside_class(name: str, path: str, rounds: int) -> dict[str, float]:
    """A run after another extent of the same class, and a run after the same one, in us; the shortest of each."""
    import whet

    make, _, pair = MODELS[name]
    session = whet.InferenceSession(path)
    feeds = [make(*extents) for extents in pair]
    repeated, changed = [1e9, 1e9], [1e9, 1e9]
    for feed in feeds:
        timed(session, feed)
    for _ in range(rounds):
        for index, feed in enumerate(feeds):
            changed[index] = min(changed[index], timed(session, feed))
            repeated[index] = min(repeated[index], timed(session, feed))
    extra = max(c - r for c, r in zip(changed, repeated, strict=True))
    prepare = preparing(session, feeds)
    return {"repeated_us": min(repeated) * 1e6, "inside_us": extra * 1e6, "prepare_us": prepare * 1e6}


def preparing(session: Any, feeds: list[Feed]) -> float:
    """What a run does for an extent that differs from the last run's, alone, in seconds; the shortest of many."""
    part = session._main.compiled.executor.only_part()
    lists = [[feed[i.name] for i in session.get_inputs()] for feed in feeds]
    specialization, context = part._only, part._free.pop()
    symbols = [tuple(a[i].shape[axis] for i, axis in specialization.sources) for a in lists]
    best = 1e9
    for _ in range(300):
        started = time.perf_counter()
        for extents, arrays in zip(symbols, lists, strict=True):
            part._prepare(context, specialization, extents, arrays)
        best = min(best, (time.perf_counter() - started) / len(lists))
    part._free.append(context)
    return best


def random_shapes(name: str, path: str, count: int) -> dict[str, float]:
    """Resident bytes after run 200 and after `count` runs of random shapes."""
    import whet

    make, _, _ = MODELS[name]
    rng = np.random.default_rng(0)
    session = whet.InferenceSession(path)
    process, steps, most = psutil.Process(), STEP[name], RANDOM[name]
    marks: dict[str, float] = {}
    for run in range(1, count + 1):
        extents = [int(rng.integers(1, m // s + 1)) * s for m, s in zip(most, steps, strict=True)]
        session.run(None, make(*extents))
        if run in (min(200, count), count):
            marks[f"rss_at_{run}"] = process.memory_info().rss
    values = list(marks.values())
    return {**marks, "growth": values[-1] / values[0] - 1}


def child(kind: str, name: str, path: str, number: int) -> Any:
    """What a function here gives in a fresh process."""
    command = [sys.executable, __file__, "--child", kind, "--rounds", str(number), f"{name}={path}"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows: dict[str, Any] = {}
    for entry in arguments.models:
        name, _, path = entry.partition("=")
        if arguments.child == "first":
            print(json.dumps(first_runs(name, path)))
            return
        if arguments.child == "inside":
            print(json.dumps(inside_class(name, path, arguments.rounds)))
            return
        if arguments.child == "random":
            print(json.dumps(random_shapes(name, path, arguments.rounds)))
            return
        child("first", name, path, 1)  # so that every kernel is in the cache
        found = [child("first", name, path, 1) for _ in range(arguments.rounds)]
        classes = ["x".join(map(str, extents)) for extents in MODELS[name][1][1:]]
        row: dict[str, Any] = {
            "first_ms": dict(zip(classes, map(min, zip(*found, strict=True)), strict=True)),
            **child("inside", name, path, 200 if name == "minilm" else 5),
        }
        if arguments.random:
            row["random"] = child("random", name, path, arguments.random)
        rows[name] = row
        print(name, json.dumps(row), flush=True)
    if arguments.output is not None:
        document = {
            "python": platform.python_version(),
            "machine": f"{platform.machine()} {platform.system()}, {psutil.cpu_count()} CPUs",
            "models": rows,
        }
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
