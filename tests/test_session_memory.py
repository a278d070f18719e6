"""A session that nobody holds any more is gone at once, without the collector: no circles hold it or what it holds."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import whet
from tests.session_models import ADD, HEAD, model
from whet.errors import WhetError
from whet.passes.pattern import Var, match
from whet.providers.cpu.executable import CpuExecutable

CPU = ["CPUExecutionProvider"]
MODELS = {
    "add": ADD,
    "fixed": "g (float[2, 3] x) => (float[2, 3] z) { h = Exp(x) z = Tanh(h) }",
    "branch": """g (bool b, float[N, 3] x) => (float[N, 3] z) {
        z = If (b) <then_branch = t () => (float[N, 3] u) { u = Exp(x) },
                    else_branch = e () => (float[N, 3] v) { v = Neg(x) }> }""",
    "loop": """g (int64 n, bool b, float[N, 3] x) => (float[N, 3] z) {
        z = Loop (n, b, x) <body = f (int64 i, bool c, float[N, 3] s) => (bool d, float[N, 3] t) {
            d = Identity(c) t = Add(s, x) }> }""",
    "elements": "g (float[N, 3] x, int64[R] shape) => (float[K, L] z) { z = Reshape(x, shape) }",
    "words": "g (string[N] x) => (string[N] z) { z = Identity(x) }",
    "function": """g (float[N, 3] x) => (float[N, 3] z) { z = own.twice(x) }
        <domain: "own", opset_import: ["": 20]> twice (x) => (y) { y = Add(x, x) }""",
}
FUNCTION_HEAD = '<ir_version: 10, opset_import: ["": 20, "own": 1]>'


def feed_of(session: whet.InferenceSession) -> dict[str, Any]:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    known = {"b": np.array(True), "n": np.array(3), "shape": np.array([3, 2])}
    words = np.array(["a", "b"], object)
    return {
        arg.name: words if arg.type == "tensor(string)" else known.get(arg.name, rows) for arg in session.get_inputs()
    }


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def left() -> list[str]:
    """What of Whet's is only in circles: the names of its types."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return sorted({type(thing).__qualname__ for thing in gc.garbage if type(thing).__module__.startswith("whet.")})
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()


def watched(session: whet.InferenceSession) -> list[weakref.ref[Any]]:
    """The session and its large parts."""
    compiled = session._main.compiled
    parts: list[Any] = [session, compiled.executor, compiled.loaded.model.graph]
    for executable in compiled.executor.executables:
        if isinstance(executable, CpuExecutable):
            parts += [executable, *executable.programs()]
            parts += [kernel.library for program in executable.programs() for kernel in program.linked]
    return [weakref.ref(part) for part in parts]


@pytest.mark.parametrize("name", MODELS)
def test_a_dropped_session_is_gone(name: str) -> None:
    head = FUNCTION_HEAD if name == "function" else HEAD
    for first in (True, False):
        session = whet.InferenceSession(model(MODELS[name], head), providers=CPU)
        for _ in range(3):
            session.run(None, feed_of(session))
        parts = watched(session)
        del session
        # What the first one of a process makes and keeps (caches, workers) may leave circles behind.
        if first:
            gc.collect()
    assert [part() for part in parts if part() is not None] == []
    assert left() == []


def binding(session: whet.InferenceSession) -> None:
    bound = session.io_binding()
    for name, array in feed_of(session).items():
        bound.bind_cpu_input(name, array)
    bound.bind_output(session.get_outputs()[0].name)
    session.run_with_iobinding(bound)


def asynchronous(session: whet.InferenceSession) -> None:
    done = threading.Event()
    session.run_async(None, feed_of(session), lambda *_: done.set(), None)
    assert done.wait(30)
    assert session._pool is not None
    session._pool.shutdown()


def refused(session: whet.InferenceSession) -> None:
    with pytest.raises(WhetError):
        session.run(None, {"x": np.zeros((1, 1, 1), np.float64)})


def stopped(session: whet.InferenceSession) -> None:
    options = whet.RunOptions()
    options.terminate = True
    with pytest.raises(WhetError):
        session.run(None, feed_of(session), options)


def other_providers(session: whet.InferenceSession) -> None:
    session.set_providers(["ReferenceExecutionProvider"])
    session.run(None, feed_of(session))


@pytest.mark.parametrize("use", [binding, asynchronous, refused, stopped, other_providers])
def test_no_way_to_use_a_session_ties_it(use: Callable[[whet.InferenceSession], None]) -> None:
    session = whet.InferenceSession(model(ADD), providers=CPU)
    use(session)
    parts = watched(session)
    del session
    assert [part() for part in parts if part() is not None] == []


def test_a_dropped_engine_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "add.engine"
    made = whet.InferenceSession(model(ADD), providers=CPU)
    made.save_engine(path)
    session = whet.InferenceSession(path, providers=CPU)
    session.run(None, feed_of(session))
    parts = [*watched(made), *watched(session)]
    del made, session
    assert [part() for part in parts if part() is not None] == []


def test_a_session_that_cannot_be_made_leaves_nothing() -> None:
    whet.InferenceSession(model(MODELS["fixed"]), providers=CPU)
    gc.collect()
    broken = model("g (float[2, 3] x) => (float[7, 9] z) { h = Exp(x) z = MatMul(h, h) }")
    try:
        whet.InferenceSession(broken, providers=CPU)
    except WhetError as error:
        message = str(error)
    assert "MatMul" in message
    assert left() == []


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_memory_of_a_dropped_session_is_free(tmp_path: Path) -> None:
    size, count = 16 << 20, 12
    weights = np.random.default_rng(0).standard_normal((size // 4 // 256, 256)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["w", "x"], ["z"])],
        "big",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 256])],
        [numpy_helper.from_array(weights, "w")],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    chosen = np.array([5, 0, 77])
    found = []
    for _ in range(count):
        session = whet.InferenceSession(content, providers=CPU)
        assert np.array_equal(session.run(None, {"x": chosen})[0], weights[chosen])
        del session
        found.append(_resident())
    assert found[-1] - found[2] < size, found


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_what_is_left_of_a_dropped_graph() -> None:
    session = whet.InferenceSession(model(ADD), providers=CPU)
    held = session.optimized_model.graph
    (node,) = held.nodes
    del session
    assert node.graph is held, "whoever holds a session's graph keeps it whole"
    assert node.output.producer is node
    x = node.inputs[0]
    assert x is not None
    assert node in x.uses
    del held
    assert node.graph is None
    assert node.output.producer is None
    assert node not in x.uses
    assert match(Var("x") + Var("y"), node) is not None
