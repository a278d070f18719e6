"""Whole programs depend on their inputs alone: not on what memory held, nor on threads, nor on each other."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whet
from tests import threaded_runs
from tests.random_graphs.check import LEVELS
from tests.random_graphs.generator import generate
from tests.session_models import model
from tests.shared_models import TRAINED, TRAINED_FEEDS, needs_trained
from whet.providers.cpu.executable import CpuExecutable

Array = np.ndarray[Any, Any]

POISONS = (0xFF, 0x41, 0x00)
"""NaN in every float type and -1; a moderate number; zeros, as fresh memory holds them."""
FIRST, GRAPHS, CHUNK = 9000, 30, 10
MODELS = {"wide": threaded_runs.WIDE, "image": threaded_runs.IMAGE, "rows": threaded_runs.ROWS}


def session(content: bytes | Path, threads: int) -> whet.InferenceSession:
    options = whet.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = LEVELS["all"]
    given = content if isinstance(content, bytes) else str(content)
    return whet.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def compiled_parts(made: whet.InferenceSession) -> list[CpuExecutable]:
    steps = made._main.compiled.executor._steps
    return [s.executable for s in steps if isinstance(s.executable, CpuExecutable)]


def poison(made: whet.InferenceSession, byte: int, outputs: list[Any]) -> int:
    """Fill the memory that the next run will use; how many bytes of arena and scratch memory that was."""
    total = 0
    for part in compiled_parts(made):
        for context in part._free:
            for area in (context.native.arena, context.native.scratch):
                ctypes.memset(area.address, byte, area.nbytes)
                total += area.nbytes
    # The next outputs are likely to get the memory of arrays of their size that were dropped just now.
    dropped = [np.empty(o.nbytes, np.uint8) for o in outputs if isinstance(o, np.ndarray) for _ in range(2)]
    for room in dropped:
        room.fill(byte)
    return total


def bits(outputs: list[Any]) -> list[Any]:
    return [(o.shape, o.tobytes()) if isinstance(o, np.ndarray) and o.dtype != object else repr(o) for o in outputs]


def check(content: bytes | Path, feeds: list[dict[str, Any]], label: object, made_for: Sequence[int] = (8,)) -> int:
    """The same bits from 1, 2 and 8 threads and from any memory, for the tactics of each of `made_for` threads; how
    many bytes were poisoned."""
    total = 0
    for planned in made_for:
        made = session(content, planned)
        for number, feed in enumerate(feeds):
            right: list[Any] | None = None
            for threads in (1, 2, 8):
                for part in compiled_parts(made):
                    # Another number of threads for the same programs: tactics may depend on it.
                    part._threads = threads
                    part._free.clear()
                where = f"{label}, feed {number}, planned for {planned}, {threads} threads"
                outputs = made.run(None, feed)
                right = right or bits(outputs)
                assert bits(outputs) == right, where
                for byte in POISONS:
                    total += poison(made, byte, outputs)
                    outputs = made.run(None, feed)
                    assert bits(outputs) == right, f"{where}, poison {byte:#x}"
    return total


@pytest.mark.parametrize("start", range(FIRST, FIRST + GRAPHS, CHUNK))
def test_random_graphs(start: int) -> None:
    total = 0
    for seed in range(start, start + CHUNK):
        case = generate(seed)
        total += check(case.model.SerializeToString(), list(case.feeds), f"seed {seed}")
    assert total > 0


@pytest.mark.parametrize("name", MODELS)
def test_models_of_many_tiles(name: str) -> None:
    content = model(MODELS[name])
    rng = np.random.default_rng(4)
    feeds = []
    for batch, rows in ((1, 3), (2, 40), (3, 7)):
        extents = {"N": batch if name != "wide" else batch * rows * 10, "H": rows}
        given = session(content, 1).get_inputs()
        feeds.append({
            v.name: rng.standard_normal([extents.get(d, d) for d in v.shape]).astype(np.float32) for v in given
        })  # fmt: skip
    assert check(content, feeds, name, (1, 2, 8)) > 0


@needs_trained
@pytest.mark.parametrize("name", sorted(TRAINED_FEEDS))
def test_trained_models(name: str) -> None:
    assert check(TRAINED / f"{name}.onnx", [TRAINED_FEEDS[name]()], name, (1, 8)) > 0


def test_eight_threads_on_three_sessions() -> None:
    """`python -m tests.threaded_runs` does the same a hundred thousand times."""
    assert threaded_runs.differing_runs(3000) == []
