"""Profiles: Chrome traces with an event per node, in a file that their session names."""

from __future__ import annotations

import gc
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import whet
from tests.session_models import model

GRAPH = """g (float[N] x, bool c) => (float[N] y) {
    a = Exp(x)
    b = Sin(a)
    y = If(c) <then_branch = one () => (float[N] t) { t = Neg(b) }, else_branch = two () => (float[N] e) { e = Tan(b) }>
}"""
FEED = {"x": np.ones(3, np.float32), "c": np.array(True)}


def profiled(folder: Path) -> whet.InferenceSession:
    options = whet.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "trace_")
    return whet.InferenceSession(model(GRAPH), options, providers=["ReferenceExecutionProvider"])


def read(path: str | Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(Path(path).read_text())
    for event in events:
        assert event["ph"] == "X"
        assert event["dur"] >= 0
        assert event["ts"] >= 0
        assert {"pid", "tid", "name", "cat", "args"} <= set(event)
    return events


def test_a_trace_holds_every_node_of_every_run(tmp_path: Path) -> None:
    before = time.monotonic_ns()
    made = profiled(tmp_path)
    assert before <= made.get_profiling_start_time_ns() <= time.monotonic_ns()
    made.run(None, FEED)
    made.run(None, FEED)
    path = made.end_profiling()
    assert path.startswith(str(tmp_path / "trace_"))
    events = read(path)
    session = [e for e in events if e["cat"] == "Session"]
    assert [e["name"] for e in session] == ["model_loading", "session_initialization", "model_run", "model_run"]
    nodes = [e for e in events if e["cat"] == "Node"]
    found = [e["args"]["op_name"] for e in nodes]
    assert {name: found.count(name) for name in found} == {"Exp": 2, "Sin": 2, "Neg": 2, "If": 2}
    assert {e["args"]["provider"] for e in nodes} == {"ReferenceExecutionProvider"}
    run = session[2]
    inside = [e for e in nodes if run["ts"] <= e["ts"] and e["ts"] + e["dur"] <= run["ts"] + run["dur"]]
    assert len(inside) == len(nodes) // 2
    assert len({e["tid"] for e in events}) == 1


def test_a_profile_ends_once(tmp_path: Path) -> None:
    made = profiled(tmp_path)
    path = made.end_profiling()
    made.run(None, FEED)
    assert made.end_profiling() == path
    assert all(e["cat"] == "Session" and e["name"] != "model_run" for e in read(path))
    assert len(list(tmp_path.iterdir())) == 1


def test_profiles_of_one_moment_have_files_of_their_own(tmp_path: Path) -> None:
    made = [profiled(tmp_path) for _ in range(3)]
    assert len({m.end_profiling() for m in made}) == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_without_profiling_there_is_no_file(tmp_path: Path) -> None:
    options = whet.SessionOptions()
    options.profile_file_prefix = str(tmp_path / "trace_")
    made = whet.InferenceSession(model(GRAPH), options)
    made.run(None, FEED)
    assert made.end_profiling() == ""
    assert list(tmp_path.iterdir()) == []


def test_a_profile_that_nobody_ends_is_written_when_the_session_goes(tmp_path: Path) -> None:
    made = profiled(tmp_path)
    made.run(None, FEED)
    del made
    gc.collect()
    (path,) = tmp_path.iterdir()
    assert any(e["cat"] == "Node" for e in read(path))


def test_a_profile_ends_while_threads_run(tmp_path: Path) -> None:
    made = profiled(tmp_path)
    go = threading.Event()

    def work(_: int) -> None:
        go.set()
        for _ in range(100):
            np.testing.assert_allclose(made.run(None, FEED)[0], -np.sin(np.exp(FEED["x"])), rtol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(work, i) for i in range(4)]
        assert go.wait(30)
        path = made.end_profiling()
        for result in results:
            result.result()
    assert read(path)
