"""Runs from many threads agree with serial ones; runs are stopped, seeded and finished in the background."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import whet
from tests.session_models import Array, model, session
from whet.errors import InvalidArgument, Terminated

MIXED = """g (float[N, 8] x, int64 steps) => (float[N, 8] y, float[N, 8] z) <float[8] b = {1, 2, 3, 4, 5, 6, 7, 8}> {
    s = Softmax(x)
    t = Transpose(s)
    n = MatMul(s, t)
    m = MatMul(n, x)
    go = Constant<value = bool {1}>()
    y = Loop(steps, go, m) <body = step (int64 i, bool c, float[N, 8] v) => (bool c_out, float[N, 8] v_out) {
        c_out = Identity(c)
        w = Tanh(v)
        v_out = Add(w, b)
    }>
    z = Sub(y, x)
}"""

FOREVER = """g (float x) => (float y) <int64 trips = {4611686018427387904}, bool go = {1}> {
    y = Loop(trips, go, x) <body = step (int64 i, bool c, float v) => (bool c_out, float v_out) {
        c_out = Identity(c)
        v_out = Sin(v)
    }>
}"""
ZERO = {"x": np.float32(0.5)}


def feeds(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    return [
        {"x": rng.standard_normal((1 + i % 5, 8)).astype(np.float32), "steps": np.array(i % 4)} for i in range(count)
    ]


def expected(feed: dict[str, Any]) -> list[Array]:
    x = feed["x"].astype(np.float64)
    e = np.exp(x - x.max(1, keepdims=True))
    s = e / e.sum(1, keepdims=True)
    y = s @ s.T @ x
    for _ in range(int(feed["steps"])):
        y = np.tanh(y) + np.arange(1, 9)
    return [y, y - x]


@pytest.mark.parametrize("sessions", [1, 3])
def test_eight_threads_agree_with_one(sessions: int) -> None:
    made = [session(MIXED) for _ in range(sessions)]
    given = feeds(120)
    serial = [made[0].run(None, feed) for feed in given]
    for feed, results in zip(given, serial, strict=True):
        for result, right in zip(results, expected(feed), strict=True):
            np.testing.assert_allclose(result, right, rtol=1e-5, atol=1e-5)
    start = threading.Barrier(8)

    def work(thread: int) -> list[tuple[int, list[Array]]]:
        start.wait()
        return [(i, made[i % sessions].run(None, given[i])) for i in range(thread, len(given), 8)]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(work, range(8)):
            for i, results in found:
                for result, right in zip(results, serial[i], strict=True):
                    np.testing.assert_array_equal(result, right)


def test_runs_do_not_wait_for_each_other() -> None:
    made, stop = session(FOREVER), whet.RunOptions()
    ended: list[str] = []
    made.run_async(None, ZERO, lambda results, data, error: ended.append(error), None, stop)
    try:
        limited = whet.RunOptions()
        limited.add_run_config_entry("deadline_ms", "20")
        with pytest.raises(Terminated):
            made.run(None, ZERO, limited)
        assert ended == []
    finally:
        stop.terminate = True


def test_terminate_from_another_thread_stops_an_endless_loop() -> None:
    made, options = session(FOREVER), whet.RunOptions()
    stopped: list[float] = []

    def stop() -> None:
        stopped.append(time.monotonic())
        options.terminate = True

    timer = threading.Timer(0.2, stop)
    timer.start()
    with pytest.raises(Terminated, match=r"RunOptions\.terminate"):
        made.run(None, ZERO, options)
    # The issue asks for half a second; a loaded machine is given more.
    assert time.monotonic() - stopped[0] < 5
    with pytest.raises(Terminated):
        made.run(None, ZERO, options)
    options.terminate = False
    assert not options.terminate


def test_a_deadline_stops_an_endless_loop() -> None:
    options = whet.RunOptions()
    options.add_run_config_entry("deadline_ms", "50")
    started = time.monotonic()
    with pytest.raises(Terminated, match="deadline"):
        session(FOREVER).run(None, ZERO, options)
    assert 0.05 <= time.monotonic() - started < 10
    options.add_run_config_entry("deadline_ms", "0")
    with pytest.raises(Terminated, match="deadline"):
        session(FOREVER).run(None, ZERO, options)
    options.add_run_config_entry("deadline_ms", "60000")
    assert session(MIXED).run(["y"], feeds(1)[0], options)


def test_run_async_gives_results_and_user_data() -> None:
    made, results = session(MIXED), queue.Queue[Any]()
    given = feeds(20)
    for i, feed in enumerate(given):
        made.run_async(["z"], feed, lambda *found: results.put((threading.current_thread(), *found)), i)
    seen = set()
    for _ in given:
        thread, found, i, error = results.get(timeout=30)
        assert error == ""
        assert thread is not threading.main_thread()
        np.testing.assert_allclose(found[0], expected(given[i])[1], rtol=1e-5, atol=1e-5)
        assert len(found) == 1
        seen.add(i)
    assert seen == set(range(20))


def test_run_async_reports_failures() -> None:
    made, results = session(FOREVER), queue.Queue[Any]()
    options = whet.RunOptions()
    options.add_run_config_entry("deadline_ms", "10")
    made.run_async(None, ZERO, lambda *found: results.put(found), "mine", options)
    found, data, error = results.get(timeout=30)
    assert (found, data) == ([], "mine")
    assert error.startswith("Terminated: ")
    with pytest.raises(InvalidArgument, match="missing from input feed"):
        made.run_async(None, {}, lambda *found: results.put(found), None)
    assert results.empty()


def test_run_async_logs_a_callback_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def callback(results: list[Any], data: Any, error: str) -> None:
        done.set()
        raise KeyError("the callback's own")

    made = session(MIXED)
    made.run_async(None, feeds(1)[0], callback, None)
    assert done.wait(30)
    deadline = time.monotonic() + 10
    # The record is in `caplog.records` before its text, which is written last, is complete.
    while "the callback's own" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "callback of run_async failed" in caplog.text
    assert "the callback's own" in caplog.text


RANDOM = "g (float[N] x) => (float[N] y) { r = RandomUniformLike(x) y = Add(x, r) }"


def test_a_seed_repeats_random_numbers() -> None:
    x = {"x": np.zeros(50, np.float32)}
    try:
        whet.set_seed(11)
        first = session(RANDOM).run(None, x)[0]
        np.testing.assert_array_equal(session(RANDOM).run(None, x)[0], first)
        whet.set_seed(12)
        assert not np.array_equal(session(RANDOM).run(None, x)[0], first)
        with pytest.raises(InvalidArgument):
            whet.set_seed(1.5)  # type: ignore[arg-type]
    finally:
        from whet.session import seed

        seed._state["seed"] = None
    made = session(RANDOM)
    assert not np.array_equal(made.run(None, x)[0], made.run(None, x)[0])


OVERRIDABLE = """g (float[N] x, float[M] a, float b) => (float[N] y) <float[1] a = {2}, float b = {3}> {
    m = Mul(x, a) y = Add(m, b)
}"""


def test_overridden_initializers_from_many_threads() -> None:
    made = whet.InferenceSession(model(OVERRIDABLE))
    x = np.arange(4, dtype=np.float32)

    def work(i: int) -> None:
        feed: dict[str, Any] = {"x": x}
        if i & 1:
            feed["a"] = np.array([i], np.float32)
        if i & 2:
            feed["b"] = np.float32(i)
        right = x * (i if i & 1 else 2) + (i if i & 2 else 3)
        np.testing.assert_array_equal(made.run(None, feed)[0], right)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(64)))
    assert len(made._specializations) == 3
