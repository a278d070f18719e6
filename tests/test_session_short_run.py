"""The short way through a session: with names of outputs and with RunOptions it gives what the long one gives."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

import whet
from tests.session_models import session
from whet.errors import InvalidArgument, Terminated
from whet.session.inference_session import InferenceSession

THREE = "g (float[N, 3] x) => (float[N, 3] a, float[N, 3] b, float[N, 3] c) { a = Neg(x) b = Abs(x) c = Exp(x) }"
LONG = """g (int64 n, bool going, float[N, 64] x) => (float[N, 64] z) {
    z = Loop (n, going, x) <body = f (int64 i, bool c, float[M, 64] s) => (bool d, float[M, 64] t) {
        d = Identity(c) u = Tanh(s) t = Sin(u) }> }"""


class Calls:
    """Counts the runs that take the long way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        honest = InferenceSession._prepare

        def prepare(made: InferenceSession, *arguments: Any) -> Any:
            self.count += 1
            return honest(made, *arguments)

        monkeypatch.setattr(InferenceSession, "_prepare", prepare)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def rows(count: int = 2) -> np.ndarray[Any, Any]:
    return np.random.default_rng(count).standard_normal((count, 3)).astype(np.float32)


@pytest.mark.parametrize("names", [None, [], ["a", "b", "c"], ["c", "a"], ("b",), ("c", "b", "a")])
@pytest.mark.parametrize("options", [None, whet.RunOptions()])
def test_chosen_outputs(calls: Calls, names: Any, options: whet.RunOptions | None) -> None:
    made = session(THREE)
    made.run(None, {"x": rows()})
    assert calls.count == 1
    x = rows()
    found = made.run(names, {"x": x}, options)
    wanted = {"a": -x, "b": np.abs(x), "c": np.exp(x)}
    assert calls.count == 1, "it did not take the short way"
    assert len(found) == len(names or wanted)
    for name, array in zip(names or wanted, found, strict=True):
        np.testing.assert_allclose(array, wanted[name], rtol=1e-6)
    for size in (5, 1, 5):
        again = made.run(names, {"x": rows(size)}, options)
        assert [a.shape for a in again] == [(size, 3)] * len(found)
    assert calls.count == 1


def test_an_output_asked_for_twice_is_given_twice_in_memory_of_its_own() -> None:
    made = session(THREE)
    for _ in range(2):
        first, second = made.run(["b", "b"], {"x": rows()})
        assert np.array_equal(first, second)
        assert not np.shares_memory(first, second)


@pytest.mark.parametrize("names", [["a", "nothing"], "a", ["a", 3], [["a"]]])
def test_names_that_are_none(names: Any) -> None:
    made = session(THREE)
    made.run(None, {"x": rows()})
    with pytest.raises(InvalidArgument):
        made.run(names, {"x": rows()})


def test_many_selections_stay_right() -> None:
    outputs = ", ".join(f"float[N, 3] o{i}" for i in range(9))
    nodes = " ".join(f"c{i} = Constant<value_float = {i}.0>() o{i} = Mul(x, c{i})" for i in range(9))
    made = session(f"g (float[N, 3] x) => ({outputs}) {{ {nodes} }}")
    x = rows()
    for first in range(9):
        for second in range(9):
            if first != second:
                a, b = made.run([f"o{first}", f"o{second}"], {"x": x})
                assert np.array_equal(a, x * np.float32(first))
                assert np.array_equal(b, x * np.float32(second))


def test_a_run_that_is_stopped_before_it_begins(calls: Calls) -> None:
    made = session(THREE)
    made.run(None, {"x": rows()})
    options = whet.RunOptions()
    options.terminate = True
    with pytest.raises(Terminated, match="terminate"):
        made.run(["a"], {"x": rows()}, options)
    options.terminate = False
    assert np.array_equal(made.run(["a"], {"x": rows()}, options)[0], -rows())
    options.add_run_config_entry("deadline_ms", "0")
    time.sleep(0.001)
    with pytest.raises(Terminated, match="deadline"):
        made.run(["a"], {"x": rows()}, options)
    assert calls.count == 1


def test_a_run_that_is_stopped_under_way(calls: Calls) -> None:
    made = session(LONG)
    feed = {"n": np.array(2), "going": np.array(True), "x": np.ones((2, 64), np.float32)}
    made.run(None, feed)
    made.run(None, feed, whet.RunOptions())
    assert calls.count == 1
    feed["n"] = np.array(10**9)
    options = whet.RunOptions()
    stopper = threading.Timer(0.1, lambda: setattr(options, "terminate", True))
    stopper.start()
    with pytest.raises(Terminated, match="terminate"):
        made.run(["z"], feed, options)
    stopper.join()
    late = whet.RunOptions()
    late.add_run_config_entry("deadline_ms", "50")
    began = time.monotonic()
    with pytest.raises(Terminated, match="deadline"):
        made.run(["z"], feed, late)
    assert time.monotonic() - began >= 0.05
    assert calls.count == 1, "it did not take the short way"


def test_run_options_keep_their_defaults() -> None:
    options, other = whet.RunOptions(), whet.RunOptions()
    options.log_verbosity_level = 3
    assert (other.log_verbosity_level, other.log_severity_level, other.logid, other.terminate) == (0, -1, "", False)
    assert options.log_verbosity_level == 3
    with pytest.raises(AttributeError, match="no option"):
        options.log_verbosity = 3
