"""Free extents: shapes that are made ready ahead, memory that does not grow, what a session holds, and its threads."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import numpy_helper, parser

import whet
from tests.session_models import HEAD, model
from whet.compiler.weights import STORE
from whet.errors import InvalidArgument
from whet.providers.cpu.executable import CpuExecutable

GRAPH = (
    "g (float[b, s, 64] x, float[1, s, 1] y) => (float[b, s, 64] z) { a = MatMul(x, w) c = Add(a, y) z = Softmax(c) }"
)


def _model(seed: int = 0) -> bytes:
    proto = parser.parse_model(f"{HEAD} {GRAPH}")
    weight = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    serialized: bytes = proto.SerializeToString()
    return serialized


def _feed(batch: int, length: int) -> dict[str, Any]:
    rng = np.random.default_rng(batch * 1000 + length)
    x = rng.standard_normal((batch, length, 64)).astype(np.float32)
    return {"x": x, "y": rng.standard_normal((1, length, 1)).astype(np.float32)}


def _session(source: bytes, **keys: str) -> whet.InferenceSession:
    options = whet.SessionOptions()
    for key, value in keys.items():
        options.add_session_config_entry(key.replace("_", "."), value)
    return whet.InferenceSession(source, options)


def _executable(session: whet.InferenceSession) -> CpuExecutable:
    found = session._main.compiled.executor.only_part()
    assert isinstance(found, CpuExecutable)
    return found


def test_shapes_that_are_made_ready_need_no_plan_and_no_memory_at_run() -> None:
    session = _session(_model(), shapes_max="x:4x100x64,y:1x100x1", shapes_min="x:1x8x64,y:1x8x1")
    (program,) = _executable(session).programs()
    held = session.memory
    assert held.arena > 0
    plain = _session(_model())
    for batch, length in ((4, 100), (1, 8), (3, 77), (2, 9)):
        for a, b in zip(session.run(None, _feed(batch, length)), plain.run(None, _feed(batch, length)), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not program._plans
    assert (session.memory.arena, session.memory.contexts) == (held.arena, held.contexts)
    session.run(None, _feed(5, 100))  # outside: runs as without
    session.run(None, _feed(1, 7))
    assert len(program._plans) == 2


def test_profiles_may_be_several_and_the_largest_alone_is_enough() -> None:
    session = _session(_model(), shapes_max="x:1x16x64,y:1x16x1;x:8x128x64,y:1x128x1")
    (program,) = _executable(session).programs()
    for batch, length in ((1, 16), (8, 128), (0, 3)):
        session.run(None, _feed(batch, length))
    assert not program._plans


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shapes_min": "x:1x8x64,y:1x8x1"}, "needs its largest"),
        ({"shapes_max": "x:1x8x64"}, "no shape; value: shapes.min: y"),
        ({"shapes_max": "x:1x8x64,y:1x8x1,q:1"}, "shapes.min: q"),
        ({"shapes_max": "x:1x8,y:1x8x1"}, "another rank"),
        ({"shapes_max": "x:1x8x65,y:1x8x1"}, "than the input's own"),
        ({"shapes_max": "x:1x8x64,y:1x9x1"}, "two ranges"),
        ({"shapes_max": "x:1x8x64,y:1x8x1", "shapes_min": "x:2x8x64,y:1x8x1"}, "from min over opt to max"),
        ({"shapes_max": "x:1x8x64,y:1x8x1", "shapes_opt": "x:1x8x64,y:1x8x1;x:1x8x64,y:1x8x1"}, "number of profiles"),
        ({"shapes_max": "x=1x8x64"}, "not a shape"),
        ({"shapes_max": "x:1x-8x64"}, "not a shape"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(keys: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        _session(_model(), **keys)


def test_random_shapes_take_no_more_memory_with_time() -> None:
    session, process, rng = _session(_model()), psutil.Process(), np.random.default_rng(0)
    shapes = rng.integers(1, 65, (1000, 2))
    marks = []
    for number, (batch, length) in enumerate(shapes, 1):
        session.run(None, {"x": np.zeros((batch, length, 64), np.float32), "y": np.zeros((1, length, 1), np.float32)})
        if number in (200, 1000):
            marks.append(process.memory_info().rss)
    assert marks[1] <= marks[0] * 1.02
    (program,) = _executable(session).programs()
    assert len(program._plans) <= 16


def test_a_weight_is_packed_once_for_all_sessions() -> None:
    # Sessions of earlier tests that wait for the collector hold weights: they must not go while this one counts.
    gc.collect()
    first = _session(_model(7))
    alone, before = first.memory, STORE.nbytes
    assert alone.shared_weights == 0
    assert alone.weights >= 64 * 64 * 4
    second = _session(_model(7))
    assert STORE.nbytes == before
    assert second.memory.shared_weights == second.memory.weights == first.memory.shared_weights
    del second
    other = _session(_model(8))
    assert STORE.nbytes > before
    assert other.memory.shared_weights < other.memory.weights
    assert first.memory.code > 0
    assert first.memory.total >= first.memory.weights + first.memory.code


def test_structural_values_share_their_weights() -> None:
    proto = parser.parse_model(
        f"{HEAD} g (float[n] x, int64[2] s) => (float[p, 64] y) {{ r = Reshape(x, s) y = Mul(r, w) }}"
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((1, 64), np.float32), "w"))
    session = _session(proto.SerializeToString())
    x = np.ones(64 * 512, np.float32)
    held = []
    for rows in (256, 248):
        session.run(None, {"x": x[: rows * 64], "s": np.array([rows, 64])})
        held.append(session.memory)
    assert [h.specializations for h in held] == [1, 2]
    assert held[1].weights == held[0].weights >= 64 * 4


BRANCHES = f"""{HEAD} g (float[n, 64] x, bool wanted, int64[2] s) => (float[p, q] y)
    <float[64, 64] v = {{{",".join(["0.5"] * 4096)}}}> {{
    y = If (wanted) <then_branch = t () => (float[p, q] a) {{ m = MatMul(x, v) a = Reshape(m, s) }},
                     else_branch = e () => (float[p, q] b) {{ b = Reshape(x, s) }}> }}"""
WEIGHT_BYTES = 64 * 64 * 4


def test_what_is_compiled_with_the_first_run_holds_its_constants_before() -> None:
    session = _session(parser.parse_model(BRANCHES).SerializeToString())
    before = session.memory
    # The constant of a branch counts, and nothing is compiled.
    assert before.weights >= WEIGHT_BYTES
    assert before.specializations == before.code == 0
    feed = {"x": np.ones((2, 64), np.float32), "s": np.array([1, 128])}
    session.run(None, {**feed, "wanted": np.array(False)})
    after = session.memory
    assert after.specializations == 1
    assert after.code > 0
    session.run(None, {**feed, "wanted": np.array(True)})
    assert session.memory.weights >= WEIGHT_BYTES


def test_constants_count_that_are_interpreted() -> None:
    serialized = parser.parse_model(BRANCHES).SerializeToString()
    session = whet.InferenceSession(serialized, providers=["ReferenceExecutionProvider"])
    assert WEIGHT_BYTES <= session.memory.weights < 2 * WEIGHT_BYTES


@pytest.mark.parametrize(
    ("threads", "goal", "workers"), [(1, "latency", 0), (0, "throughput", 0), (2, "throughput", 1)]
)
def test_workers_start_only_where_a_run_uses_them(threads: int, goal: str, workers: int) -> None:
    code = f"""
import threading, numpy as np, whet
from whet.runtime.team import team
from whet.runtime.layout import Worker
o = whet.SessionOptions()
o.intra_op_num_threads = {threads}
o.add_session_config_entry("goal", "{goal}")
s = whet.InferenceSession({model("g (float[n, 64] x) => (float[n, 64] y) { y = MatMul(x, x) }")!r}, o)
s.run(None, {{"x": np.ones((64, 64), np.float32)}})
print(team().workers, sum(t.name.startswith("whet") for t in threading.enumerate()),
      max([int(team().mailbox(i)[Worker.IDLE_SPIN]) for i in range(team().workers)], default=0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [str(workers), str(workers), "0"], done.stderr
